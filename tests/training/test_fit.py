"""Short trainings on tiles of noise with bright squares."""

import copy
import shutil
import signal
import time
from itertools import count
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lesionseg.errors import ConfigError, TrainingError
from lesionseg.io.atomic import read_csv
from lesionseg.losses import CrossEntropyLoss, DiceFocalLoss, FocalLoss
from lesionseg.models import build_network
from lesionseg.plan.plan import Plan
from lesionseg.training.fit import fit_tiles
from lesionseg.training.learning_settings import Learning
from lesionseg.training.run_trainer import choose_precision
from lesionseg.training.settings import OptimiserSettings, TrainerSettings
from lesionseg.training.step.schedule import Clock

SGD = OptimiserSettings(name="sgd", lr=0.05, momentum=0.9)


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def column(result, name):
    return [float(row[name]) for row in read_csv(result.history) if row[name]]


def last_checkpoint(run_dir):
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


def test_the_loss_falls_and_the_lesion_is_found(train, squares):
    result = train(max_steps=60, loss=DiceFocalLoss(), log_every=10)
    losses = column(result, "loss")
    assert losses[-1] < 0.6 * losses[0]
    assert not result.network.training
    tile = squares()[1000]
    (logits,) = result.network(tile["image"][None])
    p = logits.sigmoid()[0, 0]
    assert p[tile["labels"] == 1].mean() > 5 * p[tile["labels"] == 0].mean()


def test_the_history_names_each_term_and_counts_positives(train, tmp_path):
    result = train(max_steps=10, loss=DiceFocalLoss(), steps_per_epoch=4)
    assert result.history == tmp_path / "run" / "metrics.csv"
    rows = read_csv(result.history)
    assert list(rows[0]) == [
        *("step", "minutes", "epoch", "lr", "loss", "loss_dice", "loss_focal"),
        *("positives", "skipped"),
    ]
    assert [row["step"] for row in rows] == ["5", "10"]
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert column(result, "positives") == [12, 12]  # one square of 4 × 3 in each pair of tiles
    for row in rows:
        terms = float(row["loss_dice"]) + float(row["loss_focal"])
        assert float(row["loss"]) == pytest.approx(terms, rel=1e-4)


class KeepCheckpoint(pl.Callback):
    """Copies the checkpoint written at one step, then lets training crash at another."""

    def __init__(self, run_dir, keep, crash):
        self.run_dir, self.keep, self.crash = run_dir, keep, crash

    def on_train_batch_start(self, trainer, pl_module, *_):
        if pl_module.counters.steps == self.keep:
            last = self.run_dir / "checkpoints" / "last.ckpt"
            shutil.copy(last, self.run_dir / "kept.ckpt")

    def on_train_batch_end(self, trainer, pl_module, *_):
        if pl_module.counters.steps == self.crash:
            raise RuntimeError("pulled the plug")


@pytest.mark.parametrize("optimiser", [OptimiserSettings(lr=1e-2), SGD], ids=["adamw", "sgd"])
def test_a_killed_training_ends_bit_for_bit_like_an_undisturbed_one(train, tmp_path, optimiser):
    settings = {"max_steps": 12, "log_every": 2, "optimiser": optimiser, "steps_per_epoch": 5}
    undisturbed = train(run_dir=tmp_path / "calm", **settings)
    disturbed = tmp_path / "killed"
    plug = KeepCheckpoint(disturbed, keep=4, crash=7)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        train(run_dir=disturbed, checkpoint_every_minutes=0, callbacks=[plug], **settings)
    # killed at step 7, the last checkpoint on disk being that of step 4
    shutil.move(disturbed / "kept.ckpt", disturbed / "checkpoints" / "last.ckpt")
    resumed = train(run_dir=disturbed, **settings)
    assert resumed.steps == undisturbed.steps == 12
    assert torch.equal(weights(resumed.network), weights(undisturbed.network))
    calm, killed = (last_checkpoint(tmp_path / d) for d in ("calm", "killed"))
    assert calm["module"].keys() == killed["module"].keys()
    for name, value in calm["module"].items():
        assert torch.equal(value, killed["module"][name]), name
    assert column(resumed, "step") == column(undisturbed, "step")
    assert column(resumed, "loss") == column(undisturbed, "loss")


def test_a_finished_training_is_not_prolonged(train):
    first = train(max_steps=4)
    again = train(max_steps=4)
    assert again.steps == 4
    assert torch.equal(weights(first.network), weights(again.network))
    assert again.stopped_because == "max_steps"


def test_a_checkpoint_of_another_network_is_refused(train, make_plan):
    train(max_steps=2)
    with pytest.raises(TrainingError, match=r"cannot be resumed.*last\.ckpt"):
        train(max_steps=4, plan=make_plan(n_supervised=1))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", "pickle", {"version": 99}])
def test_a_broken_or_foreign_checkpoint_is_refused_unexecuted(train, tmp_path, content):
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    if content == "pickle":
        torch.save({"module": Path("x"), "optimiser": {}, "counters": {}}, path)
    elif isinstance(content, dict):
        torch.save({"module": {}, "optimiser": {}, "counters": {}, **content}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(TrainingError, match="cannot be resumed") as refused:
        train(max_steps=2)
    assert "weights_only" not in str(refused.value)


def test_the_time_budget_ends_training_in_mid_epoch(train, monkeypatch):
    ticks = count()  # a hundredth of a second each time the clock is asked
    monkeypatch.setattr(Clock.__init__, "__defaults__", (lambda: next(ticks) / 100,))
    result = train(max_minutes=0.01, steps_per_epoch=10**6)
    assert result.stopped_because == "max_minutes"
    assert 0.01 <= result.minutes < 0.2
    assert result.steps >= 1
    rates = column(result, "lr")
    assert rates[-1] < 0.5 * max(rates)  # the schedule fitted the time given


def test_the_time_budget_counts_validations(train):
    naps = []

    def validate(network):
        naps.append(time.sleep(0.3))
        return {}

    result = train(max_minutes=0.01, validate=validate, validate_every_minutes=1e-9)
    assert result.stopped_because == "max_minutes"
    assert len(naps) <= 3  # two naps of 0.3 s fill the 0.6 s, one more comes at the end


def test_validation_runs_at_intervals_and_at_the_end(train):
    calls = []

    def validate(network):
        calls.append(network.training)
        return {"recall": 0.5}

    result = train(max_steps=6, validate=validate, validate_every_minutes=1e-9, log_every=1)
    assert calls == [False] * 6  # after steps 1 to 5, and at the end
    assert column(result, "validation_recall") == [0.5] * 6


def test_validation_sees_the_averaged_network_once_at_the_end_by_default(train):
    seen = []
    result = train(
        max_steps=5, validate=lambda network: seen.append(weights(network).clone()) or {"dice": 1.0}
    )
    assert len(seen) == 1
    assert torch.equal(seen[0], weights(result.network))


def test_the_average_is_kept_and_differs_from_the_last_weights(train, tmp_path):
    averaged = train(max_steps=8, run_dir=tmp_path / "a")
    plain = train(max_steps=8, run_dir=tmp_path / "b", ema_decay=None)
    last = last_checkpoint(tmp_path / "a")["module"]
    assert torch.equal(plain.network.heads[0].conv.weight, last["network.heads.0.conv.weight"])
    assert not torch.equal(weights(averaged.network), weights(plain.network))


@pytest.mark.parametrize("loss", [FocalLoss(), CrossEntropyLoss()], ids=["positives", "mean"])
def test_two_accumulated_batches_equal_one_of_twice_the_size(train, make_plan, tmp_path, loss):
    one, two = (
        train(
            run_dir=tmp_path / str(accumulate),
            plan=make_plan(batch_size=2 // accumulate),
            accumulate=accumulate,
            loss=loss,
            max_steps=6,
            optimiser=SGD,
        )
        for accumulate in (1, 2)
    )
    before = weights(build_network(make_plan()))
    assert (weights(one.network) - before).abs().max() > 1e-2
    torch.testing.assert_close(weights(one.network), weights(two.network), rtol=1e-3, atol=1e-5)
    assert column(one, "loss") == pytest.approx(column(two, "loss"), rel=1e-3)


def test_a_step_that_is_not_finite_is_skipped_and_counted(train, squares, caplog):
    result = train(max_steps=6, tiles=squares(bad={4, 5}), log_every=1)  # the third step's tiles
    assert (result.steps, result.skipped) == (6, 1)
    assert torch.isfinite(weights(result.network)).all()
    assert "Step 3 skipped" in caplog.text
    assert [row["skipped"] for row in read_csv(result.history)] == ["0", "0", *["1"] * 4]
    assert [row["loss"] == "" for row in read_csv(result.history)] == [i == 2 for i in range(6)]


def test_a_skipped_step_leaves_the_weights_as_they_were(train, squares, tmp_path):
    good = train(max_steps=2, run_dir=tmp_path / "a", ema_decay=None)
    train(max_steps=3, run_dir=tmp_path / "b", ema_decay=None, tiles=squares(bad={4, 5}))
    # the schedules differ, so the last weights are compared with a run of the same length
    plug = KeepCheckpoint(tmp_path / "c", keep=2, crash=99)
    train(
        max_steps=3,
        run_dir=tmp_path / "c",
        ema_decay=None,
        callbacks=[plug],
        checkpoint_every_minutes=0,
    )
    after_two = torch.load(tmp_path / "c" / "kept.ckpt", weights_only=True)["module"]
    skipped = last_checkpoint(tmp_path / "b")["module"]
    name = "network.heads.0.conv.weight"
    assert torch.equal(skipped[name], after_two[name])
    assert good.skipped == 0


def test_ten_such_steps_in_a_row_end_training(train, squares):
    with pytest.raises(TrainingError, match=r"diverged.*10 such steps in a row, up to step 12"):
        train(max_steps=50, tiles=squares(bad=range(4, 100)))


def test_the_first_learning_rates_follow_the_schedule(train):
    optimiser = OptimiserSettings(lr=1.0, warmup_fraction=0.0, schedule="poly")
    result = train(max_steps=4, log_every=1, optimiser=optimiser)
    expected = [(1 - s / 4) ** 0.9 for s in range(4)]
    assert column(result, "lr") == pytest.approx(expected, rel=1e-4)


def test_losses_that_ask_for_instances_are_given_them(train):
    class Instances(FocalLoss):
        seen = ()

        def forward(self, logits, labels, *, valid=None, normaliser=None, instances=None):
            Instances.seen = (*Instances.seen, tuple(instances.shape))
            return super().forward(logits, labels, valid=valid, normaliser=normaliser)

    train(max_steps=1, loss=Instances())
    assert Instances.seen == ((2, 16, 16), (2, 8, 8))


def test_the_divisor_is_the_share_of_one_part_of_the_average_of_positives(train, make_plan):
    class Divisors(FocalLoss):
        seen = ()

        def forward(self, logits, labels, *, valid=None, normaliser=None):
            Divisors.seen = (*Divisors.seen, (logits.dtype, float(normaliser)))
            return super().forward(logits, labels, valid=valid, normaliser=normaliser)

    train(max_steps=1, loss=Divisors(), accumulate=2, plan=make_plan(n_supervised=1))
    # four tiles of 256 voxels at a fraction of 0.02 are expected to hold 20.48, two squares 24
    expected = (0.9 * 20.48 + 0.1 * 24) / 2
    assert [d for _, d in Divisors.seen] == pytest.approx([expected] * 2)
    assert {dtype for dtype, _ in Divisors.seen} == {torch.float32}


def test_bf16_trains_and_hands_over_plain_fp32_weights(train):
    result = train(max_steps=3, precision="bf16-mixed")
    assert result.skipped == 0
    for precision in (result, train(max_steps=3, precision="32-true")):
        for p in precision.network.parameters():
            assert p.dtype == torch.float32
            assert p.is_contiguous()


def test_precision_by_name():
    cpu = torch.device("cpu")
    assert choose_precision("32-true", cpu) == "32-true"
    assert choose_precision("bf16-mixed", cpu) == "bf16-mixed"
    assert choose_precision("auto", torch.device("meta")) == "32-true"


def test_a_users_callback_may_end_training(train):
    class Enough(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            trainer.should_stop = pl_module.counters.steps >= 3

    result = train(max_steps=50, callbacks=[Enough()])
    assert (result.steps, result.stopped_because) == (3, "callback")


def test_ctrl_c_says_how_to_go_on(train, tmp_path, caplog):
    class CtrlC(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if pl_module.counters.steps == 3:
                raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(max_steps=5, callbacks=[CtrlC()], checkpoint_every_minutes=0)
    assert signal.getsignal(signal.SIGINT) is handler  # the trainer leaves it ignored
    assert "Interrupted at step 3; the same command goes on" in caplog.text
    assert train(max_steps=5).steps == 5


def test_a_users_own_network_with_one_output_is_trained(train, make_plan):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, image):
            return [self.conv(image)]

    network = Own()
    before = copy.deepcopy(network.state_dict())
    result = train(max_steps=3, network=network)
    assert result.network is network
    assert not torch.equal(before["conv.weight"], network.conv.weight)


def test_nothing_but_the_history_and_the_checkpoint_is_left(train, tmp_path):
    train(max_steps=3, progress=True, validate=lambda _: {})
    files = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*")}
    assert files == {"metrics.csv", "checkpoints", "checkpoints/last.ckpt"}


def test_loss_and_network_must_agree_on_the_activation(tmp_path: Path, plan: Plan) -> None:
    loss = FocalLoss(activation="softmax")
    with pytest.raises(ConfigError, match=r"model\.activation=softmax"):
        fit_tiles(
            torch.nn.Identity(),
            plan,
            None,  # type: ignore[arg-type]
            Learning(loss, TrainerSettings(max_steps=1)),
            tmp_path,
        )
