"""The GPU day: three parts of at most ten minutes each, every row written as it is measured.

    python benchmarks/gpu/run.py --part N [--minutes 9] [--output DIR] [--only ROW …] [--first ROW]
    python benchmarks/gpu/run.py --part N --rehearse

Part 1 is correctness, 2 speed, 3 learning; docs/gpu.md says what is measured and what to carry.
Each row is made by a process of its own, so that an exception, a crash, too little memory or too
long a time costs that row alone. `--rehearse`: the same code on a CPU with small shapes, Triton's
kernels under its interpreter, and without the packages that a bare GPU machine lacks.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

from rows import Book, Row, Setting, failed

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CARRIED = ROOT / ".gpu"
# the functions of each part's module, in order, and the seconds that each may take
PARTS: dict[int, tuple[str, dict[str, float]]] = {
    1: (
        "correctness",
        {
            "gpu_tests": 150,
            "focal_kernel": 60,
            "nms_kernel": 60,
            "model_steps": 120,
            "loss_curve": 120,
            "memory": 150,
        },
    ),
    2: (
        "speed",
        {
            "focal": 90,
            "level_loss": 90,
            "nms": 60,
            "augmentation": 60,
            "step_eager": 60,
            "step_profile": 60,
            "end_to_end": 240,
            "inference": 90,
            "plain_conv_unet": 60,
            "dynunet": 60,
            "step_compiled": 150,
            "step_graphs": 150,
            "step_fast": 150,
            "plain_conv_unet_compiled": 150,
            "dynunet_compiled": 150,
        },
    ),
    3: ("learning", {"ours": 600, "nnunet": 600}),
}
LEAST_SECONDS = 10.0  # a row that has less is not begun
SLOWER = 4  # times as long may a row of a rehearsal take: processors are busy
ABOUT = """
import json, sys, torch
from importlib import metadata
def version(name):
    try: return metadata.version(name)
    except metadata.PackageNotFoundError: return "absent"
gpu = torch.cuda.is_available()
print(json.dumps({"device": torch.cuda.get_device_name() if gpu else "cpu",
    "python": sys.version.split()[0]}
    | {name: version(name) for name in ("torch", "triton", "monai", "nnunetv2")}))
"""


def main() -> int:
    """Measure a part, or be the process of one of its rows."""
    options = arguments()
    if options.worker:
        work(*options.worker, options)
        return 0
    about = json.loads(subprocess.check_output([sys.executable, "-c", ABOUT], env=surroundings()))
    if about["device"] == "cpu" and not options.rehearse:
        print("There is no GPU that torch can use. How to fix: add --rehearse, or run on a GPU.")
        return 2
    book = Book(options.output, options.part, about | {"rehearsed": str(options.rehearse)})
    until = time.monotonic() + 60 * options.minutes
    module, _ = PARTS[options.part]
    for name, seconds in chosen(options).items():
        left = until - time.monotonic()
        if left < LEAST_SECONDS:
            book.add(Row(name, status="not reached", note="the minutes were over"))
            continue
        patience = min(left, seconds * (SLOWER if options.rehearse else 1))
        for row in measured(module, name, patience, options, book.log):
            book.add(row)
    return 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", type=int, choices=PARTS, default=1)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "gpu")
    parser.add_argument("--data", type=Path, default=carried_data(), help="sets of real scans")
    parser.add_argument("--only", nargs="+", default=[], help="measurements, by name")
    parser.add_argument("--first", help="the measurement to begin with")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def carried_data() -> Path | None:
    """The sets that carry.py left."""
    folder = CARRIED / "data"
    return folder if folder.is_dir() else None


def chosen(options: argparse.Namespace) -> dict[str, float]:
    """The part's measurements, or those that are asked for. Exits where a name is unknown."""
    _, every = PARTS[options.part]
    names = list(every)
    unknown = {*options.only, options.first} - {None, *names}
    if unknown:
        sys.exit(f"Unknown: {', '.join(sorted(unknown))}. Part {options.part} has {names}.")
    begin = names.index(options.first) if options.first else 0
    return {n: every[n] for n in names[begin:] if not options.only or n in options.only}


def measured(
    module: str, name: str, seconds: float, options: argparse.Namespace, log: Path
) -> Iterator[Row]:
    """Rows of a measurement as its process prints them, and one more if it ends before its time."""
    command = [sys.executable, str(HERE / "run.py"), "--worker", module, name, str(seconds)]
    command += ["--rehearse"] * options.rehearse
    command += ["--data", str(options.data)] if options.data else []
    with log.open("a") as said:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=surroundings(options.rehearse),
            start_new_session=True,  # what it starts ends with it
        )
        patience = Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
        patience.start()
        assert process.stdout is not None
        with process.stdout:
            yield from map(Row.from_json, process.stdout)
        status = process.wait()
        over = not patience.is_alive()
        patience.cancel()
    if over:
        yield failed(name, f"stopped after {seconds:.0f} s")
    elif status:
        yield failed(name, f"the process ended with status {status}: see {log.name}")


def surroundings(rehearse: bool = False) -> dict[str, str]:
    """The environment of a row: carried packages can be imported, in a rehearsal fewer."""
    paths = [*[HERE / "bare"] * rehearse, ROOT, HERE, CARRIED / "site"]
    old = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    found = os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, paths), *old])}
    return found | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if rehearse else found


def work(module: str, name: str, seconds: str, options: argparse.Namespace) -> None:
    """Print a measurement's rows as JSON lines; whatever else prints goes to the log."""
    rows = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as scratch:
        device = "cpu" if options.rehearse else "cuda"
        setting = Setting(device, options.rehearse, float(seconds), Path(scratch), options.data)
        try:
            for row in getattr(importlib.import_module(module), name)(setting):
                print(row.to_json(), file=rows, flush=True)
        except Exception as error:  # one row failing must not end the others
            traceback.print_exc()
            said = failed(name, f"{type(error).__name__}: {error}")
            print(said.to_json(), file=rows, flush=True)


if __name__ == "__main__":
    sys.exit(main())
