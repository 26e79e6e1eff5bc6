"""FROC, average precision and AUROC, as statistics of the weights of groups.

A candidate that cannot find a lesion is a false positive at every threshold. A lesion is found at
every threshold up to its `detected_at`. The curves therefore need only `detected_at` of the
lesions and the scores of the false positives. Ignored candidates belong to neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lesionseg.evaluation.case_results import CaseResult
from lesionseg.evaluation.intervals import Statistic, Weights, divide
from lesionseg.evaluation.matching import NEVER


@dataclass(frozen=True, eq=False)
class Pool:
    """The lesions and false positives of all cases.

    Attributes:
        groups: Ids of the groups. The fields `*_group` are indices into it.
        lesion_group: Group of each lesion `[lesions]`.
        detected_at: Highest score at which each lesion is found `[lesions]`, or `NEVER`.
        false_group: Group of each false positive `[false positives]`.
        false_score: Score of each false positive among all retained candidates.
        case_group: Group of each case `[cases]`.
        case_score: Score of each case `[cases]`. NaN if no lesion was marked in it, but not all
            labels were looked for.
        case_positive: True for each case `[cases]` with a lesion.
        case_share: `CaseResult.annotated_share` of each case `[cases]`.
    """

    groups: tuple[str, ...]
    lesion_group: NDArray[np.int64]
    detected_at: NDArray[np.float64]
    false_group: NDArray[np.int64]
    false_score: NDArray[np.float64]
    case_group: NDArray[np.int64]
    case_score: NDArray[np.float64]
    case_positive: NDArray[np.bool_]
    case_share: NDArray[np.float64]

    @classmethod
    def of(cls, results: Sequence[CaseResult]) -> "Pool":
        """Pool the results of cases. In a case without scores, no lesion is ever found.

        False positives are those at the lowest threshold (`outcome_any`), because the curves pass
        all thresholds.
        """
        groups = tuple(sorted({r.group for r in results}))
        index = {group: i for i, group in enumerate(groups)}
        lesion_group = []
        detected_at = []
        false_group = []
        false_score = []
        for r in results:
            for lesion in r.lesions:
                lesion_group.append(index[r.group])
                detected_at.append(NEVER if lesion.detected_at is None else lesion.detected_at)
            for candidate in r.candidates:
                if candidate.outcome_any == "false_positive":
                    false_group.append(index[r.group])
                    false_score.append(candidate.score or 0.0)
        known = [bool(r.lesions) or r.is_lesion_free for r in results]
        scores = [r.case_score or 0.0 for r in results]
        return cls(
            groups=groups,
            lesion_group=np.array(lesion_group, dtype=np.int64),
            detected_at=np.array(detected_at, dtype=np.float64),
            false_group=np.array(false_group, dtype=np.int64),
            false_score=np.array(false_score, dtype=np.float64),
            case_group=np.array([index[r.group] for r in results], dtype=np.int64),
            case_score=np.where(known, scores, np.nan),
            case_positive=np.array([bool(r.lesions) for r in results], dtype=np.bool_),
            case_share=np.array([r.annotated_share for r in results], dtype=np.float64),
        )

    @property
    def n_cases(self) -> float:
        """Number of cases. Each counts by its annotated share."""
        return float(self.case_share.sum())

    @property
    def cases_by_group(self) -> NDArray[np.float64]:
        """Number of cases of each group `[groups]`. Each case counts by its annotated share."""
        counts = np.bincount(self.case_group, self.case_share, len(self.groups))
        return counts.astype(np.float64)

    @property
    def lesions_by_group(self) -> NDArray[np.float64]:
        """Number of lesions of each group `[groups]`."""
        return np.bincount(self.lesion_group, minlength=len(self.groups)).astype(np.float64)

    @cached_property
    def observed(self) -> NDArray[np.float64]:
        """All scores at which a lesion is found or a false positive is accepted, ascending."""
        found = self.detected_at[self.detected_at > NEVER]
        return np.unique(np.concatenate([found, self.false_score]))

    def n_detected(self, threshold: float) -> int:
        """Count the lesions that candidates with at least this score find."""
        return int((self.detected_at >= threshold).sum())

    def false_by_group(self, threshold: float) -> NDArray[np.float64]:
        """Count the false positives of each group `[groups]` with at least this score."""
        counted = self.false_group[self.false_score >= threshold]
        return np.bincount(counted, minlength=len(self.groups)).astype(np.float64)

    def concatenate(self, other: "Pool") -> "Pool":
        """Return a pool with the items of both. The groups of `other` come last."""
        n = len(self.groups)
        return Pool(
            groups=self.groups + other.groups,
            lesion_group=np.concatenate([self.lesion_group, other.lesion_group + n]),
            detected_at=np.concatenate([self.detected_at, other.detected_at]),
            false_group=np.concatenate([self.false_group, other.false_group + n]),
            false_score=np.concatenate([self.false_score, other.false_score]),
            case_group=np.concatenate([self.case_group, other.case_group + n]),
            case_score=np.concatenate([self.case_score, other.case_score]),
            case_positive=np.concatenate([self.case_positive, other.case_positive]),
            case_share=np.concatenate([self.case_share, other.case_share]),
        )


def froc(pool: Pool, fp_per_case: Sequence[float]) -> Statistic:
    """Return a statistic: the lesion recall at each rate of `fp_per_case`.

    The recall at a rate x is that of the lowest threshold with at most x false positives per case.
    It is constant above the largest rate that occurs.
    """
    by_score = np.argsort(-pool.false_score, kind="stable")
    scores = np.append(pool.false_score[by_score], NEVER)
    false_group = pool.false_group[by_score]
    by_detection = np.argsort(-pool.detected_at, kind="stable")
    lesion_group = pool.lesion_group[by_detection]
    cases = pool.cases_by_group
    # number of lesions that are found at a higher score than each false positive
    n_found_above = np.searchsorted(-pool.detected_at[by_detection], -scores, side="left")

    def statistic(weights: Weights) -> NDArray[np.float64]:
        """Return the recall `[replicates, rates]`."""
        false = _accumulate(weights, false_group)[:, 1:]
        found = _accumulate(weights, lesion_group)
        # 1e-9: rounding must not exclude a false positive that a limit just allows
        limits = np.outer(weights @ cases, fp_per_case) + 1e-9
        # number of false positives that each limit allows. Candidates are accepted down to the next
        # one, which is excluded
        n_allowed = np.empty(limits.shape, np.intp)
        for i, (row, limit) in enumerate(zip(false, limits, strict=True)):
            n_allowed[i] = np.searchsorted(row, limit, side="right")
        n_found = np.take_along_axis(found, n_found_above[n_allowed], 1)
        return divide(n_found, found[:, -1:])

    return statistic


def cpm(pool: Pool, fp_per_case: Sequence[float]) -> Statistic:
    """Return a statistic: the mean recall of the FROC at these rates (van Ginneken et al. 2010)."""
    curve = froc(pool, fp_per_case)

    def statistic(weights: Weights) -> NDArray[np.float64]:
        """Return the mean recall `[replicates, 1]`."""
        mean: NDArray[np.float64] = curve(weights).mean(axis=1, keepdims=True)
        return mean

    return statistic


def average_precision(pool: Pool) -> Statistic:
    """Return a statistic: Σ (Rᵢ − Rᵢ₋₁)·Pᵢ over the distinct scores i.

    R is the recall and P the precision, both without ignored candidates. The denominator of the
    recall includes missed lesions. Without candidates the statistic is 0.
    """
    found = pool.detected_at > NEVER
    score = np.concatenate([pool.detected_at[found], pool.false_score])
    group = np.concatenate([pool.lesion_group[found], pool.false_group])
    order = np.argsort(-score, kind="stable")
    is_true = order < found.sum()  # the found lesions come first in `score`
    # items with equal scores are accepted together: number of items down to each distinct score
    n_accepted = 1 + np.flatnonzero(np.diff(score[order], append=np.inf))
    n_true = is_true.cumsum()[n_accepted - 1]
    lesions = pool.lesions_by_group
    group = group[order]
    found_group = group[is_true]

    def statistic(weights: Weights) -> NDArray[np.float64]:
        """Return the average precision `[replicates, 1]`."""
        hits = _accumulate(weights, found_group)[:, n_true]
        accepted = _accumulate(weights, group)[:, n_accepted]
        precision = np.nan_to_num(divide(hits, accepted))
        steps = np.diff(hits, axis=1, prepend=0)
        return divide((steps * precision).sum(1), weights @ lesions)[:, None]

    return statistic


def case_auroc(pool: Pool) -> Statistic:
    """Return a statistic: the chance that a case with a lesion scores higher than one without.

    Ties count half. Cases without a score are left out.
    """
    known = ~np.isnan(pool.case_score)
    order = np.argsort(pool.case_score[known], kind="stable")
    score = pool.case_score[known][order]
    group = pool.case_group[known][order]
    positive = pool.case_positive[known][order]
    positive_group = group[positive]
    # For each positive case: how many of the negative cases, sorted by score, are lower, and how
    # many are lower or equal. `statistic` uses them as positions in sums over the sorted cases.
    n_negative = np.concatenate([[0], np.cumsum(~positive)])
    end_of_lower = n_negative[np.searchsorted(score, score[positive], side="left")]
    end_of_not_higher = n_negative[np.searchsorted(score, score[positive], side="right")]

    def statistic(weights: Weights) -> NDArray[np.float64]:
        """Return the AUROC `[replicates, 1]`."""
        negative = _accumulate(weights, group[~positive])  # sums of weights, lowest score first
        # ties count half
        n_below = (negative[:, end_of_lower] + negative[:, end_of_not_higher]) / 2
        of_positive = np.take(weights, positive_group, axis=1).astype(np.float64)
        n_won = (of_positive * n_below).sum(1)
        n_pairs = of_positive.sum(1) * negative[:, -1]
        return divide(n_won, n_pairs)[:, None]

    return statistic


def sums_by_group(
    groups: Sequence[str], results: Sequence[CaseResult], values: Sequence[float]
) -> NDArray[np.float64]:
    """Sum a value of each case over the cases of each group `[groups]`."""
    index = {group: i for i, group in enumerate(groups)}
    rows = np.array([index[r.group] for r in results], dtype=np.int64)
    counted = np.asarray(values, dtype=np.float64)
    return np.bincount(rows, counted, len(groups)).astype(np.float64)


def _accumulate(weights: Weights, groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the cumulative sums of the weights of items, `[replicates, items + 1]`, from 0.

    `groups` `[items]` contains the group of each item. An item has the weight of its group.
    """
    sums = np.zeros((len(weights), len(groups) + 1))
    # weights are not cast to float64: as bytes, those of 25 000 groups fit into the L1 cache
    np.cumsum(np.take(weights, groups, axis=1), axis=1, out=sums[:, 1:])
    return sums
