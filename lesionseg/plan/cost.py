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
    """Cost of one training step of a U-Net with two equal halves.

    A stage of f features on v voxels with b blocks of a kernel of k voxels costs, encoder and
    decoder together, v·k·(f_before·f + 2f·f + 2(b−1)·f²); the last stage has an encoder only.
    Parameters count four times (weight, gradient and the optimiser's two moments), in fp32.
    """
    macs, values, weights = 0.0, 0.0, 0.0
    voxels, before, n = float(prod(tile_shape)), n_channels, len(architecture.features)
    rows = zip(architecture.features, architecture.strides, architecture.kernels, strict=True)
    for stage, (width, stride, kernel) in enumerate(rows):
        voxels /= prod(stride)
        halves = 1 if stage == n - 1 else 2
        per_voxel = prod(kernel) * (before * width + halves * (architecture.blocks - 1) * width**2)
        per_voxel += prod(kernel) * 2 * width**2 if halves == 2 else 0
        per_voxel += before * width * prod(stride) if stage else 0  # the way back up
        macs += voxels * per_voxel
        maps = halves * architecture.blocks * _MAPS_A_BLOCK + (_MAPS_JOINED if halves == 2 else 0)
        values += voxels * width * maps
        weights += per_voxel
        before = width
    return Cost(
        multiplications=_BACKWARD * batch_size * macs,
        activation_bytes=bytes_a_value * batch_size * values,
        parameter_bytes=4 * 4 * weights,
    )
