"""TIFF files: picture or volume by pages, spacing in a JSON file, damaged pages, grey values.

Several grey pages are a volume, as in nnU-Net's `Tiff3DIO`.

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
# parts of tifffile's warnings about values that it replaces or cannot read, except for texts
_VALUES = re.compile(r"(?:TiffTag|read_tags|read_bytes|could not read|read_segments)(?!.*ASCII)")
_JPEG = (6, 7, 33007, 34892)  # compressions that lose exact values
_FAX = (2, 3, 4)  # compressions of one bit per pixel
_GREY = ("MINISBLACK", "MINISWHITE")
# tifffile's names of the axes of a volume: Z (depth), I (a sequence of pages) or Q (unknown) first
_SLICES = ("ZYX", "IYX", "QYX")


def is_tiff(path: Path) -> bool:
    """Return True if the first four bytes of a file are those of TIFF or BigTIFF."""
    with path.open("rb") as stream:
        return stream.read(4) in _STARTS


def read_tiff(path: Path, pixel_mm: float | None, *, as_labels: bool) -> Volume:
    """Read a TIFF file of one page as a picture, or of several grey pages as a volume.

    Sizes are checked before the pixels are decoded. OME-TIFF may name further files of a volume,
    which are not read.

    Args:
        path: The file.
        pixel_mm: The pixel size of a picture in millimetres, see `read_raster`. It is not used for
            a volume, whose spacing is in a JSON file (1 mm without such a file, with a warning).
        as_labels: True reads a mask.

    Returns:
        A picture `[1 or 3, y, x]` or a volume `[1, z, y, x]`.

    Raises:
        ReadError: If the file is damaged, the pages do not form one volume of grey slices of equal
            size, a page is missing, the samples are of an unsupported kind, or the spacing is not
            valid. Also for a mask in JPEG, or whose labels are ambiguous.
    """
    import tifffile

    # `_multifile=False`: no further files of OME-TIFF; a series is a group of pages of one shape
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
    """Return True for a TIFF file whose pages form a volume, which is then a scan for a 3-D model.

    Return False for a file with another suffix, and for a file that cannot be read.
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
    """Return the JSON file in the same folder that states the spacing of a TIFF file.

    A broken link is returned as well, so that reading it reports the error. Return None if there is
    no such JSON file, or if `path` is not a TIFF file by its suffix.
    """
    if path.suffix.lower() not in SUFFIXES:
        return None
    return next(filter(is_file_or_broken_link, _spacing_names(path)), None)


@contextmanager
def _raise_if_damaged(path: Path) -> Iterator[None]:
    """Raise `ReadError` at the end of the context if tifffile has logged a sign of damage.

    For a damaged file, tifffile does not raise an error, but logs it, and continues with the pages
    before the damage or with default values of tags. Signs are errors, and warnings about values.
    """
    collector = BufferingHandler(capacity=10**6)  # more messages than a file causes
    tiff_logger = logging.getLogger("tifffile")
    tiff_logger.addHandler(collector)
    try:
        yield
    finally:
        tiff_logger.removeHandler(collector)
    for record in collector.buffer:
        text = record.getMessage()
        if record.levelno >= logging.ERROR or _VALUES.search(text):
            raise ReadError(
                f"{path}: the file is damaged or cut short ({text[:200]}). Copy it again from its "
                "source."
            )


def _list_full_pages(path: Path, tiff: Any) -> list[Any]:
    """Return the pages of a TIFF file that are slices, without thumbnails and masks of opacity.

    If the file contains nothing else, return all pages. Each page contains the offset of the next
    page. Raise `ReadError` if the pages form a loop, which tifffile would follow without end.
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
    """Count the slices of a TIFF file: 1 for a picture, more for a volume.

    The number of slices is the number of pages, with one exception. ImageJ and tifffile write a
    large volume as a single page, and its number of slices into the metadata of ImageJ or of
    tifffile.

    Args:
        tiff: The file, as tifffile opens it.
        pages: The pages that `_list_full_pages` returns.
    """
    if len(pages) > 1:
        return len(pages)
    n_images = int((tiff.imagej_metadata or {}).get("images", 1))
    # numbers of the first series of tifffile, divided by those of one page
    in_series = [series.size // max(math.prod(pages[0].shape), 1) for series in tiff.series[:1]]
    return int(max(1, n_images, *in_series))


def _check_pages(path: Path, tiff: Any, pages: Sequence[Any], *, as_labels: bool) -> None:
    """Raise `ReadError` for damaged pages, pixels that are not real numbers, and masks in JPEG.

    tifffile reads damaged pages without an error. These signs of damage are checked:

    - The tag of the colour kind (photometric interpretation) is missing.
    - The number of bits contradicts the compression: fax compression has 1 bit, and the codecs of
      pictures, such as JPEG, have at least 8 bits.
    - A strip or tile of pixels is missing, or has the offset or length 0.
    - An uncompressed or losslessly compressed strip does not have the bytes of its rows.

    Args:
        path: The file, for messages.
        tiff: The file, as tifffile opens it.
        pages: The pages. Only the tags of the first page are checked, because all pages have the
            same format.
        as_labels: True for a mask, which must not be in JPEG.
    """
    import tifffile

    first = pages[0]
    is_picture_codec = first.compression in tifffile.TIFF.IMAGE_COMPRESSIONS
    is_damaged = "PhotometricInterpretation" not in first.tags
    is_damaged |= first.compression in _FAX and first.bitspersample != 1
    is_damaged |= is_picture_codec and first.bitspersample < 8
    for page in pages:
        is_damaged |= min((*page.dataoffsets, *page.databytecounts), default=0) <= 0
        is_damaged |= len(page.dataoffsets) < math.prod(page.chunked)  # the strips or tiles needed
        if not is_picture_codec and first.compression not in _FAX:
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
    """Return True if each strip or tile of a page has exactly the bytes of its rows, decompressed.

    tifffile ignores further bytes, which are a sign that a tag is wrong or missing, such as the
    number of bits.
    """
    import tifffile
    from imagecodecs import bitorder_decode

    first = page.keyframe  # the page that states how all pages are stored
    decompress = tifffile.TIFF.DECOMPRESSORS[first.compression]
    for content, index in tiff.filehandle.read_segments(page.dataoffsets, page.databytecounts):
        # without content, `decode` returns data (None), index and shape of the segment
        depth, rows, width, samples = first.decode(None, index)[2]
        n_bytes = depth * rows * math.ceil(width * samples * first.bitspersample / 8)
        ordered = bitorder_decode(content) if first.fillorder == 2 else content
        # one more byte is allowed, to notice a content that is too long
        if memoryview(decompress(ordered, out=n_bytes + 1)).nbytes != n_bytes:
            return False
    return True


def _read_picture(path: Path, page: Any, *, as_labels: bool) -> Picture:
    """Read one page of a TIFF file as a picture, with its palette, opacity and orientation.

    Samples per pixel beyond the colours are treated as follows:

    - The last sample is the opacity if the file says so.
    - One sample of unknown meaning is ignored in a colour image.
    - Any other further sample is an error, because it may be another channel or label.

    Raise `ReadError` for such a sample, for more than one plane, and for an unsupported colour
    kind. `as_labels` is True for a mask.
    """
    # samples as `[y, x, n]`
    samples = np.asarray(page.asarray())
    if page.axes == "SYX":  # each sample as a separate plane
        samples = np.moveaxis(samples, 0, -1)
    if samples.ndim not in (2, 3) or page.imagedepth > 1:
        raise ReadError(
            f"{path}: the file has more than one plane ({page.axes}). Save it as NIfTI or NRRD."
        )
    samples = samples[..., np.newaxis] if samples.ndim == 2 else samples
    # samples after the colours: the last one may be opacity
    n_colours = _count_colours(path, page)
    meanings = np.ravel(page.tags.valueof(_EXTRA_SAMPLES, ())).tolist()
    has_alpha = bool(meanings) and meanings[-1] in _ALPHA
    n_further = samples.shape[-1] - n_colours
    # a single further sample may be a second grey channel or, in a mask, further labels; in a
    # colour image it is dropped by `:n_colours` below
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
        palette=palette,
        alpha=samples[..., -1] if has_alpha else None,
        # the picture is stored turned by this tag, and `Picture.to_volume` turns it upright
        turn=int(page.tags.valueof(ORIENTATION, 1)),  # 1 if the tag is missing: upright
    )


def _photometric_kind(page: Any) -> str:
    """Return the photometric interpretation of a page: what its samples mean.

    Examples are MINISBLACK (grey, 0 is black), MINISWHITE (0 is white), RGB and PALETTE.
    """
    import tifffile

    return str(tifffile.PHOTOMETRIC(page.photometric).name)


def _count_colours(path: Path, page: Any) -> int:
    """Return the number of samples per pixel that are colours: 3, or 1 for grey or palette indices.

    Further samples, such as opacity, are not counted. Three samples of a grey page count as
    colours, because microscopes write three channels in this way. Raise `ReadError` for other
    photometric interpretations, such as CMYK.
    """
    kind = _photometric_kind(page)
    if kind == "MINISBLACK":
        return 3 if page.samplesperpixel == 3 else 1
    if kind in ("MINISWHITE", "PALETTE"):
        return 1
    if kind == "RGB" or (kind == "YCBCR" and page.compression in _JPEG):
        return 3  # the JPEG decoder converts YCBCR to RGB
    raise ReadError(f"{path}: pixels of the kind {kind} are not read. Save the picture as PNG.")


def _normalise_grey(
    path: Path, page: Any, samples: NDArray[Any], *, as_labels: bool
) -> NDArray[Any]:
    """Convert the samples of a page to numbers with 0 as black, as viewers show them.

    - Booleans become uint8.
    - If 0 is white (MINISWHITE), unsigned integers are inverted.
    - Grey values of an image of less than 8 bits are scaled to 0 to 255. Colours, palette indices
      and the values of a mask are not scaled.

    A mask of one bit with 0 as white is ambiguous, because 0 or 1 may be the lesion. Only a mask
    written by tifffile (also through scikit-image) is not: tifffile stores boolean masks with 1 as
    lesion and nevertheless states that 0 is white. Such a mask is not inverted.

    Args:
        path: The file, for messages.
        page: The page, whose tags are used.
        samples: The samples of the page.
        as_labels: True for a mask.

    Raises:
        ReadError: If 0 is white, and the samples are not unsigned integers or are a mask of one bit
            from another program.
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
    """Read the pages of a TIFF file as the slices of a volume `[1, z, y, x]`.

    Raise `ReadError` if a page is missing or damaged, the pages are not grey or differ in size,
    they are channels or times by the metadata of the file, or the spacing or the grid is not valid.
    `as_labels` is True for a mask.
    """
    series = tiff.series[0]  # all pages of one shape
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
    """Return the two paths at which the JSON file with the spacing of a TIFF file may be.

    For `case_0000.tif` they are `case.json`, without the channel number as in nnU-Net, and then
    `case_0000.json`.
    """
    stem = path.name[: -len(path.suffix)]
    return [path.with_name(f"{name}.json") for name in (_CHANNEL.sub("", stem), stem)]


def _read_spacing(path: Path) -> tuple[float, ...]:
    """Read the spacing (z, y, x) in mm from the JSON file that belongs to a TIFF file.

    If the JSON file does not exist, return 1 mm along every axis, with a warning. Raise `ReadError`
    if its key `spacing` does not contain three positive numbers.
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
