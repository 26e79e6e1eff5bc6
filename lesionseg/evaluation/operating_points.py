"""Operating points: parse `fp_per_case:1`, choose the score, promise a sensitivity, describe it.

`choose` takes evaluated cases, and estimates the rate of its score on new patients. Let the
threshold be just above the (m+1)-th false positive of n patients, by descending score.

- The true rate is then gamma distributed, and new patients have (m+1)/n false positives on average.
- If the rates of patients differ, with a variance of v times the squared mean, the average is
  (m+1)/(n − v).
- A rate k is therefore expected for m = k·n − d. Here d = 1 + k·v is the design effect: the
  variance of the patients' counts divided by their mean.

This is also the bound of conformal risk control (Angelopoulos et al., arXiv 2208.02814), which
promises a sensitivity in the same way, see `_promise_sensitivity`.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.special import betainc

from lesionseg.core import OperatingPoint
from lesionseg.core.arrays import Numbers
from lesionseg.errors import ConfigError, ContentError, count, format_score
from lesionseg.evaluation.intervals import (
    NO_LESION,
    NO_PREDICTED_CASE,
    Estimate,
    count_design_effect,
    divide,
    estimate_rate,
    few_groups_factor,
    proportion,
)

if TYPE_CHECKING:  # pandas, which a prediction does not need
    from lesionseg.evaluation.tables import Tables

_log = logging.getLogger(__name__)

AimKind = Literal["auto", "best_f1", "fp_per_case", "sensitivity", "score"]
_WITHOUT_VALUE: tuple[AimKind, ...] = ("auto", "best_f1")
_WITH_VALUE: tuple[AimKind, ...] = ("fp_per_case", "sensitivity", "score")
_ADVICE = "Write auto, best_f1, fp_per_case:1, sensitivity:0.9 or score:0.5, with your own number"
LESIONS_PER_FALSE_POSITIVE = 10
FEW_PATIENTS = 20  # with fewer, the rate of a score varies much between sets of patients
OUT_OF_FOLD = "out-of-fold"  # chosen on cases that the network did not see
# the score if no candidate counts, because 0 would accept all faint candidates of new scans
UNINFORMED_SCORE = 0.5
_MARGIN = 1e-4  # distance to the next rejected score, so that rounding does not accept it
# tolerance of whole numbers: 0.1 · 30 cases are 3 false positives, although the product is below 3
_ROUNDING = 1e-9


# --- the request ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class OperatingPointAim:
    """The aim that the score of an operating point is chosen for.

    `auto`: the default rule (`default_rate`). `best_f1`: the highest F1 of lesions. `fp_per_case`:
    `value` false positives per case. `sensitivity`: a lesion recall of `value`. `score`: the score
    `value` itself.
    """

    kind: AimKind
    value: float = 0.0

    @classmethod
    def parse(cls, text: str | float, *, number_is_score: bool = False) -> "OperatingPointAim":
        """Parse the setting `operating_point=`, such as `fp_per_case:1` or `best_f1`.

        Args:
            text: The aim. A rate must be from 0 to 10⁶, any other number from 0 to 1.
            number_is_score: True accepts a number without a kind, such as `0.5`, as a score.

        Raises:
            ConfigError: If the text is not an aim.

        >>> OperatingPointAim.parse("fp_per_case:0.50")
        OperatingPointAim(kind='fp_per_case', value=0.5)
        >>> str(OperatingPointAim.parse("best_f1"))
        'best_f1'
        """
        name, colon, number = str(text).strip().partition(":")
        name = name.strip()
        hint = ""
        if not colon:
            for kind in _WITHOUT_VALUE:
                if name == kind:
                    return cls(kind)
            score = _parse_number(name)
            if score is not None and 0 <= score <= 1:
                if number_is_score:
                    return cls("score", score)
                hint = f" Did you mean score:{name}?"
        value = _parse_number(number)
        for kind in _WITH_VALUE:
            highest = 1e6 if kind == "fp_per_case" else 1
            if name == kind and value is not None and 0 <= value <= highest:
                return cls(kind, value)
        raise ConfigError(
            f"operating_point={text}: this is not an operating point.{hint} {_ADVICE}."
        )

    def __str__(self) -> str:
        """Return the aim as the setting states it, such as `fp_per_case:0.5` or `best_f1`."""
        if self.kind in _WITHOUT_VALUE:
            return self.kind
        return f"{self.kind}:{self.value:.10g}"

    @property
    def given(self) -> OperatingPoint | None:
        """The operating point if the aim is a score; None if a score must be chosen on cases."""
        return OperatingPoint(str(self), self.value) if self.kind == "score" else None


def _parse_number(text: str) -> float | None:
    """Convert a text to a number; return None if it is not a number."""
    try:
        return float(text)
    except ValueError:
        return None


DEFAULT_AIM = OperatingPointAim("auto")
DEFAULT_POINT = OperatingPoint("score:0.5", UNINFORMED_SCORE)  # if no cases chose one


def find_operating_point(
    points: Sequence[OperatingPoint], aim: OperatingPointAim | None = None
) -> OperatingPoint:
    """Return the operating point of a bundle that a user requested.

    Args:
        points: The operating points that are stored in the bundle.
        aim: The requested aim. None and `auto` return the first point, or score 0.5 if the bundle
            has no points. The aim `score` returns a point with this score. For any other aim, the
            bundle must have a point with an equal aim.

    Raises:
        ConfigError: If no point has this aim. The message lists the available points.

    >>> find_operating_point((), OperatingPointAim("score", 0.37)).score
    0.37
    """
    if aim is None or aim.kind == "auto":
        return points[0] if points else DEFAULT_POINT
    if aim.given is not None:  # the aim is a score, which needs no point of the bundle
        return aim.given
    for point in points:
        if OperatingPointAim.parse(point.name) == aim:
            return point
    # all points were chosen on the same cases, so their attainable recall is the same
    recalls = [p.attainable_recall for p in points if p.attainable_recall is not None]
    attainable = ""
    if aim.kind == "sensitivity" and recalls:
        attainable = f" (attainable: 0 to {recalls[0]:.3g})"
    raise ConfigError(
        f"operating_point={aim}: the bundle has no such operating point{attainable}. "
        f"Choose one of {', '.join([*(p.name for p in points), 'score:<0 to 1>'])}."
    )


# --- the choice ----------------------------------------------------------------------------------


def choose(
    tables: "Tables",
    aim: OperatingPointAim = DEFAULT_AIM,
    *,
    confidence: float | None = None,
    chosen_on: str | None = None,
    quiet: bool = False,
) -> OperatingPoint:
    """Choose the score of an operating point on evaluated cases, so that it meets an aim.

    The kinds of aim are:

    - `fp_per_case`: the lowest score at which the expected rate on new cases is at most this rate.
      With `confidence`, an equal number of new cases has at most this rate with that probability.
      If even zero false positives on these cases are too many, the score rejects all false
      positives. If this score finds no lesion, but the score with the aimed rate on these cases
      does, the latter is used. In both cases, `confidence` of the result is None.
    - `auto`: `fp_per_case` with the rate of `default_rate`.
    - `best_f1`: the score with the highest F1 of lesions. If several have it, the highest score.
    - `sensitivity`: the highest score that promises to find this fraction of the lesions of a new
      patient, on average over patients. If no score promises this, the highest observed score that
      finds at least this fraction of the lesions of these cases, lowered to just above the next
      lower observed score if there is one. `why_not_promised` of the result then states the reason.
    - `score`: this score.

    Args:
        tables: The evaluated cases.
        aim: The aim of the choice.
        confidence: A probability, used by `fp_per_case` and `auto`.
        chosen_on: The role of the cases, which is recorded in the point. None records the roles in
            the tables.
        quiet: True gives no warning if no candidate counts on these cases, so that the score is
            `UNINFORMED_SCORE`.

    Returns:
        The operating point, with its recall and rate on these cases. Its name states the rate if
        the aim is `auto`.

    Raises:
        ContentError: If there are no cases with a prediction, if candidates have no scores, or if
            a sensitivity cannot be reached.
    """
    if not tables.has_scores:
        raise ContentError(
            "An operating point can only be chosen on cases whose candidates have scores. "
            "Give candidate files with scores."
        )
    if tables.exposure == 0:
        raise ContentError(
            "No case has a prediction, so no operating point can be chosen. Give predictions of "
            "these cases, or a score."
        )
    is_default = aim.kind == "auto"
    if is_default:
        aim = OperatingPointAim(
            "fp_per_case", default_rate(len(tables.detected_at), tables.exposure)
        )
    is_uninformed = not len(tables.observed) and aim.kind in ("fp_per_case", "best_f1")
    if is_uninformed and not quiet:
        _log.warning(
            "The model detected nothing that counts on these cases, so the threshold of %g is "
            "used. A longer training may help.",
            UNINFORMED_SCORE,
        )
    point, design_effect = _find_score(tables, aim, confidence)
    # measure the score on the cases
    is_found = tables.detected_at >= point.score
    found = tables.add_up("lesions", is_found)
    false = _count_false(tables, point.score)
    n_lesions = len(is_found)
    n_found = int(is_found.sum())
    n_false = int(false.sum())
    n_counted = n_found + n_false + n_lesions  # denominator of F1: 2·TP + FP + FN
    recall = proportion(found, tables.lesions_by_group, NO_LESION)
    false_positives = estimate_rate(false, tables.sums["cases"], NO_PREDICTED_CASE)
    per_patient = mean_recall(found, tables.lesions_by_group)
    expected_recall = per_patient.value
    if expected_recall is not None and aim.kind == "sensitivity":
        # a lower bound: the score follows the lesions of these patients, so a further patient
        # counts as one whose lesions are all missed
        n_patients = per_patient.n or 0
        expected_recall *= n_patients / (n_patients + 1)
    point = replace(
        point,
        lesion_recall=recall.value,
        false_positives_per_case=false_positives.value,
        lesion_recall_ci95=recall.ci95,
        false_positives_per_case_ci95=false_positives.ci95,
        expected_false_positives_per_case=_expect_rate(tables, design_effect, n_false),
        expected_recall_per_patient=expected_recall,
        attainable_recall=float(np.isfinite(tables.detected_at).mean()) if n_lesions else None,
        is_default=is_default,
        lesion_f1=2 * n_found / n_counted if n_counted else None,
    )
    if aim.given is not None:  # not chosen on these cases
        return point
    patients = tables.cases["group"][tables.is_predicted]
    return replace(
        point,
        chosen_on=chosen_on or "+".join(sorted(set(tables.cases["role"]) - {""})) or None,
        n_cases=len(patients),
        n_patients=len(set(patients)),
        n_false_positives=n_false,
    )


def _find_score(
    tables: "Tables", aim: OperatingPointAim, confidence: float | None
) -> tuple[OperatingPoint, float]:
    """Find the score that meets an aim, without measuring it on the cases.

    The arguments are those of `choose`, which has already replaced the aim `auto` by a rate.

    Returns:
        The operating point, and the design effect of the false positives (module docstring). The
        design effect is 0 if the aim is not a rate of false positives.
    """
    if aim.given is not None:  # the aim is a score
        return aim.given, 0.0
    if aim.kind == "fp_per_case":
        return _find_score_of_rate(tables, aim, confidence)
    n_lesions = len(tables.detected_at)
    found, false = tables.count_at(tables.observed)
    if aim.kind == "sensitivity":
        score, why_not = _promise_sensitivity(tables, aim.value)
        if score is not None:
            return OperatingPoint(str(aim), score, promised=aim.value), 0.0
        wanted = _count_wanted(aim.value, found.max(initial=0), n_lesions)
        # `found` falls with the score, so this rejects all scores below the highest sufficient one
        score = _threshold_rejecting(tables, (found >= wanted).sum() - 1)
        return OperatingPoint(str(aim), score, why_not_promised=why_not), 0.0
    f1 = 2 * found / (found + false + n_lesions)  # 2·TP / (2·TP + FP + FN)
    # of several scores with the best F1, the highest one
    _, score = max(zip(f1, tables.observed, strict=True), default=(0, UNINFORMED_SCORE))
    return OperatingPoint(str(aim), float(score)), 0.0


def _count_false(tables: "Tables", threshold: float) -> Numbers:
    """Count the false positives of each group (patient) with at least this score `[groups]`."""
    accepted = tables.false_group[tables.false_score >= threshold]
    return np.bincount(accepted, minlength=len(tables.groups)).astype(float)


def _expect_rate(tables: "Tables", design_effect: float, n_false: int) -> float:
    """Estimate the rate of false positives per case that a chosen score will have in new cases.

    The estimate is the number on these cases plus a correction, per case. The correction is:

    - usually the design effect, for the next false positive below the score (module docstring)
    - ½ if the score accepts all false positives, so that there is no next one (Jeffreys' prior)
    - at least ½ if the score accepts no false positive, because a rate of 0 on a few cases does not
      show that new cases have none

    Args:
        tables: The cases on which the score was chosen.
        design_effect: The design effect of the false positives.
        n_false: Number of false positives on these cases at the chosen score.
    """
    accepts_all = n_false == len(tables.false_score)
    added = 0.5 if accepts_all else design_effect
    if n_false == 0:
        added = max(added, 0.5)
    return (n_false + added) / tables.exposure


def default_rate(n_lesions: int, n_cases: float) -> float:
    """Return the rate of false positives per case that the aim `auto` allows.

    The rate is 1, or one per `LESIONS_PER_FALSE_POSITIVE` lesions if that is more, rounded to two
    digits. The reason: with 60 lesions per case, at most one false positive per case would leave
    most lesions undetected. Without cases, the rate is 1. `n_cases` may be a sum of annotated
    shares.

    >>> default_rate(n_lesions=30, n_cases=20), default_rate(n_lesions=1013, n_cases=51)
    (1.0, 2.0)
    """
    if not n_cases:
        return 1.0
    per_case = n_lesions / n_cases / LESIONS_PER_FALSE_POSITIVE
    return max(1.0, float(f"{per_case:.2g}"))  # two digits, because the rate is part of the name


def max_false_positives(
    aimed_at: float,
    n_cases: float,
    deff: float = 1.0,
    confidence: float | None = None,
    groups: int | None = None,
) -> int:
    """Return how many false positives a score may have on the cases that choose the score.

    Up to this number, the rate of new cases is expected to be at most `aimed_at`. With
    `confidence`, an equal number of new cases has at most the rate `aimed_at` with this
    probability. The number of false positives of the new cases is then predicted by a negative
    binomial distribution with the parameters k + 1 and ½, for k false positives on the choosing
    cases (Nelson 1970). Both numbers are divided by the design effect.

    Args:
        aimed_at: The rate of false positives per case.
        n_cases: Number of cases that choose the score.
        deff: The design effect: the variance of the patients' counts, relative to a Poisson
            distribution.
        confidence: A probability, or None.
        groups: Number of patients from which `deff` was estimated. With `confidence`, few patients
            increase it.

    Returns:
        The largest number of false positives. Below 0 if even zero false positives are too many.

    >>> max_false_positives(1.0, 20), max_false_positives(1.0, 20, 2.5)
    (19, 17)
    >>> max_false_positives(1.0, 20, confidence=0.9), max_false_positives(0.5, 4, confidence=0.9)
    (12, -1)
    """
    if confidence is None:
        # the expected rate of new cases is (k + deff) / n_cases, see `_expect_rate`
        return int(np.floor(aimed_at * n_cases - deff + _ROUNDING))
    if groups and deff > 1:
        deff *= few_groups_factor(groups)
    maximum = int(np.floor(aimed_at * n_cases + _ROUNDING))
    # the probability, for 0, 1, … `maximum` false positives on these cases, that new cases have at
    # most `maximum`; it decreases, so the last sufficient number is wanted. `betainc` is the
    # cumulative distribution of the negative binomial
    probabilities = betainc(np.arange(maximum + 1) / deff + 1, maximum / deff + 1, 0.5)
    return int((probabilities >= confidence).sum()) - 1


def _find_score_of_rate(
    tables: "Tables", aim: OperatingPointAim, confidence: float | None
) -> tuple[OperatingPoint, float]:
    """Find the lowest score whose rate of false positives is expected to meet the aim in new cases.

    `choose` describes the rule and its two exceptions. The arguments are those of `choose`, with an
    aim of the kind `fp_per_case`.

    Returns:
        The operating point, and the design effect of the false positives. `confidence` of the point
        is None if no probability was requested, or if an exception applied.
    """
    _, false_at = tables.count_at(tables.observed)  # false positives at each observed score
    # the score that has the aimed rate on these cases
    n_above_aim = (false_at > aim.value * tables.exposure + _ROUNDING).sum()
    score_here = _threshold_rejecting(tables, n_above_aim)
    # estimated at this score, because fewer false positives show less of the difference
    false = _count_false(tables, score_here)
    design_effect = count_design_effect(false, tables.sums["cases"])
    n_groups = len(tables.groups)
    maximum = max_false_positives(aim.value, tables.exposure, design_effect, confidence, n_groups)
    score = _threshold_rejecting(tables, (false_at > max(maximum, 0)).sum())
    meets_aim = maximum >= 0
    # second exception: the stricter score finds no lesion. `count_at(…)[0]` counts found lesions
    if tables.count_at(score_here)[0] and not tables.count_at(score)[0]:
        score = score_here
        meets_aim = False
    point = OperatingPoint(str(aim), score, confidence=confidence if meets_aim else None)
    return point, design_effect


def count_needed(sensitivity: float) -> int | None:
    """Return the minimum number of patients with lesions on which a sensitivity can be promised.

    The number is the smallest n with 1 / (n + 1) ≤ 1 − `sensitivity`, see `_promise_sensitivity`.
    None for a sensitivity of 1, which no number of patients can promise.

    >>> count_needed(0.8), count_needed(0.9), count_needed(1.0)
    (4, 9, None)
    """
    if sensitivity == 1:
        return None
    return int(np.ceil(sensitivity / (1 - sensitivity) - _ROUNDING))


def explain_too_few(sensitivity: float, n_patients: int) -> str:
    """Explain that a sensitivity cannot be promised on so few patients with lesions.

    Return "" if `n_patients` are enough.
    """
    needed = count_needed(sensitivity)
    if needed is None:
        return f"no number of patients can promise a sensitivity of {sensitivity:g}"
    if n_patients >= needed:
        return ""
    patients = count(n_patients, "patient")
    return f"{patients} with lesions cannot promise {sensitivity:g}; at least {needed} are needed"


def _promise_sensitivity(tables: "Tables", sensitivity: float) -> tuple[float | None, str]:
    """Find the highest score at which a sensitivity can be promised for new patients.

    Conformal risk control allows the promise at scores with (n·R + 1) / (n + 1) ≤ 1 −
    `sensitivity`. Here R is the fraction of missed lesions of a patient, averaged over the n
    patients with lesions. The new patient counts as a patient whose lesions are all missed. A
    lesion without a candidate is missed at every score. The promise then holds on average over new
    patients like these.

    Returns:
        The score and "". Or None and the reason, if no score allows the promise.
    """
    by_score = np.argsort(tables.detected_at, kind="stable")
    scores = tables.detected_at[by_score]
    # each lesion is this fraction of the lesions of its patient
    shares = 1 / tables.lesions_by_group[tables.group_of["lesions"]][by_score]
    n = int((tables.lesions_by_group > 0).sum())
    # n·R at each of these scores: the lesions with lower scores are missed
    missed = np.cumsum(shares) - shares
    is_promised = (missed + 1 <= (1 - sensitivity) * (n + 1) + _ROUNDING) & np.isfinite(scores)
    if is_promised.any():
        return float(scores[is_promised][-1]), ""  # the scores are ascending
    never = shares[~np.isfinite(scores)].sum() / max(n, 1)
    return None, explain_too_few(sensitivity, n) or (
        f"on average {never:.2g} of a patient's lesions have no candidate, too many to promise "
        f"{sensitivity:g}"
    )


def mean_recall(found: Numbers, lesions: Numbers) -> Estimate:
    """Compute the recall of each patient with lesions, averaged over these patients.

    The result is the row `recall_per_patient` with its interval. `found` and `lesions` are the
    numbers of found and of all lesions of each patient `[groups]`.
    """
    # patients without lesions (0 / 0 is NaN) get 0, and do not count
    shares = np.nan_to_num(divide(found, lesions))
    counted = (lesions > 0).astype(float)
    # each patient counts as one item with a value from 0 to 1
    mean = proportion(shares, counted, NO_LESION, name="recall_per_patient", min_deff=0.0)
    return replace(mean, n=int(counted.sum()))


def _count_wanted(sensitivity: float, n_found: int, n_lesions: int) -> int:
    """Return how many of `n_lesions` lesions must be found to reach a sensitivity, at least 1.

    `n_found` is the number of lesions that are found if all candidates are accepted.

    Raises:
        ContentError: If there are no lesions, or if `n_found` is too small.
    """
    if n_lesions == 0:
        raise ContentError(
            "These cases have no reference lesion, so no sensitivity can be aimed at. "
            "Choose fp_per_case or a score."
        )
    wanted = max(1, int(np.ceil(sensitivity * n_lesions - _ROUNDING)))
    if n_found < wanted:
        raise ContentError(
            f"Sensitivity {sensitivity:g} cannot be reached: even with the threshold at 0, only "
            f"{n_found} of {n_lesions} lesions ({n_found / n_lesions:.3g}) are found. Choose a "
            "lower one."
        )
    return wanted


def _threshold_rejecting(tables: "Tables", n: int) -> float:
    """Return a threshold that rejects exactly the `n` lowest of the observed scores.

    The threshold is slightly above the highest rejected score, at most midway to the next observed
    score. If rounding leaves no number between these two scores, it is the next observed score. If
    n is 0, it is the lowest observed score, or `UNINFORMED_SCORE` if there are no observed scores.
    """
    scores = tables.observed
    if n == 0:
        return float(scores[0]) if len(scores) else UNINFORMED_SCORE
    rejected = scores[n - 1]
    if n == len(scores):
        return float(rejected + _MARGIN)
    step = min(_MARGIN, (scores[n] - rejected) / 2)
    # the step may be lost by rounding
    return float(rejected + step if rejected + step > rejected else scores[n])


# --- the explanation -----------------------------------------------------------------------------


def exceeds_aim(point: OperatingPoint) -> bool:
    """Return True if the expected rate of false positives in new cases exceeds the point's aim.

    Return False if the aim is not a rate of false positives, or if no expected rate is known.
    """
    aim = OperatingPointAim.parse(point.name)
    expected = point.expected_false_positives_per_case
    return aim.kind == "fp_per_case" and expected is not None and expected > aim.value + _ROUNDING


def describe_point(point: OperatingPoint, best_f1: OperatingPoint | None = None) -> str:
    """Describe an operating point in sentences: threshold, aim, and results.

    The results are recall, false positives and F1 on the cases on which the point was chosen. They
    are left out if they are not known. An undefined F1 is printed as 0. `best_f1` is the operating
    point with the best F1 on the same cases. It is described for comparison if its threshold
    (`score`) differs.
    """
    text = f"Threshold {format_score(point.score)} ({_describe_aim(point)})."
    if point.lesion_recall is None or point.expected_false_positives_per_case is None:
        return text
    ends = point.false_positives_per_case_ci95
    interval = f" (95 % interval {ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
    text += (
        f" On {point.chosen_on or 'these'} cases: recall {point.lesion_recall:.2f}, "
        f"{point.false_positives_per_case:.2f} false positives per scan, "
        f"F1 {point.lesion_f1 or 0:.2f}. Expect "
        f"{point.expected_false_positives_per_case:.2f} per scan on new patients{interval}."
    )
    text = f"{text} {describe_expected_recall(point)}".rstrip()
    if best_f1 is not None and best_f1.score != point.score:
        text += (
            f" The best F1 is {best_f1.lesion_f1 or 0:.2f} at threshold "
            f"{format_score(best_f1.score)}: recall {best_f1.lesion_recall or 0:.2f}, "
            f"{best_f1.false_positives_per_case:.2f} false positives per scan "
            "(operating_point=best_f1)."
        )
    return text


def describe_expected_recall(point: "OperatingPoint | PointInUse") -> str:
    """Describe in sentences which fraction of a new patient's lesions will be found.

    The fraction is promised or only expected. A promise on out-of-fold cases is approximate,
    because the networks of the folds differ. Return "" if the fraction is unknown.
    """
    expected = point.expected_recall_per_patient
    if expected is None:
        return ""
    if point.promised is not None:
        about = "approximately " if point.chosen_on == OUT_OF_FOLD else ""
        return (
            f"At least {point.promised:g} of a new patient's lesions are {about}promised, on "
            "average over patients like these."
        )
    text = f"Expect {expected:.2f} of a new patient's lesions."
    if point.why_not_promised:
        text += f" No sensitivity is promised: {point.why_not_promised}."
    return text


def _describe_aim(point: OperatingPoint) -> str:
    """Describe the aim of an operating point in words, such as "aim: 1 false positive per scan"."""
    aim = OperatingPointAim.parse(point.name)
    if aim.kind == "score":
        return "given by hand"
    if aim.kind == "sensitivity":
        return f"aim: sensitivity {aim.value:g}"
    if aim.kind == "best_f1":
        return "aim: the best F1 of lesions"
    noun = "false positive" if aim.value == 1 else "false positives"
    text = f"aim: {aim.value:g} {noun} per scan"
    if point.is_default and aim.value != 1:  # a higher rate, because the cases have many lesions
        text += ", one per ten lesions: the default"
    elif point.is_default:
        text += ", the default"
    return text


def list_points(points: Iterable[OperatingPoint]) -> list[str]:
    """Return one line of text for each operating point, with its name and score, for the terminal.

    The expected rate of false positives is added if it is known.
    """
    lines = []
    for point in points:
        expected = point.expected_false_positives_per_case
        expectation = (
            "" if expected is None else f", {expected:.2f} false positives per case expected"
        )
        # indented like the other lines of the terminal
        lines.append(f"         {point.name}: score {point.score:.4g}{expectation}")
    return lines


def explain_uncertainty(point: OperatingPoint, confidence: float | None = None) -> str:
    """Warn in a sentence that an operating point was chosen on too few patients.

    The sentence is returned if there are fewer than `FEW_PATIENTS` patients, or too few patients to
    expect (with `confidence`: to guarantee) the aimed rate of false positives in new cases.
    Otherwise, and if the point was not chosen on patients, return "".

    Args:
        point: The operating point.
        confidence: The requested probability, as in `choose`.
    """
    if point.chosen_on is None or point.n_patients is None:
        return ""
    aim = OperatingPointAim.parse(point.name)
    misses_aim = exceeds_aim(point)
    if aim.kind == "fp_per_case" and confidence:
        misses_aim = point.confidence is None  # no score has the confidence
    if point.n_patients >= FEW_PATIENTS and not misses_aim:
        return ""
    text = f"The threshold was chosen on only {count(point.n_patients, 'patient')}"
    if misses_aim:
        verb = "guarantee" if confidence else "expect"
        text += f", too few to {verb} {aim.value:g} false positives per scan"
    text += "."
    if point.chosen_on != OUT_OF_FOLD:
        text += " Use data.fold=all to choose it on all cases."
    return text


# --- in scores -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PointInUse:
    """The operating point that decided which candidates were accepted.

    `name` and `score` are None if the prediction's own accepted candidates were taken.
    `optimistic`: the point was chosen on these cases, or the model was developed on them.
    `reason`: why there is no point; None if there is one. The other fields are those of
    `core.OperatingPoint`.
    """

    name: str | None = None
    score: float | None = None
    chosen_on: str | None = None
    optimistic: bool = False
    reason: str | None = None
    is_default: bool = False
    expected_false_positives_per_case: float | None = None
    confidence: float | None = None
    n_cases: int | None = None
    n_patients: int | None = None
    n_false_positives: int | None = None
    promised: float | None = None
    why_not_promised: str | None = None
    expected_recall_per_patient: float | None = None

    @property
    def aim(self) -> OperatingPointAim | None:
        """The aim of the operating point, parsed from its name.

        None if the point has no name, or if its name is not an aim that this version knows.
        """
        try:
            return None if self.name is None else OperatingPointAim.parse(self.name)
        except ConfigError:
            return None

    @property
    def request(self) -> OperatingPointAim | None:
        """The setting `operating_point=` for which the score was chosen on cases.

        The setting is `auto` if the default rule chose the aim, otherwise the aim of the point.
        None if the score was not chosen on cases, but given by the user or unknown.
        """
        if self.is_default:
            return OperatingPointAim("auto")
        return None if self.aim is None or self.aim.kind == "score" else self.aim


def explain_unlike(points: Iterable[PointInUse]) -> str:
    """Explain why two programs cannot be compared at their thresholds; return "" if they can.

    Two programs can be compared in two cases:

    - Neither threshold was chosen on cases. Each is then a decision of its program, as for masks
      without scores.
    - Both were chosen on cases for the same request, and both or neither on the evaluated cases.
    """
    # None for a threshold that was not chosen on cases. `optimistic` belongs to the request,
    # because a threshold that was chosen on the evaluated cases gives better scores
    requests = {point.request and (point.request, point.optimistic) for point in points}
    if len(requests) == 1:
        return ""
    return (
        "the two thresholds were not chosen alike. Choose both on the evaluated cases "
        "(operating_point=), or both on others (chosen_on= and compare_chosen_on=)"
    )
