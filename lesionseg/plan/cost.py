"""What a training step of a U-Net computes, in closed form, before one is built."""

from collections.abc import Sequence
from math import prod

from lesionseg.plan.plan import Architecture

_BACKWARD = 3  # a training step costs about three forward passes


def multiplications(
    architecture: Architecture,
    tile_shape: Sequence[int],
    batch_size: int,
    *,
    n_channels: int = 1,
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
