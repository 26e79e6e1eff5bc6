"""How stages grow with the number of cases: seconds, memory, and the exponent of growth.

    python benchmarks/bench_scale.py                    # up to 10 000 cases, about 5 minutes
    python benchmarks/bench_scale.py --cases 100 1000
    python benchmarks/bench_scale.py --speedup --cases 1000   # a first start on one core and two

Small volumes with real headers (NIfTI, compressed), an nnU-Net raw folder. Each stage runs in a
process of its own; memory is its highest resident size and that of its largest child, beyond what
the imports took. An exponent of 1 is growth as the number of cases.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

GOAL = 1.05
SHAPE = (24, 24, 24)


def main() -> None:
    """Measure each stage at each size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, nargs="+", default=[100, 1000, 10_000])
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
        print_table(sizes, [measure(Path(scratch), n) for n in sizes])


def measure(scratch: Path, n_cases: int) -> dict[str, dict[str, float]]:
    """Seconds and megabytes of every stage at one size."""
    folder = scratch / str(n_cases)
    write_cases(folder / "data", n_cases)
    time.sleep(3)  # files of this second are not relied on
    return {stage: _in_process(stage, folder, n_cases) for stage in STAGES}


def print_speedup(folder: Path, n_cases: int) -> None:
    """The first start of two cores against one; only a quiet machine tells it."""
    write_cases(folder / "data", n_cases)
    seconds, ours = [], sorted(os.sched_getaffinity(0))
    for n_cores in (1, 2):
        os.sched_setaffinity(0, ours[:n_cores])  # the stage's process has the same
        seconds.append(_in_process("first start", folder, n_cases)["seconds"])
        shutil.rmtree(folder / "facts", ignore_errors=True)
    print(f"{seconds[0]:.1f} s, {seconds[1]:.1f} s on two cores: {seconds[0] / seconds[1]:.2f} x")


def _in_process(stage: str, folder: Path, n_cases: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--stage", stage, "--folder", folder, "--cases", n_cases]
    done = subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measured(stage: Callable[[Path, int], None], folder: Path, n_cases: int) -> dict[str, float]:
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
    from lesionseg.pipeline.dataset.data_settings import DataSettings
    from lesionseg.pipeline.dataset.survey import take_survey

    if n_cases:
        taken = take_survey(DataSettings(str(folder / "data")), 0, folder / "facts")
        assert len(taken.dataset.cases) == n_cases


def sample(folder: Path, n_cases: int) -> None:
    """Choose the tiles of an epoch of 50 steps, ten lesions a case."""
    from lesionseg.data.sampling import MANY, spread, spread_of_many

    weights = np.ones(10 * n_cases)
    upper = np.cumsum(weights)
    for epoch in range(20 if n_cases else 0):
        rng = np.random.default_rng(epoch)
        if len(weights) < MANY:
            spread(weights, 50, rng)
        else:
            spread_of_many(upper, 50, rng)


def evaluate(folder: Path, n_cases: int) -> None:
    """Sum up judged cases of four patients each, with every interval, and write the tables."""
    from lesionseg.evaluation import PRESETS
    from lesionseg.pipeline.judging.case_pairs import Scoring

    results = judged_cases(n_cases)
    if n_cases:
        scoring = Scoring(PRESETS["lesionseg"], "test")
        scoring.write(folder / "scores", results, scoring.sum_up(results))


def report(folder: Path, n_cases: int) -> None:
    """The page of what `evaluate` has written, without pictures."""
    from lesionseg.pipeline.report.recipe import ReportSettings, report

    if n_cases:
        made = report(folder / "scores", folder / "page", report=ReportSettings(pdf=False))
        assert made.page.stat().st_size <= 15e6


def judged_cases(n_cases: int, kinds: int = 40) -> list[Any]:
    """Results of so many cases: copies of a few that were judged, with names of their own."""
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


def print_table(sizes: Sequence[int], rows: Sequence[Mapping[str, Mapping[str, float]]]) -> None:
    """A line per stage: seconds, of all processors and MB at each size; exponent of the second."""
    print(f"{'':24}" + "".join(f"{n:>30,} cases" for n in sizes) + "   exponent")
    for stage in STAGES:
        cells = [
            f"{r[stage]['seconds']:>12.2f} s {r[stage]['cpu']:>8.2f} cpu {r[stage]['mb']:>6.0f} MB"
            for r in rows
        ]
        print(f"{stage:24}" + "".join(cells) + f"{_exponent(sizes, rows, stage):>11}")


def _exponent(
    sizes: Sequence[int], rows: Sequence[Mapping[str, Mapping[str, float]]], stage: str
) -> str:
    if len(sizes) < 2:
        return ""
    times = [max(r[stage]["cpu"], 0.01) for r in rows[-2:]]  # the clock's tick
    power = math.log(times[1] / times[0]) / math.log(sizes[-1] / sizes[-2])
    return f"{power:.2f}" + (" (over 1.05)" if power > GOAL else "")


if __name__ == "__main__":
    main()
