import math

import numpy as np
import pytest
import torch

from lesionseg.config import AugmentConfig
from lesionseg.data import augment
from lesionseg.data.augment import Change, Intensity, Movement, apply, build_augmentation
from lesionseg.data.augment import tile_generator as generator
from lesionseg.data.tiling import read_tile
from lesionseg.errors import ConfigError

FIXED = ("flip_probability", "scale", "shear", "elastic_share")


@pytest.fixture
def built(plan, monkeypatch):
    """The augmentation of these settings; what is no setting is changed for this test."""

    def make(plan=plan, spatial_probability=0, intensity_probability=0, **chosen):
        for name in chosen.keys() & FIXED:
            monkeypatch.setattr(augment, name.upper(), chosen.pop(name))
        chosen["spatial_probability"] = spatial_probability
        chosen["intensity_probability"] = intensity_probability
        return build_augmentation(AugmentConfig.of(**chosen), plan)

    return make


def make_tile(shape=(16, 20, 24)):
    """A bright lesion in the middle, its id beyond 16 bits, and a dark one in the corner."""
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


def augmented(augmentation, tile, seed=0):
    """A tile in the middle of nothing, changed."""
    change, shape = augmentation.draw(generator(seed)), tuple(tile["labels"].shape)
    starts, stops = np.transpose(change.movement.source(shape))
    piece = {
        k: torch.from_numpy(read_tile(t.numpy(), starts, stops - starts)) for k, t in tile.items()
    }
    return apply(piece, change, shape)


def test_image_and_masks_move_together_in_their_types_and_plain_tensors(built):
    changes, tile = built(spatial_probability=1, scale=0.1), make_tile()
    for seed in range(5):
        changed = augmented(changes, tile, seed)
        lesion = changed["instances"] == 70001
        assert (lesion == (changed["image"][0] > 0.5)).float().mean() > 0.98
        assert set(changed["instances"].unique().tolist()) <= {0, 2, 70001}
        assert torch.equal(lesion, changed["labels"] == 2)
        assert torch.equal(changed["instances"] == 2, changed["labels"] == 1)
    changed = augmented(built(spatial_probability=1, intensity_probability=1), tile)
    assert changed.keys() == tile.keys()
    for key, tensor in changed.items():
        assert type(tensor) is torch.Tensor
        assert (tensor.shape, tensor.dtype) == (tile[key].shape, tile[key].dtype)
        assert tensor.is_contiguous()
    assert torch.isfinite(changed["image"]).all()
    assert not torch.equal(changed["image"], tile["image"])


def test_what_comes_from_outside_is_zero_and_not_valid(built):
    tile = make_tile()
    tile["image"] += 5
    changes = built(spatial_probability=1, rotate_degrees=40, flip_probability=0)
    changed = augmented(changes, tile)
    assert (~changed["valid"] & (changed["image"][0] == 0)).any()
    assert changed["image"][0][changed["valid"]].min() > 0.5


def test_thick_slices_are_turned_only_in_their_plane(built, plan):
    tile, chosen = make_tile(), {"rotate_degrees": 30, "flip_probability": 0, "elastic_share": 1}
    tile["instances"][:] = torch.arange(16).view(16, 1, 1)
    for spacing, is_thick in (((5.0, 1.0, 1.0), True), ((1.0, 1.0, 1.0), False)):
        changes = built(plan.with_(spacing_mm=spacing), spatial_probability=1, **chosen)
        changed = augmented(changes, tile)["instances"]
        mixed = [not set(changed[z].unique().tolist()) <= {0, z} for z in range(16)]
        assert any(mixed) != is_thick


def test_xrays_are_not_flipped_given_axes_are_and_everything_off_is_none(built, plan):
    flat = plan.with_(dims=2, spacing_mm=(0.2, 0.2), modality="xray", tile_shape=(32, 32))
    assert built(flat, flip_probability=1.0) is None
    assert built(flip_axes=[]) is None
    tile = make_tile((32, 32))
    flipped = augmented(built(flat, flip_axes=[1], flip_probability=1.0), tile)
    assert torch.equal(flipped["labels"], tile["labels"].flip(1))
    assert torch.equal(flipped["image"], tile["image"].flip(2))
    with pytest.raises(ConfigError, match="flip_axes"):
        built(flat, flip_axes=(2,))
    constant = {**make_tile(), "image": torch.zeros(1, 16, 20, 24)}
    assert torch.isfinite(augmented(built(intensity_probability=1), constant)["image"]).all()


@pytest.fixture
def movements(built):
    """The first `n` movements of tiles."""

    def draw(plan, n=20, **chosen):
        changes = built(plan, spatial_probability=1, **chosen)
        return [changes.draw(generator(i)).movement for i in range(n)]

    return draw


def test_masks_are_read_where_the_matrix_says_and_no_corner_is_empty(plan, movements):
    shape = (13, 15, 17)
    for movement in [*movements(plan, 6, elastic_share=0), Movement((0, 2)), Movement()]:
        ids = np.meshgrid(*(np.arange(a, b) for a, b in movement.source(shape)), indexing="ij")
        piece = {"image": torch.ones(1, *ids[0].shape)}
        piece |= {str(a): torch.from_numpy(np.ascontiguousarray(ids[a])) for a in range(3)}
        changed = apply(piece, Change(movement, Intensity()), shape)
        for voxel in [(0, 0, 0), (3, 14, 8), (12, 7, 16)]:
            where = movement.matrix(shape) @ [*voxel, 1]
            assert [int(changed[str(a)][voxel]) for a in range(3)] == np.floor(where + 0.5).tolist()
        assert (changed["image"] - 1).abs().max() < 1e-5


def test_a_turn_is_a_turn_in_millimetres(plan, movements):
    spacing = np.array((2.0, 1.0, 1.5))
    fixed = {"scale": 0, "shear": 0, "elastic_share": 0, "flip_probability": 0}
    for movement in movements(plan.with_(spacing_mm=tuple(spacing)), 5, **fixed):
        turn = movement.linear * spacing[:, None] / spacing
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(turn) == pytest.approx(1)
        largest = 3 * math.radians(20)
        assert np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)) <= largest


def intensity(image, **change):
    tile = {"image": torch.as_tensor(image, dtype=torch.float32)}
    return apply(tile, Change(Movement(), Intensity(**change)), tile["image"].shape[1:])["image"]


def test_a_blur_keeps_the_mean_and_equals_a_gaussian():
    image = np.zeros((1, 21, 21))
    image[0, 10, 10] = 1
    blurred = intensity(image, blur=(1.0, 2.0))[0]
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-3)
    assert float(blurred[10, 10]) == pytest.approx(1 / (2 * math.pi * 2), rel=0.01)
    assert float(blurred[12, 10] / blurred[10, 10]) == pytest.approx(math.exp(-2), rel=1e-3)
    assert float(blurred[10, 12] / blurred[10, 10]) == pytest.approx(math.exp(-0.5), rel=1e-3)


def test_contrast_brightness_and_noise_are_one_line(rng):
    image = rng.normal(size=(2, 60, 60))
    changed = intensity(image, contrast=(1.5, 0.5), brightness=(1.0, -1.0))
    np.testing.assert_allclose(changed[0], 1.5 * image[0] + 1, atol=1e-5)
    np.testing.assert_allclose(changed[1], 0.5 * image[1] - 1, atol=1e-5)
    noisy = intensity(image, noise=0.3, seed=1)
    assert float((noisy - torch.from_numpy(image).float()).std()) == pytest.approx(0.3, rel=0.05)
    assert torch.equal(noisy, intensity(image, noise=0.3, seed=1))
    assert not torch.equal(noisy, intensity(image, noise=0.3, seed=2))
