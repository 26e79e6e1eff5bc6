"""Reading dataset folders of every known layout, recognised by their content.

The result is a `Dataset` of case files with labels, groups and roles. Tables are read completely.
Only the header of the first image is read. BIDS also needs the grids of the first session, and
DICOM radiographs need the header of each image. References in tables are drawn when a case is read.
"""

import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypedDict, Unpack

from lesionseg.core import CaseFiles, Dataset, Role
from lesionseg.core.dataset import EACH_IS_A_PATIENT, assign_groups, compile_pattern
from lesionseg.core.finding import NO_CASE, Finding, collect_errors, require_no_errors
from lesionseg.errors import DatasetError, LesionsegError, ReadError, count
from lesionseg.io.dicom.radiograph import radiograph_columns, radiograph_file
from lesionseg.io.layouts.bids import is_bids, read_bids
from lesionseg.io.layouts.box_table import MAX_LABELS
from lesionseg.io.layouts.boxes_csv import BOXES, find_boxes, read_boxes_csv
from lesionseg.io.layouts.checks import (
    find_missing_files,
    find_wrong_ids,
    fold_findings,
    group_findings,
    shared_masks,
    with_missing_channels,
)
from lesionseg.io.layouts.coco import find_annotations, lesions_are_boxes, read_coco
from lesionseg.io.layouts.datalist import find_datalist, read_datalist
from lesionseg.io.layouts.manifest import MANIFEST, read_manifest
from lesionseg.io.layouts.nnunet import read_nnunet
from lesionseg.io.layouts.other_formats import describe_other_format
from lesionseg.io.layouts.radiograph_tables import find_rsna, find_vindr, read_rsna, read_vindr
from lesionseg.io.layouts.readers import merge_readers
from lesionseg.io.layouts.yolo import find_yolo, read_yolo
from lesionseg.io.text import read_json
from lesionseg.io.volumes import is_dicom_image, read_geometry

logger = logging.getLogger(__name__)

_LEVELS = {"note": logging.INFO, "warning": logging.WARNING}
ENTRY_POINTS = "lesionseg.layouts"
_NNUNET = ("nnunet", "msd")  # layouts whose labels apply to all masks in a folder of the dataset


@dataclass(frozen=True)
class Convention:
    """A dataset layout.

    Attributes:
        name: The name of the layout.
        looks_for: The files by which it is recognised, for messages.
        recognises: A function that takes a folder and returns something true if the folder has this
            layout.
        read: A function that returns the cases of a folder, with wrong entries in
            `Dataset.findings`. `list_dataset` determines the number of axes and checks files and
            channels for all layouts, so that this function need not do so.
    """

    name: str
    looks_for: str
    recognises: Callable[[Path], object]
    read: Callable[[Path], Dataset]


def _has_manifest(root: Path) -> bool:
    return (root / MANIFEST).is_file()


def _has_dataset_json(root: Path) -> bool:
    return (root / "dataset.json").is_file()


# The first layout that recognises a folder is used. Tables for lesionseg come first, because they
# are written on purpose.
CONVENTIONS = (
    Convention(
        "boxes", "boxes.csv (case, label, x0, y0, x1, y1), and images", find_boxes, read_boxes_csv
    ),
    Convention("manifest", MANIFEST, _has_manifest, read_manifest),
    Convention("datalist", "JSON with a list 'training'", find_datalist, read_datalist),
    Convention("nnunet", "dataset.json, imagesTr/, labelsTr/", _has_dataset_json, read_nnunet),
    Convention(
        "coco",
        "annotations.json, annotations/instances_*.json or _annotations.coco.json, and images",
        find_annotations,
        read_coco,
    ),
    Convention("yolo", "data.yaml with names, images/, labels/", find_yolo, read_yolo),
    Convention(
        "vindr",
        "VinDr-CXR's train.csv or annotations/annotations_train.csv, and images",
        find_vindr,
        read_vindr,
    ),
    Convention("rsna", "RSNA's stage_2_train_labels.csv, and images", find_rsna, read_rsna),
    Convention("bids", "sub-*/…_label-lesion_mask.*", is_bids, read_bids),
)


def conventions() -> tuple[Convention, ...]:
    """Return our layouts, then the `Convention` objects that installed packages register."""
    return (*CONVENTIONS, *_registered_conventions(tuple(sys.path)))


@cache
def _registered_conventions(_: tuple[str, ...]) -> tuple[Convention, ...]:
    """Return the layouts that installed packages register.

    The metadata of all packages are read once for each search path of modules (`sys.path`), because
    this takes longer than to recognise a folder.
    """
    return tuple(point.load() for point in entry_points(group=ENTRY_POINTS))


def find_convention(root: Path) -> str | None:
    """Return the name of the layout that a folder has, or None if it is not a known dataset."""
    if not root.is_dir():
        return None
    return next((c.name for c in conventions() if c.recognises(root)), None)


class ReadingRules(TypedDict, total=False):
    """The rules by which a data folder is read.

    Attributes:
        group: A regular expression that finds the patient in a case id (see `assign_groups`).
        merge_labels: True merges all labels into one, `{1: "lesion"}`.
        may_lack: True allows cases with missing channels (nnU-Net raw folders, manifests).
        nan_background: True treats NaN voxels of images and masks as background.
        grid_of_image: True puts files of equal shape and spacing on the grid of the first image.
        min_readers: If several readers drew boxes, the number of readers who must have marked a
            lesion. None: two if three or more readers read the case, otherwise one.
    """

    group: str | None
    merge_labels: bool
    may_lack: bool
    nan_background: bool
    grid_of_image: bool
    min_readers: int | None


def read_dataset(root: Path, **rules: Unpack[ReadingRules]) -> Dataset:
    """List the cases of a data folder, all of which must be usable. See `list_dataset`.

    Raises:
        ConfigError: `group` is not a regular expression.
        DatasetError: The folder is missing, has no known layout or no case, or has wrong entries.
            The message lists all of them.
        ReadError: A table cannot be read.
    """
    if group := rules.get("group"):
        compile_pattern(group)
    dataset = list_dataset(root, **rules)
    require_usable(dataset)
    return dataset


def list_dataset(root: Path, **rules: Unpack[ReadingRules]) -> Dataset:
    """List the cases of a data folder and find its wrong entries, without reading its images.

    Only the header of the first readable image is read, to find out the number of axes. DICOM
    radiographs are an exception: each header is read for the columns of `radiograph_columns`. Files
    may be missing. A folder without cases is an error among the findings.

    Args:
        root: The folder.
        rules: See `ReadingRules`.

    Returns:
        The dataset with its findings.

    Raises:
        DatasetError: The folder is missing or has no known layout, or its description is wrong.
        ReadError: A table cannot be read.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: the data folder does not exist. Check its name.")
    layout = _layout_of(root)
    dataset = replace(
        layout.read(root),
        may_lack=rules.get("may_lack", False),
        nan_background=rules.get("nan_background", False),
        grid_of_image=rules.get("grid_of_image", False),
    )
    has_boxes = any(map(lesions_are_boxes, dataset.cases))
    dataset = replace(dataset, lesions_are_boxes=has_boxes)
    for case in dataset.cases:
        with suppress(LesionsegError, OSError):  # reading the cases reports the error
            dataset = replace(dataset, dims=read_geometry(case.images[0]).dims)
            break
    dataset = with_missing_channels(dataset)
    findings = [*dataset.findings, *find_wrong_ids(dataset.cases), *fold_findings(dataset)]
    group = rules.get("group")
    if group is None:
        findings += group_findings(dataset.cases)
    if not dataset.cases:
        text = (
            f"{root}: the folder has no labelled case. The layout {layout.name} consists of "
            f"{layout.looks_for}."
        )
        findings.append(Finding(NO_CASE, text, severity="error"))
    first_of_id: dict[str, CaseFiles] = {}  # a repeated id is one of the findings already
    for case in dataset.cases:
        first_of_id.setdefault(case.case, case)
    grouped = list(first_of_id.values())
    with collect_errors(findings, "", root):
        grouped = [*assign_groups(grouped, group)]
    dataset = replace(dataset, cases=tuple(map(_add_radiograph_columns, grouped)))
    with collect_errors(findings, "", root):
        if rules.get("merge_labels"):
            dataset = _merge_labels(dataset)
        _check_label_values(dataset)
    dataset = merge_readers(replace(dataset, findings=tuple(findings)), rules.get("min_readers"))
    _log_summary(dataset)
    return dataset


def require_usable(dataset: Dataset) -> None:
    """Log the findings of a dataset, and raise one `DatasetError` that lists all of its errors.

    Missing files and channels are errors, too.
    """
    for text in shared_masks(dataset.cases):
        logger.warning(text)
    for finding in dataset.findings:
        if finding.severity != "error":
            logger.log(_LEVELS[finding.severity], finding.message)
    errors = [*dataset.errors, *find_missing_files(dataset)]
    # the reason why there is no case is among the other errors
    reasons = [finding for finding in errors if finding.kind != NO_CASE]
    require_no_errors(reasons or errors, dataset.root)


def _check_label_values(dataset: Dataset) -> None:
    """Raise `DatasetError` if a label does not fit into predicted masks, which store bytes."""
    too_high = [value for value in dataset.labels.mask_values if value > MAX_LABELS]
    if too_high:
        raise DatasetError(
            f"{dataset.root}: the label {too_high[0]} ({dataset.labels.mask_names[too_high[0]]}) "
            f"is above {MAX_LABELS}. Give the labels values from 1 to {MAX_LABELS}, or set "
            "data.merge_labels=true (evaluate merge_labels=true) if all of them are lesions."
        )


def _layout_of(root: Path) -> Convention:
    """Return the layout of a folder. Raise `DatasetError` if it is not known."""
    known = {layout.name: layout for layout in conventions()}
    name = find_convention(root)
    if name is not None:
        return known[name]
    folders = [folder for folder in sorted(root.iterdir()) if folder.is_dir()]
    inner = [folder.name for folder in folders if find_convention(folder)]
    if inner:
        raise DatasetError(
            f"{root} is not a dataset, but contains some: {', '.join(inner[:9])}. Name one of them."
        )
    if (root / BOXES).is_file():
        read_boxes_csv(root)  # raises an error that lists the missing columns
    advice = describe_other_format(root) or (
        f"Write a {MANIFEST} with the columns case, image and reference (masks), or a {BOXES} with "
        "case, label, x0, y0, x1, y1 next to the images. docs/data.md lists all layouts, such as "
        "nnU-Net's with dataset.json."
    )
    for path in sorted(root.glob("*.json")):  # one of them may be a damaged datalist
        try:
            read_json(path, allow_nan=True)
        except ReadError as error:
            advice += f" Or correct a file: {error}"
    raise DatasetError(f"{root} has no known dataset layout. {advice}")


def _add_radiograph_columns(case: CaseFiles) -> CaseFiles:
    """Add the columns of a DICOM radiograph to its case."""
    with suppress(LesionsegError, OSError):  # reading the case reports the error
        file = radiograph_file(case.images[0]) if is_dicom_image(case.images[0]) else None
        if file is not None:
            return replace(case, columns={**radiograph_columns(file), **case.columns})
    return case


def _merge_labels(dataset: Dataset) -> Dataset:
    """Merge all labels into one. Raise `DatasetError` if a case does not annotate all of them."""
    for case in dataset.cases:
        if case.annotated:
            raise DatasetError(
                f"{dataset.root}: merge_labels=true needs all labels annotated in every case, "
                f"but {case.case!r} has only {';'.join(case.annotated)}. Remove the case or the "
                "setting."
            )
    return replace(dataset, labels=dataset.labels.merge())


def _log_summary(dataset: Dataset) -> None:
    """Log layout and size. Warn if a patient belongs to both training and test."""
    cases = dataset.cases
    patients = {case.group for case in cases}
    tested_on = {case.group for case in cases if case.role in ("test", "external")}
    trained_on = {case.group for case in cases if case.role not in ("test", "external")}
    shared = tested_on & trained_on
    if shared:
        text = "Training and test cases share %s, so the test scores will be too good."
        logger.warning(text, count(len(shared), "patient"))
    size = f"{count(len(cases), 'case')} of {count(len(patients), 'patient')}"
    if len(cases) == len(patients) > 1:
        size = f"{len(cases)} cases, {EACH_IS_A_PATIENT}"
    logger.info("%s has the layout %s: %s.", dataset.root, dataset.convention, size)
    if partly := [case for case in cases if case.annotated]:
        logger.info("Not all labels are annotated in %s.", count(len(partly), "case"))


def read_dataset_of(masks: Mapping[str, Path], *, merge_labels: bool = False) -> Dataset | None:
    """Find the dataset that the masks of a folder belong to, such as those in nnU-Net's `labelsTs`.

    The dataset has the names of the labels, the value to ignore, regions and roles, which the masks
    do not state. They also apply to masks whose image is missing, and to folders of masks in an
    nnU-Net dataset whose images it does not contain, such as `gt_segmentations` of
    `nnUNet_preprocessed`. If the dataset is damaged, the masks are read without it and a warning
    says so.

    Args:
        masks: The masks by case id.
        merge_labels: See `read_dataset`.

    Returns:
        The dataset with one case per mask, or None if the masks do not belong to one. A case whose
        image is missing has no images.
    """
    masks = {case: mask.absolute() for case, mask in masks.items()}  # `.` has no parent
    folders = {mask.parent for mask in masks.values()}
    if len(folders) != 1:
        return None
    (folder,) = folders
    if find_convention(folder.parent) is None:
        return None
    try:
        dataset = list_dataset(folder.parent, merge_labels=merge_labels, may_lack=True)
    except LesionsegError as error:
        logger.warning("The masks in %s are read without their dataset. %s", folder, error)
        return None
    case_of_mask = {case.reference: case for case in dataset.cases}
    if case_of_mask.keys().isdisjoint(masks.values()) and dataset.convention not in _NNUNET:
        return None
    role: Role | None = "test" if folder.name == "labelsTs" else None
    cases = [
        case_of_mask.get(mask) or CaseFiles(case, (), reference=mask, role=role)
        for case, mask in masks.items()
    ]
    if len({files.case for files in cases}) < len(cases):
        logger.warning(
            "The masks in %s are read without their dataset, because a case of it has the name of "
            "another mask.",
            folder,
        )
        return None
    return replace(dataset, cases=tuple(cases))
