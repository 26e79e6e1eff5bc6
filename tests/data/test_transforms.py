"""Affines of tiles after each change, and transforms of other libraries."""

import random
import re

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, MapTransform, RandSimulateLowResolutiond
from scipy.ndimage import binary_erosion

from lesionseg.cli import compose
from lesionseg.config import AugmentConfig
from lesionseg.core import Geometry, Labels, Reference, Volume
from lesionseg.data.cache import read_cached_case, write_cached_case
from lesionseg.data.low_resolution import RandLowResolutiond
from lesionseg.data.preprocess import PreparedCase
from lesionseg.data.preprocess_image import prepare_image
from lesionseg.data.tiles import TileDataset
from lesionseg.data.transforms import (
    MASKS,
    add_mask_keys,
    as_meta_tensor,
    build_transform,
    check_transforms,
    require_trusted,
    run_on_tile,
    try_on_tile,
)
from lesionseg.errors import BundleError, ConfigError
from tests.io.dicom_files import grid_of

SHAPE = (30, 36, 33)
TILE = (14, 16, 14)


@pytest.fixture
def case(tmp_path):
    """Write a case on an oblique grid. The values of its channels are positions in RAS mm."""
    geometry = grid_of("SAR", (1.5, 1.0, 1.2), (-10, 0, 20), SHAPE)
    image = geometry.to_mm(np.indices(SHAPE).reshape(3, -1).T).T.reshape(3, *SHAPE)
    instances = np.zeros(SHAPE, np.int32)
    instances[12:16, 14:19, 11:15] = 1
    instances[20:23, 25:28, 20:24] = 2
    reference = Reference(geometry, instances.astype(np.uint8), instances, (1, 2))
    prepared = PreparedCase("a", "a", Volume(image.astype(np.float32), geometry), reference)
    write_cached_case(tmp_path, prepared, "hash")
    return read_cached_case(tmp_path)


@pytest.fixture
def make_tiles(case, plan, monkeypatch):
    """Make tiles of the case with settings of the augmentation, but without elastic deformation."""
    monkeypatch.setattr("lesionseg.data.augment.ELASTIC_SHARE", 0.0)
    plan = plan.with_(
        tile_shape=TILE,
        spacing_mm=(1.5, 1.0, 1.2),
        channel_names=("x", "y", "z"),
        labels=Labels((1, 2), ("a", "b")),
    )

    def make(**settings):
        chosen = AugmentConfig.of(intensity_probability=0.0, **settings)
        return TileDataset([case], plan, None, chosen, n_tiles=8, seed=2)

    return make


def make_spec(name, keys="image", **arguments):
    return {"_target_": f"monai.transforms.{name}", "keys": keys, **arguments}


BOTH = ["image", "label"]
SMOOTH = make_spec("GaussianSmoothd", sigma=1.0)
ZOOM = make_spec("RandZoomd", BOTH, prob=1.0, mode=["bilinear", "nearest"])
CHANGES = {
    "flips": {"spatial_probability": 0.0},
    "moved": {"spatial_probability": 1.0},
    "rotated by MONAI": {
        "extra": [make_spec("RandRotate90d", BOTH, prob=1.0, spatial_axes=[0, 2])]
    },
    "zoomed by MONAI": {"extra": [ZOOM, make_spec("RandFlipd", BOTH, prob=1.0, spatial_axis=1)]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_affine_of_a_tile_gives_the_position_of_its_voxels(make_tiles, case, change):
    dataset = make_tiles(**CHANGES[change])
    for number in range(4):
        item = dataset[number]
        inside = item["valid"][0] & (item["image"] != 0).all(dim=0)
        # voxels at the edge are interpolated with zeros outside, up to twice
        index = np.argwhere(binary_erosion(inside.numpy(), iterations=3))
        assert len(index) > 100
        assert torch.equal(item["image"].affine, item["label"].affine)
        world = Geometry(TILE, item["image"].affine.numpy()).to_mm(index)
        positions = item["image"].as_tensor()[:, *index.T].T.numpy()
        np.testing.assert_allclose(positions, world, atol=0.06)  # float16, in millimetres
        place = case.geometry.to_index(world)
        source = np.rint(place).astype(int)
        near = np.abs(place - source).max(axis=1) < 0.2
        found = item["label"].as_tensor()[0, *index.T].numpy()[near]
        # MONAI zooms with torch's nearest neighbour, which is shifted by half a voxel
        minimum = 0.9 if "zoomed" in change else 0.99
        assert (found == case.labels[tuple(source[near].T)]).mean() > minimum
        spacing = np.linalg.norm(item["image"].affine.numpy()[:3, :3], axis=0)
        np.testing.assert_allclose(item["image"].pixdim, spacing, atol=1e-6)


class ProcessNoise(MapTransform):
    """A transform that draws from the generators of the process, like those of other libraries."""

    def __call__(self, data):
        noise = random.random() + np.random.random() + torch.rand(()).item()  # noqa: NPY002
        return {**data, "image": data["image"] + noise}


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")  # on one core
def test_tile_is_the_same_in_any_order_and_process_with_transforms_of_other_libraries(make_tiles):
    own = {"_target_": f"{__name__}.ProcessNoise", "keys": "image"}
    extra = [own, make_spec("RandBiasFieldd", prob=1.0), make_spec("RandFlipd", BOTH, prob=0.5)]
    dataset = make_tiles(extra=extra)
    forwards = [dataset[i] for i in range(10)]
    torch.manual_seed(5)
    backwards = [dataset[i] for i in reversed(range(10))][::-1]
    batches = DataLoader(make_tiles(extra=extra), num_workers=2, batch_size=1, sampler=range(10))
    for first, second, batch in zip(forwards, backwards, batches, strict=True):
        for key, tensor in first.items():
            assert torch.equal(tensor, second[key])
            assert torch.equal(tensor, batch[key][0])
    image = forwards[0]["image"]
    assert not torch.equal(image, make_tiles()[0]["image"])
    assert not torch.equal(image, forwards[8]["image"])  # a tile of the next epoch


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 7)])
def test_all_changes_of_nnunets_recipe_run_in_2d_and_3d(rng, shape):
    recipe = compose("train", ["data.root=.", "experiment=nnunet_recipe"])
    tile = {"image": torch.from_numpy(rng.random((2, *shape), np.float32))}
    tile |= {key: torch.ones(1, *shape, dtype=torch.uint8) for key in MASKS}
    names = [spec["_target_"].rpartition(".")[2] for spec in recipe.augment.extra]
    assert "RandLowResolutiond" in names
    for name, spec in zip(names, recipe.augment.extra, strict=True):
        chain = Compose([build_transform({**spec, "prob": 1.0}, "augment.extra")])
        changed = run_on_tile(chain, tile, seed=3)
        assert changed["image"].shape == tile["image"].shape
        assert not torch.equal(changed["image"], tile["image"]), name


def test_low_resolution_is_that_of_monai(rng):
    image = torch.from_numpy(rng.random((1, 9, 8, 7), np.float32))
    settings = {"keys": "image", "prob": 1.0, "zoom_range": (0.5, 0.6)}
    kinds = (RandLowResolutiond, RandSimulateLowResolutiond)
    ours, theirs = [
        kind(**settings).set_random_state(4)({"image": image})["image"] for kind in kinds
    ]
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, image)


def test_all_masks_are_transformed_with_the_label():
    moved = add_mask_keys(make_spec("RandRotated", BOTH, mode=["bilinear", "nearest"], range_x=0.1))
    assert moved["keys"] == ["image", "label", "instances", "valid"]
    assert moved["mode"] == ["bilinear", "nearest", "nearest", "nearest"]
    assert add_mask_keys(SMOOTH) == SMOOTH


FLIP = make_spec("RandFlipd", BOTH, prob=1.0, spatial_axis=1)
CHAIN = {"_target_": "monai.transforms.Compose"}


@pytest.mark.parametrize("name", ["OneOf", "Compose"])
def test_transforms_inside_another_one_move_all_masks(make_tiles, name):
    inside = {"_target_": f"monai.transforms.{name}", "transforms": [FLIP]}
    again = {"_target_": "monai.transforms.Compose", "transforms": [inside]}
    expected = make_tiles(extra=[FLIP])[0]
    for spec in (inside, again):
        found = make_tiles(extra=[spec])[0]
        assert all(torch.equal(found[key], expected[key]) for key in ("image", *MASKS))


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (make_spec("RandBiasFieldddd"), "RandBiasFieldddd"),
        (make_spec("RandBiasFieldd", probability=1), "probability"),
        (make_spec("RandBiasFieldd", ["picture"], prob=1.0), "picture"),
        (make_spec("DeleteItemsd", ["label"]), "label"),
        (make_spec("RandSpatialCropd", BOTH, roi_size=8), "shape.*8, 8, 8"),
    ],
)
def test_error_names_an_invalid_transform(make_tiles, extra, named):
    with pytest.raises(ConfigError, match=rf"augment\.extra.*{named}"):
        make_tiles(extra=[extra])[0]


class NeedsACase(MapTransform):
    """A transform that looks up the case of a tile by its name."""

    def __call__(self, data):
        return {**data, "image": data["image"] * {"a": 2.0}[data["image"].meta["filename_or_obj"]]}


def test_only_transforms_of_monai_are_tried_on_a_tile_that_is_no_case_s(rng):
    image = torch.from_numpy(rng.random((1, 8, 8), np.float32))
    tile = {"image": as_meta_tensor(image, np.eye(3))}
    tile |= {key: torch.ones(1, 8, 8, dtype=torch.uint8) for key in MASKS}
    try_on_tile([make_spec("RandFlipd", BOTH)], tile)
    try_on_tile([{"_target_": f"{__name__}.NeedsACase", "keys": "image"}], tile)
    with pytest.raises(ConfigError, match=r"augment\.extra.*imag"):
        try_on_tile([make_spec("RandFlipd", ["imag"], prob=0.001)], tile)


@pytest.fixture
def volume(plan, rng):
    array = rng.normal(size=(1, 12, 10, 8)).astype(np.float32)
    return Volume(array, Geometry.from_spacing((12, 10, 8), plan.spacing_mm))


def test_transforms_of_the_plan_are_applied_after_normalisation(plan, volume):
    before = prepare_image(volume, plan)
    double = make_spec("ScaleIntensityd", factor=1.0, minv=None, maxv=None)
    after = prepare_image(volume, plan.with_(prepare_extra=(double,)))
    np.testing.assert_allclose(after.array, 2 * before.array, rtol=1e-6)
    assert after.geometry.matches(before.geometry)


def test_transform_of_the_plan_that_moves_the_image_is_an_error(plan, volume):
    for wrong, message in (
        (make_spec("Resized", spatial_size=[4, 4, 4]), "shape of image"),
        (make_spec("Flipd", spatial_axis=0), "moved the image"),
        (make_spec("Flipd", BOTH, spatial_axis=0), "label"),
    ):
        with pytest.raises(ConfigError, match=message):
            prepare_image(volume, plan.with_(prepare_extra=(wrong,)), where="c1")


@pytest.mark.parametrize(
    ("section", "spec", "name"),
    [
        ("prepare", make_spec("RandBiasFieldd"), "RandBiasFieldd"),
        ("prepare", {**CHAIN, "transforms": [make_spec("RandBiasFieldd")]}, "Compose"),
        ("augment", make_spec("RandBias"), "RandBias"),
    ],
)
def test_random_transform_of_the_plan_and_unknown_transform_are_an_error(section, spec, name):
    check_transforms([SMOOTH, {**CHAIN, "transforms": [SMOOTH]}], [])
    with pytest.raises(ConfigError, match=rf"{section}\.extra.*{name}"):
        check_transforms(**{"prepare": [], "augment": [], section: [spec]})


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "monai.transforms.SaveImaged",
        "monai.transforms.LoadImaged",
        "monai.transforms.TorchIOd",
        "monai.transforms.SaveClassificationd",  # deletes and writes a file that its arguments name
        "monai.transforms.SimulateDelayd",
        "monai.transforms.Resized",
        "monai.transforms.apply_transform",
        "monai.utils.optional_import",
        "lesionseg.io.text.write_text",
        "$import os",
    ],
)
def test_only_transforms_of_intensities_are_trusted_in_a_bundle(target):
    require_trusted([SMOOTH, make_spec("MedianSmoothd", radius=[1, 1, 1])], "plan.json")
    nested = [{"_target_": target}] if "$" not in target else target
    for specs in ([{"_target_": target}], [SMOOTH, {**SMOOTH, "sigma": nested}]):
        with pytest.raises(BundleError, match=rf"{re.escape(target)}.*trust=true"):
            require_trusted(specs, "plan.json")
