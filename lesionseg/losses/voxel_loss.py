"""What every loss of a voxel network has in common."""

from abc import ABC, abstractmethod

from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from lesionseg.errors import one_of
from lesionseg.losses.inputs import Alpha, Normaliser

LossTerms = dict[str, Float[Tensor, ""]]


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
