"""Choose the score from which a candidate is accepted, and say what to expect of it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

from lesionseg.core import OperatingPoint
from lesionseg.errors import ConfigError, ContentError
from lesionseg.evaluation import edge_cases
from lesionseg.evaluation.results import NEVER, CaseResult
from lesionseg.evaluation.statistics.bootstrap import count_design_effect, few_groups_factor
from lesionseg.evaluation.statistics.burden import burden_errors
from lesionseg.evaluation.statistics.detection import Pool, ThresholdSweep, pool_results
from lesionseg.evaluation.statistics.estimates import proportion, rate

_log = logging.getLogger(__name__)

# where no case shows a candidate: half-way, so that an unseen scan's faint ones are not all taken
UNINFORMED_SCORE = 0.5


def choose(
    results: Sequence[CaseResult],
    *,
    fp_per_case: float | None = None,
    sensitivity: float | None = None,
    confidence: float | None = None,
    quiet: bool = False,
) -> OperatingPoint:
    """Choose the operating point from judged cases that have scores.

    `fp_per_case` (1 when neither is given): the lowest score with no more false positives per
    case; with `confidence`, the lowest by which as many new cases give no more with that chance
    (`most_false_positives`). Where even none seen is too many for that, the score allows none, and
    where that score finds no lesion, the observed rate; the point's `confidence` is then None.
    `sensitivity`: the highest score that finds at least this share of the lesions. The score lies
    halfway between the two observed ones it separates. Where no case has a candidate there is
    nothing to choose by: the score is then `UNINFORMED_SCORE`, with a warning unless `quiet`.
    Raises `ConfigError` when both are given, `ContentError` for candidates without scores and for
    a sensitivity without lesions or out of reach, naming the range that can be reached.
    """
    if fp_per_case is not None and sensitivity is not None:
        raise ConfigError(
            "An operating point is chosen for false positives or for a sensitivity, not for both.",
            seen=f"fp_per_case={fp_per_case}, sensitivity={sensitivity}",
        )
    if not results or not all(r.scored for r in results):
        raise ContentError("An operating point needs cases whose candidates have scores.")
    sweep = ThresholdSweep.of_results(results)
    if sensitivity is not None:
        _refuse_unreachable(sweep, sensitivity)
        return _point(f"sensitivity:{sensitivity:g}", _for_sensitivity(sweep, sensitivity), results)
    asked = 1.0 if fp_per_case is None else fp_per_case
    if not len(sweep.observed) and not quiet:
        _log.warning("No case has a candidate to choose a score by; %g is taken.", UNINFORMED_SCORE)
    score, held = _for_false_positives(pool_results(results), asked, confidence)
    point = _point(f"fp_per_case:{asked:g}", score, results)
    return replace(point, confidence=confidence if held else None)


def most_false_positives(
    rate: float, n_cases: float, confidence: float | None = None, deff: float = 1.0
) -> int:
    """How many false positives the cases may show so that new ones keep to `rate` per case.

    With `confidence`, the most after which as many new cases give no more than `rate` with that
    chance, −1 where even none is too many: of two equal Poisson counts the second given the first,
    k, is at most negative binomial with k + 1 and ½ (Nelson 1970). `deff`: how much more than by
    Poisson's law the counts of patients vary; both are divided by it. Without, what `rate` says.

    >>> most_false_positives(1.0, 20), most_false_positives(1.0, 20, 0.9)
    (20, 12)
    >>> most_false_positives(0.5, 4, 0.9)
    -1
    """
    most = int(np.floor(rate * n_cases + 1e-9))
    if confidence is None:
        return most
    seen = np.arange(most + 1) / deff
    return int((betainc(seen + 1, most / deff + 1, 0.5) >= confidence).sum()) - 1


def describe(name: str, score: float, results: Sequence[CaseResult]) -> OperatingPoint:
    """A given score as an operating point, with what it gives on these cases."""
    return _point(name, score, results)


def with_intervals(point: OperatingPoint, results: Sequence[CaseResult]) -> OperatingPoint:
    """The point with 95 % intervals of what its score gives on new cases like these.

    And with how far the lesions of a new case may lie from what is accepted (`burden_errors`).
    Wilson's and Garwood's with the design effect of groups, as in scores.json; none under 5
    groups. They hold although the same cases chose the score: the rate at the k-th false positive
    has the gamma distribution whose quantiles are Garwood's ends, as the share at the k-th lesion
    has the beta distribution of a binomial interval (Garwood 1936, Clopper & Pearson 1934).
    Bootstraps that choose anew in every replicate cover less (docs/evaluation.md).
    """
    pool = pool_results(results)
    lesions = _by_group(pool, pool.lesion_group)
    hits = _by_group(pool, pool.lesion_group[pool.detected_at >= point.score])
    false, cases = _false_by_group(pool, point.score), pool.cases_by_group
    count_error, volume_error = burden_errors(results, point.score)
    return replace(
        point,
        count_error=count_error,
        volume_error=volume_error,
        lesion_recall_ci95=proportion(hits, lesions, edge_cases.NO_LESION).ci95,
        false_positives_per_case_ci95=rate(false, cases, edge_cases.NO_CASE).ci95,
    )


def with_expectation(
    point: OperatingPoint,
    results: Sequence[CaseResult],
    fold_of: Mapping[str, int],
    confidence: float | None = None,
) -> OperatingPoint:
    """The point with what its choice gives on cases that took no part in it.

    For each fold of `fold_of` (by case) the score is chosen on all other folds, with the same
    `confidence`, and applied to this one; lesions and false positives of all folds are then pooled.
    The rate's 95 % interval is Garwood's with the design effect of groups, None under 5. Where the
    other folds do not reach a sensitivity, the score of the last lesion they find is taken. With
    one fold there is nothing to expect: None.
    """
    numbers = sorted({fold_of[r.case] for r in results})
    if len(numbers) < 2:
        return point
    n_found, held, false = 0, [], []
    for number in numbers:
        rest = pool_results([r for r in results if fold_of[r.case] != number])
        held.append(pool_results([r for r in results if fold_of[r.case] == number]))
        score = _score_by_name(point.name, rest, confidence)
        n_found += int((held[-1].detected_at >= score).sum())
        false.append(_false_by_group(held[-1], score))
    n_lesions = sum(len(pool.detected_at) for pool in held)
    cases = np.concatenate([pool.cases_by_group for pool in held])
    expected = rate(np.concatenate(false), cases, edge_cases.NO_CASE)
    return replace(
        point,
        expected_recall=n_found / n_lesions if n_lesions else None,
        expected_false_positives_per_case=expected.value,
        expected_false_positives_per_case_ci95=expected.ci95,
    )


def attainable_recall(results: Sequence[CaseResult]) -> float | None:
    """The share of the lesions that is found when every candidate counts; None without lesions."""
    detected_at = pool_results(results).detected_at
    return float((detected_at > NEVER).mean()) if len(detected_at) else None


def dealt_folds(results: Sequence[CaseResult], n_folds: int = 5) -> dict[str, int]:
    """The fold of each case, whole groups dealt out by name; as many as groups, at most `n_folds`.

    For a single validation role, in which nobody has made folds.
    """
    groups = sorted({r.group for r in results})
    fold = {group: i % n_folds for i, group in enumerate(groups)}
    return {r.case: fold[r.group] for r in results}


def _point(name: str, score: float, results: Sequence[CaseResult]) -> OperatingPoint:
    sweep = ThresholdSweep.of_results(results)
    n = len(sweep.detected_at)
    roles = sorted({r.role for r in results if r.role})
    return OperatingPoint(
        name=name,
        score=float(score),
        chosen_on="+".join(roles) or None,
        lesion_recall=sweep.n_detected(score) / n if n else None,
        false_positives_per_case=sweep.n_false_positive(score) / sweep.n_cases,
    )


def _by_group(pool: Pool, groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """How often each group of the pool occurs in `groups`."""
    return np.bincount(groups, minlength=len(pool.groups)).astype(np.float64)


def _false_by_group(pool: Pool, score: float) -> NDArray[np.float64]:
    return _by_group(pool, pool.false_group[pool.false_score >= score])


def _sweep(pool: Pool) -> ThresholdSweep:
    return ThresholdSweep(pool.detected_at, pool.false_score, pool.n_cases)


def _score_by_name(name: str, pool: Pool, confidence: float | None) -> float:
    """The score that the choice called `name` makes on these cases."""
    kind, _, value = name.partition(":")
    if kind == "sensitivity":
        return _for_sensitivity(_sweep(pool), float(value))
    return _for_false_positives(pool, float(value), confidence)[0]


def _for_false_positives(pool: Pool, rate: float, confidence: float | None) -> tuple[float, bool]:
    """The lowest score that keeps to the rate, and whether it does so with that confidence."""
    sweep = _sweep(pool)
    observed = _allowing(sweep, most_false_positives(rate, pool.n_cases))
    if confidence is None:
        return observed, False
    # patients differ most visibly where most of their false positives count
    cases = pool.cases_by_group
    deff = count_design_effect(_false_by_group(pool, observed), cases)
    deff *= few_groups_factor(len(pool.groups)) if deff > 1 else 1.0
    most = most_false_positives(rate, pool.n_cases, confidence, deff)
    score = _allowing(sweep, max(most, 0))
    if sweep.n_detected(observed) and not sweep.n_detected(score):
        return observed, False
    return score, most >= 0


def _allowing(sweep: ThresholdSweep, allowed: int) -> float:
    """The lowest score with at most so many false positives."""
    false, observed = np.sort(sweep.false_score)[::-1], sweep.observed
    if len(false) <= allowed:
        return float(observed[0]) if len(observed) else UNINFORMED_SCORE
    # one false positive too many: the score must lie above it
    above = observed[observed > false[allowed]]
    return _between(false[allowed], above[0] if len(above) else np.inf)


def _for_sensitivity(sweep: ThresholdSweep, sensitivity: float) -> float:
    """The highest score that finds the share; out of reach, that of the last lesion found."""
    n = len(sweep.detected_at)
    found = np.sort(sweep.detected_at[sweep.detected_at > NEVER])[::-1]
    if not len(found):
        return UNINFORMED_SCORE
    score = found[min(_n_wanted(n, sensitivity), len(found)) - 1]
    below = sweep.observed[sweep.observed < score]
    return _between(below[-1], score) if len(below) else float(score)


def _refuse_unreachable(sweep: ThresholdSweep, sensitivity: float) -> None:
    n, n_found = len(sweep.detected_at), int((sweep.detected_at > NEVER).sum())
    if n == 0:
        raise ContentError("A sensitivity cannot be chosen for without a reference lesion.")
    if n_found < _n_wanted(n, sensitivity):
        raise ContentError(
            "This sensitivity is out of reach.",
            seen=f"{sensitivity:g}; at any score at most {n_found} of {n} lesions are found",
            expected=f"a sensitivity from 0 to {n_found / n:.3g}",
        )


def _n_wanted(n: int, sensitivity: float) -> int:
    return max(1, int(np.ceil(sensitivity * n - 1e-9)))


def _between(low: float, high: float) -> float:
    """A score above `low` and not above `high`."""
    if not np.isfinite(high):
        return float(np.nextafter(low, np.inf))
    middle = (low + high) / 2
    return float(middle if middle > low else high)
