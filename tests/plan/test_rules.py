"""Each rule is compared with values that were computed by hand."""

from dataclasses import replace
from math import prod

import numpy as np
import pytest

from lesionseg.errors import ConfigError
from lesionseg.plan import rules
from lesionseg.plan.fingerprint import ChannelStatistics, Spread
from lesionseg.plan.plan import Architecture, Normalisation, total_stride
from lesionseg.plan.rules import (
    GridSizes,
    batch_size,
    budget,
    limit_to_small_tiles,
    multiplications,
    network_steps,
    tile_shape,
)

BOTH = ("cpu", "cuda")


@pytest.mark.parametrize(
    ("spacings", "diameters", "devices", "expected"),
    [
        # the median of each axis, but the tenth percentile of a coarse anisotropic axis
        ([(2, 1, 1), (2, 1, 1), (3, 0.5, 2)], [20.0], ("cuda",), (2, 1, 1)),
        ([(z, 1, 1) for z in (2, 4, 5, 5, 6)], [100.0], ("cuda",), (2.8, 1, 1)),
        ([(1, 2)], [], BOTH, (1, 2)),  # no lesion
        # small lesions ask for the finer spacing that some cases have
        ([(1, 1, 1)] * 3 + [(2, 2, 2)] * 5, [4.0], ("cuda",), (1, 1, 1)),
        # half the resolution, only for large lesions and on a processor
        ([(0.5, 0.5)], [10.5], ("cpu",), (1, 1)),  # 21 pixels across
        ([(0.5, 0.5)], [10.0], ("cpu",), (0.5, 0.5)),  # 20 pixels
        ([(0.5, 0.5)], [90.0], ("cuda",), (0.5, 0.5)),
        ([(4, 1, 1)], [40.0], ("cpu",), (4, 2, 2)),  # the coarse axis stays
        # a few small lesions among many large ones do not determine the resolution of films
        ([(1, 1)], [7.0] * 4 + [83.0] * 96, ("cpu",), (2, 2)),
        ([(1, 1)], [7.0] * 5 + [19.0] * 6 + [83.0] * 89, ("cpu",), (1, 1)),  # a tenth is <= 20
        ([(1, 1)], [5.0] * 6 + [83.0] * 94, ("cpu",), (1, 1)),  # over 5 % would have less than 3
        ([(1, 1)], [6.5] * 6 + [83.0] * 94, ("cpu",), (2, 2)),
        ([(1, 1, 1)], [7.0] * 4 + [83.0] * 96, ("cpu",), (1, 1, 1)),
    ],
)
def test_spacing_follows_scans_lesions_and_device(spacings, diameters, devices, expected):
    if len(diameters) == 1:  # the smallest lesions
        diameters = diameters * 50 + [200.0]
    for device in devices:
        assert rules.spacing(spacings, diameters, device).value == pytest.approx(expected)


def make_channel(is_ct, lesion, name="c"):
    return ChannelStatistics(name, is_ct, Spread(-400, 300, -930, 700), lesion, 1.0)


@pytest.mark.parametrize(
    ("lesion", "lower", "upper", "mean", "std"),
    [
        # mixture of halves: mean variance plus the square of half the distance of the means
        (Spread(0, 100, -200, 250), -930, 700, -200, np.sqrt((300**2 + 100**2) / 2 + 200**2)),
        (Spread(900, 100, 500, 1400), -930, 1400, 250, np.sqrt((300**2 + 100**2) / 2 + 650**2)),
        (None, -930, 700, -400, 300),
    ],
)
@pytest.mark.parametrize(("dims", "side"), [(3, None), (2, 400)])
def test_ct_keeps_the_range_of_body_and_lesions_and_balances_them(
    dims, side, lesion, lower, upper, mean, std
):
    found = rules.normalisation(make_channel(True, lesion), dims, side).value
    assert (found.scheme, found.lower, found.upper, found.mean) == ("dataset", lower, upper, mean)
    assert found.std == pytest.approx(std, abs=1e-3)


@pytest.mark.parametrize(
    ("dims", "side", "scale"),
    [
        (3, None, Normalisation("zscore")),
        (2, 400, Normalisation("local", sigma=20.0)),  # 5 % of the side
        (2, None, Normalisation("range")),
    ],
)
@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("c", None),
        ("noNorm", Normalisation("dataset")),
        ("zscore", Normalisation("zscore")),
        ("rescale_to_0_1", Normalisation("range")),
        (" rgb_to_0_1", Normalisation("dataset", std=255.0)),
    ],
)
def test_kind_of_image_decides_unless_the_channel_has_the_name_of_an_nnunet_normalisation(
    dims, side, scale, name, named
):
    lesion = Spread(0, 1, 0, 1)
    found = rules.normalisation(make_channel(False, lesion, name), dims, side).value
    assert found == (named or scale)
    if named is not None:
        assert rules.normalisation(make_channel(True, lesion, name), dims, side).value == named


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 1e-6), (1e-9, 1e-6), (3e-4, 3e-4), (0.5, 0.2)]
)
def test_the_prior_is_the_lesion_fraction_within_bounds(fraction, expected):
    assert rules.prior(fraction).value == expected


@pytest.mark.parametrize(
    ("voxels", "prior", "minimum", "floor"),
    [
        ([], 1e-3, 1, 0.05),
        ([1, 2, 900], 1e-3, 1, 0.05),
        ([10] * 9, 1e-3, 1, 0.05),
        ([11] * 9, 1e-3, 2, 0.05),
        ([45] * 9, 1e-3, 4, 0.05),
        ([999], 0.15, 10, 0.15),
    ],
)
def test_smallest_candidate_is_a_tenth_of_the_smallest_lesion_and_the_floor_the_prior(
    voxels, prior, minimum, floor
):
    found = rules.candidate_rule(voxels, prior).value
    assert (found.min_voxels, found.floor) == (minimum, floor)


# --- tile, stages, strides, kernels and batch ---


def step_gb(shape, tile, batch):
    """Return an estimate for a plain U-Net: 3 GB, and 34 bytes per voxel and feature."""
    return 3 + 34e-9 * shape.features[0] * batch * prod(tile)


CPU = budget("cpu", 16.0).value
GPU = budget("cuda", 9.0, step_gb).value
CUBE = (160, 160, 160)


def limit_budget(allowed, median, lesions, mm=1.0, n_cases=1):
    """Limit a budget for a dataset of equal shapes and lesions of these voxels.

    Return it and the tile.
    """
    spacing = (mm,) * len(median)
    sizes = GridSizes(median, n_cases * prod(median), np.asarray(lesions))
    spent = limit_to_small_tiles(allowed, sizes, spacing)
    return spent, tile_shape(median, spacing, spent).value


def test_coarse_axis_is_halved_after_the_finer_axes():
    shape = GPU.choose_architecture((16, 128, 128), (5.0, 1.0, 1.0))
    assert shape.strides[:4] == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert shape.kernels[:3] == ((1, 3, 3), (1, 3, 3), (3, 3, 3))
    assert total_stride(shape)[0] == 4
    assert total_stride(CPU.choose_architecture((1, 64, 64), (5, 1, 1)))[0] == 1


@pytest.mark.parametrize(
    ("tile", "spacing", "first", "last"),
    [
        ((1, 64, 64), (0.3, 1, 1), (1, 3, 3), (1, 3, 3)),  # a single thin slice
        ((6, 80, 80), (1, 1, 1), (3, 3, 3), (3, 3, 3)),
        ((20, 256, 256), (3.6, 0.62, 0.62), (1, 3, 3), (3, 3, 3)),
        ((32, 64, 64), (5, 1, 1), (1, 3, 3), (3, 3, 3)),  # the slices alone are halved last
        ((1024, 64), (1, 1), (3, 3), (3, 3)),
    ],
)
def test_axis_stays_convolved_if_a_short_axis_cannot_be_halved(tile, spacing, first, last):
    kernels = GPU.choose_architecture(tile, spacing).kernels
    assert (kernels[0], kernels[-1]) == (first, last)
    assert np.all(np.diff(kernels, axis=0) >= 0)  # no 1 after a 3


def test_batch_is_two_at_least_and_bounded_by_budget_and_dataset():
    for allowed, tile, n_voxels, expected in (
        (CPU, (64, 64, 64), 1e9, 2),
        (GPU, (64, 64, 64), 1e5, 2),
        (replace(GPU, limits_share=False), (64, 64, 64), 1e5, GPU.batch),
        (GPU, (64, 64, 64), 1e9, GPU.batch),
        (CPU, (320, 320), 1e5, 4),
    ):
        shape = allowed.choose_architecture(tile, (1,) * len(tile))
        assert batch_size(shape, tile, allowed, n_voxels).value == expected


@pytest.mark.parametrize(("n_lesions", "tiles", "steps"), [(19, 8, 475), (1, 8, 25), (10, 3, 667)])
def test_network_ends_after_200_tiles_on_each_lesion(n_lesions, tiles, steps):
    limit = network_steps(n_lesions, tiles)
    assert limit.value == steps  # 200 · lesions / tiles, rounded up
    assert f"{steps} steps" in limit.reason


def test_many_lesions_per_tile_give_more_and_smaller_tiles():
    median = (96, 112, 96)  # 5.6 lesions to a tile of 64³
    spent, tile = limit_budget(CPU, median, [200] * 356, mm=1.5, n_cases=16)
    assert tile == (32, 32, 32)
    shape = CPU.choose_architecture(tile, (1.5,) * 3)
    assert batch_size(shape, tile, spent, 16 * prod(median)).value == 16


@pytest.mark.parametrize(
    ("allowed", "median", "lesions", "is_small"),
    [
        (CPU, (128, 128, 256), [100] * 23, False),  # sixteen tiles of 64³
        (CPU, (128, 128, 256), [100] * 24, True),
        (CPU, (50, 50, 50), [100], False),  # a tile of 56³ contains all lesions
        (CPU, (50, 50, 50), [100] * 2, True),
        (CPU, CUBE, [9] * 150 + [4096] * 50, False),  # some would fill it
        (CPU, (24, 24, 24), [9] * 50, False),  # as small as a tile gets
        (GPU, CUBE, [9] * 200, False),  # long trainings: not measured
        (CPU, (1024, 1024), [9] * 50, False),
        (CPU, CUBE, [], False),
    ],
)
def test_tile_is_small_from_one_and_a_half_lesions_per_tile(allowed, median, lesions, is_small):
    spent, tile = limit_budget(allowed, median, lesions)
    assert (spent is not allowed) == (tile == (32, 32, 32)) == is_small


@pytest.mark.parametrize(
    ("median", "spacing", "features", "expected"),
    [
        (CUBE, (1, 1, 1), 16, (64, 64, 64)),
        (CUBE, (1, 1, 1), 8, (80, 80, 80)),  # the largest cube
        ((90, 400, 400), (5, 0.8, 0.8), 16, (32, 80, 80)),  # many thick slices
        ((90, 400, 400), (5, 0.8, 0.8), 8, (80, 80, 80)),
        # thin volumes
        ((6, 256, 256), (1, 1, 1), 16, (6, 128, 128)),
        ((20, 256, 256), (3.6, 0.62, 0.62), 16, (20, 96, 96)),
        ((512, 64, 64), (1, 1, 1), 8, (112, 64, 64)),
        ((1, 4000, 4000), (1, 1, 1), 8, (1, 320, 320)),
    ],
)
def test_tile_on_a_cpu_is_longer_than_a_cube_only_in_a_thin_volume(
    median, spacing, features, expected
):
    allowed = replace(CPU, base_features=features, widest=8 * features)
    assert tile_shape(median, spacing, allowed).value == expected


def test_cost_of_one_stage_equals_the_count_by_hand():
    flat = Architecture("unet", (4,), ((1, 1),), ((3, 3),), blocks=2)
    # 9·(3·4 + 4·4) multiplications a pixel, 64 pixels, 2 tiles, forward and backward (3)
    cost = 3 * 2 * 64 * 9 * (3 * 4 + 4 * 4)
    assert multiplications(flat, (8, 8), 2, n_channels=3) == cost


def test_budget_of_a_gpu_needs_the_memory_of_a_step():
    with pytest.raises(ConfigError, match="step_memory"):
        budget("cuda", 24.0)


@pytest.mark.parametrize(
    ("dims", "mm", "element", "unit", "whole"),
    [
        (2, 1.0, "pixels", "pixels", "image"),  # an image without a pixel size
        (2, 0.9, "pixels", "mm", "image"),
        (3, 1.0, "voxels", "mm", "volume"),
    ],
)
def test_reasons_name_the_elements_of_an_image(dims, mm, element, unit, whole):
    assert f"(under 2.0 {unit})" in rules.spacing([(mm,) * dims], [2.0] * 20, "cuda").reason
    assert f"5 {element}" in rules.candidate_rule([50] * 20, 0.01, dims).reason
    assert whole in rules.prior(0.01, dims).reason


@pytest.mark.parametrize(
    ("median", "mm", "tile", "batch"),
    [
        ((160, 192, 160), (1.0, 1.0, 1.0), (128, 128, 128), 2),  # at most two cubes of 128
        ((300, 500, 500), (2.5, 0.7, 0.7), (64, 192, 160), 2),
        ((64, 80, 64), (2.0, 2.0, 2.0), (64, 80, 64), 8),
        ((2048, 2048), (0.2, 0.2), (2048, 2048), 15),  # only memory limits it
    ],
)
def test_step_on_a_large_gpu(median, mm, tile, batch):
    allowed = budget("cuda", 80.0, step_gb, dims=len(median)).value
    assert tile_shape(median, mm, allowed).value == tile
    network = allowed.choose_architecture(tile, mm)
    assert batch_size(network, tile, allowed, 1e10).value == batch


@pytest.mark.parametrize(
    ("memory_gb", "tile"),
    [
        (0.6, (64, 64, 64)),  # two of these tiles take 0.524 of 0.54 GB
        (0.5, (64, 56, 56)),  # 0.401 of 0.45 GB; 64 × 64 × 56 would take 0.459 GB
    ],
)
def test_rounded_tile_fits_into_the_memory_of_a_gpu(memory_gb, tile):
    """A volume of 60³ voxels takes 0.432 GB. Its sides are rounded to multiples of 8."""

    def thousand_bytes(_, tile, batch):
        return batch * prod(tile) * 1e-6

    allowed = budget("cuda", memory_gb, thousand_bytes).value
    assert tile_shape((60, 60, 60), (1.0, 1.0, 1.0), allowed).value == tile
