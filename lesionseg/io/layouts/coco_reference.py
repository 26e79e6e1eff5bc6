"""COCO annotations of one case as a reference: from an instance mask, drawings or boxes."""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import CaseFiles, Geometry, Reference
from lesionseg.errors import ContentError, GeometryError
from lesionseg.io.layouts.coco import CocoLesion
from lesionseg.io.volumes import read_volume
from lesionseg.io.worker import in_worker

logger = logging.getLogger(__name__)


def read_coco_reference(
    files: CaseFiles, geometry: Geometry, merged_values: Sequence[int] = ()
) -> Reference:
    """Reference of a COCO case on the image's `geometry`.

    Lesion i (from 1) is annotation i, instance id i and box i - 1. Instances come from the mask
    file when every annotation has a `mask_label`, else from the polygons or RLE; where lesions
    overlap the smaller keeps the pixel. A lesion without a pixel of its own, hidden by smaller
    ones, is left out and said in the log. With an annotation that has only a box there are no
    instances and labels, only boxes. No annotation means lesion-free: zeros and no boxes. Crowd
    regions become `ignore`, but for lesions annotated by themselves. Labels in `merged_values`
    become 1. Raises `GeometryError` when the annotated size is another, `ContentError` for values
    and boxes that fit nothing.
    """
    _check_size(files, geometry)
    everything: Sequence[CocoLesion] = files.annotations["lesions"]
    lesions = [lesion for lesion in everything if not lesion.crowd]
    crowds = [lesion for lesion in everything if lesion.crowd]
    boxes = _boxes(files.case, lesions, geometry.shape)
    labels = np.array([1 if le.label in merged_values else le.label for le in lesions], np.int64)
    ignore = _ignored(files.case, crowds, geometry.shape) if crowds else None
    instances = _instances(files, lesions, geometry.shape)
    if instances is None:
        box_labels = tuple(labels.tolist())
        if ignore is not None:
            for box in boxes:
                ignore[_pixels(box)] = False
        return Reference(geometry, boxes=boxes, box_labels=box_labels, ignore=ignore)
    seen = _seen(files.case, instances, len(lesions))
    _check_agreement(files.case, instances, boxes)
    renumber = np.zeros(len(lesions) + 1, dtype=np.int32)
    renumber[1:][seen] = np.arange(1, int(seen.sum()) + 1)
    labels_kept = tuple(labels[seen].tolist())
    if ignore is not None:
        ignore &= instances == 0
    values = np.array([0, *labels]).astype(np.min_scalar_type(max(labels_kept, default=0)))
    return Reference(
        geometry,
        labels=np.asarray(values[instances]),
        instances=renumber[instances],
        instance_labels=labels_kept,
        boxes=boxes[seen],
        box_labels=labels_kept,
        ignore=ignore,
    )


def _check_size(files: CaseFiles, geometry: Geometry) -> None:
    size = files.annotations.get("size", (None, None))
    if None not in size and tuple(size) != geometry.shape:
        raise GeometryError(
            "The image does not have the size that the annotations were drawn on.",
            where=files.images[0],
            seen=geometry.shape,
            expected=f"height and width {tuple(size)}",
        )


def _boxes(case: str, lesions: Sequence[CocoLesion], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Boxes `[n, 4]` cut to the image."""
    boxes = np.array([lesion.box for lesion in lesions], dtype=np.float32).reshape(-1, 4)
    boxes = np.clip(boxes, 0, np.array([*shape, *shape], dtype=np.float32))
    outside = ~(boxes[:, :2] < boxes[:, 2:]).all(axis=1)
    if outside.any():
        number = int(outside.argmax())
        raise ContentError(
            f"The box of lesion {number + 1} lies outside its image.",
            where=case,
            seen=f"{lesions[number].box}: starts and stops along y and x",
            expected=f"within {shape}",
        )
    return boxes


def _instances(
    files: CaseFiles, lesions: Sequence[CocoLesion], shape: tuple[int, ...]
) -> NDArray[np.int32] | None:
    """Instance mask with annotation i as value i; None when an annotation has only a box."""
    if files.reference is not None and all(le.mask_label is not None for le in lesions):
        return _from_mask(files, lesions, shape)
    if any(lesion.segmentation is None for lesion in lesions):
        return None
    masks = [in_worker(_drawn, files.case, lesion, shape) for lesion in lesions]
    instances = np.zeros(shape, dtype=np.int32)
    for index in np.argsort([-int(mask.sum()) for mask in masks], kind="stable"):
        instances[masks[index]] = index + 1
    return instances


def _from_mask(
    files: CaseFiles, lesions: Sequence[CocoLesion], shape: tuple[int, ...]
) -> NDArray[np.int32]:
    path = files.reference
    if path is None:  # the caller has looked
        return np.zeros(shape, dtype=np.int32)
    mask = read_volume(path, as_labels=True).array[0]
    if mask.shape != shape:
        raise GeometryError(
            "The instance mask does not fit the image.", where=path, seen=mask.shape, expected=shape
        )
    ids = {int(le.mask_label or 0): i for i, le in enumerate(lesions, start=1)}
    unknown = sorted({int(v) for v in np.unique(mask)} - {0} - set(ids))
    if unknown or len(ids) < len(lesions) or min(ids, default=1) < 1:
        raise ContentError(
            "The instance mask and the annotations' mask_label do not fit together.",
            where=path,
            seen=f"values without annotation: {unknown}" if unknown else sorted(ids),
            expected="each mask_label from 1 on, for one annotation",
        )
    table = np.zeros(max(int(mask.max()), *ids, 0) + 1, dtype=np.int32)
    table[list(ids)] = list(ids.values())
    return np.asarray(table[mask])


def _drawn(case: str, lesion: CocoLesion, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Pixels `[y, x]` of one annotation; one that holds no pixel's centre keeps the nearest."""
    from pycocotools import mask as coco_mask

    segmentation = lesion.segmentation
    _check_segmentation(case, segmentation, shape)
    try:
        if not (isinstance(segmentation, dict) and isinstance(segmentation["counts"], str | bytes)):
            segmentation = coco_mask.frPyObjects(segmentation, *shape)
        if isinstance(segmentation, list):
            segmentation = coco_mask.merge(segmentation)
        with warnings.catch_warnings():  # the library's array protocol is that of numpy 1
            warnings.simplefilter("ignore", DeprecationWarning)
            pixels: NDArray[Any] = coco_mask.decode(segmentation).astype(bool)
    except Exception as error:  # the library raises bare Exceptions for malformed input
        raise ContentError(f"A segmentation cannot be drawn: {error}.", where=case) from error
    if pixels.shape != shape:
        raise ContentError(
            "An RLE has another size.", where=case, seen=pixels.shape, expected=shape
        )
    if not pixels.any():
        centre = (np.array(lesion.box[:2]) + np.array(lesion.box[2:])) / 2
        pixels[tuple(np.clip(centre.astype(int), 0, np.array(shape) - 1))] = True
    return pixels


def _check_segmentation(case: str, segmentation: Any, shape: tuple[int, ...]) -> None:
    """Refuse what the library, in C, would not survive: no numbers, far corners, another size."""
    if isinstance(segmentation, dict):
        size = segmentation.get("size")
        if size != list(shape):
            raise ContentError("An RLE has another size.", where=case, seen=size, expected=shape)
        return
    most = 10 * max(shape)
    polygons = segmentation if isinstance(segmentation, list) else [segmentation]
    for polygon in polygons:
        if not (isinstance(polygon, list) and all(_lies_near(v, most) for v in polygon)):
            raise ContentError(
                "A segmentation cannot be drawn.",
                where=case,
                seen=str(polygon)[:60],
                expected=f"lists of numbers x, y within {most} pixels",
            )


def _lies_near(value: object, most: float) -> bool:
    return isinstance(value, int | float) and abs(value) <= most


def _check_agreement(case: str, instances: NDArray[np.int32], boxes: NDArray[np.float32]) -> None:
    """Raise `ContentError` when half of a lesion's pixels or more lie outside its box.

    The other way round is no contradiction: smaller lesions hide pixels. A pixel more on each side
    is allowed for rounding.
    """
    sizes = np.bincount(instances.ravel(), minlength=len(boxes) + 1)[1:]
    for number, (box, size) in enumerate(zip(boxes, sizes, strict=True), start=1):
        wide = np.concatenate([box[:2] - 1, box[2:] + 1]).clip(0)
        within = int((instances[_pixels(wide)] == number).sum())
        if 2 * within < size:
            raise ContentError(
                f"The mask of lesion {number} and its box disagree.",
                where=case,
                seen=f"{within} of {size} pixels within {box.tolist()} (y, x starts, y, x stops)",
                expected="a lesion's pixels in its box",
                remedy="correct one of the two, or leave the segmentation out.",
            )


def _ignored(case: str, crowds: Sequence[CocoLesion], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    ignore = np.zeros(shape, dtype=bool)
    boxes = _boxes(case, crowds, shape)
    for crowd, box in zip(crowds, boxes, strict=True):
        if crowd.segmentation is not None:
            ignore |= in_worker(_drawn, case, crowd, shape)
        else:
            ignore[_pixels(box)] = True
    return ignore


def _pixels(box: NDArray[np.float32]) -> tuple[slice, ...]:
    """The pixels that a box touches."""
    start, stop = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
    return tuple(slice(a, b) for a, b in zip(start, stop, strict=True))


def _seen(case: str, instances: NDArray[np.int32], n: int) -> NDArray[np.bool_]:
    """Which of the `n` lesions hold at least one pixel."""
    seen = np.bincount(instances.ravel(), minlength=n + 1)[1:] > 0
    if not seen.all():
        logger.warning(
            "%s: %d of %d lesions have no pixel of their own and are left out (hidden by smaller "
            "lesions, or the same finding under two names).",
            case,
            int((~seen).sum()),
            n,
        )
    return np.asarray(seen)
