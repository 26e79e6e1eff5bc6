"""A number with its 95 % interval, or with the reason it has none."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lesionseg.evaluation import edge_cases
from lesionseg.evaluation.edge_cases import EdgeCase
from lesionseg.evaluation.statistics.bootstrap import (
    MIN_GROUPS,
    Interval,
    Statistic,
    Weights,
    design_effect,
    draw_groups,
    few_groups_factor,
    percentile_intervals,
    value_of,
    wilson_interval,
)


@dataclass(frozen=True)
class Number:
    """A value and its interval; `reason` says why either is None. `n_undefined` replicates."""

    value: float | None
    ci95: tuple[float, float] | None = None
    reason: str | None = None
    n_undefined: int = 0


@dataclass(frozen=True, eq=False)
class Estimator:
    """Turns statistics and proportions into numbers, all with the same resampled groups."""

    n_groups: int
    weights: Weights

    @classmethod
    def seeded(cls, n_groups: int, replicates: int, seed: int) -> "Estimator":
        """An estimator whose groups are drawn once, from the seed."""
        return cls(n_groups, draw_groups(n_groups, replicates, np.random.default_rng(seed)))

    def bootstrapped(
        self, statistic: Statistic, support: NDArray[np.float64], undefined: EdgeCase, items: int
    ) -> list[Number]:
        """The statistic's k values with percentile intervals.

        `support` `[groups]`: how much each group has to count; without any the value is that of
        `undefined`. `items`: how many things the statistic spreads weights over.
        """
        values = value_of(statistic, self.n_groups)
        if not support.any():
            return [Number(undefined.value, None, undefined.reason) for _ in values]
        if (support > 0).sum() < MIN_GROUPS:
            return [Number(value, None, edge_cases.TOO_FEW_GROUPS.reason) for value in values]
        intervals = percentile_intervals(statistic, self.weights, items)
        return [
            Number(value, interval.ci95, _why_none(interval), interval.n_undefined)
            for value, interval in zip(values, intervals, strict=True)
        ]


def proportion(
    hits: NDArray[np.float64],
    totals: NDArray[np.float64],
    undefined: EdgeCase,
    pooled_deff: float | None = None,
) -> Number:
    """Σhits/Σtotals of sums by group, with Wilson's interval widened by the design effect.

    `pooled_deff`: the design effect where this proportion's own cannot be told.
    """
    total = float(totals.sum())
    if total == 0:
        return Number(undefined.value, None, undefined.reason)
    value = float(hits.sum() / total)
    if (totals > 0).sum() < MIN_GROUPS:
        return Number(value, None, edge_cases.TOO_FEW_GROUPS.reason)
    deff = design_effect(hits, totals, pooled_deff) * few_groups_factor(int((totals > 0).sum()))
    return Number(value, wilson_interval(float(hits.sum()), total, deff))


def _why_none(interval: Interval) -> str | None:
    if interval.ci95 is not None:
        return None
    return (edge_cases.COLLAPSED if interval.collapsed else edge_cases.UNSTABLE).reason


def undefined_numbers(why: EdgeCase, n: int) -> list[Number]:
    """`n` numbers that cannot be given."""
    return [Number(None, None, why.reason)] * n


def as_mapping(number: Number, name: str = "value") -> dict[str, object]:
    """The number as it stands in scores.json: `name`, `ci95` and, where one is null, `reason`."""
    found: dict[str, object] = {name: number.value, "ci95": as_list(number.ci95)}
    return found if number.reason is None else {**found, "reason": number.reason}


def as_list(interval: Sequence[float] | None) -> list[float] | None:
    """The interval as JSON has it."""
    return None if interval is None else list(interval)
