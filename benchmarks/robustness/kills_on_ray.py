"""Workers of a Ray cluster killed at random moments: does the command end as if none had been?

    python benchmarks/robustness/kills_on_ray.py --kills 50 --folder DIR      # goes on where it was

`predict` and `prepare` with `engine=ray` go on, each in one process, while each worker gets SIGKILL
after a random time of the processor, in as many rounds as it takes. Their files must then be those
of the command without Ray, byte for byte but for times, and no other may lie there.

The last line is JSON; exit status 1 when a promise was broken.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.robustness.kills import (
    COMMANDS,
    SMALL,
    differences,
    processor_seconds,
    tally_of,
    undisturbed,
    write_data,
)
from lesionseg.pipeline.run.cluster import ray_package

ON_RAY = {
    "predict-ray": "bundle={0}/train/calm/run/bundle input={0}/many/imagesTr output=out "
    "inference.overlap=0.6",
    "prepare-ray": f"data.root={{0}}/many run_dir=run {SMALL}",
}
WORKERS = ("ray::Worker", "ray::_work")  # what Ray calls the processes that work for us
SAYS_ENGINE = "other: run/config.yaml"
# of a worker's processor; five of it go into imports
LONGEST_S = {"predict-ray": 15.0, "prepare-ray": 6.0}
COPIES = 16  # of each of the four heads


def main() -> None:
    """Kill each command's workers so many times, and print what became of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--commands", nargs="+", choices=ON_RAY, default=list(ON_RAY))
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", RAY_worker_niceness="0")
    COMMANDS.update(ON_RAY)
    with tempfile.TemporaryDirectory() as temporary:
        root = (options.folder or Path(temporary)).resolve()
        write_data(root)
        write_many(root)
        for name in ("train", *options.commands):
            undisturbed(root, name)
        ray = ray_package()
        ray.init("local", num_cpus=4, include_dashboard=False, object_store_memory=2**28)
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        rows = [kill(root, name, options.kills) for name in options.commands]
    print(json.dumps({"bench": "kills_on_ray", "rows": rows}))
    sys.exit(any(row["same"] != row["kills"] for row in rows))


def write_many(root: Path) -> None:
    """Sixty-four heads and masks: each of four, eight times in one volume, moved."""
    if (root / "many").is_dir():
        return
    part = root / "part"
    for path in (root / "raw").rglob("*Tr/*.nii.gz"):
        (part / path.parent.name).mkdir(parents=True, exist_ok=True)
        image = nib.load(path)
        whole = np.tile(np.asanyarray(image.dataobj), (2, 2, 2))
        for i in range(COPIES):
            moved = nib.Nifti1Image(np.roll(whole, i, axis=1), image.affine, image.header)
            nib.save(moved, part / path.parent.name / f"n{i:02d}_{path.name}")
    shutil.copy(root / "raw" / "dataset.json", part)
    part.rename(root / "many")


def kill(root: Path, name: str, n: int) -> dict[str, object]:
    """Run a command until `n` of its workers were killed."""

    def once(draw: random.Random, most: int) -> tuple[int, list[str]]:
        child = start(root, name, root / name / "killed")
        n_killed = killed(child, draw, most, LONGEST_S[name])
        wrong = [what for what in differences(root / name) if what != SAYS_ENGINE]
        return n_killed, wrong + [f"exit status {child.wait()}"] * bool(child.wait())

    return tally_of(root, name, n, once)


def start(root: Path, name: str, folder: Path) -> "subprocess.Popen[bytes]":
    """Run a command on Ray in `folder`; what it says is in `log` there."""
    words = [name.partition("-")[0], *COMMANDS[name].format(root).split(), "engine=ray"]
    folder.mkdir(parents=True)
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "lesionseg", *words]
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)


def killed(
    child: "subprocess.Popen[bytes]", draw: random.Random, most: int, longest_s: float
) -> int:
    """Kill each worker when its time has come, until the command is done; how many were."""
    ends: dict[int, float] = {}
    n_killed = 0
    while child.poll() is None:
        time.sleep(0.2)
        for process in workers() if n_killed < most else ():
            end = ends.setdefault(process, draw.uniform(0, longest_s))
            with suppress(OSError):  # it is gone
                if processor_seconds(process) > end and n_killed < most:
                    os.kill(process, signal.SIGKILL)
                    n_killed += 1
    return n_killed


def workers() -> Iterator[int]:
    """The processes of this process's own cluster that work for a command."""
    raylets = set(children({os.getpid()}))
    for process in children(raylets):
        with suppress(OSError):
            title = Path(f"/proc/{process}/cmdline").read_text()
            if title.startswith(WORKERS):
                yield process


def children(parents: set[int]) -> Iterator[int]:
    """The processes that these have started."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) in parents:
                yield int(folder.name)


if __name__ == "__main__":
    main()
