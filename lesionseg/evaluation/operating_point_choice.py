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

from lesionseg.core import Aim, OperatingPoint
from lesionseg.errors import ContentError
from lesionseg.evaluation.case_results import CaseResult
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

DEFAULT_AIM = Aim("auto")
LESIONS_PER_FALSE_POSITIVE = 10
# if no case shows a candidate: half-way, so that an unseen scan's faint ones are not all taken
UNINFORMED_SCORE = 0.5
_MARGIN = 1e-4  # above a score that is not accepted, so that rounding does not accept it


def choose(
    results: Sequence[CaseResult],
    aim: Aim = DEFAULT_AIM,
    *,
    confidence: float | None = None,
    quiet: bool = False,
) -> OperatingPoint:
    """Choose the operating point from evaluated cases that have scores.

    - `fp_per_case`: the lowest score by which new cases have no more false positives per case on
      average or, with `confidence`, by which as many new cases have no more with that chance. If
      even zero false positives on these cases cannot promise that, the score allows none. If that
      score finds no lesion, the rate on these cases is the one asked for. `confidence` of the
      result is then None.
    - `auto`: `fp_per_case` with the rate of `default_rate`.
    - `best_f1`: the score with the highest lesion F1, the highest one of equals.
    - `sensitivity`: just above the next candidate after those that find at least this share of the
      lesions.
    - `score`: this score.

    Args:
        results: the evaluated cases.
        aim: what the score is chosen for.
        confidence: see `fp_per_case`.
        quiet: no warning if no case has a candidate. The score is then `UNINFORMED_SCORE`.

    Returns:
        The operating point, with its recall and rate on these cases. `auto` has the name of the
        rate that it stands for.

    Raises:
        ContentError: if candidates have no scores, or if a sensitivity is out of reach or there is
            no lesion.
    """
    if not results or not all(r.scored for r in results):
        raise ContentError("An operating point needs cases whose candidates have scores.")
    pool = Pool.of(results)
    is_default = aim.kind == "auto"
    if is_default:
        aim = Aim("fp_per_case", default_rate(len(pool.detected_at), pool.n_cases))
    if not len(pool.observed) and aim.kind != "score" and not quiet:
        _log.warning(
            "The model detected nothing on these cases, so the threshold of %g is used. "
            "A longer training may help.",
            UNINFORMED_SCORE,
        )
    design_effect = 0.0
    keeps_confidence = False
    if aim.kind == "score":
        chosen = aim.value
    elif aim.kind == "sensitivity":
        chosen = _for_sensitivity(pool, aim.value)
    elif aim.kind == "best_f1":
        chosen = _for_best_f1(pool)
    else:
        seen = _allowing(pool, int(np.floor(aim.value * pool.n_cases + 1e-9)))
        # patients differ most visibly if most of their false positives count
        design_effect = count_design_effect(pool.false_by_group(seen), pool.cases_by_group)
        most = most_false_positives(
            aim.value, pool.n_cases, design_effect, confidence, len(pool.groups)
        )
        chosen = _allowing(pool, max(most, 0))
        keeps_confidence = most >= 0
        if pool.n_detected(seen) and not pool.n_detected(chosen):
            chosen = seen
            keeps_confidence = False
    false = pool.false_by_group(chosen)
    hits = pool.detected_at >= chosen
    found = np.bincount(pool.lesion_group[hits], minlength=len(pool.groups)).astype(np.float64)
    recall = proportion(found, pool.lesions_by_group, NO_LESION)
    false_positives = rate(false, pool.cases_by_group, NO_CASE)
    # below all false positives no next one is known; ½ is Jeffreys' prior
    is_last = false.sum() == len(pool.false_score)
    expected = (false.sum() + (0.5 if is_last else design_effect)) / pool.n_cases
    reach = pool.detected_at > NEVER
    roles = sorted({r.role for r in results if r.role})
    return OperatingPoint(
        name=str(aim),
        score=float(chosen),
        chosen_on=None if aim.kind == "score" else "+".join(roles) or None,
        lesion_recall=recall.value,
        false_positives_per_case=false_positives.value,
        lesion_recall_ci95=recall.ci95,
        false_positives_per_case_ci95=false_positives.ci95,
        expected_false_positives_per_case=float(expected),
        attainable_recall=float(reach.mean()) if len(reach) else None,
        confidence=confidence if keeps_confidence else None,
        is_default=is_default,
        lesion_f1=lesion_f1(int(hits.sum()), float(false.sum()), len(hits)),
    )


def default_rate(n_lesions: int, n_cases: float) -> float:
    """Return the default rate of false positives per case.

    It is 1, or one per `LESIONS_PER_FALSE_POSITIVE` lesions if that is more: with 60 lesions per
    case, one false positive per case would leave most of them out.

    >>> default_rate(n_lesions=30, n_cases=20), default_rate(n_lesions=1013, n_cases=51)
    (1.0, 2.0)
    """
    per_case = n_lesions / n_cases / LESIONS_PER_FALSE_POSITIVE if n_cases else 0.0
    return max(1.0, float(f"{per_case:.2g}"))


def lesion_f1(n_found: int, n_false: float, n_lesions: int) -> float | None:
    """Return F1 of lesions, 2·TP / (2·TP + FP + FN); None without lesions and false positives.

    >>> lesion_f1(n_found=8, n_false=4, n_lesions=12)
    0.6666666666666666
    """
    total = n_found + n_false + n_lesions
    return 2 * n_found / total if total else None


def most_false_positives(
    asked: float,
    n_cases: float,
    deff: float = 1.0,
    confidence: float | None = None,
    groups: int | None = None,
) -> int:
    """Return how many false positives the cases may have so that new ones keep to a rate.

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


def _for_best_f1(pool: Pool) -> float:
    """Return the highest observed score with the highest F1, `UNINFORMED_SCORE` without scores."""
    if not len(pool.observed):
        return UNINFORMED_SCORE
    scores = pool.observed[::-1]
    n_lesions = len(pool.detected_at)
    found = np.array([pool.n_detected(score) for score in scores])
    false = np.array([(pool.false_score >= score).sum() for score in scores])
    f1 = 2 * found / (found + false + n_lesions)
    return float(scores[int(f1.argmax())])


def _above(score: float, pool: Pool) -> float:
    higher = pool.observed[pool.observed > score]
    step = min(_MARGIN, (higher[0] - score) / 2) if len(higher) else _MARGIN
    return float(score + step) if score + step > score else float(higher[0])
