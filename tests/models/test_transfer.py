"""Weights are transferred from one network to another."""

from dataclasses import replace

import pytest
import torch

from lesionseg.models.build import build_network
from lesionseg.models.weights import is_head, transfer_weights
from lesionseg.plan.plan import AnchorPlan
from tests.models import plans

SIZES = (((4.0, 4.0), (6.0, 6.0)),)


def plan_of(name, labels=("lesion",), sizes=SIZES):
    anchors = None if name == "unet" else AnchorPlan(stages=(1,), sizes=sizes, width=8, depth=1)
    return plans.plan_of(name, labels=labels, table={"n_supervised": 2}, anchors=anchors)


def transfer(plan, before):
    network = build_network(plan, seed=1)
    old = build_network(before, seed=2)
    return network, old, transfer_weights(network, plan, old, before)


def fresh_parts(done):
    return {name.partition(".")[0] for name in done.fresh}


@pytest.mark.parametrize("name", ["unet", "retinanet", "retina_unet"])
@pytest.mark.parametrize("before", ["lesion", "nodule"])  # the name of a single label
def test_equal_networks_transfer_all_weights(name, before):
    network, old, done = transfer(plan_of(name), plan_of(name, (before,)))
    assert (done.fresh, done.unused, done.why_fresh) == ((), (), "")
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
    unet = plan_of("unet")
    other_sizes = plan_of("retinanet", sizes=(((3.0, 3.0), (9.0, 9.0)),))
    assert fresh_parts(transfer(other_sizes, plan_of("retinanet"))[2]) == {"head"}
    assert fresh_parts(transfer(unet.with_(activation="softmax"), unet)[2]) == {"heads"}
    wide = unet.with_(architecture=replace(unet.architecture, features=(4, 8, 12)))
    _, _, done = transfer(wide, unet)
    assert "encoder.stages.2.0.conv.weight" in done.fresh
    assert "encoder.stages.1.0.conv.weight" in done.copied


def with_channels(plan, *names):
    """Return the plan with channels of these names and one normalisation."""
    return plan.with_(channel_names=names, normalisation=plan.normalisation[:1] * len(names))


def test_one_channel_is_repeated_for_several():
    one = plan_of("unet")
    network, old, done = transfer(with_channels(one, "T1", "T2"), one)
    before = old.state_dict()[_STEM]
    after = network.state_dict()[_STEM]
    assert torch.allclose(after, before.expand_as(after) / 2)
    assert _STEM in done.copied
    assert "had 1 channel and has 2" in done.adapted
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        same = network.eval()(image.expand(-1, 2, -1, -1))[0]
        assert torch.allclose(same, old.eval()(image)[0], atol=1e-5)


def test_first_convolution_of_another_width_is_not_called_adapted():
    one = plan_of("unet")
    wide = one.with_(architecture=replace(one.architecture, features=(12, 8, 16)))
    _, _, done = transfer(with_channels(wide, "T1", "T2"), one)
    assert _STEM in done.fresh
    assert done.adapted == ""


_STEM = "encoder.stages.0.0.conv.weight"


def transfer_first(names, before):
    """Return the first convolution, that of the network before, and what was adapted."""
    plan = plan_of("unet")
    network, old, done = transfer(with_channels(plan, *names), with_channels(plan, *before))
    return network.state_dict()[_STEM], old.state_dict()[_STEM], done.adapted


def test_channels_of_the_same_name_keep_their_weights():
    two = ("FLAIR", "T1")
    after, before, adapted = transfer_first(("t1", "T2", "flair"), two)
    assert torch.equal(after[:, 0], before[:, 1])
    assert torch.equal(after[:, 2], before[:, 0])
    assert torch.allclose(after[:, 1], before.mean(1) * 2 / 3)
    assert "t1, flair kept" in adapted
    after, before, adapted = transfer_first(("T1", "FLAIR"), two)
    assert torch.equal(after, before.flip(1))
    assert "new order T1, FLAIR" in adapted
    after, before, adapted = transfer_first(("a", "b"), two)  # names that do not match
    assert torch.equal(after, before)
    assert adapted == ""
