"""PNG, JPEG, BMP and TIFF files: two spatial axes, one channel in grey, three in colour.

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
# places of the number of bits of a sample
_PNG_BITS = 24
_BMP_BITS = 28


def read_raster(path: Path, pixel_mm: float | None, as_labels: bool) -> Volume:
    """Read a picture with the values that a viewer shows.

    - The orientation that the file states is applied.
    - Samples keep their type, but grey values of less than 8 bits are scaled to 0 to 255.
    - Palettes become red, green and blue. A picture with three equal colours is grey.
    - Opacity is ignored, with a warning if the picture is partly transparent.

    A mask (`as_labels`) keeps the stored numbers, and the indices of a palette are its labels. If
    the file states that 0 is white, the numbers are inverted. TIFF masks of one bit are an
    exception: those that tifffile wrote are read as stored, because it does not invert them, and
    those of other programs are errors, because 0 or 1 may be the lesion. In a mask, these are
    errors as well, because they would invent or hide values: colour, JPEG compression, opacity that
    varies, and a palette whose index 0 is not the darkest.

    Args:
        path: The file. Its content decides the format, not its suffix.
        pixel_mm: The pixel size in millimetres. None means 1 mm, because pictures do not state it.
            It is not used for several pages, because a file beside them states their grid.
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
    """Read the grid of a picture. The picture is decoded, to show whether the file is complete."""
    return read_raster(path, pixel_mm, as_labels=False).geometry


def is_reoriented(path: Path) -> bool:
    """Return True if a JPEG, BMP or TIFF states that readers turn or mirror it (Exif).

    Only the header is read. Call this function in the worker (`io.worker`), as all decoders. Return
    False for a PNG, which is read as it is stored, and for a file that cannot be read.
    """
    from PIL import Image

    with suppress(Exception), Image.open(path, formats=("JPEG", "BMP", "TIFF")) as image:
        return int(image.getexif().get(tiff.ORIENTATION) or 1) in range(2, 9)
    return False


def write_raster(path: Path, array: NDArray[Any], geometry: Geometry, like: Path | None) -> None:
    """Write a plane `[y, x]` as PNG (uint8, uint16) or TIFF (any type), without its pixel size.

    `geometry` and `like` are not used.

    Raises:
        OutputError: If the array has other axes, or the format cannot store its type.
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
    """Decode a PNG, JPEG or BMP. Its size is checked before.

    Raise `ReadError` for a mask (`as_labels`) in JPEG or in BMP with a palette, an animation, and a
    BMP that Pillow reads wrongly.
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
        # Pillow reads two greys in more than one bit per pixel wrongly
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
    """Decode a PNG by libpng, which compares its checksums and converts palettes to colours.

    Viewers do not turn a PNG. `image` is the file as opened by Pillow, which returns the indices of
    a palette. A mask (`as_labels`) keeps these indices, or its stored numbers of less than 8 bits.
    Raise `ReadError` for an animation.
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
    if samples.shape[-1] in (2, 4):
        alpha = samples[..., -1]
        samples = samples[..., :-1]
    if not as_labels:
        return Picture(samples, alpha=alpha)
    if image.mode == "P":
        # `getpalette` may fill the palette up to 256 colours
        palette = np.frombuffer(image.palette.getdata()[1], np.uint8).reshape(-1, 3)
        return Picture(np.asarray(image)[..., np.newaxis], palette, alpha)
    bits = content[_PNG_BITS]
    # libpng scales 1, 2 and 4 bits to 0 to 255
    return Picture(samples // (255 // (2**bits - 1)) if bits < 8 else samples, alpha=alpha)
