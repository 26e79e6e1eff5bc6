"""Image format chosen by suffix; reading and writing a volume; suffix of predicted masks.

A folder is DICOM. A file of an unknown suffix is DICOM if it begins like DICOM.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from lesionseg.core import Geometry, Volume
from lesionseg.errors import LesionsegError, OutputError, ReadError
from lesionseg.io.dicom.headers import is_dicom
from lesionseg.io.dicom.series import split_series
from lesionseg.io.files import atomic_path, explain_missing
from lesionseg.io.formats import DICOM, FORMATS, RASTER, Format
from lesionseg.io.limits import convert_read_errors
from lesionseg.io.worker import run_in_worker

T = TypeVar("T")
SUFFIXES = tuple(suffix for form in FORMATS for suffix in form.suffixes)
# types that some format cannot store, and their replacement
_STORED = {"bool": "uint8", "int64": "int32", "uint64": "int32", "float16": "float32"}
WRITTEN = tuple(suffix for form in FORMATS for suffix in form.written)
PAIR_ADVICE = (
    "Write a NIfTI pair as one file with nib-convert NAME.hdr NAME.nii.gz. An Analyze pair does "
    "not state which side is left, so convert the scan from its DICOM files"
)


def format_suffix(path: Path) -> str:
    """Return the suffix of a file in the spelling of its name, such as `.nii.gz` or `.PNG`.

    The suffix is the longest part that a known format has as its suffix, otherwise the part after
    the last dot.

    >>> format_suffix(Path("scan.v2.nii.gz")), format_suffix(Path("scan.PNG"))
    ('.nii.gz', '.PNG')
    """
    name = path.name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[len(name) - len(suffix) :]
    return path.suffix


def strip_suffix(path: Path) -> str:
    """Return the file name without the suffix that `format_suffix` returns, to make a case id.

    >>> strip_suffix(Path("scan.v2.nii.gz"))
    'scan.v2'
    """
    return path.name.removesuffix(format_suffix(path))


def is_image_file(path: Path) -> bool:
    """Return True if a file name has the suffix of a known image format and is not hidden."""
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def is_raster(path: Path) -> bool:
    """Return True if a file name has the suffix of a PNG, JPEG, BMP or TIFF.

    Such pictures state neither a position in the patient nor a pixel size.
    """
    return format_suffix(path).lower() in RASTER.suffixes


def is_dicom_image(path: Path) -> bool:
    """Return True if a path is read as DICOM.

    The paths that are read as DICOM are folders, `folder/series=…` for one series of a folder,
    files with a suffix of DICOM, and files of an unknown suffix whose content begins like DICOM.
    """
    if path.is_dir() or split_series(path) is not None:
        return True
    suffix = format_suffix(path).lower()
    if suffix in SUFFIXES:  # the content is not read
        return suffix in DICOM.suffixes
    return is_dicom(path)


def result_suffix(path: Path, dims: int) -> str:
    """Return the suffix of the masks that are predicted for an image.

    - Images with two axes (`dims` is 2) get `.png`.
    - Other images get their own suffix if the format stores exact values and their position in one
      file. `.mhd` and `.nhdr`, whose voxels are in a second file, become `.mha` and `.nrrd`.
    - Any other format, such as DICOM, gets `.nii.gz`.

    >>> result_suffix(Path("a.nrrd"), 3), result_suffix(Path("a.jpg"), 2)
    ('.nrrd', '.png')
    """
    suffix = format_suffix(path).lower()
    suffix = {".mhd": ".mha", ".nhdr": ".nrrd"}.get(suffix, suffix)
    if dims == 2:
        return ".png"
    return suffix if suffix in WRITTEN and not is_raster(path) else ".nii.gz"


def read_volume(path: Path, *, pixel_mm: float | None = None, as_labels: bool = False) -> Volume:
    """Read an image file of any format as a volume, without reorienting it.

    Args:
        path: The file, or a folder with a DICOM series.
        pixel_mm: The pixel size in millimetres of an image that states none: a PNG, JPEG, BMP or
            TIFF, and some DICOM radiographs. None means 1 mm.
        as_labels: True reads a mask. This matters only for pictures, see `raster.read_raster`.

    Returns:
        A volume `[C, *spatial]` with an affine to RAS millimetres. C is 3 for a PNG, JPEG, BMP or
        TIFF in colour, otherwise 1. Pictures have two spatial axes. The axes are those of the file,
        the slowest first. The dtype is that of the file, or float32 for DICOM and for a NIfTI file
        whose header scales.

    Raises:
        ReadError: If the file is missing, damaged or of an unknown format.
        GeometryError: If DICOM slices do not form an even stack.
    """
    form = _find_format(path)
    return _call_reader(form, path, form.read, pixel_mm, as_labels)


def read_geometry(path: Path, *, pixel_mm: float | None = None) -> Geometry:
    """Read the grid of an image file of any format from its header.

    The pixels of pictures are decoded as well, see `raster.read_raster_geometry`. For `pixel_mm`
    and errors, see `read_volume`.
    """
    form = _find_format(path)
    return _call_reader(form, path, form.read_grid, pixel_mm)


def count_axes(images: Iterable[Path], default: int) -> int:
    """Return the number of spatial axes of the first image that can be read.

    Return `default` if no image can be read.
    """
    for image in images:
        with suppress(LesionsegError, OSError):  # reading the case reports the error
            return read_geometry(image).dims
    return default


def write_volume(path: Path, volume: Volume, like: Path | None = None) -> None:
    """Write a volume of one channel atomically (see `atomic_path`).

    The file has the dtype of the array, with these exceptions, because some format cannot store the
    type: bool becomes uint8, float16 becomes float32, and 64-bit integers become int32. Pictures do
    not store the pixel size.

    Args:
        path: The file. Its suffix decides the format.
        volume: The volume `[1, *spatial]`.
        like: A NIfTI file on the same grid, whose header is copied, see `write_nifti`. Other
            formats do not use it.

    Raises:
        OutputError: If there are several channels, the suffix is unknown, the format cannot store
            the numbers, or the file cannot be written.
    """
    suffix = format_suffix(path).lower()
    write = next((form.write for form in FORMATS if suffix in form.written), None)
    if write is None:
        raise OutputError(f"{path}: cannot be written. The suffix must be {' '.join(WRITTEN)}.")
    if len(volume.array) != 1:
        raise OutputError(f"{path}: a file contains one channel, not {len(volume.array)}.")
    array = volume.array[0]
    stored = array.astype(_STORED.get(array.dtype.name, array.dtype), copy=False)
    if stored.dtype != array.dtype and array.dtype.kind in "iu" and (stored != array).any():
        extremes = f"{array.min()} to {array.max()}"
        raise OutputError(f"{path}: integers from {extremes} do not fit 32 bits.")
    with atomic_path(path) as temporary:
        try:
            write(temporary, stored, volume.geometry, like)
        except OSError:  # `atomic_path` turns it into an `OutputError`
            raise
        except Exception as error:  # the library of the format rejects the numbers
            raise OutputError(f"{path}: cannot be written ({error}).") from error


def _call_reader(form: Format, path: Path, read: Callable[..., T], *args: object) -> T:
    """Call `read(path, *args)`, a function of a format, and convert its errors.

    A format with `in_worker` is read in the worker process (`io.worker`), because its native
    library may crash.
    """
    if form.in_worker:
        return run_in_worker(_read_converted, path, read, *args)
    return _read_converted(path, read, *args)


def _read_converted(path: Path, read: Callable[..., T], *args: object) -> T:
    """Call `read(path, *args)` and convert its errors by `convert_read_errors`.

    This is a function of the module, so that the worker process can import it and convert errors
    before they are sent back.
    """
    with convert_read_errors(path):
        return read(path, *args)


def _find_format(path: Path) -> Format:
    """Return the format in which a path is read: DICOM (see `is_dicom_image`), or by the suffix.

    Raise `ReadError` if the file is missing or empty, or its format is unknown.
    """
    with convert_read_errors(path):
        if not path.is_dir() and split_series(path) is None:
            if not path.is_file():  # missing, or a pipe
                raise ReadError(explain_missing(path))
            if path.stat().st_size == 0:
                raise ReadError(f"{path}: the file is empty. Copy it again from its source.")
        if is_dicom_image(path):
            return DICOM
    suffix = format_suffix(path).lower()
    for form in FORMATS:
        if suffix in form.suffixes:
            return form
    advice = f" {PAIR_ADVICE}." if suffix in (".hdr", ".img") else ""
    raise ReadError(f"{path}: unknown format {suffix!r}, expected {', '.join(SUFFIXES)}.{advice}")
