"""The body of a scan: its mask, its box, and scans without a visible body."""

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.inference.body import find_body

SHAPE = (40, 60, 70)
EVERYTHING = tuple(slice(0, n) for n in SHAPE)


def body_of(*channels, modality="mri", mm=2.0):
    """Find the body in channels."""
    array = np.stack(channels).astype(np.float32)
    geometry = Geometry.from_spacing(array.shape[1:], (mm,) * (array.ndim - 1))
    return find_body(Volume(array, geometry), modality)


def make_ball(centre, radius):
    grid = np.stack(np.indices(SHAPE), -1)
    return ((grid - centre) ** 2).sum(-1) < radius**2


HEAD = make_ball((20, 30, 35), 15)


@pytest.fixture
def head(rng):
    """Return a head of intensity 300 with a dark hollow, in air with Rician noise of 4."""
    air = np.hypot(*rng.normal(0, 4, (2, *SHAPE)))
    return np.where(HEAD & ~make_ball((20, 28, 35), 6), rng.normal(300, 30, SHAPE), air)


def test_mask_contains_tissue_hollows_and_a_margin_but_not_air_or_noise(head):
    ear = make_ball((8, 12, 10), 4.2)
    head[ear] = 250
    head[36, 55, 66] = 40  # noise above the limit of tissue, which is 19
    body = body_of(head)
    mask = body.mask(EVERYTHING)
    assert mask.shape == SHAPE
    assert mask[make_ball((20, 30, 35), 17) | ear].all()
    assert not mask[36, 55, 66]
    assert not mask[:, 52:].any()
    assert mask.mean() < 0.4
    assert all(s.start <= c < s.stop for s, c in zip(body.box, (20, 30, 35), strict=True))


def test_mask_contains_lungs_that_reach_the_end_of_the_volume(rng):
    image = np.full(SHAPE, -1000.0) + rng.normal(0, 20, SHAPE)
    image[:, 15:50, 15:60] = 40
    image[:, 22:42, 22:35] = -850  # from the first slice to the last
    mask = body_of(image, modality="ct").mask(EVERYTHING)
    assert mask[:, 15:50, 15:60].all()
    assert not mask[:, :8].any()


@pytest.mark.parametrize("radius_mm", [2, 3, 4])
def test_mask_contains_a_nodule_that_is_alone_in_the_lung_of_a_cropped_ct(rng, radius_mm):
    image = rng.normal(-850, 40, SHAPE)
    image[:, :, :16] = 40  # the chest wall
    nodule = make_ball((20, 33, 50), radius_mm + 0.1)
    image[nodule] = 30
    mask = body_of(image, modality="ct", mm=1.0).mask(EVERYTHING)
    assert mask[nodule].all()
    assert not mask[:12, :16, 32:].any()  # air remains outside


def test_mask_contains_small_bright_tissue_that_is_alone_in_an_mri(head):
    nodule = make_ball((36, 55, 66), 1.5)  # less than a hundredth of the head
    head[nodule] = 100
    mask = body_of(head).mask(EVERYTHING)
    assert mask[nodule].all()
    assert not mask[:12, 45:, 55:].any()


@pytest.mark.parametrize(
    ("array", "modality"),
    [
        (np.full(SHAPE, 7.0), "mri"),  # constant
        (np.random.default_rng(0).normal(0, 1, SHAPE), "mri"),  # standardised, air is not lowest
        (np.random.default_rng(0).normal(1000, 9, SHAPE), "ct"),  # no Hounsfield units
        (np.full(SHAPE, -1000.0), "ct"),
        (HEAD[20] * 300.0, "xray"),
    ],
)
def test_scan_without_visible_body_has_no_mask(array, modality):
    assert body_of(array, modality=modality) is None


def test_mask_contains_the_tissue_of_every_channel(head):
    nose = make_ball((20, 10, 35), 6)
    assert body_of(head, 500 * nose).mask(EVERYTHING)[nose].all()
    # all values of PET are above the limit of CT in Hounsfield units, which is not used for PET
    ct = np.where(head > 100, 40.0, -1000.0)
    pet = np.where(head > 100, 3.0, 0.0)
    alone, both = (body_of(*c, modality="ct").mask(EVERYTHING) for c in ([ct], [ct, pet]))
    np.testing.assert_array_equal(both, alone)


def test_every_box_that_contains_body_is_touched(head, rng):
    body = body_of(head)
    mask = body.mask(EVERYTHING)
    for _ in range(300):
        ends = np.sort(rng.integers(0, SHAPE, (2, 3)), axis=0).T.tolist()
        box = tuple(slice(first, last + 1) for first, last in ends)
        assert body.touches(box) or not mask[box].any()  # blocks may reach beyond the box
    assert not body.touches((slice(0, 4),) * 3)


def test_rows_of_zeros_are_outside_to_the_voxel(rng):
    stripped = np.where(HEAD, rng.normal(300, 30, SHAPE), 0.0)
    body = body_of(stripped)
    assert body.box == (slice(6, 35), slice(16, 45), slice(21, 50))
    mask = body.mask(EVERYTHING)
    assert mask[stripped != 0].all()
    assert mask.sum() == mask[body.box].sum()
    for box in ((slice(10, 33), slice(0, 60), slice(3, 44)), (slice(36, 40), *body.box[1:])):
        assert np.array_equal(body.mask(box), mask[box])
    for rows, there in ((6, False), (7, True)):
        assert body.touches((slice(0, rows), *EVERYTHING[1:])) == there
