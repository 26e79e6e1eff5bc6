"""Validations, pictures and the best weights of a training that is killed and resumed."""

import shutil
from contextlib import suppress

import pytest
import pytorch_lightning as pl
import torch

from lesionseg.errors import TrainingError
from tests.training.conftest import StepsOfSeconds, weights


class Pulled(Exception):
    """The end of a training that is killed."""


class PullsThePlug(pl.Callback):
    """A callback that ends the training within a step, before its checkpoint is written."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Pulled


class NotesValidations(pl.Callback):
    """A callback that notes after how many steps the training validates."""

    def __init__(self):
        self.steps = []

    def on_validation_start(self, trainer, _):
        self.steps.append(trainer.global_step)


def read(run_dir, name):
    return torch.load(run_dir / "checkpoints" / name, weights_only=True)


def read_best(run_dir):
    return read(run_dir, "best.ckpt")


def score(*values):
    """Return a function that returns these scores, one in each validation."""
    remaining = iter(values)
    return lambda _: {"score": next(remaining)}


def test_resumed_training_validates_at_the_same_steps(
    train, tmp_path, clock, checkpoint_every_step
):
    """A step takes 3 s and a validation 4 s, and 10 s pass between two validations."""

    def steps_of_validations(run_dir, *plugs):
        def validate(_):
            clock.advance(4)
            return {}

        notes = NotesValidations()
        plugs = [StepsOfSeconds(clock, 3), notes, *plugs]
        settings = {"max_steps": 12, "validate_every_minutes": 10 / 60}
        with suppress(Pulled):
            train(run_dir=run_dir, validate=validate, plugs=plugs, **settings)
        return notes.steps

    assert steps_of_validations(tmp_path / "calm") == [4, 8, 12]
    assert steps_of_validations(tmp_path / "killed", PullsThePlug(7)) == [4]
    assert steps_of_validations(tmp_path / "killed") == [8, 12]
    calm = read(tmp_path / "calm", "last.ckpt")
    killed = read(tmp_path / "killed", "last.ckpt")
    assert calm["minutes"] == pytest.approx(killed["minutes"])


def test_validation_just_before_a_kill_is_not_forgotten(train, tmp_path, checkpoint_every_step):
    """The checkpoint of step 1 is older than the validation that follows this step."""
    settings = {"max_steps": 4, "validate_every_minutes": 1e-9}
    with pytest.raises(Pulled):
        train(validate=score(0.8), plugs=[PullsThePlug(2)], **settings)
    assert read_best(tmp_path / "run")["global_step"] == 1
    train(validate=score(0.7, 0.4, 0.4, 0.4), **settings)
    assert read_best(tmp_path / "run")["global_step"] == 1


def test_moved_run_keeps_its_best_score(train, tmp_path):
    train(run_dir=tmp_path / "here", max_steps=1, validate=score(0.8), validate_every_minutes=99)
    shutil.move(tmp_path / "here", tmp_path / "there")
    train(run_dir=tmp_path / "there", max_steps=2, validate=score(0.4), validate_every_minutes=99)
    assert read_best(tmp_path / "there")["global_step"] == 1


def test_without_the_best_weights_later_ones_are_kept(train, tmp_path):
    train(max_steps=1, validate=score(0.8), validate_every_minutes=99)
    (tmp_path / "run" / "checkpoints" / "best.ckpt").unlink()
    train(max_steps=2, validate=score(0.4), validate_every_minutes=99)
    assert read_best(tmp_path / "run")["global_step"] == 2


def test_training_that_starts_again_forgets_the_best_weights(train, tmp_path):
    train(max_steps=1, validate=score(0.8), validate_every_minutes=99)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    nan = float("nan")  # is never the best score
    again = train(max_steps=2, validate=score(nan), validate_every_minutes=99)
    last = read(tmp_path / "run", "last.ckpt")
    network_weights = [
        value.flatten() for name, value in last["state_dict"].items() if "network" in name
    ]
    assert torch.equal(weights(again.network), torch.cat(network_weights))


@pytest.mark.parametrize("steps", [1, 2])  # finished, and resumed
def test_damaged_best_weights_are_named_with_advice(train, tmp_path, steps):
    train(max_steps=1, validate=score(0.8), validate_every_minutes=99)
    (tmp_path / "run" / "checkpoints" / "best.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(TrainingError, match=r"best\.ckpt: the weights that scored best"):
        train(max_steps=steps, validate=score(0.4), validate_every_minutes=99)


def test_best_weights_of_another_network_are_named(train, tmp_path):
    train(max_steps=1, validate=score(0.8), validate_every_minutes=99)
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    best = read_best(tmp_path / "run")
    best["state_dict"].popitem()
    torch.save(best, path)
    with pytest.raises(TrainingError, match=r"best\.ckpt: .*state_dict"):
        train(max_steps=1)
