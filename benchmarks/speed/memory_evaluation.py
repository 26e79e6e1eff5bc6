"""Peak memory of evaluating N cases, to see that it is flat in their number.

python benchmarks/speed/memory_evaluation.py [--cases 10 500]

Each number of cases is judged in a process of its own, with files made beforehand. What stays of a
case are its rows of the tables, a few kilobytes.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SHAPE = (48, 160, 160)
N_LESIONS = 8
CHILD = """
import logging, resource, sys
from pathlib import Path
from lesionseg.pipeline.evaluate.recipe import evaluate
folder = Path(sys.argv[1])
evaluate(folder / "reference", folder / "prediction", folder / "out", progress=lambda *_: None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def write_cases(folder: Path, n: int) -> None:
    """Boxes as lesions, predicted ones moved by a voxel."""
    from lesionseg.core import Geometry, Volume
    from lesionseg.io.volumes import write_volume

    geometry = Geometry.from_spacing(SHAPE, (3.0, 1.0, 1.0))
    rng = np.random.default_rng(0)
    for number in range(n):
        masks = np.zeros((2, *SHAPE), dtype=np.uint8)
        for _ in range(N_LESIONS):
            start, size = rng.integers(1, 36, 3) * (1, 4, 4), rng.integers(2, 9, 3)
            for mask, moved in zip(masks, (0, 1), strict=True):
                stop = start + size
                inside = zip(start + moved, stop + moved, strict=True)
                mask[tuple(slice(a, b) for a, b in inside)] = 1
        for name, mask in zip(("reference", "prediction"), masks, strict=True):
            path = folder / name / f"case{number:04d}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            write_volume(path, Volume(mask[None], geometry))


def peak_mb(n: int) -> float:
    """Megabytes that a process of its own needs at most."""
    with tempfile.TemporaryDirectory() as folder:
        write_cases(Path(folder), n)
        run = [sys.executable, "-c", CHILD, folder]
        done = subprocess.run(run, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Print a line for each number of cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, nargs="+", default=[10, 500])
    for n in parser.parse_args().cases:
        sys.stdout.write(f"{n:5d} cases: {peak_mb(n):7.1f} MB at most\n")


if __name__ == "__main__":
    main()
