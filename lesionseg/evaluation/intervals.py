"""95 % intervals that respect that cases and lesions of one patient are alike.

Shares: Wilson's interval, counts per case: Garwood's, both with the design effect of groups. All
else: a percentile bootstrap over groups, widened where they are few; of counts it holds the
truth in as few as 86 of 100 studies.

A statistic is a function of weights `[replicates, groups]`, how often each group was drawn, that
returns `[replicates, k]` values, NaN where undefined. The number itself is the statistic at weights
of one, so that value and interval come from the same code.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv, ndtr, stdtrit

MIN_GROUPS = 5  # fewer give no interval
MAX_UNDEFINED = 0.05  # of the replicates: they are not undefined at random
Z95 = 1.959963984540054
NO_CASE = "there is no case"
NO_LESION = "there is no reference lesion to find"
TOO_FEW_GROUPS = "fewer than 5 patients are too few for an interval"
_UNSTABLE = "the number is undefined in more than 5 % of the resampled data sets"
_COLLAPSED = "all resampled data sets give the same number, which does not make it certain"
_MAX_ELEMENTS = 1_000_000  # of a temporary `[replicates, items]`: 8 MB, of which some live at once

Draws = NDArray[np.uint8]
Weights = NDArray[np.float64] | Draws
Statistic = Callable[[Weights], NDArray[np.float64]]
CI = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval. If one of them is None, `reason` says why."""

    value: float | None
    ci95: CI | None = None
    reason: str | None = None


def draw_groups(n_groups: int, replicates: int, rng: np.random.Generator) -> Draws:
    """Draw n groups with replacement. Return how often each was drawn, `[replicates, n_groups]`.

    No group is drawn 256 times: as bytes, 10⁵ groups take 100 MB.
    """
    drawn = np.zeros((replicates, n_groups), np.uint8)
    step = max(1, _MAX_ELEMENTS // max(n_groups, 1))
    for i in range(0, replicates if n_groups else 0, step):
        part = drawn[i : i + step]
        part[:] = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), len(part))
    return drawn


def value_of(statistic: Statistic, n_groups: int) -> list[float | None]:
    """Return the statistic of the data themselves; None if it is undefined."""
    values = statistic(np.ones((1, n_groups)))[0]
    return [None if np.isnan(v) else float(v) for v in values]


def bootstrap(
    statistic: Statistic, draws: Draws, support: NDArray[np.float64], undefined: str, items: int
) -> list[Estimate]:
    """Compute the statistic's k values with percentile intervals.

    Args:
        statistic: the statistic.
        draws: from `draw_groups`.
        support: how much each group has to count `[groups]`. Without any there is no value.
        undefined: the reason for that.
        items: number of lesions, candidates or cases that the weights are spread over. It decides
            how many replicates are computed at once.
    """
    values = value_of(statistic, draws.shape[1])
    if not support.any():
        return [Estimate(None, None, undefined) for _ in values]
    if (support > 0).sum() < MIN_GROUPS:
        return [Estimate(value, None, TOO_FEW_GROUPS) for value in values]
    chunk = max(1, _MAX_ELEMENTS // max(items, 1))
    replicates = np.concatenate(
        [statistic(draws[i : i + chunk]) for i in range(0, max(len(draws), 1), chunk)]
    )
    groups = effective_groups(support)
    return [
        Estimate(value, *percentiles(column, groups))
        for value, column in zip(values, replicates.T, strict=True)
    ]


def percentiles(values: NDArray[np.float64], groups: float) -> tuple[CI | None, str | None]:
    """Compute the percentile interval of the replicates `[n]` of a number.

    Return None and the reason if more than 5 % of the replicates are undefined, or if all agree.
    For few groups the variance is underestimated, so less than 2.5 % are left beyond each end:
    Φ(−√(n/(n−1))·t) for n `groups`, with t the 97.5 % point of n − 1 degrees of freedom (Hesterberg
    2015). Each end of a share is at least √(n/(n−1))·t standard errors away, within 0 and 1,
    because the replicates of five groups do not reach as far.
    """
    n = max(groups, 2.0)
    reach = float(np.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.975))
    defined = values[~np.isnan(values)]
    if len(defined) == 0 or len(values) - len(defined) > MAX_UNDEFINED * len(values):
        return None, _UNSTABLE
    low, high = np.quantile(defined, ndtr([-reach, reach]))
    if high - low <= 1e-12 * max(1.0, abs(high)):
        return None, _COLLAPSED
    if 0 <= defined.min() <= defined.max() <= 1:
        away = reach * defined.std()
        low = min(low, max(0.0, defined.mean() - away))
        high = max(high, min(1.0, defined.mean() + away))
    return (float(low), float(high)), None


def proportion(
    hits: NDArray[np.float64],
    totals: NDArray[np.float64],
    undefined: str,
    least_deff: float = 1.0,
) -> Estimate:
    """Compute Σhits/Σtotals with Wilson's interval, widened by the design effect of groups.

    `least_deff`: 0 for means of numbers between 0 and 1, which vary less than hits and misses do.
    """
    total = float(totals.sum())
    if total == 0:
        return Estimate(None, None, undefined)
    value = float(hits.sum() / total)
    if (totals > 0).sum() < MIN_GROUPS:
        return Estimate(value, None, TOO_FEW_GROUPS)
    # no more than so many independent lesions (Korn & Graubard 1998)
    deff = design_effect(hits, totals) * few_groups_factor(effective_groups(totals))
    deff = max(least_deff, deff)
    if deff < 1e-9:
        return Estimate(value, None, _COLLAPSED)
    return Estimate(value, wilson_interval(float(hits.sum()), total, deff))


def rate(counts: NDArray[np.float64], exposure: NDArray[np.float64], undefined: str) -> Estimate:
    """Compute Σcounts/Σexposure with Garwood's interval (1936) of a Poisson count.

    Of so many events as the count divided by its design effect, scaled back.
    """
    total, groups = float(exposure.sum()), int((exposure > 0).sum())
    if total == 0:
        return Estimate(None, None, undefined)
    value = float(counts.sum() / total)
    if groups < MIN_GROUPS:
        return Estimate(value, None, TOO_FEW_GROUPS)
    deff = count_design_effect(counts, exposure) * few_groups_factor(groups)
    events = counts.sum() / deff
    low, high = poisson_interval(events)
    return Estimate(value, (low * deff / total, high * deff / total))


def poisson_interval(events: float) -> CI:
    """Return Garwood's exact 95 % interval (1936) of the mean of a Poisson count.

    >>> low, high = poisson_interval(10)
    >>> round(low, 4), round(high, 4)
    (4.7954, 18.3904)
    """
    low = gammaincinv(events, 0.025) if events else 0.0
    return float(low), float(gammaincinv(events + 1, 0.975))


def wilson_interval(hits: float, total: float, deff: float = 1.0) -> CI:
    """Return Wilson's 95 % interval of a proportion with an effective sample of `total / deff`.

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


def design_effect(hits: NDArray[np.float64], totals: NDArray[np.float64]) -> float:
    """Return the variance of a proportion of grouped lesions over that of independent ones.

    `hits` and `totals` `[groups]`. The variance of the ratio Σhits/Σtotals by leaving out a group
    at a time (jackknife: the CR3 of Bell & McCaffrey 2002, which few and unequal groups do not
    bias downwards) over the binomial one. Where all or nothing was hit both vanish and the data
    cannot tell: then Σm²/Σm of m lesions a group (Kish 1965), as if a group's lesions were all hit
    or missed together. Under 1 where groups vary less than independent lesions would.

    >>> design_effect(np.array([2.0, 0.0, 2.0, 0.0]), np.array([2.0, 2.0, 2.0, 2.0])) > 2
    True
    >>> design_effect(np.array([3.0, 1.0]), np.array([3.0, 1.0]))
    2.5
    """
    n, counted = totals.sum(), totals > 0
    groups = int(counted.sum())
    if not n:
        return 1.0
    if groups < 2 or not 0 < hits.sum() < n:
        return max(1.0, float((totals**2).sum() / n))
    p = hits.sum() / n
    without = (hits.sum() - hits[counted]) / (n - totals[counted])
    return float(n * (groups - 1) / groups * ((without - p) ** 2).sum() / (p * (1 - p)))


def effective_groups(sizes: NDArray[np.float64]) -> float:
    """Return the number of groups of equal size that tell as much: (Σm)²/Σm² (Kish 1965).

    >>> effective_groups(np.array([2.0, 2.0, 2.0])), effective_groups(np.array([8.0, 1.0, 1.0]))
    (3.0, 1.5151515151515151)
    """
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if sizes.any() else 0.0


def few_groups_factor(groups: float) -> float:
    """Return by how much an effective sample shrinks if few groups estimate its variance.

    (t/z)² of the 97.5 % points, t with `groups − 1` degrees of freedom, at least 1 (Korn & Graubard
    1998). Groups of unequal size count as `effective_groups`.

    >>> round(few_groups_factor(5), 2), round(few_groups_factor(50), 2)
    (2.01, 1.05)
    """
    return float((stdtrit(max(groups - 1, 1), 0.975) / Z95) ** 2)


def count_design_effect(counts: NDArray[np.float64], exposure: NDArray[np.float64]) -> float:
    """Return the variance of counts by group over that of Poisson's law; at least 1.

    `counts` and `exposure` `[groups]`: events and cases. 1 where nothing was counted.

    >>> count_design_effect(np.array([4.0, 0.0, 4.0, 0.0]), np.ones(4))
    2.6666666666666665
    """
    groups, events = int((exposure > 0).sum()), counts.sum()
    if groups < 2 or events == 0:
        return 1.0
    spread = ((counts - events / exposure.sum() * exposure) ** 2).sum()
    return max(1.0, float(groups / (groups - 1) * spread / events))


def ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> Statistic:
    """Return the statistic Σabove/Σbelow of sums by group `[groups]`; undefined at 0/0."""
    return lambda weights: divide(weights @ above, weights @ below)[:, None]


def divide(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide; NaN if the denominator is 0."""
    out = np.full(np.shape(above), np.nan)
    np.divide(above, below, out=out, where=below > 0)
    return out
