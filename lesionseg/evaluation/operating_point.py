"""Choose the score from which a candidate is accepted."""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import OperatingPoint
from lesionseg.errors import ConfigError, ContentError
from lesionseg.evaluation.detection import Pool, pool_results
from lesionseg.evaluation.matching import NEVER
from lesionseg.evaluation.results import CaseResult

_log = logging.getLogger(__name__)

# where no case shows a candidate: half-way, so that an unseen scan's faint ones are not all taken
UNINFORMED_SCORE = 0.5


def choose(
    results: Sequence[CaseResult],
    *,
    fp_per_case: float | None = None,
    sensitivity: float | None = None,
) -> OperatingPoint:
    """Choose the operating point from judged cases that have scores.

    `fp_per_case` (1 when neither is given): the lowest score with no more false positives per
    case. `sensitivity`: the highest score that finds at least this share of the lesions. The score
    lies halfway between the two observed ones it separates. Where no case has a candidate there is
    nothing to choose by: the score is then `UNINFORMED_SCORE`, with a warning. Raises `ConfigError`
    when both are given, `ContentError` for candidates without scores and for a sensitivity without
    lesions or out of reach, naming the range that can be reached.
    """
    if fp_per_case is not None and sensitivity is not None:
        raise ConfigError(
            "An operating point is chosen for false positives or for a sensitivity, not for both.",
            seen=f"fp_per_case={fp_per_case}, sensitivity={sensitivity}",
        )
    if not results or not all(r.scored for r in results):
        raise ContentError("An operating point needs cases whose candidates have scores.")
    pool = pool_results(results)
    if sensitivity is not None:
        return _point(f"sensitivity:{sensitivity:g}", _for_sensitivity(pool, sensitivity), results)
    rate = 1.0 if fp_per_case is None else fp_per_case
    return _point(f"fp_per_case:{rate:g}", _for_false_positives(pool, rate), results)


def describe(name: str, score: float, results: Sequence[CaseResult]) -> OperatingPoint:
    """A given score as an operating point, with what it gives on these cases."""
    return _point(name, score, results)


def _point(name: str, score: float, results: Sequence[CaseResult]) -> OperatingPoint:
    pool = pool_results(results)
    n = len(pool.detected_at)
    roles = sorted({r.role for r in results if r.role})
    return OperatingPoint(
        name=name,
        score=float(score),
        chosen_on="+".join(roles) or None,
        lesion_recall=float((pool.detected_at >= score).sum() / n) if n else None,
        false_positives_per_case=float((pool.false_score >= score).sum() / pool.n_cases),
    )


def _for_false_positives(pool: Pool, rate: float) -> float:
    allowed = int(np.floor(rate * pool.n_cases + 1e-9))
    false = np.sort(pool.false_score)[::-1]
    observed = _observed(pool)
    if len(false) <= allowed:
        if len(observed):
            return float(observed[0])
        _log.warning("No case has a candidate to choose a score by; %g is taken.", UNINFORMED_SCORE)
        return UNINFORMED_SCORE
    # one false positive too many: the score must lie above it
    above = observed[observed > false[allowed]]
    return _between(false[allowed], above[0] if len(above) else np.inf)


def _for_sensitivity(pool: Pool, sensitivity: float) -> float:
    n = len(pool.detected_at)
    if n == 0:
        raise ContentError("A sensitivity cannot be chosen for without a reference lesion.")
    wanted = max(1, int(np.ceil(sensitivity * n - 1e-9)))
    found = np.sort(pool.detected_at[pool.detected_at > NEVER])[::-1]
    if len(found) < wanted:
        raise ContentError(
            "This sensitivity is out of reach.",
            seen=f"{sensitivity:g}; at any score at most {len(found)} of {n} lesions are found",
            expected=f"a sensitivity from 0 to {len(found) / n:.3g}",
        )
    score = found[wanted - 1]
    observed = _observed(pool)
    below = observed[observed < score]
    return _between(below[-1], score) if len(below) else float(score)


def _observed(pool: Pool) -> NDArray[np.float64]:
    """All scores at which something changes, ascending."""
    return np.unique(np.concatenate([pool.detected_at[pool.detected_at > NEVER], pool.false_score]))


def _between(low: float, high: float) -> float:
    """A score above `low` and not above `high`."""
    if not np.isfinite(high):
        return float(np.nextafter(low, np.inf))
    middle = (low + high) / 2
    return float(middle if middle > low else high)
