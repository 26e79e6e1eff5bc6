"""A dataset folder in any of the layouts we know, recognised by what lies in it."""

import logging
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path

from lesionseg.core import UNION, CaseFiles, Dataset
from lesionseg.errors import ConfigError, DatasetError, LesionsegError, one_of
from lesionseg.io.dicom.headers import SUFFIXES as DICOM
from lesionseg.io.dicom.radiograph import radiograph_columns, radiograph_file
from lesionseg.io.layouts.bids import read_bids, recognises_bids
from lesionseg.io.layouts.checks import find_ambiguous, find_problems, raise_problems
from lesionseg.io.layouts.coco import read_coco, recognises_coco
from lesionseg.io.layouts.datalist import read_datalist, recognises_datalist
from lesionseg.io.layouts.manifest import read_manifest, recognises_manifest
from lesionseg.io.layouts.nnunet import read_msd, read_nnunet, recognises_msd, recognises_nnunet
from lesionseg.io.volumes import SUFFIXES

logger = logging.getLogger(__name__)

NOT_DICOM = tuple(suffix for suffix in SUFFIXES if suffix not in DICOM)
ENTRY_POINTS = "lesionseg.layouts"
_BIDS_SUBJECT = re.compile(r"(?:^|_)(sub-[A-Za-z0-9]+)")
_HALF = re.compile(r"(.*[^_.-])[_.-]?([LR])")


@dataclass(frozen=True)
class Convention:
    """One way of laying out a dataset: its name, what it looks for, and who reads it.

    `read` lists cases and what is wrong with single entries (`Dataset.problems`); whether files
    and channels are there is checked for all layouts alike.
    """

    name: str
    looks_for: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path], Dataset]


# asked in this order: a manifest was written on purpose; MSD is nnU-Net without channel numbers
CONVENTIONS = (
    Convention("manifest", "manifest.csv", recognises_manifest, read_manifest),
    Convention("msd", "dataset.json and imagesTr/<case>.nii.gz", recognises_msd, read_msd),
    Convention(
        "datalist", "a JSON file with a list 'training'", recognises_datalist, read_datalist
    ),
    Convention("nnunet", "dataset.json and imagesTr/<case>_0000.*", recognises_nnunet, read_nnunet),
    Convention("coco", "annotations.json and images/", recognises_coco, read_coco),
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
    convention: str | None = None,
    merge_labels: bool = False,
    may_lack: bool = False,
    lenient: bool = False,
) -> Dataset:
    """Read what a data folder holds, without opening more than one image's header.

    Radiographs in DICOM get the columns of `radiograph_columns`. Raises `DatasetError` for a folder
    that is missing, not recognised or without cases. Another one names every case that is there
    twice, lacks a file, or says of itself what cannot be. Raises `ReadError` for unreadable tables.

    Args:
        root: the folder.
        group: a regular expression that finds the patient in a case id (see `assign_groups`).
        convention: names the layout instead of recognising it.
        merge_labels: makes all labels one, `{1: "lesion"}`.
        may_lack: takes cases without all of their channels (nnU-Net raw folders, manifests).
        lenient: leaves cases with faults in, and wrong entries in `Dataset.problems`.
    """
    layout = _choose(root, convention)
    dataset = replace(layout.read(root), may_lack=may_lack)
    problems = [*dataset.problems, *find_ambiguous(dataset)]
    if not lenient:
        raise_problems([*problems, *find_problems(dataset)], root)
    if not dataset.cases:
        raise DatasetError(f"{root}: the dataset has no case.")
    first = {case.case: case for case in reversed(dataset.cases)}
    single = [case for case in dataset.cases if first[case.case] is case]
    cases = tuple(_with_radiograph_columns(c) for c in assign_groups(single, group))
    dataset = replace(dataset, cases=cases, problems=tuple(problems))
    held_out = {c.group for c in cases if c.role in ("test", "external")}
    shared = held_out & {c.group for c in cases if c.role not in ("test", "external")}
    if shared:
        logger.warning(
            "%d groups have cases for training and for testing: test scores would be optimistic.",
            len(shared),
        )
    n_groups = len({c.group for c in cases})
    logger.info("%s read as %s: %d cases of %d groups.", root, layout.name, len(cases), n_groups)
    partly = [case for case in cases if case.annotated]
    if partly:
        logger.info("In %d of them a reader did not look for all labels.", len(partly))
    if not merge_labels:
        return dataset
    if partly:
        raise DatasetError(
            f"{root}: data.merge_labels=true needs all labels annotated in every case, but in "
            f"{partly[0].case!r} only {';'.join(partly[0].annotated)}."
        )
    return replace(dataset, labels=dict(UNION), merged_values=tuple(dataset.labels), regions=())


def _choose(root: Path, name: str | None) -> Convention:
    if not root.is_dir():
        raise DatasetError(f"{root}: the data folder does not exist.")
    known = conventions()
    if name is not None:
        one_of("data.convention", name, [c.name for c in known])
    fitting = (c for c in known if (c.recognises(root) if name is None else c.name == name))
    chosen = next(fitting, None)
    if chosen is None:
        expected = "; ".join(f"{c.name}: {c.looks_for}" for c in known)
        raise DatasetError(
            f"{root} follows no convention known here ({expected}). Write a manifest.csv with the "
            "columns case, image and reference."
        )
    return chosen


def _with_radiograph_columns(case: CaseFiles) -> CaseFiles:
    """The case with what its first image says of itself, where that is a radiograph in DICOM."""
    path = case.images[0]
    if path.name.lower().endswith(NOT_DICOM):
        return case
    with suppress(LesionsegError, OSError):  # reading the case says what is wrong with it
        file = radiograph_file(path)
        if file is not None:
            return replace(case, columns={**radiograph_columns(file), **case.columns})
    return case


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
        return tuple(replace(c, group=_by_pattern(c.case, pattern, setting)) for c in cases)
    ids = {case.case for case in cases if not case.group}
    halves = {
        case: match[1]
        for case in ids
        if (match := _HALF.fullmatch(case)) and case[:-1] + "LR"[case[-1] == "L"] in ids
    }
    if halves:
        logger.info(
            "%d cases differ only in a last L or R and are taken as halves of %d patients; "
            "%s=<regular expression> says otherwise.",
            len(halves),
            len(set(halves.values())),
            setting,
        )
    subjects = {c.case: _BIDS_SUBJECT.search(c.case) for c in cases}
    by_name = {case: m[1] if m else halves.get(case, case) for case, m in subjects.items()}
    return tuple(replace(c, group=c.group or by_name[c.case]) for c in cases)


def _by_pattern(case: str, pattern: str, setting: str) -> str:
    try:
        match = re.search(pattern, case)
    except re.error as error:
        raise ConfigError(f"{setting}={pattern} is not a regular expression: {error}.") from error
    group = "" if match is None else match[1] if match.re.groups else match[0]
    if not group:
        raise DatasetError(
            f"{setting}={pattern} finds no patient in the case {case!r}; it must fit every case id."
        )
    return group
