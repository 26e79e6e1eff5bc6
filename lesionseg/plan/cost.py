"""What a network costs, in closed form: multiplications and memory, before one is built."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from lesionseg.plan.plan import Architecture

# maps that stay in memory for the backward pass: convolution's and normalisation's output of each
# block in encoder and decoder, and the joined skip (twice a stage's width)
_MAPS_A_BLOCK = 2
_MAPS_JOINED = 2
_BACKWARD = 3  # a training step costs about three forward passes


@dataclass(frozen=True)
class Cost:
    """One training step: multiply-accumulates, and bytes of activations and parameters."""

    multiplications: float
    activation_bytes: float
    parameter_bytes: float

    @property
    def memory_gb(self) -> float:
        """Memory in GB (10⁹ bytes) that a step needs at least."""
        return (self.activation_bytes + self.parameter_bytes) / 1e9


def training_cost(
    architecture: Architecture,
    tile_shape: Sequence[int],
    batch_size: int,
    *,
    n_channels: int = 1,
    bytes_a_value: int = 4,
) -> Cost:
    """Cost of one training step of a U-Net, with two equal halves or a residual encoder.

    A stage of f features on v voxels with b blocks of a kernel of k voxels costs, encoder and
    decoder together, v·k·(f_before·f + 2f·f + 2(b−1)·f²); the last stage has an encoder only. A
    residual block has two convolutions, and one map more, that of its sum.
    A space-to-depth stem has a block's voxels as channels of each of the first stage's.
    Parameters count four times (weight, gradient and the optimiser's two moments), in fp32.
    """
    macs, values, weights = 0.0, 0.0, 0.0
    voxels, n = float(prod(tile_shape)), len(architecture.features)
    before = n_channels * prod(architecture.block)
    rows = zip(architecture.features, architecture.strides, architecture.kernels, strict=True)
    for stage, (width, stride, kernel) in enumerate(rows):
        voxels /= prod(stride)
        halves = 1 if stage == n - 1 else 2
        decoder = architecture.blocks if halves == 2 else 0
        encoder, sums = _encoder(architecture, stage)
        per_voxel = prod(kernel) * (before * width + (encoder - 1) * width**2)
        per_voxel += prod(kernel) * (decoder + 1) * width**2 if decoder else 0
        per_voxel += before * width * prod(stride) if stage else 0  # the way back up
        macs += voxels * per_voxel
        maps = (encoder + decoder) * _MAPS_A_BLOCK + sums + (_MAPS_JOINED if decoder else 0)
        values += voxels * width * maps
        weights += per_voxel
        before = width
    return Cost(
        multiplications=_BACKWARD * batch_size * macs,
        activation_bytes=bytes_a_value * batch_size * values,
        parameter_bytes=4 * 4 * weights,
    )


def _encoder(architecture: Architecture, stage: int) -> tuple[int, int]:
    """Convolutions of an encoder's stage, and sums of residual blocks; the stem is in the first."""
    if not architecture.encoder_blocks:
        return architecture.blocks, 0
    n = architecture.encoder_blocks[stage]
    return 2 * n + (stage == 0), n
