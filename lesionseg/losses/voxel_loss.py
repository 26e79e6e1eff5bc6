"""What losses of a voxel network have in common: terms, unknown classes, a steady normaliser."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from lesionseg.errors import one_of, require
from lesionseg.losses.inputs import Alpha, Normaliser

LossTerms = dict[str, Float[Tensor, ""]]
_SURE = 30.0  # a logit at which a probability is 0 to thirteen digits


class VoxelLoss(nn.Module, ABC):
    """What every loss of a voxel network is: settings, an activation and named terms.

    `forward` takes logits `[B, K, *spatial]` (sigmoid) or `[B, 1+K, *spatial]` (softmax), labels
    `[B, *spatial]` (0 background, k = class k; a sigmoid's also 0/1 of the logits' shape, where
    classes overlap), `valid` `[B, *spatial]` (False leaves a voxel out) and `normaliser`, by which
    terms reduced `per_positive` are divided; other terms ignore it. It returns fp32 scalars by
    name, each already weighted: the loss is their sum. Where `needs_instances`, `forward` also
    takes `instances` `[B, *spatial]`, lesion ids from 1.
    """

    needs_instances = False

    def __init__(self, activation: str = "sigmoid") -> None:
        super().__init__()
        one_of("activation", activation, ("sigmoid", "softmax"), where="activation")
        self.activation = activation

    @property
    def link(self) -> tuple[Alpha, float] | None:
        """(α, γ) by which `posterior_logits` undoes this loss; None where nothing is known to."""
        return None

    @abstractmethod
    def forward(
        self,
        logits: Float[Tensor, "b c *spatial"],
        labels: Shaped[Tensor, "b *any"],
        *,
        valid: Bool[Tensor, "b *spatial"] | None = None,
        normaliser: Normaliser = None,
    ) -> LossTerms:
        """The loss's terms."""


def known_logits(
    logits: Float[Tensor, "b c *spatial"], unannotated: Bool[Tensor, "b k"], activation: str
) -> Float[Tensor, "b c *spatial"]:
    """The logits of what the reference tells apart; `unannotated` has the others' classes per tile.

    Their lesions count as background in the labels. Any loss of the result is the marginal loss of
    Shi et al. 2021 (Marginal loss and exclusion loss for partially supervised multi-organ
    segmentation, Medical Image Analysis 70): with a softmax, classes exclude each other and

        p'_0 = p_0 + sum of p_u over unannotated u,    p'_u = 0,    p'_k = p_k of all others,

    so that background may be of any class that nobody looked for, and a known lesion may not. With
    a sigmoid a class is judged by itself, and p'_u = 0 is a constant: its gradient is exactly 0,
    its loss is too, to thirteen digits. fp32, of the logits' shape: C is K, or 1 + K of a softmax.

    >>> known_logits(torch.zeros(1, 2, 1), torch.tensor([[False, True]]), "sigmoid").tolist()
    [[[0.0], [-30.0]]]
    """
    logits = logits.float()
    unknown = unannotated.view(*unannotated.shape, *(1,) * (logits.ndim - 2))
    if activation == "sigmoid":
        return logits.masked_fill(unknown, -_SURE)
    background, lesions = logits[:, :1], logits[:, 1:]
    merged = torch.cat([background, lesions.masked_fill(~unknown, -torch.inf)], 1)
    outside = merged.logsumexp(1, keepdim=True)
    return torch.cat([outside, torch.where(unknown, outside.detach() - _SURE, lesions)], 1)


def count_positives(
    labels: Shaped[Tensor, "b *any"], valid: Bool[Tensor, "b *spatial"] | None = None
) -> Float[Tensor, ""]:
    """Number of valid voxels (anchors) with a label above 0, on the labels' device.

    Of a target `[B, K, *spatial]` each class counts, as the focal loss does.
    """
    lesion = labels > 0
    if valid is not None:
        lesion = lesion & (valid.unsqueeze(1) if lesion.ndim > valid.ndim else valid)
    return lesion.sum().float()


class PositiveAverage(nn.Module):
    """Exponential moving average of the positives of the whole batch, never below `expected`.

    One noisy count is poison: a lesion-free 96³ tile at p = ½ divided by 1 is a loss of 10⁵.
    `expected` (positives a batch, from the fingerprint's lesion fraction; floored at 1) is the
    first value and the floor; several numbers make as many averages. `update` takes the count over
    all tiles and processes of an optimiser step (the caller adds them up) and knows nothing of
    other processes: where these average their gradients, each divides by the result over their
    number. detectron2's RetinaNet keeps the same average.

    >>> average = PositiveAverage(expected=100, momentum=0.9)
    >>> average.update(torch.tensor(1100.0)).item()
    200.0
    >>> average.update(torch.tensor(0.0)).item()
    180.0
    """

    average: Tensor
    floor: Tensor

    def __init__(self, expected: float | Sequence[float], momentum: float = 0.9) -> None:
        super().__init__()
        several = expected if isinstance(expected, Sequence) else (expected,)
        finite, inside = all(0 <= n < float("inf") for n in several), 0 <= momentum < 1
        require(finite, "A count must be at least 0.", where="expected", seen=expected)
        require(inside, "The momentum must lie in [0, 1).", where="momentum", seen=momentum)
        self.momentum = momentum
        floor = torch.tensor(expected, dtype=torch.float32).clamp(min=1)
        self.register_buffer("floor", floor, persistent=False)
        self.register_buffer("average", floor.clone())

    @torch.no_grad()
    def update(self, count: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Take in the positives of a batch; the normaliser for it, as a new tensor."""
        self.average.lerp_(count.to(self.average), 1 - self.momentum)
        return self.average.clamp_min(self.floor)
