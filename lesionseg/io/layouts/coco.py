"""COCO folders: `images/` and `annotations.json` with boxes, polygons, RLE or instance masks.

Format: cocodataset.org, "Data format". Beyond it an image may have `patient`, `mask_file`,
`pixel_mm`, `role` and `fold`, an annotation `mask_label`: its value in `masks/<mask_file>`.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import CaseFiles, Dataset, Geometry, Problem, Reference
from lesionseg.errors import ContentError, DatasetError, GeometryError, LesionsegError
from lesionseg.io.files import read_json
from lesionseg.io.layouts.checks import file_size, is_count, is_number
from lesionseg.io.layouts.manifest import parse_fold, parse_role
from lesionseg.io.limits import in_worker
from lesionseg.io.volumes import read_volume, strip_suffix

logger = logging.getLogger(__name__)

ANNOTATIONS = "annotations.json"
_OWN_FIELDS = {"id", "file_name", "mask_file", "width", "height", "license"} | {
    *("patient", "role", "fold")
}


@dataclass(frozen=True)
class CocoLesion:
    """One annotation: `box` (y, x starts, y, x stops; half-open pixels), and what draws it.

    `label` is the rank of its category's id, from 1. `crowd` marks a region not to be scored.
    """

    label: int
    box: tuple[float, float, float, float]
    segmentation: Any = None
    mask_label: int | None = None
    crowd: bool = False


def recognises_coco(root: Path) -> bool:
    """Whether the folder holds an `annotations.json`."""
    return (root / ANNOTATIONS).is_file()


def read_coco(root: Path) -> Dataset:
    """Read a COCO folder; labels are 1..K in the order of the category ids.

    A case's id is its file's stem, its group `patient` where given. `annotations` of each case
    hold `lesions`, a tuple of `CocoLesion`, and `size` (height, width); images without annotation
    are lesion-free. `columns` keep `pixel_mm` ("" when unknown) and every other plain field.
    Raises `DatasetError`.
    """
    path = root / ANNOTATIONS
    content = read_json(path)
    content = content if isinstance(content, dict) else {}
    for key in ("images", "annotations", "categories"):
        records = content.get(key)
        fine = isinstance(records, list) and all(isinstance(r, dict) for r in records)
        if not fine or not (records or key == "annotations"):
            raise DatasetError(f"{path}: no list of {key!r} as in COCO's format.")
    ranked = sorted(content["categories"], key=lambda c: _count(c, "id", path))
    label_of = {int(c["id"]): rank for rank, c in enumerate(ranked, start=1)}
    images = {_id(image, "id", path): image for image in content["images"]}
    lesions: dict[str, list[CocoLesion]] = {number: [] for number in images}
    problems = []
    for annotation in content["annotations"]:
        image = str(annotation.get("image_id"))
        try:
            lesions[_known_id(annotation, images, path)].append(_lesion(annotation, label_of, path))
        except LesionsegError as error:
            case = _stem(images[image]) if image in images else ""
            problems.append(Problem(case, f"case {case!r}: {error}" if case else str(error)))
    cases = []
    for number, image_record in images.items():
        name = str(_id(image_record, "file_name", path, longest=4000))
        case = _stem(image_record)
        usual = root / "images" / name
        try:
            role = parse_role(str(image_record.get("role") or ""))
            fold = parse_fold(str(image_record.get("fold", "")))
        except DatasetError as error:
            role = fold = None
            problems.append(Problem(case, f"{path}: case {case!r}: {error}"))
        mask = root / "masks" / str(image_record.get("mask_file"))
        columns = {k: str(v) for k, v in image_record.items() if isinstance(v, str | int | float)}
        cases.append(
            CaseFiles(
                case=case,
                images=(usual if file_size(usual) or not file_size(root / name) else root / name,),
                reference=mask if image_record.get("mask_file") and file_size(mask) else None,
                group=str(image_record.get("patient") or ""),
                role=role,
                fold=fold,
                annotations={
                    "lesions": tuple(lesions[number]),
                    "size": (image_record.get("height"), image_record.get("width")),
                },
                columns={
                    "pixel_mm": "",
                    **{k: v for k, v in columns.items() if k not in _OWN_FIELDS},
                },
            )
        )
    info = content.get("info")
    return Dataset(
        name=root.name,
        root=root,
        convention="coco",
        dims=2,
        channel_names=("image",),
        labels={label_of[int(c["id"])]: str(c.get("name", c["id"])) for c in ranked},
        cases=tuple(cases),
        incomplete_reference=isinstance(info, Mapping) and bool(info.get("incomplete_reference")),
        problems=tuple(problems),
    )


def _stem(image: Mapping[str, Any]) -> str:
    return strip_suffix(Path(str(image.get("file_name", ""))))


def _id(record: Mapping[str, Any], key: str, path: Path, longest: int = 100) -> str:
    """An id: a number or a text."""
    value = record.get(key)
    if not isinstance(value, int | str) or len(str(value)) > longest:
        raise DatasetError(f"{path}: an entry has no usable {key!r}: {str(record)[:100]}.")
    return str(value)


def _known_id(annotation: Mapping[str, Any], images: Mapping[str, Any], path: Path) -> str:
    image = _id(annotation, "image_id", path)
    if image not in images:
        raise DatasetError(
            f"{path}: annotation {annotation.get('id')} points to an image not listed, {image}."
        )
    return image


def _count(record: Mapping[str, Any], key: str, path: Path) -> int:
    value = record.get(key)
    if not is_count(value):
        raise DatasetError(f"{path}: an entry's {key!r} is not an integer: {str(value)[:40]}.")
    return int(str(value))


def _lesion(annotation: Mapping[str, Any], label_of: Mapping[int, int], path: Path) -> CocoLesion:
    number, category = annotation.get("id"), _count(annotation, "category_id", path)
    if category not in label_of:
        raise DatasetError(
            f"{path}: annotation {number} points to a category not listed, {category}."
        )
    box, stated = annotation.get("bbox"), annotation.get("mask_label")
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        raise ContentError(f"{path}: annotation {number} has no bbox [x, y, width, height].")
    x, y, width, height = map(float, box)
    if width <= 0 or height <= 0:
        raise ContentError(f"{path}: the box of annotation {number} is empty: {box}.")
    return CocoLesion(
        label=label_of[category],
        box=(y, x, y + height, x + width),
        segmentation=annotation.get("segmentation") or None,
        mask_label=None if stated is None else _count(annotation, "mask_label", path),
        crowd=bool(annotation.get("iscrowd", 0)),
    )


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
    size, shape, case = files.annotations.get("size", (None, None)), geometry.shape, files.case
    if None not in size and tuple(size) != shape:
        raise GeometryError(
            f"{files.images[0]} is {shape[0]} x {shape[1]} pixels, its annotations were drawn on "
            f"{size[0]} x {size[1]}."
        )
    everything: Sequence[CocoLesion] = files.annotations["lesions"]
    lesions = [lesion for lesion in everything if not lesion.crowd]
    crowds = [lesion for lesion in everything if lesion.crowd]
    boxes = _clipped(case, lesions, shape)
    labels = np.array([1 if le.label in merged_values else le.label for le in lesions], np.int64)
    ignore = np.zeros(shape, dtype=bool)
    for crowd, box in zip(crowds, _clipped(case, crowds, shape), strict=True):
        drawn = crowd.segmentation is not None
        ignore[in_worker(_drawn, case, crowd, shape) if drawn else _pixels(box)] = True
    if files.reference is not None and all(le.mask_label is not None for le in lesions):
        instances = _from_mask(files.reference, lesions, shape)
    elif any(lesion.segmentation is None for lesion in lesions):
        for box in boxes:
            ignore[_pixels(box)] = False
        left_out = ignore if crowds else None
        return Reference(geometry, boxes=boxes, box_labels=tuple(labels.tolist()), ignore=left_out)
    else:
        masks = [in_worker(_drawn, case, lesion, shape) for lesion in lesions]
        instances = np.zeros(shape, dtype=np.int32)
        for index in np.argsort([-int(mask.sum()) for mask in masks], kind="stable"):
            instances[masks[index]] = index + 1
    _check_agreement(case, instances, boxes)
    visible = np.bincount(instances.ravel(), minlength=len(lesions) + 1)[1:] > 0
    if not visible.all():
        logger.warning(
            "%s: %d of %d lesions have no pixel of their own and are left out (hidden by smaller "
            "lesions, or the same finding under two names).",
            case,
            int((~visible).sum()),
            len(lesions),
        )
    renumber = np.zeros(len(lesions) + 1, dtype=np.int32)
    renumber[1:][visible] = np.arange(1, int(visible.sum()) + 1)
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


def _clipped(
    case: str, lesions: Sequence[CocoLesion], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Boxes `[n, 4]` cut to the image."""
    boxes = np.array([lesion.box for lesion in lesions], dtype=np.float32).reshape(-1, 4)
    boxes = np.clip(boxes, 0, np.array([*shape, *shape], dtype=np.float32))
    outside = ~(boxes[:, :2] < boxes[:, 2:]).all(axis=1)
    if outside.any():
        number = int(outside.argmax())
        raise ContentError(
            f"case {case}: the box of lesion {number + 1}, {lesions[number].box} (y, x starts, "
            f"y, x stops), lies outside its image of {shape[0]} x {shape[1]} pixels."
        )
    return boxes


def _from_mask(
    path: Path, lesions: Sequence[CocoLesion], shape: tuple[int, ...]
) -> NDArray[np.int32]:
    """Instance mask with annotation i as value i."""
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


def _drawn(case: str, lesion: CocoLesion, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Pixels `[y, x]` of one annotation; one that holds no pixel's centre keeps the nearest."""
    from pycocotools import mask as coco_mask

    drawing = lesion.segmentation
    if isinstance(drawing, dict):  # the library, in C, survives no other size
        if drawing.get("size") != list(shape):
            raise ContentError(f"case {case}: an RLE has another size than its image, {shape}.")
    else:  # nor far corners, nor what is no number
        most, polygons = 10 * max(shape), drawing if isinstance(drawing, list) else [drawing]
        for polygon in polygons:
            if not isinstance(polygon, list) or not all(
                is_number(v) and abs(v) <= most for v in polygon
            ):
                raise ContentError(
                    f"case {case}: a segmentation cannot be drawn, {str(polygon)[:60]} is no list "
                    f"of numbers x, y within {most} pixels."
                )
    try:
        if not (isinstance(drawing, dict) and isinstance(drawing["counts"], str | bytes)):
            drawing = coco_mask.frPyObjects(drawing, *shape)
        if isinstance(drawing, list):
            drawing = coco_mask.merge(drawing)
        with warnings.catch_warnings():  # the library's array protocol is that of numpy 1
            warnings.simplefilter("ignore", DeprecationWarning)
            pixels: NDArray[Any] = coco_mask.decode(drawing).astype(bool)
    except Exception as error:  # the library raises bare Exceptions for malformed input
        raise ContentError(f"case {case}: a segmentation cannot be drawn: {error}.") from error
    if pixels.shape != shape:
        raise ContentError(f"case {case}: an RLE has another size than its image, {shape}.")
    if not pixels.any():
        centre = (np.array(lesion.box[:2]) + np.array(lesion.box[2:])) / 2
        pixels[tuple(np.clip(centre.astype(int), 0, np.array(shape) - 1))] = True
    return pixels


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
                f"case {case}: the mask of lesion {number} and its box {box.tolist()} disagree "
                f"(y, x starts, y, x stops): {within} of {size} pixels lie in it."
            )


def _pixels(box: NDArray[np.float32]) -> tuple[slice, ...]:
    """The pixels that a box touches."""
    start, stop = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
    return tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
