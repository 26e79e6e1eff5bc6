"""The planning rules: one pure function a decision, each with its reason and its source.

nnU-Net below is Isensee F et al., Nature Methods 2021;18:203, with its supplement.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from lesionseg.plan.candidate_rule import CandidateRule
from lesionseg.plan.fingerprint import ChannelStatistics
from lesionseg.plan.plan import Normalisation, ThickSlices

T = TypeVar("T")

ANISOTROPIC = 3.0  # ratio of coarsest to finest spacing from which a set counts as anisotropic
MIXED = 2.0  # ratio from which slices are thick beside those of other cases
ACROSS = ("from feet to head", "from back to front", "from left to right")
RESOLVED_VOXELS = 3  # voxels across a lesion that should be seen as more than a dot
LARGE_VOXELS = 20  # voxels across from which half the resolution still shows a lesion well
PRIOR_RANGE = (1e-6, 0.2)
# channel names by which nnU-Net chooses a normalisation, whatever their case, and ours; CT below
NAMED_SCALES: Mapping[str, Normalisation] = {
    "nonorm": Normalisation("dataset"),
    "zscore": Normalisation("zscore"),
    "rgb_to_0_1": Normalisation("dataset", std=255.0),
}
UNKNOWN_SCALES = ("rescale_to_0_1", "rescale_0_1")  # such names too, that ours cannot express


@dataclass(frozen=True)
class Decision(Generic[T]):
    """A decided value and the sentence that explains it."""

    value: T
    reason: str


def target_spacing(
    spacings_mm: Sequence[Sequence[float]], diameters_mm: Sequence[float]
) -> Decision[tuple[float, ...]]:
    """The grid to train on: the median spacing of each axis (nnU-Net).

    Where the coarsest axis is over three times the finest it takes the 10th percentile (nnU-Net).
    An axis on which the smallest 5 % of lesions would be under 3 voxels across takes the 10th
    percentile too, if that is finer; what stays unresolved is said. No lesion: the median alone.
    """
    table = np.asarray(spacings_mm, dtype=float)
    spacing, fine = np.median(table, axis=0), np.percentile(table, 10, axis=0)
    reason = "the median spacing"
    if is_anisotropic(spacing.tolist()):
        spacing[spacing.argmax()] = min(spacing.max(), fine[spacing.argmax()])
        reason += "; the coarse axis takes the 10th percentile"
    if len(diameters_mm) > 0:
        small = float(np.percentile(diameters_mm, 5))
        finer = (small < RESOLVED_VOXELS * spacing) & (fine < 0.99 * spacing)
        spacing = np.where(finer, fine, spacing)
        reason += "; finer where small lesions need it" if finer.any() else ""
        if (small < RESOLVED_VOXELS * spacing).any():
            reason += f"; the smallest 5 % of lesions (under {small:.1f} mm) are less than"
            reason += f" {RESOLVED_VOXELS} voxels across even so"
    return Decision(_rounded(spacing), reason)


def thick_slices(spacings_mm: Sequence[Sequence[float]]) -> Decision[ThickSlices | None]:
    """Which slices are over twice as far apart as the thin ones, the 10th percentile over cases.

    A case's slices lie across its coarsest axis. Where thick ones lie across several axes, those
    most cases have count. None in 2-D, and where there are none.
    """
    table = np.asarray(spacings_mm, dtype=float)
    if table.shape[1] != len(ACROSS):
        return Decision(None, "")
    apart, axes = table.max(axis=1), table.argmax(axis=1)
    thick = apart > MIXED * np.percentile(apart, 10)
    if not thick.any():
        return Decision(None, f"slices {_range_mm(apart)} apart in all cases")
    axis = int(np.bincount(axes[thick]).argmax())
    found = apart[thick & (axes == axis)]
    reason = f"mixed: slices {_range_mm(apart[~thick])} apart in {int((~thick).sum())} cases, "
    reason += f"{_range_mm(found)} {ACROSS[axis]} in {len(found)} of {len(table)}"
    return Decision(ThickSlices(axis, (float(found.min()), float(found.max()))), reason)


def halved_resolution(
    spacing_mm: Sequence[float], diameters_mm: Sequence[float], device: str
) -> Decision[tuple[float, ...]]:
    """Twice the spacing on a processor when every lesion is over 20 voxels across; else as it is.

    Only axes finer than twice the finest are coarsened, and once: the lesions keep 10 voxels.
    """
    spacing = np.asarray(spacing_mm, dtype=float)
    fine = spacing < 2 * spacing.min()
    if device.startswith("cuda") or len(diameters_mm) == 0:
        return Decision(_rounded(spacing), "")
    across = min(diameters_mm) / spacing[fine].max()
    if across <= LARGE_VOXELS:
        return Decision(_rounded(spacing), "")
    reason = f"halved in resolution: every lesion is over {LARGE_VOXELS} voxels across"
    return Decision(_rounded(np.where(fine, 2 * spacing, spacing)), reason)


def raster_mm(spacings_mm: Sequence[Sequence[float]]) -> float | None:
    """The pixel size taken for a radiograph that states none; None for volumes.

    The median of the training images along the first axis: rasters that are predicted are then
    resampled as those of the training were.

    >>> raster_mm([(1.0, 1.0), (0.5, 0.5), (1.0, 1.0)])
    1.0
    """
    if not spacings_mm or len(spacings_mm[0]) != 2:
        return None
    return float(np.median([spacing[0] for spacing in spacings_mm]))


def is_anisotropic(spacing_mm: Sequence[float]) -> bool:
    """Whether the coarsest spacing is over three times the finest (nnU-Net).

    >>> is_anisotropic((5.0, 0.8, 0.8)), is_anisotropic((2.0, 1.0, 1.0))
    (True, False)
    """
    return max(spacing_mm) > ANISOTROPIC * min(spacing_mm)


def normalisation(channel: ChannelStatistics, dims: int) -> Decision[Normalisation]:
    """How a channel is scaled.

    CT has absolute units: one scale for all cases, clipped to the 0.5 and 99.5 percentiles of the
    lesions (nnU-Net) *and* of the body, so that the lung around a nodule keeps its texture; mean
    and spread are those of lesions and body in equal parts. Radiographs: each image's own range.
    MRI has arbitrary units: each case's z-score. A name by which nnU-Net chooses goes before all
    of this.
    """
    name = scale_name(channel.name)
    if name in NAMED_SCALES:
        return Decision(NAMED_SCALES[name], f"as the channel is called: {channel.name}")
    if dims == 2 and not channel.is_ct:
        return Decision(Normalisation("range"), "each radiograph's own range")
    if not channel.is_ct:
        return Decision(Normalisation("zscore"), "each case's z-score: units are arbitrary")
    body, lesion = channel.body, channel.lesion or channel.body
    mean = (body.mean + lesion.mean) / 2
    spread = (body.std**2 + lesion.std**2) / 2 + (body.mean - lesion.mean) ** 2 / 4
    scale = Normalisation(
        "dataset",
        lower=round(min(body.lower, lesion.lower), 3),
        upper=round(max(body.upper, lesion.upper), 3),
        mean=round(mean, 3),
        std=round(max(float(np.sqrt(spread)), 1e-3), 3),
    )
    return Decision(scale, f"Hounsfield units clipped to {scale.lower:.0f}..{scale.upper:.0f}")


def scale_name(channel_name: str) -> str:
    """A channel's name as it is looked for among those by which nnU-Net chooses."""
    return channel_name.strip().casefold()


def prior(lesion_fraction: float) -> Decision[float]:
    """The prior π of the last layer's bias: the share of lesion voxels (Lin et al. 2017, 3.3).

    Kept within 10⁻⁶ and 0.2: a bias beyond that starts the network where gradients vanish, or
    where it takes lesions for the rule.
    """
    low, high = PRIOR_RANGE
    value = min(max(lesion_fraction, low), high)
    kept = "" if value == lesion_fraction else f", kept within {low:g} and {high:g}"
    return Decision(value, f"{lesion_fraction:.2e} of the scanned volume is lesion{kept}")


def candidate_rule(
    lesion_voxels: Sequence[int], lesions_per_case: Sequence[int], prior_: float
) -> Decision[CandidateRule]:
    """How probabilities become candidates on the file's grid.

    A candidate under a tenth of the smallest lesions (5th percentile) covers a tenth of none of
    them, so it is dropped: 1 voxel is kept where lesions have up to 10, else 2 to 10 are asked for
    (PI-CAI drops those of 10 and fewer). A peak no higher than the prior says nothing, so the
    floor is at least π. Four times the most lesions of a case are kept, never under 300.
    """
    smallest = float(np.percentile(lesion_voxels, 5)) if len(lesion_voxels) else 0.0
    least = 1 if smallest <= 10 else int(min(max(smallest // 10, 2), 10))
    rule = CandidateRule(
        floor=max(CandidateRule().floor, prior_),
        min_voxels=least,
        max_candidates=max(CandidateRule().max_candidates, 4 * max(lesions_per_case, default=0)),
    )
    reason = f"the smallest 5 % of lesions have {smallest:.0f} voxels or fewer"
    return Decision(rule, f"at least {least} voxels: {reason}")


def _range_mm(values: NDArray[np.float64]) -> str:
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    return f"{low} mm" if low == high else f"{low} to {high} mm"


def _rounded(spacing: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(float(s), 6) for s in spacing)
