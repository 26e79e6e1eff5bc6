"""The interface of all losses of a voxel network, its helpers, and a wrapper for other losses."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor, nn

from lesionseg.config import TARGET, LossConfig, import_target, parameters_of
from lesionseg.errors import ConfigError, suggest
from lesionseg.losses.focal import Alpha, Normaliser, lesion_target, to_signed

Logits = Float[Tensor, "b c *spatial"]
LabelTensor = Shaped[Tensor, "b *any"]
Valid = Bool[Tensor, "b *spatial"] | None
LossTerms = dict[str, Float[Tensor, ""]]
SumProcesses = Callable[[Tensor], Tensor]
CERTAIN_LOGIT = 30.0  # its probability differs from 1 by less than 1e-13


def own_sums(sums: Tensor) -> Tensor:
    """Return the sums of this process, for a training with a single one."""
    return sums


class VoxelLoss(nn.Module, ABC):
    """Base class of the losses of a voxel network: logits and labels in, named terms out.

    Attributes:
        activation: `sigmoid` or `softmax`.
        link: (α, γ) by which `posterior_logits` corrects the scores of a network that was trained
            with this loss. None for no correction.
        sum_processes: Adds sums of this process to those of all other processes that train
            together. The training sets it. A quotient of sums, such as Dice, needs it, because a
            mean of quotients would differ from the quotient of the whole batch.

    Raises:
        ConfigError: If `activation` is another word.
    """

    link: tuple[Alpha, float] | None = None
    sum_processes: SumProcesses = staticmethod(own_sums)

    def __init__(self, activation: str = "sigmoid") -> None:
        super().__init__()
        if activation not in ("sigmoid", "softmax"):
            raise ConfigError(f"activation={activation!r} must be sigmoid or softmax.")
        self.activation = activation

    @abstractmethod
    def forward(
        self,
        logits: Logits,
        labels: LabelTensor,
        *,
        valid: Valid = None,
        normaliser: Normaliser = None,
    ) -> LossTerms:
        """Compute the terms of a batch.

        A subclass may take a further argument `nearest` `[B, *spatial]`. It contains the number of
        the nearest lesion for each voxel, counted from 1 within the tile, and 0 in a tile without
        lesions (see `nearest_lesions`). An attribute `needs_nearest` that is False leaves it out.

        Args:
            logits: `[B, K, *spatial]` for a sigmoid, `[B, 1+K, *spatial]` for a softmax.
            labels: `[B, *spatial]`, 0 for background and k for class k. For a sigmoid also 0/1 of
                the logits' shape, if classes overlap.
            valid: `[B, *spatial]`, False for voxels to ignore. None uses all voxels.
            normaliser: Divisor of the terms with the reduction `per_positive`. The remaining terms
                ignore it.

        Returns:
            fp32 scalars by name. Each includes its weight: the loss is their sum.
        """


def region_target(
    labels: Integer[Tensor, "b *spatial"], regions: Sequence[Sequence[int]]
) -> Bool[Tensor, "b k *spatial"]:
    """Return one mask per region: the voxels with one of its labels. Regions may overlap."""
    labels = to_signed(labels)
    masks = []
    for region in regions:
        inside = torch.zeros_like(labels, dtype=torch.bool)
        for label in region:  # torch.isin would copy a list to the GPU, and the host would wait
            inside |= labels == label
        masks.append(inside)
    return torch.stack(masks, dim=1)


def mask_unannotated(
    logits: Float[Tensor, "b c *spatial"], unannotated: Bool[Tensor, "b k"], activation: str
) -> Float[Tensor, "b c *spatial"]:
    """Merge the classes that a tile does not annotate into its background.

    A loss that is computed from the returned logits is a marginal loss (Shi et al. 2021, Medical
    Image Analysis 70). A voxel labelled background may belong to any class u that nobody looked
    for. For a softmax, therefore, p'_0 = p_0 + the sum of all p_u, and p'_u = 0. For a sigmoid,
    p'_u = 0, a constant without gradient.

    Args:
        logits: Logits of any floating type, with a background channel for a softmax.
        unannotated: True for each class that nobody marked in the tile.
        activation: `sigmoid` or `softmax`.

    Returns:
        fp32 logits of the same shape.
    """
    logits = logits.float()
    unknown = unannotated.reshape(unannotated.shape + (1,) * (logits.ndim - 2))
    if activation == "sigmoid":
        return logits.masked_fill(unknown, -CERTAIN_LOGIT)
    lesions = logits[:, 1:]
    merged = torch.cat([logits[:, :1], lesions.masked_fill(~unknown, -torch.inf)], 1)
    outside = merged.logsumexp(1, keepdim=True)
    # unannotated classes get a logit far below the background: p is 0 and has no gradient
    lesions = torch.where(unknown, outside.detach() - CERTAIN_LOGIT, lesions)
    return torch.cat([outside, lesions], 1)


def count_positives(
    labels: Shaped[Tensor, "b *any"], valid: Bool[Tensor, "b *spatial"] | None = None
) -> Float[Tensor, ""]:
    """Count the valid voxels or anchors with a label above 0.

    A target `[B, K, *spatial]` is counted class by class: a voxel of two classes counts twice.
    """
    lesion = to_signed(labels) > 0
    if valid is not None:
        lesion = lesion & (valid.unsqueeze(1) if lesion.ndim > valid.ndim else valid)
    return lesion.sum().float()


class PositiveAverage(nn.Module):
    """Exponential moving average of the number of positives per batch, as a divisor of the loss.

    Positives are the lesion voxels or the positive anchors. The average is the divisor of the loss,
    because the count of a single batch varies too much: a lesion-free 96³ tile has no positives,
    and its loss at p = ½ would be 10⁵. `update` takes the count of one step over all processes, as
    in detectron2.

    Args:
        expected: Number of positives per batch that the dataset statistics predict. It is the first
            value of the average and its lower limit, and is raised to at least 1. A sequence keeps
            one average per number.
        momentum: Weight of the previous average.

    >>> average = PositiveAverage(expected=100, momentum=0.9)
    >>> average.update(torch.tensor(1100.0)).item()
    200.0
    """

    average: Tensor
    floor: Tensor

    def __init__(self, expected: float | Sequence[float], momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        floor = torch.tensor(expected, dtype=torch.float32).clamp(min=1)
        self.register_buffer("floor", floor, persistent=False)
        self.register_buffer("average", floor.clone())

    @torch.no_grad()
    def update(self, count: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Add the positives of a batch to the average, on its device.

        Return the normaliser of this batch as a new tensor: the average, or its lower limit.
        """
        self.average.lerp_(count.to(self.average), 1 - self.momentum)
        return self.average.clamp_min(self.floor)


class CustomLoss(VoxelLoss):
    """Wrapper of any loss `(logits, target) → number` on one-hot targets, such as MONAI's.

    Voxels that are not valid become certain background. They have no gradient, but a loss that
    averages over voxels counts them. The normaliser is not used. The term has the name of the
    wrapped loss's class.
    """

    def __init__(self, loss: nn.Module, activation: str = "sigmoid") -> None:
        super().__init__(activation)
        self.loss = loss

    def forward(
        self,
        logits: Logits,
        labels: LabelTensor,
        *,
        valid: Valid = None,
        normaliser: Normaliser = None,
    ) -> LossTerms:
        """Return the loss as one term. Raise `ConfigError` if it is not a single number."""
        softmax = self.activation == "softmax"
        target = lesion_target(labels, logits[:, 1:] if softmax else logits)
        if valid is not None:
            left_out = ~valid.bool().unsqueeze(1)
            target = target & ~left_out
            logits = logits.masked_fill(left_out, -CERTAIN_LOGIT)
            if softmax:
                background = logits[:, :1].masked_fill(left_out, CERTAIN_LOGIT)
                logits = torch.cat([background, logits[:, 1:]], 1)
        if softmax:
            target = torch.cat([~target.any(1, keepdim=True), target], dim=1)
        value = self.loss(logits, target.to(logits.dtype))
        name = type(self.loss).__name__
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ConfigError(
                f"loss._target_: {name} returns more than one number. Set its reduction, for "
                "example loss.reduction=mean."
            )
        return {name: value.reshape(()).float()}


def make_loss(cfg: LossConfig, activation: str, *, has_boxes: bool = False) -> nn.Module:
    """Build the loss of a network's voxels from its configuration.

    A loss whose `forward` takes `valid` is returned as it is. All losses of this package do. Any
    other loss is wrapped in a `CustomLoss`. If the constructor has a parameter `sigmoid`,
    `softmax`, `use_softmax` or `activation`, it gets the plan's activation, and if it has
    `has_boxes`, it is told whether the network predicts boxes too. `cfg` takes precedence.

    Args:
        cfg: Class (`_target_`) and arguments of the loss.
        activation: `sigmoid` or `softmax`.
        has_boxes: True if the network predicts boxes too.

    Returns:
        A module with the `forward` of `VoxelLoss`.

    Raises:
        ConfigError: If the class cannot be imported, is not a loss, or does not take these
            arguments, or `to_onehot_y` is true.
    """
    given = cfg.to_plain()
    softmax = activation == "softmax"
    make = import_target(given.pop(TARGET), "loss")
    known = parameters_of(make)
    parameters = known or {}
    if given.get("to_onehot_y"):
        raise ConfigError("loss.to_onehot_y must be false: the targets are already one-hot.")
    takes_any_name = any(one.kind is one.VAR_KEYWORD for one in parameters.values())  # **kwargs
    if known is not None and not takes_any_name:
        for name in given.keys() - parameters.keys():
            raise ConfigError(
                f"loss does not take the setting {name!r}.{suggest(name, parameters)}"
            )
    flags: dict[str, Any] = {  # the first three are those of losses of other packages
        "softmax": softmax,
        "use_softmax": softmax,
        "sigmoid": not softmax,
        "activation": activation,
        "has_boxes": has_boxes,
    }
    arguments = {name: value for name, value in flags.items() if name in parameters}
    arguments.update(given)  # the user's settings take precedence
    try:
        loss = make(**arguments)
    except (TypeError, ValueError) as error:
        names = f" Its settings are {', '.join(parameters)}." if parameters else ""
        raise ConfigError(f"loss: {error}.{names}") from error
    if not isinstance(loss, nn.Module):
        raise ConfigError(
            f"loss._target_ constructs a {type(loss).__name__}, which is not a loss. Name a "
            "subclass of torch.nn.Module."
        )
    if isinstance(loss, VoxelLoss) or "valid" in signature(loss.forward).parameters:
        return loss
    return CustomLoss(loss, activation)
