"""Calibration of the probabilities of voxels on development cases.

A network that was trained with Dice or on few patients may have probabilities that are too extreme
or too moderate. The voxel threshold then delineates candidates too tightly or too widely, and faint
lesions are lost. A linear function of the logit (Platt 1999) corrects the probabilities. It does
not change the ranking of voxels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lesionseg.core import Calibration, Reference
from lesionseg.core.arrays import Flags, Numbers, Slab
from lesionseg.core.prediction import logit
from lesionseg.errors import count
from lesionseg.evaluation.calibration import fit_logistic
from lesionseg.evaluation.intervals import MIN_GROUPS
from lesionseg.plan.plan import Plan

MIN_GAIN = 0.02  # of mean Dice
_LEVELS = np.linspace(-12, 12, 481)  # logits; a voxel is counted at the nearest one
_N_FOLDS = 5


@dataclass(frozen=True, eq=False)
class LevelCounts:
    """Numbers of voxels and of lesion voxels of one case, by their logit (`_LEVELS`).

    `group` is the patient.
    """

    group: str
    voxels: Numbers = field(default_factory=lambda: np.zeros(len(_LEVELS)))
    lesion: Numbers = field(default_factory=lambda: np.zeros(len(_LEVELS)))

    def slab_counter(self, reference: Reference, plan: Plan) -> Callable[[int, int, Slab], None]:
        """Return a function that adds the voxels of one slab of probabilities to these numbers.

        The function takes the channel, the first row of the slab and the slab. It leaves out
        ignored voxels and labels that the reference does not annotate. It counts nothing if the
        reference has no mask.
        """
        values = plan.labels.channel_values
        labels = reference.labels
        ignore = reference.ignore

        def count_slab(channel: int, row: int, slab: Slab) -> None:
            """Count the voxels of one slab."""
            if labels is None or plan.labels.values[channel] in reference.unannotated:
                return
            rows = slice(row, row + len(slab))
            kept = ... if ignore is None else ~ignore[rows]
            self.add(slab[kept], np.isin(labels[rows], values[channel])[kept])

        return count_slab

    def add(self, p: Slab, lesion: Flags) -> None:
        """Add voxels at their nearest levels: probabilities and a lesion mask of the same shape."""
        level = (
            ((logit(p) - _LEVELS[0]) / (_LEVELS[1] - _LEVELS[0]) + 0.5)
            .astype(np.intp)
            .clip(0, len(_LEVELS) - 1)
            .ravel()
        )
        self.voxels[:] += np.bincount(level, minlength=len(_LEVELS))
        self.lesion[:] += np.bincount(level[lesion.ravel()], minlength=len(_LEVELS))

    def dice(self, level: float) -> float:
        """Return the Dice if voxels from this logit on count as lesion; NaN without a lesion."""
        above = level <= _LEVELS
        n_lesion = self.lesion.sum()
        total = self.voxels[above].sum() + n_lesion
        return float(2 * self.lesion[above].sum() / total) if n_lesion else float("nan")


def select_voxel_calibration(
    counts: Sequence[LevelCounts], extent: float, chosen_on: str
) -> tuple[Calibration | None, str]:
    """Fit the calibration of voxels, and return it with a sentence about its effect.

    Return None, and the reason, if it gains too little or if no fold can be measured. The gain is
    the change of the mean Dice, in which voxels count as lesion if their probability is at least
    `extent`. Each fold of whole groups is measured with the fit of the remaining folds. A single
    group is measured with its own fit. Groups without a lesion only serve the fits. Folds whose fit
    has no positive slope are left out. The gain must be at least `MIN_GAIN`. With fewer groups with
    lesions than an interval needs (`MIN_GROUPS`), the sentence states their number.

    Args:
        counts: The voxels of each case.
        extent: The voxel threshold that delineates a candidate.
        chosen_on: The role of the cases, which the calibration states.
    """
    threshold = float(logit(extent))
    groups = sorted({case.group for case in counts if case.lesion.any()})
    fold = {group: i % _N_FOLDS for i, group in enumerate(groups)}
    gains = []
    for number in sorted(set(fold.values())):
        rest = [case for case in counts if fold.get(case.group) != number]
        fit = _fit_voxels(rest if len(groups) > 1 else counts)
        if fit.slope <= 0:  # for example if all voxels are below the lowest level
            continue
        held_out = (case for case in counts if fold.get(case.group) == number)
        # the logit whose calibrated value is the threshold
        corrected = (threshold - fit.intercept) / fit.slope
        gains += [case.dice(corrected) - case.dice(threshold) for case in held_out]
    if not gains:
        return None, "not used: its effect on the Dice of cases with a lesion cannot be measured."
    gain = float(np.nanmean(gains))
    if gain < MIN_GAIN:
        return None, f"not used: it changes Dice by {gain:+.3f}, less than {MIN_GAIN:+g}."
    fit = replace(_fit_voxels(counts), fitted_on=chosen_on)
    effect = f"a voxel's probability of 0.5 becomes {fit.probability(0.5):.2f}"
    patients = count(len(groups), "patient")
    caution = f" This rests on only {patients}." if len(groups) < MIN_GROUPS else ""
    return fit, f"{effect}, which changes Dice by {gain:+.3f}.{caution}"


def _fit_voxels(counts: Sequence[LevelCounts]) -> Calibration:
    """Fit a linear function of the logit to the voxels of all cases.

    Return the identity without voxels of both lesion and background.
    """
    voxels = np.sum([case.voxels for case in counts], axis=0)
    lesion = np.sum([case.lesion for case in counts], axis=0)
    n_true = int(lesion.sum())
    n_false = int(voxels.sum() - lesion.sum())
    if not n_true or not n_false:
        return Calibration(0.0, 1.0, n_true=n_true, n_false=n_false)
    intercept, slope = fit_logistic(_LEVELS, lesion[None], voxels[None], ridge=1.0)[0].tolist()
    return Calibration(intercept, slope, n_true=n_true, n_false=n_false)


def mean_calibration(fits: Sequence[Calibration | None]) -> Calibration | None:
    """Average the calibrations of several networks. None counts as the identity.

    The numbers of voxels are added up. The role of the cases is that of the first one that is not
    None.
    Return None if no network has a calibration.
    """
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
