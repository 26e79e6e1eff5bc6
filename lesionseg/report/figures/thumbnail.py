"""A small picture of a whole case with its lesions outlined."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry
from lesionseg.plan.fingerprint import canonical_order
from lesionseg.report.figures.outlines import trace_loops

PIXELS = 160  # of the longer side
_DARKEST, _BRIGHTEST = 1.0, 99.5  # percentiles


@dataclass(frozen=True)
class Thumbnail:
    """A picture as a data URI, its size in millimetres and the outlines as an SVG path on it."""

    uri: str
    width_mm: float
    height_mm: float
    outline: str


def draw_thumbnail(
    channel: NDArray[Any], geometry: Geometry, lesions: NDArray[np.bool_] | None
) -> Thumbnail:
    """Draw one channel `[*spatial]`: the axial slice with the most lesion voxels, or the middle.

    The patient's front is on top and right on the left; 2-D images stay as they are.
    """
    image, mask, spacing = _turned(channel, geometry, lesions)
    if image.ndim == 3:
        counts = mask.sum(axis=(1, 2))
        at = int(counts.argmax()) if counts.any() else len(image) // 2
        image, mask, spacing = image[at], mask[at], spacing[1:]
    height, width = image.shape[0] * spacing[0], image.shape[1] * spacing[1]
    loops = trace_loops(mask)
    lines = ("L".join(f"{x * spacing[1]:.5g} {y * spacing[0]:.5g}" for x, y in p) for p in loops)
    return Thumbnail(
        _png(_grey(image), width, height), width, height, "".join(f"M{line}Z" for line in lines)
    )


def _turned(
    channel: NDArray[Any], geometry: Geometry, lesions: NDArray[np.bool_] | None
) -> tuple[NDArray[Any], NDArray[np.bool_], Sequence[float]]:
    """Image, mask and spacing with rows running to the back and columns to the left."""
    mask = np.zeros(geometry.shape, dtype=bool) if lesions is None else lesions
    if geometry.dims == 2:
        return channel, mask, geometry.spacing_mm
    order = canonical_order(geometry)
    # rows 2, 1, 0 of the affine are S, A, R; an axis that runs to A or R is flipped
    flips = [k for k in (1, 2) if geometry.affine[2 - k, order[k]] > 0]
    spacing = [geometry.spacing_mm[axis] for axis in order]
    image = np.flip(channel.transpose(order), tuple(flips))
    return image, np.flip(mask.transpose(order), tuple(flips)), spacing


def _grey(image: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = np.percentile(image[:: max(1, image.shape[0] // 256)], (_DARKEST, _BRIGHTEST))
    scaled = (image.astype(np.float32) - low) / max(high - low, 1e-6)
    return np.asarray((np.clip(scaled, 0, 1) * 255).round().astype(np.uint8))


def _png(grey: NDArray[np.uint8], width_mm: float, height_mm: float) -> str:
    from PIL import Image

    longest = max(width_mm, height_mm)
    size = [max(1, round(PIXELS * side / longest)) for side in (width_mm, height_mm)]
    picture = Image.fromarray(np.ascontiguousarray(grey))
    picture = picture.resize(
        (min(size[0], 4 * picture.width), min(size[1], 4 * picture.height)),
        Image.Resampling.BOX if picture.width > size[0] else Image.Resampling.BILINEAR,
    )
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
