"""Growth of the start of a training with the number of cases: seconds, memory, exponent.

    python benchmarks/bench_scale.py [--quick] [--cases 100 1000 10000]

The dataset is an nnU-Net raw folder of small volumes (compressed NIfTI). A first start reads every
case. A second start reads the facts that the first start has stored. Each start runs in its own
process. Memory is the peak resident size minus the memory after the imports. The exponent is that
of the processor seconds between the last two sizes; 1 means proportional to the number of cases.
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
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.common import table

# limits of a second start with 10 000 cases
ALLOWED_S = 20.0
ALLOWED_MB = 300.0
ALLOWED_EXPONENT = 1.05
SHAPE = (24, 24, 24)


def main() -> None:
    """Measure both starts at each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--quick", action="store_true", help="100 and 1000 cases")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(start(options.folder)))
        return
    seconds: dict[str, list[float]] = {"first_start": [], "second_start": []}
    sizes = [100, 1000] if options.quick else options.cases
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for n in sizes:
            folder = Path(scratch) / str(n)
            write_cases(folder / "data", n)
            time.sleep(3)  # facts of files that are only a second old are not used
            for what, taken in seconds.items():
                command = [sys.executable, __file__, "--folder", str(folder)]
                environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
                output = subprocess.check_output(command, text=True, env=environment)
                found = json.loads(output.splitlines()[-1])
                taken.append(max(found["cpu"], 0.01))
                print(f"{what}, {n} cases: {found}", flush=True)
            name = f"second_start_{n}"
            allowed_s = ALLOWED_S * n / 10_000 + 1
            rows.append(table.Row(name, found["seconds"], "s", "allowed", allowed_s))
            rows.append(table.Row(name, found["mb"], "MB", "allowed", ALLOWED_MB))
    for what, taken in seconds.items():
        power = math.log(taken[-1] / taken[-2]) / math.log(sizes[-1] / sizes[-2])
        row = table.Row(f"{what}_exponent", max(power, 0.01), "", "allowed", ALLOWED_EXPONENT)
        rows.append(row)
    table.print_report("scale", rows, device=table.device_name(), versions=table.versions())


def start(folder: Path) -> dict[str, float]:
    """Read and divide a dataset like the start of a training. Return seconds and memory."""
    from lesionseg.config import DataConfig
    from lesionseg.pipeline.dataset_inspection import inspect_dataset

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    at_work = sum(os.times()[:4])
    inspect_dataset(DataConfig.of(root=folder / "data"), 0, folder / "facts")
    seconds = time.perf_counter() - begin
    cpu = sum(os.times()[:4]) - at_work
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": seconds, "cpu": cpu, "mb": grown / 1024}


def write_cases(root: Path, n_cases: int) -> None:
    """Write an nnU-Net raw folder of small scans with one to three bright cubes in noise."""
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True)
    content = {
        "channel_names": {"0": "FLAIR"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": n_cases,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(content))
    for i in range(n_cases):
        rng = np.random.default_rng(i)
        image = rng.normal(100, 20, SHAPE)
        mask = np.zeros(SHAPE, np.uint8)
        for _ in range(rng.integers(1, 4)):
            z, y, x = rng.integers(0, np.array(SHAPE) - 3)
            mask[z : z + 3, y : y + 3, x : x + 3] = 1
        scan = (image + 80 * mask).astype(np.int16)
        for array, name in (
            (scan, f"imagesTr/case_{i:06d}_0000"),
            (mask, f"labelsTr/case_{i:06d}"),
        ):
            nib.save(nib.Nifti1Image(array, np.eye(4)), root / f"{name}.nii.gz")


if __name__ == "__main__":
    main()
