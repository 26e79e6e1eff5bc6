"""Settings of a loss that do not fit the labels are named before a run belongs to them."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lesionseg.cli import run
from lesionseg.errors import ConfigError
from lesionseg.losses import DetectionLoss, DiceFocalLoss, FocalLoss, LesionWiseFocalLoss
from lesionseg.phantoms import write_xray_phantoms
from lesionseg.pipeline.train.loss_check import check_losses
from lesionseg.plan.plan import AnchorPlan, Plan
from lesionseg.training.device.accelerator import require_device

ANCHORS = AnchorPlan(stages=(1,), sizes=(((4.0,) * 3, (6.0,) * 3),), width=8, depth=1)
Planned = Callable[..., Plan]


@pytest.fixture
def planned(plan: Plan) -> Planned:
    """The plan with two labels, for another architecture and with other fields."""

    def made(name: str = "unet", **changes: Any) -> Plan:
        two: dict[str, Any] = {"label_values": (1, 2), "label_names": ("a", "b")}
        anchors = None if name == "unet" else ANCHORS
        shape = replace(plan.architecture, name=name)
        return plan.with_(**two, architecture=shape, anchors=anchors).with_(**changes)

    return made


@pytest.mark.parametrize("kind", [FocalLoss, DiceFocalLoss, LesionWiseFocalLoss])
@pytest.mark.parametrize(
    ("activation", "alpha"), [("sigmoid", [0.2, 0.4]), ("softmax", [0.1, 0.2, 0.4])]
)
def test_one_alpha_a_class_fits(planned: Planned, kind: Any, activation: str, alpha: Any) -> None:
    check_losses(
        planned(activation=activation), kind(alpha=alpha, activation=activation), DetectionLoss()
    )
    with pytest.raises(ConfigError, match=r"in loss\.alpha\) Seen: 1 numbers"):
        check_losses(
            planned(activation=activation),
            kind(alpha=[0.2], activation=activation),
            DetectionLoss(),
        )


def test_regions_have_an_alpha_each_and_their_lesions_one(planned: Planned) -> None:
    regions = planned("retina_unet", regions=((1, 2), (2,)))
    check_losses(regions, FocalLoss(alpha=[0.2, 0.4]), DetectionLoss())
    with pytest.raises(
        ConfigError, match=r"detection\.alpha\) Seen: 2 .*Expected: 1 .*background first"
    ):
        check_losses(regions, FocalLoss(), DetectionLoss(alpha=[0.2, 0.4]))


def test_anchors_take_an_alpha_a_label(planned: Planned) -> None:
    for name in ("retinanet", "retina_unet"):
        check_losses(planned(name), FocalLoss(), DetectionLoss(alpha=[0.2, 0.4]))
        with pytest.raises(ConfigError, match=r"detection\.alpha"):
            check_losses(planned(name), FocalLoss(), DetectionLoss(alpha=[0.1, 0.2, 0.4]))
    check_losses(planned("unet"), FocalLoss(), DetectionLoss(alpha=[0.1, 0.2, 0.4]))


def test_a_retinanet_has_no_loss_of_voxels_to_try(planned: Planned) -> None:
    check_losses(planned("retinanet"), FocalLoss(alpha=[0.1] * 7), DetectionLoss())


def test_the_loss_is_left_as_it_was(planned: Planned) -> None:
    class Counting(FocalLoss):
        n = 0

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            self.n += 1
            return super().forward(*args, **kwargs)

    loss = Counting()
    check_losses(planned(), loss, DetectionLoss())
    assert loss.n == 0


def small_training(folder: Path) -> list[str]:
    """The command of a training of one step, of radiographs that are drawn for it."""
    write_xray_phantoms(folder / "raw", 3, seed=0, shape=(48, 48), pixel_mm=8.0)
    command = [f"data.root={folder / 'raw'}", f"run_dir={folder / 'run'}"]
    command += ["trainer.max_minutes=null", "trainer.max_steps=1", "trainer.workers=0"]
    command += ["report.pdf=false"]
    return [*command, "model.tile_shape=[32,32]", "model.batch_size=1", "model.base_features=4"]


@pytest.mark.parametrize(
    ("wrong", "right", "named"),
    [
        ("loss.alpha=[0.2,0.3]", "loss.alpha=[0.2]", "loss.alpha"),
        ("trainer.accelerator=gpu", "trainer.accelerator=auto", "trainer.accelerator"),
        ("trainer.accelerator=gpuu", "trainer.accelerator=cpu", "auto, cpu, gpu"),
    ],
)
def test_a_refused_setting_leaves_the_run_directory_to_the_corrected_one(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    wrong: str,
    right: str,
    named: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command = small_training(tmp_path)
    assert run("train", [*command, wrong]) == 2
    assert named in capsys.readouterr().err
    prepared = [path for path in (tmp_path / "cache").glob("*") if path.name != "facts"]
    assert not prepared
    assert run("train", [*command, right]) == 0


def test_a_gpu_that_is_not_there_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    require_device("auto")
    require_device("cpu")
    with pytest.raises(ConfigError, match=r"trainer\.accelerator.*accelerator=auto"):
        require_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    require_device("gpu")


def test_on_another_machine_a_training_asks_for_its_gpu_until_it_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command = small_training(tmp_path)
    assert run("train", command) == 0
    begun = tmp_path / "run" / "config.yaml"
    begun.write_text(begun.read_text().replace("accelerator: auto", "accelerator: gpu"))
    assert run("train", [*command, "trainer.accelerator=gpu"]) == 0  # only judged again
    shutil.rmtree(tmp_path / "run" / "bundle")
    assert run("train", [*command, "trainer.accelerator=gpu"]) == 2
    assert "There is no GPU" in capsys.readouterr().err
