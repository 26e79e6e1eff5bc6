import numpy as np
import pytest

from lesionseg.core import Geometry, Reference, Volume
from lesionseg.errors import GeometryError
from lesionseg.evaluation import PRESETS, evaluate_case
from lesionseg.evaluation.case.lesion_measures import lesion_contrasts
from lesionseg.ops.components import lesions_of


def scene(dims, spacing=1.0, size=31, level=110.0, second=None):
    """Noise of standard deviation 5 around 100 with a lesion in the middle."""
    shape = (size,) * dims
    geometry = Geometry.from_spacing(shape, (spacing,) * dims)
    image = np.random.default_rng(0).normal(100, 5, shape).astype(np.float32)
    labels = np.zeros(shape, np.uint8)
    middle = (slice(size // 2 - 1, size // 2 + 2),) * dims
    labels[middle] = 1
    image[middle] = level
    if second is not None:
        labels[second] = 1
        image[second] = 1e6
    return Reference(geometry, labels=labels), Volume(image[None], geometry)


def contrasts(reference, image):
    return lesion_contrasts(image, lesions_of(reference), reference.ignore)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("level", [110.0, 90.0])
def test_contrast_is_the_step_over_the_noise_with_its_sign(dims, level):
    (found,) = contrasts(*scene(dims, level=level))
    assert found == pytest.approx((level - 100) / 5, rel=0.25)


def test_scaling_the_image_changes_no_contrast():
    reference, image = scene(3)
    scaled = Volume(image.array * 7 - 300, image.geometry)
    assert contrasts(reference, scaled) == pytest.approx(contrasts(reference, image), rel=1e-4)


def test_a_neighbour_in_the_ring_is_left_out():
    near = (slice(14, 17), slice(14, 17), slice(19, 23))  # 3 mm beside the lesion, very bright
    alone = contrasts(*scene(3))[0]
    assert contrasts(*scene(3, second=near))[0] == pytest.approx(alone, rel=0.15)


def test_a_naive_ring_gives_the_same():
    reference, image = scene(3, spacing=1.3, size=19, second=(slice(1, 3),) * 3)
    lesions = lesions_of(reference)
    index = np.argwhere(np.ones(reference.geometry.shape, bool))
    for row, found in enumerate(contrasts(reference, image)):
        own = lesions.voxels_of(row)
        to_own = 1.3 * np.linalg.norm(index[:, None] - own[None], axis=-1).min(1)
        to_all = 1.3 * np.linalg.norm(index[:, None] - lesions.voxels[None], axis=-1).min(1)
        ring = image.array[0][tuple(index[(to_own <= 5) & (to_all > 2)].T)].astype(float)
        noise = 1.4826 * np.median(np.abs(ring - np.median(ring)))
        step = np.median(image.array[0][tuple(own.T)]) - np.median(ring)
        assert found == pytest.approx(step / noise)


def test_no_noise_or_no_ring_gives_no_contrast():
    reference, image = scene(3)
    flat = Volume(np.where(reference.labels, 9.0, 0.0).astype(np.float32)[None], image.geometry)
    assert contrasts(reference, flat) == [None]
    coarse, image = scene(3, spacing=8.0)
    assert contrasts(coarse, image) == [None]


def test_voxels_to_be_ignored_are_in_no_ring():
    reference, image = scene(3)
    half = np.zeros(reference.geometry.shape, bool)
    half[:15] = True
    spoilt = np.where(half, 1e6, image.array[0]).astype(np.float32)
    marked = Reference(reference.geometry, labels=reference.labels, ignore=half)
    (found,) = contrasts(marked, Volume(spoilt[None], reference.geometry))
    assert found == pytest.approx(2, rel=0.3)


def test_an_image_on_another_grid_is_refused_and_without_one_contrast_is_none():
    reference, image = scene(3)
    judge = {"preset": PRESETS["lesionseg"], "case": "a"}
    assert evaluate_case(reference, None, **judge).lesions[0].contrast is None
    assert evaluate_case(reference, None, image=image, **judge).lesions[0].contrast > 1
    other = Volume(image.array[:, 1:], Geometry.from_spacing((30, 31, 31), (1, 1, 1)))
    with pytest.raises(GeometryError, match="image is not on the grid"):
        evaluate_case(reference, None, image=other, **judge)
