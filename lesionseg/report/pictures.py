"""Cut-outs of a scan around a lesion or mark, oriented as radiologists look at them."""

import base64
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry
from lesionseg.report.outlines import Loop, trace_loops
from lesionseg.report.scene import Mask, Scene

# Wide enough to recognise the place; narrow enough that no face can be rebuilt.
MIN_SIDE_MM = 64.0
SIDE_PER_EXTENT = 3.0
MIN_SHARE_2D = 0.25
MAX_PIXELS = 400
MIN_CONTRAST = 0.25
SAMPLE = 100_000
PLANES = ("axial", "coronal", "sagittal")
# letter on the left and on the upper edge of each plane, once axes run to I, P, L
EDGES = (("R", "A"), ("R", "S"), ("A", "S"))


@dataclass(frozen=True, eq=False)
class View:
    """One slice to be drawn: grey values `[h, w]` uint8 and outlines in millimetres.

    `height_mm` and `width_mm` are its size. `reference` and `accepted` are closed loops of
    (x, y) points in units of `pixel_mm` (height, width of a pixel as cut out). `frame` is a
    rectangle (x, y, width, height) in millimetres around the place on an overview. `centre` is
    the place itself (x, y) in millimetres.
    """

    plane: str
    image: NDArray[np.uint8]
    height_mm: float
    width_mm: float
    pixel_mm: tuple[float, float]
    reference: tuple[Loop, ...] = ()
    accepted: tuple[Loop, ...] = ()
    left: str = ""
    top: str = ""
    frame: tuple[float, float, float, float] | None = None
    centre: tuple[float, float] | None = None

    def path(self, loops: Sequence[Loop]) -> str:
        """Loops as the `d` of an SVG path, in millimetres."""
        height, width = self.pixel_mm
        lines = (
            "L".join(f"{round(x * width, 2):g} {round(y * height, 2):g}" for x, y in loop)
            for loop in loops
        )
        return "".join(f"M{line}Z" for line in lines)

    def ticks(self) -> str:
        """Short lines at the lower and the right edge that point to the centre, as an SVG path."""
        x, y = self.centre or (self.width_mm / 2, self.height_mm / 2)
        length = 0.06 * self.height_mm
        return f"M{x:g} {self.height_mm:g}v{-length:g}M{self.width_mm:g} {y:g}h{-length:g}"

    def data_uri(self) -> str:
        """The grey values as a PNG data URI."""
        from PIL import Image

        buffer = io.BytesIO()
        picture = Image.fromarray(self.image)
        picture.thumbnail((MAX_PIXELS, MAX_PIXELS), Image.Resampling.BOX)
        picture.save(buffer, "png", optimize=True)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def cut_views(
    scene: Scene, start: Sequence[float], stop: Sequence[float], *, on_mark: bool = False
) -> tuple[View, ...]:
    """Slices through the middle of the box `start` to `stop` (voxels of the scene's grid).

    They pass through the reference in the box, or, with `on_mark`, through the accepted mark.

    3-D: axial, coronal and sagittal, turned so that each array axis runs to the patient's feet,
    back and left. 2-D: the whole image with a frame, and the cut-out, as they lie in the file.
    """
    turned, box = _turn(scene, np.array([start, stop], dtype=float))
    masks = (turned.accepted,) if on_mark else (turned.reference, turned.accepted)
    middle = _middle(turned.geometry, box, masks)
    side_mm = _side_mm(turned.geometry, box)
    if scene.geometry.dims == 2:
        close_up = _view(turned, middle, None, side_mm)
        return _overview(turned, middle, side_mm), close_up
    return tuple(_view(turned, middle, axis, side_mm) for axis in range(3))


def display_axes(geometry: Geometry) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Order of the file's axes and those to flip so that they run closest to I, P, L.

    The flips are named after the reordering. 2-D images stay as they are.

    >>> display_axes(Geometry.from_spacing((4, 5, 6), (1, 1, 1)))
    ((0, 1, 2), (0, 1, 2))
    """
    if geometry.dims == 2:
        return (0, 1), ()
    # rows: S, A, R as file axes z, y, x would run; columns: the file's own axes
    directions = geometry.affine[:3, :3][::-1] / np.asarray(geometry.spacing_mm)
    order = max(
        itertools.permutations(range(3)),
        key=lambda axes: sum(abs(directions[k, axis]) for k, axis in enumerate(axes)),
    )
    return order, tuple(k for k, axis in enumerate(order) if directions[k, axis] > 0)


def _turn(scene: Scene, box: NDArray[Any]) -> tuple[Scene, NDArray[Any]]:
    order, flips = display_axes(scene.geometry)
    spacing = [scene.geometry.spacing_mm[axis] for axis in order]
    shape = [scene.geometry.shape[axis] for axis in order]
    box = box[:, order]
    for axis in flips:
        box[:, axis] = shape[axis] - box[::-1, axis]
    image, reference, accepted = (
        None if array is None else np.flip(array.transpose(order), flips)
        for array in (scene.image, scene.reference, scene.accepted)
    )
    turned = Geometry.from_spacing(shape, spacing)
    return Scene(np.asarray(image), turned, reference, accepted), box


def _middle(geometry: Geometry, box: NDArray[Any], masks: Sequence[Mask | None]) -> tuple[int, ...]:
    """The voxel at the middle of the box, moved onto the nearest marked voxel in it."""
    start = np.maximum(np.floor(box[0]).astype(int), 0)
    stop = np.minimum(np.maximum(np.ceil(box[1]).astype(int), start + 1), geometry.shape)
    start = np.minimum(start, stop - 1)
    centre = (box[0] + box[1] - 1) / 2
    inside = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    for mask in masks:
        voxels = np.argwhere(mask[inside]) + start if mask is not None else np.zeros((0, 0))
        if len(voxels):
            nearest = np.argmin(((voxels - centre) ** 2).sum(axis=1))
            return tuple(int(v) for v in voxels[nearest])
    return tuple(int(v) for v in np.clip(np.round(centre), start, stop - 1))


def _side_mm(geometry: Geometry, box: NDArray[Any]) -> float:
    extent = float(((box[1] - box[0]) * geometry.spacing_mm).max())
    least = MIN_SIDE_MM
    if geometry.dims == 2:
        size = [n * s for n, s in zip(geometry.shape, geometry.spacing_mm, strict=True)]
        least = MIN_SHARE_2D * max(size)
    return max(least, SIDE_PER_EXTENT * extent)


def _view(scene: Scene, middle: Sequence[int], axis: int | None, side_mm: float) -> View:
    """The slice across `axis` (None: the 2-D image itself) around `middle`."""
    index: list[Any] = [
        _around(n, at, side_mm / spacing)
        for n, at, spacing in zip(
            scene.geometry.shape, middle, scene.geometry.spacing_mm, strict=True
        )
    ]
    shades = _shades(scene.image, scene.image[tuple(index)])
    if axis is not None:
        index[axis] = middle[axis]
    pixel = [s for k, s in enumerate(scene.geometry.spacing_mm) if k != axis]
    left, top = EDGES[axis] if axis is not None else ("", "")
    plane = PLANES[axis] if axis is not None else "cut-out"
    y, x = (
        (at - around.start + 0.5) * s
        for k, (at, around, s) in enumerate(
            zip(middle, index, scene.geometry.spacing_mm, strict=True)
        )
        if k != axis
    )
    view = _draw(scene, tuple(index), shades, pixel, plane)
    return replace(view, left=left, top=top, centre=(x, y))


def _overview(scene: Scene, middle: Sequence[int], side_mm: float) -> View:
    """The whole 2-D image with a frame where the cut-out lies."""
    spacing = scene.geometry.spacing_mm
    shades = _shades(scene.image, scene.image)
    whole = _draw(scene, (slice(None), slice(None)), shades, spacing, "whole image")
    rows, columns = (
        _around(n, at, side_mm / s)
        for n, at, s in zip(scene.geometry.shape, middle, spacing, strict=True)
    )
    frame = (
        columns.start * spacing[1],
        rows.start * spacing[0],
        (columns.stop - columns.start) * spacing[1],
        (rows.stop - rows.start) * spacing[0],
    )
    return replace(whole, reference=(), accepted=(), frame=frame)


def _draw(
    scene: Scene,
    index: tuple[Any, ...],
    shades: tuple[float, float],
    pixel: Sequence[float],
    plane: str,
) -> View:
    low, high = shades
    scaled = (scene.image[index].astype(np.float32) - low) / (high - low)
    image = (np.clip(scaled, 0, 1) * 255).round().astype(np.uint8)
    reference, accepted = (
        () if mask is None else trace_loops(mask[index])
        for mask in (scene.reference, scene.accepted)
    )
    height, width = image.shape
    return View(
        plane,
        image,
        height * pixel[0],
        width * pixel[1],
        (pixel[0], pixel[1]),
        reference,
        accepted,
    )


def _around(n: int, at: int, side: float) -> slice:
    """`side` voxels around `at`, moved to lie within `n` voxels."""
    size = min(n, max(1, round(side)))
    start = min(max(0, at - size // 2), n - size)
    return slice(start, start + size)


def _shades(image: NDArray[Any], neighbourhood: NDArray[Any]) -> tuple[float, float]:
    """Values shown black and white: the neighbourhood's 1st and 99.9th percentile.

    Widened where that is less than a quarter of the whole image's range, lest noise looks like
    tissue.
    """
    low, high = (float(v) for v in np.percentile(neighbourhood, (1.0, 99.9)))
    sample = image.reshape(-1)[:: max(1, image.size // SAMPLE)]
    least, most = np.percentile(sample, (1.0, 99.9))
    missing = max(MIN_CONTRAST * float(most - least), 1e-6) - (high - low)
    return (low - missing / 2, high + missing / 2) if missing > 0 else (low, high)
