"""Base class of voxel losses, custom MONAI losses, average of positives, unannotated classes."""

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
    """Return the sums of this process unchanged, for a training with a single process.

    It has the signature of `sum_over_processes`, which replaces it if there are several processes.
    """
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
        """Compute the terms of the loss of a batch.

        A subclass may have a further parameter `nearest` `[B, *spatial]`. It contains the number of
        the nearest lesion for each voxel, counted from 1 within the tile, and 0 in a tile without
        lesions (see `nearest_lesions`). If the subclass sets an attribute `needs_nearest` to False,
        `nearest` is not passed.

        Args:
            logits: `[B, K, *spatial]` for a sigmoid, `[B, 1+K, *spatial]` for a softmax.
            labels: `[B, *spatial]`, 0 for background and k for class k. For a sigmoid also 0/1 of
                the logits' shape, if classes overlap.
            valid: `[B, *spatial]`, False for voxels to ignore. None uses all voxels.
            normaliser: Divisor of the terms with the reduction `per_positive`. The other terms
                ignore it.

        Returns:
            fp32 scalars by name. Each includes its weight: the loss is their sum.
        """


def region_target(
    labels: Integer[Tensor, "b *spatial"], regions: Sequence[Sequence[int]]
) -> Bool[Tensor, "b k *spatial"]:
    """Return one mask per region, the target of a network whose classes overlap.

    Args:
        labels: Label of each voxel.
        regions: The label values of each region. A label may belong to several regions.

    Returns:
        `[B, K, *spatial]`, True for voxels with one of the labels of region k.
    """
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

    The purpose is to train on tiles of data sets that annotate different classes. A voxel labelled
    background may belong to any class u that the tile does not annotate. A loss that is computed
    from the returned logits is therefore a marginal loss (Shi et al. 2021, Medical Image Analysis
    70):

    - Softmax: p'_0 = p_0 + the sum of all p_u, and p'_u = 0.
    - Sigmoid: p'_u = 0, a constant without gradient.

    Args:
        logits: Logits of any floating type, with a background channel for a softmax.
        unannotated: True for each class that the tile does not annotate.
        activation: `sigmoid` or `softmax`.

    Returns:
        fp32 logits of the same shape.
    """
    logits = logits.float()
    # `[B, K, 1, …]`, to apply to all voxels of a tile
    unknown = unannotated.reshape(unannotated.shape + (1,) * (logits.ndim - 2))
    if activation == "sigmoid":
        return logits.masked_fill(unknown, -CERTAIN_LOGIT)
    lesions = logits[:, 1:]
    # The logit of a sum of probabilities is the logsumexp of their logits. Annotated classes are
    # not part of this sum: their logit is −∞.
    merged = torch.cat([logits[:, :1], lesions.masked_fill(~unknown, -torch.inf)], 1)
    background = merged.logsumexp(1, keepdim=True)
    # unannotated classes get a logit far below the background: p is 0 and has no gradient
    lesions = torch.where(unknown, background.detach() - CERTAIN_LOGIT, lesions)
    return torch.cat([background, lesions], 1)


def count_positives(
    labels: Shaped[Tensor, "b *any"], valid: Bool[Tensor, "b *spatial"] | None = None
) -> Float[Tensor, ""]:
    """Count the valid voxels or anchors with a label above 0, to normalise the loss.

    A target with a class axis, `[B, K, *spatial]`, is counted class by class: a voxel of two
    classes counts twice.
    """
    is_positive = to_signed(labels) > 0
    if valid is not None:
        is_positive = is_positive & (valid.unsqueeze(1) if is_positive.ndim > valid.ndim else valid)
    return is_positive.sum().float()


class PositiveAverage(nn.Module):
    """Exponential moving average of the number of positives per batch, as a divisor of the loss.

    Positives are the lesion voxels or the positive anchors. The count of a single batch is no
    suitable divisor, because it varies too much: a lesion-free 96³ tile has no positives, and its
    loss at p = ½ would be 10⁵. As in detectron2, the count of a step includes all processes.

    Args:
        expected: Number of positives per batch that the dataset statistics predict, raised to at
            least 1. It is the initial average and the lower limit of the divisor. With a sequence,
            there is one average per number.
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
        # the lower limit of the divisor; not stored, because it follows from the dataset
        floor = torch.tensor(expected, dtype=torch.float32).clamp(min=1)
        self.register_buffer("floor", floor, persistent=False)
        self.register_buffer("average", floor.clone())

    @torch.no_grad()
    def update(self, count: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Update the average with the count of a step, and return the divisor of the loss.

        The divisor is a new tensor on the device of the average. It is the average, or the lower
        limit if the average is below it.

        Args:
            count: Number of positives of the step over all processes, one per average.
        """
        # momentum · average + (1 − momentum) · count
        self.average.lerp_(count.to(self.average), 1 - self.momentum)
        return self.average.clamp_min(self.floor)


class CustomLoss(VoxelLoss):
    """Wrapper of any loss `(logits, target) → number` on one-hot targets, such as MONAI's.

    The wrapped loss has no mask of valid voxels. Voxels that are not valid therefore become certain
    background. They have no gradient, but a loss that averages over voxels counts them. The
    normaliser is not used. The term has the name of the wrapped loss's class.
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
        """Return the wrapped loss as one term, with the arguments of `VoxelLoss.forward`.

        The wrapped loss gets a one-hot target. It cannot ignore voxels, so invalid voxels become
        background that the network predicts with certainty. `normaliser` is not used.

        Raises:
            ConfigError: If the wrapped loss does not return a single number.
        """
        softmax = self.activation == "softmax"
        target = lesion_target(labels, logits[:, 1:] if softmax else logits)
        if valid is not None:  # the logits of certain background
            is_invalid = ~valid.bool().unsqueeze(1)
            target = target & ~is_invalid
            logits = logits.masked_fill(is_invalid, -CERTAIN_LOGIT)
            if softmax:  # channel 0 is background
                background = logits[:, :1].masked_fill(is_invalid, CERTAIN_LOGIT)
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

    - A loss whose `forward` has a parameter `valid` is returned unwrapped. All losses of this
      package have it. Any other loss is wrapped in a `CustomLoss`.
    - Parameters of the constructor that are called `sigmoid`, `softmax`, `use_softmax` or
      `activation` are set to the plan's activation, and `has_boxes` to the argument of that name.
      Settings of `cfg` take precedence.

    Args:
        cfg: Class (`_target_`) and arguments of the loss.
        activation: `sigmoid` or `softmax`.
        has_boxes: True if the network predicts boxes too.

    Returns:
        A module with the `forward` of `VoxelLoss`.

    Raises:
        ConfigError: If the class cannot be imported, is not a loss, or does not accept these
            arguments, or if `to_onehot_y` is true.
    """
    settings = cfg.to_plain()
    softmax = activation == "softmax"
    make = import_target(settings.pop(TARGET), "loss")
    declared = parameters_of(make)  # None if they cannot be read
    parameters = declared or {}
    if settings.get("to_onehot_y"):
        raise ConfigError("loss.to_onehot_y must be false: the targets are already one-hot.")
    takes_any_name = any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )  # **kwargs
    if declared is not None and not takes_any_name:
        for name in settings.keys() - parameters.keys():
            raise ConfigError(
                f"loss does not take the setting {name!r}.{suggest(name, parameters)}"
            )
    # parameters that the plan decides; the first three are names in losses of MONAI
    from_plan: dict[str, Any] = {
        "softmax": softmax,
        "use_softmax": softmax,
        "sigmoid": not softmax,
        "activation": activation,
        "has_boxes": has_boxes,
    }
    arguments = {name: value for name, value in from_plan.items() if name in parameters}
    arguments.update(settings)  # the user's settings take precedence
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
