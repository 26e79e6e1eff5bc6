"""What a bare GPU machine lacks, gathered in the ignored folder .gpu/, and put to use there.

    python benchmarks/gpu/carry.py fill [--data DIR] [--megabytes 50]   # where pip reaches an index
    python benchmarks/gpu/carry.py install                              # on the machine, offline

`fill` fetches wheels for Python 3.12 on Linux with the versions of requirements.lock, and copies
two sets of real scans: one whole, of the other as many patients as there is room for, learning and
test cases by turns.
`install` unpacks the wheels into .gpu/site, from where run.py imports them. Nothing of .gpu/ is
ever committed.
"""

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CARRIED = ROOT / ".gpu"
# lesionseg imports these to train and to predict, and the machine's image does not have them
OURS = (
    "monai", "nibabel", "hydra-core", "omegaconf", "antlr4-python3-runtime",
    "connected-components-3d",
)  # fmt: skip
# nnU-Net, without SimpleITK and imagecodecs, which it can do without (see stand_in/)
PEERS = (
    "nnunetv2==2.8.1", "dynamic-network-architectures==0.4.4", "acvl-utils==0.2.6",
    "batchgenerators==0.25.5", "batchgeneratorsv2==0.3.6", "fft-conv-pytorch==1.2.0",
    "blosc2==4.14.1", "ndindex==1.10.1", "numexpr==2.14.2", "graphviz==0.21", "yacs==0.1.8",
    "httpx==0.28.1", "httpcore==1.0.9", "h11==0.16.0", "anyio==4.16.0",  # blosc2 imports them
)  # fmt: skip
SOURCES_ALONE = ("antlr4-python3-runtime", "acvl-utils")  # built here, for any machine
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64")
PLATFORMS += ("manylinux_2_17_x86_64", "manylinux2014_x86_64")
# heads that are larger than a tile, and the nodules that part 3 learns
WHOLE, IN_PART = Path("mri", "ms_flair_mini"), Path("ct", "luna_nodules")
PATIENT = re.compile(r"LUNA_\d+")


def main() -> None:
    """Fill or install."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("fill", "install"))
    parser.add_argument("--data", type=Path, help="the folder that holds ct/ and mri/")
    parser.add_argument("--megabytes", type=float, default=50.0, help="of .gpu/ in all")
    parser.add_argument("--no-peers", action="store_true", help="leave nnU-Net behind")
    options = parser.parse_args()
    if options.what == "install":
        install(CARRIED / "wheels", CARRIED / "site")
        return
    shutil.rmtree(CARRIED / "site", ignore_errors=True)  # it would count as carried
    fetch([*pinned(OURS), *(() if options.no_peers else PEERS)], CARRIED / "wheels")
    if options.data:
        shutil.rmtree(CARRIED / "data", ignore_errors=True)
        shutil.copytree(options.data / WHOLE, CARRIED / "data" / WHOLE.name)
        room = options.megabytes * 2**20 - size(CARRIED)
        carry_cases(options.data / IN_PART, CARRIED / "data" / IN_PART.name, room)
    for folder in ("wheels", "data"):
        print(f".gpu/{folder}: {size(CARRIED / folder) / 2**20:.1f} MB")
    tracked = sum(p.stat().st_size for p in repository_files())
    print(f"repository: {tracked / 2**20:.1f} MB")


def pinned(names: tuple[str, ...]) -> Iterator[str]:
    """Names with the versions of requirements.lock."""
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    for name in names:
        yield next(line for line in lock if line.partition("==")[0] == name)


def fetch(packages: list[str], folder: Path) -> None:
    """One wheel each of these packages, without what they need in turn."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    built = [p for p in packages if p.partition("==")[0] in SOURCES_ALONE]
    ready = [p for p in packages if p not in built]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    target = ["--python-version", "3.12", "--implementation", "cp", "--only-binary=:all:"]
    target += [f"--platform={name}" for name in PLATFORMS]
    download = [*pip, "download", "--no-deps", *target, "--dest", str(folder), *ready]
    subprocess.run(download, check=True)
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), *built], check=True)


def install(wheels: Path, site: Path) -> None:
    """Unpack the carried wheels, once, from no index; nothing where monai is there already."""
    found = sorted(map(str, wheels.glob("*.whl")))
    if not found or site.is_dir() or importlib.util.find_spec("monai"):
        return
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-compile", "--find-links", str(wheels), "--target", str(site), *found]
    subprocess.run(command, check=True)


def carry_cases(source: Path, target: Path, room: float) -> None:
    """Whole patients in the order of their names, two to learn from for one of the test."""
    for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (target / folder).mkdir(parents=True)
    for path in (source / "LICENSE", source / "SOURCE.md"):
        if path.is_file():
            shutil.copy(path, target)
    taken = {"Tr": 0, "Ts": 0}
    for part, files in by_turns(patients(source, "Tr"), patients(source, "Ts")):
        needed = sum(path.stat().st_size for path in files)
        if needed > room:
            break
        room -= needed
        for path in files:
            shutil.copy(path, target / path.parent.name)
        taken[part] += len(files) // 2
    described = json.loads((source / "dataset.json").read_text())
    described |= {"numTraining": taken["Tr"], "numTest": taken["Ts"]}
    (target / "dataset.json").write_text(json.dumps(described, indent=1))
    print(f"{taken['Tr']} cases to learn from, {taken['Ts']} to judge")


def patients(source: Path, part: str) -> list[list[Path]]:
    """Images and labels of each patient."""
    found: dict[str, list[Path]] = {}
    for kind in ("images", "labels"):
        for path in sorted((source / f"{kind}{part}").glob("*.nii.gz")):
            match = PATIENT.match(path.name)
            found.setdefault(match[0] if match else path.name, []).append(path)
    return list(found.values())


def by_turns(
    learning: list[list[Path]], test: list[list[Path]]
) -> Iterator[tuple[str, list[Path]]]:
    """Two of the first, then one of the second.

    >>> [part for part, _ in by_turns([[], [], []], [[], []])]
    ['Tr', 'Tr', 'Ts', 'Tr', 'Ts']
    """
    for first, second, judged in zip_longest(learning[::2], learning[1::2], test):
        turn = (("Tr", first), ("Tr", second), ("Ts", judged))
        yield from ((part, files) for part, files in turn if files is not None)


def size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def repository_files() -> Iterator[Path]:
    """What git would carry."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.check_output(command, cwd=ROOT, text=True).splitlines()
    return (ROOT / name for name in listed if (ROOT / name).is_file())


if __name__ == "__main__":
    main()
