"""Losses that are not ours in our training, and our focal loss in the place of MONAI's."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from lesionseg.errors import ConfigError, one_of, require
from lesionseg.losses.focal import sigmoid_focal_loss, softmax_focal_loss
from lesionseg.losses.inputs import Alpha, Normaliser, is_label_map
from lesionseg.losses.voxel_loss import LossTerms, VoxelLoss
from lesionseg.ops.kernels.focal_plain import lesion_of_class

_SURE = 30.0  # logits at which a probability is 0 or 1 to thirteen digits


class CustomLoss(VoxelLoss):
    """Any loss `(logits, target) → number` on one-hot targets of the logits' shape: MONAI's, say.

    Voxels that are not valid become certain background, which such losses take for right: they
    have no gradient, but still count in a mean. The normaliser is not used; the loss is its own
    mean. The term's name is the class's.
    """

    def __init__(self, loss: nn.Module, activation: str = "sigmoid") -> None:
        super().__init__(activation)
        self.loss = loss

    def forward(
        self,
        logits: Float[Tensor, "b c *spatial"],
        labels: Shaped[Tensor, "b *any"],
        *,
        valid: Bool[Tensor, "b *spatial"] | None = None,
        normaliser: Normaliser = None,
    ) -> LossTerms:
        """The loss as one term; raises `ConfigError` where it is no single number."""
        target = self._one_hot(logits, labels)
        if valid is not None:
            logits, target = _ruled_out(logits, target, valid, self.activation)
        value = self.loss(logits, target.to(logits.dtype))
        name = type(self.loss).__name__
        one = isinstance(value, Tensor) and value.numel() == 1
        seen = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        require(one, f"{name} is not one number.", where="reduction", seen=seen)
        return {name: value.reshape(()).float()}

    def _one_hot(self, logits: Tensor, labels: Tensor) -> Tensor:
        if not is_label_map(logits, labels):
            return labels.bool()
        n_labels = logits.shape[1] - (self.activation == "softmax")
        lesion = lesion_of_class(labels, n_labels)
        if self.activation == "sigmoid":
            return lesion
        return torch.cat([~lesion.any(1, keepdim=True), lesion], dim=1)


def completed(loss: Any, activation: str) -> nn.Module:
    """A loss that training takes: ours as it is, another's in a `CustomLoss`.

    A partial, as `loss=custom` gives it, is called with what its constructor has for the plan's
    activation: `sigmoid`, `softmax`, `use_softmax`, `activation`. Raises `ConfigError` for what is
    no loss.
    """
    module = loss if isinstance(loss, nn.Module) else _called(loss, activation)
    if isinstance(module, VoxelLoss):
        return module
    own = "valid" in signature(module.forward).parameters
    return module if own else CustomLoss(module, activation)


def _called(loss: Callable[..., Any], activation: str) -> nn.Module:
    takes, given = signature(getattr(loss, "func", loss)).parameters, getattr(loss, "keywords", {})
    if given.get("to_onehot_y"):
        raise ConfigError("The targets are one-hot already.", where="loss.to_onehot_y", seen=True)
    fitting = {
        "sigmoid": activation == "sigmoid",
        "softmax": activation == "softmax",
        "use_softmax": activation == "softmax",
        "activation": activation,
    }
    try:
        module = loss(**{k: v for k, v in fitting.items() if k in takes and k not in given})
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "The loss cannot be built.", where="loss", seen=error, expected=", ".join(takes)
        ) from error
    if not isinstance(module, nn.Module):
        raise ConfigError("This is no loss.", where="loss._target_", seen=type(module).__name__)
    return module


def _ruled_out(
    logits: Tensor, target: Tensor, valid: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    """Logits and target in which what is not valid is background, and known to be."""
    left_out = ~valid.bool().unsqueeze(1)
    logits, target = logits.masked_fill(left_out, -_SURE), target.masked_fill(left_out, False)
    if activation == "softmax":
        background = left_out & (_class_axis(logits) == 0)
        logits, target = logits.masked_fill(background, _SURE), target | background
    return logits, target


def _class_axis(logits: Tensor) -> Tensor:
    """The number of each class, to be compared with along the class axis."""
    numbers = logits.new_ones(logits.shape[1]).cumsum(0) - 1
    return numbers.reshape(1, -1, *(1,) * (logits.ndim - 2))


class MonaiFocalLoss(nn.Module):
    """Our focal loss with the arguments and the numbers of `monai.losses.FocalLoss`.

    `forward`: logits `[B, N, *spatial]` and a target of that shape, or `[B, 1, *spatial]` class
    numbers where `to_onehot_y`. Without `include_background` the first channel is left out.
    `alpha` and `gamma` as in `sigmoid_focal_loss`. `reduction`: mean (over all B·N·voxels), sum (of
    the B·N means over voxels, as MONAI has it) or none. `use_softmax`: classes exclude each other,
    and one number `alpha` needs the background. Lin et al. 2017, arXiv 1708.02002.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        gamma: float = 2.0,
        alpha: Alpha = None,
        reduction: str = "mean",
        use_softmax: bool = False,
    ) -> None:
        super().__init__()
        one_of("reduction", reduction, ("mean", "sum", "none"), where="reduction")
        self.include_background, self.to_onehot_y = include_background, to_onehot_y
        self.gamma, self.alpha = gamma, alpha
        self.reduction, self.use_softmax = reduction, use_softmax

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss: 0-d, or of the logits' shape for the reduction none; fp32."""
        if self.to_onehot_y:
            target = target == _class_axis(input).to(target)
        if not self.include_background:
            input, target = input[:, 1:], target[:, 1:]
        values = self._exclusive(input, target) if self.use_softmax else self._each(input, target)
        if self.reduction == "none":
            return values
        return values.mean() if self.reduction == "mean" else values.flatten(2).mean(2).sum()

    def _each(self, logits: Tensor, target: Tensor) -> Tensor:
        return sigmoid_focal_loss(
            logits, target, alpha=self.alpha, gamma=self.gamma, reduction="none"
        )

    def _exclusive(self, logits: Tensor, target: Tensor) -> Tensor:
        """Each voxel's loss in the channel of its class; 0 where it has none."""
        truth = target.bool()
        one = isinstance(self.alpha, int | float)
        loss = softmax_focal_loss(
            logits,
            truth.int().argmax(1),
            alpha=None if one and not self.include_background else self.alpha,
            gamma=self.gamma,
            reduction="none",
            valid=truth.any(1),
        )
        return loss.unsqueeze(1) * truth
