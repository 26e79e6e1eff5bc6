"""nnU-Net model folders as bundles: probabilities of a naive loop, and models that are refused."""

import sys
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from lesionseg.config import InferenceConfig
from lesionseg.core import Geometry, Volume
from lesionseg.errors import BundleError, LesionsegError
from lesionseg.inference.bundle import (
    Bundle,
    bundle_digest,
    bundle_plan,
    read_bundle,
    write_bundle,
)
from lesionseg.inference.predictor import Predictor
from lesionseg.io.nnunet_model import find_nnunet_model
from lesionseg.io.text import read_json, write_json
from lesionseg.io.volumes import read_volume
from tests.inference.nnunet import naive
from tests.inference.nnunet.small_models import SmallModel
from tests.models.nnunet_names import to_nnunet_weights

PLAIN = SmallModel()
LABELS = {"background": 0, "nodule": 1, "mass": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}
THICK = PLAIN.with_(spacing=(4.0, 1.0, 1.0), patch=(4, 8, 12))
FLAT = PLAIN.with_(patch=(8, 12), spacing=(1.0, 1.1), configuration="2d", mirror_axes=(0, 1))
MODELS = {
    "resampled": (PLAIN, (2.6, 0.8, 1.3)),
    "residual": (PLAIN.with_(residual=True), (2.0, 1.0, 1.0)),
    "thick slices": (THICK, (5.0, 0.8, 1.1)),
    "linear between thick slices": (
        THICK.with_(image_options={"order": 3, "order_z": 1, "force_separate_z": None}),
        (6.0, 0.8, 1.1),
    ),
    "transposed": (PLAIN.with_(transpose=(2, 0, 1), spacing=(3.5, 1.0, 1.0)), (0.9, 1.2, 3.6)),
    "resampled by torch": (
        THICK.with_(
            image_resampling="resample_torch_fornnunet", image_options={"order": 1, "order_z": 0}
        ),
        (5.0, 0.8, 1.1),
    ),
    "two folds": (PLAIN.with_(n_folds=2), (2.4, 1.0, 1.0)),
    "2d": (FLAT, (3.0, 0.8, 0.9)),
    "2d residual, transposed": (
        FLAT.with_(residual=True, mirror_axes=(1,), transpose=(1, 0, 2)),
        (0.8, 3.0, 0.9),
    ),
    "several labels": (PLAIN.with_(labels=LABELS), (2.2, 1.0, 1.0)),
    "regions": (PLAIN.with_(labels=REGIONS, regions_class_order=(1, 2)), (2.2, 1.0, 1.0)),
    "all schemes": (
        PLAIN.with_(
            channels=("T1", "CT", "a", "b", "c"),
            schemes=(
                "ZScoreNormalization",
                "CTNormalization",
                "RescaleTo01Normalization",
                "NoNormalization",
                "RGBTo01Normalization",
            ),
            use_mask=(True, False, False, False, False),
        ),
        (2.2, 1.1, 1.0),
    ),
}


def make_scan(model, shape=(11, 17, 14)):
    """Make a noisy block with a hole, surrounded by zeros."""
    image = np.zeros((len(model.channels), *shape), np.float32)
    block = image[:, 1:-1, 2:-3, 1:]
    block[:] = np.random.default_rng(3).normal(80, 40, block.shape)
    image[:, 4:6, 6:9, 5:8] = 0
    return image


def make_volume(model=PLAIN, spacing=(2.0, 1.0, 1.0)):
    image = make_scan(model)
    return Volume(image, Geometry.from_spacing(image.shape[1:], spacing))


def predictor_of(folder, **settings):
    settings = InferenceConfig.of(precision="fp32", **settings)
    return Predictor(folder, settings=settings, device="cpu")


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("mirrored", [False, True])
def test_probabilities_equal_those_of_a_naive_loop(tmp_path, name, mirrored):
    model, spacing = MODELS[name]
    volume = make_volume(model, spacing)
    found = predictor_of(model.write(tmp_path), flips=mirrored).probabilities(volume)
    expected = naive.predict(model, volume.array, spacing, mirrored=mirrored)
    assert expected[expected > 0].std() > 0.05  # the probabilities are not all equal
    assert np.abs(found - expected).max() < 2e-3
    assert np.abs(found - expected).mean() < 2e-4


def test_reordered_file_gives_the_same_probabilities_with_a_reorienting_reader(tmp_path):
    predictor = predictor_of(PLAIN.with_(reader="NibabelIOWithReorient").write(tmp_path))
    volume = make_volume(spacing=(2.4, 1.0, 1.1))
    turned = volume.array[:, ::-1].transpose(0, 2, 3, 1)
    last = volume.array.shape[1] - 1
    turn = np.array([[0, 0, -1, last], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    geometry = Geometry(turned.shape[1:], volume.geometry.affine @ turn)
    first = predictor.probabilities(volume)
    second = predictor.probabilities(Volume(turned, geometry))
    np.testing.assert_array_equal(second, first[:, ::-1].transpose(0, 2, 3, 1))


def test_pixel_size_of_a_picture_has_no_effect(tmp_path):
    model = FLAT.with_(
        channels=("R", "G", "B"),
        schemes=("RGBTo01Normalization",) * 3,
        use_mask=(False,) * 3,
        reader="NaturalImage2DIO",
        spacing=(1.0, 1.0),
    )
    predictor = predictor_of(model.write(tmp_path))
    image = np.random.default_rng(0).uniform(0, 255, (3, 20, 30)).astype(np.float32)
    expected = naive.predict(model, image[:, None], (999.0, 1.0, 1.0), mirrored=False)[:, 0]
    for mm in (1.0, 0.2):
        found = predictor.probabilities(Volume(image, Geometry.from_spacing((20, 30), (mm, mm))))
        assert np.abs(found - expected).max() < 2e-3


@pytest.mark.parametrize(
    # nnU-Net plans to put the axis of 999 mm first; it counts axes as z, y, x
    ("flat_axis", "transpose"),
    [(0, (0, 1, 2)), (1, (1, 0, 2)), (2, (2, 0, 1))],
)
def test_model_of_nifti_pictures_uses_their_pixel_size(tmp_path, flat_axis, transpose):
    """Users of nnU-Net store pictures as NIfTI with one slice of 999 mm, along any axis."""
    model = FLAT.with_(spacing=(0.5, 0.5), median_spacing=(999.0, 0.5, 0.5), transpose=transpose)
    folder = model.write(tmp_path)
    assert bundle_plan(folder).dims == 2
    picture = np.random.default_rng(0).uniform(0, 255, (20, 30)).astype(np.float32)
    image = np.expand_dims(picture, flat_axis)
    spacing = tuple(np.insert([0.6, 0.8], flat_axis, 999.0))
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(image.T, np.diag([*spacing[::-1], 1.0])), path)
    expected = naive.predict(model, image[np.newaxis], spacing, mirrored=False)
    found = predictor_of(folder).probabilities(read_volume(path))
    assert np.abs(found - expected.squeeze(1 + flat_axis)).max() < 2e-3


def test_nnunet_model_saved_as_our_bundle_gives_the_same_probabilities(tmp_path):
    folder = PLAIN.with_(n_folds=2).write(tmp_path)
    volume = make_volume()
    expected = Predictor(folder, device="cpu").probabilities(volume)
    bundle = read_bundle(folder)
    write_bundle(tmp_path / "bundle", bundle.networks, bundle.plan, "")
    assert bundle_plan(tmp_path / "bundle") == bundle.plan == bundle_plan(folder)
    again = Predictor(tmp_path / "bundle", device="cpu").probabilities(volume)
    np.testing.assert_array_equal(again, expected)


def test_empty_channel_of_earlier_lesions_does_not_prevent_detections(tmp_path):
    model = PLAIN.with_(
        channels=("T1", "earlier"),
        schemes=("ZScoreNormalization", "NoNormalization"),
        use_mask=(False, False),
    )
    predictor = predictor_of(model.write(tmp_path))
    volume = make_volume(model)
    volume.array[1] = 0
    found = predictor.predict_volume(volume, "a")
    assert found.candidates
    assert "earlier is empty" in found.input.warning


def write_zip(folder, *models, extra=None, depth=1):
    """Write a zip file of model folders and of extra text files."""
    path = folder / "model.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for model in models:
            for file in model.rglob("*.*"):
                archive.write(file, file.relative_to([model, *model.parents][2 * depth]))
        for name, text in (extra or {}).items():
            archive.writestr(name, text)
    return path


def test_model_is_read_from_a_zip_of_one_or_of_several_models(tmp_path):
    model = PLAIN.write(tmp_path / "results")
    plan = bundle_plan(model)
    path = write_zip(tmp_path, model)
    assert bundle_plan(path) == plan
    assert bundle_digest(path) == bundle_digest(model)
    path = write_zip(tmp_path, model, FLAT.write(tmp_path / "others"))
    with pytest.raises(BundleError, match=r"2 models.*3d_fullres"):
        read_bundle(path)
    assert bundle_plan(path / "Dataset001_X" / model.name) == plan


def test_zip_of_a_model_and_a_bundle_of_ours_needs_the_name_of_one(tmp_path):
    model = PLAIN.write(tmp_path / "results")
    path = write_zip(tmp_path, model, extra={"run/bundle/weights.safetensors": ""})
    with pytest.raises(BundleError, match=r"2 models.*3d_fullres, .*zip/run/bundle\.$"):
        find_nnunet_model(path)
    assert find_nnunet_model(path / "run") is None
    assert find_nnunet_model(path / "Dataset001_X").folds == ("fold_0",)


def test_zip_of_the_files_of_a_model_without_their_folder_is_read(tmp_path):
    model = PLAIN.with_(n_folds=2).write(tmp_path / "results")
    path = write_zip(tmp_path, model, depth=0)
    assert len(read_bundle(path).networks) == 2
    assert len(read_bundle(path / "fold_1").networks) == 1
    assert bundle_plan(path).nnunet == bundle_plan(model).nnunet


def test_damaged_zip_is_an_error_that_names_the_file(tmp_path):
    path = write_zip(tmp_path, PLAIN.write(tmp_path / "results"))
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("/plans.json"))
    content = bytearray(path.read_bytes())
    begin = info.header_offset + 30 + len(info.filename)
    content[begin : begin + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"plans\.json: cannot be read"):
        read_bundle(path)


def test_folds_are_all_numbered_folds_or_the_named_fold(tmp_path):
    folder = PLAIN.with_(n_folds=3).write(tmp_path)
    assert len(read_bundle(folder).networks) == 3
    assert len(read_bundle(folder / "fold_1").networks) == 1
    (folder / "fold_2").rename(folder / "fold_all")
    assert len(read_bundle(folder).networks) == 2
    assert bundle_digest(folder) != bundle_digest(folder / "fold_1")


class Touch:
    """An object that creates a file if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_checkpoint_with_code_is_an_error_and_is_not_run(tmp_path):
    marker = tmp_path / "ran"
    folder = PLAIN.write(tmp_path, logging=Touch(marker))
    with pytest.raises(BundleError, match="more than tensors and numbers"):
        read_bundle(folder)
    assert not marker.exists()


def test_foreign_class_in_the_plans_is_not_imported(tmp_path):
    foreign = {"network_class_name": "antigravity.Net", "arch_kwargs": {}}
    folder = PLAIN.with_(more={"architecture": foreign}).write(tmp_path)
    with pytest.raises(BundleError, match=r"antigravity\.Net.*not imported"):
        read_bundle(folder)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/evil", "a/../../evil", "C:\\evil"])
def test_zip_with_paths_outside_its_folder_is_an_error(tmp_path, name):
    path = write_zip(tmp_path, PLAIN.write(tmp_path / "results"), extra={name: "x"})
    with pytest.raises(BundleError, match="outside its own folder"):
        read_bundle(path)


def change_layers(**changes):
    """Return the settings of a configuration whose network has other layers."""
    own = PLAIN.plans()["configurations"]["base"]["architecture"]
    return {"architecture": own | {"arch_kwargs": own["arch_kwargs"] | changes}}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"previous_stage": "3d_lowres"}, "cascade"),
        ({"preprocessor_name": "MyPreprocessor"}, "MyPreprocessor"),
        ({"normalization_schemes": ["MyScheme"]}, "MyScheme"),
        ({"resampling_fn_data": "my_resampling"}, "my_resampling"),
        ({"spacing": [1.0, 0.0, 1.0]}, "spacing"),
        ({"patch_size": [8, "many", 8]}, "patch_size"),
        ({"inherits_from": "base"}, "inherits"),
        ({"inherits_from": ["base"]}, "inherits"),
        (change_layers(nonlin="torch.nn.ReLU"), r"torch\.nn\.ReLU"),
    ],
)
def test_error_names_the_unknown_setting_of_the_plans(tmp_path, more, words):
    folder = PLAIN.with_(more=more).write(tmp_path)
    with pytest.raises(BundleError, match=words) as caught:
        read_bundle(folder)
    assert "plans.json" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label_manager": "MyLabels"}, "label_manager is MyLabels"),
        ({"foreground_intensity_properties_per_channel": {}}, "no intensities of channel 0"),
    ],
)
def test_other_labels_and_missing_intensities_of_a_ct_are_an_error(tmp_path, changes, words):
    folder = PLAIN.with_(schemes=("CTNormalization",)).write(tmp_path)
    write_json(folder / "plans.json", read_json(folder / "plans.json") | changes)
    with pytest.raises(BundleError, match=words):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("residual", "more", "words"),
    [
        (False, {"encoder.stages.0.0.convs.0.squeeze.weight": torch.ones(2)}, "MyTrainer changed"),
        (True, {}, "not those of a unet"),
    ],
)
def test_weights_of_another_network_than_the_plans_are_an_error(tmp_path, residual, more, words):
    weights = to_nnunet_weights(PLAIN.with_(residual=residual).network().state_dict()) | more
    folder = PLAIN.write(tmp_path, network_weights=weights, trainer_name="MyTrainer")
    with pytest.raises(BundleError, match=words):
        read_bundle(folder)


def test_files_of_different_trainings_are_an_error(tmp_path):
    folder = PLAIN.write(tmp_path)
    for other, words in (
        (PLAIN.with_(labels=LABELS), "outputs"),
        (PLAIN.with_(channels="ab"), None),
    ):
        write_json(folder / "dataset.json", other.info())
        with pytest.raises(LesionsegError, match=words):
            read_bundle(folder)
    (folder / "fold_0/checkpoint_final.pth").rename(folder / "fold_0/checkpoint_latest.pth")
    with pytest.raises(BundleError, match="not finished"):
        read_bundle(folder)


def test_network_of_old_plans_is_recognised(tmp_path):
    model = PLAIN.with_(more={"architecture": None, "UNet_class_name": "PlainConvUNet"})
    assert isinstance(read_bundle(model.write(tmp_path)), Bundle)
