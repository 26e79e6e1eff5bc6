"""FROC, average precision, recall and their like, as functions of how often each group counts.

A candidate that may find no lesion is a false positive at every threshold, and a lesion is found
from `detected_at` down. So a pool of the lesions' `detected_at` and the false positives' scores
is all that the curves need; ignored candidates are in neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lesionseg.evaluation.results import NEVER, CaseResult
from lesionseg.evaluation.rows import CandidateRow, LesionRow
from lesionseg.evaluation.statistics.bootstrap import Statistic, Weights
from lesionseg.evaluation.statistics.estimates import Estimate, auroc


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
    def reached_fp_per_case(self) -> float:
        """False positives per case when all retained candidates count; the curve ends there."""
        return len(self.false_score) / max(self.n_cases, 1)


def pool_results(results: Sequence[CaseResult]) -> Pool:
    """Gather the cases' lesions and false positives.

    Cases without scores are gathered as if nothing was ever found; the curves mean nothing then.
    """
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
    return Pool(
        groups,
        np.array([g for g, _ in lesions], dtype=np.int64),
        np.array([s for _, s in lesions], dtype=np.float64),
        np.array([g for g, _ in false], dtype=np.int64),
        np.array([s for _, s in false], dtype=np.float64),
        np.array([index[r.group] for r in results], dtype=np.int64),
        np.array([_case_score(r) for r in results], dtype=np.float64),
        np.array([r.is_ill for r in results], dtype=np.bool_),
        np.array([r.annotated_share for r in results], dtype=np.float64),
    )


def _case_score(result: CaseResult) -> float:
    known = result.is_ill or result.is_lesion_free
    return (result.case_score or 0.0) if known else np.nan


def ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> Statistic:
    """Statistic Σnumerator/Σdenominator of sums by group `[groups]`; undefined at 0/0."""

    def statistic(weights: Weights) -> NDArray[np.float64]:
        below = weights @ denominator
        above = weights @ numerator
        return _divide(above, below)[:, None]

    return statistic


def froc(pool: Pool, fp_per_case: Sequence[float]) -> Statistic:
    """Statistic: lesion recall at no more than each of `fp_per_case` false positives per case.

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
        return _divide(n_found, found[:, -1:])

    return statistic


def cpm(pool: Pool, fp_per_case: Sequence[float]) -> Statistic:
    """Statistic: mean recall of the FROC at the given rates (van Ginneken et al. 2010)."""
    curve = froc(pool, fp_per_case)
    return lambda weights: curve(weights).mean(axis=1, keepdims=True)


def average_precision(pool: Pool) -> Statistic:
    """Statistic: Σ (Rᵢ − Rᵢ₋₁)·Pᵢ over the distinct scores, ignored candidates left out.

    Missed lesions stay in the recall's denominator. Without any candidate it is 0.
    """
    found = pool.detected_at > NEVER
    score = np.concatenate([pool.detected_at[found], pool.false_score])
    group = np.concatenate([pool.lesion_group[found], pool.false_group])
    order = np.argsort(-score, kind="stable")
    true = order < found.sum()
    last = 1 + np.flatnonzero(np.diff(score[order], append=np.inf))  # the end of each tie
    n_true = true.cumsum()[last - 1]
    lesions = np.bincount(pool.lesion_group, minlength=len(pool.groups)).astype(np.float64)
    group, found_group = group[order], group[order][true]

    def statistic(weights: Weights) -> NDArray[np.float64]:
        hits = _cumulative(weights, found_group)[:, n_true]
        precision = np.nan_to_num(_divide(hits, _cumulative(weights, group)[:, last]))
        steps = np.diff(hits, axis=1, prepend=0)
        return _divide((steps * precision).sum(1), weights @ lesions)[:, None]

    return statistic


def case_auroc(pool: Pool) -> Estimate:
    """Chance that a case with a lesion scores above one without; one without a score is neither."""
    known = ~np.isnan(pool.case_score)
    return auroc(pool.case_score[known], pool.case_positive[known], pool.case_group[known])


def sums_by_group(
    groups: Sequence[str], results: Sequence[CaseResult], values: Sequence[float]
) -> NDArray[np.float64]:
    """Sum `[groups]` of a value by case."""
    index = {group: i for i, group in enumerate(groups)}
    rows = np.array([index[r.group] for r in results], dtype=np.int64)
    sums = np.zeros(len(groups))
    np.add.at(sums, rows, np.asarray(values, dtype=np.float64))
    return sums


def _divide(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quotient; NaN where the denominator is 0."""
    out = np.full(np.shape(above), np.nan)
    np.divide(above, below, out=out, where=below > 0)
    return out


def _cumulative(weights: Weights, groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cumulative sums `[replicates, items + 1]` of the weights of items' groups, from 0."""
    sums = np.zeros((len(weights), len(groups) + 1))
    # gathered in the weights' own type: as bytes those of 25 000 groups fit the nearest cache
    np.cumsum(np.take(weights, groups, axis=1), axis=1, out=sums[:, 1:])
    return sums


@dataclass(frozen=True, eq=False)
class ThresholdSweep:
    """The scores at which something changes.

    `detected_at` `[lesions]`: `NEVER` where no candidate finds the lesion. `false_score`: the
    scores of the false positives.
    """

    detected_at: NDArray[np.float64]
    false_score: NDArray[np.float64]
    n_cases: float

    @classmethod
    def of_results(cls, results: Sequence[CaseResult]) -> "ThresholdSweep":
        """The sweep of judged cases; cases without scores count as if nothing was ever found."""
        pool = pool_results(results)
        return cls(pool.detected_at, pool.false_score, pool.n_cases)

    @classmethod
    def of_rows(
        cls, lesions: Sequence[LesionRow], candidates: Sequence[CandidateRow], n_cases: float
    ) -> "ThresholdSweep | None":
        """The sweep of the tables; None without lesions, cases, scores or outcomes."""
        known = all(row.score is not None and row.outcome_any for row in candidates)
        if not known or not lesions or not n_cases:
            return None
        at = [NEVER if row.detected_at is None else row.detected_at for row in lesions]
        false = [row.score for row in candidates if row.outcome_any == "false_positive"]
        return cls(np.array(at, dtype=np.float64), np.array(false, dtype=np.float64), n_cases)

    @property
    def observed(self) -> NDArray[np.float64]:
        """All scores at which something changes, ascending."""
        found = self.detected_at[self.detected_at > NEVER]
        return np.unique(np.concatenate([found, self.false_score]))

    def n_detected(self, threshold: float) -> int:
        """Lesions found when candidates count from `threshold`."""
        return int((self.detected_at >= threshold).sum())

    def n_false_positive(self, threshold: float) -> int:
        """False positives when candidates count from `threshold`."""
        return int((self.false_score >= threshold).sum())

    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The FROC: false positives per case and recall at each threshold, both ascending."""
        levels = self.observed[::-1]
        false = [self.n_false_positive(level) / self.n_cases for level in levels]
        recall = [self.n_detected(level) / len(self.detected_at) for level in levels]
        return np.array([0.0, *false]), np.array([0.0, *recall])
