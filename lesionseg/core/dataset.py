"""Types `Dataset`, `Case`, `CaseFiles`, `Reference`; patients (groups) guessed from case ids.

A case is one visit of one patient.
"""

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lesionseg.core.arrays import Flags, Numbers
from lesionseg.core.finding import Finding, errors_among
from lesionseg.core.geometry import Geometry, Volume
from lesionseg.core.labels import Labels
from lesionseg.errors import ConfigError, DatasetError, GeometryError, count

logger = logging.getLogger(__name__)

Role = Literal["train", "validation", "test", "external"]
# The role in scores if the role of the cases was not stated. A dataset cannot state it.
UNKNOWN_ROLE = "unknown"
# instead of a number of patients if it equals the number of cases, because the dataset may then
# state no patients
EACH_IS_A_PATIENT = "each counted as one patient"
# the subject in a BIDS name such as sub-01_ses-2_T1w, at the beginning or after "_"
_BIDS_SUBJECT = re.compile(r"(?:^|_)(sub-[A-Za-z0-9]+)")
_VISIT = re.compile(r"(.+)[_-]\d{1,2}")  # an id that ends in a short number
_VISIT_OR_WHOLE = re.compile(r"(.+?)([_-]\d{1,2})?$")  # any id, without such a number
_MAX_VISITS = 8  # of a patient, on average; ids with the same prefix
_SIDE = re.compile(r"(.*[^_.-])[_.-]?([LR])")  # an id that ends in L or R, for left and right


@dataclass(frozen=True)
class CaseFiles:
    """The files of a case, and the metadata that its dataset states.

    Attributes:
        case: Id of the case.
        images: One file per channel, except for the channels in `missing`. A picture in colour is
            a single file with three channels.
        reference: Label mask or instance mask. None if only `annotations` state the lesions, or if
            the case has no reference.
        group: Id of the patient as the dataset states it. Empty if it states none. `patient` is
            never empty.
        role: Role of the case. None if the dataset states none.
        fold: Number of the fold. None if the dataset states none.
        annotations: Lesions as a table states them (COCO, boxes), or the key `instances` for an
            instance mask. Empty for a label mask and without a reference.
        columns: All further columns of the manifest, for subgroups.
        annotated: Names of the labels that a reader looked for in this case. Empty means all
            labels of the dataset.
        missing: Indices of the channels without a file.
    """

    case: str
    images: tuple[Path, ...]
    reference: Path | None = None
    group: str = ""
    role: Role | None = None
    fold: int | None = None
    annotations: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    annotated: tuple[str, ...] = ()
    missing: tuple[int, ...] = ()

    @property
    def patient(self) -> str:
        """The id of the patient. If the dataset states none, the case id is used instead."""
        return self.group or self.case

    @property
    def is_labelled(self) -> bool:
        """True if the case has a reference, even a reference without lesions."""
        return self.reference is not None or bool(self.annotations)

    @property
    def pixel_mm(self) -> float | None:
        """Pixel size in millimetres from the column `pixel_mm` of the manifest.

        The size is used for images whose files state no pixel size: PNG, JPEG, BMP and TIFF images,
        and some DICOM radiographs. None if the column is absent or empty. Raise `DatasetError` for
        a cell that is not a positive finite number.
        """
        text = self.columns.get("pixel_mm", "")
        try:
            size = float(text) if text else None
        except ValueError:
            size = math.nan  # refused below
        if size is not None and not 0 < size < math.inf:
            raise DatasetError(
                f"pixel_mm of {self.case!r} is {text}. Write the width of a pixel in millimetres, "
                "such as 0.143, or leave it empty."
            )
        return size


@dataclass(frozen=True, eq=False)
class AnnotatedBoxes:
    """The lesion boxes of a table, `[n, 2·dims]`, before they are clipped to the image.

    `labels` has one label per box.
    """

    boxes: Numbers
    labels: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Reference:
    """The ground truth of a case on the image's grid. A lesion-free case has zeros and no boxes.

    Attributes:
        geometry: Grid of the image.
        labels: `[*spatial]` integer, 0 for background, otherwise the label's value in the file.
            None if the lesions have only boxes.
        instances: `[*spatial]` int32, lesion ids 1 to n. None if the lesions are the connected
            components of `labels` (`ops.components.lesions_of`).
        instance_labels: The label of each lesion id, `instance_labels[id - 1]`.
        boxes: `[n, 2·dims]` float32 (starts, stops; half-open voxels) as the dataset gives them,
            clipped to the image. None if they follow from the masks.
        box_labels: The label of each box.
        ignore: `[*spatial]` bool, voxels that are neither learned nor scored. None if there are
            none.
        annotated: True for each label value that a reader looked for. A value that is not a key
            counts as looked for, so empty means all labels. A label with False is not marked, so
            its lesions may be among the background.
        annotated_boxes: The boxes of a table before clipping. None if the lesions are not from a
            table.

    Raises:
        GeometryError: If `labels`, `instances` or `ignore` has another shape than the grid.
    """

    geometry: Geometry
    labels: NDArray[np.integer[Any]] | None = None
    instances: NDArray[np.int32] | None = None
    instance_labels: tuple[int, ...] = ()
    boxes: NDArray[np.float32] | None = None
    box_labels: tuple[int, ...] = ()
    ignore: Flags | None = None
    annotated: Mapping[int, bool] = field(default_factory=dict)
    annotated_boxes: AnnotatedBoxes | None = None

    def __post_init__(self) -> None:
        """Check that the arrays that exist have the shape of the grid."""
        for name in ("labels", "instances", "ignore"):
            array = getattr(self, name)
            if array is not None and array.shape != self.geometry.shape:
                shapes = f"{array.shape}, not {self.geometry.shape}"
                raise GeometryError(f"The reference's {name} do not fit its grid: {shapes}.")

    def mask(self) -> Flags | None:
        """Return a boolean mask `[*spatial]` of all lesions; None if lesions have only boxes."""
        # an instance mask, if there is one, contains all lesions
        marked = self.labels if self.instances is None else self.instances
        return None if marked is None else np.asarray(marked > 0)

    @property
    def unannotated(self) -> tuple[int, ...]:
        """The label values that no reader looked for in this case."""
        return tuple(label for label, looked_for in self.annotated.items() if not looked_for)


@dataclass(frozen=True, eq=False)
class Case:
    """One visit of one patient in memory: image `[C, *spatial]` float32 and optional reference."""

    case: str
    image: Volume
    reference: Reference | None = None
    group: str = ""


@dataclass(frozen=True)
class Dataset:
    """The content of a data folder, in any layout.

    Attributes:
        name: Name of the dataset.
        root: The data folder.
        layout: Name of the layout.
        dims: Number of spatial axes, 2 or 3.
        channel_names: Names of the image channels, in order.
        labels: The lesion labels.
        cases: The cases.
        may_lack: True if cases may lack channels. Otherwise a missing channel is an error.
        findings: Errors and oddities in the list of cases, the folder and its tables.
        split_file: A file in the folder with the training and validation cases.
        nan_background: True if NaN voxels of images and masks are background. Otherwise they are
            an error.
        grid_of_image: True if a file with the shape and spacing of the case's first image is on
            that image's grid, even if origin or direction in its header differ.
        lesions_are_boxes: True if the dataset states lesions as boxes without outlines, in at
            least one case.
    """

    name: str
    root: Path
    layout: str
    dims: int
    channel_names: tuple[str, ...]
    labels: Labels
    cases: tuple[CaseFiles, ...]
    may_lack: bool = False
    findings: tuple[Finding, ...] = ()
    split_file: Path | None = None
    nan_background: bool = False
    grid_of_image: bool = False
    lesions_are_boxes: bool = False

    @property
    def errors(self) -> list[Finding]:
        """The findings with the severity `error`, which make a case or the dataset unusable."""
        return errors_among(self.findings)

    @property
    def is_colour(self) -> bool:
        """True if each case is one colour image, whose three channels are red, green and blue.

        A dataset without cases counts as colour if it has three channels and two spatial axes.
        """
        has_three_channels = self.dims == 2 and len(self.channel_names) == 3
        return has_three_channels and all(
            len(case.images) == 1 and not case.missing for case in self.cases
        )


def find_likely_visits(cases: Sequence[CaseFiles], *, setting: str = "data.group") -> list[Finding]:
    """Return a warning if case ids such as P08_0 and P08_1 look like scans of one patient.

    If the dataset does not state the patients, scans of one patient may be in both training and
    validation. The prefix of an id is the text before a short number at its end. The warning is
    given if all of this is true:

    - At least half of the ids have the same prefix as another id.
    - A prefix of several ids has at most eight ids on average. With more, it is probably the name
      of a study or a site.
    - There are at least two prefixes.

    Cases whose group the dataset states are left out.

    The message suggests a pattern that matches every id: `_VISIT`, or `_VISIT_OR_WHOLE` if some
    ids do not end in a short number.

    Args:
        cases: The cases of a dataset.
        setting: The name of the setting for groups in the message.

    Returns:
        One finding with two of the ids, or an empty list.
    """
    # a group that equals the case id states no patient
    unstated = [case for case in cases if case.group in ("", case.case)]
    members: dict[str, list[str]] = {}  # case ids by prefix
    for case in unstated:
        match = _VISIT.fullmatch(case.case)
        if match:
            members.setdefault(match[1], []).append(case.case)
    ids_of_shared_prefix = {prefix: ids for prefix, ids in members.items() if len(ids) > 1}
    n_sharing = sum(map(len, ids_of_shared_prefix.values()))
    are_most_cases = 2 * n_sharing >= len(unstated)
    are_few_per_prefix = n_sharing <= _MAX_VISITS * len(ids_of_shared_prefix)
    if len(members) < 2 or not are_most_cases or not are_few_per_prefix:
        return []
    first, second = sorted(next(iter(ids_of_shared_prefix.values())))[:2]
    are_all_numbered = all(_VISIT.fullmatch(case.case) for case in cases)
    pattern = (_VISIT if are_all_numbered else _VISIT_OR_WHOLE).pattern
    text = (
        f"Case names such as {first} and {second} look like scans of one patient, but each case "
        f"counts as a patient. If they are, set {setting}='{pattern}'. Otherwise a patient "
        "may be in both training and validation, and intervals are too narrow."
    )
    return [Finding("names", text)]


def assign_groups(
    cases: Sequence[CaseFiles], pattern: str | None, *, setting: str = "data.group"
) -> tuple[CaseFiles, ...]:
    """Assign each case to its group (patient), so that a split or an interval keeps it together.

    With a `pattern`, the group is the text that the first capture group matches in the case id. If
    the pattern has no capture group, it is the entire match. Without a pattern, the group is the
    first of these that exists:

    1. the group that the dataset states
    2. the BIDS subject `sub-…` in the id
    3. the common part of two ids that differ only in an L or R at the end (left and right side of
       the body), if the dataset states no group for these two cases; this is logged
    4. the id itself

    Args:
        cases: The cases of a dataset.
        pattern: Regular expression that is searched in each case id, or None.
        setting: The name of the pattern in error messages.

    Returns:
        The cases with their groups, in the same order.

    Raises:
        ConfigError: If the pattern is not a regular expression.
        DatasetError: If the pattern does not match a case id, or the group would be empty.
    """
    if pattern is not None:
        groups = _match_groups([case.case for case in cases], pattern, setting)
        return tuple(replace(case, group=groups[case.case]) for case in cases)
    groups = {case.case: case.group for case in cases}
    without_group = {case for case, group in groups.items() if not group}
    n_sides = 0
    for case in without_group:
        groups[case] = case
        subject = _BIDS_SUBJECT.search(case)
        side = _SIDE.fullmatch(case)  # such as P12_L
        other_side = case[:-1] + ("R" if case.endswith("L") else "L")  # such as P12_R
        if subject is not None:
            groups[case] = subject[1]
        elif side is not None and other_side in without_group:
            groups[case] = side[1]
            n_sides += 1
    if n_sides:
        paired = f"{count(n_sides, 'case')}, {count(n_sides // 2, 'patient')}"
        text = "Case names ending in L and R were paired: %s. To change this, set %s."
        logger.info(text, paired, setting)
    return tuple(replace(case, group=groups[case.case]) for case in cases)


def _match_groups(cases: Iterable[str], pattern: str, setting: str) -> dict[str, str]:
    """Return the group of each case id by a pattern of the user, for `assign_groups`.

    The group is the text of the first capture group of the pattern or, if it has no capture group,
    the entire match.

    Args:
        cases: The case ids.
        pattern: Regular expression that is searched in each case id.
        setting: The name of the pattern in error messages.

    Raises:
        ConfigError: If the pattern is not a regular expression.
        DatasetError: If the pattern does not match a case id, or the group would be empty.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{setting}={pattern} is not a regular expression: {error}.") from error
    groups: dict[str, str] = {}
    for case in cases:
        match = compiled.search(case)
        group = None
        if match is not None:
            group = match[1] if compiled.groups else match[0]
        if not group:
            raise DatasetError(
                f"{setting}={pattern} does not match the case {case!r}, or its capture group is "
                "empty there. Give a pattern that finds a group in every case id."
            )
        groups[case] = group
    return groups
