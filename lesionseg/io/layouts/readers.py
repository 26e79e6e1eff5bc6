"""Several readers of one case: merging their boxes, and measuring how well they agree.

The merged box is that of weighted boxes fusion with equal weights (Solovyev et al. 2021,
doi.org/10.1016/j.imavis.2021.104117, section 3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Dataset, ReaderAgreement
from lesionseg.io.layouts.box_table import TABLE, CaseBoxes, LesionBox

SAME_LESION_IOU = 0.5  # two boxes of one label that overlap at least as much are one lesion


@dataclass(frozen=True)
class _Cluster:
    """Boxes of one lesion: their mean, one of them, and their readers."""

    mean: NDArray[np.float64]
    first: LesionBox
    readers: frozenset[str]


def merge_readers(dataset: Dataset, min_readers: int | None) -> Dataset:
    """Merge the boxes that several readers drew, and measure the agreement of the readers.

    Cases with one reader do not change.

    Args:
        dataset: The dataset.
        min_readers: The number of readers who must have marked a lesion. None: see
            `required_readers`.

    Returns:
        The dataset with merged boxes and its `reader_agreement`.
    """
    tables = {}
    for files in dataset.cases:
        table = files.annotations.get(TABLE)
        if table is not None and len(table.readers) > 1:
            if dataset.labels.merged:
                boxes = tuple(replace(box, label=1) for box in table.boxes)
                table = replace(table, boxes=boxes)
            tables[files.case] = table
    if not tables:
        return dataset
    cases = []
    for files in dataset.cases:
        if files.case in tables:
            merged = merge_case(tables[files.case], min_readers)
            files = replace(files, annotations={**files.annotations, TABLE: merged})
        cases.append(files)
    names = dataset.labels.value_names
    agreement = measure_agreement(list(tables.values()), names, min_readers)
    return replace(dataset, cases=tuple(cases), reader_agreement=agreement)


def required_readers(n_readers: int, min_readers: int | None = None) -> int:
    """Return the number of readers who must have marked a lesion so that it is kept.

    By default two if three or more readers read the case, otherwise one. It is never more than
    the number of readers of the case.

    >>> [required_readers(n) for n in (1, 2, 3, 8)], required_readers(2, min_readers=3)
    ([1, 1, 2, 2], 2)
    """
    if min_readers is None:
        min_readers = 2 if n_readers >= 3 else 1
    return min(min_readers, n_readers)


def merge_case(table: CaseBoxes, min_readers: int | None = None) -> CaseBoxes:
    """Merge the boxes of several readers of one case.

    A box joins the lesion of its label whose mean box has the highest IoU with it, if this is at
    least `SAME_LESION_IOU`. Otherwise it begins a new lesion. The result does not depend on the
    order of the boxes.

    Args:
        table: The boxes and readers of the case.
        min_readers: See `required_readers`.

    Returns:
        The mean box of each lesion that enough readers marked. It has no outlines and no readers.
    """
    required = required_readers(len(table.readers), min_readers)
    boxes: list[LesionBox] = []
    for label in sorted({box.label for box in table.boxes}):
        for cluster in _cluster([box for box in table.boxes if box.label == label]):
            if len(cluster.readers) >= required:
                start, stop = np.split(cluster.mean, 2)
                where = cluster.first.where
                boxes.append(
                    LesionBox(label, tuple(start.tolist()), tuple(stop.tolist()), where=where)
                )
    return replace(table, boxes=tuple(boxes), readers=())


def _cluster(boxes: Sequence[LesionBox]) -> list[_Cluster]:
    """Divide the boxes of one label into lesions."""
    ordered = sorted(boxes, key=lambda box: (box.start, box.stop, box.reader))
    corners = _corners(ordered)
    means = np.empty_like(corners)
    members: list[list[LesionBox]] = []
    for box, own in zip(ordered, corners, strict=True):
        n_known = len(members)
        overlaps = _iou(own, means[:n_known])
        nearest = int(overlaps.argmax()) if n_known else 0
        if n_known and overlaps[nearest] >= SAME_LESION_IOU:
            n_before = len(members[nearest])
            means[nearest] += (own - means[nearest]) / (n_before + 1)
            members[nearest].append(box)
        else:
            means[n_known] = own
            members.append([box])
    return [
        _Cluster(_corners(own).mean(axis=0), own[0], frozenset(box.reader for box in own))
        for own in members
    ]


def _corners(boxes: Sequence[LesionBox]) -> NDArray[np.float64]:
    """Return the starts and stops `[n, 2·dims]` of boxes."""
    return np.array([(*box.start, *box.stop) for box in boxes], dtype=np.float64)


def _iou(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the IoU `[n]` of a box `[2·dims]` with other boxes `[n, 2·dims]`.

    Shares of the image and pixels give the same IoU, because a scaled axis cancels.
    """
    dims = len(box) // 2
    start = np.maximum(box[:dims], others[:, :dims])
    stop = np.minimum(box[dims:], others[:, dims:])
    shared = np.prod(np.maximum(stop - start, 0), axis=1)
    volume = np.prod(box[dims:] - box[:dims])
    volumes = np.prod(others[:, dims:] - others[:, :dims], axis=1)
    return np.asarray(shared / (volume + volumes - shared))


def measure_agreement(
    tables: Sequence[CaseBoxes], names: Mapping[int, str], min_readers: int | None = None
) -> tuple[ReaderAgreement, ...]:
    """Compare each reader with the merged boxes of the other readers of the same cases.

    A lesion of the other readers is found if the reader drew a box of its label with an IoU of at
    least `SAME_LESION_IOU`. Each box finds at most one lesion. The other boxes of the reader are
    false positives.

    Args:
        tables: The boxes of the cases that at least two readers read.
        names: The name of each label value.
        min_readers: The rule by which the boxes of the other readers are merged.

    Returns:
        One row per label and reader, in the order of labels, then of readers.
    """
    found: dict[tuple[int, str], list[int]] = {}
    n_cases: dict[str, int] = {}
    for table in tables:
        for reader in table.readers:
            n_cases[reader] = n_cases.get(reader, 0) + 1
            others = replace(
                table,
                boxes=tuple(box for box in table.boxes if box.reader != reader),
                readers=tuple(other for other in table.readers if other != reader),
            )
            reference = merge_case(others, min_readers).boxes
            own = [box for box in table.boxes if box.reader == reader]
            for label in {box.label for box in (*own, *reference)}:
                lesions = [box for box in reference if box.label == label]
                marks = [box for box in own if box.label == label]
                n_found = _count_pairs(lesions, marks)
                counts = found.setdefault((label, reader), [0, 0, 0])
                counts[0] += len(lesions)
                counts[1] += n_found
                counts[2] += len(marks) - n_found
    labels = sorted({label for label, _ in found})
    rows: list[ReaderAgreement] = []
    for label in labels:
        for reader in sorted(n_cases):
            n_lesions, n_found, n_false = found.get((label, reader), (0, 0, 0))
            name = names.get(label, str(label))
            rows.append(ReaderAgreement(name, reader, n_cases[reader], n_lesions, n_found, n_false))
    return tuple(rows)


def _count_pairs(lesions: Sequence[LesionBox], marks: Sequence[LesionBox]) -> int:
    """Count the pairs of lesion and box, the highest IoU first, each of them in one pair."""
    if not lesions or not marks:
        return 0
    corners = _corners(marks)
    pairs: list[tuple[float, int, int]] = []
    for row, lesion in enumerate(_corners(lesions)):
        overlaps = _iou(lesion, corners)
        for column in np.flatnonzero(overlaps >= SAME_LESION_IOU).tolist():
            pairs.append((-float(overlaps[column]), row, column))
    paired_lesions: set[int] = set()
    paired_marks: set[int] = set()
    for _, row, column in sorted(pairs):
        if row not in paired_lesions and column not in paired_marks:
            paired_lesions.add(row)
            paired_marks.add(column)
    return len(paired_lesions)
