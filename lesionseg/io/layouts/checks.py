"""Helpers and checks that the readers of all dataset layouts share."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TypeVar
from unicodedata import normalize

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from lesionseg.core import CaseFiles, Dataset
from lesionseg.core.finding import LISTED, Finding, Severity, collect_errors
from lesionseg.errors import DatasetError, count, describe_misfits, join_names
from lesionseg.io.case_ids import case_id
from lesionseg.io.dicom.series import split_series
from lesionseg.io.files import is_file_or_broken_link
from lesionseg.io.raster import SUFFIXES as RASTERS
from lesionseg.io.volumes import SUFFIXES, is_image_file, is_raster, strip_suffix

CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net's names of the files of a case
FIRST_CHANNEL = "_0000"
COLOURS = ("red", "green", "blue")  # the channels of a picture with data.colour=true
Count = Annotated[int, Field(ge=0, lt=10**9)]
Number = Annotated[FiniteFloat, Field(gt=-1e9, lt=1e9)]
M = TypeVar("M", bound=BaseModel)
VISIT_PATTERN = r"(.+)[_-]\d{1,2}"
_VISIT = re.compile(VISIT_PATTERN)
_MAX_VISITS = 8  # of a patient, on average
# suffixes of files next to images that contain no images
_TEXT_SUFFIXES = (
    ".json", ".csv", ".tsv", ".txt", ".md", ".yaml", ".yml", ".xml", ".html", ".pdf", ".log",
    ".bval", ".bvec", ".py", ".sh", ".db", ".ini", ".xlsx", ".docx",
)  # fmt: skip
_NOT_IMAGES = {"masks", "labels", "annotations"}  # folders without images
# files in the folders of runs, predictions and scores
_OWN_RESULTS = {"config.yaml", "predictions.csv", "scores.json"}
# suffixes of files with the voxels of a header
_VOXEL_SUFFIXES = (".raw", ".zraw", ".raw.gz", ".gz", ".bz2", ".txt", ".hex", ".ascii")


def find_left_out(
    where: object,
    names: Sequence[str],
    noun: str,
    words: str,
    *,
    kind: str = "left_out",
    most: int = 20,
    advice: str = "",
    severity: Severity = "note",
) -> list[Finding]:
    """Return one finding that counts and lists `names`, or no finding if there are none.

    Args:
        where: The folder or table.
        names: The names of the entries.
        noun: What they are, such as `image`.
        words: Why they are listed, such as `without a row, left out`.
        kind: The kind of the finding.
        most: The number of names that are listed.
        advice: A sentence after the names, which begins with a space.
        severity: The severity of the finding.
    """
    if not names:
        return []
    listed = join_names(names, most)
    text = f"{where}: {count(len(names), noun)} {words}: {listed}.{advice}"
    return [Finding(kind, text, severity=severity)]


def validate(model: type[M], entry: Any, path: Path | None = None) -> M:
    """Parse the content of a file as a `model`. Raise `DatasetError` if keys do not fit."""
    try:
        return model.model_validate(entry)
    except ValidationError as error:
        where = f"{path}: " if path else ""
        raise DatasetError(f"{where}{describe_misfits(error, entry)[:300]}.") from error


def path_id(path: Path) -> str:
    """Make a case id of a relative path.

    It consists of folders and name, without the suffix and without the number of a first channel.

    >>> path_id(Path("p1/view.1.png")), path_id(Path("../p2/t1_0000.nii.gz"))
    ('p1_view.1', 'p2_t1')
    """
    folders = [part for part in path.parent.parts if part not in (path.anchor, "..")]
    return case_id([*folders, strip_suffix(path).removesuffix(FIRST_CHANNEL)])


def distinct_ids(cases: Sequence[str], images: Sequence[Path], root: Path) -> list[str]:
    """Return the ids of cases. An id that several have becomes the path of the image below `root`.

    `p1/t1.nii` and `p2/t1.nii` become `p1_t1` and `p2_t1`.
    """
    n_cases = Counter(cases)
    ids: list[str] = []
    for case, image in zip(cases, images, strict=True):
        if n_cases[case] > 1:
            case = path_id(image.relative_to(root) if image.is_relative_to(root) else image)
        ids.append(case)
    return ids


def listed_file(folder: Path, name: str) -> Path:
    """Return the path of a file that a table names, also if it has the separators of Windows."""
    path = folder / name
    if "\\" not in name or path.exists():
        return path
    return folder / name.replace("\\", "/")


def comparison_key(case: str) -> str:
    """Return a text that is equal for ids whose files some file system cannot distinguish.

    >>> comparison_key("P1") == comparison_key("p1")
    True
    """
    folded = normalize("NFC", case).casefold()
    return normalize("NFC", folded)  # because folding separates some letters from their accents


def is_colour(files: CaseFiles, n_channels: int) -> bool:
    """Return True if a case is a single picture whose colours are the channels of the dataset."""
    return not files.missing and _may_be_colour(files.images, n_channels)


def with_colours(dataset: Dataset) -> Dataset:
    """Return the dataset with the three colours of its pictures as channels.

    A dataset whose channels are colours already is returned unchanged.

    Raises:
        DatasetError: The images are volumes, are no pictures (PNG, JPEG, BMP or TIFF), or have
            several channels.
    """
    if dataset.dims != 2:
        raise DatasetError(
            f"{dataset.root}: data.colour=true is for pictures with two axes, but the images have "
            f"{dataset.dims}. Remove the setting."
        )
    for files in dataset.cases:
        for file in files.images:
            if not is_raster(file):
                raise DatasetError(
                    f"{dataset.root}: data.colour=true is for PNG, JPEG, BMP and TIFF, but the "
                    f"image of {files.case!r} is {file.name}. Convert it, or remove the setting."
                )
    if dataset.is_colour:
        return dataset
    names = dataset.channel_names
    if len(names) != 1:
        raise DatasetError(
            f"{dataset.root}: data.colour=true needs one picture per case, but the dataset has "
            f"{len(names)} channels ({', '.join(names)}). Remove the setting, or all channels but "
            "one."
        )
    return replace(dataset, channel_names=COLOURS)


def missing_channels(files: Mapping[int, Path], n_channels: int) -> tuple[int, ...]:
    """Return the channel numbers without a file.

    If the only file is a picture that may be in colour, no channel is missing.
    """
    if 0 in files and _may_be_colour([*files.values()], n_channels):
        return ()
    return tuple(sorted(set(range(n_channels)) - set(files)))


def with_missing_channels(dataset: Dataset) -> Dataset:
    """Return the dataset in which single pictures next to cases of three files lack channels.

    The three channels of a single picture are its colours only if all cases are single pictures. A
    volume is never in colour.
    """
    n_channels = len(dataset.channel_names)
    has_colours = dataset.dims == 2 and all(len(case.images) == 1 for case in dataset.cases)
    if n_channels != 3 or has_colours:
        return dataset
    cases = []
    for case in dataset.cases:
        if is_colour(case, n_channels):
            match = CHANNEL.fullmatch(strip_suffix(case.images[0]))
            own = int(match[2]) if match else 0
            case = replace(case, missing=tuple(c for c in range(3) if c != own))
        cases.append(case)
    return replace(dataset, cases=tuple(cases))


def _may_be_colour(images: Sequence[Path], n_channels: int) -> bool:
    return n_channels == 3 and len(images) == 1 and images[0].suffix.lower() in RASTERS


def check_channels(files: CaseFiles, dataset: Dataset) -> None:
    """Raise `DatasetError` if a case does not have one file for each channel that it must have.

    The mask of the case must not be one of them. `evaluate` allows it, because it reads no image.
    """
    mask = files.reference
    if mask is not None and file_key(mask) in map(file_key, files.images):
        raise DatasetError(
            f"{mask}: this file is the image as well as the mask of case {files.case!r}. Correct "
            "one of the two names."
        )
    names = dataset.channel_names
    if dataset.dims == 2 and is_colour(files, len(names)):
        return
    n_channels = len(files.images) + len(files.missing)
    lacks_one = bool(files.missing) and not dataset.may_lack
    if lacks_one or n_channels != len(names):
        present = ", ".join(file.name for file in files.images)
        if len(files.images) > len(names):
            raise DatasetError(
                f"case {files.case!r} has more files than the dataset has channels "
                f"({', '.join(names)}): {present}. Name all channels in the dataset, or remove the "
                "other files."
            )
        raise DatasetError(
            f"case {files.case!r} does not have one file per channel ({', '.join(names)}), only "
            f"{present}. Add the missing files (split a 4-D file into <case>_0000, …), or set "
            "data.channel_dropout=0.3."
        )


def list_images(folder: Path) -> list[Path]:
    """List the image files of a folder and its subfolders, in the order of their paths.

    Hidden folders, folders of masks and results of lesionseg are left out. Links to folders are
    followed, but each folder is searched only once, because links may form a circle. An image has
    the path without a link, if there is one. The ids of cases therefore do not depend on the order
    in which the disk lists the folders.
    """
    found: list[Path] = []
    seen: set[str] = set()
    links = _list_images_below([folder], found, seen)
    while links:  # after all folders without a link
        links = _list_images_below(links, found, seen)
    return sorted(found)


def _list_images_below(starts: Iterable[Path], found: list[Path], seen: set[str]) -> list[Path]:
    """Append the images of some folders to `found`, without those in links to other folders.

    Folders whose real path is in `seen` are left out, and the path of each searched folder is
    added. Return the sorted links.
    """
    links: list[Path] = []
    for top, folders, names in chain.from_iterable(os.walk(start) for start in starts):
        place = os.path.realpath(top)
        has_results = bool(seen) and not _OWN_RESULTS.isdisjoint(names)
        if place in seen or has_results:
            folders.clear()  # `os.walk` enters the folders that remain in this list
            continue
        seen.add(place)
        folders[:] = [name for name in folders if name[0] != "." and name not in _NOT_IMAGES]
        paths = [Path(top) / name for name in names]
        found += [path for path in paths if is_image_file(path) and is_file_or_broken_link(path)]
        subfolders = [Path(top) / name for name in folders]
        links += [path for path in subfolders if path.is_symlink()]
    return sorted(links)


def remark_unread_files(
    folder: Path, *, folders: bool = True, usual: tuple[str, ...] = ()
) -> list[Finding]:
    """Return a finding about the files of a folder that are not read.

    Hidden files, texts and the voxels of a header are not named.

    Args:
        folder: The folder with images.
        folders: True names the folders in it, too.
        usual: Further suffixes that are not named.
    """
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    with_voxels = any(path.suffix.lower() in (".mhd", ".nhdr") for path in entries)
    known = (*SUFFIXES, *usual, *_TEXT_SUFFIXES)
    if with_voxels:
        known += _VOXEL_SUFFIXES
    unread = []
    for path in entries:
        if path.suffix and not path.is_dir() and not path.name.lower().endswith(known):
            unread.append(path)
    if folders:
        unread += [path for path in entries if path.is_dir()]
    kinds = sorted({"folders" if path.is_dir() else path.suffix for path in unread})
    return find_left_out(
        folder,
        [path.name for path in unread],
        "item",
        f"of formats that are not read here ({', '.join(kinds)})",
        kind="unread",
        advice=f" Convert images to one of {', '.join(SUFFIXES)}.",
        severity="warning",
    )


def group_findings(cases: Sequence[CaseFiles]) -> list[Finding]:
    """Return a finding if the names of cases look like several scans of one patient."""
    names = find_likely_visits([case for case in cases if not case.group])
    if names is None:
        return []
    text = (
        f"Case names such as {names[0]} and {names[1]} look like scans of one patient. If they "
        f"are, set data.group='{VISIT_PATTERN}', so that no patient is in both training and "
        "validation."
    )
    return [Finding("names", text)]


def find_likely_visits(cases: Sequence[CaseFiles]) -> tuple[str, str] | None:
    """Return two case ids such as P08_0 and P08_1 that look like scans of one patient, or None.

    They do if most ids consist of a prefix and a short number, and if only a few ids share each
    prefix. A prefix that many ids share is probably that of a study or a site. Cases with a group
    of several do not count.
    """
    members: dict[str, list[str]] = {}  # case ids by prefix
    for case in cases:
        match = _VISIT.fullmatch(case.case)
        if match and case.group in ("", case.case):
            members.setdefault(match[1], []).append(case.case)
    several = {prefix: ids for prefix, ids in members.items() if len(ids) > 1}
    n_sharing = sum(map(len, several.values()))
    are_most_cases = 2 * n_sharing >= len(cases)
    are_few_per_prefix = n_sharing <= _MAX_VISITS * len(several)
    if len(members) < 2 or not are_most_cases or not are_few_per_prefix:
        return None
    first, second = sorted(next(iter(several.values())))[:2]
    return first, second


def fold_findings(dataset: Dataset) -> list[Finding]:
    """Return a finding about the cases without a fold if other cases state one."""
    usable = [c for c in dataset.cases if c.is_labelled and c.role not in ("test", "external")]
    names = [case.case for case in usable if case.fold is None]
    if len(names) == len(usable):
        return []
    words = "without a fold, used for training in every fold"
    return find_left_out(dataset.root, names, "case", words, kind="folds", severity="warning")


def find_missing_files(dataset: Dataset) -> list[Finding]:
    """Find files that do not exist or are empty, and wrong channels, without opening a file."""
    findings = list[Finding]()
    for files in dataset.cases:
        case = files.case
        with collect_errors(findings, case, files.images[0]):
            check_channels(files, dataset)
        references = () if files.reference is None else (files.reference,)
        for file in (*files.images, *references):
            if not _has_content(file):
                text = (
                    f"{file} of case {case!r} does not exist or is empty. Paths in tables are "
                    "relative to the table."
                )
                findings.append(Finding(LISTED, text, case, "error"))
    return findings


def file_key(path: Path) -> str:
    """Return a text that is equal for paths of one file, also by links."""
    with suppress(OSError, RuntimeError, ValueError):  # links in a circle; an impossible name
        path = path.resolve()
    return str(path)


def shared_masks(cases: Sequence[CaseFiles]) -> Iterator[str]:
    """Yield a message about each file that is the mask of several cases."""
    cases_of: dict[str, list[CaseFiles]] = {}
    for files in cases:
        if files.reference is not None:
            cases_of.setdefault(file_key(files.reference), []).append(files)
    for sharing in cases_of.values():
        if len(sharing) > 1:
            names = join_names(files.case for files in sharing)
            yield (
                f"{sharing[0].reference} is the mask of several cases: {names}. Name the mask of "
                "each case, unless it is an empty mask."
            )


def _has_content(file: Path) -> bool:
    """Return True for a folder, a series in a folder, and a file that is not empty."""
    if split_series(file) is not None:
        return True
    with suppress(OSError, ValueError):  # ValueError if the path cannot name a file
        return file.is_dir() or file.stat().st_size > 0
    return False
