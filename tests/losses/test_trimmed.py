"""Losses that leave voxels out: the hardest, or most of the easy ones."""

import pytest
import torch

from lesionseg.errors import ConfigError
from lesionseg.losses import MinedCrossEntropyLoss, TrimmedFocalLoss, sigmoid_focal_loss
from lesionseg.losses.trimmed import without_hardest


def test_drops_the_hardest_share_of_the_mask_rounded_down() -> None:
    loss = torch.tensor([5.0, 1, 4, 2, 3, 99])
    mask = torch.tensor([True, True, True, True, True, False])
    assert without_hardest(loss, mask, 0.4).tolist() == [False, True, False, True, True, False]
    assert without_hardest(loss, mask, 0.39).tolist() == [False, True, True, True, True, False]
    assert without_hardest(loss, mask, 0.0).tolist() == mask.tolist()
    nothing = torch.zeros(6, dtype=torch.bool)
    assert not without_hardest(loss, nothing, 0.5).any()


def test_equally_hard_voxels_stay_together() -> None:
    assert without_hardest(torch.ones(10), torch.ones(10, dtype=torch.bool), 0.3).all()


def test_a_mislabelled_voxel_loses_its_voice() -> None:
    """100 clear background voxels, one of which is in truth a lesion; lesions stay."""
    x = torch.full((1, 1, 110), -4.0)
    x[..., 5], x[..., 100:] = 8.0, 1.0
    y = (torch.arange(110) >= 100).long().view(1, -1)
    x.requires_grad_()
    terms = TrimmedFocalLoss(percent=1, lesion_percent=1)(x, y)
    (gradient,) = torch.autograd.grad(terms["focal"], x)
    assert gradient[0, 0, 5] == 0
    assert (gradient[0, 0, 100:] < 0).all()
    untouched = TrimmedFocalLoss(percent=0, lesion_percent=0)(x, y)["focal"]
    torch.testing.assert_close(untouched, sigmoid_focal_loss(x, y))


def test_mining_keeps_every_lesion_voxel_and_the_hardest_background() -> None:
    x, y = torch.randn(1, 1, 60), (torch.arange(60) < 4).long().view(1, -1)
    terms = MinedCrossEntropyLoss(ratio=2, minimum=0)(x, y)
    each = sigmoid_focal_loss(x, y, alpha=None, gamma=0, reduction="none").flatten()
    expected = torch.cat([each[:4], each[4:].sort(descending=True).values[:8]]).mean()
    torch.testing.assert_close(terms["cross_entropy"], expected)
    lesion_free = MinedCrossEntropyLoss(minimum=10)(x, torch.zeros_like(y))["cross_entropy"]
    assert lesion_free > 0


def test_refuses_settings_without_meaning() -> None:
    with pytest.raises(ConfigError, match="lesion_percent"):
        TrimmedFocalLoss(lesion_percent=100)
    with pytest.raises(ConfigError, match="ratio"):
        MinedCrossEntropyLoss(ratio=-1)
