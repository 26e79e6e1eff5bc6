"""Implausible references: inverted masks, box formats, repeated boxes; questions and limits.

Such a finding is not an error, because a lesion may fill an image. It is a question to the person
who prepared the data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lesionseg.core import AnnotatedBoxes, Dataset, Finding, Lesions, Reference
from lesionseg.core.arrays import Integers
from lesionseg.errors import count, join_names
from lesionseg.ops.boxes import overlapping_pairs
from lesionseg.ops.components import lesion_mask, lesions_of, present_values
from lesionseg.plan.box_outlines import count_box_outlines

# each kind of implausible reference, and the question to the user
QUESTIONS: Mapping[str, str] = {
    "mostly_lesion": "Lesions fill more than half of the image: is the mask inverted?",
    "touches_borders": "A lesion touches all borders of the image: is the mask inverted?",
    "full_width": "A lesion is as wide as the image.",
    "boxes_outside": "Boxes reach outside the image. They are clipped to it.",
    "box_corners": "Boxes may be corners (x, y, x, y) instead of sizes (x, y, width, height).",
    "box_duplicates": "Boxes occur twice, so the lesion counts twice.",
    "box_readers": "Boxes of one label overlap by more than 70 %: if several readers drew them, "
    "each lesion counts several times. Name the reader of each box in the table.",
    "empty_label": "No case has a lesion of these labels:",
}
MAX_SHARE = 0.5  # lesions that fill more than this share of the image give a finding
REPEATED_IOU = 0.7  # two boxes of a label that overlap more are probably one lesion
_ROUNDING_VOX = 1.0  # rounding may move a box this far outside the image
_EQUAL_VOX = 1e-3  # two boxes are equal if no corner differs by more
_MIN_CORNERS = 5  # if at least 5 boxes all fit as corners, it is hardly a coincidence


@dataclass(frozen=True)
class ReferenceStatistics:
    """The statistics of one reference that show whether it is plausible.

    Attributes:
        share: The fraction of the voxels that are lesion, without ignored voxels.
        touches_all: True if a lesion touches all borders of the image.
        is_wide: True if a lesion touches both borders of one of the two longest axes.
        n_boxes: Number of boxes in the table.
        n_outside: Number of boxes that reach outside the image.
        n_as_corners: Number of boxes that would be valid if their width and height were the
            second corner.
        n_equal: Number of boxes that repeat another box of their label.
        n_overlapping: Number of boxes that nearly repeat another box of their label.
        labels: Label values in the reference.
        n_outlines: Number of lesions whose outlines were tested; see `count_box_outlines`.
        n_box_outlines: Number of them that are filled rectangles or ellipses.
    """

    share: float = 0.0
    touches_all: bool = False
    is_wide: bool = False
    n_boxes: int = 0
    n_outside: int = 0
    n_as_corners: int = 0
    n_equal: int = 0
    n_overlapping: int = 0
    labels: tuple[int, ...] = ()
    n_outlines: int = 0
    n_box_outlines: int = 0


def _make_finding(kind: str, case: str, detail: str = "") -> Finding:
    """Return a finding, whose text is the question of its kind in `QUESTIONS` and a detail.

    Args:
        kind: A key of `QUESTIONS`.
        case: The id of the case. Empty for a finding about the dataset.
        detail: Text after the question. It begins with a space.
    """
    return Finding(kind, QUESTIONS[kind] + detail, case)


def reference_statistics(
    reference: Reference, lesions: Lesions | None = None
) -> ReferenceStatistics:
    """Compute the statistics of a reference that show whether it is plausible.

    The statistics are the share of lesion voxels among the annotated voxels, whether a lesion
    extends from border to border (along all axes, or along one of the two longest), the label
    values, how many outlines are boxes and, for a table of boxes, how many boxes are implausible.

    Args:
        reference: The reference of a case.
        lesions: Its lesions, if they are known already. None computes them.
    """
    if lesions is None:
        lesions = lesions_of(reference)
    shape = np.array(reference.geometry.shape)
    dims = len(shape)
    is_lesion = lesion_mask(reference)
    n_annotated = is_lesion.size
    if reference.ignore is not None:
        n_annotated = int(np.count_nonzero(~reference.ignore))
    start = lesions.boxes[:, :dims]
    stop = lesions.boxes[:, dims:]
    spans = (start <= 0) & (stop >= shape)  # `[n, dims]`: from border to border along the axis
    # a lesion rarely crosses the image along a long axis, but easily along a short one (few slices)
    longest_axes = np.argsort(-shape, kind="stable")[:2]  # the two longest
    # label values of the mask or, without a mask, of the boxes
    if reference.labels is not None:
        labels = {value for value in present_values(reference.labels) if value}  # without 0
    else:
        labels = set(reference.box_labels)
    outlines = count_box_outlines(reference, lesions)
    statistics = ReferenceStatistics(
        share=int(np.count_nonzero(is_lesion)) / n_annotated if n_annotated else 0.0,
        touches_all=bool(spans.all(axis=1).any()),
        is_wide=bool(spans[:, longest_axes].any()),
        labels=tuple(sorted(map(int, labels))),
        n_outlines=outlines.n_tested,
        n_box_outlines=outlines.n_boxes,
    )
    if reference.annotated_boxes is None or not len(reference.annotated_boxes.boxes):
        return statistics
    return _add_box_counts(statistics, reference.annotated_boxes, shape)


def _add_box_counts(
    statistics: ReferenceStatistics, annotated_boxes: AnnotatedBoxes, shape: Integers
) -> ReferenceStatistics:
    """Return the statistics, completed with the numbers of implausible boxes in the user's table.

    Only boxes of an image with two axes are tested for corners in the columns of width and height.

    Args:
        statistics: The statistics so far.
        annotated_boxes: The boxes of the table, at least one.
        shape: Shape of the image.
    """
    start, stop = np.split(annotated_boxes.boxes, 2, axis=1)
    is_outside = ((start < -_ROUNDING_VOX) | (stop > shape + _ROUNDING_VOX)).any(axis=1)
    # COCO's boxes are x, y, width, height. If the table has x, y, x, y instead, the sides that were
    # read are the second corner.
    corner = stop - start
    fits_as_corner = ((corner > start) & (corner <= shape + _ROUNDING_VOX)).all(axis=1)
    n_equal, n_overlapping = _count_repeated(annotated_boxes)
    return replace(
        statistics,
        n_boxes=len(annotated_boxes.boxes),
        n_outside=int(is_outside.sum()),
        n_as_corners=int(fits_as_corner.sum()) if len(shape) == 2 else 0,
        n_equal=n_equal,
        n_overlapping=n_overlapping,
    )


def _count_repeated(annotated_boxes: AnnotatedBoxes) -> tuple[int, int]:
    """Count the boxes that repeat an earlier box of the same label.

    Returns:
        The number of boxes that equal an earlier box, and the number of boxes that only nearly
        equal one: their IoU is above `REPEATED_IOU`.
    """
    boxes = np.asarray(annotated_boxes.boxes, float)
    labels = np.array(annotated_boxes.labels)
    tensor = torch.from_numpy(boxes)
    # all pairs of boxes of equal label, in both orders, also each box with itself
    rows, others, ious = overlapping_pairs(tensor, labels, tensor, labels)
    is_earlier = others < rows  # each pair once
    is_same = (np.abs(boxes[rows] - boxes[others]) <= _EQUAL_VOX).all(axis=1)
    equal = np.unique(rows[is_earlier & is_same])
    return len(equal), len(np.setdiff1d(rows[is_earlier & (ious > REPEATED_IOU)], equal))


def find_implausible(
    dataset: Dataset, statistics: Mapping[str, ReferenceStatistics]
) -> list[Finding]:
    """Return the findings about a dataset, then the findings about its cases.

    Args:
        dataset: The dataset.
        statistics: The statistics of each reference by case id.
    """
    return [*_dataset_findings(dataset, statistics), *_case_findings(statistics)]


def _dataset_findings(
    dataset: Dataset, statistics: Mapping[str, ReferenceStatistics]
) -> list[Finding]:
    """Return the findings about the format of COCO boxes and about labels without lesions.

    - `box_corners`: all boxes of the dataset would be valid as corners, and this is no coincidence.
    - `empty_label`: no case has a lesion of a label. This is not tested if labels are merged, or if
      the dataset has no lesions.
    """
    findings: list[Finding] = []
    n_boxes = sum(of_case.n_boxes for of_case in statistics.values())
    n_outside = sum(of_case.n_outside for of_case in statistics.values())
    n_corners = sum(of_case.n_as_corners for of_case in statistics.values())
    do_all_fit_as_corners = n_boxes > 0 and n_corners == n_boxes
    # boxes outside their image are wrong as sizes; many valid corners do not occur by chance
    is_no_coincidence = n_outside > 0 or n_boxes >= _MIN_CORNERS
    if do_all_fit_as_corners and is_no_coincidence and dataset.layout == "coco":
        detail = f" All {n_boxes} fit their images as corners."
        if n_outside:
            verb = "reaches" if n_outside == 1 else "reach"
            detail += f" Read as sizes, {n_outside} of them {verb} outside."
        findings.append(_make_finding("box_corners", case="", detail=detail))
    present = {label for of_case in statistics.values() for label in of_case.labels}
    if not present or dataset.labels.merged:
        return findings
    names = dataset.labels.mask_names
    absent = {label: name for label, name in names.items() if label not in present}
    if absent and dataset.layout == "coco":
        detail = f" {', '.join(map(repr, absent.values()))}. "
        if 1 in absent:  # the label of the category with the lowest id
            detail += (
                "Roboflow adds an empty category with the id 0. If this is it, remove it from the "
                "categories."
            )
        else:
            detail += "If no image can show them, remove them from the categories."
        findings.append(_make_finding("empty_label", case="", detail=detail))
    elif absent:
        detail = ", ".join(f"{name!r} (value {label})" for label, name in absent.items())
        findings.append(_make_finding("empty_label", case="", detail=f" {detail}."))
    return findings


def _case_findings(statistics: Mapping[str, ReferenceStatistics]) -> list[Finding]:
    """Return the findings about the masks and boxes of single cases.

    A case has at most one finding about the size of its lesions. It can also have one finding of
    each kind about boxes.
    """
    findings: list[Finding] = []
    for case, of_case in statistics.items():
        if of_case.share > MAX_SHARE:
            findings.append(
                _make_finding("mostly_lesion", case, f" They fill {100 * of_case.share:.3g} %.")
            )
        elif of_case.touches_all:
            findings.append(_make_finding("touches_borders", case))
        elif of_case.is_wide:
            findings.append(_make_finding("full_width", case))
        for kind, n in (
            ("boxes_outside", of_case.n_outside),
            ("box_duplicates", of_case.n_equal),
            ("box_readers", of_case.n_overlapping),
        ):
            if n:
                findings.append(_make_finding(kind, case, f" {n} of {of_case.n_boxes}."))
    return findings


def implausible_lines(findings: Sequence[Finding]) -> list[str]:
    """Return one line of text per kind of finding, for the log.

    A line consists of the question, the number and names of the cases, and the detail of the first
    case. For findings about the dataset, the different details follow the question.
    """
    by_kind: dict[str, list[Finding]] = {}
    for finding in findings:
        by_kind.setdefault(finding.kind, []).append(finding)
    lines: list[str] = []
    for kind, findings_of_kind in by_kind.items():
        line = QUESTIONS[kind]
        # a message is the question and the detail, see `_make_finding`
        details = [finding.message.removeprefix(line) for finding in findings_of_kind]
        cases = [finding.case for finding in findings_of_kind if finding.case]
        if cases:
            line += f" {count(len(cases), 'case')}: {join_names(cases)}"
            line += f" ({cases[0]}:{details[0]})" if details[0] else ""
        else:
            line += "".join(dict.fromkeys(details))
        lines.append(line)
    return lines


def has_no_background(statistics: Mapping[str, ReferenceStatistics]) -> bool:
    """Return True if lesions fill each reference that has lesions, so that nothing can be learned.

    The result is False for a dataset without lesions.

    >>> has_no_background({"a": ReferenceStatistics(share=1.0), "b": ReferenceStatistics()})
    True
    >>> has_no_background({"a": ReferenceStatistics(share=0.99)}), has_no_background({})
    (False, False)
    """
    shares = [of_case.share for of_case in statistics.values() if of_case.share > 0]
    return bool(shares) and min(shares) >= 1
