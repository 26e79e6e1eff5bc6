"""What of a radiograph shows nothing: padding, and what a shutter or collimator covers.

Padding: PS3.3 C.7.5.1.1.2. Shutter and collimator: PS3.3 C.7.6.11 and C.8.7.3; edges, centres and
vertices count rows and columns from 1, and a pixel on an edge is seen.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.io.dicom.polygon import fill_polygon

if TYPE_CHECKING:
    from pydicom.dataset import Dataset as Header

logger = logging.getLogger(__name__)

HIDING = ("PixelPaddingValue", "ShutterShape", "CollimatorShape")
_EVERYTHING = 0.99  # of the pixels: who hides more states something else than what it did


def hidden_pixels(path: Path, header: "Header", stored: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels `[y, x]` that show nothing, of a header and its stored values.

    A padding, shutter or collimator that would hide (nearly) the whole image is not believed, and
    said in the log.
    """
    hidden = np.zeros(stored.shape, dtype=bool)
    found = {
        "padding": _padding(header, stored),
        "shutter": _outside(header, "Shutter", stored.shape),
        "collimator": _outside(header, "Collimator", stored.shape),
    }
    for name, mask in found.items():
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
