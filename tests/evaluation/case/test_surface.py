import itertools

import numpy as np
import pytest

from lesionseg.evaluation.case.surface import nearest_mm, surface_distances
from lesionseg.evaluation.case.surfels import surfel_areas, surfels_of


def naive_corners(mask):
    """Grid corners whose neighbouring voxels are neither all inside nor all outside."""
    padded = np.pad(mask, 1)
    found = []
    for corner in itertools.product(*[range(n + 1) for n in mask.shape]):
        around = padded[tuple(slice(c, c + 2) for c in corner)]
        if 0 < around.sum() < around.size:
            found.append(corner)
    return np.array(found)


def blob(seed, shape):
    mask = np.random.default_rng(seed).random(shape) < 0.35
    mask[tuple(slice(2, 6) for _ in shape)] = True
    return mask


@pytest.mark.parametrize(
    ("shape", "spacing"), [((9, 10), (1.0, 1.0)), ((7, 8, 9), (3.0, 0.7, 1.1))]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_distances_equal_brute_force(shape, spacing, seed):
    a, b = blob(seed, shape), blob(seed + 10, shape)
    found = surface_distances(np.argwhere(a), np.argwhere(b), spacing)
    ends = [naive_corners(m) * spacing for m in (a, b)]
    apart = np.linalg.norm(ends[0][:, None] - ends[1][None], axis=-1)
    np.testing.assert_allclose(found.reference.distances_mm, np.sort(apart.min(1)))
    np.testing.assert_allclose(found.prediction.distances_mm, np.sort(apart.min(0)))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_area_of_a_box_is_that_of_its_faces_with_the_edges_cut_off(size):
    voxels = np.argwhere(np.ones((size, size, size), dtype=bool))
    areas = surfels_of(voxels, (1.0, 1.0, 1.0)).areas
    face, edge, corner = (size - 1) ** 2, (size - 1) * np.sqrt(0.5), np.sqrt(3) / 8
    assert areas.sum() == pytest.approx(6 * face + 12 * edge + 8 * corner)


def test_length_of_a_square_contour():
    voxels = np.argwhere(np.ones((3, 3), dtype=bool))
    assert surfels_of(voxels, (1.0, 1.0)).areas.sum() == pytest.approx(4 * 2 + 4 * np.sqrt(0.5))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.7, 1.1), (0.5, 2.0)])
def test_a_neighbourhood_has_the_area_of_its_complement(spacing):
    areas = surfel_areas(spacing)
    np.testing.assert_allclose(areas, areas[::-1])
    assert areas[0] == 0.0
    assert (areas[1:-1] > 0).all()


def test_surface_includes_the_edge_of_the_image():
    voxels = np.argwhere(np.ones((3, 3, 3), dtype=bool))
    assert len(surfels_of(voxels, (1.0, 1.0, 1.0)).areas) == 4**3 - 2**3


def test_equal_masks():
    voxels = np.argwhere(blob(3, (6, 7, 8)))
    found = surface_distances(voxels, voxels, (2.0, 1.0, 1.0))
    assert found.surface_dice(0.0) == 1.0
    assert found.hd95_mm() == 0.0


def test_a_shift_by_hand():
    a, b = np.zeros((9, 8), bool), np.zeros((9, 8), bool)
    a[2, 2:6] = b[5, 2:6] = True
    found = surface_distances(np.argwhere(a), np.argwhere(b), (2.5, 1.0))
    assert found.hd95_mm() == 7.5
    assert found.surface_dice(7.5) == 1.0
    assert found.surface_dice(5.0) == pytest.approx(0.5)
    assert found.surface_dice(4.9) == 0.0


def test_the_percentile_weighs_elements_by_their_area():
    a = np.argwhere(np.ones((4, 4), dtype=bool))
    found = surface_distances(a, a[a[:, 0] < 3], (1.0, 1.0))
    weighed = np.repeat(
        found.reference.distances_mm, np.rint(found.reference.areas * 1000).astype(int)
    )
    assert found.reference.percentile_mm(95) == np.percentile(weighed, 95, method="inverted_cdf")


def test_an_empty_mask_has_no_surface():
    some, none = np.array([[1, 1]]), np.zeros((0, 2), dtype=np.int64)
    assert surface_distances(some, none, (1.0, 1.0)) is None
    assert surface_distances(none, some, (1.0, 1.0)) is None


@pytest.mark.parametrize("seed", range(60))
def test_nearest_points_near_and_far_equal_brute_force(seed):
    rng = np.random.default_rng(seed)
    dims = int(rng.integers(2, 4))
    spacing = rng.choice([0.4, 0.7, 1.0, 1.3, 3.0, 5.0], dims)
    reach = rng.integers(1, rng.choice([4, 40, 90]), dims)
    points, others = (np.unique(rng.integers(0, reach + 1, (40, dims)), axis=0) for _ in range(2))
    others = others + rng.integers(-50, 50, dims)
    apart = np.linalg.norm((points[:, None] - others[None]) * spacing, axis=-1)
    np.testing.assert_allclose(nearest_mm(points, others, spacing), apart.min(1), rtol=1e-12)


def test_no_grid_is_turned_wrong():
    # an axis each: what lies along one must not be taken for another
    for axis, mm in enumerate((5.0, 1.0, 0.5)):
        other = np.zeros((1, 3), np.int64)
        other[0, axis] = 7
        found = nearest_mm(np.zeros((1, 3), np.int64), other, (5.0, 1.0, 0.5))
        assert found == pytest.approx(7 * mm)
