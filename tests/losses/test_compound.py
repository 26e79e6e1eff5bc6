"""Losses with named terms: what each term is, and that weights, masks and divisors reach it."""

import math

import pytest
import torch
from torch.nn import functional as F

from lesionseg.errors import ConfigError
from lesionseg.losses import (
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    DiceFocalLoss,
    FocalLoss,
    VoxelLoss,
    dice_loss,
    sigmoid_focal_loss,
    softmax_focal_loss,
)

ALL = [FocalLoss, CrossEntropyLoss, DiceFocalLoss, DiceCrossEntropyLoss]


def batch(n_channels: int, lesion: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    logits = torch.randn(2, n_channels, 6, 7, 8, generator=draw) - 2
    labels = torch.zeros(2, 6, 7, 8, dtype=torch.uint8)
    if lesion:
        labels[0, 1:3, 1:3, 1:4], labels[1, 4:, 5:, 6:] = 1, 2
    return logits, labels


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("loss_class", ALL)
@pytest.mark.parametrize("lesion", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_terms_are_finite_fp32_scalars_with_a_gradient(
    loss_class: type[VoxelLoss], activation: str, lesion: bool, dtype: torch.dtype
) -> None:
    """Also where no lesion is, for two classes, and from half precision."""
    loss = loss_class(activation=activation)  # type: ignore[call-arg]
    logits, labels = batch(2 if activation == "sigmoid" else 3, lesion)
    logits = logits.to(dtype).requires_grad_()
    terms = loss(logits, labels, normaliser=torch.tensor(30.0))
    assert loss.activation == activation
    for term in terms.values():
        assert term.shape == ()
        assert term.dtype == torch.float32
        assert 0 <= term.item() < 100
    sum(terms.values()).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().sum() > 0


def test_the_terms_of_the_default_are_dice_and_focal() -> None:
    logits, labels = batch(2)
    terms = DiceFocalLoss(0.75, 2.0, focal_weight=3, dice_weight=2)(logits, labels, normaliser=9)
    assert list(terms) == ["dice", "focal"]
    torch.testing.assert_close(terms["dice"], 2 * dice_loss(logits, labels))
    focal = sigmoid_focal_loss(logits, labels, alpha=0.75, normaliser=9)
    torch.testing.assert_close(terms["focal"], 3 * focal)
    focal = FocalLoss(activation="softmax")(logits, labels.clamp_max(1))["focal"]
    torch.testing.assert_close(focal, softmax_focal_loss(logits, labels.clamp_max(1)))


def test_cross_entropy_weights_lesions() -> None:
    logits, labels = batch(1)
    labels = labels.clamp_max(1)
    terms = CrossEntropyLoss(lesion_weight=5)(logits, labels, normaliser=3.0)
    expected = F.binary_cross_entropy_with_logits(
        logits[:, 0], labels.float(), pos_weight=torch.tensor(5.0)
    )
    torch.testing.assert_close(terms["cross_entropy"], expected)
    logits, labels = batch(3)
    terms = DiceCrossEntropyLoss(activation="softmax")(logits, labels)
    assert list(terms) == ["dice", "cross_entropy"]
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(logits, labels.long()))


def test_refuses_what_is_no_training_loss() -> None:
    with pytest.raises(ConfigError):
        FocalLoss(activation="relu")
    with pytest.raises(ConfigError):
        FocalLoss(reduction="none")
    with pytest.raises(ConfigError):
        CrossEntropyLoss(lesion_weight=0)


def nnunet_by_loops(logits: torch.Tensor, labels: torch.Tensor, per_tile: bool) -> float:
    """Mean cross-entropy of every voxel, minus Dice of lesions with 1e-5 added above and below."""
    p = logits.double().softmax(1)
    entropy, sums = 0.0, [[0.0, 0.0, 0.0] for _ in labels]
    for b, one in enumerate(labels.tolist()):
        for i, label in enumerate(one):
            entropy -= math.log(float(p[b, label, i])) / labels.numel()
            sums[b][0] += float(p[b, 1, i]) * label
            sums[b][1] += float(p[b, 1, i])
            sums[b][2] += label
    groups = sums if per_tile else [[sum(column) for column in zip(*sums, strict=True)]]
    dice = [(2 * hit + 1e-5) / (predicted + present + 1e-5) for hit, predicted, present in groups]
    return entropy - sum(dice) / len(dice)


@pytest.mark.parametrize("per_tile", [False, True])
def test_nnunets_loss_is_within_ours(per_tile: bool) -> None:
    """Ours is larger by 1; the second tile has no lesion, where `per_tile` matters most."""
    logits = torch.randn(2, 2, 40, generator=torch.Generator().manual_seed(5))
    labels = torch.zeros(2, 40, dtype=torch.uint8)
    labels[0, 3:9] = 1
    how = {"activation": "softmax", "smooth": 1e-5, "per_tile": per_tile}
    ours = DiceFocalLoss(0.5, 0.0, reduction="mean", focal_weight=2.0, **how)
    same = DiceCrossEntropyLoss(**how)
    for loss in (ours, same):
        total = float(sum(loss(logits, labels).values()))
        assert total - 1 == pytest.approx(nnunet_by_loops(logits, labels, per_tile), abs=1e-6)
