"""Average precision of boxes at one or more IoUs, as COCO defines it (Lin et al. 2014).

In each case and label, candidates are matched by descending score. Each takes the free lesion
with the largest IoU of both bounding boxes, if that IoU is large enough. Such a candidate is a true
positive, every other one a false positive. The candidates of all cases are then sorted by score.
Average precision is the mean, over the 101 recalls 0, 0.01, … 1, of the highest precision at that
recall or a higher one. The rules for ties are those of pycocotools: candidates with equal scores
keep their order, and of several lesions with the same IoU the last one is taken.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from lesionseg.core import Lesions
from lesionseg.evaluation.intervals import Statistic, Weights, divide
from lesionseg.ops.boxes import box_iou

MAX_PER_CASE = 100  # candidates of a label and case that take part, as in COCO
IOUS = tuple(k / 20 for k in range(2, 20))  # 0.1, 0.15, … 0.95
RECALLS = np.linspace(0, 1, 101)
_AT_MOST = 1 - 1e-10  # rounding must not exclude equal boxes
_TINY = np.spacing(1)  # added to the denominator of the precision, as in pycocotools
_ROUNDING = 1e-9  # tolerance of the bounds of a range of IoUs
_MAX_PAIRS = 1_000_000  # pairs that are compared at once, which bounds the memory

# the summary numbers of COCO and of two challenges, as ranges of IoU
RANGES: Mapping[str, tuple[float, float]] = {
    "ap_40": (0.4, 0.4),
    "ap_50": (0.5, 0.5),
    "ap_40_75": (0.4, 0.75),
    "ap_50_95": (0.5, 0.95),
}
RSNA = "ap_40_75"  # the range of the RSNA Pneumonia Detection Challenge


@dataclass(frozen=True, eq=False)
class BoxHits:
    """The candidates of one case that take part, and the IoUs at which they are true positives.

    Attributes:
        label: Label of each candidate `[n]`.
        score: Score of each candidate `[n]`, descending within a label.
        hit: True at the `IOUS` at which the candidate takes a lesion `[ious, n]`.
        accepted: True for candidates `[n]` accepted at the operating point.
        left_out: By label, the number of candidates beyond `MAX_PER_CASE`.
        candidate: Row of each candidate `[n]`.
    """

    label: NDArray[np.int64]
    score: NDArray[np.float64]
    hit: NDArray[np.bool_]
    accepted: NDArray[np.bool_]
    candidate: NDArray[np.int64]
    left_out: Mapping[int, int] = field(default_factory=dict)

    def accept(self, accepted: NDArray[np.bool_]) -> "BoxHits":
        """Return the same hits for other accepted candidates, flagged by row."""
        return replace(self, accepted=accepted[self.candidate])

    def of_label(self, label: int) -> "BoxHits":
        """Return the candidates of one label."""
        own = self.label == label
        return BoxHits(
            label=self.label[own],
            score=self.score[own],
            hit=self.hit[:, own],
            accepted=self.accepted[own],
            candidate=self.candidate[own],
            left_out={key: n for key, n in self.left_out.items() if key == label},
        )


NO_HITS = BoxHits(
    label=np.zeros(0, dtype=np.int64),
    score=np.zeros(0),
    hit=np.zeros((len(IOUS), 0), dtype=np.bool_),
    accepted=np.zeros(0, dtype=np.bool_),
    candidate=np.zeros(0, dtype=np.int64),
)


@dataclass(frozen=True, eq=False)
class BoxPairs:
    """The pairs of a candidate and a lesion of the same label whose bounding boxes overlap.

    `candidate` and `lesion` are rows, and `iou` is the IoU of both boxes; all arrays `[pairs]`.
    """

    candidate: NDArray[np.int64]
    lesion: NDArray[np.int64]
    iou: NDArray[np.float64]

    def best_of_lesions(self, accepted: NDArray[np.bool_], n_lesions: int) -> NDArray[np.float64]:
        """Return the largest IoU `[n_lesions]` of each lesion and an accepted candidate, or 0."""
        best = np.zeros(n_lesions)
        counted = accepted[self.candidate]
        np.maximum.at(best, self.lesion[counted], self.iou[counted])
        return best


def pair_boxes(candidates: Lesions, lesions: Lesions) -> BoxPairs:
    """Find the pairs of one label whose bounding boxes overlap, separately for each label."""
    rows: list[NDArray[np.int64]] = []
    columns: list[NDArray[np.int64]] = []
    ious: list[NDArray[np.float64]] = []
    for label in np.intersect1d(candidates.labels, lesions.labels).tolist():
        all_rows = np.flatnonzero(candidates.labels == label)
        column = np.flatnonzero(lesions.labels == label)
        step = max(1, _MAX_PAIRS // len(column))
        for start in range(0, len(all_rows), step):
            row = all_rows[start : start + step]
            iou = box_iou(
                torch.from_numpy(candidates.boxes[row]), torch.from_numpy(lesions.boxes[column])
            ).numpy()
            one, other = np.nonzero(iou > 0)
            rows.append(row[one])
            columns.append(column[other])
            ious.append(iou[one, other])
    none = np.zeros(0, dtype=np.int64)
    return BoxPairs(
        candidate=np.concatenate([none, *rows]),
        lesion=np.concatenate([none, *columns]),
        iou=np.concatenate([np.zeros(0), *ious]),
    )


def find_hits(
    candidates: Lesions,
    pairs: BoxPairs,
    scores: NDArray[np.float64],
    ignored: NDArray[np.bool_],
) -> BoxHits:
    """Decide at each of `IOUS` which candidates of a case are true positives.

    Args:
        candidates: The candidates.
        pairs: The result of `pair_boxes`.
        scores: Score of each candidate `[candidates]`.
        ignored: True for candidates that do not count, because they are located in an ignored
            region.

    Returns:
        The candidates that take part, by label and then by descending score.
    """
    counted = np.flatnonzero(~ignored)
    kept: list[NDArray[np.int64]] = []
    left_out: dict[int, int] = {}
    for label in np.unique(candidates.labels[counted]).tolist():
        own = counted[candidates.labels[counted] == label]
        own = own[np.argsort(-scores[own], kind="stable")]
        kept.append(own[:MAX_PER_CASE])
        if len(own) > MAX_PER_CASE:
            left_out[label] = len(own) - MAX_PER_CASE
    row = np.concatenate([np.zeros(0, dtype=np.int64), *kept])
    return BoxHits(
        label=candidates.labels[row],
        score=scores[row],
        hit=_take_lesions(row, pairs),
        accepted=np.ones(len(row), dtype=np.bool_),
        candidate=row,
        left_out=left_out,
    )


def _take_lesions(row: NDArray[np.int64], pairs: BoxPairs) -> NDArray[np.bool_]:
    """Let the candidates in `row` take lesions in turn. Return who takes one, `[ious, row]`.

    The matching is repeated for each of `IOUS`, so `taken` has one row per IoU.
    """
    least = np.minimum(IOUS, _AT_MOST)
    hit = np.zeros((len(IOUS), len(row)), dtype=np.bool_)
    taken = np.zeros((len(IOUS), int(pairs.lesion.max(initial=-1)) + 1), dtype=np.bool_)
    order = np.lexsort((pairs.lesion, pairs.candidate))
    starts = np.searchsorted(pairs.candidate[order], row, side="left")
    stops = np.searchsorted(pairs.candidate[order], row, side="right")
    every = np.arange(len(IOUS))
    for place, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        own = order[start:stop]  # the pairs of this candidate
        if not len(own):
            continue
        lesions = pairs.lesion[own]
        iou_if_free = np.where(taken[:, lesions], -1.0, pairs.iou[own])
        # the last one of equal IoUs, because `argmax` returns the first one
        best = len(own) - 1 - np.argmax(iou_if_free[:, ::-1], axis=1)
        takes = iou_if_free[every, best] >= least
        taken[every[takes], lesions[best[takes]]] = True
        hit[:, place] = takes
    return hit


def box_average_precision(
    hits: Sequence[BoxHits],
    lesion_labels: Sequence[Sequence[int]],
    case_group: NDArray[np.int64],
    n_groups: int,
) -> Statistic:
    """Return a statistic: the mean over labels of the average precision at each of `IOUS`.

    After these come the means over the `RANGES`. Labels without a lesion are left out of the mean.

    Args:
        hits: The candidates of each case.
        lesion_labels: The labels of the lesions of each case.
        case_group: Group of each case `[cases]`.
        n_groups: Number of groups.
    """

    def rank_candidates(
        label: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
        """Return group and hits of a label's candidates by rank, and the lesions of each group."""
        counts = [sum(one == label for one in own) for own in lesion_labels]
        lesions = np.bincount(case_group, counts, n_groups).astype(np.float64)
        of_label = [case.of_label(label) for case in hits]
        sizes = [len(case.score) for case in of_label]
        # the empty first parts keep the shapes if there are no cases
        score = np.concatenate([np.zeros(0), *(case.score for case in of_label)])
        order = np.argsort(-score, kind="stable")
        group = np.repeat(case_group, sizes)[order]
        hit = np.concatenate([NO_HITS.hit, *(case.hit for case in of_label)], axis=1)[:, order]
        return group, hit, lesions

    labels = sorted({label for own in lesion_labels for label in own})
    parts = [rank_candidates(label) for label in labels]

    def statistic(weights: Weights) -> NDArray[np.float64]:
        """Return the average precisions `[replicates, ious]`, then the means over `RANGES`."""
        by_label = [_precision_of_label(weights, *part) for part in parts]
        if not by_label:
            return np.full((len(weights), len(IOUS) + len(RANGES)), np.nan)
        known = ~np.isnan(by_label)
        curve = divide(np.nansum(by_label, axis=0), known.sum(axis=0))
        means = [curve[:, _within(low, high)].mean(axis=1) for low, high in RANGES.values()]
        return np.column_stack([curve, *means])

    return statistic


def _within(low: float, high: float) -> NDArray[np.bool_]:
    """Flag the `IOUS` from `low` to `high`, both included."""
    ious = np.array(IOUS)
    return (ious > low - _ROUNDING) & (ious < high + _ROUNDING)


def _precision_of_label(
    weights: Weights,
    group: NDArray[np.int64],
    hit: NDArray[np.bool_],
    lesions: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the average precision of a label `[replicates, ious]`; NaN without a lesion.

    Args:
        weights: How often each group was drawn `[replicates, groups]`.
        group: Group of each candidate `[n]`, in the order of all scores.
        hit: True positives `[ious, n]`.
        lesions: Number of lesions of each group `[groups]`.
    """
    n_lesions = weights @ lesions
    n_seen = np.cumsum(np.take(weights, group, axis=1), axis=1, dtype=np.float64)
    found = np.full((len(weights), len(IOUS)), np.nan)
    for k, hits in enumerate(hit):
        # recall rises only at true positives, and precision has its peaks there
        at = np.flatnonzero(hits)
        n_true = np.cumsum(np.take(weights, group[at], axis=1), axis=1, dtype=np.float64)
        precision = n_true / (n_seen[:, at] + _TINY)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        precision = np.pad(precision, ((0, 0), (0, 1)))  # 0 above the highest recall
        recall = divide(n_true, np.broadcast_to(n_lesions[:, None], n_true.shape))
        for row in np.flatnonzero(n_lesions > 0):
            place = np.searchsorted(recall[row], RECALLS, side="left")
            found[row, k] = precision[row, place].mean()
    return found


def rsna_of_case(hits: BoxHits, n_lesions: int) -> float | None:
    """Compute the score of a case by the rule of the RSNA Pneumonia Detection Challenge.

    It is the mean over the IoUs 0.4 to 0.75 of TP / (TP + FP + FN), for the accepted candidates.
    Return None for a case without a lesion and without an accepted candidate.
    """
    n_accepted = int(hits.accepted.sum())
    if n_accepted == 0 and n_lesions == 0:
        return None
    low, high = RANGES[RSNA]
    n_true = hits.hit[_within(low, high)][:, hits.accepted].sum(axis=1)
    n_all = n_accepted + n_lesions - n_true  # TP + FP + FN, at each IoU
    return float((n_true / n_all).mean())
