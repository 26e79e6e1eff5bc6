"""List of image formats: suffixes, functions that read and write; place to add a format.

A new format is one module with these functions and one entry in `FORMATS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.io import itk, nifti, raster
from lesionseg.io.dicom.headers import SUFFIXES as DICOM_SUFFIXES
from lesionseg.io.dicom.series import read_dicom, read_dicom_geometry


@dataclass(frozen=True)
class Format:
    """An image format: its suffixes, and the functions that read and write its files.

    The functions may raise any error: `io.volumes` converts it into a `ReadError` or an
    `OutputError` with the name of the file. `read` and `read_grid` call `limits.check_grid`
    before memory is allocated.

    Attributes:
        suffixes: The suffixes of its files, in lower case.
        read: Reads a volume `[C, *spatial]` in the dtype of the file. Arguments: the file; the
            pixel size in millimetres (or None) for a file that states none; True for a mask.
        read_grid: Reads the grid from the header. Arguments: the file; the pixel size as for
            `read`.
        in_worker: True if a native library parses the file. `read` and `read_grid` are then called
            in the worker process, with limits of memory and processor time.
        write: Writes an array `[*spatial]`. Arguments: the file; the array; the grid; a file on the
            same grid whose header is copied, or None. `write` is None if lesionseg does not write
            this format.
        written: The suffixes that `write` supports.
    """

    suffixes: tuple[str, ...]
    read: Callable[[Path, float | None, bool], Volume]
    read_grid: Callable[[Path, float | None], Geometry]
    in_worker: bool
    write: Callable[[Path, NDArray[Any], Geometry, Path | None], None] | None = None
    written: tuple[str, ...] = ()


def _read_dicom(path: Path, pixel_mm: float | None, as_labels: bool) -> Volume:
    """Read a DICOM image, with the arguments of `Format.read`.

    `as_labels` is not used, because `io.dicom.reference` reads DICOM masks.
    """
    return read_dicom(path, pixel_mm)


# nibabel is not native, and several threads read NIfTI files at the same time
NIFTI = Format(
    nifti.SUFFIXES,
    nifti.read_nifti,
    nifti.read_nifti_geometry,
    in_worker=False,
    write=nifti.write_nifti,
    written=nifti.SUFFIXES,
)
ITK = Format(
    itk.SUFFIXES,
    itk.read_itk,
    itk.read_itk_geometry,
    in_worker=True,
    write=itk.write_itk,
    # .mhd and .nhdr have two files, which cannot be renamed at once
    written=(".seg.nrrd", ".nrrd", ".mha"),
)
RASTER = Format(
    raster.SUFFIXES,
    raster.read_raster,
    raster.read_raster_geometry,
    in_worker=True,
    write=raster.write_raster,
    written=raster.WRITTEN,
)
# only the decoder of compressed pixels runs in the worker
DICOM = Format(DICOM_SUFFIXES, _read_dicom, read_dicom_geometry, in_worker=False)
FORMATS = (NIFTI, ITK, RASTER, DICOM)
