"""Commands killed at random moments and started again: do they end as if nothing had happened?

    python benchmarks/robustness/kills.py --kills 40 --folder DIR  # goes on where it was

Each command runs in a process that gets SIGKILL after a random time of the processor, and again,
until it ends by itself. Its files must then be those of an undisturbed run, byte for byte, and no
other may lie there. Columns and lines of times are left out; a file that two undisturbed runs still
do not write alike need only be there. A search begins a killed trial anew under another number, so
`tune` must only end with its tables and its page, and leave no half file.

The last line is JSON; exit status 1 when a promise was broken.
"""

import argparse
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

from lesionseg.cli import run
from lesionseg.io import files
from lesionseg.phantoms import VisitSettings, write_mri_phantoms, write_visit_phantoms

SMALL = (
    "trainer.max_minutes=null trainer.max_steps=6 trainer.workers=0 "
    "trainer.precision=32-true trainer.accelerator=cpu "
    "model.base_features=4 model.batch_size=2 model.tile_shape=[16,16,16]"
)
OF_THE_DAY = (b"training_minutes", b"git_commit", b'"seconds"')
TIMES = ("seconds", "minutes", "peak_memory_mb")
WITH_TIMES = ("run/tune.html",)  # which say them in words
# in the order in which each finds what it needs; {0} is the folder of the data
COMMANDS = {
    "train": f"data.root={{0}}/raw run_dir=run report.pdf=false {SMALL}",
    "prepare": f"data.root={{0}}/raw run_dir=run {SMALL}",
    "predict": "bundle={0}/train/calm/run/bundle input={0}/raw/imagesTr output=out "
    "save_probabilities=true",
    "evaluate": "reference={0}/raw/labelsTr prediction={0}/predict/calm/out output=out "
    "replicates=200",
    "follow": "before={0}/visits/before after={0}/visits/after output=out "
    "before_images={0}/visits/before_images after_images={0}/visits/after_images register=rigid "
    "reference={0}/visits/new",
    "report": "scores={0}/evaluate/calm/out images={0}/raw/imagesTr output=out",
    "export": "bundle={0}/train/calm/run/bundle output=out",
    "tune": f"data.root={{0}}/raw run_dir=run tune.n_trials=2 {SMALL}",
}


def main() -> None:
    """Kill each command so many times, and print what became of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in COMMANDS:  # once, for all the processes that are forked from this one
        importlib.import_module(f"lesionseg.pipeline.{name}")
    with tempfile.TemporaryDirectory() as temporary:
        root = (options.folder or Path(temporary)).resolve()
        write_data(root)
        for name in list(COMMANDS)[: 1 + max(map(list(COMMANDS).index, options.commands))]:
            undisturbed(root, name)
        rows = [kill(root, name, options.kills) for name in options.commands]
        held = all(row["same"] == row["kills"] for row in rows)
    print(json.dumps({"bench": "kills", "rows": rows}))
    sys.exit(not held)


def write_data(root: Path) -> None:
    """Five tiny heads and six pairs of visits."""
    if not (root / "visits").is_dir():
        shutil.rmtree(root / "raw", ignore_errors=True)
        size = (16, 18, 16)
        write_mri_phantoms(root / "raw", 5, seed=0, n_test=1, shape=size, spacing_mm=(8.0,) * 3)
        write_visit_phantoms(root / "part", 6, VisitSettings(shape=(16, 40, 40)))
        (root / "part").rename(root / "visits")
        time.sleep(3)  # what is learnt of files that changed a moment ago is not kept


def undisturbed(root: Path, name: str) -> None:
    """Two runs that are left alone; `seconds.txt` beside them is the second's processor time."""
    for twin in ("calm", "twin"):
        folder = root / name / twin
        if (root / name / "seconds.txt").is_file():
            return
        shutil.rmtree(folder, ignore_errors=True)
        child, seconds = start(root, name, folder), 0.0
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            seconds = processor_seconds(child)
            time.sleep(0.01)
        if ended[1]:
            sys.exit(f"{name} failed undisturbed:\n{(folder / 'log').read_text()}")
    (root / name / "seconds.txt").write_text(str(seconds))


def processor_seconds(process: int) -> float:
    """What a process has computed so far, which does not depend on how busy the machine is."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(root: Path, name: str, folder: Path) -> int:
    """Run a command in a process of its own, in `folder`; what it says is added to `log` there."""
    folder.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.chdir(folder)
            log = os.open("log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            os.dup2(log, 1)
            os.dup2(log, 2)
            status = run(name.partition("-")[0], COMMANDS[name].format(root).split())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def kill(root: Path, name: str, n: int) -> dict[str, object]:
    """Kill a command `n` times in as many rounds as it takes; the tally is kept in `tally.json`."""
    longest = 1.2 * float((root / name / "seconds.txt").read_text())

    file, folder = root / name / "tally.json", root / name / "killed"
    tally = json.loads(file.read_text()) if file.is_file() else {"kills": 0, "same": 0, "rounds": 0}
    while tally["kills"] < n:
        shutil.rmtree(folder, ignore_errors=True)
        draw, n_killed = random.Random(tally["rounds"]), 0
        while tally["kills"] + n_killed < n and killed(root, name, draw.uniform(0, longest)):
            n_killed += 1
        os.waitpid(start(root, name, folder), 0)
        wrong = differences(root / name)
        tally["rounds"] += 1
        tally["kills"] += n_killed
        tally["same"] += 0 if wrong else n_killed
        if wrong:
            folder.rename(folder.with_name(f"wrong{tally['rounds']}"))
        file.write_text(json.dumps(tally))
        print(f"{name} round {tally['rounds']}, {tally}", *wrong, sep="\n  ", flush=True)
    return {"command": name, **tally, "volatile": volatile(root / name)}


def killed(root: Path, name: str, after_s: float) -> bool:
    """Start a command and kill it after a time; False when it was done before."""
    child = start(root, name, root / name / "killed")
    while processor_seconds(child) < after_s:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def differences(folder: Path) -> list[str]:
    """What a killed run's files have otherwise than the undisturbed one's."""
    calm, after = contents(folder / "calm"), contents(folder / "killed")
    if folder.name == "tune":
        missing = [n for n in calm if n not in after and "/trials/" not in n]
        return [f"missing: {n}" for n in missing] + [
            f"half: {n}" for n in after if Path(n).match(files.HALF)
        ]
    names = sorted(calm.keys() ^ after.keys())
    differ = (n for n in sorted(calm.keys() & after.keys()) if calm[n] != after[n])
    exempt = set(volatile(folder))
    return [f"only once: {n}" for n in names] + [f"other: {n}" for n in differ if n not in exempt]


def volatile(folder: Path) -> list[str]:
    """The files that two undisturbed runs do not write alike."""
    calm, twin = contents(folder / "calm"), contents(folder / "twin")
    return sorted(n for n in calm if calm[n] != twin.get(n) or n in WITH_TIMES)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder without times, hidden ones too; but for what the command said."""
    files = (p for p in folder.rglob("*") if p.is_file() and p != folder / "log")
    return {str(p.relative_to(folder)): timeless(p) for p in files}


def timeless(path: Path) -> bytes:
    """A file without the lines, and of a table without the columns, that say how long it took."""
    data = path.read_bytes()
    if path.suffix in (".json", ".md"):
        lines = data.split(b"\n")
        return b"\n".join(line for line in lines if not any(word in line for word in OF_THE_DAY))
    if path.suffix == ".csv":
        rows = [[row[k] for k in row if k not in TIMES] for row in files.read_csv(path)]
        return json.dumps(rows).replace('"kept"', '"done"').encode()
    if path.suffix == ".html":  # the minutes stand in the cell beside their name
        return re.sub(rb"(training_minutes</td>\s*<td>)[^<]*", rb"\1", data)
    return data


if __name__ == "__main__":
    main()
