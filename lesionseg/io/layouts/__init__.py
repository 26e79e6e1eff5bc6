"""Dataset folders in every known layout, recognised by what lies in them.

In comes a folder; out comes a `Dataset` of case files with labels, groups and roles. Tables are
read, and of images the header of the first (of BIDS the grids of the first session, of DICOM
radiographs what each states). References that tables hold are drawn when a case is read.
"""

import logging
from collections.abc import Callable, Collection
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path

from lesionseg.core import CaseFiles, Dataset, Problem
from lesionseg.core.dataset import assign_groups
from lesionseg.errors import DatasetError, LesionsegError, ReadError, count
from lesionseg.io.dicom.radiograph import radiograph_columns, radiograph_file
from lesionseg.io.files import read_json
from lesionseg.io.layouts.bids import read_bids, recognises_bids
from lesionseg.io.layouts.checks import (
    Problems,
    find_problems,
    fold_remarks,
    group_remarks,
)
from lesionseg.io.layouts.coco import find_annotations, read_coco
from lesionseg.io.layouts.datalist import find_datalist, read_datalist
from lesionseg.io.layouts.manifest import MANIFEST, read_manifest
from lesionseg.io.layouts.nnunet import read_nnunet
from lesionseg.io.volumes import is_dicom_image, read_geometry

logger = logging.getLogger(__name__)

ENTRY_POINTS = "lesionseg.layouts"


@dataclass(frozen=True)
class Convention:
    """One way of laying out a dataset: its name, what it looks for, and who reads it.

    `read` lists cases and what is wrong with single entries (`Dataset.problems`); axes are counted
    in the first image, and whether files and channels are there is checked, for all layouts alike.
    """

    name: str
    looks_for: str
    recognises: Callable[[Path], object]
    read: Callable[[Path], Dataset]


def _holds(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).is_file()


# asked in this order: a manifest was written on purpose
CONVENTIONS = (
    Convention("manifest", MANIFEST, _holds(MANIFEST), read_manifest),
    Convention("datalist", "JSON with a list 'training'", find_datalist, read_datalist),
    Convention("nnunet", "dataset.json, imagesTr/, labelsTr/", _holds("dataset.json"), read_nnunet),
    Convention(
        "coco",
        "annotations.json, annotations/instances_*.json or _annotations.coco.json, and images",
        find_annotations,
        read_coco,
    ),
    Convention("bids", "sub-*/…_label-lesion_mask.*", recognises_bids, read_bids),
)


def conventions() -> tuple[Convention, ...]:
    """Ours, then those of installed packages: each entry point names a `Convention`."""
    return (*CONVENTIONS, *(point.load() for point in entry_points(group=ENTRY_POINTS)))


def recognised(root: Path) -> str | None:
    """The name of the convention that a folder follows; None: it is no dataset known here."""
    fitting = (c.name for c in conventions() if c.recognises(root))
    return next(fitting, None) if root.is_dir() else None


def read_dataset(
    root: Path,
    *,
    group: str | None = None,
    merge_labels: bool = False,
    may_lack: bool = False,
    nan_background: bool = False,
    grid_of_image: bool = False,
    lenient: bool = False,
) -> Dataset:
    """Read the cases of a data folder, without opening more than one image's header.

    Radiographs in DICOM get the columns of `radiograph_columns`. Remarks are logged unless
    `lenient`. Raises `DatasetError` for a folder that is missing, not recognised or without cases,
    and one that names every case that is there twice, lacks a file, or states what cannot be;
    `ReadError` for unreadable tables.

    Args:
        root: the folder.
        group: a regular expression that finds the patient in a case id (see `assign_groups`).
        merge_labels: makes all labels one, `{1: "lesion"}`.
        may_lack: takes cases without all of their channels (nnU-Net raw folders, manifests).
        nan_background: takes NaN voxels of images and masks for background.
        grid_of_image: takes the first image's grid for files of equal shape and spacing.
        lenient: keeps cases with faults, and lists wrong entries in `Dataset.problems`; a folder
            without any case is then a problem in that list, beside those that explain it.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: the data folder does not exist.")
    layout = _layout_of(root)
    dataset = replace(
        layout.read(root),
        may_lack=may_lack,
        nan_background=nan_background,
        grid_of_image=grid_of_image,
    )
    for case in dataset.cases:  # where none can be read, reading the cases says what is wrong
        with suppress(LesionsegError, OSError):
            dataset = replace(dataset, dims=read_geometry(case.images[0]).dims)
            break
    problems = Problems([*dataset.problems, *find_problems(dataset, lenient=lenient)])
    remarks = (*dataset.remarks, *fold_remarks(dataset))
    if group is None:
        remarks += tuple(group_remarks(dataset.cases))
    if not lenient:
        for remark in remarks:
            logger.log(logging.INFO if remark.is_note else logging.WARNING, remark.message)
        problems.raise_all(root)
    if not dataset.cases:
        text = f"{root}: no labelled case; {layout.name} has {layout.looks_for}."
        if not lenient:
            raise DatasetError(text)
        problems.append(Problem("", text))
    single = [*{case.case: case for case in reversed(dataset.cases)}.values()][::-1]
    with problems.of("", root) if lenient else nullcontext():
        single = [*assign_groups(single, group)]
    dataset = replace(dataset, cases=tuple(map(_with_radiograph_columns, single)), remarks=remarks)
    with problems.of("", root) if lenient else nullcontext():
        dataset = _merged(dataset) if merge_labels else dataset
    _log_size(dataset)
    return replace(dataset, problems=tuple(problems))


def _layout_of(root: Path) -> Convention:
    """Return the convention that a folder follows. Raise `DatasetError` if it follows none."""
    known = {layout.name: layout for layout in conventions()}
    name = recognised(root)
    if name is not None:
        return known[name]
    if inner := [d.name for d in sorted(root.iterdir()) if d.is_dir() and recognised(d)]:
        named = ", ".join(inner[:9])
        raise DatasetError(f"{root} is no dataset, but holds some: {named}. Name one of them.")
    expected = "; ".join(f"{c.name}: {c.looks_for}" for c in known.values())
    advice = "Write a manifest.csv with the columns case, image and reference."
    for path in sorted(root.glob("*.json")):  # a list of cases, perhaps
        try:
            read_json(path, allow_nan=True)
        except ReadError as error:
            advice += f" Or correct a file: {error}"
    raise DatasetError(f"{root} has no known dataset layout ({expected}). {advice}")


def _with_radiograph_columns(case: CaseFiles) -> CaseFiles:
    """Add the columns of a radiograph in DICOM; reading the case says what is wrong with it."""
    with suppress(LesionsegError, OSError):
        file = radiograph_file(case.images[0]) if is_dicom_image(case.images[0]) else None
        if file is not None:
            return replace(case, columns={**radiograph_columns(file), **case.columns})
    return case


def _merged(dataset: Dataset) -> Dataset:
    """Make all labels one. Raise `DatasetError` if a case does not annotate all of them."""
    for case in dataset.cases:
        if case.annotated:
            raise DatasetError(
                f"{dataset.root}: data.merge_labels=true needs all labels annotated in every case, "
                f"but in {case.case!r} only {';'.join(case.annotated)}."
            )
    return replace(dataset, labels=dataset.labels.merge())


def _log_size(dataset: Dataset) -> None:
    """Log layout, cases and patients, and warn if patients are in training and test."""
    cases = dataset.cases
    held_out = {c.group for c in cases if c.role in ("test", "external")}
    if shared := held_out & {c.group for c in cases if c.role not in ("test", "external")}:
        text = "Training and test cases share %s, so test scores will be too good."
        logger.warning(text, count(len(shared), "patient"))
    size = f"{count(len(cases), 'case')} of {count(len({c.group for c in cases}), 'patient')}"
    logger.info("%s has the layout %s: %s.", dataset.root, dataset.convention, size)
    if partly := [case for case in cases if case.annotated]:
        logger.info("Not all labels are annotated in %s.", count(len(partly), "case"))


def read_dataset_of(masks: Collection[Path]) -> Dataset | None:
    """The dataset one of whose folders holds these masks, as nnU-Net's `labelsTs`; None: no such.

    Its cases are those of the masks, which otherwise would lose their labels' names, the value to
    ignore, regions and roles.
    """
    files, roots = {*masks}, {mask.parent.parent for mask in masks}
    with suppress(LesionsegError):  # what is no sound dataset holds masks like any other folder
        if len(roots) == 1 and recognised(root := roots.pop()):
            dataset = read_dataset(root, may_lack=True, lenient=True)
            cases = tuple(c for c in dataset.cases if c.reference in files)
            return replace(dataset, cases=cases) if len(cases) == len(files) else None
    return None
