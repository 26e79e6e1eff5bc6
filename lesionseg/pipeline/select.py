"""What is selected on development predictions: operating points, calibration, least size.

Also what the voxels' probabilities are worth: a network trained on Dice or on few patients may be
far too sure, or not nearly sure enough. Then candidates end at the wrong level, and faint lesions
fall below the floor. A straight line in the logit (Platt 1999) puts that right and changes no
ranking of voxels.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Calibration, OperatingPoint, Prediction, Reference
from lesionseg.core.prediction import logit
from lesionseg.errors import ConfigError, ContentError
from lesionseg.evaluation import CaseResult, choose
from lesionseg.evaluation.by_size import fit_logistic
from lesionseg.evaluation.calibration import fit_calibration, fit_out_of_fold
from lesionseg.evaluation.curves import Pool, froc
from lesionseg.evaluation.intervals import MIN_GROUPS, draw_groups
from lesionseg.evaluation.operating_point import (
    attainable_recall,
    dealt_folds,
    describe,
    with_expectation,
    with_intervals,
)
from lesionseg.inference.accept import accept, choose_operating_point, without_small
from lesionseg.inference.decision import Slab, Watch
from lesionseg.plan.plan import Plan

_log = logging.getLogger(__name__)

# the false-positive rates and sensitivities for which every bundle stores a score
RATES = (1.0, 0.5, 2.0, 4.0)
SENSITIVITIES = (0.8, 0.9)
FEW_PATIENTS = 20  # below, a score gives quite other rates on other patients
LEAST_SIZE, VOXELS = "candidates: least diameter", "voxel calibration"
# what is selected on predictions, by its key in the plan's reasons
CHOSEN = ("operating point", "calibration", VOXELS, LEAST_SIZE)
MIN_RISE = 0.01  # in mean recall, for a least size
MIN_GAIN = 0.02  # in mean Dice, for a calibration of voxels
_QUANTILES = (0.01, 0.05, 0.1)  # of the diameters of candidates that find a lesion
_LEVELS = np.linspace(-12, 12, 481)  # logits at which voxels are counted, the nearest each
_N_FOLDS = 5


@dataclass(frozen=True)
class ChoiceSettings:
    """What the user asks of the selection.

    `accept`: the operating point that accepts candidates, None for the first rate. `calibration`:
    `platt` or `none`. `replicates` and `seed` are the bootstrap's. `rate_confidence`: the chance
    that as many new cases give no more false positives than a point's name says; None takes the
    rate observed. `calibrate_voxels`: whether voxels' probabilities may be calibrated.
    """

    accept: str | None = None
    calibration: str = "platt"
    replicates: int = 1000
    seed: int = 0
    rate_confidence: float | None = 0.9
    calibrate_voxels: bool = True

    def __post_init__(self) -> None:
        """Raise `ConfigError`, before training, for what could not be selected after it."""
        if self.rate_confidence is not None and not 0 < self.rate_confidence < 1:
            raise ConfigError(f"rate_confidence: {self.rate_confidence} is not between 0 and 1.")
        if self.calibration not in ("platt", "none"):
            raise ConfigError(f"calibration: {self.calibration!r} is neither platt nor none.")
        names = [f"fp_per_case:{rate:g}" for rate in RATES]
        names += [f"sensitivity:{share:g}" for share in SENSITIVITIES]
        choose_operating_point([OperatingPoint(known, 0.5) for known in names], self.accept)


@dataclass(frozen=True)
class Choice:
    """What was selected; `reasons` has a sentence for each decision.

    The first of `points` accepts candidates. `calibration_of`: by case, the calibration in whose
    fit the case had no part, which tests the final one; None where that could not be fitted.
    `voxel_calibration` is what the predictions were made with.
    """

    points: tuple[OperatingPoint, ...]
    calibration: Calibration | None = None
    calibration_of: Mapping[str, Calibration | None] = field(default_factory=dict)
    min_diameter_mm: float = 0.0
    voxel_calibration: Calibration | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def apply_to(self, prediction: Prediction) -> Prediction:
        """A development case's prediction by the selected rules."""
        large = without_small(prediction, self.min_diameter_mm)
        return accept(large, self.points[0], self.calibration_of.get(prediction.case))

    def added_to(self, plan: Plan) -> Plan:
        """The plan with all that was selected."""
        return plan.with_(
            operating_points=self.points,
            calibration=self.calibration,
            voxel_calibration=self.voxel_calibration,
            candidate_rule=replace(plan.candidate_rule, min_diameter_mm=self.min_diameter_mm),
            reasons={**plan.reasons, **self.reasons},
        )


def unselected(plan: Plan) -> Plan:
    """The plan as it was before anything was selected on predictions."""
    return plan.with_(
        operating_points=(),
        calibration=None,
        voxel_calibration=None,
        n_members=1,
        candidate_rule=replace(plan.candidate_rule, min_diameter_mm=0.0),
        reasons={key: why for key, why in plan.reasons.items() if key not in CHOSEN},
    )


def select(
    results: Sequence[CaseResult],
    settings: ChoiceSettings,
    *,
    chosen_on: str,
    fold_of: Mapping[str, int] | None = None,
) -> Choice:
    """Select operating points and calibration on evaluated development cases.

    `fold_of`: the fold of each case; None makes folds of whole groups, for what is expected of
    cases that took no part. Nothing is learned again: only the selection is made again.
    """
    folds = dealt_folds(results) if fold_of is None else fold_of
    sure, reach = settings.rate_confidence, attainable_recall(results)
    points = [
        choose(results, fp_per_case=rate, confidence=sure, quiet=i > 0)
        for i, rate in enumerate(RATES)
    ]
    for sensitivity in SENSITIVITIES:
        try:
            points.append(choose(results, sensitivity=sensitivity))
        except ContentError as error:  # out of reach, or no lesion at all
            _log.info("No operating point for a sensitivity of %g: %s", sensitivity, error)
    points = [
        with_intervals(
            replace(
                with_expectation(p, results, folds, sure),
                chosen_on=chosen_on,
                attainable_recall=reach,
            ),
            results,
        )
        for p in points
    ]
    first, words = points[0], ""
    try:
        first = choose_operating_point(points, settings.accept)
    except ConfigError as error:  # a run that has already trained goes on
        words = f"{settings.accept} is out of reach ({error}); accepted by {first.name} instead. "
    if first.name.startswith("score:"):
        by_hand = replace(describe(first.name, first.score, results), chosen_on=None)
        first = with_intervals(replace(by_hand, attainable_recall=reach), results)
    doubt = _doubt(first, results, sure)
    if words or doubt:
        _log.warning("OPERATING POINT: %s%s", words, doubt)
    fit, why = None, "not asked for."
    if settings.calibration != "none":
        try:
            fit = fit_calibration(results, fitted_on=chosen_on)
            why = (
                f"platt on {fit.n_true} true and {fit.n_false} false candidates ({chosen_on}): "
                f"logit p = {fit.intercept:.3g} + {fit.slope:.3g} · logit score."
            )
        except ContentError as error:
            why = f"none. {error}"
    five = dealt_folds(results, _N_FOLDS) if fold_of is None else fold_of
    fits = fit_out_of_fold(results, five) if fit else {}
    reasons = {
        "operating point": f"{words}{_sentence(first)} {doubt}".strip(),
        "calibration": why,
    }
    for what, sentence in reasons.items():
        _log.info("Selected, %s: %s", what, sentence)
    return Choice(
        points=(first, *(p for p in points if p.name != first.name)),
        calibration=fit,
        calibration_of={case: fits.get(fold) for case, fold in five.items()},
        reasons=reasons,
    )


def _doubt(point: OperatingPoint, results: Sequence[CaseResult], sure: float | None) -> str:
    """Why new patients may well have another rate; empty where nothing speaks for it."""
    if point.chosen_on is None:
        return ""
    n_patients, doubts = len({r.group for r in results}), []
    if n_patients < FEW_PATIENTS:
        doubts.append(f"chosen on {n_patients} patient{'s' * (n_patients != 1)} only")
    if sure and point.confidence is None and point.name.startswith("fp_per_case"):
        doubts.append(f"{point.name} cannot be held there with a confidence of {sure:g}")
    remedy = "" if point.chosen_on == "out-of-fold" else "; data.fold=all selects on all cases"
    return f"{', and '.join(doubts)}: expect other rates{remedy}." if doubts else ""


def _sentence(point: OperatingPoint) -> str:
    how = f"chosen on {point.chosen_on} cases" if point.chosen_on else "given by hand"
    words = f"{point.name} accepts from score {point.score:.3g}, {how}"
    if point.lesion_recall is None or point.false_positives_per_case is None:
        return f"{words}."
    words += f": recall {point.lesion_recall:.2f} with {point.false_positives_per_case:.2f} false "
    words += "positives per case"
    if point.expected_recall is None or point.expected_false_positives_per_case is None:
        return f"{words}."
    ends = point.expected_false_positives_per_case_ci95
    interval = f" (95 % interval {ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
    return (
        f"{words}; expected on other patients: {point.expected_recall:.2f} with "
        f"{point.expected_false_positives_per_case:.2f}{interval}."
    )


# --- least size of a candidate -----------------------------------------------------------------


def least_diameter(
    results: Sequence[CaseResult],
    without: Callable[[float], Sequence[CaseResult]],
    settings: ChoiceSettings,
) -> tuple[float, str]:
    """The least diameter of a candidate (0: none), and why; one of three small quantiles.

    Of the diameters of candidates that find a lesion. `without` evaluates all cases without the
    candidates under a diameter. One is taken when the mean recall at `RATES` false positives per
    case rises by at least `MIN_RISE` and the 95 % interval of the rise (bootstrap, paired by group)
    lies above 0; the largest rise wins. A false positive stays one whatever else is dropped, and a
    lesion can only lose the candidate that finds it. So dropping only the small false positives
    bounds the gain, and the cases are evaluated again only where that bound is worth it.
    """
    found = [
        c.diameter_mm for r in results for c in r.candidates if c.outcome_any == "true_positive"
    ]
    best, most, why = 0.0, 0.0, "none: dropping small candidates does not clearly help."
    # rounded down, so that a candidate of just that size does not fall below it
    quantiles = (np.floor(100 * np.quantile(found, _QUANTILES)) / 100).tolist() if found else []
    for least in sorted(set(quantiles)):
        bound = [
            replace(
                r,
                candidates=tuple(
                    c
                    for c in r.candidates
                    if c.outcome_any != "false_positive" or c.diameter_mm >= least
                ),
            )
            for r in results
        ]
        if _rise(results, bound, settings)[0] < MIN_RISE:
            continue
        rise, low = _rise(results, without(least), settings)
        if rise >= MIN_RISE and low > 0 and rise > most:
            best, most = least, rise
            why = f"{least:.2f} mm: mean recall {rise:+.3f} out of fold, at least {low:+.3f}."
    return best, why


def _rise(
    before: Sequence[CaseResult], after: Sequence[CaseResult], settings: ChoiceSettings
) -> tuple[float, float]:
    """Rise of the mean recall and the lower end of its interval, −inf under five groups."""
    old, new = (froc(Pool.of(results), RATES) for results in (before, after))
    n_groups = len({r.group for r in before})
    draws = draw_groups(n_groups, settings.replicates, np.random.default_rng(settings.seed))
    weights = np.concatenate([np.ones((1, n_groups)), draws])
    rise, *rises = (new(weights).mean(1) - old(weights).mean(1)).tolist()
    if n_groups < MIN_GROUPS or np.isnan(rises).all():
        return float(np.nan_to_num(rise)), -np.inf
    return float(rise), float(np.nanquantile(rises, 0.025))


# --- calibration of voxels -----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LevelCounts:
    """How many voxels of one case have a probability near each level, and how many are lesion."""

    group: str
    voxels: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(_LEVELS)))
    lesion: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(_LEVELS)))

    def watch(self, reference: Reference, plan: Plan) -> Watch:
        """Counts the probabilities that a decision is shown; voxels to be ignored do not count."""
        values = plan.regions or tuple((value,) for value in plan.label_values)
        labels, ignore = reference.labels, reference.ignore

        def count(channel: int, slabs: Iterator[Slab]) -> Iterator[Slab]:
            annotated = plan.label_values[channel] not in reference.unannotated
            row = 0
            for slab in slabs:
                rows = slice(row, row + len(slab))
                if annotated and labels is not None:
                    kept = ... if ignore is None else ~ignore[rows]
                    self.add(slab[kept], np.isin(labels[rows], values[channel])[kept])
                row = rows.stop
                yield slab

        return count

    def add(self, p: NDArray[np.float32], lesion: NDArray[np.bool_]) -> None:
        """Count voxels of one shape: their probabilities, and whether they are lesion."""
        place = ((logit(p) - _LEVELS[0]) / (_LEVELS[1] - _LEVELS[0]) + 0.5).astype(np.intp)
        place = place.clip(0, len(_LEVELS) - 1).ravel()
        self.voxels[:] += np.bincount(place, minlength=len(_LEVELS))
        self.lesion[:] += np.bincount(place[lesion.ravel()], minlength=len(_LEVELS))

    def dice(self, level: float) -> float:
        """Dice of all voxels from a logit on; NaN without a lesion."""
        above, n_lesion = level <= _LEVELS, self.lesion.sum()
        total = self.voxels[above].sum() + n_lesion
        return float(2 * self.lesion[above].sum() / total) if n_lesion else float("nan")


def select_voxel_calibration(
    counts: Sequence[LevelCounts], extent: float, chosen_on: str
) -> tuple[Calibration | None, str]:
    """The calibration of voxels by these cases, None where it gains too little, and why.

    The gain is in mean Dice of all voxels from `extent` on, where a sure candidate ends: each fold
    of whole groups by the fit of the others; with one group by its own fit. It must be `MIN_GAIN`
    at least.
    """
    level = float(logit(extent))
    groups = sorted({case.group for case in counts if case.lesion.any()})
    fold = {group: i % _N_FOLDS for i, group in enumerate(groups)}
    gains = []
    for number in sorted(set(fold.values())):
        rest = [case for case in counts if fold.get(case.group) != number]
        a, b, _ = _line(rest if len(groups) > 1 else counts)
        held_out = (case for case in counts if fold.get(case.group) == number)
        gains += [case.dice((level - a) / b) - case.dice(level) for case in held_out if b > 0]
    gain = float(np.nanmean(gains)) if gains else 0.0
    if gain < MIN_GAIN:
        return None, f"none: Dice of all voxels would change by {gain:+.3f}."
    a, b, (n_true, n_false) = _line(counts)
    fit = Calibration("platt", a, b, fitted_on=chosen_on, n_true=n_true, n_false=n_false)
    return fit, f"logit p = {a:.3g} + {b:.3g} · logit: Dice of all voxels {gain:+.3f}."


def mean_calibration(fits: Sequence[Calibration | None]) -> Calibration | None:
    """One for the mean of several networks, of which each has its own or none (as it is)."""
    known = [fit for fit in fits if fit is not None]
    if not known:
        return None
    return replace(
        known[0],
        intercept=float(np.mean([fit.intercept if fit else 0.0 for fit in fits])),
        slope=float(np.mean([fit.slope if fit else 1.0 for fit in fits])),
        n_true=sum(fit.n_true for fit in known),
        n_false=sum(fit.n_false for fit in known),
    )


def _line(counts: Sequence[LevelCounts]) -> tuple[float, float, tuple[int, int]]:
    """Intercept and slope of the logit, and voxels of either kind; as it is without one of them."""
    voxels = np.sum([case.voxels for case in counts], axis=0)
    lesion = np.sum([case.lesion for case in counts], axis=0)
    numbers = int(lesion.sum()), int(voxels.sum() - lesion.sum())
    if not all(numbers):
        return 0.0, 1.0, numbers
    weights = voxels / voxels.sum()
    ((a, b),) = fit_logistic(_LEVELS, lesion[None], voxels[None], weights, ridge=1.0)
    return float(a), float(b), numbers
