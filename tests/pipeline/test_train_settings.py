"""Settings of a loss that do not fit the labels are named before a run belongs to them."""

import shutil
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from lesionseg.cli import run
from lesionseg.config import LossConfig, TrainConfig
from lesionseg.errors import ConfigError
from lesionseg.pipeline.train import check_losses
from lesionseg.plan.plan import AnchorPlan
from tests.pipeline.cases import small_training


@pytest.mark.parametrize(
    ("activation", "alpha"), [("sigmoid", [0.2, 0.4]), ("softmax", [0.1, 0.2, 0.4])]
)
def test_one_alpha_a_class_fits(plan, activation, alpha):
    plan = plan.with_(label_values=(1, 2), label_names=("a", "b"), activation=activation)
    for right, numbers in ((True, alpha), (False, [0.2])):
        loss = {"alpha": numbers, "_target_": "lesionseg.losses.FocalLoss"}
        cfg = TrainConfig.of(loss=LossConfig.model_validate(loss))
        with nullcontext() if right else pytest.raises(ConfigError, match="alpha"):
            check_losses(plan, cfg)


def test_anchors_take_an_alpha_a_label(plan):
    anchors = AnchorPlan(stages=(1,), sizes=(((4.0,) * 3, (6.0,) * 3),), width=8, depth=1)
    shape = replace(plan.architecture, name="retina_unet")
    two = {"label_values": (1, 2), "label_names": ("a", "b")}
    plan = plan.with_(**two, architecture=shape, anchors=anchors)
    for right, numbers in ((True, [0.2, 0.4]), (False, [0.1, 0.2, 0.4])):
        cfg = TrainConfig.of(detection={"alpha": numbers})
        with nullcontext() if right else pytest.raises(ConfigError, match="alpha"):
            check_losses(plan, cfg)


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
