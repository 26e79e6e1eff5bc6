"""Networks that nnssl pretrained, such as OpenMind's ResEnc-L, give their weights to ours."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lesionseg.errors import BundleError
from lesionseg.models import build_network
from lesionseg.models.nnunet_checkpoint import architecture_of, read_nnunet_checkpoint
from lesionseg.training.initial_weights import start_from
from tests.models.nnssl_checkpoint import (
    RESENC,
    nnssl_weights,
    plan_of,
    pretrained_network,
    write_pretrained,
)

ROOT = Path(__file__).parents[2]
PEERS = Path(os.environ.get("LESIONSEG_PEERS", ROOT / ".peers"))
IMAGE = torch.randn(1, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
STEM = "encoder.stem.conv.weight"


@pytest.fixture
def old():
    return pretrained_network()


def architecture_in(path):
    checkpoint = read_nnunet_checkpoint(path)
    return architecture_of(checkpoint.weights, "auto", "x", is_resenc_l=checkpoint.is_resenc_l)


@pytest.mark.parametrize("with_decoder", [True, False])
def test_encoder_and_decoder_if_there_is_one_are_taken(tmp_path, old, caplog, with_decoder):
    weights = nnssl_weights(old, with_decoder=with_decoder)
    path = write_pretrained(tmp_path / "checkpoint_final.pth", weights)
    assert architecture_in(path) == RESENC
    new = build_network(plan_of(), seed=5)
    with caplog.at_level("INFO", "lesionseg"):
        start_from(str(path), new, plan_of())
    pyramid = old.encoder(IMAGE)
    assert all(map(torch.equal, new.encoder(IMAGE), pyramid))
    is_taken = torch.equal(new.decoder(pyramid)[0], old.decoder(pyramid)[0])
    assert is_taken == with_decoder
    assert not torch.equal(new(IMAGE)[0], old(IMAGE)[0])
    assert "heads.0 (2)" in caplog.text.partition("Newly initialised: ")[2]


@pytest.mark.parametrize("preset", [None, {"arch_class_name": "ResidualEncoderUNet"}])
def test_encoder_alone_of_unknown_strides_is_refused(tmp_path, old, preset):
    weights = nnssl_weights(old, with_decoder=False)
    path = write_pretrained(tmp_path / "checkpoint_final.pth", weights, preset)
    with pytest.raises(BundleError, match="0 transposed convolutions"):
        architecture_in(path)


def test_layers_that_run_are_taken_not_those_of_the_same_name(tmp_path, old):
    # SparK replaces the layers of the encoder, so that the named and the numbered ones differ
    weights = nnssl_weights(old)
    for name, tensor in weights.items():
        if name.startswith("encoder.") and ".all_modules." not in name:
            weights[name] = torch.zeros_like(tensor)
    path = write_pretrained(tmp_path / "checkpoint_final.pth", weights)
    read = read_nnunet_checkpoint(path).weights
    for name, tensor in old.state_dict().items():
        assert torch.equal(read[name], tensor), name


def test_one_pretrained_channel_is_shared_by_all_channels(tmp_path, old, caplog):
    path = write_pretrained(tmp_path / "checkpoint_final.pth", nnssl_weights(old))
    plan = plan_of(n_channels=2)
    new = build_network(plan, seed=5)
    with caplog.at_level("INFO", "lesionseg"):
        start_from(str(path), new, plan)
    halved = old.state_dict()[STEM] / 2
    assert torch.equal(new.state_dict()[STEM], torch.cat([halved, halved], dim=1))
    assert "had 1 channel and has 2" in caplog.text
    assert "by position" not in caplog.text


def test_transformer_is_refused(tmp_path):
    path = write_pretrained(tmp_path / "x.pth", {"eva.pos_embed": torch.zeros(1, 8, 4)})
    with pytest.raises(BundleError, match=r"eva\.pos_embed.* Primus"):
        read_nnunet_checkpoint(path)


@pytest.mark.slow
def test_outputs_are_those_of_the_package_that_nnssl_uses(tmp_path):
    python = PEERS / "bin" / "python"
    if not python.exists():
        pytest.skip("there is no .peers; make peers")
    subprocess.run([python, ROOT / "benchmarks" / "peers" / "resenc_l.py", tmp_path], check=True)
    expected = torch.load(tmp_path / "outputs.pt")
    path = tmp_path / "checkpoint_final.pth"
    # all weights, those of the only trained head too
    architecture = replace(architecture_in(path), n_supervised=1)
    network = build_network(plan_of(architecture=architecture)).eval()
    read = read_nnunet_checkpoint(path).weights
    network.load_state_dict({name: read[name] for name in network.state_dict()})
    network.double()
    with torch.no_grad():
        maps = network.encoder(expected["image"])
        logits = network.heads[0].conv(network.decoder(maps)[0])
    for ours, theirs in zip([*maps, logits], [*expected["maps"], expected["logits"]], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
