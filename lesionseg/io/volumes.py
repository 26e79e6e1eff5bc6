"""Volumes in any format: the suffix of the file's name decides who reads and writes it."""

from pathlib import Path

import numpy as np

from lesionseg.core import Geometry, Volume
from lesionseg.errors import OutputError, ReadError
from lesionseg.io import itk, nifti, raster
from lesionseg.io.dicom.headers import SUFFIXES as DICOM_SUFFIXES
from lesionseg.io.dicom.headers import is_dicom
from lesionseg.io.dicom.series import read_dicom, read_dicom_geometry, split_series
from lesionseg.io.files import atomic_path
from lesionseg.io.limits import in_worker, reading

SUFFIXES = (*nifti.SUFFIXES, *itk.SUFFIXES, *raster.SUFFIXES, *DICOM_SUFFIXES)


def case_suffix(path: Path) -> str:
    """The suffix that names the format, as written; any other file's last suffix.

    >>> case_suffix(Path("scan.v2.nii.gz")), case_suffix(Path("scan.PNG"))
    ('.nii.gz', '.PNG')
    """
    name = path.name
    known = next((s for s in SUFFIXES if name.lower().endswith(s)), None)
    return path.suffix if known is None else name[len(name) - len(known) :]


def strip_suffix(path: Path) -> str:
    """The file's name without the suffix that names its format.

    >>> strip_suffix(Path("scan.v2.nii.gz"))
    'scan.v2'
    """
    return path.name.removesuffix(case_suffix(path))


def is_image_file(path: Path) -> bool:
    """Whether the name is that of an image we read; hidden files are none."""
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def is_raster(path: Path) -> bool:
    """Whether the name is that of a format that states no position: PNG, JPEG, BMP or TIFF."""
    return case_suffix(path).lower() in raster.SUFFIXES


def is_dicom_image(path: Path) -> bool:
    """Whether it is a folder, or a DICOM file by suffix or first bytes."""
    if path.is_dir() or split_series(path) is not None:
        return True
    suffix = case_suffix(path).lower()
    return suffix in DICOM_SUFFIXES or (suffix not in SUFFIXES and is_dicom(path))


def result_suffix(path: Path, dims: int) -> str:
    """The format in which a prediction on the image is written: its own where that is exact.

    >>> result_suffix(Path("a.nrrd"), 3), result_suffix(Path("a.jpg"), 2)
    ('.nrrd', '.png')
    """
    suffix = case_suffix(path).lower()
    suffix = {".mhd": ".mha", ".nhdr": ".nrrd"}.get(suffix, suffix)
    if dims == 2:
        return ".png"
    return suffix if suffix in (*nifti.SUFFIXES, ".nrrd", ".mha") else ".nii.gz"


def read_volume(path: Path, *, raster_mm: float | None = None, as_labels: bool = False) -> Volume:
    """Read one file as a volume `[C, *spatial]`, voxels as stored, affine to RAS millimetres.

    C is 3 for a PNG, JPEG, BMP or TIFF in colour, else 1. The dtype is the file's (float32 where a
    NIfTI header scales). Nothing is reoriented: the array axes are the file's, slowest first.
    Rasters have two spatial axes and pixels of `raster_mm` (1 mm when not given). `as_labels` reads
    a mask: see `raster.read_raster`. A folder is a DICOM series. Raises `ReadError` naming the
    file, and `GeometryError` for DICOM slices that are no even stack.
    """
    suffix = _format(path)
    if suffix in nifti.SUFFIXES:
        return nifti.read_nifti(path)
    if suffix in itk.SUFFIXES:
        return in_worker(itk.read_itk, path)
    if suffix in raster.SUFFIXES:
        return in_worker(raster.read_raster, path, raster_mm, as_labels=as_labels)
    with reading(path):  # pydicom understands an element when it is asked for
        return read_dicom(path)


def read_geometry(path: Path, *, raster_mm: float | None = None) -> Geometry:
    """Read shape and affine from the header alone; raises as `read_volume` does."""
    suffix = _format(path)
    if suffix in nifti.SUFFIXES:
        return nifti.read_nifti_geometry(path)
    if suffix in itk.SUFFIXES:
        return in_worker(itk.read_itk_geometry, path)
    if suffix in raster.SUFFIXES:
        return read_volume(path, raster_mm=raster_mm).geometry  # decoding alone tells it is whole
    with reading(path):
        return read_dicom_geometry(path)


def write_volume(path: Path, volume: Volume, like: Path | None = None) -> None:
    """Write a volume of one channel atomically, with its own affine, in the suffix's format.

    The dtype is kept, but bool becomes uint8, float16 float32 and 64-bit integers int32. `like`
    names a NIfTI file whose form codes are taken over. Rasters lose their pixel size. Raises
    `OutputError` for several channels, an unknown suffix and numbers the format cannot hold.
    """
    suffix, array = case_suffix(path).lower(), volume.array[0]
    if len(volume.array) != 1:
        raise OutputError(f"{path}: a file holds one channel, not {len(volume.array)}.")
    if array.dtype in (np.int64, np.uint64):
        if array.size and max(abs(int(array.min())), int(array.max())) > np.iinfo(np.int32).max:
            raise OutputError(f"{path}: integers up to {array.max()} do not fit 32 bits.")
        array = array.astype(np.int32)
    elif array.dtype in (np.bool_, np.float16):
        array = array.astype(np.uint8 if array.dtype == np.bool_ else np.float32)
    with atomic_path(path) as temporary:
        try:
            if suffix in nifti.SUFFIXES:
                nifti.write_nifti(temporary, array, volume.geometry, like)
            elif suffix in (".nrrd", ".mha"):  # .mhd would be two files: two renames are not one
                itk.write_itk(temporary, array, volume.geometry)
            elif suffix in raster.SUFFIXES:
                raster.write_raster(temporary, array)
            else:
                raise OutputError("write .nii.gz, .nii, .nrrd, .mha, .png or .tif")
        except OSError:
            raise
        except Exception as error:  # what a format's library says of numbers that do not fit
            raise OutputError(f"{path}: cannot be written ({error}).") from error


def _format(path: Path) -> str:
    """The suffix in lower case; ".dcm" for a folder and for DICOM files without one."""
    with reading(path):
        if not path.is_dir() and split_series(path) is None:
            if not path.is_file():  # nor is a pipe one
                raise ReadError(f"{path}: no such file. Check its name and folder.")
            if path.stat().st_size == 0:
                raise ReadError(f"{path}: the file is empty. Copy it again from its source.")
        if is_dicom_image(path):
            return DICOM_SUFFIXES[0]
    suffix = case_suffix(path).lower()
    if suffix not in SUFFIXES:
        raise ReadError(f"{path}: unknown format {suffix!r}, expected {', '.join(SUFFIXES)}.")
    return suffix
