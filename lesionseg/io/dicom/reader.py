"""DICOM images: a folder with one series, an enhanced file, a single slice or a radiograph."""

from collections.abc import Iterable
from pathlib import Path

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ReadError
from lesionseg.io.dicom.headers import (
    image_header,
    image_headers,
    is_dicom,
    is_image,
    is_xray,
    read_header,
    refuse_unfit,
)
from lesionseg.io.dicom.radiographs import read_radiograph, read_radiograph_geometry
from lesionseg.io.dicom.series import series_headers
from lesionseg.io.dicom.slices import read_slices, read_values
from lesionseg.io.dicom.stack import Stack, Tilt, settle_tilt, settled_geometry, stack_slices
from lesionseg.io.formats.guard import check_grid


def read_dicom(path: Path, *, tilt: Tilt = "refuse") -> Volume:
    """Read a series' folder or one file as a volume `[1, *spatial]` float32.

    Slices are sorted by their position along the normal and rescaled each by its own slope;
    distances come from positions, never from the thickness. Radiographs (CR, DX, MG) have two
    axes: see `dicom_xray`. Raises `ReadError` and `GeometryError` naming the file at fault.
    """
    radiograph = radiograph_file(path)
    if radiograph is not None:
        return read_radiograph(radiograph)
    stack = _stack(path)
    check_grid(path, settled_geometry(stack, tilt, path))
    return settle_tilt(stack, read_values(list(stack.slices)), tilt, path)


def read_dicom_geometry(path: Path, *, tilt: Tilt = "refuse") -> Geometry:
    """Read the geometry from the headers alone."""
    radiograph = radiograph_file(path)
    if radiograph is not None:
        return read_radiograph_geometry(radiograph)
    return check_grid(path, settled_geometry(_stack(path), tilt, path))


def radiograph_file(path: Path) -> Path | None:
    """The file when `path` is one radiograph or a folder with just that; None for all else.

    Raises `ReadError` for a folder of several.
    """
    if path.is_file():
        return path if is_dicom(path) and is_xray(read_header(path)) else None
    if not path.is_dir() or not starts_with_radiograph(sorted(path.iterdir())):
        return None
    headers = image_headers(path)
    if len(headers) == 1:
        (file, header), *_ = headers.items()
        return file if is_xray(header) else None
    if headers and all(is_xray(header) for header in headers.values()):
        raise ReadError(
            "The folder holds several radiographs: each is an image of its own.",
            where=path,
            seen=", ".join(file.name for file in list(headers)[:4]),
            remedy="Name the file, not the folder.",
        )
    return None


def starts_with_radiograph(files: Iterable[Path]) -> bool:
    """Whether the first image among the files is one; none behind it is opened."""
    for file in files:
        if is_dicom(file):
            header = image_header(file)
            if header is not None:
                return is_xray(header)
    return False


def _stack(path: Path) -> Stack:
    headers = {path: read_header(path)} if path.is_file() else series_headers(path)
    if not headers:
        raise ReadError(
            "A folder stands where an image file was expected.",
            where=path,
            expected="an image file, or a folder with the files of one DICOM series",
        )
    for file, header in headers.items():
        if not is_image(header):
            raise ReadError(
                "The DICOM file holds no image.", where=file, seen=header.get("Modality")
            )
        refuse_unfit(file, header)
    slices = [piece for file, header in headers.items() for piece in read_slices(file, header)]
    return stack_slices(slices, path)
