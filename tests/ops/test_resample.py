"""Resampling against flips, scipy, sums over fine samples, and by hand."""

import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from scipy import ndimage

from lesionseg.core import Geometry
from lesionseg.errors import GeometryError
from lesionseg.ops import resample_slabs, resample_to
from lesionseg.ops.resample import Interpolation

SHAPE = (5, 6, 7)


def image(shape=SHAPE, channels=2, seed=0):
    return torch.rand(channels, *shape, generator=torch.Generator().manual_seed(seed))


def affine(linear, shift):
    """The matrix from output to input index: a matrix, or the diagonal of one, and a shift."""
    linear = np.asarray(linear, float)
    matrix = np.eye(len(shift) + 1)
    matrix[:-1, :-1] = linear if linear.ndim == 2 else np.diag(linear)
    matrix[:-1, -1] = shift
    return matrix


def turn(angle, dims=2, scale=1.0):
    linear = np.eye(dims)
    linear[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return scale * linear


def resample(array, matrix, out_shape, how, n_rows=8, edge="zero"):
    """The array on a grid whose indices `matrix` maps to those of the array, from its slabs."""
    source = Geometry(array.shape[1:], np.eye(len(matrix)))
    target = Geometry(tuple(out_shape), matrix)
    slabs = list(resample_slabs(array, source, target, how, edge=edge, n_rows=n_rows))
    assert [rows.start for rows, _ in slabs] == list(range(0, out_shape[0], n_rows))
    return torch.cat([slab for _, slab in slabs], dim=1)


@pytest.mark.parametrize("how", get_args(Interpolation))
@pytest.mark.parametrize("n_rows", [1, 3, 32])
def test_flips_and_permutations_are_exact(how, n_rows):
    array = image()
    for order in itertools.permutations(range(3)):
        for flips in itertools.product([1, -1], repeat=3):
            # output axis j runs along input axis order[j]
            linear, shift = np.zeros((3, 3)), np.zeros(3)
            linear[list(order), range(3)] = flips
            shift[list(order)] = [(flips[j] < 0) * (SHAPE[order[j]] - 1) for j in range(3)]
            expected = array.permute(0, *(1 + a for a in order)).flip(
                [1 + j for j in range(3) if flips[j] < 0]
            )
            found = resample(array, affine(linear, shift), expected.shape[1:], how, n_rows)
            assert torch.equal(found, expected)


@pytest.mark.parametrize("ratio", [1.3, 2.0, 3.7])
@pytest.mark.parametrize("n_rows", [1, 32])
def test_a_coarser_voxel_is_the_mean_over_its_extent(ratio, n_rows):
    """Against 1000 samples of every output voxel, the input constant within its voxels."""
    array, n, shift = image((23, 6), channels=1), int(22 / ratio), ratio / 2 - 0.3
    matrix = affine([ratio, 1.0], [shift, 0.0])
    found = resample(array, matrix, (n, 6), "mean", n_rows)[0].numpy()
    fine = np.arange(n)[:, None] + (np.arange(1000) + 0.5) / 1000 - 0.5
    rows = np.floor(fine * ratio + shift + 0.5).astype(int)
    expected = [array[0].numpy()[r[r <= 22]].mean(axis=0) for r in rows]
    np.testing.assert_allclose(found, expected, atol=2e-2)


def test_where_axes_mix_a_coarser_voxel_is_a_mean_too():
    linear = turn(0.3, scale=2)
    matrix = affine(linear, 30 - linear @ [5.5, 5.5])
    noise = torch.randn(1, 60, 60, generator=torch.Generator().manual_seed(0))
    assert resample(noise, matrix, (12, 12), "mean").std() < 0.6
    share = resample(noise > 0, matrix, (12, 12), "share")
    assert share.mean().item() == pytest.approx(0.5, abs=0.05)
    assert share.std() < 0.3  # of 4 voxels or so each


def test_outside_of_a_coarser_grid_is_nothing():
    far = affine([2.0], [50])
    for how in get_args(Interpolation):
        assert resample(torch.ones(1, 4), far, (3,), how).tolist() == [[0, 0, 0]]
        extended = resample(torch.ones(1, 4), far, (3,), how, edge="extend")
        assert extended.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("how", ["linear", "mean", "nearest"])
@pytest.mark.parametrize("linear", [np.diag([2.3, 0.7]), turn(0.4, scale=1.7)])
def test_extended_edges_equal_an_array_padded_with_its_outermost_values(how, linear):
    array = image((6, 9), channels=1)
    matrix = affine(linear, [-5.2, -2.9])
    padded = torch.nn.functional.pad(array, (30, 30, 30, 30), mode="replicate")
    moved = affine(linear, [24.8, 27.1])
    found = resample(array, matrix, (11, 20), how, edge="extend")
    torch.testing.assert_close(found, resample(padded, moved, (11, 20), how), atol=1e-5, rtol=0)


@pytest.mark.parametrize("linear", [np.diag([2.3, 0.7]), turn(0.4, scale=1.7)])
def test_shares_count_what_is_outside_as_zero(linear):
    """Their sum, times the size of an output voxel, is the size of the mask."""
    matrix = affine(linear, [-7.3, -8.1])
    share = resample(torch.ones(1, 6, 9, dtype=torch.bool), matrix, (60, 60), "share")
    size = share.sum().item() * abs(np.linalg.det(linear))
    assert size == pytest.approx(6 * 9, rel=1e-5 if linear[0, 1] == 0 else 0.1)


def test_foreign_bytes_reversed_axes_and_decoding_need_only_a_part_of_the_array():
    array = np.arange(2 * 40 * 5).reshape(2, 40, 5).astype(">u2")[:, ::-1]
    source = Geometry((40, 5), np.eye(3))
    target = Geometry((10, 5), np.diag([2.0, 1.0, 1.0]))
    read = []

    def decode(piece):
        read.append(piece.shape[1])
        return piece.float() / 2

    slabs = list(resample_slabs(array, source, target, "linear", decode=decode, n_rows=2))
    found = torch.cat([slab for _, slab in slabs], dim=1).numpy()
    np.testing.assert_array_equal(found, array[:, :20:2].astype(np.float32) / 2)
    assert max(read) <= 8
    assert resample_to(array, source, target, "nearest").dtype == torch.int32


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("n_rows", [2, 32])
@pytest.mark.parametrize("kind", ["zoom", "rotation"])
def test_a_zoom_and_a_rotation_equal_scipy(dims, n_rows, kind):
    linear, shift = np.diag([0.6, 0.8, 0.9]), [0.2, 0.9, 0.0]
    if kind == "rotation":
        linear, shift = turn(0.3, 3), [3.0, -1.0, 0.0]
    shape, out_shape, array = (12, 11, 10)[:dims], (10, 12, 9)[:dims], image((12, 11, 10)[:dims], 1)
    matrix, voxels = affine(linear[:dims, :dims], shift[:dims]), array[0].numpy()
    expected = ndimage.affine_transform(
        voxels.astype(float), matrix, output_shape=out_shape, order=1, mode="nearest"
    )
    index = np.stack(np.meshgrid(*map(np.arange, out_shape), indexing="ij"), -1)
    at = index @ matrix[:dims, :dims].T + matrix[:dims, -1]
    inside = ((at >= -0.5) & (at <= np.array(shape) - 0.5)).all(-1)
    found = resample(array, matrix, out_shape, "linear", n_rows)[0].numpy()
    np.testing.assert_allclose(found, expected * inside, atol=1e-4)
    nearest = resample(array, matrix, out_shape, "nearest", n_rows)[0].numpy()
    place = np.clip(np.floor(at + 0.5).astype(int), 0, np.array(shape) - 1)
    np.testing.assert_array_equal(nearest, voxels[tuple(np.moveaxis(place, -1, 0))] * inside)


def test_nearest_keeps_the_dtype_and_large_ids():
    array = torch.tensor([[[0, 40_000_001], [7, 0]]], dtype=torch.int32)
    found = resample(array, affine([0.5, 0.5], [-0.25, -0.25]), (4, 4), "nearest")
    assert found.dtype == torch.int32
    assert torch.equal(found[0], array[0].repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_grids_of_other_dimensions_are_refused():
    flat = Geometry.from_spacing((3, 3), (1.0, 1.0))
    with pytest.raises(GeometryError, match="axes"):
        resample_to(image(), Geometry.from_spacing(SHAPE, (1.0, 1.0, 1.0)), flat, "linear")


def test_a_grid_that_float32_shifts_by_a_little_gives_the_very_same_values():
    array = image()
    near = np.diag([1.0, 1, 1, 1]) + np.r_[np.full((3, 4), 2e-5), [[0, 0, 0, 0]]]
    assert torch.equal(resample(array, near, SHAPE, "linear"), array)


# --- between grids in space ----------------------------------------------------------------------

FILE = Geometry.from_spacing(SHAPE, (3.0, 1.5, 0.5))


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_turned_volumes_come_back_exactly(axes):
    array = image(channels=1)
    for signs in itertools.product((1, -1), repeat=3):
        turned = array[0].numpy().transpose(axes)[tuple(slice(None, None, s) for s in signs)]
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1
        for turned_axis, (file_axis, sign) in enumerate(zip(axes, signs, strict=True)):
            matrix[file_axis, turned_axis] = sign
            matrix[file_axis, 3] = 0 if sign > 0 else SHAPE[file_axis] - 1
        source = Geometry(turned.shape, FILE.affine @ matrix)
        found = resample_to(turned[np.newaxis], source, FILE, "linear")
        assert torch.equal(found, array)


def test_whole_voxel_shifts_leave_zeros_beyond_the_source():
    file = Geometry((3, 3), np.eye(3))
    shifted = Geometry((2, 2), np.array([[1, 0, 1], [0, 1, -1], [0, 0, 1.0]]))
    # voxel (0, 0) is file voxel (1, -1)
    found = resample_to(torch.tensor([[[1, 2], [3, 4]]]), shifted, file, "linear")
    assert found.tolist() == [[[0, 0, 0], [2, 0, 0], [4, 0, 0]]]


def test_a_ramp_resampled_to_a_finer_grid_and_turned_stays_a_ramp():
    def ramp(geometry):
        mm = geometry.to_mm(np.argwhere(np.ones(geometry.shape)))
        return (mm @ np.array([1.0, 10.0, 100.0])).reshape(1, *geometry.shape)

    coarse = Geometry.from_spacing((6, 8, 10), (2.0, 2.0, 2.0))
    turned = np.array([[-1, 0, 0, 18.0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    file = Geometry((19, 11, 15), turned)
    found = resample_to(ramp(coarse), coarse, file, "linear")
    np.testing.assert_allclose(found, ramp(file), atol=1e-2)


def test_the_crop_of_a_grid_keeps_the_place_of_its_voxels():
    part = FILE.crop((slice(1, 4), slice(2, 6), slice(0, 7)))
    assert part.shape == (3, 4, 7)
    np.testing.assert_allclose(
        part.to_mm([[0, 0, 0], [2, 1, 3]]), FILE.to_mm([[1, 2, 0], [3, 3, 3]])
    )


def test_whole_coordinates_take_nothing_from_the_next_voxel():
    # each eleventh output voxel has the centre of an input voxel, which floats miss by 1e-16
    image = torch.zeros(1, 2, 40)
    image[..., 1::2] = 100
    source = Geometry.from_spacing((2, 40), (1.0, 1.1))
    target = Geometry.from_spacing((2, 430), (1.0, 0.1))
    found = resample_to(image, source, target, "linear")[0].numpy()
    at = np.round(np.arange(430) / 11, 5)
    expected = np.interp(at, np.arange(40), image[0, 0].numpy())
    for row in found:
        assert np.array_equal(row == 0, expected == 0)
        assert np.abs(row - expected).max() < 1e-3
