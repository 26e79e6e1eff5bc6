"""Augmentation: movements of image and masks, and changes of intensity."""

import math

import numpy as np
import pytest
import torch

from lesionseg.config import AugmentConfig
from lesionseg.data import augment
from lesionseg.data.augment import (
    AugmentationParams,
    Intensity,
    SpatialTransform,
    apply_augmentation,
    build_augmentation,
)
from lesionseg.data.augment import tile_generator as generator
from lesionseg.data.tiling import read_tile
from lesionseg.errors import ConfigError

FIXED = ("flip_probability", "scale", "shear", "elastic_share")


@pytest.fixture
def make_augmentation(plan, monkeypatch):
    """Build an augmentation of settings. `FIXED` constants are changed for the test."""

    def make(plan=plan, spatial_probability=0, intensity_probability=0, **chosen):
        for name in chosen.keys() & FIXED:
            monkeypatch.setattr(augment, name.upper(), chosen.pop(name))
        chosen["spatial_probability"] = spatial_probability
        chosen["intensity_probability"] = intensity_probability
        return build_augmentation(AugmentConfig.of(**chosen), plan)

    return make


def make_tile(shape=(16, 20, 24)):
    """Make a bright lesion in the middle with an id above 65535, and a dark one in the corner."""
    instances = np.zeros(shape, np.int32)
    instances[tuple(slice(n // 4, 3 * n // 4) for n in shape)] = 70001
    instances[tuple(slice(0, 3) for _ in shape)] = 2
    labels = np.select([instances == 70001, instances == 2], [2, 1]).astype(np.uint8)
    return {
        "image": torch.from_numpy((instances > 2)[None].astype(np.float32)),
        "labels": torch.from_numpy(labels),
        "instances": torch.from_numpy(instances),
        "valid": torch.ones(shape, dtype=torch.bool),
    }


def augment_tile(augmentation, tile, seed=0):
    """Augment a tile that is surrounded by zeros."""
    change = augmentation.draw(generator(seed))
    shape = tuple(tile["labels"].shape)
    starts, stops = np.transpose(change.spatial.source(shape))
    piece = {}
    for key, tensor in tile.items():
        piece[key] = torch.from_numpy(read_tile(tensor.numpy(), starts, stops - starts))
    return apply_augmentation(piece, change, shape)


def test_image_and_masks_move_together(make_augmentation):
    changes = make_augmentation(spatial_probability=1, scale=0.1)
    tile = make_tile()
    for seed in range(5):
        changed = augment_tile(changes, tile, seed)
        lesion = changed["instances"] == 70001
        assert (lesion == (changed["image"][0] > 0.5)).float().mean() > 0.98
        assert set(changed["instances"].unique().tolist()) <= {0, 2, 70001}
        assert torch.equal(lesion, changed["labels"] == 2)
        assert torch.equal(changed["instances"] == 2, changed["labels"] == 1)


def test_augmented_tile_keeps_keys_shapes_and_types(make_augmentation):
    tile = make_tile()
    changed = augment_tile(make_augmentation(spatial_probability=1, intensity_probability=1), tile)
    assert changed.keys() == tile.keys()
    for key, tensor in changed.items():
        assert type(tensor) is torch.Tensor
        assert (tensor.shape, tensor.dtype) == (tile[key].shape, tile[key].dtype)
        assert tensor.is_contiguous()
    assert torch.isfinite(changed["image"]).all()
    assert not torch.equal(changed["image"], tile["image"])


def test_voxels_from_outside_the_volume_are_zero_and_not_valid(make_augmentation):
    tile = make_tile()
    tile["image"] += 5
    changes = make_augmentation(spatial_probability=1, rotate_degrees=40, flip_probability=0)
    changed = augment_tile(changes, tile)
    assert (~changed["valid"] & (changed["image"][0] == 0)).any()
    assert changed["image"][0][changed["valid"]].min() > 0.5


@pytest.mark.parametrize(
    ("spacing", "tile", "is_flat"),
    [
        ((1.0, 1.0, 1.0), (1, 80, 80), True),
        ((1.0, 1.0, 1.0), (20, 80, 80), True),
        ((5.0, 1.0, 1.0), (16, 20, 24), True),
        ((1.0, 1.0, 1.0), (16, 20, 24), False),
    ],
)
def test_thin_volumes_and_thick_slices_are_moved_only_in_their_plane(
    plan, draw_transforms, spacing, tile, is_flat
):
    changed = plan.with_(spacing_mm=spacing, tile_shape=tile)
    for spatial in draw_transforms(changed, 5, elastic_share=1):
        assert (np.abs(spatial.linear[0]).tolist() == [1, 0, 0]) == is_flat
        assert spatial.linear[1, 2] != 0
        bent = np.abs(spatial.deformation.knots).max(axis=(1, 2, 3)) > 0
        assert bent.tolist() == [not is_flat, True, True]


def test_short_side_of_a_narrow_picture_is_not_turned_into_its_long_side(
    draw_transforms, xray_plan
):
    (spatial,) = draw_transforms(xray_plan.with_(tile_shape=(400, 50)), 1)
    assert spatial.linear[1].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("spacing", "tile"), [((1.0, 1.0, 1.0), (20, 60, 60)), ((4.0, 1.0, 1.0), (60, 20, 20))]
)
def test_extent_of_usual_tiles_does_not_limit_their_movement(plan, draw_transforms, spacing, tile):
    """An extent of a third is enough, and thick slices do not make the plane a thin axis."""
    plans = [plan.with_(spacing_mm=spacing, tile_shape=shape) for shape in (tile, (60, 60, 60))]
    first, second = (draw_transforms(one, 1)[0].linear for one in plans)
    np.testing.assert_array_equal(first, second)


@pytest.fixture
def xray_plan(plan):
    return plan.with_(dims=2, spacing_mm=(0.2, 0.2), modality="xray", tile_shape=(32, 32))


def test_no_augmentation_is_built_if_nothing_changes(make_augmentation, xray_plan):
    assert make_augmentation(xray_plan, flip_probability=1.0) is None  # X-rays are not flipped
    assert make_augmentation(flip_axes=[]) is None


def test_pictures_in_colour_are_flipped_along_both_axes(make_augmentation, xray_plan):
    tile = make_tile((32, 32))
    flips = make_augmentation(xray_plan.with_(modality="colour"), flip_probability=1.0)
    flipped = augment_tile(flips, tile)
    assert torch.equal(flipped["labels"], tile["labels"].flip((0, 1)))


def test_given_axes_of_xrays_are_flipped(make_augmentation, xray_plan):
    tile = make_tile((32, 32))
    flips = make_augmentation(xray_plan, flip_axes=[1], flip_probability=1.0)
    flipped = augment_tile(flips, tile)
    assert torch.equal(flipped["labels"], tile["labels"].flip(1))
    assert torch.equal(flipped["image"], tile["image"].flip(2))
    with pytest.raises(ConfigError, match="flip_axes"):
        make_augmentation(xray_plan, flip_axes=(2,))


def test_constant_tile_stays_finite(make_augmentation):
    constant = {**make_tile(), "image": torch.zeros(1, 16, 20, 24)}
    changed = augment_tile(make_augmentation(intensity_probability=1), constant)
    assert torch.isfinite(changed["image"]).all()


@pytest.fixture
def draw_transforms(make_augmentation):
    """Draw the movements of the first `n` tiles."""

    def draw(plan, n=20, **chosen):
        changes = make_augmentation(plan, spatial_probability=1, **chosen)
        return [changes.draw(generator(i)).spatial for i in range(n)]

    return draw


def test_masks_are_read_at_the_positions_of_the_matrix(plan, draw_transforms):
    shape = (13, 15, 17)
    for spatial in [
        *draw_transforms(plan, 6, elastic_share=0),
        SpatialTransform((0, 2)),
        SpatialTransform(),
    ]:
        ranges = [np.arange(first, last) for first, last in spatial.source(shape)]
        ids = np.meshgrid(*ranges, indexing="ij")
        piece = {"image": torch.ones(1, *ids[0].shape)}
        piece |= {str(a): torch.from_numpy(np.ascontiguousarray(ids[a])) for a in range(3)}
        changed = apply_augmentation(piece, AugmentationParams(spatial, Intensity()), shape)
        for voxel in [(0, 0, 0), (3, 14, 8), (12, 7, 16)]:
            position = spatial.matrix(shape) @ [*voxel, 1]
            found = [int(changed[str(a)][voxel]) for a in range(3)]
            assert found == np.floor(position + 0.5).tolist()
        assert (changed["image"] - 1).abs().max() < 1e-5  # no corner is empty


def test_rotation_is_orthogonal_in_millimetres(plan, draw_transforms):
    spacing = np.array((2.0, 1.0, 1.5))
    fixed = dict.fromkeys(("scale", "shear", "elastic_share", "flip_probability"), 0)
    for spatial in draw_transforms(plan.with_(spacing_mm=tuple(spacing)), 5, **fixed):
        rotation = spatial.linear * spacing[:, None] / spacing
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
        largest = 3 * math.radians(20)
        assert np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)) <= largest


def change_intensity(image, **change):
    tile = {"image": torch.as_tensor(image, dtype=torch.float32)}
    shape = tile["image"].shape[1:]
    return apply_augmentation(
        tile, AugmentationParams(SpatialTransform(), Intensity(**change)), shape
    )["image"]


def test_blur_is_a_gaussian_with_a_sum_of_1():
    image = np.zeros((1, 21, 21))
    image[0, 10, 10] = 1
    blurred = change_intensity(image, blur=(1.0, 2.0))[0]
    middle = blurred[10, 10]
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-3)
    assert float(middle) == pytest.approx(1 / (2 * math.pi * 2), rel=0.01)
    assert float(blurred[12, 10] / middle) == pytest.approx(math.exp(-2), rel=1e-3)
    assert float(blurred[10, 12] / middle) == pytest.approx(math.exp(-0.5), rel=1e-3)


def test_contrast_scales_and_brightness_shifts_each_channel(rng):
    image = rng.normal(size=(2, 60, 60))
    changed = change_intensity(image, contrast=(1.5, 0.5), brightness=(1.0, -1.0))
    np.testing.assert_allclose(changed[0], 1.5 * image[0] + 1, atol=1e-5)
    np.testing.assert_allclose(changed[1], 0.5 * image[1] - 1, atol=1e-5)


def test_noise_has_its_standard_deviation_and_depends_on_the_seed(rng):
    image = rng.normal(size=(2, 60, 60))
    noisy = change_intensity(image, noise=0.3, seed=1)
    assert float((noisy - torch.from_numpy(image).float()).std()) == pytest.approx(0.3, rel=0.05)
    assert torch.equal(noisy, change_intensity(image, noise=0.3, seed=1))
    assert not torch.equal(noisy, change_intensity(image, noise=0.3, seed=2))
