"""Where a volume's probabilities lie until they are restored: in memory, or in a file."""

import mmap
import os
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lesionseg.errors import OutputError

_NUMPY = {torch.float16: np.float16, torch.float32: np.float32}
# the smallest number above 0 that float16 has: 1 itself needs a sign
_SMALLEST = 2.0**-24


class Store:
    """Zeros `[K, *shape]` to be written and read by slabs; `values` is all of it.

    float16 holds 11 binary digits, more than the probabilities are worth, of p up to one half and
    of 1 − p above it (as a negative number): what is almost certain keeps its rank. With `folder`
    the values lie in a nameless file there, which is gone when
    the process ends, however it ends; `release` then takes the pages read or written so far out of
    this process's memory.
    Raises `OutputError` when the disk has no room.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float16,
        folder: Path | None = None,
    ) -> None:
        self._map: mmap.mmap | None = None
        if folder is None:
            # numpy's zeros take no memory before they are written
            self.values = torch.from_numpy(np.zeros(tuple(shape), dtype=_NUMPY[dtype]))
            return
        n_bytes = prod(shape) * dtype.itemsize
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                # a hole in the file would turn a full disk into a crash at the first write
                _reserve(file.fileno(), n_bytes)
                self._map = mmap.mmap(file.fileno(), n_bytes)
        except OSError as error:
            raise OutputError(
                "There is not enough disk space for a temporary file of probabilities.",
                where=folder,
                seen=error,
                expected=f"{n_bytes / 2**20:.0f} MiB",
                remedy="free some space, or raise inference.max_memory_gb.",
            ) from error
        self.values = torch.frombuffer(self._map, dtype=dtype).view(tuple(shape))

    @property
    def in_file(self) -> bool:
        """Whether the values lie in a file."""
        return self._map is not None

    def write(self, where: Sequence[slice], probabilities: Tensor) -> None:
        """Put probabilities `[K, *where]` in their place, as the store's numbers."""
        p = probabilities
        if self.values.dtype == torch.float16:
            p = torch.where(p > 0.5, (p - 1).clamp_max(-_SMALLEST), p)
        self.values[(slice(None), *where)] = p.to(self.values.device, self.values.dtype)

    def decode(self, values: Tensor) -> Tensor:
        """Probabilities float32, of numbers in the store."""
        p = values.float()
        return p.add_(p < 0) if self.values.dtype == torch.float16 else p

    def close(self) -> None:
        """Give all of it up."""
        self.values = self.values.new_empty(0)
        self._map = None

    def release(self) -> None:
        """Give the memory of a file's pages back; the values stay."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def _reserve(descriptor: int, n_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, n_bytes)
    else:
        os.truncate(descriptor, n_bytes)
