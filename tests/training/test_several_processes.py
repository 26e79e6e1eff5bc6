"""Two processes of one tile each learn what one process learns from both tiles."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from lesionseg.plan.plan import AnchorPlan

SGD = {"name": "sgd", "lr": 0.01}
ANCHORS = AnchorPlan(stages=(1,), sizes=(((4.0, 4.0), (6.0, 6.0)),), width=8, depth=1)


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def curve(run):
    return pd.read_csv(run / "metrics.csv")["loss"].dropna().tolist()


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
            optim=SGD,
            log_every_n_steps=1,
        )
        for devices in (1, 2)
    )
    alone, together = (curve(tmp_path / str(devices)) for devices in (1, 2))
    assert alone[-1] < alone[0]
    assert together == pytest.approx(alone, rel=1e-3)
    torch.testing.assert_close(weights(two.network), weights(one.network), rtol=1e-3, atol=1e-5)
