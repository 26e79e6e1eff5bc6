"""Scans of an input (folder, glob, table): case ids, clashes, files skipped or no scan.

`pipeline.predict_selection` leaves out scans by their properties.

A case id consists of the scan's path below the input. If a folder contains several DICOM series,
number and UID of the series are added. An id never depends on another case.
"""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from errno import EACCES
from fnmatch import fnmatch
from glob import has_magic
from itertools import takewhile
from pathlib import Path
from typing import Literal

from lesionseg.config import MaskNames
from lesionseg.core import CaseFiles, Finding
from lesionseg.errors import DatasetError, LesionsegError, ReadError, ResourceError, join_names
from lesionseg.io.case_ids import case_id, comparison_key, printable_id, split_channel
from lesionseg.io.channels import missing_channels
from lesionseg.io.contents import content_digest, content_files, file_state, voxel_files
from lesionseg.io.dicom.grouping import DicomScan, describe_dicom, dicom_stem, group_dicom
from lesionseg.io.dicom.headers import is_dicom
from lesionseg.io.dicom.series import split_series
from lesionseg.io.files import TEXT_SUFFIXES, is_file_or_broken_link
from lesionseg.io.formats import DICOM
from lesionseg.io.layouts.manifest import read_scan_rows
from lesionseg.io.limits import convert_read_errors
from lesionseg.io.results.names import (
    CANDIDATES,
    OWN_ENDINGS,
    PROBABILITIES,
    bids_case_id,
    bids_label,
)
from lesionseg.io.results.row import CaseRow
from lesionseg.io.text import printable_text
from lesionseg.io.tiff import is_stack
from lesionseg.io.volumes import (
    PAIR_ADVICE,
    SUFFIXES,
    format_suffix,
    is_dicom_image,
    is_image_file,
    is_raster,
    read_volume,
    strip_suffix,
)

logger = logging.getLogger(__name__)

UNREADABLE = "unreadable"  # kind of the error that a file or folder cannot be opened
LEFT_OUT = "left_out"  # kind of the notes on scans and files that are not meant to be predicted
_UNKNOWN = "of an unknown format"
_NO_IMAGE = ("DICOM", "objects that are not images")  # kind and reason of DICOM files
_CLASH = "clash"  # kind of the error that another scan or channel has the same name
_LABELS = {"labelsTr", "labelsTs", "labelsVal"}  # folders of nnU-Net's layout without scans
# names in lower case: files of file managers, the index of a DICOM CD, and folders of file systems
_SKIPPED_NAMES = {
    "thumbs.db", "desktop.ini", "dicomdir", "lost+found", "system volume information",
    "$recycle.bin",
}  # fmt: skip
_SUFFIX = re.compile(r"\.[a-z][a-z0-9]{0,7}")
_MAX_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Scan:
    """The files of one image that is to be predicted, with a case id.

    Attributes:
        files: The files of the case.
        path: The path of the scan or its first channel, below the input or the folder of the table.
            It is the name of the file if the table states a path outside this folder.
        dicom: The description of a DICOM scan.
        other_case: The id that a series gets if another series is added to its folder or removed
            from it (see `DicomScan.other_name`). Earlier results may have this id. "" for a scan
            that is not a series.
        findings: An error if the scan cannot be used, known without reading its voxels. A note if
            it is not meant to be predicted, such as a localiser.
    """

    files: CaseFiles
    path: str
    dicom: DicomScan | None = None
    other_case: str = ""
    findings: tuple[Finding, ...] = ()

    @property
    def case(self) -> str:
        """The case id."""
        return self.files.case

    @property
    def key(self) -> tuple[str, str]:
        """The case id and the path, by which scans are sorted. No two scans have the same pair."""
        return self.case, self.path

    @property
    def stable_id(self) -> str:
        """A text to recognise the scan in earlier results: the greater of `case` and `other_case`.

        The case id of a DICOM series changes if another series is added to its folder or removed
        from it. This text does not change. It is the same for ids that differ only in upper and
        lower case (`comparison_key`).
        """
        return comparison_key(max(self.case, self.other_case))

    @property
    def problem(self) -> str:
        """The message of the first error of the scan, or "" if the scan can be used."""
        return next((f.message for f in self.findings if f.severity == "error"), "")

    @property
    def left_out(self) -> str:
        """The reason why the scan is not meant to be predicted, such as a localiser, or ""."""
        return next((f.message for f in self.findings if f.severity == "note"), "")

    @property
    def is_unreadable(self) -> bool:
        """True if a file or folder cannot be opened, for example for lack of permissions."""
        return any(finding.kind == UNREADABLE for finding in self.findings)

    def add_finding(self, kind: str, message: str) -> "Scan":
        """Return a copy of the scan with a further finding.

        The finding is a note if `kind` is `LEFT_OUT`, and an error for any other kind.
        """
        finding = Finding(
            kind, message, case=self.case, severity="note" if kind == LEFT_OUT else "error"
        )
        return replace(self, findings=(*self.findings, finding))

    def unless(self, unwanted: "Callable[[Scan], str]") -> "Scan":
        """Return the scan with a note that it is left out, if `unwanted` gives a reason.

        A scan that already has findings is returned unchanged.

        Args:
            unwanted: Returns the reason to leave out a scan, or "" to predict it.
        """
        reason = "" if self.findings else unwanted(self)
        return self.add_finding(LEFT_OUT, reason) if reason else self

    def row(self, bundle: str = "") -> CaseRow:
        """Return the row of the scan for the table of results, before the scan is predicted.

        The row contains only the columns that are known then, such as ids and path. Status, key and
        digest are added later.

        Args:
            bundle: The digest of the bundle that predicts the scan.
        """
        dicom = self.dicom
        return CaseRow(
            case=printable_id(self.case),
            group=printable_text(self.files.group),
            visit=self.files.columns.get("visit", ""),
            bundle=bundle,
            path=self.path,
            study_uid=dicom.study_uid if dicom else "",
            series_uid=dicom.series_uid if dicom else "",
            instance_uid=dicom.instance_uid if dicom else "",
        )

    def shorten_paths(self, text: str) -> str:
        """Replace the paths of the scan's image files by their names in a message."""
        for image in self.files.images:
            text = text.replace(f"{image.parent}/", "")
        return text

    @property
    def contents(self) -> list[tuple[Path, ...]]:
        """For each channel, the files that store its image, see `content_files`.

        Raise `ReadError` if a file or a folder cannot be read.
        """
        if self.dicom is not None and len(self.files.images) == 1:
            return [self.dicom.files]
        return [content_files(image) for image in self.files.images]

    def digest(self) -> str:
        """Return the SHA-256 of the scan's files, see `content_digest`.

        Raise `ReadError` if a file cannot be read.
        """
        return content_digest(self.contents)

    def state(self) -> str:
        """Return a text that changes if one of the scan's files changes, see `file_state`.

        The files are not read. Raise `ReadError` if a file is missing, or the header of a series is
        damaged.
        """
        return file_state(file for image in self.contents for file in sorted(image))

    @property
    def is_present(self) -> bool:
        """True if the files are on this machine. The files of this class always are.

        A subclass for scans of a remote archive may need `fetch` first.
        """
        return True

    def fetch(self) -> None:
        """Bring the files to this machine. A local scan has nothing to do; a subclass downloads."""

    def release(self) -> None:
        """Remove the files that `fetch` has downloaded. The files of a local scan stay."""

    def require_unchanged(self, state: str) -> None:
        """Check that the scan's files have not changed while they were read.

        A DICOM series may also have got new slices. The headers of its folder are read again only
        if the folder contains a DICOM file that was not there when the scan was described, or if
        the folder was not listed then.

        Args:
            state: The text that `state()` returned before the files were read.

        Raises:
            ResourceError: If a file was added, removed or changed, or cannot be read.
        """
        is_unchanged = False
        with suppress(ReadError, OSError):  # a file is missing, or is being copied
            now = self
            if self.dicom is not None and len(self.files.images) == 1:
                files_before = self.dicom.neighbours
                entries = self.dicom.files[0].parent.iterdir()
                if not files_before or any(map(is_dicom, {*entries} - files_before)):
                    now = describe_scan(self.files)
            is_unchanged = now.state() == state
        if not is_unchanged:
            raise ResourceError("The scan changed while it was read. Run the command again.")


@dataclass(frozen=True)
class FoundScans:
    """The scans that `find_scans` finds in an input, sorted by case id.

    Attributes:
        source: The input: a folder, glob, file or table.
        root: The folder below which the paths and ids of the scans begin.
        scans: The scans.
        left_out: One note for each kind of files that are not scans. `file` of the note is the
            kind, such as `*.img`.
    """

    source: Path
    root: Path
    scans: tuple[Scan, ...]
    left_out: tuple[Finding, ...] = ()

    def cases(self) -> list[CaseFiles]:
        """Return the files of the scans without findings. Log a warning for each scan with one.

        Raises:
            DatasetError: If no scan is without findings.
        """
        for scan in self.scans:
            if scan.findings:
                logger.warning("%s is left out: %s", scan.path, scan.findings[0].message)
        cases = [scan.files for scan in self.scans if not scan.findings]
        if not cases:
            problems = [f"{self.source}: {scan.problem}" for scan in self.scans if scan.problem]
            raise DatasetError(problems[0] if problems else self.explain_nothing_found())
        return cases

    def explain_nothing_found(self) -> str:
        """Return the message that no scan was found. It names scans and files that are left out."""
        left_out = [scan for scan in self.scans if scan.left_out]
        found = "no image found"
        if left_out or self.left_out:
            found += ", apart from what is left out"
        text = f"{self.source}: {found}. Images are DICOM or end in {', '.join(SUFFIXES)}."
        scans = [f"{scan.path} is left out: {scan.left_out}." for scan in left_out]
        files = [f"{note.message}." for note in self.left_out]
        return " ".join([text, *scans[:_MAX_SHOWN], *files])


def find_scans(
    source: Path,
    channels: int,
    *,
    dims: int | None = None,
    results: Path | None = None,
    unwanted: Callable[[Scan], str] | None = None,
    names: MaskNames = "lesionseg",
    by_patient_id: bool = False,
) -> FoundScans:
    """Find the scans of an input.

    - Folders are searched recursively. Hidden files and folders are skipped.
    - In a folder or a glob, masks written by `predict`, folders such as a dataset's `labelsTr`, and
      files of unknown formats are left out and listed.
    - Files named `<case>_0000.<suffix>`, `<case>_0001…` are the channels of one case. Numbers below
      `channels` without a file are missing channels, except for a single picture, which may be in
      colour. For a model with one channel, every file is a case, and `_0000` is not part of its id.
    - DICOM files are grouped by `group_dicom`.
    - A folder or file that cannot be opened is a scan with an error, and so are scans that would
      get the same id.

    The case id is the path of the scan without the suffix, with folders joined by `_`. This path is
    relative to `source`, to the folder before the first wildcard of a glob, or to the folder of a
    file. A series whose files are directly in `source` gets the name of this folder as its id. A
    table contains the ids.

    Args:
        source: A folder, `folder/series=…`, glob, file or `.csv` table (see `read_scan_list`).
        channels: The number of channels of the model.
        dims: The number of axes of the model. With 3, pictures in a folder or of a glob are left
            out, but not TIFF files of several pages.
        results: The resolved path of a folder whose files are results and not scans.
        unwanted: Returns the reason why a scan is not meant to be predicted, or "".
        names: The names of the masks of the scans. With `bids`, case ids are those of
            `bids_case_id`, and an id without a subject is an error of its scan.
        by_patient_id: True makes the BIDS subject of a DICOM scan of its PatientID. Scans of two
            patients with the same subject get an error.

    Raises:
        DatasetError: If `source` does not exist or cannot be opened, or is a table without cases or
            without a needed column.
        ReadError: If the table cannot be read, or the series `folder/series=…` does not exist or
            has a damaged header.
    """
    # find the scans by the kind of the input
    notes: list[Finding] = []
    root = source.parent
    if source.suffix.lower() == ".csv" and source.is_file():
        scans = _read_table(source, channels)
    elif split_series(source) is not None:
        scans = [dicom_scan(describe_dicom(source), root)]
    else:
        root = root if source.is_file() else _folder_before_wildcards(source)
        scans, notes = _search_source(source, root, channels, dims, results)
    # leave out scans, give BIDS names, and mark equal ids
    if unwanted is not None:
        scans = [scan.unless(unwanted) for scan in scans]
    if names == "bids":
        patients: dict[str, set[str]] = defaultdict(set)
        for scan in scans if by_patient_id else ():
            if scan.dicom is not None:
                patients[comparison_key(_subject_of(scan))].add(scan.dicom.patient_id)
        scans = [_named_as_in_bids(scan, patients) for scan in scans]
    ordered = sorted(scans, key=lambda scan: scan.key)
    return FoundScans(source, root, scans=tuple(_mark_clashes(ordered)), left_out=tuple(notes))


def _named_as_in_bids(scan: Scan, patients: Mapping[str, set[str]]) -> Scan:
    """Return a scan with a case id in the form of BIDS, such as `sub-P1_ses-2`.

    The scan gets an error if its id has no subject, or if several patients would have the same
    subject. A scan with findings is returned unchanged. A scan with a new id has no `other_case`.

    Args:
        scan: The scan.
        patients: The PatientIDs for each subject (`comparison_key` of the subject). Empty if
            subjects do not come from PatientIDs.
    """
    if scan.findings:
        return scan
    subject = _subject_of(scan) if patients else ""
    ids = sorted(patients.get(comparison_key(subject), ()))  # PatientIDs
    try:
        if subject and len(ids) > 1:
            raise DatasetError(
                f"subject=PatientID: the patients {join_names(map(repr, ids), _MAX_SHOWN)} would "
                f"all be sub-{subject}. Predict each of them into another output."
            )
        case = bids_case_id(scan.case, subject)
    except DatasetError as error:
        return scan.add_finding("name", str(error))
    # without a patient, the group is the case id
    group = case if scan.files.group == scan.case else scan.files.group
    return replace(scan, files=replace(scan.files, case=case, group=group), other_case="")


def _subject_of(scan: Scan) -> str:
    """Return the BIDS subject of a DICOM scan: the letters and digits of its PatientID.

    Return "" if the PatientID contains none, or if the scan is not DICOM.
    """
    return "" if scan.dicom is None else bids_label(scan.dicom.patient_id)


def describe_scan(files: CaseFiles) -> Scan:
    """Return the scan of a case whose files are known, without a search.

    The path of the scan is the name of its first image. If this image is DICOM, its headers are
    read, to describe the series.

    Raises:
        ReadError: If the image is DICOM, and does not exist or has a damaged header.
    """
    image = files.images[0]
    with convert_read_errors(image):
        dicom = describe_dicom(image) if is_dicom_image(image) else None
    return Scan(files, image.name, dicom=dicom)


def kind_of_name(file: Path) -> Literal["image", "dicom", "unknown", "text"]:
    """Return the kind of a file by its name, to decide if it may be a scan.

    - `image`: an image in a format other than DICOM.
    - `dicom`: a file with the suffix of DICOM.
    - `text`: any file that is skipped without a message: a text, a hidden file, a file that an
      operating system adds (such as `thumbs.db`), or `<case>_probabilities.npz` of `predict`.
    - `unknown`: any other file. It may be DICOM.
    """
    if is_image_file(file):
        return "dicom" if format_suffix(file).lower() in DICOM.suffixes else "image"
    is_probabilities = file.name.lower().endswith(PROBABILITIES)
    is_text = file.suffix.lower() in TEXT_SUFFIXES
    return "text" if is_text or is_probabilities or _is_skipped(file.name) else "unknown"


def _is_skipped(name: str) -> bool:
    """Return True for a name that the search skips without a message.

    Such names begin with a dot, or belong to files and folders of systems, such as `thumbs.db`.
    """
    return name.startswith(".") or name.lower() in _SKIPPED_NAMES


def _folder_before_wildcards(source: Path) -> Path:
    """Return the folder in which the search of a glob begins: `a/b` for `a/b/*/T1.nii`.

    A path that exists or has no wildcard is returned unchanged.
    """
    if source.exists():
        return source
    return Path(*takewhile(lambda part: not has_magic(part), source.parts))


def _mark_clashes(scans: Sequence[Scan]) -> Iterator[Scan]:
    """Yield the scans in order, and add an error to scans whose results would have the same name.

    Case ids are compared by `comparison_key`, because `P1` and `p1` are the same file name on
    Windows and macOS. Scans that are left out or cannot be opened are not compared, because they
    have no results. A scan that already has a finding gets no further error.
    """
    same_id: dict[str, list[Scan]] = defaultdict(list)
    for scan in scans:
        if not scan.left_out and not scan.is_unreadable:
            same_id[comparison_key(scan.case)].append(scan)
    for scan in scans:
        others = [other for other in same_id[comparison_key(scan.case)] if other is not scan]
        if scan.findings or not others:
            yield scan
            continue
        shown = ", ".join(other.path for other in others[:_MAX_SHOWN])
        message = (
            f"{scan.path} and {shown} would get the same case id, {scan.case}. Rename a file, a "
            "folder or a case of the table, or select one of the scans with a glob."
        )
        yield scan.add_finding(_CLASH, message)


# --- the walk over folders -----------------------------------------------------------------------


def _search_source(
    source: Path, root: Path, channels: int, dims: int | None, results: Path | None
) -> tuple[list[Scan], list[Finding]]:
    """Search a file, a folder or a glob for scans.

    Args:
        source: The file, folder or glob.
        root: The folder below which the paths of the scans begin. It is `source` itself if that is
            a folder, the folder of a file, or the folder before the first wildcard of a glob.
        channels: The number of channels of the model.
        dims: The number of axes of the model; with 3, most pictures are left out. None: any.
        results: A folder whose files are results and not scans, or None.

    Returns:
        The scans, and a note on each kind of files that are not scans.

    Raises:
        DatasetError: If `root` cannot be opened.
    """
    # collect the files
    is_file = source.is_file()
    is_glob = not is_file and not source.is_dir()
    walk = _Walk(results)
    if is_file:  # also a file that the search of a folder leaves out
        walk.files[source] = None  # a dictionary is an ordered set
    elif not is_glob:
        walk.enter(source)
    else:
        walk.match(root, source.relative_to(root).parts)
    if root in walk.unreadable:
        raise DatasetError(f"{root}: the folder cannot be opened: {walk.unreadable[root]}.")
    # sort the files by kind: DICOM by folder, files that are not scans, other images
    images: list[Path] = []
    dicom: dict[Path, list[Path]] = defaultdict(list)
    kind_of_no_scan = walk.mask_folders
    for file in walk.files:
        if is_dicom_image(file):
            dicom[file.parent].append(file)
        elif not is_file and (kind := _explain_no_scan(file, dims)):
            kind_of_no_scan[file] = kind
        else:
            images.append(file)
    # make scans of the files
    scans = [*_file_scans(images, root, channels)]
    scans += [_unreadable_scan(path, reason, root) for path, reason in walk.unreadable.items()]
    for folder, files in dicom.items():
        matched = set(files)
        if is_glob:  # a series has all of its slices, also those that do not match
            files = sorted(matched.union(filter(is_dicom, folder.iterdir())))
        scans_of_folder, other_objects = _dicom_scans(files, root, matched)
        scans += scans_of_folder
        kind_of_no_scan |= dict.fromkeys(other_objects, _NO_IMAGE)
    return scans, [*_left_out_notes(kind_of_no_scan, images, root)]


class _Walk:
    """The search for files that may be scans, in a folder or by a glob.

    Attributes:
        files: The files that may be scans, as keys in the order of the search (a dictionary, so
            that each file occurs once).
        unreadable: The folders and files that cannot be opened, and the reasons.
        mask_folders: The folders of masks, such as `labelsTr`, with their kind and the reason why
            they are left out.
    """

    def __init__(self, results: Path | None) -> None:
        self.files: dict[Path, None] = {}
        self.unreadable: dict[Path, str] = {}
        self.mask_folders: dict[Path, tuple[str, str]] = {}
        self._results = results
        self._entered: list[Path] = []  # real paths of the present folder and its parents

    def enter(self, folder: Path) -> None:
        """Add the files in a folder and in all folders below it to `files`.

        Linked folders are entered, too, except for a link to a folder that contains the link,
        because this forms a circle.
        """
        real = folder.resolve()
        if real not in self._entered:
            self._entered.append(real)
            for entry in self._list_entries(folder):
                self._add_path(entry)
            self._entered.pop()

    def match(self, folder: Path, parts: Sequence[str]) -> None:
        """Add the files below a folder that match a glob, and all files in matching folders.

        Each call matches the first part of the glob, and calls itself for the remaining parts. `**`
        matches any number of folders, but not linked ones.

        Args:
            folder: The folder, or the matching file or folder if no parts remain.
            parts: The parts of the glob below the folder, such as `("*", "T1.nii")`.
        """
        if not parts:
            self._add_path(folder)
            return
        part, *rest = parts
        if not has_magic(part):
            path = folder / part
            with self._record_unreadable(path):
                if path.exists() or path.is_symlink():
                    self.match(path, rest)
            return
        if part == "**":  # `**` also matches no folder
            self.match(folder, rest)
        # `enter` does not enter these folders again; `resolve` would raise an error for a circle
        self._entered.append(Path(os.path.realpath(folder)))
        for entry in self._list_entries(folder):
            with self._record_unreadable(entry):
                if part != "**" and fnmatch(entry.name, part):
                    self.match(entry, rest)
                elif part == "**" and entry.is_dir() and not entry.is_symlink():
                    self.match(entry, parts)
        self._entered.pop()

    def _add_path(self, path: Path) -> None:
        """Add a file to `files`, or all files in a folder.

        Texts (`kind_of_name`), pipes, devices and links into the folder of results are skipped. A
        broken link is added, so that reading it later reports the error.
        """
        with self._record_unreadable(path):
            if path.is_symlink() and self._leads_to_results(path):
                return
            if path.is_dir():
                self.enter(path)
            elif kind_of_name(path) != "text" and is_file_or_broken_link(path):
                self.files[path] = None

    def _leads_to_results(self, link: Path) -> bool:
        """Return True if the target of a link is in the folder of results, which has no scans."""
        with suppress(OSError, RuntimeError):  # a circle of links: reading it reports the error
            return self._results is not None and link.resolve().is_relative_to(self._results)
        return False

    def _list_entries(self, folder: Path) -> list[Path]:
        """Return the files and folders in a folder that the search enters, sorted by name.

        - Hidden entries, and files and folders of systems (`_is_skipped`), are left out.
        - Folders of masks, such as `labelsTr`, are left out and added to `mask_folders`.
        - The folder of results, and a path that is not a folder, give an empty list.
        - A folder that cannot be opened gives an empty list, and is added to `unreadable`.
        """
        with self._record_unreadable(folder):
            if not folder.is_dir() or folder.resolve() == self._results:
                return []
            if not os.access(folder, os.R_OK | os.X_OK):
                raise PermissionError(EACCES, os.strerror(EACCES))
            entries = []
            for entry in sorted(folder.iterdir()):
                if entry.name in _LABELS:
                    self.mask_folders[entry] = (entry.name, "a dataset's masks")
                elif not _is_skipped(entry.name):
                    entries.append(entry)
            return entries
        return []  # after an `OSError`

    @contextmanager
    def _record_unreadable(self, path: Path) -> Iterator[None]:
        """Catch an `OSError` within the context, and store its reason in `unreadable`."""
        try:
            yield
        except OSError as error:
            self.unreadable[path] = (error.strerror or str(error)).lower()


def _explain_no_scan(file: Path, dims: int | None) -> tuple[str, str] | None:
    """Explain why a file is not a scan that the model can predict. Return None if it is a scan.

    Examples are segmentations, results of `predict` and files of unknown formats.

    Args:
        file: A file that is not DICOM.
        dims: The number of axes of the model, or None if any is accepted.

    Returns:
        The kind of the file for a note, such as `*.seg.nrrd`, and the reason.
    """
    stem = strip_suffix(file)
    suffix = format_suffix(file).lower()
    if not is_image_file(file):
        kind = f"*{suffix}" if _SUFFIX.fullmatch(suffix) else "without a known suffix"
        return kind, _UNKNOWN
    if suffix == ".seg.nrrd" and file.with_name(f"{stem}.nrrd").is_file():
        return f"*{suffix}", "segmentations of scans next to them"
    if stem.endswith(OWN_ENDINGS):  # such as `_mask`
        return f"*_{stem.rpartition('_')[2]}.*", "named like a result of predict"
    case = stem.removesuffix("_preview")
    if file.with_name(f"{case}{CANDIDATES}").is_file():
        return f"*{suffix}", "results of predict"
    if dims == 3 and is_raster(file) and not is_stack(file):
        return f"*{suffix}", "pictures, while this model reads volumes"
    return None


def _left_out_notes(
    no_scans: Mapping[Path, tuple[str, str]], images: Iterable[Path], root: Path
) -> Iterator[Finding]:
    """Yield one note for each kind and reason of files that are not scans.

    Voxel files that belong to a header among the scans, such as `scan.raw` of `scan.mhd`, are read
    with the header and get no note.

    Args:
        no_scans: The kind and the reason of each file or folder that is not a scan.
        images: The files that are scans, other than DICOM.
        root: The folder below which the paths in the notes begin.
    """
    # voxel files have an unknown suffix; the headers are read only if there are such files
    is_any_unknown = any(reason == _UNKNOWN for _, reason in no_scans.values())
    voxels = voxel_files(images) if is_any_unknown else set()
    paths_of: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path, kind in no_scans.items():
        if path not in voxels:
            paths_of[kind].append(_relative_path(path, root))
    for (what, reason), paths in sorted(paths_of.items()):
        reason += f". {PAIR_ADVICE}" if what == "*.hdr" else ""
        text = f"Left out: {len(paths)} × {what}, {reason} ({join_names(paths, _MAX_SHOWN)})"
        yield Finding(LEFT_OUT, text, severity="note", file=what)


# --- files that form a case ----------------------------------------------------------------------


def _file_scans(files: Iterable[Path], root: Path, channels: int) -> Iterator[Scan]:
    """Yield the scans of files other than DICOM. All channels of a case become one scan.

    Files with equal names except for the channel number `_0000` belong together, if they are in the
    same folder.

    Args:
        files: The files.
        root: The folder below which the paths of the scans begin.
        channels: The number of channels of the model.
    """
    numbered: dict[tuple[Path, str], list[tuple[int, Path]]] = defaultdict(list)
    for file in files:
        name, number = split_channel(strip_suffix(file))
        if number is None:
            yield _single_file_scan(file, name, root)
        else:
            numbered[file.parent, name].append((number, file))
    for (_, name), members in numbered.items():
        yield from _numbered_scans(name, members, root, channels)


def _numbered_scans(
    name: str, members: Sequence[tuple[int, Path]], root: Path, channels: int
) -> Iterator[Scan]:
    """Yield the scans of files `<name>_<number>` of one folder: channels of a case, or cases.

    These rules decide if a number is a channel number or part of the case id:

    - For a model with one channel, each file is a case.
    - For a model with three channels, each picture is a case if one of them is in colour.
    - A number below `channels` is a channel number.
    - A higher number is a channel number if all smaller numbers exist. The case then has too many
      files, which is reported later. Otherwise the number may be a year, and the file is a case.

    The number 0 is not part of a case id. Two files of the same channel are an error of their scan.

    Args:
        name: The name of the files without the number and the suffix.
        members: The number and the path of each file.
        root: The folder below which the paths of the scans begin.
        channels: The number of channels of the model.
    """
    numbers = {number for number, _ in members}
    are_colours = channels == 3 and any(_is_in_colour(file) for _, file in members)
    channel_files: dict[int, list[Path]] = defaultdict(list)
    for number, file in members:
        is_channel = number < channels or numbers.issuperset(range(number))
        if channels > 1 and is_channel and not (are_colours and is_raster(file)):
            channel_files[number].append(file)
        else:
            yield _single_file_scan(file, strip_suffix(file) if number else name, root)
    if not channel_files:
        return
    by_number = {number: channel_files[number][0] for number in sorted(channel_files)}
    images = tuple(by_number.values())
    case = case_id([*_folders_between(root, images[0].parent), name])
    files = CaseFiles(case, images, group=case, missing=missing_channels(by_number, channels))
    scan = Scan(files, _relative_path(images[0], root))
    repeated = [same for same in channel_files.values() if len(same) > 1]
    if repeated:
        names = " and ".join(file.name for file in repeated[0])
        scan = scan.add_finding(_CLASH, f"{names} are the same channel of {case}. Keep one.")
    yield scan


def _is_in_colour(file: Path) -> bool:
    """Return True if a file is a picture in colour. Return False if it cannot be read.

    The pixels are read, because a grey picture may be stored with three equal colours.
    """
    with suppress(LesionsegError):  # reading the scan reports the error
        return is_raster(file) and len(read_volume(file).array) == 3
    return False


def _single_file_scan(file: Path, name: str, root: Path) -> Scan:
    """Return the scan of a single file. Its case id joins the folders below `root` and `name`."""
    case = case_id([*_folders_between(root, file.parent), name])
    return Scan(CaseFiles(case, (file,), group=case), _relative_path(file, root))


def _dicom_scans(
    files: Sequence[Path], root: Path, matched: set[Path]
) -> tuple[list[Scan], list[Path]]:
    """Group the DICOM files of a folder into scans.

    A file with a damaged header becomes a scan, so that reading it reports the error.

    Args:
        files: All DICOM files of the folder.
        root: The folder below which the paths of the scans begin.
        matched: The files that the input names, for example by a glob. Scans without such a file
            are left out.

    Returns:
        The scans, and the matched files that are not images, such as reports.
    """
    groups = group_dicom(files)
    scans = [dicom_scan(scan, root) for scan in groups.scans if matched.intersection(scan.files)]
    damaged = [file for file in groups.damaged if file in matched]
    scans += [_single_file_scan(file, dicom_stem(file), root) for file in damaged]
    return scans, [file for file in groups.others if file in matched]


def dicom_scan(dicom: DicomScan, root: Path) -> Scan:
    """Return the scan of grouped DICOM files, with its case id.

    The id consists of the folders below `root` and the name of the DICOM scan. A series directly in
    `root` gets the name of this folder. A series also gets the id that it would have if another
    series were added to its folder or removed from it (`other_case`), because earlier results may
    have this id. A scan that cannot be read as an image (`unfit`, such as a localiser) gets a note
    with the reason.
    """
    folder = dicom.files[0].parent
    parts = _folders_between(root, folder)
    if dicom.is_series and not parts:
        parts = [_folder_name(folder)]
    case = case_id(filter(None, [*parts, dicom.name]))
    other_case = case_id(filter(None, [*parts, dicom.other_name])) if dicom.is_series else ""
    files = CaseFiles(case, (dicom.place,), group=case)
    scan = Scan(files, _relative_path(dicom.place, root), dicom=dicom, other_case=other_case)
    return scan.add_finding(LEFT_OUT, dicom.unfit) if dicom.unfit else scan


def _unreadable_scan(path: Path, reason: str, root: Path) -> Scan:
    """Return a scan without files and with an error, for a folder or file that cannot be opened.

    The user then sees the reason in the list of scans.
    """
    case = case_id([*_folders_between(root, path.parent), strip_suffix(path)])
    shown = _relative_path(path, root)
    message = f"{shown}: cannot be opened: {reason}. Change the permissions, or move it away."
    return Scan(CaseFiles(case, images=(), group=case), path=shown).add_finding(UNREADABLE, message)


def _read_table(table: Path, channels: int) -> list[Scan]:
    """Return the scans that a table lists, with the case ids of the table.

    Rows of the same case become one scan. A row that cannot be used becomes a scan with an error. A
    scan whose DICOM headers are damaged has no `dicom`, and reading it reports the error. For the
    form of the table and errors, see `read_scan_rows`.
    """
    cases, findings = read_scan_rows(table, channels)
    scans = []
    for files in cases:
        scan = Scan(files, _relative_path(files.images[0], table.parent))
        with suppress(LesionsegError, OSError):
            scan = replace(scan, dicom=describe_scan(files).dicom)
        scans.append(scan)
    # a row with an error has no files; its case id is shown as the path
    return scans + [
        Scan(
            CaseFiles(finding.case, images=(), group=finding.case),
            path=finding.case,
            findings=(finding,),
        )
        for finding in findings
    ]


def _relative_path(path: Path, root: Path) -> str:
    """Return a path relative to `root` for tables and messages, with slashes and printable.

    For `root` itself and for a path outside `root`, return only the name. Bytes that are not UTF-8
    are escaped.
    """
    if path == root:
        return printable_text(_folder_name(path))
    with suppress(ValueError):
        return printable_text(path.relative_to(root).as_posix())
    return printable_text(path.name)


def _folders_between(root: Path, folder: Path) -> list[str]:
    """Return the names of the folders from below `root` down to `folder`, for a case id.

    The part `..` is left out. Return an empty list if `folder` is not located in `root`.
    """
    with suppress(ValueError):
        return [part for part in folder.relative_to(root).parts if part != ".."]
    return []


def _folder_name(folder: Path) -> str:
    """Return the name of a folder. A path such as `.` or `a/..` is resolved first."""
    return folder.resolve().name if folder.name in ("", "..") else folder.name
