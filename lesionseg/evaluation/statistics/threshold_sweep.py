"""What every threshold gives, counted from stored columns alone.

A lesion is found from its `detected_at` down; a candidate that may find no lesion is a false
positive at every threshold that accepts it (docs/metrics.md). So counting is all there is to do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lesionseg.evaluation.case.matching import NEVER
from lesionseg.evaluation.results import CaseResult
from lesionseg.evaluation.rows import CandidateRow, LesionRow
from lesionseg.evaluation.statistics.detection import pool_results


@dataclass(frozen=True, eq=False)
class ThresholdSweep:
    """The scores at which something changes.

    `detected_at` `[lesions]`: `NEVER` where no candidate finds the lesion. `false_score`: the
    scores of the false positives.
    """

    detected_at: NDArray[np.float64]
    false_score: NDArray[np.float64]
    n_cases: int

    @classmethod
    def of_results(cls, results: Sequence[CaseResult]) -> "ThresholdSweep":
        """The sweep of judged cases; cases without scores count as if nothing was ever found."""
        pool = pool_results(results)
        return cls(pool.detected_at, pool.false_score, pool.n_cases)

    @classmethod
    def of_rows(
        cls, lesions: Sequence[LesionRow], candidates: Sequence[CandidateRow], n_cases: int
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
