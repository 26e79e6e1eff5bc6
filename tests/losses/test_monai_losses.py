"""MONAI's losses in our training, and our focal loss in MONAI's place."""

from functools import partial
from typing import Any

import monai.losses
import pytest
import torch
from torch import Tensor, nn

from lesionseg.errors import ConfigError
from lesionseg.losses import CustomLoss, FocalLoss, complete_loss


def batch(n_logits: int) -> tuple[Tensor, Tensor, Tensor]:
    noise = torch.Generator().manual_seed(0)
    logits = torch.randn((2, n_logits, 4, 5, 6), generator=noise)
    labels = torch.randint(0, 3, (2, 4, 5, 6), generator=noise)
    return logits, labels, torch.rand((2, 4, 5, 6), generator=noise) > 0.3


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("name", ["DiceFocalLoss", "DiceCELoss", "TverskyLoss", "FocalLoss"])
def test_monai_s_own_number_is_the_term(name: str, activation: str) -> None:
    softmax = activation == "softmax"
    logits, labels, _ = batch(2 + softmax)
    loss = complete_loss(partial(getattr(monai.losses, name)), activation)
    one_hot = torch.stack([labels == k for k in range(0 if softmax else 1, 3)], 1).float()
    flags = {"use_softmax": softmax} if name == "FocalLoss" else {activation: True}
    expected = getattr(monai.losses, name)(**flags)(logits, one_hot)
    assert loss(logits, labels) == {name: pytest.approx(expected.item(), rel=1e-5)}


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_what_is_not_valid_teaches_nothing(activation: str) -> None:
    logits, labels, valid = batch(2 + (activation == "softmax"))
    logits.requires_grad_()
    loss = complete_loss(partial(monai.losses.DiceFocalLoss), activation)
    (term,) = loss(logits, labels, valid=valid).values()
    term.backward()
    assert logits.grad is not None
    gone = ~valid.unsqueeze(1).expand_as(logits)
    assert logits.grad[gone].abs().max() == 0
    assert logits.grad[~gone].abs().min() > 0
    other = torch.where(gone, 5.0, logits.detach())
    relabelled = labels.masked_fill(~valid, 2)
    assert loss(other, relabelled, valid=valid)["DiceFocalLoss"].item() == term.item()


def test_ours_stays_ours_and_is_told_the_activation() -> None:
    ours = FocalLoss()
    assert complete_loss(ours, "softmax") is ours
    told = complete_loss(partial(FocalLoss, gamma=1.0), "softmax")
    assert isinstance(told, FocalLoss)
    assert told.activation == "softmax"
    assert isinstance(complete_loss(nn.BCEWithLogitsLoss(), "sigmoid"), CustomLoss)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (partial(monai.losses.DiceLoss, to_onehot_y=True), "one-hot already"),
        (partial(monai.losses.DiceLoss, smoothness=1), "cannot be built"),
        (partial(torch.Size), "no loss"),
    ],
)
def test_what_cannot_be_a_loss_is_refused(loss: Any, message: str) -> None:
    with pytest.raises(ConfigError):
        complete_loss(loss, "sigmoid")


def test_several_numbers_are_refused() -> None:
    logits, labels, _ = batch(2)
    with pytest.raises(ConfigError):
        complete_loss(partial(monai.losses.DiceLoss, reduction="none"), "sigmoid")(logits, labels)
