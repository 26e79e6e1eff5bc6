"""What the losses of a voxel network have in common, and anybody's loss among them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from inspect import signature

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor, nn

from lesionseg.config import TARGET, LossConfig, named
from lesionseg.errors import ConfigError, nearest
from lesionseg.losses.focal import Alpha, Normaliser, lesion_target

Logits = Float[Tensor, "b c *spatial"]
Labels = Shaped[Tensor, "b *any"]
Valid = Bool[Tensor, "b *spatial"] | None
LossTerms = dict[str, Float[Tensor, ""]]
SURE = 30.0  # a logit at which a probability is 0 or 1 to thirteen digits


class VoxelLoss(nn.Module, ABC):
    """What every loss of a voxel network is: settings, an activation and named terms.

    `forward` takes logits `[B, K, *spatial]` (sigmoid) or `[B, 1+K, *spatial]` (softmax), labels
    `[B, *spatial]` (0 background, k = class k; for a sigmoid also 0/1 of the logits' shape, where
    classes overlap), `valid` `[B, *spatial]` (False leaves a voxel out) and `normaliser`, by which
    terms reduced `per_positive` are divided; other terms ignore it. It returns fp32 scalars by
    name, each already weighted: the loss is their sum. A `forward` that also takes
    `nearest` `[B, *spatial]` gets the number of each voxel's nearest lesion: 1, 2, … within its
    tile, 0 in a tile without a lesion (`nearest_lesions`).
    `link`: (α, γ) by which `posterior_logits` corrects the scores; None for no correction.
    """

    link: tuple[Alpha, float] | None = None

    def __init__(self, activation: str = "sigmoid") -> None:
        super().__init__()
        if activation not in ("sigmoid", "softmax"):
            raise ConfigError(f"activation={activation!r} must be sigmoid or softmax.")
        self.activation = activation

    @abstractmethod
    def forward(
        self, logits: Logits, labels: Labels, *, valid: Valid = None, normaliser: Normaliser = None
    ) -> LossTerms: ...


def region_target(
    labels: Integer[Tensor, "b *spatial"], regions: Sequence[Sequence[int]]
) -> Bool[Tensor, "b k *spatial"]:
    """Return whether each voxel belongs to each region, a set of labels: regions may overlap."""
    parts = []
    for region in regions:
        inside = torch.zeros_like(labels, dtype=torch.bool)
        for label in region:  # a list of them would be a copy that a GPU waits for
            inside |= labels == label
        parts.append(inside)
    return torch.stack(parts, dim=1)


def mask_unannotated(
    logits: Float[Tensor, "b c *spatial"], unannotated: Bool[Tensor, "b k"], activation: str
) -> Float[Tensor, "b c *spatial"]:
    """fp32 logits of what is told apart; the classes `unannotated` in a tile become background.

    Any loss of the result is the marginal loss of Shi et al. 2021 (Medical Image Analysis 70). With
    a softmax p'_0 = p_0 + sum of p_u over unannotated u, and p'_u = 0: background may be of any
    class that nobody looked for. With a sigmoid p'_u = 0 is a constant without gradient.
    """
    logits = logits.float()
    unknown = unannotated.view(*unannotated.shape, *(1,) * (logits.ndim - 2))
    if activation == "sigmoid":
        return logits.masked_fill(unknown, -SURE)
    background, lesions = logits[:, :1], logits[:, 1:]
    merged = torch.cat([background, lesions.masked_fill(~unknown, -torch.inf)], 1)
    outside = merged.logsumexp(1, keepdim=True)
    return torch.cat([outside, torch.where(unknown, outside.detach() - SURE, lesions)], 1)


def count_positives(
    labels: Shaped[Tensor, "b *any"], valid: Bool[Tensor, "b *spatial"] | None = None
) -> Float[Tensor, ""]:
    """Number of valid voxels (anchors) with a label above 0; of a target `[B, K, …]` per class."""
    lesion = labels > 0
    if valid is not None:
        lesion = lesion & (valid.unsqueeze(1) if lesion.ndim > valid.ndim else valid)
    return lesion.sum().float()


class PositiveAverage(nn.Module):
    """Exponential moving average of the positives of the whole batch, never below `expected`.

    One noisy count is poison: a lesion-free 96³ tile at p = ½ divided by 1 is a loss of 10⁵.
    `expected` (per batch, at least 1) is the first value and the floor; several numbers make as
    many averages. `update` takes the count of a step over all processes, as in detectron2.

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
        """Take in the positives of a batch; the normaliser for it, as a new tensor."""
        self.average.lerp_(count.to(self.average), 1 - self.momentum)
        return self.average.clamp_min(self.floor)


class CustomLoss(VoxelLoss):
    """Any loss `(logits, target) → number` on one-hot targets of the logits' shape: MONAI's, say.

    Voxels that are not valid become certain background: they have no gradient, but count in a
    mean. The normaliser is not used. The term has the name of the class.
    """

    def __init__(self, loss: nn.Module, activation: str = "sigmoid") -> None:
        super().__init__(activation)
        self.loss = loss

    def forward(
        self, logits: Logits, labels: Labels, *, valid: Valid = None, normaliser: Normaliser = None
    ) -> LossTerms:
        """The loss as one term; raises `ConfigError` where it is not a single number."""
        softmax = self.activation == "softmax"
        target = lesion_target(labels, logits[:, 1:] if softmax else logits)
        if valid is not None:
            left_out = ~valid.bool().unsqueeze(1)
            target = target & ~left_out
            logits = logits.masked_fill(left_out, -SURE)
            if softmax:
                logits = torch.cat([logits[:, :1].masked_fill(left_out, SURE), logits[:, 1:]], 1)
        if softmax:
            target = torch.cat([~target.any(1, keepdim=True), target], dim=1)
        value = self.loss(logits, target.to(logits.dtype))
        name = type(self.loss).__name__
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ConfigError(f"{name} returns more than one number. Give it a reduction.")
        return {name: value.reshape(()).float()}


def make_loss(cfg: LossConfig, activation: str) -> nn.Module:
    """The loss of voxels that a configuration names: ours as it is, another's in a `CustomLoss`.

    Its constructor is told the plan's activation as `sigmoid`, `softmax`, `use_softmax` or
    `activation`. Raises `ConfigError` for what is no loss and for arguments it does not take.
    """
    given, softmax = cfg.plain(), activation == "softmax"
    make = named(given.pop(TARGET), "loss")
    takes = signature(make).parameters
    if given.get("to_onehot_y"):
        raise ConfigError("loss.to_onehot_y must be false: the targets are one-hot already.")
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in takes.values()):
        for name in given.keys() - takes.keys():
            raise ConfigError(f"loss takes no setting {name!r}.{nearest(name, takes)}")
    flags = {"softmax": softmax, "use_softmax": softmax, "sigmoid": not softmax}
    fitting = {k: v for k, v in {**flags, "activation": activation}.items() if k in takes}
    try:
        loss = make(**{**fitting, **given})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"loss: {error}. It takes {', '.join(takes)}.") from error
    if not isinstance(loss, nn.Module):
        raise ConfigError(f"loss._target_ makes a {type(loss).__name__}, which is no loss.")
    if isinstance(loss, VoxelLoss) or "valid" in signature(loss.forward).parameters:
        return loss
    return CustomLoss(loss, activation)
