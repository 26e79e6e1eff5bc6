import numpy as np
import pytest

from lesionseg.evaluation.surface import surface_distances, surface_voxels


def naive_surface(mask):
    """Voxels with a face neighbour that is outside the mask or outside the array."""
    found = []
    for voxel in np.argwhere(mask):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                other = voxel.copy()
                other[axis] += step
                inside = 0 <= other[axis] < mask.shape[axis]
                if not inside or not mask[tuple(other)]:
                    found.append(tuple(voxel))
    return sorted(set(found))


def naive_distances(a, b, spacing):
    a, b = np.array(naive_surface(a)) * spacing, np.array(naive_surface(b)) * spacing
    return np.array([min(np.linalg.norm(p - q) for q in b) for p in a])


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
    to_b, to_a = naive_distances(a, b, spacing), naive_distances(b, a, spacing)
    np.testing.assert_allclose(found.from_reference_mm, to_b)
    np.testing.assert_allclose(found.from_prediction_mm, to_a)
    assert found.hd95_mm() == pytest.approx(max(np.percentile(to_b, 95), np.percentile(to_a, 95)))
    within = (to_b <= 1.0).sum() + (to_a <= 1.0).sum()
    assert found.surface_dice(1.0) == pytest.approx(within / (len(to_a) + len(to_b)))


def test_surface_includes_the_edge_of_the_image():
    mask = np.ones((3, 3, 3), dtype=bool)
    assert len(surface_voxels(np.argwhere(mask))) == 26


def test_equal_masks():
    voxels = np.argwhere(blob(3, (6, 7, 8)))
    found = surface_distances(voxels, voxels, (2.0, 1.0, 1.0))
    assert found.surface_dice(0.0) == 1.0
    assert found.hd95_mm() == 0.0


def test_a_shift_of_one_slice_by_hand():
    a, b = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    a[2, 2:6] = b[3, 2:6] = True
    found = surface_distances(np.argwhere(a), np.argwhere(b), (2.5, 1.0))
    assert found.hd95_mm() == 2.5
    assert found.surface_dice(2.5) == 1.0
    assert found.surface_dice(2.4) == 0.0


def test_an_empty_mask_has_no_surface():
    some, none = np.array([[1, 1]]), np.zeros((0, 2), dtype=np.int64)
    assert surface_distances(some, none, (1.0, 1.0)) is None
    assert surface_distances(none, some, (1.0, 1.0)) is None
