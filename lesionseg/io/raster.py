"""PNG, JPEG, BMP and TIFF of 8 or 16 bits: two spatial axes, three channels in colour."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.errors import OutputError, ReadError
from lesionseg.io.limits import check_grid, check_size, reading

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_LOSSY = (".jpg", ".jpeg")
_TIFF = (".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")  # by content: an EPS called .png would go to Ghostscript
_ORIENTATION = 274  # tag of TIFF and Exif; 1 is upright


def read_raster(path: Path, raster_mm: float | None = None, *, as_labels: bool = False) -> Volume:
    """Read an image `[1, y, x]`, or `[3, y, x]` in colour, in the file's dtype; y runs down.

    Runs in the worker. Rasters know no millimetres: a pixel is `raster_mm` wide, 1 mm when not
    given. Opacity is dropped; a picture whose colours are equal is grey. `as_labels` reads a mask:
    palette indices are kept, colour and JPEG are errors, since both would invent values.
    """
    if as_labels and path.suffix.lower() in _LOSSY:
        raise ReadError(f"{path}: a mask in JPEG has lost its exact values. Save masks as PNG.")
    with reading(path):
        read = _tiff_pixels if path.suffix.lower() in _TIFF else _pil_pixels
        pixels, turn = read(path, raster_mm, as_labels)
        if turn in range(2, 9):  # as viewers show it, and as masks and boxes were drawn on it
            pixels = pixels.swapaxes(0, 1) if turn > 4 else pixels
            rows = slice(None, None, -1 if turn in (3, 4, 7, 8) else 1)
            columns = slice(None, None, -1 if turn in (2, 3, 6, 7) else 1)
            pixels = pixels[rows, columns]
        pixels = pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
        pixels = pixels[..., : 3 if pixels.shape[-1] in (3, 4) else 1]
        if all(np.array_equal(pixels[..., 0], pixels[..., c]) for c in range(pixels.shape[-1])):
            pixels = pixels[..., :1]
        elif as_labels:
            raise ReadError(f"{path}: a mask in colour. Save it with one label value per pixel.")
        array = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
        array = array.astype(np.uint8 if array.dtype == bool else array.dtype.newbyteorder("="))
        return Volume(array, _geometry(path, array.shape[1:], raster_mm))


def write_raster(path: Path, array: NDArray[Any]) -> None:
    if array.ndim != 2:
        raise OutputError(f"a raster has two axes, not shape {array.shape}")
    if path.suffix.lower() in _TIFF:
        import tifffile

        tifffile.imwrite(path, array, compression="zlib")
    elif path.suffix.lower() == ".png" and array.dtype in (np.uint8, np.uint16):
        from PIL import Image

        Image.fromarray(np.ascontiguousarray(array)).save(path)
    else:
        raise OutputError(f"{array.dtype} does not fit; .png holds uint8 and uint16, .tif any type")


def _geometry(path: Path, shape: tuple[int, ...], raster_mm: float | None) -> Geometry:
    mm = 1.0 if raster_mm is None else float(raster_mm)
    return check_grid(path, Geometry.from_spacing(shape, (mm, mm)))


def _pil_pixels(path: Path, raster_mm: float | None, as_labels: bool) -> tuple[NDArray[Any], Any]:
    """Pixels `[y, x]` or `[y, x, colours]` as stored, and the orientation tag (1 to 8)."""
    from PIL import Image

    with Image.open(path, formats=_FORMATS) as image:
        _geometry(path, (image.height, image.width), raster_mm)
        if path.suffix.lower() not in _LOSSY:  # JPEG shrinks without a bound; PIL has its own
            bits = 1 if image.mode == "1" or ";1'" in str(image.tile) else 8
            check_size(path, image.width * image.height * len(image.getbands()) * bits // 8)
        if len(image.getbands()) > 1 and ";16" in str(image.tile):  # Pillow keeps half of each
            raise ReadError(f"{path}: 16 bits for each of several channels. Save it in grey.")
        image.load()  # newer versions of Pillow turn a TIFF here, and then say no more of it
        # no viewer turns a PNG
        turn = 1 if image.format == "PNG" else image.getexif().get(_ORIENTATION)
        coded = image.mode in ("CMYK", "YCbCr", "LAB", "HSV")
        if coded or (image.mode == "P" and not as_labels):
            return np.asarray(image.convert("RGB")), turn
        return np.asarray(image), turn


def _tiff_pixels(path: Path, raster_mm: float | None, as_labels: bool) -> tuple[NDArray[Any], Any]:
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        if len(tiff.pages) != 1:
            raise ReadError(f"{path}: {len(tiff.pages)} pages. Convert a stack to NIfTI or NRRD.")
        page: Any = tiff.pages[0]
        _geometry(path, (page.imagelength, page.imagewidth), raster_mm)
        check_size(path, page.nbytes // (8 if page.bitspersample == 1 else 1))
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE and not as_labels:
            return _pil_pixels(path, raster_mm, as_labels)
        try:
            pixels = np.asarray(page.asarray())
        except ValueError:  # a compression that tifffile leaves to a further package, such as LZW
            return _pil_pixels(path, raster_mm, as_labels)
        if page.axes == "SYX":
            pixels = np.moveaxis(pixels, 0, -1)
        inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and not as_labels
        if inverted and pixels.dtype.kind == "u":
            pixels = np.iinfo(pixels.dtype).max - pixels
        return pixels, page.tags.valueof(_ORIENTATION)
