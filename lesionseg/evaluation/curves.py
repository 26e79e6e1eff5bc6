"""FROC, average precision and AUROC, as functions of how often each group counts.

A candidate that may find no lesion is a false positive at every threshold, and a lesion is found
from `detected_at` down. So a pool of the lesions' `detected_at` and the false positives' scores
is all that the curves need; ignored candidates are in neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lesionseg.evaluation.case_results import CaseResult
from lesionseg.evaluation.intervals import Statistic, Weights, divide
from lesionseg.evaluation.matching import NEVER


@dataclass(frozen=True, eq=False)
class Pool:
    """The lesions and false positives of all cases; `*_group` are indices into `groups`.

    `detected_at` `[lesions]`: `NEVER` for a lesion that no retained candidate finds.
    `false_score` `[false positives]` among all retained candidates. `case_score` and
    `case_positive` (has a lesion) `[cases]`; a score is NaN where not all labels were looked for
    and none was found. `case_share`: `CaseResult.annotated_share`.
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
        """Gather cases. Cases without scores count as if nothing was ever found."""
        groups = tuple(sorted({r.group for r in results}))
        index = {group: i for i, group in enumerate(groups)}
        lesions = [
            (index[r.group], NEVER if x.detected_at is None else x.detected_at)
            for r in results
            for x in r.lesions
        ]
        false = [
            (index[r.group], c.score or 0.0)
            for r in results
            for c in r.candidates
            if c.outcome_any == "false_positive"
        ]
        known = [bool(r.lesions) or r.is_lesion_free for r in results]
        scores = [r.case_score or 0.0 for r in results]
        return cls(
            groups,
            np.array([g for g, _ in lesions], dtype=np.int64),
            np.array([s for _, s in lesions], dtype=np.float64),
            np.array([g for g, _ in false], dtype=np.int64),
            np.array([s for _, s in false], dtype=np.float64),
            np.array([index[r.group] for r in results], dtype=np.int64),
            np.where(known, scores, np.nan),
            np.array([bool(r.lesions) for r in results], dtype=np.bool_),
            np.array([r.annotated_share for r in results], dtype=np.float64),
        )

    @property
    def n_cases(self) -> float:
        """Number of cases, each as far as it is annotated."""
        return float(self.case_share.sum())

    @property
    def cases_by_group(self) -> NDArray[np.float64]:
        """The same by group `[groups]`."""
        counts = np.bincount(self.case_group, self.case_share, len(self.groups))
        return counts.astype(np.float64)

    @property
    def lesions_by_group(self) -> NDArray[np.float64]:
        """Lesions of each group."""
        return np.bincount(self.lesion_group, minlength=len(self.groups)).astype(np.float64)

    @cached_property
    def observed(self) -> NDArray[np.float64]:
        """All scores at which something changes, ascending."""
        found = self.detected_at[self.detected_at > NEVER]
        return np.unique(np.concatenate([found, self.false_score]))

    def n_detected(self, threshold: float) -> int:
        """Count the lesions found if candidates count from `threshold`."""
        return int((self.detected_at >= threshold).sum())

    def false_by_group(self, threshold: float) -> NDArray[np.float64]:
        """Count the false positives of each group if candidates count from `threshold`."""
        counted = self.false_group[self.false_score >= threshold]
        return np.bincount(counted, minlength=len(self.groups)).astype(np.float64)

    def beside(self, other: "Pool") -> "Pool":
        """Return the items of both. The other's groups come after the own ones."""
        fields = ("detected_at", "false_score", "case_score", "case_positive", "case_share")
        items = {f: np.concatenate([getattr(self, f), getattr(other, f)]) for f in fields}
        groups = {
            f: np.concatenate([getattr(self, f), getattr(other, f) + len(self.groups)])
            for f in ("lesion_group", "false_group", "case_group")
        }
        return replace(self, groups=self.groups + other.groups, **items, **groups)


def froc(pool: Pool, fp_per_case: Sequence[float]) -> Statistic:
    """Return the statistic: lesion recall at each of `fp_per_case` false positives per case.

    A step curve: for x, the lowest threshold at which the false positives of all cases number at
    most x times the cases. Beyond the false positives there are it stays flat.
    """
    by_score = np.argsort(-pool.false_score, kind="stable")
    scores = np.append(pool.false_score[by_score], NEVER)
    false_group = pool.false_group[by_score]
    by_time = np.argsort(-pool.detected_at, kind="stable")
    lesion_group = pool.lesion_group[by_time]
    cases = pool.cases_by_group
    # lesions found above the score of each false positive: ties with one are not
    found_before = np.searchsorted(-pool.detected_at[by_time], -scores, side="left")

    def statistic(weights: Weights) -> NDArray[np.float64]:
        false = _cumulative(weights, false_group)[:, 1:]
        found = _cumulative(weights, lesion_group)
        limits = np.outer(weights @ cases, fp_per_case) + 1e-9
        # the first false positive that is one too many, or the end of the list
        allowed = np.empty(limits.shape, np.intp)
        for i, (row, limit) in enumerate(zip(false, limits, strict=True)):
            allowed[i] = np.searchsorted(row, limit, side="right")
        n_found = np.take_along_axis(found, found_before[allowed], 1)
        return divide(n_found, found[:, -1:])

    return statistic


def cpm(pool: Pool, fp_per_case: Sequence[float]) -> Statistic:
    """Return the statistic: mean recall of the FROC at these rates (van Ginneken et al. 2010)."""
    curve = froc(pool, fp_per_case)
    return lambda weights: curve(weights).mean(axis=1, keepdims=True)


def average_precision(pool: Pool) -> Statistic:
    """Return the statistic: Σ (Rᵢ − Rᵢ₋₁)·Pᵢ over the distinct scores, without ignored candidates.

    Missed lesions stay in the recall's denominator. Without any candidate it is 0.
    """
    found = pool.detected_at > NEVER
    score = np.concatenate([pool.detected_at[found], pool.false_score])
    group = np.concatenate([pool.lesion_group[found], pool.false_group])
    order = np.argsort(-score, kind="stable")
    true = order < found.sum()
    last = 1 + np.flatnonzero(np.diff(score[order], append=np.inf))  # the end of each tie
    n_true = true.cumsum()[last - 1]
    lesions = pool.lesions_by_group
    group, found_group = group[order], group[order][true]

    def statistic(weights: Weights) -> NDArray[np.float64]:
        hits = _cumulative(weights, found_group)[:, n_true]
        precision = np.nan_to_num(divide(hits, _cumulative(weights, group)[:, last]))
        steps = np.diff(hits, axis=1, prepend=0)
        return divide((steps * precision).sum(1), weights @ lesions)[:, None]

    return statistic


def case_auroc(pool: Pool) -> Statistic:
    """Return the statistic: chance that a case with a lesion scores above one without; ties half.

    A case without a score is neither.
    """
    known = ~np.isnan(pool.case_score)
    order = np.argsort(pool.case_score[known], kind="stable")
    score, group = pool.case_score[known][order], pool.case_group[known][order]
    ill = pool.case_positive[known][order]
    start, stop = (np.searchsorted(score, score[ill], side=side) for side in ("left", "right"))
    ill_group, well_before = group[ill], np.concatenate([[0], np.cumsum(~ill)])

    def statistic(weights: Weights) -> NDArray[np.float64]:
        well = _cumulative(weights, group[~ill])
        below = (well[:, well_before[start]] + well[:, well_before[stop]]) / 2
        each = np.take(weights, ill_group, axis=1).astype(np.float64)
        return divide((each * below).sum(1), each.sum(1) * well[:, -1])[:, None]

    return statistic


def sums_by_group(
    groups: Sequence[str], results: Sequence[CaseResult], values: Sequence[float]
) -> NDArray[np.float64]:
    """Sum `[groups]` of a value by case."""
    index = {group: i for i, group in enumerate(groups)}
    rows = np.array([index[r.group] for r in results], dtype=np.int64)
    counted = np.asarray(values, dtype=np.float64)
    return np.bincount(rows, counted, len(groups)).astype(np.float64)


def _cumulative(weights: Weights, groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum the weights of items' groups cumulatively from 0, `[replicates, items + 1]`."""
    sums = np.zeros((len(weights), len(groups) + 1))
    # gathered in the weights' own type: as bytes those of 25 000 groups fit the nearest cache
    np.cumsum(np.take(weights, groups, axis=1), axis=1, out=sums[:, 1:])
    return sums
