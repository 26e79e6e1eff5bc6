"""`prepare`: survey, plans for another GPU, and the initial weights of a training."""

import logging
from dataclasses import replace
from functools import wraps

import numpy as np
import pytest
import torch

from lesionseg.config import DataConfig, ModelConfig, TrainConfig
from lesionseg.core import CaseFiles, Labels
from lesionseg.errors import BundleError, ConfigError, DatasetError, LesionsegError
from lesionseg.inference.bundle import bundle_plan, write_bundle
from lesionseg.io.text import write_json
from lesionseg.models import build_network
from lesionseg.phantoms import (
    SETTINGS,
    simulate_once,
    write_mri_phantoms,
    write_xray_phantoms,
)
from lesionseg.pipeline.dataset_inspection import inspect_dataset, may_lack
from lesionseg.pipeline.experiment import Experiment
from lesionseg.pipeline.planning import checkpoint_architecture, describe_tile, plan_run, save_run
from lesionseg.plan.plan import Plan
from lesionseg.training.initial_weights import start_from
from tests.flow.cases import HEADS, write_raw
from tests.io.layouts.box_folders import write_picture
from tests.io.layouts.test_contract import BOX, OUTSIDE, Boxes
from tests.models import plans
from tests.models.test_nnunet_weights import PLAIN, write_checkpoint
from tests.pipeline.cases import boxes


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
    plan = plan_run(Experiment(cfg, inspect_dataset(DataConfig.of(root=raw), seed=0), tmp_path))
    assert "24 GB" in plan.reasons["budget"]
    assert plan.flip_axes == (1,)
    assert plan.architecture.features[0] >= 32
    assert (plan.anchors is not None) == (name == "retinanet")


# --- the width of a network in a short training on a CPU ---


@pytest.fixture(scope="module")
def inspections(tmp_path_factory):
    """Return the surveys of simulated heads, of films, and of the films as if in colour."""
    root = tmp_path_factory.mktemp("surveys")
    write_mri_phantoms(root / "heads", 3, seed=0, **HEADS)
    write_xray_phantoms(root / "films", 4, seed=0, shape=(64, 64), pixel_mm=4.0)
    heads, films = (
        inspect_dataset(DataConfig.of(root=root / n), seed=0) for n in ("heads", "films")
    )
    colour = replace(films, fingerprint=replace(films.fingerprint, modality="colour"))
    return {"heads": heads, "films": films, "colour": colour}


@pytest.mark.parametrize(
    ("scans", "model", "minutes", "threads", "fast", "features"),
    [
        ("heads", "unet", 20, 1, torch.float32, 8),
        ("heads", "unet", 10, 3, torch.float32, 8),
        ("heads", "unet", 20, 2, torch.float32, 16),  # 40 minutes of one core
        ("heads", "unet", None, 1, torch.float32, 16),  # the default hour, or steps
        ("heads", "unet", 20, 1, torch.bfloat16, 16),  # makes more steps
        ("heads", "retina_unet", 20, 1, torch.float32, 16),  # not compared
        ("films", "retinanet", 20, 1, torch.float32, 8),
        ("films", "retina_unet", 20, 1, torch.float32, 8),
        ("films", "unet", 20, 1, torch.float32, 16),  # not compared
        ("colour", "retinanet", 20, 1, torch.float32, 16),
    ],
)
def test_network_is_narrow_only_in_short_trainings_on_a_slow_cpu(
    inspections, tmp_path, monkeypatch, scans, model, minutes, threads, fast, features
):
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    monkeypatch.setattr("lesionseg.pipeline.planning.fast_dtype", lambda device: fast)
    trainer = {"accelerator": "cpu", "max_minutes": minutes}
    cfg = TrainConfig.of(trainer=trainer, model={"architecture": model})
    plan = plan_run(Experiment.on(cfg, inspections[scans], tmp_path))
    assert plan.architecture.features[0] == features
    assert ("features" in plan.reasons) == (features == 8)
    wide = cfg.model_copy(update={"model": cfg.model.model_copy(update={"base_features": 12})})
    assert (
        plan_run(Experiment.on(wide, inspections[scans], tmp_path)).architecture.features[0] == 12
    )


# --- weights of a bundle or of a checkpoint ---


@pytest.fixture
def nnunet_plan(plan):
    return plan.with_(architecture=replace(plan.architecture, n_supervised=1, layout="nnunet"))


def test_log_names_the_reused_and_the_new_tensors(nnunet_plan, tmp_path, caplog):
    run = tmp_path / "run"
    old = build_network(nnunet_plan, seed=1)
    network = build_network(nnunet_plan, seed=2)
    write_bundle(run / "bundle", [old, old], nnunet_plan, "card")
    assert bundle_plan(str(run)).architecture == nnunet_plan.architecture
    now = nnunet_plan.with_(labels=Labels((1, 2), ("nodule", "cyst")))
    with caplog.at_level(logging.INFO, "lesionseg"):
        start_from(str(run), network, now)
    n_tensors = len(old.state_dict())
    for words in (f"{n_tensors - 2} of {n_tensors} tensors", "ensemble of 2", "heads.0 (2)"):
        assert words in caplog.text
    with pytest.raises(BundleError):
        bundle_plan(str(tmp_path / "none"))


def test_checkpoint_states_the_architecture(tmp_path):
    path, _ = write_checkpoint(tmp_path, PLAIN)
    model = ModelConfig.of(init_from=str(path))
    assert checkpoint_architecture(model, 3) == PLAIN
    with pytest.raises(ConfigError, match="spatial axes"):
        checkpoint_architecture(model, 2)


# --- datasets that a survey accepts, and simulated datasets ---


def test_dropout_of_the_only_channel_is_refused():
    with pytest.raises(ConfigError):
        may_lack(DataConfig.of(channel_dropout=0.3), ("FLAIR",))


def test_training_voxels_on_boxes_without_masks_is_refused(run_command, tmp_path):
    Boxes().write(tmp_path / "raw")
    settings = [f"data.root={tmp_path / 'raw'}", f"run_dir={tmp_path / 'run'}", "model=unet"]
    assert "1 reference without a mask (case a: 1 box)" in run_command("train", settings, 1).err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("cases", "box", "match"),
    [
        ("ab", OUTSIDE, r"line 2: .*outside"),
        ("bcd", BOX, "no lesion in 3 references"),
    ],
)
def test_dataset_without_usable_references_is_refused(tmp_path, cases, box, match):
    Boxes().write(tmp_path, cases=cases, box=box)
    with pytest.raises(LesionsegError, match=match):
        inspect_dataset(DataConfig.of(root=tmp_path), seed=0)


def test_dataset_without_references_is_refused(tmp_path):
    write_picture(tmp_path / "0.png")
    (tmp_path / "manifest.csv").write_text("case,image\na,0.png\n")
    with pytest.raises(DatasetError, match=r"no reference to learn from \(1 case\)"):
        inspect_dataset(DataConfig.of(root=tmp_path), seed=0)


def test_a_dataset_is_simulated_once(tmp_path, monkeypatch):
    @wraps(write_xray_phantoms)
    def stop(folder, *_, **__):
        folder.mkdir()
        raise KeyboardInterrupt

    own = {"kind": "xray", "n_cases": 1, "seed": 0, "shape": (48, 48), "pixel_mm": 8.0}
    root = tmp_path / "new" / "set"
    with monkeypatch.context() as patch:
        patch.setattr("lesionseg.phantoms.write_xray_phantoms", stop)
        with pytest.raises(KeyboardInterrupt):
            simulate_once(root, own)
    assert list(root.parent.iterdir()) == []
    simulate_once(root, own)
    (root / "annotations.json").unlink()
    simulate_once(root, own)  # tuples equal the lists of the stored file
    assert not (root / "annotations.json").exists()
    with pytest.raises(ConfigError, match=r"data\.phantoms: seed"):
        simulate_once(tmp_path / "other", {"kind": "xray", "n_cases": 1})


def test_simulated_dataset_is_taken_again_only_with_its_kind(tmp_path):
    mri = {"kind": "mri", "n_cases": 1, "seed": 0}
    write_json(tmp_path / SETTINGS, mri)
    simulate_once(tmp_path, mri)
    with pytest.raises(ConfigError, match=r"'kind': 'mri'.*not.*'kind': 'ct'"):
        simulate_once(tmp_path, {**mri, "kind": "ct"})
    (tmp_path / SETTINGS).write_text('{"n_cases": 1, "seed": 0}')  # as version 1.0 wrote it
    simulate_once(tmp_path, mri)


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
    inspections, patients, is_validation_safe, is_test_safe
):
    roles = ("train", "validation", "test")
    files = zip(roles, patients, strict=True)
    cases = tuple(CaseFiles(role, (), group=patient) for role, patient in files)
    inspection = inspections["heads"]
    inspection = replace(
        inspection,
        dataset=replace(inspection.dataset, cases=cases),
        splits=replace(inspection.splits, roles=dict(zip(roles, roles, strict=True))),
    )
    assert inspection.is_group_safe("validation") == is_validation_safe
    assert inspection.is_group_safe("test") == is_test_safe


def test_plan_stores_that_nan_is_background(tmp_path):
    cases = {}
    for k in range(3):
        image = np.random.default_rng(k).normal(100, 5, (16, 16, 16))
        image[:4] = np.nan
        cases[f"c{k}"] = ("Tr", image, boxes(image.shape, (6, 6, 6, 4)))
    root = write_raw(tmp_path / "data", {"background": 0, "lesion": 1}, cases)
    data = DataConfig.of(root=str(root))
    with pytest.raises(DatasetError, match=r"1024 voxels are NaN.*data\.nan=background"):
        inspect_dataset(data, seed=0)
    data = data.model_copy(update={"nan": "background"})
    inspection = inspect_dataset(data, seed=0)
    assert inspection.fingerprint.channels[0].nonzero_share == 0.75
    experiment = Experiment(TrainConfig.of(data=data), inspection, tmp_path / "run")
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
