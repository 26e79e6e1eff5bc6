"""95 % confidence intervals: Wilson, Garwood, bootstrap of patients, fewest patients, reasons.

Cases and lesions of one patient are not independent.

A share has Wilson's interval and a count per case has Garwood's, both with the design effect of
groups. A share of 0 or 1 has an exact interval of groups. Every other number has a percentile
bootstrap over groups, which is widened for few groups. Counts do not use the bootstrap, because its
interval contains the true value in as few as 86 of 100 studies.

A statistic is a function of weights `[replicates, groups]`, which state how often each group was
drawn. It returns `[replicates, k]` values, NaN if undefined. The number itself is the statistic at
weights of one, so that the same code computes value and interval.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv, ndtr, stdtrit

from lesionseg.core.arrays import Numbers

MIN_GROUPS = 5  # fewer give no interval
# share of the replicates; more would bias the interval, since they are not undefined at random
MAX_UNDEFINED = 0.05
Z95 = 1.959963984540054
_TAIL = 0.025  # the probability beyond each end of an interval
NO_PREDICTED_CASE = "there is no case with a prediction"
NO_LESION = "there is no reference lesion to find"
TOO_FEW_GROUPS = "fewer than 5 patients are too few for an interval"
_UNSTABLE = "the number is undefined in more than 5 % of the resampled data sets"
_COLLAPSED = (
    "all or nearly all resampled data sets give the same number, which does not make it certain"
)
_ALL_EQUAL = "all patients have the same number, which does not make it certain"
_NOT_RESAMPLED = "no data sets were resampled"
_SAME = 1e-12  # a smaller relative width of an interval is rounding
_NO_VARIANCE = 1e-9  # a smaller design effect of a mean is rounding
MAX_ELEMENTS = 1_000_000  # of a temporary array `[replicates, items]`; several exist at once

Draws = NDArray[np.uint8]
GroupWeights = Numbers | Draws
Statistic = Callable[[GroupWeights], Numbers]
CI = tuple[float, float]
# the least and the largest value that a number can have
SHARE: CI = (0.0, 1.0)
DIFFERENCE_OF_SHARES: CI = (-1.0, 1.0)


@dataclass(frozen=True)
class Estimate:
    """A number of an evaluation: a row of scores.json.

    Attributes:
        value: The value. None if it is undefined.
        ci95: Its 95 % interval. None if it is undefined, or if the number never has one.
        reason: The reason why the value or its interval is undefined. None if both are defined, and
            for a number without an interval, such as a count.
        n: Number of patients, cases, lesions or candidates that the number rests on. None if not
            stated.
        name: The name of the number.
        label: The label or region, empty for all labels together.
        subset: The subset of cases or lesions, or the criterion. Empty for all of them.
        at: The rate, IoU, size or probability that the value belongs to. None if it has none.
    """

    value: int | float | None
    ci95: CI | None = None
    reason: str | None = None
    n: int | None = None
    name: str = ""
    label: str = ""
    subset: str = ""
    at: float | None = None


def draw_groups(n_groups: int, replicates: int, rng: np.random.Generator) -> Draws:
    """Draw groups (patients) with replacement for each replicate of the bootstrap.

    Each replicate draws `n_groups` of the `n_groups` groups. Return how often each group was drawn,
    `[replicates, n_groups]`. The counts are bytes to save memory: 1000 replicates of 10⁵ groups
    need 100 MB. The chance that a group is drawn 256 times or more is negligible.
    """
    drawn = np.zeros((replicates, n_groups), np.uint8)
    if not n_groups:
        return drawn
    # `multinomial` returns int64, so only a few replicates are drawn at once
    n_at_once = max(1, MAX_ELEMENTS // n_groups)
    probabilities = np.full(n_groups, 1 / n_groups)
    for first in range(0, replicates, n_at_once):
        some_replicates = drawn[first : first + n_at_once]
        some_replicates[:] = rng.multinomial(n_groups, probabilities, len(some_replicates))
    return drawn


def statistic_value(statistic: Statistic, n_groups: int) -> list[float | None]:
    """Compute the k numbers of a statistic on the original data, without resampling.

    Each of the `n_groups` groups has weight 1. A number that is undefined (NaN) becomes None.
    """
    return [None if np.isnan(v) else float(v) for v in statistic(np.ones((1, n_groups)))[0]]


def bootstrap(
    statistic: Statistic,
    draws: Draws,
    support: Numbers,
    undefined: str,
    items: int,
    names: Sequence[str],
    *,
    bounds: Sequence[CI | None] = (),
) -> list[Estimate]:
    """Compute the k numbers of a statistic with percentile intervals of the bootstrap.

    A number has no interval if it is undefined, if fewer than 5 groups contribute, or if
    `percentiles` gives none. `reason` of the estimate then states why.

    Args:
        statistic: A function of weights `[replicates, groups]` that returns k values for each
            replicate, `[replicates, k]`, NaN for undefined ones.
        draws: The result of `draw_groups`.
        support: The number of items (lesions, cases or candidates) that each group contributes
            `[groups]`. If all are 0, the numbers are None.
        undefined: The reason to state for a number that is None.
        items: Length of the arrays `[replicates, items]` that the statistic creates, which is a
            number of lesions, candidates or cases. It limits how many replicates are computed at
            once.
        names: The names of the k numbers.
        bounds: For each number, the minimum and the maximum that are possible, or None for a number
            without limits. Empty if all numbers are between 0 and 1.

    Returns:
        The k numbers as estimates, in the order of `names`.
    """
    values = statistic_value(statistic, draws.shape[1])
    # the numbers without intervals
    rows = [Estimate(value, name=name) for value, name in zip(values, names, strict=True)]
    if not support.any():
        return [replace(row, value=None, reason=undefined) for row in rows]
    if (support > 0).sum() < MIN_GROUPS:
        few = _explain_too_few(support)
        return [replace(row, reason=undefined if row.value is None else few) for row in rows]
    n_at_once = max(1, MAX_ELEMENTS // max(items, 1))
    # the first replicate of each pass; without replicates, one pass is empty
    firsts = range(0, max(len(draws), 1), n_at_once)
    replicates = np.concatenate([statistic(draws[n : n + n_at_once]) for n in firsts])
    groups = effective_groups(support)
    estimates = []
    for row, column, end in zip(rows, replicates.T, bounds or (SHARE,) * len(values), strict=True):
        interval, reason = percentiles(column, groups, end)
        if row.value is None:
            interval, reason = None, undefined
        estimates.append(replace(row, ci95=interval, reason=reason))
    return estimates


def percentiles(values: Numbers, groups: float, bounds: CI | None) -> tuple[CI | None, str | None]:
    """Compute the percentile interval of a number from the replicates of the bootstrap.

    The bootstrap underestimates the variance for few groups, so the interval is widened. The
    fraction of replicates beyond each end is Φ(−√(n/(n−1))·t) instead of 2.5 %. Here n is `groups`,
    at least 2, and t the 97.5 % point of Student's distribution with n − 1 degrees of freedom
    (Hesterberg 2015). Five groups have no replicates so far from the mean. Therefore, each end of
    the interval of a number with `bounds` is also at least √(n/(n−1))·t standard errors from the
    mean, but within the bounds.

    Args:
        values: The number in each replicate `[replicates]`, NaN if it is undefined.
        groups: The effective number of groups (`effective_groups`).
        bounds: The minimum and the maximum that the number can have, or None.

    Returns:
        The interval and None. Or None and the reason why there is no interval: there are no
        replicates, more than 5 % of them are undefined, or both ends agree because nearly all
        replicates are equal.
    """
    n = max(groups, 2.0)
    n_deviations = float(np.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.975))
    defined = values[~np.isnan(values)]
    n_undefined = len(values) - len(defined)
    if len(values) == 0:
        return None, _NOT_RESAMPLED
    if n_undefined > MAX_UNDEFINED * len(values):
        return None, _UNSTABLE
    # `ndtr` is Φ
    low, high = np.quantile(defined, ndtr([-n_deviations, n_deviations]))
    if high - low <= _SAME * max(1.0, abs(high)):
        return None, _COLLAPSED
    if bounds is not None:
        min_distance = n_deviations * defined.std()
        low = min(low, max(bounds[0], defined.mean() - min_distance))
        high = max(high, min(bounds[1], defined.mean() + min_distance))
    return (float(low), float(high)), None


def proportion(
    hits: Numbers,
    totals: Numbers,
    undefined: str,
    *,
    name: str = "",
    min_deff: float = 1.0,
) -> Estimate:
    """Compute a proportion of grouped items, such as a recall, with its 95 % interval.

    The proportion is Σhits/Σtotals. The interval is Wilson's, widened by the design effect of the
    groups, because items of one patient are not independent. If all items or none are hits, the
    groups do not show a design effect, and `all_or_none_interval` is used. There is no interval if
    fewer than 5 groups have items, or if the groups show no variance.

    Args:
        hits: Number of hits of each group `[groups]`, or a sum of values between 0 and 1.
        totals: Number of items of each group `[groups]`.
        undefined: The reason to state if there are no items.
        name: The name of the number.
        min_deff: Lower bound of the design effect. It is 0 for means of values between 0 and 1,
            because these vary less than hits and misses.
    """
    total = float(totals.sum())
    if total == 0:
        return Estimate(None, reason=undefined, name=name)
    value = float(hits.sum() / total)
    groups = int((totals > 0).sum())
    if groups < MIN_GROUPS:
        return Estimate(value, reason=_explain_too_few(totals), name=name)
    if value in SHARE:  # exactly 0 or exactly 1
        return Estimate(value, all_or_none_interval(value, groups), name=name)
    # a smaller effective sample, because few groups estimate the design effect (Korn & Graubard)
    deff = design_effect(hits, totals) * few_groups_factor(effective_groups(totals))
    deff = max(min_deff, deff)
    if deff < _NO_VARIANCE:
        return Estimate(value, reason=_ALL_EQUAL, name=name)
    return Estimate(value, wilson_interval(float(hits.sum()), total, deff), name=name)


def _explain_too_few(items: Numbers) -> str:
    """Explain that too few groups have items for an interval.

    The sentence differs if there are too few groups in total. `items` is the number of items of
    each group `[groups]`.
    """
    if len(items) < MIN_GROUPS:
        return TOO_FEW_GROUPS
    return f"{(items > 0).sum()} of {len(items)} patients count here, too few for an interval"


def estimate_rate(
    counts: Numbers, exposure: Numbers, undefined: str, *, name: str = ""
) -> Estimate:
    """Compute a rate such as false positives per case, with its 95 % interval.

    The rate is Σcounts/Σexposure. The interval is Garwood's for a Poisson count (1936). To widen
    the interval, the count is divided by its design effect, and the ends of the interval are
    multiplied by the design effect. There is no interval for fewer than 5 groups with exposure.

    Args:
        counts: Number of events of each group `[groups]`.
        exposure: Number of cases of each group `[groups]`.
        undefined: The reason to state if the exposure is 0, so that the rate is None.
        name: The name of the number.
    """
    total = float(exposure.sum())
    groups = int((exposure > 0).sum())
    if total == 0:
        return Estimate(None, reason=undefined, name=name)
    value = float(counts.sum() / total)
    if groups < MIN_GROUPS:
        return Estimate(value, reason=_explain_too_few(exposure), name=name)
    deff = count_design_effect(counts, exposure) * few_groups_factor(groups)
    low, high = poisson_interval(counts.sum() / deff)
    return Estimate(value, (low * deff / total, high * deff / total), name=name)


def poisson_interval(events: float) -> CI:
    """Return Garwood's exact 95 % interval (1936) of the mean of a Poisson count.

    `events` is the count. It may be a fraction, for example after division by a design effect.

    >>> low, high = poisson_interval(10)
    >>> round(low, 4), round(high, 4)
    (4.7954, 18.3904)
    """
    low = gammaincinv(events, 0.025) if events else 0.0  # no mean is too low for 0 events
    return float(low), float(gammaincinv(events + 1, 0.975))


def all_or_none_interval(value: float, groups: int) -> CI:
    """Return the 95 % interval of a proportion that is exactly 0 or 1 in all groups.

    Items of one group (patient) may be alike, so each group counts as one item. This is the exact
    interval of Clopper & Pearson 1934 for k groups. It is conservative: if the proportion is p on
    average over groups, a group has no hit with a probability of at most 1 − p. All k groups then
    have no hit with a probability of at most (1 − p)ᵏ, which is 2.5 % at the upper end.

    Args:
        value: The proportion, 0 or 1.
        groups: Number of groups with items.

    >>> low, high = all_or_none_interval(0.0, 5)
    >>> low, round(high, 4), all_or_none_interval(1.0, 1)
    (0.0, 0.5218, (0.025, 1.0))
    """
    bound = _TAIL ** (1 / groups)
    return (bound, 1.0) if value else (0.0, 1 - bound)


def wilson_interval(hits: float, total: float, deff: float = 1.0) -> CI:
    """Return Wilson's 95 % interval of the proportion `hits / total`.

    `deff` is the design effect. It reduces the effective number of items to `total / deff`.

    >>> low, high = wilson_interval(8, 10)
    >>> round(low, 4), round(high, 4)
    (0.4902, 0.9433)
    """
    n = total / deff
    p = hits / total
    z2 = Z95**2
    # Wilson's formula: centre and half width of the interval
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * np.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
    # rounding must not push a bound past the proportion itself at 0 and 1
    return float(max(0.0, min(p, centre - half))), float(min(1.0, max(p, centre + half)))


def design_effect(hits: Numbers, totals: Numbers) -> float:
    """Return the factor by which similar lesions in a group increase the variance of a proportion.

    A group is usually a patient. The factor is the design effect: the variance of Σhits/Σtotals
    over groups, divided by the binomial variance of independent lesions. It is below 1 if groups
    vary less than independent lesions would. The variance over groups is estimated by leaving out
    one group at a time. This jackknife, the CR3 of Bell & McCaffrey 2002, is not biased downwards
    by few or unequal groups.

    If all lesions or none were hit, or if only one group has lesions, the variance cannot be
    estimated. The result is then Σm²/Σm for m lesions per group (Kish 1965), at least 1. This value
    assumes that all lesions of a group are hit or missed together. Without lesions, the result
    is 1.

    Args:
        hits: Number of hits of each group `[groups]`.
        totals: Number of lesions of each group `[groups]`.

    >>> design_effect(np.array([2.0, 0.0, 2.0, 0.0]), np.array([2.0, 2.0, 2.0, 2.0])) > 2
    True
    >>> design_effect(np.array([3.0, 1.0]), np.array([3.0, 1.0]))
    2.5
    """
    n = totals.sum()
    counted = totals > 0
    groups = int(counted.sum())
    if not n:
        return 1.0
    are_all_equal = not 0 < hits.sum() < n
    if groups < 2 or are_all_equal:
        return max(1.0, float((totals**2).sum() / n))
    p = hits.sum() / n
    p_without_group = (hits.sum() - hits[counted]) / (n - totals[counted])
    # the jackknife variance (g − 1)/g · Σ(pᵢ − p)², divided by the binomial variance p(1 − p)/n
    return float(n * (groups - 1) / groups * ((p_without_group - p) ** 2).sum() / (p * (1 - p)))


def effective_groups(sizes: Numbers) -> float:
    """Return the effective number of groups of unequal sizes m: (Σm)²/Σm² (Kish 1965).

    This many groups of equal size would give the same information. `sizes` is the number of items
    of each group `[groups]`. The result is 0 if all sizes are 0.

    >>> effective_groups(np.array([2.0, 2.0, 2.0])), effective_groups(np.array([8.0, 1.0, 1.0]))
    (3.0, 1.5151515151515151)
    """
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if sizes.any() else 0.0


def few_groups_factor(groups: float) -> float:
    """Return the factor that multiplies a design effect from few groups (Korn & Graubard 1998).

    Few groups estimate the design effect with large error, so a larger one is used. The factor is
    (t/z)². Here t is the 97.5 % point of Student's distribution with `groups − 1` degrees of
    freedom (at least 1), and z that of the normal distribution. For groups of unequal size,
    `groups` is the result of `effective_groups`.

    >>> round(few_groups_factor(5), 2), round(few_groups_factor(50), 2)
    (2.01, 1.05)
    """
    return float((stdtrit(max(groups - 1, 1), 0.975) / Z95) ** 2)


def count_design_effect(counts: Numbers, exposure: Numbers) -> float:
    """Return the design effect of counts: their variance over groups relative to a Poisson count.

    The design effect widens the interval of a rate if the events concentrate in few patients. It is
    at least 1.

    Args:
        counts: Number of events of each group `[groups]`. If all are 0, the result is 1.
        exposure: Number of cases of each group `[groups]`. With fewer than 2 groups above 0, the
            result is 1.

    >>> count_design_effect(np.array([4.0, 0.0, 4.0, 0.0]), np.ones(4))
    2.6666666666666665
    """
    groups = int((exposure > 0).sum())
    events = counts.sum()
    if groups < 2 or events == 0:
        return 1.0
    expected = events / exposure.sum() * exposure
    # a Poisson distribution has a variance equal to its mean, and these sum to `events`
    return max(1.0, float(groups / (groups - 1) * ((counts - expected) ** 2).sum() / events))


def ratio(above: Numbers, below: Numbers) -> Statistic:
    """Return a statistic that computes the ratio of two weighted sums, for `bootstrap`.

    The statistic is a function of weights `[replicates, groups]`. It returns the weighted
    Σabove/Σbelow, NaN unless Σbelow is positive. `above` and `below` are sums by group `[groups]`.
    """

    def statistic(weights: GroupWeights) -> Numbers:
        """Return the ratio of the weighted sums of each replicate `[replicates, 1]`.

        `weights` is how often each group was drawn `[replicates, groups]`.
        """
        return divide(weights @ above, weights @ below)[:, None]

    return statistic


def divide(above: Numbers, below: Numbers) -> Numbers:
    """Divide two arrays of equal shape. The quotient is NaN unless the denominator is positive."""
    out = np.full(np.shape(above), np.nan)
    np.divide(above, below, out=out, where=below > 0)
    return out
