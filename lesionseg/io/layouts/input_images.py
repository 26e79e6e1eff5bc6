"""Scans to predict on: a folder, a glob, one file or a table of them, grouped into cases."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from lesionseg.core import CaseFiles
from lesionseg.errors import DatasetError
from lesionseg.io.dicom.headers import SUFFIXES as DICOM
from lesionseg.io.dicom.headers import is_dicom
from lesionseg.io.dicom.series import folder_name, group_files, split_series
from lesionseg.io.layouts.manifest import read_scan_list
from lesionseg.io.volumes import SUFFIXES, is_image_file, strip_suffix

_CHANNEL = re.compile(r"(.+)_(\d{4})")
_OWN_OUTPUT = ("_mask", "_instances")
# folders of a dataset in nnU-Net's layout that hold no scans
_LABELS = {"labelsTr", "labelsTs", "labelsVal"}


def find_images(source: Path, channels: int) -> list[CaseFiles]:
    """Find the scans under `source`, sorted by case id; a `.csv` lists them (`read_scan_list`).

    A folder is searched through and through, leaving out hidden files, masks written by
    `predictions` and a dataset's `labelsTr` and the like. A DICOM series is one case, called as its
    folder, and with its number where the folder holds several; localisers and screen shots are left
    out and named in the log. Files named `<case>_0000.<suffix>`, `<case>_0001…` are channels of one
    case, which lacks those of the `channels` whose numbers are not there; every other file is a
    case.
    Ids are file stems; where two are the same, both get their folders' names before them. A case
    may have another number of files than `channels`: reading it says so, and the others go on.
    Raises `DatasetError` when nothing is found.
    """
    if source.suffix.lower() == ".csv" and source.is_file():
        return read_scan_list(source, channels)
    names = _named_files(source)
    if not names:
        raise DatasetError(
            "No image found.",
            where=source,
            expected="files ending in " + ", ".join(SUFFIXES),
            remedy="Name a folder, one file, or a pattern such as 'scans/*.nii.gz'.",
        )
    cases = _grouped(names, channels)
    ids = _ids(list(cases), _root(source))
    scans = [
        CaseFiles(
            ids[key],
            tuple(images),
            group=ids[key],
            missing=_missing([names[f] for f in images if names[f] != key.name], channels),
        )
        for key, images in cases.items()
    ]
    return sorted(scans, key=lambda case: case.case)


def _named_files(source: Path) -> dict[Path, str]:
    """The images under `source` in order, and the stem of each."""
    if source.is_file() or split_series(source) is not None:
        is_series = split_series(source) is not None
        return {source: folder_name(source.parent) if is_series else strip_suffix(source)}
    if source.is_dir():
        inner = ((p, p.relative_to(source).parts) for p in source.rglob("*"))
        paths = (path for path, parts in inner if _LABELS.isdisjoint(parts))
    elif any(sign in str(source) for sign in "*?["):
        paths = Path(source.anchor or ".").glob(str(source.relative_to(source.anchor)))
    else:
        raise DatasetError("The input does not exist.", where=source)
    entries = sorted(paths)
    files = [
        f
        for f in entries
        if f.is_file() and is_image_file(f) and not strip_suffix(f).endswith(_OWN_OUTPUT)
    ]
    others = {f: strip_suffix(f) for f in files if not is_dicom(f)}
    return dict(sorted({**_dicom_images(entries), **others}.items()))


def _dicom_images(entries: Sequence[Path]) -> dict[Path, str]:
    """The radiographs and series among the files and in the folders, by what to call each."""
    inside = [file for folder in entries if folder.is_dir() for file in folder.iterdir()]
    folders: dict[Path, list[Path]] = {}
    for file in sorted({*entries, *inside}):
        known = file.name.lower().endswith(SUFFIXES) and not file.name.lower().endswith(DICOM)
        if not known and is_dicom(file) and file.name.upper() != "DICOMDIR":
            folders.setdefault(file.parent, []).append(file)
    return {k: v for files in folders.values() for k, v in group_files(files).items()}


def _grouped(names: Mapping[Path, str], channels: int) -> dict[Path, list[Path]]:
    """Files by folder and case id; channel files in the order of their numbers."""
    matches = {file: _CHANNEL.fullmatch(stem) for file, stem in names.items()}
    firsts = {f.parent / m.group(1) for f, m in matches.items() if m and m.group(2) == "0000"}
    cases: dict[Path, list[Path]] = {}
    for file, stem in names.items():
        match, key = matches[file], file.parent / stem
        base = match and file.parent / match.group(1)
        # the number is a channel's; a stem may also end in a year
        if match and base and (base in firsts or 1 < channels > int(match.group(2))):
            cases.setdefault(base, []).append(file)
        elif key in cases:
            raise _same_id(file, key.name)
        else:
            cases[key] = [file]
    return cases


def _missing(numbered: Sequence[str], channels: int) -> tuple[int, ...]:
    """The channels that no stem has the number of; none where stems have none."""
    numbers = {int(stem[-4:]) for stem in numbered}
    return tuple(c for c in range(channels) if numbers and c not in numbers)


def _same_id(where: Path, case: str) -> DatasetError:
    return DatasetError("Two scans would get the same case id.", where=where, seen=case)


def _root(source: Path) -> Path:
    """The folder below which ids of equal stem are distinguished."""
    if source.exists():
        return source if source.is_dir() else source.parent
    plain = [i for i, part in enumerate(source.parts) if not any(sign in part for sign in "*?[")]
    fixed = next((i for i in range(len(source.parts)) if i not in plain), len(source.parts))
    return Path(*source.parts[:fixed])


def _ids(keys: Sequence[Path], root: Path) -> dict[Path, str]:
    # Windows and macOS take `P1` and `p1` for one file
    count = Counter(key.name.casefold() for key in keys)
    ids = {
        key: key.name if count[key.name.casefold()] == 1 else "_".join(key.relative_to(root).parts)
        for key in keys
    }
    if len(set(ids.values())) < len(ids):
        twice = next(name for name, n in Counter(ids.values()).items() if n > 1)
        raise _same_id(root, twice)
    return ids
