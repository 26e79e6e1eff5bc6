"""The running average of a network's weights, which is what training hands over in the end."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors = list[Tensor] | tuple[Tensor, ...]


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
