"""Operating points: parse a request, choose the score for it, find it again, and explain it.

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
        """Parse an aim such as `fp_per_case:1` or `best_f1`.

        Args:
            text: The aim. A rate must be from 0 to 10⁶, any other number from 0 to 1.
            number_is_score: True accepts a number without a kind as a score.

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
        if self.kind in _WITHOUT_VALUE:
            return self.kind
        return f"{self.kind}:{self.value:.10g}"

    @property
    def given(self) -> OperatingPoint | None:
        """The operating point of a given score; None if cases choose the score."""
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
    """Return the operating point of a bundle with this aim.

    Args:
        points: Operating points of the bundle.
        aim: The aim. None and `auto` mean the first point, or score 0.5 without points. A
            score is always accepted. Other aims must be those of a point.

    Raises:
        ConfigError: If no point has this aim. The message lists the available points.

    >>> find_operating_point((), OperatingPointAim("score", 0.37)).score
    0.37
    """
    if aim is None or aim.kind == "auto":
        return points[0] if points else DEFAULT_POINT
    if aim.given is not None:
        return aim.given
    for point in points:
        if OperatingPointAim.parse(point.name) == aim:
            return point
    # all points were chosen on the same cases, so the first attainable recall is that of all
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
    """Choose the operating point from evaluated cases that have scores.

    The kinds of aim are:

    - `fp_per_case`: the lowest score at which the expected rate on new cases is at most this rate.
      With `confidence`, an equal number of new cases has at most this rate with that probability.
      If even zero false positives on these cases are too many, the score allows none. If only the
      score with this rate on these cases finds a lesion, that one is used instead. In both cases,
      `confidence` of the result is None.
    - `auto`: `fp_per_case` with the rate of `default_rate`.
    - `best_f1`: the score with the highest F1 of lesions. If several have it, the highest score.
    - `sensitivity`: the highest score that promises this share of the lesions of a new patient, on
      average over patients. If none can, a score that finds at least this share of the lesions of
      these cases: just above the next lower observed score, or equal to the score of the last
      lesion if there is none. `why_not_promised` of the result then states the reason.
    - `score`: this score.

    Args:
        tables: The evaluated cases.
        aim: The aim of the choice.
        confidence: A probability, used by `fp_per_case` and `auto`.
        chosen_on: The role of the cases, for the record. None takes the roles in the tables.
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
    is_found = tables.detected_at >= point.score
    found = tables.add_up("lesions", is_found)
    false = _count_false(tables, point.score)
    n_lesions = len(is_found)
    n_found = int(is_found.sum())
    n_false = int(false.sum())
    n_counted = n_found + n_false + n_lesions
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
    """Return the operating point whose score meets an aim, and the design effect.

    `choose` has replaced `auto` by a rate before. The design effect of the false positives is 0 for
    an aim other than a rate.
    """
    if aim.given is not None:
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
        # the highest score at which enough lesions are found
        score = _reject(tables, (found >= wanted).sum() - 1)
        return OperatingPoint(str(aim), score, why_not_promised=why_not), 0.0
    f1 = 2 * found / (found + false + n_lesions)
    # of several scores with the best F1, the highest one
    _, score = max(zip(f1, tables.observed, strict=True), default=(0, UNINFORMED_SCORE))
    return OperatingPoint(str(aim), float(score)), 0.0


def _count_false(tables: "Tables", threshold: float) -> Numbers:
    """Count the false positives of each group `[groups]` with at least this score."""
    accepted = tables.false_group[tables.false_score >= threshold]
    return np.bincount(accepted, minlength=len(tables.groups)).astype(float)


def _expect_rate(tables: "Tables", design_effect: float, n_false: int) -> float:
    """Return the expected rate of false positives per new case, for `n_false` on these cases.

    The design effect is added to `n_false`, because it stands for the next false positive (see the
    module's docstring). If the score accepts all false positives, there is no next one, and ½ is
    added instead, as in Jeffreys' prior. If the score accepts none, at least ½ is added, because a
    rate of 0 on a few cases does not show that new cases have none.
    """
    accepts_all = n_false == len(tables.false_score)
    added = 0.5 if accepts_all else design_effect
    if n_false == 0:
        added = max(added, 0.5)
    return (n_false + added) / tables.exposure


def default_rate(n_lesions: int, n_cases: float) -> float:
    """Return the default rate of false positives per case.

    It is 1, or one per `LESIONS_PER_FALSE_POSITIVE` lesions if that is more, rounded to two digits.
    With 60 lesions per case, at most one false positive per case would leave most lesions
    undetected. Without cases it is 1.

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
    """Return the largest number of false positives for which new cases keep to a rate.

    Without `confidence`, the expected rate of new cases is at most `aimed_at`. With it, an equal
    number of new cases has at most this rate with that probability. Its count is then bounded by a
    negative binomial distribution with k + 1 and ½, for k false positives on these cases (Nelson
    1970). Both counts are divided by the design effect.

    Args:
        aimed_at: The rate of false positives per case.
        n_cases: Number of cases.
        deff: The design effect: the variance of the patients' counts, relative to a Poisson
            distribution.
        confidence: A probability, or None.
        groups: Number of patients from which `deff` was estimated. With `confidence`, few patients
            increase it.

    Returns:
        The number, below 0 if even zero false positives are too many.

    >>> max_false_positives(1.0, 20), max_false_positives(1.0, 20, 2.5)
    (19, 17)
    >>> max_false_positives(1.0, 20, confidence=0.9), max_false_positives(0.5, 4, confidence=0.9)
    (12, -1)
    """
    if confidence is None:
        return int(np.floor(aimed_at * n_cases - deff + _ROUNDING))
    if groups and deff > 1:
        deff *= few_groups_factor(groups)
    maximum = int(np.floor(aimed_at * n_cases + _ROUNDING))
    # the probability, for 0, 1, … `maximum` false positives on these cases, that new cases have at
    # most `maximum`; it decreases, so the last sufficient number is wanted
    probabilities = betainc(np.arange(maximum + 1) / deff + 1, maximum / deff + 1, 0.5)
    return int((probabilities >= confidence).sum()) - 1


def _find_score_of_rate(
    tables: "Tables", aim: OperatingPointAim, confidence: float | None
) -> tuple[OperatingPoint, float]:
    """Find the lowest score that keeps a rate of false positives per case on new cases.

    If even zero false positives are too many, the score allows none. If only the score with this
    rate on these cases finds a lesion, that one is used instead. Neither keeps `confidence`.
    """
    false_at = tables.count_at(tables.observed)[1]
    score_here = _reject(tables, (false_at > aim.value * tables.exposure + _ROUNDING).sum())
    # estimated at this score, because fewer false positives show less of the difference
    false = _count_false(tables, score_here)
    design_effect = count_design_effect(false, tables.sums["cases"])
    n_groups = len(tables.groups)
    maximum = max_false_positives(aim.value, tables.exposure, design_effect, confidence, n_groups)
    score = _reject(tables, (false_at > max(maximum, 0)).sum())
    is_kept = maximum >= 0
    if tables.count_at(score_here)[0] and not tables.count_at(score)[0]:
        score = score_here
        is_kept = False
    point = OperatingPoint(str(aim), score, confidence=confidence if is_kept else None)
    return point, design_effect


def count_needed(sensitivity: float) -> int | None:
    """Return the number of patients with lesions that a promise needs; None if none suffices.

    >>> count_needed(0.8), count_needed(0.9), count_needed(1.0)
    (4, 9, None)
    """
    if sensitivity == 1:
        return None
    return int(np.ceil(sensitivity / (1 - sensitivity) - _ROUNDING))


def explain_too_few(sensitivity: float, n_patients: int) -> str:
    """Explain that so few patients with lesions cannot promise a sensitivity; "" if they can."""
    needed = count_needed(sensitivity)
    if needed is None:
        return f"no number of patients can promise a sensitivity of {sensitivity:g}"
    if n_patients >= needed:
        return ""
    patients = count(n_patients, "patient")
    return f"{patients} with lesions cannot promise {sensitivity:g}; at least {needed} are needed"


def _promise_sensitivity(tables: "Tables", sensitivity: float) -> tuple[float | None, str]:
    """Return the highest score that promises a sensitivity, or the reason why none does.

    For a score, let R be the mean share of missed lesions over n patients with lesions. A lesion
    without a candidate is missed at every score. The promise is (n·R + 1) / (n + 1) ≤ 1 −
    `sensitivity`: conformal risk control, in which a new patient counts as one whose lesions are
    all missed. It then holds on average over new patients like these.
    """
    by_score = np.argsort(tables.detected_at, kind="stable")
    scores = tables.detected_at[by_score]
    shares = 1 / tables.lesions_by_group[tables.group_of["lesions"]][by_score]
    n = int((tables.lesions_by_group > 0).sum())
    missed = np.cumsum(shares) - shares  # n·R at each of these scores
    keeps = (missed + 1 <= (1 - sensitivity) * (n + 1) + _ROUNDING) & np.isfinite(scores)
    if keeps.any():
        return float(scores[keeps][-1]), ""
    never = shares[~np.isfinite(scores)].sum() / max(n, 1)
    return None, explain_too_few(sensitivity, n) or (
        f"on average {never:.2g} of a patient's lesions have no candidate, too many to promise "
        f"{sensitivity:g}"
    )


def mean_recall(found: Numbers, lesions: Numbers) -> Estimate:
    """Compute the mean share of found lesions of the patients with lesions, with its interval.

    `found` and `lesions` are the numbers of each patient `[groups]`.
    """
    shares = np.nan_to_num(divide(found, lesions))
    counted = (lesions > 0).astype(float)
    mean = proportion(shares, counted, NO_LESION, name="recall_per_patient", min_deff=0.0)
    return replace(mean, n=int(counted.sum()))


def _count_wanted(sensitivity: float, n_found: int, n_lesions: int) -> int:
    """Return the number of lesions that this sensitivity needs, at least 1.

    Raises:
        ContentError: If there are no lesions, or if fewer (`n_found`) are found at any score.
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


def _reject(tables: "Tables", n: int) -> float:
    """Return a score slightly above the `n` lowest observed ones, which it rejects.

    If there is no number below the next observed score, return that one. If none is rejected,
    return the lowest observed score, or `UNINFORMED_SCORE` without one.
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
    """Return True if more false positives are expected per new case than the point's aim.

    Return False if the aim is not a rate of false positives, or if no rate is expected.
    """
    aim = OperatingPointAim.parse(point.name)
    expected = point.expected_false_positives_per_case
    return aim.kind == "fp_per_case" and expected is not None and expected > aim.value + _ROUNDING


def describe_point(point: OperatingPoint, best_f1: OperatingPoint | None = None) -> str:
    """Describe an operating point: its aim, and its numbers on the cases that chose it.

    `best_f1` is the point with the best F1 on these cases, which is described for comparison.
    """
    words = f"Threshold {format_score(point.score)} ({_describe_aim(point)})."
    if point.lesion_recall is None or point.expected_false_positives_per_case is None:
        return words
    ends = point.false_positives_per_case_ci95
    interval = f" (95 % interval {ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
    words += (
        f" On {point.chosen_on or 'these'} cases: recall {point.lesion_recall:.2f}, "
        f"{point.false_positives_per_case:.2f} false positives per scan, "
        f"F1 {point.lesion_f1 or 0:.2f}. Expect "
        f"{point.expected_false_positives_per_case:.2f} per scan on new patients{interval}."
    )
    words = f"{words} {describe_expected_recall(point)}".rstrip()
    if best_f1 is not None and best_f1.score != point.score:
        words += (
            f" The best F1 is {best_f1.lesion_f1 or 0:.2f} at threshold "
            f"{format_score(best_f1.score)}: recall {best_f1.lesion_recall or 0:.2f}, "
            f"{best_f1.false_positives_per_case:.2f} false positives per scan "
            "(operating_point=best_f1)."
        )
    return words


def describe_expected_recall(point: "OperatingPoint | PointInUse") -> str:
    """Describe the share of a new patient's lesions that is expected or promised; "" if unknown.

    A promise on cases out of fold is approximate, because the networks of the folds differ.
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
    words = f"Expect {expected:.2f} of a new patient's lesions."
    if point.why_not_promised:
        words += f" No sensitivity is promised: {point.why_not_promised}."
    return words


def _describe_aim(point: OperatingPoint) -> str:
    """Return the aim of a point in words."""
    aim = OperatingPointAim.parse(point.name)
    if aim.kind == "score":
        return "given by hand"
    if aim.kind == "sensitivity":
        return f"aim: sensitivity {aim.value:g}"
    if aim.kind == "best_f1":
        return "aim: the best F1 of lesions"
    noun = "false positive" if aim.value == 1 else "false positives"
    words = f"aim: {aim.value:g} {noun} per scan"
    if point.is_default and aim.value != 1:  # a higher rate, because the cases have many lesions
        words += ", one per ten lesions: the default"
    elif point.is_default:
        words += ", the default"
    return words


def list_points(points: Iterable[OperatingPoint]) -> list[str]:
    """Return a line on each operating point: its name, its score and, if known, expected rate."""
    lines = []
    for point in points:
        expected = point.expected_false_positives_per_case
        expectation = (
            "" if expected is None else f", {expected:.2f} false positives per case expected"
        )
        lines.append(f"         {point.name}: score {point.score:.4g}{expectation}")
    return lines


def explain_uncertainty(point: OperatingPoint, confidence: float | None = None) -> str:
    """Explain that the point was chosen on few patients, or on too few to keep to its rate.

    Return "" if neither is the case, or if the point was not chosen on patients. `confidence` is
    the requested probability, see `choose`.
    """
    if point.chosen_on is None or point.n_patients is None:
        return ""
    aim = OperatingPointAim.parse(point.name)
    is_beyond = exceeds_aim(point)
    if aim.kind == "fp_per_case" and confidence:
        is_beyond = point.confidence is None  # no score has the confidence
    if point.n_patients >= FEW_PATIENTS and not is_beyond:
        return ""
    words = f"The threshold was chosen on only {count(point.n_patients, 'patient')}"
    if is_beyond:
        verb = "guarantee" if confidence else "expect"
        words += f", too few to {verb} {aim.value:g} false positives per scan"
    words += "."
    if point.chosen_on != OUT_OF_FOLD:
        words += " Use data.fold=all to choose it on all cases."
    return words


# --- in scores -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PointInUse:
    """The operating point that decided which candidates were accepted.

    `name` and `score` are None if the prediction's own accepted candidates were taken.
    `optimistic`: the point was chosen on these cases, or the program was developed on them.
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
        """The aim of the point. None if the point has no name, or its name is not a known aim."""
        try:
            return None if self.name is None else OperatingPointAim.parse(self.name)
        except ConfigError:
            return None

    @property
    def request(self) -> OperatingPointAim | None:
        """The request that a score was chosen for on cases. None if it was not chosen on cases."""
        if self.is_default:
            return OperatingPointAim("auto")
        return None if self.aim is None or self.aim.kind == "score" else self.aim


def explain_unlike(points: Iterable[PointInUse]) -> str:
    """Explain why the thresholds of two programs were not chosen alike; "" if they were.

    Thresholds that were chosen on cases need the same request, and both or neither may be chosen on
    the evaluated cases. A threshold that was not chosen on cases is the program's own decision,
    like those of masks without scores.
    """
    requests = {point.request and (point.request, point.optimistic) for point in points}
    if len(requests) == 1:
        return ""
    return (
        "the two thresholds were not chosen alike. Choose both on the evaluated cases "
        "(operating_point=), or both on others (chosen_on= and compare_chosen_on=)"
    )
