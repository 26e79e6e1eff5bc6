"""List of dataset layouts and their order, recognition, entry points, missing or shared files."""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from stat import S_ISDIR
from typing import Unpack

from lesionseg.core import CaseFiles, Dataset, Role
from lesionseg.core.dataset import EACH_IS_A_PATIENT
from lesionseg.core.finding import (
    LISTED,
    NO_CASE,
    Finding,
    collect_errors,
    require_no_errors,
)
from lesionseg.errors import DatasetError, LesionsegError, ReadError, RegionError, count, join_names
from lesionseg.io.channels import check_channels
from lesionseg.io.dicom.series import split_series
from lesionseg.io.files import content_place
from lesionseg.io.layouts.bids import is_bids, read_bids
from lesionseg.io.layouts.boxes_csv import BOXES_FILE, read_boxes_csv
from lesionseg.io.layouts.coco import find_annotations, read_coco
from lesionseg.io.layouts.datalist import find_datalist, read_datalist
from lesionseg.io.layouts.manifest import MANIFEST, read_manifest
from lesionseg.io.layouts.nnunet import DATASET_JSON, read_nnunet
from lesionseg.io.layouts.other_formats import describe_other_format
from lesionseg.io.layouts.table import ReadingRules, Table, build_dataset
from lesionseg.io.layouts.yolo import is_yolo, read_yolo
from lesionseg.io.text import read_json

logger = logging.getLogger(__name__)

_LEVELS = {"note": logging.INFO, "warning": logging.WARNING}
ENTRY_POINTS = "lesionseg.layouts"
_NNUNET = ("nnunet", "msd")  # layouts whose labels apply to all masks in a folder of the dataset


@dataclass(frozen=True)
class Layout:
    """A layout of dataset folders.

    Attributes:
        name: The name of the layout.
        looks_for: The files by which it is recognised, for messages.
        recognises: A function that takes a folder and returns something true if the folder has this
            layout.
        read: A function that returns the rows of a folder, with wrong entries in `Table.findings`.
            `build_dataset` joins and checks the rows.
    """

    name: str
    looks_for: str
    recognises: Callable[[Path], object]
    read: Callable[[Path], Table]


def _contains(name: str) -> Callable[[Path], bool]:
    """Return a function that tells if a folder contains a file of this name."""

    def recognises(root: Path) -> bool:
        return (root / name).is_file()

    return recognises


# The first layout that recognises a folder is used. Tables for lesionseg come first, because they
# are written on purpose.
_COCO = Layout(
    "coco",
    "annotations.json, annotations/instances_*.json or _annotations.coco.json, and images",
    find_annotations,
    read_coco,
)
LAYOUTS = (
    Layout(
        "boxes",
        "boxes.csv (case, label, x0, y0, x1, y1), and images",
        _contains(BOXES_FILE),
        read_boxes_csv,
    ),
    Layout("manifest", MANIFEST, _contains(MANIFEST), read_manifest),
    Layout("datalist", "JSON with a list 'training'", find_datalist, read_datalist),
    Layout("nnunet", "dataset.json, imagesTr/, labelsTr/", _contains(DATASET_JSON), read_nnunet),
    _COCO,
    Layout("yolo", "data.yaml with names, images/, labels/", is_yolo, read_yolo),
    Layout("bids", "sub-*/…_label-lesion_mask.*", is_bids, read_bids),
)


@cache
def _registered_layouts(_: tuple[str, ...]) -> tuple[Layout, ...]:
    """Return the layouts that installed packages register as entry points `lesionseg.layouts`.

    The argument is `sys.path`, so that the cache has one entry per path. The metadata of all
    packages are read only once per path, because this is slower than to recognise a folder.
    """
    return tuple(point.load() for point in entry_points(group=ENTRY_POINTS))


def recognise_layout(root: Path) -> Layout | None:
    """Return the first layout that recognises a folder. Return None if no layout does.

    The layouts that installed packages register come after the layouts of lesionseg. Return None,
    too, if `root` is not a folder.
    """
    if not root.is_dir():
        return None
    layouts = (*LAYOUTS, *_registered_layouts(tuple(sys.path)))
    return next((layout for layout in layouts if layout.recognises(root)), None)


def read_dataset(root: Path, **rules: Unpack[ReadingRules]) -> Dataset:
    """Read the case list of a data folder, and raise an error unless all cases are usable.

    See `list_dataset`, which returns errors as findings instead. The other findings are logged.

    Args:
        root: The folder.
        rules: The settings of the reading, such as `merge_labels`, by name (`ReadingRules`).

    Raises:
        DatasetError: If the folder is missing, has no known layout or no case, has wrong entries,
            or `group` is not a regular expression. The message lists the first 100 errors.
        ReadError: If a table cannot be read.
    """
    dataset = list_dataset(root, **rules)
    require_usable(dataset)
    return dataset


def list_dataset(root: Path, **rules: Unpack[ReadingRules]) -> Dataset:
    """List the cases of a data folder and find its wrong entries, without reading its images.

    - Only the header of the first readable image is read, to find out the number of axes. BIDS also
      needs the grids of the first session.
    - It is not checked whether the files exist, see `find_missing_files`.
    - A folder without cases is an error among the findings.
    - The layout and the number of cases and patients are logged, with a warning if training and
      test cases share a patient.

    Args:
        root: The folder.
        rules: The settings of the reading, such as `merge_labels`, by name (`ReadingRules`). If
            they name COCO annotations, the folder may have any layout.

    Returns:
        The dataset with its findings.

    Raises:
        DatasetError: If the folder is missing or has no known layout, or its description is wrong.
        ReadError: If a table cannot be read.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: the data folder does not exist. Check its name.")
    annotations = rules.get("annotations")
    if annotations is None:
        layout = find_layout(root)
        table = layout.read(root)
    else:
        layout = _COCO
        table = read_coco(root, root / annotations)
    dataset = build_dataset(table, root, layout.name, rules)
    if not dataset.cases:
        text = (
            f"{root}: the folder has no labelled case. The layout {layout.name} consists of "
            f"{layout.looks_for}."
        )
        empty = Finding(NO_CASE, text, severity="error")
        dataset = replace(dataset, findings=(*dataset.findings, empty))
    _log_summary(dataset)
    return dataset


def require_usable(dataset: Dataset) -> None:
    """Raise one `DatasetError` that lists the first 100 errors of a dataset, if it has any.

    Missing files and channels are errors, too. Warnings and notes among the findings are logged,
    and so is a warning about each mask that several cases share.
    """
    for text in _describe_shared_masks(dataset.cases):
        logger.warning(text)
    for finding in dataset.findings:
        if finding.severity != "error":
            logger.log(_LEVELS[finding.severity], finding.message)
    errors = [*dataset.errors, *find_missing_files(dataset)]
    # the reason why there is no case is among the other errors
    reasons = [finding for finding in errors if finding.kind != NO_CASE]
    require_no_errors(reasons or errors, dataset.root)


def find_missing_files(dataset: Dataset) -> list[Finding]:
    """Return an error for each missing or empty file, and for each case with wrong channels.

    Only the directory entries are read; no file is opened. The list is empty if all files exist.
    """
    findings: list[Finding] = []
    for files in dataset.cases:
        case = files.case
        with collect_errors(findings, case, files.images[0]):
            check_channels(files, dataset)
        for file in (*files.images, *(() if files.reference is None else (files.reference,))):
            if not _has_content(file):
                text = (
                    f"{file} of case {case!r} does not exist or is empty. Paths in tables are "
                    "relative to the table."
                )
                findings.append(Finding(LISTED, text, case, severity="error"))
    return findings


def _describe_shared_masks(cases: Sequence[CaseFiles]) -> Iterator[str]:
    """Yield a message about each file that is the mask of several cases.

    Such a mask is often a mistake in a table, but correct if it is an empty mask.
    """
    cases_of: dict[object, list[CaseFiles]] = {}
    for files in cases:
        if files.reference is not None:
            # links to the same file have the same key
            cases_of.setdefault(content_place(files.reference), []).append(files)
    for sharing in cases_of.values():
        if len(sharing) > 1:
            names = join_names(files.case for files in sharing)
            yield (
                f"{sharing[0].reference} is the mask of several cases: {names}. Name the mask of "
                "each case, unless it is an empty mask."
            )


def _has_content(file: Path) -> bool:
    """Return True if a path is a folder, a DICOM series in a folder, or a file that is not empty.

    A path that cannot be accessed has no content.
    """
    if split_series(file) is not None:  # `folder/series=3` is no path on the disk
        return True
    with suppress(OSError, ValueError):  # ValueError if the path cannot name a file
        status = file.stat()
        return S_ISDIR(status.st_mode) or status.st_size > 0
    return False


def find_layout(root: Path) -> Layout:
    """Return the layout of a folder, or raise an error that helps the user if it has none.

    Raises:
        DatasetError: If the layout is not known. The message names what the folder contains
            instead: datasets in subfolders, the format of another program, or a damaged file.
    """
    layout = recognise_layout(root)
    if layout is not None:
        return layout
    dataset_folders = [folder.name for folder in sorted(root.iterdir()) if recognise_layout(folder)]
    if dataset_folders:
        raise DatasetError(
            f"{root} is not a dataset, but contains some: {', '.join(dataset_folders[:9])}. "
            "Name one of them."
        )
    advice = describe_other_format(root) or (
        f"Write a {MANIFEST} with the columns case, image and reference (masks), or a {BOXES_FILE} "
        "with case, label, x0, y0, x1, y1 next to the images. docs/data.md lists all layouts, such "
        "as nnU-Net's with dataset.json."
    )
    for path in sorted(root.glob("*.json")):  # one of them may be a damaged datalist
        try:
            read_json(path, allow_nan=True)
        except ReadError as error:
            advice += f" Or correct a file: {error}"
    raise DatasetError(f"{root} has no known dataset layout. {advice}")


def _log_summary(dataset: Dataset) -> None:
    """Log the layout of a dataset and its numbers of cases and patients.

    Log a warning if a patient has cases for training and for test. External cases are test cases.
    """
    cases = dataset.cases
    tested_on = {case.group for case in cases if case.role in ("test", "external")}
    trained_on = {case.group for case in cases if case.role not in ("test", "external")}
    patients = tested_on | trained_on
    shared = tested_on & trained_on
    if shared:
        text = "Training and test cases share %s, so the test scores will be too good."
        logger.warning(text, count(len(shared), "patient"))
    size = f"{count(len(cases), 'case')} of {count(len(patients), 'patient')}"
    if len(cases) == len(patients) > 1:  # perhaps the patients are not known
        size = f"{len(cases)} cases, {EACH_IS_A_PATIENT}"
    logger.info("%s has the layout %s: %s.", dataset.root, dataset.layout, size)


def read_dataset_of(masks: Mapping[str, Path], **rules: Unpack[ReadingRules]) -> Dataset | None:
    """Return the dataset that the masks of a folder belong to, as masks in nnU-Net's `labelsTs`.

    The function is used to evaluate against a folder of masks: the dataset has the names of the
    labels, the value to ignore, the regions and the roles, which the masks do not contain.

    - The dataset is read from the parent of the folder with the masks.
    - Masks without an image in the dataset are cases, too. In an nnU-Net dataset, the whole folder
      may be one without images, such as `gt_segmentations` of `nnUNet_preprocessed`.
    - Cases of masks in `labelsTs` are test cases.

    Args:
        masks: The masks by case id.
        rules: The settings of the reading, such as `merge_labels`, by name (`ReadingRules`).

    Returns:
        The dataset with one case per mask, which may lack channels. A case whose image is missing
        has no images. None if the masks do not belong to one dataset. None, with a warning, if the
        dataset is damaged or one of its cases has the id of another mask.

    Raises:
        RegionError: If the regions of the dataset cannot be used.
    """
    masks = {case: mask.absolute() for case, mask in masks.items()}  # `.` has no parent
    folders = {mask.parent for mask in masks.values()}
    if len(folders) != 1:
        return None
    (folder,) = folders
    if recognise_layout(folder.parent) is None:
        return None
    try:
        dataset = list_dataset(folder.parent, **rules)
    except RegionError:
        raise
    except LesionsegError as error:
        logger.warning("The masks in %s are read without their dataset. %s", folder, error)
        return None
    case_of_mask = {case.reference: case for case in dataset.cases}
    # masks of other files belong to a dataset only if its labels apply to all masks in its folder
    if case_of_mask.keys().isdisjoint(masks.values()) and dataset.layout not in _NNUNET:
        return None
    role: Role | None = "test" if folder.name == "labelsTs" else None
    cases = [
        case_of_mask.get(mask) or CaseFiles(case, images=(), reference=mask, role=role)
        for case, mask in masks.items()
    ]
    if len({files.case for files in cases}) < len(cases):
        logger.warning(
            "The masks in %s are read without their dataset, because a case of it has the name of "
            "another mask.",
            folder,
        )
        return None
    return replace(dataset, cases=tuple(cases), may_lack=True)  # channels
