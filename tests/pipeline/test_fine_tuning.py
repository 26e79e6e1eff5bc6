"""A training that begins with the weights of a bundle."""

import logging
import re
from dataclasses import replace

import pytest
import torch

from lesionseg.config import ModelConfig
from lesionseg.errors import BundleError, ConfigError
from lesionseg.inference.bundle import bundle_plan, write_bundle
from lesionseg.models import build_network
from lesionseg.pipeline.prepare import checkpoint_stages, start_from


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
