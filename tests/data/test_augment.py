import numpy as np
import pytest
import torch

from lesionseg.data.augment import AugmentationSettings, build_augmentation
from lesionseg.errors import ConfigError

OFF = {
    "flip_probability": 0.0,
    "spatial_probability": 0.0,
    "intensity_probability": 0.0,
}


def make_tile(rng, shape=(16, 20, 24), channels=1):
    instances = np.zeros(shape, np.int32)
    inner = tuple(slice(n // 4, 3 * n // 4) for n in shape)
    instances[inner] = 70001
    instances[tuple(slice(0, 3) for _ in shape)] = 2
    labels = np.select([instances == 70001, instances == 2], [2, 1]).astype(np.uint8)
    image = np.repeat((instances > 2)[None].astype(np.float32), channels, axis=0)
    return {
        "image": torch.from_numpy(image),
        "labels": torch.from_numpy(labels),
        "instances": torch.from_numpy(instances),
        "valid": torch.ones(shape, dtype=torch.bool),
    }


@pytest.fixture
def plan2d(plan):
    return plan.with_(dims=2, spacing_mm=(0.2, 0.2), modality="xray", tile_shape=(32, 32))


def test_shapes_dtypes_and_plain_tensors_stay(rng, plan):
    tile = make_tile(rng)
    augment = build_augmentation(
        AugmentationSettings(spatial_probability=1, intensity_probability=1), plan
    )
    changed = augment(tile, rng)
    assert changed.keys() == tile.keys()
    for key, tensor in changed.items():
        assert type(tensor) is torch.Tensor
        assert (tensor.shape, tensor.dtype) == (tile[key].shape, tile[key].dtype)
        assert tensor.is_contiguous()
    assert torch.isfinite(changed["image"]).all()
    assert not torch.equal(changed["image"], tile["image"])


def test_image_and_masks_move_together(rng, plan):
    settings = AugmentationSettings(spatial_probability=1, intensity_probability=0, scale=0.1)
    augment = build_augmentation(settings, plan)
    for _ in range(5):
        changed = augment(make_tile(rng), rng)
        lesion = changed["instances"] == 70001
        assert (lesion == (changed["image"][0] > 0.5)).float().mean() > 0.98
        assert set(changed["instances"].unique().tolist()) <= {0, 2, 70001}
        assert torch.equal(lesion, changed["labels"] == 2)
        assert torch.equal(changed["instances"] == 2, changed["labels"] == 1)


def test_what_comes_from_outside_is_zero_and_not_valid(rng, plan):
    settings = AugmentationSettings(
        spatial_probability=1, rotate_degrees=40, intensity_probability=0, flip_probability=0
    )
    tile = make_tile(rng)
    tile["image"] += 5
    changed = build_augmentation(settings, plan)(tile, rng)
    assert not changed["valid"].all()
    deep = ~changed["valid"] & (changed["image"][0] == 0)
    assert deep.any()
    assert changed["image"][0][changed["valid"]].min() > 0.5


def test_the_same_generator_state_gives_the_same_tile(plan):
    augment = build_augmentation(AugmentationSettings(spatial_probability=0.5), plan)
    tile = make_tile(None)
    first = [augment(tile, np.random.default_rng(i))["image"] for i in range(6)]
    again = [augment(tile, np.random.default_rng(i))["image"] for i in reversed(range(6))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(first[0], other) for other in first[1:])


def test_thick_slices_are_turned_only_in_their_plane(rng, plan):
    thick = plan.with_(spacing_mm=(5.0, 1.0, 1.0))
    settings = AugmentationSettings(
        spatial_probability=1, rotate_degrees=30, scale=0, flip_probability=0, shear=0.1
    )
    tile = make_tile(rng)
    tile["instances"][:] = torch.arange(16).view(16, 1, 1)
    changed = build_augmentation(settings, thick)(tile, rng)["instances"]
    for z in range(16):
        assert set(changed[z].unique().tolist()) <= {0, z}
    turned = build_augmentation(settings, plan)(tile, rng)["instances"]
    assert any(len(turned[z].unique()) > 2 for z in range(16))


def test_xrays_are_not_flipped_and_given_axes_are(rng, plan2d):
    tile = make_tile(rng, (32, 32))
    always = {**OFF, "flip_probability": 1.0}
    same = build_augmentation(AugmentationSettings(**always), plan2d)(tile, rng)
    assert torch.equal(same["labels"], tile["labels"])
    flipped = build_augmentation(AugmentationSettings(**always, flip_axes=[1]), plan2d)(tile, rng)
    assert torch.equal(flipped["labels"], tile["labels"].flip(1))
    assert torch.equal(flipped["image"], tile["image"].flip(2))
    with pytest.raises(ConfigError, match="flip_axes"):
        build_augmentation(AugmentationSettings(flip_axes=(2,)), plan2d)


def test_two_axes_and_two_channels_work(rng, plan2d):
    augment = build_augmentation(
        AugmentationSettings(spatial_probability=1, intensity_probability=1), plan2d
    )
    changed = augment(make_tile(rng, (32, 32), channels=2), rng)
    assert changed["image"].shape == (2, 32, 32)


def test_a_ct_keeps_its_gamma(rng, plan):
    settings = AugmentationSettings(
        **{**OFF, "intensity_probability": 1.0},
        noise_std=0,
        brightness=0,
        contrast=0,
        blur_sigma=(1, 1),
        low_resolution=(1, 1),
    )
    tile = make_tile(rng)
    tile["image"] += torch.rand(tile["image"].shape)
    ct = build_augmentation(settings, plan.with_(modality="ct"))(tile, rng)
    assert torch.equal(ct["image"], tile["image"])
    mri = build_augmentation(settings, plan)(tile, rng)
    assert not torch.equal(mri["image"], tile["image"])


def test_everything_off_leaves_the_tile_alone_and_a_constant_tile_stays_finite(rng, plan):
    tile = make_tile(rng)
    assert build_augmentation(AugmentationSettings(**OFF), plan)(tile, rng) is tile
    tile["image"].zero_()
    changed = build_augmentation(AugmentationSettings(intensity_probability=1), plan)(tile, rng)
    assert torch.isfinite(changed["image"]).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"flip_probability": 1.5}, "probability"),
        ({"gamma": (2, 1)}, "gamma"),
        ({"noise_std": -1}, "noise_std"),
        ({"low_resolution": (0.5, 2)}, "low_resolution"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        AugmentationSettings(**wrong)
