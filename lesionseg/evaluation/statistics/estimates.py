"""A number with its 95 % interval, or with the reason it has none."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.evaluation import edge_cases
from lesionseg.evaluation.edge_cases import EdgeCase
from lesionseg.evaluation.statistics.bootstrap import (
    MIN_GROUPS,
    Draws,
    Interval,
    Statistic,
    count_design_effect,
    design_effect,
    draw_groups,
    draw_strata,
    effective_groups,
    few_groups_factor,
    garwood_interval,
    percentile_intervals,
    value_of,
    wilson_interval,
)

UNSTATED = "the reason is not stated"
CI = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; where one is None, `reason` says why.

    `n_undefined`: bootstrap replicates that left it undefined; no file holds it.
    """

    value: float | None
    ci95: CI | None = None
    reason: str | None = None
    n_undefined: int = 0

    def to_json(self, name: str = "value") -> dict[str, Any]:
        """As in scores.json: the value under `name`, `ci95` and, where one is null, `reason`."""
        found: dict[str, Any] = {name: self.value, "ci95": as_list(self.ci95)}
        return found if self.reason is None else {**found, "reason": self.reason}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], key: str) -> "Estimate":
        """The number under `key`: plain, or a mapping with `value` or `mean`, `ci95`, `reason`.

        Interval and reason of a plain one stand in `ci95` and `reasons` under the same key or, in
        a row of a table, in the row's own `ci95` and `reason`.

        >>> Estimate.from_json({"cpm": None, "reasons": {"cpm": "under 8 cases"}}, "cpm").reason
        'under 8 cases'
        """
        found, intervals = raw.get(key), raw.get("ci95")
        reason = raw.get(f"{key}_reason") or (raw.get("reasons") or {}).get(key)
        if isinstance(found, Mapping):
            value, pair = found.get("value", found.get("mean")), found.get("ci95")
            reason = found.get("reason") or found.get("ci95_reason") or reason
        elif isinstance(intervals, Mapping):
            value, pair = found, intervals.get(key)
        else:
            value, pair = found, intervals
            if "ci95" in raw:
                reason = reason or raw.get("reason") or raw.get("ci95_reason")
        return cls(as_float(value), as_interval(pair), str(reason or UNSTATED))


def as_float(value: Any) -> float | None:
    """A number of JSON, None for null."""
    return None if value is None else float(value)


def as_interval(pair: Iterable[Any] | None) -> CI | None:
    """The two ends of an interval of JSON, None for none."""
    values = tuple(pair or ())
    if len(values) != 2 or None in values:
        return None
    return float(values[0]), float(values[1])


@dataclass(frozen=True, eq=False)
class Estimator:
    """Turns statistics and proportions into estimates, all with the same resampled groups."""

    n_groups: int
    weights: Draws
    seed: int = 0

    @classmethod
    def seeded(cls, n_groups: int, replicates: int, seed: int) -> "Estimator":
        """An estimator whose groups are drawn once, from the seed."""
        return cls(n_groups, draw_groups(n_groups, replicates, np.random.default_rng(seed)), seed)

    def by_stratum(self, strata: Sequence[NDArray[np.bool_]]) -> "Estimator":
        """One that draws the groups of each stratum by themselves, as often."""
        rng = np.random.default_rng(self.seed)
        return replace(self, weights=draw_strata(strata, len(self.weights), rng))

    def bootstrapped(
        self, statistic: Statistic, support: NDArray[np.float64], undefined: EdgeCase, items: int
    ) -> list[Estimate]:
        """The statistic's k values with percentile intervals.

        `support` `[groups]`: how much each group has to count; without any the value is that of
        `undefined`. `items`: how many things the statistic spreads weights over.
        """
        values = value_of(statistic, self.n_groups)
        if not support.any():
            return [Estimate(undefined.value, None, undefined.reason) for _ in values]
        if (support > 0).sum() < MIN_GROUPS:
            return [Estimate(value, None, edge_cases.TOO_FEW_GROUPS.reason) for value in values]
        intervals = percentile_intervals(statistic, self.weights, items, effective_groups(support))
        return [
            Estimate(value, interval.ci95, why_none(interval), interval.n_undefined)
            for value, interval in zip(values, intervals, strict=True)
        ]


def proportion(
    hits: NDArray[np.float64],
    totals: NDArray[np.float64],
    undefined: EdgeCase,
    pooled_deff: float | None = None,
    least_deff: float = 1.0,
) -> Estimate:
    """Σhits/Σtotals of sums by group, with Wilson's interval widened by the design effect.

    `pooled_deff`: the design effect where this proportion's own cannot be told. `least_deff`: 0
    for means of numbers between 0 and 1, which vary less than hits and misses do.
    """
    total = float(totals.sum())
    if total == 0:
        return Estimate(undefined.value, None, undefined.reason)
    value = float(hits.sum() / total)
    if (totals > 0).sum() < MIN_GROUPS:
        return Estimate(value, None, edge_cases.TOO_FEW_GROUPS.reason)
    deff = design_effect(hits, totals, pooled_deff, least_deff)
    if deff < 1e-9:
        return Estimate(value, None, edge_cases.COLLAPSED.reason)
    deff *= few_groups_factor(effective_groups(totals))
    return Estimate(value, wilson_interval(float(hits.sum()), total, deff))


def rate(
    counts: NDArray[np.float64], exposure: NDArray[np.float64], undefined: EdgeCase
) -> Estimate:
    """Σcounts/Σexposure of sums by group, with Garwood's interval widened by the design effect."""
    total, groups = float(exposure.sum()), int((exposure > 0).sum())
    if total == 0:
        return Estimate(undefined.value, None, undefined.reason)
    value = float(counts.sum() / total)
    if groups < MIN_GROUPS:
        return Estimate(value, None, edge_cases.TOO_FEW_GROUPS.reason)
    deff = count_design_effect(counts, exposure) * few_groups_factor(groups)
    low, high = garwood_interval(float(counts.sum()), deff)
    return Estimate(value, (low / total, high / total))


def why_none(interval: Interval) -> str | None:
    """The reason that a bootstrap gave no interval; None where it gave one."""
    if interval.ci95 is not None:
        return None
    return (edge_cases.COLLAPSED if interval.collapsed else edge_cases.UNSTABLE).reason


def undefined_numbers(why: EdgeCase, n: int) -> list[Estimate]:
    """`n` numbers that cannot be given."""
    return [Estimate(None, None, why.reason)] * n


def as_list(interval: Sequence[float] | None) -> list[float] | None:
    """The interval as JSON has it."""
    return None if interval is None else list(interval)
