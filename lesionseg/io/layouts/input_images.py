"""Scans to predict on: a folder, a glob, one file or a table of them, grouped into cases."""

import os
from collections import Counter
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

from lesionseg.core import CaseFiles
from lesionseg.errors import DatasetError
from lesionseg.io.dicom.headers import SUFFIXES as DICOM
from lesionseg.io.dicom.headers import is_dicom
from lesionseg.io.dicom.series import folder_name, group_files, split_series
from lesionseg.io.layouts.checks import CHANNEL, missing_channels
from lesionseg.io.layouts.manifest import read_scan_list
from lesionseg.io.volumes import SUFFIXES, is_image_file, strip_suffix

_OWN_OUTPUT = ("_mask", "_instances", "_regions")
_PATTERN = set("*?[")
_LABELS = {"labelsTr", "labelsTs", "labelsVal"}  # folders of nnU-Net's layout without scans


def find_images(source: Path, channels: int) -> list[CaseFiles]:
    """Find the scans under `source`, sorted by case id; a `.csv` lists them (`read_scan_list`).

    Folders are searched recursively, leaving out hidden files, masks written by `predictions` and
    a dataset's `labelsTr` and the like. DICOM: see `group_files`. Files named
    `<case>_0000.<suffix>`, `<case>_0001…` are channels of one case, which lacks those of the
    `channels` whose numbers are not there (a single picture may be one in colour); every other file
    is a case. Ids are file stems; where two are the same, both get their folders' names before
    them. Raises `DatasetError` when nothing is found.
    """
    if source.suffix.lower() == ".csv" and source.is_file():
        return read_scan_list(source, channels)
    if not (names := _named_files(source)):
        raise DatasetError(f"{source}: no image found, no file ending in {', '.join(SUFFIXES)}.")
    matches = {file: CHANNEL.fullmatch(stem) for file, stem in names.items()}
    firsts = {f.parent / m[1] for f, m in matches.items() if m and m[2] == "0000"}
    cases: dict[Path, dict[int, Path]] = {}
    for file, stem in names.items():
        match, key, number = matches[file], file.parent / stem, -1
        # the number is a channel's; a stem may also end in a year
        if match and (file.parent / match[1] in firsts or 1 < channels > int(match[2])):
            key, number = file.parent / match[1], int(match[2])
        if number in cases.setdefault(key, {}):
            raise DatasetError(f"{file}: two scans would get the same case id, {key.name}.")
        cases[key][number] = file
    # below which folder ids of equal stem are told apart
    root = Path(*takewhile(lambda part: not _PATTERN & set(part) or source.exists(), source.parts))
    # Windows and macOS take `P1` and `p1` for one file
    same = Counter(key.name.casefold() for key in cases)
    scans: dict[str, CaseFiles] = {}
    for key, files in cases.items():
        is_alone = same[key.name.casefold()] == 1
        case = key.name if is_alone else "_".join(key.relative_to(root).parts)
        if case in scans:
            raise DatasetError(f"{root}: two scans would get the same case id, {case}.")
        missing = () if -1 in files else missing_channels(files, channels)
        images = tuple(file for _, file in sorted(files.items()))
        scans[case] = CaseFiles(case, images, group=case, missing=missing)
    return [scans[case] for case in sorted(scans)]


def _named_files(source: Path) -> dict[Path, str]:
    is_series = split_series(source) is not None
    if source.is_file() or is_series:
        return {source: folder_name(source.parent) if is_series else strip_suffix(source)}
    if source.is_dir():
        inner = ((p, p.relative_to(source).parts) for p in source.rglob("*"))
        paths: Iterable[Path] = (path for path, parts in inner if _LABELS.isdisjoint(parts))
    elif _PATTERN & set(str(source)):
        paths = Path(source.anchor or ".").glob(str(source.relative_to(source.anchor)))
    else:
        raise DatasetError(f"{source}: the input does not exist.")
    entries = {*paths}
    folders = [path for path in entries if path.is_dir() and os.access(path, os.R_OK | os.X_OK)]
    inside = {file for folder in folders for file in folder.iterdir()}
    images: dict[Path, str] = {}
    dicom: dict[Path, list[Path]] = {}
    for file in sorted(entries | inside):
        name, stem = file.name.lower(), strip_suffix(file)
        if file.is_file() and is_image_file(file) and not name.endswith(DICOM):
            # a link is entered, the folders in it are not: they may lead in a circle
            if (file in entries or file.parent.is_symlink()) and not stem.endswith(_OWN_OUTPUT):
                images[file] = stem
        elif is_dicom(file) and name != "dicomdir":
            dicom.setdefault(file.parent, []).append(file)
    for files in dicom.values():
        images |= group_files(files)
    return dict(sorted(images.items()))
