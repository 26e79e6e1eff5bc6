"""Cut-outs of a scan around a lesion or candidate, oriented as radiologists look at them."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry
from lesionseg.report.figures.slice_views import PictureSlice, View, trace_loops
from lesionseg.report.inputs.case_images import Mask, Scene

# Wide enough to recognise the place; narrow enough that no face can be rebuilt.
MIN_SIDE_MM = 64.0


SIDE_PER_EXTENT = 3.0


MIN_SHARE_2D = 0.25


# Slices to either side of the middle one; together they reach just beyond the lesion.
REACH = 3


MIN_CONTRAST = 0.25


SAMPLE = 100_000


PLANES = ("axial", "coronal", "sagittal")


# letter on the left and on the upper edge of each plane, once axes run to I, P, L
EDGES = (("R", "A"), ("R", "S"), ("A", "S"))


# (case, ids of the candidates that count) -> scene; raises LesionsegError
Load = Callable[[str, frozenset[int]], Scene]


def cut_views(
    scene: Scene,
    start: Sequence[float],
    stop: Sequence[float],
    *,
    on_accepted: bool = False,
    below: frozenset[int] = frozenset(),
) -> tuple[View, ...]:
    """Slices through the middle of the box `start` to `stop` (voxels of the scene's grid).

    They pass through the reference in the box, or, with `on_accepted`, through the detection. Of
    the candidates too low to count those in `below` are outlined.

    3-D: axial, coronal and sagittal, each with its neighbours to just beyond the box, turned so
    that each array axis runs to the patient's feet, back and left. 2-D: the whole image with a
    frame, and the cut-out, as they lie in the file.
    """
    turned, box = _turn(scene, np.array([start, stop], dtype=float))
    masks = (turned.accepted,) if on_accepted else (turned.reference, turned.accepted)
    middle = _middle(turned.geometry, box, masks)
    side_mm = _side_mm(turned.geometry, box)
    if scene.geometry.dims == 2:
        close_up = _view(turned, middle, None, side_mm, below=below)
        return _overview(turned, middle, side_mm), close_up
    offsets = [_offsets(box[:, axis], middle[axis], turned.image.shape[axis]) for axis in range(3)]
    return tuple(_view(turned, middle, axis, side_mm, offsets[axis], below) for axis in range(3))


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
    image, reference, accepted, below = (
        None if array is None else np.flip(array.transpose(order), flips)
        for array in (scene.image, scene.reference, scene.accepted, scene.below)
    )
    turned = Geometry.from_spacing(shape, spacing)
    return Scene(np.asarray(image), turned, reference, accepted, below), box


def _middle(geometry: Geometry, box: NDArray[Any], masks: Sequence[Mask | None]) -> tuple[int, ...]:
    """The voxel at the middle of the box, moved onto the nearest voxel of a mask in it."""
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


def _offsets(ends: NDArray[Any], middle: int, n: int) -> tuple[int, ...]:
    """Slices beside the middle one, in equal steps to just beyond `ends` (start, stop)."""
    beyond = max(middle - ends[0], ends[1] - 1 - middle) + 1
    step = max(1, int(np.ceil(beyond / REACH)))
    return tuple(k * step for k in range(-REACH, REACH + 1) if 0 <= middle + k * step < n)


def _side_mm(geometry: Geometry, box: NDArray[Any]) -> float:
    """Three times the lesion, but no more than the least side around it."""
    extent = float(((box[1] - box[0]) * geometry.spacing_mm).max())
    least = MIN_SIDE_MM
    if geometry.dims == 2:
        size = [n * s for n, s in zip(geometry.shape, geometry.spacing_mm, strict=True)]
        least = MIN_SHARE_2D * max(size)
    return max(least, min(SIDE_PER_EXTENT * extent, extent + least))


def _view(
    scene: Scene,
    middle: Sequence[int],
    axis: int | None,
    side_mm: float,
    offsets: Sequence[int] = (0,),
    below: frozenset[int] = frozenset(),
) -> View:
    """The slices across `axis` (None: the 2-D image itself) around `middle`."""
    index: list[Any] = [
        _around(n, at, side_mm / spacing)
        for n, at, spacing in zip(
            scene.geometry.shape, middle, scene.geometry.spacing_mm, strict=True
        )
    ]
    shades = _shades(scene.image, scene.image[tuple(index)])
    spacing = scene.geometry.spacing_mm
    kept = [k for k in range(len(spacing)) if k != axis]
    y, x = ((middle[k] - index[k].start + 0.5) * spacing[k] for k in kept)
    slices = []
    for offset in offsets:
        if axis is not None:
            index[axis] = middle[axis] + offset
        apart = 0.0 if axis is None else offset * spacing[axis]
        slices.append(replace(_draw(scene, tuple(index), shades, below), offset_mm=apart))
    plane = PLANES[axis] if axis is not None else "cut-out"
    view = _gather(plane, slices, list(offsets).index(0), [spacing[k] for k in kept])
    left, top = EDGES[axis] if axis is not None else ("", "")
    return replace(view, left=left, top=top, centre=(x, y))


def _overview(scene: Scene, middle: Sequence[int], side_mm: float) -> View:
    """The whole 2-D image with a frame where the cut-out lies."""
    spacing = scene.geometry.spacing_mm
    shades = _shades(scene.image, scene.image)
    whole = replace(_draw(scene, (slice(None), slice(None)), shades), reference=(), accepted=())
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
    return replace(_gather("whole image", [whole], 0, spacing), frame=frame)


def _gather(plane: str, slices: Sequence[PictureSlice], at: int, pixel: Sequence[float]) -> View:
    height, width = slices[0].image.shape
    return View(
        plane,
        tuple(slices),
        at,
        height * pixel[0],
        width * pixel[1],
        (float(pixel[0]), float(pixel[1])),
    )


def _draw(
    scene: Scene,
    index: tuple[Any, ...],
    shades: tuple[float, float],
    below: frozenset[int] = frozenset(),
) -> PictureSlice:
    low, high = shades
    scaled = (scene.image[index].astype(np.float32) - low) / (high - low)
    image = (np.clip(scaled, 0, 1) * 255).round().astype(np.uint8)
    reference, accepted = (
        () if mask is None else trace_loops(mask[index])
        for mask in (scene.reference, scene.accepted)
    )
    if scene.below is None or not below:
        return PictureSlice(image, reference, accepted)
    outlined = np.isin(scene.below[index], list(below))
    return PictureSlice(image, reference, accepted, trace_loops(outlined))


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
