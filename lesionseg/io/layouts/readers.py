"""Several readers of one case: merging their boxes, and measuring how well they agree.

The merged box is that of weighted boxes fusion with equal weights (Solovyev et al. 2021,
doi.org/10.1016/j.imavis.2021.104117, section 3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lesionseg.core import CaseFiles, Dataset, ReaderAgreement
from lesionseg.core.finding import Finding
from lesionseg.errors import count, join_names
from lesionseg.io.layouts.stated_lesions import LESIONS, CaseLesions, StatedLesion

IGNORED_BOXES = "ignored_boxes"  # kind of the note on boxes that too few readers marked
SAME_LESION_IOU = 0.5  # two boxes of one label that overlap at least as much are one lesion


Corners = tuple[float, ...]  # of a box: all starts, then all stops


@dataclass
class _Cluster:
    """The boxes of one lesion: the sums of their corners, the first box, and their readers."""

    sums: list[float]
    first: StatedLesion
    readers: set[str]
    n_boxes: int = 1

    @property
    def mean(self) -> Corners:
        """The mean box."""
        return tuple(value / self.n_boxes for value in self.sums)

    def add(self, box: StatedLesion) -> None:
        """Add a box of the same lesion."""
        self.sums = [a + b for a, b in zip(self.sums, _corners(box), strict=True)]
        self.readers.add(box.reader)
        self.n_boxes += 1


def merge_readers(dataset: Dataset, min_readers: int | None) -> Dataset:
    """Merge the boxes that several readers drew, and measure the agreement of the readers.

    Cases with one reader do not change.

    Args:
        dataset: The dataset.
        min_readers: The number of readers who must have marked a lesion. None: see
            `required_readers`.

    Returns:
        The dataset with merged boxes and its `reader_agreement`. A note counts the boxes that are
        ignored.
    """
    several: list[CaseLesions] = []
    cases: list[CaseFiles] = []
    n_ignored: dict[str, int] = {}
    for files in dataset.cases:
        stated = files.annotations.get(LESIONS, CaseLesions())
        if len(stated.readers) > 1:
            if dataset.labels.merged:
                boxes = tuple(replace(box, label=1) for box in stated.lesions)
                stated = replace(stated, lesions=boxes)
            several.append(stated)
            merged = merge_case(stated, min_readers)
            files = replace(files, annotations={LESIONS: merged})
            n_boxes = sum(box.is_ignored for box in merged.lesions)
            if n_boxes:
                n_ignored[files.case] = n_boxes
        cases.append(files)
    if not several:
        return dataset
    agreement = measure_agreement(several, dataset.labels.value_names, min_readers)
    findings = (*dataset.findings, *_find_ignored(n_ignored))
    return replace(dataset, cases=tuple(cases), reader_agreement=agreement, findings=findings)


def _find_ignored(n_ignored: Mapping[str, int]) -> list[Finding]:
    """Return a note on the boxes that too few readers marked, from their number in each case."""
    if not n_ignored:
        return []
    boxes = count(sum(n_ignored.values()), "box", "boxes")
    text = f"{boxes} in {count(len(n_ignored), 'case')} that too few readers marked (min_readers): "
    text += f"neither learned nor scored, in {join_names(n_ignored, 5)}."
    return [Finding(IGNORED_BOXES, text, severity="note")]


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


def merge_case(stated: CaseLesions, min_readers: int | None = None) -> CaseLesions:
    """Merge the boxes of several readers of one case.

    A box joins the lesion of its label whose mean box has the highest IoU with it, if this is at
    least `SAME_LESION_IOU`. Otherwise it begins a new lesion. The result does not depend on the
    order of the boxes.

    Args:
        stated: The boxes and readers of the case.
        min_readers: See `required_readers`.

    Returns:
        The mean box of each lesion. A lesion that too few readers marked is ignored, because it is
        uncertain if it is one. No box has a reader.
    """
    required = required_readers(len(stated.readers), min_readers)
    boxes: list[StatedLesion] = []
    for label in sorted({box.label for box in stated.lesions}):
        for cluster in _cluster([box for box in stated.lesions if box.label == label]):
            dims = len(cluster.mean) // 2
            merged = replace(
                cluster.first,
                start=cluster.mean[:dims],
                stop=cluster.mean[dims:],
                reader="",
                is_ignored=len(cluster.readers) < required,
            )
            boxes.append(merged)
    return replace(stated, lesions=tuple(boxes), readers=())


def _cluster(boxes: Sequence[StatedLesion]) -> list[_Cluster]:
    """Divide the boxes of one label into lesions."""
    clusters: list[_Cluster] = []
    means: list[Corners] = []
    for box in sorted(boxes, key=lambda box: (box.start, box.stop, box.reader)):
        corners = _corners(box)
        overlaps = [_iou(corners, mean) for mean in means]
        highest = max(overlaps, default=0.0)
        if highest >= SAME_LESION_IOU:
            nearest = overlaps.index(highest)
            clusters[nearest].add(box)
            means[nearest] = clusters[nearest].mean
        else:
            clusters.append(_Cluster(list(corners), box, {box.reader}))
            means.append(corners)
    return clusters


def _corners(box: StatedLesion) -> Corners:
    """Return the starts and stops of a box."""
    return (*box.start, *box.stop)


def _iou(one: Corners, other: Corners) -> float:
    """Compute the IoU of two boxes. Arrays would be slower, because a case has few boxes.

    Shares of the image and pixels give the same IoU, because a scaled axis cancels.
    """
    dims = len(one) // 2
    shared = volume = other_volume = 1.0
    for axis in range(dims):
        start = one[axis]
        stop = one[dims + axis]
        other_start = other[axis]
        other_stop = other[dims + axis]
        side = min(stop, other_stop) - max(start, other_start)
        if side <= 0:
            return 0.0
        shared *= side
        volume *= stop - start
        other_volume *= other_stop - other_start
    return shared / (volume + other_volume - shared)


def measure_agreement(
    several: Sequence[CaseLesions], names: Mapping[int, str], min_readers: int | None = None
) -> tuple[ReaderAgreement, ...]:
    """Compare each reader with the merged boxes of the other readers of the same cases.

    A lesion of the other readers is found if the reader drew a box of its label with an IoU of at
    least `SAME_LESION_IOU`. Each box finds at most one lesion. The other boxes of the reader are
    false positives.

    Args:
        several: The boxes of the cases that at least two readers read.
        names: The name of each label value.
        min_readers: The rule by which the boxes of the other readers are merged.

    Returns:
        One row per label and reader, in the order of labels, then of readers.
    """
    found: dict[tuple[int, str], list[int]] = {}  # lesions, found lesions and false positives
    n_cases: dict[str, int] = {}
    for case in several:
        for reader in case.readers:
            n_cases[reader] = n_cases.get(reader, 0) + 1
            others = CaseLesions(
                tuple(box for box in case.lesions if box.reader != reader),
                tuple(other for other in case.readers if other != reader),
            )
            reference = [
                box for box in merge_case(others, min_readers).lesions if not box.is_ignored
            ]
            own = [box for box in case.lesions if box.reader == reader]
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


def _count_pairs(lesions: Sequence[StatedLesion], marks: Sequence[StatedLesion]) -> int:
    """Count the pairs of lesion and box, the highest IoU first, each of them in one pair."""
    corners = [_corners(mark) for mark in marks]
    pairs: list[tuple[float, int, int]] = []
    for row, lesion in enumerate(map(_corners, lesions)):
        for column, mark in enumerate(corners):
            overlap = _iou(lesion, mark)
            if overlap >= SAME_LESION_IOU:
                pairs.append((-overlap, row, column))
    paired_lesions: set[int] = set()
    paired_marks: set[int] = set()
    from_highest = sorted(pairs)  # because overlaps are negative
    for _, row, column in from_highest:
        if row not in paired_lesions and column not in paired_marks:
            paired_lesions.add(row)
            paired_marks.add(column)
    return len(paired_lesions)
