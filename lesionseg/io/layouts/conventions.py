"""A dataset folder in any of the conventions we know, recognised by what lies in it."""

import logging
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path

from lesionseg.core import UNION, CaseFiles, Dataset
from lesionseg.errors import ConfigError, DatasetError, LesionsegError, one_of
from lesionseg.io.case_ids import check_case_id
from lesionseg.io.dicom.headers import SUFFIXES as DICOM
from lesionseg.io.dicom.radiograph import radiograph_columns
from lesionseg.io.dicom.series import radiograph_file
from lesionseg.io.layouts.bids import read_bids, recognises_bids
from lesionseg.io.layouts.case_problems import Problems, refuse_problems
from lesionseg.io.layouts.coco import read_coco, recognises_coco
from lesionseg.io.layouts.datalist import read_datalist, recognises_datalist
from lesionseg.io.layouts.luna16 import read_luna16, recognises_luna16
from lesionseg.io.layouts.manifest import read_manifest, recognises_manifest
from lesionseg.io.layouts.nndetection import read_nndetection, recognises_nndetection
from lesionseg.io.layouts.nnunet import read_msd, read_nnunet, recognises_msd, recognises_nnunet
from lesionseg.io.volumes import SUFFIXES

logger = logging.getLogger(__name__)

NOT_DICOM = tuple(suffix for suffix in SUFFIXES if suffix not in DICOM)
_BIDS_SUBJECT = re.compile(r"(?:^|_)(sub-[A-Za-z0-9]+)")
_HALF = re.compile(r"(.*[^_.-])[_.-]?([LR])")


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
    may_lack: bool = False,
    lenient: bool = False,
) -> Dataset:
    """Read what a data folder holds, without opening more than one image's header.

    Radiographs in DICOM get the columns of `radiograph.radiograph_columns`. Raises `DatasetError`
    for a folder that is missing, not recognised or without cases. Another one names every case that
    is there twice, lacks a file, or says of itself what cannot be. Raises `ReadError` for
    unreadable tables.

    Args:
        root: the folder.
        group: a regular expression that finds the patient in a case id (see `assign_groups`).
        convention: names the layout instead of recognising it.
        merge_labels: makes all labels one, `{1: "lesion"}`.
        may_lack: takes cases without all of their channels (nnU-Net raw folders, manifests).
        lenient: leaves cases with faults in `Dataset.problems` instead.
    """
    layout = _choose(root, convention)
    dataset = _distinct(layout.read(root))
    if may_lack:
        problems = tuple(p for p in dataset.problems if not p.lacking)
        dataset = replace(dataset, may_lack=True, problems=problems)
    if not lenient:
        refuse_problems(dataset.problems, root)
    if not dataset.cases:
        raise DatasetError("The dataset has no case.", where=root)
    cases = tuple(_with_radiograph_columns(c) for c in assign_groups(dataset.cases, group))
    dataset = replace(dataset, cases=cases)
    _warn_of_shared_groups(dataset.cases)
    logger.info(
        "%s read as %s: %d cases of %d groups.",
        root,
        layout.name,
        len(dataset.cases),
        len({c.group for c in dataset.cases}),
    )
    partly = [case for case in cases if case.annotated]
    if partly:
        logger.info("In %d of them a reader did not look for all labels.", len(partly))
    if not merge_labels:
        return dataset
    if partly:
        raise DatasetError(
            f"Labels cannot be merged: in case {partly[0].case!r} some were not looked for.",
            where=root,
            seen=f"annotated: {';'.join(partly[0].annotated)}",
            expected="data.merge_labels=false, or cases in which all labels are annotated",
        )
    return replace(dataset, labels=dict(UNION), merged_values=tuple(dataset.labels), regions=())


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
    fitting = (c for c in known if (c.recognises(root) if name is None else c.name == name))
    chosen = next(fitting, None)
    if chosen is None:
        raise DatasetError(
            "The folder follows no convention known here.",
            where=root,
            seen=", ".join(sorted(p.name for p in root.iterdir())[:8]) or "an empty folder",
            expected="; ".join(f"{c.name}: {c.looks_for}" for c in known),
            remedy="Write a manifest.csv with the columns case, image and reference.",
        )
    return chosen


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
    listed = (*dataset.problems, *problems.listed)
    return replace(dataset, cases=tuple(cases.values()), problems=listed)


def _with_radiograph_columns(case: CaseFiles) -> CaseFiles:
    """The case with what its first image says of itself, where that is a radiograph in DICOM."""
    path = case.images[0]
    if path.name.lower().endswith(NOT_DICOM):
        return case
    with suppress(LesionsegError):  # reading the case says what is wrong with it
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


def assign_groups(
    cases: Sequence[CaseFiles], pattern: str | None, *, setting: str = "data.group"
) -> tuple[CaseFiles, ...]:
    """Give every case its group.

    With a `pattern` (regular expression searched in the case id) the group is its first bracket,
    or the whole match. Else it is the first of these that applies: what the dataset says (already
    in `case.group`), the BIDS subject `sub-…` in the id, the common part of two ids that differ
    only in a last L or R (two halves of one patient), the id itself. `setting` is what messages
    call the pattern. Raises `DatasetError` for a case that `pattern` does not fit, and
    `ConfigError` for one that is not a regular expression.
    """
    if pattern is not None:
        compiled = _compiled(pattern, setting)
        return tuple(replace(c, group=_by_pattern(c.case, compiled, setting)) for c in cases)
    halves = _halves([c.case for c in cases if not c.group], setting)
    subjects = {c.case: _BIDS_SUBJECT.search(c.case) for c in cases}
    by_name = {case: m[1] if m else halves.get(case, case) for case, m in subjects.items()}
    return tuple(replace(c, group=c.group or by_name[c.case]) for c in cases)


def _compiled(pattern: str, setting: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"The group pattern is not a regular expression: {error}.", where=setting, seen=pattern
        ) from error


def _by_pattern(case: str, pattern: re.Pattern[str], setting: str) -> str:
    match = pattern.search(case)
    group = "" if match is None else (match.group(1) if pattern.groups else match.group(0))
    if not group:
        raise DatasetError(
            f"The group pattern does not fit the case {case!r}.",
            where=setting,
            seen=pattern.pattern,
            remedy="Change the pattern so that it finds the patient in every case id.",
        )
    return group


def _halves(ids: Sequence[str], setting: str) -> dict[str, str]:
    """Group of each id whose twin, with L for R or R for L at its end, is there too."""
    present = set(ids)
    group_of = {
        case: match.group(1)
        for case in ids
        if (match := _HALF.fullmatch(case)) and case[:-1] + "LR"[case[-1] == "L"] in present
    }
    if group_of:
        logger.info(
            "%d cases differ only in a last L or R and are taken as halves of %d patients; "
            "%s=<regular expression> says otherwise.",
            len(group_of),
            len(set(group_of.values())),
            setting,
        )
    return group_of
