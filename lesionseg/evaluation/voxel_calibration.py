"""Calibration of voxel probabilities: fit on development cases, minimum gain to be used.

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
    """Histograms of the logits of the predicted probabilities of one case, for a calibration.

    They replace the probabilities of all voxels, which would not fit into memory.

    Attributes:
        group: Id of the patient.
        voxels: Number of voxels at each logit of `_LEVELS`.
        lesion: Number of lesion voxels at each logit of `_LEVELS`.
    """

    group: str
    voxels: Numbers = field(default_factory=lambda: np.zeros(len(_LEVELS)))
    lesion: Numbers = field(default_factory=lambda: np.zeros(len(_LEVELS)))

    def slab_counter(self, reference: Reference, plan: Plan) -> Callable[[int, int, Slab], None]:
        """Return a function that counts the voxels of one slab of a predicted volume.

        The predictor calls this function for each slab, so that the whole volume need not be in
        memory. The arguments of the function are the channel, the first row of the slab along the
        first axis, and the probabilities of the slab. It leaves out ignored voxels and channels
        whose label the reference does not annotate. It counts nothing if the reference has no mask.

        Args:
            reference: The reference on the grid of the probabilities.
            plan: The plan of the network, which states the mask values of each channel.
        """
        values = plan.labels.channel_values
        labels = reference.labels
        ignore = reference.ignore

        def count_slab(channel: int, row: int, slab: Slab) -> None:
            """Count the voxels of one slab of one channel, which begins at `row`."""
            if labels is None or plan.labels.values[channel] in reference.unannotated:
                return
            rows = slice(row, row + len(slab))
            counted = ... if ignore is None else ~ignore[rows]  # `...` selects all voxels
            self.add(slab[counted], np.isin(labels[rows], values[channel])[counted])

        return count_slab

    def add(self, p: Slab, lesion: Flags) -> None:
        """Count voxels in the histograms, each at the level that is nearest to its logit.

        Args:
            p: Predicted probabilities, in any shape.
            lesion: True for voxels of a lesion, in the same shape.
        """
        # the levels have equal distances; + 0.5 rounds to the nearest one
        level = (
            ((logit(p) - _LEVELS[0]) / (_LEVELS[1] - _LEVELS[0]) + 0.5)
            .astype(np.intp)
            .clip(0, len(_LEVELS) - 1)
            .ravel()
        )
        self.voxels[:] += np.bincount(level, minlength=len(_LEVELS))
        self.lesion[:] += np.bincount(level[lesion.ravel()], minlength=len(_LEVELS))

    def dice(self, level: float) -> float:
        """Compute the Dice of the case if voxels with at least this logit are predicted as lesion.

        The Dice is NaN without a lesion.
        """
        above = level <= _LEVELS
        n_lesion = self.lesion.sum()
        total = self.voxels[above].sum() + n_lesion
        return float(2 * self.lesion[above].sum() / total) if n_lesion else float("nan")


def select_voxel_calibration(
    counts: Sequence[LevelCounts], extent: float, chosen_on: str
) -> tuple[Calibration | None, str]:
    """Fit the calibration of voxel probabilities, and decide by cross-validation if it is used.

    The calibration is used if it increases the mean Dice by at least `MIN_GAIN`. For the Dice,
    voxels are predicted as lesion if their probability is at least `extent`. The groups (patients)
    with lesions are divided into five folds. The gain of a fold is measured with the calibration
    that was fitted on all other cases. A single group with lesions is measured with the calibration
    that was fitted on all cases. Folds whose calibration has no positive slope are left out.

    Args:
        counts: The histograms of each case.
        extent: The voxel threshold that delineates a candidate, as a probability.
        chosen_on: The role of the cases, which is recorded in the calibration.

    Returns:
        The calibration, fitted on all cases, and a sentence about its effect. The sentence gives a
        caution if fewer than `MIN_GROUPS` groups have lesions. Or None and the reason, if the gain
        is too small or cannot be measured.
    """
    threshold = float(logit(extent))
    groups = sorted({case.group for case in counts if case.lesion.any()})
    fold_of_group = {group: i % _N_FOLDS for i, group in enumerate(groups)}
    gains = []  # change of Dice of each case
    for fold in sorted(set(fold_of_group.values())):
        # groups without lesions belong to no fold, and are used in every fit
        other_cases = [case for case in counts if fold_of_group.get(case.group) != fold]
        fit = _fit_voxels(other_cases if len(groups) > 1 else counts)
        if fit.slope <= 0:  # for example if all voxels are below the lowest level
            continue
        held_out = (case for case in counts if fold_of_group.get(case.group) == fold)
        # the logit whose calibrated value is the threshold
        corrected = (threshold - fit.intercept) / fit.slope
        gains += [case.dice(corrected) - case.dice(threshold) for case in held_out]
    if not gains:
        return None, "not used: its effect on the Dice of cases with a lesion cannot be measured."
    gain = float(np.nanmean(gains))  # cases without a lesion have no Dice (NaN)
    if gain < MIN_GAIN:
        return None, f"not used: it changes Dice by {gain:+.3f}, less than {MIN_GAIN:+g}."
    fit = replace(_fit_voxels(counts), fitted_on=chosen_on)
    effect = f"a voxel's probability of 0.5 becomes {fit.probability(0.5):.2f}"
    patients = count(len(groups), "patient")
    caution = f" This rests on only {patients}." if len(groups) < MIN_GROUPS else ""
    return fit, f"{effect}, which changes Dice by {gain:+.3f}.{caution}"


def _fit_voxels(counts: Sequence[LevelCounts]) -> Calibration:
    """Fit a calibration (a linear function of the logit) to the voxels of all cases.

    Return the identity if the cases have no lesion voxel or no background voxel.
    """
    voxels = np.sum([case.voxels for case in counts], axis=0)
    lesion = np.sum([case.lesion for case in counts], axis=0)
    n_true = int(lesion.sum())
    n_false = int(voxels.sum() - lesion.sum())
    if not n_true or not n_false:
        return Calibration(intercept=0.0, slope=1.0, n_true=n_true, n_false=n_false)
    # the ridge is weak compared with the numbers of voxels, but keeps the slope finite
    fits = fit_logistic(_LEVELS, true=lesion[None], totals=voxels[None], ridge=1.0)
    intercept, slope = fits[0].tolist()  # the only fit
    return Calibration(intercept=intercept, slope=slope, n_true=n_true, n_false=n_false)


def mean_calibration(fits: Sequence[Calibration | None]) -> Calibration | None:
    """Average the voxel calibrations of several networks, for the ensemble of a cross-validation.

    Intercepts and slopes are averaged. A network without a calibration (None) counts as the
    identity. The numbers of voxels are added up, and `fitted_on` is that of the first calibration.
    Return None if no network has a calibration.
    """
    fitted = [f for f in fits if f]
    all_fits = [f or Calibration() for f in fits]  # by default, intercept 0 and slope 1
    if not fitted:
        return None
    return replace(
        fitted[0],
        intercept=float(np.mean([fit.intercept for fit in all_fits])),
        slope=float(np.mean([fit.slope for fit in all_fits])),
        n_true=sum(fit.n_true for fit in all_fits),
        n_false=sum(fit.n_false for fit in all_fits),
    )
