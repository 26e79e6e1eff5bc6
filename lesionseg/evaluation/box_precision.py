"""Average precision of boxes (COCO mAP, RSNA, VinDr-CXR): IoU thresholds, ties, maximum per case.

The definition is that of COCO (Lin et al. 2014).

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
        """Return the largest box IoU of each lesion with an accepted candidate `[n_lesions]`.

        The IoU is 0 if no accepted candidate of the same label overlaps the lesion. `accepted` is
        True for accepted candidates `[candidates]`.
        """
        best = np.zeros(n_lesions)
        counted = accepted[self.candidate]
        np.maximum.at(best, self.lesion[counted], self.iou[counted])
        return best


def pair_boxes(candidates: Lesions, lesions: Lesions) -> BoxPairs:
    """Find the candidates and lesions of equal labels whose bounding boxes overlap, as pairs."""
    boxes = torch.from_numpy(candidates.boxes)
    others = torch.from_numpy(lesions.boxes)
    return BoxPairs(*overlapping_pairs(boxes, candidates.labels, others, lesions.labels))


def encode_hits(
    candidates: Lesions,
    pairs: BoxPairs,
    scores: Numbers,
    ignored: Flags,
) -> list[int | None]:
    """Decide at each IoU of `IOUS` which candidates of a case are true positives.

    For each label, the candidates are assigned to lesions in the order of descending scores. A
    candidate is a true positive at an IoU if it gets a lesion there.

    Args:
        candidates: The candidates.
        pairs: The result of `pair_boxes`.
        scores: Score of each candidate `[candidates]`.
        ignored: True for candidates that do not count, because they are located in an ignored
            region.

    Returns:
        The cell `box_hits` of candidates.csv for each candidate. Bit k of this integer is 1 if the
        candidate is a true positive at `IOUS[k]`. The cell is −1 (`NOT_COUNTED`) for a candidate
        beyond the `MAX_PER_CASE` highest scores of its label, and None for an ignored candidate.
    """
    cells: list[int | None] = [None] * len(scores)
    counted = np.flatnonzero(~ignored)
    for label in np.unique(candidates.labels[counted]).tolist():
        rows = counted[candidates.labels[counted] == label]
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        highest = rows[:MAX_PER_CASE]
        codes = _BITS @ _assign_lesions(highest, pairs)  # the flags of each candidate as an integer
        for row, code in zip(highest.tolist(), codes.tolist(), strict=True):
            cells[row] = code
        for row in rows[MAX_PER_CASE:].tolist():
            cells[row] = NOT_COUNTED
    return cells


def _assign_lesions(row: Integers, pairs: BoxPairs) -> Flags:
    """Assign candidates to lesions one to one, separately for each IoU of `IOUS`.

    Each candidate in turn gets the lesion with the largest IoU among the lesions that no earlier
    candidate got, if this IoU is at least the required one.

    Args:
        row: Rows of the candidates `[n]` of one label, by descending score.
        pairs: The pairs of overlapping boxes.

    Returns:
        True for each candidate that gets a lesion `[ious, n]`.
    """
    hit = np.zeros((len(IOUS), len(row)), bool)
    n_lesions = int(pairs.lesion.max(initial=-1)) + 1  # 0 without pairs
    is_assigned = np.zeros((len(IOUS), n_lesions), bool)
    # the pairs are sorted by candidate, so those of one candidate are a slice
    starts = np.searchsorted(pairs.candidate, row, side="left")
    stops = np.searchsorted(pairs.candidate, row, side="right")
    every = np.arange(len(IOUS))  # index of every required IoU
    for number, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        pairs_of_candidate = slice(start, stop)
        if start == stop:
            continue
        lesions = pairs.lesion[pairs_of_candidate]
        # IoU `[ious, lesions]`, −1 for a lesion that an earlier candidate got
        iou_if_free = np.where(is_assigned[:, lesions], -1.0, pairs.iou[pairs_of_candidate])
        # Of equal IoUs, pycocotools uses the last one. `argmax` returns the first one, therefore
        # the lesions are reversed.
        best = len(lesions) - 1 - np.argmax(iou_if_free[:, ::-1], axis=1)
        is_hit = iou_if_free[every, best] >= IOUS
        is_assigned[every[is_hit], lesions[best[is_hit]]] = True
        hit[:, number] = is_hit
    return hit


@dataclass(frozen=True, eq=False)
class BoxHits:
    """The candidates that take part in the average precision of boxes.

    Attributes:
        tables: The evaluated cases.
        is_counted: True for these candidates, for each row of the table of candidates.
        rows: The rows of these candidates in that table.
        hit: True at each IoU of `IOUS` at which a candidate is a true positive `[ious, rows]`.
        n_left_out: Number of candidates beyond `MAX_PER_CASE` of a case and label.
    """

    tables: Tables
    is_counted: Flags
    rows: pd.DataFrame
    hit: Flags
    n_left_out: int

    @classmethod
    def of(cls, tables: Tables) -> "BoxHits":
        """Decode the column `box_hits` of candidates.csv.

        Candidates without a bit code are left out: ignored ones, and those beyond `MAX_PER_CASE`.
        """
        cells = tables.candidates["box_hits"].astype(float)
        is_counted = np.asarray(cells >= 0)  # False for NaN (ignored) and −1 (`NOT_COUNTED`)
        rows = tables.candidates[is_counted]
        codes = rows["box_hits"].to_numpy(np.int64)
        n_left_out = int((cells == NOT_COUNTED).sum())
        hit = (codes & _BITS[:, None]) > 0
        return cls(tables, is_counted, rows, hit, n_left_out)

    def average_precision(self) -> Statistic:
        """Return a statistic that computes the average precision of boxes.

        The statistic is a function of weights `[replicates, groups]`. It returns the average
        precision at each IoU of `IOUS`, as a mean over labels, and then the mean over the IoUs of
        each range in `RANGES`. Labels without a lesion are left out of the mean. All results are
        NaN if no label has a lesion.
        """
        tables = self.tables
        group = tables.group_of["candidates"][self.is_counted]
        score = self.rows["score"].to_numpy(float)
        labels = []  # for each label, the arguments of `_precision_of_label`
        for label in sorted(set(tables.lesions["label"])):
            rows = np.flatnonzero(self.rows["label"] == label)
            ranked = rows[np.argsort(-score[rows], kind="stable")]
            lesions = tables.add_up("lesions", tables.lesions["label"] == label)
            labels.append((group[ranked], self.hit[:, ranked], lesions))

        def statistic(weights: GroupWeights) -> Numbers:
            """Return the average precision at each IoU and range `[replicates, ious + ranges]`.

            `weights` is how often each group was drawn `[replicates, groups]`.
            """
            by_label = [_precision_of_label(weights, *arguments) for arguments in labels]
            if not by_label:
                return np.full((len(weights), len(IOUS) + len(RANGES)), np.nan)
            # the mean over the labels with a lesion in the replicate; the other ones are NaN
            curve = divide(np.nansum(by_label, axis=0), (~np.isnan(by_label)).sum(axis=0))
            means = [curve[:, _within(low, high)].mean(axis=1) for low, high in RANGES.values()]
            return np.column_stack([curve, *means])

        return statistic

    def rsna_by_case(self) -> Numbers:
        """Compute the score of each case `[cases]` of the RSNA Pneumonia Detection Challenge.

        The score is the mean of TP / (TP + FP + FN) over the IoUs 0.4 to 0.75. Only accepted
        candidates count. The score is NaN for a case with neither a lesion nor an accepted
        candidate.
        """
        low, high = RANGES[RSNA]
        names = self.tables.cases["case"]
        is_accepted = self.rows["accepted"].to_numpy(bool)
        case = self.rows["case"][is_accepted]
        hits = pd.DataFrame(self.hit[_within(low, high)][:, is_accepted].T, index=case.index)
        n_true = hits.astype(np.int64).groupby(case).sum().reindex(names, fill_value=0)
        candidates_and_lesions = pd.concat([case, self.tables.lesions["case"]])
        n_all = candidates_and_lesions.value_counts().reindex(names, fill_value=0)
        # TP / (TP + FP + FN) at each IoU; candidates and lesions together are 2·TP + FP + FN
        true = n_true.to_numpy(float)
        result: Numbers = divide(true, n_all.to_numpy(float)[:, np.newaxis] - true).mean(axis=1)
        return result


def _within(low: float, high: float) -> Flags:
    """Flag the IoUs of `IOUS` in the range from `low` to `high`, both included `[ious]`."""
    ious = np.array(IOUS)
    return (ious >= low) & (ious <= high)


def _precision_of_label(
    weights: GroupWeights,
    group: Integers,
    hit: Flags,
    lesions: Numbers,
) -> Numbers:
    """Compute the average precision of one label as COCO does `[replicates, ious]`.

    The precision is NaN in a replicate without a lesion of the label.

    Args:
        weights: How often each group was drawn `[replicates, groups]`.
        group: Group of each candidate `[n]`, in descending order of scores.
        hit: True positives `[ious, n]`.
        lesions: Number of lesions of each group `[groups]`.
    """
    n_lesions = weights @ lesions
    n_seen = accumulate(weights, group)[:, 1:]
    average_precision = np.full((len(weights), len(IOUS)), np.nan)
    for k, hits in enumerate(hit):
        # recall rises only at true positives, and precision has its peaks there
        at = np.flatnonzero(hits)
        n_true = accumulate(weights, group[at])[:, 1:]
        precision = n_true / (n_seen[:, at] + _TINY)  # avoids 0/0 if no candidate was drawn
        # the highest precision at this recall or a higher one
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        precision = np.pad(precision, ((0, 0), (0, 1)))  # 0 above the highest recall
        recall = divide(n_true, np.broadcast_to(n_lesions[:, None], n_true.shape))
        for row in np.flatnonzero(n_lesions > 0):  # replicates with a lesion of the label
            # the first true positive with at least each recall; without one, the 0 at the end
            index = np.searchsorted(recall[row], RECALLS, side="left")
            average_precision[row, k] = precision[row, index].mean()
    return average_precision
