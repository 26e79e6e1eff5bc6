"""Two processes of one tile each learn what one process learns from both tiles."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from lesionseg.io.atomic import read_csv
from lesionseg.plan.plan import AnchorPlan
from lesionseg.training import run_trainer
from lesionseg.training.settings import OptimiserSettings, TrainerSettings

SGD = OptimiserSettings(name="sgd", lr=0.05, momentum=0.9)
ANCHORS = AnchorPlan(stages=(1,), sizes=(((4.0, 4.0), (6.0, 6.0)),), width=8, depth=1)


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def curve(result):
    return [float(row["loss"]) for row in read_csv(result.history)]


@pytest.mark.parametrize("name", ["unet", pytest.param("retinanet", marks=pytest.mark.slow)])
def test_two_processes_learn_what_one_learns_from_the_same_tiles(train, make_plan, tmp_path, name):
    plan = make_plan()
    if name == "retinanet":
        table = replace(plan.architecture, name=name)
        plan = plan.with_(architecture=table, anchors=ANCHORS)
    one, two = (
        train(
            run_dir=tmp_path / str(devices),
            plan=plan.with_(batch_size=2 // devices),
            devices=devices,
            max_steps=8,
            optimiser=SGD,
            log_every=1,
        )
        for devices in (1, 2)
    )
    assert curve(one)[-1] < curve(one)[0]
    assert curve(two) == pytest.approx(curve(one), rel=1e-3)
    torch.testing.assert_close(weights(two.network), weights(one.network), rtol=1e-3, atol=1e-5)


def test_the_others_wait_for_a_long_validation_of_the_first(monkeypatch):
    """In its processes Lightning hands the strategy's timeout to torch, which has half an hour."""
    taken = {}
    monkeypatch.setattr(run_trainer.pl, "Trainer", lambda **given: taken.update(given))
    run_trainer._trainer(TrainerSettings(max_steps=1, devices=2), "32-true", [], Path())
    assert taken["strategy"]._timeout >= timedelta(hours=12)
    run_trainer._trainer(TrainerSettings(max_steps=1, devices=1), "32-true", [], Path())
    assert taken["strategy"] == "auto"
