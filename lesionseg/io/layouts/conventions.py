"""A dataset folder in any of the conventions we know, recognised by what lies in it."""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path

from lesionseg.core import UNION, CaseFiles, Dataset
from lesionseg.errors import DatasetError, LesionsegError, one_of
from lesionseg.io.case_ids import check_case_id
from lesionseg.io.dicom.headers import SUFFIXES as DICOM
from lesionseg.io.dicom.radiographs import radiograph_columns
from lesionseg.io.dicom.reader import radiograph_file
from lesionseg.io.formats.volumes import SUFFIXES
from lesionseg.io.layouts.bids import read_bids, recognises_bids
from lesionseg.io.layouts.case_problems import Problems, refuse_problems
from lesionseg.io.layouts.coco import read_coco, recognises_coco
from lesionseg.io.layouts.datalist import read_datalist, recognises_datalist
from lesionseg.io.layouts.groups import assign_groups
from lesionseg.io.layouts.luna16 import read_luna16, recognises_luna16
from lesionseg.io.layouts.manifest import read_manifest, recognises_manifest
from lesionseg.io.layouts.nndetection import read_nndetection, recognises_nndetection
from lesionseg.io.layouts.nnunet import read_msd, read_nnunet, recognises_msd, recognises_nnunet
from lesionseg.io.local_files import fetch_radiograph

logger = logging.getLogger(__name__)
NOT_DICOM = tuple(suffix for suffix in SUFFIXES if suffix not in DICOM)


@dataclass(frozen=True)
class Convention:
    """One way of laying out a dataset: its name, what it looks for, and who reads it."""

    name: str
    looks_for: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path], Dataset]


# asked in this order: a manifest was written on purpose; MSD is nnU-Net without channel numbers
CONVENTIONS = (
    Convention("manifest", "manifest.csv", recognises_manifest, read_manifest),
    Convention("luna16", "annotations.csv of LUNA16 and its scans", recognises_luna16, read_luna16),
    Convention(
        "nndetection",
        "dataset.json and labelsTr/<case>.json",
        recognises_nndetection,
        read_nndetection,
    ),
    Convention("msd", "dataset.json and imagesTr/<case>.nii.gz", recognises_msd, read_msd),
    Convention(
        "datalist", "a JSON file with a list 'training'", recognises_datalist, read_datalist
    ),
    Convention("nnunet", "dataset.json and imagesTr/<case>_0000.*", recognises_nnunet, read_nnunet),
    Convention("coco", "annotations.json and images/", recognises_coco, read_coco),
    Convention("bids", "sub-*/…_label-lesion_mask.*", recognises_bids, read_bids),
)


ENTRY_POINTS = "lesionseg.layouts"


def conventions() -> tuple[Convention, ...]:
    """Ours, then those of installed packages: each entry point names a `Convention`."""
    return (*CONVENTIONS, *(point.load() for point in entry_points(group=ENTRY_POINTS)))


def read_dataset(
    root: Path,
    *,
    group: str | None = None,
    convention: str | None = None,
    merge_labels: bool = False,
    resample_tilt: bool = False,
    lenient: bool = False,
) -> Dataset:
    """Read what a data folder holds, without opening more than one image's header.

    `group` is a regular expression that finds the patient in a case id (see `groups`);
    `convention` names the layout instead of recognising it; `merge_labels` makes all labels one,
    `{1: "lesion"}`; `resample_tilt` takes DICOM series of a tilted gantry. Radiographs in DICOM
    get the columns of `dicom_xray.radiograph_columns`. Raises `DatasetError` for a folder that is
    missing, not recognised or without cases, and one that names every case that is there twice,
    lacks a file, or says of itself what cannot be; `lenient` leaves those in `Dataset.problems`
    instead. Raises `ReadError` for unreadable tables.
    """
    layout = _choose(root, convention)
    dataset = _distinct(layout.read(root))
    if not lenient:
        refuse_problems(dataset.problems, root)
    if not dataset.cases:
        raise DatasetError("The dataset has no case.", where=root)
    cases = tuple(_with_radiograph_columns(c) for c in assign_groups(dataset.cases, group))
    dataset = replace(dataset, cases=cases, resample_tilt=resample_tilt)
    _warn_of_shared_groups(dataset.cases)
    logger.info(
        "%s read as %s: %d cases of %d groups.",
        root,
        layout.name,
        len(dataset.cases),
        len({c.group for c in dataset.cases}),
    )
    return _merged(dataset) if merge_labels else dataset


def recognised(root: Path) -> str | None:
    """The name of the convention that a folder follows; None: it is no dataset known here."""
    fitting = (c.name for c in conventions() if c.recognises(root))
    return next(fitting, None) if root.is_dir() else None


def _choose(root: Path, name: str | None) -> Convention:
    if not root.is_dir():
        raise DatasetError("The data folder does not exist.", where=root)
    known = conventions()
    if name is not None:
        one_of("convention", name, [c.name for c in known], where="data.convention")
    fitting = [c for c in known if (c.recognises(root) if name is None else c.name == name)]
    if not fitting:
        raise DatasetError(
            "The folder follows no convention known here.",
            where=root,
            seen=", ".join(sorted(p.name for p in root.iterdir())[:8]) or "an empty folder",
            expected="; ".join(f"{c.name}: {c.looks_for}" for c in known),
            remedy="Write a manifest.csv with the columns case, image and reference.",
        )
    return fitting[0]


def _distinct(dataset: Dataset) -> Dataset:
    """The dataset with the first case of every id; those after it become problems."""
    problems = Problems()
    cases: dict[str, CaseFiles] = {}
    for case in dataset.cases:
        name = case.case
        if name in cases:
            error = DatasetError(
                f"The case {name!r} is listed more than once.",
                where=dataset.root,
                remedy="Give every case its own name; a file's suffix does not count.",
            )
            problems.add(name, error)
            continue
        with problems.of(name):
            check_case_id(name, case.images[0] if case.images else dataset.root)
        cases[name] = case
    found = (*dataset.problems, *problems.found)
    return replace(dataset, cases=tuple(cases.values()), problems=found)


def _with_radiograph_columns(case: CaseFiles) -> CaseFiles:
    """The case with what its first image says of itself, where that is a radiograph in DICOM."""
    path = case.images[0]
    if path.name.lower().endswith(NOT_DICOM):
        return case
    with suppress(LesionsegError):  # reading the case says what is wrong with it
        fetch_radiograph(path)
        file = radiograph_file(path)
        if file is not None:
            return replace(case, columns={**radiograph_columns(file), **case.columns})
    return case


def _warn_of_shared_groups(cases: Sequence[CaseFiles]) -> None:
    held_out = {c.group for c in cases if c.role in ("test", "external")}
    shared = sorted(held_out & {c.group for c in cases if c.role not in ("test", "external")})
    if shared:
        logger.warning(
            "%d groups have cases for training and for testing: test scores would be optimistic.",
            len(shared),
        )


def _merged(dataset: Dataset) -> Dataset:
    return replace(dataset, labels=dict(UNION), merged_values=tuple(dataset.labels), regions=())
