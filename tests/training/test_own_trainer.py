"""The module and the data module under a `pl.Trainer` of the user's own."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint

from lesionseg.io.atomic import read_csv
from lesionseg.losses import FocalLoss
from lesionseg.phantoms import write_mri_phantoms
from lesionseg.pipeline.dataset import DataSettings
from lesionseg.pipeline.train.learning import prepared
from lesionseg.plan.make import PlanOverrides
from lesionseg.training import Learning, LesionData, TrainerSettings, lesion_module, tiles_of

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def learning(**settings):
    small = {"workers": 0, "accelerator": "cpu", "precision": "32-true", "max_steps": 6}
    return Learning(FocalLoss(), TrainerSettings(**{**small, **settings}))


def trainer(folder, **options):
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        **{"max_epochs": 1, "logger": False, "enable_progress_bar": False, **options},
    )


def fitted(folder, plan, tiles, ckpt_path=None, chosen=None, **options):
    chosen = chosen or learning()
    torch.manual_seed(0)
    module = lesion_module(plan, chosen)
    data = LesionData(tiles, plan, chosen.trainer)
    trainer(folder, **options).fit(module, data, ckpt_path=ckpt_path)
    return module


def test_six_lines_train_what_fit_trains(train, make_plan, squares, tmp_path):
    module = fitted(tmp_path, make_plan(), squares())
    ours = train(max_steps=6, optimiser=learning().optimiser, loss=FocalLoss())
    assert module.counters.steps == 6  # the budget of the settings ended it
    # `fit` lays tensors out as is fastest on this processor: sums of another order
    torch.testing.assert_close(weights(module.final_network), weights(ours.network))


def test_resumed_by_lightning_between_steps_it_ends_bit_for_bit_the_same(
    make_plan, squares, tmp_path
):
    calm = fitted(tmp_path, make_plan(), squares())
    save = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1, save_top_k=-1)
    fitted(tmp_path, make_plan(), squares(), callbacks=[save], max_steps=3)
    path = tmp_path / "kept" / "epoch=0-step=3.ckpt"
    resumed = fitted(tmp_path, make_plan(), squares(), ckpt_path=path)
    assert resumed.counters.steps == 6
    assert torch.equal(weights(resumed.network), weights(calm.network))
    assert torch.equal(weights(resumed.final_network), weights(calm.final_network))


def test_a_users_logger_is_told_loss_and_rate(make_plan, squares, tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path, name="own", version="")
    fitted(tmp_path, make_plan(), squares(), logger=logger, log_every_n_steps=1)
    rows = read_csv(tmp_path / "own" / "metrics.csv")
    assert len([row for row in rows if row["train_loss"] and row["train_lr"]]) == 6


def test_lightnings_average_may_take_the_place_of_ours(make_plan, squares, tmp_path):
    plain = fitted(tmp_path, make_plan(), squares(), chosen=learning(ema_decay=None))
    average = EMAWeightAveraging(decay=0.9)
    taken = fitted(
        tmp_path, make_plan(), squares(), chosen=learning(ema_decay=None), callbacks=[average]
    )
    assert taken.averaged is None
    assert not torch.equal(weights(taken.network), weights(plain.network))


def test_a_folder_of_scans_trains_under_ones_own_trainer(tmp_path):
    write_mri_phantoms(tmp_path / "raw", 3, seed=0, shape=(24, 24, 24), spacing_mm=(4.0, 4.0, 4.0))
    small = PlanOverrides(base_features=4, batch_size=2, tile_shape=(16, 16, 16))
    plan, cases = prepared(DataSettings(str(tmp_path / "raw")), tmp_path / "run", small)
    chosen = learning(max_steps=2)
    module = fitted(tmp_path, plan, tiles_of(cases, plan, chosen), chosen=chosen)
    assert module.counters.steps == 2
