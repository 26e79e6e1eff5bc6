"""Extent of a lesion and surfaces of two masks, compared with values by hand and with MONAI."""

import numpy as np
import pytest
import torch
from monai.metrics.utils import get_edge_surface_distance

from lesionseg.evaluation.measures import measure_extent as measure
from lesionseg.evaluation.measures import surface_scores


@pytest.mark.parametrize("seed", range(30))
def test_axes_and_slices_equal_a_naive_search(seed):
    rng = np.random.default_rng(seed)
    dims = int(rng.integers(2, 4))
    spacing = tuple(rng.choice([0.5, 1.0, 2.5], dims).tolist())
    mask = rng.random(tuple(rng.integers(1, 8, dims))) < 0.4
    mask.flat[0] = True
    found = measure(np.argwhere(mask), spacing)
    pixel = np.array(spacing)
    if dims == 3:
        axis = int(np.argmax(spacing))
        layers = np.moveaxis(mask, axis, 0)
        assert found.slices == layers.any(axis=(1, 2)).sum()
        mask = max(layers, key=np.count_nonzero)
        pixel = np.delete(pixel, axis)
    places = np.argwhere(mask) * pixel
    apart = places[:, None] - places[None]
    length = np.linalg.norm(apart, axis=-1).max()
    expected = {(pixel.max(), pixel.min())} if length == 0 else set()
    for pair in np.argwhere(np.isclose(np.linalg.norm(apart, axis=-1), length or np.inf)):
        along = apart[tuple(pair)] / length  # any of the longest axes is correct
        across = np.array([-along[1], along[0]])
        short_mm = np.ptp(places @ across) + np.abs(across) @ pixel
        expected.add((round(length + np.abs(along) @ pixel, 9), round(short_mm, 9)))
    assert (round(found.long_axis_mm, 9), round(found.short_axis_mm, 9)) in expected
    assert measure(np.array([[3, 4, 5]]), (2.0, 1.0, 0.5)).near_resolution


# --- surfaces ---


def make_blob(seed, shape):
    mask = np.random.default_rng(seed).random(shape) < 0.35
    mask[tuple(slice(2, 6) for _ in shape)] = True
    return mask


def test_surface_scores_of_shifted_equal_and_empty_masks():
    line = np.array([[2, x] for x in range(2, 6)])
    shifted = np.add(line, [3, 0])
    assert surface_scores(line, shifted, (2.5, 1.0), 7.5) == (1.0, 7.5)
    assert surface_scores(line, shifted, (2.5, 1.0), 5.0)[0] == pytest.approx(0.5)
    assert surface_scores(line, shifted, (2.5, 1.0), 4.9)[0] == 0.0
    some = np.argwhere(make_blob(3, (6, 7, 8)))
    none = np.zeros((0, 3), dtype=np.int64)
    assert surface_scores(some, some, (2.0, 1.0, 1.0), 0.0) == (1.0, 0.0)
    assert surface_scores(some, none, (1.0, 1.0, 1.0), 1.0) is None
    assert surface_scores(none, some, (1.0, 1.0, 1.0), 1.0) is None


@pytest.mark.filterwarnings("ignore::FutureWarning")  # MONAI warns about itself
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (3.0, 0.7, 1.1), (0.5, 3.0, 0.5)])
@pytest.mark.parametrize("seed", [0, 1])
def test_surface_scores_equal_monai_on_padded_masks(seed, spacing):
    shape = (9, 10, 8)[: len(spacing)]
    a = np.pad(make_blob(seed, shape), 1)
    b = np.pad(make_blob(seed + 10, shape), 1)
    _, distances, areas = get_edge_surface_distance(
        torch.from_numpy(b),
        torch.from_numpy(a),
        spacing=spacing,
        use_subvoxels=True,
        symmetric=True,
    )
    areas = [part[part > 0] for part in areas]
    within = sum(float(s[d <= 1.0001].sum()) for s, d in zip(areas, distances, strict=True))
    found, hd95 = surface_scores(np.argwhere(a), np.argwhere(b), spacing, 1.0)
    assert found == pytest.approx(within / sum(float(s.sum()) for s in areas), rel=1e-5)
    farthest = []
    for distance, area in zip(distances, areas, strict=True):
        order = np.argsort(distance.numpy())
        share = np.cumsum(area.numpy()[order]) / float(area.sum())
        farthest.append(distance.numpy()[order][np.searchsorted(share, 0.95)])
    assert hd95 == pytest.approx(max(farthest), rel=1e-5)


def test_hd95_by_area_can_be_0_if_border_voxels_differ_by_a_voxel():
    """Compare a cube of 8³ voxels with the cube without 16 voxels of one face: Dice 0.984."""
    a = np.ones((8, 8, 8), bool)
    b = a.copy()
    b[0, :2] = False
    _, hd95 = surface_scores(np.argwhere(a), np.argwhere(b), (1.5, 1.5, 1.5), 1.0)
    assert hd95 == 0.0  # less than 5 % of the area moved; 1.5 by border voxels
