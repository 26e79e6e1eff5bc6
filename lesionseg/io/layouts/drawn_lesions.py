"""Reference drawn from annotations: polygons, run lengths, clipped boxes, ignored regions."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import AnnotatedBoxes, CaseFiles, Geometry, Reference, describe_sides
from lesionseg.core.arrays import Flags, Integers
from lesionseg.core.lesions import box_slices, clip_boxes
from lesionseg.errors import ContentError, GeometryError, count
from lesionseg.io.layouts.annotated_lesions import (
    LESIONS_KEY,
    AnnotatedLesion,
    CaseLesions,
    Polygons,
    RunLengths,
    lesions_are_boxes,
)
from lesionseg.io.masks import read_mask
from lesionseg.io.worker import run_in_worker

logger = logging.getLogger(__name__)

_MAX_SIDES = 10  # largest coordinate of a polygon, in sides of the image


@dataclass(frozen=True, eq=False)
class DrawnPart:
    """The drawing of one lesion, cropped to its box. An image may have hundreds of lesions.

    Attributes:
        top: The first row of the box.
        left: The first column of the box.
        mask: The drawn pixels `[y, x]` of the box. Empty if the drawing contains no pixel centre.
    """

    top: int
    left: int
    mask: Flags

    def paint(self, image: NDArray[Any], value: int) -> None:
        """Set the drawn pixels to a value in the array of the whole image `[y, x]`, in place."""
        height, width = self.mask.shape
        image[self.top : self.top + height, self.left : self.left + width][self.mask] = value


def read_annotated_reference(
    files: CaseFiles, geometry: Geometry, merged: Collection[int]
) -> Reference:
    """Read the reference of a case whose lesions are described by annotations.

    - The pixels of the lesions come from the mask of the case if it has one, otherwise from
      outlines. If the case has no mask and a lesion has only a box, the reference consists of
      boxes.
    - A pixel in several lesions belongs to the smallest of them. A lesion without any pixel is left
      out with a warning.
    - Ignored regions become `ignore`, except for pixels of lesions in them.

    Args:
        files: The files of the case.
        geometry: The grid of the image.
        merged: The label values that become 1, because the labels are merged. Other values do not
            change.

    Returns:
        The reference, with zeros for a lesion-free case.

    Raises:
        GeometryError: If the image has another size than its annotations say, or the mask has
            another size than the image.
        ContentError: If a box is empty, has another number of axes than the image or is outside the
            image; if an outline cannot be drawn or does not fit its box; or if the mask does not
            fit the lesions.
        ReadError: If the mask cannot be read.
    """
    annotated: CaseLesions = files.annotations[LESIONS_KEY]
    shape = geometry.shape
    _require_annotated_size(files.images[0], annotated.size, geometry)
    lesions_in_pixels = [
        _to_pixels(lesion, files.images[0], geometry) for lesion in annotated.lesions
    ]
    lesions = [lesion for lesion in lesions_in_pixels if not lesion.is_ignored]
    ignored_regions = [lesion for lesion in lesions_in_pixels if lesion.is_ignored]
    ignore = _draw_ignored(ignored_regions, shape) if ignored_regions else None
    labels = np.array(
        [1 if lesion.label in merged else lesion.label for lesion in lesions], np.int64
    )
    boxes = _clipped_boxes(lesions, shape)
    # for each pixel, the lesion id from 1 in the order of `lesions`, 0 for the background
    if files.reference is not None:
        lesion_ids = _read_instances(files.reference, lesions, shape)
    elif lesions and not lesions_are_boxes(files):
        lesion_ids = _draw_instances(lesions, shape)
    else:
        return _reference_of_boxes(geometry, lesions, boxes, labels, ignore)
    # the number of pixels of each lesion; the first count is that of the background
    n_pixels = np.bincount(lesion_ids.ravel(), minlength=len(lesions) + 1)[1:]
    _check_boxes(lesions, lesion_ids, boxes, n_pixels)
    is_visible = n_pixels > 0
    if not is_visible.all():
        reason = "smaller lesions cover every pixel or another annotation has the same pixels"
        if files.reference is not None:
            reason = f"no pixel of {files.reference.name} has the mask_label"
        n_left_out = count(int((~is_visible).sum()), "lesion")
        logger.warning("%s: %s left out, because %s.", files.case, n_left_out, reason)
    # the arrays of the reference, without the lesions that have no pixel
    visible_labels = tuple(labels[is_visible].tolist())
    label_of_id = np.array([0, *labels]).astype(np.min_scalar_type(int(labels.max(initial=0))))
    # consecutive ids: if the second of three lesions is covered, the third gets the id 2
    new_id = np.array([0, *np.cumsum(is_visible)], np.int32)
    return Reference(
        geometry,
        labels=label_of_id[lesion_ids],
        instances=new_id[lesion_ids],
        instance_labels=visible_labels,
        boxes=boxes[is_visible],
        box_labels=visible_labels,
        ignore=None if ignore is None else ignore & (lesion_ids == 0),
        # the boxes of all lesions, also of lesions without a pixel
        annotated_boxes=_annotated_boxes(lesions, labels),
    )


def _require_annotated_size(
    image: Path, annotated_size: tuple[int, ...] | None, geometry: Geometry
) -> None:
    """Raise `GeometryError` if the annotations give another image size than the image has.

    The coordinates of the annotations would otherwise refer to other pixels. The message tells if
    height and width are exchanged.

    Args:
        image: The image file, for the message.
        annotated_size: Height and width from the annotations, or None if they give no size.
        geometry: The grid of the image.
    """
    if annotated_size and annotated_size != geometry.shape:
        advice = "Correct height and width, or the image."
        if annotated_size == geometry.shape[::-1]:
            advice = (
                "Annotations refer to the upright picture. If they were drawn on the stored one, "
                "remove the picture's orientation tag (EXIF); otherwise exchange height and width."
            )
        raise GeometryError(
            f"{image} is {describe_sides(geometry.shape[::-1])} (width × height), but its "
            f"annotations state {describe_sides(annotated_size[::-1])}. {advice}"
        )


def _to_pixels(lesion: AnnotatedLesion, image: Path, geometry: Geometry) -> AnnotatedLesion:
    """Return a lesion whose box and polygons are in pixels, or in voxels for a volume.

    - Run lengths without a box get the box of their pixels.
    - Fractions of the image ("share") are multiplied by height and width.
    - A box in millimetres is transformed into voxels.
    - Other lesions are in pixels already and do not change.

    Raises:
        ContentError: If run lengths have another size than the image, if they are empty and have no
            box, or if the box has another number of axes than the image.
    """
    if isinstance(lesion.outline, RunLengths):
        lesion = _add_box(lesion, lesion.outline, geometry.shape)
    if len(lesion.box) != 2 * geometry.dims:
        advice = "Empty z0 and z1 (boxes.csv), or write 4 numbers (datalist)."
        if geometry.dims == 3:
            advice = "Fill in z0 and z1 (boxes.csv), or write 6 numbers (datalist)."
        raise ContentError(
            f"{lesion.where}: the box has {len(lesion.box) // 2} axes, but {image} has "
            f"{geometry.dims}. {advice}"
        )
    if lesion.unit == "mm":
        return _to_voxels(lesion, geometry)
    if lesion.unit == "share":
        polygons = [
            # [::-1]: points are (x, y), so they are multiplied by (width, height)
            tuple((np.reshape(polygon, (-1, 2)) * geometry.shape[::-1]).ravel().tolist())
            for polygon in lesion.outline
        ]
        # `2 *` repeats the tuple: (height, width, height, width) for start and stop
        box = np.multiply(lesion.box, 2 * geometry.shape)
        return replace(lesion, box=tuple(box.tolist()), outline=tuple(polygons))
    return lesion


def _to_voxels(lesion: AnnotatedLesion, geometry: Geometry) -> AnnotatedLesion:
    """Return a lesion whose box in LPS millimetres is transformed into a box in voxels.

    If the axes of the image are rotated in the patient, the result is the smallest box along the
    array axes that contains the original box.
    """
    from lesionseg.ops.boxes import move_boxes  # imports torch

    # LPS millimetres as the voxels of a grid, whose array axes are x, y and z. The centre of the
    # voxel [0, 1) is at 0.5 mm. The affine is in RAS.
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, 3] = (-0.5, -0.5, 0.5)
    (box,) = move_boxes(lesion.box, Geometry((1, 1, 1), affine), geometry)
    return replace(lesion, box=tuple(box.tolist()))


def _add_box(
    lesion: AnnotatedLesion, outline: RunLengths, shape: tuple[int, ...]
) -> AnnotatedLesion:
    """Return a lesion in run lengths with a box. If it has none, the box of its pixels is added.

    Args:
        lesion: The lesion.
        outline: The run lengths of the lesion.
        shape: The shape of the image.

    Raises:
        ContentError: If the run lengths have another size than the image, or if they are empty and
            the lesion has no box.
    """
    if outline.size != shape:
        raise ContentError(
            f"{lesion.where}: the run lengths of a segmentation have the size {outline.size}, but "
            f"the image has {shape}. Correct the size."
        )
    if lesion.box:
        return lesion
    (part,) = _draw_parts([lesion], shape)
    # indices in the image, not in the crop
    pixels = np.argwhere(part.mask) + np.array([part.top, part.left])
    if not len(pixels):
        raise ContentError(
            f"{lesion.where}: a segmentation in run lengths is empty. Remove the annotation."
        )
    box = np.concatenate([pixels.min(axis=0), pixels.max(axis=0) + 1])
    return replace(lesion, box=tuple(box.astype(float).tolist()))


def _clipped_boxes(
    lesions: Sequence[AnnotatedLesion], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Return the boxes of lesions as an array `[n, 2·dims]`, clipped to the image.

    Raises:
        ContentError: If a box is empty or outside the image. The message names the first such
            annotation.
    """
    boxes = [clip_boxes(lesion.box, shape, lesion.where) for lesion in lesions]
    # the empty array gives a result for no lesions, too
    return np.concatenate([np.zeros((0, 2 * len(shape)), np.float32), *boxes])


def _annotated_boxes(lesions: Sequence[AnnotatedLesion], labels: Integers) -> AnnotatedBoxes:
    """Return the boxes and labels of lesions before the boxes are clipped to the image."""
    return AnnotatedBoxes(np.array([one.box for one in lesions], float), tuple(labels.tolist()))


def _reference_of_boxes(
    geometry: Geometry,
    lesions: Sequence[AnnotatedLesion],
    boxes: NDArray[np.float32],
    labels: Integers,
    ignore: Flags | None,
) -> Reference:
    """Return a reference of boxes, or a mask of zeros if there is no lesion.

    Args:
        geometry: The grid of the image.
        lesions: The lesions with their boxes before clipping.
        boxes: The boxes, clipped to the image.
        labels: The label of each lesion.
        ignore: The pixels of ignored regions, or None. Pixels in a lesion box are set to False in
            place, so that a lesion is not ignored.
    """
    if not lesions:
        return Reference(geometry, labels=np.zeros(geometry.shape, np.uint8), ignore=ignore)
    if ignore is not None:
        for box in boxes:
            ignore[box_slices(box, geometry.dims)] = False
    return Reference(
        geometry,
        boxes=boxes,
        box_labels=tuple(labels.tolist()),
        ignore=ignore,
        annotated_boxes=_annotated_boxes(lesions, labels),
    )


def _draw_instances(
    lesions: Sequence[AnnotatedLesion], shape: tuple[int, ...]
) -> NDArray[np.int32]:
    """Draw the outlines of lesions into one array with the lesion id of each pixel.

    The ids are 1 to n in the order of `lesions`, and 0 is the background. Smaller lesions are
    drawn last, so that larger lesions do not cover them. A lesion whose outline contains no pixel
    centre gets the pixel nearest to the centre of its box.
    """
    parts = _draw_parts(lesions, shape)
    for index, lesion in enumerate(lesions):
        if not parts[index].mask.any():
            centre = np.reshape(lesion.box, (2, 2)).mean(axis=0).astype(int)
            y, x = np.clip(centre, 0, np.array(shape) - 1).tolist()
            parts[index] = DrawnPart(y, x, np.ones((1, 1), bool))
    instances = np.zeros(shape, np.int32)
    # largest first
    for index in np.argsort([-int(part.mask.sum()) for part in parts], kind="stable"):
        parts[index].paint(instances, value=index + 1)
    return instances


def _draw_ignored(regions: Sequence[AnnotatedLesion], shape: tuple[int, ...]) -> Flags:
    """Return a flag for each pixel that is True in ignored regions.

    A region covers the pixels of its outline or, if it has no outline, of its box.
    """
    inside = np.zeros(shape, bool)
    for region, box in zip(regions, _clipped_boxes(regions, shape), strict=True):
        if region.outline:
            _draw_parts([region], shape)[0].paint(inside, value=1)  # True
        else:
            inside[box_slices(box, len(shape))] = True
    return inside


def _check_boxes(
    lesions: Sequence[AnnotatedLesion],
    lesion_ids: NDArray[np.int32],
    boxes: NDArray[np.float32],
    n_pixels: Integers,
) -> None:
    """Raise `ContentError` if most pixels of a lesion are more than one pixel outside its box.

    Outline and box then probably belong to different lesions. The boxes have two axes, because only
    pictures have outlines or `mask_value`. A box with few pixels of its lesion is allowed, because
    smaller lesions may cover them.

    Args:
        lesions: The lesions.
        lesion_ids: The lesion id of each pixel, from 1, or 0 for the background.
        boxes: The box of each lesion.
        n_pixels: The number of pixels of each lesion.
    """
    for lesion_id, (lesion, box, n_of_lesion) in enumerate(
        zip(lesions, boxes, n_pixels, strict=True), start=1
    ):
        # one pixel more on each side because of rounding
        widened_box = np.concatenate([box[:2] - 1, box[2:] + 1])
        n_inside = int((lesion_ids[box_slices(widened_box, dims=2)] == lesion_id).sum())
        if 2 * n_inside < n_of_lesion:
            raise ContentError(
                f"{lesion.where}: the mask of lesion {lesion_id} and its box {box.tolist()} "
                f"disagree: {n_inside} of {n_of_lesion} pixels are inside. Correct one of them."
            )


def _read_instances(
    path: Path, lesions: Sequence[AnnotatedLesion], shape: tuple[int, ...]
) -> NDArray[np.int32]:
    """Read a mask of lesions and return the lesion id of each pixel, 0 for the background.

    In the mask, each lesion has the voxel value `mask_value` of its annotation. In the result, the
    ids are 1 to n in the order of `lesions`.

    Raises:
        GeometryError: If the mask has another size than the image.
        ContentError: If a voxel value belongs to no lesion, or if a lesion has no voxel value or
            the same one as another lesion.
        ReadError: If the mask cannot be read.
    """
    mask = np.asarray(read_mask(path).labels)
    if mask.shape != shape:
        raise GeometryError(
            f"{path} has {mask.shape} pixels, but its image has {shape}. Save it in the size of "
            "the image."
        )
    # 0 for a lesion without `mask_value`, which is an error below
    id_of_value = {
        int(lesion.mask_value or 0): lesion_id for lesion_id, lesion in enumerate(lesions, start=1)
    }
    unknown = sorted({int(value) for value in np.unique(mask)} - {0, *id_of_value})
    if unknown or len(id_of_value) < len(lesions) or 0 in id_of_value:
        raise ContentError(
            f"{path} and the annotations' mask_label {sorted(id_of_value)} do not fit together "
            f"(values without annotation: {unknown}). Give each annotation its own mask_label, "
            "from 1."
        )
    # a lookup table: the lesion id at the index of the voxel value
    id_table = np.zeros(max([0, int(mask.max()), *id_of_value]) + 1, np.int32)
    id_table[list(id_of_value)] = list(id_of_value.values())
    result: NDArray[np.int32] = id_table[mask]
    return result


def _draw_parts(lesions: Sequence[AnnotatedLesion], shape: tuple[int, ...]) -> list[DrawnPart]:
    """Call `draw_outlines` in the worker process, because its library may crash on an outline."""
    return run_in_worker(draw_outlines, lesions[0].where, lesions, shape)  # `where` names the job


def draw_outlines(
    _: str, lesions: Sequence[AnnotatedLesion], shape: tuple[int, ...]
) -> list[DrawnPart]:
    """Draw the polygons or run lengths of each lesion and return the drawing, cropped to its box.

    The function runs in the worker process. Lesions are drawn one after the other, so that only one
    array of the size of the image exists at a time.

    Args:
        _: The name of the job, which the worker needs as first argument.
        lesions: The lesions, with polygons in pixels.
        shape: Height and width of the image.

    Raises:
        ContentError: If the drawing library rejects an outline, or its points are far from the
            image. The message names the first such lesion.
    """
    from pycocotools import mask as coco_mask

    parts: list[DrawnPart] = []
    for lesion in lesions:
        try:
            drawing = _encode_outline(lesion.outline, shape)
            left, top, width, height = (int(value) for value in coco_mask.toBbox(drawing).ravel())
            image = coco_mask.decode(drawing).reshape(shape)
        except Exception as error:  # the library raises bare Exceptions for malformed input
            raise ContentError(
                f"{lesion.where}: a segmentation cannot be drawn: {error}. Correct it."
            ) from error
        part = image[top : top + height, left : left + width].astype(bool)
        parts.append(DrawnPart(top, left, part))
    return parts


def _encode_outline(outline: Polygons | RunLengths, shape: tuple[int, ...]) -> Any:
    """Return an outline in the encoded form of pycocotools, a dict with `size` and `counts`.

    Polygons are merged into one mask. Run lengths are encoded if their counts are a list of
    numbers; counts in a text are encoded already.

    Raises:
        ValueError: If a polygon is far from the image, because it would crash the library.
    """
    from pycocotools import mask as coco_mask

    height, width = shape
    if not isinstance(outline, RunLengths):
        limit = _MAX_SIDES * max(shape)  # 10 times the longer side of the image
        if max(abs(value) for polygon in outline for value in polygon) > limit:
            raise ValueError(f"a coordinate is above {limit} pixels in absolute value")
        polygons = [list(polygon) for polygon in outline]
        return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    encoded = {"size": list(outline.size), "counts": outline.counts}
    if isinstance(outline.counts, str):
        return encoded
    encoded["counts"] = list(outline.counts)
    return coco_mask.frPyObjects(encoded, height, width)
