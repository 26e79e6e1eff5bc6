"""The rules that size the network: budget, tile, stages and batch, each with its reason.

nnU-Net below is Isensee F et al., Nature Methods 2021;18:203, with its supplement.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, prod

from lesionseg.errors import ConfigError
from lesionseg.plan.plan import Architecture, Stem
from lesionseg.plan.rules import Decision

_BACKWARD = 3  # a training step costs about three forward passes


def multiplications(
    architecture: Architecture, tile_shape: Sequence[int], batch_size: int, *, n_channels: int = 1
) -> float:
    """Multiply-accumulates of a training step, with two equal halves or a residual encoder.

    A stage of f features on v voxels with b blocks of a kernel of k voxels costs, encoder and
    decoder together, v·k·(f_before·f + 2f·f + 2(b−1)·f²); the last stage has an encoder only. A
    residual block has two convolutions. A space-to-depth stem has a block's voxels as channels of
    each of the first stage's.
    """
    macs, voxels, n = 0.0, float(prod(tile_shape)), len(architecture.features)
    before = n_channels * prod(architecture.block)
    rows = zip(architecture.features, architecture.strides, architecture.kernels, strict=True)
    for stage, (width, stride, kernel) in enumerate(rows):
        voxels /= prod(stride)
        decoder = architecture.blocks if stage < n - 1 else 0
        per_voxel = prod(kernel) * (before * width + (_encoder(architecture, stage) - 1) * width**2)
        per_voxel += prod(kernel) * (decoder + 1) * width**2 if decoder else 0
        per_voxel += before * width * prod(stride) if stage else 0  # the way back up
        macs += voxels * per_voxel
        before = width
    return _BACKWARD * batch_size * macs


def _encoder(architecture: Architecture, stage: int) -> int:
    """Convolutions of an encoder's stage; the stem is in the first."""
    if not architecture.encoder_blocks:
        return architecture.blocks
    return 2 * architecture.encoder_blocks[stage] + (stage == 0)


NARROWEST = 4  # voxels an axis keeps at the coarsest stage
# Residual blocks of each encoder stage, the last for all further ones; the decoder has one
# convolution a stage (Isensee et al. 2024, nnU-Net's ResEnc M, L and XL alike)
RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6)
ROUND_UP = 1.15  # by how much a tile may exceed the median volume to fit the total stride


# GB that a training step of a network takes, with tiles of a shape and so many of them
StepGb = Callable[[Architecture, Sequence[int], int], float]
SHARE = 0.9  # of a GPU's memory is planned with: what a step takes is known to 15 %
PROCESSOR = 1.4 * 65e9  # multiplications a step
WIDER = (1.5, 2.0)  # times nnU-Net's features, where memory is left
SHORTEST_UNCROWDED = 32  # voxels: what a lesion's surroundings take at least
MOST_UNCROWDED = 16  # such tiles a step


@dataclass(frozen=True)
class DeviceBudget:
    """What the device allows.

    `fits(architecture, tile_shape, batch_size)`: whether it affords such a training step.
    `start`, `start_2d`: sides of the smallest tile worth trying; `longest` and `longest_2d`: of the
    longest; widths of the first and widest stage, which may be multiplied by `wider`; `batch` and
    `batch_2d`: the most tiles a step, `capped` in 3-D by the dataset's size; `crowded`: a tile may
    hold many lesions; it has at most `room` voxels; the network is called `architecture` and has
    that `stem`.
    """

    fits: Callable[[Architecture, Sequence[int], int], bool]
    longest: int
    longest_2d: int
    base_features: int
    widest: int
    batch: int
    batch_2d: int
    start: int = 16
    start_2d: int = 16
    wider: tuple[float, ...] = ()
    capped: bool = True
    crowded: bool = True
    room: float = inf
    architecture: str = "unet"
    stem: Stem = "full"


def budget(
    device: str, memory_gb: float, step_gb: StepGb | None = None, n_channels: int = 1
) -> Decision[DeviceBudget]:
    """What a training step may take on a device with `memory_gb` of memory.

    A processor: 16 to 128 features and about 1.4 s a step on two cores at 65·10⁹ fp32
    multiplications a second (0.72 s for the forward pass of 96³ voxels with 16 to 160 features);
    its memory suffices for that. A GPU: nnU-Net's 32 to 320 features, and nine tenths of the memory
    by `step_gb`, without which it is a `ConfigError`.
    """
    if not device.startswith("cuda"):
        found = DeviceBudget(
            lambda *step: multiplications(*step, n_channels=n_channels) <= PROCESSOR,
            longest=80,
            longest_2d=320,
            base_features=16,
            widest=128,
            batch=4,
            batch_2d=4,
            crowded=False,
        )
        return Decision(
            found, "planned for a processor: about a second a training step on two cores"
        )
    if step_gb is None:
        raise ConfigError(
            "A plan for a GPU needs to know what a training step takes.",
            where="make_plan",
            remedy="pass step_gb=StepMemory() of lesionseg.training.device.step_memory.",
        )
    found = DeviceBudget(
        lambda *step: step_gb(*step) <= SHARE * memory_gb,
        longest=256,
        longest_2d=2048,
        base_features=32,
        widest=320,
        batch=8,
        batch_2d=16,
        start=64,
        start_2d=256,
        wider=WIDER,
    )
    return Decision(found, f"planned for a GPU with {memory_gb:.0f} GB")


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
    mixed only once the others have caught up. Features double from stage to stage.

    Args:
        tile_shape: voxels (z, y, x), in 2-D (y, x).
        spacing_mm: of these axes.
        base_features: of the first stage.
        widest: the most features of a stage.
        name: of the architecture.
        exact: only halvings that the tile's own numbers allow, for a tile somebody has chosen.
        stem: `space_to_depth` takes the place of the first stage.
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
    """By how much each axis shrinks to the coarsest stage: a tile's sides are multiples of it.

    >>> total_stride(Architecture("unet", (8, 16, 32), ((1, 1), (2, 2), (1, 2)), ((3, 3),) * 3))
    (2, 4)
    """
    return tuple(prod(axis) for axis in zip(*architecture.strides, strict=True))


def tile_shape(
    median_shape: Sequence[int], spacing_mm: Sequence[float], allowed: DeviceBudget
) -> Decision[tuple[int, ...]]:
    """The largest tile whose training step at batch 2 the budget allows (nnU-Net).

    Grown 8 voxels at a time along the axis that covers the fewest millimetres, at most to the
    median volume, whose sides may be rounded up by 15 % to a multiple of the total stride. On a GPU
    what rounding down leaves goes to single axes, a total stride at a time.
    """
    volumes = len(median_shape) == 3
    longest = allowed.longest if volumes else allowed.longest_2d
    limit = [min(n, longest) for n in median_shape]
    tile = [min(n, allowed.start if volumes else allowed.start_2d) for n in limit]
    if not _affordable(tile, spacing_mm, allowed):
        tile = [min(n, 16) for n in limit]
    growing = {axis for axis, n in enumerate(tile) if n < limit[axis]}
    while growing:
        axis = min(growing, key=lambda a: (tile[a] * spacing_mm[a], a))
        larger = [*tile[:axis], min(tile[axis] + 8, limit[axis]), *tile[axis + 1 :]]
        if _affordable(larger, spacing_mm, allowed):
            tile = larger
        if tile != larger or tile[axis] == limit[axis]:
            growing.remove(axis)
    stride = total_stride(_shape(tile, spacing_mm, allowed))
    fitted = tuple(
        _multiple(n, s, n == m) for n, s, m in zip(tile, stride, median_shape, strict=True)
    )
    if allowed.wider:
        most = [min(int(ROUND_UP * m), longest) for m in median_shape]
        fitted = _filled(fitted, most, spacing_mm, allowed)
    whole = all(n >= m for n, m in zip(fitted, median_shape, strict=True))
    what = "the median volume fits" if whole else "the largest the device allows at batch 2"
    if allowed.room < inf:
        what = "about one lesion each, so that a step sees more patients"
    return Decision(fitted, f"{' × '.join(map(str, fitted))}: {what}")


def uncrowded(
    allowed: DeviceBudget,
    median_shape: Sequence[int],
    spacing_mm: Sequence[float],
    n_voxels: float,
    lesions_per_case: Sequence[int],
) -> DeviceBudget:
    """The same budget for tiles of about one lesion each, where the largest would hold several.

    Several lesions of a tile are one patient's, those of as many small tiles are many patients', at
    the same cost. Of a dataset in 3-D of `n_voxels` on the plan's grid, two lesions or more a case.
    On a GPU, whose trainings are long enough to see them all, nothing changes (not measured there).
    """
    n = sum(lesions_per_case)
    if allowed.crowded or len(median_shape) < 3 or n < 2 * max(len(lesions_per_case), 1):
        return allowed
    side = max(8 * int((n_voxels / n) ** (1 / 3) // 8), SHORTEST_UNCROWDED)
    if prod(tile_shape(median_shape, spacing_mm, allowed).value) <= side**3:
        return allowed
    return replace(allowed, room=side**3, batch=MOST_UNCROWDED, capped=False)


def _filled(
    tile: tuple[int, ...], most: Sequence[int], spacing_mm: Sequence[float], allowed: DeviceBudget
) -> tuple[int, ...]:
    """The tile, longer by total strides along the axes that cover the fewest millimetres first."""
    growing = set(range(len(tile)))
    while growing:
        axis = min(growing, key=lambda a: (tile[a] * spacing_mm[a], a))
        stride = total_stride(_shape(tile, spacing_mm, allowed))
        larger = (*tile[:axis], tile[axis] + stride[axis], *tile[axis + 1 :])
        multiple = total_stride(_shape(larger, spacing_mm, allowed))
        divisible = all(n % s == 0 for n, s in zip(larger, multiple, strict=True))
        if larger[axis] <= most[axis] and divisible and _affordable(larger, spacing_mm, allowed):
            tile = larger
        else:
            growing.remove(axis)
    return tile


def widened(shape: Architecture, tile: Sequence[int], allowed: DeviceBudget) -> Architecture:
    """The network as wide as the budget allows at batch 2, once the tile is as large as it gets."""
    best = shape
    for times in allowed.wider:
        wider = replace(shape, features=tuple(int(times * f) for f in shape.features))
        if allowed.fits(wider, tile, 2):
            best = wider
    return best


def _affordable(tile: Sequence[int], spacing_mm: Sequence[float], allowed: DeviceBudget) -> bool:
    """Whether a training step of two such tiles keeps within the budget."""
    fits = allowed.fits(_shape(tile, spacing_mm, allowed), tile, 2)
    return fits and prod(tile) <= allowed.room


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
    shape: Architecture, tile: Sequence[int], allowed: DeviceBudget, n_voxels: float
) -> Decision[int]:
    """Tiles a step: 2, or more where the budget allows; in 3-D up to 5 % of all voxels (nnU-Net).

    `n_voxels` is the number of voxels of the whole dataset on the plan's grid.
    """
    most = allowed.batch if len(tile) == 3 else allowed.batch_2d
    if len(tile) == 3 and allowed.capped:
        most = min(most, max(2, int(0.05 * n_voxels / prod(tile))))
    batch = 2
    while batch < most and allowed.fits(shape, tile, batch + 1):
        batch += 1
    why = "the most it makes sense to take" if batch == most else "more would break the budget"
    return Decision(batch, f"{batch} tiles a step: {why}")
