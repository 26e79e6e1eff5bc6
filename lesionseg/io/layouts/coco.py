"""COCO folders: `images/` and `annotations.json` with boxes, polygons, RLE or instance masks.

Format: cocodataset.org, "Data format". Beyond it an image may have `patient`, `mask_file`,
`pixel_mm`, `role` and `fold`, an annotation `mask_label`: its value in `masks/<mask_file>`.
"""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from lesionseg.core import CaseFiles, Dataset, Geometry, Reference, Role
from lesionseg.core.lesions import box_slices, clipped_boxes
from lesionseg.errors import ContentError, DatasetError, GeometryError, count
from lesionseg.io.files import read_json
from lesionseg.io.layouts.checks import Count, Number, Problems, validated
from lesionseg.io.limits import in_worker
from lesionseg.io.volumes import read_volume, strip_suffix

logger = logging.getLogger(__name__)

ANNOTATIONS = "annotations.json"
Id = Count | Annotated[str, Field(max_length=100)]
Side = Annotated[Number, Field(gt=0)]
Mask = NDArray[np.bool_]


class CocoLesion(BaseModel):
    """One annotation as COCO has it; `label` is the rank of its category's id, from 1."""

    label: int
    bbox: tuple[Number, Number, Side, Side]  # x, y, width, height
    segmentation: Any = None
    mask_label: Count | None = None
    iscrowd: bool = False  # a region not to be scored

    @property
    def box(self) -> tuple[float, ...]:
        """Starts and stops y, x, y, x in half-open pixels."""
        x, y, width, height = self.bbox
        return y, x, y + height, x + width


class _Image(BaseModel):
    model_config = ConfigDict(extra="allow")

    id: Id
    file_name: Annotated[str, Field(max_length=4000)]
    width: Count | None = None
    height: Count | None = None
    mask_file: str | None = None
    patient: Id = ""
    role: Role | None = None
    fold: Count | None = None
    license: Any = None


class _Category(BaseModel):
    id: Count
    name: str = ""


class _Content(BaseModel):
    images: Annotated[list[dict[str, Any]], Field(min_length=1)]
    annotations: list[dict[str, Any]]
    categories: Annotated[list[_Category], Field(min_length=1)]


def read_coco(root: Path) -> Dataset:
    """Read a COCO folder; labels are 1..K in the order of the category ids.

    `annotations` of each case hold `lesions`, a tuple of `CocoLesion`, and `size` (height, width).
    `columns` keep `pixel_mm` ("" when unknown) and every other plain field.
    """
    path, problems = root / ANNOTATIONS, Problems()
    content = validated(_Content, read_json(path), path)
    categories = sorted(content.categories, key=lambda c: c.id)
    label_of = {str(category.id): rank for rank, category in enumerate(categories, start=1)}
    stems = {str(i.get("id")): strip_suffix(Path(str(i.get("file_name")))) for i in content.images}
    lesions: dict[str, list[CocoLesion]] = {number: [] for number in stems}
    for annotation in content.annotations:
        image, category = str(annotation.get("image_id")), str(annotation.get("category_id"))
        where = f"{path}: annotation {str(annotation.get('id'))[:40]}"
        with problems.of(stems.get(image, ""), where):
            if image not in stems or category not in label_of:
                raise DatasetError(f"image {image[:40]} or category {category[:40]} is not listed.")
            entry = annotation | {"label": label_of[category]}
            lesions[image].append(validated(CocoLesion, entry))
    cases = []
    for record in content.images:
        number = str(record.get("id"))
        with problems.of(stems[number], path):
            cases.append(_case(root, stems[number], validated(_Image, record), lesions[number]))
    labels = {rank: c.name or str(c.id) for rank, c in enumerate(categories, start=1)}
    every = (root.name, root, "coco", 2, ("image",), labels, tuple(cases))
    return Dataset(*every, problems=tuple(problems))


def _case(root: Path, case: str, image: _Image, lesions: Sequence[CocoLesion]) -> CaseFiles:
    usual, beside = root / "images" / image.file_name, root / image.file_name
    mask = root / "masks" / image.mask_file if image.mask_file else None
    plain = {k: v for k, v in (image.model_extra or {}).items() if isinstance(v, str | int | float)}
    return CaseFiles(
        case,
        (beside if beside.is_file() and not usual.is_file() else usual,),
        reference=mask if mask and mask.is_file() else None,
        group=str(image.patient),
        role=image.role,
        fold=image.fold,
        annotations={"lesions": tuple(lesions), "size": (image.height, image.width)},
        columns={"pixel_mm": "", **{k: str(v) for k, v in plain.items()}},
    )


def read_coco_reference(files: CaseFiles, geometry: Geometry, merged: Collection[int]) -> Reference:
    """Reference of a COCO case on its image's `geometry`; zeros where it is lesion-free.

    Instances come from the mask file when every annotation has a `mask_label`, else from polygons
    or RLE; where lesions overlap the smaller keeps the pixel. With an annotation that has only a
    box there are boxes alone. Crowd regions become `ignore`, but for lesions within.
    """
    size, shape, case = files.annotations["size"], geometry.shape, files.case
    if None not in size and tuple(size) != shape:
        raise GeometryError(f"{files.images[0]} is {shape} pixels, its annotations say {size}.")
    lesions: list[CocoLesion] = [le for le in files.annotations["lesions"] if not le.iscrowd]
    crowds: list[CocoLesion] = [le for le in files.annotations["lesions"] if le.iscrowd]
    boxes, crowd_boxes = (
        clipped_boxes([le.box for le in each], shape, f"case {case}") for each in (lesions, crowds)
    )
    labels = np.array([1 if le.label in merged else le.label for le in lesions], np.int64)
    ignore = np.zeros(shape, dtype=bool)
    for crowd, box in zip(crowds, crowd_boxes, strict=True):
        drawn = bool(crowd.segmentation)
        ignore[_drawn(case, [crowd], shape)[0] if drawn else box_slices(box, 2)] = True
    if files.reference is not None and all(le.mask_label is not None for le in lesions):
        instances = _from_mask(files.reference, lesions, shape)
    elif any(not lesion.segmentation for lesion in lesions):
        for box in boxes:
            ignore[box_slices(box, 2)] = False
        left_out = ignore if crowds else None
        return Reference(geometry, boxes=boxes, box_labels=tuple(labels.tolist()), ignore=left_out)
    else:
        masks = _drawn(case, lesions, shape)
        instances = np.zeros(shape, dtype=np.int32)
        for index in np.argsort([-int(mask.sum()) for mask in masks], kind="stable"):
            instances[masks[index]] = index + 1
    sizes = np.bincount(instances.ravel(), minlength=len(lesions) + 1)[1:]
    for number, (box, n_pixels) in enumerate(zip(boxes, sizes, strict=True), start=1):
        wide = np.concatenate([box[:2] - 1, box[2:] + 1])  # a pixel more for rounding
        within = int((instances[box_slices(wide, 2)] == number).sum())
        if 2 * within < n_pixels:  # the other way round smaller lesions hide pixels
            what = f"the mask of lesion {number} and its box {box.tolist()} disagree"
            raise ContentError(f"case {case}: {what}: {within} of {n_pixels} pixels lie in it.")
    visible = sizes > 0
    if not visible.all():
        text = "%s: %s left out, as smaller ones cover them or two names mean the same finding."
        logger.warning(text, case, count(int((~visible).sum()), "lesion"))
    renumber = np.append(0, np.cumsum(visible) * visible).astype(np.int32)
    values = np.array([0, *labels]).astype(np.min_scalar_type(int(labels.max(initial=0))))
    kept = tuple(labels[visible].tolist())
    return Reference(
        geometry,
        labels=np.asarray(values[instances]),
        instances=renumber[instances],
        instance_labels=kept,
        boxes=boxes[visible],
        box_labels=kept,
        ignore=ignore & (instances == 0) if crowds else None,
    )


def _from_mask(
    path: Path, lesions: Sequence[CocoLesion], shape: tuple[int, ...]
) -> NDArray[np.int32]:
    mask = read_volume(path, as_labels=True).array[0]
    if mask.shape != shape:
        raise GeometryError(f"{path} is {mask.shape} pixels, its image {shape}.")
    ids = {int(le.mask_label or 0): i for i, le in enumerate(lesions, start=1)}
    unknown = sorted({int(v) for v in np.unique(mask)} - {0} - set(ids))
    if unknown or len(ids) < len(lesions) or min(ids, default=1) < 1:
        raise ContentError(
            f"{path} and the annotations' mask_label {sorted(ids)} do not fit together (values "
            f"without annotation: {unknown}). Give each its own mask_label from 1 on."
        )
    table = np.zeros(max(int(mask.max()), *ids, 0) + 1, dtype=np.int32)
    table[list(ids)] = list(ids.values())
    return np.asarray(table[mask])


def _drawn(case: str, lesions: Sequence[CocoLesion], shape: tuple[int, ...]) -> list[Mask]:
    """Pixels `[y, x]` of annotations; one that holds no pixel's centre keeps the nearest."""
    drawings = [lesion.segmentation for lesion in lesions]
    for drawing in drawings:  # the library, in C, survives neither other sizes nor far corners
        is_rle = isinstance(drawing, dict)
        if is_rle and drawing.get("size") != list(shape):
            raise ContentError(f"case {case}: an RLE has another size than its image, {shape}.")
        for polygon in () if is_rle else drawing if isinstance(drawing, list) else [drawing]:
            if not isinstance(polygon, list) or not all(
                isinstance(v, int | float) and abs(v) <= 10 * max(shape) for v in polygon
            ):
                raise ContentError(
                    f"case {case}: a segmentation cannot be drawn, {str(polygon)[:60]} is no list "
                    f"of numbers x, y within {10 * max(shape)} pixels."
                )
    masks = in_worker(draw, case, drawings, shape) if drawings else []
    for mask, lesion in zip(masks, lesions, strict=True):
        if not mask.any():
            centre = np.reshape(lesion.box, (2, 2)).mean(axis=0).astype(int)
            mask[tuple(np.clip(centre, 0, np.array(shape) - 1))] = True
    return masks


def draw(case: str, drawings: Sequence[Any], shape: tuple[int, ...]) -> list[Mask]:
    """Draw polygons and run lengths as masks `[y, x]`; raises `ContentError`."""
    from pycocotools import mask as coco_mask

    masks = []
    try:
        for drawing in drawings:
            if not (isinstance(drawing, dict) and isinstance(drawing["counts"], str | bytes)):
                drawing = coco_mask.frPyObjects(drawing, *shape)
            if isinstance(drawing, list):
                drawing = coco_mask.merge(drawing)
            masks.append(coco_mask.decode(drawing).astype(bool).reshape(shape))
    except Exception as error:  # the library raises bare Exceptions for malformed input
        raise ContentError(f"case {case}: a segmentation cannot be drawn: {error}.") from error
    return masks
