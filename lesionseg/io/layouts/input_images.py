"""Finding scans to predict on in a folder, a glob, a file or a table, and grouping them into cases.

A case id consists of the scan's path below the input. If a folder contains several DICOM series,
number and UID of the series are added. An id never depends on another case.
"""

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from errno import EACCES
from functools import cached_property
from hashlib import sha256
from itertools import takewhile
from pathlib import Path

from lesionseg.core import CaseFiles, Finding
from lesionseg.errors import DatasetError, LesionsegError, join_names
from lesionseg.io import itk
from lesionseg.io.case_ids import MAX_ID_BYTES
from lesionseg.io.cases import content_files
from lesionseg.io.dicom.headers import SUFFIXES as DICOM
from lesionseg.io.dicom.headers import is_dicom
from lesionseg.io.dicom.scans import DicomScan, describe_dicom, find_dicom_scans
from lesionseg.io.dicom.series import folder_name, split_series
from lesionseg.io.files import is_file_or_broken_link
from lesionseg.io.layouts.checks import CHANNEL, comparison_key, missing_channels
from lesionseg.io.layouts.manifest import read_scan_rows
from lesionseg.io.text import printable_text
from lesionseg.io.tiff import is_stack
from lesionseg.io.volumes import (
    SUFFIXES,
    is_dicom_image,
    is_image_file,
    is_raster,
    read_volume,
    strip_suffix,
)

logger = logging.getLogger(__name__)

_OWN_OUTPUT = ("_mask", "_instances", "_regions")
_CANDIDATES = "_candidates.json"
_PROBABILITIES = "_probabilities.npz"
_WILDCARDS = set("*?[")
# folders that file systems make, and that often cannot be opened
_SYSTEM_FOLDERS = {"lost+found", "System Volume Information", "$RECYCLE.BIN"}
_LABELS = {"labelsTr", "labelsTs", "labelsVal"}  # folders of nnU-Net's layout without scans
# suffixes of text and tables, which are skipped without a message
TEXT_SUFFIXES = {
    ".json", ".txt", ".csv", ".tsv", ".bval", ".bvec", ".md", ".xml", ".html", ".htm", ".pdf",
    ".log", ".jsonl", ".yaml", ".yml", ".ini", ".lock",
}  # fmt: skip
# files of file managers, and the index of a DICOM CD
SKIPPED_NAMES = {"thumbs.db", "desktop.ini", "dicomdir"}
_SUFFIX = re.compile(r"\.[a-z][a-z0-9]{0,7}")
_MAX_SHOWN = 3  # names in a message
_DIGEST_DIGITS = 10  # digits of the digest that replaces the middle of an id that is too long
_WHOLE_CASE = -1  # used instead of a channel number for a file that is a case of its own


@dataclass(frozen=True)
class FoundScan:
    """A scan that was found.

    Attributes:
        files: The case.
        path: The path of the scan or its first channel, below the input or as the table states it.
        dicom: The description of a DICOM scan.
        other_case: The id that a series gets if another series is added to its folder or removed
            from it (see `DicomScan.other_name`). Earlier results may have this id. "" for a scan
            that is not a series.
        fault: The reason why it cannot be predicted, known without reading its files, or "".
        left_out: The reason why it is not meant to be predicted, such as a localiser, or "".
        is_unreadable: True if the fault is that a file or folder cannot be opened, for example for
            lack of permission. The same files may be readable later.
    """

    files: CaseFiles
    path: str
    dicom: DicomScan | None = None
    other_case: str = ""
    fault: str = ""
    left_out: str = ""
    is_unreadable: bool = False

    @property
    def case(self) -> str:
        """The case id."""
        return self.files.case

    @property
    def key(self) -> tuple[str, str]:
        """Case id and path. No two scans share both."""
        return self.case, self.path

    @cached_property
    def facts(self) -> DicomScan | None:
        """The description of a DICOM scan, also if a table names it. None for other formats.

        Raises:
            ReadError: A header is damaged.
        """
        if self.dicom is None and is_dicom_image(self.files.images[0]):
            return describe_dicom(self.files.images[0])
        return self.dicom

    @property
    def contents(self) -> list[tuple[Path, ...]]:
        """The files of each channel's image. Raises `ReadError` if a header is damaged."""
        facts = self.facts
        if facts is not None and len(self.files.images) == 1:
            return [facts.files]
        return [content_files(image) for image in self.files.images]

    def list_contents_again(self) -> list[tuple[Path, ...]]:
        """Return the `contents` as they are on the disk now.

        A series may have got or lost slices since the input was listed. The headers of its folder
        are read only if the folder has a new DICOM file.

        Raises:
            ReadError: A header is damaged, or no file is left.
        """
        facts = self.facts
        if facts is None or len(self.files.images) != 1:
            return self.contents
        if facts.neighbours:
            entries = facts.files[0].parent.iterdir()
            has_new = any(is_dicom(file) for file in entries if file not in facts.neighbours)
            if not has_new:
                return [facts.files]
        return [describe_dicom(self.files.images[0]).files]

    def to_absolute(self) -> "FoundScan":
        """Return the scan with absolute paths, which are valid in every process."""
        files = replace(self.files, images=tuple(path.absolute() for path in self.files.images))
        dicom = self.dicom
        if dicom is not None:
            dicom = replace(
                dicom,
                place=dicom.place.absolute(),
                files=tuple(path.absolute() for path in dicom.files),
                neighbours=frozenset(path.absolute() for path in dicom.neighbours),
            )
        return replace(self, files=files, dicom=dicom)


@dataclass(frozen=True)
class FoundScans:
    """The scans of an input, sorted by case id, and a note on each kind of files that are no scans.

    `file` of a note is the kind, such as `*.bvec`.
    """

    scans: tuple[FoundScan, ...]
    left_out: tuple[Finding, ...] = ()


def find_images(source: Path, channels: int) -> list[CaseFiles]:
    """Find the cases under `source` that can be predicted, sorted by id.

    This function serves callers that need cases only. `find_scans` also returns the scans that are
    left out, for which this function logs warnings. `DatasetError` is raised if no case remains.
    """
    found = find_scans(source, channels)
    scans = mark_clashes(found.scans)
    cases = list[CaseFiles]()
    for scan in scans:
        if scan.fault or scan.left_out:
            logger.warning("%s is left out: %s", scan.path, scan.fault or scan.left_out)
        else:
            cases.append(scan.files)
    if not cases:
        faults = [f"{source}: {scan.fault}" for scan in scans if scan.fault]
        raise DatasetError(faults[0] if faults else explain_nothing_found(source, found))
    return cases


def find_scans(
    source: Path, channels: int, *, dims: int | None = None, results: Path | None = None
) -> FoundScans:
    """Find the scans of an input.

    - Folders are searched recursively. Hidden files and folders are skipped.
    - Masks written by `predict`, folders such as a dataset's `labelsTr`, and files of unknown
      formats are left out and listed.
    - Files named `<case>_0000.<suffix>`, `<case>_0001…` are the channels of one case. Numbers below
      `channels` without a file are missing channels, except for a single picture, which may be in
      colour. For a model with one channel, every file is a case, whose id does not contain `_0000`.
    - DICOM files are grouped by `find_dicom_scans`.
    - A folder or file that cannot be opened is a scan with a fault.

    The case id is the path of the scan without the suffix, with folders joined by `_`. The path
    begins below `source`, or below the folder before the first wildcard of a glob. The id of a
    series in `source` itself is the name of the folder. `mark_clashes` finds scans that would get
    the same id.

    Args:
        source: A folder, glob, file or `.csv` table (see `read_scan_list`).
        channels: The number of channels of the model.
        dims: The number of axes of the model. With 3, pictures in a folder are left out, but not
            TIFF files of several pages.
        results: A folder whose files are results and not scans.

    Raises:
        DatasetError: `source` does not exist or cannot be opened, or is a table that cannot be
            used.
    """
    if source.suffix.lower() == ".csv" and source.is_file():
        return _read_listed_scans(source, channels)
    is_series = split_series(source) is not None
    if source.is_file() or is_series:
        return FoundScans(tuple(_make_single_scans(source, channels)))
    root = folder_before_wildcards(source)  # ids are made of the path below this folder
    if not source.is_dir() and not _WILDCARDS & set(str(source)):
        raise DatasetError(f"{source}: the input does not exist. Check its name.")
    listing = _Listing(root, dims, results)
    if source.is_dir():
        listing.walk(source)
    else:
        listing.match(source)
    if root in listing.unreadable:
        raise DatasetError(f"{root}: the folder cannot be opened: {listing.unreadable[root]}.")
    scans = [*_make_file_scans(listing.images, root, channels)]
    for path, reason in listing.unreadable.items():
        scans.append(_make_unreadable_scan(path, reason, root))
    for folder, files in listing.dicom.items():
        found, others = _find_dicom_scans_of(folder, files, is_complete=source.is_dir())
        scans += [_make_dicom_scan(dicom, root) for dicom in found]
        listing.leave_out_objects(others)
    ordered = sorted(scans, key=lambda scan: scan.key)
    return FoundScans(tuple(ordered), tuple(listing.summaries()))


def find_root(source: Path) -> Path:
    """Return the folder below which the paths and ids of an input's scans begin."""
    if source.is_file() or split_series(source) is not None:
        return source.parent
    return folder_before_wildcards(source)


def folder_before_wildcards(source: Path) -> Path:
    """Return the part of a glob before its first wildcard, or the path itself if it exists."""
    if source.exists():
        return source
    fixed = takewhile(lambda part: not _WILDCARDS & set(part), source.parts)
    return Path(*fixed)


def mark_clashes(scans: Sequence[FoundScan]) -> list[FoundScan]:
    """Add a fault to scans that would get the same id and therefore the same files.

    On Windows and macOS `P1` and `p1` are the same file name, and so are two encodings of an
    accented letter. Scans that are left out or cannot be opened do not clash, because they get no
    files.
    """
    same: dict[str, list[FoundScan]] = defaultdict(list)
    for scan in scans:
        if not scan.left_out and not scan.is_unreadable:
            same[comparison_key(scan.case)].append(scan)
    result = []
    for scan in scans:
        others = [other.path for other in same[comparison_key(scan.case)] if other is not scan]
        if scan.left_out or scan.fault or not others:
            result.append(scan)
            continue
        shown = ", ".join(others[:_MAX_SHOWN])
        fault = (
            f"{scan.path} and {shown} would get the same case id, {scan.case}. "
            "Rename a file or a folder."
        )
        result.append(replace(scan, fault=fault))
    return result


def case_id(parts: Sequence[str]) -> str:
    """Join the parts of a path to an id that can be part of file names.

    If the id is too long, its middle is replaced by a digest of the whole id.

    >>> case_id(["2026-01-07", "P017", "FLAIR"])
    '2026-01-07_P017_FLAIR'
    """
    case = "_".join(parts)
    if len(case.encode(errors="replace")) <= MAX_ID_BYTES:
        return case
    digest = sha256("/".join(parts).encode(errors="replace")).hexdigest()[:_DIGEST_DIGITS]
    encoded = case.encode(errors="replace")
    n_kept = (MAX_ID_BYTES - len(digest) - len("__")) // 2  # bytes of the begin and of the end
    begin = encoded[:n_kept].decode(errors="ignore")  # drops a letter that was cut in two
    end = encoded[-n_kept:].decode(errors="ignore")
    return f"{begin.rstrip()}_{digest}_{end.lstrip()}"


def explain_nothing_found(source: Path, found: FoundScans) -> str:
    """Return a message that no scan was found. It lists the files that the input contains."""
    text = f"{source}: no image found, no file ending in {', '.join(SUFFIXES)}."
    scans = [f"{scan.path} is left out: {scan.left_out}" for scan in found.scans if scan.left_out]
    files = [f"{note.message}." for note in found.left_out]
    return " ".join([text, *scans[:_MAX_SHOWN], *files])


def _is_skipped(name: str) -> bool:
    """Return True for hidden files and folders, and for folders of the file system."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


@dataclass
class _Listing:
    """The files in a folder, or those that a glob matches, sorted by kind.

    Attributes:
        root: The folder below which ids are made.
        dims: The number of axes of the model, or None.
        results: A folder with results, or None.
        images: The images except DICOM.
        dicom: The DICOM files by folder.
        unreadable: The reasons why folders and files cannot be opened.
    """

    root: Path
    dims: int | None
    results: Path | None
    images: list[Path] = field(default_factory=list)
    dicom: dict[Path, list[Path]] = field(default_factory=dict)
    unreadable: dict[Path, str] = field(default_factory=dict)
    _left_out: dict[tuple[str, str], list[Path]] = field(default_factory=dict)
    _unknown: list[Path] = field(default_factory=list)

    def walk(self, folder: Path, *, deep: bool = True) -> None:
        """Add the files of a folder and, if `deep`, of the folders in it.

        A linked folder is entered, but not the folders in it, because they may form a circle.
        """
        entries = list[Path]()
        with self._record_unreadable(folder):
            _check_can_be_opened(folder)
            entries = sorted(folder.iterdir())
        for entry in entries:
            if _is_skipped(entry.name):
                continue
            with self._record_unreadable(entry):
                if not entry.is_dir():
                    self._add(entry)
                elif entry.name in _LABELS:
                    self._leave_out(entry, entry.name, "a dataset's masks")
                elif deep and not self._is_result(entry):
                    self.walk(entry, deep=not entry.is_symlink())

    def match(self, pattern: Path) -> None:
        """Add the files that a glob matches.

        If it matches only folders, these are searched. A folder inside another matched folder is
        searched only once. If the glob also matches files, it lists the images itself. A folder
        among the matches then contributes only its DICOM files, which are one scan, and a linked
        folder its images as well, because `**` does not enter it.
        """
        matches = list[Path]()
        for path in _list_matches(pattern):
            is_hidden = path.name.startswith(".")
            if not is_hidden and not self._is_result(path):
                matches.append(path)
        self._find_unreadable_folders(pattern)
        folders = set[Path]()
        for path in matches:
            with self._record_unreadable(path):
                if path.is_dir():
                    folders.add(path)
        are_folders = len(folders) == len(matches)
        known = {*matches}
        for path in matches:
            if path not in folders:
                with self._record_unreadable(path):
                    self._add(path)
            elif not are_folders:
                self._add_folder_among_files(path, known)
            elif folders.isdisjoint(path.parents):
                self.walk(path)

    def _add_folder_among_files(self, folder: Path, matches: Collection[Path]) -> None:
        """Add a folder that a glob matches next to files: its DICOM files, see `match`."""
        inner = _Listing(self.root, self.dims, self.results)
        inner.walk(folder, deep=False)
        self.unreadable |= inner.unreadable
        for parent, files in inner.dicom.items():
            new = [file for file in files if file not in matches]
            self.dicom.setdefault(parent, []).extend(new)
        if folder.is_symlink():
            self.images += [file for file in inner.images if file not in matches]

    def _find_unreadable_folders(self, pattern: Path) -> None:
        """Record folders that cannot be opened, because `Path.glob` skips them silently."""
        for parent in pattern.parents:
            if not _WILDCARDS & set(str(parent)):
                return
            for path in _list_matches(parent):
                if any(map(_is_skipped, path.relative_to(self.root).parts)):
                    continue
                with self._record_unreadable(path):
                    if path.is_dir() and not self._is_result(path):
                        _check_can_be_opened(path)

    @contextmanager
    def _record_unreadable(self, path: Path) -> Iterator[None]:
        """Record the path if an error of the system occurs within the context."""
        try:
            yield
        except OSError as error:
            self.unreadable[path] = (error.strerror or str(error)).lower()

    def leave_out_objects(self, files: Sequence[Path]) -> None:
        """Leave out DICOM files that are not images, such as reports and segmentations."""
        for file in files:
            self._leave_out(file, "DICOM", "objects that are not images")

    def summaries(self) -> Iterator[Finding]:
        """Yield a note on the files of each kind that were left out."""
        voxels = self._voxel_files()
        for file in self._unknown:
            if file not in voxels:
                suffix = file.suffix.lower()
                what = f"*{suffix}" if _SUFFIX.fullmatch(suffix) else "without a known suffix"
                self._leave_out(file, what, "of an unknown format")
        for (what, reason), paths in sorted(self._left_out.items()):
            shown = join_names((_relative_path(path, self.root) for path in paths), _MAX_SHOWN)
            text = f"Left out: {len(paths)} × {what}, {reason} ({shown})"
            yield Finding("left_out", text, severity="note", file=what)

    def _add(self, file: Path) -> None:
        """Add a file to the images, the DICOM files, or the files that are left out.

        Hidden files, pipes, devices and links to files in the folder of results are skipped without
        a message. A link to nothing is sorted by its name, and reading it reports the error.
        """
        name = file.name.lower()
        is_hidden = file.name.startswith(".") or name in SKIPPED_NAMES
        if is_hidden or not is_file_or_broken_link(file):
            return
        if file.is_symlink() and self._is_result(file):
            return
        if _is_dicom_file(file):
            self.dicom.setdefault(file.parent, []).append(file)
        elif is_image_file(file):
            stem = strip_suffix(file)
            has_candidates = file.with_name(f"{stem}{_CANDIDATES}").is_file()
            if stem.endswith(_OWN_OUTPUT):
                kind = f"*_{stem.rpartition('_')[2]}.*"
                self._leave_out(file, kind, "named like a result of predict")
            elif has_candidates:
                self._leave_out(file, f"*{file.suffix.lower()}", "results of predict")
            elif self.dims == 3 and is_raster(file) and not is_stack(file):
                kind = f"*{file.suffix.lower()}"
                self._leave_out(file, kind, "pictures, while this model reads volumes")
            else:
                self.images.append(file)
        elif file.suffix.lower() not in TEXT_SUFFIXES and not name.endswith(_PROBABILITIES):
            self._unknown.append(file)

    def _is_result(self, path: Path) -> bool:
        """Return True if the path, or the target of a link, is in the folder with results."""
        if self.results is None:
            return False
        try:
            resolved = path.resolve()
        except (OSError, ValueError, RuntimeError):
            return False  # a missing file or a circle of links: reading it reports the error
        return self.results == resolved or self.results in resolved.parents

    def _leave_out(self, path: Path, what: str, reason: str) -> None:
        self._left_out.setdefault((what, reason), []).append(path)

    def _voxel_files(self) -> set[Path]:
        """Return the files with the voxels of headers (`.mhd`, `.nhdr`)."""
        if not self._unknown:
            return set()
        found = set[Path]()
        for image in self.images:
            if image.suffix.lower() in itk.SUFFIXES:
                with suppress(LesionsegError):  # reading the scan reports the error
                    found.add(itk.voxel_file(image))
        return found


def _list_matches(pattern: Path) -> list[Path]:
    """Return the paths that a glob matches, sorted. Each occurs once."""
    anchor = pattern.anchor
    return sorted({*Path(anchor or ".").glob(str(pattern.relative_to(anchor)))})


def _check_can_be_opened(folder: Path) -> None:
    """Raise `PermissionError` if the files of a folder cannot be listed or opened."""
    if not os.access(folder, os.R_OK | os.X_OK):
        raise PermissionError(EACCES, os.strerror(EACCES))


def _is_dicom_file(file: Path) -> bool:
    """Return True for a DICOM file, unless its suffix is that of another image format."""
    has_other_suffix = is_image_file(file) and not file.name.lower().endswith(DICOM)
    return is_dicom(file) and not has_other_suffix


def _relative_path(path: Path, root: Path) -> str:
    """Return the path below `root` with slashes, or the name of a path outside it, for tables."""
    with suppress(ValueError):
        return printable_text(path.relative_to(root).as_posix())
    return printable_text(path.name)


def _folders_between(root: Path, folder: Path) -> list[str]:
    """Return the names of the folders from `root` down to `folder`."""
    with suppress(ValueError):
        return [part for part in folder.relative_to(root).parts if part != ".."]
    return []


def _make_file_scans(files: Sequence[Path], root: Path, channels: int) -> Iterator[FoundScan]:
    """Yield the scans of files other than DICOM, with all channels of a case in one scan.

    A picture in colour is a case even if its name ends in a number. The grey pictures whose names
    differ only in the number are cases, too.
    """
    files = list(dict.fromkeys(files))  # a glob may match a file twice
    numbers: dict[tuple[Path, str], set[int]] = defaultdict(set)
    in_colour: set[tuple[Path, str]] = set()
    for file in files:
        match = CHANNEL.fullmatch(strip_suffix(file))
        if match:
            series = file.parent, match[1]
            numbers[series].add(int(match[2]))
            if channels == 3 and series not in in_colour and _is_in_colour(file):
                in_colour.add(series)
    # the files of each case by channel number; a case is given by its folder and name
    grouped: dict[tuple[Path, str], dict[int, list[Path]]] = {}
    for file in files:
        stem, number = _split_channel(file, numbers, in_colour, channels)
        grouped.setdefault((file.parent, stem), {}).setdefault(number, []).append(file)
    for (folder, stem), found in grouped.items():
        case = case_id([*_folders_between(root, folder), stem])
        for file in found.pop(_WHOLE_CASE, ()):
            files_of_case = CaseFiles(case, (file,), group=case)
            yield FoundScan(files_of_case, _relative_path(file, root))
        if found:
            yield _make_channel_scan(case, found, root, channels)


def _split_channel(
    file: Path,
    numbers: Mapping[tuple[Path, str], set[int]],
    in_colour: Collection[tuple[Path, str]],
    channels: int,
) -> tuple[str, int]:
    """Return the name of a file's case and its channel number.

    The number is `_WHOLE_CASE` if the file is a case of its own.

    Args:
        file: The file.
        numbers: The numbers at the end of file names, by folder and remaining name.
        in_colour: The folders and remaining names of numbered files of which one is in colour.
        channels: The number of channels of the model.
    """
    stem = strip_suffix(file)
    match = CHANNEL.fullmatch(stem)
    if match is None:
        return stem, _WHOLE_CASE
    number = int(match[2])
    series = file.parent, match[1]
    if not _is_channel(number, numbers[series], channels):
        return stem, _WHOLE_CASE
    is_whole_case = channels == 1 or (series in in_colour and is_raster(file))
    if not is_whole_case:
        return match[1], number
    is_first = number == 0  # `_0000` is not part of the id
    return (match[1] if is_first else stem), _WHOLE_CASE


def _is_channel(number: int, numbers: set[int], channels: int) -> bool:
    """Return True if the number at the end of a file name is a channel number.

    A number that is not below `channels` may be a year or the number of a film. It is a channel
    number, of a case with too many files, if the model has several channels and all smaller numbers
    exist.
    """
    if number < channels:
        return True
    return channels > 1 and numbers.issuperset(range(number))


def _is_in_colour(file: Path) -> bool:
    """Return True for a picture in colour."""
    with suppress(LesionsegError):  # reading the scan reports the error
        return is_raster(file) and len(read_volume(file).array) == 3
    return False


def _make_channel_scan(
    case: str, found: dict[int, list[Path]], root: Path, channels: int
) -> FoundScan:
    """Return the scan whose channels are the numbered files `found`."""
    by_number = {number: found[number][0] for number in sorted(found)}
    files = CaseFiles(
        case,
        tuple(by_number.values()),
        group=case,
        missing=missing_channels(by_number, channels),
    )
    path = _relative_path(files.images[0], root)
    repeated = next((same for same in found.values() if len(same) > 1), None)
    if repeated is None:
        return FoundScan(files, path)
    names = " and ".join(file.name for file in repeated)
    return FoundScan(files, path, fault=f"{names} are the same channel of {case}. Keep one.")


def _find_dicom_scans_of(
    folder: Path, files: Sequence[Path], *, is_complete: bool
) -> tuple[list[DicomScan], list[Path]]:
    """Return the scans of a folder to which the files belong, and the files that are not images.

    The reader of a series takes all its slices in the folder. A glob may match some of them, and
    `is_complete` is then False: the whole folder is listed.
    """
    matched = set(files)
    if not is_complete:
        files = sorted(matched | {entry for entry in folder.iterdir() if is_dicom(entry)})
    found, others = find_dicom_scans(files)
    scans = [dicom for dicom in found if not matched.isdisjoint(dicom.files)]
    return scans, [file for file in others if file in matched]


def _make_dicom_scan(dicom: DicomScan, root: Path) -> FoundScan:
    """Return the scan with the case id of DICOM files."""
    folder = dicom.files[0].parent
    parts = _folders_between(root, folder)
    is_series = dicom.other_name is not None
    if is_series and not parts:
        parts = [folder_name(folder)]
    # the only series of a folder has an empty name
    case = case_id([*parts, dicom.name] if dicom.name else parts)
    other_case = ""
    if dicom.other_name is not None:
        other_case = case_id([*parts, dicom.other_name] if dicom.other_name else parts)
    if dicom.place == root:
        path = printable_text(folder_name(folder))
    else:
        path = _relative_path(dicom.place, root)
    reason, _, _ = dicom.unfit.partition(". ")  # without the advice that follows
    return FoundScan(
        CaseFiles(case, (dicom.place,), group=case),
        path,
        dicom=dicom,
        other_case=other_case,
        left_out=reason.rstrip("."),
    )


def _make_unreadable_scan(path: Path, reason: str, root: Path) -> FoundScan:
    """Return the scan with the case id of a folder or file that cannot be opened."""
    case = case_id([*_folders_between(root, path.parent), strip_suffix(path)])
    shown = _relative_path(path, root)
    fault = f"{shown}: cannot be opened: {reason}. Change the permissions, or move it away."
    return FoundScan(
        CaseFiles(case, (), group=case),
        shown,
        fault=fault,
        is_unreadable=True,
    )


def _make_single_scans(source: Path, channels: int) -> Iterator[FoundScan]:
    """Yield the scan of an input that is a file or a series in a folder."""
    if split_series(source) is not None:
        dicom = describe_dicom(source)
        yield _make_dicom_scan(dicom, source.parent)
    elif _is_dicom_file(source):
        for dicom in find_dicom_scans([source])[0]:
            yield _make_dicom_scan(dicom, source.parent)
    else:
        yield from _make_file_scans([source], source.parent, channels)


def _read_listed_scans(table: Path, channels: int) -> FoundScans:
    """Return the scans that a table names."""
    cases, findings = read_scan_rows(table, channels)
    n_rows = Counter(files.case for files in cases)
    scans = []
    for files in cases:
        fault = ""
        if n_rows[files.case] > 1:
            fault = (
                f"{table.name}: the case {files.case!r} is listed {n_rows[files.case]} times. Keep "
                "one row."
            )
        scans.append(FoundScan(files, _relative_path(files.images[0], table.parent), fault=fault))
    for finding in findings:
        unusable = CaseFiles(finding.case, (), group=finding.case)
        scans.append(FoundScan(unusable, finding.case, fault=finding.message))
    return FoundScans(tuple(sorted(scans, key=lambda scan: scan.key)))
