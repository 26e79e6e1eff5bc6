"""Volumes as TIFF files of several grey pages, as nnU-Net's `Tiff3DIO` reads them.

A JSON file in the same folder states the spacing in millimetres, `{"spacing": [z, y, x]}`. For the
image `case_0000.tif` and the mask `case.tif` this file is `case.json`.
"""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import numpy as np

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ReadError
from lesionseg.io.files import is_file_or_broken_link
from lesionseg.io.limits import check_grid, check_size

logger = logging.getLogger(__name__)

SUFFIXES = (".tif", ".tiff")
_CHANNEL = re.compile(r"_\d{4}$")
# bits of NewSubfileType: the page is a thumbnail, or a mask of opacity
_REDUCED = 1
_TRANSPARENCY_MASK = 4
_MAX_JSON_BYTES = 2**16
# parts of tifffile's warnings about values that it replaces or cannot read
_VALUES = re.compile(r"(?:TiffTag|read_tags|read_bytes|could not read|read_segments)(?!.*ASCII)")
JPEG = (6, 7, 33007, 34892)  # TIFF compressions that lose exact values
# TIFF compressions whose ratio has a known bound: none, deflate (two codes) and PackBits
BOUNDED = (1, 8, 32946, 32773)


def read_stack(path: Path, *, as_labels: bool = False) -> Volume | None:
    """Read a volume `[1, z, y, x]`. Return None for a file that is not a TIFF of several pages.

    Without a JSON file the spacing is 1 mm, with a warning. Other files that OME-TIFF names are not
    read.

    Raises:
        ReadError: The pages differ in size or are in colour, a page is missing, or the stated
            spacing is not valid. With `as_labels`, also if JPEG has changed the values.
    """
    if path.suffix.lower() not in SUFFIXES:
        return None
    import tifffile

    try:
        tiff = tifffile.TiffFile(path, _multifile=False)  # an OME-TIFF may name any other file
    except tifffile.TiffFileError:
        return None  # a picture of another format with a wrong suffix
    with tiff:
        series = _find_stack(path, tiff)
        if series is None:
            return None
        if any(page is None for page in series.pages):
            raise ReadError(
                f"{path}: the header states pages that the file does not have. Copy it again from "
                "its source, or save all pages in one file."
            )
        kind = tifffile.PHOTOMETRIC
        first: Any = series.pages[0]
        check_pages(path, series.pages)
        if first.photometric not in (kind.MINISBLACK, kind.MINISWHITE) or len(series.shape) != 3:
            raise ReadError(
                f"{path}: the pages have the shape {series.shape} ({series.axes}), expected grey "
                "slices of one size. Save one volume per file, and each channel as a separate file."
            )
        shape = tuple(int(n) for n in series.shape)
        geometry = check_grid(path, Geometry.from_spacing(shape, _read_spacing(path)))
        n_bytes = int(np.prod(shape, dtype=np.int64)) * series.dtype.itemsize
        if first.compression in BOUNDED:
            check_size(path, n_bytes, compressed=first.compression != 1)
        if as_labels and first.compression in JPEG:
            raise ReadError(
                f"{path}: a mask in JPEG has lost its exact values. Save it without JPEG, from the "
                "program that drew it."
            )
        array = np.asarray(series.asarray())
    if array.dtype.kind not in "biuf":
        raise ReadError(
            f"{path}: the voxels are not plain numbers ({array.dtype}). Save them as integers or "
            "floating-point numbers."
        )
    if first.photometric == kind.MINISWHITE:
        raise ReadError(f"{path}: white is stored as 0. Save the slices with black as 0.")
    array = array.astype(np.uint8) if array.dtype.kind == "b" else array
    return Volume(array.astype(array.dtype.newbyteorder("="), copy=False)[np.newaxis], geometry)


@contextmanager
def raise_if_damaged(path: Path) -> Iterator[None]:
    """Raise `ReadError` at the end if tifffile has logged an error, or a warning about values.

    tifffile then continues with the pages before the damage, or with default values of tags.
    """
    collector = BufferingHandler(10**6)
    theirs = logging.getLogger("tifffile")
    theirs.addHandler(collector)
    try:
        yield
    finally:
        theirs.removeHandler(collector)
    for record in collector.buffer:
        text = record.getMessage()
        if record.levelno >= logging.ERROR or _VALUES.search(text):
            raise ReadError(
                f"{path}: the file is damaged or cut short ({text[:200]}). Copy it again from its "
                "source."
            )


def list_full_pages(path: Path, tiff: Any) -> list[Any]:
    """Return the pages of a TIFF file without thumbnails and masks of opacity.

    Raise `ReadError` if the chain of pages is a loop, which tifffile would follow without end.
    """
    pages: list[Any] = []
    offsets: set[int] = set()
    for page in tiff.pages:
        if page.offset and page.offset in offsets:
            raise ReadError(f"{path}: the pages form a loop. Copy the file from its source.")
        offsets.add(page.offset)
        if not int(page.subfiletype) & (_REDUCED | _TRANSPARENCY_MASK):
            pages.append(page)
    return pages


def check_pages(path: Path, pages: Sequence[Any]) -> None:
    """Raise `ReadError` if pixels or tags that say how they are stored are missing.

    tifffile returns zeros for a strip or tile without a place or without bytes. The default of a
    missing tag, 1 bit per sample or no compression, is legal for an uncompressed page only.
    """
    tags = pages[0].tags
    is_damaged = "Compression" not in tags
    is_damaged |= "BitsPerSample" not in tags and pages[0].compression != 1
    is_damaged |= any(min((*p.dataoffsets, *p.databytecounts), default=0) <= 0 for p in pages)
    if is_damaged:
        raise ReadError(
            f"{path}: the file is damaged: a tag or a part of the pixels is missing. Copy it again "
            "from its source."
        )


def is_stack(path: Path) -> bool:
    """Return True for a TIFF file of several pages that form a volume."""
    if path.suffix.lower() not in SUFFIXES:
        return False
    import tifffile

    try:
        with tifffile.TiffFile(path, _multifile=False) as tiff:
            return _find_stack(path, tiff) is not None
    except (OSError, ReadError, tifffile.TiffFileError):
        return False


def find_spacing_file(path: Path) -> Path | None:
    """Return the JSON file that states the spacing of a TIFF file. Return None if there is none."""
    if path.suffix.lower() not in SUFFIXES:
        return None
    return next((file for file in _spacing_names(path) if is_file_or_broken_link(file)), None)


def _spacing_names(path: Path) -> list[Path]:
    """Return the paths that the JSON file of a TIFF file may have, first the usual one."""
    stem = path.name[: -len(path.suffix)]
    return [path.with_name(f"{name}.json") for name in (_CHANNEL.sub("", stem), stem)]


def _find_stack(path: Path, tiff: Any) -> Any | None:
    """Return tifffile's series of the pages if they form a stack.

    Return None for a single picture, and for pages that belong to several series.
    """
    full = list_full_pages(path, tiff)
    if len(tiff.series) != 1:
        return None
    series = tiff.series[0]
    n_planes = len(full)
    if n_planes == 1:  # ImageJ and tifffile write a large stack as one page
        n_planes = series.size // max(int(np.prod(full[0].shape)), 1)
    return series if n_planes > 1 else None


def _read_spacing(path: Path) -> tuple[float, ...]:
    """Read the spacing in millimetres from the JSON file that belongs to a TIFF file.

    Return 1 mm along every axis, with a warning, if that file does not exist.
    """
    file = find_spacing_file(path)
    if file is None:
        text = "%s: no file %s states the spacing, so it is 1 mm along every axis."
        logger.warning(text, path, _spacing_names(path)[0].name)
        return (1.0, 1.0, 1.0)
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError("it is too long")
        spacing = json.loads(file.read_text(encoding="utf-8-sig"))["spacing"]
        numbers = tuple(float(mm) for mm in spacing)
        if len(numbers) != 3 or not all(np.isfinite(numbers)) or min(numbers) <= 0:
            raise ValueError(f"spacing is {spacing}")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ReadError(
            f"{file}: the file does not state a valid spacing ({error}). Write "
            '{"spacing": [z, y, x]} in mm.'
        ) from error
    return numbers
