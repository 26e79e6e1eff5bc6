"""`prepare`: survey, plans for another GPU, and the initial weights of a training."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lesionseg.cli import run
from lesionseg.config import DataConfig, ModelConfig, TrainConfig
from lesionseg.core import Labels
from lesionseg.errors import BundleError, ConfigError, DatasetError
from lesionseg.inference.bundle import bundle_plan, write_bundle
from lesionseg.io.text import read_json, write_json
from lesionseg.models import build_network
from lesionseg.phantoms import (
    SETTINGS,
    simulate_once,
    write_mri_phantoms,
    write_xray_phantoms,
)
from lesionseg.pipeline.experiment import Experiment
from lesionseg.pipeline.planning import checkpoint_architecture, describe_tile, plan_run, save_run
from lesionseg.pipeline.survey import may_lack, take_survey
from lesionseg.plan.plan import Plan
from lesionseg.training.initial_weights import start_from
from tests.models import plans
from tests.models.test_nnunet_weights import PLAIN, plan_of, write_checkpoint
from tests.pipeline.cases import boxes, write_array


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("xray")
    write_xray_phantoms(root, n_cases=4, shape=(192, 192), seed=3)
    return root


@pytest.mark.parametrize("name", ["unet", "retinanet"])
def test_plan_fits_the_stated_gpu_memory(raw, tmp_path, monkeypatch, name):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    trainer = {"accelerator": "gpu", "memory_gb": 24.0}
    augment = {"flip_axes": [1]}
    cfg = TrainConfig.of(trainer=trainer, model={"architecture": name}, augment=augment)
    plan = plan_run(Experiment(cfg, take_survey(DataConfig.of(root=raw), seed=0), tmp_path))
    assert "24 GB" in plan.reasons["budget"]
    assert plan.flip_axes == (1,)
    assert plan.architecture.features[0] >= 32
    assert (plan.anchors is not None) == (name == "retinanet")


# --- the width of a network in a short training on a CPU ---


@pytest.fixture(scope="module")
def head_scans(tmp_path_factory):
    root = tmp_path_factory.mktemp("heads")
    write_mri_phantoms(root, 3, seed=0, shape=(16, 18, 16), spacing_mm=(8.0, 8.0, 8.0))
    return take_survey(DataConfig.of(root=root), seed=0)


@pytest.mark.parametrize(
    ("minutes", "threads", "fast", "model", "features"),
    [
        (20, 1, torch.float32, {"architecture": "unet"}, 8),
        (10, 3, torch.float32, {"architecture": "unet"}, 8),
        (20, 2, torch.float32, {"architecture": "unet"}, 16),  # 40 minutes of one core
        (None, 1, torch.float32, {"architecture": "unet"}, 16),  # the default hour, or steps
        (20, 1, torch.bfloat16, {"architecture": "unet"}, 16),  # makes more steps
        (20, 1, torch.float32, {"architecture": "unet", "base_features": 12}, 12),
        (20, 1, torch.float32, {"architecture": "retina_unet"}, 16),  # not compared
    ],
)
def test_unet_is_narrow_only_in_short_trainings_on_a_slow_cpu(
    head_scans, tmp_path, monkeypatch, minutes, threads, fast, model, features
):
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    monkeypatch.setattr("lesionseg.pipeline.planning.fast_dtype", lambda device: fast)
    trainer = {"accelerator": "cpu", "max_minutes": minutes}
    cfg = TrainConfig.of(trainer=trainer, model=model)
    plan = plan_run(Experiment(cfg, head_scans, tmp_path))
    assert plan.architecture.features[0] == features
    assert ("features" in plan.reasons) == (features == 8)


def test_short_training_with_the_default_model_is_narrow(head_scans, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    monkeypatch.setattr("lesionseg.pipeline.planning.fast_dtype", lambda device: torch.float32)
    cfg = TrainConfig.of(trainer={"accelerator": "cpu", "max_minutes": 20})
    experiment = Experiment.on(cfg, head_scans, tmp_path)
    assert experiment.cfg.model.architecture == "unet"
    assert "masks" in experiment.why_model
    assert plan_run(experiment).architecture.features[0] == 8


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    root = tmp_path_factory.mktemp("films")
    write_xray_phantoms(root, 4, seed=0, shape=(64, 64), pixel_mm=4.0)
    return take_survey(DataConfig.of(root=root), seed=0)


@pytest.mark.parametrize(
    ("name", "minutes", "fast", "features"),
    [
        ("retinanet", 20, torch.float32, 8),
        ("retina_unet", 20, torch.float32, 8),
        ("unet", 20, torch.float32, 16),  # not compared
        ("retinanet", 60, torch.float32, 16),
        ("retinanet", 20, torch.bfloat16, 16),
    ],
)
def test_detector_on_radiographs_is_narrow_in_short_trainings_on_a_slow_cpu(
    films, tmp_path, monkeypatch, name, minutes, fast, features
):
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    monkeypatch.setattr("lesionseg.pipeline.planning.fast_dtype", lambda device: fast)
    trainer = {"accelerator": "cpu", "max_minutes": minutes}
    cfg = TrainConfig.of(trainer=trainer, model={"architecture": name})
    assert plan_run(Experiment(cfg, films, tmp_path)).architecture.features[0] == features


def test_detector_on_pictures_in_colour_keeps_its_width(films, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    monkeypatch.setattr("lesionseg.pipeline.planning.fast_dtype", lambda device: torch.float32)
    in_colour = replace(films, fingerprint=replace(films.fingerprint, modality="colour"))
    cfg = TrainConfig.of(
        trainer={"accelerator": "cpu", "max_minutes": 20}, model={"architecture": "retinanet"}
    )
    assert plan_run(Experiment(cfg, in_colour, tmp_path)).architecture.features[0] == 16


# --- weights of a bundle or of a checkpoint ---


@pytest.fixture
def nnunet_plan(plan):
    return plan.with_(architecture=replace(plan.architecture, n_supervised=1, layout="nnunet"))


def test_log_names_the_reused_and_the_new_tensors(nnunet_plan, tmp_path, caplog):
    old = build_network(nnunet_plan, seed=1)
    network = build_network(nnunet_plan, seed=2)
    write_bundle(tmp_path / "run" / "bundle", [old, old], nnunet_plan, "card")
    assert bundle_plan(str(tmp_path / "run")).architecture == nnunet_plan.architecture
    with caplog.at_level(logging.INFO, "lesionseg"):
        start_from(
            str(tmp_path / "run"),
            network,
            nnunet_plan.with_(labels=Labels((1, 2), ("nodule", "cyst"))),
        )
    n_tensors = len(old.state_dict())
    assert f"{n_tensors - 2} of {n_tensors} tensors taken" in caplog.text
    assert "ensemble of 2" in caplog.text
    assert "heads.0 (2)" in caplog.text
    stem = "encoder.stages.0.0.conv.weight"
    assert torch.equal(network.state_dict()[stem], old.state_dict()[stem])
    with pytest.raises(BundleError):
        bundle_plan(str(tmp_path / "none"))


def test_checkpoint_initialises_the_backbone_and_is_logged(tmp_path, caplog):
    path, old = write_checkpoint(tmp_path, PLAIN)
    own = plan_of(PLAIN)
    network = build_network(own, seed=2)
    model = ModelConfig.of(init_from=str(path))
    assert checkpoint_architecture(model, 3) == PLAIN
    with pytest.raises(ConfigError, match="spatial axes"):
        checkpoint_architecture(model, 2)
    with caplog.at_level(logging.INFO, "lesionseg"):
        start_from(str(path), network, own)
    assert "tensors taken" in caplog.text
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, old.state_dict()[name]) != name.startswith("heads"), name


# --- datasets that a survey accepts, and simulated datasets ---


def test_dropout_of_the_only_channel_is_refused():
    with pytest.raises(ConfigError):
        may_lack(DataConfig.of(channel_dropout=0.3), ("FLAIR",))


def write_coco_boxes(root, box=(8, 10, 9, 8)):
    """Write four radiographs of 32 by 32 with COCO boxes. One of them is lesion-free."""
    (root / "images").mkdir(parents=True)
    images = []
    boxes = []
    for i in range(4):
        Image.fromarray(np.full((32, 32), 90, np.uint8)).save(root / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 32, "height": 32})
        boxes.append({"id": i, "image_id": i, "category_id": 1, "bbox": [*box]})
    content = {"images": images, "annotations": boxes[1:], "categories": [{"id": 1, "name": "n"}]}
    write_json(root / "annotations.json", content)
    return root


@pytest.mark.parametrize("model", ["unet", "retina_unet"])
def test_training_voxels_on_boxes_without_masks_is_refused(model, tmp_path, capsys):
    root = write_coco_boxes(tmp_path / "raw")
    folder = tmp_path / "run"
    assert run("train", [f"data.root={root}", f"run_dir={folder}", f"model={model}"]) == 1
    assert "3 references without a mask (case 1: 1 box)" in capsys.readouterr().err
    assert not folder.exists()


def test_dataset_without_usable_references_is_refused(tmp_path):
    data = DataConfig.of(root=write_coco_boxes(tmp_path / "raw", box=(40, 40, 5, 5)))
    with pytest.raises(DatasetError, match=r"(?s)3 cases cannot be used(.*outside){3}"):
        take_survey(data, seed=0)
    table = tmp_path / "raw" / "annotations.json"
    table.write_text(json.dumps({**read_json(table), "annotations": []}))
    with pytest.raises(DatasetError, match="no lesion in 4 references"):
        take_survey(data, seed=0)
    (tmp_path / "raw" / "manifest.csv").write_text("case,image\na,images/0.png\n")
    with pytest.raises(DatasetError, match=r"no reference to learn from \(1 case\)"):
        take_survey(data, seed=0)


def test_test_case_of_a_split_file_is_left_out_of_the_fingerprint(tmp_path):
    write_xray_phantoms(tmp_path / "raw", 4, seed=0, shape=(48, 48), pixel_mm=8.0)
    own = tmp_path / "splits.json"
    data = DataConfig.of(root=tmp_path / "raw")
    before = take_survey(data, 0)
    tested = before.dataset.cases[0].case
    write_json(own, {"roles": {**before.splits.roles, tested: "test"}})
    after = take_survey(data.model_copy(update={"splits": str(own)}), 0)
    assert (len(before.fingerprint.shapes), len(after.fingerprint.shapes)) == (4, 3)


def test_a_dataset_is_simulated_once(tmp_path, monkeypatch):
    def write(folder: Path, n_cases: int, *, progress: bool):  # the settings are checked by these
        folder.mkdir()
        if not n_cases:
            raise KeyboardInterrupt
        (folder / "scan").touch()

    monkeypatch.setattr("lesionseg.phantoms.write_mri_phantoms", write)
    root = tmp_path / "new" / "set"
    with pytest.raises(KeyboardInterrupt):
        simulate_once(root, {"kind": "mri", "n_cases": 0})
    assert list(root.parent.iterdir()) == []
    simulate_once(root, {"kind": "mri", "n_cases": 2})
    assert sorted(p.name for p in root.iterdir()) == ["scan", SETTINGS]
    (root / "scan").unlink()
    simulate_once(root, {"kind": "mri", "n_cases": 2})
    assert not (root / "scan").exists()
    with pytest.raises(ConfigError):
        simulate_once(root, {"kind": "mri", "n_cases": 3})


def test_simulated_dataset_is_taken_again_only_with_its_kind_and_arguments(tmp_path):
    own = {"kind": "xray", "n_cases": 1, "seed": 0, "shape": (48, 48), "pixel_mm": 8.0}
    root = tmp_path / "set"
    simulate_once(root, own)
    simulate_once(root, own)  # tuples equal the lists of the stored file
    with pytest.raises(ConfigError, match=r"data\.phantoms: seed"):
        simulate_once(tmp_path / "other", {"kind": "xray", "n_cases": 1})
    mri = {"kind": "mri", "n_cases": 1, "seed": 0}
    head = tmp_path / "head"
    head.mkdir()
    write_json(head / SETTINGS, mri)
    simulate_once(head, mri)
    with pytest.raises(ConfigError, match=r"'kind': 'mri'.*not.*'kind': 'ct'"):
        simulate_once(head, {**mri, "kind": "ct"})
    (head / SETTINGS).write_text('{"n_cases": 1, "seed": 0}')  # as version 1.0 wrote it
    simulate_once(head, mri)


@pytest.fixture
def survey_of(tmp_path):
    """Return a function that gives three cases these patients and roles in a survey."""
    write_xray_phantoms(tmp_path / "raw", 3, seed=0, shape=(48, 48), pixel_mm=8.0)
    survey = take_survey(DataConfig.of(root=tmp_path / "raw"), 0)

    def change(patients, roles):
        files = zip(survey.dataset.cases, patients, strict=True)
        cases = tuple(replace(case, group=patient) for case, patient in files)
        names = [case.case for case in cases]
        splits = replace(survey.splits, roles=dict(zip(names, roles, strict=True)))
        return replace(survey, dataset=replace(survey.dataset, cases=cases), splits=splits)

    return change


@pytest.mark.parametrize(
    ("patients", "is_validation_safe", "is_test_safe"),
    [
        ("abc", True, True),
        ("aab", False, True),
        ("aba", True, False),
        ("abb", True, False),
        (("", "", ""), True, True),  # cases of unknown patients
    ],
)
def test_role_is_safe_only_if_its_patients_were_not_used_before(
    survey_of, patients, is_validation_safe, is_test_safe
):
    survey = survey_of(patients, ("train", "validation", "test"))
    assert survey.is_group_safe("validation") == is_validation_safe
    assert survey.is_group_safe("test") == is_test_safe


def test_plan_stores_that_nan_is_background(tmp_path):
    root = tmp_path / "data"
    rows = ["case,image,reference"]
    for k in range(3):
        image = np.random.default_rng(k).normal(100, 5, (16, 16, 16)).astype(np.float32)
        image[:4] = np.nan
        mask = boxes((16, 16, 16), (6, 6, 6, 4))
        write_array(root / f"i{k}.nii", image)
        write_array(root / f"m{k}.nii", mask)
        rows.append(f"c{k},i{k}.nii,m{k}.nii")
    (root / "manifest.csv").write_text("\n".join(rows))
    with pytest.raises(DatasetError, match=r"1024 voxels are NaN.*data\.nan=background"):
        take_survey(DataConfig.of(root=str(root)), seed=0)
    survey = take_survey(DataConfig.of(root=str(root), nan="background"), seed=0)
    assert survey.fingerprint.channels[0].nonzero_share == 0.75
    cfg = TrainConfig.of(data={"root": str(root), "nan": "background"})
    experiment = Experiment(cfg, survey, tmp_path / "run")
    plan = plan_run(experiment)
    save_run(experiment, plan)
    assert plan.nan_background
    assert Plan.from_json((tmp_path / "run" / "plan.json").read_text()) == plan


@pytest.mark.parametrize(
    ("raster_mm", "spacing_mm", "expected"),
    [
        (1.0, 1.0, "1024 × 256 pixels"),
        (1.0, 2.0, "1024 × 256 pixels, each of 2 × 2 image pixels,"),  # half the resolution
        (0.2, 0.4, "1024 × 256 pixels of 0.4 × 0.4 mm"),
        (0.5, 1.0, "1024 × 256 pixels of 1 × 1 mm"),
    ],
)
def test_millimetres_of_a_tile_are_stated_only_if_the_pixel_size_is_known(
    raster_mm, spacing_mm, expected
):
    plan = plans.plan_of(dims=2).with_(
        raster_mm=raster_mm, spacing_mm=(spacing_mm,) * 2, tile_shape=(1024, 256)
    )
    assert describe_tile(plan) == expected
