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
CUBE = (160, 160, 160)


def small(allowed, median, lesions, mm=1.0, n_cases=1):
    """The budget of a dataset of cases of one shape, with lesions of these voxels."""
    spacing = (mm,) * len(median)
    spent = for_small_tiles(allowed, median, spacing, n_cases * prod(median), lesions)
    return spent, tile_shape(median, spacing, spent).value


def test_an_isotropic_tile_is_halved_until_four_voxels_are_left():
    shape = CPU.network((64, 64, 64), (1, 1, 1))
    assert shape.strides == ((1, 1, 1),) + ((2, 2, 2),) * 4
    assert shape.kernels == ((3, 3, 3),) * 5
    assert shape.features == (16, 32, 64, 128, 128)
    assert shape.n_supervised == 3
    assert total_stride(shape) == (16, 16, 16)
    assert total_stride(CPU.network((320, 320), (1, 1))) == (64, 64)


def test_a_coarse_axis_waits_until_the_others_have_caught_up():
    shape = GPU.network((16, 128, 128), (5.0, 1.0, 1.0))
    assert shape.strides[:4] == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert shape.kernels[:3] == ((1, 3, 3), (1, 3, 3), (3, 3, 3))
    assert total_stride(shape)[0] == 4
    slice_ = CPU.network((1, 64, 64), (5, 1, 1))
    assert total_stride(slice_)[0] == 1
    assert all(kernel[0] == 1 for kernel in slice_.kernels)


def test_batch_is_two_at_least_and_bounded_by_budget_and_dataset():
    for allowed, tile, n_voxels, expected in (
        (CPU, (64, 64, 64), 1e9, 2),
        (GPU, (64, 64, 64), 1e5, 2),
        (replace(GPU, capped=False), (64, 64, 64), 1e5, GPU.batch),
        (GPU, (64, 64, 64), 1e9, GPU.batch),
        (CPU, (320, 320), 1e5, 4),
    ):
        shape = allowed.network(tile, (1,) * len(tile))
        assert batch_size(shape, tile, allowed, n_voxels).value == expected


def test_where_a_tile_would_hold_several_lesions_it_is_small_and_there_are_more():
    median = (96, 112, 96)  # 5.6 lesions to a tile of 64³
    spent, tile = small(CPU, median, [200] * 356, mm=1.5, n_cases=16)
    assert tile == (32, 32, 32)
    shape = CPU.network(tile, (1.5,) * 3)
    assert batch_size(shape, tile, spent, 16 * prod(median)).value == 16
    assert 2 * prod(tile_shape(median, (1.5,) * 3, CPU).value) == 16 * 32**3


@pytest.mark.parametrize(
    ("allowed", "median", "lesions", "is_small"),
    [
        (CPU, (128, 128, 256), [100] * 23, False),  # sixteen tiles of 64³
        (CPU, (128, 128, 256), [100] * 24, True),
        (CPU, (50, 50, 50), [100], False),  # a tile of 56³ holds no more than there is
        (CPU, (50, 50, 50), [100] * 2, True),
        (CPU, CUBE, [9] * 150 + [4096] * 50, False),  # some would fill it
        (CPU, (24, 24, 24), [9] * 50, False),  # as small as a tile gets
        (GPU, CUBE, [9] * 200, False),  # long trainings: not measured
        (CPU, (1024, 1024), [9] * 50, False),
        (CPU, CUBE, [], False),
    ],
)
def test_where_a_tile_holds_one_and_a_half_lesions_it_is_small(allowed, median, lesions, is_small):
    spent, tile = small(allowed, median, lesions)
    assert (spent is not allowed) == (tile == (32, 32, 32)) == is_small


def test_cost_of_one_stage_by_hand():
    flat = Architecture("unet", (4,), ((1, 1),), ((3, 3),), blocks=2)
    # 9·(3·4 + 4·4) multiplications a pixel, 64 pixels, 2 tiles, forward and backward (3)
    cost = 3 * 2 * 64 * 9 * (3 * 4 + 4 * 4)
    assert multiplications(flat, (8, 8), 2, n_channels=3) == cost


def test_a_gpu_needs_to_know_what_a_step_takes():
    with pytest.raises(ConfigError, match="step_memory"):
        budget("cuda", 24.0)
