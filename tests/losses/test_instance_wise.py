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
    terms = named(logits, labels, instances=instances)
    torch.testing.assert_close(terms, built(logits, labels, instances=instances))
    assert named.link == (0.4, 1.5)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("margin", [0, 2, None])
@pytest.mark.parametrize("shape", [(14, 12), (7, 8, 9)])
@pytest.mark.parametrize("regions", [False, True])
def test_one_weighted_sum_is_the_mean_over_lesions(
    activation: str, margin: int | None, shape: tuple[int, ...], *, regions: bool
) -> None:
    """Also where boxes overlap and reach over the edge, and for classes that overlap."""
    if regions and activation == "softmax":
        return
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 3, *shape), generator=draw)
    instances = torch.zeros((2, *shape), dtype=torch.int32)
    for lesion in range(1, 9):
        at = [int(torch.randint(0, n - 2, (), generator=draw)) for n in shape]
        instances[(lesion % 2, *(slice(i, i + 2) for i in at))] = lesion
    labels = (instances % 2 + 1) * (instances > 0)
    if regions:
        labels = torch.stack([labels == 1, labels > 0, labels < 0], dim=1)
    valid = torch.rand(instances.shape, generator=draw) > 0.2
    settings = {"tile_weight": 2.0, "lesion_weight": 1.0, "margin": margin}
    ours = LesionWiseFocalLoss(0.4, 1.5, activation, **settings)
    naive = InstanceWise(FocalLoss(0.4, 1.5, activation=activation), **settings)
    found = []
    for loss in (ours, naive):
        x = logits.clone().requires_grad_()
        terms = loss(x, labels, valid=valid, instances=instances, normaliser=9.0)
        found.append((terms, torch.autograd.grad(sum(terms.values()), x)))
    torch.testing.assert_close(*found)


def test_refuses_missing_instances() -> None:
    logits, labels, instances = two_lesions()
    loss = InstanceWise(FocalLoss())
    assert loss.needs_instances
    with pytest.raises(GeometryError):
        loss(logits, labels)
    with pytest.raises(GeometryError):
        loss(logits, labels, instances=instances[:1])
    with pytest.raises(ConfigError):
        InstanceWise(FocalLoss(), margin=-1)
