"""Tiles know where they lie in the patient whatever changed them; others' transforms are safe."""

import random

import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from monai.transforms import MapTransform
from scipy.ndimage import binary_erosion

from lesionseg.config import AugmentConfig, TrainConfig
from lesionseg.core import Dataset, Geometry, Volume
from lesionseg.data import TileDataset, fill_cache, open_dataset
from lesionseg.data.cache import cache_key, read_cached_case, write_cached_case
from lesionseg.data.prepare import PreparedCase, PreparedReference, prepare_image
from lesionseg.data.transforms import check_transforms, require_trusted, with_masks
from lesionseg.errors import BundleError, ConfigError
from lesionseg.phantoms import write_mri_phantoms
from lesionseg.plan.plan import Plan

SHAPE, TILE = (30, 36, 33), (14, 16, 14)
QUIET = {"intensity_probability": 0.0}
MONAI = "monai.transforms."


@pytest.fixture
def case(tmp_path):
    """A case on an oblique grid of 1.5 x 1 x 1.2 mm whose three channels are RAS millimetres."""
    turn, lean = np.deg2rad(20), np.deg2rad(-10)
    about_z = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    about_x = [[1, 0, 0], [0, np.cos(lean), -np.sin(lean)], [0, np.sin(lean), np.cos(lean)]]
    affine = np.eye(4)
    affine[:3, :3] = np.array(about_z) @ about_x @ np.eye(3)[::-1] @ np.diag([1.5, 1.0, 1.2])
    affine[:3, 3] = -25.0, 4.0, -18.0
    geometry = Geometry(SHAPE, affine)
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    image = np.moveaxis(geometry.to_mm(index.reshape(-1, 3)).reshape(*SHAPE, 3), -1, 0)
    instances = np.zeros(SHAPE, np.int32)
    instances[12:16, 14:19, 11:15], instances[20:23, 25:28, 20:24] = 1, 2
    labels = np.array([0, 1, 2], np.uint8)[instances]
    reference = PreparedReference(labels, instances, (1, 2), None)
    prepared = PreparedCase("a", "a", Volume(image.astype(np.float32), geometry), reference)
    (tmp_path / "a").mkdir()
    write_cached_case(tmp_path / "a", prepared, "hash")
    return read_cached_case(tmp_path / "a")


@pytest.fixture
def tiles(case, plan, monkeypatch):
    """Tiles of the case with these settings, never bent."""
    monkeypatch.setattr("lesionseg.data.augment.ELASTIC_SHARE", 0.0)
    plan = plan.with_(
        tile_shape=TILE,
        channel_names=("x", "y", "z"),
        label_values=(1, 2),
        label_names=("a", "b"),
        spacing_mm=(1.5, 1.0, 1.2),
    )

    def make(transform=(), **settings):
        chosen = AugmentConfig.of(**{**QUIET, **settings})
        return TileDataset([case], plan, None, chosen, n_tiles=8, seed=2, transform=transform)

    return make


def spec(name, keys="image", **arguments):
    return {"_target_": f"{MONAI}{name}", "keys": keys, **arguments}


@pytest.mark.parametrize(
    "settings",
    [
        {"flip_axes": [], "spatial_probability": 0.0},
        {"spatial_probability": 0.0},
        {"spatial_probability": 1.0},
        {"extra": [spec("RandRotate90d", ["image", "label"], prob=1.0, spatial_axes=[0, 2])]},
        {
            "extra": [
                spec("RandZoomd", ["image", "label"], prob=1.0, mode=["bilinear", "nearest"]),
                spec("RandFlipd", ["image", "label"], prob=1.0, spatial_axis=1),
            ]
        },
    ],
    ids=["plain", "flips", "moved", "turned by MONAI", "zoomed and flipped by MONAI"],
)
def test_a_voxel_of_a_tile_lies_where_its_affine_says(tiles, case, settings):
    dataset = tiles(**settings)
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
        source = np.rint(case.geometry.to_index(world)).astype(int)
        near = np.abs(case.geometry.to_index(world) - source).max(axis=1) < 0.2
        found = item["label"].as_tensor()[0, *index.T].numpy()[near]
        # torch's nearest neighbour, with which MONAI zooms, is half a voxel off
        least = 0.9 if "RandZoomd" in str(settings) else 0.99
        assert (found == case.labels[tuple(source[near].T)]).mean() > least
        spacing = np.linalg.norm(item["image"].affine.numpy()[:3, :3], axis=0)
        np.testing.assert_allclose(item["image"].pixdim, spacing, atol=1e-6)


class OldDice(MapTransform):
    """Draws from the generators of the process, as transforms of other libraries do."""

    def __call__(self, data):
        noise = random.random() + np.random.random() + torch.rand(()).item()  # noqa: NPY002
        return {**data, "image": data["image"] + noise}


OWN = [
    {"_target_": f"{__name__}.OldDice", "keys": "image"},
    spec("RandBiasFieldd", prob=1.0),
    spec("RandFlipd", ["image", "label"], prob=0.5),
]


def test_a_tile_is_the_same_in_any_order_and_process_with_others_transforms(tiles):
    dataset = tiles(extra=OWN)
    forwards = [dataset[i] for i in range(10)]
    torch.manual_seed(5)
    backwards = [dataset[i] for i in reversed(range(10))][::-1]
    batches = DataLoader(tiles(extra=OWN), num_workers=2, batch_size=1, sampler=range(10))
    for first, second, batch in zip(forwards, backwards, batches, strict=True):
        for key in first:
            assert torch.equal(first[key], second[key])
            assert torch.equal(first[key], batch[key][0])
    assert not torch.equal(forwards[0]["image"], tiles()[0]["image"])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (spec("RandBiasFieldddd"), "RandBiasFieldddd"),
        (spec("RandBiasFieldd", probability=1), "probability"),
        (spec("RandBiasFieldd", ["picture"], prob=1.0), "failed.*picture"),
        (spec("DeleteItemsd", ["label"]), "failed.*label"),
        (spec("RandSpatialCropd", ["image", "label"], roi_size=8), "shape.*8, 8, 8"),
    ],
)
def test_what_a_transform_must_not_do_is_said(tiles, extra, message):
    with pytest.raises(ConfigError, match=message) as error:
        _ = [tiles(extra=[extra])[i] for i in range(8)]
    assert "augment.extra" in str(error.value)


def test_masks_move_with_the_label():
    rotate = spec("RandRotated", ["image", "label"], mode=["bilinear", "nearest"], range_x=0.1)
    moved = with_masks(rotate)
    assert moved["keys"] == ["image", "label", "instances", "valid"]
    assert moved["mode"] == ["bilinear", "nearest", "nearest", "nearest"]
    bias = spec("RandBiasFieldd")
    assert with_masks(bias) == bias


SMOOTH = spec("GaussianSmoothd", sigma=1.0)


def test_a_plan_s_transforms_come_after_normalisation(plan, rng):
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
        (spec("Flipd", ["image", "label"], spatial_axis=0), "failed.*label"),
    ):
        with pytest.raises(ConfigError, match=message):
            prepare_image(volume, plan.with_(prepare_extra=(wrong,)), where="c1")


def test_transforms_of_prepare_are_not_random_and_all_can_be_made():
    check_transforms(TrainConfig.of(prepare={"extra": [SMOOTH]}))
    for section, name, message in (
        ("prepare", "RandBiasFieldd", "RandBiasFieldd is random"),
        ("augment", "RandBias", r"augment\.extra.*RandBias"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_transforms(TrainConfig.of(**{section: {"extra": [spec(name)]}}))


def test_a_plan_keeps_its_transforms_and_the_cache_tells_them_apart(plan, tmp_path):
    extra = ({**SMOOTH, "sigma": [1.0, 2.0, 2.0]},)
    changed = plan.with_(prepare_extra=extra)
    assert Plan.from_json(changed.to_json()) == changed
    dataset = Dataset("toy", tmp_path, "manifest", 3, ("T1",), {1: "x"}, ())
    assert cache_key(dataset, plan) != cache_key(dataset, changed)
    with pytest.raises(BundleError):
        Plan.from_json(plan.to_json().replace('"prepare_extra": []', '"prepare_extra": [1]'))


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "monai.transforms.SaveImaged",
        "monai.transforms.LoadImaged",
        "monai.transforms.TorchIOd",
        "monai.transforms.apply_transform",
        "monai.utils.optional_import",
        "lesionseg.io.files.write_text",
        "lesionseg.data.fill_cache",
    ],
)
def test_a_bundle_may_not_name_just_anything(target):
    for specs in ([{"_target_": target}], [SMOOTH, {**SMOOTH, "sigma": [{"_target_": target}]}]):
        with pytest.raises(BundleError, match=rf"{target}.*trust=true"):
            require_trusted(specs, "plan.json")


def test_a_bundle_may_name_transforms_of_monai_without_expressions():
    require_trusted([SMOOTH, spec("MedianSmoothd", radius=[1, 1, 1])], "plan.json")
    with pytest.raises(BundleError, match=r"\$import os"):
        require_trusted([{**SMOOTH, "sigma": "$import os"}], "plan.json")


def test_the_five_lines_of_the_documentation_train(tmp_path, plan):
    root = tmp_path / "raw"
    write_mri_phantoms(root, 2, seed=0, n_test=0, shape=(24, 28, 24), spacing_mm=(5.0, 5.0, 5.0))
    plan = plan.with_(tile_shape=(16, 16, 16), spacing_mm=(5.0, 5.0, 5.0))
    network, loss = UNet(3, 1, 1, (4, 8), (2,)), DiceLoss(sigmoid=True)
    optimiser = torch.optim.AdamW(network.parameters())
    before = [p.clone() for p in network.parameters()]

    dataset = open_dataset(root)
    cases = fill_cache(dataset, dataset.cases, plan, tmp_path / "cache")
    tiles = TileDataset(cases, plan, augmentation=AugmentConfig.of())
    for batch in DataLoader(tiles, batch_size=2, sampler=range(4)):
        loss(network(batch["image"]), batch["label"]).backward()
        optimiser.step()

    assert isinstance(batch["image"], MetaTensor)
    assert batch["image"].affine.shape == (2, 4, 4)
    assert not all(map(torch.equal, before, network.parameters()))


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # MONAI tries all of its readers
def test_a_datalist_is_what_monai_reads(tmp_path):
    from monai.transforms import LoadImaged

    write_mri_phantoms(
        tmp_path, 2, seed=0, n_test=0, shape=(24, 28, 24), spacing_mm=(5.0, 5.0, 5.0)
    )
    first, second = open_dataset(tmp_path).datalist()
    assert set(first) == {"image", "label", "case", "group"}
    assert first["case"] != second["case"]
    loaded = LoadImaged(["image", "label"])(first)
    assert loaded["image"].shape == loaded["label"].shape
