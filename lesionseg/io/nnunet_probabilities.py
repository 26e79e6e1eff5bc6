"""Reading nnU-Net's probabilities slab by slab: `<case>.npz`, written with `--save_probabilities`.

The archive contains one array `[K, z, y, x]`, `probabilities` of nnU-Net v2 or `softmax` of v1.
Header and voxels are read as plain bytes. Nothing is unpickled, and `<case>.pkl` is not opened.
"""

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from lesionseg.errors import ReadError
from lesionseg.io.limits import check_size, convert_read_errors, limits
from lesionseg.io.nnunet_model import PLANS
from lesionseg.io.text import read_json

SUFFIX = ".npz"
LEVELS_UP = 3  # folders from an output in fold_0/validation up to the model folder
_NAMES = ("probabilities.npy", "softmax.npy")
_MAX_CHANNELS = 256
_SLAB_BYTES = 2**24
_ADVICE = "Copy it again, or write it again with nnUNetv2_predict --save_probabilities."
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True)
class ProbabilitySlab:
    """Consecutive rows of one channel: `values` `[rows, *spatial[1:]]` float32."""

    channel: int
    first_row: int
    values: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ProbabilityFile:
    """An archive of probabilities after its header was read.

    Attributes:
        path: The archive.
        shape: `[K, *spatial]`. nnU-Net adds an axis of length 1 to a picture: `[K, 1, y, x]`.
        dtype: The type of the numbers.
        member: The name of the array in the archive.
        fortran_order: True if the first index changes fastest in the file.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    member: str
    fortran_order: bool

    @classmethod
    def open(cls, path: Path) -> "ProbabilityFile":
        """Read the header of an archive of nnU-Net's probabilities.

        Raises:
            ReadError: The file is not such an archive, contains objects instead of numbers, or
                claims more voxels than it can contain or than `FileLimits` allow.
        """
        with convert_read_errors(path):
            if not path.is_file() or not zipfile.is_zipfile(path):
                raise ReadError(f"{path}: this is not an .npz archive. {_ADVICE}")
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                member = next((name for name in _NAMES if name in names), None)
                if member is None:
                    listed = ", ".join(names[:5]) or "nothing"
                    raise ReadError(
                        f"{path}: the archive contains {listed}, but no array 'probabilities'. "
                        f"{_ADVICE}"
                    )
                info = archive.getinfo(member)
                with archive.open(info) as stream:
                    shape, fortran_order, dtype = _read_header(path, stream)
                    n_header = stream.tell()
        if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
            raise ReadError(
                f"{path}: the array contains {dtype} instead of 16, 32 or 64-bit floating-point "
                f"numbers, so it was not read. {_ADVICE}"
            )
        if len(shape) not in (3, 4) or min(shape) < 1 or shape[0] > _MAX_CHANNELS:
            raise ReadError(
                f"{path}: the array has the shape {shape} instead of [K, z, y, x]. {_ADVICE}"
            )
        if prod(shape[1:]) > limits().max_voxels:
            raise ReadError(
                f"{path}: the array has too many voxels: {prod(shape[1:])}, at most "
                f"{limits().max_voxels}. {_ADVICE}"
            )
        n_bytes = prod(shape) * dtype.itemsize
        check_size(path, n_bytes)
        if info.file_size != n_header + n_bytes:
            raise ReadError(f"{path}: the array's size differs from its header. {_ADVICE}")
        return cls(path, shape, dtype, member, fortran_order)

    def reader_name(self) -> str:
        """Return the name of the image reader in nnU-Net's `plans.json`, or "" if it is not stated.

        nnU-Net writes the file next to its outputs, and into the model folder. Raise `ReadError` if
        the nearest one is not JSON.
        """
        for folder in self.path.parents[:LEVELS_UP]:
            path = folder / PLANS
            if path.is_file():
                match read_json(path):
                    case {"image_reader_writer": str(name)}:
                        return name
                return ""
        return ""

    def slabs(self) -> Iterator[ProbabilitySlab]:
        """Yield the slabs of all channels, ordered by channel, then by row.

        Raises:
            ReadError: The archive is truncated or damaged.
        """
        with (
            convert_read_errors(self.path),
            zipfile.ZipFile(self.path) as archive,
            archive.open(self.member) as stream,
        ):
            _read_header(self.path, stream)
            if self.fortran_order:
                yield from self._read_whole(stream)
                return
            row_bytes = prod(self.shape[2:]) * self.dtype.itemsize
            max_rows = max(1, _SLAB_BYTES // max(row_bytes, 1))
            for channel in range(self.shape[0]):
                for first in range(0, self.shape[1], max_rows):
                    n_rows = min(max_rows, self.shape[1] - first)
                    values = self._read(stream, n_rows * row_bytes)
                    shaped = values.reshape((n_rows, *self.shape[2:]))
                    yield ProbabilitySlab(channel, first, shaped)

    def _read_whole(self, stream: IO[bytes]) -> Iterator[ProbabilitySlab]:
        """Yield each channel as one slab, because rows in Fortran order are not consecutive."""
        values = self._read(stream, prod(self.shape) * self.dtype.itemsize)
        for channel, rows in enumerate(values.reshape(self.shape, order="F")):
            yield ProbabilitySlab(channel, 0, rows)

    def _read(self, stream: IO[bytes], n_bytes: int) -> NDArray[np.float32]:
        """Read the next `n_bytes` as a vector of float32.

        Raise `ReadError` if the archive is damaged or truncated.
        """
        try:
            content = stream.read(n_bytes)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ReadError(f"{self.path}: the archive is damaged ({error}). {_ADVICE}") from error
        if len(content) < n_bytes:
            raise ReadError(f"{self.path}: the file is truncated. {_ADVICE}")
        return np.frombuffer(content, dtype=self.dtype).astype(np.float32)


def _read_header(path: Path, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, "np.dtype[Any]"]:
    """Read shape, order (True: Fortran) and type of an array from the beginning of its file.

    NumPy parses this header without running code. Raise `ReadError` for an unknown version.
    """
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise ReadError(f"{path}: the array's format {version} is unknown. {_ADVICE}")
    shape, fortran_order, dtype = _HEADERS[version](stream)
    return shape, fortran_order, dtype
