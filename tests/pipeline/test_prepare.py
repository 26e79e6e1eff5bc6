"""`prepare`: plans for a GPU elsewhere, cases at a time, and the weights a training begins with."""

import logging
import re
from dataclasses import replace

import pytest
import torch

from lesionseg.config import DataConfig, ModelConfig, TrainConfig
from lesionseg.errors import BundleError, ConfigError
from lesionseg.inference.bundle import bundle_plan, write_bundle
from lesionseg.models import build_network
from lesionseg.phantoms import write_xray_phantoms
from lesionseg.pipeline import prepare as module
from lesionseg.pipeline.dataset import take_survey
from lesionseg.pipeline.prepare import checkpoint_stages, plan_run, start_from


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
    assert "24 GB" in plan.reasons["budget"]
    assert plan.architecture.features[0] >= 32
    assert (plan.anchors is not None) == (name == "retinanet")


def test_as_many_cases_are_prepared_at_a_time_as_memory_holds(raw, plan, tmp_path, monkeypatch):
    taken, data = [], DataConfig.of(root=raw)
    spy = {"fill_cache": lambda *_, workers, **__: taken.append(workers)}
    for name, stub in (spy | {"cores": lambda: 64, "needed_bytes": lambda *_: 100}).items():
        monkeypatch.setattr(module, name, stub)
    for n_bytes in (300, 99):
        monkeypatch.setattr(module, "default_budget", lambda n=n_bytes: n)
        module.prepare_cases(take_survey(data, seed=0), plan, data, tmp_path)
    assert taken == [3, 1]


# --- weights of a bundle or of a checkpoint ---


@pytest.fixture
def planned(plan):
    return plan.with_(architecture=replace(plan.architecture, n_supervised=1, layout="nnunet"))


def test_the_log_says_what_was_taken_and_what_is_new(planned, tmp_path, caplog):
    old, network = build_network(planned, seed=1), build_network(planned, seed=2)
    write_bundle(tmp_path / "run" / "bundle", [old, old], planned.with_(n_members=2), "card")
    assert bundle_plan(str(tmp_path / "run")).architecture == planned.architecture
    with caplog.at_level(logging.INFO, "lesionseg"):
        start_from(str(tmp_path / "run"), network, planned.with_(label_names=("nodule",)))
    every = len(old.state_dict())
    for said in (f"{every - 2} of {every} tensors taken", "ensemble of 2", "heads.0 (2)"):
        assert said in caplog.text
    stem = "encoder.stages.0.0.conv.weight"
    assert torch.equal(network.state_dict()[stem], old.state_dict()[stem])
    with pytest.raises(BundleError):
        bundle_plan(str(tmp_path / "none"))


def as_there(name):
    """nnU-Net's name of a weight, of two stages with a convolution each."""
    block = r"(encoder\.stages\.\d\.0|decoder\.stages\.0)(\.0)?\.(conv|norm)"
    name = re.sub(block, r"\1.convs.0.\3", name)
    name = name.replace("decoder.ups", "decoder.transpconvs")
    return name.replace("heads.0.conv", "decoder.seg_layers.0")


def test_a_checkpoint_gives_the_backbone_and_the_log_says_so(planned, tmp_path, caplog):
    old, network = build_network(planned, seed=1), build_network(planned, seed=2)
    path = tmp_path / "checkpoint_final.pth"
    weights = {as_there(name): tensor for name, tensor in old.state_dict().items()}
    torch.save({"network_weights": weights}, path)
    assert checkpoint_stages(ModelConfig.of(init_from=str(path)), 3) == planned.architecture
    with pytest.raises(ConfigError, match="spatial axes"):
        checkpoint_stages(ModelConfig.of(init_from=str(path)), 2)
    with caplog.at_level(logging.INFO, "lesionseg"):
        start_from(str(path), network, planned)
    every = len(old.state_dict())
    assert f"checkpoint_final.pth: {every - 2} of {every} tensors taken" in caplog.text
    for name, tensor in network.state_dict().items():
        same = torch.equal(tensor, old.state_dict()[name])
        assert same == (name != "heads.0.conv.weight"), name
