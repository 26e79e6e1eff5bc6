"""What is selected on development predictions: operating points and calibration.

Also what the voxels' probabilities are worth: a network trained on Dice or on few patients may be
far too sure, or not nearly sure enough. Then candidates end at the wrong level, and faint lesions
fall below the floor. A straight line in the logit (Platt 1999) puts that right and changes no
ranking of voxels.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Calibration, OperatingPoint, Reference
from lesionseg.core.prediction import logit
from lesionseg.errors import ContentError, count
from lesionseg.evaluation import CaseResult, choose
from lesionseg.evaluation.calibration import fit_calibration, fit_logistic
from lesionseg.inference.decision import OnSlab, Slab
from lesionseg.plan.plan import Plan

# every bundle stores a score for these
POINTS = (
    *("fp_per_case:1", "fp_per_case:0.5", "fp_per_case:2", "fp_per_case:4"),
    *("sensitivity:0.8", "sensitivity:0.9"),
)
FEW_PATIENTS = 20  # below, a score gives quite other rates on other patients
VOXELS = "voxel calibration"
CHOSEN = ("operating point", "calibration", VOXELS)  # by their keys in the plan's reasons
MIN_GAIN = 0.02  # in mean Dice, for a calibration of voxels
_LEVELS = np.linspace(-12, 12, 481)  # logits at which voxels are counted, the nearest each
_N_FOLDS = 5


def unselected(plan: Plan) -> Plan:
    """The plan as it was before anything was selected on predictions."""
    return plan.with_(
        operating_points=(),
        calibration=None,
        voxel_calibration=None,
        n_members=1,
        reasons={key: why for key, why in plan.reasons.items() if key not in CHOSEN},
    )


def select(
    results: Sequence[CaseResult],
    plan: Plan,
    operating_point: str,
    rate_confidence: float | None,
    *,
    chosen_on: str,
    fold_of: Mapping[str, int] | None = None,
) -> tuple[Plan, dict[str, Calibration | None]]:
    """Select operating points and calibration on evaluated development cases.

    Returns the plan with them, a sentence for each in its reasons, and, by case, the calibration in
    whose fit the case had no part, which tests the final one; None where that could not be fitted.
    `operating_point` accepts candidates, or `POINTS[0]` where it is out of reach.
    `rate_confidence`: see `choose`. `fold_of`: the fold of each case; None deals groups into five.
    """
    points, words = dict[str, OperatingPoint](), ""
    for name in (operating_point, *POINTS):
        kind, _, value = name.partition(":")
        wish = {kind.strip(): float(value), "confidence": rate_confidence}
        try:
            point = choose(results, **wish, quiet=bool(points))
        except ContentError as error:  # a run that has already trained goes on
            if not points and not words and kind == "sensitivity":
                words = f"{error} {POINTS[0]} is used instead. "
            elif kind != "sensitivity":
                raise
            continue
        role = chosen_on if point.chosen_on else None
        points.setdefault(point.name, replace(point, chosen_on=role))
    first = next(iter(points.values()))
    five = fold_of
    if five is None:
        groups = sorted({r.group for r in results})
        five = {r.case: groups.index(r.group) % _N_FOLDS for r in results}
    fit, fits = None, dict[int, Calibration]()
    try:
        fit = fit_calibration(results, fitted_on=chosen_on)
        for number in sorted(set(five.values())):
            with suppress(ContentError):  # too few candidates elsewhere
                rest = [r for r in results if five[r.case] != number]
                fits[number] = fit_calibration(rest)
        why = (
            f"fitted on {fit.n_true} true and {fit.n_false} false candidates ({chosen_on}): "
            f"logit p = {fit.intercept:.3g} + {fit.slope:.3g} · logit score."
        )
    except ContentError as error:
        why = f"skipped. {error}"
    words += f"{_sentence(first)} {_doubt(first, results, rate_confidence)}"
    reasons = {**plan.reasons, "operating point": words.strip(), "calibration": why}
    complete = plan.with_(operating_points=tuple(points.values()), calibration=fit, reasons=reasons)
    return complete, {case: fits.get(fold) for case, fold in five.items()}


def _doubt(point: OperatingPoint, results: Sequence[CaseResult], sure: float | None) -> str:
    """Why new patients may well have another rate; empty where nothing speaks for it."""
    kind, _, asked = point.name.partition(":")
    n_patients, held = len({r.group for r in results}), True
    if kind == "fp_per_case":
        expected = point.expected_false_positives_per_case or 0.0
        held = point.confidence is not None if sure else expected <= float(asked) + 1e-9
    if point.chosen_on is None or (n_patients >= FEW_PATIENTS and held):
        return ""
    words = f"The threshold was chosen on only {count(n_patients, 'patient')}"
    if not held:
        words += (
            f", too few to {'guarantee' if sure else 'expect'} {asked} false positives per scan"
        )
    remedy = " Use data.fold=all to choose it on all cases."
    return f"{words}.{'' if point.chosen_on == 'out-of-fold' else remedy}"


def _sentence(point: OperatingPoint) -> str:
    kind, _, asked = point.name.partition(":")
    n = "false positive" if float(asked) == 1 else "false positives"
    aims = {"fp_per_case": f"aim: {asked} {n} per scan", "score": "given by hand"}
    words = f"Threshold {point.score:.3g} ({aims.get(kind, f'aim: sensitivity {asked}')})."
    if point.lesion_recall is None or point.expected_false_positives_per_case is None:
        return words
    ends = point.false_positives_per_case_ci95
    interval = f" (95 % interval {ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
    return (
        f"{words} On {point.chosen_on or 'these'} cases: recall {point.lesion_recall:.2f}, "
        f"{point.false_positives_per_case:.2f} false positives per scan. On new patients, expect "
        f"{point.expected_false_positives_per_case:.2f}{interval}."
    )


# --- calibration of voxels -----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LevelCounts:
    """How many voxels of one case have a probability near each level, and how many are lesion."""

    group: str
    voxels: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(_LEVELS)))
    lesion: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(_LEVELS)))

    def counter(self, reference: Reference, plan: Plan) -> OnSlab:
        """Counts the probabilities that a decision is shown; voxels to be ignored do not count."""
        values = plan.regions or tuple((value,) for value in plan.label_values)
        labels, ignore = reference.labels, reference.ignore

        def count(channel: int, row: int, slab: Slab) -> None:
            if labels is None or plan.label_values[channel] in reference.unannotated:
                return
            rows = slice(row, row + len(slab))
            kept = ... if ignore is None else ~ignore[rows]
            self.add(slab[kept], np.isin(labels[rows], values[channel])[kept])

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
        fit = _fit_voxels(rest if len(groups) > 1 else counts)
        held_out = (case for case in counts if fold.get(case.group) == number)
        moved = (level - fit.intercept) / fit.slope
        gains += [case.dice(moved) - case.dice(level) for case in held_out if fit.slope > 0]
    gain = float(np.nanmean(gains)) if gains else 0.0
    if gain < MIN_GAIN:
        return None, f"skipped, it would change Dice by {gain:+.3f}."
    fit = replace(_fit_voxels(counts), fitted_on=chosen_on)
    line = f"logit p = {fit.intercept:.3g} + {fit.slope:.3g} · logit"
    return fit, f"{line}, which changes Dice by {gain:+.3f}."


def _fit_voxels(counts: Sequence[LevelCounts]) -> Calibration:
    """A straight line in the logit of all voxels; the identity without one of both kinds."""
    voxels = np.sum([case.voxels for case in counts], axis=0)
    lesion = np.sum([case.lesion for case in counts], axis=0)
    n_true, n_false = int(lesion.sum()), int(voxels.sum() - lesion.sum())
    a, b = 0.0, 1.0
    if n_true and n_false:
        weights = voxels / voxels.sum()
        a, b = fit_logistic(_LEVELS, lesion[None], voxels[None], weights, ridge=1.0)[0].tolist()
    return Calibration("platt", a, b, n_true=n_true, n_false=n_false)


def mean_calibration(fits: Sequence[Calibration | None]) -> Calibration | None:
    """One for the mean of several networks, of which each has its own or none (as it is)."""
    known, every = [f for f in fits if f], [f or Calibration("platt") for f in fits]
    if not known:
        return None
    return replace(
        known[0],
        intercept=float(np.mean([fit.intercept for fit in every])),
        slope=float(np.mean([fit.slope for fit in every])),
        n_true=sum(fit.n_true for fit in every),
        n_false=sum(fit.n_false for fit in every),
    )
