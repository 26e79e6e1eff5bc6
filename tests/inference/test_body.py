import numpy as np
import pytest
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.inference.body import Body, find_body

SHAPE = (40, 60, 70)


def _volume(array: NDArray[np.float64], *, spacing_mm: float = 2.0) -> Volume:
    geometry = Geometry.from_spacing(array.shape, (spacing_mm,) * array.ndim)
    return Volume(array[None].astype(np.float32), geometry)


def _ball(centre: tuple[float, ...], radius: float) -> NDArray[np.bool_]:
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1)
    return np.asarray(((grid - centre) ** 2).sum(-1) < radius**2)


def _head(rng: np.random.Generator) -> NDArray[np.float64]:
    """A head of 300 in air of Rician noise 4, with a dark hollow."""
    air = np.abs(rng.normal(0, 4, SHAPE) + 1j * rng.normal(0, 4, SHAPE))
    tissue = _ball((20, 30, 35), 15) & ~_ball((20, 28, 35), 6)
    return np.where(tissue, rng.normal(300, 30, SHAPE), air)


def _mask(body: Body) -> NDArray[np.bool_]:
    return body.mask(tuple(slice(0, n) for n in SHAPE))


def test_tissue_hollows_and_a_margin_are_inside_and_air_is_not(rng: np.random.Generator) -> None:
    body = find_body(_volume(_head(rng)), "mri")
    assert body is not None
    mask = _mask(body)
    assert mask.shape == SHAPE
    assert mask[_ball((20, 30, 35), 17)].all()
    assert not mask[:, :8].any()
    assert mask.mean() < 0.4
    assert all(s.start <= c < s.stop for s, c in zip(body.box, (20, 30, 35), strict=True))


def test_a_small_second_piece_stays_and_a_crumb_does_not(rng: np.random.Generator) -> None:
    image = _head(rng)
    image[_ball((8, 12, 10), 4.2)] = 250  # an ear, say
    image[36, 55, 66] = 400  # a spike of noise
    body = find_body(_volume(image), "mri")
    assert body is not None
    assert _mask(body)[_ball((8, 12, 10), 4.2)].all()
    assert not _mask(body)[36, 55, 66]


def test_lungs_open_to_the_volumes_end_are_inside(rng: np.random.Generator) -> None:
    image = np.full(SHAPE, -1000.0) + rng.normal(0, 20, SHAPE)
    image[:, 15:50, 15:60] = 40
    image[:, 22:42, 22:35] = -850  # from the first slice to the last
    body = find_body(_volume(image), "ct")
    assert body is not None
    assert _mask(body)[:, 15:50, 15:60].all()
    assert not _mask(body)[:, :8].any()


@pytest.mark.parametrize(
    ("array", "modality"),
    [
        (np.full(SHAPE, 7.0), "mri"),  # constant
        (np.zeros(SHAPE), "mri"),
        (np.random.default_rng(0).normal(0, 1, SHAPE), "mri"),  # standardised, air is not lowest
        (np.random.default_rng(0).normal(1000, 9, SHAPE), "ct"),  # no Hounsfield units
        (np.full(SHAPE, -1000.0), "ct"),
        (_ball((20, 30, 35), 15)[20] * 300.0, "xray"),
    ],
)
def test_where_next_to_nothing_or_all_is_body_there_is_no_mask(
    array: NDArray[np.float64], modality: str
) -> None:
    assert find_body(_volume(array), modality) is None  # type: ignore[arg-type]


def test_any_channel_may_show_tissue(rng: np.random.Generator) -> None:
    one, other = _head(rng), np.zeros(SHAPE)
    other[_ball((20, 10, 35), 6)] = 500
    geometry = Geometry.from_spacing(SHAPE, (2.0, 2.0, 2.0))
    body = find_body(Volume(np.stack([one, other]).astype(np.float32), geometry), "mri")
    assert body is not None
    assert _mask(body)[_ball((20, 10, 35), 6)].all()


def test_a_box_touches_the_body_where_the_mask_says_so(rng: np.random.Generator) -> None:
    body = find_body(_volume(_head(rng)), "mri")
    assert body is not None
    mask = _mask(body)
    for _ in range(300):
        start = [int(rng.integers(0, n - 3)) for n in SHAPE]
        box = tuple(
            slice(s, int(rng.integers(s + 1, n + 1))) for s, n in zip(start, SHAPE, strict=True)
        )
        # never left out where there is body; blocks may stick out of the box
        assert body.touches(box) or not mask[box].any()
    assert not body.touches((slice(0, 4), slice(0, 4), slice(0, 4)))


def test_rows_of_nothing_are_outside_to_the_voxel(rng: np.random.Generator) -> None:
    stripped = np.where(_ball((20, 30, 35), 15), rng.normal(300, 30, SHAPE), 0.0)
    body = find_body(_volume(stripped), "mri")
    assert body is not None
    assert body.box == (slice(6, 35), slice(16, 45), slice(21, 50))
    mask = _mask(body)
    assert mask[stripped != 0].all()
    assert mask.sum() == mask[body.box].sum()
    for box in ((slice(10, 33), slice(0, 60), slice(3, 44)), (slice(36, 40), *body.box[1:])):
        assert np.array_equal(body.mask(box), mask[box])
    assert not body.touches((slice(0, 6), slice(0, 60), slice(0, 70)))
    assert body.touches((slice(0, 7), slice(0, 60), slice(0, 70)))
