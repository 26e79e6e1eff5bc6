"""Tile, stages, strides, kernels and batch."""

from dataclasses import replace
from math import prod

import pytest

from lesionseg.errors import ConfigError
from lesionseg.plan.plan import Architecture, total_stride
from lesionseg.plan.rules import (
    batch_size,
    budget,
    for_small_tiles,
    multiplications,
    tile_shape,
)


def step_gb(shape, tile, batch):
    """About what a plain U-Net takes: 3 GB, and 34 bytes a voxel and feature of the first stage."""
    return 3 + 34e-9 * shape.features[0] * batch * prod(tile)


CPU = budget("cpu", 16.0).value
GPU = budget("cuda", 9.0, step_gb).value
SHAPES = [(51, 51, 51), (96, 112, 96), (20, 512, 512), (7, 300, 300), (181, 217, 181), (3, 9, 40)]


def test_an_isotropic_tile_is_halved_until_four_voxels_are_left():
    shape = CPU.network((64, 64, 64), (1, 1, 1))
    assert shape.strides == ((1, 1, 1),) + ((2, 2, 2),) * 4
    assert shape.kernels == ((3, 3, 3),) * 5
    assert shape.features == (16, 32, 64, 128, 128)
    assert shape.n_supervised == 3
    assert total_stride(shape) == (16, 16, 16)


def test_a_coarse_axis_waits_until_the_others_have_caught_up():
    shape = GPU.network((16, 128, 128), (5.0, 1.0, 1.0))
    assert shape.strides[:4] == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert shape.kernels[:3] == ((1, 3, 3), (1, 3, 3), (3, 3, 3))
    assert total_stride(shape)[0] == 4


def test_two_axes_and_a_single_slice():
    assert total_stride(CPU.network((320, 320), (1, 1))) == (64, 64)
    flat = CPU.network((1, 64, 64), (5, 1, 1))
    assert total_stride(flat)[0] == 1
    assert all(kernel[0] == 1 for kernel in flat.kernels)


def test_batch_is_two_at_least_and_bounded_by_budget_and_dataset():
    cube = (64, 64, 64)
    small, large = (device.network(cube, (1, 1, 1)) for device in (CPU, GPU))
    assert batch_size(small, cube, CPU, 1e9).value == 2
    assert batch_size(large, cube, GPU, 1e5).value == 2
    assert batch_size(large, cube, replace(GPU, capped=False), 1e5).value == GPU.batch
    assert batch_size(large, cube, GPU, 1e9).value == GPU.batch
    flat = (320, 320)
    assert batch_size(CPU.network(flat, (1, 1)), flat, CPU, 1e5).value == 4


def test_where_a_tile_would_hold_several_lesions_it_is_small_and_there_are_more():
    median, n_voxels = (96, 112, 96), 16 * 96 * 112 * 96  # 5.6 lesions to a tile of 64³
    spent = for_small_tiles(CPU, median, (1.5,) * 3, n_voxels, [200] * 356)
    tile = tile_shape(median, (1.5,) * 3, spent)
    assert (tile.value, "several lesions" in tile.reason) == ((32, 32, 32), True)
    shape = CPU.network(tile.value, (1.5,) * 3)
    assert batch_size(shape, tile.value, spent, n_voxels).value == 16
    assert 2 * prod(tile_shape(median, (1.5,) * 3, CPU).value) == 16 * 32**3


@pytest.mark.parametrize(
    ("median", "lesions", "small"),
    [
        ((128, 128, 256), 23, False),  # sixteen tiles of 64³
        ((128, 128, 256), 24, True),
        ((50, 50, 50), 1, False),  # a tile of 56³ holds no more than there is
        ((50, 50, 50), 2, True),
    ],
)
def test_where_a_tile_holds_one_and_a_half_lesions_it_is_small(median, lesions: int, small: bool):
    spent = for_small_tiles(CPU, median, (1.0,) * 3, prod(median), [100] * lesions)
    assert (tile_shape(median, (1.0,) * 3, spent).value == (32, 32, 32)) is small


@pytest.mark.parametrize(
    ("allowed", "median", "lesions"),
    [
        (GPU, (160, 160, 160), [9] * 200),  # long trainings: not measured
        (CPU, (160, 160, 160), [9] * 4),  # the tile holds less than one
        (CPU, (160, 160, 160), [9] * 150 + [4096] * 50),  # some would fill it
        (CPU, (24, 24, 24), [9] * 50),  # as small as a tile gets
        (CPU, (1024, 1024), [9] * 50),
        (CPU, (160, 160, 160), []),
    ],
)
def test_other_tiles_stay_as_large_as_the_device_allows(allowed, median, lesions):
    spent = for_small_tiles(allowed, median, (1.0,) * len(median), prod(median), lesions)
    assert spent is allowed


def test_cost_of_one_stage_by_hand():
    flat = Architecture("unet", (4,), ((1, 1),), ((3, 3),), blocks=2)
    # 9·(3·4 + 4·4) multiplications a pixel, 64 pixels, 2 tiles, forward and backward (3)
    cost = 3 * 2 * 64 * 9 * (3 * 4 + 4 * 4)
    assert multiplications(flat, (8, 8), 2, n_channels=3) == cost


def test_a_gpu_needs_to_know_what_a_step_takes():
    with pytest.raises(ConfigError, match="step_memory"):
        budget("cuda", 24.0)
