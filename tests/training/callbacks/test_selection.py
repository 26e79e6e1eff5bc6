"""Which weights a training hands over."""

import logging

import pytest
import torch
from torch import nn

from lesionseg.errors import TrainingError
from lesionseg.training.callbacks.selection import KeepBest, take_best


def network(weight):
    made = nn.Linear(1, 1, bias=False)
    nn.init.constant_(made.weight, weight)
    return made


def validated(run_dir, *recalls):
    """Networks of weight 0, 1, … that score `recalls`; the last of them."""
    for weight, recall in enumerate(recalls):
        scores = {"recall_1fp": recall, "dice": 0.1}
        assert KeepBest(lambda _, scores=scores: scores, run_dir)(network(weight)) == scores
    return network(len(recalls) - 1)


@pytest.mark.parametrize(
    ("recalls", "select", "kept"),
    [
        ((0.5, 0.9, 0.7), None, 1.0),
        ((0.5, 0.9, 0.7), "best", 1.0),
        ((0.5, 0.9, 0.7), "last", 2.0),
        ((0.5, 0.7, 0.9), None, 2.0),
        ((0.9, 0.9), None, 1.0),  # of equals the later one
        ((0.5,), None, 0.0),
        ((), "best", -1.0),
    ],
)
def test_the_best_is_taken_where_it_beats_the_last(tmp_path, caplog, recalls, select, kept):
    last = validated(tmp_path, *recalls)
    with caplog.at_level(logging.INFO, "lesionseg"):
        changed = take_best(last, tmp_path, select)
    assert last.weight.item() == kept
    assert changed == (kept != len(recalls) - 1)
    assert ("an earlier one is kept" in caplog.text) == changed


def test_training_keeps_the_averaged_weights_of_its_best_validation(train, tmp_path):
    scores = iter([0.1, 0.8, 0.3, 0.2])
    seen = []

    def validate(averaged):
        seen.append([p.clone() for p in averaged.parameters()])
        return {"recall_1fp": next(scores)}

    keep = KeepBest(validate, tmp_path / "run")
    result = train(max_steps=4, validate=keep, validate_every_minutes=1e-9)
    assert take_best(result.network, tmp_path / "run", None)
    for p, best in zip(result.network.parameters(), seen[1], strict=True):
        assert torch.equal(p, best)


def test_a_file_that_does_not_fit_is_named(tmp_path):
    validated(tmp_path, 0.9, 0.1)
    with pytest.raises(TrainingError, match=r"best\.ckpt"):
        take_best(nn.Linear(2, 2), tmp_path, "best")
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(b"no")
    with pytest.raises(TrainingError, match=r"best\.ckpt.*delete this file"):
        take_best(nn.Linear(1, 1), tmp_path, "best")


def test_the_remedy_for_a_broken_file_works(tmp_path, caplog):
    validated(tmp_path, 0.9, 0.1)
    (tmp_path / "checkpoints" / "best.ckpt").unlink()
    assert not take_best(nn.Linear(1, 1), tmp_path, "best")
    assert "No validation was made" in caplog.text
    assert validated(tmp_path, 0.5, 0.2).weight.item() == 1.0
    assert take_best(network(7.0), tmp_path, "best")
