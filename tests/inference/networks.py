"""Untrained networks with a known output."""

import torch
from torch import nn


class Bright(nn.Module):
    """A network whose logit is `gain · (first channel - level)` for each label."""

    def __init__(self, level=2.0, gain=4.0, n_labels=1):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))
        self.gain = nn.Parameter(torch.tensor(gain))
        self.n_labels = n_labels

    def forward(self, image):
        return [((image[:, :1] - self.level) * self.gain).repeat_interleave(self.n_labels, 1)]


def make_bright(_):
    """Build `Bright` for any plan, as the value of an architecture's name."""
    return Bright()


class Identity(nn.Module):
    """A network that returns the image as logits."""

    def forward(self, image):
        return [image]
