"""Overlapping tile outputs put together to one volume: a weighted average."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lesionseg.errors import ContentError, GeometryError


class Stitcher:
    """Weighted average of overlapping tile outputs `[K, *tile]` on a grid `[K, *shape]`.

    `weight` `[*tile]` positive, the same for each tile and channel; the sums are float32 on
    `device` (the weight's when None): one accumulator of K channels and one weight map. Feed every
    tile to `add`, then call `finish` once.

    >>> stitcher = Stitcher((3,), 1, torch.ones(2))
    >>> stitcher.add(torch.tensor([[1.0, 1.0]]), (slice(0, 2),))
    >>> stitcher.add(torch.tensor([[3.0, 3.0]]), (slice(1, 3),))
    >>> stitcher.finish().tolist()
    [[1.0, 2.0, 3.0]]
    """

    def __init__(
        self,
        shape: Sequence[int],
        n_channels: int,
        weight: Float[Tensor, "*tile"],
        *,
        device: torch.device | None = None,
    ) -> None:
        if weight.ndim != len(shape) or not bool((weight > 0).all()):
            raise ContentError(
                "The tile weight must be positive and have as many axes as the grid.",
                seen=tuple(weight.shape),
                expected=f"{len(shape)} axes",
            )
        self._weight = weight.to(device=device, dtype=torch.float32)
        target = self._weight.device
        self._sum = torch.zeros((n_channels, *shape), dtype=torch.float32, device=target)
        self._total = torch.zeros(tuple(shape), dtype=torch.float32, device=target)
        self._finished = False

    def add(self, tile_output: Float[Tensor, "k *tile"], slices: Sequence[slice]) -> None:
        """Add one tile's output at its place; raises `GeometryError` when it does not fit there."""
        self._refuse_after_end()
        where = tuple(slices)
        target, total = self._sum[(slice(None), *where)], self._total[where]
        if tile_output.shape != target.shape or total.shape != self._weight.shape:
            raise GeometryError(
                "A tile's output does not fit its place in the volume.",
                seen=tuple(tile_output.shape),
                expected=(target.shape[0], *self._weight.shape),
            )
        target.addcmul_(tile_output.to(target), self._weight)
        total.add_(self._weight)

    def finish(self) -> Float[Tensor, "k *shape"]:
        """The weighted average, once; raises `ContentError` where no tile fell."""
        self._refuse_after_end()
        uncovered = int((self._total == 0).sum())
        if uncovered:
            raise ContentError("No tile covers part of the volume.", seen=f"{uncovered} voxels")
        self._finished = True
        average = self._sum.div_(self._total)
        del self._sum, self._total
        return average

    def _refuse_after_end(self) -> None:
        if self._finished:
            raise ContentError("The stitched volume is finished; begin with a new Stitcher.")
