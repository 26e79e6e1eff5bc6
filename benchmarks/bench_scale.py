"""How stages grow with the number of cases: seconds, memory, and the exponent of growth.

    python benchmarks/bench_scale.py                    # up to 10 000 cases, about 5 minutes
    python benchmarks/bench_scale.py --cases 100 1000

Small volumes with real headers (NIfTI, compressed), an nnU-Net raw folder. Each stage runs in a
process of its own; memory is its highest resident size and that of its largest child, beyond what
the imports took. An exponent of 1 is growth as the number of cases.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

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
    chosen = parser.parse_args()
    if chosen.stage:
        print(json.dumps(measured(STAGES[chosen.stage], chosen.folder, chosen.cases[0])))
        return
    sizes = [100, 1000] if chosen.quick else chosen.cases
    with tempfile.TemporaryDirectory() as scratch:
        print_table(sizes, [measure(Path(scratch), n) for n in sizes])


def measure(scratch: Path, n_cases: int) -> dict[str, dict[str, float]]:
    """Seconds and megabytes of every stage at one size."""
    folder = scratch / str(n_cases)
    write_cases(folder / "data", n_cases)
    time.sleep(3)  # files of this second are not relied on
    return {stage: _in_process(stage, folder, n_cases) for stage in STAGES}


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


STAGES: Mapping[str, Callable[[Path, int], None]] = {
    "first start": survey,
    "second start": survey,
    "sampler, 20 epochs": sample,
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
