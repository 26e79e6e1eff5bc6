"""When the callbacks act: told by fake clocks and counters."""

from types import SimpleNamespace

import pytest

from lesionseg.training.callbacks import checkpoint
from lesionseg.training.callbacks.checkpoint import SaveCheckpoint
from lesionseg.training.callbacks.history import WRITING_SHARE
from lesionseg.training.callbacks.step_callbacks import Validation


class Record:
    history = None

    def write(self):
        """Nothing to write."""


def module(own_minutes=0.0):
    clock = SimpleNamespace(minutes=lambda: own_minutes)
    return SimpleNamespace(counters=SimpleNamespace(minutes=0.0), progress=0.0, clock=clock)


def trainer(barriers, first=None):
    """Of one of several processes, the first of which has the clock `first`."""
    strategy = SimpleNamespace(
        barrier=lambda: barriers.append(1),
        broadcast=lambda own: own if first is None else first() + 1.0,
    )
    return SimpleNamespace(is_global_zero=False, strategy=strategy)


def validations_at(lag, agreed):
    """The steps, by number, after which a process that lags behind the first one validates."""
    validation, now, seen = Validation(lambda _: {}, 1.0, Record()), [0.0], []
    one = module()
    one.clock.minutes = lambda: now[0] - lag
    validation.on_train_start(trainer([], first=lambda: now[0]), one)
    for step, minutes in enumerate(agreed):
        now[0] = one.counters.minutes = minutes
        barriers = []
        validation.after_step(trainer(barriers, first=lambda: now[0]), one)
        seen += [step] * len(barriers)
    return seen


def test_processes_validate_after_the_same_steps_whatever_their_own_clocks_say():
    agreed = [0.1 * i for i in range(50)]
    first, second = validations_at(0.0, agreed), validations_at(0.25, agreed)
    assert first == second
    assert len(first) == 4


def test_without_an_interval_validation_waits_for_the_end():
    barriers = []
    validation = Validation(lambda _: {}, None, Record())
    validation.after_step(trainer(barriers), module())
    assert not barriers
    validation.on_train_end(trainer(barriers), module())
    assert len(barriers) == 1


@pytest.mark.parametrize(
    ("every", "took", "expected"),
    [(0.25, 0.001, 0.25), (0.25, 0.1, 0.1 / WRITING_SHARE), (0.0, 0.1, 0.0)],
)
def test_slow_checkpoints_are_written_seldom(monkeypatch, tmp_path, every, took, expected):
    minutes = iter([10.0, 10.0 + took])
    one = module()
    one.clock.minutes = lambda: next(minutes)
    monkeypatch.setattr(checkpoint.Checkpoint, "of", lambda *_: None)
    saving = SaveCheckpoint(tmp_path / "last.ckpt", every)
    saving.after_step(trainer([]), one)
    assert saving._due - (10.0 + took) == pytest.approx(expected)
