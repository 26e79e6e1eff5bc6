"""The optimisers by name, and the running average of weights that training hands over."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lesionseg.models.transfer import is_head
from lesionseg.training.settings import OptimiserSettings

Tensors = list[Tensor] | tuple[Tensor, ...]


def make_optimiser(network: nn.Module, settings: OptimiserSettings) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum, over the weights of `network` that learn.

    Weight decay falls on kernels only: shrinking a norm's scale or the prior bias of a head
    towards 0 regularises nothing. All but the heads learn at `backbone_lr_scale` of the rate.
    """
    groups = list(_groups(network, settings))
    if settings.name == "adamw":
        betas = (settings.momentum, settings.beta2)
        return torch.optim.AdamW(groups, lr=settings.lr, betas=betas)
    return torch.optim.SGD(
        groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0
    )


def _groups(network: nn.Module, settings: OptimiserSettings) -> Iterator[dict[str, Any]]:
    """Weights by decay, and by part where the parts learn at different rates."""
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    parts: Sequence[tuple[float, list[nn.Parameter]]] = [(1.0, [p for _, p in named])]
    if settings.backbone_lr_scale != 1:
        backbone = [p for name, p in named if not is_head(name)]
        heads = [p for name, p in named if is_head(name)]
        parts = [(settings.backbone_lr_scale, backbone), (1.0, heads)]
    for scale, learning in parts:
        for decay, params in (
            (settings.weight_decay, [p for p in learning if p.ndim > 1]),
            (0.0, [p for p in learning if p.ndim <= 1]),
        ):
            if params:
                yield {"params": params, "weight_decay": decay, "lr_scale": scale}


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> float:
    """Set the rate of all weights, each group's at its own scale; returns `lr`."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    return lr


@dataclass(frozen=True)
class WarmAverage:
    """Exponential moving average whose memory grows with what there is to remember.

    After n updates the decay is min(`decay`, (1+n)/(10+n)): short trainings would otherwise end
    with an average still full of their first, random weights.
    """

    decay: float

    def __call__(self, averaged: Tensors, current: Tensors, n: Tensor | int) -> None:
        """Move `averaged` towards `current` in place."""
        decay = min(self.decay, (1 + int(n)) / (10 + int(n)))
        with torch.no_grad():
            for old, new in zip(averaged, current, strict=True):
                old.lerp_(new.to(old.dtype), 1 - decay)


def averaged_network(network: nn.Module, decay: float) -> AveragedModel:
    """A copy of `network` that averages its weights; buffers follow the newest values."""
    averaged = AveragedModel(network, multi_avg_fn=WarmAverage(decay))
    averaged.requires_grad_(False)
    return averaged
