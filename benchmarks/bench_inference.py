"""Prediction from NIfTI to NIfTI on a CPU: time and memory, compared with nnU-Net and MONAI.

    python benchmarks/bench_inference.py [--quick] [--bundle RUN --input DIR]

`inference_balanced` and `inference_fast`: seconds per case for the complete prediction (reading,
preparing, network, restoring, candidates, writing), compared with nnU-Net's predictor (mirroring
off) and a script with MONAI's `sliding_window_inference`. Both peers use half-overlapping tiles
like `balanced`. All programs use the same network and weights, each in its own process; imports are
not counted. `overhead`: our share of time outside of the network. `inference_memory`: the peak
memory of a process. Without `--bundle`, the weights are random and the scans are heads of noise.
`nnunet_model`: the same for a model folder of nnU-Net that both programs use (mirroring off).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common import table
from lesionseg.config import InferenceConfig, PredictConfig
from lesionseg.core import Geometry, Labels, Volume
from lesionseg.inference.bundle import Bundle, read_bundle, write_bundle
from lesionseg.inference.predictor import Predictor
from lesionseg.io.results.folder import PredictionFolder
from lesionseg.io.volumes import write_volume
from lesionseg.models.build import build_network
from lesionseg.pipeline.predict import find_input_scans
from lesionseg.pipeline.predict_case import CaseWork
from lesionseg.plan.plan import Architecture, Normalisation, Plan

ROOT = Path(__file__).resolve().parent.parent
PEERS = Path(os.environ.get("LESIONSEG_PEERS", ROOT / ".peers")) / "bin" / "python"
PRESETS = {
    "balanced": InferenceConfig.of(),
    "fast": InferenceConfig.of(overlap=0.125),
}


def main() -> None:
    """Measure and print the rows."""
    options = _options()
    if options.worker:
        print(json.dumps(predict_folder(options.worker, options.folder)))
        return
    skipped: dict[str, str] = {"GPU": "not measured"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_work(folder, options)
        rows = measure_speed(folder, skipped)
        if not options.bundle:
            rows += measure_nnunet_model(folder, skipped, quick=options.quick)
    table.print_report(
        "inference",
        rows,
        device=f"{table.device_name()}, load {os.getloadavg()[0]:.1f}",
        versions=table.versions("numba", "nibabel"),
        skipped=skipped,
    )
    broken = [row.what for row in rows if row.peer == "allowed" and row.ratio < 1]
    sys.exit(f"Over what is allowed: {', '.join(broken)}" if broken else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller network and volume")
    parser.add_argument("--bundle", type=Path, help="a trained run or bundle")
    parser.add_argument("--input", type=Path, help="a folder of scans for it")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def make_work(folder: Path, options: argparse.Namespace) -> None:
    """Write bundle, weights for the peers and scans into one folder."""
    if options.bundle:
        bundle = read_bundle(options.bundle)
        (folder / "in").mkdir()
        for scan in sorted(options.input.glob("*.nii.gz")):
            (folder / "in" / scan.name).symlink_to(scan.resolve())
    else:
        bundle = make_random_bundle(quick=options.quick)
        shape = (112, 128, 112) if options.quick else (176, 208, 176)
        for seed in range(1 if options.quick else 2):
            write_volume(folder / "in" / f"head{seed}.nii.gz", draw_head(shape, seed))
    write_bundle(folder / "bundle", bundle.networks, bundle.plan, "")
    torch.save(bundle.networks[0].state_dict(), folder / "network.pt")


def make_random_bundle(*, quick: bool) -> Bundle:
    """Return the U-Net of the reference numbers, or a narrower one."""
    features = (8, 16, 32, 64) if quick else (16, 32, 64, 128, 160)
    n = len(features)
    plan = Plan(
        dims=3,
        modality="mri",
        channel_names=("FLAIR",),
        labels=Labels((1,), ("lesion",)),
        spacing_mm=(1.0, 1.0, 1.0),
        normalisation=(Normalisation("zscore"),),
        tile_shape=(64,) * 3 if quick else (96,) * 3,
        batch_size=2,
        architecture=Architecture(
            "unet", features, ((1,) * 3, *((2,) * 3,) * (n - 1)), ((3,) * 3,) * n
        ),
        lesion_fraction=0.02,
    )
    return Bundle((build_network(plan, seed=0).eval(),), plan)


def draw_head(shape: tuple[int, int, int], seed: int) -> Volume:
    """Return an ellipsoid of tissue with bright spots in noisy air, as int16."""
    rng = np.random.default_rng(seed)
    axes = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    inside = sum((a / 0.8) ** 2 for a in axes) < 1
    image = np.where(inside, rng.normal(300, 25, shape), np.abs(rng.normal(0, 4, shape)))
    for _ in range(12):
        centre = rng.uniform(-0.45, 0.45, 3)
        spot = sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) < 0.05**2
        image[spot] += 200
    return Volume(image.astype(np.int16)[None], Geometry.from_spacing(shape, (1.0, 1.0, 1.0)))


def measure_speed(folder: Path, skipped: dict[str, str]) -> list[table.Row]:
    """Return the rows of time, overhead and memory."""
    ours = {name: run_ours(name, folder) for name in PRESETS}
    rows: list[table.Row] = []
    for peer in ("nnunet", "monai"):
        theirs = run_peer(peer, folder, skipped)
        if theirs:
            for name in ("balanced", "fast"):
                seconds = ours[name]["seconds"]
                rows.append(
                    table.Row(f"inference_{name}", seconds, "s/case", peer, theirs["seconds"])
                )
            peak_mb = ours["balanced"]["peak_mb"]
            rows.append(table.Row("inference_memory", peak_mb, "MB", peer, theirs["peak_mb"]))
    for name in ("balanced", "fast"):
        share = 100 * (1 - ours[name]["network_s"] / ours[name]["seconds"])
        rows.append(table.Row(f"overhead_{name}", max(share, 0.01), "% of time", "allowed", 15))
    return rows


def measure_nnunet_model(folder: Path, skipped: dict[str, str], *, quick: bool) -> list[table.Row]:
    """Return the rows of an nnU-Net model folder that both programs predict with."""
    what = "quick" if quick else "full"
    theirs = run_peer("nnunet_model", folder, skipped, "peer_nnunet_model.py", [folder, what])
    if not theirs:
        return []
    ours = run_ours("nnunet_model", folder)
    return [
        table.Row("nnunet_model", ours["seconds"], "s/case", "nnunet", theirs["seconds"]),
        table.Row("nnunet_model_memory", ours["peak_mb"], "MB", "nnunet", theirs["peak_mb"]),
    ]


def run_ours(name: str, folder: Path) -> dict[str, float]:
    """Run our worker in a separate process. Return its measurements."""
    command = [sys.executable, __file__, "--worker", name, "--folder", str(folder)]
    return _last_line(subprocess.run(command, capture_output=True, text=True, check=False))


def run_peer(
    peer: str,
    folder: Path,
    skipped: dict[str, str],
    script: str = "peer_inference.py",
    arguments: Sequence[str | Path] = (),
) -> dict[str, float]:
    """Run a peer's script. Return its measurements, or nothing with the reason in `skipped`."""
    if not PEERS.exists():
        skipped[peer] = "there is no .peers; make peers"
        return {}
    command = [PEERS, ROOT / "benchmarks" / "peers" / script, *(arguments or (peer, folder))]
    places = {f"nnUNet_{n}": str(folder / n) for n in ("raw", "preprocessed", "results")}
    done = subprocess.run(
        command,
        env=os.environ | places | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        skipped[peer] = (done.stderr.strip() or "no message").splitlines()[-1]
        return {}
    return _last_line(done)


def _last_line(done: "subprocess.CompletedProcess[str]") -> dict[str, float]:
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def predict_folder(name: str, folder: Path, device: str = "cpu") -> dict[str, Any]:
    """Predict all scans of a folder. Return time and memory."""
    output = folder / name
    cfg = PredictConfig.of(
        bundle=folder / ("nnunet_model" if name == "nnunet_model" else "bundle"),
        input=folder / "in",
        output=output,
        inference=PRESETS.get(name, PRESETS["balanced"]),
        device=device,
    )
    work = CaseWork(cfg)
    predictor = work.predictor
    scans = find_input_scans(folder / "in", output, predictor.plan, cfg).scans
    _warm_up(predictor)
    spent = [0.0]
    for network in predictor.window.networks:
        _add_time_of(network, spent)
    base = _memory_mb("VmRSS")
    begin = time.perf_counter()
    rows = list(work.predict(scans, PredictionFolder(output), {}))
    seconds = (time.perf_counter() - begin) / len(scans)
    for row in rows:
        if row.status != "done":
            sys.exit(row.message)
    peak = _memory_mb("VmHWM")  # ru_maxrss includes the memory of the parent
    network_s = spent[0] / len(scans)
    return {"seconds": seconds, "network_s": network_s, "peak_mb": peak, "base_mb": base}


def _warm_up(predictor: Predictor) -> None:
    """Load everything that is loaded at first use, and let convolutions choose algorithms."""
    plan = predictor.plan
    array = np.zeros((len(plan.channel_names), *plan.tile_shape), np.float32)
    array[:, 1:3, 1:3, 1:3] = 5
    predictor.predict_volume(
        Volume(array, Geometry.from_spacing(plan.tile_shape, plan.spacing_mm)), ""
    )


def _add_time_of(network: nn.Module, spent: list[float]) -> None:
    """Add the time of every call of the network to `spent`."""
    began = [0.0]
    network.register_forward_pre_hook(lambda *_: began.__setitem__(0, time.perf_counter()))

    def after(*_: object) -> None:
        spent[0] += time.perf_counter() - began[0]

    network.register_forward_hook(after)


def _memory_mb(name: str) -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(name)).split()[1]) / 1024


if __name__ == "__main__":
    main()
