"""Tiles know where they lie in the patient whatever changed them; others' transforms are safe."""

import random
import re

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import LoadImaged, MapTransform
from scipy.ndimage import binary_erosion

from lesionseg.config import AugmentConfig, TrainConfig
from lesionseg.core import Geometry, Labels, Reference, Volume
from lesionseg.data import TileDataset, open_dataset
from lesionseg.data.cache import read_cached_case, write_cached_case
from lesionseg.data.preprocess import PreparedCase, prepare_image
from lesionseg.data.transforms import add_mask_keys, check_transforms, require_trusted
from lesionseg.errors import BundleError, ConfigError
from lesionseg.phantoms import write_mri_phantoms
from tests.io.dicom_files import grid_of

SHAPE, TILE = (30, 36, 33), (14, 16, 14)


@pytest.fixture
def case(tmp_path):
    """A case on an oblique grid of 1.5 x 1 x 1.2 mm whose three channels are RAS millimetres."""
    geometry = grid_of("SAR", (1.5, 1.0, 1.2), (-10, 0, 20), SHAPE)
    image = geometry.to_mm(np.indices(SHAPE).reshape(3, -1).T).T.reshape(3, *SHAPE)
    instances = np.zeros(SHAPE, np.int32)
    instances[12:16, 14:19, 11:15], instances[20:23, 25:28, 20:24] = 1, 2
    reference = Reference(geometry, instances.astype(np.uint8), instances, (1, 2))
    prepared = PreparedCase("a", "a", Volume(image.astype(np.float32), geometry), reference)
    (tmp_path / "a").mkdir()
    write_cached_case(tmp_path / "a", prepared, "hash")
    return read_cached_case(tmp_path / "a")


@pytest.fixture
def tiles(case, plan, monkeypatch):
    """Tiles of the case with these settings, never bent."""
    monkeypatch.setattr("lesionseg.data.augment.ELASTIC_SHARE", 0.0)
    names = {"channel_names": ("x", "y", "z"), "labels": Labels((1, 2), ("a", "b"))}
    plan = plan.with_(tile_shape=TILE, spacing_mm=(1.5, 1.0, 1.2), **names)

    def make(**settings):
        chosen = AugmentConfig.of(intensity_probability=0.0, **settings)
        return TileDataset([case], plan, None, chosen, n_tiles=8, seed=2)

    return make


def spec(name, keys="image", **arguments):
    return {"_target_": f"monai.transforms.{name}", "keys": keys, **arguments}


BOTH = ["image", "label"]
SMOOTH = spec("GaussianSmoothd", sigma=1.0)
ZOOM = spec("RandZoomd", BOTH, prob=1.0, mode=["bilinear", "nearest"])
CHANGES = {
    "plain": {"flip_axes": [], "spatial_probability": 0.0},
    "flips": {"spatial_probability": 0.0},
    "moved": {"spatial_probability": 1.0},
    "turned by MONAI": {"extra": [spec("RandRotate90d", BOTH, prob=1.0, spatial_axes=[0, 2])]},
    "zoomed by MONAI": {"extra": [ZOOM, spec("RandFlipd", BOTH, prob=1.0, spatial_axis=1)]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_voxel_of_a_tile_lies_where_its_affine_says(tiles, case, change):
    dataset = tiles(**CHANGES[change])
    for number in range(4):
        item = dataset[number]
        inside = item["valid"][0] & (item["image"] != 0).all(dim=0)
        # at the edge voxels are interpolated with the nothing beyond it
        index = np.argwhere(binary_erosion(inside.numpy(), iterations=2))
        assert len(index) > 100
        assert torch.equal(item["image"].affine, item["label"].affine)
        world = Geometry(TILE, item["image"].affine.numpy()).to_mm(index)
        told = item["image"].as_tensor()[:, *index.T].T.numpy()
        np.testing.assert_allclose(told, world, atol=0.06)  # float16, in millimetres
        place = case.geometry.to_index(world)
        source = np.rint(place).astype(int)
        near = np.abs(place - source).max(axis=1) < 0.2
        found = item["label"].as_tensor()[0, *index.T].numpy()[near]
        # torch's nearest neighbour, with which MONAI zooms, is half a voxel off
        least = 0.9 if "zoomed" in change else 0.99
        assert (found == case.labels[tuple(source[near].T)]).mean() > least
        spacing = np.linalg.norm(item["image"].affine.numpy()[:3, :3], axis=0)
        np.testing.assert_allclose(item["image"].pixdim, spacing, atol=1e-6)


class OldDice(MapTransform):
    """Draws from the generators of the process, as transforms of other libraries do."""

    def __call__(self, data):
        noise = random.random() + np.random.random() + torch.rand(()).item()  # noqa: NPY002
        return {**data, "image": data["image"] + noise}


def test_a_tile_is_the_same_in_any_order_and_process_with_others_transforms(tiles):
    own = {"_target_": f"{__name__}.OldDice", "keys": "image"}
    extra = [own, spec("RandBiasFieldd", prob=1.0), spec("RandFlipd", BOTH, prob=0.5)]
    dataset = tiles(extra=extra)
    forwards = [dataset[i] for i in range(10)]
    torch.manual_seed(5)
    backwards = [dataset[i] for i in reversed(range(10))][::-1]
    batches = DataLoader(tiles(extra=extra), num_workers=2, batch_size=1, sampler=range(10))
    for first, second, batch in zip(forwards, backwards, batches, strict=True):
        for key in first:
            assert torch.equal(first[key], second[key])
            assert torch.equal(first[key], batch[key][0])
    assert not torch.equal(forwards[0]["image"], tiles()[0]["image"])
    assert not torch.equal(forwards[0]["image"], forwards[8]["image"])  # of the next epoch


def test_masks_move_with_the_label():
    moved = add_mask_keys(spec("RandRotated", BOTH, mode=["bilinear", "nearest"], range_x=0.1))
    assert moved["keys"] == ["image", "label", "instances", "valid"]
    assert moved["mode"] == ["bilinear", "nearest", "nearest", "nearest"]
    assert add_mask_keys(SMOOTH) == SMOOTH


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (spec("RandBiasFieldddd"), "RandBiasFieldddd"),
        (spec("RandBiasFieldd", probability=1), "probability"),
        (spec("RandBiasFieldd", ["picture"], prob=1.0), "picture"),
        (spec("DeleteItemsd", ["label"]), "label"),
        (spec("RandSpatialCropd", BOTH, roi_size=8), "shape.*8, 8, 8"),
    ],
)
def test_what_a_transform_must_not_do_is_an_error(tiles, extra, named):
    with pytest.raises(ConfigError, match=rf"augment\.extra.*{named}"):
        _ = [tiles(extra=[extra])[i] for i in range(8)]


def test_a_plan_s_transforms_come_after_normalisation_are_not_random_and_move_nothing(plan, rng):
    array = rng.normal(size=(1, 12, 10, 8)).astype(np.float32)
    volume = Volume(array, Geometry.from_spacing((12, 10, 8), plan.spacing_mm))
    before = prepare_image(volume, plan)
    double = spec("ScaleIntensityd", factor=1.0, minv=None, maxv=None)
    after = prepare_image(volume, plan.with_(prepare_extra=(double,)))
    np.testing.assert_allclose(after.array, 2 * before.array, rtol=1e-6)
    assert after.geometry.matches(before.geometry)
    for wrong, message in (
        (spec("Resized", spatial_size=[4, 4, 4]), "shape of image"),
        (spec("Flipd", spatial_axis=0), "moved the image"),
        (spec("Flipd", BOTH, spatial_axis=0), "label"),
    ):
        with pytest.raises(ConfigError, match=message):
            prepare_image(volume, plan.with_(prepare_extra=(wrong,)), where="c1")
    check_transforms(TrainConfig.of(prepare={"extra": [SMOOTH]}))
    for section, name in (("prepare", "RandBiasFieldd"), ("augment", "RandBias")):
        with pytest.raises(ConfigError, match=rf"{section}\.extra.*{name}"):
            check_transforms(TrainConfig.of(**{section: {"extra": [spec(name)]}}))


@pytest.mark.parametrize(
    "target",
    [
        *("os.system", "monai.transforms.SaveImaged", "monai.transforms.LoadImaged"),
        *("monai.transforms.TorchIOd", "monai.transforms.apply_transform"),
        *("monai.utils.optional_import", "lesionseg.io.files.write_text", "$import os"),
    ],
)
def test_a_bundle_may_name_plain_transforms_of_monai_alone(target):
    require_trusted([SMOOTH, spec("MedianSmoothd", radius=[1, 1, 1])], "plan.json")
    nested = [{"_target_": target}] if "$" not in target else target
    for specs in ([{"_target_": target}], [SMOOTH, {**SMOOTH, "sigma": nested}]):
        with pytest.raises(BundleError, match=rf"{re.escape(target)}.*trust=true"):
            require_trusted(specs, "plan.json")


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # MONAI tries all of its readers
def test_monai_reads_the_datalist(tmp_path):
    write_mri_phantoms(tmp_path, 2, seed=0, n_test=0, shape=(24, 28, 24))
    first, second = open_dataset(tmp_path).datalist()
    assert set(first) == {"image", "label", "case", "group"}
    assert first["case"] != second["case"]
    loaded = LoadImaged(["image", "label"])(first)
    assert loaded["image"].shape == loaded["label"].shape
