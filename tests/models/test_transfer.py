"""Weights are transferred from one network to another."""

from dataclasses import replace

import pytest
import torch

from lesionseg.models.build import build_network
from lesionseg.models.weights import is_head, take_weights
from lesionseg.plan.plan import AnchorPlan
from tests.models import plans

SIZES = (((4.0, 4.0), (6.0, 6.0)),)


def plan_of(name, labels=("lesion",), sizes=SIZES):
    anchors = None if name == "unet" else AnchorPlan(stages=(1,), sizes=sizes, width=8, depth=1)
    return plans.plan_of(name, labels=labels, table={"n_supervised": 2}, anchors=anchors)


def transfer(plan, before):
    network = build_network(plan, seed=1)
    old = build_network(before, seed=2)
    return network, old, take_weights(network, plan, old, before)


def fresh_parts(done):
    return {name.partition(".")[0] for name in done.fresh}


@pytest.mark.parametrize("name", ["unet", "retinanet", "retina_unet"])
def test_equal_networks_transfer_all_weights(name):
    network, old, done = transfer(plan_of(name), plan_of(name))
    assert (done.fresh, done.unused, done.why_fresh) == ((), (), "")
    for key, tensor in old.state_dict().items():
        assert torch.equal(network.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", ["unet", "retinanet", "retina_unet"])
def test_single_label_of_another_name_keeps_the_heads(name):
    network, old, done = transfer(plan_of(name, ("nodule",)), plan_of(name, ("lesion",)))
    assert (done.fresh, done.why_fresh) == ((), "")
    for key, tensor in old.state_dict().items():
        assert torch.equal(network.state_dict()[key], tensor), key


@pytest.mark.parametrize(
    ("labels", "before"), [(("a", "b"), ("a",)), (("a",), ("a", "b")), (("a", "b"), ("a", "c"))]
)
def test_other_labels_give_new_heads_that_start_at_the_prior(labels, before):
    plan = plan_of("unet", labels)
    network, _, done = transfer(plan, plan_of("unet", before))
    assert set(done.fresh) == {k for k in network.state_dict() if is_head(k)}
    assert done.why_fresh
    fresh = build_network(plan, seed=1)
    assert torch.equal(network.heads[0].conv.bias, fresh.heads[0].conv.bias)


def test_retina_unet_takes_backbone_and_voxel_head_of_a_unet():
    network, old, done = transfer(plan_of("retina_unet"), plan_of("unet"))
    assert (fresh_parts(done), done.unused) == ({"head"}, ())
    image = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        voxels = network.eval()(image).segmentation[0]
        assert torch.equal(voxels, old.eval()(image)[0])


def test_retinanet_takes_the_coarse_decoder_of_a_unet():
    network, old, done = transfer(plan_of("retinanet"), plan_of("unet"))
    assert torch.equal(network.decoder.ups[0].weight, old.decoder.ups[1].weight)
    assert fresh_parts(done) == {"head"}
    assert "decoder.ups.0.weight" in done.unused  # the finest stage does not exist in a RetinaNet


def test_weights_of_other_anchors_activations_or_shapes_stay_new():
    _, _, done = transfer(
        plan_of("retinanet", sizes=(((3.0, 3.0), (9.0, 9.0)),)), plan_of("retinanet")
    )
    assert fresh_parts(done) == {"head"}
    unet = plan_of("unet")
    _, _, done = transfer(unet.with_(activation="softmax"), unet)
    assert fresh_parts(done) == {"heads"}
    wide = unet.with_(architecture=replace(unet.architecture, features=(4, 8, 12)))
    _, _, done = transfer(wide, unet)
    assert "encoder.stages.2.0.conv.weight" in done.fresh
    assert "encoder.stages.1.0.conv.weight" in done.taken


@pytest.mark.parametrize("name", ["unet", "residual_unet"])
def test_one_channel_is_repeated_for_several(name):
    table = {"encoder_blocks": (1, 1, 1)} if name == "residual_unet" else {}
    one = plans.plan_of(name, channel_names=("FLAIR",), table=table)
    two = one.with_(channel_names=("T1", "T2"), normalisation=one.normalisation * 2)
    network, old, done = transfer(two, one)
    first = "encoder.stem.conv.weight" if name == "residual_unet" else _STEM
    before = old.state_dict()[first]
    after = network.state_dict()[first]
    assert torch.allclose(after, before.expand_as(after) / 2)
    assert first in done.taken
    assert "had 1 channel and has 2" in done.adapted
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        same = network.eval()(image.expand(-1, 2, -1, -1))[0]
        assert torch.allclose(same, old.eval()(image)[0], atol=1e-5)


def test_first_convolution_of_another_width_is_not_called_adapted():
    one = plans.plan_of("unet", channel_names=("FLAIR",))
    wide = replace(one.architecture, features=(12, *one.architecture.features[1:]))
    two = one.with_(
        channel_names=("T1", "T2"), normalisation=one.normalisation * 2, architecture=wide
    )
    _, _, done = transfer(two, one)
    assert _STEM in done.fresh
    assert done.adapted == ""


_STEM = "encoder.stages.0.0.conv.weight"


def test_channels_of_the_same_name_keep_their_weights():
    two = plans.plan_of("unet", channel_names=("FLAIR", "T1"))
    if len(two.normalisation) == 1:
        two = two.with_(normalisation=two.normalisation * 2)
    three = two.with_(
        channel_names=("t1", "T2", "flair"), normalisation=(two.normalisation[0],) * 3
    )
    network, old, done = transfer(three, two)
    before = old.state_dict()[_STEM]
    after = network.state_dict()[_STEM]
    assert torch.equal(after[:, 0], before[:, 1])
    assert torch.equal(after[:, 2], before[:, 0])
    assert torch.allclose(after[:, 1], before.mean(1) * 2 / 3)
    assert "t1, flair kept" in done.adapted
    swapped = two.with_(channel_names=("T1", "FLAIR"))
    network, old, done = transfer(swapped, two)
    assert done.adapted == "the first convolution has its channels in the new order T1, FLAIR"
    assert torch.equal(network.state_dict()[_STEM], old.state_dict()[_STEM].flip(1))
    other = two.with_(channel_names=("a", "b"))  # names that do not match
    network, old, done = transfer(other, two)
    assert torch.equal(network.state_dict()[_STEM], old.state_dict()[_STEM])
    assert done.adapted == ""
