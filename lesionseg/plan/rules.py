"""The planning rules: one pure function a decision, each with its reason and its source.

nnU-Net below is Isensee F et al., Nature Methods 2021;18:203, with its supplement.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from lesionseg.errors import ConfigError, count
from lesionseg.plan.fingerprint import ChannelStatistics
from lesionseg.plan.plan import Architecture, CandidateRule, Normalisation, total_stride

T = TypeVar("T")

RESOLVED_VOXELS = 3  # voxels across a lesion that should be seen as more than a dot
LARGE_VOXELS = 20  # voxels across from which half the resolution still shows a lesion well
# channel names by which nnU-Net chooses a normalisation, and ours of the same effect; CT below
NAMED_SCALES: Mapping[str, Normalisation] = {
    "nonorm": Normalisation("dataset"),
    "zscore": Normalisation("zscore"),
    "rescale_to_0_1": Normalisation("range"),
    "rescale_0_1": Normalisation("range"),
    "rgb_to_0_1": Normalisation("dataset", std=255.0),
}
# GB that a training step of a network takes, with tiles of a shape and so many of them
StepGb = Callable[[Architecture, Sequence[int], int], float]
SHARE = 0.9  # of a GPU's memory is planned with: what a step takes is known to 15 %
PROCESSOR = 1.4 * 65e9  # multiplications a step
_BACKWARD = 3  # a training step costs about three forward passes
NARROWEST = 4  # voxels an axis keeps at the coarsest stage
# Residual blocks of each encoder stage, the last for all further ones; the decoder has one
# convolution a stage (Isensee et al. 2024, nnU-Net's ResEnc M, L and XL alike)
RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6)
ROUND_UP = 1.15  # by how much a tile may exceed the median volume to fit the total stride
# Lesions in a tile from which on small ones are taken: with 1 (nodules) large tiles were better,
# with 1.8 and more (MS, simulated heads) small ones
CROWDED = 1.5
SMALL_TILE = 32**3  # voxels: a small lesion and what surrounds it
MOST_SMALL_TILES = 16  # a step


@dataclass(frozen=True)
class Decision(Generic[T]):
    """A decided value and the sentence that explains it."""

    value: T
    reason: str


def spacing(
    spacings_mm: Sequence[Sequence[float]], diameters_mm: Sequence[float], device: str
) -> Decision[tuple[float, ...]]:
    """The grid to train on: the median spacing of each axis (nnU-Net).

    An axis over three times as coarse as the finest takes the 10th percentile (nnU-Net); so does
    one on which the smallest 5 % of lesions would be under 3 voxels across, if that is finer. On a
    processor the axes finer than twice the finest are halved in resolution, once, when every lesion
    is over 20 voxels across on them.
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
            reason += f"; the smallest 5 % of lesions (under {small:.1f} mm) are still less than"
            reason += f" {RESOLVED_VOXELS} voxels across"
        similar = spacing < 2 * spacing.min()
        across = min(diameters_mm) / spacing[similar].max()
        if across > LARGE_VOXELS and not device.startswith("cuda"):
            spacing = np.where(similar, 2 * spacing, spacing)
            reason += f"; half the resolution, as every lesion is over {LARGE_VOXELS} voxels across"
    return Decision(tuple(round(float(s), 6) for s in spacing), reason)


def is_anisotropic(spacing_mm: Sequence[float]) -> bool:
    """Whether the coarsest spacing is over three times the finest (nnU-Net)."""
    return max(spacing_mm) > 3 * min(spacing_mm)


def normalisation(channel: ChannelStatistics, dims: int) -> Decision[Normalisation]:
    """How a channel is scaled.

    CT has absolute units: one scale for all cases, clipped to the 0.5 and 99.5 percentiles of the
    lesions (nnU-Net) *and* of the body, so that the lung around a nodule keeps its texture; mean
    and spread are those of lesions and body in equal parts. Radiographs: each image's own range.
    MRI: each case's z-score. A name by which nnU-Net chooses goes before all of this.
    """
    name = channel.name.strip().casefold()
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


def prior(lesion_fraction: float) -> Decision[float]:
    """The prior π of the last layer's bias: the share of lesion voxels (Lin et al. 2017, 3.3).

    Kept within 10⁻⁶ and 0.2: beyond gradients vanish, or lesions are taken for the rule.
    """
    low, high = 1e-6, 0.2
    value = min(max(lesion_fraction, low), high)
    kept = "" if value == lesion_fraction else f", kept within {low:g} and {high:g}"
    return Decision(value, f"{lesion_fraction:.2e} of the scanned volume is lesion{kept}")


def candidate_rule(lesion_voxels: Sequence[int], prior_: float) -> Decision[CandidateRule]:
    """Decide how probabilities become candidates on the file's grid.

    A candidate smaller than a tenth of the smallest lesions (5th percentile) covers a tenth of none
    of them, so it is dropped. Single voxels are kept if the smallest lesions have up to 10 voxels;
    otherwise 2 to 10 voxels are required (PI-CAI drops those of 10 and fewer). A peak no higher
    than the prior says nothing, so the floor is at least π.
    """
    smallest = float(np.percentile(lesion_voxels, 5)) if len(lesion_voxels) else 0.0
    least = 1 if smallest <= 10 else int(min(max(smallest // 10, 2), 10))
    rule = CandidateRule(
        floor=max(CandidateRule().floor, prior_),
        min_voxels=least,
    )
    reason = f"because 5 % of lesions have at most {count(round(smallest), 'voxel')}"
    return Decision(rule, f"the smallest detection kept has {count(least, 'voxel')}, {reason}")


@dataclass(frozen=True)
class DeviceBudget:
    """What the device allows; `fits(architecture, tile_shape, batch_size)`: such a step."""

    fits: Callable[[Architecture, Sequence[int], int], bool]
    longest: int  # side of the longest tile, in voxels
    base_features: int  # of the first stage
    widest: int  # the most features of a stage
    batch: int  # the most tiles a step
    start: int = 16  # side of the smallest tile worth trying
    fills: bool = False  # single axes take what rounding the tile leaves
    capped: bool = True  # in 3-D the tiles of a step are at most a share of the dataset
    small_tiles: bool = False  # several may take the place of a large one (`for_small_tiles`)
    most_voxels: float = inf  # of a tile
    architecture: str = "unet"  # it is spent on

    def network(
        self, tile: Sequence[int], spacing_mm: Sequence[float], exact: bool = False
    ) -> Architecture:
        """Stages, strides, kernels and features for a tile (nnU-Net).

        An axis is halved while it keeps 4 voxels and is less than twice as coarse as the finest
        axis that can be halved; an axis over twice as coarse as the finest has kernels of 1, so
        that it is mixed only once the others have caught up. Features double from stage to stage.
        `exact`: only halvings that the tile's own numbers allow, for a tile somebody has chosen.
        """
        size, mm = np.array(tile, dtype=float), np.array(spacing_mm, dtype=float)
        strides: list[tuple[int, ...]] = []
        kernels, stride = [], np.ones(len(size), dtype=int)
        while not strides or stride.max() > 1:
            size, mm = size / stride, mm * stride
            strides.append(tuple(stride.tolist()))
            kernels.append(tuple(np.where((mm > 2 * mm.min()) | (size < 2), 1, 3).tolist()))
            able = (size >= 2 * NARROWEST) & ((size % 2 == 0) | (not exact))
            stride = np.where(able & (mm < 2 * mm.min(initial=inf, where=able)), 2, 1)
        n, residual = len(strides), self.architecture == "residual_unet"
        blocks = (*RESIDUAL_BLOCKS, *(RESIDUAL_BLOCKS[-1],) * n)[:n]
        return Architecture(
            name=self.architecture,
            features=tuple(min(self.base_features * 2**i, self.widest) for i in range(n)),
            strides=tuple(strides),
            kernels=tuple(kernels),
            blocks=1 if residual else 2,
            n_supervised=min(max(n - 2, 1), 3),
            encoder_blocks=blocks if residual else (),
        )


def budget(
    device: str,
    memory_gb: float,
    step_gb: StepGb | None = None,
    *,
    n_channels: int = 1,
    dims: int = 3,
) -> Decision[DeviceBudget]:
    """What a training step may take on a device with `memory_gb` of memory.

    A processor: 16 to 128 features and about 1.4 s a step on two cores at 65·10⁹ fp32
    multiplications a second, for which any memory suffices. A GPU: nnU-Net's 32 to 320 features,
    and nine tenths of the memory by `step_gb`, without which it is a `ConfigError`.
    """
    if not device.startswith("cuda"):
        found = DeviceBudget(
            lambda *step: multiplications(*step, n_channels=n_channels) <= PROCESSOR,
            longest=80 if dims == 3 else 320,
            base_features=16,
            widest=128,
            batch=4,
            small_tiles=dims == 3,
        )
        return Decision(found, "planned for a processor: about a second a step on two cores")
    if step_gb is None:
        raise ConfigError("make_plan: a plan for a GPU needs step_memory.")
    found = DeviceBudget(
        lambda *step: step_gb(*step) <= SHARE * memory_gb,
        longest=256 if dims == 3 else 2048,
        base_features=32,
        widest=320,
        batch=8 if dims == 3 else 16,
        start=64 if dims == 3 else 256,
        fills=True,
    )
    return Decision(found, f"planned for a GPU with {memory_gb:.0f} GB")


def multiplications(
    architecture: Architecture, tile_shape: Sequence[int], batch_size: int, *, n_channels: int = 1
) -> float:
    """Multiply-accumulates of a training step, with two equal halves or a residual encoder.

    A stage of f features on v voxels with b blocks of a kernel of k voxels costs, encoder and
    decoder together, v·k·(f_before·f + 2f·f + 2(b−1)·f²); the last stage has an encoder only. A
    residual block has two convolutions, and the stem is in the first stage.
    """
    macs, voxels, n = 0.0, float(prod(tile_shape)), len(architecture.features)
    before = n_channels
    rows = zip(architecture.features, architecture.strides, architecture.kernels, strict=True)
    for stage, (width, stride, kernel) in enumerate(rows):
        voxels /= prod(stride)
        decoder = architecture.blocks if stage < n - 1 else 0
        encoder = architecture.blocks
        if architecture.encoder_blocks:
            encoder = 2 * architecture.encoder_blocks[stage] + (stage == 0)
        per_voxel = prod(kernel) * (before * width + (encoder - 1) * width**2)
        per_voxel += prod(kernel) * (decoder + 1) * width**2 if decoder else 0
        per_voxel += before * width * prod(stride) if stage else 0  # the way back up
        macs += voxels * per_voxel
        before = width
    return _BACKWARD * batch_size * macs


def tile_shape(
    median_shape: Sequence[int], spacing_mm: Sequence[float], allowed: DeviceBudget
) -> Decision[tuple[int, ...]]:
    """The largest tile whose training step at batch 2 the budget allows (nnU-Net).

    Grown 8 voxels at a time along the axis that covers the fewest millimetres, at most to the
    median volume, whose sides may be rounded up by 15 % to a multiple of the total stride. On a GPU
    what rounding down leaves goes to single axes, a total stride at a time.
    """

    def stride(tile: Sequence[int]) -> tuple[int, ...]:
        return total_stride(allowed.network(tile, spacing_mm))

    def affordable(tile: Sequence[int]) -> bool:
        fits = allowed.fits(allowed.network(tile, spacing_mm), tile, 2)
        return fits and prod(tile) <= allowed.most_voxels

    def grown(
        tile: tuple[int, ...],
        step: Callable[[tuple[int, ...], int], int],
        fits: Callable[[tuple[int, ...], int], bool],
    ) -> tuple[int, ...]:
        """Longer by `step(tile, axis)` along the axes that cover the fewest millimetres first."""
        growing = set(range(len(tile)))
        while growing:
            axis = min(growing, key=lambda a: (tile[a] * spacing_mm[a], a))
            larger = (*tile[:axis], tile[axis] + step(tile, axis), *tile[axis + 1 :])
            if larger != tile and fits(larger, axis) and affordable(larger):
                tile = larger
            else:
                growing.remove(axis)
        return tile

    limit = [min(n, allowed.longest) for n in median_shape]
    tile = tuple(min(n, allowed.start) for n in limit)
    if not affordable(tile):
        tile = tuple(min(n, 16) for n in limit)
    tile = grown(tile, lambda t, a: min(8, limit[a] - t[a]), lambda t, a: True)
    tile = tuple(
        up if n == m and (up := -(-n // s) * s) <= ROUND_UP * n else max(n // s, 1) * s
        for n, s, m in zip(tile, stride(tile), median_shape, strict=True)
    )
    if allowed.fills:
        most = [min(int(ROUND_UP * m), allowed.longest) for m in median_shape]
        tile = grown(
            tile,
            lambda t, a: stride(t)[a],
            lambda t, a: t[a] <= most[a] and not any(np.remainder(t, stride(t))),
        )
    whole = all(n >= m for n, m in zip(tile, median_shape, strict=True))
    why = "The median volume fits" if whole else "This is the largest the device allows at batch 2"
    if allowed.most_voxels < inf:
        why = "Larger tiles would contain several lesions from one patient"
    return Decision(tile, f"{' × '.join(map(str, tile))}. {why}")


def for_small_tiles(
    allowed: DeviceBudget,
    median_shape: Sequence[int],
    spacing_mm: Sequence[float],
    n_voxels: float,
    lesion_voxels: Sequence[float] | NDArray[np.float64],
) -> DeviceBudget:
    """The same budget for small tiles, where the largest would hold several lesions.

    Several lesions of a tile are one patient's, those of as many small tiles are many patients', at
    the same cost. Not (not measured) where one lesion of ten fills an eighth of a small tile, nor
    on a GPU. `n_voxels`, `lesion_voxels`: of the dataset and of each lesion, on the plan's grid.
    """
    if not allowed.small_tiles:
        return allowed
    largest = min(prod(tile_shape(median_shape, spacing_mm, allowed).value), prod(median_shape))
    crowded = len(lesion_voxels) * largest >= CROWDED * n_voxels
    if largest <= SMALL_TILE or not crowded or np.percentile(lesion_voxels, 90) >= SMALL_TILE / 8:
        return allowed
    return replace(allowed, most_voxels=SMALL_TILE, batch=MOST_SMALL_TILES, capped=False)


def batch_size(
    shape: Architecture, tile: Sequence[int], allowed: DeviceBudget, n_voxels: float
) -> Decision[int]:
    """Tiles a step: 2, or more where the budget allows; in 3-D up to 5 % of all voxels (nnU-Net).

    `n_voxels` is the number of voxels of the whole dataset on the plan's grid.
    """
    most = allowed.batch
    if len(tile) == 3 and allowed.capped:
        most = min(most, max(2, int(0.05 * n_voxels / prod(tile))))
    batch = 2
    while batch < most and allowed.fits(shape, tile, batch + 1):
        batch += 1
    why = "upper limit" if batch == most else "more would exceed the budget"
    return Decision(batch, f"{batch} ({why})")
