"""TIFF files: one page is a picture, several grey pages are a volume, as in nnU-Net's `Tiff3DIO`.

A JSON file in the same folder states the spacing of a volume in millimetres,
`{"spacing": [z, y, x]}`. For the image `case_0000.tif` and the mask `case.tif` this file is
`case.json`.
"""

import logging
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ReadError
from lesionseg.io.files import is_file_or_broken_link
from lesionseg.io.limits import check_grid
from lesionseg.io.picture import Picture, picture_grid
from lesionseg.io.text import read_json

logger = logging.getLogger(__name__)

SUFFIXES = (".tif", ".tiff")
_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
_CHANNEL = re.compile(r"_\d{4}$")
ORIENTATION = 274  # tag of TIFF and Exif
_EXTRA_SAMPLES = 338
_ALPHA = (1, 2)  # values of this tag: opacity, with colours multiplied by it or not
# bits of NewSubfileType: the page is a thumbnail, or a mask of opacity
_REDUCED = 1
_TRANSPARENCY_MASK = 4
# parts of tifffile's warnings about values that it replaces or cannot read
_VALUES = re.compile(r"(?:TiffTag|read_tags|read_bytes|could not read|read_segments)(?!.*ASCII)")
_JPEG = (6, 7, 33007, 34892)  # compressions that lose exact values
_FAX = (2, 3, 4)  # compressions of one bit per pixel
_GREY = ("MINISBLACK", "MINISWHITE")
_SLICES = ("ZYX", "IYX", "QYX")  # axes of a volume; the first one is stated, pages, or not stated


def is_tiff(path: Path) -> bool:
    """Return True if the content of a file is a TIFF."""
    with path.open("rb") as stream:
        return stream.read(4) in _STARTS


def read_tiff(path: Path, pixel_mm: float | None, *, as_labels: bool) -> Volume:
    """Read a picture `[1 or 3, y, x]` or, of several grey pages, a volume `[1, z, y, x]`.

    Sizes are checked before decoding. `pixel_mm` is the pixel size of a picture, see `read_raster`.
    The spacing of a volume is in a JSON file; without one it is 1 mm, with a warning. Other files
    that OME-TIFF names are not read.

    Raises:
        ReadError: If the file is damaged, the pages form more than one volume, or some of several
            pages differ in size or are in colour, a page is missing, the kind of samples is not
            supported, or the stated spacing is not valid. With `as_labels`, also if JPEG has
            changed the values, or if the labels are ambiguous.
    """
    import tifffile

    with _raise_if_damaged(path), tifffile.TiffFile(path, _multifile=False) as tiff:
        pages = _list_full_pages(path, tiff)
        n_planes = _count_planes(tiff, pages)
        if n_planes > 1 and len(tiff.series) > 1:
            shapes = [series.shape for series in tiff.series]
            raise ReadError(
                f"{path}: the pages do not form one volume, but stacks of the shapes "
                f"{' and '.join(map(str, shapes))}. Save only the slices, in one size and data "
                "type, or convert them to NIfTI or NRRD."
            )
        if n_planes > 1:
            return _read_stack(path, tiff, as_labels=as_labels)
        page = pages[0]
        picture_grid(path, (page.imagelength, page.imagewidth), pixel_mm)
        _check_pages(path, tiff, [page], as_labels=as_labels)
        picture = _read_picture(path, page, as_labels=as_labels)
    return picture.to_volume(path, pixel_mm, as_labels=as_labels)


def is_stack(path: Path) -> bool:
    """Return True for a TIFF file of several pages that form a volume, by suffix and content.

    Return False for a file that cannot be read.
    """
    if path.suffix.lower() not in SUFFIXES:
        return False
    import tifffile

    try:
        with tifffile.TiffFile(path, _multifile=False) as tiff:
            return _count_planes(tiff, _list_full_pages(path, tiff)) > 1 and len(tiff.series) == 1
    except Exception:  # damaged bytes can make tifffile raise any error
        return False


def find_spacing_file(path: Path) -> Path | None:
    """Return the JSON file that states the spacing of a TIFF file, or a broken link to it.

    Return None if there is none, and for a file with another suffix.
    """
    if path.suffix.lower() not in SUFFIXES:
        return None
    return next(filter(is_file_or_broken_link, _spacing_names(path)), None)


@contextmanager
def _raise_if_damaged(path: Path) -> Iterator[None]:
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


def _list_full_pages(path: Path, tiff: Any) -> list[Any]:
    """Return the pages of a TIFF file without thumbnails and masks of opacity, if others exist.

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
    return pages or [*tiff.pages]


def _count_planes(tiff: Any, pages: Sequence[Any]) -> int:
    """Count the planes of a file. There is at least one.

    ImageJ and tifffile write a large stack as one page and state the number of slices in metadata.

    Args:
        tiff: The file.
        pages: Its pages, see `_list_full_pages`.
    """
    if len(pages) > 1:
        return len(pages)
    given = int((tiff.imagej_metadata or {}).get("images", 1))
    in_series = [series.size // max(math.prod(pages[0].shape), 1) for series in tiff.series[:1]]
    return int(max(1, given, *in_series))


def _check_pages(path: Path, tiff: Any, pages: Sequence[Any], *, as_labels: bool) -> None:
    """Raise `ReadError` for damaged pages, pixels that are not numbers, and lossy masks.

    A strip or tile with the offset or length 0 is damage, because tifffile reads it as zeros. With
    the codec of a picture, fewer than 8 bits are damage too, because codecs ignore the stated bits.
    A mask (`as_labels`) must not be JPEG. All pages have the format of the first one, whose tags
    are checked.
    """
    import tifffile

    first = pages[0]
    is_image = first.compression in tifffile.TIFF.IMAGE_COMPRESSIONS
    is_damaged = "PhotometricInterpretation" not in first.tags
    is_damaged |= first.compression in _FAX and first.bitspersample != 1
    is_damaged |= is_image and first.bitspersample < 8
    for page in pages:
        is_damaged |= min((*page.dataoffsets, *page.databytecounts), default=0) <= 0
        is_damaged |= len(page.dataoffsets) < math.prod(page.chunked)
        if not is_image and first.compression not in _FAX:
            is_damaged = is_damaged or not _has_exact_strips(tiff, page)
    if is_damaged:
        raise ReadError(
            f"{path}: the file is damaged: a tag or a part of the pixels is missing. Copy it again "
            "from its source."
        )
    if first.dtype is None or first.dtype.kind not in "biuf":
        raise ReadError(
            f"{path}: the pixels are not plain numbers ({first.dtype}). Save them as integers or "
            "floating-point numbers."
        )
    if as_labels and first.compression in _JPEG:
        raise ReadError(
            f"{path}: a mask in JPEG has lost its exact values. Save it without JPEG, from the "
            "program that drew it."
        )


def _has_exact_strips(tiff: Any, page: Any) -> bool:
    """Return True if each strip or tile contains exactly the bytes of its rows.

    tifffile ignores further bytes, which show that a tag is wrong or missing.
    """
    import tifffile
    from imagecodecs import bitorder_decode

    first = page.keyframe  # the page that states how all pages are stored
    decompress = tifffile.TIFF.DECOMPRESSORS[first.compression]
    for content, index in tiff.filehandle.read_segments(page.dataoffsets, page.databytecounts):
        depth, rows, width, samples = first.decode(None, index)[2]
        n_bytes = depth * rows * math.ceil(width * samples * first.bitspersample / 8)
        ordered = bitorder_decode(content) if first.fillorder == 2 else content
        if memoryview(decompress(ordered, out=n_bytes + 1)).nbytes != n_bytes:
            return False
    return True


def _read_picture(path: Path, page: Any, *, as_labels: bool) -> Picture:
    """Read the samples of a page. Raise `ReadError` if it is of a kind that is not supported."""
    samples = np.asarray(page.asarray())
    if page.axes == "SYX":  # each sample as a separate plane
        samples = np.moveaxis(samples, 0, -1)
    if samples.ndim not in (2, 3) or page.imagedepth > 1:
        raise ReadError(
            f"{path}: the file has more than one plane ({page.axes}). Save it as NIfTI or NRRD."
        )
    samples = samples[..., np.newaxis] if samples.ndim == 2 else samples
    n_colours = _count_colours(path, page)
    meanings = np.ravel(page.tags.valueof(_EXTRA_SAMPLES, ())).tolist()
    has_alpha = bool(meanings) and meanings[-1] in _ALPHA
    n_further = samples.shape[-1] - n_colours
    # a single further value may be a second grey channel or, in a mask, further labels
    if n_further > 1 or (n_further == 1 and not has_alpha and (n_colours == 1 or as_labels)):
        raise ReadError(
            f"{path}: {samples.shape[-1]} values per pixel, expected 1 (grey) or 3 (colour). "
            "Save each channel as a separate file (<case>_0000, …), and a mask with one "
            "value per pixel."
        )
    palette = None
    if _photometric_kind(page) == "PALETTE":
        colours = np.asarray(page.colormap).T
        # some programs write 8 bits instead of 16
        palette = (colours >> 8 if colours.max(initial=0) > 255 else colours).astype(np.uint8)
    return Picture(
        _normalise_grey(path, page, samples[..., :n_colours], as_labels=as_labels),
        palette,
        samples[..., -1] if has_alpha else None,
        int(page.tags.valueof(ORIENTATION, 1)),
    )


def _photometric_kind(page: Any) -> str:
    """Return the name of a page's photometric interpretation, such as MINISBLACK."""
    import tifffile

    return str(tifffile.PHOTOMETRIC(page.photometric).name)


def _count_colours(path: Path, page: Any) -> int:
    """Return the number of samples per pixel that are colours: 1 (grey or an index) or 3.

    Further samples, such as opacity, do not count. Three samples of a grey page count as colours,
    because microscopes write three channels in this way.

    Raise `ReadError` for other photometric interpretations, such as CMYK.
    """
    kind = _photometric_kind(page)
    if kind == "MINISBLACK":  # microscopes write three grey channels in one page
        return 3 if page.samplesperpixel == 3 else 1
    if kind in ("MINISWHITE", "PALETTE"):
        return 1
    if kind == "RGB" or (kind == "YCBCR" and page.compression in _JPEG):
        return 3  # the JPEG decoder converts YCBCR to RGB
    raise ReadError(f"{path}: pixels of the kind {kind} are not read. Save the picture as PNG.")


def _normalise_grey(
    path: Path, page: Any, samples: NDArray[Any], *, as_labels: bool
) -> NDArray[Any]:
    """Return grey values with 0 as black, from 0 to 255 if an image has less than 8 bits.

    Booleans become uint8. The values of colours, of palettes and of a mask (`as_labels`) are not
    scaled. tifffile, and scikit-image through it, store a boolean mask as it is and state that 0 is
    white, so that 1 remains the lesion.

    Raise `ReadError` if 0 is white and the values are not unsigned integers, or are a mask of one
    bit from another program, whose lesions may be 0 or 1.
    """
    kind = _photometric_kind(page)
    bits = int(page.bitspersample)
    samples = samples.astype(np.uint8) if samples.dtype.kind == "b" else samples
    is_bilevel_mask = as_labels and bits == 1
    if kind == "MINISWHITE" and not (is_bilevel_mask and "tifffile" in page.software):
        if samples.dtype.kind != "u" or is_bilevel_mask:
            raise ReadError(
                f"{path}: white is stored as 0. Save it with black as 0, for example as PNG."
            )
        samples = ((2**bits - 1) - samples).astype(samples.dtype)
    if bits < 8 and not as_labels and kind in _GREY:
        samples = np.rint(samples * (255 / (2**bits - 1))).astype(np.uint8)
    return samples


def _read_stack(path: Path, tiff: Any, *, as_labels: bool) -> Volume:
    """Read the pages of a file as a volume `[1, z, y, x]`.

    Raise `ReadError` if a page is missing or damaged, the pages are not grey, they are channels or
    times by the metadata of the file, they differ in size, or the spacing or the grid is not valid.
    """
    series = tiff.series[0]
    if any(page is None for page in series.pages):
        raise ReadError(
            f"{path}: the header states pages that the file does not have. Copy it again from "
            "its source, or save all pages in one file."
        )
    _check_pages(path, tiff, series.pages, as_labels=as_labels)
    first = series.pages[0]
    if _photometric_kind(first) not in _GREY or series.axes not in _SLICES:
        raise ReadError(
            f"{path}: the pages have the shape {series.shape} and the axes {series.axes}, expected "
            "grey slices of one size (ZYX). Save one volume per file, and each channel (C) and "
            "time (T) as a separate file."
        )
    geometry = Geometry.from_spacing(tuple(map(int, series.shape)), _read_spacing(path))
    check_grid(path, geometry)
    array = _normalise_grey(path, first, np.asarray(series.asarray()), as_labels=as_labels)
    return Volume(array.astype(array.dtype.newbyteorder("="), copy=False)[np.newaxis], geometry)


def _spacing_names(path: Path) -> list[Path]:
    """Return the paths that the JSON file of a TIFF file may have, first the usual one."""
    stem = path.name[: -len(path.suffix)]
    return [path.with_name(f"{name}.json") for name in (_CHANNEL.sub("", stem), stem)]


def _read_spacing(path: Path) -> tuple[float, ...]:
    """Read the spacing (z, y, x) in mm from the JSON file that belongs to a TIFF file.

    Return 1 mm along every axis, with a warning, if that file does not exist. Raise `ReadError` if
    it does not state three positive numbers.
    """
    file = find_spacing_file(path)
    if file is None:
        text = "%s: no file %s states the spacing, so it is 1 mm along every axis."
        logger.warning(text, path, _spacing_names(path)[0].name)
        return (1.0, 1.0, 1.0)
    content = read_json(file)
    spacing = content.get("spacing") if isinstance(content, dict) else None
    with suppress(ValueError, TypeError):
        numbers = np.array(spacing, float)
        if numbers.shape == (3,) and np.isfinite(numbers).all() and numbers.min() > 0:
            return tuple(numbers.tolist())
    raise ReadError(
        f"{file}: the file does not state a valid spacing ({spacing}). Write "
        '{"spacing": [z, y, x]} in mm.'
    )
