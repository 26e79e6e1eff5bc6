"""PNG, JPEG, BMP (TIFF by io/tiff.py): suffixes, decoding, pixel size, colours, writing.

These files have two spatial axes, one channel in grey, three in colour.

A decoder returns the samples as the file stores them. `io.picture` computes the values that a
viewer shows, or the labels of a mask.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.errors import OutputError, ReadError
from lesionseg.io import tiff
from lesionseg.io.picture import Picture, picture_grid

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", *tiff.SUFFIXES)
WRITTEN = (".png", *tiff.SUFFIXES)
_FORMATS = ("PNG", "JPEG", "BMP")  # by content: Pillow would run Ghostscript for an EPS
# byte offsets in the file of the number of bits of a sample
_PNG_BITS = 24
_BMP_BITS = 28


def read_raster(path: Path, pixel_mm: float | None, as_labels: bool) -> Volume:
    """Read a PNG, JPEG, BMP or TIFF file as a volume.

    The values of an image are those that a viewer shows:

    - The picture is turned upright by its orientation tag.
    - Samples keep their type, but grey values of less than 8 bits are scaled to 0 to 255.
    - Palettes become red, green and blue. A picture with three equal colours is grey.
    - Opacity is ignored, with a warning if the picture is partly transparent.

    The label values of a mask (`as_labels`) are the stored numbers, or the indices of its palette:

    - If the file states that 0 is white, the numbers are inverted.
    - A TIFF mask of one bit that states this is read as stored if tifffile wrote it, because
      tifffile does not invert masks. Otherwise it is an error, because 0 or 1 may be the lesion.
    - Colour, JPEG compression, opacity that varies, and a palette whose index 0 is not the darkest
      are errors, because they would invent or hide label values.

    Args:
        path: The file. Its content decides the format, not its suffix.
        pixel_mm: The pixel size in millimetres. None means 1 mm, because pictures do not state it.
            It is not used for a TIFF of several pages, whose spacing is in a separate JSON file.
        as_labels: True reads a mask.

    Returns:
        A volume `[1, y, x]`, or `[3, y, x]` in colour, with y pointing down. A TIFF of several grey
        pages gives `[1, z, y, x]`, see `io.tiff`.

    Raises:
        ReadError: If the file is damaged, or is a mask whose labels are ambiguous.
    """
    if tiff.is_tiff(path):
        return tiff.read_tiff(path, pixel_mm, as_labels=as_labels)
    picture = _decode(path, pixel_mm, as_labels=as_labels)
    return picture.to_volume(path, pixel_mm, as_labels=as_labels)


def read_raster_geometry(path: Path, pixel_mm: float | None) -> Geometry:
    """Read the grid of a picture, with the pixel size `pixel_mm` (None means 1 mm).

    The pixels are decoded as well, so that a truncated file is noticed.
    """
    return read_raster(path, pixel_mm, as_labels=False).geometry


def is_reoriented(path: Path) -> bool:
    """Return True if the orientation tag of a JPEG, BMP or TIFF tells readers to turn or mirror it.

    Cameras write this tag of Exif. Only the header is read. Return False for a PNG, which is never
    turned, and for a file that cannot be read. Callers run this function in the worker
    (`io.worker`), like all decoders.
    """
    from PIL import Image

    with suppress(Exception), Image.open(path, formats=("JPEG", "BMP", "TIFF")) as image:
        # 1 is upright, 2 to 8 are turned or mirrored
        return int(image.getexif().get(tiff.ORIENTATION) or 1) in range(2, 9)
    return False


def write_raster(path: Path, array: NDArray[Any], geometry: Geometry, like: Path | None) -> None:
    """Write an array `[y, x]` as PNG (uint8, uint16) or TIFF (any type), without its pixel size.

    `geometry` and `like` are not used.

    Raises:
        OutputError: If the array does not have two axes, or the format cannot store its type.
    """
    if array.ndim != 2:
        raise OutputError(f"a picture has two axes, but the array has the shape {array.shape}")
    if path.suffix.lower() in tiff.SUFFIXES:
        import tifffile

        tifffile.imwrite(path, array, compression="zlib")
    elif array.dtype in (np.uint8, np.uint16):
        from PIL import Image

        Image.fromarray(np.ascontiguousarray(array)).save(path)
    else:
        raise OutputError(
            f"{path.suffix} cannot store {array.dtype}. Use .png for uint8 and uint16, .tif for "
            "any type"
        )


def _decode(path: Path, pixel_mm: float | None, *, as_labels: bool) -> Picture:
    """Decode a PNG, JPEG or BMP, after a check of its size.

    Raise `ReadError` for a mask (`as_labels`) in JPEG or in BMP with a palette, for an animation,
    and for a BMP that Pillow reads wrongly: a palette of two greys in more than one bit per pixel.
    """
    from PIL import Image

    with Image.open(path, formats=_FORMATS) as image:
        picture_grid(path, (image.height, image.width), pixel_mm)
        if image.format == "PNG":
            return _decode_png(path, image, as_labels=as_labels)
        if as_labels and image.format != "BMP":
            raise ReadError(
                f"{path}: a mask in JPEG has lost its exact values. Save masks as PNG, from the "
                "program that drew them."
            )
        # mode "1" of Pillow: two greys; mode "P": indices of a palette; mode "L": 8-bit grey. A
        # palette of two greys has mode "1" also with more bits per pixel, which Pillow misreads
        is_misread = image.mode == "1" and path.read_bytes()[_BMP_BITS] != 1
        if is_misread or (as_labels and image.mode == "P"):
            raise ReadError(
                f"{path}: a BMP with a palette of this kind is not read. Save it as PNG."
            )
        turn = int(image.getexif().get(tiff.ORIENTATION) or 1)
        if image.mode == "1" and as_labels:
            return Picture(np.asarray(image, np.uint8)[..., np.newaxis])
        is_grey = image.mode in ("1", "L")
        colours = np.asarray(image.convert("L" if is_grey else "RGB"))
        return Picture(colours[..., np.newaxis] if is_grey else colours, turn=turn)


def _decode_png(path: Path, image: Any, *, as_labels: bool) -> Picture:
    """Decode a PNG by libpng, which verifies checksums and converts palettes to colours.

    The orientation tag is not used, because viewers do not turn a PNG.

    Args:
        path: The file.
        image: The file as opened by Pillow, which can return the indices of a palette.
        as_labels: True for a mask. Its samples are the palette indices or, without a palette, the
            numbers as they are stored. libpng scales numbers of 1, 2 or 4 bits to 0 to 255, which
            is undone.

    Raises:
        ReadError: If the file is an animation.
    """
    import imagecodecs

    if image.n_frames > 1:
        raise ReadError(
            f"{path}: the file is an animation of {image.n_frames} pictures. Save one of them."
        )
    content = path.read_bytes()
    samples = np.asarray(imagecodecs.png_decode(content))
    samples = samples[..., np.newaxis] if samples.ndim == 2 else samples
    alpha = None
    if samples.shape[-1] in (2, 4):  # grey and opacity, or red, green, blue and opacity
        alpha = samples[..., -1]
        samples = samples[..., :-1]
    if not as_labels:
        return Picture(samples, alpha=alpha)
    if image.mode == "P":
        # `getdata` returns mode and bytes of the stored palette. `Image.getpalette` is not used,
        # because it may fill the palette up to 256 colours.
        palette = np.frombuffer(image.palette.getdata()[1], np.uint8).reshape(-1, 3)
        return Picture(np.asarray(image)[..., np.newaxis], palette=palette, alpha=alpha)
    bits = content[_PNG_BITS]
    # libpng scales 1, 2 and 4 bits to 0 to 255, so divide by 255, 85 or 17
    return Picture(samples // (255 // (2**bits - 1)) if bits < 8 else samples, alpha=alpha)
