"""PNG, JPEG, BMP and TIFF files: two spatial axes, one channel in grey, three in colour.

Reading has two steps. First a decoder returns the samples as the file stores them, and the facts
that explain them (`_Stored`). Then one function for all formats computes the values that a viewer
shows. Therefore the values do not depend on format, compression or number of bits.
"""

import logging
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.errors import OutputError, ReadError
from lesionseg.io.limits import check_grid, check_size, convert_read_errors, limits
from lesionseg.io.tiff_stack import (
    BOUNDED,
    JPEG,
    check_pages,
    list_full_pages,
    raise_if_damaged,
    read_stack,
)

logger = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_TIFF = (".tif", ".tiff")
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")  # by content: Pillow would run Ghostscript for an EPS
_ORIENTATION = 274  # tag of TIFF and Exif; 1 is upright
_EXTRA_SAMPLES = 338  # tag of TIFF
_ALPHA = (1, 2)  # values of this tag: opacity, with colours multiplied by it or not
_CCITT = (2, 3, 4, 32771)  # TIFF compressions of fax machines
_BMP_HEADER_BYTES = 54
_LABEL_GREYS = 64  # a palette with only darker greys than this contains labels, not a picture


@dataclass(frozen=True, eq=False)
class _Stored:
    """The samples of a picture as its file stores them.

    Attributes:
        samples: `[y, x, n]`: 1 grey value or palette index, 3 colours, or 4 inks (CMYK).
        bits: The number of bits of each sample.
        white_is_zero: True if viewers show the largest grey value as black.
        palette: The colour of each index `[k, 3]`, or None.
        alpha: The opacity `[y, x]`, or None.
        opaque: The value of `alpha` for opaque pixels.
        extra: A further sample `[y, x]` whose meaning the file does not state, or None.
        is_lossy: True if the compression changes values.
        turn: The orientation tag, 1 to 8.
    """

    samples: NDArray[Any]
    bits: int
    white_is_zero: bool = False
    palette: NDArray[np.uint8] | None = None
    alpha: NDArray[Any] | None = None
    opaque: float = 255
    extra: NDArray[Any] | None = None
    is_lossy: bool = False
    turn: int = 1


def read_raster(path: Path, raster_mm: float | None = None, *, as_labels: bool = False) -> Volume:
    """Read a picture with the values that a viewer shows. Call it in the worker.

    - The orientation that the file states is applied.
    - Samples keep their type, but grey values of less than 8 bits are scaled to 0 to 255.
    - White-is-zero values are mirrored: `2**bits - 1 - v` if unsigned, `-1 - v` if signed, `1 - v`
      if floating point.
    - Palettes and inks become red, green and blue. A picture with three equal colours is grey.
    - Opacity is ignored with a warning.

    A mask (`as_labels`) keeps the stored numbers. A palette gives the labels of `_palette_labels`.
    Colour, JPEG compression and partly transparent labels are errors, because they would invent or
    hide values.

    Args:
        path: The file. Its content decides the format, not its suffix.
        raster_mm: The pixel size in millimetres. None means 1 mm, because pictures do not state it.
            It is not used for several pages, because a file beside them states their grid.
        as_labels: True reads a mask.

    Returns:
        A volume `[1, y, x]`, or `[3, y, x]` in colour, with y pointing down. A TIFF of several grey
        pages gives `[1, z, y, x]`, see `io.tiff_stack`.

    Raises:
        ReadError: The file is damaged, or is a mask whose labels are ambiguous.
    """
    with convert_read_errors(path), raise_if_damaged(path):
        # a stack states its own grid, and its values are grey
        stack = read_stack(path, as_labels=as_labels)
        if stack is not None:
            return stack
        stored = _decode(path, raster_mm)
        if as_labels and stored.is_lossy:
            raise ReadError(
                f"{path}: a mask in JPEG has lost its exact values. Save masks as PNG, from the "
                "program that drew them."
            )
        values = _compute_labels(path, stored) if as_labels else _compute_values(path, stored)
        values = _turn_upright(values, stored.turn)
        array = np.ascontiguousarray(np.moveaxis(values, -1, 0))
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        return Volume(array, _make_grid(path, array.shape[1:], raster_mm))


def states_turn(path: Path) -> bool:
    """Return True if a picture is turned upright when it is read. Call it in the worker.

    Only the header is read. A file that cannot be read is not turned.
    """
    from PIL import Image

    with suppress(Exception), Image.open(path, formats=_FORMATS) as image:
        turn = int(image.getexif().get(_ORIENTATION) or 1)
        return image.format != "PNG" and turn in range(2, 9)
    return False


def write_raster(path: Path, array: NDArray[Any]) -> None:
    """Write a plane `[y, x]` as PNG (uint8, uint16) or TIFF (any type).

    Raises:
        OutputError: The array has other axes, or the format cannot store its type.
    """
    if array.ndim != 2:
        raise OutputError(f"a picture has two axes, but the array has the shape {array.shape}")
    if path.suffix.lower() in _TIFF:
        import tifffile

        tifffile.imwrite(path, array, compression="zlib")
    elif path.suffix.lower() == ".png" and array.dtype in (np.uint8, np.uint16):
        from PIL import Image

        Image.fromarray(np.ascontiguousarray(array)).save(path)
    else:
        raise OutputError(
            f"{path.suffix} cannot store {array.dtype}. Use .png for uint8 and uint16, .tif for "
            "any type"
        )


def _make_grid(path: Path, shape: tuple[int, ...], raster_mm: float | None) -> Geometry:
    """Return the grid of a picture. Raise `ReadError` if it is outside the limits."""
    mm = 1.0 if raster_mm is None else float(raster_mm)
    low, high = limits().spacing_mm
    if not low <= mm <= high:
        raise ReadError(
            f"{path}: the pixel size {mm:g} mm is outside {low:g}–{high:g} mm. Correct pixel_mm in "
            "the table of the dataset."
        )
    return check_grid(path, Geometry.from_spacing(shape, (mm, mm)))


def _turn_upright(values: NDArray[Any], turn: int) -> NDArray[Any]:
    """Turn a picture `[y, x, n]` upright by its orientation tag, as viewers do.

    The tag is that of TIFF 6.0 and Exif: 1 is upright, 2 to 4 are mirrored along axes, and 5 to 8
    have rows and columns swapped. Any other value is ignored.
    """
    is_swapped = turn in (5, 6, 7, 8)
    is_upside_down = turn in (3, 4, 7, 8)
    is_mirrored = turn in (2, 3, 6, 7)
    if is_swapped:
        values = values.swapaxes(0, 1)
    if is_upside_down:
        values = values[::-1]
    if is_mirrored:
        values = values[:, ::-1]
    return values


def _compute_values(path: Path, stored: _Stored) -> NDArray[Any]:
    """Compute the grey values or colours `[y, x, 1 or 3]` of an image."""
    if stored.alpha is not None and (stored.alpha != stored.opaque).any():
        logger.warning("%s: the picture is partly transparent. Its opacity is ignored.", path)
    values = _normalise_samples(stored)
    if stored.palette is not None:
        values = np.asarray(stored.palette[_palette_indices(path, stored.samples, stored.palette)])
    elif values.shape[-1] == 1 and stored.bits < 8:
        most = 2**stored.bits - 1
        # adding half of the divisor rounds the quotient to the nearest integer
        values = ((values.astype(np.uint16) * 255 + most // 2) // most).astype(np.uint8)
    return np.asarray(_drop_equal_colours(values))


def _compute_labels(path: Path, stored: _Stored) -> NDArray[Any]:
    """Compute the label values `[y, x, 1]` of a mask. Raise `ReadError` if they are ambiguous."""
    if stored.palette is not None:
        indices = _palette_indices(path, stored.samples, stored.palette)
        values = _palette_labels(path, indices, stored.palette)[indices][..., np.newaxis]
    else:
        values = _drop_equal_colours(_normalise_samples(stored))
    if values.shape[-1] != 1:
        raise ReadError(f"{path}: the mask is in colour. Save it with one label value per pixel.")
    _check_opacity(path, values[..., 0], stored)
    return np.asarray(values)


def _normalise_samples(stored: _Stored) -> NDArray[Any]:
    """Return grey values with 0 as black, colours `[y, x, 3]`, or unchanged palette indices."""
    samples = stored.samples
    if samples.dtype.kind == "b":
        samples = samples.astype(np.uint8)
    if samples.shape[-1] == 4:
        return _convert_inks(samples)
    if not stored.white_is_zero:
        return samples
    if samples.dtype.kind == "f":
        return np.asarray(1 - samples)
    if samples.dtype.kind == "i":
        return np.asarray(~samples)  # this is -1 - samples
    return np.asarray((2**stored.bits - 1) - samples).astype(samples.dtype)


def _convert_inks(inks: NDArray[Any]) -> NDArray[Any]:
    """Convert cyan, magenta, yellow and black `[y, x, 4]` to red, green and blue."""
    is_integer = inks.dtype.kind == "u"
    most = float(np.iinfo(inks.dtype).max) if is_integer else 1.0
    # each ink absorbs its complementary colour, and black absorbs all three
    light = (most - inks[..., :3]) * ((most - inks[..., 3:]) / most)
    return (np.rint(light) if is_integer else light).astype(inks.dtype)


def _drop_equal_colours(values: NDArray[Any]) -> NDArray[Any]:
    """Return one channel `[y, x, 1]` if all colours are equal in every pixel."""
    first = values[..., :1]
    is_grey = all(np.array_equal(first[..., 0], values[..., c]) for c in range(values.shape[-1]))
    return first if is_grey else values


def _palette_indices(
    path: Path, samples: NDArray[Any], palette: NDArray[np.uint8]
) -> NDArray[np.unsignedinteger[Any]]:
    """Return palette indices `[y, x]`. Raise `ReadError` if one is not in the palette."""
    indices = samples[..., 0]
    if indices.size and int(indices.max()) >= len(palette):
        raise ReadError(
            f"{path}: the palette has {len(palette)} colours, but a pixel has the index "
            f"{indices.max()}. Save the picture without a palette."
        )
    return np.asarray(indices)


def _palette_labels(
    path: Path, indices: NDArray[Any], palette: NDArray[np.uint8]
) -> NDArray[np.uint16]:
    """Return the label `[k]` of each palette entry. Raise `ReadError` if it is ambiguous.

    - Colours: the index is the label if index 0 is the darkest colour, as in the palettes of
      segmentation tools (in Pascal VOC, 0 is black).
    - Two greys: the darker one is 0 and the brighter one is 1, in any order of the palette.
    - More greys: the index is the label if the greys ascend with it.
    - Greys that are too dark to see (0, 1, 2, …) are labels themselves. Each must be equal to its
      index or to its rank among the greys.
    """
    used = np.unique(indices)
    own_indices = np.arange(len(palette), dtype=np.uint16)
    advice = "Save the mask without a palette, with one label value per pixel (0 is background)."
    has_colours = (palette != palette[:, :1]).any()
    if has_colours:
        brightness = palette.astype(np.int64) @ (299, 587, 114)  # 1000 times that of ITU-R BT.601
        is_as_dark = (used > 0) & (brightness[used] <= brightness[0])
        if is_as_dark.any() or brightness.min() < brightness[0]:
            raise ReadError(
                f"{path}: index 0 is not the darkest colour of the mask's palette, so another "
                f"index may be the background. {advice}"
            )
        return own_indices
    greys = palette[:, 0].astype(np.uint16)
    are_greys_indices = np.array_equal(greys[used], used)
    if are_greys_indices:
        return own_indices
    distinct, rank_of_entry = np.unique(greys, return_inverse=True)
    ranks = rank_of_entry.reshape(-1).astype(np.uint16)
    is_too_dark_to_see = distinct.max() < _LABEL_GREYS
    are_greys_ranks = np.array_equal(greys[used], ranks[used])
    steps = np.diff(greys[np.union1d(0, used)].astype(int))
    do_greys_ascend = bool((steps > 0).all())
    if is_too_dark_to_see and are_greys_ranks:
        return greys
    if not is_too_dark_to_see and len(distinct) == 2:
        return ranks
    if not is_too_dark_to_see and do_greys_ascend:
        return own_indices
    raise ReadError(
        f"{path}: the greys of the mask's palette ({', '.join(map(str, greys[used][:8]))}) and its "
        f"indices ({', '.join(map(str, used[:8]))}) do not agree, so either may be the label. "
        f"{advice}"
    )


def _check_opacity(path: Path, values: NDArray[Any], stored: _Stored) -> None:
    """Raise `ReadError` if the opacity or an extra sample of a mask may contain labels."""
    advice = "Save the mask without transparency, with one label value per pixel."
    if stored.extra is not None and stored.extra.size and np.ptp(stored.extra):
        raise ReadError(
            f"{path}: the mask has a further value per pixel, but the file does not state its "
            f"meaning. {advice}"
        )
    if stored.alpha is None:
        return
    n_hidden = int(np.count_nonzero(values[stored.alpha != stored.opaque]))
    if n_hidden:
        raise ReadError(f"{path}: {n_hidden} labelled pixels of the mask are transparent. {advice}")
    if stored.alpha.size and np.ptp(stored.alpha) and not values.any():
        raise ReadError(
            f"{path}: all values of the mask are 0, but its opacity varies, so the opacity may be "
            f"the mask. {advice}"
        )


def _decode(path: Path, raster_mm: float | None) -> _Stored:
    """Decode a picture by the decoder for its content."""
    with path.open("rb") as stream:
        start = stream.read(_BMP_HEADER_BYTES)
    if start[:4] in _TIFF_STARTS:
        return _decode_tiff(path, raster_mm)
    if _is_palette_bmp(start):
        return _decode_palette_bmp(path, raster_mm)
    return _decode_by_pillow(path, raster_mm)


def _is_palette_bmp(start: bytes) -> bool:
    """Return True if a file begins with the headers of an uncompressed BMP with a palette."""
    if start[:2] != b"BM" or len(start) < _BMP_HEADER_BYTES:
        return False
    header_bytes, width, height, _, bits, compression = struct.unpack_from("<IiiHHI", start, 14)
    has_known_header = header_bytes >= 40  # older headers have shorter fields
    has_palette = bits in (1, 2, 4, 8)
    has_pixels = width != 0 and height != 0
    return has_known_header and has_palette and has_pixels and compression == 0


def _decode_palette_bmp(path: Path, raster_mm: float | None) -> _Stored:
    """Decode an uncompressed BMP with a palette. Pillow changes the indices of grey palettes.

    A BMP begins with a file header of 14 bytes and an image header. Then follow the palette, with
    4 bytes per colour, and the rows, the lowest first if the stated height is positive.
    """
    content = path.read_bytes()
    (first_pixel,) = struct.unpack_from("<I", content, 10)
    header_bytes, width, stated_height, _, bits = struct.unpack_from("<IiiHH", content, 14)
    (stated_colours,) = struct.unpack_from("<I", content, 46)
    n_colours = stated_colours or 2**bits
    height = abs(stated_height)
    _make_grid(path, (height, width), raster_mm)
    row_bytes = (width * bits + 31) // 32 * 4  # rows are padded to a multiple of 4 bytes
    begins_in_palette = first_pixel < 14 + header_bytes + 4 * n_colours
    ends_early = len(content) < first_pixel + row_bytes * height
    if n_colours > 2**bits or begins_in_palette or ends_early:
        raise ReadError(f"{path}: the header is damaged, or the file is cut short. Copy it again.")
    table = np.frombuffer(content, np.uint8, 4 * n_colours, 14 + header_bytes).reshape(-1, 4)
    rows = np.frombuffer(content, np.uint8, row_bytes * height, first_pixel).reshape(-1, row_bytes)
    # a byte contains several indices; the first pixel is in the highest bits
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    indices = (rows[:, :, np.newaxis] >> shifts) & (2**bits - 1)
    indices = indices.reshape(height, -1)[:, :width, np.newaxis]
    is_bottom_up = stated_height > 0
    indices = indices[::-1] if is_bottom_up else indices
    palette = table[:, 2::-1]  # stored as blue, green, red and an unused byte
    return _Stored(indices.astype(np.uint8), bits, palette=palette)


def _count_tiff_colours(page: Any, photometric: int) -> int | None:
    """Return the number of grey, colour or ink samples per pixel that belong to the picture.

    Further samples are opacity or unknown. None means that tifffile cannot decode such a page.
    """
    import tifffile

    kind = tifffile.PHOTOMETRIC
    is_subsampled = photometric == kind.YCBCR and page.compression not in JPEG
    if is_subsampled or page.compression in _CCITT:
        return None
    if photometric in (kind.MINISWHITE, kind.MINISBLACK, kind.MASK, kind.PALETTE):
        return 1
    if photometric in (kind.RGB, kind.YCBCR):  # the JPEG decoder converts YCBCR to RGB
        return 3
    return 4 if photometric == kind.SEPARATED else None


def _decode_tiff(path: Path, raster_mm: float | None) -> _Stored:
    """Decode a TIFF with one full page. Kinds that tifffile cannot decode go to Pillow.

    Sizes are checked before the samples are decoded.
    """
    import tifffile

    kind = tifffile.PHOTOMETRIC
    with tifffile.TiffFile(path) as tiff:
        page = _only_page(path, tiff)
        bits = int(page.bitspersample)
        _make_grid(path, (page.imagelength, page.imagewidth), raster_mm)
        if page.compression in BOUNDED:
            n_bits = page.imagelength * page.imagewidth * page.samplesperpixel * bits
            check_size(path, n_bits // 8, compressed=page.compression != 1)
        photometric = _photometric_of(page)
        n_colours = _count_tiff_colours(page, photometric)
        if n_colours is None:
            return _decode_by_pillow(path, raster_mm)
        check_pages(path, [page])
        samples = _read_tiff_samples(path, page)
        if samples.shape[-1] == 3 and photometric == kind.MINISBLACK:
            n_colours = 3  # microscopes write three grey channels in one page
        meanings = [int(code) for code in np.ravel(page.tags.valueof(_EXTRA_SAMPLES, ()))]
        has_alpha = bool(meanings) and meanings[-1] in _ALPHA
        further = _take_further_sample(path, samples, n_colours, has_alpha=has_alpha)
        return _Stored(
            samples=samples[..., :n_colours],
            bits=bits,
            white_is_zero=photometric == kind.MINISWHITE,
            palette=_tiff_palette(page) if photometric == kind.PALETTE else None,
            alpha=further if has_alpha else None,
            opaque=1.0 if samples.dtype.kind == "f" else 2**bits - 1,
            extra=None if has_alpha else further,
            is_lossy=page.compression in JPEG,
            turn=int(page.tags.valueof(_ORIENTATION, 1)),
        )


def _photometric_of(page: Any) -> int:
    """Return the photometric interpretation of a page. If the tag is missing, guess as libtiff."""
    import tifffile

    if "PhotometricInterpretation" in page.tags:
        return int(page.photometric)
    is_colour = page.samplesperpixel in (3, 4)
    return int(tifffile.PHOTOMETRIC.RGB if is_colour else tifffile.PHOTOMETRIC.MINISBLACK)


def _read_tiff_samples(path: Path, page: Any) -> NDArray[Any]:
    """Read the samples of a page as `[y, x, samples]`. Raise `ReadError` if it is no picture."""
    pixels = np.asarray(page.asarray())
    if page.axes == "SYX":  # each sample as a separate plane
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.dtype.kind not in "biuf":
        raise ReadError(
            f"{path}: the pixels are not plain numbers ({pixels.dtype}). Save them as integers "
            "or floating-point numbers."
        )
    if pixels.ndim not in (2, 3) or page.imagedepth > 1:
        raise ReadError(
            f"{path}: the file has more than one plane ({page.axes}). Save it as NIfTI or NRRD."
        )
    return pixels[..., np.newaxis] if pixels.ndim == 2 else pixels


def _take_further_sample(
    path: Path, samples: NDArray[Any], n_colours: int, *, has_alpha: bool
) -> NDArray[Any] | None:
    """Return the sample `[y, x]` that follows the colours of each pixel, or None without one.

    Raise `ReadError` if there are several, or if the only one may be a second grey channel instead
    of opacity.
    """
    further = samples[..., n_colours:]
    n_further = further.shape[-1]
    may_be_channel = n_further == 1 and n_colours == 1 and not has_alpha
    if n_further > 1 or may_be_channel:
        raise ReadError(
            f"{path}: {samples.shape[-1]} values per pixel, expected 1 (grey) or 3 (colour). "
            "Save each channel as a separate file (<case>_0000, …), and a mask with one "
            "value per pixel."
        )
    return further[..., 0] if n_further else None


def _only_page(path: Path, tiff: Any) -> Any:
    """Return the only full page of a TIFF file, which may also have thumbnails.

    ImageJ and tifffile write a large stack as one page and state the number of slices in metadata.
    """
    pages = list_full_pages(path, tiff) or [*tiff.pages]
    n_pages = len(pages)
    if n_pages == 1 and pages[0].is_imagej:
        metadata = tiff.imagej_metadata or {}
        n_pages = int(metadata.get("images", 1))
    elif n_pages == 1 and pages[0].is_shaped and tiff.series:  # written by tifffile
        n_pages = tiff.series[0].size // max(int(np.prod(pages[0].shape)), 1)
    if n_pages != 1:
        raise ReadError(
            f"{path}: the file has {n_pages} pages, expected 1. Convert a stack to NIfTI or NRRD."
        )
    return pages[0]


def _tiff_palette(page: Any) -> NDArray[np.uint8]:
    """Return the colours `[k, 3]` of a page. Some programs write 8 bits instead of 16."""
    colours = np.asarray(page.colormap).T
    has_16_bits = colours.max(initial=0) > 255
    return (colours >> 8 if has_16_bits else colours).astype(np.uint8)


def _decode_by_pillow(path: Path, raster_mm: float | None) -> _Stored:
    """Decode a picture by Pillow and undo the changes that Pillow makes to samples.

    Sizes are checked before the samples are decoded.
    """
    from PIL import Image

    with Image.open(path, formats=_FORMATS) as image:
        _make_grid(path, (image.height, image.width), raster_mm)
        bands = image.getbands()
        raw = _raw_mode(image)
        bits = _count_bits(image.mode, raw)
        is_lossy = image.format in ("JPEG", "MPO")
        if image.format in ("PNG", "BMP"):  # other formats have no bound of compression
            file_bits = 16 if ";16" in raw else bits
            check_size(path, image.width * image.height * len(bands) * file_bits // 8)
        n_frames = getattr(image, "n_frames", 1)
        if image.format == "PNG" and n_frames > 1:
            raise ReadError(
                f"{path}: the file is an animation of {n_frames} pictures. Save one of them."
            )
        if len(bands) > 1 and ";16" in raw:  # Pillow would reduce the samples to 8 bits
            return _decode_wide_png(path)
        if image.format == "PNG":  # `load` does not compare the checksums of the pixels
            with Image.open(path, formats=["PNG"]) as unread:  # `verify` closes it
                unread.verify()
        image.load()  # newer versions of Pillow turn a TIFF here and reset its tag
        # viewers do not turn a PNG
        turn = 1 if image.format == "PNG" else int(image.getexif().get(_ORIENTATION) or 1)
        if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            samples = np.asarray(image.convert("RGB"))
            return _Stored(samples, 8, is_lossy=is_lossy, turn=turn)
        palette = _pillow_palette(image) if image.mode == "P" else None
        samples = np.asarray(image)
        samples = samples[..., np.newaxis] if samples.ndim == 2 else samples
        alpha = samples[..., -1] if bands[-1] in ("A", "a") else None
        n_colours = 3 if len(bands) > 2 else 1
        samples = samples[..., :n_colours]
        if bits in (2, 4) and palette is None:  # Pillow scales them to 0 to 255
            samples = samples // (255 // (2**bits - 1))
        if alpha is None:
            alpha = _stated_transparency(samples, image.info.get("transparency"))
        return _Stored(samples, bits, palette=palette, alpha=alpha, is_lossy=is_lossy, turn=turn)


def _pillow_palette(image: Any) -> NDArray[np.uint8]:
    """Return the colours `[k, 3]` that the file states, without those that Pillow may add.

    `Image.getpalette` would fill the palette up to 256 colours. `getdata` does not, but returns the
    colours in the order of the file.
    """
    mode, colours = image.palette.getdata()
    if mode not in ("RGB", "BGR", "BGRX", "RGBA"):
        mode = "RGB"
        colours = bytes(image.getpalette("RGB"))
    table = np.frombuffer(bytes(colours), np.uint8).reshape(-1, len(mode))[:, :3]
    return np.asarray(table[:, ::-1] if mode.startswith("BGR") else table)


def _raw_mode(image: Any) -> str:
    """Return Pillow's name of the packed samples, such as `L;4`, which states the bits.

    It is the first text among the arguments of the decoder, whose form depends on the format.
    """
    for tile in image.tile:
        arguments: Sequence[Any] = tile[3] if isinstance(tile[3], tuple | list) else [tile[3]]
        names = [argument for argument in arguments if isinstance(argument, str)]
        if names:
            return names[0]
    return ""


def _count_bits(mode: str, raw: str) -> int:
    """Return the number of bits of a sample from Pillow's mode and raw mode."""
    if mode == "1":
        return 1
    if mode.startswith("I;16"):
        return 16
    if mode in ("I", "F"):
        return 32
    stated = raw.partition(";")[2][:1]  # "4" of "L;4"
    is_packed = mode in ("L", "P") and stated in ("1", "2", "4")
    return int(stated) if is_packed else 8


def _stated_transparency(samples: NDArray[Any], stated: Any) -> NDArray[np.uint8] | None:
    """Return the opacity `[y, x]` of a PNG that states transparent colours, otherwise None."""
    if stated is None:
        return None
    if isinstance(stated, bytes):  # one value per palette entry; unlisted entries are opaque
        table = np.full(256, 255, np.uint8)
        table[: len(stated)] = np.frombuffer(stated, np.uint8)
        return np.asarray(table[samples[..., 0]])
    if samples.dtype.kind == "b":  # Pillow states 1 or, in newer versions, 255 for white
        stated = stated > 0
    is_transparent = (samples == np.array(stated)).all(axis=-1)  # the file states one colour
    return np.where(is_transparent, 0, 255).astype(np.uint8)


def _decode_wide_png(path: Path) -> _Stored:
    """Decode a PNG with several channels of 16 bits, which Pillow would reduce to 8 bits."""
    import imagecodecs

    samples = np.asarray(imagecodecs.png_decode(path.read_bytes()))
    has_alpha = samples.shape[-1] in (2, 4)
    if not has_alpha:
        return _Stored(samples, 16, opaque=2**16 - 1)
    return _Stored(samples[..., :-1], 16, alpha=samples[..., -1], opaque=2**16 - 1)
