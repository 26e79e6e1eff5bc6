"""Short trainings on tiles of noise with bright squares."""

import itertools
import os
import shutil
import signal
import traceback
from contextlib import nullcontext
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging
from torch.multiprocessing import ProcessRaisedException

from lesionseg.child_process import STOP_SIGNALS
from lesionseg.config import OptimConfig
from lesionseg.errors import ConfigError, TrainingError
from lesionseg.losses import DiceFocalLoss, FocalLoss
from lesionseg.training import tile_stream
from lesionseg.training.callbacks import History, LastCheckpoint, ProgressCallback
from lesionseg.training.module import lr_factor, peak_lr
from tests.training.conftest import StepsOfSeconds, weights

SGD = {"name": "sgd", "lr": 0.01}


class Newest(pl.Callback):
    """A callback that keeps the weights after each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append(weights(pl_module.network).clone())


@pytest.fixture
def column(tmp_path):
    def read(name, run="run"):
        return pd.read_csv(tmp_path / run / "metrics.csv")[name].dropna().tolist()

    return read


def last_checkpoint(run_dir):
    return torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)


def change_checkpoint(run_dir, **values):
    torch.save(last_checkpoint(run_dir) | values, run_dir / "checkpoints/last.ckpt")


def test_metrics_csv_has_terms_positives_and_gradient_shares(train, column):
    train(max_steps=10, loss=DiceFocalLoss())
    assert column("step") == [4, 9]  # steps are counted from 0
    assert column("positives") == [12, 12]  # one square of 4 × 3 in each pair of tiles
    terms = np.add(column("loss_dice"), column("loss_focal"))
    assert column("loss") == pytest.approx(terms, rel=1e-4)
    shares = np.add(column("grad_share/lesion"), column("grad_share/hard_background"))
    assert ((shares > 0) & (shares < 1)).all()
    assert all(0 < p < 1 for p in column("p/lesion"))


class KeepCheckpoint(pl.Callback):
    """A callback that copies the checkpoint of step 4 and stops the training at step 7."""

    def __init__(self, run_dir):
        self.last = run_dir / "checkpoints/last.ckpt"
        self.kept = run_dir / "kept.ckpt"

    def on_train_batch_start(self, trainer, pl_module, *_):
        if trainer.global_step == 4:
            shutil.copy(self.last, self.kept)

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == 7:
            raise RuntimeError("pulled the plug")


@pytest.mark.parametrize(("optim", "n"), [({"lr": 1e-2}, 1), (SGD, 1), (SGD, 3)])
def test_killed_training_ends_with_identical_weights(
    train, tmp_path, column, optim, n, checkpoint_every_step
):
    settings = {"max_steps": 12, "log_every_n_steps": 2, "optim": optim}
    settings["accumulate_grad_batches"] = n
    train(run_dir=tmp_path / "calm", **settings)
    plug = KeepCheckpoint(tmp_path / "killed")
    with pytest.raises(RuntimeError, match="pulled the plug"):
        train(run_dir=tmp_path / "killed", plugs=[plug], **settings)
    shutil.move(plug.kept, plug.last)
    assert train(run_dir=tmp_path / "killed", **settings).steps == 12
    calm = last_checkpoint(tmp_path / "calm")
    killed = last_checkpoint(tmp_path / "killed")
    for name, value in calm["state_dict"].items():
        assert torch.equal(value, killed["state_dict"][name]), name
    assert column("step", "killed") == column("step", "calm")
    assert column("loss", "killed") == column("loss", "calm")


def test_finished_training_is_kept_and_refused_for_another_network(train, make_plan):
    first = train(max_steps=4)
    again = train(max_steps=4)
    assert again.steps == 4
    assert torch.equal(weights(first.network), weights(again.network))
    with pytest.raises(TrainingError, match=r"last\.ckpt"):
        train(max_steps=6, plan=make_plan(n_supervised=1))


def test_checkpoint_is_written_after_its_row(train, tmp_path, checkpoint_every_step, monkeypatch):
    class Watched(History):
        def log_metrics(self, metrics, step):
            if (tmp_path / "run/checkpoints/last.ckpt").is_file():
                steps.append((step, last_checkpoint(tmp_path / "run")["global_step"]))
            super().log_metrics(metrics, step)

    monkeypatch.setattr("lesionseg.training.fit.History", Watched)
    steps = []
    train(max_steps=5, log_every_n_steps=1)
    assert steps == [(1, 1), (2, 2), (3, 3), (4, 4)]  # row n belongs to step n + 1
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["last.ckpt"]


def test_row_that_lightning_repeats_at_the_end_is_left_out(tmp_path):
    history = History(tmp_path, 0)
    row = {"loss": 0.5, "minutes": 1.25}
    history.log_metrics(row, 4)
    history.log_metrics({"val/score": 0.3}, 4)
    history.log_metrics(row, 6)
    history.log_metrics({"loss": 0.5, "minutes": 1.5}, 9)
    history.save()
    steps = pd.read_csv(tmp_path / "metrics.csv").dropna(subset="loss")["step"]
    assert steps.tolist() == [4, 9]


@pytest.mark.parametrize("content", [b"", b"loss,st", b"step\n\xff\n"])
def test_training_resumes_if_its_metrics_are_damaged(train, tmp_path, column, caplog, content):
    train(max_steps=2, log_every_n_steps=1)
    (tmp_path / "run/metrics.csv").write_bytes(content)
    train(max_steps=4, log_every_n_steps=1)
    assert column("step") == [2, 3]
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_checkpoint_that_is_damaged_or_lacks_its_step_is_an_error(train, tmp_path, content):
    path = tmp_path / "run/checkpoints/last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"minutes": 1.0, "skipped": 0, "state_dict": {}}, path)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"last\.ckpt"):
        train(max_steps=2)


def test_time_budget_includes_validation_and_scales_the_schedule(train, make_plan, column, clock):
    ends = []

    def validate(network):
        clock.advance(15)
        ends.append(clock.seconds)
        return {}

    result = train(
        max_minutes=1,
        validate=validate,
        plugs=[StepsOfSeconds(clock, 3)],
        validate_every_minutes=1e-9,
        log_every_n_steps=1,
    )
    assert ends == [18, 36, 54, 72, 90]  # after each step, and at the end
    assert result.steps == 5
    assert result.minutes == pytest.approx(75 / 60)  # the first step that ends after a minute
    shares = np.array([0, 0, 3, 21, 39]) / 60  # share of the budget at the end of the previous step
    optim = OptimConfig.of(lr=1e-2)
    highest = peak_lr(optim, make_plan(), n_tiles=2)
    rates = [highest * lr_factor(share, optim) for share in shares]
    assert column("lr") == pytest.approx(rates)
    assert rates[-1] < 0.8 * max(rates)


def test_validation_runs_at_intervals_and_at_the_end(train, column):
    calls = []

    def validate(network):
        calls.append(network.training)
        return {"recall": 0.5}

    train(
        max_steps=6,
        validate=validate,
        validate_every_minutes=1e-9,
        log_every_n_steps=1,
    )
    assert calls == [False] * 6  # after steps 1 to 5, and at the end
    assert column("validation_recall") == [0.5] * 6


def test_average_of_weights_is_scored_and_kept(train, tmp_path):
    """The callback averages w of step n as a ← a / 2 + w / 2, after the first step a = w."""
    scores = iter([0.2, 0.3, 0.8, 0.4, 0.4, 0.4])
    newest = Newest()
    scored = []

    def validate(network):
        scored.append(weights(network).clone())
        return {"score": next(scores)}

    result = train(
        max_steps=6,
        validate=validate,
        validate_every_minutes=1e-9,
        plugs=[EMAWeightAveraging(decay=0.5), newest],
    )
    first, second, third = newest.seen[:3]
    averages = [first, first / 2 + second / 2, first / 4 + second / 4 + third / 2]
    for average, found in zip(averages, scored[:3], strict=True):
        torch.testing.assert_close(found, average)
    assert torch.equal(weights(result.network), scored[2])


def test_validation_waits_for_a_complete_step(train):
    steps = []

    class Counts(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            steps.append(trainer.global_step)

    seen = []

    def validate(_):
        seen.append(len(steps))
        return {"score": 0.5}

    train(
        max_steps=2,
        validate=validate,
        plugs=[Counts()],
        validate_every_minutes=1e-9,
        accumulate_grad_batches=3,
    )
    assert steps == [0, 0, 1, 1, 1, 2]
    assert seen == [3, 6]  # batches


NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "error", "step"),
    [
        # undefined scores are never the best; of equal scores, the later weights are kept
        ((NAN, 0.3), NAN, 2),
        ((0.3, NAN), NAN, 1),
        ((0.0, 0.0), NAN, 2),
        # the last weights are kept unless earlier ones are better by more than the error
        ((0.7, 0.5), 0.1, 1),
        ((0.55, 0.5), 0.1, 2),
        ((0.7, 0.5), NAN, 2),
        ((0.55, 0.5), 0.0, 1),
    ],
)
def test_weights_of_the_best_score_are_kept(train, tmp_path, scores, error, step):
    remaining = iter(scores)
    train(
        max_steps=2,
        validate=lambda _: {"score": next(remaining), "score_error": error},
        validate_every_minutes=1e-9,
    )
    best = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] == step


def test_training_ended_by_early_stopping_is_finished(train):
    scores = iter([0.5, 0.4, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0])

    def train_with_patience():
        stop = EarlyStopping(
            monitor="validation_score", mode="max", patience=2, check_on_train_epoch_end=False
        )
        return train(
            max_steps=8,
            validate=lambda _: {"score": next(scores)},
            validate_every_minutes=1e-9,
            plugs=[stop],
        )

    first = train_with_patience()
    # scores after steps 1, 2 and 3; the step that has begun is finished
    assert first.steps == 4
    n_left = len(list(scores))
    again = train_with_patience()  # a validation would raise StopIteration
    assert (again.steps, n_left) == (4, 4)
    assert torch.equal(weights(again.network), weights(first.network))


def test_progress_bar_advances_only_with_complete_steps(train):
    calls = []
    bar = ProgressCallback(lambda: nullcontext(lambda *call: calls.append(call)))
    train(max_steps=5, accumulate_grad_batches=2, plugs=[bar])
    assert [share for _, share, _ in calls] == [0, *np.repeat([0.2, 0.4, 0.6, 0.8], 2), 1]
    assert "loss" in calls[-1][0]


def test_step_with_a_non_finite_loss_is_skipped_and_counted(train, squares, caplog, tmp_path):
    newest = Newest()
    bad = squares(bad={4, 5})  # the tiles of the third step
    result = train(max_steps=6, plugs=[newest], tiles=bad)
    assert torch.equal(newest.seen[1], newest.seen[2])
    assert not torch.equal(newest.seen[2], newest.seen[3])
    assert (result.steps, result.skipped) == (6, 1)
    assert torch.isfinite(weights(result.network)).all()
    assert "Step 3 skipped" in caplog.text
    assert last_checkpoint(tmp_path / "run")["skipped"] == 1


def test_loss_is_divided_by_the_moving_average_of_positives(train, make_plan, tmp_path):
    class Divisors(FocalLoss):
        def forward(self, logits, labels, *, valid=None, normaliser=None):
            assert logits.dtype == torch.float32
            seen.append(float(normaliser))
            return super().forward(logits, labels, valid=valid, normaliser=normaliser)

    seen = []
    train(max_steps=1, loss=Divisors(), plan=make_plan(n_supervised=1))
    # two tiles of 256 voxels at a fraction of 0.02 give 10.24 expected voxels; a square has 12
    assert seen == [pytest.approx(0.9 * 10.24 + 0.1 * 12)]
    seen = []
    train(
        max_steps=2,
        loss=Divisors(),
        accumulate_grad_batches=2,
        run_dir=tmp_path / "2",
        plan=make_plan(batch_size=1, n_supervised=1),
    )
    # Each step has a tile with a square and one without.
    # The average is updated once per step, with a mean of 6 voxels.
    first = 0.9 * 5.12 + 0.1 * 12
    step = [0.9 * 5.12 + 0.1 * 6]
    then = 0.9 * step[0] + 0.1 * 12
    step.append(0.9 * step[0] + 0.1 * 6)
    assert seen == pytest.approx([first, step[0], then, step[1]])


def test_bf16_training_returns_fp32_weights(train):
    result = train(max_steps=3, precision="bf16-mixed")
    assert result.skipped == 0
    for p in result.network.parameters():
        assert p.dtype == torch.float32
        assert p.is_contiguous()


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"profilers": 1}, "profilers"),
        ({"strategy": "dpp"}, "dpp"),
        ({"enable_checkpointing": False}, "enable_checkpointing"),
    ],
)
def test_wrong_option_of_lightning_is_an_error(train, option, named):
    with pytest.raises(ConfigError, match=rf"trainer\.lightning.*{named}"):
        train(max_steps=99, lightning=option)


def test_training_of_another_number_of_devices_does_not_continue(train, tmp_path):
    train(max_steps=2)
    change_checkpoint(tmp_path / "run", tiles_per_step=8)
    with pytest.raises(
        TrainingError, match=r"last\.ckpt: this training has 8 tiles per step, but 2"
    ):
        train(max_steps=4)


def test_default_budget_of_a_gpu_is_not_replaced_by_that_of_a_cpu(train, tmp_path):
    train(max_steps=2)
    change_checkpoint(tmp_path / "run", device="cuda", minutes=90.0)
    assert train().steps == 2  # finished, by the steps that the checkpoint states
    change_checkpoint(tmp_path / "run", max_steps=99)
    with pytest.raises(TrainingError, match="began on cuda with the default budget"):
        train()  # the 90 minutes are more than the default of a CPU
    assert train(max_steps=3).steps == 3


def test_optimiser_of_fp16_continues_in_another_precision(train, tmp_path):
    """fp16 has no fused optimiser. A fused one skips steps whose gradient is not finite."""
    train(max_steps=2)
    states = last_checkpoint(tmp_path / "run")["optimizer_states"]
    for group in states[0]["param_groups"]:
        group["fused"] = None
    change_checkpoint(tmp_path / "run", optimizer_states=states)
    assert train(max_steps=4).steps == 4


def test_training_stopped_by_ctrl_c_resumes(train, caplog, checkpoint_every_step):
    class CtrlC(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 3:
                raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(max_steps=5, plugs=[CtrlC()])
    assert (
        signal.getsignal(signal.SIGINT) is handler
    )  # Lightning's trainer alone would leave it ignored
    assert "Training stopped at step 3." in caplog.text
    assert train(max_steps=5).steps == 5


@pytest.mark.skipif(not STOP_SIGNALS, reason="Windows has no such signals")
@pytest.mark.parametrize("at", ["on_train_batch_start", "on_before_optimizer_step", "on_train_end"])
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_of_a_scheduler_stops_after_the_step_with_a_checkpoint(
    train, column, tmp_path, number, at
):
    """No checkpoint is due before: they are 15 seconds apart."""

    def send(_, trainer, *__):
        if trainer.global_step == (5 if at == "on_train_end" else 2):
            os.kill(os.getpid(), number)

    scheduler = type("Scheduler", (pl.Callback,), {at: send})()
    handlers = [signal.getsignal(number) for number in STOP_SIGNALS]
    with pytest.raises(KeyboardInterrupt):
        train(max_steps=5, log_every_n_steps=1, plugs=[scheduler])
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == handlers
    stopped = last_checkpoint(tmp_path / "run")["global_step"]
    assert stopped == {"on_train_batch_start": 2, "on_train_end": 5}.get(at, 3)
    resumed = train(max_steps=5, log_every_n_steps=1)
    calm = train(max_steps=5, log_every_n_steps=1, run_dir=tmp_path / "calm")
    assert torch.equal(weights(resumed.network), weights(calm.network))
    assert column("loss") == column("loss", "calm")


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (TrainingError("Diverged: 10 steps."), TrainingError, "^Diverged: 10"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), ConfigError, "in training, "),
        (RuntimeError("FIND was unable to find an engine to execute"), ConfigError, "ran out in "),
        (ConfigError("Validation (CUDA out of memory)."), ConfigError, r"^Validation \("),
        (RuntimeError("Error in loading state_dict:\n\tsize"), TrainingError, r"last\.ckpt"),
        (ZeroDivisionError("by 0"), ProcessRaisedException, "ZeroDivisionError: by 0"),
    ],
)
def test_error_of_a_spawned_process_is_that_of_one_process(
    train, monkeypatch, error, expected, words
):
    def spawn(*_, **__):
        try:
            raise error from KeyError("x")
        except Exception:
            text = f"-- Process 1 terminated with the following error:\n{traceback.format_exc()}"
        raise ProcessRaisedException(text, 1, 99)

    monkeypatch.setattr(pl.Trainer, "fit", spawn)
    with pytest.raises(expected, match=words):
        train(max_steps=2)


def test_ten_non_finite_steps_in_a_row_end_the_training_also_if_it_was_killed_between_them(
    train, squares, tmp_path, checkpoint_every_step
):
    """Steps 3 to 12 are skipped. The training is killed at the end of step 7."""
    bad = squares(bad=range(4, 100))
    plug = KeepCheckpoint(tmp_path / "run")
    with pytest.raises(RuntimeError, match="pulled the plug"):
        train(max_steps=50, tiles=bad, plugs=[plug])
    with pytest.raises(TrainingError, match="10 steps in a row up to step 12"):
        train(max_steps=50, tiles=bad)


@pytest.mark.parametrize(
    ("minutes", "advice"),
    [
        (1e-9, r"after step 1 .*to continue, or .*trainer\.validate_every_minutes=null"),
        (None, r"after step 3 .*to continue\.$"),
    ],
)
def test_lack_of_memory_in_a_validation_is_not_called_that_of_a_step(train, minutes, advice):
    def validate(_):
        torch.empty(10**15)

    with pytest.raises(ConfigError, match=f"ran out in the validation {advice}"):
        train(max_steps=3, validate=validate, validate_every_minutes=minutes)


def test_loss_and_network_must_agree_on_the_activation(train):
    with pytest.raises(ConfigError, match=r"model\.activation=softmax"):
        train(max_steps=1, loss=FocalLoss(activation="softmax"))
    with pytest.raises(ConfigError, match="trainable parameters"):
        train(max_steps=1, loss=torch.nn.PReLU())


class Trainer:
    """A trainer whose checkpoints take long to save."""

    accumulate_grad_batches = 1
    is_global_zero = True
    world_size = 2

    def __init__(self, clock, seconds):
        self.clock = clock
        self.seconds = seconds
        self.saved = []

    def save_checkpoint(self, path):
        self.saved.append(round(self.clock.seconds))
        self.clock.advance(self.seconds)


@pytest.mark.skipif(not STOP_SIGNALS, reason="Windows has no such signals")
@pytest.mark.parametrize("is_between_steps", [True, False])
def test_error_after_a_signal_is_a_stop_only_between_steps(
    train, tmp_path, monkeypatch, is_between_steps
):
    """The signal also ends the loader's workers. An error within a step stays an error."""
    batches = tile_stream.read_batches

    def read_two(*args, **given):
        yield from itertools.islice(batches(*args, **given), 2)
        os.kill(os.getpid(), STOP_SIGNALS[0])
        raise ConnectionResetError("a worker has ended")

    def fail(_, trainer, *__):
        os.kill(os.getpid(), STOP_SIGNALS[0])
        raise ValueError("within a step")

    if is_between_steps:
        monkeypatch.setattr(tile_stream, "read_batches", read_two)
        with pytest.raises(KeyboardInterrupt):
            train(max_steps=5)
        # Lightning reads one batch ahead
        assert last_checkpoint(tmp_path / "run")["global_step"] == 1
    else:
        failing = type("Fails", (pl.Callback,), {"on_before_optimizer_step": fail})()
        with pytest.raises(ValueError, match="within a step"):
            train(max_steps=5, plugs=[failing])


@pytest.mark.parametrize(("seconds", "saved"), [(0.0, [15, 30, 45, 60]), (1.0, [15, 66, 117, 168])])
def test_checkpoints_take_at_most_two_per_cent_of_a_training(tmp_path, clock, seconds, saved):
    trainer = Trainer(clock, seconds)
    last = LastCheckpoint(tmp_path, timedelta(seconds=15))
    last.on_train_start(trainer, SimpleNamespace(minutes=0.0))
    while len(trainer.saved) < 4:
        clock.advance(0.5)
        module = SimpleNamespace(minutes=clock.seconds / 60, update_minutes=lambda: None)
        last.on_train_batch_end(trainer, module, None, None, 0)
    assert trainer.saved == pytest.approx(saved, abs=2)
