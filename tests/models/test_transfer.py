"""Weights that move from one network to another."""

from dataclasses import replace

import pytest
import torch

from lesionseg.models.build import build_network
from lesionseg.models.weights import is_head, take_weights
from lesionseg.plan.plan import AnchorPlan, Plan
from tests.models import plans

SIZES = (((4.0, 4.0), (6.0, 6.0)),)


def plan_of(name: str, labels: tuple[str, ...] = ("lesion",), sizes=SIZES) -> Plan:
    anchors = None if name == "unet" else AnchorPlan(stages=(1,), sizes=sizes, width=8, depth=1)
    return plans.plan_of(name, labels=labels, table={"n_supervised": 2}, anchors=anchors)


def moved(plan: Plan, before: Plan):
    network, old = build_network(plan, seed=1), build_network(before, seed=2)
    return network, old, take_weights(network, plan, old, before)


def fresh_parts(done):
    return {name.partition(".")[0] for name in done.fresh}


@pytest.mark.parametrize("name", ["unet", "retinanet", "retina_unet"])
def test_between_equal_networks_everything_moves(name):
    network, old, done = moved(plan_of(name), plan_of(name))
    assert (done.fresh, done.unused, done.why_fresh) == ((), (), "")
    for key, tensor in old.state_dict().items():
        assert torch.equal(network.state_dict()[key], tensor), key


@pytest.mark.parametrize(("labels", "before"), [(("nodule",), ("lesion",)), (("a", "b"), ("a",))])
def test_other_labels_give_new_heads_that_start_at_the_prior(labels, before):
    plan = plan_of("unet", labels)
    network, _, done = moved(plan, plan_of("unet", before))
    assert set(done.fresh) == {k for k in network.state_dict() if is_head(k)}
    assert done.why_fresh
    fresh = build_network(plan, seed=1)
    assert torch.equal(network.heads[0].conv.bias, fresh.heads[0].conv.bias)


def test_a_unet_gives_a_retina_unet_its_backbone_and_its_voxels():
    network, old, done = moved(plan_of("retina_unet"), plan_of("unet"))
    assert (fresh_parts(done), done.unused) == ({"head"}, ())
    image = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        voxels = network.eval()(image).segmentation[0]
        assert torch.equal(voxels, old.eval()(image)[0])


def test_a_retinanet_finds_its_coarser_decoder_in_a_unets():
    network, old, done = moved(plan_of("retinanet"), plan_of("unet"))
    assert torch.equal(network.decoder.ups[0].weight, old.decoder.ups[1].weight)
    assert fresh_parts(done) == {"head"}
    assert "decoder.ups.0.weight" in done.unused  # the finest stage, which it does without


def test_other_anchors_another_activation_and_other_shapes_stay_fresh():
    _, _, done = moved(
        plan_of("retinanet", sizes=(((3.0, 3.0), (9.0, 9.0)),)), plan_of("retinanet")
    )
    assert fresh_parts(done) == {"head"}
    unet = plan_of("unet")
    _, _, done = moved(unet.with_(activation="softmax"), unet)
    assert fresh_parts(done) == {"heads"}
    wide = unet.with_(architecture=replace(unet.architecture, features=(4, 8, 12)))
    _, _, done = moved(wide, unet)
    assert "encoder.stages.2.0.conv.weight" in done.fresh
    assert "encoder.stages.1.0.conv.weight" in done.taken
