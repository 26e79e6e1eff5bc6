"""Training: time of a step, time per tile end to end, and memory, compared with nnU-Net v2.

    python benchmarks/bench_training.py [--quick] [--threads N] [--workers N] [--data DIR]

Both programs use the same network (nnU-Net's plain U-Net: features, strides, kernels, two blocks
per stage, deep supervision), tile, batch and scans. Each measurement runs in its own process.

`train_step`: median milliseconds of one step on a batch in memory. Ours is a step of `fit` (loss,
gradients, clipping, optimiser, callbacks); nnU-Net's is `nnUNetTrainer.train_step`. On a CPU, nnU-
Net computes in fp32, and ours in bf16 if the processor supports it. `train_step_fp32` is ours in
fp32. `train_tiles`: seconds per tile after the warm-up, with each program's prepared files,
sampler, augmentation and workers. `train_memory`: the peak memory of a training step. On a GPU this
is torch's peak, on a CPU the growth of the process. Rows that end in `_2d` are measured on colour
pictures.

nnU-Net runs in the peers' environment (`make peers`) on files of `nnUNetv2_plan_and_preprocess`.
`--data` is an nnU-Net raw dataset of scans. Without it, heads are simulated. Pictures are always
simulated. `--quick` measures only a step on scans.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.common import table
from benchmarks.peers.training_work import SIZES, Job
from benchmarks.phantoms.fundus import FundusSettings, write_fundus

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".peers" / "bin"
DATASET = Path("raw") / "Dataset001_Bench"
Found = Mapping[str, float]


def main() -> None:
    """Measure and print the rows."""
    options = _options()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        sizes = [device] if options.quick else [device, f"{device}_2d"]
        if options.size:
            sizes = [options.size]
        rows = []
        for size in sizes:
            folder = (options.folder or Path(name)).absolute() / size
            job = make_job(options, folder, device, size)
            ready = prepare(folder, options, job, skipped)
            rows += measure(job, ready, skipped, quick=options.quick)
    table.print_report(
        "training",
        rows,
        device=f"{table.device_name(device)} of {job.threads}, load {os.getloadavg()[0]:.1f}",
        versions=table.versions("pytorch-lightning", "monai"),
        skipped=skipped,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two scans, fewer steps")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--workers", type=int, help="of either tool; default 1, on a GPU 8")
    parser.add_argument("--data", type=Path, help="an nnU-Net raw dataset")
    parser.add_argument("--folder", type=Path, help="where prepared files are kept, for next time")
    parser.add_argument("--size", choices=sorted(SIZES), help=argparse.SUPPRESS)
    return parser.parse_args()


def make_job(options: argparse.Namespace, folder: Path, device: str, size: str) -> Job:
    """Return the settings that all measurements of a size share."""
    gpu = device == "cuda"
    return Job(
        what="step",
        folder=str(folder),
        size=size,
        device=device,
        threads=options.threads,
        workers=(8 if gpu else 1) if options.workers is None else options.workers,
        warm_up=10 if gpu else 1 if options.quick else 3,
        steps=50 if gpu else 3 if options.quick else 15,
        seconds=20 if gpu else 40,
    )


def prepare(
    folder: Path, options: argparse.Namespace, job: Job, skipped: dict[str, str]
) -> set[str]:
    """Write scans and let each program prepare them. Return the programs that are ready."""
    raw = folder / DATASET
    done = folder / "ready.json"
    if done.is_file():
        return set(json.loads(done.read_text()))
    size = SIZES[job.size]
    raw.parent.mkdir(parents=True, exist_ok=True)
    if options.data and size.dims == 3:
        raw.symlink_to(options.data.resolve())
    elif not raw.exists():
        write = write_scans if size.dims == 3 else write_pictures
        write(raw, 2 if options.quick else 8, size.side)
    ours = [sys.executable, str(ROOT / "benchmarks" / "peers" / "train_ours.py"), "prepare"]
    theirs = [str(PEERS / "nnUNetv2_plan_and_preprocess"), "-d", "1", "-c", size.configuration]
    commands = {"ours": [*ours, str(folder), job.size]}
    if Path(theirs[0]).exists():
        commands["nnunet"] = [*theirs, "-np", "1", "-npfp", "1"]
    else:
        skipped["nnunet"] = "nnunetv2 is not in .peers; make peers"
    with ThreadPoolExecutor(2) as pool:
        runs = {who: pool.submit(run, c, job, skipped, who) for who, c in commands.items()}
        ready = {who for who, each in runs.items() if each.result() is not None}
    done.write_text(json.dumps(sorted(ready)))
    return ready


def write_scans(raw: Path, n: int, side: int) -> None:
    """Simulate heads that are larger than a tile."""
    from lesionseg.phantoms import write_mri_phantoms

    shape = tuple(max(axis, side + side // 4) for axis in (96, 112, 96))
    write_mri_phantoms(raw, n, seed=0, shape=shape, lesion_free_share=0)


def write_pictures(raw: Path, n: int, side: int) -> None:
    """Simulate colour photographs of the retina, about three times as wide as a tile."""
    write_fundus(raw, n, 0, seed=0, settings=FundusSettings(side=3 * side))


def measure(job: Job, ready: set[str], skipped: dict[str, str], *, quick: bool) -> list[table.Row]:
    """Return all rows of one size."""
    suffix = "_2d" if SIZES[job.size].dims == 2 else ""
    step = "train_step" + suffix
    tiles = "train_tiles" + suffix
    jobs = {step: job}
    if job.device == "cpu" and not quick:
        jobs[f"{step}_fp32"] = replace(job, precision="32-true")
    if ready >= {"ours", "nnunet"} and not quick:
        jobs[tiles] = replace(job, what="tiles")
    ours = {what: run_ours(each, skipped, what) for what, each in jobs.items()}
    theirs = {}
    if "nnunet" in ready:
        for what in [name for name in (step, tiles) if name in jobs]:
            theirs[what] = run_peer(jobs[what], skipped, f"{what} of nnunet")
    rows = []
    for what, mine in ours.items():
        peer = theirs.get(tiles if what == tiles else step)
        if mine is None or peer is None:
            continue
        if what == tiles:
            rows.append(table.Row(what, mine["tile_s"], "s/tile", "nnunet", peer["tile_s"]))
            continue
        rows.append(table.Row(what, mine["step_ms"], "ms", "nnunet", peer["step_ms"]))
        if what == step:
            memory = f"train_memory{suffix}"
            rows.append(table.Row(memory, mine["peak_mb"], "MB", "nnunet", peer["peak_mb"]))
    return rows


def run_ours(job: Job, skipped: dict[str, str], what: str) -> Found | None:
    """Return the numbers of our worker."""
    script = str(ROOT / "benchmarks" / "peers" / "train_ours.py")
    return read_numbers([sys.executable, script, json.dumps(job.to_json())], job, skipped, what)


def run_peer(job: Job, skipped: dict[str, str], what: str) -> Found | None:
    """Return the numbers of nnU-Net's worker."""
    script = str(ROOT / "benchmarks" / "peers" / "peer_training.py")
    command = [str(PEERS / "python"), script, json.dumps(job.to_json())]
    return read_numbers(command, job, skipped, what)


def read_numbers(
    command: Sequence[str], job: Job, skipped: dict[str, str], what: str
) -> Found | None:
    """Run a worker, print its numbers and return them."""
    line = run(command, job, skipped, what)
    if line is None:
        return None
    found = {name: float(value) for name, value in json.loads(line).items()}
    text = "  ".join(f"{name} {value:.4g}" for name, value in found.items())
    print(f"{Path(command[1]).stem} {what}: {text}", file=sys.stderr)
    return found


def run(command: Sequence[str], job: Job, skipped: dict[str, str], what: str) -> str | None:
    """Return the last line that a command prints. If it fails, return None and note the reason."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment(job),
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        skipped[what] = (done.stderr.strip() or "no message").splitlines()[-1]
        return None
    return lines[-1]


def environment(job: Job) -> dict[str, str]:
    """Return the folders and processes of nnU-Net, and the threads of both programs."""
    folder = Path(job.folder)
    places = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "pre", "nnUNet_results": "results"}
    for place in places.values():
        (folder / place).mkdir(exist_ok=True)
    return {name: str(folder / place) for name, place in places.items()} | {
        "OMP_NUM_THREADS": str(job.threads),
        "nnUNet_n_proc_DA": str(job.workers),
        "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))),
    }


if __name__ == "__main__":
    main()
