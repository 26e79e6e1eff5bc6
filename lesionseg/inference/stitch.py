"""Average of overlapping tiles: Gaussian weights, sums of rows, storage in memory or a file.

rows ──▶  finished       │  sums, one tile high      │  not reached yet
─────────────────────────┼───────────────────────────┼──────────────────
  given to `finish_rows`   │ ▣▣▣▣▣ current tiles       │
"""

import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from lesionseg.errors import OutputError

# size of the rows that are given to `finish_rows` at a time: on a CPU, small temporary arrays; on a
# GPU, few copies to synchronise with
_BYTES_PER_CALL = 1 << 22
_BYTES_PER_CALL_GPU = 1 << 26
_HIGHEST = 10.0  # the value in the middle of nnU-Net's Gaussian
_SIGMA_SCALE = 0.125  # standard deviation of the tile weight, as a share of each side
# the smallest positive float16. Probabilities above 0.5 are stored as negative numbers, so p = 1 is
# stored as minus this number instead of 0
_SMALLEST = 2.0**-24


class Stitcher:
    """The weighted average of overlapping tile outputs `[K, *tile]` on a grid `[K, *shape]`.

    Call `add` for each tile in ascending order of first rows, then `finish` once. Voxels without a
    tile are 0. Only the sums of as many rows as a tile has are in memory.

    Args:
        shape: Shape of the grid.
        n_channels: Number of channels K.
        weight: Positive weights `[*tile]`, the same for each tile and channel.
        finish_rows: Called as `finish_rows(first_row, average)` with finished rows
            `[K, rows, *shape[1:]]` float32, in order and once for each row.
        device: Device of the sums, which are float32. None is the device of the weights.

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
        finish_rows: Callable[[int, Tensor], None],
        device: torch.device | None = None,
    ) -> None:
        self._weight = weight.to(device=device, dtype=torch.float32)
        self._n_rows = shape[0]
        self._finish_rows = finish_rows
        self._first_row = 0
        # the sums contain the rows of the current tiles, from `_first_row` on
        shape_held = (len(weight), *shape[1:])
        self._sum = self._weight.new_zeros((n_channels, *shape_held))
        self._total_weight = self._weight.new_zeros(shape_held)
        # `finish_rows` gets a few rows at a time, see `_BYTES_PER_CALL`
        is_on_cpu = self._sum.device.type == "cpu"
        bytes_per_call = _BYTES_PER_CALL if is_on_cpu else _BYTES_PER_CALL_GPU
        row_bytes = self._sum[:, 0].numel() * self._sum.element_size()
        self._rows_per_call = max(1, bytes_per_call // max(row_bytes, 1))

    def add(self, tile_output: Float[Tensor, "k *tile"], slices: Sequence[slice]) -> None:
        """Add the output of a tile to the weighted sums.

        Rows before the tile get no further tiles, so they are given to `finish_rows` first.

        Args:
            tile_output: Output of the network for the tile.
            slices: Position of the tile in the grid.
        """
        rows, *rest = slices
        self._finish_rows_before(rows.start)
        # all channels and the rows of the sums, which are now the rows of the tile
        self._sum[(slice(None), slice(None), *rest)].addcmul_(
            tile_output.to(self._sum), self._weight
        )
        self._total_weight[(slice(None), *rest)].add_(self._weight)

    def finish(self) -> None:
        """Give all remaining rows to `finish_rows`. Called once, after the last tile."""
        self._finish_rows_before(self._n_rows)

    def _finish_rows_before(self, end: int) -> None:
        """Give the averages of the rows before `end` to `finish_rows`, and free their sums."""
        while self._first_row < end:
            n_finished = min(end - self._first_row, len(self._total_weight))
            for first in range(0, n_finished, self._rows_per_call):
                rows = slice(first, min(first + self._rows_per_call, n_finished))
                # if no tile covers a voxel, its weight and sum are 0, and the average must be 0
                weight = self._total_weight[rows].clamp_min(torch.finfo(torch.float32).tiny)
                self._finish_rows(self._first_row + first, self._sum[:, rows] / weight)
            _shift_rows(self._sum, n_finished)
            _shift_rows(self._total_weight[None], n_finished)  # with an axis of channels
            self._first_row += n_finished


def _shift_rows(sums: Tensor, n: int) -> None:
    """Shift the rows of `sums` `[K, rows, …]` by `n` towards the first row, in place.

    The shift drops the first `n` rows, which are finished. The last `n` rows become 0. `n` is from
    1 to the number of rows. At most `n` rows are copied at a time, because source and destination
    of a copy must not overlap.
    """
    n_rows = sums.shape[1]
    for first in range(0, n_rows - n, n):
        last = min(first + n, n_rows - n)
        sums[:, first:last] = sums[:, first + n : last + n]
    sums[:, n_rows - n :] = 0


class Store:
    """Probabilities `[K, *shape]` on the CPU, 0 at first, that are written and read in slabs.

    `values` are float16, whose 11 binary digits are more than the accuracy of the probabilities.
    Up to 0.5, p itself is stored, above 0.5 the negative number p − 1, so that probabilities close
    to 1 keep their rank. With `folder`, which is made if it is missing, they are in a nameless file
    in that folder, which the operating system deletes at the end of the process. Raises
    `OutputError` if the file cannot be made, for example on a full disk.
    """

    def __init__(self, shape: Sequence[int], *, folder: Path | None = None) -> None:
        self._map: mmap.mmap | None = None  # None if the values are in memory
        shape = tuple(shape)
        n_bytes = 2 * prod(shape)  # float16
        if folder is None or not n_bytes:
            # numpy's zeros need no memory until they are written
            self.values = torch.from_numpy(np.zeros(shape, np.float16))
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                if hasattr(os, "posix_fallocate"):
                    # in a sparse file, a full disk would crash the process at a later write
                    os.posix_fallocate(file.fileno(), 0, n_bytes)
                mapped = np.memmap(file, dtype=np.float16, mode="r+", shape=shape)
        except OSError as error:
            raise OutputError(
                f"{folder}: a temporary file of {n_bytes / 2**20:.0f} MiB cannot be made "
                f"({error.strerror}). Free some space, or raise inference.max_memory_gb."
            ) from error
        self._map = mapped._mmap  # type: ignore[attr-defined]  # numpy offers no other access
        self.values = torch.from_numpy(mapped)

    def write(
        self,
        where: Sequence[slice],
        values: Float[Tensor, "k *where"],
        inside: Bool[Tensor, "*where"] | None = None,
    ) -> None:
        """Store the probabilities of a box of the volume.

        Args:
            where: The box, one slice per spatial axis.
            values: Probabilities `[K, *box]`, on any device.
            inside: Mask `[*box]` on the CPU. Voxels that are False get 0. None keeps all voxels.
        """
        numbers = self.encode(values).to(torch.float16).cpu()
        if inside is not None:  # on the CPU, because the mask would have to be copied to the GPU
            numbers.masked_fill_(~inside, 0)
        self.values[(slice(None), *where)] = numbers
        self.release()  # otherwise the pages of a file would fill the memory that it should save

    def encode(self, p: Tensor) -> Tensor:
        """Convert probabilities to the numbers that are stored as float16.

        A probability above 0.5 becomes the negative number p − 1, because float16 is more precise
        near 0 than near 1.
        """
        # p = 1 must be negative, too, so it becomes the negative number nearest to 0
        return torch.where(p > 0.5, (p - 1).clamp_max(-_SMALLEST), p)

    def decode(self, values: Tensor) -> Tensor:
        """Convert stored numbers (`encode`) to probabilities float32."""
        p = values.float()
        return p.add_(p < 0)  # adds 1 to the negative numbers, because p − 1 was stored

    def close(self) -> None:
        """Free the memory or delete the file. The store must not be used afterwards."""
        self.values = self.values.new_empty(0)
        self._map = None

    def release(self) -> None:
        """Free the memory of the pages of the file that were read or written.

        The content remains in the file. A store in memory is unchanged.
        """
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


class LogitStore(Store):
    """Logits `[K, *shape]` as float16, in memory or in a nameless file."""

    def encode(self, p: Tensor) -> Tensor:
        """Clip logits to the finite range of float16, so that storing them gives no infinity."""
        maximum = torch.finfo(torch.float16).max
        return p.clamp(-maximum, maximum)

    def decode(self, values: Tensor) -> Tensor:
        """Convert stored logits float16 to float32."""
        return values.float()


def gaussian_weight(tile_shape: Sequence[int]) -> Tensor:
    """Return the weights `[*tile_shape]` float32 with which overlapping tiles are averaged.

    The weights are a Gaussian with the maximum 1 at the centre of the tile, because predictions
    near an edge lack context. The standard deviation along each axis is an eighth of the tile.
    Weights are at least 0.001, which limits rounding errors of voxels that only corners of tiles
    contain.

    >>> gaussian_weight((8,)).mul(100).round().int().tolist()
    [0, 5, 37, 100, 100, 37, 5, 0]
    """
    weight = torch.ones((), dtype=torch.float64)
    for n in tile_shape:
        offset = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
        weight = weight[..., None] * torch.exp(-0.5 * (offset / (_SIGMA_SCALE * n)) ** 2)
    return (weight / weight.max()).clamp(min=1e-3).float()


@lru_cache(maxsize=4)
def nnunet_weight(tile_shape: tuple[int, ...]) -> Tensor:
    """Return the weights `[*tile_shape]` float32 with which nnU-Net averages overlapping tiles.

    The weights are a Gaussian with the maximum 10 in the middle of the tile and a standard
    deviation of an eighth of the tile along each axis. As in nnU-Net, weights are rounded to
    float16, and weights that become 0 are replaced by the smallest positive weight.

    >>> nnunet_weight((1, 5)).mul(100).round().int().tolist()
    [[6, 278, 1000, 278, 6]]
    """
    weight = np.ones((), float)
    for n in tile_shape:
        peak = np.zeros(n)
        peak[n // 2] = 1  # a filtered point is a Gaussian
        along_axis = gaussian_filter1d(peak, n * _SIGMA_SCALE, mode="constant", cval=0)
        weight = weight[..., np.newaxis] * along_axis
    rounded = torch.from_numpy(weight / weight.max() * _HIGHEST).half()
    return rounded.clamp_min(rounded[rounded > 0].min()).float()
