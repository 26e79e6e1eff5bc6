"""A training that begins with the weights of a bundle."""

import logging

import pytest
import torch

from lesionseg.errors import BundleError
from lesionseg.inference.bundles.bundle import write_bundle
from lesionseg.models import build_network
from lesionseg.pipeline.train.fine_tuning import bundle_plan, start_from
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
