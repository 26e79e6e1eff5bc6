"""Drawn from a scan: slices of a cut-out, a small picture of a case, outlines as closed loops."""

import base64
import io
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry
from lesionseg.plan.fingerprint import canonical_order

Point = tuple[int, int]
Loop = tuple[Point, ...]


def trace_loops(mask: NDArray[np.bool_]) -> tuple[Loop, ...]:
    """Closed loops of corner points (x, y) around the True pixels of a `[h, w]` mask.

    Exact: no corner is cut, so a lesion of one pixel keeps its area. Only points where the
    outline turns are kept; the last joins the first. An empty mask gives no loop. Pixels that
    touch by a corner may share a loop or have two.

    >>> trace_loops(np.array([[True]]))
    (((0, 0), (1, 0), (1, 1), (0, 1)),)
    """
    following = _edges(mask)
    loops = []
    while following:
        start = next(iter(following))
        loop = [start]
        while (point := _take(following, loop[-1])) != start:
            loop.append(point)
        loops.append(_turns(loop))
    return tuple(loops)


def _edges(mask: NDArray[np.bool_]) -> dict[Point, list[Point]]:
    """From each corner to the next one along the outline, inside on the right hand."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    following: dict[Point, list[Point]] = defaultdict(list)
    for neighbour, start, stop in (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),  # above is outside: walk right along the top
        (padded[1:-1, 2:], (1, 0), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (0, 1)),
        (padded[1:-1, :-2], (0, 1), (0, 0)),
    ):
        for y, x in np.argwhere(inside & ~neighbour).tolist():
            following[x + start[0], y + start[1]].append((x + stop[0], y + stop[1]))
    return following


def _take(following: dict[Point, list[Point]], point: Point) -> Point:
    following_point = following[point].pop()
    if not following[point]:
        del following[point]
    return following_point


def _turns(loop: list[Point]) -> Loop:
    around = zip([loop[-1], *loop[:-1]], loop, [*loop[1:], loop[0]], strict=True)
    return tuple(
        b for a, b, c in around if (b[0] - a[0], b[1] - a[1]) != (c[0] - b[0], c[1] - b[1])
    )


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


MAX_PIXELS = 400


MAX_PIXELS_OF_STACK = 256


JPEG_QUALITY = 85


@dataclass(frozen=True, eq=False)
class PictureSlice:
    """Grey values `[h, w]` uint8 and the outlines on them, closed loops of (x, y) in pixels.

    `offset_mm` is its distance from the middle slice, towards the feet, the back or the left.
    """

    image: NDArray[np.uint8]
    reference: tuple[Loop, ...] = ()
    accepted: tuple[Loop, ...] = ()
    below: tuple[Loop, ...] = ()
    offset_mm: float = 0.0


@dataclass(frozen=True, eq=False)
class View:
    """A few parallel slices to be drawn, of which the one `at` goes through the place.

    `height_mm` and `width_mm` are a slice's size, `pixel_mm` a pixel's (height, width). `frame` is
    a rectangle (x, y, width, height) in millimetres around the place on an overview. `centre` is
    the place itself (x, y) in millimetres.
    """

    plane: str
    slices: tuple[PictureSlice, ...]
    at: int
    height_mm: float
    width_mm: float
    pixel_mm: tuple[float, float]
    left: str = ""
    top: str = ""
    frame: tuple[float, float, float, float] | None = None
    centre: tuple[float, float] | None = None

    @property
    def image(self) -> NDArray[np.uint8]:
        """Grey values of the middle slice."""
        return self.slices[self.at].image

    @property
    def reference(self) -> tuple[Loop, ...]:
        """Outlines of the reference on the middle slice."""
        return self.slices[self.at].reference

    @property
    def accepted(self) -> tuple[Loop, ...]:
        """Outlines of the detections on the middle slice."""
        return self.slices[self.at].accepted

    @property
    def below(self) -> tuple[Loop, ...]:
        """Outlines of candidates too low to count on the middle slice."""
        return self.slices[self.at].below

    @staticmethod
    def path(loops: Sequence[Loop]) -> str:
        """Loops as the `d` of an SVG path, in pixels; `scale` turns it into millimetres."""
        return "".join(f"M{loop[0][0]} {loop[0][1]}{_steps(loop)}Z" for loop in loops)

    def points(self, loop: Loop) -> str:
        """The corners of a loop in millimetres, for an SVG polygon."""
        height, width = self.pixel_mm
        return " ".join(f"{x * width:g},{y * height:g}" for x, y in loop)

    @property
    def scale(self) -> str:
        """The SVG transformation from pixels to millimetres."""
        return f"scale({self.pixel_mm[1]:g} {self.pixel_mm[0]:g})"

    def ticks(self) -> str:
        """Short lines at the lower and the right edge that point to the centre, as an SVG path."""
        x, y = self.centre or (self.width_mm / 2, self.height_mm / 2)
        length = 0.06 * self.height_mm
        return f"M{x:g} {self.height_mm:g}v{-length:g}M{self.width_mm:g} {y:g}h{-length:g}"

    @cached_property
    def data_uri(self) -> str:
        """All slices, the first on top, as one JPEG data URI."""
        side = MAX_PIXELS_OF_STACK if len(self.slices) > 1 else MAX_PIXELS
        return _jpeg_uri([one.image for one in self.slices], side)

    @cached_property
    def still_uri(self) -> str:
        """The middle slice alone, as a JPEG data URI."""
        return _jpeg_uri([self.image], MAX_PIXELS)


def _jpeg_uri(images: Sequence[NDArray[np.uint8]], side: int) -> str:
    """Images one below the other, each at most `side` pixels wide and high."""
    from PIL import Image

    pictures = [Image.fromarray(image) for image in images]
    for picture in pictures:
        picture.thumbnail((side, side), Image.Resampling.BOX)
    strip = np.concatenate([np.asarray(picture) for picture in pictures])
    buffer = io.BytesIO()
    Image.fromarray(strip).save(buffer, "jpeg", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _steps(loop: Loop) -> str:
    """From corner to corner, always along a row or a column; the way back closes by itself."""
    return "".join(
        f"h{x - before[0]}" if y == before[1] else f"v{y - before[1]}"
        for before, (x, y) in itertools.pairwise(loop)
    )
