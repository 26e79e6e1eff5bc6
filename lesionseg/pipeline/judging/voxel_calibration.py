"""What a voxel's probability is worth on development cases, and whether outlines gain by it.

A network may be far too sure, or not nearly sure enough: trained on Dice, or on few patients. Then
candidates end at the wrong level, and faint lesions fall below the floor. A straight line in the
logit (Platt 1999) puts that right and changes no ranking of voxels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Calibration, Reference
from lesionseg.core.prediction import logit
from lesionseg.evaluation.statistics.logistic import fit_counts
from lesionseg.inference.decision import Slab, Watch
from lesionseg.plan.plan import Plan

MIN_GAIN = 0.02  # in mean Dice
_LEVELS = np.linspace(-12, 12, 481)  # logits at which voxels are counted, the nearest each
_N_FOLDS = 5


@dataclass(frozen=True, eq=False)
class LevelCounts:
    """How many voxels of one case have a probability near each level, and how many are lesion."""

    group: str
    voxels: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(_LEVELS)))
    lesion: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(_LEVELS)))

    def add(self, p: NDArray[np.float32], lesion: NDArray[np.bool_]) -> None:
        """Count voxels of one shape: their probabilities, and whether they are lesion."""
        clipped = np.clip(p, 1e-6, 1 - 1e-6)
        place = np.log(clipped / (1 - clipped))
        place = ((place - _LEVELS[0]) / (_LEVELS[1] - _LEVELS[0]) + 0.5).astype(np.intp)
        place = place.clip(0, len(_LEVELS) - 1).ravel()
        self.voxels[:] += np.bincount(place, minlength=len(_LEVELS))
        self.lesion[:] += np.bincount(place[lesion.ravel()], minlength=len(_LEVELS))

    def watch(self, reference: Reference, plan: Plan) -> Watch:
        """Counts the probabilities that a decision is shown; voxels to be ignored do not count."""
        values = plan.regions or tuple((value,) for value in plan.label_values)
        labels, ignore = reference.labels, reference.ignore

        def count(channel: int, slabs: Iterator[Slab]) -> Iterator[Slab]:
            if plan.label_values[channel] in reference.unannotated:
                yield from slabs
                return
            row = 0
            for slab in slabs:
                rows = slice(row, row + len(slab))
                if labels is not None:
                    lesion = np.isin(labels[rows], values[channel])
                    taught = ... if ignore is None else ~ignore[rows]
                    self.add(slab[taught], lesion[taught])
                row = rows.stop
                yield slab

        return count

    def dice(self, level: float) -> float:
        """Dice of all voxels from a logit on; NaN without a lesion."""
        above = level <= _LEVELS
        n_lesion = self.lesion.sum()
        total = self.voxels[above].sum() + n_lesion
        return float(2 * self.lesion[above].sum() / total) if n_lesion else float("nan")


def choose_voxel_calibration(
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
        held_out = [case for case in counts if fold.get(case.group) == number]
        rest = [case for case in counts if fold.get(case.group) != number]
        a, b = _fit(rest if len(groups) > 1 else counts)
        if b > 0:
            gains += [case.dice((level - a) / b) - case.dice(level) for case in held_out]
    gain = float(np.nanmean(gains)) if gains else 0.0
    if gain < MIN_GAIN:
        return None, f"none: Dice of all voxels would change by {gain:+.3f}."
    a, b = _fit(counts)
    n_lesion = int(sum(case.lesion.sum() for case in counts))
    n_voxels = int(sum(case.voxels.sum() for case in counts))
    fit = Calibration("platt", a, b, (), (), chosen_on, n_lesion, n_voxels - n_lesion)
    return fit, f"logit p = {a:.3g} + {b:.3g} · logit: Dice of all voxels {gain:+.3f}."


def mean_calibration(fits: Sequence[Calibration | None]) -> Calibration | None:
    """One for the mean of several networks, of which each has its own or none (as it is)."""
    known = [fit for fit in fits if fit is not None]
    if not known:
        return None
    a, b = (float(np.mean(v)) for v in zip(*[_line(fit) for fit in fits], strict=True))
    n_true, n_false = (sum(getattr(fit, n) for fit in known) for n in ("n_true", "n_false"))
    return Calibration("platt", a, b, (), (), known[0].fitted_on, n_true, n_false)


def _line(fit: Calibration | None) -> tuple[float, float]:
    return (0.0, 1.0) if fit is None else (fit.intercept, fit.slope)


def _fit(counts: Sequence[LevelCounts]) -> tuple[float, float]:
    """Intercept and slope of the logit; the line as it is without voxels of either kind."""
    voxels = np.sum([case.voxels for case in counts], axis=0)
    lesion = np.sum([case.lesion for case in counts], axis=0)
    if not lesion.any() or lesion.sum() == voxels.sum():
        return 0.0, 1.0
    weights = voxels / voxels.sum()
    ((a, b),) = fit_counts(_LEVELS, lesion[None], voxels[None], weights, ridge=1.0)
    return float(a), float(b)
