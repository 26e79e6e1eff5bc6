"""Average precision of boxes at one or more IoUs, as COCO defines it (Lin et al. 2014).

In each case and label, candidates are matched by descending score. Each takes the free lesion
with the largest IoU of both bounding boxes, if that IoU is large enough. Such a candidate is a true
positive, every other one a false positive. Ignored candidates, and those beyond `MAX_PER_CASE` of a
case and label, do not take part. The candidates of all cases are then sorted by score.
Average precision is the mean, over the 101 recalls 0, 0.01, … 1, of the highest precision at that
recall or a higher one. The rules for ties are those of pycocotools: candidates with equal scores
keep their order, and of several lesions with the same IoU the last one is taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from lesionseg.core import Lesions
from lesionseg.core.arrays import Flags, Integers, Numbers
from lesionseg.evaluation.curves import accumulate
from lesionseg.evaluation.intervals import GroupWeights, Statistic, divide
from lesionseg.evaluation.tables import Tables
from lesionseg.ops.boxes import overlapping_pairs

MAX_PER_CASE = 100  # candidates of a label and case that take part, as in COCO
IOUS = tuple(k / 20 for k in range(2, 20))  # 0.1, 0.15, … 0.95
NOT_COUNTED = -1  # the cell `box_hits` of a candidate beyond the limit
_BITS = 2 ** np.arange(len(IOUS))
RECALLS = np.linspace(0, 1, 101)
_TINY = np.spacing(1)  # added to the denominator of the precision, as in pycocotools

# the summary numbers of COCO and of two challenges, as ranges of IoU
RANGES: Mapping[str, tuple[float, float]] = {
    "box_ap_40": (0.4, 0.4),
    "box_ap_50": (0.5, 0.5),
    "box_ap_40_75": (0.4, 0.75),
    "box_ap_50_95": (0.5, 0.95),
}
RSNA = "box_ap_40_75"  # the range of the RSNA Pneumonia Detection Challenge


@dataclass(frozen=True, eq=False)
class BoxPairs:
    """The pairs of a candidate and a lesion of the same label whose bounding boxes overlap.

    `candidate` and `lesion` are rows, and `iou` is the IoU of both boxes; all arrays `[pairs]`. The
    pairs are sorted by candidate, then lesion.
    """

    candidate: Integers
    lesion: Integers
    iou: Numbers

    def best_of_lesions(self, accepted: Flags, n_lesions: int) -> Numbers:
        """Return the largest IoU `[n_lesions]` of each lesion and an accepted candidate, or 0."""
        best = np.zeros(n_lesions)
        counted = accepted[self.candidate]
        np.maximum.at(best, self.lesion[counted], self.iou[counted])
        return best


def pair_boxes(candidates: Lesions, lesions: Lesions) -> BoxPairs:
    """Find the pairs of a candidate and a lesion of the same label whose bounding boxes overlap."""
    boxes = torch.from_numpy(candidates.boxes)
    others = torch.from_numpy(lesions.boxes)
    return BoxPairs(*overlapping_pairs(boxes, candidates.labels, others, lesions.labels))


def encode_hits(
    candidates: Lesions,
    pairs: BoxPairs,
    scores: Numbers,
    ignored: Flags,
) -> list[int | None]:
    """Decide at each of `IOUS` which candidates of a case are true positives.

    The candidates of a label take lesions in the order of descending scores.

    Args:
        candidates: The candidates.
        pairs: The result of `pair_boxes`.
        scores: Score of each candidate `[candidates]`.
        ignored: True for candidates that do not count, because they are located in an ignored
            region.

    Returns:
        The cell `box_hits` of each candidate. Bit k is 1 if the candidate takes a lesion at
        `IOUS[k]`. It is −1 for a candidate beyond `MAX_PER_CASE` of its label, and None for an
        ignored one.
    """
    cells: list[int | None] = [None] * len(scores)
    counted = np.flatnonzero(~ignored)
    for label in np.unique(candidates.labels[counted]).tolist():
        own = counted[candidates.labels[counted] == label]
        own = own[np.argsort(-scores[own], kind="stable")]
        kept = own[:MAX_PER_CASE]
        codes = _BITS @ _assign_lesions(kept, pairs)
        for row, code in zip(kept.tolist(), codes.tolist(), strict=True):
            cells[row] = code
        for row in own[MAX_PER_CASE:].tolist():
            cells[row] = NOT_COUNTED
    return cells


def _assign_lesions(row: Integers, pairs: BoxPairs) -> Flags:
    """Let the candidates in `row` take lesions in this order, separately for each of `IOUS`.

    Return `[ious, row]` True for those that take one.
    """
    hit = np.zeros((len(IOUS), len(row)), bool)
    taken = np.zeros((len(IOUS), int(pairs.lesion.max(initial=-1)) + 1), bool)
    starts = np.searchsorted(pairs.candidate, row, side="left")
    stops = np.searchsorted(pairs.candidate, row, side="right")
    every = np.arange(len(IOUS))
    for place, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        own = slice(start, stop)  # the pairs of this candidate
        if start == stop:
            continue
        lesions = pairs.lesion[own]
        iou_if_free = np.where(taken[:, lesions], -1.0, pairs.iou[own])
        # the last one of equal IoUs, because `argmax` returns the first one
        best = len(lesions) - 1 - np.argmax(iou_if_free[:, ::-1], axis=1)
        takes = iou_if_free[every, best] >= IOUS
        taken[every[takes], lesions[best[takes]]] = True
        hit[:, place] = takes
    return hit


@dataclass(frozen=True, eq=False)
class BoxHits:
    """The candidates that take part in the average precision of boxes.

    Attributes:
        tables: The evaluated cases.
        is_counted: True for these candidates in the table of candidates.
        rows: Their rows in that table.
        hit: True at the `IOUS` at which a candidate takes a lesion `[ious, rows]`.
        n_left_out: Number of candidates beyond `MAX_PER_CASE` of a case and label.
    """

    tables: Tables
    is_counted: Flags
    rows: pd.DataFrame
    hit: Flags
    n_left_out: int

    @classmethod
    def of(cls, tables: Tables) -> "BoxHits":
        """Read the column `box_hits` of the candidates."""
        cells = tables.candidates["box_hits"].astype(float)
        is_counted = np.asarray(cells >= 0)
        rows = tables.candidates[is_counted]
        codes = rows["box_hits"].to_numpy(np.int64)
        n_left_out = int((cells == NOT_COUNTED).sum())
        return cls(tables, is_counted, rows, (codes & _BITS[:, None]) > 0, n_left_out)

    def average_precision(self) -> Statistic:
        """Return a function of weights `[replicates, groups]`: the average precision.

        Its values are the mean over labels at each of `IOUS`, then the means over the `RANGES`.
        Labels without a lesion are left out. All values are undefined if no label has a lesion.
        """
        tables = self.tables
        group = tables.group_of["candidates"][self.is_counted]
        score = self.rows["score"].to_numpy(float)
        parts = []
        for label in sorted(set(tables.lesions["label"])):
            own = np.flatnonzero(self.rows["label"] == label)
            ranked = own[np.argsort(-score[own], kind="stable")]
            lesions = tables.add_up("lesions", tables.lesions["label"] == label)
            parts.append((group[ranked], self.hit[:, ranked], lesions))

        def statistic(weights: GroupWeights) -> Numbers:
            """Return the average precisions `[replicates, ious]`, then the means over `RANGES`."""
            by_label = [_precision_of_label(weights, *part) for part in parts]
            if not by_label:
                return np.full((len(weights), len(IOUS) + len(RANGES)), np.nan)
            curve = divide(np.nansum(by_label, axis=0), (~np.isnan(by_label)).sum(axis=0))
            means = [curve[:, _within(low, high)].mean(axis=1) for low, high in RANGES.values()]
            return np.column_stack([curve, *means])

        return statistic

    def rsna_by_case(self) -> Numbers:
        """Compute the score `[cases]` by the rule of the RSNA Pneumonia Detection Challenge.

        It is the mean over the IoUs 0.4 to 0.75 of TP / (TP + FP + FN), for the accepted
        candidates. It is NaN for a case without a lesion and without an accepted candidate.
        """
        low, high = RANGES[RSNA]
        names = self.tables.cases["case"]
        is_accepted = self.rows["accepted"].to_numpy(bool)
        case = self.rows["case"][is_accepted]
        hits = pd.DataFrame(self.hit[_within(low, high)][:, is_accepted].T, index=case.index)
        n_true = hits.astype(np.int64).groupby(case).sum().reindex(names, fill_value=0)
        both = pd.concat([case, self.tables.lesions["case"]])
        n_all = both.value_counts().reindex(names, fill_value=0)
        # TP / (TP + FP + FN), at each IoU
        true = n_true.to_numpy(float)
        result: Numbers = divide(true, n_all.to_numpy(float)[:, np.newaxis] - true).mean(axis=1)
        return result


def _within(low: float, high: float) -> Flags:
    """Flag the `IOUS` from `low` to `high`, both included."""
    ious = np.array(IOUS)
    return (ious >= low) & (ious <= high)


def _precision_of_label(
    weights: GroupWeights,
    group: Integers,
    hit: Flags,
    lesions: Numbers,
) -> Numbers:
    """Return the average precision of a label `[replicates, ious]`; NaN without a lesion.

    Args:
        weights: How often each group was drawn `[replicates, groups]`.
        group: Group of each candidate `[n]`, in descending order of scores.
        hit: True positives `[ious, n]`.
        lesions: Number of lesions of each group `[groups]`.
    """
    n_lesions = weights @ lesions
    n_seen = accumulate(weights, group)[:, 1:]
    found = np.full((len(weights), len(IOUS)), np.nan)
    for k, hits in enumerate(hit):
        # recall rises only at true positives, and precision has its peaks there
        at = np.flatnonzero(hits)
        n_true = accumulate(weights, group[at])[:, 1:]
        precision = n_true / (n_seen[:, at] + _TINY)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        precision = np.pad(precision, ((0, 0), (0, 1)))  # 0 above the highest recall
        recall = divide(n_true, np.broadcast_to(n_lesions[:, None], n_true.shape))
        for row in np.flatnonzero(n_lesions > 0):
            place = np.searchsorted(recall[row], RECALLS, side="left")
            found[row, k] = precision[row, place].mean()
    return found
