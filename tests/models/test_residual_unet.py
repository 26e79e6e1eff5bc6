"""The residual encoder U-Net: shapes, first predictions, supervision, and its way past blocks."""

from dataclasses import replace

import pytest
import torch

from lesionseg.errors import ConfigError
from lesionseg.models.blocks import ResidualBlock
from lesionseg.models.build import build_network
from lesionseg.plan.plan import Architecture, Normalisation, Plan
from lesionseg.plan.rules import multiplications, network_shape


def plan_of(dims: int, blocks: tuple[int, ...] = (1, 3, 2)) -> Plan:
    return Plan(
        dims=dims,
        modality="mri",
        channel_names=("a", "b"),
        label_values=(1, 2, 3),
        label_names=("x", "y", "z"),
        spacing_mm=(1.0,) * dims,
        normalisation=(Normalisation("zscore"),) * 2,
        tile_shape=(16,) * dims,
        batch_size=2,
        architecture=Architecture(
            "residual_unet",
            (4, 8, 8),
            ((1,) * dims, (2,) * dims, (*(1,) * (dims - 1), 2)),
            ((3,) * dims,) * 3,
            blocks=1,
            n_supervised=2,
            encoder_blocks=blocks,
        ),
        lesion_fraction=0.03,
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_levels_have_their_stages_shapes(dims: int) -> None:
    network = build_network(plan_of(dims))
    image = torch.randn(2, 2, *(16,) * dims)
    fine, coarse = network(image)
    assert fine.shape == (2, 3, *(16,) * dims)
    assert coarse.shape == (2, 3, *(8,) * dims)
    (only,) = network.eval()(image)
    assert only.shape == fine.shape
    pyramid = network.encoder(image)
    assert [tuple(x.shape[1:]) for x in pyramid] == [
        (4, *(16,) * dims),
        (8, *(8,) * dims),
        (8, *(8,) * (dims - 1), 4),
    ]
    assert [len(stage) for stage in network.encoder.stages] == [1, 3, 2]


def test_first_predictions_are_the_prior() -> None:
    network = build_network(plan_of(2)).eval()
    with torch.no_grad():
        p = network(torch.randn(2, 2, 32, 32))[0].sigmoid()
    assert p.mean().item() == pytest.approx(0.01, rel=0.2)


def test_in_nnunets_layout_every_block_begins_as_its_way_past() -> None:
    plan = plan_of(2)
    network = build_network(plan.with_(architecture=replace(plan.architecture, layout="nnunet")))
    block = network.encoder.stages[1][1]
    x = torch.rand(1, 8, 8, 8)
    assert torch.allclose(block(x), x)


def test_every_weight_learns() -> None:
    network = build_network(plan_of(2))
    torch.stack(
        [level.square().mean() for level in network(torch.randn(2, 2, 16, 16))]
    ).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_a_block_that_learnt_nothing_passes_its_input_on() -> None:
    block = ResidualBlock(2, 3, 3, kernel=(3, 3), stride=(1, 1))
    torch.nn.init.zeros_(block.norm.weight)
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(block(x), x)
    halving = ResidualBlock(2, 3, 3, kernel=(3, 3), stride=(1, 2))
    torch.nn.init.zeros_(halving.norm.weight)
    assert torch.allclose(halving(x), (x[..., ::2] + x[..., 1::2]) / 2)


def test_nnunets_table_of_blocks_is_planned() -> None:
    shape = network_shape((128,) * 3, (1.0,) * 3, 32, 320, name="residual_unet")
    assert shape.features == (32, 64, 128, 256, 320, 320)
    assert shape.encoder_blocks == (1, 3, 4, 6, 6, 6)
    assert shape.blocks == 1
    assert network_shape((128,) * 3, (1.0,) * 3, 32, 320).encoder_blocks == ()


def test_its_cost_counts_its_convolutions() -> None:
    plan = plan_of(2)
    network, counted = build_network(plan).eval(), 0

    def count(layer, _, output):  # type: ignore[no-untyped-def]
        nonlocal counted
        if tuple(layer.weight.shape[2:]) == (3, 3):
            counted += output[0, 0].numel() * layer.weight.numel()

    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(count)
    network(torch.randn(1, 2, 16, 16))
    cost = multiplications(plan.architecture, (16, 16), 1, n_channels=2)
    assert cost / 3 == pytest.approx(counted, rel=0.1)  # and the ways up and past


def test_a_table_of_another_length_is_refused() -> None:
    plan = plan_of(2)
    with pytest.raises(ConfigError, match="tables do not fit"):
        build_network(plan.with_(architecture=replace(plan.architecture, encoder_blocks=(1, 2))))
