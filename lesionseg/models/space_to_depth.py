"""Blocks of voxels as channels, and back: what a space-to-depth stem does at a network's two ends.

Also called space-to-depth and pixel unshuffle (Shi et al. 2016, arXiv 1609.05158).
"""

from collections.abc import Sequence
from math import prod

from jaxtyping import Shaped
from torch import Tensor


def fold(
    x: Shaped[Tensor, "b c *spatial"], block: Sequence[int]
) -> Shaped[Tensor, "b cn *smaller"]:
    """Every block of voxels as channels of one voxel, no value lost: n a channel, in C order.

    Spatial axes are multiples of `block`; one of ones gives `x` itself.

    >>> import torch
    >>> fold(torch.tensor([[[[1, 2], [3, 4]]]]), (2, 2)).flatten().tolist()
    [1, 2, 3, 4]
    """
    if prod(block) == 1:
        return x
    dims, sizes = len(block), list(x.shape[:2])  # not len(x), which an export takes as constant
    for n, side in zip(x.shape[2:], block, strict=True):
        sizes += [n // side, side]
    grid, inside = range(2, 2 + 2 * dims, 2), range(3, 3 + 2 * dims, 2)
    small = [n // side for n, side in zip(x.shape[2:], block, strict=True)]
    return x.reshape(sizes).permute(0, 1, *inside, *grid).reshape(x.shape[0], -1, *small)


def unfold(
    x: Shaped[Tensor, "b cn *smaller"], block: Sequence[int]
) -> Shaped[Tensor, "b c *spatial"]:
    """The way back from `fold`: `unfold(fold(x, block), block)` is x."""
    if prod(block) == 1:
        return x
    dims, small = len(block), x.shape[2:]
    grid, inside = range(2 + dims, 2 + 2 * dims), range(2, 2 + dims)
    order = [axis for pair in zip(grid, inside, strict=True) for axis in pair]
    large = [n * side for n, side in zip(small, block, strict=True)]
    n_channels = x.shape[1] // prod(block)
    blocks = x.reshape(x.shape[0], n_channels, *block, *small)
    return blocks.permute(0, 1, *order).reshape(x.shape[0], n_channels, *large)
