"""Why some parts stay ours: what Lightning's own would break, each shown by Lightning itself."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.plugins import MixedPrecision, TorchCheckpointIO
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from lesionseg.io.atomic import read_csv
from lesionseg.losses import FocalLoss
from lesionseg.training import Learning, LesionData, TrainerSettings, lesion_module
from lesionseg.training.callbacks.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice


def fit(plan, tiles, folder, ckpt_path=None, max_steps=4, **options):
    settings = TrainerSettings(
        max_steps=4, workers=0, accelerator="cpu", precision="32-true", ema_decay=None
    )
    module = lesion_module(plan, Learning(FocalLoss(), settings))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        max_steps=max_steps,
        logger=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(module, LesionData(tiles, plan, settings), ckpt_path=ckpt_path)
    return trainer


def test_its_accumulation_sees_one_batch_at_a_time(make_plan, squares, tmp_path):
    """The normaliser needs all of them before the first backward: a step of our own, hence."""
    with pytest.raises(MisconfigurationException, match="accumulate"):
        fit(make_plan(), squares(), tmp_path, accumulate_grad_batches=2)


def test_its_average_is_made_before_the_weights_are_on_the_gpu(
    make_plan, squares, tmp_path, monkeypatch
):
    """So that on a GPU every step would copy all weights to the processor."""
    order = []
    move, average = SingleDeviceStrategy.model_to_device, EMAWeightAveraging.setup
    monkeypatch.setattr(
        SingleDeviceStrategy, "model_to_device", lambda s: order.append("moved") or move(s)
    )
    monkeypatch.setattr(
        EMAWeightAveraging,
        "setup",
        lambda s, *a, **k: order.append("average") or average(s, *a, **k),
    )
    fit(make_plan(), squares(), tmp_path, callbacks=[EMAWeightAveraging()])
    assert order[:2] == ["average", "moved"]


def test_its_average_is_full_of_the_first_weights_in_a_short_training():
    """The decay is the same from the first step on; ours grows with the steps done."""
    average = torch.optim.swa_utils.AveragedModel(
        torch.nn.Linear(1, 1, bias=False), **EMAWeightAveraging(decay=0.99)._kwargs
    )
    network = torch.nn.Linear(1, 1, bias=False)
    for value in (1.0, *[0.0] * 8):
        torch.nn.init.constant_(network.weight, value)
        average.update_parameters(network)
    assert average.module.weight.item() > 0.9


def half_written(monkeypatch):
    """TMPDIR on another disk, and a kill in the middle of what is copied from there."""

    def no_link(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def cut_off(source, target, *_, **__):
        data = Path(source).read_bytes()
        Path(target).write_bytes(data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", no_link)
    monkeypatch.setattr(shutil, "copyfile", cut_off)


def test_its_checkpoint_may_be_half_written_where_tmp_is_another_disk(tmp_path, monkeypatch):
    """Written to TMPDIR and moved; ours is written beside its place and renamed."""
    path = tmp_path / "last.ckpt"
    TorchCheckpointIO().save_checkpoint({"weights": torch.zeros(9)}, path)
    half_written(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        TorchCheckpointIO().save_checkpoint({"weights": torch.ones(9)}, path)
    with pytest.raises(RuntimeError):
        torch.load(path, weights_only=True)
    write_checkpoint(path, Checkpoint({"weights": torch.ones(9)}, {}, {}))
    assert read_checkpoint(path).module["weights"].tolist() == [1.0] * 9


def test_its_half_precision_refuses_to_clip_what_a_fused_optimiser_updates(make_plan):
    """Ours unscales first; a fused optimiser leaves a step out without the host's knowledge."""
    settings = TrainerSettings(max_steps=1, accelerator="cpu")
    optimiser = lesion_module(make_plan(), Learning(FocalLoss(), settings)).configure_optimizers()
    with pytest.raises(RuntimeError, match=r"does not allow for gradient clipping.*fused"):
        MixedPrecision("16-mixed", "cpu").clip_gradients(optimiser, 12.0)


def test_its_table_of_metrics_begins_anew_when_a_training_is_resumed(tmp_path):
    for step in (5, 10):
        logger = pl.loggers.CSVLogger(tmp_path, name="", version="")
        logger.log_metrics({"loss": 1.0}, step=step)
        logger.save()
    assert [row["step"] for row in read_csv(tmp_path / "metrics.csv")] == ["10"]


def test_its_progress_bar_knows_no_end(make_plan, squares, tmp_path):
    """A budget of minutes has no number of batches; our line tells its share and the time left."""
    trainer = fit(make_plan(), squares(), tmp_path, max_steps=1)
    assert trainer.num_training_batches == float("inf")
