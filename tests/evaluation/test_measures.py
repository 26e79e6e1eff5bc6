import numpy as np
import pytest

from lesionseg.evaluation.measures import measure_extent as measure


def test_a_box_by_hand():
    voxels = np.argwhere(np.ones((3, 2, 6), dtype=bool))
    found = measure(voxels, (4.0, 1.0, 1.0))
    diagonal = np.hypot(1, 5)
    # edge to edge along the diagonal of centres: a pixel's width in that direction is added
    assert found.long_axis_mm == pytest.approx(diagonal + (1 + 5) / diagonal)
    assert found.slices == 3
    assert not found.near_resolution


def test_a_single_voxel():
    found = measure(np.array([[3, 4, 5]]), (2.0, 1.0, 0.5))
    assert (found.slices, found.long_axis_mm, found.short_axis_mm) == (1, 1.0, 0.5)
    assert found.near_resolution


@pytest.mark.parametrize("seed", range(30))
def test_axes_and_slices_equal_a_naive_search(seed):
    rng = np.random.default_rng(seed)
    dims = int(rng.integers(2, 4))
    spacing = tuple(rng.choice([0.5, 1.0, 2.5], dims).tolist())
    mask = rng.random(tuple(rng.integers(1, 8, dims))) < 0.4
    mask.flat[0] = True
    voxels = np.argwhere(mask)
    found = measure(voxels, spacing)
    plane, pixel = voxels, np.array(spacing)
    if dims == 3:
        axis = int(np.argmax(spacing))
        layers = np.unique(voxels[:, axis], return_counts=True)
        assert found.slices == len(layers[0])
        fullest = layers[0][layers[1].argmax()]
        plane = np.delete(voxels[voxels[:, axis] == fullest], axis, axis=1)
        pixel = np.delete(pixel, axis)
    apart = (plane[:, None] - plane[None]) * pixel
    squared = (apart**2).sum(-1)
    if not squared.any():
        assert (found.long_axis_mm, found.short_axis_mm) == (pixel.max(), pixel.min())
        return
    widths = set()
    for pair in np.argwhere(np.isclose(squared, squared.max())):  # any of the longest will do
        along = apart[tuple(pair)] / np.sqrt(squared.max())
        across = np.array([-along[1], along[0]])
        long_mm = np.sqrt(squared.max()) + np.abs(along) @ pixel
        short_mm = np.ptp(plane * pixel @ across) + np.abs(across) @ pixel
        widths.add((round(long_mm, 9), round(short_mm, 9)))
    assert (round(found.long_axis_mm, 9), round(found.short_axis_mm, 9)) in widths
