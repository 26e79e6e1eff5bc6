"""Choose the score from which a candidate is accepted, and say what to expect of it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import betainc

from lesionseg.core import OperatingPoint
from lesionseg.errors import ConfigError, ContentError
from lesionseg.evaluation.by_size import NO_LESION
from lesionseg.evaluation.cases import CaseResult
from lesionseg.evaluation.curves import Pool
from lesionseg.evaluation.intervals import (
    CI,
    count_design_effect,
    few_groups_factor,
    proportion,
    rate,
)
from lesionseg.evaluation.matching import NEVER

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
    """Choose the operating point from evaluated cases that have scores.

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
        raise ConfigError("An operating point holds a rate or a sensitivity, not both.")
    if not results or not all(r.scored for r in results):
        raise ContentError("An operating point needs cases whose candidates have scores.")
    pool = Pool.of(results)
    if sensitivity is not None:
        n, n_found = len(pool.detected_at), int((pool.detected_at > NEVER).sum())
        if n == 0:
            raise ContentError("A sensitivity cannot be chosen without a reference lesion.")
        if n_found < _n_wanted(n, sensitivity):
            raise ContentError(
                f"A sensitivity of {sensitivity:g} is out of reach: at any score at most {n_found} "
                f"of {n} lesions are found. Ask for one from 0 to {n_found / n:.3g}."
            )
        name = f"sensitivity:{sensitivity:g}"
        return describe(name, _for_sensitivity(pool, sensitivity), results)
    asked = 1.0 if fp_per_case is None else fp_per_case
    if not len(pool.observed) and not quiet:
        _log.warning("No case has a candidate to choose a score by; %g is taken.", UNINFORMED_SCORE)
    score, held = _for_false_positives(pool, asked, confidence)
    point = describe(f"fp_per_case:{asked:g}", score, results)
    return replace(point, confidence=confidence if held else None)


def most_false_positives(
    asked: float, n_cases: float, confidence: float | None = None, deff: float = 1.0
) -> int:
    """How many false positives the cases may show so that new ones keep to a rate per case.

    With `confidence`, the most after which as many new cases give no more than `asked` with that
    chance, −1 where even none is too many: of two equal Poisson counts the second given the first,
    k, is at most negative binomial with k + 1 and ½ (Nelson 1970). `deff`: how much more than by
    Poisson's law the counts of patients vary; both are divided by it. Without, what `asked` says.

    >>> most_false_positives(1.0, 20), most_false_positives(1.0, 20, 0.9)
    (20, 12)
    >>> most_false_positives(0.5, 4, 0.9)
    -1
    """
    most = int(np.floor(asked * n_cases + 1e-9))
    if confidence is None:
        return most
    seen = np.arange(most + 1) / deff
    return int((betainc(seen + 1, most / deff + 1, 0.5) >= confidence).sum()) - 1


def describe(name: str, score: float, results: Sequence[CaseResult]) -> OperatingPoint:
    """A score as an operating point, with what it gives on these cases."""
    pool = Pool.of(results)
    n, roles = len(pool.detected_at), sorted({r.role for r in results if r.role})
    return OperatingPoint(
        name=name,
        score=float(score),
        chosen_on="+".join(roles) or None,
        lesion_recall=pool.n_detected(score) / n if n else None,
        false_positives_per_case=float(pool.false_by_group(score).sum() / pool.n_cases),
    )


def with_intervals(point: OperatingPoint, results: Sequence[CaseResult]) -> OperatingPoint:
    """The point with 95 % intervals of what its score gives on new cases like these."""
    pool = Pool.of(results)
    found = pool.lesion_group[pool.detected_at >= point.score]
    hits = np.bincount(found, minlength=len(pool.groups)).astype(np.float64)
    return replace(
        point,
        lesion_recall_ci95=proportion(hits, pool.lesions_by_group, NO_LESION).ci95,
        false_positives_per_case_ci95=_rate_interval([(pool, point.score)]),
    )


def with_expectation(
    point: OperatingPoint,
    results: Sequence[CaseResult],
    fold_of: Mapping[str, int],
    confidence: float | None = None,
) -> OperatingPoint:
    """The point with what its choice gives on cases that took no part in it.

    For each fold of `fold_of` (by case), which divides no group, the score is chosen on all other
    folds, with the same `confidence`, and applied to this one; lesions and false positives of all
    folds are then pooled. Where the other folds do not reach a sensitivity, the score of the last
    lesion they find is taken. With one fold there is nothing to expect: None.
    """
    fold_of_group = {r.group: fold_of[r.case] for r in results}
    if len(set(fold_of_group.values())) < 2:
        return point
    pool, kind, value = Pool.of(results), *point.name.split(":")
    held: list[tuple[Pool, float]] = []
    for number in sorted(set(fold_of_group.values())):
        inside = {group for group, fold in fold_of_group.items() if fold == number}
        rest = pool.of_groups(set(pool.groups) - inside)
        if kind == "sensitivity":
            score = _for_sensitivity(rest, float(value))
        else:
            score = _for_false_positives(rest, float(value), confidence)[0]
        held.append((pool.of_groups(inside), score))
    n_lesions, n_cases = len(pool.detected_at), pool.n_cases
    n_found = sum(part.n_detected(score) for part, score in held)
    n_false = sum(float(part.false_by_group(score).sum()) for part, score in held)
    return replace(
        point,
        expected_recall=n_found / n_lesions if n_lesions else None,
        expected_false_positives_per_case=n_false / n_cases,
        expected_false_positives_per_case_ci95=_rate_interval(held),
    )


def attainable_recall(results: Sequence[CaseResult]) -> float | None:
    """The share of the lesions that is found when every candidate counts; None without lesions."""
    detected_at = Pool.of(results).detected_at
    return float((detected_at > NEVER).mean()) if len(detected_at) else None


def dealt_folds(results: Sequence[CaseResult], n_folds: int = 100) -> dict[str, int]:
    """The fold of each case: one per group or, beyond `n_folds`, whole groups dealt out by name.

    For a single validation role, in which nobody has made folds.
    """
    groups = sorted({r.group for r in results})
    fold = {group: i % n_folds for i, group in enumerate(groups)}
    return {r.case: fold[r.group] for r in results}


def _rate_interval(parts: Sequence[tuple[Pool, float]]) -> CI | None:
    """Of the false positives per case of pools at a score each, which share no group."""
    false = np.concatenate([pool.false_by_group(score) for pool, score in parts])
    cases = np.concatenate([pool.cases_by_group for pool, _ in parts])
    return rate(false, cases, "there is no case").ci95


def _for_false_positives(pool: Pool, asked: float, confidence: float | None) -> tuple[float, bool]:
    """The lowest score that keeps to a rate, and whether it does so with that confidence."""
    observed = _allowing(pool, most_false_positives(asked, pool.n_cases))
    if confidence is None:
        return observed, False
    # patients differ most visibly where most of their false positives count
    deff = count_design_effect(pool.false_by_group(observed), pool.cases_by_group)
    deff *= few_groups_factor(len(pool.groups)) if deff > 1 else 1.0
    most = most_false_positives(asked, pool.n_cases, confidence, deff)
    score = _allowing(pool, max(most, 0))
    if pool.n_detected(observed) and not pool.n_detected(score):
        return observed, False
    return score, most >= 0


def _allowing(pool: Pool, allowed: int) -> float:
    """The lowest score with at most so many false positives."""
    false, observed = np.sort(pool.false_score)[::-1], pool.observed
    if len(false) <= allowed:
        return float(observed[0]) if len(observed) else UNINFORMED_SCORE
    # one false positive too many: the score must lie above it
    above = observed[observed > false[allowed]]
    return _between(false[allowed], above[0] if len(above) else np.inf)


def _for_sensitivity(pool: Pool, sensitivity: float) -> float:
    """The highest score that finds the share; out of reach, that of the last lesion found."""
    found = np.sort(pool.detected_at[pool.detected_at > NEVER])[::-1]
    if not len(found):
        return UNINFORMED_SCORE
    score = found[min(_n_wanted(len(pool.detected_at), sensitivity), len(found)) - 1]
    below = pool.observed[pool.observed < score]
    return _between(below[-1], score) if len(below) else float(score)


def _n_wanted(n: int, sensitivity: float) -> int:
    return max(1, int(np.ceil(sensitivity * n - 1e-9)))


def _between(low: float, high: float) -> float:
    """A score above `low` and not above `high`."""
    if not np.isfinite(high):
        return float(np.nextafter(low, np.inf))
    middle = (low + high) / 2
    return float(middle if middle > low else high)
