"""Plain and residual U-Nets: shapes, seeds, first predictions, gradients, refusals."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lesionseg.models import build_network
from lesionseg.models.blocks import InstanceNorm, ResidualBlock
from lesionseg.models.build import set_memory_format, training_memory_format
from lesionseg.plan.rules import budget, multiplications
from tests.models.plans import plan_of

RESIDUAL = {"blocks": 1, "encoder_blocks": (1, 3, 2)}


@pytest.fixture
def noise():
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize(("name", "table"), [("unet", {}), ("residual_unet", RESIDUAL)])
@pytest.mark.parametrize(
    ("strides", "shape", "coarse"),
    [
        # thick slices: the first downsampling does not change z
        (((1, 1, 1), (1, 2, 2), (2, 2, 2)), (6, 16, 8), [(6, 8, 4), (3, 4, 2)]),
        (((1, 1), (1, 2), (3, 1)), (9, 10), [(9, 5), (3, 5)]),
    ],
)
def test_levels_have_their_resolution_and_weights_a_gradient(
    name, table, strides, shape, coarse, noise
):
    plan = plan_of(name, len(shape), strides=strides, n_channels=2, table=table)
    network = build_network(plan).train()
    image = torch.randn(2, 2, *shape, generator=noise)
    logits = network(image)
    assert [tuple(t.shape) for t in logits] == [(2, 1, *shape), *((2, 1, *s) for s in coarse)]
    sum(t.square().sum() for t in logits).backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
    (first,) = network.eval()(image)
    assert torch.equal(first, logits[0])


@pytest.mark.parametrize(("name", "table"), [("unet", {}), ("residual_unet", RESIDUAL)])
def test_network_without_numbers_has_the_shapes_of_a_real_one(name, table, monkeypatch):
    plan = plan_of(name, table=table)
    real = build_network(plan).state_dict()
    for draw in ("kaiming_normal_", "normal_"):  # slow there, and a plan builds dozens
        monkeypatch.delattr(nn.init, draw)
    with torch.device("meta"):
        found = build_network(plan).state_dict()
    assert {key: x.shape for key, x in found.items()} == {key: x.shape for key, x in real.items()}


@pytest.mark.parametrize("name", ["unet", "residual_unet"])
@pytest.mark.parametrize("labels", [("a",), ("a", "b")])
@pytest.mark.parametrize("pi", [1e-4, 0.2])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_every_supervised_head_first_predicts_the_prior(name, labels, pi, activation, noise):
    plan = plan_of(name, labels=labels, lesion_fraction=pi, activation=activation)
    for logits in build_network(plan).train()(torch.randn(1, 1, 16, 16, generator=noise)):
        p = logits.sigmoid() if activation == "sigmoid" else logits.softmax(1)[:, 1:]
        assert p.shape[1] == len(labels)
        assert p.mean().item() == pytest.approx(pi / len(labels), rel=0.1)


def test_weights_depend_only_on_the_seed_and_keep_the_global_state():
    before = torch.random.get_rng_state()
    first, same, other = (build_network(plan_of(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(tensor, same[name]) for name, tensor in first.items())
    kernel = "encoder.stages.0.0.conv.weight"
    assert not torch.equal(first[kernel], other[kernel])


def test_logits_are_fp32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        logits = build_network(plan_of()).train()(torch.zeros(1, 1, 8, 8))
    assert {t.dtype for t in logits} == {torch.float32}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("norm", "layout"),
    [
        (nn.InstanceNorm2d, torch.channels_last),
        (nn.InstanceNorm3d, torch.channels_last_3d),
    ],
)
def test_instance_norm_equals_that_of_torch(norm, layout, last, noise):
    ours = InstanceNorm(5)
    theirs = norm(5, affine=True)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, generator=noise)
    ours.load_state_dict(theirs.state_dict())
    dims = 3 if norm is nn.InstanceNorm3d else 2
    x = (4 + 3 * torch.randn(2, 5, *(6,) * dims, generator=noise)).requires_grad_()
    expected = theirs(x)
    seen = ours(x.to(memory_format=layout) if last else x)
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)
    assert seen.is_contiguous() != last
    weight = torch.randn(x.shape, generator=noise)
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (seen, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_layout_of_nnunet_starts_without_prior_and_with_identity_blocks():
    table = {**RESIDUAL, "features": (4, 8, 8), "layout": "nnunet"}
    network = build_network(plan_of("residual_unet", table=table))
    assert [up.bias.abs().max().item() for up in network.decoder.ups] == [0, 0]
    assert all(head.conv.weight.std() > 0.1 for head in network.heads)  # He et al. 2015
    assert all(head.conv.bias.abs().max() == 0 for head in network.heads)
    x = torch.rand(1, 8, 8, 8)
    assert torch.allclose(network.encoder.stages[1][1](x), x)


def test_residual_block_with_zero_norm_returns_its_input():
    x = torch.rand(1, 3, 8, 8)
    for stride, expected in (((1, 1), x), ((1, 2), (x[..., ::2] + x[..., 1::2]) / 2)):
        block = ResidualBlock(2, 3, 3, kernel=(3, 3), stride=stride)
        torch.nn.init.zeros_(block.norm.weight)
        assert torch.allclose(block(x), expected)


def test_planned_residual_unet_has_the_blocks_of_nnunet():
    allowed = replace(budget("cuda", 9.0, lambda *_: 0.0).value, architecture="residual_unet")
    shape = allowed.choose_architecture((128,) * 3, (1.0,) * 3)
    assert shape.features == (32, 64, 128, 256, 320, 320)
    assert shape.encoder_blocks == (1, 3, 4, 6, 6, 6)
    assert shape.blocks == 1


def test_cost_of_a_residual_unet_counts_its_convolutions():
    table = {**RESIDUAL, "n_supervised": 2}
    plan = plan_of("residual_unet", n_channels=2, labels=("a", "b", "c"), table=table)
    network = build_network(plan).eval()
    counted = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.register_forward_hook(
                lambda layer, _, output: counted.append(output[0, 0].numel() * layer.weight.numel())
            )
    network(torch.randn(1, 2, 16, 16))
    cost = multiplications(plan.architecture, (16, 16), 1, n_channels=2)
    # the formula also counts transposed and skip convolutions
    assert cost / 3 == pytest.approx(sum(counted), rel=0.1)


@pytest.mark.parametrize(
    ("dims", "features", "device", "fast", "expected"),
    [
        (2, (16, 32), "cpu", torch.float32, torch.contiguous_format),
        (2, (8, 16), "cpu", torch.float32, torch.channels_last),
        (2, (16, 32), "cpu", torch.bfloat16, torch.channels_last),
        (3, (16, 32), "cpu", torch.float32, torch.channels_last_3d),
        (2, (), "cpu", torch.float32, torch.channels_last),  # a network of the user's
        (2, (16, 32), "cuda", torch.float32, torch.contiguous_format),
    ],
)
def test_wide_2d_networks_train_contiguous_on_a_cpu_without_bf16(
    dims, features, device, fast, expected, monkeypatch
):
    monkeypatch.setattr("lesionseg.models.build.fast_dtype", lambda device: fast)
    plan = plan_of(dims=dims, strides=((1,) * dims, (2,) * dims))
    plan = plan.with_(architecture=replace(plan.architecture, features=features))
    assert training_memory_format(plan, torch.device(device)) == expected


@pytest.mark.parametrize(
    ("convolution", "layout", "other_rank"),
    [
        (nn.Conv3d(2, 4, 3), torch.channels_last_3d, (4, 1, 1, 1)),
        (nn.Conv2d(2, 4, 3), torch.channels_last, (1, 4, 1, 1, 1)),
    ],
)
def test_memory_format_keeps_the_weights_as_objects_and_those_of_another_rank(
    convolution, layout, other_rank
):
    network = nn.Sequential(convolution)
    network.scale = nn.Parameter(torch.ones(other_rank))
    network.register_buffer("shift", torch.zeros(other_rank))
    before = [*network.parameters(), *network.buffers()]
    values = [tensor.detach().clone() for tensor in before]
    set_memory_format(network, layout)
    after = [*network.parameters(), *network.buffers()]
    assert all(new is old for new, old in zip(after, before, strict=True))
    assert all(map(torch.equal, after, values))
    assert convolution.weight.is_contiguous(memory_format=layout)
    assert not convolution.weight.is_contiguous()
    assert network.scale.is_contiguous()
    set_memory_format(network, torch.contiguous_format)
    assert all(tensor.is_contiguous() for tensor in after)
