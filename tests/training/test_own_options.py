"""Users' own callbacks, loggers and options of Lightning's trainer: called, or refused by name."""

from typing import ClassVar

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.strategies import FSDPStrategy

from lesionseg.errors import ConfigError
from lesionseg.io.atomic import read_csv
from lesionseg.training.own_options import REFUSED
from lesionseg.training.settings import TrainerSettings


class Steps(pl.Callback):
    seen: ClassVar[list[int]] = []  # of the class: each training has a copy of the callback

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append(pl_module.counters.steps)


def test_a_callback_of_the_configuration_is_called_after_each_step(train, monkeypatch):
    monkeypatch.setattr(Steps, "seen", [])
    train(max_steps=3, callbacks_of_config=[Steps()])
    assert Steps.seen == [1, 2, 3]


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_a_logger_of_the_configuration_is_told_the_rows_of_the_history(train, tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path, name="own", version="")
    result = train(
        max_steps=4,
        log_every=2,
        lightning={"logger": logger},
        callbacks_of_config=[LearningRateMonitor()],
        validate=lambda _: {"dice": 0.5},
    )
    told = read_csv(tmp_path / "own" / "metrics.csv")
    losses = [float(row["loss"]) for row in told if row.get("loss")]
    kept = [float(row["loss"]) for row in read_csv(result.history) if row["loss"]]
    assert losses == pytest.approx(kept, rel=1e-5)
    assert [row["validation_dice"] for row in told if row.get("validation_dice")] == ["0.5"]
    assert any(row.get("lr-AdamW/pg1") or row.get("lr-AdamW") for row in told)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"fast_dev_run": True}, 1),
        ({"fast_dev_run": 2}, 2),
        ({"overfit_batches": 2}, 5),
        ({"deterministic": "warn", "profiler": "simple", "strategy": "auto"}, 5),
    ],
)
@pytest.mark.filterwarnings("ignore")  # Lightning's, of each of these modes
def test_options_of_the_trainer_are_passed_on(train, options, steps):
    assert train(max_steps=5, lightning=options).steps == steps


@pytest.mark.filterwarnings("ignore")
def test_a_few_batches_are_learnt_over_and_over(train, squares):
    class Counted(squares):
        seen: ClassVar[set[int]] = set()

        def __getitem__(self, number):
            self.seen.add(number)
            return super().__getitem__(number)

    train(max_steps=6, tiles=Counted(), lightning={"overfit_batches": 2})
    assert max(Counted.seen) <= 5  # two batches of two tiles, and one read ahead


@pytest.mark.parametrize("name", REFUSED)
def test_an_option_that_breaks_a_promise_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=rf"(?s){name}.*promises.*How to fix: leave it out"):
        TrainerSettings(max_steps=1, lightning={name: 1})


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_stage_2", "fdp", FSDPStrategy()])
def test_a_strategy_that_divides_weights_is_refused_with_why(strategy):
    with pytest.raises(ConfigError, match=r"need all weights in each process.*trainer.lightning"):
        TrainerSettings(max_steps=1, lightning={"strategy": strategy})


def test_a_typing_error_names_the_nearest_option():
    with pytest.raises(ConfigError, match=r"write profiler\."):
        TrainerSettings(max_steps=1, lightning={"profilr": "simple"})


@pytest.mark.parametrize("wrong", [[object()], {"a": 1}, [ModelCheckpoint()]])
def test_what_is_no_callback_or_saves_its_own_way_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"trainer\.callbacks"):
        TrainerSettings(max_steps=1, callbacks=wrong)


def test_gpus_are_counted_or_named():
    assert TrainerSettings(max_steps=1, devices=[2]).has_one_device
    assert not TrainerSettings(max_steps=1, devices=[0, 2]).has_one_device
