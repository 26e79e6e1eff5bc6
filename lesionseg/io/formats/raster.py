"""Rasters: PNG, JPEG, BMP and TIFF of 8 or 16 bits, as volumes of two spatial axes."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ContentError, OutputError, ReadError
from lesionseg.io.formats.guard import check_claim, check_grid, check_voxels, reading

logger = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_LOSSY = (".jpg", ".jpeg")
_TIFF = (".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")  # by content: an EPS called .png would go to Ghostscript
_ORIENTATION = 274  # tag of TIFF and Exif; 1 is upright
_ON_ITS_SIDE = range(5, 9)
# luma of ITU-R BT.601, as in PIL's own conversion to grey
_LUMA = np.array([0.299, 0.587, 0.114])


def read_raster(path: Path, raster_mm: float | None = None, *, as_labels: bool = False) -> Volume:
    """Read an image `[1, y, x]` in the file's own dtype; y runs down the picture.

    Rasters know no millimetres: a pixel is `raster_mm` wide, 1 mm when not given. Colour becomes
    grey, with a warning when it really had colour. `as_labels` reads a mask: palette indices are
    kept, and colour and JPEG refused, since both would invent values. Raises `ReadError`.
    """
    if as_labels and path.suffix.lower() in _LOSSY:
        raise ReadError(
            "A mask in JPEG has lost its exact values.", where=path, remedy="Save masks as PNG."
        )
    with reading(path):
        pixels = _tiff_pixels(path, as_labels) if _is_tiff(path) else _pil_pixels(path, as_labels)
        array = _to_grey(path, pixels, as_labels)
        return Volume(array[np.newaxis], _geometry(path, array.shape, raster_mm))


def read_raster_geometry(path: Path, raster_mm: float | None = None) -> Geometry:
    """Read the size from the header alone."""
    with reading(path):
        return _geometry(path, _shape(path), raster_mm)


def write_raster(path: Path, array: NDArray[Any]) -> None:
    """Write `array` `[y, x]`: PNG for uint8 and uint16, TIFF for any number type."""
    if array.ndim != 2:
        raise OutputError("A raster has two axes.", seen=array.shape)
    if _is_tiff(path):
        import tifffile

        tifffile.imwrite(path, array, compression="zlib")
    elif path.suffix.lower() == ".png" and array.dtype in (np.uint8, np.uint16):
        from PIL import Image

        Image.fromarray(np.ascontiguousarray(array)).save(path)
    else:
        raise OutputError(
            "The raster format cannot hold these numbers unchanged.",
            seen=str(array.dtype),
            expected="uint8 or uint16 in .png, or any number type in .tif",
        )


def _is_tiff(path: Path) -> bool:
    return path.suffix.lower() in _TIFF


def _geometry(path: Path, shape: tuple[int, ...], raster_mm: float | None) -> Geometry:
    mm = 1.0 if raster_mm is None else float(raster_mm)
    if not (np.isfinite(mm) and mm > 0):
        raise ContentError(
            "The pixel size is not a positive number of millimetres.", seen=raster_mm
        )
    return check_grid(path, Geometry.from_spacing(shape, (mm, mm)))


def _pil_pixels(path: Path, as_labels: bool) -> NDArray[Any]:
    """Pixels `[y, x]` or `[y, x, colours]`."""
    from PIL import Image

    with Image.open(path, formats=_FORMATS) as image:
        check_voxels(path, image.width * image.height)
        n_bytes = image.width * image.height * len(image.getbands())
        if path.suffix.lower() not in _LOSSY:  # JPEG shrinks without a bound; PIL has its own
            check_claim(path, n_bytes)
        image.load()  # newer versions of Pillow turn a TIFF here, and then say no more of it
        turn = _stated_turn(image)
        coded = image.mode in ("CMYK", "YCbCr", "LAB", "HSV")
        if coded or (image.mode == "P" and not as_labels):
            pixels = np.asarray(image.convert("RGB"))
        else:
            pixels = np.asarray(image)
    pixels = _upright(path, pixels, turn)
    return pixels.astype(np.uint8) if pixels.dtype == np.bool_ else pixels


def _shape(path: Path) -> tuple[int, int]:
    """Height and width of the picture as viewers show it, from the header alone."""
    if _is_tiff(path):
        import tifffile

        with tifffile.TiffFile(path) as tiff:
            page: Any = tiff.pages[0]
            shape, turn = (page.imagelength, page.imagewidth), page.tags.valueof(_ORIENTATION)
    else:
        from PIL import Image

        with Image.open(path, formats=_FORMATS) as image:
            shape, turn = (image.height, image.width), _stated_turn(image)
    return shape[::-1] if turn in _ON_ITS_SIDE else shape


def _stated_turn(image: Any) -> object:
    """Where row and column 0 lie, 1 to 8 as in TIFF 6.0 and Exif; no viewer turns a PNG."""
    return 1 if image.format == "PNG" else image.getexif().get(_ORIENTATION)


def _upright(path: Path, pixels: NDArray[Any], turn: object) -> NDArray[Any]:
    """Pixels `[y, x, …]` as viewers show them, and as masks and boxes were drawn on them."""
    if turn not in range(2, 9):
        return pixels
    logger.warning("%s says how to turn it: it is read as viewers show it.", path)
    pixels = pixels.swapaxes(0, 1) if turn in _ON_ITS_SIDE else pixels
    rows = slice(None, None, -1 if turn in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if turn in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(pixels[rows, columns])


def _tiff_pixels(path: Path, as_labels: bool) -> NDArray[Any]:
    """Pixels `[y, x]` or `[y, x, colours]` of a TIFF of one page."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        if len(tiff.pages) != 1:
            raise ReadError(
                "The TIFF has more than one page.",
                where=path,
                seen=f"{len(tiff.pages)} pages",
                remedy="Convert a stack of slices to NIfTI or NRRD.",
            )
        page: Any = tiff.pages[0]
        check_voxels(path, page.imagelength * page.imagewidth)
        check_claim(path, page.nbytes)
        inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and not as_labels
        try:
            pixels = page.asarray()
        except ValueError:  # a compression that tifffile leaves to a further package, such as LZW
            return _pil_pixels(path, as_labels)
        if page.axes == "SYX":
            pixels = np.moveaxis(pixels, 0, -1)
        pixels = _upright(path, pixels, page.tags.valueof(_ORIENTATION))
    if inverted and pixels.dtype.kind == "u":
        pixels = np.iinfo(pixels.dtype).max - pixels
    return np.asarray(pixels)


def _to_grey(path: Path, pixels: NDArray[Any], as_labels: bool) -> NDArray[Any]:
    """One value per pixel; opacity is dropped, equal colours are grey already."""
    native = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if native.ndim == 2:
        return native
    colours = native[..., :3] if native.shape[-1] in (3, 4) else native[..., :1]
    if all(np.array_equal(colours[..., 0], colours[..., i]) for i in range(colours.shape[-1])):
        return np.ascontiguousarray(colours[..., 0])
    if as_labels:
        raise ReadError(
            "A mask in colour: which colour is which label?",
            where=path,
            remedy="Save the mask with one label value per pixel.",
        )
    logger.warning("%s is in colour: its brightness alone is read.", path)
    grey = colours.astype(np.float64) @ _LUMA
    return np.asarray(grey.round() if native.dtype.kind in "iu" else grey, dtype=native.dtype)
