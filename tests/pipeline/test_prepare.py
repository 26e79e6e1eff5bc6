"""`prepare`: a plan for a GPU that is not at hand, and how many cases are taken at a time."""

import pytest

from lesionseg.config import DataConfig, PrepareConfig, TrainConfig
from lesionseg.phantoms import write_xray_phantoms
from lesionseg.pipeline import prepare as module
from lesionseg.pipeline.dataset import take_survey
from lesionseg.pipeline.prepare import plan_run, prepare


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("xray")
    write_xray_phantoms(root, n_cases=4, shape=(192, 192), seed=3)
    return root


@pytest.mark.parametrize("name", ["unet", "retinanet"])
def test_a_card_is_planned_for_by_its_memory(raw, tmp_path, monkeypatch, name):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    trainer = {"accelerator": "gpu", "memory_gb": 24.0}
    cfg = TrainConfig.of(trainer=trainer, model={"architecture": name})
    plan = plan_run(take_survey(DataConfig.of(root=raw), seed=0), cfg, tmp_path)
    assert plan.reasons["budget"] == "planned for a GPU with 24 GB"
    assert "by prediction" in plan.reasons["memory"]
    assert plan.architecture.features[0] >= 32
    assert (plan.anchors is not None) == (name == "retinanet")


def test_as_many_cases_are_prepared_at_a_time_as_memory_holds(raw, tmp_path, monkeypatch):
    taken, fill = [], module.fill_cache

    def spied(*args, workers, **others):
        taken.append(workers)
        return fill(*args, workers=workers, **others)

    monkeypatch.setattr(module, "fill_cache", spied)
    monkeypatch.setattr(module, "cores", lambda: 64)
    monkeypatch.setattr(module, "needed_bytes", lambda *_: 100)
    for n_bytes in (300, 99):
        monkeypatch.setattr(module, "default_budget", lambda n=n_bytes: n)
        data, folder = {"root": str(raw)}, tmp_path / str(n_bytes) / "run"
        model = {"tile_shape": (32, 32), "base_features": 4}
        trainer = {"accelerator": "cpu"}
        prepare(PrepareConfig.of(data=data, trainer=trainer, model=model, run_dir=folder))
    assert taken == [3, 1]
