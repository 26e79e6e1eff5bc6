"""Two models on the same cases: differences, paired by group.

The interval is a percentile bootstrap over groups drawn for both at once, its tails widened for
few groups. The p-value is that of a permutation test that swaps the two models within whole groups
(Good 2005): under the null hypothesis it does not matter which model judged a patient.

Operating points of two models ask different prices, so where both have scores the primary endpoint
is the sensitivity at one false positive per case of both. The p-values of all others are corrected
for their number (Holm 1979). Of a margin the whole interval of the primary endpoint's difference
must lie above −margin: the one is then not inferior (Piaggio et al. 2012).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.errors import DatasetError, require
from lesionseg.evaluation import edge_cases
from lesionseg.evaluation.edge_cases import MIN_GROUPS
from lesionseg.evaluation.results import CaseResult
from lesionseg.evaluation.statistics import detection
from lesionseg.evaluation.statistics.bootstrap import (
    Statistic,
    Weights,
    draw_groups,
    effective_groups,
    percentiles,
)
from lesionseg.evaluation.statistics.detection import Pool, pool_results, sums_by_group
from lesionseg.evaluation.statistics.estimates import Estimate, why_none
from lesionseg.evaluation.statistics.score_parts import Difference

EQUAL_RATES = (0.5, 1.0, 2.0)  # false positives per case at which sensitivities are compared
PRIMARY, PRIMARY_UNSCORED = "recall_at_1", "lesion_f1"
MAX_ENUMERATED = 12  # groups of which all swaps are tried
Tally = Callable[[CaseResult], tuple[float, float]]


def _recall(r: CaseResult) -> tuple[float, float]:
    return float(r.n_detected), float(len(r.lesions))


def _precision(r: CaseResult) -> tuple[float, float]:
    true = r.n_outcome("true_positive")
    return float(true), float(true + r.n_outcome("false_positive"))


def _f1(r: CaseResult) -> tuple[float, float]:
    false = r.n_outcome("false_positive")
    return 2.0 * r.n_detected, float(r.n_detected + len(r.lesions) + false)


def _false_positives(r: CaseResult) -> tuple[float, float]:
    return float(r.n_outcome("false_positive")), r.annotated_share


def _dice(r: CaseResult) -> tuple[float, float]:
    return (0.0, 0.0) if r.dice is None else (r.dice, 1.0)


def _surface_dice(r: CaseResult) -> tuple[float, float]:
    return (0.0, 0.0) if r.surface_dice is None else (r.surface_dice, 1.0)


TALLIES: dict[str, Tally] = {
    "lesion_recall": _recall,
    "lesion_precision": _precision,
    "lesion_f1": _f1,
    "false_positives_per_case": _false_positives,
    "dice": _dice,
    "surface_dice": _surface_dice,
}


def compare(
    one: Sequence[CaseResult],
    other: Sequence[CaseResult],
    *,
    fp_per_case: Sequence[float] = (0.125, 0.25, 0.5, 1, 2, 4, 8),
    margin: float | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Differences `one − other` of the main numbers, each with interval and p-value.

    Both are judged on the same cases, at their own operating points; else `DatasetError`. With
    scores on both sides also at equal false positives per case, and the areas: the mean sensitivity
    at `fp_per_case` and average precision. Under 5 groups with something to count neither interval
    nor p-value is given; up to 12 groups the p-value is exact. `margin`: by how much the one may be
    worse in the primary endpoint, a share; `ConfigError` for none between 0 and 1.
    """
    require(
        margin is None or 0 < margin < 1,
        "A margin of non-inferiority is a share.",
        where="margin",
        seen=margin,
        remedy="write 0.05 for five percentage points.",
    )
    if [r.case for r in one] != [r.case for r in other]:
        apart = sorted({r.case for r in one} ^ {r.case for r in other})
        raise DatasetError("The two models were judged on different cases.", seen=apart[:5])
    n_groups = len({r.group for r in one})
    weights = draw_groups(n_groups, replicates, np.random.default_rng(seed)).astype(np.float64)
    swaps = _swaps(n_groups, replicates, seed)
    numbers = {name: _tallied(one, other, tally) for name, tally in TALLIES.items()}
    scored = all(r.scored for r in (*one, *other))
    if scored:
        numbers = {**_curves(pool_results(one), pool_results(other), fp_per_case), **numbers}
    found = {
        name: _difference(statistic, support, weights, swaps)
        for name, (statistic, support) in numbers.items()
    }
    primary = PRIMARY if scored else PRIMARY_UNSCORED
    found = _holm(found, primary)
    found[primary] = replace(found[primary], margin=margin)
    return {name: difference.to_json() for name, difference in found.items()}


# A statistic of either model by weights `[n, 2·groups]`: the groups as the one judged them, then
# as the other did; and by group how much there is to count.
_Paired = tuple[Statistic, NDArray[np.float64]]


def _tallied(one: Sequence[CaseResult], other: Sequence[CaseResult], tally: Tally) -> _Paired:
    groups = sorted({r.group for r in one})
    sums = [
        np.concatenate(
            [sums_by_group(groups, rs, [tally(r)[k] for r in rs]) for rs in (one, other)]
        )
        for k in (0, 1)
    ]
    support = np.maximum(*np.split(sums[1], 2))
    return detection.ratio(*sums), support


def _curves(one: Pool, other: Pool, fp_per_case: Sequence[float]) -> dict[str, _Paired]:
    both = _joined(one, other)
    support = np.bincount(one.lesion_group, minlength=len(one.groups)).astype(np.float64)
    numbers = {
        **{f"recall_at_{rate:g}": detection.froc(both, [rate]) for rate in EQUAL_RATES},
        "cpm": detection.cpm(both, fp_per_case),
        "average_precision": detection.average_precision(both),
    }
    return {name: (statistic, support) for name, statistic in numbers.items()}


def _joined(one: Pool, other: Pool) -> Pool:
    """The items of both; the other's groups come after the one's."""
    fields = ("detected_at", "false_score", "case_score", "case_positive", "case_share")
    items = {f: np.concatenate([getattr(one, f), getattr(other, f)]) for f in fields}
    groups = {
        f: np.concatenate([getattr(one, f), getattr(other, f) + len(one.groups)])
        for f in ("lesion_group", "false_group", "case_group")
    }
    return replace(one, groups=one.groups + other.groups, **items, **groups)


def _swaps(n_groups: int, replicates: int, seed: int) -> Weights:
    """Which groups are swapped, `[n, groups]`: all ways for few groups, else drawn at random.

    The first row swaps none: what was observed counts among the ways.
    """
    if n_groups <= MAX_ENUMERATED:
        return np.array(list(product((0.0, 1.0), repeat=n_groups)))
    drawn = np.random.default_rng(seed + 1).integers(0, 2, (replicates, n_groups))
    return np.concatenate([np.zeros((1, n_groups)), drawn])


def _difference(
    statistic: Statistic, support: NDArray[np.float64], weights: Weights, swaps: Weights
) -> Difference:
    none = np.zeros_like(weights)
    everyone = np.zeros((1, weights.shape[1]))
    a, b = (_plain(float(_of(statistic, *pair)[0])) for pair in _sides(1 - everyone, everyone))
    if a is None or b is None:
        why = "the number is undefined for one of the two"
        return Difference(a, b, Estimate(None, None, why), None)
    if (support > 0).sum() < MIN_GROUPS:
        return Difference(a, b, Estimate(a - b, None, edge_cases.TOO_FEW_GROUPS.reason), None)
    drawn = _apart(statistic, weights, none)
    interval = percentiles(drawn, effective_groups(support))
    estimate = Estimate(a - b, interval.ci95, why_none(interval), interval.n_undefined)
    swapped = np.abs(_apart(statistic, 1 - swaps, swaps))
    swapped = swapped[~np.isnan(swapped)]
    return Difference(a, b, estimate, float((swapped >= abs(a - b) - 1e-12).mean()))


def _sides(first: Weights, second: Weights) -> tuple[tuple[Weights, Weights], ...]:
    return (first, second), (second, first)


def _of(statistic: Statistic, first: Weights, second: Weights) -> NDArray[np.float64]:
    """The number `[n]` where groups count `first` as the one and `second` as the other judged."""
    return statistic(np.concatenate([first, second], axis=1))[:, 0]


def _apart(statistic: Statistic, first: Weights, second: Weights) -> NDArray[np.float64]:
    one, other = (_of(statistic, *pair) for pair in _sides(first, second))
    return one - other


def _holm(found: Mapping[str, Difference], primary: str) -> dict[str, Difference]:
    """The primary endpoint stands by itself; Holm's p-values of all others."""
    known = {k: d.p_value for k, d in found.items() if k != primary and d.p_value is not None}
    adjusted, least = dict[str, float](), 0.0
    for rank, (name, p) in enumerate(sorted(known.items(), key=lambda item: item[1])):
        least = adjusted[name] = max(least, min(1.0, (len(known) - rank) * p))
    return {
        name: replace(one, p_holm=adjusted.get(name), primary=name == primary)
        for name, one in found.items()
    }


def _plain(value: float) -> float | None:
    return value if np.isfinite(value) else None
