"""Each lesion counts alike."""

import pytest
import torch

from lesionseg.errors import ConfigError, GeometryError
from lesionseg.losses import DiceFocalLoss, FocalLoss, InstanceWise, LesionWiseFocalLoss


def two_lesions() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A lesion of 1 pixel and one of 100, far apart in a 40 x 40 tile, and a lesion-free tile."""
    instances = torch.zeros(2, 40, 40, dtype=torch.int32)
    instances[0, 4, 4], instances[0, 25:35, 25:35] = 7, 2
    logits = torch.full((2, 1, 40, 40), -4.0)
    return logits, (instances > 0).to(torch.uint8), instances


def test_a_small_lesion_weighs_as_much_as_a_large_one() -> None:
    logits, labels, instances = two_lesions()
    logits.requires_grad_()
    loss = InstanceWise(FocalLoss(), tile_weight=0, lesion_weight=1, margin=3)
    terms = loss(logits, labels, instances=instances)
    assert set(terms) == {"focal", "lesion_focal"}
    (gradient,) = torch.autograd.grad(terms["lesion_focal"], logits)
    small, large = gradient[0, 0, 4, 4], gradient[0, 0, 25:35, 25:35].sum()
    torch.testing.assert_close(small, large)
    assert gradient[1].abs().sum() == 0


def test_the_other_lesions_are_left_out() -> None:
    """With no margin the whole tile is seen, as in blob loss, but for the other lesion."""
    logits, labels, instances = two_lesions()
    loss = InstanceWise(FocalLoss(), margin=None)
    expected = [
        FocalLoss()(logits[:1], labels[:1], valid=(instances[:1] == i) | (instances[:1] == 0))
        for i in (2, 7)
    ]
    terms = loss(logits, labels, instances=instances)
    mean = (expected[0]["focal"] + expected[1]["focal"]) / 2
    torch.testing.assert_close(terms["lesion_focal"], mean)
    torch.testing.assert_close(terms["focal"], 2 * FocalLoss()(logits, labels)["focal"])


def test_invalid_voxels_and_the_divisor_reach_the_inner_loss() -> None:
    logits, labels, instances = two_lesions()
    valid = torch.ones_like(labels, dtype=torch.bool)
    valid[0, 25:35, 30:] = False
    loss = InstanceWise(DiceFocalLoss())
    expected = loss(logits, labels, instances=instances, valid=valid, normaliser=50)
    logits[0, 0, 25:35, 30:] = 30
    terms = loss(logits, labels, instances=instances, valid=valid, normaliser=50)
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name])


def test_lesion_free_tiles_have_the_same_terms() -> None:
    logits = torch.zeros(1, 1, 9, 9, 9, requires_grad=True)
    nothing = torch.zeros(1, 9, 9, 9, dtype=torch.int32)
    terms = InstanceWise(DiceFocalLoss())(logits, nothing, instances=nothing, normaliser=10)
    assert terms["lesion_dice"] == terms["lesion_focal"] == 0
    sum(terms.values()).backward()
    assert logits.grad is not None
    assert (logits.grad > 0).all()


def test_lesion_wise_focal_loss_is_focal_loss_twice() -> None:
    logits, labels, instances = two_lesions()
    named = LesionWiseFocalLoss(0.4, 1.5, tile_weight=3.0, lesion_weight=0.5, margin=2)
    built = InstanceWise(FocalLoss(0.4, 1.5), 3.0, 0.5, 2)
    assert named(logits, labels, instances=instances) == built(logits, labels, instances=instances)
    assert named.link == (0.4, 1.5)


def test_refuses_missing_instances() -> None:
    logits, labels, instances = two_lesions()
    loss = InstanceWise(FocalLoss())
    assert loss.needs_instances
    with pytest.raises(GeometryError, match="instances"):
        loss(logits, labels)
    with pytest.raises(GeometryError, match="instances"):
        loss(logits, labels, instances=instances[:1])
    with pytest.raises(ConfigError, match="margin"):
        InstanceWise(FocalLoss(), margin=-1)
