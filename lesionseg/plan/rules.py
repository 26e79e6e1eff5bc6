"""Planning rules: spacing, normalisation of a channel, tile, batch, candidate rule, prior.

Each is a pure function with its reason and its source.

"nnU-Net" means Isensee F et al., Nature Methods 2021;18:203, and its supplement.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, inf, prod
from typing import Generic, TypeVar

import numpy as np

from lesionseg.core import describe_sides
from lesionseg.core.arrays import Numbers
from lesionseg.errors import ConfigError, count
from lesionseg.plan.fingerprint import ChannelStatistics
from lesionseg.plan.plan import (
    Architecture,
    CandidateRule,
    Normalisation,
    total_stride,
)

T_co = TypeVar("T_co", covariant=True)

RESOLVED_VOXELS = 3  # the smallest lesions should be at least this many voxels across
# On a CPU, the resolution is halved if every lesion is more than this many voxels across. In 2-D,
# this share of the lesions is enough, in percent.
LARGE_VOXELS = 20
LARGE_SHARE = 90
# Channel names that select a normalisation in nnU-Net, and our equivalent. The fingerprint
# recognises the name "CT" (`ChannelStatistics.is_ct`).
NAMED_SCALES: Mapping[str, Normalisation] = {
    "nonorm": Normalisation("dataset"),
    "zscore": Normalisation("zscore"),
    "rescale_to_0_1": Normalisation("range"),
    "rescale_0_1": Normalisation("range"),
    "rgb_to_0_1": Normalisation("dataset", std=255.0),
}
# The surroundings in a radiograph are weighted by a Gaussian with this standard deviation, as a
# share of the longer side of the median image.
LOCAL_SHARE = 0.05
GPU_MEMORY_SHARE = 0.9  # a plan may use this fraction of a GPU's memory
NNUNET_VOXELS = {3: 2 * 128**3, 2: 12 * 512**2}  # voxels of nnU-Net's step, by number of axes
# multiplications of a training step on a CPU: 1.4 s on two cores with 65·10⁹ per second
CPU_MULTIPLICATIONS = 1.4 * 65e9
LARGEST_CUBE = 80  # side in voxels of the largest cubic tile on a CPU
_BACKWARD = 3  # a training step costs about three forward passes
MIN_SIDE = 4  # smallest side, in voxels, of the coarsest stage
# Residual blocks of each encoder stage; further stages have the last number. The decoder has one
# convolution per stage (Isensee et al. 2024; the same in nnU-Net's ResEnc M, L and XL).
RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6)
MAX_SUPERVISED = 3  # resolutions with a loss
ROUND_UP = 1.15  # to fit the total stride, a tile may be larger than the median volume by this
# Mean number of lesions per tile above which small tiles are used. In measurements, large tiles
# were better with 1 lesion (nodules), small ones with 1.8 and more (MS, simulated heads).
CROWDED = 1.5
SMALL_TILE = 32**3  # voxels; enough for a small lesion and its surroundings
MAX_SMALL_TILES = 16  # per training step
# Tiles centred on each lesion after which a network of few lesions becomes worse: see
# "Views per lesion" in benchmarks/notes/losses.md
VIEWS_OF_LESION = 200
_MIN_START = 16  # side, in voxels, of the tile to start from if the budget's own is too large


@dataclass(frozen=True)
class Decision(Generic[T_co]):
    """A decision and the sentence that explains it."""

    value: T_co
    reason: str


def grid_element(dims: int) -> str:
    """Return the word for an element of the grid in texts: "pixel" in 2-D, otherwise "voxel"."""
    return "pixel" if dims == 2 else "voxel"


def spacing(
    spacings_mm: Sequence[Sequence[float]], diameters_mm: Sequence[float], device: str
) -> Decision[tuple[float, ...]]:
    """Decide the spacing of the training grid.

    The default is the median spacing of each axis (nnU-Net). An axis has the 10th percentile of its
    spacings instead in two cases:

    - It is the coarsest axis, and more than three times as coarse as the finest one (nnU-Net).
    - The smallest 5 % of lesions would be less than 3 voxels across, and the percentile is finer.

    On a CPU, the spacing is then doubled once if the lesions are large (`_are_lesions_large`). Axes
    that are at least twice as coarse as the finest one keep their spacing.

    Args:
        spacings_mm: Spacing of each case, `[cases, axes]`.
        diameters_mm: Diameter of each lesion of all cases.
        device: `cpu`, or a name that begins with `cuda`.
    """
    # the rules of nnU-Net
    table = np.asarray(spacings_mm, float)
    is_flat = table.shape[1] == 2
    element = grid_element(table.shape[1])
    spacing = np.median(table, axis=0)
    fine_spacing = np.percentile(table, 10, axis=0)
    reason = "the median spacing"
    if is_anisotropic(spacing.tolist()):
        spacing[spacing.argmax()] = min(spacing.max(), fine_spacing[spacing.argmax()])
        reason += "; the 10th percentile along the coarsest axis"
    # the rules for small and large lesions
    if len(diameters_mm) > 0:
        small_mm = float(np.percentile(diameters_mm, 5))
        # a percentile within 1 % of the spacing would gain nothing
        is_too_coarse = (small_mm < RESOLVED_VOXELS * spacing) & (fine_spacing < 0.99 * spacing)
        spacing = np.where(is_too_coarse, fine_spacing, spacing)
        if is_too_coarse.any():
            reason += "; the 10th percentile along axes that are too coarse for small lesions"
        if (small_mm < RESOLVED_VOXELS * spacing).any():
            # readers give an image without a pixel size pixels of 1 mm
            unit = "pixels" if is_flat and (table == 1).all() else "mm"
            reason += f"; the smallest 5 % of lesions (under {small_mm:.1f} {unit}) are still less "
            reason += f"than {RESOLVED_VOXELS} {element}s across"
        is_fine_axis = spacing < 2 * spacing.min()  # less than twice as coarse as the finest axis
        are_large = _are_lesions_large(
            diameters_mm, float(spacing[is_fine_axis].max()), is_flat=is_flat
        )
        if are_large and not device.startswith("cuda"):
            spacing = np.where(is_fine_axis, 2 * spacing, spacing)
            lesions = f"{LARGE_SHARE} % of the lesions are" if is_flat else "every lesion is"
            reason += f"; half the resolution, because {lesions} more than "
            reason += f"{LARGE_VOXELS} {element}s across"
    return Decision(tuple(round(float(s), 6) for s in spacing), reason)


def _are_lesions_large(diameters_mm: Sequence[float], spacing_mm: float, *, is_flat: bool) -> bool:
    """Return True if the lesions are large enough to halve the resolution.

    - In 3-D, each lesion must be more than 20 voxels across.
    - In 2-D (`is_flat`), 90 % of the lesions must be more than 20 pixels across, and the smallest 5
      % must still be 3 pixels across after halving. If every lesion counted, a single small one
      would prevent halving, and a tile would show only a tenth of an image.

    Args:
        diameters_mm: Diameter of each lesion.
        spacing_mm: The coarsest spacing among the axes to be doubled.
        is_flat: True in 2-D.
    """
    large_mm = LARGE_VOXELS * spacing_mm
    if not is_flat:
        return bool(min(diameters_mm) > large_mm)
    are_most_large = np.percentile(diameters_mm, 100 - LARGE_SHARE) > large_mm
    # halving the resolution doubles the spacing
    are_small_resolved = np.percentile(diameters_mm, 5) >= RESOLVED_VOXELS * 2 * spacing_mm
    return bool(are_most_large and are_small_resolved)


def is_anisotropic(spacing_mm: Sequence[float]) -> bool:
    """Return True if the coarsest spacing is more than three times the finest one (nnU-Net)."""
    return max(spacing_mm) > 3 * min(spacing_mm)


def normalisation(
    channel: ChannelStatistics, dims: int, radiograph_side: float | None = None
) -> Decision[Normalisation]:
    """Decide the normalisation of a channel.

    A channel name that selects a normalisation in nnU-Net has priority. Otherwise it depends on
    the modality:

    - CT has absolute units, so all cases have the same scale. Values are clipped to the 0.5 and
      99.5 percentiles of the lesions (nnU-Net) and of the body, so that the lung around a nodule
      keeps its texture. Mean and standard deviation weight lesions and body equally.
    - Radiographs are scaled by each image's own range. Their local contrast is added, because bones
      and soft tissue differ much more than a lesion and its surroundings do.
    - Other 2-D images are scaled by each image's own range.
    - MRI and other 3-D images are scaled by each case's z-score.

    Args:
        channel: Intensities of the channel.
        dims: Number of axes.
        radiograph_side: Longer side of the median radiograph in pixels of the plan. None for other
            images.
    """
    name = channel.name.strip().casefold()
    if name in NAMED_SCALES:
        return Decision(NAMED_SCALES[name], f"selected by the channel name {channel.name!r}")
    if channel.is_ct:
        return _normalisation_of_ct(channel)
    if radiograph_side is not None:
        # width in pixels of the Gaussian that separates local contrast from the surroundings
        sigma = round(LOCAL_SHARE * radiograph_side, 1)
        reason = f"scaled by each image's own range, plus the local contrast ({sigma:g} pixels)"
        return Decision(Normalisation("local", sigma=sigma), reason)
    if dims == 2:
        return Decision(Normalisation("range"), "scaled by each image's own range")
    return Decision(
        Normalisation("zscore"), "the z-score of each case, because units are arbitrary"
    )


def _normalisation_of_ct(channel: ChannelStatistics) -> Decision[Normalisation]:
    """Decide the normalisation of a channel in Hounsfield units.

    Intensities are clipped to the percentiles of lesions and body, then scaled by mean and standard
    deviation. Lesions and body have the same weight in both. Without lesions, only the body counts.
    """
    body = channel.body
    lesion = channel.lesion or channel.body
    # Mean and variance of a mixture in which body and lesions have half the weight each. The
    # variance is the mean variance within both, plus the variance of their two means.
    mean = (body.mean + lesion.mean) / 2
    variance_within = (body.std**2 + lesion.std**2) / 2
    variance_of_means = (body.mean - lesion.mean) ** 2 / 4
    std = float(np.sqrt(variance_within + variance_of_means))
    scale = Normalisation(
        "dataset",
        lower=round(min(body.lower, lesion.lower), 3),
        upper=round(max(body.upper, lesion.upper), 3),
        mean=round(mean, 3),
        std=round(max(std, 1e-3), 3),  # a constant channel must not be divided by 0
    )
    return Decision(scale, f"Hounsfield units clipped to {scale.lower:.0f}..{scale.upper:.0f}")


def prior(lesion_fraction: float, dims: int = 3) -> Decision[float]:
    """Decide the prior π, the expected fraction of lesion voxels.

    The network starts with this probability everywhere, by the bias of its last layer (Lin et al.
    2017, section 3.3). The prior is limited to 10⁻⁶ to 0.2. With a lower prior, gradients vanish.
    With a higher one, lesions do not start as rare.

    Args:
        lesion_fraction: Fraction of lesion voxels in the dataset.
        dims: Number of axes, for the wording of the reason.
    """
    low = 1e-6
    high = 0.2
    value = min(max(lesion_fraction, low), high)
    filled = "images" if dims == 2 else "scanned volume"
    reason = f"lesions fill {lesion_fraction:.2e} of the {filled}"
    if value != lesion_fraction:
        reason += f", but the prior is limited to {low:g} to {high:g}"
    return Decision(value, reason)


def candidate_rule(
    lesion_voxels: Sequence[int], prior_: float, dims: int = 3
) -> Decision[CandidateRule]:
    """Decide the rule that finds candidates on the file's grid.

    - The minimum size is a tenth of the smallest lesions (5th percentile), from 2 to 10 voxels: a
      smaller candidate covers less than a tenth of any lesion. (PI-CAI drops candidates of 10
      voxels and fewer.)
    - The minimum size is one voxel if the smallest lesions have up to 10 voxels, or if there are no
      lesions.
    - The floor of a candidate's peak is at least the prior π, because a peak at or below the prior
      carries no information.

    Args:
        lesion_voxels: Number of voxels of each lesion on the file's grid.
        prior_: The decision of `prior`.
        dims: Number of axes, for the wording of the reason.
    """
    smallest = float(np.percentile(lesion_voxels, 5)) if len(lesion_voxels) else 0.0
    # a tenth of the smallest lesions, from 2 to 10 voxels
    min_voxels = int(min(max(smallest // 10, 2), 10)) if smallest > 10 else 1
    rule = CandidateRule(
        floor=max(CandidateRule().floor, prior_),  # the default floor, or the prior if it is higher
        min_voxels=min_voxels,
    )
    element = grid_element(dims)
    why = f"5 % of lesions have at most {count(round(smallest), element)}"
    if not len(lesion_voxels):
        why = "there are no lesions"
    return Decision(rule, f"candidates have at least {count(min_voxels, element)}, because {why}")


@dataclass(frozen=True)
class DeviceBudget:
    """The limits of a device.

    Attributes:
        fits: Returns True if a training step with an architecture, a tile shape and a batch size
            is possible.
        longest: Longest side of a tile, in voxels.
        cube: Side of the largest cube. A tile has at most its voxels. A side becomes longer than
            the cube only if the others cannot grow, such as in a thin volume.
        base_features: Number of features of the first stage.
        widest: Maximum number of features of a stage.
        batch: Maximum number of tiles per training step.
        start: Side of the smallest tile to try.
        fills: True if single axes may grow after the tile is rounded to the stride.
        limits_share: True if the tiles of a step are limited to a share of a 3-D dataset.
        small_tiles: True if several small tiles may replace a large one (`limit_to_small_tiles`).
        max_voxels: Maximum number of voxels of a tile.
        architecture: Name of the architecture.
    """

    fits: Callable[[Architecture, Sequence[int], int], bool]
    longest: int
    base_features: int
    widest: int
    batch: int
    start: int = 16
    fills: bool = False
    limits_share: bool = True
    small_tiles: bool = False
    cube: float = inf
    max_voxels: float = inf
    architecture: str = "unet"

    def choose_architecture(
        self, tile: Sequence[int], spacing_mm: Sequence[float], exact: bool = False
    ) -> Architecture:
        """Choose stages, strides, kernels and features for a tile (nnU-Net).

        - Stages: a new stage halves the axes that keep at least 4 voxels and are less than twice as
          coarse as the finest axis that can be halved. The last stage is the one after which no
          axis can be halved.
        - Kernels: along an axis that is more than twice as coarse as the finest one, the kernel
          size is 1. So this axis is not convolved until the other axes have become as coarse. From
          then on its kernel size is 3 in all stages, also if a short axis that cannot be halved has
          become the finest. A single voxel is never convolved.
        - Features: they double from stage to stage, up to `widest`.
        - Loss: it applies to all resolutions except the two coarsest, but to at most three.

        Args:
            tile: Shape of the tile.
            spacing_mm: Spacing of the plan's grid.
            exact: Halve only even sides. This is for a tile that the user has chosen.
        """
        size = np.array(tile, float)
        mm = np.array(spacing_mm, float)
        strides: list[tuple[int, ...]] = []
        kernels: list[tuple[int, ...]] = []
        is_convolved = np.zeros(len(size), bool)
        stride = np.ones(len(size), int)
        while not strides or stride.max() > 1:  # the first stage has stride 1
            # size and spacing at this stage
            size = size / stride
            mm = mm * stride
            strides.append(tuple(stride.tolist()))
            has_neighbours = size >= 2  # voxels along this axis
            finest = mm.min(initial=inf, where=has_neighbours)
            is_convolved |= mm <= 2 * finest  # from then on in all stages
            kernels.append(tuple(np.where(is_convolved & has_neighbours, 3, 1).tolist()))
            # stride of the next stage, if any axis can be halved
            can_halve = size >= 2 * MIN_SIDE  # so that MIN_SIDE voxels remain
            if exact:
                can_halve &= size % 2 == 0
            finest = mm.min(initial=inf, where=can_halve)
            stride = np.where(can_halve & (mm < 2 * finest), 2, 1)
        n_stages = len(strides)
        n_without_coarsest = max(n_stages - 2, 1)  # nnU-Net omits the loss of the two coarsest
        is_residual = self.architecture == "residual_unet"
        # further stages have the last number
        encoder_blocks = (*RESIDUAL_BLOCKS, *(RESIDUAL_BLOCKS[-1],) * n_stages)[:n_stages]
        return Architecture(
            name=self.architecture,
            features=tuple(min(self.base_features * 2**i, self.widest) for i in range(n_stages)),
            strides=tuple(strides),
            kernels=tuple(kernels),
            # the decoder of nnU-Net's residual networks has one convolution per stage
            blocks=1 if is_residual else 2,
            n_supervised=min(n_without_coarsest, MAX_SUPERVISED),
            encoder_blocks=encoder_blocks if is_residual else (),
        )


def budget(
    device: str,
    memory_gb: float,
    step_gb: Callable[[Architecture, Sequence[int], int], float] | None = None,
    *,
    n_channels: int = 1,
    dims: int = 3,
) -> Decision[DeviceBudget]:
    """Decide the limits of a training step on a device.

    On a CPU, networks have 16 to 128 features. A step lasts up to about 1.4 s on two cores, which
    compute 65·10⁹ fp32 multiplications per second. The memory is not a limit.

    On a GPU, networks have 32 to 320 features, as in nnU-Net. A step uses at most nine tenths of
    the memory. In 3-D it has at most 2 · 128³ voxels: a training with larger steps has fewer of
    them, and in our measurements small lesions gained from many steps and small tiles.

    Args:
        device: `cpu`, or a name that begins with `cuda`.
        memory_gb: Memory of the device in 10⁹ bytes.
        step_gb: Predicts the memory of a training step with an architecture, a tile shape and a
            batch size in 10⁹ bytes. It is required for a GPU.
        n_channels: Number of channels of the images.
        dims: Number of axes of the images.

    Raises:
        ConfigError: If `step_gb` is missing for a GPU.
    """

    def fits_cpu(architecture: Architecture, tile: Sequence[int], batch: int) -> bool:
        """Return True if two cores of a CPU compute a training step in about 1.4 s."""
        n = multiplications(architecture, tile, batch, n_channels=n_channels)
        return n <= CPU_MULTIPLICATIONS

    if not device.startswith("cuda"):
        limits = DeviceBudget(
            fits=fits_cpu,
            longest=320,
            base_features=16,
            widest=128,
            batch=4,
            small_tiles=dims == 3,
            cube=LARGEST_CUBE if dims == 3 else inf,
        )
        return Decision(limits, "planned for a CPU: a step takes up to about 1.4 s on two cores")
    if step_gb is None:
        raise ConfigError("make_plan: a plan for a GPU needs step_memory.")
    max_voxels = NNUNET_VOXELS[3] if dims == 3 else inf

    def fits_gpu(architecture: Architecture, tile: Sequence[int], batch: int) -> bool:
        """Return True if a step has at most `max_voxels` and fits nine tenths of the memory."""
        is_small = batch * prod(tile) <= max_voxels
        return is_small and step_gb(architecture, tile, batch) <= GPU_MEMORY_SHARE * memory_gb

    limits = DeviceBudget(
        fits=fits_gpu,
        longest=256 if dims == 3 else 2048,
        base_features=32,
        widest=320,
        batch=8 if dims == 3 else 16,
        start=64 if dims == 3 else 256,
        fills=True,
    )
    reason = f"planned for a GPU with {memory_gb:.0f} GB of memory"
    if dims == 3:
        reason += "; a step has at most 2 × 128³ voxels, as many as one of nnU-Net"
    return Decision(limits, reason)


def multiplications(
    architecture: Architecture, tile_shape: Sequence[int], batch_size: int, *, n_channels: int = 1
) -> float:
    """Count the multiply-accumulate operations of a training step of a U-Net.

    The count predicts the duration of a step on a CPU (`budget`). A stage has f features, v voxels,
    and b blocks with kernels of k voxels. Its encoder and decoder together cost v·k·(f_before·f +
    2f·f + 2(b−1)·f²).

    - The last stage has only an encoder.
    - A block of a residual encoder has two convolutions, and the stem belongs to the first stage.
    - The transposed convolutions are added.
    - The backward pass counts twice as much as the forward pass.

    Args:
        architecture: The network.
        tile_shape: Shape of a tile.
        batch_size: Number of tiles of a step.
        n_channels: Number of channels of the images.
    """
    macs = 0.0  # multiply-accumulate operations
    voxels = float(prod(tile_shape))
    n_stages = len(architecture.features)
    n_inputs = n_channels
    stages = zip(architecture.features, architecture.strides, architecture.kernels, strict=True)
    for stage, (n_features, stride, kernel) in enumerate(stages):
        voxels /= prod(stride)
        # numbers of convolutions in the decoder and encoder of this stage
        n_decoder = architecture.blocks if stage < n_stages - 1 else 0
        n_encoder = architecture.blocks
        if architecture.encoder_blocks:
            n_encoder = 2 * architecture.encoder_blocks[stage]
            if stage == 0:
                n_encoder += 1  # the stem
        per_voxel = prod(kernel) * (n_inputs * n_features + (n_encoder - 1) * n_features**2)
        if n_decoder:  # its first convolution has 2 · n_features inputs: skip and upsampled map
            per_voxel += prod(kernel) * (n_decoder + 1) * n_features**2
        if stage > 0:
            per_voxel += n_inputs * n_features * prod(stride)  # transposed convolution
        macs += voxels * per_voxel
        n_inputs = n_features
    return _BACKWARD * batch_size * macs


def tile_shape(
    median_shape: Sequence[int], spacing_mm: Sequence[float], allowed: DeviceBudget
) -> Decision[tuple[int, ...]]:
    """Decide the shape of the tile: the largest that the budget allows with a batch of 2 (nnU-Net).

    1. The tile grows by 8 voxels at a time along the axis that covers the fewest millimetres. Its
       limits are the median volume and the longest side of the budget. On a CPU, a 3-D tile first
       grows to at most 80 voxels along each axis. If the volume is too thin to use the budget in
       this way, the other axes grow further, as long as the tile has at most 80³ voxels.
    2. The sides are rounded down to multiples of the total stride. A side of the median volume is
       rounded up instead if this adds at most 15 %, and on a GPU only if the budget allows the
       tile.
    3. On a GPU, each axis then grows by its total stride as often as the budget allows, up to 15 %
       more than the median volume.

    A tile of about 16 voxels per axis is returned even if the budget does not allow it.

    Args:
        median_shape: Median shape of the cases on the plan's grid.
        spacing_mm: Spacing of the plan's grid.
        allowed: The limits of the device.
    """
    growth = _TileGrowth(median_shape, spacing_mm, allowed)
    # a cube first, then beyond its sides
    tile = growth.grow(growth.smallest(), partial(growth.step_up_to, allowed.cube))
    if allowed.cube < allowed.longest:
        tile = growth.grow(tile, partial(growth.step_up_to, inf))
    stride = growth.stride(tile)
    rounded = _round_to_strides(tile, stride, median_shape, largest=ROUND_UP)
    if allowed.fills:
        if not growth.is_affordable(rounded):
            # 1: round down only
            rounded = _round_to_strides(tile, stride, median_shape, largest=1.0)
        rounded = growth.grow(rounded, growth.stride_if_longer_fits)
    why = _explain_tile(rounded, median_shape, allowed)
    return Decision(rounded, f"{describe_sides(rounded)}, {why}")


@dataclass(frozen=True)
class _TileGrowth:
    """The growth of a tile within the limits of the dataset and of the device.

    Attributes:
        median_shape: Median shape of the cases on the plan's grid.
        spacing_mm: Spacing of the plan's grid.
        allowed: The limits of the device.
    """

    median_shape: Sequence[int]
    spacing_mm: Sequence[float]
    allowed: DeviceBudget

    def smallest(self) -> tuple[int, ...]:
        """Return the tile from which growth starts.

        The sides of the tile are `start` voxels of the budget or, if the budget does not allow this
        tile, 16 voxels. No side is longer than that of the median volume.
        """
        start = tuple(min(n, self.allowed.start) for n in self._limit())
        if self.is_affordable(start):
            return start
        return tuple(min(n, _MIN_START) for n in self._limit())

    def stride(self, tile: Sequence[int]) -> tuple[int, ...]:
        """Return the total stride of the architecture that the budget chooses for a tile.

        The sides of a tile must be multiples of its total stride.
        """
        return total_stride(self.allowed.choose_architecture(tile, self.spacing_mm))

    def is_affordable(self, tile: Sequence[int]) -> bool:
        """Return True if the budget allows a training step with two tiles of this shape.

        The tile must also have at most `max_voxels` voxels, and at most as many as the largest cube
        of the budget.
        """
        architecture = self.allowed.choose_architecture(tile, self.spacing_mm)
        max_voxels = min(self.allowed.max_voxels, self.allowed.cube ** len(tile))
        # `fits` gets the number of tiles last
        return self.allowed.fits(architecture, tile, 2) and prod(tile) <= max_voxels

    def step_up_to(self, longest: float, tile: tuple[int, ...], axis: int) -> int:
        """Return the number of voxels by which an axis may grow: 8, or fewer near its limit.

        The limit is `longest` or the side of the median volume. `grow` calls this function with a
        tile and an axis.
        """
        return min(8, int(min(longest, self._limit()[axis])) - tile[axis])

    def stride_if_longer_fits(self, tile: tuple[int, ...], axis: int) -> int:
        """Return the number of voxels by which an axis may grow after rounding: its stride, or 0.

        The number is 0 in two cases:

        - The axis would become longer than the budget allows, or 15 % longer than the median
          volume.
        - The sides of the longer tile would not be multiples of its stride, because a longer tile
          may get more stages.
        """
        step = self.stride(tile)[axis]
        longer = _lengthen(tile, axis, step)
        maximum = min(int(ROUND_UP * self.median_shape[axis]), self.allowed.longest)
        has_remainder = any(np.remainder(longer, self.stride(longer)))
        return 0 if longer[axis] > maximum or has_remainder else step

    def grow(
        self, tile: tuple[int, ...], step: Callable[[tuple[int, ...], int], int]
    ) -> tuple[int, ...]:
        """Lengthen a tile axis by axis until no axis can grow, and return it.

        The axis that covers the fewest millimetres is next. An axis stops to grow when its step is
        0 or when the budget does not allow the longer tile.

        Args:
            tile: The tile to start from.
            step: Returns the number of voxels by which `axis` of `tile` may grow, as `step(tile,
                axis)`.
        """
        growing = set(range(len(tile)))
        while growing:
            # the axis of the fewest millimetres; of equal ones, the first
            axis = min(growing, key=lambda a: (tile[a] * self.spacing_mm[a], a))
            larger = _lengthen(tile, axis, step(tile, axis))
            if larger != tile and self.is_affordable(larger):
                tile = larger
            else:
                growing.remove(axis)
        return tile

    def _limit(self) -> list[int]:
        """Return the maximum side of each axis before rounding.

        The maximum is the side of the median volume, but at most the longest side of the budget.
        """
        return [min(n, self.allowed.longest) for n in self.median_shape]


def _lengthen(tile: tuple[int, ...], axis: int, step: int) -> tuple[int, ...]:
    """Return the tile shape with `step` more voxels along one axis."""
    return (*tile[:axis], tile[axis] + step, *tile[axis + 1 :])


def _round_to_strides(
    tile: Sequence[int], stride: Sequence[int], median_shape: Sequence[int], largest: float
) -> tuple[int, ...]:
    """Round the sides of a tile to multiples of the stride, so that the network accepts the tile.

    Each side is rounded down, to at least one stride. A side that covers the whole median volume is
    rounded up instead if it becomes at most `largest` times as long.
    """
    sides = []
    for side, step, median_side in zip(tile, stride, median_shape, strict=True):
        up = ceil(side / step) * step
        down = max(side // step, 1) * step
        sides.append(up if side == median_side and up <= largest * side else down)
    return tuple(sides)


def _explain_tile(tile: Sequence[int], median_shape: Sequence[int], allowed: DeviceBudget) -> str:
    """Return the reason for the size of a tile as text, the end of a sentence about the tile.

    The reason is the first that applies: small tiles were chosen, the tile covers the median image,
    or the budget allows no larger tile.
    """
    if allowed.max_voxels < inf:
        return "because larger tiles would contain several lesions of one patient"
    covers_median = all(n >= m for n, m in zip(tile, median_shape, strict=True))
    if covers_median:
        return (
            "which covers the median image" if len(tile) == 2 else "which covers the median volume"
        )
    limit = ""
    if max(tile) >= allowed.longest:
        limit = f" with sides of up to {allowed.longest} {grid_element(len(tile))}s"
    elif allowed.cube < inf:
        limit = f" of up to {allowed.cube}³ voxels"
    return f"the largest tile{limit} that the device allows with a batch of 2"


@dataclass(frozen=True)
class GridSizes:
    """The sizes, in voxels of the plan's grid, of the median case, all cases and each lesion."""

    median_shape: tuple[int, ...]
    n_voxels: float
    lesion_voxels: Numbers


def limit_to_small_tiles(
    allowed: DeviceBudget, sizes: GridSizes, spacing_mm: Sequence[float]
) -> DeviceBudget:
    """Limit the budget to small tiles if the largest tile would contain several lesions.

    The lesions of one large tile are from the same patient. At the same cost, small tiles show
    lesions from many patients. The budget is returned unchanged in these cases:

    - On a GPU or in 2-D.
    - If the largest tenth of the lesions fill an eighth of a small tile, because small tiles were
      not measured for such lesions.
    - If the largest possible tile is a small tile already.
    - If the largest possible tile contains fewer than `CROWDED` lesions on average.

    Args:
        allowed: The budget.
        sizes: Sizes of the dataset on the plan's grid.
        spacing_mm: Spacing of the plan's grid.
    """
    if not allowed.small_tiles:
        return allowed
    largest_tile = tile_shape(sizes.median_shape, spacing_mm, allowed).value
    voxels_of_tile = min(prod(largest_tile), prod(sizes.median_shape))
    # mean number of lesions per tile: lesions · (voxels of a tile) / (voxels of all cases)
    is_crowded = len(sizes.lesion_voxels) * voxels_of_tile >= CROWDED * sizes.n_voxels
    suits_small_tiles = voxels_of_tile > SMALL_TILE and is_crowded
    if suits_small_tiles and np.percentile(sizes.lesion_voxels, 90) < SMALL_TILE / 8:
        return replace(allowed, max_voxels=SMALL_TILE, batch=MAX_SMALL_TILES, limits_share=False)
    return allowed


def network_steps(n_lesions: int, tiles_of_lesions: float) -> Decision[int]:
    """Decide after how many steps a network ends, and the rest of the minutes trains further ones.

    Args:
        n_lesions: Number of lesions of the training cases, at least 1.
        tiles_of_lesions: Mean number of tiles per step that are centred on a lesion, above 0.
    """
    steps = ceil(VIEWS_OF_LESION * n_lesions / tiles_of_lesions)
    lesions = count(n_lesions, "lesion")
    ends = count(steps, "step")
    reason = f"{lesions}: a network ends after {ends}, {VIEWS_OF_LESION} tiles on each"
    return Decision(steps, f"{reason}; the remaining minutes train further networks")


def batch_size(
    architecture: Architecture, tile: Sequence[int], allowed: DeviceBudget, n_voxels: float
) -> Decision[int]:
    """Decide the number of tiles per training step: 2, or more if the budget allows it.

    In 3-D, a step has at most 5 % of the dataset's voxels, but at least 2 tiles, as in nnU-Net.
    Small tiles and the presets of residual networks do not have this limit (`limits_share`). A
    batch of 2 is returned even if the budget does not allow it.

    Args:
        architecture: The network.
        tile: Shape of a tile.
        allowed: The budget.
        n_voxels: Number of voxels of the dataset on the plan's grid.
    """
    maximum = allowed.batch
    if len(tile) == 3 and allowed.limits_share:
        # nnU-Net: tiles with 5 % of the dataset's voxels
        maximum = min(maximum, max(2, int(0.05 * n_voxels / prod(tile))))
    batch = 2
    while batch < maximum and allowed.fits(architecture, tile, batch + 1):
        batch += 1
    why = "the upper limit" if batch == maximum else "because a larger batch exceeds the budget"
    return Decision(batch, f"{batch}, {why}")
