"""Cut-outs around a lesion: side in mm, grey window, outlines and their colours, scale bar.

The cut-outs have the orientation of radiology. `write_preview` draws the preview of `predict`.
"""

import base64
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation

from lesionseg.core import CaseFiles, Geometry, Prediction
from lesionseg.core.arrays import Flags, Numbers
from lesionseg.errors import format_score
from lesionseg.io.cases import read_finite
from lesionseg.reporting.images import Scene, candidate_ids, scene_of
from lesionseg.reporting.words import short_unit

SMALL_EXTENT_MM = 8.0  # lesions under this are small
SMALL_SIDE_MM = 38.0  # minimum side of the cut-out of a small lesion
SIDE_MM = 64.0  # minimum side of other cut-outs
SIDE_PER_EXTENT = 3.0  # side of a cut-out, relative to the extent of the lesion
MIN_SHARE_2D = 0.25  # minimum side of a 2-D cut-out, relative to the longer side of the image
# percentiles of the grey values that are shown as black and white
WINDOW = (1, 99.5)  # of a complete plane
CUTOUT_WINDOW = (1, 99.7)  # of a cut-out, from the values of its complete plane
INCHES = 1.75  # side of a panel
DPI = 110
SLICE_SIDE = 512  # pixels of the longer side of a complete slice
PREVIEW_DPI = 200
MAX_ROWS = 4  # candidates in a preview
JPEG_QUALITY = 82
OUTLINE = 1.1  # width of an outline in points
FADED = 0.4  # opacity of all other outlines in a picture of one candidate
REFERENCE = "#56b4e9"  # colour of the outline of the reference
ACCEPTED = "#f0a500"  # colour of accepted candidates
BELOW_COLOUR = "white"  # colour of candidates that are not accepted
DARK_EDGE = [withStroke(linewidth=1.8, foreground="black")]  # of white marks on bright tissue
# letters at the left and the upper edge of the axial, coronal and sagittal plane
EDGES = (("R", "A"), ("R", "S"), ("A", "S"))


@dataclass(frozen=True)
class Card:
    """A picture with its caption: the scan, the size, and a description of the lesion."""

    uri: str
    case: str
    size: str
    words: str

    @classmethod
    def draw(
        cls,
        scenes: Mapping[str, Scene],
        start: Sequence[float],
        stop: Sequence[float],
        *,
        words: tuple[str, str, str],
        planes: int = 3,
        focus: Flags | None = None,
    ) -> "Card":
        """Draw the picture of a lesion with `draw_cutouts`, and make a card of it and its caption.

        Args:
            scenes: The scenes to draw, by the names that are written into the picture.
            start: First corner of the box of the lesion, in voxels.
            stop: Last corner of the box, exclusive.
            words: The scan, the size and a description of the lesion.
            planes: Number of planes.
            focus: Mask of the one accepted candidate that the picture is about. None if the picture
                is not about one candidate.
        """
        figure = draw_cutouts(scenes, start, stop, planes=planes, focus=focus)
        case, size, description = words
        return cls(data_uri(figure), case=case, size=size, words=description)


def display_axes(geometry: Geometry) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the axis order and the flips that bring an image into the usual display of radiology.

    After both, the three axes run closest to inferior, posterior and left. The first tuple is the
    order for `numpy.transpose`, the second one the axes to flip afterwards. 2-D images are not
    changed.

    >>> display_axes(Geometry.from_spacing((4, 5, 6), (1, 1, 1)))
    ((0, 1, 2), (0, 1, 2))
    """
    if geometry.dims == 2:
        return (0, 1), ()
    # column i: the direction of array axis i in RAS (right, anterior, superior)
    cosines = geometry.affine[:3, :3] / np.asarray(geometry.spacing_mm)
    # one row each for superior, anterior and right, instead of right, anterior, superior
    directions = cosines[::-1]

    def closeness(axes: tuple[int, ...]) -> float:
        """Return how parallel the axes in this order are to superior, anterior and right."""
        return sum(abs(float(directions[row, axis])) for row, axis in enumerate(axes))

    order = max(itertools.permutations(range(3)), key=closeness)
    # an axis that points to superior, anterior or right is flipped to the opposite
    flipped = tuple(row for row, axis in enumerate(order) if directions[row, axis] > 0)
    return order, flipped


@dataclass(frozen=True, eq=False)
class _Outline:
    """A mask `[*axes]` and the style of its outline."""

    mask: Flags | None
    colour: str
    style: str
    width: float = OUTLINE
    alpha: float = 1.0

    def within(self, index: Any) -> "_Outline":
        """Return the outline of a section of the mask. Without a mask, nothing changes.

        Args:
            index: A numpy index of the mask, such as that of a slice or a cut-out.
        """
        return self if self.mask is None else replace(self, mask=self.mask[index])


def draw_cutouts(
    scenes: Mapping[str, Scene],
    start: Sequence[float],
    stop: Sequence[float],
    *,
    planes: int = 3,
    focus: Flags | None = None,
) -> Figure:
    """Draw slices of each scene through a lesion, given by its box, for the card of the lesion.

    A 3-D scan is shown in axial, coronal and sagittal planes, seen from the feet, the front and the
    left. A 2-D image is shown completely, with a frame, and as the cut-out within the frame.

    All slices pass through one voxel of a mask, the nearest to the centre of the box. The mask is
    `focus`. Without it, it is the mask of the lesions or, if that is empty in the box, the mask of
    the accepted candidates. If no mask has a voxel in the box, the slices pass through the centre.

    Args:
        scenes: Scans on one grid with their masks, by the names that are written into the slices.
        start: First corner of the box in voxels of the grid.
        stop: Last corner of the box, exclusive.
        planes: Number of planes. In 2-D, one plane shows only the cut-out.
        focus: Mask of the one accepted candidate that the picture is about. All other outlines of
            candidates are faded. None fades no outline.
    """
    n_panels = min(planes, len(start))  # of one scene, at most one per axis of the image
    figure, panels = _make_panels(n_panels * len(scenes))
    for k, (name, scene) in enumerate(scenes.items()):
        panels_of_scene = panels[n_panels * k : n_panels * (k + 1)]
        _draw_scene(panels_of_scene, scene, name, start, stop, focus)
    return figure


def write_preview(file: Path, files: CaseFiles, prediction: Prediction) -> None:
    """Write a PNG file that shows the accepted candidates of a scan in one row of slices each.

    At most `MAX_ROWS` candidates are shown, those with the highest scores. A row states the id, the
    score and the rank of its candidate among all accepted ones. If no candidate is accepted, the
    only row shows slices through the middle of the scan.

    Args:
        file: The PNG file.
        files: The files of the scan. Its first channel, or a picture in colour, is shown.
        prediction: The prediction on the grid of the scan.

    Raises:
        ReadError: If the scan cannot be read.
        OSError: If the file cannot be written.
    """
    geometry = prediction.geometry  # states the pixel size also if a picture does not
    accepted = [candidate for candidate in prediction.candidates if candidate.accepted]
    drawn = candidate_ids(prediction, {candidate.id for candidate in accepted}) > 0
    scene = replace(
        scene_of(read_finite(files.images[0]), files), geometry=geometry, accepted=drawn
    )
    # text, first corner and last corner of the box of each row
    rows: list[tuple[str, Sequence[float], Sequence[float]]] = [
        (f"#{c.id}: {format_score(c.score)} ({k} of {len(accepted)})", c.start_vox, c.stop_vox)
        for k, c in enumerate(accepted[:MAX_ROWS], start=1)
    ]
    if not rows:  # the box is the complete scan
        rows = [("none accepted", [0] * geometry.dims, geometry.shape)]
    n = geometry.dims  # panels of a row: three planes, or a 2-D image and its cut-out
    figure, panels = _make_panels(n, rows=len(rows))
    for k, (text, start, stop) in enumerate(rows):
        _draw_scene(panels[n * k : n * (k + 1)], scene, text, start, stop)
    figure.savefig(file, dpi=PREVIEW_DPI)


def _draw_scene(
    panels: Sequence[Axes],
    scene: Scene,
    name: str,
    start: Sequence[float],
    stop: Sequence[float],
    focus: Flags | None = None,
) -> None:
    """Draw the slices of one scene, and its name, into the panels, as `draw_cutouts` describes.

    Args:
        panels: One panel per plane. In 2-D, the last panel has the cut-out, the first one the
            image.
        scene: The scan and its masks.
        name: The text in the first panel.
        start: First corner of the box in voxels of the grid.
        stop: Last corner of the box, exclusive.
        focus: Mask of the candidate that the picture is about, or None.
    """
    # in the lower left corner; `transAxes` makes positions relative to the panel
    name_style: Any = {"color": "white", "fontsize": 8, "path_effects": DARK_EDGE}
    panels[0].text(0.03, 0.03, name, transform=panels[0].transAxes, **name_style)
    # the image, the masks and the box in the orientation of the display
    order, flips = display_axes(scene.geometry)
    spacing = np.array([scene.geometry.spacing_mm[a] for a in order])
    unit = short_unit(scene.geometry.size_unit)
    image = np.flip(scene.image.transpose(order), flips)
    shown = image
    if scene.colours is not None:  # only 2-D images, which `display_axes` does not change
        shown = display_levels(np.moveaxis(scene.colours, 0, -1), WINDOW)
    reference = _reorient(scene.reference, order, flips)
    accepted = _reorient(scene.accepted, order, flips)
    chosen = _reorient(focus, order, flips)
    masks = _style_outlines(reference, accepted, _reorient(scene.below, order, flips), chosen)
    box = np.array([start, stop], float)[:, list(order)]
    for axis in flips:  # the mirrored stop becomes the start, so both are swapped
        box[:, axis] = image.shape[axis] - box[::-1, axis]
    middle = _find_middle(image.shape, box, (reference, accepted) if chosen is None else (chosen,))
    side = _choose_side(np.array(image.shape) * spacing, (box[1] - box[0]) * spacing)
    # a 2-D image: the cut-out, and the image with the frame of the cut-out
    if image.ndim == 2:
        _draw_square(panels[-1], shown, masks, spacing, middle, side, unit)
        if len(panels) == 1:
            return
        _show_image(panels[0], shown, masks, spacing, limits=np.percentile(shown, WINDOW))
        top, left = (m * s - side / 2 for m, s in zip(middle, spacing, strict=True))
        panels[0].add_patch(Rectangle((left, top), side, side, fill=False, ec=BELOW_COLOUR, lw=0.8))
        return
    # a 3-D scan: one cut-out per plane, with the letters of its left and upper edges
    for axis, axes in enumerate(panels):
        in_plane = [k for k in range(3) if k != axis]
        index: list[Any] = [slice(None)] * 3  # of the slice through `middle`
        index[axis] = middle[axis]
        outlines = tuple(outline.within(tuple(index)) for outline in masks)
        centre = [middle[k] for k in in_plane]
        _draw_square(axes, image[tuple(index)], outlines, spacing[in_plane], centre, side, unit)
        left, upper = EDGES[axis]
        letter_style: Any = {"color": "white", "fontsize": 7, "path_effects": DARK_EDGE}
        axes.text(0.02, 0.5, left, transform=axes.transAxes, **letter_style)
        axes.text(0.5, 0.93, upper, transform=axes.transAxes, **letter_style)


def _style_outlines(
    reference: Flags | None,
    accepted: Flags | None,
    below: NDArray[Any] | None,
    chosen: Flags | None,
) -> tuple[_Outline, ...]:
    """Return the outlines of a scene: reference, accepted, below and chosen, in this order.

    The outline of the candidate `chosen` is thick, and the outlines of all other candidates are
    then faded. Without `chosen`, none is faded.

    Args:
        reference: Mask of the reference lesions.
        accepted: Mask of the accepted candidates. The voxels of `chosen` are removed from it.
        below: Ids of the candidates below the operating point, 0 elsewhere.
        chosen: Mask of the candidate that the picture is about.
    """
    opacity = 1.0  # of the outlines of other candidates
    others = accepted
    if chosen is not None:
        opacity = FADED
        if accepted is not None:
            others = accepted & ~chosen
    return (
        _Outline(reference, REFERENCE, "-"),
        _Outline(others, ACCEPTED, "--", alpha=opacity),
        _Outline(None if below is None else below > 0, BELOW_COLOUR, ":", alpha=opacity),
        _Outline(chosen, ACCEPTED, "--", width=2 * OUTLINE),
    )


def _choose_side(image_mm: Numbers, box_mm: Numbers) -> float:
    """Return the side of a square cut-out in mm, so that it shows a lesion and its surroundings.

    - The side is at least `SMALL_SIDE_MM` for a small lesion, `SIDE_MM` for another one, and in 2-D
      `MIN_SHARE_2D` of the longest side of the image.
    - A larger lesion gets `SIDE_PER_EXTENT` times its extent, but at most its extent plus this
      minimum.
    - The side is at most the longest side of the image, or 1.3 times the extent if that is more,
      so that a margin remains around the lesion.

    Args:
        image_mm: The sides of the image in mm.
        box_mm: The sides of the lesion's box in mm. The longest one is its extent.
    """
    extent = float(box_mm.max())
    longest = float(image_mm.max())
    minimum = SMALL_SIDE_MM if extent < SMALL_EXTENT_MM else SIDE_MM
    if len(image_mm) == 2:
        minimum = MIN_SHARE_2D * longest
    # a large lesion needs less than `SIDE_PER_EXTENT` times its extent
    wanted = min(SIDE_PER_EXTENT * extent, extent + minimum)
    return min(max(minimum, wanted), max(1.3 * extent, longest))


def _reorient(
    array: NDArray[Any] | None, order: tuple[int, ...], flips: tuple[int, ...]
) -> NDArray[Any] | None:
    """Bring an array into the orientation of the display, by the result of `display_axes`.

    None stays None, because masks may be missing.
    """
    return None if array is None else np.flip(array.transpose(order), flips)


def draw_overview(image: NDArray[Any], geometry: Geometry, mask: Flags | None) -> str:
    """Draw a small picture of a case with the outline of its lesions, as a data URI.

    A 3-D scan is shown by the axial slice with the most lesion voxels, or the middle slice without
    any.

    Args:
        image: The image `[*spatial]`, or the colours `[y, x, 3]` of a picture.
        geometry: Grid of the image and the mask.
        mask: Mask of the lesions `[*spatial]`, or None.
    """
    order, flips = display_axes(geometry)
    spacing = np.array([geometry.spacing_mm[a] for a in order])
    lesions = _reorient(mask, order, flips)
    # only a picture in colour has one more axis than its grid
    if image.ndim > geometry.dims:
        shown = display_levels(image, WINDOW)
    else:
        shown = np.flip(image.transpose(order), flips)
    if geometry.dims == 3:  # axis 0 of the display runs from slice to slice
        index = len(shown) // 2
        if lesions is not None:
            if lesions.any():
                index = int(lesions.sum(axis=(1, 2)).argmax())
            lesions = lesions[index]
        shown = shown[index]
        spacing = spacing[1:]
    figure, (axes,) = _make_panels(1)
    outline = _Outline(lesions, REFERENCE, "-")
    _show_image(axes, shown, (outline,), spacing, limits=np.percentile(shown, WINDOW))
    return data_uri(figure)


def draw_slices(grey: NDArray[np.uint8], geometry: Geometry, mask: Flags) -> list[str]:
    """Draw every axial slice of a scan with the outline of a mask, for a page without NiiVue.

    The slices run from superior to inferior, as `display_axes` orders them. A 2-D image is one
    slice. Pixels are square, and the longer side of a slice has `SLICE_SIDE` pixels.

    Args:
        grey: The image `[*spatial]`, 0 for black and 255 for white.
        geometry: Grid of the image and the mask.
        mask: Mask of the outlined candidates `[*spatial]`.

    Returns:
        One JPEG per slice, as a data URI.
    """
    order, flips = display_axes(geometry)
    turned = (np.flip(array.transpose(order), flips) for array in (grey, mask))
    # slices `[n, y, x]`, also of a 2-D image
    planes, masks = (array.reshape(-1, *array.shape[-2:]) for array in turned)
    sides_mm = np.multiply(planes.shape[1:], [geometry.spacing_mm[axis] for axis in order[-2:]])
    height, width = (int(side) for side in np.ceil(SLICE_SIDE * sides_mm / sides_mm.max()))
    drawn = []
    for plane, inside in zip(planes, masks, strict=True):
        picture = (
            Image.fromarray(np.ascontiguousarray(plane)).resize((width, height)).convert("RGB")
        )
        # 0: nearest neighbour, because the mask has no values in between
        large = np.asarray(Image.fromarray(np.ascontiguousarray(inside)).resize((width, height), 0))
        # the outline: the pixels next to the mask
        picture.paste(ACCEPTED, mask=Image.fromarray(binary_dilation(large) & ~large))
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=JPEG_QUALITY)
        drawn.append(jpeg_uri(buffer))
    return drawn


def display_levels(image: NDArray[Any], window: tuple[float, float]) -> NDArray[np.uint8]:
    """Scale an image to grey values or colours from 0 to 255, which pictures are made of.

    Colours that are bytes already are returned unchanged.

    Args:
        image: Grey values `[y, x]` or colours `[y, x, 3]`.
        window: The percentiles of the values that are shown as black and white.
    """
    if image.ndim == 3 and image.dtype == np.uint8:
        return image
    low, high = np.percentile(image, window)
    # 1e-6: a constant image must not divide by 0
    scaled = (image.astype(float) - low) / max(float(high - low), 1e-6)
    return np.asarray(np.rint(255 * np.clip(scaled, 0, 1)), np.uint8)


def data_uri(figure: Figure) -> str:
    """Return a figure as a JPEG in a data URI, so that the page needs no further file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", dpi=DPI, pil_kwargs={"quality": JPEG_QUALITY})
    return jpeg_uri(buffer)


def jpeg_uri(buffer: io.BytesIO) -> str:
    """Return the JPEG in a buffer as a data URI, so that the page needs no further file."""
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _make_panels(n: int, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Make a black figure of square panels without gaps: `rows` rows of `n` panels.

    Returns:
        The figure, and the axes of its panels row by row from the top.
    """
    figure = Figure(figsize=(n * INCHES, rows * INCHES), facecolor="black")
    # lower left corners, relative to the figure: the upper row first, from left to right
    corners = [(k / n, 1 - row / rows) for row in range(1, rows + 1) for k in range(n)]
    panels = [figure.add_axes((left, bottom, 1 / n, 1 / rows)) for left, bottom in corners]
    for axes in panels:
        axes.set_axis_off()
    return figure, panels


def _draw_square(
    axes: Axes,
    image: NDArray[Any],
    outlines: Sequence[_Outline],
    spacing: NDArray[Any],
    middle: Sequence[int],
    side: float,
    unit: str,
) -> None:
    """Draw a square cut-out of an image with outlines and a scale bar.

    If the square extends beyond the image, the panel is black there.

    Args:
        axes: The panel.
        image: Grey values `[h, w]` or colours `[h, w, 3]`.
        outlines: The outlines, with masks `[h, w]`.
        spacing: Height and width of a voxel in mm.
        middle: The voxel at the centre of the cut-out.
        side: Side of the square in mm.
        unit: The unit of the scale bar.
    """
    half = np.ceil(side / 2 / spacing).astype(int)  # of the side, in voxels
    # the part of the square within the image, as rows and columns
    section = tuple(
        slice(max(m - h, 0), min(m + h + 1, n))
        for m, h, n in zip(middle, half, image.shape[:2], strict=True)
    )
    # black and white follow from the complete plane, not from the tissue around the lesion
    limits = np.percentile(image, CUTOUT_WINDOW)
    _show_image(
        axes, image[section], [outline.within(section) for outline in outlines], spacing, limits
    )
    # the centre of the voxel `middle` in mm, from the corner of the section
    y, x = ((m - part.start + 0.5) * s for m, part, s in zip(middle, section, spacing, strict=True))
    axes.set_ylim(y + side / 2, y - side / 2)  # downwards
    axes.set_xlim(x - side / 2, x + side / 2)
    # the scale bar and its length in the lower right corner; the edges are at ±0.5 of the side
    bar_mm = _choose_bar(side)
    right = x + 0.44 * side
    axes.plot(
        [right - bar_mm, right],
        [y + 0.45 * side] * 2,
        color="white",
        lw=1.5,
        path_effects=DARK_EDGE,
    )
    axes.text(
        right,
        y + 0.43 * side,
        f"{bar_mm:g} {unit}",
        color="white",
        fontsize=7,
        ha="right",
        va="bottom",
        path_effects=DARK_EDGE,
    )


def _choose_bar(side: float) -> float:
    """Return the length of a scale bar for a cut-out, a round number of mm.

    The length is the largest number of the form 1, 2 or 5 · 10ⁿ that is at most 0.4 of the side.
    """
    longest = 0.4 * side * (1 + 1e-9)  # not shorter than a round length because of rounding
    power = 10.0 ** np.floor(np.log10(longest))
    return float(power * max(step for step in (1, 2, 5) if step * power <= longest))


def _show_image(
    axes: Axes,
    image: NDArray[Any],
    outlines: Sequence[_Outline],
    spacing: NDArray[Any],
    limits: Any,
) -> None:
    """Draw an image, with axes in mm, and the outlines of masks. An empty mask has no outline.

    Args:
        axes: The panel.
        image: Grey values `[h, w]`, or colours `[h, w, 3]` from 0 to 255.
        outlines: The outlines, with masks `[h, w]`.
        spacing: Height and width of a voxel in mm.
        limits: The grey values that are shown as black and as white.
    """
    height, width = np.array(image.shape[:2]) * spacing
    low = float(limits[0])
    axes.imshow(
        image,
        cmap="gray",
        vmin=low,
        vmax=max(float(limits[1]), low + 1e-6),  # also for a constant image above `vmin`
        extent=(0, width, height, 0),
        interpolation="nearest",
    )
    for outline in outlines:
        mask = outline.mask
        if mask is None or not mask.any():
            continue
        padded = np.pad(mask.astype(np.float32), 1)  # closes outlines at the border
        # Each voxel is divided, so that outlines follow its edges instead of cutting its corners.
        # Large masks are divided less, because their edges are finer and `contour` takes longer.
        factor = max(1, min(5, 500 // max(mask.shape)))
        padded = padded.repeat(factor, axis=0).repeat(factor, axis=1)
        # the centres of the parts in voxels of the image; 1 voxel of padding is before it
        down, across = ((np.arange(n) + 0.5) / factor - 1 for n in padded.shape)
        axes.contour(
            across * spacing[1],
            down * spacing[0],
            padded,
            levels=[0.5],
            colors=outline.colour,
            linestyles=outline.style,
            linewidths=outline.width,
            alpha=outline.alpha,
        )
    axes.set_aspect("equal")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def _find_middle(
    shape: Sequence[int], box: NDArray[Any], masks: Sequence[Flags | None]
) -> tuple[int, ...]:
    """Return the voxel through which the slices of a cut-out pass.

    The voxel is the one of a mask within the box that is nearest to the centre of the box. The
    first mask that has voxels in the box is used. If no mask has any, it is the centre itself.

    Args:
        shape: Shape of the image. The box is clipped to the image.
        box: First corner and last corner (exclusive) of the box `[2, dims]`, in voxels.
        masks: Masks of the image `[*spatial]`, or None.
    """
    # at least one voxel within the image, also for a box outside it
    start = np.clip(np.floor(box[0]).astype(int), 0, np.array(shape) - 1)
    stop = np.minimum(np.maximum(np.ceil(box[1]).astype(int), start + 1), shape)
    centre = (box[0] + box[1] - 1) / 2  # of the first and the last voxel; `stop` is exclusive
    inside = tuple(map(slice, start, stop))
    for mask in masks:
        if mask is not None and mask[inside].any():
            voxels = np.argwhere(mask[inside]) + start
            return tuple(map(int, voxels[np.argmin(((voxels - centre) ** 2).sum(axis=1))]))
    return tuple(map(int, np.clip(np.round(centre), start, stop - 1)))
