"""What is chosen on development predictions: least size, operating points, calibration."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lesionseg.core import Calibration, OperatingPoint, Prediction
from lesionseg.errors import ConfigError, ContentError, one_of, require
from lesionseg.evaluation import CaseResult, choose
from lesionseg.evaluation.statistics.calibration_curve import (
    fit_calibration,
    fit_out_of_fold,
    judgements,
)
from lesionseg.evaluation.statistics.operating_point import (
    attainable_recall,
    dealt_folds,
    describe,
    with_expectation,
    with_intervals,
)
from lesionseg.inference.candidates.accept import accept, choose_operating_point, without_small
from lesionseg.plan.plan import ChannelSet, Plan

_log = logging.getLogger(__name__)

# the false-positive rates and sensitivities for which every bundle stores a score
RATES = (1.0, 0.5, 2.0, 4.0)
SENSITIVITIES = (0.8, 0.9)
FEW_PATIENTS = 20  # below, a score gives quite other rates on other patients
CALIBRATIONS = ("platt", "isotonic", "none")
# what is decided on predictions, by its key in the plan's reasons
MISSING = "missing channels"
CHOSEN = (
    "operating point",
    MISSING,
    "calibration",
    "voxel calibration",
    "candidates: least diameter",
)


@dataclass(frozen=True)
class ChoiceSettings:
    """What the user asks of the choice.

    `accept`: the operating point that accepts candidates, None for the first rate. `calibration`:
    `platt`, `isotonic` (Platt's where there are too few candidates) or `none`. `replicates` and
    `seed` are the bootstrap's. `rate_confidence`: the chance that as many new cases give no more
    false positives than a point's name says; None takes the rate observed. `calibrate_voxels`:
    whether voxels' probabilities may be put right (`voxel_calibration`).
    """

    accept: str | None = None
    calibration: str = "platt"
    replicates: int = 1000
    seed: int = 0
    rate_confidence: float | None = 0.9
    calibrate_voxels: bool = True

    def __post_init__(self) -> None:
        """Refuse, before training, what could not be chosen after it."""
        require(
            self.rate_confidence is None or 0 < self.rate_confidence < 1,
            "The confidence of a rate must lie between 0 and 1.",
            where="rate_confidence",
            seen=self.rate_confidence,
            remedy="take 0.9, or null for the rate that is observed.",
        )
        one_of("calibration", self.calibration, CALIBRATIONS, where="calibration")
        names = [f"fp_per_case:{rate:g}" for rate in RATES]
        names += [f"sensitivity:{share:g}" for share in SENSITIVITIES]
        choose_operating_point([OperatingPoint(known, 0.5) for known in names], self.accept)


@dataclass(frozen=True)
class Choice:
    """What was chosen; `reasons` has a sentence for each decision.

    The first of `points` accepts candidates. `calibration_of`: by case, the calibration in whose
    fit the case had no part, which judges the final one; None where that could not be fitted.
    `voxel_calibration` is what the predictions were made with.
    """

    points: tuple[OperatingPoint, ...]
    calibration: Calibration | None = None
    calibration_of: Mapping[str, Calibration | None] = field(default_factory=dict)
    min_diameter_mm: float = 0.0
    voxel_calibration: Calibration | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def apply_to(self, prediction: Prediction) -> Prediction:
        """A development case's prediction as the chosen rules have it."""
        large = without_small(prediction, self.min_diameter_mm)
        return accept(large, self.points[0], self.calibration_of.get(prediction.case))

    def matched_by(self, rule: str) -> "Choice":
        """The choice, with the match rule of its cases on record."""
        return replace(self, points=tuple(replace(p, match_rule=rule) for p in self.points))

    def added_to(self, plan: Plan) -> Plan:
        """The plan with all that was chosen."""
        return plan.with_(
            operating_points=self.points,
            calibration=self.calibration,
            voxel_calibration=self.voxel_calibration,
            candidate_rule=replace(plan.candidate_rule, min_diameter_mm=self.min_diameter_mm),
            reasons={**plan.reasons, **self.reasons},
        )


def undecided(plan: Plan) -> Plan:
    """The plan as it was before anything was chosen on predictions."""
    return plan.with_(
        operating_points=(),
        calibration=None,
        voxel_calibration=None,
        n_members=1,
        channel_sets=tuple(ChannelSet(known.missing) for known in plan.channel_sets),
        candidate_rule=replace(plan.candidate_rule, min_diameter_mm=0.0),
        reasons={key: why for key, why in plan.reasons.items() if key not in CHOSEN},
    )


def make_choice(
    results: Sequence[CaseResult],
    settings: ChoiceSettings,
    *,
    chosen_on: str,
    fold_of: Mapping[str, int] | None = None,
    min_diameter_mm: float = 0.0,
    reasons: Mapping[str, str] | None = None,
) -> Choice:
    """Choose on judged development cases, already without what is under `min_diameter_mm`.

    `fold_of`: the fold of each case; None deals whole groups into five, for what is expected of
    cases that took no part. Nothing is learned again: only the choice is made again.
    """
    fold_of = dealt_folds(results) if fold_of is None else fold_of
    points = _points(results, settings, chosen_on, fold_of)
    points, why_point = _first(points, results, settings)
    fit, why_fit = _calibration(results, settings, chosen_on)
    fits = fit_out_of_fold(results, fold_of, fit.kind) if fit else {}
    why = {"operating point": why_point, "calibration": why_fit}
    for what, sentence in why.items():
        _log.info("Chosen, %s: %s", what, sentence)
    return Choice(
        points=points,
        calibration=fit,
        calibration_of={case: fits.get(fold) for case, fold in fold_of.items()},
        min_diameter_mm=min_diameter_mm,
        reasons={**(reasons or {}), **why},
    )


def _points(
    results: Sequence[CaseResult],
    settings: ChoiceSettings,
    chosen_on: str,
    fold_of: Mapping[str, int],
) -> tuple[OperatingPoint, ...]:
    """One point for each stated rate and each stated sensitivity that can be reached."""
    sure = settings.rate_confidence
    points = [
        choose(results, fp_per_case=rate, confidence=sure, quiet=i > 0)
        for i, rate in enumerate(RATES)
    ]
    for sensitivity in SENSITIVITIES:
        try:
            points.append(choose(results, sensitivity=sensitivity))
        except ContentError as error:  # out of reach, or no lesion at all
            _log.info("No operating point for a sensitivity of %g: %s", sensitivity, error)
    reach = attainable_recall(results)
    return tuple(
        _described(
            replace(with_expectation(p, results, fold_of, sure), chosen_on=chosen_on),
            results,
            reach,
        )
        for p in points
    )


def _described(
    point: OperatingPoint,
    results: Sequence[CaseResult],
    reach: float | None,
) -> OperatingPoint:
    known = replace(point, attainable_recall=reach)
    return with_intervals(known, results)


def _first(
    points: tuple[OperatingPoint, ...], results: Sequence[CaseResult], settings: ChoiceSettings
) -> tuple[tuple[OperatingPoint, ...], str]:
    """The points with the one that accepts in front, and a sentence on it.

    A sensitivity that cannot be reached does not end a run that has already trained: the default
    accepts, and the warning says what could be had.
    """
    reach = points[0].attainable_recall
    try:
        first = choose_operating_point(points, settings.accept)
    except ConfigError as error:
        first = points[0]
        why = f"{settings.accept} is out of reach ({error}); accepted by {first.name} instead."
        why = f"{why} {_doubt(first, results, settings)}".strip()
        _log.warning("OPERATING POINT: %s", why)
        return points, why
    if first.name.startswith("score:"):
        given = replace(describe(first.name, first.score, results), chosen_on=None)
        first = _described(given, results, reach)
    others = (p for p in points if p.name != first.name)
    doubt = _doubt(first, results, settings)
    if doubt:
        _log.warning("OPERATING POINT: %s", doubt)
    return (first, *others), f"{_sentence(first)} {doubt}".strip()


def _doubt(point: OperatingPoint, results: Sequence[CaseResult], settings: ChoiceSettings) -> str:
    """Why new patients may well have another rate; empty where nothing speaks for it."""
    if point.chosen_on is None:
        return ""
    n_patients, sure = len({r.group for r in results}), settings.rate_confidence
    doubts = []
    if n_patients < FEW_PATIENTS:
        doubts.append(f"chosen on {n_patients} patient{'s' * (n_patients != 1)} only")
    if sure and point.confidence is None and point.name.startswith("fp_per_case"):
        doubts.append(f"{point.name} cannot be held there with a confidence of {sure:g}")
    remedy = "" if point.chosen_on == "out-of-fold" else "; data.fold=all chooses on all cases"
    return f"{', and '.join(doubts)}: expect other rates{remedy}." if doubts else ""


def _sentence(point: OperatingPoint) -> str:
    how = f"chosen on {point.chosen_on} cases" if point.chosen_on else "given by hand"
    gave = f"{point.name} accepts from score {point.score:.3g}, {how}"
    if point.lesion_recall is None or point.false_positives_per_case is None:
        return f"{gave}."
    gave += (
        f": recall {point.lesion_recall:.2f} with {point.false_positives_per_case:.2f} false "
        "positives per case"
    )
    if point.confidence:
        gave += f" (with a confidence of {point.confidence:g} no more than asked in as many others)"
    if point.expected_recall is None or point.expected_false_positives_per_case is None:
        return f"{gave}."
    ends = point.expected_false_positives_per_case_ci95
    interval = f" (95 % interval {ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
    return (
        f"{gave}; to expect {point.expected_recall:.2f} with "
        f"{point.expected_false_positives_per_case:.2f}{interval}, "
        "where each fold is accepted by the others' score."
    )


def _calibration(
    results: Sequence[CaseResult], settings: ChoiceSettings, chosen_on: str
) -> tuple[Calibration | None, str]:
    """The fit asked for, Platt's where isotonic has too few, None where Platt has."""
    if settings.calibration == "none":
        return None, "not asked for."
    data = judgements(results)
    why = ""
    if settings.calibration == "isotonic":
        try:
            return _fitted(fit_calibration(data, "isotonic", fitted_on=chosen_on))
        except ContentError as error:
            why = f"{error} Platt's fit was taken. "
    try:
        fit, sentence = _fitted(fit_calibration(data, "platt", fitted_on=chosen_on))
    except ContentError as error:
        return None, f"none. {error}"
    return fit, why + sentence


def _fitted(fit: Calibration) -> tuple[Calibration, str]:
    shape = f"logit p = {fit.intercept:.3g} + {fit.slope:.3g} · logit score"
    shape = shape if fit.kind == "platt" else f"{len(fit.knots)} knots"
    counts = f"{fit.n_true} true and {fit.n_false} false candidates"
    return fit, f"{fit.kind} on {counts} ({fit.fitted_on}): {shape}."
