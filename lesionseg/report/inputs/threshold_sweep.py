"""What every other threshold would give, counted from the stored columns alone.

A lesion is found from its `detected_at` down; a candidate whose `outcome_any` is a false positive
is one at every threshold that accepts it (docs/metrics.md). So counting is all there is to do, in
Python for the printed curve and in the page's script for its slider.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.report import text
from lesionseg.report.inputs.result_tables import LesionRow, Tables
from lesionseg.report.inputs.scores_file import SizeGroup


@dataclass(frozen=True, eq=False)
class Sweep:
    """The scores at which something changes, and the operating point `start`.

    `detected_at` `[lesions]` in the order of `lesions`, -inf where no candidate finds it.
    `false_scores` and `free_scores`: of false positives in all cases and in lesion-free ones.
    """

    lesions: tuple[LesionRow, ...]
    detected_at: NDArray[np.float64]
    false_scores: NDArray[np.float64]
    free_scores: NDArray[np.float64]
    n_cases: int
    n_free: int
    start: float
    sizes: tuple[SizeGroup, ...]
    unit: str

    def levels(self) -> NDArray[np.float64]:
        """All thresholds worth setting, descending."""
        found = self.detected_at[np.isfinite(self.detected_at)]
        return np.unique(np.concatenate([found, self.false_scores, [self.start]]))[::-1]

    def n_found(self, threshold: float) -> int:
        """Lesions found when candidates count from `threshold`."""
        return int((self.detected_at >= threshold).sum())

    def n_false(self, threshold: float) -> int:
        """False positives when candidates count from `threshold`."""
        return int((self.false_scores >= threshold).sum())

    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """False positives per case and recall at each level, both ascending."""
        levels = self.levels()
        false = [self.n_false(level) / self.n_cases for level in levels]
        recall = [self.n_found(level) / len(self.lesions) for level in levels]
        return np.array([0.0, *false]), np.array([0.0, *recall])

    def to_json(self) -> str:
        """The columns for the page's script; safe inside a script element."""
        content: dict[str, Any] = {
            "cases": self.n_cases,
            "free_cases": self.n_free,
            "start": self.start,
            "lesions": [
                self._row(row, at) for row, at in zip(self.lesions, self._at(), strict=True)
            ],
            "false": self.false_scores.tolist(),
            "free": self.free_scores.tolist(),
            "sizes": [text.size_range(group, self.unit) for group in self.sizes],
        }
        return json.dumps(content, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")

    def _at(self) -> list[float | None]:
        return [at if np.isfinite(at) else None for at in self.detected_at.tolist()]

    def _row(self, row: LesionRow, at: float | None) -> list[Any]:
        size = round(row.diameter_mm, 1)
        return [at, size_index(row.diameter_mm, self.sizes), row.case, row.lesion, size]


def make_sweep(tables: Tables) -> Sweep | None:
    """The sweep of an evaluation; None without scores, an operating point or lesions."""
    start = tables.scores.operating_point.score
    false = [row for row in tables.candidates if row.outcome_any == "false_positive"]
    scored = all(row.score is not None for row in tables.candidates)
    told = all(row.outcome_any for row in tables.candidates)
    if start is None or not scored or not told or not tables.lesions or not tables.cases:
        return None
    free_cases = {case.case for case in tables.cases if not case.n_lesions}
    at = [-np.inf if row.detected_at is None else row.detected_at for row in tables.lesions]
    return Sweep(
        tables.lesions,
        np.array(at, dtype=np.float64),
        np.array([row.score for row in false], dtype=np.float64),
        np.array([row.score for row in false if row.case in free_cases], dtype=np.float64),
        len(tables.cases),
        len(free_cases),
        start,
        tables.scores.recall_by_size,
        tables.scores.size_unit,
    )


def size_index(diameter_mm: float, groups: tuple[SizeGroup, ...]) -> int:
    """Which size group a diameter belongs to."""
    edges = [group.from_mm for group in groups][1:]
    return int(np.searchsorted(edges, diameter_mm, side="right"))
