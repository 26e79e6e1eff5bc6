"""Scan by scan: the four counts, predictive values at other prevalences, and the lesion load."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.evaluation import edge_cases
from lesionseg.evaluation.edge_cases import MIN_GROUPS, EdgeCase
from lesionseg.evaluation.statistics.bootstrap import Z95, Statistic, Weights
from lesionseg.evaluation.statistics.estimates import Estimate, proportion
from lesionseg.evaluation.statistics.pooled import PooledResults

PREVALENCES = (0.01, 0.05, 0.1, 0.25, 0.5)


def case_table(summary: PooledResults) -> dict[str, Any]:
    """The 2×2 table of cases, and PPV and NPV at `PREVALENCES`.

    A case is positive when a judged candidate is accepted, anywhere in it.
    """
    called = np.array([r.is_called for r in summary.results], dtype=np.bool_)
    ill = np.array([r.is_ill for r in summary.results], dtype=np.bool_)
    well = np.array([r.is_lesion_free for r in summary.results], dtype=np.bool_)
    hits, cases, clean, free = (
        summary.sums(kind.tolist()) for kind in (called & ill, ill, ~called & well, well)
    )
    values = [(share, *predictive_values(hits, cases, clean, free, share)) for share in PREVALENCES]
    return {
        "case_table": {
            "true_positive": int(hits.sum()),
            "false_negative": int((cases - hits).sum()),
            "false_positive": int((free - clean).sum()),
            "true_negative": int(clean.sum()),
            "predictive_values": [
                {"prevalence": share, "ppv": ppv.to_json(), "npv": npv.to_json()}
                for share, ppv, npv in values
            ],
        }
    }


def predictive_values(
    hits: NDArray[np.float64],
    cases: NDArray[np.float64],
    clean: NDArray[np.float64],
    free: NDArray[np.float64],
    prevalence: float,
) -> tuple[Estimate, Estimate]:
    """PPV and NPV at a prevalence, from called of all cases with lesions and clean of all without.

    All `[groups]`. By Bayes' rule; intervals from Wilson's of both shares, with the design effect
    of groups, by the method of variance estimates recovery (Donner & Zou 2012). None under 5
    groups of either kind.
    """
    none = edge_cases.ONE_KIND_OF_CASE
    if not cases.any() or not free.any():
        return Estimate(None, None, none.reason), Estimate(None, None, none.reason)
    plain = hits.sum() / cases.sum(), clean.sum() / free.sum()
    values = [_by_bayes(*plain, prevalence), _by_bayes(*plain[::-1], 1 - prevalence)]
    if min((cases > 0).sum(), (free > 0).sum()) < MIN_GROUPS:
        few = edge_cases.TOO_FEW_GROUPS.reason
        ppv, npv = (Estimate(value, None, few) for value in values)
        return ppv, npv
    ill, well = (_Share.of(proportion(*each, none)) for each in ((hits, cases), (clean, free)))
    ends = _interval(ill, well, prevalence), _interval(well, ill, 1 - prevalence)
    ppv, npv = (
        Estimate(value, pair, None if value is not None else edge_cases.NOTHING_ACCEPTED.reason)
        for value, pair in zip(values, ends, strict=True)
    )
    return ppv, npv


def _by_bayes(of_kind: float, of_rest: float, share: float) -> float | None:
    """Chance of the kind that has `share` of all, given its own sign."""
    signs = of_kind * share + (1 - of_rest) * (1 - share)
    return float(of_kind * share / signs) if signs else None


@dataclass(frozen=True)
class _Share:
    """A share with its interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, found: Estimate) -> "_Share":
        """Of an estimate that has one."""
        return cls(found.value or 0.0, *(found.ci95 or (0.0, 1.0)))


def _interval(of_kind: _Share, of_rest: _Share, share: float) -> tuple[float, float]:
    """The ends of the predictive value: its odds are the likelihood ratio times the prior's."""
    wrong = _Share(1 - of_rest.value, 1 - of_rest.high, 1 - of_rest.low)
    odds = share / (1 - share)
    low = _ratio_end(of_kind.value, wrong.value, of_kind.low, wrong.high, -1)
    high = _ratio_end(of_kind.value, wrong.value, of_kind.high, wrong.low, 1)
    return float(1 / (1 + 1 / (low * odds))) if low else 0.0, float(1 / (1 + 1 / (high * odds)))


def _ratio_end(above: float, below: float, end: float, other_end: float, side: int) -> float:
    """An end of the interval of above / below, from an end of either's (Donner & Zou 2012)."""
    product, span = above * below, other_end * (2 * below - other_end)
    if span == 0:
        return np.inf
    inside = product**2 - end * (2 * above - end) * span
    return float((product + side * np.sqrt(max(inside, 0.0))) / span)


NAMES = ("bias", "lower_limit", "upper_limit", "icc")


def load_numbers(summary: PooledResults) -> dict[str, Any]:
    """Agreement of volume (ml; None in 2-D) and of number of lesions by case."""
    results = summary.results
    volumes = [(r.reference_ml, r.predicted_ml) for r in results]
    counts = [(len(r.lesions), sum(c.accepted for c in r.candidates)) for r in results]
    return {
        "lesion_load": {
            "volume_ml": _agreement(summary, volumes, edge_cases.NO_VOLUME),
            "n_lesions": _agreement(summary, counts, edge_cases.NO_CASE),
        }
    }


def _agreement(
    summary: PooledResults, pairs: Sequence[tuple[float | None, float | None]], undefined: EdgeCase
) -> dict[str, Any]:
    """The numbers of `NAMES` of all cases that have both, with intervals."""
    known = [x is not None and y is not None for x, y in pairs]
    reference, predicted = (
        np.array([0.0 if v is None else v for v in side], dtype=np.float64)
        for side in (zip(*pairs, strict=True) if pairs else ((), ()))
    )
    sums = np.stack(
        [
            summary.sums((moment * np.array(known, dtype=np.float64)).tolist())
            for moment in _moments(reference, predicted)
        ]
    )
    numbers = summary.estimator.bootstrapped(agreement_statistic(sums), sums[0], undefined, 6)
    found = dict(zip(NAMES, numbers, strict=True))
    return {"n": sum(known), **{name: one.to_json() for name, one in found.items()}}


def _moments(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.ones_like(x), y - x, (y - x) ** 2, x + y, (x + y) ** 2])


def agreement_statistic(sums: NDArray[np.float64]) -> Statistic:
    """Statistic of `NAMES` from sums by group `[5, groups]`: 1, d, d², s, s² of cases.

    d is predicted minus reference, s their sum. Bias: mean d; limits: bias ± 1.96 standard
    deviations of d (Bland & Altman 1986). ICC(A,1): two-way, absolute agreement of single
    measurements (McGraw & Wong 1996). Undefined for under two cases.
    """

    def statistic(weights: Weights) -> NDArray[np.float64]:
        n, d, d2, s, s2 = weights @ sums.T[:, 0], *(weights @ column for column in sums[1:])
        with np.errstate(invalid="ignore", divide="ignore"):
            bias = d / n
            within = np.maximum(d2 - n * bias**2, 0.0) / (n - 1)
            between = np.maximum(s2 - s**2 / n, 0.0) / (n - 1)
            rows, rest, columns = between / 2, within / 2, n * bias**2 / 2
            icc = (rows - rest) / (rows + rest + 2 / n * (columns - rest))
        spread = Z95 * np.sqrt(within)
        found = np.stack([bias, bias - spread, bias + spread, icc], axis=1)
        return np.where(n[:, None] > 1, found, np.nan)

    return statistic
