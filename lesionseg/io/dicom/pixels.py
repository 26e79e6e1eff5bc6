"""Pixels of DICOM images: stored ones decoded, those inside an outline, those that show nothing."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.errors import ReadError
from lesionseg.io.dicom.headers import pixel_bytes, read_header
from lesionseg.io.formats.decoder import decode
from lesionseg.io.formats.guard import check_claim, reading

if TYPE_CHECKING:
    from pydicom.dataset import Dataset as Header

logger = logging.getLogger(__name__)

# what decodes a transfer syntax that needs more than pydicom and Pillow, PS3.6 table A-1
_PACKAGES = {
    "1.2.840.10008.1.2.4.50": "pillow",
    "1.2.840.10008.1.2.4.51": "pylibjpeg pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.57": "pylibjpeg pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.70": "pylibjpeg pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pillow",
    "1.2.840.10008.1.2.4.91": "pillow",
    "1.2.840.10008.1.2.4.201": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg pylibjpeg-openjpeg",
}
HIDING = ("PixelPaddingValue", "ShutterShape", "CollimatorShape")
_EVERYTHING = 0.99  # of the pixels: who hides more states something else than what it did


def stored_pixels(path: Path, header: "Header") -> NDArray[Any]:
    """The pixels of a header that was read with them, as stored: `[y, x]` or `[frame, y, x]`.

    Raises `ReadError`, naming the compression and the package to install, where no decoder is
    there for it, and for pixels that are damaged.
    """
    _refuse_undecodable(path, header)
    check_pixels(path, header)
    syntax = _syntax(header)
    if syntax is not None and syntax.is_compressed:
        return decode(_decoded, path)
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of more frames than stated: whoever wants one says so
        return header.pixel_array


def _decoded(path: Path) -> NDArray[Any]:
    with reading(path):
        return read_header(path, pixels=True).pixel_array


def check_pixels(path: Path, header: "Header") -> None:
    """Raise `ReadError` when rows, columns and frames claim more than the file can hold."""
    with reading(path):
        syntax = _syntax(header)
        packed = syntax is not None and (syntax.is_compressed or syntax.is_deflated)
        check_claim(path, pixel_bytes(header), compressed=packed)


def _syntax(header: "Header") -> Any:
    return header.file_meta.get("TransferSyntaxUID") if hasattr(header, "file_meta") else None


def _refuse_undecodable(path: Path, header: "Header") -> None:
    from pydicom.pixels.decoders.base import get_decoder

    syntax = _syntax(header)
    if syntax is None or not syntax.is_compressed:
        return
    try:
        if get_decoder(syntax).is_available:
            return
    except NotImplementedError:  # video, or one that pydicom does not know
        pass
    package = _PACKAGES.get(str(syntax))
    raise ReadError(
        f"The DICOM pixels are compressed as {syntax.name}, which nothing installed can decode.",
        where=path,
        seen=f"transfer syntax {syntax}",
        remedy=f"pip install {package}" if package else "Export the images again, uncompressed.",
    )


def fill_polygon(corners: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.bool_]:
    """Pixels `[y, x]` whose centre lies inside the closed polygon `corners` `[n, 2]` (y, x).

    Inside is where a ray to the left crosses the outline an odd number of times. A polygon that
    holds no centre keeps the pixel nearest to its middle, so that no lesion is lost; one outside
    the image gives nothing. No corners: nothing.

    >>> fill_polygon(np.array([[-0.5, -0.5], [-0.5, 1.5], [0.5, 1.5], [0.5, -0.5]]), (2, 3))
    array([[ True,  True, False],
           [False, False, False]])
    """
    inside = np.zeros(tuple(shape), dtype=bool)
    if len(corners) == 0:
        return inside
    low = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, shape)
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 1, 0, shape)
    y, x = np.mgrid[low[0] : high[0], low[1] : high[1]]
    crossed = np.zeros(y.shape, dtype=bool)
    for (y0, x0), (y1, x1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        between = (y0 <= y) != (y1 <= y)
        crossed ^= between & (x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x)
    inside[low[0] : high[0], low[1] : high[1]] = crossed
    if not inside.any():
        middle = np.rint(corners.mean(axis=0)).astype(int)
        if (middle >= 0).all() and (middle < shape).all():
            inside[tuple(middle)] = True
    return inside


def hidden_pixels(path: Path, header: "Header", stored: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels `[y, x]` that show nothing, of a radiograph's header and its stored values.

    A padding, shutter or collimator that would hide (nearly) the whole image is not believed, and
    said in the log. Padding: PS3.3 C.7.5.1.1.2. Shutter and collimator: PS3.3 C.7.6.11 and C.8.7.3;
    edges, centres and vertices count rows and columns from 1, and a pixel on an edge is seen.
    """
    hidden = np.zeros(stored.shape, dtype=bool)
    masks = {
        "padding": _padding(header, stored),
        "shutter": _outside(header, "Shutter", stored.shape),
        "collimator": _outside(header, "Collimator", stored.shape),
    }
    for name, mask in masks.items():
        if mask is None:
            continue
        if mask.mean() > _EVERYTHING:
            logger.warning("%s: its %s would hide the whole image; it is ignored.", path, name)
            continue
        hidden |= mask
    return hidden


def _padding(header: "Header", stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    value = header.get("PixelPaddingValue")
    if value is None:
        return None
    limit = header.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return np.asarray((stored >= low) & (stored <= high))


def _outside(header: "Header", what: str, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """Pixels beyond the stated shapes; where there are several, beyond any of them."""
    stated = header.get(f"{what}Shape")
    shapes = [stated] if isinstance(stated, str) else list(stated or ())
    draw = {"RECTANGULAR": _rectangle, "CIRCULAR": _circle, "POLYGONAL": _polygon}
    outside = np.zeros(shape, dtype=bool)
    for name in (str(name).upper() for name in shapes):
        inside = draw[name](header, what, shape) if name in draw else None
        if inside is not None:
            outside |= ~inside
    return outside if outside.any() else None


def _rectangle(header: "Header", what: str, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    edges = [
        header.get(f"{what}{edge}Edge")
        for edge in ("UpperHorizontal", "LowerHorizontal", "LeftVertical", "RightVertical")
    ]
    if any(edge is None for edge in edges):
        return None
    top, bottom, left, right = (int(edge) for edge in edges)
    rows, columns = np.ogrid[1 : shape[0] + 1, 1 : shape[1] + 1]
    return np.asarray((rows >= top) & (rows <= bottom) & (columns >= left) & (columns <= right))


def _circle(header: "Header", what: str, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    centre, radius = header.get(f"CenterOfCircular{what}"), header.get(f"RadiusOfCircular{what}")
    if centre is None or radius is None or len(centre) != 2:
        return None
    rows, columns = np.ogrid[1 : shape[0] + 1, 1 : shape[1] + 1]
    off = np.hypot(rows - float(centre[0]), columns - float(centre[1]))
    return np.asarray(off <= float(radius))


def _polygon(header: "Header", what: str, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    corners = header.get(f"VerticesOfThePolygonal{what}")
    if corners is None or len(corners) < 6 or len(corners) % 2:
        return None
    points = np.array([float(v) for v in corners]).reshape(-1, 2) - 1
    return fill_polygon(points, (shape[0], shape[1]))
