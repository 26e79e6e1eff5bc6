"""How the start of a training grows with the number of cases: seconds, memory, exponent.

    python benchmarks/bench_scale.py [--quick] [--cases 100 1000 10000]

Small volumes with real headers (NIfTI, compressed), an nnU-Net raw folder. A first start reads
every case, a second one the facts that the first has left. Each runs in a process of its own;
memory is its highest resident size, beyond what the imports took. An exponent of 1 is growth as the
number of cases: of the processors' seconds, between the last two sizes.
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

ALLOWED_S, ALLOWED_MB, ALLOWED_EXPONENT = 20.0, 300.0, 1.05  # of a second start of 10 000 cases
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
    sizes, rows = [100, 1000] if options.quick else options.cases, []
    with tempfile.TemporaryDirectory() as scratch:
        for n in sizes:
            folder = Path(scratch) / str(n)
            write_cases(folder / "data", n)
            time.sleep(3)  # facts of files of this very second are not relied on
            for what, taken in seconds.items():
                command = [sys.executable, __file__, "--folder", str(folder)]
                environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
                said = subprocess.check_output(command, text=True, env=environment)
                found = json.loads(said.splitlines()[-1])
                taken.append(max(found["cpu"], 0.01))
                print(f"{what}, {n} cases: {found}", flush=True)
            share = n / 10_000
            allowed = [("s", found["seconds"], ALLOWED_S * share + 1)]
            allowed += [("MB", found["mb"], ALLOWED_MB)]
            rows += [
                table.Row(f"second_start_{n}", a, unit, "allowed", b) for unit, a, b in allowed
            ]
    for what, taken in seconds.items():
        power = math.log(taken[-1] / taken[-2]) / math.log(sizes[-1] / sizes[-2])
        row = table.Row(f"{what}_exponent", max(power, 0.01), "", "allowed", ALLOWED_EXPONENT)
        rows.append(row)
    table.print_report("scale", rows, device=table.device_name(), versions=table.versions())


def start(folder: Path) -> dict[str, float]:
    """Read and divide a dataset, as every training does first."""
    from lesionseg.config import DataConfig
    from lesionseg.pipeline.survey import take_survey

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin, at_work = time.perf_counter(), sum(os.times()[:4])
    take_survey(DataConfig.of(root=folder / "data"), 0, folder / "facts")
    seconds, cpu = time.perf_counter() - begin, sum(os.times()[:4]) - at_work
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": seconds, "cpu": cpu, "mb": grown / 1024}


def write_cases(root: Path, n_cases: int) -> None:
    """An nnU-Net raw folder of small scans with one to three bright cubes in noise."""
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True)
    about = {"channel_names": {"0": "FLAIR"}, "labels": {"background": 0, "lesion": 1}}
    about |= {"numTraining": n_cases, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(about))
    for i in range(n_cases):
        rng = np.random.default_rng(i)
        image, mask = rng.normal(100, 20, SHAPE), np.zeros(SHAPE, np.uint8)
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
