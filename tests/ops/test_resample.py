"""Resampling against flips, scipy, sums over fine samples, and by hand."""

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage

from lesionseg.errors import GeometryError
from lesionseg.ops import resample_linear, resample_nearest
from lesionseg.ops.resample import resample_area

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


@pytest.mark.parametrize("resample", [resample_linear, resample_nearest])
@pytest.mark.parametrize("slab", [1, 3, 32])
def test_flips_and_permutations_are_exact(resample, slab):
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
            found = resample(array, affine(linear, shift), expected.shape[1:], slab=slab)
            assert torch.equal(found, expected)


@pytest.mark.parametrize("ratio", [1.3, 2.0, 3.7])
@pytest.mark.parametrize("slab", [1, 32])
def test_a_coarser_voxel_is_the_mean_over_its_extent(ratio, slab):
    """Against 1000 samples of every output voxel, the input constant within its voxels."""
    array, n, shift = image((23, 6), channels=1), int(22 / ratio), ratio / 2 - 0.3
    matrix = affine([ratio, 1.0], [shift, 0.0])
    found = resample_linear(array, matrix, (n, 6), slab=slab, average=True)[0].numpy()
    fine = np.arange(n)[:, None] + (np.arange(1000) + 0.5) / 1000 - 0.5
    rows = np.floor(fine * ratio + shift + 0.5).astype(int)
    expected = [array[0].numpy()[r[r <= 22]].mean(axis=0) for r in rows]
    np.testing.assert_allclose(found, expected, atol=2e-2)


def test_where_axes_mix_a_coarser_voxel_is_a_mean_too():
    linear = turn(0.3, scale=2)
    matrix = affine(linear, 30 - linear @ [5.5, 5.5])
    noise = torch.randn(1, 60, 60, generator=torch.Generator().manual_seed(0))
    assert resample_linear(noise, matrix, (12, 12), average=True).std() < 0.6
    share = resample_area((noise > 0).float(), matrix, (12, 12))
    assert share.mean().item() == pytest.approx(0.5, abs=0.05)
    assert share.std() < 0.3  # of 4 voxels or so each


def test_outside_of_a_coarser_grid_is_nothing():
    far = affine([2.0], [50])
    assert resample_linear(torch.ones(1, 4), far, (3,), average=True).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("slab", [2, 32])
@pytest.mark.parametrize("kind", ["zoom", "rotation"])
def test_a_zoom_and_a_rotation_equal_scipy(dims, slab, kind):
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
    found = resample_linear(array, matrix, out_shape, slab=slab)[0].numpy()
    np.testing.assert_allclose(found, expected * inside, atol=1e-4)
    nearest = resample_nearest(array, matrix, out_shape, slab=slab)[0].numpy()
    place = np.clip(np.floor(at + 0.5).astype(int), 0, np.array(shape) - 1)
    np.testing.assert_array_equal(nearest, voxels[tuple(np.moveaxis(place, -1, 0))] * inside)


def test_nearest_keeps_the_dtype_and_large_ids():
    array = torch.tensor([[[0, 40_000_001], [7, 0]]], dtype=torch.int32)
    found = resample_nearest(array, affine([0.5, 0.5], [-0.25, -0.25]), (4, 4))
    assert found.dtype == torch.int32
    assert torch.equal(found[0], array[0].repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_a_wrong_matrix_is_refused():
    with pytest.raises(GeometryError, match="does not fit"):
        resample_linear(image(), np.eye(3), SHAPE)
