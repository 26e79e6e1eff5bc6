"""Combine tile outputs into one volume, stored in memory or in a file.

rows ──▶  done   │   at work: one tile high   │  to come
─────────────────┼────────────────────────────┼──────────
  handed over    │ ▣▣▣▣▣ tiles begin here     │
"""

import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lesionseg.errors import OutputError

TakeRows = Callable[[int, Tensor], None]
# rows handed over at a time are about this large: on a CPU, temporaries the allocator finds room
# for; on a GPU, few copies to wait for
_HANDED_BYTES, _HANDED_BYTES_GPU = 1 << 22, 1 << 26
# the smallest number above 0 that float16 has: 1 itself needs a sign
_SMALLEST = 2.0**-24


class Stitcher:
    """Weighted average of overlapping tile outputs `[K, *tile]` on a grid `[K, *shape]`.

    `weight` `[*tile]` positive, the same for each tile and channel. Tiles come by ascending first
    row. Once no later tile can reach them, rows are handed to `take_rows(first_row, average)`,
    `[K, rows, *shape[1:]]` float32, in order and each once; the sums behind them are held for one
    tile's height only, in float32 on `device` (the weight's when None). Voxels that no tile covered
    are 0. Feed every tile to `add`, then call `finish` once.

    >>> stitcher = Stitcher((3,), 1, torch.ones(2), lambda row, p: print(row, p.tolist()))
    >>> stitcher.add(torch.tensor([[1.0, 1.0]]), (slice(0, 2),))
    >>> stitcher.add(torch.tensor([[3.0, 3.0]]), (slice(1, 3),))
    0 [[1.0]]
    >>> stitcher.finish()
    1 [[2.0, 3.0]]
    """

    def __init__(
        self,
        shape: Sequence[int],
        n_channels: int,
        weight: Float[Tensor, "*tile"],
        take_rows: TakeRows,
        device: torch.device | None = None,
    ) -> None:
        self._weight = weight.to(device=device, dtype=torch.float32)
        self._n_rows, self._take_rows, self._first_row = shape[0], take_rows, 0
        shape_held = (len(weight), *shape[1:])
        self._sum = self._weight.new_zeros((n_channels, *shape_held))
        self._total = self._weight.new_zeros(shape_held)
        handed = _HANDED_BYTES if self._sum.device.type == "cpu" else _HANDED_BYTES_GPU
        row_bytes = self._sum[:, 0].numel() * self._sum.element_size()
        self._at_once = max(1, handed // max(row_bytes, 1))

    def add(self, tile_output: Float[Tensor, "k *tile"], slices: Sequence[slice]) -> None:
        """Add one tile's output at its place."""
        rows, *rest = slices
        self._hand_over(rows.start)
        self._sum[(slice(None), slice(None), *rest)].addcmul_(
            tile_output.to(self._sum), self._weight
        )
        self._total[(slice(None), *rest)].add_(self._weight)

    def finish(self) -> None:
        """Hand over the last rows, once."""
        self._hand_over(self._n_rows)

    def _hand_over(self, end: int) -> None:
        while self._first_row < end:
            n = min(end - self._first_row, len(self._total))
            for first in range(0, n, self._at_once):
                rows = slice(first, min(first + self._at_once, n))
                # where the total is 0, so is the sum
                total = self._total[rows].clamp_min(torch.finfo(torch.float32).tiny)
                self._take_rows(self._first_row + first, self._sum[:, rows] / total)
            for sums in (self._sum, self._total[None]):
                _move_up(sums, n)
            self._first_row += n


def _move_up(sums: Tensor, n: int) -> None:
    rows = sums.shape[1]
    for first in range(0, rows - n, n):
        last = min(first + n, rows - n)
        sums[:, first:last] = sums[:, first + n : last + n]
    sums[:, rows - n :] = 0


class Store:
    """Probabilities `[K, *shape]` on the CPU, 0 at first, to be written and read by slabs.

    `values` are float16, which holds 11 binary digits, more than the probabilities are worth, of p
    up to one half and of 1 − p above it (as the negative number p − 1): what is almost certain
    keeps its rank. With `folder` they lie in a nameless file there, which is gone when the process
    ends, however it ends. Raises `OutputError` when the disk has no room.
    """

    def __init__(self, shape: Sequence[int], *, folder: Path | None = None) -> None:
        self._map: mmap.mmap | None = None
        shape, n_bytes = tuple(shape), 2 * prod(shape)
        if folder is None or not n_bytes:
            # numpy's zeros take no memory before they are written
            self.values = torch.from_numpy(np.zeros(shape, dtype=np.float16))
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                if hasattr(os, "posix_fallocate"):
                    # a hole in the file would turn a full disk into a crash at the first write
                    os.posix_fallocate(file.fileno(), 0, n_bytes)
                mapped = np.memmap(file, dtype=np.float16, mode="r+", shape=shape)
        except OSError as error:
            raise OutputError(
                f"{folder}: no room for {n_bytes / 2**20:.0f} MiB of probabilities "
                f"({error.strerror}). Free some space, or raise inference.max_memory_gb."
            ) from error
        self._map = mapped._mmap  # type: ignore[attr-defined]
        self.values = torch.from_numpy(mapped)

    def write(
        self,
        where: Sequence[slice],
        probabilities: Float[Tensor, "k *where"],
        inside: Bool[Tensor, "*where"] | None = None,
    ) -> None:
        """Put probabilities in their place, as the store's numbers; 0 where not `inside`."""
        p = torch.where(
            probabilities > 0.5, (probabilities - 1).clamp_max(-_SMALLEST), probabilities
        )
        numbers = p.to(torch.float16).cpu()
        if inside is not None:  # here, as a mask for the GPU would be one more copy
            numbers.masked_fill_(~inside, 0)
        self.values[(slice(None), *where)] = numbers
        self.release()

    def decode(self, values: Tensor) -> Tensor:
        """Probabilities float32, of numbers in the store."""
        p = values.float()  # 1 − p was stored as a negative number
        return p.add_(p < 0)

    def close(self) -> None:
        """Give all of it up."""
        self.values, self._map = self.values.new_empty(0), None

    def release(self) -> None:
        """Take a file's pages that were read or written out of this process's memory."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def gaussian_weight(tile_shape: Sequence[int], sigma_scale: float = 0.125) -> Tensor:
    """Gaussian over a tile `[*tile_shape]` float32: 1 at its centre, never below 0.001.

    The standard deviation along each axis is `sigma_scale` times its length. The floor keeps the
    sum of weights well above rounding where only a tile's corner reaches.

    >>> gaussian_weight((3,), sigma_scale=1 / 3).mul(100).round().int().tolist()
    [61, 100, 61]
    """
    weight = torch.ones((), dtype=torch.float64)
    for n in tile_shape:
        offset = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
        weight = weight[..., None] * torch.exp(-0.5 * (offset / (sigma_scale * n)) ** 2)
    return (weight / weight.max()).clamp(min=1e-3).float()
