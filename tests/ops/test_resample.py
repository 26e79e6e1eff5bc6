import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage

from lesionseg.errors import GeometryError
from lesionseg.ops import resample_linear, resample_nearest

SHAPE = (5, 6, 7)


def image(shape=SHAPE, channels=2, seed=0):
    return torch.rand(channels, *shape, generator=torch.Generator().manual_seed(seed))


def flip_and_permute(shape, order, flips):
    """Matrix from output to input index where output axis j runs along input axis order[j]."""
    matrix = np.zeros((len(shape) + 1,) * 2)
    matrix[-1, -1] = 1
    for j, axis in enumerate(order):
        matrix[axis, j] = -1 if flips[j] else 1
        matrix[axis, -1] = shape[axis] - 1 if flips[j] else 0
    return matrix


@pytest.mark.parametrize("resample", [resample_linear, resample_nearest])
@pytest.mark.parametrize("slab", [1, 3, 32])
def test_flips_and_permutations_are_exact(resample, slab):
    array = image()
    for order in itertools.permutations(range(3)):
        for flips in itertools.product([False, True], repeat=3):
            matrix = flip_and_permute(SHAPE, order, flips)
            expected = array.permute(0, *(1 + a for a in order)).flip(
                [1 + j for j in range(3) if flips[j]]
            )
            found = resample(array, matrix, expected.shape[1:], slab=slab)
            assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", [(9, 8), (6, 7, 8)])
def test_a_zoom_equals_scipy(shape):
    dims = len(shape)
    scale, shift = np.array([0.6, 0.8, 0.9])[:dims], np.array([0.2, 0.9, 0.0])[:dims]
    out_shape = (8, 6, 5)[:dims]
    matrix = np.eye(dims + 1)
    matrix[:dims, :dims] = np.diag(scale)
    matrix[:dims, -1] = shift
    array = image(shape, channels=1)
    expected = ndimage.affine_transform(
        array[0].numpy().astype(float), np.diag(scale), shift, out_shape, order=1, mode="nearest"
    )
    found = resample_linear(array, matrix, out_shape, slab=3)[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("ratio", [1.3, 2.0, 3.7])
@pytest.mark.parametrize("slab", [1, 32])
def test_a_coarser_voxel_is_the_mean_over_its_extent(ratio, slab):
    """Against 1000 samples of every output voxel, the input constant within its voxels."""
    array = image((23, 6), channels=1)
    matrix = np.diag([ratio, 1.0, 1.0])
    matrix[0, -1] = ratio / 2 - 0.5 + 0.2
    n = int(22 / ratio)
    found = resample_linear(array, matrix, (n, 6), slab=slab, average=True)[0].numpy()
    fine = (np.arange(n)[:, None] * ratio + matrix[0, -1]) + ratio * (
        (np.arange(1000) + 0.5) / 1000 - 0.5
    )
    rows = np.floor(fine + 0.5).astype(int)
    keep = rows <= 22
    expected = [array[0].numpy()[r[k]].mean(axis=0) for r, k in zip(rows, keep, strict=True)]
    np.testing.assert_allclose(found, expected, atol=2e-2)


def test_where_axes_mix_a_coarser_voxel_is_a_mean_too():
    turn = np.eye(3)
    turn[:2, :2] = 2 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    turn[:2, -1] = 30 - turn[:2, :2] @ [5.5, 5.5]
    noise = torch.randn(1, 60, 60, generator=torch.Generator().manual_seed(0))
    assert resample_linear(noise, turn, (12, 12), average=True).std() < 0.6


def test_outside_of_a_coarser_grid_is_nothing():
    far = np.diag([2.0, 1.0])
    far[0, -1] = 50
    assert resample_linear(torch.ones(1, 4), far, (3,), average=True).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("slab", [2, 32])
def test_a_rotation_equals_scipy(dims, slab):
    shape = (12, 11, 10)[:dims]
    angle = 0.3
    matrix = np.eye(dims + 1)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:2, -1] = [3.0, -1.0]
    array = image(shape, channels=1)
    expected = ndimage.affine_transform(
        array[0].numpy().astype(float), matrix, output_shape=shape, order=1, mode="nearest"
    )
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    at = index @ matrix[:dims, :dims].T + matrix[:dims, -1]
    inside = ((at >= -0.5) & (at <= np.array(shape) - 0.5)).all(-1)
    found = resample_linear(array, matrix, shape, slab=slab)[0].numpy()
    np.testing.assert_allclose(found, expected * inside, atol=1e-4)
    nearest = resample_nearest(array, matrix, shape, slab=slab)[0].numpy()
    place = np.clip(np.floor(at + 0.5).astype(int), 0, np.array(shape) - 1)
    np.testing.assert_array_equal(
        nearest, array[0].numpy()[tuple(np.moveaxis(place, -1, 0))] * inside
    )


def test_the_half_voxel_rim_holds_the_edge_value_and_outside_is_zero():
    array = torch.tensor([[1.0, 2.0, 3.0]])[:, :, None].expand(1, 3, 1)
    matrix = np.array([[0.25, 0, -1.0], [0, 1, 0], [0, 0, 1]])
    found = resample_linear(array, matrix, (18, 1))[0, :, 0]
    at = 0.25 * np.arange(18) - 1
    expected = np.where((at >= -0.5) & (at <= 2.5), np.clip(at, 0, 2) + 1, 0)
    np.testing.assert_allclose(found.numpy(), expected)


def test_nearest_keeps_the_dtype_and_large_ids():
    array = torch.tensor([[[0, 40_000_001], [7, 0]]], dtype=torch.int32)
    matrix = np.diag([0.5, 0.5, 1.0]) + np.array([[0, 0, -0.25], [0, 0, -0.25], [0, 0, 0]])
    found = resample_nearest(array, matrix, (4, 4))
    assert found.dtype == torch.int32
    assert torch.equal(found[0], array[0].repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_a_wrong_matrix_is_refused():
    with pytest.raises(GeometryError, match="does not fit"):
        resample_linear(image(), np.eye(3), SHAPE)
