"""What the voxels' probabilities are worth, on development cases.

A network trained on Dice or on few patients may be far too sure, or not nearly sure enough. Then
candidates end at the wrong level, and faint lesions fall below the floor. A straight line in the
logit (Platt 1999) puts that right and changes no ranking of voxels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Calibration, Reference
from lesionseg.core.prediction import logit
from lesionseg.evaluation.calibration import fit_logistic
from lesionseg.plan.plan import Plan

MIN_GAIN = 0.02  # in mean Dice
_LEVELS = np.linspace(-12, 12, 481)  # logits at which voxels are counted, the nearest each
_N_FOLDS = 5
Slab = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LevelCounts:
    """Numbers of voxels, and of lesion voxels, of one case by their level of probability."""

    group: str
    voxels: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(_LEVELS)))
    lesion: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(_LEVELS)))

    def counter(self, reference: Reference, plan: Plan) -> Callable[[int, int, Slab], None]:
        """Counts the probabilities that a decision is shown; voxels to be ignored do not count."""
        values = plan.labels.channel_values
        labels, ignore = reference.labels, reference.ignore

        def count(channel: int, row: int, slab: Slab) -> None:
            if labels is None or plan.labels.values[channel] in reference.unannotated:
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
        """Return the Dice of all voxels from a logit on; NaN without a lesion."""
        above, n_lesion = level <= _LEVELS, self.lesion.sum()
        total = self.voxels[above].sum() + n_lesion
        return float(2 * self.lesion[above].sum() / total) if n_lesion else float("nan")


def select_voxel_calibration(
    counts: Sequence[LevelCounts], extent: float, chosen_on: str
) -> tuple[Calibration | None, str]:
    """Fit the calibration of voxels; None if it gains too little. Return the reason as well.

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
        if fit.slope <= 0:  # as where all voxels are less probable than the lowest level
            continue
        held_out = (case for case in counts if fold.get(case.group) == number)
        moved = (level - fit.intercept) / fit.slope
        gains += [case.dice(moved) - case.dice(level) for case in held_out]
    gain = float(np.nanmean(gains)) if gains else 0.0
    if gain < MIN_GAIN:
        return None, f"not used; it changes Dice by {gain:+.3f}, and {MIN_GAIN:+g} is the least."
    fit = replace(_fit_voxels(counts), fitted_on=chosen_on)
    half = f"a voxel's probability of 0.5 becomes {fit.probability(0.5):.2f}"
    return fit, f"{half}, which changes Dice by {gain:+.3f}."


def _fit_voxels(counts: Sequence[LevelCounts]) -> Calibration:
    """Fit a straight line in the logit of all voxels; the identity without both kinds."""
    voxels = np.sum([case.voxels for case in counts], axis=0)
    lesion = np.sum([case.lesion for case in counts], axis=0)
    n_true, n_false = int(lesion.sum()), int(voxels.sum() - lesion.sum())
    a, b = 0.0, 1.0
    if n_true and n_false:
        weights = voxels / voxels.sum()
        a, b = fit_logistic(_LEVELS, lesion[None], voxels[None], weights, ridge=1.0)[0].tolist()
    return Calibration(a, b, n_true=n_true, n_false=n_false)


def mean_calibration(fits: Sequence[Calibration | None]) -> Calibration | None:
    """Average the calibrations of several networks. A network without one counts as identity."""
    known = [f for f in fits if f]
    every = [f or Calibration() for f in fits]
    if not known:
        return None
    return replace(
        known[0],
        intercept=float(np.mean([fit.intercept for fit in every])),
        slope=float(np.mean([fit.slope for fit in every])),
        n_true=sum(fit.n_true for fit in every),
        n_false=sum(fit.n_false for fit in every),
    )
