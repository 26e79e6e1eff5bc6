"""Scan by scan: the four counts, and what they mean where lesions are rarer or commoner."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.evaluation import edge_cases
from lesionseg.evaluation.statistics.bootstrap import (
    MIN_GROUPS,
    design_effect,
    effective_groups,
    few_groups_factor,
    wilson_interval,
)
from lesionseg.evaluation.statistics.estimates import Estimate
from lesionseg.evaluation.statistics.pooled import PooledResults

PREVALENCES = (0.01, 0.05, 0.1, 0.25, 0.5)


def case_table(summary: PooledResults) -> dict[str, Any]:
    """The 2×2 table of cases, and PPV and NPV at `PREVALENCES`.

    A case is positive when a judged candidate is accepted, anywhere in it.
    """
    called = np.array([r.is_called for r in summary.results], dtype=np.bool_)
    ill = np.array([bool(r.lesions) for r in summary.results], dtype=np.bool_)
    hits, cases, clean, free = (
        summary.sums(kind.tolist()) for kind in (called & ill, ill, ~called & ~ill, ~ill)
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
    if not cases.any() or not free.any():
        none = edge_cases.ONE_KIND_OF_CASE.reason
        return Estimate(None, None, none), Estimate(None, None, none)
    plain = hits.sum() / cases.sum(), clean.sum() / free.sum()
    values = [_by_bayes(*plain, prevalence), _by_bayes(*plain[::-1], 1 - prevalence)]
    if min((cases > 0).sum(), (free > 0).sum()) < MIN_GROUPS:
        few = edge_cases.TOO_FEW_GROUPS.reason
        ppv, npv = (Estimate(value, None, few) for value in values)
        return ppv, npv
    ill, well = _share(hits, cases), _share(clean, free)
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
    """A share with Wilson's interval."""

    value: float
    low: float
    high: float


def _share(hits: NDArray[np.float64], totals: NDArray[np.float64]) -> _Share:
    deff = design_effect(hits, totals) * few_groups_factor(effective_groups(totals))
    value = float(hits.sum() / totals.sum())
    return _Share(value, *wilson_interval(float(hits.sum()), float(totals.sum()), deff))


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
