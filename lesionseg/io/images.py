"""Scans to predict on: a folder, a glob or one file, grouped into cases."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lesionseg.core import CaseFiles
from lesionseg.errors import DatasetError
from lesionseg.io.dicom import group_files
from lesionseg.io.dicom_headers import SUFFIXES as DICOM
from lesionseg.io.dicom_headers import is_dicom
from lesionseg.io.volumes import SUFFIXES, is_image_file, strip_suffix

_CHANNEL = re.compile(r"(.+)_(\d{4})")
_OWN_OUTPUT = ("_mask", "_instances")


def find_images(source: Path, channels: int) -> list[CaseFiles]:
    """Find the scans under `source`, sorted by case id.

    A folder is searched through and through, leaving out hidden files and masks written by
    `predictions`; DICOM slices of one folder are one case, called as the folder. Files named
    `<case>_0000.<suffix>`, `<case>_0001…` are channels of one case; every other file is a case.
    Ids are file stems; where two are the same, both get their folders' names before them. A case
    may have another number of files than `channels`: reading it says so, and the others go on.
    Raises `DatasetError` when nothing is found.
    """
    files = _files(source)
    if not files:
        raise DatasetError(
            "No image found.",
            where=source,
            expected="files ending in " + ", ".join(SUFFIXES),
            remedy="Name a folder, one file, or a pattern such as 'scans/*.nii.gz'.",
        )
    cases = _grouped(files, channels)
    ids = _ids(list(cases), _root(source))
    found = [CaseFiles(ids[key], tuple(images), group=ids[key]) for key, images in cases.items()]
    return sorted(found, key=lambda case: case.case)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if source.is_dir():
        found = source.rglob("*")
    elif any(sign in str(source) for sign in "*?["):
        found = Path(source.anchor or ".").glob(str(source.relative_to(source.anchor)))
    else:
        raise DatasetError("The input does not exist.", where=source)
    entries = sorted(found)
    files = [f for f in entries if f.is_file() and is_image_file(f) and not _is_output(f)]
    return sorted([*_dicom_images(entries), *(f for f in files if not is_dicom(f))])


def _dicom_images(entries: Sequence[Path]) -> list[Path]:
    """The radiographs among the files and in the folders, and the folders of slices."""
    inside = [file for folder in entries if folder.is_dir() for file in folder.iterdir()]
    folders: dict[Path, list[Path]] = {}
    for file in sorted({*entries, *inside}):
        known = file.name.lower().endswith(SUFFIXES) and not file.name.lower().endswith(DICOM)
        if not known and is_dicom(file) and file.name.upper() != "DICOMDIR":
            folders.setdefault(file.parent, []).append(file)
    return [image for files in folders.values() for image in group_files(files)]


def _stem(path: Path) -> str:
    return path.name if path.is_dir() else strip_suffix(path)


def _is_output(file: Path) -> bool:
    return strip_suffix(file).endswith(_OWN_OUTPUT)


def _grouped(files: Sequence[Path], channels: int) -> dict[Path, list[Path]]:
    """Files by folder and case id; channel files in the order of their numbers."""
    firsts = {f.parent / m.group(1) for f in files if (m := _channel(f)) and m.group(2) == "0000"}
    cases: dict[Path, list[Path]] = {}
    for file in files:
        match, key = _channel(file), file.parent / _stem(file)
        if match is not None and _is_numbered(
            file.parent / match.group(1), match, firsts, channels
        ):
            cases.setdefault(file.parent / match.group(1), []).append(file)
        elif key in cases:
            raise _same_id(file, key.name)
        else:
            cases[key] = [file]
    return cases


def _is_numbered(key: Path, match: re.Match[str], firsts: set[Path], channels: int) -> bool:
    """Whether the number is a channel's; a stem may also end in a year."""
    return key in firsts or 1 < channels > int(match.group(2))


def _same_id(where: Path, case: str) -> DatasetError:
    return DatasetError("Two scans would get the same case id.", where=where, seen=case)


def _channel(file: Path) -> re.Match[str] | None:
    return _CHANNEL.fullmatch(_stem(file))


def _root(source: Path) -> Path:
    """The folder that ids of equal stem are told apart under."""
    if source.exists():
        return source if source.is_dir() else source.parent
    plain = [i for i, part in enumerate(source.parts) if not any(sign in part for sign in "*?[")]
    fixed = next((i for i in range(len(source.parts)) if i not in plain), len(source.parts))
    return Path(*source.parts[:fixed])


def _ids(keys: Sequence[Path], root: Path) -> dict[Path, str]:
    count = Counter(key.name for key in keys)
    ids = {
        key: key.name if count[key.name] == 1 else "_".join(key.relative_to(root).parts)
        for key in keys
    }
    if len(set(ids.values())) < len(ids):
        twice = next(name for name, n in Counter(ids.values()).items() if n > 1)
        raise _same_id(root, twice)
    return ids
