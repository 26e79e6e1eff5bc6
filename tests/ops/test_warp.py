"""Warped tiles, compared with SciPy."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from lesionseg.ops.warp import Warp, warp_linear, warp_nearest

SHAPES = {2: ((19, 23), (16, 15)), 3: ((13, 17, 11), (9, 12, 14))}


def draw_warp(rng, dims, bent):
    source, out = SHAPES[dims]
    linear = np.eye(dims) + rng.uniform(-0.3, 0.3, (dims, dims))
    middle = (np.array(source) - 1) / 2 - linear @ ((np.array(out) - 1) / 2)
    matrix = np.concatenate([linear, middle[:, None]], axis=1)
    displacement = (
        torch.from_numpy(rng.uniform(-1, 1, (dims, *out)).astype(np.float32)) if bent else None
    )
    return source, Warp(matrix, out, displacement)


@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_compiled_loops_agree_with_scipy(rng, dims, bent):
    for _ in range(3):
        source, warp = draw_warp(rng, dims, bent)
        image = rng.normal(size=source).astype(np.float32)
        index = np.stack([*np.indices(warp.shape), np.ones(warp.shape)])
        points = np.tensordot(warp.matrix, index, 1) + (warp.displacement.numpy() if bent else 0)
        edge = np.array(source).reshape(-1, *[1] * dims) - 0.5
        inside = ((points >= -0.5) & (points <= edge)).all(0)
        mask = torch.ones(source, dtype=torch.bool)
        given = [torch.from_numpy(image), mask.int(), mask]
        nearest = warp_nearest(given, warp)
        assert [one.dtype for one in nearest] == [one.dtype for one in given]
        linear = warp_linear(given[0][None], warp)[0]
        by_order = [
            ndimage.map_coordinates(image, points, order=order, mode="nearest") * inside
            for order in (1, 0)
        ]
        expected = [*by_order, inside, inside]
        for found, values in zip([linear, *nearest], expected, strict=True):
            # rounding may move a point across an edge
            assert np.isclose(found.numpy(), values, atol=2e-4).mean() > 0.995


@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 1, 2), (2, 2, 1)])
def test_axes_of_one_and_two_voxels_are_interpolated(shape):
    image = torch.arange(float(np.prod(shape))).reshape(1, *shape)
    between = np.array([[0.5 if n == 2 else 0.0] for n in shape])
    found = warp_linear(image, Warp(np.hstack([np.eye(3), between]), (1, 1, 1)))
    block = image[0][tuple(slice(0, 2 if n == 2 else 1) for n in shape)]
    assert found.item() == pytest.approx(block.mean().item())


def test_shift_reads_exact_voxels_and_zeros_outside():
    image = torch.arange(5.0).reshape(1, 5, 1).repeat(1, 1, 3)
    warp = Warp(np.array([[1.0, 0, -1], [0, 1, 0.5]]), (7, 3))
    assert warp_linear(image, warp)[0, :, 0].tolist() == [0, 0, 1, 2, 3, 4, 0]
    half = Warp(np.array([[0.5, 0, -0.5], [0, 1, 0]]), (4, 3))
    assert warp_linear(image, half)[0, :, 1].tolist() == [0, 0, 0.5, 1]
    (near,) = warp_nearest([image[0].int()], half)
    assert near[:, 1].tolist() == [0, 0, 1, 1]
