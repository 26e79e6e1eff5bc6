"""How stages grow with the number of cases: seconds, memory, and the exponent of growth.

    python benchmarks/bench_scale.py                    # up to 100 000 cases, about 10 minutes
    python benchmarks/bench_scale.py --cases 100 1000
    python benchmarks/bench_scale.py --speedup --cases 10000  # a first start on one core and two

Small volumes with real headers (NIfTI, compressed), an nnU-Net raw folder. Stages that read them
end at 10 000 cases, so that no million of files is written; the others go on without files. Each
stage runs in a process of its own; memory is its highest resident size and that of its largest
child, beyond what the imports took. An exponent of 1 is growth as the number of cases: of the
processors' seconds, between the last two sizes. Ends with an error where a stated bound is broken:
the exponent from 1 000 cases on, a stage's memory, the bytes of the report's page.
"""

import argparse
import json
import math
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

MOST_EXPONENT, BOUND_FROM = 1.05, 1000
LEAST_SPEEDUP = 1.8
MOST_MB = {"second start": 300, "evaluate": 1000, "report": 1000}
MOST_PAGE_BYTES = 15e6
READING, MOST_READ = ("first start", "second start"), 10_000
SHAPE = (24, 24, 24)

Measured = Mapping[str, float]


def main() -> None:
    """Measure each stage at each size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, nargs="+", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--quick", action="store_true", help="100 and 1000 cases")
    parser.add_argument("--stage", choices=sorted(STAGES), help="run one stage, in this process")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--speedup", action="store_true", help="of a first start by two cores")
    chosen = parser.parse_args()
    if chosen.stage:
        print(json.dumps(measured(STAGES[chosen.stage], chosen.folder, chosen.cases[0])))
        return
    sizes = [100, 1000] if chosen.quick else chosen.cases
    with tempfile.TemporaryDirectory() as scratch:
        if chosen.speedup:
            print_speedup(Path(scratch), sizes[-1])
            return
        broken = print_table(sizes, [measure(Path(scratch), n) for n in sizes])
    if broken:
        raise SystemExit("\n".join(broken))


def measure(scratch: Path, n_cases: int) -> dict[str, Measured]:
    """Seconds and megabytes at one size of every stage that is measured there."""
    folder = scratch / str(n_cases)
    stages = [stage for stage in STAGES if stage not in READING or n_cases <= MOST_READ]
    if n_cases <= MOST_READ:
        write_cases(folder / "data", n_cases)
        time.sleep(3)  # files of this second are not relied on
    try:
        return {stage: _in_process(stage, folder, n_cases) for stage in stages}
    finally:
        shutil.rmtree(folder)


def print_speedup(folder: Path, n_cases: int) -> None:
    """The first start of two cores against one, the better of two in turn, on a quiet machine.

    Two starts of half the cases each, at the same time, say what the two cores can do at all.
    """
    write_cases(folder / "data", n_cases)
    best, ours = {1: math.inf, 2: math.inf}, sorted(os.sched_getaffinity(0))
    for n_cores in (1, 2, 1, 2):
        os.sched_setaffinity(0, ours[:n_cores])  # the stage's process has the same
        seconds = _in_process("first start", folder, n_cases)["seconds"]
        best[n_cores] = min(best[n_cores], seconds)
        print(f"{n_cores}: {seconds:.1f} s", flush=True)
        shutil.rmtree(folder / "facts", ignore_errors=True)
    speedup = best[1] / best[2]
    apart = _halves(folder, n_cases // 2, ours)
    print(f"{best[1]:.1f} s, {best[2]:.1f} s on two cores: {speedup:.2f} x")
    print(f"two halves apart: {apart:.1f} s, {best[1] / apart:.2f} x")
    if speedup < LEAST_SPEEDUP:
        raise SystemExit(f"Two cores are to be {LEAST_SPEEDUP} times as quick as one.")


def _halves(folder: Path, n_cases: int, cores: Sequence[int]) -> float:
    """Seconds until the slower of two first starts, on a core each, has ended."""

    def start(core: int) -> float:
        os.sched_setaffinity(0, [core])  # of this thread, and so of its process
        return _in_process("first start", folder / str(core), n_cases)["seconds"]

    for core in cores[:2]:
        write_cases(folder / str(core) / "data", n_cases)
    with ThreadPoolExecutor(2) as threads:
        return max(threads.map(start, cores[:2]))


def _in_process(stage: str, folder: Path, n_cases: int) -> Measured:
    command = [sys.executable, __file__, "--stage", stage, "--folder", folder, "--cases", n_cases]
    done = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measured(stage: Callable[[Path, int], None], folder: Path, n_cases: int) -> Measured:
    """Run a stage: its seconds, those of all processors, and megabytes, without the imports."""
    stage(Path(), 0)  # imports
    before = _kilobytes(resource.RUSAGE_SELF)
    begin, at_work = time.perf_counter(), sum(os.times()[:4])
    stage(folder, n_cases)
    seconds, at_work = time.perf_counter() - begin, sum(os.times()[:4]) - at_work
    held = _kilobytes(resource.RUSAGE_SELF) - before
    child = max(_kilobytes(resource.RUSAGE_CHILDREN) - before, 0)
    return {"seconds": seconds, "cpu": at_work, "mb": (held + child) / 1024}


def _kilobytes(whose: int) -> int:
    return resource.getrusage(whose).ru_maxrss


def survey(folder: Path, n_cases: int) -> None:
    """Read every case, count lesions, divide: what every start of a training does first."""
    from lesionseg.pipeline.dataset import DataSettings, take_survey

    if n_cases:
        taken = take_survey(DataSettings(str(folder / "data")), 0, folder / "facts")
        assert len(taken.dataset.cases) == n_cases


def sample(folder: Path, n_cases: int) -> None:
    """Choose the tiles of an epoch of 50 steps, ten lesions a case."""
    from lesionseg.data.sampling import systematic_sample

    weights = np.ones(10 * n_cases)
    for epoch in range(20 if n_cases else 0):
        systematic_sample(weights, 50, np.random.default_rng(epoch))


def evaluate(folder: Path, n_cases: int) -> None:
    """Sum up judged cases of four patients each, with every interval, and write the tables."""
    from lesionseg.core import OperatingPoint
    from lesionseg.evaluation import PRESETS
    from lesionseg.pipeline.judging.case_pairs import Scoring

    results = judged_cases(n_cases or 8)  # a few load what is loaded late
    scoring = Scoring(PRESETS["lesionseg"], "test", OperatingPoint("score:0.5", 0.5))
    scores = scoring.sum_up(results)
    if n_cases:
        scoring.write(folder / "scores", results, scores)


def report(folder: Path, n_cases: int) -> None:
    """The page of what `evaluate` has written, without pictures."""
    from lesionseg.api import report

    if n_cases:
        made = report(folder / "scores", folder / "page", report__pdf=False)
        n_bytes = made.page.stat().st_size
        assert n_bytes <= MOST_PAGE_BYTES, f"the page has {n_bytes / 1e6:.1f} MB"


def judged_cases(n_cases: int, kinds: int = 40) -> list[Any]:
    """Results of so many cases: copies of a few that were judged, with names of their own."""
    from lesionseg.ops.host_memory import without_collection

    with without_collection():  # a command judges case by case, which takes far longer
        return _copies(n_cases, kinds)


def _copies(n_cases: int, kinds: int) -> list[Any]:
    from lesionseg.core import Candidate, Geometry, Prediction, Reference
    from lesionseg.evaluation import PRESETS, evaluate_case

    geometry, made = Geometry.from_spacing(SHAPE, (1.0, 1.0, 1.0)), []
    for kind in range(min(kinds, n_cases)):
        rng = np.random.default_rng(kind)
        truth, drawn = np.zeros(SHAPE, np.int32), np.zeros(SHAPE, np.int32)
        scores = np.sort(rng.random(kind % 4 + 3))[::-1]
        for i, score in enumerate(scores):
            at = np.s_[4 * (i // 4) : 4 * (i // 4) + 2, 5 * (i % 4) : 5 * (i % 4) + 3, 2:5]
            drawn[at] = i + 1
            if i < kind % 4 and score > 0.2:
                truth[at] = i + 1
        labels = np.unique(truth[truth > 0])
        truth = np.where(truth > 0, np.searchsorted(labels, truth) + 1, 0)
        voxels = [np.argwhere(drawn == i + 1) for i in range(len(scores))]
        found = [
            replace(Candidate.from_voxels(i + 1, 1, s, v, geometry), accepted=s > 0.5)
            for i, (s, v) in enumerate(zip(scores.tolist(), voxels, strict=True))
        ]
        reference = Reference(geometry, instances=truth, instance_labels=(1,) * len(labels))
        prediction = Prediction("a", geometry, tuple(found), drawn)
        made.append(
            pickle.dumps(evaluate_case(reference, prediction, PRESETS["lesionseg"], case="a"))
        )
    return [
        replace(pickle.loads(made[i % kinds]), case=f"case_{i:06d}", group=f"patient_{i // 4:06d}")
        for i in range(n_cases)
    ]


STAGES: Mapping[str, Callable[[Path, int], None]] = {
    "first start": survey,
    "second start": survey,
    "sampler, 20 epochs": sample,
    "evaluate": evaluate,
    "report": report,
}


def write_cases(root: Path, n_cases: int) -> None:
    """An nnU-Net raw folder of small scans with one to three bright cubes in noise."""
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True)
    about = {
        "channel_names": {"0": "FLAIR"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": n_cases,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(about))
    for i in range(n_cases):
        rng = np.random.default_rng(i)
        image, mask = rng.normal(100, 20, SHAPE), np.zeros(SHAPE, np.uint8)
        for _ in range(rng.integers(1, 4)):
            z, y, x = rng.integers(0, np.array(SHAPE) - 3)
            mask[z : z + 3, y : y + 3, x : x + 3] = 1
        image += 80 * mask
        for array, path in (
            (image.astype(np.int16), root / "imagesTr" / f"case_{i:06d}_0000.nii.gz"),
            (mask, root / "labelsTr" / f"case_{i:06d}.nii.gz"),
        ):
            nib.save(nib.Nifti1Image(array, np.eye(4)), path)


def print_table(sizes: Sequence[int], rows: Sequence[Mapping[str, Measured]]) -> list[str]:
    """A line per stage: seconds, of all processors and MB by size, exponent; bounds broken."""
    print(f"{'':20}" + "".join(f"{n:>26,} cases" for n in sizes) + "   exponent")
    broken: list[str] = []
    for stage in STAGES:
        found = {n: row[stage] for n, row in zip(sizes, rows, strict=True) if stage in row}
        power = _exponent(found)
        cells = "".join(_cell(found.get(n)) for n in sizes)
        print(f"{stage:20}{cells}" + ("" if power is None else f"{power:11.2f}"), flush=True)
        if power is not None and power > MOST_EXPONENT and sorted(found)[-2] >= BOUND_FROM:
            broken.append(f"{stage}: grows by {power:.2f}, {MOST_EXPONENT} is the bound")
        most_mb, mb = MOST_MB.get(stage, math.inf), max(one["mb"] for one in found.values())
        if mb > most_mb:
            broken.append(f"{stage}: takes {mb:.0f} MB, {most_mb} is the bound")
    return broken


def _cell(one: Measured | None) -> str:
    if one is None:
        return f"{'not measured':>32}"
    return f"{one['seconds']:>10.2f} s {one['cpu']:>7.2f} cpu {one['mb']:>5.0f} MB"


def _exponent(found: Mapping[int, Measured]) -> float | None:
    """Of the processors' seconds between the last two sizes; None for one size."""
    if len(found) < 2:
        return None
    before, last = sorted(found)[-2:]
    times = [max(found[n]["cpu"], 0.01) for n in (before, last)]  # the clock's tick
    return math.log(times[1] / times[0]) / math.log(last / before)


if __name__ == "__main__":
    main()
