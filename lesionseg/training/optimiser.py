"""The optimisers by name."""

from typing import Any

import torch
from torch import nn

from lesionseg.training.settings import OptimiserSettings


def make_optimiser(network: nn.Module, settings: OptimiserSettings) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum, over the weights of `network` that learn.

    Weight decay falls on kernels only: shrinking a norm's scale or the prior bias of a head
    towards 0 regularises nothing.
    """
    learning = [p for p in network.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.momentum, 0.999))
    return torch.optim.SGD(
        groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0
    )


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> float:
    """Set the rate of all weights; returns it."""
    for group in optimiser.param_groups:
        group["lr"] = lr
    return lr
