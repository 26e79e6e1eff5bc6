"""Settings of a loss that do not fit the labels are named before a run belongs to them."""

import shutil
from dataclasses import replace

import torch

from lesionseg.cli import run
from lesionseg.config import LossConfig, TrainConfig
from lesionseg.errors import ConfigError
from lesionseg.pipeline.train import check_losses
from lesionseg.plan.plan import AnchorPlan
from tests.pipeline.cases import small_training


def fits(plan, **settings):
    try:
        check_losses(plan, TrainConfig.of(**settings))
    except ConfigError as error:
        return "alpha" not in str(error)
    return True


def test_one_alpha_a_class_of_voxels_and_a_label_of_anchors_fits(plan):
    two = plan.with_(label_values=(1, 2), label_names=("a", "b"))
    focal = {"_target_": "lesionseg.losses.FocalLoss"}
    for activation, n in (("sigmoid", 2), ("softmax", 3)):
        right, wrong = (LossConfig.model_validate(focal | {"alpha": [0.2] * k}) for k in (n, 1))
        assert fits(two.with_(activation=activation), loss=right)
        assert not fits(two.with_(activation=activation), loss=wrong)
    anchors = AnchorPlan(stages=(1,), sizes=(((4.0,) * 3, (6.0,) * 3),), width=8, depth=1)
    shape = replace(plan.architecture, name="retina_unet")
    boxed = two.with_(architecture=shape, anchors=anchors)
    assert [fits(boxed, detection={"alpha": [0.2] * n}) for n in (2, 3)] == [True, False]


def test_a_refused_setting_leaves_the_run_directory_to_the_corrected_one(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command = small_training(tmp_path)
    for key, wrong in (
        ("loss.alpha", "[0.2,0.3]"),
        ("trainer.accelerator", "gpu"),
        ("trainer.accelerator", "gpuu"),
    ):
        assert run("train", [*command, f"{key}={wrong}"]) == 2
        assert key.rpartition(".")[2] in capsys.readouterr().err
        assert not [p for p in (tmp_path / "cache").glob("*") if p.name != "facts"]
    assert run("train", [*command, "loss.alpha=[0.2]", "trainer.accelerator=cpu"]) == 0


def test_on_another_machine_a_training_asks_for_its_gpu_until_it_is_finished(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command = small_training(tmp_path)
    assert run("train", command) == 0
    begun = tmp_path / "run" / "config.yaml"
    begun.write_text(begun.read_text().replace("accelerator: auto", "accelerator: gpu"))
    assert run("train", [*command, "trainer.accelerator=gpu"]) == 0  # only scored again
    shutil.rmtree(tmp_path / "run" / "bundle")
    assert run("train", [*command, "trainer.accelerator=gpu"]) == 2
    assert "finds no GPU" in capsys.readouterr().err
