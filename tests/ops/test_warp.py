"""Moved tiles: the compiled loops, torch and MONAI read the same voxels."""

import numpy as np
import pytest
import torch
from monai.transforms import Affine

from lesionseg.errors import GeometryError
from lesionseg.ops.warp import (
    Warp,
    warp_linear,
    warp_linear_plain,
    warp_nearest,
    warp_nearest_plain,
)

SHAPES = {2: ((19, 23), (16, 15)), 3: ((13, 17, 11), (9, 12, 14))}


def random_warp(rng, dims, bent):
    source, out = SHAPES[dims]
    linear = np.eye(dims) + rng.uniform(-0.3, 0.3, (dims, dims))
    middle = (np.array(source) - 1) / 2 - linear @ ((np.array(out) - 1) / 2)
    matrix = np.concatenate([linear, middle[:, None]], axis=1)
    bend = torch.from_numpy(rng.uniform(-1, 1, (dims, *out)).astype(np.float32)) if bent else None
    return source, Warp(matrix, out, bend)


@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_compiled_loops_agree_with_torch(rng, dims, bent):
    for _ in range(5):
        source, warp = random_warp(rng, dims, bent)
        image = torch.from_numpy(rng.normal(size=(2, *source)).astype(np.float32))
        found, wanted = warp_linear(image, warp), warp_linear_plain(image, warp)
        # rounding may put a point on the other side of the outer edge
        close = torch.isclose(found, wanted, atol=2e-4)
        assert close.float().mean() > 0.999
        masks = [torch.arange(image[0].numel(), dtype=torch.int32).reshape(source), image[0] > 0]
        for mine, plain, mask in zip(
            warp_nearest(masks, warp), warp_nearest_plain(masks, warp), masks, strict=True
        ):
            assert mine.dtype == mask.dtype
            assert (mine == plain).float().mean() > 0.995


def test_a_shift_reads_exact_voxels_and_nothing_outside():
    image = torch.arange(5.0).reshape(1, 5, 1).repeat(1, 1, 3)
    warp = Warp(np.array([[1.0, 0, -1], [0, 1, 0.5]]), (7, 3))
    assert warp_linear(image, warp)[0, :, 0].tolist() == [0, 0, 1, 2, 3, 4, 0]
    half = Warp(np.array([[0.5, 0, -0.5], [0, 1, 0]]), (4, 3))
    assert warp_linear(image, half)[0, :, 1].tolist() == [0, 0, 0.5, 1]
    (near,) = warp_nearest([image[0].int()], half)
    assert near[:, 1].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("dims", [2, 3])
def test_the_same_affine_gives_monais_voxels(rng, dims):
    shape = SHAPES[dims][0]
    linear = np.eye(dims) + rng.uniform(-0.2, 0.2, (dims, dims))
    image = torch.from_numpy(rng.normal(size=(1, *shape)).astype(np.float32))
    square = np.eye(dims + 1)
    square[:dims, :dims] = linear
    theirs, _ = Affine(affine=square, padding_mode="zeros")(image)
    middle = (np.array(shape) - 1) / 2
    warp = Warp(np.concatenate([linear, (middle - linear @ middle)[:, None]], axis=1), shape)
    ours = warp_linear(image, warp)
    inner = (slice(None), *(slice(4, -4),) * dims)
    torch.testing.assert_close(ours[inner], theirs.as_tensor()[inner], atol=1e-4, rtol=1e-4)


def test_a_volume_of_one_slice_is_read_like_any_other(rng):
    image = torch.from_numpy(rng.normal(size=(1, 1, 6, 7)).astype(np.float32))
    same = Warp(np.eye(3, 4), (1, 6, 7))
    torch.testing.assert_close(warp_linear(image, same), image)
    assert torch.equal(warp_nearest([image[0]], same)[0], image[0])


def test_what_does_not_fit_is_refused():
    with pytest.raises(GeometryError, match="warp"):
        Warp(np.eye(3), (4, 4, 4))
    with pytest.raises(GeometryError, match="warp"):
        Warp(np.eye(2, 3), (4, 4), torch.zeros(2, 4, 5))
