"""Choose the score from which a candidate is accepted, and say what to expect of it.

Just above the (m+1)-th false positive of n patients, ranked by score, new ones show (m+1)/n false
positives on average: the rate there is gamma distributed. Where patients differ, their rates
varying by v times their mean squared, it is (m+1)/(n − v). So a rate k is expected with
m = k·n − d, where d = 1 + k·v is the variance of the patients' counts over their mean, their design
effect. (d is also the bound in conformal risk control, Angelopoulos et al., arXiv 2208.02814.)
"""

import logging
from collections.abc import Sequence

import numpy as np
from scipy.special import betainc

from lesionseg.core import OperatingPoint
from lesionseg.errors import ConfigError, ContentError
from lesionseg.evaluation.cases import CaseResult
from lesionseg.evaluation.curves import Pool
from lesionseg.evaluation.intervals import (
    NO_CASE,
    NO_LESION,
    count_design_effect,
    few_groups_factor,
    proportion,
    rate,
)
from lesionseg.evaluation.matching import NEVER

_log = logging.getLogger(__name__)

# where no case shows a candidate: half-way, so that an unseen scan's faint ones are not all taken
UNINFORMED_SCORE = 0.5
_MARGIN = 1e-4  # above a score that is not accepted, so that rounding does not accept it


def choose(
    results: Sequence[CaseResult],
    *,
    fp_per_case: float | None = None,
    sensitivity: float | None = None,
    score: float | None = None,
    confidence: float | None = None,
    quiet: bool = False,
) -> OperatingPoint:
    """Choose the operating point from evaluated cases that have scores.

    `fp_per_case` (1 when nothing is given): the lowest score by which new cases have no more false
    positives per case on average or, with `confidence`, by which as many new cases have no more
    with that chance. Where even none seen is too many for that, the score allows none; where that
    score finds no lesion, the rate seen is the one asked for; `confidence` is then None.
    `sensitivity`: just above the next candidate after those that find at least this share of the
    lesions. `score`: this one. Where no case has a candidate there is nothing to choose by: the
    score is then `UNINFORMED_SCORE`, with a warning unless `quiet`. Raises `ConfigError` when
    several are given, `ContentError` for candidates without scores and for a sensitivity without
    lesions or out of reach, naming the range that can be reached.
    """
    kinds = {"fp_per_case": fp_per_case, "sensitivity": sensitivity, "score": score}
    given = {kind: value for kind, value in kinds.items() if value is not None}
    if len(given) > 1:
        raise ConfigError(f"An operating point holds one of {', '.join(given)}.")
    if not results or not all(r.scored for r in results):
        raise ContentError("An operating point needs cases whose candidates have scores.")
    ((kind, asked),) = given.items() or [("fp_per_case", 1.0)]
    pool, deff, held = Pool.of(results), 0.0, False
    if kind == "score":
        chosen = asked
    elif kind == "sensitivity":
        chosen = _for_sensitivity(pool, asked)
    else:
        if not len(pool.observed) and not quiet:
            _log.warning(
                "The model detected nothing on these cases, so the threshold of %g is used. "
                "A longer training may help.",
                UNINFORMED_SCORE,
            )
        seen = _allowing(pool, int(np.floor(asked * pool.n_cases + 1e-9)))
        # patients differ most visibly where most of their false positives count
        deff = count_design_effect(pool.false_by_group(seen), pool.cases_by_group)
        most = most_false_positives(asked, pool.n_cases, deff, confidence, len(pool.groups))
        chosen, held = _allowing(pool, max(most, 0)), most >= 0
        if pool.n_detected(seen) and not pool.n_detected(chosen):
            chosen, held = seen, False
    false = pool.false_by_group(chosen)
    lesions, hits = pool.lesions_by_group, pool.detected_at >= chosen
    found = np.bincount(pool.lesion_group[hits], minlength=len(pool.groups)).astype(np.float64)
    recall = proportion(found, lesions, NO_LESION)
    false_positives = rate(false, pool.cases_by_group, NO_CASE)
    is_last = false.sum() == len(pool.false_score)  # no next one is known; ½ is Jeffreys' prior
    reach = pool.detected_at > NEVER
    roles = sorted({r.role for r in results if r.role})
    return OperatingPoint(
        name=f"{kind}:{asked:g}",
        score=float(chosen),
        chosen_on=None if kind == "score" else "+".join(roles) or None,
        lesion_recall=recall.value,
        false_positives_per_case=false_positives.value,
        lesion_recall_ci95=recall.ci95,
        false_positives_per_case_ci95=false_positives.ci95,
        expected_false_positives_per_case=float(
            (false.sum() + (0.5 if is_last else deff)) / pool.n_cases
        ),
        attainable_recall=float(reach.mean()) if len(reach) else None,
        confidence=confidence if held else None,
    )


def most_false_positives(
    asked: float,
    n_cases: float,
    deff: float = 1.0,
    confidence: float | None = None,
    groups: int | None = None,
) -> int:
    """How many false positives the cases may show so that new ones keep to a rate per case.

    On average; with `confidence`, the most after which as many new cases give no more than `asked`
    with that chance. Under 0: even none is too many. `deff`: how much more than by Poisson's law
    the counts of patients vary. With `confidence`: of two equal Poisson counts the second given the
    first, k, is at most negative binomial with k + 1 and ½ (Nelson 1970), both divided by `deff`,
    which is raised where it was estimated from few `groups`.

    >>> most_false_positives(1.0, 20), most_false_positives(1.0, 20, 2.5)
    (19, 17)
    >>> most_false_positives(1.0, 20, confidence=0.9), most_false_positives(0.5, 4, confidence=0.9)
    (12, -1)
    """
    if confidence is None:
        return int(np.floor(asked * n_cases - deff + 1e-9))
    deff *= few_groups_factor(groups) if groups and deff > 1 else 1.0
    most = int(np.floor(asked * n_cases + 1e-9))
    chances = betainc(np.arange(most + 1) / deff + 1, most / deff + 1, 0.5)
    return int((chances >= confidence).sum()) - 1


def _allowing(pool: Pool, allowed: int) -> float:
    false = np.sort(pool.false_score)[::-1]
    if len(false) <= allowed:
        return float(pool.observed[0]) if len(pool.observed) else UNINFORMED_SCORE
    return _above(false[allowed], pool)


def _for_sensitivity(pool: Pool, sensitivity: float) -> float:
    n, found = len(pool.detected_at), np.sort(pool.detected_at[pool.detected_at > NEVER])[::-1]
    if n == 0:
        raise ContentError("A sensitivity cannot be chosen without a reference lesion.")
    wanted = max(1, int(np.ceil(sensitivity * n - 1e-9)))
    if len(found) < wanted:
        raise ContentError(
            f"Sensitivity {sensitivity:g} cannot be reached: even with the threshold at 0, only "
            f"{len(found)} of {n} lesions ({len(found) / n:.3g}) are found."
        )
    score = found[wanted - 1]
    below = pool.observed[pool.observed < score]
    return _above(below[-1], pool) if len(below) else float(score)


def _above(score: float, pool: Pool) -> float:
    higher = pool.observed[pool.observed > score]
    step = min(_MARGIN, (higher[0] - score) / 2) if len(higher) else _MARGIN
    return float(score + step) if score + step > score else float(higher[0])
