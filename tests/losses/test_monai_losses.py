"""MONAI's losses in our training, and our focal loss in MONAI's place."""

from typing import Any

import monai.losses
import pytest
import torch
from torch import Tensor, nn

from lesionseg.config import LossConfig
from lesionseg.errors import ConfigError
from lesionseg.losses import CustomLoss, FocalLoss, make_loss


def made(target: str, activation: str = "sigmoid", **settings: Any) -> nn.Module:
    return make_loss(LossConfig.model_validate({"_target_": target, **settings}), activation)


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
    loss = made(f"monai.losses.{name}", activation)
    one_hot = torch.stack([labels == k for k in range(0 if softmax else 1, 3)], 1).float()
    flags = {"use_softmax": softmax} if name == "FocalLoss" else {activation: True}
    expected = getattr(monai.losses, name)(**flags)(logits, one_hot)
    assert loss(logits, labels) == {name: pytest.approx(expected.item(), rel=1e-5)}


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_what_is_not_valid_teaches_nothing(activation: str) -> None:
    logits, labels, valid = batch(2 + (activation == "softmax"))
    logits.requires_grad_()
    loss = made("monai.losses.DiceFocalLoss", activation)
    (term,) = loss(logits, labels, valid=valid).values()
    term.backward()
    assert logits.grad is not None
    gone = ~valid.unsqueeze(1).expand_as(logits)
    assert logits.grad[gone].abs().max() == 0
    assert logits.grad[~gone].abs().min() > 0
    other = torch.where(gone, 5.0, logits.detach())
    relabelled = labels.masked_fill(~valid, 2)
    assert loss(other, relabelled, valid=valid)["DiceFocalLoss"].item() == term.item()


def test_ours_is_told_the_activation_and_another_s_is_wrapped() -> None:
    told = made("lesionseg.losses.FocalLoss", "softmax", gamma=1.0)
    assert isinstance(told, FocalLoss)
    assert told.activation == "softmax"
    assert isinstance(made("torch.nn.BCEWithLogitsLoss"), CustomLoss)


@pytest.mark.parametrize(
    ("target", "settings"),
    [
        ("monai.losses.DiceLoss", {"to_onehot_y": True}),
        ("monai.losses.DiceLoss", {"smoothness": 1}),
        ("monai.losses.DiceLoss", {"reduction": "average"}),
        ("collections.Counter", {}),
    ],
)
def test_what_cannot_be_a_loss_is_refused(target: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        made(target, **settings)


def test_several_numbers_are_refused() -> None:
    logits, labels, _ = batch(2)
    with pytest.raises(ConfigError):
        made("monai.losses.DiceLoss", reduction="none")(logits, labels)
