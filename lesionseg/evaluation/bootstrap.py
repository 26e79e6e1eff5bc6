"""95 % intervals that respect that cases and lesions of one group are alike.

A statistic is a function of weights `[replicates, groups]`, how often each group was drawn, that
returns `[replicates, k]` values, NaN where undefined. The number itself is the statistic at
weights of one, so that value and interval come from the same code.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_GROUPS = 5
_Z95 = 1.959963984540054
_MAX_ELEMENTS = 4_000_000  # of a temporary `[replicates, items]`: 32 MB

Weights = NDArray[np.float64]
Statistic = Callable[[Weights], NDArray[np.float64]]


@dataclass(frozen=True)
class Interval:
    """A percentile interval; None where undefined in more than half of the replicates."""

    ci95: tuple[float, float] | None
    n_undefined: int


def draw_groups(n_groups: int, replicates: int, rng: np.random.Generator) -> Weights:
    """How often each group is drawn, `[replicates, n_groups]`: n draws with replacement each."""
    if n_groups == 0:
        return np.zeros((replicates, 0))
    return rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), replicates).astype(float)


def value_of(statistic: Statistic, n_groups: int) -> list[float | None]:
    """The statistic of the data themselves; None where undefined."""
    values = statistic(np.ones((1, n_groups)))[0]
    return [None if np.isnan(v) else float(v) for v in values]


def percentile_intervals(statistic: Statistic, weights: Weights, items: int) -> list[Interval]:
    """Percentile bootstrap interval of each of the statistic's k values.

    `items`: how many lesions, candidates or cases the statistic spreads the weights over, so that
    replicates are taken a chunk at a time. No replicate gives None.
    """
    chunk = max(1, _MAX_ELEMENTS // max(items, 1))
    values = np.concatenate(
        [statistic(weights[i : i + chunk]) for i in range(0, max(len(weights), 1), chunk)]
    )
    return [_interval(column) for column in values.T]


def _interval(values: NDArray[np.float64]) -> Interval:
    defined = values[~np.isnan(values)]
    n_undefined = len(values) - len(defined)
    if len(defined) == 0 or n_undefined > len(values) / 2:
        return Interval(None, n_undefined)
    low, high = np.quantile(defined, [0.025, 0.975])
    return Interval((float(low), float(high)), n_undefined)


def design_effect(hits: NDArray[np.float64], totals: NDArray[np.float64]) -> float:
    """How much wider groups make a proportion vary than independent lesions would; at least 1.

    `hits` and `totals` `[groups]`. The cluster variance of the ratio Σhits/Σtotals (linearised)
    over the binomial one; 1 where either vanishes.

    >>> design_effect(np.array([2.0, 0.0, 2.0, 0.0]), np.array([2.0, 2.0, 2.0, 2.0])) > 2
    True
    """
    n, groups = totals.sum(), int((totals > 0).sum())
    if groups < 2:
        return 1.0
    p = hits.sum() / n
    binomial = p * (1 - p) / n
    if binomial == 0:
        return 1.0
    cluster = groups / (groups - 1) * ((hits - p * totals) ** 2).sum() / n**2
    return max(1.0, float(cluster / binomial))


def wilson_interval(hits: float, total: float, deff: float = 1.0) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion with an effective sample of `total / deff`.

    >>> low, high = wilson_interval(8, 10)
    >>> round(low, 4), round(high, 4)
    (0.4902, 0.9433)
    """
    n, p = total / deff, hits / total
    z2 = _Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * np.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
    # rounding must not push a bound past the proportion itself at 0 and 1
    return float(max(0.0, min(p, centre - half))), float(min(1.0, max(p, centre + half)))
