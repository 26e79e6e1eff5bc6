"""The module and the data module under a user's own `pl.Trainer`."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from lesionseg.losses import FocalLoss
from lesionseg.models import build_network
from lesionseg.training import LesionData, VolumeValidation
from lesionseg.training.callbacks import AfterValidation
from tests.training.conftest import make_config, make_module, weights

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning warns about workers and loggers


def fit_module(folder, plan, tiles, cfg, ckpt_path=None, **options):
    torch.manual_seed(0)
    module = make_module(plan, cfg, build_network(plan, seed=cfg.seed), FocalLoss())
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        **options,
    )
    trainer.fit(module, LesionData(tiles, plan, cfg.trainer), ckpt_path=ckpt_path)
    return module


def test_module_under_lightning_trains_like_fit(train, make_plan, squares, tmp_path):
    module = fit_module(tmp_path, make_plan(), squares(), make_config(max_steps=6))
    assert module.global_step == 6  # limited by the settings
    ours = train(max_steps=6, gradient_clip_val=1e9)
    torch.testing.assert_close(weights(module.network), weights(ours.network))


def test_training_resumed_by_lightning_ends_with_identical_weights(make_plan, squares, tmp_path):
    given = tmp_path, make_plan(), squares(), make_config(max_steps=6)
    calm = fit_module(*given)
    save = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1, save_top_k=-1)
    fit_module(*given, callbacks=[save], max_steps=3)
    resumed = fit_module(*given, ckpt_path=tmp_path / "kept/epoch=0-step=3.ckpt")
    assert resumed.global_step == 6
    assert torch.equal(weights(resumed.network), weights(calm.network))


def test_volumes_are_validated_under_a_user_s_trainer(make_plan, squares, tmp_path):
    scores = iter([0.2, 0.6, 0.4])
    scored = []

    class EndsAtAGoodScore(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            scored.append(float(trainer.callback_metrics.get("validation_score", 0)))

    validation = VolumeValidation(lambda _: {"score": next(scores)}, 1e-9, tmp_path)
    callbacks = [validation, EndsAtAGoodScore()]
    fit_module(tmp_path, make_plan(), squares(), make_config(max_steps=3), callbacks=callbacks)
    assert scored == pytest.approx([0, 0.0, 0.2])
    assert validation.best_score == 0.6
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 2


def test_function_is_called_after_each_validation_except_the_last(make_plan, squares, tmp_path):
    events = []

    def validate(_):
        events.append("validation")
        return {}

    callbacks = [
        VolumeValidation(validate, 1e-9, tmp_path),
        AfterValidation(lambda: events.append("function")),
    ]
    fit_module(tmp_path, make_plan(), squares(), make_config(max_steps=3), callbacks=callbacks)
    assert events == ["validation", "function"] * 2 + ["validation"]
