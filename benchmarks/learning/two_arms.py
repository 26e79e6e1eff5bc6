"""Train two or more versions or settings at the same time, one thread each, as CSV rows.

    python benchmarks/learning/two_arms.py --data DIR --seed 0 --minutes 12 --csv rows.csv \
        --arm present FOLDER --arm batch_only FOLDER loss.lesion_weight=0

Each arm is a name, a checkout of the repository whose code is used, and settings of `train.py`, or
`tool=nnunet_cut` for another tool of `vs_nnunet.py`. An arm is a cell of `vs_nnunet.py` in a
process of its own. Its row is appended to the CSV when all arms are complete. Arms that have a row
are not trained again, so the same command continues an interrupted comparison.

With `--clock processor`, the minutes are those of the processor (`vs_nnunet.py`).

`commit` is that of the arm's checkout. `cpu_minutes` is the processor time of the training process
without its loader. `--priority -5` raises the priority of all arms (Linux, root).
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.learning.cell_rows import row_of
from benchmarks.learning.vs_nnunet import minutes_text
from lesionseg.io.text import read_json

TOOL = "tool="


def main() -> None:
    """Train the arms without a row, and append their rows."""
    options = arguments()
    done = pd.read_csv(options.csv) if options.csv.is_file() else pd.DataFrame()
    missing = []
    for name, folder, *overrides in options.arm:
        if not has_row(done, options, name):
            process = start(options, name, Path(folder), overrides)
            missing.append((name, Path(folder), process))
    codes = [process.wait() for _, _, process in missing]  # all, before the first error
    if any(codes):
        sys.exit(f"An arm failed; see {options.output}/ARM/runs/*/log.txt")
    rows = [row(options, name, folder) for name, folder, _ in missing]
    table = pd.concat([done, pd.DataFrame(rows)])
    table.to_csv(options.csv, index=False, lineterminator="\n")
    print(table.tail(len(rows)).to_string(index=False))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--arm", nargs="+", action="append", required=True, metavar="NAME FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall")
    parser.add_argument("--group", help="data.group")
    parser.add_argument("--choosing-fraction", type=float, default=0.0, help="of vs_nnunet.py")
    parser.add_argument("--priority", type=int, help="of an arm; below 0 is higher")
    parser.add_argument("--csv", type=Path, required=True, help="file of the rows")
    parser.add_argument("--output", type=Path, default=Path("runs/two_arms"))
    return parser.parse_args()


def has_row(done: pd.DataFrame, options: argparse.Namespace, name: str) -> bool:
    """Return True if the arm was trained on this set, with this seed and these minutes."""
    if done.empty:
        return False
    wanted = {
        "set": options.data.name,
        "arm": name,
        "seed": options.seed,
        "asked_minutes": options.minutes,
    }
    return bool((done[list(wanted)] == pd.Series(wanted)).all(axis=1).any())


def start(
    options: argparse.Namespace, name: str, folder: Path, overrides: list[str]
) -> subprocess.Popen[bytes]:
    """Start the training of an arm."""
    folder = folder.resolve()
    tools = [text.removeprefix(TOOL) for text in overrides if text.startswith(TOOL)]
    overrides = [text for text in overrides if not text.startswith(TOOL)]
    command = [sys.executable, "benchmarks/learning/vs_nnunet.py"]
    command += ["--tools", *(tools or ["lesionseg"])]
    command += ["--data", str(options.data.absolute()), "--seeds", str(options.seed)]
    command += ["--minutes", f"{options.minutes:g}", "--clock", options.clock, "--threads", "1"]
    command += ["--output", str((options.output / name).absolute())]
    command += ["--choosing-fraction", f"{options.choosing_fraction:g}"]
    if options.group:
        command += ["--group", options.group]
    if overrides:
        command += ["--overrides", *overrides]
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)
    if options.priority is not None:  # sessions share the processor by the priority of the session
        Path(f"/proc/{process.pid}/autogroup").write_text(str(options.priority))
    return process


def row(options: argparse.Namespace, name: str, folder: Path) -> dict[str, Any]:
    """Return the row of a complete arm."""
    cells = options.output / name / "cells"
    limit = minutes_text(options)
    (path,) = cells.glob(f"{options.data.name}__*__{limit}__*__s{options.seed}.json")
    cell = read_json(path)
    head = subprocess.run(
        ["git", "rev-parse", "--short=8", "HEAD"],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    return {
        "arm": name,
        "commit": head.stdout.strip(),
        "asked_minutes": options.minutes,
        "cpu_minutes": round(cell["training_cpu_minutes"], 1),
        **row_of(cell),
    }


if __name__ == "__main__":
    main()
