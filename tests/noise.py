"""Random tensors."""

import torch


def noise(*shape, seed=0):
    """Return normally distributed values, the same ones for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
