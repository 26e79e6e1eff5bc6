"""A training that begins with the weights of a bundle."""

import logging
from dataclasses import replace

import pytest
import torch

from lesionseg.config import ModelConfig
from lesionseg.errors import BundleError, ConfigError
from lesionseg.inference.bundle import bundle_plan, write_bundle
from lesionseg.models import build_network
from lesionseg.pipeline.prepare import checkpoint_stages, start_from
from lesionseg.plan.plan import Architecture, Normalisation, Plan

PLAN = Plan(
    dims=2,
    modality="mri",
    channel_names=("T2",),
    label_values=(1,),
    label_names=("lesion",),
    spacing_mm=(1.0, 1.0),
    normalisation=(Normalisation("zscore"),),
    tile_shape=(16, 16),
    batch_size=2,
    architecture=Architecture("unet", (4, 8), ((1, 1), (2, 2)), ((3, 3),) * 2, n_supervised=1),
    lesion_fraction=0.02,
)


def test_the_log_says_what_was_taken_and_what_is_new(tmp_path, caplog):
    old, network = build_network(PLAN, seed=1), build_network(PLAN, seed=2)
    write_bundle(tmp_path / "run" / "bundle", [old, old], PLAN.with_(n_members=2), "card")
    assert bundle_plan(str(tmp_path / "run")).architecture == PLAN.architecture
    with caplog.at_level(logging.INFO, "lesionseg"):
        start_from(str(tmp_path / "run"), network, PLAN.with_(label_names=("nodule",)))
    taken, every = len(old.state_dict()) - 2, len(old.state_dict())
    assert f"{taken} of {every} tensors taken" in caplog.text
    assert "ensemble of 2" in caplog.text
    assert "(the labels were lesion and are nodule): heads.0 (2)" in caplog.text
    stem = "encoder.stages.0.0.conv.weight"
    assert torch.equal(network.state_dict()[stem], old.state_dict()[stem])


def test_a_bundle_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BundleError, match="no bundle"):
        bundle_plan(str(tmp_path / "none"))


def test_a_checkpoint_gives_the_backbone_and_the_log_says_so(tmp_path, caplog):
    """nnU-Net's names of a network of two stages with a convolution each."""
    tables = PLAN.architecture
    table = Architecture("unet", tables.features, tables.strides, tables.kernels, 1, 1)
    plan = PLAN.with_(architecture=replace(table, layout="nnunet"))
    old, network = build_network(plan, seed=1), build_network(plan, seed=2)
    there = {
        "encoder.stages.0.0.conv": "encoder.stages.0.0.convs.0.conv",
        "encoder.stages.0.0.norm": "encoder.stages.0.0.convs.0.norm",
        "encoder.stages.1.0.conv": "encoder.stages.1.0.convs.0.conv",
        "encoder.stages.1.0.norm": "encoder.stages.1.0.convs.0.norm",
        "decoder.ups.0": "decoder.transpconvs.0",
        "decoder.stages.0.0.conv": "decoder.stages.0.convs.0.conv",
        "decoder.stages.0.0.norm": "decoder.stages.0.convs.0.norm",
        "heads.0.conv": "decoder.seg_layers.0",
    }
    weights = {}
    for name, tensor in old.state_dict().items():
        part, _, kind = name.rpartition(".")
        weights[f"{there[part]}.{kind}"] = tensor
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": weights}, path)
    assert checkpoint_stages(ModelConfig.of(init_from=str(path)), 2) == plan.architecture
    with pytest.raises(ConfigError, match="spatial axes"):
        checkpoint_stages(ModelConfig.of(init_from=str(path)), 3)
    with caplog.at_level(logging.INFO, "lesionseg"):
        start_from(str(path), network, plan)
    every = len(old.state_dict())
    assert f"checkpoint_final.pth: {every - 2} of {every} tensors taken" in caplog.text
    assert "(what nnU-Net's labels mean is not known): heads.0 (2)" in caplog.text
    for name, tensor in network.state_dict().items():
        same = torch.equal(tensor, old.state_dict()[name])
        assert same == (name != "heads.0.conv.weight"), name
