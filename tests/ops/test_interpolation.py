"""Resampling, compared with flips, SciPy, means over fine samples and hand-made values."""

import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from scipy import ndimage

from lesionseg.core import Geometry
from lesionseg.errors import GeometryError
from lesionseg.ops.interpolation import (
    Interpolation,
    find_interpolation_neighbours,
    resample_slabs,
    resample_to,
    resize,
)
from tests.grids import unit_grid
from tests.inference.nnunet import naive
from tests.noise import noise

SHAPE = (5, 6, 7)


def make_image(shape=SHAPE, channels=2, seed=0):
    return torch.rand(channels, *shape, generator=torch.Generator().manual_seed(seed))


def make_affine(linear, shift):
    """Make the matrix from output to input index, from a matrix or its diagonal, and a shift."""
    linear = np.asarray(linear, float)
    matrix = np.eye(len(shift) + 1)
    matrix[:-1, :-1] = linear if linear.ndim == 2 else np.diag(linear)
    matrix[:-1, -1] = shift
    return matrix


def make_rotation(angle, dims=2, scale=1.0):
    linear = np.eye(dims)
    linear[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return scale * linear


def resample(array, matrix, out_shape, how, n_rows=8, edge="zero"):
    """Resample to a grid. `matrix` maps its indices to those of the array."""
    affine = np.diag([3.0, 1.5, 0.5, 1.0][-len(matrix) :])
    source = Geometry(array.shape[1:], affine)
    target = Geometry(tuple(out_shape), affine @ matrix)
    slabs = list(resample_slabs(array, source, target, how, edge=edge, n_rows=n_rows))
    assert [rows.start for rows, _ in slabs] == list(range(0, out_shape[0], n_rows))
    return torch.cat([slab for _, slab in slabs], dim=1)


@pytest.mark.parametrize("how", get_args(Interpolation))
@pytest.mark.parametrize("n_rows", [1, 3, 32])
def test_flips_and_permutations_are_exact(how, n_rows):
    array = make_image()
    for order in itertools.permutations(range(3)):
        for flips in itertools.product([1, -1], repeat=3):
            # output axis j runs along input axis order[j]
            axes = np.eye(3)[:, order]
            flipped = np.less(flips, 0)
            expected = array.permute(0, *(1 + a for a in order))
            expected = expected.flip((1 + np.flatnonzero(flipped)).tolist())
            shape = np.array(expected.shape[1:])
            matrix = make_affine(axes * flips, axes @ (flipped * (shape - 1)))
            found = resample(array, matrix, shape, how, n_rows)
            assert torch.equal(found, expected)


@pytest.mark.parametrize("ratio", [1.3, 2.0, 3.7])
@pytest.mark.parametrize("n_rows", [1, 32])
def test_coarser_voxel_is_the_mean_over_its_extent(ratio, n_rows):
    """Compare with 1000 samples of every output voxel. The input is constant within its voxels."""
    array = make_image((23, 6), channels=1)
    n = int(22 / ratio)
    shift = ratio / 2 - 0.3
    matrix = make_affine([ratio, 1.0], [shift, 0.0])
    found = resample(array, matrix, (n, 6), "mean", n_rows)[0].numpy()
    fine = np.arange(n)[:, None] + (np.arange(1000) + 0.5) / 1000 - 0.5
    rows = np.floor(fine * ratio + shift + 0.5).astype(int)
    expected = [array[0].numpy()[r[r <= 22]].mean(axis=0) for r in rows]
    np.testing.assert_allclose(found, expected, atol=2e-2)


def test_linear_and_nearest_values_of_a_coarser_grid_are_single_samples():
    line = torch.tensor([[0.0, 9, 0, 0, 3, 0, 0, 0]])
    matrix = make_affine([3.0], [1.0])  # samples at 1, 4 and 7
    for how in ("linear", "nearest"):
        assert resample(line, matrix, (3,), how).tolist() == [[9, 3, 0]]


def test_coarser_voxel_of_a_rotated_grid_is_a_mean():
    linear = make_rotation(0.3, scale=2)
    matrix = make_affine(linear, 30 - linear @ [5.5, 5.5])
    image = noise(1, 60, 60)
    assert resample(image, matrix, (12, 12), "mean").std() < 0.45  # a single sample: 0.57
    assert resample(image > 0, matrix, (12, 12), "share").std() < 0.3  # the mean of about 4 voxels


def test_voxels_outside_the_source_are_zero_or_the_extended_edge():
    far = make_affine([2.0], [50])
    for how in get_args(Interpolation):
        assert resample(torch.ones(1, 4), far, (3,), how).tolist() == [[0, 0, 0]]
        extended = resample(torch.ones(1, 4), far, (3,), how, edge="extend")
        assert extended.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("how", ["linear", "mean", "nearest"])
def test_near_edges_continue_for_less_than_half_a_voxel(how):
    array = torch.tensor([[[3.0, 4.0], [5.0, 6.0]]])
    rows = make_affine([0.25, 1.0], [-1.25, 0.0])  # from −1.25 to 2.25 in steps of 0.25
    found = resample(array, rows, (15, 2), how, n_rows=2, edge="near")[0]
    assert (found[[0, 1, -2, -1]] == 0).all()
    assert (found[2:5] == array[0, 0]).all()  # from −0.75 to −0.25
    assert (found[-5:-2] == array[0, 1]).all()


@pytest.mark.parametrize(("shift", "expected"), [(-0.9, 7.0), (-1.1, 0.0)])
def test_near_edges_of_an_oblique_grid_continue_for_less_than_half_a_voxel(shift, expected):
    matrix = make_affine(make_rotation(0.01), [shift, 1.0])
    sevens = torch.full((1, 5, 5), 7.0)
    for how in ("linear", "mean", "nearest"):
        found = resample(sevens, matrix, (1, 2), how, edge="near")
        assert found.flatten().tolist() == pytest.approx([expected] * 2)
        assert not resample(sevens, matrix, (1, 2), how).any()


def test_oblique_mean_keeps_one_sample_at_a_time():
    array = make_image((30, 70, 70), channels=1)
    # the mean of 3 × 3 × 3 samples for each output voxel
    matrix = make_affine(make_rotation(0.3, dims=3, scale=3), [9.0, 0.0, 3.0])
    shape = (8, 20, 20)
    with torch.profiler.profile(profile_memory=True) as run:
        resample(array, matrix, shape, "mean")
    events = run.profiler.kineto_results.events()
    bytes_in_use = np.cumsum([e.nbytes() for e in events if e.name() == "[memory]"])
    assert 4 * np.prod(shape) < bytes_in_use.max() < 15 * 4 * np.prod(shape)


LINEAR = pytest.mark.parametrize("linear", [np.diag([2.3, 0.7]), make_rotation(0.4, scale=1.7)])


@pytest.mark.parametrize("how", ["linear", "mean", "nearest"])
@LINEAR
def test_extended_edges_equal_padding_with_the_outermost_values(how, linear):
    array = make_image((6, 9), channels=1)
    matrix = make_affine(linear, [-5.2, -2.9])
    padded = torch.nn.functional.pad(array, (30, 30, 30, 30), mode="replicate")
    moved = make_affine(linear, [24.8, 27.1])
    found = resample(array, matrix, (11, 20), how, edge="extend")
    torch.testing.assert_close(found, resample(padded, moved, (11, 20), how), atol=1e-5, rtol=0)


@LINEAR
def test_sum_of_shares_times_the_voxel_size_is_the_size_of_the_mask(linear):
    matrix = make_affine(linear, [-7.3, -8.1])
    share = resample(torch.ones(1, 6, 9, dtype=torch.bool), matrix, (60, 60), "share")
    size = share.sum().item() * abs(np.linalg.det(linear))
    assert size == pytest.approx(6 * 9, rel=1e-5 if linear[0, 1] == 0 else 0.1)


def test_reversed_big_endian_array_is_decoded_in_small_parts():
    array = np.arange(2 * 40 * 5).reshape(2, 40, 5).astype(">u2")[:, ::-1]
    source = Geometry((40, 5), np.eye(3))
    target = Geometry((10, 5), np.diag([2.0, 1.0, 1.0]))
    rows_decoded = []

    def decode(piece):
        rows_decoded.append(piece.shape[1])
        return piece.float() / 2

    slabs = list(resample_slabs(array, source, target, "linear", decode=decode, n_rows=2))
    found = torch.cat([slab for _, slab in slabs], dim=1).numpy()
    np.testing.assert_array_equal(found, array[:, :20:2].astype(np.float32) / 2)
    assert max(rows_decoded) <= 8
    assert resample_to(array, source, target, "nearest").dtype == torch.int32


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("n_rows", [2, 32])
@pytest.mark.parametrize(
    ("linear", "shift"),
    [
        (np.diag([0.6, 0.8, 0.9]), [0.2, 0.9, 0.0]),
        (make_rotation(0.3, 3), [3.0, -1.0, 0.0]),
        (make_rotation(0.5, 3, scale=3.1), [5.0, 4.0, 0.2]),  # coarser: still single samples
    ],
    ids=["zoom", "rotation", "coarser"],
)
def test_zoom_and_rotation_equal_those_of_scipy(dims, n_rows, linear, shift):
    shape = (12, 11, 10)[:dims]
    out_shape = (10, 12, 9)[:dims]
    linear = linear[:dims, :dims]
    shift = shift[:dims]
    array = make_image(shape, 1)
    voxels = array[0].numpy()
    matrix = make_affine(linear, shift)
    expected = ndimage.affine_transform(
        voxels.astype(float), matrix, output_shape=out_shape, order=1, mode="nearest"
    )
    position = np.moveaxis(np.indices(out_shape), 0, -1) @ linear.T + shift
    inside = ((position >= -0.5) & (position <= np.array(shape) - 0.5)).all(-1)
    found = resample(array, matrix, out_shape, "linear", n_rows)[0].numpy()
    np.testing.assert_allclose(found, expected * inside, atol=1e-4)
    nearest = resample(array, matrix, out_shape, "nearest", n_rows)[0].numpy()
    source = np.clip(np.floor(position + 0.5).astype(int), 0, np.array(shape) - 1)
    np.testing.assert_array_equal(nearest, voxels[tuple(np.moveaxis(source, -1, 0))] * inside)


def test_nearest_keeps_the_dtype_and_large_ids():
    array = torch.tensor([[[0, 40_000_001], [7, 0]]], dtype=torch.int32)
    found = resample(array, make_affine([0.5, 0.5], [-0.25, -0.25]), (4, 4), "nearest")
    assert torch.equal(found[0], array[0].repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_grids_with_different_numbers_of_axes_are_an_error():
    flat = unit_grid(3, 3)
    with pytest.raises(GeometryError, match="axes"):
        resample_to(make_image(), unit_grid(*SHAPE), flat, "linear")


def test_grid_shifted_by_rounding_gives_exactly_the_same_values():
    array = make_image()
    near = np.eye(4)
    near[:3] += 2e-5
    assert torch.equal(resample(array, near, SHAPE, "linear"), array)


def test_integer_coordinates_have_no_share_of_the_next_voxel():
    # every eleventh output voxel has the centre of an input voxel, up to a rounding error of 1e-16
    image = torch.zeros(1, 2, 40)
    image[..., 1::2] = 100
    source = Geometry.from_spacing((2, 40), (1.0, 1.1))
    target = Geometry.from_spacing((2, 430), (1.0, 0.1))
    found = resample_to(image, source, target, "linear")[0].numpy()
    position = np.round(np.arange(430) / 11, 5)
    expected = np.interp(position, np.arange(40), image[0, 0].numpy())
    for row in found:
        assert np.array_equal(row == 0, expected == 0)
        assert np.abs(row - expected).max() < 1e-3


@pytest.mark.parametrize(
    ("before", "after"),
    [((7, 9, 8), (7, 13, 5)), ((4, 6, 6), (9, 6, 11)), ((1, 6, 5), (1, 3, 4))],
)
@pytest.mark.parametrize("order", [0, 1, 3])
def test_resizing_by_one_order_equals_that_of_scipy(before, after, order, rng):
    array = rng.normal(size=before)
    found = resize(torch.from_numpy(array), after, (order,) * 3).numpy()
    np.testing.assert_allclose(found, naive.zoom(array, after, order), atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("order", [0, 1])
def test_axis_with_its_own_order_is_resized_after_clipped_slices(axis, order, rng):
    array = rng.normal(size=(5, 6, 7))
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 9.0
    expected = naive.resize(array, (8, 9, 4), spacing, spacing, {"order_z": order})
    orders = [3, 3, 3]
    orders[axis] = order
    found = resize(torch.from_numpy(array), (8, 9, 4), orders, clip_along=axis).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("rows", [slice(0, 5), slice(5, 10), slice(10, 14)])
def test_rows_from_a_part_of_the_input_equal_those_of_the_whole(order, rows, rng):
    array = torch.from_numpy(rng.normal(size=(3, 9)).astype(np.float32))
    neighbours = find_interpolation_neighbours(9, 14, order)
    needed = neighbours.reach(rows)
    part = neighbours.within(rows, needed.start).apply(array[:, needed], axis=1)
    assert torch.equal(part, neighbours.apply(array, axis=1)[:, rows])


def test_array_that_has_the_new_shape_is_not_changed():
    assert torch.equal(resize(make_image()[0], SHAPE, (3, 3, 3)), make_image()[0])
