"""Tile outputs put together to one volume, and where its probabilities lie: memory or a file.

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
from jaxtyping import Float
from torch import Tensor

from lesionseg.errors import ContentError, GeometryError, OutputError

TakeRows = Callable[[int, Tensor], None]
# rows handed over at a time are about this large: temporaries the allocator finds room for
_HANDED_BYTES = 1 << 22
_NUMPY = {torch.float16: np.float16, torch.float32: np.float32}
# the smallest number above 0 that float16 has: 1 itself needs a sign
_SMALLEST = 2.0**-24


class Stitcher:
    """Weighted average of overlapping tile outputs `[K, *tile]` on a grid `[K, *shape]`.

    `weight` `[*tile]` positive, the same for each tile and channel. Tiles come by ascending first
    row. Once no later tile can reach them, rows are handed to `take_rows(first_row, average)`,
    `[K, rows, *shape[1:]]` float32, in order and each once; the sums behind them are held for one
    tile's height only, in float32 on `device` (the weight's when None). Voxels that no tile covered
    are refused, or 0 with `gaps`. Feed every tile to `add`, then call `finish` once.

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
        *,
        gaps: bool = False,
        device: torch.device | None = None,
    ) -> None:
        if weight.ndim != len(shape) or not bool((weight > 0).all()):
            raise ContentError(
                f"The tile weight {tuple(weight.shape)} must be positive, with {len(shape)} axes."
            )
        self._weight = weight.to(device=device, dtype=torch.float32)
        self._shape, self._take_rows, self._gaps = tuple(shape), take_rows, gaps
        shape_held = (len(weight), *self._shape[1:])
        self._sum = self._weight.new_zeros((n_channels, *shape_held))
        self._total = self._weight.new_zeros(shape_held)
        self._at_once = max(1, _HANDED_BYTES // max(self._sum[:, 0].nbytes, 1))
        self._first_row, self._finished = 0, False

    def add(self, tile_output: Float[Tensor, "k *tile"], slices: Sequence[slice]) -> None:
        """Add one tile's output at its place.

        Raises `GeometryError` when it does not fit there, or comes after a tile of a later row.
        """
        self._refuse_after_end()
        rows, *rest = slices
        expected = (len(self._sum), *self._weight.shape)
        inside = all(s.start >= 0 and s.stop <= n for s, n in zip(slices, self._shape, strict=True))
        spans = tuple(s.stop - s.start for s in slices)
        if tile_output.shape != expected or spans != expected[1:] or not inside:
            raise GeometryError(
                f"A tile's output {tuple(tile_output.shape)} does not fit its place {slices} in "
                f"the volume {self._shape}; tiles are {expected}."
            )
        if rows.start < self._first_row:
            raise GeometryError(f"A tile from row {rows.start} comes after {self._first_row}.")
        self._hand_over(rows.start)
        self._sum[(slice(None), slice(None), *rest)].addcmul_(
            tile_output.to(self._sum), self._weight
        )
        self._total[(slice(None), *rest)].add_(self._weight)

    def finish(self) -> None:
        """Hand over the last rows, once; raises `ContentError` where no tile fell."""
        self._refuse_after_end()
        self._hand_over(self._shape[0])
        self._finished = True

    def _hand_over(self, end: int) -> None:
        """Hand over all rows before `end`, and move the rest to the front."""
        while self._first_row < end:
            n = min(end - self._first_row, len(self._total))
            for first in range(0, n, self._at_once):
                self._hand_over_rows(first, min(first + self._at_once, n))
            for sums in (self._sum, self._total[None]):
                _move_up(sums, n)
            self._first_row += n

    def _hand_over_rows(self, first: int, last: int) -> None:
        total = self._total[first:last]
        uncovered = 0 if self._gaps else int((total == 0).sum())
        if uncovered:
            raise ContentError(f"No tile covers {uncovered} voxels of the volume.")
        # where the total is 0, so is the sum
        average = self._sum[:, first:last] / total.clamp_min(torch.finfo(torch.float32).tiny)
        self._take_rows(self._first_row + first, average)

    def _refuse_after_end(self) -> None:
        if self._finished:
            raise ContentError("The stitched volume is finished; begin with a new Stitcher.")


def _move_up(sums: Tensor, n: int) -> None:
    """Drop the first `n` rows `[K, rows, ...]`; the others move to their place, zeros follow."""
    rows = sums.shape[1]
    for first in range(0, rows - n, n):
        last = min(first + n, rows - n)
        sums[:, first:last] = sums[:, first + n : last + n]
    sums[:, rows - n :] = 0


class Store:
    """Zeros `[K, *shape]` on the CPU, to be written and read by slabs; `values` is all of it.

    float16 holds 11 binary digits, more than the probabilities are worth, of p up to one half and
    of 1 − p above it (as the negative number p − 1): what is almost certain keeps its rank. With
    `folder` the values lie in a nameless file there, which is gone when the process ends, however
    it ends. Raises `OutputError` when the disk has no room.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float16,
        folder: Path | None = None,
    ) -> None:
        self._map: mmap.mmap | None = None
        shape, kind = tuple(shape), _NUMPY[dtype]
        if folder is None or not prod(shape):
            # numpy's zeros take no memory before they are written
            self.values = torch.from_numpy(np.zeros(shape, dtype=kind))
            return
        n_bytes = prod(shape) * dtype.itemsize
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                if hasattr(os, "posix_fallocate"):
                    # a hole in the file would turn a full disk into a crash at the first write
                    os.posix_fallocate(file.fileno(), 0, n_bytes)
                mapped = np.memmap(file, dtype=kind, mode="r+", shape=shape)
        except OSError as error:
            raise OutputError(
                f"{folder}: no room for {n_bytes / 2**20:.0f} MiB of probabilities "
                f"({error.strerror}). Free some space, or raise inference.max_memory_gb."
            ) from error
        self._map = mapped._mmap  # type: ignore[attr-defined]
        self.values = torch.from_numpy(mapped)

    @property
    def in_file(self) -> bool:
        """Whether the values lie in a file."""
        return self._map is not None

    def write(self, where: Sequence[slice], probabilities: Float[Tensor, "k *where"]) -> None:
        """Put probabilities in their place, as the store's numbers."""
        p = probabilities
        if self.values.dtype == torch.float16:
            p = torch.where(p > 0.5, (p - 1).clamp_max(-_SMALLEST), p)
        self.values[(slice(None), *where)] = p.to(self.values.dtype).cpu()
        self.release()

    def decode(self, values: Tensor) -> Tensor:
        """Probabilities float32, of numbers in the store."""
        p = values.float()  # 1 − p was stored as a negative number
        return p.add_(p < 0) if self.values.dtype == torch.float16 else p

    def close(self) -> None:
        """Give all of it up."""
        self.values, self._map = self.values.new_empty(0), None

    def release(self) -> None:
        """Take a file's pages that were read or written out of this process's memory."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
