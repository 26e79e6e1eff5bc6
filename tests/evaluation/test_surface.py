import itertools

import numpy as np
import pytest

from lesionseg.evaluation.measures import surface_scores


def corners(mask):
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


def test_a_shift_by_hand():
    a, b = np.zeros((9, 8), bool), np.zeros((9, 8), bool)
    a[2, 2:6] = b[5, 2:6] = True
    masks = np.argwhere(a), np.argwhere(b), (2.5, 1.0)
    assert surface_scores(*masks, 7.5) == (1.0, 7.5)
    assert surface_scores(*masks, 5.0)[0] == pytest.approx(0.5)
    assert surface_scores(*masks, 4.9)[0] == 0.0


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of MONAI in itself
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (3.0, 0.7, 1.1), (0.5, 3.0, 0.5)])
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_monai_on_padded_masks(seed, spacing):
    import torch
    from monai.metrics.utils import get_edge_surface_distance

    shape = (9, 10, 8)[: len(spacing)]
    a, b = (np.pad(blob(s, shape), 1) for s in (seed, seed + 10))
    _, distances, areas = get_edge_surface_distance(
        *(torch.from_numpy(m) for m in (b, a)), spacing=spacing, use_subvoxels=True, symmetric=True
    )
    areas = [part[part > 0] for part in areas]
    within = sum(float(s[d <= 1.0001].sum()) for s, d in zip(areas, distances, strict=True))
    found, hd95 = surface_scores(np.argwhere(a), np.argwhere(b), spacing, 1.0)
    assert found == pytest.approx(within / sum(float(s.sum()) for s in areas), rel=1e-5)
    # no distance but one between corners
    ends = [corners(m) * spacing for m in (a, b)]
    apart = np.linalg.norm(ends[0][:, None] - ends[1][None], axis=-1)
    assert np.isclose(np.concatenate([apart.min(0), apart.min(1)]), hd95).any()


def test_equal_and_empty_masks():
    some, none = np.argwhere(blob(3, (6, 7, 8))), np.zeros((0, 3), dtype=np.int64)
    assert surface_scores(some, some, (2.0, 1.0, 1.0), 0.0) == (1.0, 0.0)
    assert surface_scores(some, none, (1.0, 1.0, 1.0), 1.0) is None
    assert surface_scores(none, some, (1.0, 1.0, 1.0), 1.0) is None
