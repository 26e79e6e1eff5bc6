"""Checkpoints of nnU-Net and nnssl are written with their names and read with ours."""

import numpy as np
import pytest
import torch

from lesionseg.errors import BundleError, ConfigError
from lesionseg.models import build_network
from lesionseg.models.nnunet_checkpoint import architecture_of, read_nnunet_checkpoint
from lesionseg.plan.plan import Architecture
from lesionseg.training.initial_weights import start_from
from tests.models import plans
from tests.models.nnssl_checkpoint import pretrained_network
from tests.models.nnunet_names import to_nnunet_weights

STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
KERNELS = ((1, 3, 3), (3, 3, 3), (3, 3, 3))
PLAIN = Architecture("unet", (4, 6, 8), STRIDES, KERNELS, n_supervised=1, layout="nnunet")
BLOCKS = {"blocks": 1, "encoder_blocks": (1, 2, 2), "n_supervised": 1, "layout": "nnunet"}
RESIDUAL = Architecture("residual_unet", (4, 6, 6), STRIDES, KERNELS, **BLOCKS)


FIRST = "encoder.stages.0.0.conv.weight"


def plan_of(architecture, n_channels=1):
    return plans.plan_of(
        dims=3, n_channels=n_channels, architecture=architecture, activation="softmax"
    )


def write_checkpoint(folder, architecture, **more):
    network = pretrained_network(plan_of(architecture))
    path = folder / "checkpoint_final.pth"
    torch.save({"network_weights": to_nnunet_weights(network.state_dict()), **more}, path)
    return path, network


@pytest.mark.parametrize("architecture", [PLAIN, RESIDUAL], ids=["plain", "residual"])
def test_network_gives_equal_outputs_after_renaming(tmp_path, architecture):
    path, network = write_checkpoint(
        tmp_path,
        architecture,
        _best_ema=np.float64(0.5),
        logging={"dice": [np.float32(0.25)]},
        init_args={"plans": {}, "device": torch.device("cpu")},
        current_epoch=3,
    )
    read = read_nnunet_checkpoint(path).weights
    assert architecture_of(read, architecture.name, path.name) == architecture
    again = build_network(plan_of(architecture), seed=5)
    again.load_state_dict(read)
    image = torch.randn(1, 1, 8, 16, 16)
    assert torch.equal(network(image)[0], again(image)[0])


def test_prefixes_of_wrappers_and_bare_weights_are_read(tmp_path):
    path, network = write_checkpoint(tmp_path, PLAIN)
    bare = {f"module._orig_mod.{k}": v for k, v in to_nnunet_weights(network.state_dict()).items()}
    torch.save(bare, path)
    assert set(read_nnunet_checkpoint(path).weights) == set(network.state_dict())


def first_weights(folder, names, dataset_json):
    """Return the first convolutions of a checkpoint of two channels and of a network from it."""
    before = build_network(plan_of(PLAIN, n_channels=2), seed=4)
    path = folder / "checkpoint_final.pth"
    arguments = {"dataset_json": dataset_json}
    weights = to_nnunet_weights(before.state_dict())
    torch.save({"network_weights": weights, "init_args": arguments}, path)
    plan = plan_of(PLAIN, n_channels=len(names)).with_(channel_names=names)
    network = build_network(plan, seed=5)
    start_from(str(path), network, plan)
    return before.state_dict()[FIRST], network.state_dict()[FIRST]


@pytest.mark.parametrize("key", ["channel_names", "modality"])
def test_channels_are_taken_by_the_names_in_the_checkpoint(tmp_path, key):
    old, new = first_weights(tmp_path, ("FLAIR",), {key: {"0": "T1", "1": "FLAIR"}})
    assert torch.equal(new, old[:, 1:])


@pytest.mark.parametrize("stated", [{}, {"channel_names": ["T1", "FLAIR"]}, {"channel_names": {}}])
def test_channels_without_names_are_taken_by_position(tmp_path, stated, caplog):
    with caplog.at_level("INFO"):
        old, new = first_weights(tmp_path, ("FLAIR", "T1"), stated)
    assert torch.equal(new, old)
    assert "by position" in caplog.text


class Foreign:
    """A class that a checkpoint must not create."""


def test_files_without_weights_or_with_foreign_objects_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    with pytest.raises(BundleError):
        read_nnunet_checkpoint(path)
    torch.save({"network_weights": {"blocks.0.attention": torch.zeros(2)}}, path)
    # torch raises KeyError for the last one
    contents = (path.read_bytes(), b"no checkpoint at all", b"hello world, not a checkpoint")
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(BundleError):
            read_nnunet_checkpoint(path)
    path, _ = write_checkpoint(tmp_path, PLAIN, init_args=Foreign())
    with pytest.raises(BundleError, match="Foreign"):
        read_nnunet_checkpoint(path)


def test_another_backbone_and_incomplete_stages_are_refused(tmp_path):
    path, _ = write_checkpoint(tmp_path, RESIDUAL)
    with pytest.raises(ConfigError):
        architecture_of(read_nnunet_checkpoint(path).weights, "unet", path.name)
    weights = read_nnunet_checkpoint(write_checkpoint(tmp_path, PLAIN)[0]).weights
    assert architecture_of(weights, "retina_unet", "x").features == PLAIN.features
    less = {k: v for k, v in weights.items() if not k.startswith("encoder.stages.2.1.")}
    with pytest.raises(BundleError):
        architecture_of(less, "unet", "x")
