"""What a training step costs, and what a device must tell."""

import pytest

from lesionseg.errors import ConfigError
from lesionseg.plan.plan import Architecture
from lesionseg.plan.rules import budget, multiplications, network_shape


def test_cost_of_one_stage_by_hand():
    flat = Architecture("unet", (4,), ((1, 1),), ((3, 3),), blocks=2)
    # 9·(3·4 + 4·4) multiplications a pixel, 64 pixels, 2 tiles, forward and backward (3)
    cost = 3 * 2 * 64 * 9 * (3 * 4 + 4 * 4)
    assert multiplications(flat, (8, 8), 2, n_channels=3) == cost


def test_cost_grows_with_voxels_batch_and_features():
    shape = network_shape((64, 64, 64), (1, 1, 1), 16, 128)
    base = multiplications(shape, (64, 64, 64), 2)
    assert multiplications(shape, (64, 64, 64), 4) == 2 * base
    assert multiplications(shape, (128, 64, 64), 2) == 2 * base
    wide = multiplications(network_shape((64, 64, 64), (1, 1, 1), 32, 256), (64, 64, 64), 2)
    assert 3.5 < wide / base < 4


def test_a_space_to_depth_stem_costs_what_the_full_network_without_its_first_stage_does():
    tile = (64, 64, 64)
    full = multiplications(network_shape(tile, (1, 1, 1), 16, 128), tile, 2)
    half = multiplications(network_shape(tile, (1, 1, 1), 32, 128, stem="space_to_depth"), tile, 2)
    # of the first stage: 27·(1·16 + 4·16²) a voxel, then up to it 32·16·8 a voxel of the second,
    # whose first convolution now sees 8 channels rather than 16
    voxels = 64**3
    first = voxels * 27 * (16 + 4 * 16**2) + voxels / 8 * (32 * 16 * 8 - 16 * 32)
    changed = voxels / 8 * (27 * (16 - 8) * 32 + 16 * 32 * 8 - 32 * 16 * 8)
    assert full - half == pytest.approx(3 * 2 * (first + changed), rel=0.01)


def test_a_gpu_needs_to_know_what_a_step_takes():
    with pytest.raises(ConfigError, match="StepMemory"):
        budget("cuda", 24.0)
