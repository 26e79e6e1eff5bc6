"""Training: a step, tiles a second end to end, and memory, against nnU-Net v2.

    python benchmarks/bench_training.py [--quick] [--threads N] [--workers N] [--data DIR]
                                        [--curve STEPS]

The same network (nnU-Net's plain U-Net: features, strides, kernels, two blocks a stage, deep
supervision), tile, batch and scans for both, each measurement in a process of its own.

`train_step`: median milliseconds of one step on a batch in memory, ours as `fit` takes it (loss,
gradients, clipping, optimiser, averaged weights, callbacks), nnU-Net's `nnUNetTrainer.train_step`.
On a CPU nnU-Net computes in fp32 and ours in bf16 where the processor has it; `train_step_fp32` is
ours in fp32 too. `train_step_fast`: ours with a space-to-depth stem, the backbone at half
resolution.
`train_tiles`: seconds a tile with each tool's own prepared files, sampler, augmentation and
workers, from the end of the warm-up on. `train_memory`: the most that a training step took, on a
GPU what torch gave out, on a CPU what the process grew by. On a GPU also `train_step_eager`,
`_compiled`, `_graphs`, and `train_idle`, the share of the time in which the device does not work,
against what is allowed; without nnU-Net its network alone where `dynamic_network_architectures` is
installed, else the goals.

`--curve`: both networks from the same weights, on the same batches, with nnU-Net's loss and
optimiser; how far their losses differ. nnU-Net runs in the peers' environment (`make peers`), its
files are made by `nnUNetv2_plan_and_preprocess`. `--data`: an nnU-Net raw dataset; without it,
simulated heads.
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
from statistics import mean

import torch

from benchmarks.common import table
from benchmarks.peers.training_work import SIZES, Job

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".peers" / "bin"
DATASET = Path("raw") / "Dataset001_Bench"
GOALS_MS = {"train_step": 25.0, "train_step_fast": 12.0}  # on an H200
IDLE_PERCENT = 5.0
Found = Mapping[str, float]


def main() -> None:
    """Measure and print."""
    options = _options()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = (options.folder or Path(name)).absolute()
        job = make_job(options, folder, device)
        if options.curve:
            rows = curve_rows(job, options.curve, skipped)
        else:
            ready = prepare(folder, options, job, skipped)
            rows = measure(job, ready, skipped)
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
    parser.add_argument("--curve", type=int, default=0, metavar="STEPS")
    parser.add_argument("--size", choices=sorted(SIZES), help=argparse.SUPPRESS)
    return parser.parse_args()


def make_job(options: argparse.Namespace, folder: Path, device: str) -> Job:
    """What all measurements share."""
    gpu = device == "cuda"
    return Job(
        what="step",
        folder=str(folder),
        size=options.size or device,
        device=device,
        threads=options.threads,
        workers=(8 if gpu else 1) if options.workers is None else options.workers,
        warm_up=10 if gpu else 1 if options.quick else 3,
        steps=50 if gpu else 3 if options.quick else 15,
        seconds=20 if gpu else 6 if options.quick else 40,
    )


def prepare(
    folder: Path, options: argparse.Namespace, job: Job, skipped: dict[str, str]
) -> set[str]:
    """Raw scans and what each tool makes of them; the tools that are ready."""
    raw, done = folder / DATASET, folder / "ready.json"
    if done.is_file():
        return set(json.loads(done.read_text()))
    raw.parent.mkdir(parents=True, exist_ok=True)
    if options.data:
        raw.symlink_to(options.data.resolve())
    elif not raw.exists():
        write_scans(raw, 2 if options.quick else 8, SIZES[job.size].side)
    ours = [sys.executable, str(ROOT / "benchmarks" / "peers" / "train_ours.py"), "prepare"]
    theirs = [str(PEERS / "nnUNetv2_plan_and_preprocess"), "-d", "1", "-c", "3d_fullres"]
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
    """Simulated heads, larger than a tile."""
    from lesionseg.phantoms import write_mri_phantoms

    shape = tuple(max(axis, side + side // 4) for axis in (96, 112, 96))
    write_mri_phantoms(raw, n, seed=0, shape=shape, lesion_free_share=0)


def measure(job: Job, ready: set[str], skipped: dict[str, str]) -> list[table.Row]:
    """All rows of one device."""
    ours = our_steps(job, skipped)
    peers = peer_steps(job, ready, skipped)
    rows = step_rows(ours, peers, gpu=job.device == "cuda")
    return rows + tile_rows(replace(job, what="tiles"), ready, skipped)


def our_steps(job: Job, skipped: dict[str, str]) -> dict[str, Found]:
    """What our steps took, by the name of the row."""
    if job.device == "cuda":
        jobs = gpu_jobs(job)
    else:
        fast = replace(job, space_to_depth=True)
        half = replace(job, precision="32-true")
        jobs = {"train_step": job, "train_step_fp32": half, "train_step_fast": fast}
    found = {what: run_ours(each, skipped, what) for what, each in jobs.items()}
    done = {what: each for what, each in found.items() if each is not None}
    if job.device == "cuda" and done:
        equal = [each for what, each in done.items() if what != "train_step_fast"]
        done["train_step"] = min(equal, key=lambda each: each["step_ms"])
    return done


def gpu_jobs(job: Job) -> dict[str, Job]:
    """The ways to take a step on a GPU, by the name of the row."""
    half = replace(job, precision="bf16-mixed")
    return {
        "train_step_eager": half,
        "train_step_compiled": replace(half, compile=True),
        "train_step_graphs": replace(half, compile="graphs"),
        "train_step_fast": replace(job, space_to_depth=True, compile=True),
    }


def peer_steps(job: Job, ready: set[str], skipped: dict[str, str]) -> dict[str, Found]:
    """What their steps took, by the peer's name; on a GPU the network alone where it must be."""
    jobs: dict[str, tuple[str, Job]] = {}
    if "nnunet" in ready:
        jobs["nnunet"] = ("trainer", job)
    if job.device == "cuda":
        jobs["plain_conv_unet"] = ("network", job)
        jobs["plain_conv_unet_compiled"] = ("network", replace(job, compile=True))
    found = {who: run_peer(what, each, skipped, who) for who, (what, each) in jobs.items()}
    return {who: each for who, each in found.items() if each is not None}


def step_rows(
    ours: Mapping[str, Found], peers: Mapping[str, Found], *, gpu: bool
) -> list[table.Row]:
    """Rows of steps and of their memory: ours against every peer, or on a GPU the goals."""
    rows = []
    for what, mine in ours.items():
        for who, theirs in peers.items():
            rows.append(table.Row(what, mine["step_ms"], "ms", who, theirs["step_ms"]))
        if gpu and what in GOALS_MS:
            rows.append(table.Row(what, mine["step_ms"], "ms", "goal", GOALS_MS[what]))
    for who, theirs in peers.items():
        if "train_step" in ours:
            peaks = ours["train_step"]["peak_mb"], theirs["peak_mb"]
            rows.append(table.Row("train_memory", peaks[0], "MB", who, peaks[1]))
    return rows


def tile_rows(job: Job, ready: set[str], skipped: dict[str, str]) -> list[table.Row]:
    """Rows of the whole pipeline."""
    if "ours" not in ready:
        return []
    mine = run_ours(replace(job, compile=job.device == "cuda"), skipped, "train_tiles")
    theirs = None
    if "nnunet" in ready:
        theirs = run_peer("trainer", job, skipped, "train_tiles of nnunet")
    if mine is None:
        return []
    rows = [] if theirs is None else [tiles_row(mine, theirs)]
    return rows + busy_rows(mine, theirs, skipped)


def tiles_row(mine: Found, theirs: Found) -> table.Row:
    """Seconds a tile, said as tiles a second too."""
    for who, found in (("ours", mine), ("nnunet", theirs)):
        print(
            f"{who}: {1 / found['tile_s']:.2f} tiles a second over {found['steps']:.0f} steps, "
            f"{100 * found['outside']:.0f} % of the time between steps, "
            f"{found['tile_cpu_s']:.2f} s of processor time a tile in the training process"
        )
    return table.Row("train_tiles", mine["tile_s"], "s/tile", "nnunet", theirs["tile_s"])


def busy_rows(mine: Found, theirs: Found | None, skipped: dict[str, str]) -> list[table.Row]:
    """How much of the time the device does not work, where that can be told."""
    if "busy" not in mine:
        skipped["train_idle"] = "a share of a GPU's time, and there is none"
        return []
    idle = max(100 * (1 - mine["busy"]), 0.01)
    rows = [table.Row("train_idle", idle, "% of time", "allowed", IDLE_PERCENT)]
    if theirs is not None and "busy" in theirs:
        peers = 100 * (1 - theirs["busy"])
        rows.append(table.Row("train_idle", idle, "% of time", "nnunet", peers))
    return rows


def curve_rows(job: Job, steps: int, skipped: dict[str, str]) -> list[table.Row]:
    """How far the losses of the equal networks differ, relative to nnU-Net's."""
    python = peer_python()
    script = str(ROOT / "benchmarks" / "peers" / "peer_training.py")
    command = [python, script, "curve", json.dumps(job.to_json()), str(steps)]
    said = run(command, job, skipped, "curve")
    if said is None:
        return []
    found = json.loads(said)
    print(f"weights {found['weights']}, gradients in fp64 differ by {found['gradient']:.1e}")
    theirs = found["losses"]["nnunet"]
    rows = []
    for name, losses in found["losses"].items():
        print(f"{name:<10}", " ".join(f"{loss:.4f}" for loss in thinned(losses)))
        if name != "nnunet":
            allowed = 1e-2 if name.endswith("bf16") else 1e-3
            worst = max(difference(losses, theirs), 1e-9)
            rows.append(table.Row(f"curve_{name}", worst, "of the loss", "allowed", allowed))
    return rows


def thinned(losses: Sequence[float], n: int = 10) -> list[float]:
    """Means of up to n stretches of a curve.

    >>> thinned([4.0, 2.0, 3.0, 1.0], n=2)
    [3.0, 2.0]
    """
    length = max(1, -(-len(losses) // n))
    return [mean(losses[i : i + length]) for i in range(0, len(losses), length)]


def difference(losses: Sequence[float], others: Sequence[float]) -> float:
    """Largest difference of the thinned curves, as a share of the other's.

    >>> difference([1.0, 2.0], [1.0, 2.5])
    0.2
    """
    pairs = zip(thinned(losses), thinned(others), strict=True)
    return max(abs(a - b) / abs(b) for a, b in pairs)


def run_ours(job: Job, skipped: dict[str, str], what: str) -> Found | None:
    """Our worker's numbers."""
    script = str(ROOT / "benchmarks" / "peers" / "train_ours.py")
    return numbers([sys.executable, script, json.dumps(job.to_json())], job, skipped, what)


def run_peer(kind: str, job: Job, skipped: dict[str, str], what: str) -> Found | None:
    """The numbers of nnU-Net's worker."""
    script = str(ROOT / "benchmarks" / "peers" / "peer_training.py")
    command = [peer_python(), script, kind, json.dumps(job.to_json())]
    return numbers(command, job, skipped, what)


def numbers(command: Sequence[str], job: Job, skipped: dict[str, str], what: str) -> Found | None:
    """What a worker prints, told at once."""
    said = run(command, job, skipped, what)
    if said is None:
        return None
    found = {name: float(value) for name, value in json.loads(said).items()}
    told = "  ".join(f"{name} {value:.4g}" for name, value in found.items())
    print(f"{Path(command[1]).stem} {what}: {told}", file=sys.stderr)
    return found


def peer_python() -> str:
    """The peers' environment, or this one, which may hold nnU-Net's network."""
    python = PEERS / "python"
    return str(python) if python.exists() else sys.executable


def run(command: Sequence[str], job: Job, skipped: dict[str, str], what: str) -> str | None:
    """The last line a command prints; None, with the reason in `skipped`, when it fails."""
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
    """Where nnU-Net looks and writes, how many processes it has, and threads for either."""
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
