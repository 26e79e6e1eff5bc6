"""Networks without training, whose output is known."""

import torch
from torch import Tensor, nn


class Bright(nn.Module):
    """Logit of lesion k: how much brighter than `level` the first channel is, times `gain`."""

    def __init__(self, level: float = 2.0, gain: float = 4.0, n_labels: int = 1) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))
        self.gain = nn.Parameter(torch.tensor(gain))
        self.n_labels = n_labels

    def forward(self, image: Tensor) -> list[Tensor]:
        return [((image[:, :1] - self.level) * self.gain).repeat_interleave(self.n_labels, 1)]


class Identity(nn.Module):
    """Logits are the image itself."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [image]
