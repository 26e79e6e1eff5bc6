"""The module and the data module under a `pl.Trainer` of the user's own."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from lesionseg.losses import FocalLoss
from lesionseg.training import LesionData, VolumeValidation, lesion_module
from tests.training.conftest import config, weights

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice


def fitted(folder, plan, tiles, chosen, ckpt_path=None, **options):
    torch.manual_seed(0)
    module = lesion_module(plan, chosen, loss=FocalLoss())
    quiet = {"max_epochs": 1, "logger": False, "enable_progress_bar": False}
    trainer = pl.Trainer(default_root_dir=folder, accelerator="cpu", **quiet, **options)
    trainer.fit(module, LesionData(tiles, plan, chosen.trainer), ckpt_path=ckpt_path)
    return module


def test_six_lines_train_what_fit_trains(train, make_plan, squares, tmp_path):
    plain = config(max_steps=6)
    module = fitted(tmp_path, make_plan(), squares(), plain)
    assert module.global_step == 6  # the budget of the settings ended it
    ours = train(max_steps=6, gradient_clip_val=1e9)
    torch.testing.assert_close(weights(module.network), weights(ours.network))


def test_resumed_by_lightning_between_steps_it_ends_bit_for_bit_the_same(
    make_plan, squares, tmp_path
):
    given = tmp_path, make_plan(), squares(), config(max_steps=6)
    calm = fitted(*given)
    save = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1, save_top_k=-1)
    fitted(*given, callbacks=[save], max_steps=3)
    resumed = fitted(*given, ckpt_path=tmp_path / "kept" / "epoch=0-step=3.ckpt")
    assert resumed.global_step == 6
    assert torch.equal(weights(resumed.network), weights(calm.network))


def test_volumes_are_validated_under_another_trainer_too(make_plan, squares, tmp_path):
    scores = iter([0.2, 0.6, 0.4])
    scored = []

    class EndsAtAGoodScore(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            scored.append(float(trainer.callback_metrics.get("validation_score", 0)))

    validation = VolumeValidation(lambda _: {"dice": next(scores)}, 1e-9, tmp_path)
    callbacks = [validation, EndsAtAGoodScore()]
    fitted(tmp_path, make_plan(), squares(), config(max_steps=3), callbacks=callbacks)
    assert scored == pytest.approx([0, 0.0, 0.2])
    assert validation.best_score == 0.6
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 2
