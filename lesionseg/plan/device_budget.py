"""What a training step may take on a device, and what it costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, prod

from lesionseg.errors import ConfigError
from lesionseg.plan.plan import Architecture, Stem
from lesionseg.plan.rules import Decision

# GB that a training step of a network takes, with tiles of a shape and so many of them
StepGb = Callable[[Architecture, Sequence[int], int], float]
SHARE = 0.9  # of a GPU's memory is planned with: what a step takes is known to 15 %
PROCESSOR = 1.4 * 65e9  # multiplications a step
WIDER = (1.5, 2.0)  # times nnU-Net's features, where memory is left
_BACKWARD = 3  # a training step costs about three forward passes


@dataclass(frozen=True)
class DeviceBudget:
    """What the device allows.

    Attributes:
        fits: `fits(architecture, tile_shape, batch_size)`: whether it affords such a step.
        longest, longest_2d: side of the longest tile, in voxels.
        base_features, widest: features of the first stage, and the most of any.
        batch, batch_2d: the most tiles a step.
        start, start_2d: side of the smallest tile worth trying, in voxels.
        wider: by what the features may be multiplied, where the tile leaves room.
        capped: in 3-D the tiles of a step are at most a share of the dataset.
        small_tiles: whether several small tiles may take the place of a large one that would hold
            several lesions (`tile_rules.for_small_tiles`).
        most_voxels: the most voxels of a tile.
        architecture, stem: of the network it is spent on.
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
    small_tiles: bool = False
    most_voxels: float = inf
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
            small_tiles=True,
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


def for_space_to_depth(allowed: DeviceBudget) -> DeviceBudget:
    """The same budget for a space-to-depth stem: as wide at half resolution as the full one."""
    return replace(allowed, base_features=2 * allowed.base_features, stem="space_to_depth")


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
