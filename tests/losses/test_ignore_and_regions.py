"""What every loss owes to voxels that are left out, and to classes that overlap."""

import math
from collections.abc import Callable

import pytest
import torch

from lesionseg.errors import LesionsegError
from lesionseg.losses import (
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    DiceFocalLoss,
    FocalLoss,
    LesionBalancedLoss,
    VoxelLoss,
    nearest_lesions,
)
from lesionseg.losses.base import count_positives, mask_unannotated, region_target

SHAPE = (2, 6, 7, 8)
LOSSES: dict[str, Callable[..., VoxelLoss]] = {
    "focal": FocalLoss,
    "cross_entropy": CrossEntropyLoss,
    "dice_focal": DiceFocalLoss,
    "dice_cross_entropy": DiceCrossEntropyLoss,
    "lesion_balanced": LesionBalancedLoss,
}


def scene(channels: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels of two classes and the lesions they make; the right half is empty."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn((SHAPE[0], channels, *SHAPE[1:]), generator=draw)
    labels = torch.zeros(SHAPE, dtype=torch.uint8)
    labels[0, 1:3, 1:4, 1:3] = 1
    labels[0, 4:6, 5:7, 0:2] = 2
    labels[1, 2:4, 2:5, 1:4] = 2
    instances = labels.int()
    return logits, labels, instances


def called(
    loss: VoxelLoss, logits: torch.Tensor, labels: torch.Tensor, instances: torch.Tensor, valid
) -> dict[str, torch.Tensor]:
    seen = instances if valid is None else instances.masked_fill(~valid, 0)
    is_balanced = isinstance(loss, LesionBalancedLoss)
    extra = {"nearest": nearest_lesions(seen)} if is_balanced else {}
    return loss(logits, labels, valid=valid, **extra)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax", "regions"])
@pytest.mark.parametrize("name", LOSSES)
def test_what_is_ignored_teaches_nothing(name: str, activation: str) -> None:
    loss = LOSSES[name](activation="softmax" if activation == "softmax" else "sigmoid")
    logits, labels, instances = scene(3 if activation == "softmax" else 2)
    valid = torch.ones(SHAPE, dtype=torch.bool)
    valid[..., 4:] = False
    # another truth, another lesion and wild logits where nobody is to look
    other, other_labels, other_instances = logits.clone(), labels.clone(), instances.clone()
    other[..., 4:] = 50.0
    other_labels[..., 4:] = 1
    other_instances[..., 5:7] = 9
    if activation == "regions":
        labels, other_labels = (region_target(x, [(1, 2), (2,)]) for x in (labels, other_labels))
    first = called(loss, logits, labels, instances, valid)
    leaf = other.requires_grad_()
    second = called(loss, leaf, other_labels, other_instances, valid)
    for term in first:
        torch.testing.assert_close(second[term], first[term])
    torch.stack(list(second.values())).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad[..., 4:].abs().max() == 0
    assert leaf.grad[..., :4].abs().max() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_regions_of_one_label_each_are_the_labels(name: str) -> None:
    loss = LOSSES[name](activation="sigmoid")
    logits, labels, instances = scene(2)
    by_label = called(loss, logits, labels, instances, None)
    by_region = called(loss, logits, region_target(labels, [(1,), (2,)]), instances, None)
    assert by_label.keys() == by_region.keys()
    for term in by_label:
        torch.testing.assert_close(by_region[term], by_label[term])


def test_positives_are_counted_in_each_region() -> None:
    target = region_target(torch.tensor([[0, 1, 2, 2]]), [(1, 2), (2,)])
    assert count_positives(target) == 5
    assert count_positives(target, torch.tensor([[True, True, True, False]])) == 3


def test_a_softmax_takes_no_regions() -> None:
    logits, labels, _ = scene(3)
    with pytest.raises(LesionsegError):
        FocalLoss(activation="softmax")(logits, region_target(labels, [(1,), (1, 2), (2,)]))


@pytest.mark.parametrize("name", LOSSES)
def test_a_class_that_a_tile_does_not_annotate_has_no_gradient_and_costs_nothing(name: str) -> None:
    """Class 2 of the second tile: its logits may be anything, and the first tile's still learns."""
    logits, labels, instances = scene(2)
    labels[1][labels[1] == 2] = 0
    unannotated = torch.tensor([[False, False], [False, True]])
    loss, values = LOSSES[name](), []
    for seed in (1, 2):
        given = logits.clone()
        given[1, 1] = 9 * torch.randn(SHAPE[1:], generator=torch.Generator().manual_seed(seed))
        given.requires_grad_()
        known = mask_unannotated(given, unannotated, "sigmoid")
        terms = called(loss, known, labels, instances, None)
        value = torch.stack(list(terms.values())).sum()
        value.backward()
        assert given.grad is not None
        assert not given.grad[1, 1].any()
        assert all(bool(given.grad[b, k].any()) for b, k in ((0, 0), (0, 1), (1, 0)))
        values.append(value.item())
    assert values[0] == values[1]


def test_the_marginal_loss_of_a_softmax_by_hand() -> None:
    """p = 0.5, 0.2, 0.3 and class 2 unknown: background is 0.8, class 1 stays 0.2."""
    logits = torch.tensor([0.5, 0.2, 0.3]).log().view(1, 3, 1).expand(1, 3, 2)
    logits = logits.clone().requires_grad_()
    known = mask_unannotated(logits, torch.tensor([[False, True]]), "softmax")
    p = known.softmax(1)[0, :, 0]
    torch.testing.assert_close(p, torch.tensor([0.8, 0.2, 0.0]))
    loss = CrossEntropyLoss(reduction="sum", activation="softmax")
    value = loss(known, torch.tensor([[0, 1]]))["cross_entropy"]
    assert value.item() == pytest.approx(-math.log(0.8) - math.log(0.2))
    value.backward()
    # of background -p_0/0.8, p_1, -p_2/0.8 beside p; a known lesion rules the unknown class out
    background, lesion = [0.5 - 0.625, 0.2, 0.3 - 0.375], [0.5, 0.2 - 1, 0.3]
    expected = torch.tensor([background, lesion]).T[None]
    torch.testing.assert_close(logits.grad, expected)
