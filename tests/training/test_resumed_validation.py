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


@pytest.fixture
def train_and_score(train):
    """Return a function that trains so many steps and validates once, with this score."""

    def run(steps, value, **given):
        return train(max_steps=steps, validate=score(value), validate_every_minutes=99, **given)

    return run


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
    assert calm["minutes"] == pytest.approx(read(tmp_path / "killed", "last.ckpt")["minutes"])


def test_validation_just_before_a_kill_is_not_forgotten(train, tmp_path, checkpoint_every_step):
    """The checkpoint of step 1 is older than the validation that follows this step."""
    settings = {"max_steps": 4, "validate_every_minutes": 1e-9}
    with pytest.raises(Pulled):
        train(validate=score(0.8), plugs=[PullsThePlug(2)], **settings)
    assert read_best(tmp_path / "run")["global_step"] == 1
    train(validate=score(0.7, 0.4, 0.4, 0.4), **settings)
    assert read_best(tmp_path / "run")["global_step"] == 1


def test_moved_run_keeps_its_best_score(train_and_score, tmp_path):
    train_and_score(1, 0.8, run_dir=tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    train_and_score(2, 0.4, run_dir=tmp_path / "there")
    assert read_best(tmp_path / "there")["global_step"] == 1


def test_without_the_best_weights_later_ones_are_kept(train_and_score, tmp_path):
    train_and_score(1, 0.8)
    (tmp_path / "run/checkpoints/best.ckpt").unlink()
    train_and_score(2, 0.4)
    assert read_best(tmp_path / "run")["global_step"] == 2


def test_training_that_starts_again_forgets_the_best_weights(train_and_score, tmp_path):
    train_and_score(1, 0.8)
    (tmp_path / "run/checkpoints/last.ckpt").unlink()
    again = train_and_score(2, float("nan"))  # is never the best score
    last = read(tmp_path / "run", "last.ckpt")["state_dict"]
    kept = [value.flatten() for name, value in last.items() if "network" in name]
    assert torch.equal(weights(again.network), torch.cat(kept))


@pytest.mark.parametrize("steps", [1, 2])  # finished, and resumed
@pytest.mark.parametrize("is_damaged", [True, False])
def test_best_weights_that_are_damaged_or_of_another_network_are_named(
    train_and_score, tmp_path, steps, is_damaged
):
    train_and_score(1, 0.8)
    path = tmp_path / "run/checkpoints/best.ckpt"
    best = read_best(tmp_path / "run")
    best["state_dict"].popitem()
    torch.save(best, path)
    if is_damaged:
        path.write_bytes(b"no checkpoint")
    with pytest.raises(TrainingError, match=r"best\.ckpt: "):
        train_and_score(steps, 0.4)
