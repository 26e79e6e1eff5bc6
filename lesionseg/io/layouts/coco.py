"""COCO folders: images and JSON files with boxes, polygons, RLE or instance masks.

Format: cocodataset.org, "Data format". In addition an image may have `patient`, `mask_file`,
`pixel_mm`, `role` and `fold`, and an annotation may have `mask_label`, its value in
`masks/<mask_file>`.
"""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from lesionseg.core import (
    CaseFiles,
    Dataset,
    Geometry,
    Labels,
    Reference,
    Role,
    StatedBoxes,
)
from lesionseg.core.finding import Finding, collect_errors
from lesionseg.core.lesions import box_slices, clip_boxes
from lesionseg.errors import ContentError, DatasetError, GeometryError, count
from lesionseg.io.layouts.box_table import (
    TABLE,
    CaseBoxes,
    LesionBox,
    distinct_names,
    has_boxes_only,
    make_box_reference,
    require_stated_size,
)
from lesionseg.io.layouts.checks import (
    Count,
    Number,
    find_left_out,
    path_id,
    remark_unread_files,
    validate,
)
from lesionseg.io.layouts.manifest import column_findings
from lesionseg.io.text import read_json
from lesionseg.io.volumes import is_image_file, read_volume
from lesionseg.io.worker import run_in_worker

logger = logging.getLogger(__name__)

ANNOTATIONS = "annotations.json"
_ROBOFLOW = "_annotations.coco.json"
# the file of one part of the dataset: instances_train2017.json, val.json
_PART_FILE = re.compile(
    r"(?:instances_)?((train|val|valid|validation|test)[\w.-]*)\.json", re.IGNORECASE
)
_ANY_INSTANCES = re.compile(r"instances_(.+)\.json", re.IGNORECASE)
_ROLES: Mapping[str, Role] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_LARGEST = 1e9  # largest coordinate in an image whose size is not stated
Id = Count | Annotated[str, Field(max_length=100)]
Side = Annotated[Number, Field(gt=0)]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class AnnotationFile:
    """A COCO file.

    Attributes:
        path: The file.
        folders: The folders in which its images may be located.
        role: The role of its images.
    """

    path: Path
    folders: tuple[Path, ...]
    role: Role | None = None


class CocoLesion(BaseModel):
    """An annotation of a COCO file.

    `label` is the rank of its category's id, from 1. `bbox` is None if the file states only a
    segmentation. `reader` drew the annotation. `where` is file and annotation, for messages.
    """

    label: int
    bbox: tuple[Number, Number, Side, Side] | None = None  # x, y, width, height
    segmentation: Any = None
    mask_label: Count | None = None
    iscrowd: bool = False  # a region to ignore
    reader: Annotated[str, BeforeValidator(str)] = ""
    where: str = Field(default="", repr=False)  # not in the keys of cached cases

    @field_validator("bbox", mode="before")
    @classmethod
    def _accept_empty_box(cls, value: Any) -> Any:
        return None if value == [] else value

    @model_validator(mode="after")
    def _check_has_outline(self) -> "CocoLesion":
        if self.bbox is None and not self.segmentation:
            raise ValueError("Write a bbox or a segmentation")
        return self

    @property
    def box(self) -> tuple[float, ...]:
        """Start and stop (y, x, y, x) in half-open pixels, from the polygons if bbox is None."""
        if self.bbox is not None:
            x, y, width, height = self.bbox
            return y, x, y + height, x + width
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in self.segmentation])
        low = points.min(axis=0)
        high = points.max(axis=0)
        return float(low[1]), float(low[0]), float(high[1]), float(high[0])


class _Image(BaseModel):
    """An image of a COCO file. Unknown fields are kept as columns."""

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
    readers: list[Annotated[str, BeforeValidator(str)]] = []


class _Category(BaseModel):
    id: Count
    name: str = ""


class _Content(BaseModel):
    images: Annotated[list[dict[str, Any]], Field(min_length=1)]
    annotations: list[dict[str, Any]]
    categories: Annotated[list[_Category], Field(min_length=1)]

    @field_validator("images")
    @classmethod
    def _accept_windows_paths(cls, images: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for image in images:
            for key in ("file_name", "mask_file"):
                if isinstance(image.get(key), str):
                    image[key] = image[key].replace("\\", "/")
        return images


def find_annotations(root: Path) -> list[AnnotationFile]:
    """Find the COCO files of a folder.

    The first of these that exists is used:

    1. `annotations.json`.
    2. Roboflow's `_annotations.coco.json` next to the images.
    3. COCO's `annotations/instances_train2017.json` and similar names.
    4. Roboflow's file in the folders `train`, `valid` and `test`.

    The name of a file or folder states the part of the dataset, such as `val` or `Val`. The parts
    become roles if one of them is for validation or test.

    Returns:
        The files, or an empty list.
    """
    if (root / ANNOTATIONS).is_file():
        return [AnnotationFile(root / ANNOTATIONS, (root / "images", root))]
    if (root / _ROBOFLOW).is_file():
        return [AnnotationFile(root / _ROBOFLOW, (root, root / "images"))]
    found: list[AnnotationFile] = []
    for path in sorted((root / "annotations").glob("*.json")):
        of_known_part = _PART_FILE.fullmatch(path.name)
        match = of_known_part or _ANY_INSTANCES.fullmatch(path.name)
        if match:
            part = match[1]
            folders = (root / part, root / "images" / part, root / "images", root)
            role = None if of_known_part is None else _ROLES.get(of_known_part[2].lower())
            found.append(AnnotationFile(path, folders, role))
    if not found:
        # `glob` finds nothing in a folder that cannot be listed, where `iterdir` raises an error
        of_parts = [path for path in root.glob("*") if path.name.lower() in _ROLES]
        order = list(_ROLES)
        for folder in sorted(of_parts, key=lambda path: order.index(path.name.lower())):
            path = folder / _ROBOFLOW
            if path.is_file():
                found.append(AnnotationFile(path, (folder,), _ROLES[folder.name.lower()]))
    are_roles = any(file.role in ("validation", "test") for file in found)
    return found if are_roles else [replace(file, role=None) for file in found]


def read_coco(root: Path) -> Dataset:
    """Read a COCO folder. Labels are 1 to K in the order of the category ids.

    A case id is the path of the image, with folders joined by `_`. An image whose annotations
    have several values of `reader` becomes a table of boxes. `annotations` of other cases contain
    `lesions`, a tuple of `CocoLesion`, and `size` (height, width). `columns` contain `pixel_mm` (""
    if unknown) and every further field with a text or number.
    """
    contents: list[tuple[AnnotationFile, _Content]] = []
    for file in find_annotations(root):
        content = validate(_Content, read_json(file.path, allow_nan=True), file.path)
        contents.append((file, content))
    names = _category_names(contents)
    ordered = sorted(names)
    label_of = {str(number): rank for rank, number in enumerate(ordered, start=1)}
    # of equal names, the first one is kept: Roboflow adds an unused category with the id 0
    used: set[str] = set()
    for _, content in contents:
        used.update(_id_text(annotation.get("category_id")) for annotation in content.annotations)
    by_use = sorted(ordered, key=lambda number: str(number) not in used)
    name_of_label = {label_of[str(number)]: names[number] or str(number) for number in by_use}
    label_names, findings = distinct_names(root, name_of_label)
    cases: list[CaseFiles] = []
    for file, content in contents:
        cases += _make_cases(root, file, content, label_of, findings)
    folders = {case.images[0].parent for case in cases if case.images[0].parent.is_dir()}
    for folder in sorted(folders):
        findings += remark_unread_files(folder, folders=False)  # folders may contain more images
    findings += _find_unlisted(root, folders, cases)
    findings += _find_crowds(root, cases)
    for file, content in contents:
        keys = {str(key) for image in content.images for key in image}
        known = tuple(_Image.model_fields)
        findings += column_findings(file.path, keys, known, "is used for subgroups only")
    return Dataset(
        name=root.name,
        root=root,
        convention="coco",
        dims=2,
        channel_names=("image",),
        labels=Labels.of(label_names),
        cases=tuple(cases),
        findings=tuple(findings),
    )


def lesions_are_boxes(files: CaseFiles) -> bool:
    """Return True if a lesion of the case has a box, but neither an outline nor a mask.

    The boxes are those of any layout: a table of boxes, COCO annotations or a datalist.
    """
    if TABLE in files.annotations:
        return has_boxes_only(files)
    if files.reference is not None:
        return False
    if "boxes" in files.annotations:  # of a datalist
        return bool(files.annotations["boxes"][0])
    lesions = [one for one in files.annotations.get("lesions", ()) if not one.iscrowd]
    return any(not lesion.segmentation for lesion in lesions)


def _category_names(contents: Iterable[tuple[AnnotationFile, _Content]]) -> dict[int, str]:
    """Return the name of each category id. Raise `DatasetError` if files give one id two names."""
    names: dict[int, str] = {}
    for file, content in contents:
        for category in content.categories:
            known = names.setdefault(category.id, category.name)
            if known != category.name:
                raise DatasetError(
                    f"{file.path}: the category {category.id} is called {category.name!r} here, "
                    f"but {known!r} in another file. Give each id one name in all files."
                )
    return names


def _make_cases(
    root: Path,
    file: AnnotationFile,
    content: _Content,
    label_of: Mapping[str, int],
    findings: list[Finding],
) -> list[CaseFiles]:
    """Make the cases of one COCO file. Entries that do not fit become findings."""
    path = file.path
    ids = {}
    for record in content.images:
        ids[_id_text(record.get("id"))] = _case_id(str(record.get("file_name")))
    lesions: dict[str, list[CocoLesion]] = {number: [] for number in ids}
    for annotation in content.annotations:
        image = _id_text(annotation.get("image_id"))
        category = _id_text(annotation.get("category_id"))
        where = f"{path}: annotation {str(annotation.get('id'))[:40]}"
        with collect_errors(findings, ids.get(image, ""), where):
            if image not in ids or category not in label_of:
                raise DatasetError(
                    f"image {image[:40]} or category {category[:40]} is not listed. Add it to the "
                    "images or categories."
                )
            entry = annotation | {"label": label_of[category], "where": where}
            attributes = annotation.get("attributes")
            if isinstance(attributes, dict) and "reader" in attributes:  # as CVAT writes it
                entry.setdefault("reader", attributes["reader"])
            lesions[image].append(validate(CocoLesion, entry))
    n_images = Counter(_id_text(image["id"]) for image in content.images if "id" in image)
    cases: list[CaseFiles] = []
    for record in content.images:
        number = _id_text(record.get("id"))
        case = _case_id(str(record.get("file_name")))
        with collect_errors(findings, case, path):
            image_record = validate(_Image, record)
            if n_images[number] > 1:
                raise DatasetError(
                    f"{image_record.file_name} has the id {number[:40]} of another image, so its "
                    "annotations are not known. Give each image its own id."
                )
            cases.append(_make_case(root, file, case, image_record, lesions[number]))
    return cases


def _id_text(number: object) -> str:
    """Return an id as text. The whole number 1.0, as pandas writes it, is the id 1."""
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    return str(number)


def _case_id(file_name: str) -> str:
    """Return the case id of an image: its path without the leading folder `images`."""
    path = Path(file_name)
    if path.parts[:1] == ("images",):
        path = Path(*path.parts[1:])
    return path_id(path)


def _make_case(
    root: Path, file: AnnotationFile, case: str, image: _Image, lesions: Sequence[CocoLesion]
) -> CaseFiles:
    """Make the case of one image."""
    paths = [folder / image.file_name for folder in file.folders]
    mask = root / "masks" / image.mask_file if image.mask_file else None
    columns = {"pixel_mm": ""}
    for name, value in (image.model_extra or {}).items():
        if isinstance(value, str | int | float):
            columns[name] = str(value)
    annotations: dict[str, Any] = {
        "lesions": tuple(lesions),
        "size": (image.height, image.width),
    }
    readers = {*image.readers, *(lesion.reader for lesion in lesions)}
    if len(readers) > 1:  # the mask shows one reading, so the boxes of all readers replace it
        annotations = {TABLE: _make_table(image, lesions)}
        mask = None
    elif mask is not None:
        _require_mask_labels(image, lesions)
    # if none exists, the first one is stated in the message that it is missing
    image_file = next((path for path in paths if path.is_file()), paths[0])
    return CaseFiles(
        case,
        (image_file,),
        reference=mask,
        group=str(image.patient),
        role=image.role or file.role,
        fold=image.fold,
        annotations=annotations,
        columns=columns,
    )


def _require_mask_labels(image: _Image, lesions: Sequence[CocoLesion]) -> None:
    """Raise `DatasetError` if an annotation of an image with a mask states no value in the mask."""
    for lesion in lesions:
        if lesion.mask_label is None and not lesion.iscrowd:
            raise DatasetError(
                f"{lesion.where}: the image has the mask_file {image.mask_file}, but the "
                "annotation states no mask_label, its value in the mask. Add it, or remove "
                "mask_file."
            )


def _make_table(image: _Image, lesions: Sequence[CocoLesion]) -> CaseBoxes:
    """Return the boxes of several readers of one image. Outlines are left out."""
    size = None
    if image.height is not None and image.width is not None:
        size = (image.height, image.width)
    for lesion in lesions:
        if not lesion.reader:
            raise DatasetError(
                f"{lesion.where}: the annotation names no reader, but the image has several. Add "
                "the key reader."
            )
        has_only_run_lengths = lesion.bbox is None and isinstance(lesion.segmentation, dict)
        if lesion.iscrowd or has_only_run_lengths:
            raise DatasetError(
                f"{lesion.where}: the image has several readers, so each annotation must have a "
                "bbox and no iscrowd. Correct it."
            )
        if lesion.bbox is None:
            _check_polygons(lesion.where, lesion.segmentation, size)
    boxes = tuple(
        LesionBox(le.label, le.box[:2], le.box[2:], le.reader, where=le.where) for le in lesions
    )
    readers = sorted({*image.readers, *(lesion.reader for lesion in lesions)})
    return CaseBoxes(boxes, tuple(readers), size=size)


def with_outlines(files: CaseFiles, geometry: Geometry) -> CaseFiles:
    """Return a case whose table states an outline of each lesion, as a case of COCO polygons.

    `read_coco_reference` can then draw the outlines. They are polygons in pixels, so that outlines
    in shares of the image (YOLO) are multiplied by its sides.
    """
    table: CaseBoxes = files.annotations[TABLE]
    height, width = geometry.shape
    scale = (width, height) if table.is_relative else (1, 1)
    lesions: list[CocoLesion] = []
    for box in table.boxes:
        points = np.reshape(box.outline, (-1, 2)) * scale
        polygon = points.ravel().tolist()
        lesions.append(CocoLesion(label=box.label, segmentation=[polygon], where=box.where))
    return replace(files, annotations={"lesions": tuple(lesions), "size": (None, None)})


def _find_unlisted(
    root: Path, folders: Collection[Path], cases: Sequence[CaseFiles]
) -> list[Finding]:
    """Return a note on the images in the folders that no case has."""
    images: set[Path] = set()
    for folder in folders:
        images |= set(filter(is_image_file, folder.iterdir()))
    unlisted = sorted(images - {case.images[0] for case in cases})
    names = [file.name for file in unlisted]
    return find_left_out(root, names, "image", "next to the listed images, left out")


def _find_crowds(root: Path, cases: Iterable[CaseFiles]) -> list[Finding]:
    """Return a finding about crowd annotations, because some programs write lesions so."""
    numbers: list[int] = []
    for case in cases:
        numbers.append(sum(lesion.iscrowd for lesion in case.annotations.get("lesions", ())))
    if not any(numbers):
        return []
    crowds = count(sum(numbers), "crowd annotation")
    images = count(sum(number > 0 for number in numbers), "image")
    text = (
        f"{root}: the regions of {crowds} (iscrowd=1) in {images} are ignored, so they are neither "
        "lesion nor background. CVAT writes brush masks so: set iscrowd to 0 if they are lesions."
    )
    return [Finding("crowds", text)]


@dataclass(frozen=True, eq=False)
class DrawnPart:
    """The drawing of one annotation, cropped to its box. An image may have hundreds of lesions.

    Attributes:
        top: The first row of the box.
        left: The first column of the box.
        mask: The drawn pixels `[y, x]` of the box. Empty if the annotation has no pixel.
    """

    top: int
    left: int
    mask: Mask

    def paint(self, image: NDArray[Any], value: int) -> None:
        """Set the drawn pixels of the whole image `[y, x]` to a value."""
        height, width = self.mask.shape
        window = image[self.top : self.top + height, self.left : self.left + width]
        window[self.mask] = value


def read_coco_reference(files: CaseFiles, geometry: Geometry, merged: Collection[int]) -> Reference:
    """Read the reference of a COCO case.

    Instances come from the mask file if the image names one, otherwise from polygons or RLE. If
    lesions overlap, the smaller one keeps the pixel. If an annotation has only a box, the reference
    consists of boxes. Crowd regions become `ignore`, except for lesions in them.

    Args:
        files: The files of the case.
        geometry: The grid of the image.
        merged: The label values that become 1.

    Returns:
        The reference, with zeros for a lesion-free case.

    Raises:
        GeometryError: The image or the mask has another size than stated.
        ContentError: A segmentation cannot be drawn, or does not fit its box.
    """
    height, width = files.annotations["size"]
    stated = None if None in (height, width) else (height, width)
    require_stated_size(files.images[0], stated, geometry)
    shape = geometry.shape
    case = files.case
    annotations = [_add_box(case, lesion, shape) for lesion in files.annotations["lesions"]]
    lesions = [lesion for lesion in annotations if not lesion.iscrowd]
    crowds = [lesion for lesion in annotations if lesion.iscrowd]
    given = np.array([lesion.box for lesion in lesions], dtype=np.float64).reshape(-1, 4)
    labels = np.array([1 if le.label in merged else le.label for le in lesions], np.int64)
    ignore = _draw_crowds(case, crowds, shape) if crowds else None
    if lesions_are_boxes(files):  # a lesion without an outline cannot be drawn
        places = [_place(case, lesion) for lesion in lesions]
        return make_box_reference(geometry, given, labels.tolist(), places, ignore)
    boxes = _clip_lesions(case, lesions, shape)
    if files.reference is not None:
        numbers = _read_instances(files.reference, lesions, shape)
    else:
        numbers = _draw_instances(case, lesions, shape)
    # the number of pixels of each lesion; the first count is that of the background
    n_pixels = np.bincount(numbers.ravel(), minlength=len(lesions) + 1)[1:]
    _check_boxes(case, numbers, boxes, n_pixels)
    is_visible = n_pixels > 0
    if not is_visible.all():
        logger.warning(
            "%s: %s left out, because smaller lesions cover every pixel or because another "
            "annotation has the same pixels.",
            case,
            count(int((~is_visible).sum()), "lesion"),
        )
    visible_labels = tuple(labels[is_visible].tolist())
    return Reference(
        geometry,
        labels=_label_pixels(numbers, labels),
        instances=_renumber_visible(numbers, is_visible),
        instance_labels=visible_labels,
        boxes=boxes[is_visible],
        box_labels=visible_labels,
        ignore=None if ignore is None else ignore & (numbers == 0),
        stated=StatedBoxes(given, tuple(labels.tolist())),
    )


def _place(case: str, lesion: CocoLesion) -> str:
    """Return case, file and annotation, for messages."""
    return f"case {case}: {lesion.where}"


def _clip_lesions(
    case: str, lesions: Sequence[CocoLesion], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Return the boxes of annotations `[n, 4]`, clipped to the image.

    Raise `ContentError` that names the first annotation outside the image.
    """
    boxes = [clip_boxes(lesion.box, shape, _place(case, lesion)) for lesion in lesions]
    return np.concatenate([np.zeros((0, 4), dtype=np.float32), *boxes])


def _label_pixels(
    numbers: NDArray[np.int32], labels: NDArray[np.int64]
) -> NDArray[np.integer[Any]]:
    """Return the label of each pixel, 0 for background.

    `numbers` has the number of each pixel's lesion, and `labels[i]` is the label of lesion i + 1.
    """
    label_type = np.min_scalar_type(int(labels.max(initial=0)))
    label_of_number = np.array([0, *labels]).astype(label_type)
    return np.asarray(label_of_number[numbers])


def _renumber_visible(
    numbers: NDArray[np.int32], is_visible: NDArray[np.bool_]
) -> NDArray[np.int32]:
    """Give the visible lesions consecutive numbers, because covered lesions have no pixels.

    If the second of three lesions is covered, for example, the third gets the number 2.
    """
    new_number = np.zeros(len(is_visible) + 1, dtype=np.int32)  # the first is the background
    new_number[1:][is_visible] = np.arange(1, is_visible.sum() + 1)
    return np.asarray(new_number[numbers])


def _draw_instances(
    case: str, lesions: Sequence[CocoLesion], shape: tuple[int, ...]
) -> NDArray[np.int32]:
    """Return the number of each pixel's lesion, 0 for none. Smaller lesions are drawn last."""
    parts = _draw_lesions(case, lesions, shape)
    instances = np.zeros(shape, dtype=np.int32)
    from_largest = np.argsort([-int(part.mask.sum()) for part in parts], kind="stable")
    for index in from_largest:
        parts[index].paint(instances, index + 1)
    return instances


def _draw_crowds(case: str, crowds: Sequence[CocoLesion], shape: tuple[int, ...]) -> Mask:
    """Return the pixels of crowd regions, from the box of a region without a segmentation.

    A crowd region contains lesions that the annotator did not draw one by one.
    """
    boxes = _clip_lesions(case, crowds, shape)
    inside = np.zeros(shape, dtype=bool)
    for crowd, box in zip(crowds, boxes, strict=True):
        if crowd.segmentation:
            _draw_lesions(case, [crowd], shape)[0].paint(inside, 1)
        else:
            inside[box_slices(box, 2)] = True
    return inside


def _check_boxes(
    case: str, instances: NDArray[np.int32], boxes: NDArray[Any], sizes: NDArray[np.int64]
) -> None:
    """Raise `ContentError` if most pixels of a lesion are outside its box.

    The reverse is allowed, because smaller lesions may cover the pixels in a box.
    """
    for number, (box, n_pixels) in enumerate(zip(boxes, sizes, strict=True), start=1):
        wide = np.concatenate([box[:2] - 1, box[2:] + 1])  # one pixel more because of rounding
        n_inside = int((instances[box_slices(wide, 2)] == number).sum())
        if 2 * n_inside < n_pixels:
            raise ContentError(
                f"case {case}: the mask of lesion {number} and its box {box.tolist()} disagree: "
                f"{n_inside} of {n_pixels} pixels are inside. Correct one of them."
            )


def _read_instances(
    path: Path, lesions: Sequence[CocoLesion], shape: tuple[int, ...]
) -> NDArray[np.int32]:
    """Read a mask of lesions and return the number of each pixel's lesion, 0 for none.

    The values of the mask are the `mask_label` of the annotations. The numbers are 1 to n in the
    order of the annotations.
    """
    mask = read_volume(path, as_labels=True).array[0]
    if mask.dtype.kind == "f":
        whole = np.nan_to_num(mask, nan=0.5, posinf=0.5, neginf=0.5)
        if (whole != np.rint(whole)).any():
            raise ContentError(f"{path}: the mask has values that are not whole numbers.")
        mask = whole.astype(np.int64)
    if mask.shape != shape:
        raise GeometryError(
            f"{path} has {mask.shape} pixels, but its image has {shape}. Save it in the size of "
            "the image."
        )
    number_of = {int(le.mask_label or 0): n for n, le in enumerate(lesions, start=1)}
    unknown = sorted({int(v) for v in np.unique(mask)} - {0} - set(number_of))
    has_repeated_label = len(number_of) < len(lesions)
    has_background_label = 0 in number_of
    if unknown or has_repeated_label or has_background_label:
        raise ContentError(
            f"{path} and the annotations' mask_label {sorted(number_of)} do not fit together "
            f"(values without annotation: {unknown}). Give each annotation its own mask_label, "
            "from 1."
        )
    highest = max([0, int(mask.max()), *number_of])
    number_of_value = np.zeros(highest + 1, dtype=np.int32)
    number_of_value[list(number_of)] = list(number_of.values())
    return np.asarray(number_of_value[mask])


def _add_box(case: str, lesion: CocoLesion, shape: tuple[int, ...]) -> CocoLesion:
    """Add a box to an annotation with run lengths but no box. `CocoLesion.box` handles polygons."""
    if lesion.bbox is not None:
        return lesion
    place = _place(case, lesion)
    _check_drawing(place, lesion.segmentation, shape)
    if not isinstance(lesion.segmentation, dict):
        return lesion
    box = _box_of_run_lengths(place, lesion.segmentation, shape)
    return lesion.model_copy(update={"bbox": box})


def _box_of_run_lengths(
    place: str, drawing: dict[str, Any], shape: tuple[int, ...]
) -> tuple[float, float, float, float]:
    """Return the box (x, y, width, height) of a segmentation in run lengths, by drawing it.

    Raise `ContentError` naming `place` if the segmentation is empty.
    """
    (part,) = run_in_worker(draw, place, [drawing], shape)
    rows = np.flatnonzero(part.mask.any(axis=1))
    columns = np.flatnonzero(part.mask.any(axis=0))
    if not len(rows):
        raise ContentError(
            f"{place}: a segmentation in run lengths is empty. Remove the annotation."
        )
    width = float(columns[-1] - columns[0] + 1)
    height = float(rows[-1] - rows[0] + 1)
    return part.left + float(columns[0]), part.top + float(rows[0]), width, height


def _check_drawing(place: str, drawing: Any, shape: tuple[int, ...]) -> None:
    """Raise `ContentError` for a segmentation that would crash the C library."""
    if not isinstance(drawing, dict):
        _check_polygons(place, drawing, shape)
    elif drawing.get("size") != list(shape):
        raise ContentError(
            f"{place}: the run lengths of a segmentation have the size "
            f"{str(drawing.get('size'))[:40]}, but the image has {shape}. Correct the size."
        )


def _check_polygons(place: str, drawing: Any, shape: tuple[int, ...] | None) -> None:
    """Raise `ContentError` for a segmentation that is not a list of polygons near the image.

    `shape` is None if the size of the image is unknown.
    """
    limit = _LARGEST if shape is None else 10 * max(shape)
    for polygon in drawing if isinstance(drawing, list) else [drawing]:
        if not _is_polygon(polygon, limit):
            raise ContentError(
                f"{place}: a segmentation cannot be drawn: {str(polygon)[:60]} is not a list of "
                f"numbers x, y of three or more points within {limit:g} pixels. Correct it."
            )


def _is_polygon(polygon: Any, limit: float) -> bool:
    """Return True for a list of at least three points whose numbers are at most `limit`."""
    if not isinstance(polygon, list):
        return False
    has_points = len(polygon) % 2 == 0 and len(polygon) >= 6  # x, y, x, y, …
    if not has_points:
        return False
    return all(isinstance(value, int | float) and abs(value) <= limit for value in polygon)


def _draw_lesions(
    case: str, lesions: Sequence[CocoLesion], shape: tuple[int, ...]
) -> list[DrawnPart]:
    """Return the pixels of each annotation.

    An annotation that contains no pixel centre gets the pixel nearest to the centre of its box.
    """
    for lesion in lesions:
        _check_drawing(_place(case, lesion), lesion.segmentation, shape)
    drawings = [lesion.segmentation for lesion in lesions]
    parts = run_in_worker(draw, f"case {case}", drawings, shape) if drawings else []
    for index, lesion in enumerate(lesions):
        if not parts[index].mask.any():
            centre = np.reshape(lesion.box, (2, 2)).mean(axis=0).astype(int)
            y, x = np.clip(centre, 0, np.array(shape) - 1).tolist()
            parts[index] = DrawnPart(y, x, np.ones((1, 1), dtype=bool))
    return parts


def draw(place: str, drawings: Sequence[Any], shape: tuple[int, ...]) -> list[DrawnPart]:
    """Draw polygons and run lengths. Only one mask of the whole image exists at a time.

    Raise `ContentError` naming `place` if the library rejects one.
    """
    from pycocotools import mask as coco_mask

    parts = []
    try:
        for drawing in drawings:
            is_encoded = isinstance(drawing, dict) and isinstance(drawing["counts"], str | bytes)
            if not is_encoded:  # polygons, or run lengths as numbers
                height, width = shape
                drawing = coco_mask.frPyObjects(drawing, height, width)
            if isinstance(drawing, list):  # one encoded mask per polygon
                drawing = coco_mask.merge(drawing)
            left, top, width, height = (int(value) for value in coco_mask.toBbox(drawing).ravel())
            whole = coco_mask.decode(drawing).reshape(shape)
            part = whole[top : top + height, left : left + width].astype(bool)
            parts.append(DrawnPart(top, left, part))
    except Exception as error:  # the library raises bare Exceptions for malformed input
        raise ContentError(
            f"{place}: a segmentation cannot be drawn: {error}. Correct it."
        ) from error
    return parts
