"""Kill commands at random times, start them again, and compare their files with undisturbed runs.

    python benchmarks/robustness/kills.py --kills 40 --folder DIR  # resumes in DIR

Each command runs in a process that gets SIGKILL after a random processor time. It is started and
killed again until it finishes. Its files must then equal those of an undisturbed run, byte for
byte, and there must be no further file. Columns and lines of times are left out. If two undisturbed
runs write different files, such a file must only exist. A search starts a killed trial again under
another number, so `tune` must only finish with its tables and its page, without incomplete files.

The last line is JSON. The exit status is 1 if a comparison fails.
"""

import argparse
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
import zipfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.phantoms.visits import VisitSettings, write_visit_phantoms
from lesionseg.cli import run
from lesionseg.io import read_volume
from lesionseg.io.files import TEMPORARY_NAMES
from lesionseg.io.text import read_csv
from lesionseg.phantoms import write_mri_phantoms
from lesionseg.pipeline import find_recipe
from tests.flow.test_earlier_version import ARCHIVES, write_dataset
from tests.io.dicom_files import CT, STUDY, slice_elements, write_dicom_file

SMALL = (
    "trainer.max_minutes=null trainer.max_steps=6 trainer.workers=0 "
    "trainer.precision=32-true trainer.accelerator=cpu "
    "model.base_features=4 model.batch_size=2 model.tile_shape=[16,16,16]"
)
OF_THE_DAY = (b"training_minutes", b"git_commit", b'"seconds"')
TIMES = ("seconds", "minutes", "peak_memory_mb", "finished")
WITH_TIMES = ("run/tune.html",)  # pages with times in sentences
# in the order of their inputs; {0} is the folder of the data
COMMANDS = {
    "train": f"data.root={{0}}/raw run_dir=run report.pdf=false {SMALL}",
    "prepare": f"data.root={{0}}/raw run_dir=run {SMALL}",
    "predict": "bundle={0}/train/calm/run/bundle input={0}/raw/imagesTr output=out "
    "save_probabilities=true",
    "predict-dicom": "bundle={0}/earlier/run/bundle input={0}/earlier/archive output=out "
    "dicom_output=all operating_point=score:0.5",
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
    """Kill each command so many times, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in COMMANDS:  # import once for all forked processes
        find_recipe(name.partition("-")[0])
    with tempfile.TemporaryDirectory() as temporary:
        root = (options.folder or Path(temporary)).resolve()
        write_data(root)
        for name in list(COMMANDS)[: 1 + max(map(list(COMMANDS).index, options.commands))]:
            run_undisturbed(root, name)
        rows = [kill(root, name, options.kills) for name in options.commands]
        held = all(row["same"] == row["kills"] for row in rows)
    print(json.dumps({"bench": "kills", "rows": rows}))
    sys.exit(not held)


def write_data(root: Path) -> None:
    """Write five tiny heads and six pairs of visits."""
    if not (root / "visits").is_dir():
        shutil.rmtree(root / "raw", ignore_errors=True)
        size = (16, 18, 16)
        write_mri_phantoms(root / "raw", 5, seed=0, n_test=1, shape=size, spacing_mm=(8.0,) * 3)
        write_archive(root / "earlier")
        write_visit_phantoms(root / "part", 6, VisitSettings(shape=(16, 40, 40)))
        (root / "part").rename(root / "visits")
        time.sleep(3)  # facts of files that changed a moment ago are not kept


def write_archive(folder: Path) -> None:
    """Write the bundle of an earlier version, and the scans of its dataset as DICOM series."""
    with zipfile.ZipFile(ARCHIVES / "version_2_0_dev.zip") as files:
        files.extractall(folder)
    write_dataset(folder / "raw")
    for number, image in enumerate(sorted((folder / "raw").glob("images*/*.nii")), 1):
        scan = read_volume(image)
        study = f"{STUDY}.{number}"
        ids = {"StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.1", "SeriesNumber": 1}
        for z, pixels in enumerate(scan.array[0].astype(np.int16)):
            file = folder / "archive" / image.stem / f"{z:02}.dcm"
            place = slice_elements(scan.geometry, z)
            write_dicom_file(file, pixels, CT, Modality="MR", **place, **ids)


def run_undisturbed(root: Path, name: str) -> None:
    """Run the command twice without kills. Store the second run's processor seconds."""
    for twin in ("calm", "twin"):
        folder = root / name / twin
        if (root / name / "seconds.txt").is_file():
            return
        shutil.rmtree(folder, ignore_errors=True)
        child = start(root, name, folder)
        seconds = 0.0
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            seconds = processor_seconds(child)
            time.sleep(0.01)
        if ended[1]:
            sys.exit(f"{name} failed undisturbed:\n{(folder / 'log').read_text()}")
    (root / name / "seconds.txt").write_text(str(seconds))


def processor_seconds(process: int) -> float:
    """Return the processor time of a process, which does not depend on the machine's load."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(root: Path, name: str, folder: Path) -> int:
    """Run a command in a separate process in `folder`, and append its output to `log`."""
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
    """Kill a command `n` times in as many rounds as needed. `tally.json` contains the counts."""
    longest = 1.2 * float((root / name / "seconds.txt").read_text())
    file = root / name / "tally.json"
    folder = root / name / "killed"
    tally = json.loads(file.read_text()) if file.is_file() else {"kills": 0, "same": 0, "rounds": 0}
    while tally["kills"] < n:
        shutil.rmtree(folder, ignore_errors=True)
        draw = random.Random(tally["rounds"])
        n_killed = 0
        while tally["kills"] + n_killed < n and start_and_kill(
            root, name, draw.uniform(0, longest)
        ):
            n_killed += 1
        os.waitpid(start(root, name, folder), 0)
        wrong = list_differences(root / name)
        tally["rounds"] += 1
        tally["kills"] += n_killed
        tally["same"] += 0 if wrong else n_killed
        if wrong:
            folder.rename(folder.with_name(f"wrong{tally['rounds']}"))
        file.write_text(json.dumps(tally))
        print(f"{name} round {tally['rounds']}, {tally}", *wrong, sep="\n  ", flush=True)
    return {"command": name, **tally, "volatile": volatile_files(root / name)}


def start_and_kill(root: Path, name: str, after_s: float) -> bool:
    """Start a command and kill it after a time. Return False if it finishes before."""
    child = start(root, name, root / name / "killed")
    while processor_seconds(child) < after_s:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def list_differences(folder: Path) -> list[str]:
    """Return the differences between the files of a killed and an undisturbed run."""
    calm = contents(folder / "calm")
    after = contents(folder / "killed")
    if folder.name == "tune":
        missing = [name for name in calm if name not in after and "/trials/" not in name]
        half = [name for name in after if any(map(Path(name).match, TEMPORARY_NAMES))]
        return [f"missing: {name}" for name in missing] + [f"half: {name}" for name in half]
    names = sorted(calm.keys() ^ after.keys())
    differ = (n for n in sorted(calm.keys() & after.keys()) if calm[n] != after[n])
    exempt = set(volatile_files(folder))
    return [f"only once: {n}" for n in names] + [f"other: {n}" for n in differ if n not in exempt]


def volatile_files(folder: Path) -> list[str]:
    """Return the files that differ between two undisturbed runs."""
    calm = contents(folder / "calm")
    twin = contents(folder / "twin")
    return sorted(n for n in calm if calm[n] != twin.get(n) or n in WITH_TIMES)


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder without times, including hidden ones, but not the log."""
    files = (p for p in folder.rglob("*") if p.is_file() and p != folder / "log")
    return {str(p.relative_to(folder)): remove_times(p) for p in files}


def remove_times(path: Path) -> bytes:
    """Return a file's content without lines, and a table's without columns, of times."""
    data = path.read_bytes()
    if path.suffix in (".json", ".md"):
        lines = data.split(b"\n")
        return b"\n".join(line for line in lines if not any(word in line for word in OF_THE_DAY))
    if path.suffix == ".csv":
        rows = [[row[k] for k in row if k not in TIMES] for row in read_csv(path)]
        return json.dumps(rows).replace('"kept"', '"done"').encode()
    if path.suffix == ".html":  # the cell next to the name contains the minutes
        return re.sub(rb"(training_minutes</td>\s*<td>)[^<]*", rb"\1", data)
    return data


if __name__ == "__main__":
    main()
