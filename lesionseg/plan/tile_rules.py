"""The rules that size the network: budget, tile, stages and batch, each with its reason.

nnU-Net below is Isensee F et al., Nature Methods 2021;18:203, with its supplement.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from lesionseg.plan.cost import training_cost
from lesionseg.plan.plan import Architecture, Stem
from lesionseg.plan.rules import Decision

NARROWEST = 4  # voxels an axis keeps at the coarsest stage
# Residual blocks of each encoder stage, the last for all further ones; the decoder has one
# convolution a stage (Isensee et al. 2024, nnU-Net's ResEnc M, L and XL alike)
RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6)
ROUND_UP = 1.15  # by how much a tile may exceed the median volume to fit the total stride


@dataclass(frozen=True)
class DeviceBudget:
    """What the device allows.

    `memory_gb` for one training step; `multiplications` a step on slow devices (None: no limit);
    `longest` and `longest_2d` the longest side of a tile; widths of the first and widest stage;
    `batch` the most tiles a step; `bytes_a_value` of an activation of
    the network called `architecture` with that `stem`.
    """

    memory_gb: float
    multiplications: float | None
    longest: int
    longest_2d: int
    base_features: int
    widest: int
    batch: int
    bytes_a_value: int
    architecture: str = "unet"
    stem: Stem = "full"


def budget(device: str, memory_gb: float) -> Decision[DeviceBudget]:
    """What a training step may take on a device with `memory_gb` of memory.

    A processor: 16 to 128 features and about 1.4 s a step on two cores at 65·10⁹ fp32
    multiplications a second (0.72 s for the forward pass of 96³ voxels with 16 to 160 features),
    a quarter of the memory. A GPU: nnU-Net's 32 to 320 features in half precision; a fifth of the
    memory, since the closed form leaves out workspaces, fragments and fp32 copies: 24 GB then give
    128³ voxels at batch 2, as in nnU-Net.
    """
    if device.startswith("cuda"):
        found = DeviceBudget(0.2 * memory_gb, None, 160, 768, 32, 320, 8, 2)
        return Decision(found, f"planned for a GPU with {memory_gb:.0f} GB")
    found = DeviceBudget(0.25 * memory_gb, 1.4 * 65e9, 80, 320, 16, 128, 4, 4)
    return Decision(found, "planned for a processor: about a second a training step on two cores")


def network_shape(
    tile_shape: Sequence[int],
    spacing_mm: Sequence[float],
    base_features: int,
    widest: int,
    *,
    name: str = "unet",
    exact: bool = False,
    stem: Stem = "full",
) -> Architecture:
    """Stages, strides, kernels and features for a tile (nnU-Net).

    An axis is halved while it keeps 4 voxels and is less than twice as coarse as the finest axis
    that can be halved; an axis over twice as coarse as the finest has kernels of 1, so that it is
    mixed only once the others have caught up. Features double from `base_features` to `widest`.
    `exact`: only halvings that the tile's own numbers allow, for a tile somebody has chosen.
    A space-to-depth `stem` takes the place of the first stage.
    """
    size, spacing = list(map(float, tile_shape)), list(map(float, spacing_mm))
    strides, kernels = [(1,) * len(size)], [_kernel(size, spacing)]
    while any(stride := _stride(size, spacing, exact)):
        size = [n / 2 if halved else n for n, halved in zip(size, stride, strict=True)]
        spacing = [s * 2 if halved else s for s, halved in zip(spacing, stride, strict=True)]
        strides.append(tuple(2 if halved else 1 for halved in stride))
        kernels.append(_kernel(size, spacing))
    first = 1 if stem == "space_to_depth" and len(strides) > 1 else 0
    n, residual = len(strides) - first, name == "residual_unet"
    blocks = (*RESIDUAL_BLOCKS, *(RESIDUAL_BLOCKS[-1],) * n)[first : first + n]
    return Architecture(
        name=name,
        features=tuple(min(base_features * 2**i, widest) for i in range(n)),
        strides=tuple(strides[first:]),
        kernels=tuple(kernels[first:]),
        blocks=1 if residual else 2,
        n_supervised=min(max(n - 2, 1), 3),
        encoder_blocks=blocks if residual else (),
    )


def for_space_to_depth(allowed: DeviceBudget) -> DeviceBudget:
    """The same budget for a space-to-depth stem: as wide at half resolution as the full one."""
    return replace(allowed, base_features=2 * allowed.base_features, stem="space_to_depth")


def _stride(size: Sequence[float], spacing: Sequence[float], exact: bool) -> tuple[bool, ...]:
    """Which axes to halve next."""
    able = [n >= 2 * NARROWEST and (n % 2 == 0 or not exact) for n in size]
    finest = min((s for s, can in zip(spacing, able, strict=True) if can), default=0.0)
    return tuple(can and s < 2 * finest for s, can in zip(spacing, able, strict=True))


def _kernel(size: Sequence[float], spacing: Sequence[float]) -> tuple[int, ...]:
    finest = min(spacing)
    return tuple(1 if s > 2 * finest or n < 2 else 3 for n, s in zip(size, spacing, strict=True))


def total_stride(architecture: Architecture) -> tuple[int, ...]:
    """Product of the strides along each axis: what a tile's sides must be multiples of."""
    return tuple(prod(axis) for axis in zip(*architecture.strides, strict=True))


def tile_shape(
    median_shape: Sequence[int],
    spacing_mm: Sequence[float],
    allowed: DeviceBudget,
    n_channels: int = 1,
) -> Decision[tuple[int, ...]]:
    """The largest tile whose training step at batch 2 the budget allows (nnU-Net).

    Grown 8 voxels at a time along the axis that covers the fewest millimetres, at most to the
    median volume, whose sides may be rounded up by 15 % to a multiple of the total stride.
    """
    longest = allowed.longest if len(median_shape) == 3 else allowed.longest_2d
    limit = [min(n, longest) for n in median_shape]
    tile = [min(n, 16) for n in limit]
    growing = {axis for axis, n in enumerate(tile) if n < limit[axis]}
    while growing:
        axis = min(growing, key=lambda a: (tile[a] * spacing_mm[a], a))
        larger = [*tile[:axis], min(tile[axis] + 8, limit[axis]), *tile[axis + 1 :]]
        if _affordable(larger, spacing_mm, allowed, n_channels):
            tile = larger
        if tile != larger or tile[axis] == limit[axis]:
            growing.remove(axis)
    stride = total_stride(_shape(tile, spacing_mm, allowed))
    fitted = tuple(
        _multiple(n, s, n == m) for n, s, m in zip(tile, stride, median_shape, strict=True)
    )
    whole = all(n >= m for n, m in zip(fitted, median_shape, strict=True))
    what = "the median volume fits" if whole else "the largest the device allows at batch 2"
    return Decision(fitted, f"{_times(fitted)}: {what}")


def _affordable(
    tile: Sequence[int],
    spacing_mm: Sequence[float],
    allowed: DeviceBudget,
    n_channels: int,
    batch: int = 2,
) -> bool:
    """Whether a training step of `batch` such tiles keeps within the budget."""
    shape = _shape(tile, spacing_mm, allowed)
    cost = training_cost(
        shape, tile, batch, n_channels=n_channels, bytes_a_value=allowed.bytes_a_value
    )
    fast = allowed.multiplications is None or cost.multiplications <= allowed.multiplications
    return fast and cost.memory_gb <= allowed.memory_gb


def _shape(tile: Sequence[int], spacing_mm: Sequence[float], allowed: DeviceBudget) -> Architecture:
    return network_shape(
        tile,
        spacing_mm,
        allowed.base_features,
        allowed.widest,
        name=allowed.architecture,
        stem=allowed.stem,
    )


def _multiple(n: int, stride: int, is_whole_axis: bool) -> int:
    up = -(-n // stride) * stride
    return up if is_whole_axis and up <= ROUND_UP * n else max(n // stride, 1) * stride


def batch_size(
    tile: Sequence[int],
    spacing_mm: Sequence[float],
    allowed: DeviceBudget,
    n_voxels: float,
    n_channels: int = 1,
) -> Decision[int]:
    """Tiles a step: 2, or more where the budget allows; in 3-D up to 5 % of all voxels (nnU-Net).

    `n_voxels` is the number of voxels of the whole dataset on the plan's grid.
    """
    most = allowed.batch
    if len(tile) == 3:
        most = min(most, max(2, int(0.05 * n_voxels / prod(tile))))
    batch = 2
    while batch < most and _affordable(tile, spacing_mm, allowed, n_channels, batch + 1):
        batch += 1
    why = "the most it makes sense to take" if batch == most else "more would break the budget"
    return Decision(batch, f"{batch} tiles a step: {why}")


def _times(shape: Iterable[int]) -> str:
    return " × ".join(str(n) for n in shape)
