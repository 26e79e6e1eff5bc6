"""Cut-outs of a scan around a lesion, drawn as radiologists look at them."""

import base64
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from lesionseg.core import Geometry
from lesionseg.reporting.images import Scene

SMALL_SIDE_MM, SIDE_MM, SIDE_PER_EXTENT = 38.0, 64.0, 3.0  # of a cut-out; small: under 8 mm
SMALL_EXTENT_MM = 8.0
MIN_SHARE_2D = 0.25  # of an image's longer side
INCHES, DPI = 1.75, 110
OUTLINE = 1.1  # width of a line
FADED = 0.4  # opacity of outlines next to the one that is meant
# outline of the reference, of what is accepted, of what was seen but not accepted
REFERENCE, ACCEPTED, BELOW = "#56b4e9", "#f0a500", "white"
EDGES = (("R", "A"), ("R", "S"), ("A", "S"))  # letters on the left and the upper edge


@dataclass(frozen=True)
class Card:
    """A picture with its words: the scan, the size, and what became of the lesion."""

    uri: str
    case: str
    size: str
    words: str


def display_axes(geometry: Geometry) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the order of the file's axes, and those to flip to run closest to I, P, L.

    The flips are named after the reordering. 2-D images stay as they are.

    >>> display_axes(Geometry.from_spacing((4, 5, 6), (1, 1, 1)))
    ((0, 1, 2), (0, 1, 2))
    """
    if geometry.dims == 2:
        return (0, 1), ()
    directions = geometry.affine[:3, :3][::-1] / np.asarray(geometry.spacing_mm)
    order = max(
        itertools.permutations(range(3)),
        key=lambda axes: sum(abs(directions[k, axis]) for k, axis in enumerate(axes)),
    )
    return order, tuple(k for k, axis in enumerate(order) if directions[k, axis] > 0)


@dataclass(frozen=True, eq=False)
class _Outline:
    """A mask `[*axes]` whose outline is drawn, and how."""

    mask: NDArray[np.bool_] | None
    colour: str
    style: str
    width: float = OUTLINE
    alpha: float = 1.0

    def within(self, part: Any) -> "_Outline":
        """Return the outline of a part of the mask."""
        return self if self.mask is None else replace(self, mask=self.mask[part])


def draw_cutout(
    scene: Scene,
    start: Sequence[float],
    stop: Sequence[float],
    *,
    planes: int = 3,
    focus: NDArray[np.bool_] | None = None,
) -> Figure:
    """Draw slices through the middle of the box `start` to `stop` (voxels of the scene's grid).

    3-D: the first `planes` of axial, coronal and sagittal, seen from the feet, the front and the
    left. 2-D: the whole image with a frame, and the cut-out; only the cut-out for one plane.
    `focus`: the mask of the one accepted candidate that is meant; all other outlines are faded.
    """
    order, flips = display_axes(scene.geometry)
    spacing, unit = (
        np.array([scene.geometry.spacing_mm[a] for a in order]),
        scene.geometry.size_unit,
    )
    unit = unit.split(",")[0].split(" ")[0]
    image, reference, accepted, below, meant = (
        None if a is None else np.flip(a.transpose(order), flips)
        for a in (scene.image, scene.reference, scene.accepted, scene.below, focus)
    )
    assert image is not None  # noqa: S101
    fade = 1.0 if meant is None else FADED
    others = accepted if accepted is None or meant is None else accepted & ~meant
    masks = (
        _Outline(reference, REFERENCE, "-"),
        _Outline(others, ACCEPTED, "--", alpha=fade),
        _Outline(None if below is None else below > 0, BELOW, ":", alpha=fade),
        _Outline(meant, ACCEPTED, "--", 2 * OUTLINE),
    )
    box = np.array([start, stop], dtype=float)[:, list(order)]
    for axis in flips:
        box[:, axis] = image.shape[axis] - box[::-1, axis]
    middle = _middle(image.shape, box, (reference, accepted) if meant is None else (meant,))
    extent = float(((box[1] - box[0]) * spacing).max())
    least = SMALL_SIDE_MM if extent < SMALL_EXTENT_MM else SIDE_MM
    if image.ndim == 2:
        least = MIN_SHARE_2D * float((np.array(image.shape) * spacing).max())
    side = max(least, min(SIDE_PER_EXTENT * extent, extent + least))
    side = min(side, max(1.3 * extent, float((np.array(image.shape) * spacing).max())))
    if image.ndim == 2:
        figure, panels = _panels(min(planes, 2))
        _crop(panels[-1], image, masks, spacing, middle, side, unit)
        if planes == 1:
            return figure
        limits = np.percentile(image, (1, 99.5))
        _show(panels[0], image, masks, spacing, limits)
        corner = [(m * s - side / 2) for m, s in zip(middle, spacing, strict=True)]
        panels[0].add_patch(
            Rectangle((corner[1], corner[0]), side, side, fill=False, ec=BELOW, lw=0.8)
        )
        return figure
    figure, panels = _panels(planes)
    for axis, axes in enumerate(panels):
        rest = [k for k in range(3) if k != axis]
        cut: list[Any] = [slice(None)] * 3
        cut[axis] = middle[axis]
        plane = tuple(one.within(tuple(cut)) for one in masks)
        place = [middle[k] for k in rest]
        _crop(axes, image[tuple(cut)], plane, spacing[rest], place, side, unit)
        for letter, spot in zip(EDGES[axis], ((0.02, 0.5), (0.5, 0.93)), strict=True):
            axes.text(*spot, letter, color="white", fontsize=7, transform=axes.transAxes)
    return figure


def draw_overview(image: NDArray[Any], geometry: Geometry, mask: NDArray[np.bool_] | None) -> str:
    """Draw a small picture of a case: the axial slice with most of the mask, or the middle one."""
    order, flips = display_axes(geometry)
    turned = np.flip(image.transpose(order), flips)
    lesions = None if mask is None else np.flip(mask.transpose(order), flips)
    spacing = np.array([geometry.spacing_mm[a] for a in order])
    if turned.ndim == 3:
        counts = np.zeros(len(turned)) if lesions is None else lesions.sum(axis=(1, 2))
        at = int(counts.argmax()) if counts.any() else len(turned) // 2
        turned, spacing = turned[at], spacing[1:]
        lesions = None if lesions is None else lesions[at]
    figure, (axes,) = _panels(1)
    outline = _Outline(lesions, REFERENCE, "-")
    _show(axes, turned, (outline,), spacing, np.percentile(turned, (1, 99.5)))
    return data_uri(figure)


def data_uri(figure: Figure) -> str:
    """Return a figure as a JPEG in a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", dpi=DPI, pil_kwargs={"quality": 82})
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _panels(n: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(n * INCHES, INCHES), facecolor="black")
    panels = [figure.add_axes((k / n, 0, 1 / n, 1)) for k in range(n)]
    for axes in panels:
        axes.set_axis_off()
    return figure, panels


def _crop(
    axes: Axes,
    image: NDArray[Any],
    masks: Sequence[_Outline],
    spacing: NDArray[Any],
    middle: Sequence[int],
    side: float,
    unit: str,
) -> None:
    half = np.ceil(side / 2 / spacing).astype(int)
    window = tuple(
        slice(max(m - h, 0), min(m + h + 1, n))
        for m, h, n in zip(middle, half, image.shape, strict=True)
    )
    limits = np.percentile(image, (1, 99.7))
    _show(axes, image[window], [one.within(window) for one in masks], spacing, limits)
    x, y = ((m - w.start + 0.5) * s for m, w, s in zip(middle, window, spacing, strict=True))
    axes.set_ylim(x + side / 2, x - side / 2)
    axes.set_xlim(y - side / 2, y + side / 2)
    mm = 10 if side < 100 else 50  # a scale bar
    axes.plot([y + 0.44 * side - mm, y + 0.44 * side], [x + 0.45 * side] * 2, color="white", lw=1.5)
    at = (y + 0.44 * side, x + 0.43 * side)
    axes.text(*at, f"{mm} {unit}", color="white", fontsize=7, ha="right", va="bottom")


def _show(
    axes: Axes,
    image: NDArray[Any],
    masks: Sequence[_Outline],
    spacing: NDArray[Any],
    limits: Any,
) -> None:
    """Draw an image `[h, w]` in millimetres with the outlines of masks."""
    height, width = np.array(image.shape) * spacing
    low, high = float(limits[0]), float(limits[1])
    axes.imshow(
        image,
        cmap="gray",
        vmin=low,
        vmax=max(high, low + 1e-6),
        extent=(0, width, height, 0),
        interpolation="nearest",
    )
    for one in masks:
        mask = one.mask
        if mask is None or not mask.any():
            continue
        fine = max(1, min(5, 500 // max(mask.shape)))  # so that outlines follow the voxels' edges
        padded = np.pad(mask.astype(np.float32), 1)  # an outline at the border is closed, too
        padded = padded.repeat(fine, 0).repeat(fine, 1)
        down, across = ((np.arange(n) + 0.5) / fine - 1 for n in padded.shape)
        y, x = down * spacing[0], across * spacing[1]
        axes.contour(
            x,
            y,
            padded,
            levels=[0.5],
            colors=one.colour,
            linestyles=one.style,
            linewidths=one.width,
            alpha=one.alpha,
        )
    axes.set_aspect("equal")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def _middle(
    shape: Sequence[int], box: NDArray[Any], masks: Sequence[NDArray[np.bool_] | None]
) -> tuple[int, ...]:
    """Return the voxel in the middle of the box, moved onto the nearest voxel of a mask in it."""
    start = np.clip(np.floor(box[0]).astype(int), 0, np.array(shape) - 1)
    stop = np.minimum(np.maximum(np.ceil(box[1]).astype(int), start + 1), shape)
    centre = (box[0] + box[1] - 1) / 2
    inside = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    for mask in masks:
        voxels = np.argwhere(mask[inside]) + start if mask is not None else np.zeros((0, 0))
        if len(voxels):
            nearest = voxels[np.argmin(((voxels - centre) ** 2).sum(axis=1))]
            return tuple(int(v) for v in nearest)
    return tuple(int(v) for v in np.clip(np.round(centre), start, stop - 1))
