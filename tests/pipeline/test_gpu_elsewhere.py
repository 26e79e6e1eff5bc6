"""`prepare` plans for a GPU that is not at hand."""

import pytest

from lesionseg.config import DataConfig, TrainConfig
from lesionseg.phantoms import write_xray_phantoms
from lesionseg.pipeline.dataset import take_survey
from lesionseg.pipeline.prepare import plan_run


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    root = tmp_path_factory.mktemp("xray")
    write_xray_phantoms(root, n_cases=4, shape=(192, 192), seed=3)
    return take_survey(DataConfig.of(root=root), seed=0)


@pytest.mark.parametrize("name", ["unet", "retinanet"])
def test_a_card_is_planned_for_by_its_memory(survey, tmp_path, monkeypatch, name):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    trainer = {"accelerator": "gpu", "memory_gb": 24.0}
    cfg = TrainConfig.of(trainer=trainer, model={"architecture": name})
    plan = plan_run(survey, cfg, tmp_path)
    assert plan.reasons["budget"] == "planned for a GPU with 24 GB"
    assert "by prediction" in plan.reasons["memory"]
    assert plan.architecture.features[0] >= 32
    assert (plan.anchors is not None) == (name == "retinanet")
