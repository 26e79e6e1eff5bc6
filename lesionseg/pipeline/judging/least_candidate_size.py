"""The least diameter of a candidate, chosen out of fold and only where it clearly helps.

A false positive stays one whatever else is dropped, and a lesion can only lose the candidate that
finds it. So dropping only the small false positives bounds what a least diameter can gain. The
cases are judged again only where that bound is worth it.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lesionseg.evaluation import CaseResult
from lesionseg.evaluation.edge_cases import MIN_GROUPS
from lesionseg.evaluation.statistics.bootstrap import draw_groups
from lesionseg.evaluation.statistics.detection import Pool, froc, pool_results
from lesionseg.pipeline.judging.choice import RATES, ChoiceSettings

_log = logging.getLogger(__name__)

QUANTILES = (0.01, 0.05, 0.1)  # of the diameters of candidates that find a lesion
MIN_GAIN = 0.01  # in mean recall

Judge = Callable[[float], list[CaseResult]]


@dataclass(frozen=True, eq=False)
class LeastSize:
    """The least diameter (0: none), the cases judged with it, and why."""

    diameter_mm: float
    results: Sequence[CaseResult]
    why: str


def choose_least_size(
    results: Sequence[CaseResult], judge: Judge, settings: ChoiceSettings
) -> LeastSize:
    """Choose among 0 and three small quantiles of the diameters of candidates that find a lesion.

    `judge` judges all cases without the candidates under a diameter. A diameter is taken when the
    mean recall at `RATES` false positives per case rises by at least `MIN_GAIN`. The 95 % interval
    of the rise (bootstrap, paired by group) must lie above 0; the largest rise wins.
    """
    best = LeastSize(0.0, results, "none: dropping small candidates does not clearly help.")
    most = 0.0
    for diameter in _diameters(results):
        if _gain(results, _only_large_false(results, diameter), settings)[0] < MIN_GAIN:
            continue
        judged = judge(diameter)
        gain, low = _gain(results, judged, settings)
        _log.info("Least diameter %.2f mm: mean recall %+.3f (from %+.3f).", diameter, gain, low)
        if gain >= MIN_GAIN and low > 0 and gain > most:
            most = gain
            why = f"{diameter:.2f} mm: mean recall {gain:+.3f} out of fold, at least {low:+.3f}."
            best = LeastSize(diameter, judged, why)
    return best


def _diameters(results: Sequence[CaseResult]) -> list[float]:
    true = [
        c.diameter_mm for r in results for c in r.candidates if c.outcome_any == "true_positive"
    ]
    if not true:
        return []
    # rounded down, so that a candidate of just that size does not fall below it
    return sorted({float(d) for d in np.floor(100 * np.quantile(true, QUANTILES)) / 100})


def _only_large_false(results: Sequence[CaseResult], diameter: float) -> list[CaseResult]:
    """The results without small false positives, and with every lesion still found."""
    return [
        replace(
            r,
            candidates=tuple(
                c
                for c in r.candidates
                if c.outcome_any != "false_positive" or c.diameter_mm >= diameter
            ),
        )
        for r in results
    ]


def _gain(
    before: Sequence[CaseResult], after: Sequence[CaseResult], settings: ChoiceSettings
) -> tuple[float, float]:
    """Rise of the mean recall and the lower end of its interval, −inf under five groups."""
    old, new = pool_results(before), pool_results(after)
    n_groups = len(old.groups)
    ones = np.ones((1, n_groups))
    gain = float((_mean_recall(new, ones) - _mean_recall(old, ones))[0])
    if n_groups < MIN_GROUPS or np.isnan(gain):
        return (0.0 if np.isnan(gain) else gain), -np.inf
    rng = np.random.default_rng(settings.seed)
    weights = draw_groups(n_groups, settings.replicates, rng).astype(np.float64)
    gains = _mean_recall(new, weights) - _mean_recall(old, weights)
    defined = gains[~np.isnan(gains)]
    return gain, float(np.quantile(defined, 0.025)) if len(defined) else -np.inf


def _mean_recall(pool: Pool, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(froc(pool, RATES)(weights).mean(1))
