"""Two models on the same cases: differences, paired by group.

The interval is a percentile bootstrap over groups drawn for both at once, its tails widened for
few groups. The p-value is that of a
permutation test that swaps the two models within whole groups (Good 2005): under the null
hypothesis it does not matter which model judged a patient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.errors import DatasetError
from lesionseg.evaluation import edge_cases
from lesionseg.evaluation.results import CaseResult
from lesionseg.evaluation.score_sections import Difference
from lesionseg.evaluation.statistics.bootstrap import MIN_GROUPS, draw_groups, percentiles
from lesionseg.evaluation.statistics.estimates import Estimate, why_none


@dataclass(frozen=True, eq=False)
class _Sums:
    """Numerator and denominator by group `[groups]` of one model."""

    above: NDArray[np.float64]
    below: NDArray[np.float64]


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
    return float(r.n_outcome("false_positive")), 1.0


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
    one: Sequence[CaseResult], other: Sequence[CaseResult], *, replicates: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Differences `one − other` of the main numbers, each with interval and p-value.

    Both are judged on the same cases, at their own operating points; else `DatasetError`. Under 5
    groups with something to count neither interval nor p-value is given.
    """
    if [r.case for r in one] != [r.case for r in other]:
        apart = sorted({r.case for r in one} ^ {r.case for r in other})
        raise DatasetError("The two models were judged on different cases.", seen=apart[:5])
    groups = sorted({r.group for r in one})
    rng = np.random.default_rng(seed)
    weights = draw_groups(len(groups), replicates, rng)
    swaps = rng.integers(0, 2, (replicates, len(groups))).astype(np.float64)
    return {
        name: _difference(_sums(one, groups, tally), _sums(other, groups, tally), weights, swaps)
        for name, tally in TALLIES.items()
    }


def _sums(results: Sequence[CaseResult], groups: Sequence[str], tally: Tally) -> _Sums:
    place = {group: i for i, group in enumerate(groups)}
    sums = np.zeros((2, len(groups)))
    for result in results:
        sums[:, place[result.group]] += tally(result)
    return _Sums(sums[0], sums[1])


def _difference(
    one: _Sums, other: _Sums, weights: NDArray[np.float64], swaps: NDArray[np.float64]
) -> dict[str, Any]:
    everyone = np.ones((1, len(one.above)))
    a, b = (_plain(float(_ratio(s, everyone)[0])) for s in (one, other))
    if a is None or b is None:
        why = "the number is undefined for one of the two"
        return Difference(a, b, Estimate(None, None, why), None).to_json()
    informative = int(((one.below > 0) | (other.below > 0)).sum())
    if informative < MIN_GROUPS:
        few = Estimate(a - b, None, edge_cases.TOO_FEW_GROUPS.reason)
        return Difference(a, b, few, None).to_json()
    drawn = _ratio(one, weights) - _ratio(other, weights)
    interval = percentiles(drawn, informative)
    difference = Estimate(a - b, interval.ci95, why_none(interval), interval.n_undefined)
    return Difference(a, b, difference, _p_value(one, other, a - b, swaps)).to_json()


def _p_value(one: _Sums, other: _Sums, seen: float, swaps: NDArray[np.float64]) -> float:
    """Share of swaps with a difference at least as large, the observed one counted in."""
    kept = 1 - swaps
    above = kept @ one.above + swaps @ other.above, swaps @ one.above + kept @ other.above
    below = kept @ one.below + swaps @ other.below, swaps @ one.below + kept @ other.below
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = np.abs(above[0] / below[0] - above[1] / below[1])
    apart = apart[~np.isnan(apart)]
    return float((1 + (apart >= abs(seen) - 1e-12).sum()) / (1 + len(apart)))


def _ratio(sums: _Sums, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        found: NDArray[np.float64] = (weights @ sums.above) / (weights @ sums.below)
    return found


def _plain(value: float) -> float | None:
    return value if np.isfinite(value) else None
