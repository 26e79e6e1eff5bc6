"""Time on one core to read a tile, to make a training tile, and to prepare a dataset.

    python benchmarks/bench_loading.py [--quick]

`read_tile`: a sampled 96³ tile from the cache of a 192 × 224 × 192 case, compared with MONAI's
`RandCropByPosNegLabeld` on the same case in memory (medians). `augment_tile`: reading and
augmentation as in training. The row has the mean over tiles, because each tile is augmented
differently. It is compared with MONAI's crop and the same steps at the same probabilities, and with
nnU-Net's training transforms on a tile in memory.
`targets_per_tile`: the targets that a loader adds to a 128³ tile for the default loss, compared
with reading and augmenting this tile (means).
`prepare`: from raw files to the cache, as commands with their start-up, compared with
`nnUNetv2_plan_and_preprocess`. nnU-Net runs in the peers' environment (`make peers`).

Times are processor time of one thread. On an idle core this equals wall time, and it remains
comparable on a busy machine. Processes of nnU-Net wait for each other; this is not counted.
`read_tile` is also measured by wall time. The arrays are in the file cache of the operating system.
Ours and MONAI take turns of eight tiles, and the first tile of a turn is not counted. With
`--quick`, two of the later rows are measured at the same time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai import transforms as mt

from benchmarks.common import table
from benchmarks.peers.monai_chain import monai_chain
from lesionseg.config import AugmentConfig, DetectionConfig, LossConfig, SamplingConfig
from lesionseg.core import Geometry, Labels, Reference, Volume
from lesionseg.data.cache import CachedCase, read_cached_case, write_cached_case
from lesionseg.data.preprocess import PreparedCase
from lesionseg.data.tiles import TileDataset
from lesionseg.io.volumes import write_volume
from lesionseg.ops.components import label_components
from lesionseg.plan.plan import Architecture, Normalisation, Plan
from lesionseg.training.objective import make_objective
from lesionseg.training.tile_stream import to_batch

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".peers" / "bin"
CASE = (192, 224, 192)
TILE = (96, 96, 96)
LARGE_TILE = (128, 128, 128)
TURN = 8


def main() -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer tiles and cases")
    options = parser.parse_args()
    torch.set_num_threads(1)
    skipped: dict[str, str] = {}
    n_tiles, n_cases = (16, 2) if options.quick else (200, 12)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = measure_tiles(folder, n_tiles)
        # each is a process, and one of nnU-Net's takes as long as all others together
        with ThreadPoolExecutor(2 if options.quick else 1) as pool:
            preparing = submit_preparations(pool, folder, n_cases, skipped)
            theirs = pool.submit(run_peer, "augment", folder, str(n_tiles), skipped=skipped)
        if theirs.result():
            ours = next(row.ours for row in rows if row.what == "augment_tile")
            mean = theirs.result()["mean_ms"]
            rows.append(table.Row("augment_tile", ours, "ms", "nnunet", mean))
        if preparing:
            seconds = [future.result() / n_cases for future in preparing]
            rows.append(table.Row("prepare", seconds[0], "s/case", "nnunet", seconds[1]))
    table.print_report(
        "loading",
        rows,
        device=f"{table.device_name()}, load {os.getloadavg()[0]:.1f}",
        versions=table.versions("monai", "numba") | peer_versions(),
        skipped=skipped,
    )


def measure_tiles(folder: Path, n: int) -> list[table.Row]:
    """Return the rows of reading and augmenting."""
    case = make_case(folder / "case")
    plan = make_plan()
    plan = plan.with_(tile_shape=TILE)
    plain = TileDataset([case], plan, SamplingConfig.of(), None, n_tiles=n, seed=0)
    full = TileDataset([case], plan, SamplingConfig.of(), AugmentConfig.of(), n_tiles=n, seed=0)
    whole = {
        "image": torch.from_numpy(np.asarray(case.image, np.float32)),
        "labels": torch.from_numpy(np.array(case.labels))[None],
    }
    chain = mt.Compose(monai_chain(AugmentConfig.of(), masks=("labels",)))
    crop = make_monai_crop()
    read = take_turns(
        n,
        ours=plain.raw,
        monai=lambda i: crop(whole),
    )
    augmented = take_turns(n, ours=full.__getitem__, monai=lambda i: chain(crop(whole)[0]))
    return [
        make_row("read_tile", read, np.median),
        make_row("read_tile_clock", read, np.median, clock=True),
        make_row("augment_tile", augmented, np.mean),
        measure_targets(case, plan.with_(tile_shape=LARGE_TILE), n),
    ]


def measure_targets(case: CachedCase, plan: Plan, n: int) -> table.Row:
    """Return the row of the targets of the default loss."""
    tiles = TileDataset([case], plan, SamplingConfig.of(), AugmentConfig.of(), n_tiles=n, seed=0)
    batches = [to_batch([tiles[i]]) for i in range(TURN)]
    add_targets = make_objective(plan, LossConfig.of(), DetectionConfig.of()).batch_targets
    times = take_turns(n, ours=lambda i: add_targets(batches[i % TURN]), tile=tiles.__getitem__)
    ours, tile = (float(np.mean([used for used, _ in times[name]])) for name in ("ours", "tile"))
    return table.Row("targets_per_tile", ours, "ms", "read and augment", tile)


Times = dict[str, list[tuple[float, float]]]


def make_row(
    what: str, times: Times, middle: Callable[[list[float]], Any], *, clock: bool = False
) -> table.Row:
    """Return a row of ours and MONAI, of processor time or wall time."""
    ours = float(middle([pair[clock] for pair in times["ours"]]))
    monai = float(middle([pair[clock] for pair in times["monai"]]))
    return table.Row(what, ours, "ms", "monai", monai)


def take_turns(n: int, **runs: Callable[[int], object]) -> Times:
    """Return processor and wall time in ms of n runs of each function, in turns of eight.

    The first run of a turn is not counted, because the processor's caches contain other data.
    """
    times: Times = {name: [] for name in runs}
    for start in range(0, n, TURN):
        for name, run in runs.items():
            for i in (start, *range(start, min(start + TURN, n))):
                used = time.thread_time()
                begin = time.perf_counter()
                run(i)
                spent = time.thread_time() - used, time.perf_counter() - begin
                times[name].append((spent[0] * 1e3, spent[1] * 1e3))
            del times[name][start]  # the first run of this turn
    return times


def make_monai_crop() -> mt.Compose:
    """Return a crop around a lesion voxel or a background voxel, half of each."""
    return mt.RandCropByPosNegLabeld(
        ("image", "labels"), label_key="labels", spatial_size=TILE, pos=1, neg=1, num_samples=1
    )


def submit_preparations(
    pool: ThreadPoolExecutor, folder: Path, n: int, skipped: dict[str, str]
) -> list[Future[float]]:
    """Start to prepare `n` cases of raw files with both programs. Return their seconds."""
    if not (PEERS / "nnUNetv2_plan_and_preprocess").exists():
        skipped["nnunet"] = "nnunetv2 is not in .peers; make peers"
        return []
    raw = folder / "raw" / "Dataset001_Bench"
    write_dataset(raw, n)
    ours = [sys.executable, str(ROOT / "scripts" / "prepare.py"), f"data.root={raw}"]
    ours += [f"run_dir={folder / 'run'}", "data.validation_fraction=0"]
    theirs = [str(PEERS / "nnUNetv2_plan_and_preprocess"), "-d", "1", "-c", "3d_fullres"]
    theirs += ["-np", "1", "-npfp", "1"]
    slower = pool.submit(run_to_end, theirs, peer_environment(folder))
    return [pool.submit(run_to_end, ours, {"OMP_NUM_THREADS": "1"}), slower]


def run_to_end(command: list[str], environment: dict[str, str]) -> float:
    """Run a command.

    Return the processor seconds of it and its processes, or exit with its error.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            sys.exit(f"{command[0]} failed:\n{log.read()[-4000:].decode(errors='replace')}")
    return used.ru_utime + used.ru_stime


def run_peer(what: str, folder: Path, *arguments: str, skipped: dict[str, str]) -> dict[str, float]:
    """Run peer_nnunet.py. Return its measurements, or nothing with the reason in `skipped`."""
    if not (PEERS / "python").exists():
        skipped["nnunet"] = "there is no .peers; make peers"
        return {}
    script = ROOT / "benchmarks" / "peers" / "peer_nnunet.py"
    done = subprocess.run(
        [PEERS / "python", script, what, *arguments],
        env=os.environ | peer_environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        skipped["nnunet"] = (done.stderr.strip() or "no message").splitlines()[-1]
        return {}
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def peer_environment(folder: Path) -> dict[str, str]:
    """Return the variables of nnU-Net: its folders, and one thread."""
    places = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "pre", "nnUNet_results": "results"}
    for place in places.values():
        (folder / place).mkdir(exist_ok=True)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "nnUNet_def_n_proc", "nnUNet_n_proc_DA"), "1")
    return {name: str(folder / place) for name, place in places.items()} | threads


def peer_versions() -> dict[str, str]:
    """Return the versions of the peers without starting them."""
    found = {}
    for package in ("nnunetv2", "batchgeneratorsv2"):
        for path in ROOT.glob(f".peers/lib/python*/site-packages/{package}-*.dist-info"):
            found[package] = path.name.removeprefix(f"{package}-").removesuffix(".dist-info")
    return found


def make_case(folder: Path) -> CachedCase:
    """Return a cached case of noise with 30 lesions of 2 to 9 voxels in diameter."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, *CASE)).astype(np.float32)
    labels = draw_lesions(rng, CASE)
    instances = label_components(labels > 0)
    geometry = Geometry.from_spacing(CASE, (1.0, 1.0, 1.0))
    reference = Reference(geometry, labels, instances, (1,) * int(instances.max()))
    volume = Volume(image, geometry)
    folder.mkdir()
    write_cached_case(folder, PreparedCase("a", "a", volume, reference), "none")
    return read_cached_case(folder)


def draw_lesions(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return 30 cubes inside the middle half of the shape."""
    labels = np.zeros(shape, np.uint8)
    for _ in range(30):
        side = int(rng.integers(2, 10))
        start = [int(rng.integers(s // 4, 3 * s // 4 - side)) for s in shape]
        labels[tuple(slice(a, a + side) for a in start)] = 1
    return labels


def write_dataset(root: Path, n: int) -> None:
    """Write an nnU-Net raw folder of int16 scans of two spacings, a bright body in air."""
    shape = (112, 160, 144)
    (root / "imagesTr").mkdir(parents=True)
    (root / "labelsTr").mkdir()
    axes = np.ogrid[tuple(slice(-1, 1, s * 1j) for s in shape)]
    body = sum(a**2 for a in axes) < 0.8
    for i in range(n):
        rng = np.random.default_rng(i)
        labels = draw_lesions(rng, shape) * body
        scan = (rng.normal(400, 30, shape) + 150 * labels) * body
        spacing = (1.0, 1.0, 1.0) if i % 3 else (1.25, 1.0, 1.0)
        geometry = Geometry.from_spacing(shape, spacing)
        image = root / "imagesTr" / f"c{i:02}_0000.nii.gz"
        write_volume(image, Volume(scan.astype(np.int16)[None], geometry))
        write_volume(
            root / "labelsTr" / f"c{i:02}.nii.gz", Volume(labels.astype(np.uint8)[None], geometry)
        )
    content = {
        "channel_names": {"0": "FLAIR"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": n,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(content))


def make_plan() -> Plan:
    """Return a plan of 96³ tiles."""
    stages = ((1, 1, 1), (2, 2, 2))
    return Plan(
        dims=3,
        modality="mri",
        channel_names=("T1",),
        labels=Labels((1,), ("lesion",)),
        spacing_mm=(1.0, 1.0, 1.0),
        normalisation=(Normalisation("zscore"),),
        tile_shape=TILE,
        batch_size=2,
        architecture=Architecture("unet", (8, 16), stages, ((3, 3, 3),) * 2),
        lesion_fraction=0.001,
    )


if __name__ == "__main__":
    main()
