"""nnU-Net's `<case>.npz` with .pkl and plans.json: array names, written, read slab by slab.

The archive contains one array `[K, z, y, x]`, `probabilities`. The background is first, unless
labels are regions. Header and voxels are read as plain bytes. Nothing is unpickled, and
`<case>.pkl` is not opened. It is written, because `nnUNetv2_ensemble` and
`nnUNetv2_evaluate_folder` read the geometry only in this form, next to `dataset.json` and
`plans.json`.
"""

import pickle
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from lesionseg.core import Geometry, Labels
from lesionseg.errors import ConfigError, ReadError
from lesionseg.io.itk import itk_affine
from lesionseg.io.layouts.nnunet import DATASET_JSON, write_dataset_json
from lesionseg.io.limits import check_size, convert_read_errors, limits
from lesionseg.io.nnunet_model import PLANS
from lesionseg.io.text import read_json, write_json

ENDINGS = (".npz", ".pkl")
LEVELS_UP = 3  # folders from an output in fold_0/validation up to the model folder
_MEMBER = "probabilities.npy"
_MAX_CHANNELS = 256
_SLAB_BYTES = 2**24
_ADVICE = "Copy it again, or write it again with nnUNetv2_predict --save_probabilities."
_READERS = {".nii": "NibabelIO", ".png": "NaturalImage2DIO"}
_READER = "SimpleITKIO"
_ACROSS_MM = 999.0  # nnU-Net's spacing along the third axis of a picture


@dataclass(frozen=True)
class ProbabilitySlab:
    """Consecutive rows of one channel of the array. A large array is read slab by slab.

    A row has one index of the first spatial axis: a slice of a volume.

    Attributes:
        channel: The index of the channel.
        first_row: The index of the first row in the channel.
        values: The probabilities `[rows, *spatial[1:]]`.
    """

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
        fortran_order: True if the first index changes fastest in the file.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool

    @classmethod
    def open(cls, path: Path) -> "ProbabilityFile":
        """Read and check the header of an archive of nnU-Net's probabilities, without the voxels.

        Raises:
            ReadError: If the file is not such an archive, contains anything but floating-point
                numbers, has an impossible shape, or claims more voxels than it can contain or than
                `FileLimits` allow.
        """
        # find the array in the archive and read its header
        with convert_read_errors(path):
            if not path.is_file() or not zipfile.is_zipfile(path):
                raise ReadError(f"{path}: this is not an .npz archive. {_ADVICE}")
            with zipfile.ZipFile(path) as archive:
                if _MEMBER not in archive.namelist():
                    listed = ", ".join(archive.namelist()[:5]) or "nothing"
                    raise ReadError(
                        f"{path}: the archive contains {listed}, but no array 'probabilities'. "
                        f"{_ADVICE}"
                    )
                info = archive.getinfo(_MEMBER)
                with archive.open(info) as stream:
                    shape, fortran_order, dtype = _read_header(stream)
                    n_header = stream.tell()
        # check type, shape and size; `dtype.str[1:]` is the type without its byte order
        problem = ""
        if dtype.str[1:] not in ("f2", "f4", "f8"):
            problem = f"contains {dtype} instead of 16, 32 or 64-bit floating-point numbers"
        elif len(shape) not in (3, 4) or min(shape) < 1 or shape[0] > _MAX_CHANNELS:
            problem = f"has the shape {shape} instead of [K, z, y, x]"
        elif prod(shape[1:]) > limits().max_voxels:
            problem = f"has too many voxels: {prod(shape[1:])}, at most {limits().max_voxels}"
        else:
            n_bytes = prod(shape) * dtype.itemsize
            check_size(path, n_bytes)
            if info.file_size != n_header + n_bytes:
                problem = "has another size than its header states"
        if problem:
            raise ReadError(f"{path}: the array {problem}, so it was not read. {_ADVICE}")
        return cls(path=path, shape=shape, dtype=dtype, fortran_order=fortran_order)

    def reader_name(self) -> str:
        """Return the name of nnU-Net's image reader, such as `SimpleITKIO`, or "" if it is unknown.

        Some readers reorient images, so that the array has another axis order than the mask.
        `plans.json` names the reader. nnU-Net writes this file next to its outputs and into the
        model folder, so the folder of the archive and the two folders above it are searched. Raise
        `ReadError` if the nearest `plans.json` is not JSON.
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
        """Yield the probabilities of all channels in slabs, ordered by channel, then by row.

        A slab has about 16 MiB, so that the array need not fit into memory. An array in Fortran
        order is read at once, and each of its channels is one slab.

        Raises:
            ReadError: If the archive is truncated or damaged.
        """
        with (
            convert_read_errors(self.path),
            zipfile.ZipFile(self.path) as archive,
            archive.open(_MEMBER) as stream,
        ):
            _read_header(stream)
            if self.fortran_order:  # the rows of a channel are not consecutive
                array = self._read(stream, prod(self.shape) * self.dtype.itemsize)
                for channel, rows in enumerate(array.reshape(self.shape, order="F")):
                    yield ProbabilitySlab(channel, first_row=0, values=rows)
                return
            row_bytes = prod(self.shape[2:]) * self.dtype.itemsize
            max_rows = max(1, _SLAB_BYTES // max(row_bytes, 1))
            for channel in range(self.shape[0]):
                for first in range(0, self.shape[1], max_rows):
                    n_rows = min(max_rows, self.shape[1] - first)
                    values = self._read(stream, n_rows * row_bytes)
                    shaped = values.reshape((n_rows, *self.shape[2:]))
                    yield ProbabilitySlab(channel, first_row=first, values=shaped)

    def _read(self, stream: IO[bytes], n_bytes: int) -> NDArray[np.float32]:
        """Read the next `n_bytes` of the array, and return the numbers as a vector of float32."""
        return np.frombuffer(stream.read(n_bytes), self.dtype).astype(np.float32)


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, "np.dtype[Any]"]:
    """Read the header of an array of numbers in NumPy's format `.npy`.

    NumPy parses this header without running code. It writes version 1.0 of the format, except for
    structured arrays.

    Args:
        stream: The `.npy` file at its beginning. Its position afterwards is the first number.

    Returns:
        The shape, True if the array is in Fortran order, and the type of the numbers.
    """
    npy.read_magic(stream)
    return npy.read_array_header_1_0(stream)


def write_description(
    folder: Path, channel_names: Sequence[str], labels: Labels, suffix: str
) -> list[Path]:
    """Write `dataset.json` and `plans.json`, which programs of nnU-Net need next to probabilities.

    `numTraining` is 0 and `configurations` is empty, because no training belongs to the folder. The
    labels do not include the ignore value, because a network does not predict it. Therefore
    `nnUNetv2_evaluate_folder` needs the `dataset.json` of the dataset instead.

    Args:
        folder: The folder of the probabilities.
        channel_names: The names of the input channels.
        labels: The labels that the network predicts.
        suffix: The suffix of the masks, such as `.nii.gz`.

    Returns:
        The paths of the two files.

    Raises:
        ConfigError: If nnU-Net cannot represent the labels. It supports regions, and labels with
            the values 1 to n.
    """
    if not labels.regions and labels.values != tuple(range(1, len(labels) + 1)):
        raise ConfigError(
            f"names=nnunet save_probabilities=true: nnU-Net needs the mask values 1 to "
            f"{len(labels)}, not {', '.join(map(str, labels.values))}. Use names=lesionseg."
        )
    write_dataset_json(folder, channel_names, labels, suffix, numTraining=0)
    plans = {
        "dataset_name": "lesionseg",
        "plans_name": "lesionseg",
        "image_reader_writer": _READERS.get(suffix, _READER),
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {},
    }
    write_json(folder / PLANS, plans)
    return [folder / DATASET_JSON, folder / PLANS]


def write_probabilities(
    folder: Path,
    case: str,
    probabilities: NDArray[np.float16],
    geometry: Geometry,
    *,
    are_regions: bool,
) -> None:
    """Write the probabilities of a case as `<case>.npz` and `<case>.pkl`, like nnU-Net.

    The second file contains the geometry. nnU-Net's array has a background channel at index 0,
    except for regions. The background is 1 minus the sum of all labels. In a voxel whose sum is
    above 1, the labels are divided by the sum, and the background is 0.

    Args:
        folder: The folder of the files.
        case: The case id.
        probabilities: `[labels, *spatial]`. A picture is written as `[labels, 1, y, x]`.
        geometry: The grid of the probabilities.
        are_regions: True if the labels are regions, which may overlap and have no background.
    """
    if geometry.dims == 2:
        probabilities = probabilities[:, np.newaxis]
    if not are_regions:
        total = probabilities.sum(axis=0, dtype=np.float32)
        with_background = np.empty((len(probabilities) + 1, *total.shape), np.float16)
        with_background[0] = (1 - total).clip(min=0)
        np.divide(probabilities, total.clip(min=1), out=with_background[1:], casting="same_kind")
        probabilities = with_background
    np.savez_compressed(folder / f"{case}.npz", probabilities=probabilities)
    with (folder / f"{case}.pkl").open("wb") as file:
        # a fixed protocol, which every Python from 3.4 on can read
        pickle.dump(_properties(geometry), file, protocol=4)


def _properties(geometry: Geometry) -> dict[str, Any]:
    """Return the geometry of a case in the form in which nnU-Net's image readers pickle it.

    All numbers are of Python's types. The keys are:

    - `spacing`: voxel size in the order (z, y, x). For a picture this is the only key, and the
      pixel size is 1, as nnU-Net writes it.
    - `sitk_stuff`, for SimpleITKIO: spacing, origin and direction in the order (x, y, z), LPS.
    - `nibabel_stuff`, for NibabelIO: the affine of indices (x, y, z) to RAS.
    """
    spacing = [float(mm) for mm in geometry.spacing_mm]
    if geometry.dims == 2:
        return {"spacing": [_ACROSS_MM, 1.0, 1.0]}
    lps_affine = itk_affine(geometry.affine)
    directions = lps_affine[:3, :3] / spacing[::-1]  # unit vectors in the columns
    return {
        "spacing": spacing,
        "sitk_stuff": {
            "spacing": tuple(spacing[::-1]),
            "origin": tuple(lps_affine[:3, 3].tolist()),
            "direction": tuple(directions.reshape(-1).tolist()),
        },
        # of the indices (x, y, z)
        "nibabel_stuff": {"original_affine": geometry.affine[:, [2, 1, 0, 3]].tolist()},
    }
