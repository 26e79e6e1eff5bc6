"""DICOM images: a folder with one series, an enhanced file, a single slice or a radiograph.

Of several series in one folder, `folder/series=3` names that of number 3, or of that UID. No such
file exists: it is how a manifest, and prediction on a whole study, point into the folder.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
from lesionseg.io.dicom.slices import read_slices, read_values
from lesionseg.io.dicom.stack import Stack, Tilt, settle_tilt, settled_geometry, stack_slices
from lesionseg.io.formats.guard import check_grid

if TYPE_CHECKING:
    from pydicom.dataset import Dataset as Header

logger = logging.getLogger(__name__)

_PREFIX = "series="


def split_series(path: Path) -> tuple[Path, str] | None:
    """Folder, and number or UID, of a path that names a series within it; None for any other."""
    if path.name.startswith(_PREFIX) and path.parent.is_dir():
        return path.parent, path.name.removeprefix(_PREFIX)
    return None


def folder_name(folder: Path) -> str:
    """What a folder is called, also where the path to it is `.` or ends in `..`."""
    return folder.resolve().name if folder.name in ("", "..") else folder.name


def series_headers(path: Path) -> dict[Path, "Header"]:
    """Headers of the images of a folder, or of one series in it. Raises `ReadError` for none."""
    series = split_series(path)
    if series is None:
        return image_headers(path)
    folder, name = series
    everything = image_headers(folder)
    headers = {f: h for f, h in everything.items() if name in (_number(h), _uid(h))}
    if not headers:
        raise ReadError(
            "The folder holds no such series.",
            where=path,
            expected=sorted({_PREFIX + _number(h) for h in everything.values()}),
        )
    return headers


def group_files(files: Sequence[Path]) -> dict[Path, str]:
    """The images that DICOM files of one folder are, and what to call each.

    A radiograph is a file, called by its name; so is a single other image. A series is its folder,
    called by it, or where there are several `folder/series=<number>`, called `<folder>_<number>`.
    Localisers, secondary captures and the like are left out, and named in the log. A file that is
    damaged counts as an image, so that reading it says so; beside series, reading those does.
    """
    images, damaged = _images(files)
    names = {file: _stem(file) for file, header in images.items() if is_xray(header)}
    by_series: dict[str, dict[Path, Header]] = {}
    for file, header in images.items():
        if file not in names:
            by_series.setdefault(_uid(header), {})[file] = header
    fit = [series for series in by_series.values() if not _is_left_out(series)]
    if not fit:
        names |= {file: _stem(file) for file in damaged}
    if len(fit) == 1 == len(by_series) and len(fit[0]) == 1:
        return {**names, **{file: _stem(file) for file in fit[0]}}
    if len(fit) == len(by_series) == 1:
        folder = next(iter(fit[0])).parent
        return {**names, folder: folder_name(folder)}
    return {**names, **_named(fit)}


def _images(files: Sequence[Path]) -> tuple[dict[Path, "Header"], list[Path]]:
    """Headers of the images among the files, and the files that are damaged."""
    images: dict[Path, Header] = {}
    damaged = []
    for file in files:
        try:
            header = image_header(file)
        except ReadError as error:
            if isinstance(error.__cause__, ImportError):
                raise
            damaged.append(file)
            continue
        if header is None:
            logger.info("%s is left out: it is not a DICOM image.", file)
        else:
            images[file] = header
    return images, damaged


def _named(fit: Sequence[Mapping[Path, "Header"]]) -> dict[Path, str]:
    """Paths and names of series that share their folder, perhaps with what was left out."""
    numbers = [_number(next(iter(series.values()))) for series in fit]
    names = {}
    for number, series in zip(numbers, fit, strict=True):
        file, header = next(iter(series.items()))
        unique = bool(number) and numbers.count(number) == 1
        key = number if unique else _uid(header)
        folder = folder_name(file.parent)
        called = folder if len(fit) == 1 else f"{folder}_{key}"
        names[file.parent / f"{_PREFIX}{key}"] = called
    return names


def _is_left_out(series: Mapping[Path, "Header"]) -> bool:
    """Whether all files of a series are of a kind that is never read; says so."""
    reason = ""
    for file, header in series.items():
        try:
            refuse_unfit(file, header)
        except ReadError as error:
            reason = error.what
        else:
            return False
    logger.warning("%s: left out (%d files). %s", next(iter(series)), len(series), reason)
    return True


def _stem(file: Path) -> str:
    return file.stem if file.suffix.lower() in (".dcm", ".dicom", ".ima") else file.name


def _number(header: "Header") -> str:
    return str(header.get("SeriesNumber", None) or "")


def _uid(header: "Header") -> str:
    return str(header.get("SeriesInstanceUID", ""))


def read_dicom(path: Path, *, tilt: Tilt = "refuse") -> Volume:
    """Read a series' folder or one file as a volume `[1, *spatial]` float32.

    Slices are sorted by their position along the normal and rescaled each by its own slope;
    distances come from positions, never from the thickness. Radiographs (CR, DX, MG) have two
    axes: see `radiographs`. Raises `ReadError` and `GeometryError` naming the file at fault.
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
