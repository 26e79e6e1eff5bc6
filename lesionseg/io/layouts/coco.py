"""COCO folders: images and JSON files with boxes, polygons, RLE or instance masks.

Format: cocodataset.org, "Data format". Beyond it an image may have `patient`, `mask_file`,
`pixel_mm`, `role` and `fold`, an annotation `mask_label`: its value in `masks/<mask_file>`.
"""

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lesionseg.core import (
    CaseFiles,
    Dataset,
    Geometry,
    Labels,
    Reference,
    Remark,
    Role,
    StatedBoxes,
)
from lesionseg.core.lesions import box_slices, clipped_boxes
from lesionseg.errors import ContentError, DatasetError, GeometryError, count, listed
from lesionseg.io.files import read_json
from lesionseg.io.layouts.checks import (
    Count,
    Number,
    Problems,
    path_id,
    unread_files,
    validated,
)
from lesionseg.io.limits import in_worker
from lesionseg.io.volumes import is_image_file, read_volume

logger = logging.getLogger(__name__)

ANNOTATIONS = "annotations.json"
_ROBOFLOW = "_annotations.coco.json"
# COCO's own files of one task, or a file per part: instances_train2017.json, val.json
_OF_PART = re.compile(r"(?:instances_)?((train|val|valid|validation|test)[\w.-]*)\.json")
_ANY_INSTANCES = re.compile(r"instances_(.+)\.json")
_ROLES: Mapping[str, Role] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
Id = Count | Annotated[str, Field(max_length=100)]
Side = Annotated[Number, Field(gt=0)]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class AnnotationFile:
    """A COCO file, the folders in which its images may be located, and the role of its images."""

    path: Path
    folders: tuple[Path, ...]
    role: Role | None = None


class CocoLesion(BaseModel):
    """One annotation as COCO has it; `label` is the rank of its category's id, from 1.

    `bbox` is None if the file states a segmentation alone.
    """

    label: int
    bbox: tuple[Number, Number, Side, Side] | None = None  # x, y, width, height
    segmentation: Any = None
    mask_label: Count | None = None
    iscrowd: bool = False  # a region not to be scored

    @field_validator("bbox", mode="before")
    @classmethod
    def _none_if_empty(cls, value: Any) -> Any:
        return None if value == [] else value

    @model_validator(mode="after")
    def _has_a_place(self) -> "CocoLesion":
        if self.bbox is None and not self.segmentation:
            raise ValueError("Write a bbox or a segmentation")
        return self

    @property
    def box(self) -> tuple[float, ...]:
        """Starts and stops y, x, y, x in half-open pixels; of bare polygons their extent."""
        if self.bbox is not None:
            x, y, width, height = self.bbox
            return y, x, y + height, x + width
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in self.segmentation])
        low, high = points.min(axis=0), points.max(axis=0)
        return float(low[1]), float(low[0]), float(high[1]), float(high[0])


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


def find_annotations(root: Path) -> list[AnnotationFile]:
    """Find the COCO files of a folder; an empty list if it has none.

    They are, in this order: `annotations.json`; COCO's own `annotations/instances_train2017.json`
    and the like; `_annotations.coco.json` beside the images, as Roboflow writes it, in the folder
    itself or in its `train`, `valid` and `test`. If one file of several is to validate or test, the
    parts are roles.
    """
    if (root / ANNOTATIONS).is_file():
        return [AnnotationFile(root / ANNOTATIONS, (root / "images", root))]
    if (root / _ROBOFLOW).is_file():
        return [AnnotationFile(root / _ROBOFLOW, (root, root / "images"))]
    found: list[AnnotationFile] = []
    for path in sorted((root / "annotations").glob("*.json")):
        match = _OF_PART.fullmatch(path.name) or _ANY_INSTANCES.fullmatch(path.name)
        if match:
            part = match[1]
            folders = (root / part, root / "images" / part, root / "images", root)
            role = _ROLES.get(match[2]) if match.re is _OF_PART else None
            found.append(AnnotationFile(path, folders, role))
    if not found:
        for part, role in _ROLES.items():
            path = root / part / _ROBOFLOW
            if path.is_file():
                found.append(AnnotationFile(path, (path.parent,), role))
    are_roles = any(file.role in ("validation", "test") for file in found)
    return found if are_roles else [replace(file, role=None) for file in found]


def read_coco(root: Path) -> Dataset:
    """Read a COCO folder; labels are 1..K in the order of the category ids.

    A case id is the image's path, folders joined by `_`. `annotations` of each case hold `lesions`,
    a tuple of `CocoLesion`, and `size` (height, width). `columns` keep `pixel_mm` ("" if unknown)
    and every other plain field.
    """
    files = find_annotations(root)
    problems = Problems()
    remarks: list[Remark] = []
    contents = [
        (file, validated(_Content, read_json(file.path, allow_nan=True), file.path))
        for file in files
    ]
    names = _category_names(contents)
    label_of = {str(number): rank for rank, number in enumerate(sorted(names), start=1)}
    cases: list[CaseFiles] = []
    for file, content in contents:
        cases += _cases(root, file, content, label_of, problems)
    folders = {case.images[0].parent for case in cases}
    remarks += [remark for folder in sorted(folders) if folder.is_dir() for remark in _rest(folder)]
    remarks += _unlisted(folders, cases)
    return Dataset(
        name=root.name,
        root=root,
        convention="coco",
        dims=2,
        channel_names=("image",),
        labels=Labels.of({label_of[str(k)]: names[k] or str(k) for k in sorted(names)}),
        cases=tuple(cases),
        problems=tuple(problems),
        remarks=tuple(remarks),
    )


def _category_names(contents: Iterable[tuple[AnnotationFile, _Content]]) -> dict[int, str]:
    """Return the name of each category id. Raise `DatasetError` if files give one id two names."""
    names: dict[int, str] = {}
    for file, content in contents:
        for category in content.categories:
            known = names.setdefault(category.id, category.name)
            if known != category.name:
                raise DatasetError(
                    f"{file.path}: the category {category.id} is {category.name!r} here, but "
                    f"{known!r} before. Give each id one name in all files."
                )
    return names


def _cases(
    root: Path,
    file: AnnotationFile,
    content: _Content,
    label_of: Mapping[str, int],
    problems: Problems,
) -> list[CaseFiles]:
    """Return the cases of one COCO file; entries that do not fit become problems."""
    path = file.path
    ids = {str(image.get("id")): _case_id(str(image.get("file_name"))) for image in content.images}
    lesions: dict[str, list[CocoLesion]] = {number: [] for number in ids}
    for annotation in content.annotations:
        image, category = str(annotation.get("image_id")), str(annotation.get("category_id"))
        where = f"{path}: annotation {str(annotation.get('id'))[:40]}"
        with problems.of(ids.get(image, ""), where):
            if image not in ids or category not in label_of:
                raise DatasetError(f"image {image[:40]} or category {category[:40]} is not listed.")
            entry = annotation | {"label": label_of[category]}
            lesions[image].append(validated(CocoLesion, entry))
    cases: list[CaseFiles] = []
    for record in content.images:
        number = str(record.get("id"))
        with problems.of(ids[number], path):
            stated = validated(_Image, record)
            cases.append(_case(root, file, ids[number], stated, lesions[number]))
    return cases


def _case_id(file_name: str) -> str:
    """Return the case id of an image: its path, without the folder `images` in front."""
    path = Path(file_name)
    return path_id(Path(*path.parts[1:]) if path.parts[:1] == ("images",) else path)


def _case(
    root: Path, file: AnnotationFile, case: str, image: _Image, lesions: Sequence[CocoLesion]
) -> CaseFiles:
    places = [folder / image.file_name for folder in file.folders]
    mask = root / "masks" / image.mask_file if image.mask_file else None
    plain = {k: v for k, v in (image.model_extra or {}).items() if isinstance(v, str | int | float)}
    return CaseFiles(
        case,
        (next((place for place in places if place.is_file()), places[0]),),
        reference=mask if mask and mask.is_file() else None,
        group=str(image.patient),
        role=image.role or file.role,
        fold=image.fold,
        annotations={"lesions": tuple(lesions), "size": (image.height, image.width)},
        columns={"pixel_mm": "", **{k: str(v) for k, v in plain.items()}},
    )


def _rest(folder: Path) -> list[Remark]:
    """Remark on files of unknown formats; folders beside images hold further images."""
    return unread_files(folder, folders=False)


def _unlisted(folders: Collection[Path], cases: Sequence[CaseFiles]) -> list[Remark]:
    """Remark on images that lie beside those of the list, but are not in it."""
    listed_files = {case.images[0] for case in cases}
    there = {file for folder in folders if folder.is_dir() for file in folder.iterdir()}
    unlisted = sorted(f for f in there if is_image_file(f) and f not in listed_files)
    if not unlisted:
        return []
    text = f"{count(len(unlisted), 'image')} beside the listed ones, left out: "
    names = listed(file.name for file in unlisted)
    return [Remark("left_out", f"{text}{names}.", is_note=True)]


def read_coco_reference(files: CaseFiles, geometry: Geometry, merged: Collection[int]) -> Reference:
    """Reference of a COCO case on its image's `geometry`; zeros where it is lesion-free.

    Instances come from the mask file when every annotation has a `mask_label`, else from polygons
    or RLE; where lesions overlap the smaller keeps the pixel. With an annotation that has only a
    box there are boxes alone. Crowd regions become `ignore`, but for lesions within.
    """
    size, shape, case = files.annotations["size"], geometry.shape, files.case
    if None not in size and tuple(size) != shape:
        raise GeometryError(f"{files.images[0]} is {shape} pixels, its annotations say {size}.")
    stated = _with_boxes(case, files.annotations["lesions"], shape)
    lesions = [lesion for lesion in stated if not lesion.iscrowd]
    crowds = [lesion for lesion in stated if lesion.iscrowd]
    given = np.array([lesion.box for lesion in lesions], dtype=np.float64).reshape(-1, 4)
    boxes = clipped_boxes(given, shape, f"case {case}")
    crowd_boxes = clipped_boxes([crowd.box for crowd in crowds], shape, f"case {case}")
    labels = np.array([1 if le.label in merged else le.label for le in lesions], np.int64)
    stated_boxes = StatedBoxes(given, tuple(labels.tolist()))
    ignore = np.zeros(shape, dtype=bool)
    for crowd, box in zip(crowds, crowd_boxes, strict=True):
        drawn = bool(crowd.segmentation)
        ignore[_drawn(case, [crowd], shape)[0] if drawn else box_slices(box, 2)] = True
    if files.reference is not None and all(le.mask_label is not None for le in lesions):
        instances = _from_mask(files.reference, lesions, shape)
    elif any(not lesion.segmentation for lesion in lesions):
        for box in boxes:
            ignore[box_slices(box, 2)] = False
        return Reference(
            geometry,
            boxes=boxes,
            box_labels=tuple(labels.tolist()),
            ignore=ignore if crowds else None,
            stated=stated_boxes,
        )
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
        stated=stated_boxes,
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


def _with_boxes(
    case: str, lesions: Sequence[CocoLesion], shape: tuple[int, ...]
) -> list[CocoLesion]:
    """Give annotations without a box the box of their run lengths; polygons have an extent."""
    boxed: list[CocoLesion] = []
    for lesion in lesions:
        if lesion.bbox is None:
            _check_drawing(case, lesion.segmentation, shape)
        if lesion.bbox is None and isinstance(lesion.segmentation, dict):
            (mask,) = in_worker(draw, case, [lesion.segmentation], shape)
            rows = np.flatnonzero(mask.any(axis=1))
            columns = np.flatnonzero(mask.any(axis=0))
            if not len(rows):
                raise ContentError(f"case {case}: a segmentation in run lengths is empty.")
            width = float(columns[-1] - columns[0] + 1)
            height = float(rows[-1] - rows[0] + 1)
            box = (float(columns[0]), float(rows[0]), width, height)
            lesion = lesion.model_copy(update={"bbox": box})
        boxed.append(lesion)
    return boxed


def _check_drawing(case: str, drawing: Any, shape: tuple[int, ...]) -> None:
    """Raise `ContentError` for drawings that crash the library, which is written in C."""
    is_rle = isinstance(drawing, dict)
    if is_rle and drawing.get("size") != list(shape):
        raise ContentError(f"case {case}: an RLE has another size than its image, {shape}.")
    for polygon in () if is_rle else drawing if isinstance(drawing, list) else [drawing]:
        if (
            not isinstance(polygon, list)
            or len(polygon) % 2
            or len(polygon) < 6
            or not all(isinstance(v, int | float) and abs(v) <= 10 * max(shape) for v in polygon)
        ):
            raise ContentError(
                f"case {case}: a segmentation cannot be drawn, {str(polygon)[:60]} is no list of "
                f"numbers x, y of three or more points within {10 * max(shape)} pixels."
            )


def _drawn(case: str, lesions: Sequence[CocoLesion], shape: tuple[int, ...]) -> list[Mask]:
    """Pixels `[y, x]` of annotations; one that holds no pixel's centre keeps the nearest."""
    drawings = [lesion.segmentation for lesion in lesions]
    for drawing in drawings:
        _check_drawing(case, drawing, shape)
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
