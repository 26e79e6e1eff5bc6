"""Several readers of a case: boxes merged by IoU, fewest readers (`min_readers`), ignored boxes.

The merged box is that of weighted boxes fusion with equal weights (Solovyev et al. 2021,
doi.org/10.1016/j.imavis.2021.104117, section 3).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lesionseg.core import CaseFiles, Dataset
from lesionseg.core.finding import Finding
from lesionseg.errors import count, join_names
from lesionseg.io.layouts.annotated_lesions import LESIONS_KEY, AnnotatedLesion, CaseLesions

IGNORED_BOXES = "ignored_boxes"  # kind of the note on boxes that too few readers marked
SAME_LESION_IOU = 0.5  # two boxes of one label that overlap at least as much are one lesion

Corners = tuple[float, ...]  # of a box: all starts, then all stops


def merge_readers(dataset: Dataset, min_readers: int | None) -> Dataset:
    """Merge the boxes that several readers drew in a case, so that each lesion has one box.

    Cases with one reader do not change. If the labels of the dataset are merged, all boxes get
    label 1 before, so that boxes of different labels can become one lesion.

    Args:
        dataset: The dataset.
        min_readers: The number of readers who must have marked a lesion. None: see
            `required_readers`.

    Returns:
        The dataset with merged boxes and, if boxes are ignored, a finding that counts them.
    """
    cases: list[CaseFiles] = []
    n_ignored: dict[str, int] = {}
    for files in dataset.cases:
        annotated = files.annotations.get(LESIONS_KEY, CaseLesions())
        if len(annotated.readers) > 1:
            if dataset.labels.merged:
                boxes = tuple(replace(box, label=1) for box in annotated.lesions)
                annotated = replace(annotated, lesions=boxes)
            merged = merge_case(annotated, min_readers)
            files = replace(files, annotations={LESIONS_KEY: merged})
            n_boxes = sum(box.is_ignored for box in merged.lesions)
            if n_boxes:
                n_ignored[files.case] = n_boxes
        cases.append(files)
    findings = list(dataset.findings)
    if n_ignored:
        ignored = count(sum(n_ignored.values()), "box", "boxes")
        text = (
            f"{ignored} in {count(len(n_ignored), 'case')} that too few readers marked "
            f"(min_readers): neither learned nor scored, in {join_names(n_ignored, maximum=5)}."
        )
        findings.append(Finding(IGNORED_BOXES, text, severity="note"))
    return replace(dataset, cases=tuple(cases), findings=tuple(findings))


def required_readers(n_readers: int, min_readers: int | None = None) -> int:
    """Return the number of readers who must have marked a lesion, so that it is not ignored.

    If `min_readers` is None, the number is two for three or more readers of the case, otherwise
    one. The number is never greater than the number of readers of the case.

    >>> [required_readers(n) for n in (1, 2, 3, 8)], required_readers(2, min_readers=3)
    ([1, 1, 2, 2], 2)
    """
    if min_readers is None:
        min_readers = 2 if n_readers >= 3 else 1
    return min(min_readers, n_readers)


def merge_case(annotated: CaseLesions, min_readers: int | None = None) -> CaseLesions:
    """Merge the boxes of several readers of one case.

    Boxes are added to lesions one by one. A box is added to the lesion of the same label whose mean
    box has the highest IoU with it, if this IoU reaches `SAME_LESION_IOU`. Otherwise it begins a
    new lesion. The boxes are sorted first, so that their order does not matter.

    Args:
        annotated: The boxes and readers of the case.
        min_readers: The number of readers who must have marked a lesion. None: two of three or
            more readers of the case, otherwise one (`required_readers`).

    Returns:
        The mean box of each lesion, without names of readers. A lesion that too few readers marked
        becomes an ignored region, because it is uncertain whether it is a lesion.
    """
    required = required_readers(len(annotated.readers), min_readers)
    merged: list[AnnotatedLesion] = []
    for label in sorted({box.label for box in annotated.lesions}):
        for boxes in _group_by_lesion([box for box in annotated.lesions if box.label == label]):
            is_ignored = len({box.reader for box in boxes}) < required
            merged.append(replace(boxes[0], box=_mean_box(boxes), reader="", is_ignored=is_ignored))
    return replace(annotated, lesions=tuple(merged), readers=())


def _group_by_lesion(boxes: Iterable[AnnotatedLesion]) -> list[list[AnnotatedLesion]]:
    """Group boxes of one label by lesion, by the rule of `merge_case`. Return a list per lesion."""
    lesions: list[list[AnnotatedLesion]] = []
    for box in sorted(boxes, key=lambda one: (one.box, one.reader)):
        overlaps = [_iou(box.box, _mean_box(lesion)) for lesion in lesions]
        highest = max(overlaps, default=0.0)
        if highest >= SAME_LESION_IOU:
            lesions[overlaps.index(highest)].append(box)
        else:
            lesions.append([box])
    return lesions


def _mean_box(boxes: Sequence[AnnotatedLesion]) -> Corners:
    """Return the box whose corner coordinates are the means over the boxes of one lesion."""
    values_of_corner = zip(*(box.box for box in boxes), strict=True)
    return tuple(sum(values) / len(boxes) for values in values_of_corner)


def _iou(one: Corners, other: Corners) -> float:
    """Compute the intersection over union of two boxes. It is 0 if both have no area.

    The IoU is computed without arrays, which would be slower for the few boxes of a case. The unit
    of the boxes does not matter, because a factor of an axis cancels.
    """
    dims = len(one) // 2  # a box has all starts, then all stops
    ends = zip(one[:dims], one[dims:], other[:dims], other[dims:], strict=True)
    intersection = volume = other_volume = 1.0
    for start, stop, other_start, other_stop in ends:
        intersection *= max(min(stop, other_stop) - max(start, other_start), 0.0)
        volume *= stop - start
        other_volume *= other_stop - other_start
    union = volume + other_volume - intersection
    return intersection / union if union > 0 else 0.0
