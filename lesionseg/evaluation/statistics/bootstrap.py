"""95 % intervals that respect that cases and lesions of one group are alike.

A statistic is a function of weights `[replicates, groups]`, how often each group was drawn, that
returns `[replicates, k]` values, NaN where undefined. The number itself is the statistic at
weights of one, so that value and interval come from the same code.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import gammaincinv, ndtr, stdtrit

MAX_UNDEFINED = 0.05  # of the replicates: they are not undefined at random
Z95 = 1.959963984540054
_MAX_ELEMENTS = 1_000_000  # of a temporary `[replicates, items]`: 8 MB, of which some live at once

Draws = NDArray[np.uint8]
Weights = NDArray[np.float64] | Draws
Statistic = Callable[[Weights], NDArray[np.float64]]


@dataclass(frozen=True)
class Interval:
    """A percentile interval; None where undefined in more than 5 % of the replicates.

    None too where all replicates agree (`collapsed`): an interval without width claims a certainty
    that no sample gives.
    """

    ci95: tuple[float, float] | None
    n_undefined: int
    collapsed: bool = False


def draw_groups(n_groups: int, replicates: int, rng: np.random.Generator) -> Draws:
    """How often each group is drawn, `[replicates, n_groups]`: n draws with replacement each.

    No group is drawn 256 times: as bytes, 10⁵ groups take 100 MB.
    """
    drawn = np.zeros((replicates, n_groups), np.uint8)
    step = max(1, _MAX_ELEMENTS // max(n_groups, 1))
    for i in range(0, replicates if n_groups else 0, step):
        part = drawn[i : i + step]
        part[:] = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), len(part))
    return drawn


def place_sums(
    values: NDArray[np.float64], group: NDArray[np.int64], place: NDArray[np.int64], n_groups: int
) -> csr_array:
    """Sums `[groups, places]` of values `[n]`; sparse, as most places are empty in each group."""
    return csr_array((values, (group, place)), shape=(n_groups, int(place.max(initial=-1)) + 1))


def value_of(statistic: Statistic, n_groups: int) -> list[float | None]:
    """The statistic of the data themselves; None where undefined."""
    values = statistic(np.ones((1, n_groups)))[0]
    return [None if np.isnan(v) else float(v) for v in values]


def percentile_intervals(
    statistic: Statistic, weights: Draws, items: int, informative: float | None = None
) -> list[Interval]:
    """Percentile bootstrap interval of each of the statistic's k values.

    `items`: how many lesions, candidates or cases the statistic spreads the weights over, so that
    replicates are taken a chunk at a time. `informative`: groups with something to count, all by
    default. No replicate gives None.
    """
    chunk = max(1, _MAX_ELEMENTS // max(items, 1))
    values = np.concatenate(
        [statistic(weights[i : i + chunk]) for i in range(0, max(len(weights), 1), chunk)]
    )
    groups = weights.shape[1] if informative is None else informative
    return [percentiles(column, groups) for column in values.T]


def percentiles(values: NDArray[np.float64], groups: float) -> Interval:
    """The percentile interval of the replicates `[n]` of a number, drawn from so many groups.

    What lies beyond each end is under 2.5 % for few groups, whose variance is underestimated:
    Φ(−√(n/(n−1))·t), t the 97.5 % point with n − 1 degrees of freedom (Hesterberg 2015). Of a share
    each end is at least √(n/(n−1))·t standard errors away, within 0 and 1: the replicates of five
    groups do not reach as far.
    """
    n = max(groups, 2.0)
    reach = float(np.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.975))
    defined = values[~np.isnan(values)]
    n_undefined = len(values) - len(defined)
    if len(defined) == 0 or n_undefined > MAX_UNDEFINED * len(values):
        return Interval(None, n_undefined)
    low, high = np.quantile(defined, ndtr([-reach, reach]))
    if high - low <= 1e-12 * max(1.0, abs(high)):
        return Interval(None, n_undefined, collapsed=True)
    if 0 <= defined.min() <= defined.max() <= 1:
        away = reach * defined.std()
        low = min(low, max(0.0, defined.mean() - away))
        high = max(high, min(1.0, defined.mean() + away))
    return Interval((float(low), float(high)), n_undefined)


def design_effect(
    hits: NDArray[np.float64],
    totals: NDArray[np.float64],
    pooled: float | None = None,
) -> float:
    """How much wider groups make a proportion vary than independent lesions would; 1 for none.

    `hits` and `totals` `[groups]`. The variance of the ratio Σhits/Σtotals by leaving out a group
    at a time (jackknife: the CR3 of Bell & McCaffrey 2002, which few and unequal groups do not
    bias downwards) over the binomial one. Where all or nothing was hit both vanish and the data
    cannot tell: then `pooled`, the design effect of like proportions, but at most Σm²/Σm of m
    lesions a group (Kish 1965), as if a group's lesions were all hit or missed together; that
    bound where there is none. Under 1 where groups vary less than independent lesions would.

    >>> design_effect(np.array([2.0, 0.0, 2.0, 0.0]), np.array([2.0, 2.0, 2.0, 2.0])) > 2
    True
    >>> design_effect(np.array([3.0, 1.0]), np.array([3.0, 1.0]))
    2.5
    """
    if not totals.any():
        return 1.0
    variances = _variances(hits, totals)
    if variances is None:
        bound = float((totals**2).sum() / totals.sum())
        return max(1.0, bound if pooled is None else min(pooled, bound))
    return variances.cluster / variances.binomial


def pooled_design_effect(
    hits: Sequence[NDArray[np.float64]], totals: Sequence[NDArray[np.float64]]
) -> float | None:
    """The design effect of several proportions taken together; None where all are degenerate."""
    variances = [_variances(h, t) for h, t in zip(hits, totals, strict=True)]
    known = [s for s in variances if s is not None]
    if not known:
        return None
    return max(1.0, sum(s.cluster for s in known) / sum(s.binomial for s in known))


@dataclass(frozen=True)
class _Variances:
    """n² times the variance of a proportion: between groups, and of independent lesions."""

    cluster: float
    binomial: float


def _variances(hits: NDArray[np.float64], totals: NDArray[np.float64]) -> _Variances | None:
    """None for under 2 groups and where all or nothing was hit."""
    n, groups = totals.sum(), int((totals > 0).sum())
    if groups < 2 or not 0 < hits.sum() < n:
        return None
    p, counted = hits.sum() / n, totals > 0
    without = (hits.sum() - hits[counted]) / (n - totals[counted])
    cluster = n**2 * (groups - 1) / groups * ((without - p) ** 2).sum()
    return _Variances(float(cluster), float(n * p * (1 - p)))


def effective_groups(sizes: NDArray[np.float64]) -> float:
    """How many groups of equal size `[groups]` tell as much: (Σm)²/Σm² (Kish 1965); 0 for none.

    >>> effective_groups(np.array([2.0, 2.0, 2.0])), effective_groups(np.array([8.0, 1.0, 1.0]))
    (3.0, 1.5151515151515151)
    """
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if sizes.any() else 0.0


def few_groups_factor(groups: float) -> float:
    """By how much an effective sample shrinks because its variance is estimated from few groups.

    (t/z)² of the 97.5 % points, t with `groups − 1` degrees of freedom, at least 1 (Korn & Graubard
    1998). Groups of unequal size count as `effective_groups`.

    >>> round(few_groups_factor(5), 2), round(few_groups_factor(50), 2)
    (2.01, 1.05)
    """
    return float((stdtrit(max(groups - 1, 1), 0.975) / Z95) ** 2)


def count_design_effect(counts: NDArray[np.float64], exposure: NDArray[np.float64]) -> float:
    """How much wider groups make a count vary than Poisson's law would; at least 1.

    `counts` and `exposure` `[groups]`: events and cases. 1 where nothing was counted.

    >>> count_design_effect(np.array([4.0, 0.0, 4.0, 0.0]), np.ones(4))
    2.6666666666666665
    """
    groups, events = int((exposure > 0).sum()), counts.sum()
    if groups < 2 or events == 0:
        return 1.0
    spread = ((counts - events / exposure.sum() * exposure) ** 2).sum()
    return max(1.0, float(groups / (groups - 1) * spread / events))


def garwood_interval(events: float, deff: float = 1.0) -> tuple[float, float]:
    """Garwood's exact 95 % interval of a Poisson count (1936), of `events / deff`, scaled back.

    >>> low, high = garwood_interval(0)
    >>> low, round(high, 3)
    (0.0, 3.689)
    """
    effective = events / deff
    low = gammaincinv(effective, 0.025) if events else 0.0
    return float(low * deff), float(gammaincinv(effective + 1, 0.975) * deff)


def wilson_interval(hits: float, total: float, deff: float = 1.0) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion with an effective sample of `total / deff`.

    >>> low, high = wilson_interval(8, 10)
    >>> round(low, 4), round(high, 4)
    (0.4902, 0.9433)
    """
    n, p = total / deff, hits / total
    z2 = Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * np.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
    # rounding must not push a bound past the proportion itself at 0 and 1
    return float(max(0.0, min(p, centre - half))), float(min(1.0, max(p, centre + half)))
