"""COCO layout: names of JSON files, roles, polygons, RLE, crowds, additional keys.

Format: cocodataset.org, "Data format". In addition an image may have `patient`, `mask_file`,
`pixel_mm`, `role`, `fold` and `readers`, and an annotation may have `reader` and `mask_label`, its
value in `masks/<mask_file>`.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from lesionseg.core import CaseFiles, Labels, Role
from lesionseg.core.finding import Finding, collect_errors
from lesionseg.core.records import parse_as
from lesionseg.errors import DatasetError, count
from lesionseg.io.case_ids import path_id
from lesionseg.io.layouts.annotated_lesions import (
    NO_FINDING,
    UPRIGHT,
    AnnotatedLesion,
    RunLengths,
    distinct_names,
    outline_box,
)
from lesionseg.io.layouts.checks import (
    Count,
    Number,
    find_unread_files,
    findings_about,
    list_images,
    with_distinct_ids,
)
from lesionseg.io.layouts.table import Row, Table, column_findings
from lesionseg.io.text import read_json
from lesionseg.io.volumes import is_image_file

ANNOTATIONS = "annotations.json"
_ROBOFLOW = "_annotations.coco.json"
# the file of one part of the dataset, such as instances_train2017.json or train.json
_PART_FILE = re.compile(r"(?i)(?:instances_)?((train|val|test)[\w.-]*)\.json|instances_(.+)\.json")
# the role of a part, by its name in lower case
_PART_ROLES: Mapping[str, Role] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}


def _to_slashes(path: str) -> str:
    """Replace the separators of Windows in a path by slashes."""
    return path.replace("\\", "/")


def _require_pairs(polygon: tuple[float, ...]) -> tuple[float, ...]:
    """Check that a polygon x, y, x, y, … has an even number of coordinates, and return it.

    Raises:
        ValueError: If the last point has no y.
    """
    if len(polygon) % 2:
        raise ValueError("a point lacks its y")
    return polygon


def _reader_text(name: object) -> str:
    """Return the name of a reader as text. `null` in JSON becomes "", for an unknown reader."""
    return "" if name is None else str(name)


SlashPath = Annotated[str, AfterValidator(_to_slashes), Field(max_length=4000)]
Side = Annotated[Number, Field(gt=0)]
Reader = Annotated[str, BeforeValidator(_reader_text)]


@dataclass(frozen=True)
class AnnotationFile:
    """A COCO file, and where its images are searched.

    Attributes:
        path: The file.
        folders: The folders in which its images may be located, in the order of the search.
        role: The role of its images. None if the file gives no role.
        images: All images of the dataset by file name, for a file whose place does not tell where
            its images are. Otherwise empty.
    """

    path: Path
    folders: tuple[Path, ...]
    role: Role | None = None
    images: Mapping[str, Sequence[Path]] = field(default_factory=dict)

    def find_image(self, file_name: str) -> Path:
        """Return the path of an image with the `file_name` of an entry.

        The image is searched in each of `folders`, then among `images`: there, exactly one path
        must end in `file_name`. If no file is found, the path in the first folder is returned, so
        that a later check reports it as missing.

        Raises:
            DatasetError: If several of `images` end in `file_name`.
        """
        paths = [folder / file_name for folder in self.folders]
        for path in paths:
            with suppress(OSError):  # such as a name that is too long: the file is missing
                if path.is_file():
                    return path
        possible = self.images.get(Path(file_name).name, ())
        matching = [path for path in possible if path.as_posix().endswith(f"/{file_name}")]
        if len(matching) > 1:
            raise DatasetError(
                f"{matching[0]} and {matching[1]} are both called {file_name}. Write the path of "
                "the image as file_name, relative to the folder of the dataset."
            )
        return matching[0] if matching else paths[0]


def _none_if_empty(value: object) -> object:
    """Return None for an empty list, an empty text or 0, otherwise the value itself.

    Some programs write an empty box or segmentation if an annotation has none.
    """
    return value or None


class _Annotation(BaseModel):
    """An annotation of a COCO file. A segmentation is a list of polygons, or run lengths."""

    bbox: Annotated[tuple[Number, Number, Side, Side] | None, BeforeValidator(_none_if_empty)] = (
        None  # x, y, width, height
    )
    segmentation: Annotated[
        tuple[
            Annotated[tuple[Number, ...], Field(min_length=6), AfterValidator(_require_pairs)], ...
        ]
        | RunLengths
        | None,
        BeforeValidator(_none_if_empty),
    ] = None
    mask_label: Count | None = None
    iscrowd: bool = False  # a region to ignore
    reader: Reader = ""
    # CVAT's attribute, in degrees about the centre of the box
    rotation: Annotated[Number | None, BeforeValidator(_none_if_empty)] = None

    @model_validator(mode="before")
    @classmethod
    def _add_attributes(cls, annotation: dict[str, Any]) -> dict[str, Any]:
        """Return an annotation with the reader and the rotation of its nested object `attributes`.

        CVAT writes them there. A field of the annotation itself replaces the attribute.
        """
        attributes = annotation.get("attributes")
        if not isinstance(attributes, dict):
            return annotation
        of_cvat = {name: attributes.get(name) for name in ("reader", "rotation")}
        return {**of_cvat, **annotation}

    def lesion(self, label: int, where: str) -> AnnotatedLesion:
        """Return the annotation as a lesion, with its box in the order y, x, y, x.

        Without `bbox`, the box is the smallest one around the polygons. Run lengths without `bbox`
        give a lesion without a box.

        Args:
            label: The label value of the category.
            where: File and annotation, for messages.

        Raises:
            DatasetError: If there is neither a box nor a segmentation, or a box without a
                segmentation is rotated by another angle than a multiple of 180 degrees.
        """
        outline = self.segmentation or ()
        box: tuple[float, ...] = ()
        if self.bbox is not None:
            x, y, width, height = self.bbox
            box = (y, x, y + height, x + width)
        elif not outline:
            raise DatasetError("there is no place. Write a bbox or a segmentation.")
        elif not isinstance(outline, RunLengths):
            box = outline_box(outline)
        # at 180° the box covers the same pixels as at 0°
        if not outline and round(self.rotation or 0, 1) % 180:
            raise DatasetError(f"the box is rotated. {UPRIGHT}.")
        return AnnotatedLesion(
            label,
            box,
            reader=self.reader,
            outline=outline,
            mask_value=self.mask_label,
            is_ignored=self.iscrowd,
            where=where,
        )


class _Image(BaseModel):
    """An image of a COCO file. Unknown fields are kept as columns."""

    model_config = ConfigDict(extra="allow")

    id: int | str
    file_name: SlashPath
    width: Count | None = None
    height: Count | None = None
    mask_file: SlashPath | None = None
    patient: int | str = ""
    role: Role | None = None
    fold: Count | None = None
    license: Any = None  # declared so that it does not become a column
    readers: list[Reader] = []


class _Category(BaseModel):
    """A category of a COCO file. Its id becomes a label."""

    id: Count
    name: str = Field(min_length=1)


class _Content(BaseModel):
    """The content of a COCO file. Images and annotations are parsed one by one."""

    images: Annotated[list[dict[str, Any]], Field(min_length=1)]
    annotations: list[dict[str, Any]]
    categories: Annotated[list[_Category], Field(min_length=1)]


def find_annotations(root: Path) -> list[AnnotationFile]:
    """Find the COCO files of a folder, with the role of their images.

    The first of these that exists is used:

    1. `annotations.json`.
    2. Roboflow's `_annotations.coco.json` next to the images.
    3. COCO's `annotations/instances_*.json`, such as `instances_train2017.json`, or `train.json`.
    4. Roboflow's file in the folders `train`, `valid` and `test`.

    With 3 and 4, the name of a file or folder contains the part of the dataset, such as `val` or
    `Val`. The parts become roles only if one of them is for validation or test. Otherwise, the
    images have no role.

    Returns:
        The files, or an empty list.
    """
    for name in (ANNOTATIONS, _ROBOFLOW):
        if (root / name).is_file():
            return [AnnotationFile(root / name, (root / "images", root))]
    files: list[AnnotationFile] = []
    for path in sorted((root / "annotations").glob("*.json")):
        match = _PART_FILE.fullmatch(path.name)
        if match:
            part = match[1] or match[3]  # such as val2017, or another name after instances_
            folders = (root / part, root / "images" / part, root / "images", root)
            role = _PART_ROLES.get(str(match[2]).lower())  # match[2] is None for another part
            files.append(AnnotationFile(path, folders, role))
    if not files:
        # `glob` finds nothing in a folder that cannot be listed, where `iterdir` raises an error
        for path in sorted(root.glob(f"*/{_ROBOFLOW}")):
            role = _PART_ROLES.get(path.parent.name.lower())
            if role is not None:
                files.append(AnnotationFile(path, (path.parent,), role))
    has_other_than_train = any(file.role in ("validation", "test") for file in files)
    return files if has_other_than_train else [replace(file, role=None) for file in files]


def read_coco(root: Path, annotations: Path | None = None) -> Table:
    """Read a COCO folder as a table. Labels are 1 to K in the order of the category ids.

    - A case id is the `file_name` of the image, with folders joined by `_`. If two images share an
      id, the path below `root` replaces it.
    - The columns of a case are `pixel_mm` ("" if unknown) and every further field with a text or
      number.
    - Entries that do not fit, images that are not listed, and ignored regions become findings.

    Args:
        root: The folder.
        annotations: A COCO file of any name and place, whose images are located anywhere below the
            folder. None searches for files, see `find_annotations`.

    Raises:
        DatasetError: If a file has no image, no category or no list of annotations, or one category
            id has two names.
        ReadError: If a file cannot be read.
    """
    if annotations is None:
        files = find_annotations(root)
    else:
        images: dict[str, list[Path]] = {}
        for image in list_images(root):
            images.setdefault(image.name, []).append(image)
        files = [AnnotationFile(annotations, (root / "images", root), images=images)]
    contents = [
        (file, parse_as(_Content, read_json(file.path, allow_nan=True), file.path))
        for file in files
    ]
    names, label_of, findings = _find_labels(root, contents)
    # case ids for all files together, because two files may contain images of the same name
    cases: list[CaseFiles] = []
    for file, content in contents:
        for record in content.images:
            name = _to_slashes(str(record.get("file_name")))
            image_path = Path(name)
            with suppress(DatasetError):  # reading the entry reports the error
                image_path = file.find_image(name)
            cases.append(CaseFiles(_case_id(name), (image_path,)))
    # such as train/a.png and valid/a.png; the iterator continues from file to file in `_read_rows`
    ids = (files.case for files in with_distinct_ids(cases, root))
    rows: list[Row] = []
    for file, content in contents:
        rows += _read_rows(root, file, content, ids, label_of, findings)
        keys = {str(key) for image in content.images for key in image}
        known_keys = tuple(_Image.model_fields)
        findings += column_findings(file.path, keys, known_keys, "is used for subgroups only")
    listed = [row.files.images[0] for row in rows if row.files.images]
    findings += _find_unlisted(root, listed, files)
    findings += _find_crowds(root, rows)
    return Table(root, rows, Labels.of(names), findings=findings)


def _find_labels(
    root: Path, contents: Sequence[tuple[AnnotationFile, _Content]]
) -> tuple[dict[int, str], dict[str, int], list[Finding]]:
    """Assign one label value to each category id of all COCO files.

    Label values are 1, 2, … in the order of the category ids. Equal names are numbered ("nodule
    (2)").

    Returns:
        The name of each label value, the label value of each category id (as text), and a list with
        a finding if names were equal.

    Raises:
        DatasetError: If one id has two names.
    """
    names: dict[int, str] = {}
    for file, content in contents:
        for category in content.categories:
            first_name = names.setdefault(category.id, category.name)
            if first_name != category.name:
                raise DatasetError(
                    f"{file.path}: the category {category.id} is called {category.name!r}, but "
                    f"{first_name!r} before, in this or another file. Give each id one name."
                )
    label_of = {str(category_id): label for label, category_id in enumerate(sorted(names), start=1)}
    name_of = {label_of[str(category_id)]: names[category_id] for category_id in sorted(names)}
    label_names, findings = distinct_names(root, name_of)
    return label_names, label_of, findings


def _read_rows(
    root: Path,
    file: AnnotationFile,
    content: _Content,
    ids: Iterator[str],
    label_of: Mapping[str, int],
    findings: list[Finding],
) -> list[Row]:
    """Return the rows of one COCO file: one per image, and further rows with its lesions.

    Each image with a valid entry has one row of lesions per reader. If no reader is named, it has a
    single row of lesions. Entries that do not fit become findings.

    Args:
        root: The folder of the dataset.
        file: The COCO file.
        content: The content of the file.
        ids: An iterator over case ids. One id is read from it for each image of the file, in order.
        label_of: The label value of each category id.
        findings: Receives the findings.
    """
    n_images_of_id = Counter(str(record.get("id")) for record in content.images)
    no_finding_ids = [
        str(category.id) for category in content.categories if NO_FINDING.fullmatch(category.name)
    ]
    case_of: dict[str, str] = {}
    lesions_of: dict[str, dict[str, list[AnnotatedLesion]]] = {}  # by image and reader
    rows: list[Row] = []
    # the row of each image
    for record in content.images:
        image_id = str(record.get("id"))
        case = case_of.setdefault(image_id, next(ids))
        with collect_errors(findings, case, file.path):
            image = parse_as(_Image, record)
            if n_images_of_id[image_id] > 1:
                raise DatasetError(
                    f"{image.file_name} has the id {image_id} of another image, so its annotations "
                    "are not known. Give each image its own id."
                )
            rows.append(_image_row(root, file, image, case))
            lesions_of[image_id] = {reader: [] for reader in image.readers}
    # each annotation, assigned to its image and reader
    for annotation in content.annotations:
        image_id = str(annotation.get("image_id"))
        category_id = str(annotation.get("category_id"))
        where = f"{file.path}: annotation {str(annotation.get('id'))[:40]}"
        with collect_errors(findings, case_of.get(image_id, ""), where):
            if image_id not in case_of or category_id not in label_of:
                raise DatasetError(
                    f"image {image_id[:40]} or category {category_id[:40]} is not listed. "
                    "Add it to the images or categories."
                )
            if category_id in no_finding_ids:  # its box may be empty, and this label is left out
                annotation = {**annotation, "bbox": [0, 0, 1, 1], "segmentation": None}
            lesion = parse_as(_Annotation, annotation).lesion(label_of[category_id], where)
            if image_id in lesions_of:  # not if the image has a wrong entry
                lesions_of[image_id].setdefault(lesion.reader, []).append(lesion)
    # an image without annotations and readers gets a row without lesions: it is lesion-free
    for image_id, by_reader in lesions_of.items():
        for reader, lesions_of_reader in sorted((by_reader or {"": []}).items()):
            where = lesions_of_reader[0].where if lesions_of_reader else str(file.path)
            rows.append(
                Row(
                    CaseFiles(case_of[image_id], images=()),
                    where,
                    lesions=tuple(lesions_of_reader),
                    reader=reader,
                )
            )
    return rows


def _image_row(root: Path, file: AnnotationFile, image: _Image, case: str) -> Row:
    """Return the row with the image, mask and columns of a case, without its lesions.

    The `role` of the image's entry is used if it has one, otherwise the role of the file.

    Args:
        root: The folder of the dataset.
        file: The COCO file.
        image: The entry of the image.
        case: The case id.

    Raises:
        DatasetError: If the image cannot be found without ambiguity, see
            `AnnotationFile.find_image`.
    """
    fields = {"pixel_mm": "", **(image.model_extra or {})}
    columns = {
        name: str(value) for name, value in fields.items() if isinstance(value, str | int | float)
    }
    files = CaseFiles(
        case,
        (file.find_image(image.file_name),),
        reference=root / "masks" / image.mask_file if image.mask_file else None,
        group=str(image.patient),
        role=image.role or file.role,
        fold=image.fold,
        columns=columns,
    )
    size = None
    if image.height is not None and image.width is not None:
        size = (image.height, image.width)
    return Row(files, f"{file.path}: image {image.id}", size=size)


def _case_id(file_name: str) -> str:
    """Return the case id of an image: its path without suffix and leading folder `images`."""
    path = Path(file_name)
    if path.parts[:1] == ("images",):
        path = Path(*path.parts[1:])
    return path_id(path)


def _find_unlisted(
    root: Path, listed: Collection[Path], files: Iterable[AnnotationFile]
) -> list[Finding]:
    """Return findings on images that no COCO file lists, and on files in unknown formats.

    Only the folders of listed images are searched, and `AnnotationFile.images` if a file has them.

    Args:
        root: The folder of the dataset, for messages.
        listed: The images that the COCO files list.
        files: The COCO files.
    """
    findings: list[Finding] = []
    unlisted = {image for file in files for images in file.images.values() for image in images}
    for folder in sorted({image.parent for image in listed if image.parent.is_dir()}):
        # subfolders are no unread files, because they may contain further listed images
        findings += find_unread_files(folder, folders=False)
        unlisted |= set(filter(is_image_file, folder.iterdir()))
    names = [file.name for file in sorted(unlisted.difference(listed))]
    return [*findings, *findings_about(root, names, "image", "not listed, left out")]


def _find_crowds(root: Path, rows: Iterable[Row]) -> list[Finding]:
    """Return a finding that counts the ignored regions (`iscrowd`), or [] without any.

    The finding warns the user because some programs write lesions as ignored regions by mistake.
    """
    cases: list[str] = []
    for row in rows:
        cases += [row.files.case for lesion in row.lesions or () if lesion.is_ignored]
    if not cases:
        return []
    crowds = count(len(cases), "crowd annotation")
    text = (
        f"{root}: the regions of {crowds} (iscrowd=1) in {count(len(set(cases)), 'image')} are "
        "ignored, so they are neither lesion nor background. CVAT writes brush masks so: set "
        "iscrowd to 0 if they are lesions."
    )
    return [Finding("crowds", text)]
