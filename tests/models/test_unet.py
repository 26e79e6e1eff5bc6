"""The U-Net's shapes, its first predictions, its gradients and its refusals."""

from dataclasses import replace
from math import log

import pytest
import torch
from jaxtyping import jaxtyped
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from lesionseg.errors import ConfigError, GeometryError
from lesionseg.models import UNet, build_network, prior_bias, total_stride
from lesionseg.models.blocks import InstanceNorm
from lesionseg.plan.plan import Architecture, Normalisation, Plan


def architecture(dims=3, *, strides=None, n_supervised=3):
    strides = strides or ((1,) * dims, (2,) * dims, (2,) * dims)
    n = len(strides)
    kernels = tuple((3,) * dims for _ in range(n))
    return Architecture(
        "unet", tuple(4 * 2**i for i in range(n)), strides, kernels, n_supervised=n_supervised
    )


def plan(dims=3, *, n_labels=1, n_channels=1, activation="sigmoid", pi=0.01, **table):
    return Plan(
        dims=dims,
        modality="mri",
        channel_names=("T2",) * n_channels,
        label_values=tuple(range(1, n_labels + 1)),
        label_names=tuple(f"lesion {k}" for k in range(n_labels)),
        spacing_mm=(1.0,) * dims,
        normalisation=(Normalisation("zscore"),) * n_channels,
        tile_shape=(16,) * dims,
        batch_size=2,
        architecture=architecture(dims, **table),
        lesion_fraction=pi,
        activation=activation,
    )


@pytest.fixture
def noise():
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize(
    ("dims", "strides", "shape", "coarse"),
    [
        (2, None, (16, 24), [(8, 12), (4, 6)]),
        (3, None, (8, 16, 24), [(4, 8, 12), (2, 4, 6)]),
        # thick slices: the first downsampling leaves z as it is
        (3, ((1, 1, 1), (1, 2, 2), (2, 2, 2)), (6, 16, 8), [(6, 8, 4), (3, 4, 2)]),
        (2, ((1, 1), (1, 2), (3, 1)), (9, 10), [(9, 5), (3, 5)]),
    ],
)
def test_train_mode_gives_each_supervised_level_at_its_own_resolution(
    dims, strides, shape, coarse, noise
):
    network = build_network(plan(dims, strides=strides, n_channels=2)).train()
    logits = network(torch.randn(2, 2, *shape, generator=noise))
    assert [tuple(t.shape) for t in logits] == [(2, 1, *shape), *((2, 1, *s) for s in coarse)]


@pytest.mark.parametrize(
    ("activation", "channels"), [("sigmoid", 3), ("softmax", 4)], ids=["sigmoid", "softmax"]
)
def test_eval_mode_gives_full_resolution_only_with_one_logit_per_class(activation, channels):
    network = build_network(plan(2, n_labels=3, activation=activation)).eval()
    (logits,) = network(torch.zeros(1, 1, 8, 8))
    assert logits.shape == (1, channels, 8, 8)


def test_eval_gives_the_same_answer_twice_and_the_first_level_of_train(noise):
    network = build_network(plan())
    x = torch.randn(1, 1, 8, 8, 8, generator=noise)
    (first,), (second,) = network.eval()(x), network.eval()(x)
    assert torch.equal(first, second)
    assert torch.equal(first, network.train()(x)[0])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("n_labels", [1, 2])
@pytest.mark.parametrize("pi", [1e-4, 0.01, 0.2])
def test_every_supervised_head_first_predicts_the_prior(dims, n_labels, pi, noise):
    network = build_network(plan(dims, n_labels=n_labels, pi=pi)).train()
    for head in network.heads:
        torch.testing.assert_close(
            head.conv.bias.sigmoid(), torch.full((n_labels,), pi / n_labels), rtol=1e-5, atol=0
        )
    for logits in network(torch.randn(1, 1, *(16,) * dims, generator=noise)):
        assert logits.sigmoid().mean().item() == pytest.approx(pi / n_labels, rel=0.1)


def test_softmax_first_predicts_the_prior_shared_among_the_labels(noise):
    network = build_network(plan(n_labels=2, activation="softmax", pi=0.02)).train()
    for head in network.heads:
        expected = torch.tensor([0.98, 0.01, 0.01])
        torch.testing.assert_close(head.conv.bias.softmax(0), expected, rtol=1e-5, atol=0)
    for logits in network(torch.randn(1, 1, 16, 16, 16, generator=noise)):
        background = logits.softmax(1)[:, 0].mean().item()
        assert background == pytest.approx(0.98, abs=0.002)


def test_sigmoid_bias_is_minus_the_log_odds_against():
    assert prior_bias(0.01, 1, "sigmoid") == pytest.approx((-log(0.99 / 0.01),))


@pytest.mark.parametrize("pi", [0.0, 1.0, -0.1, float("nan")])
def test_a_prior_that_is_no_fraction_is_refused(pi):
    with pytest.raises(ConfigError, match="lesion_fraction"):
        build_network(plan(pi=pi))


@pytest.mark.parametrize("dims", [2, 3])
def test_gradient_reaches_every_parameter(dims, noise):
    network = build_network(plan(dims)).train()
    logits = network(torch.randn(2, 1, *(16,) * dims, generator=noise))
    sum(t.square().sum() for t in logits).backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("shape", [(8, 8, 10), (6, 8, 8), (4, 4, 4), (8, 8)])
def test_a_size_the_total_stride_does_not_divide_is_refused(shape):
    with pytest.raises(GeometryError, match=r"multiples of \(4, 4, 4\)"):
        build_network(plan())(torch.zeros(1, 1, *shape))


def test_logits_are_fp32_under_autocast():
    network = build_network(plan(2)).train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.zeros(1, 1, 8, 8))
    assert {t.dtype for t in logits} == {torch.float32}


def test_encoder_and_decoder_are_pyramids_of_the_stated_widths(noise):
    network = build_network(plan(2))
    encoded = network.encoder(torch.randn(1, 1, 16, 16, generator=noise))
    decoded = network.decoder(encoded)
    assert [t.shape for t in decoded] == [t.shape for t in encoded]
    assert tuple(t.shape[1] for t in decoded) == network.decoder.channels == (4, 8, 16)
    assert network.encoder.total_stride == total_stride(architecture(2)) == (4, 4)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_instance_norm_equals_torchs(dims, last, noise):
    ours = InstanceNorm(5)
    theirs = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims](5, affine=True)
    with torch.no_grad():
        for name in ("weight", "bias"):
            value = torch.randn(5, generator=noise)
            getattr(ours, name).copy_(value)
            getattr(theirs, name).copy_(value)
    x = (4 + 3 * torch.randn(2, 5, *(6,) * dims, generator=noise)).requires_grad_()
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    expected, seen = theirs(x), ours(x.to(memory_format=layout) if last else x)
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)
    assert seen.is_contiguous() != last
    weight = torch.randn(x.shape, generator=noise)
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (seen, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"features": (4, 8)},
        {"kernels": ((3, 3),) * 3},
        {"kernels": ((4, 4, 4),) * 3},
        {"blocks": 0},
        {"n_supervised": 4},
    ],
)
def test_tables_that_do_not_fit_are_refused(change):
    good = architecture()
    bad = Architecture(**{**{f: getattr(good, f) for f in good.__dataclass_fields__}, **change})
    with pytest.raises(ConfigError, match="tables do not fit"):
        UNet(3, 1, bad, (-4.0,))


def test_a_network_fits_one_tile_by_heart(noise):
    network = build_network(plan(2, pi=0.05)).train()
    image = torch.randn(1, 1, 32, 32, generator=noise)
    target = torch.zeros(1, 1, 32, 32)
    target[..., 10:14, 20:23] = 1
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(120):
        optimiser.zero_grad()
        loss = binary_cross_entropy_with_logits(network(image)[0], target)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.005
    assert torch.equal(network.eval()(image)[0] > 0, target > 0.5)


def test_shape_annotations_hold(noise):
    forward = jaxtyped(typechecker=pytest.importorskip("beartype").beartype)(UNet.forward)
    assert len(forward(build_network(plan(2)), torch.randn(1, 1, 8, 8, generator=noise))) == 3


def test_nnunets_layout_begins_without_a_prior_and_lifts_maps_with_biases():
    ours = plan(activation="softmax")
    network = build_network(ours.with_(architecture=replace(ours.architecture, layout="nnunet")))
    assert [up.bias.abs().max().item() for up in network.decoder.ups] == [0, 0]
    assert all(head.conv.weight.std() > 0.1 for head in network.heads)  # He et al. 2015
    assert all(head.conv.bias.abs().max() == 0 for head in network.heads)
    assert Plan.from_json(ours.to_json()).architecture.layout == "lesionseg"
