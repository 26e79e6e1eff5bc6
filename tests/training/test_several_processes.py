"""Two processes of one tile each learn what one process learns from both tiles."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from lesionseg.plan.plan import AnchorPlan
from tests.training.conftest import weights

SGD = {"name": "sgd", "lr": 0.01}
ANCHORS = AnchorPlan(stages=(1,), sizes=(((4.0, 4.0), (6.0, 6.0)),), width=8, depth=1)


@pytest.mark.parametrize("name", ["unet", pytest.param("retinanet", marks=pytest.mark.slow)])
def test_two_processes_learn_what_one_learns_from_the_same_tiles(train, make_plan, tmp_path, name):
    plan = make_plan()
    if name == "retinanet":
        table = replace(plan.architecture, name=name)
        plan = plan.with_(architecture=table, anchors=ANCHORS)
    networks, curves = [], []
    for n in (1, 2):
        run, given = tmp_path / str(n), {"plan": plan.with_(batch_size=2 // n), "devices": n}
        result = train(run_dir=run, **given, max_steps=8, optim=SGD, log_every_n_steps=1)
        networks.append(weights(result.network))
        curves.append(pd.read_csv(run / "metrics.csv")["loss"].dropna().tolist())
    alone, together = curves
    assert alone[-1] < alone[0]
    assert together == pytest.approx(alone, rel=1e-3)
    torch.testing.assert_close(*networks, rtol=1e-3, atol=1e-5)
