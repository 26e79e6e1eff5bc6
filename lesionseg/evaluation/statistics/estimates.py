"""A number with its 95 % interval, or with the reason it has none."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.evaluation import edge_cases
from lesionseg.evaluation.edge_cases import MIN_GROUPS, EdgeCase
from lesionseg.evaluation.statistics.bootstrap import (
    Z95,
    Draws,
    Interval,
    Statistic,
    count_design_effect,
    design_effect,
    draw_groups,
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
    seed: int

    @classmethod
    def seeded(cls, n_groups: int, replicates: int, seed: int) -> "Estimator":
        """An estimator whose groups are drawn once, from the seed."""
        return cls(n_groups, draw_groups(n_groups, replicates, np.random.default_rng(seed)), seed)

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
    # no more than so many independent lesions (Korn & Graubard 1998)
    deff = design_effect(hits, totals, pooled_deff) * few_groups_factor(effective_groups(totals))
    deff = max(least_deff, deff)
    if deff < 1e-9:
        return Estimate(value, None, edge_cases.COLLAPSED.reason)
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


def difference(one: Estimate, other: Estimate) -> Estimate:
    """One share minus another, of other lesions; Newcombe's method 10 (1998) from both intervals.

    >>> found = difference(Estimate(0.8, (0.7, 0.9)), Estimate(0.5, (0.4, 0.6)))
    >>> round(found.ci95[0], 3), round(found.ci95[1], 3)
    (0.159, 0.441)
    """
    if one.value is None or other.value is None:
        return Estimate(None, None, one.reason or other.reason)
    apart = one.value - other.value
    if one.ci95 is None or other.ci95 is None:
        return Estimate(apart, None, one.reason or other.reason)
    low = np.hypot(one.value - one.ci95[0], other.ci95[1] - other.value)
    high = np.hypot(one.ci95[1] - one.value, other.value - other.ci95[0])
    return Estimate(apart, (float(apart - low), float(apart + high)))


def auroc(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], groups: NDArray[np.int64]
) -> Estimate:
    """Chance that a case with a lesion scores above one without, ties half; all `[cases]`.

    The interval is Newcombe's method 5 (2006), which has one where nothing is mistaken, too: all
    areas within z·√(deff·V) of the value, V their variance by Hanley & McNeil (1982) with the mean
    of both numbers of cases for either. deff: see `_auroc_deff`.
    """
    kinds = np.stack([positive, ~positive])
    n = kinds.sum(1)
    if not n.all():
        return Estimate(None, None, edge_cases.ONE_KIND_OF_CASE.reason)
    wins = np.empty(len(scores))
    wins[positive] = _share_under(scores[positive], scores[~positive])
    wins[~positive] = 1 - _share_under(scores[~positive], scores[positive])
    value = float(wins[positive].mean())

    def by_group(each: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([np.bincount(groups, each * kind) for kind in kinds])

    sizes, variance = by_group(np.ones(len(wins))), _auroc_variance(*n.tolist())
    if (sizes > 0).sum(1).min() < MIN_GROUPS:
        return Estimate(value, None, edge_cases.TOO_FEW_GROUPS.reason)
    deff = _auroc_deff(by_group(wins - value) / n[:, None], sizes, variance(value))
    return Estimate(value, _auroc_interval(value, lambda area: deff * variance(area)))


def _auroc_deff(
    apart: NDArray[np.float64], sizes: NDArray[np.float64], independent: float
) -> float:
    """How much wider groups make an AUROC vary than independent cases would; at least 1.

    Obuchowski's variance (1997) over that of `independent` cases, times `few_groups_factor` where a
    group has several cases. `apart` and `sizes` `[2, groups]`: by kind of case what a group's cases
    add to the value, and how many they are. Where nothing is mistaken there is no telling, and a
    group's cases count as one.
    """
    if not independent:
        return float(((sizes**2).sum(1) / sizes.sum(1)).max())
    few = (sizes > 0).sum(1)
    both = int(sizes.any(0).sum())
    clustered = few / (few - 1) @ (apart**2).sum(1) + 2 * both / (both - 1) * (apart[0] @ apart[1])
    few_groups = few_groups_factor(float(few.sum() - 1)) if sizes.sum(0).max() > 1 else 1.0
    return max(1.0, float(clustered / independent * few_groups))


def _share_under(values: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Which share of the others lies under each value, ties half."""
    ordered = np.sort(others)
    ends = np.searchsorted(ordered, values), np.searchsorted(ordered, values, side="right")
    return (ends[0] + ends[1]) / (2 * len(others))


def _auroc_variance(n_ill: int, n_well: int) -> Callable[[float], float]:
    def variance(area: float) -> float:
        more = (n_ill + n_well) / 2 - 1
        pairs = 1 + more * (1 - area) / (2 - area) + more * area / (1 + area)
        return area * (1 - area) * pairs / (n_ill * n_well)

    return variance


def _auroc_interval(value: float, variance: Callable[[float], float]) -> CI:
    from scipy.optimize import brentq

    def outside(area: float) -> float:
        return (area - value) ** 2 - Z95**2 * variance(area)

    apart = 1e-9  # at 0 and 1 the value itself is a root
    low = 0.0 if value <= apart else brentq(outside, 0.0, value - apart)
    high = 1.0 if value >= 1 - apart else brentq(outside, value + apart, 1.0)
    return float(low), float(high)


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
