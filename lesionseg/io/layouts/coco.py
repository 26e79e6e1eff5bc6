"""COCO folders: `images/` and `annotations.json` with boxes, polygons, RLE or instance masks.

Format: cocodataset.org, "Data format". Beyond it an image may have `patient`, `mask_file`,
`pixel_mm`, `role` and `fold`, an annotation `mask_label`: its value in `masks/<mask_file>`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionseg.core import CaseFiles, Dataset
from lesionseg.errors import ContentError, DatasetError
from lesionseg.io.atomic import read_json
from lesionseg.io.layouts.case_problems import Problems, check_name, is_count, is_number
from lesionseg.io.layouts.manifest import parse_fold, parse_role
from lesionseg.io.volumes import strip_suffix

ANNOTATIONS = "annotations.json"
_LONGEST_ID = 100
_OWN_FIELDS = {
    "id",
    "file_name",
    "mask_file",
    "width",
    "height",
    "license",
    "patient",
    "role",
    "fold",
}


@dataclass(frozen=True)
class CocoLesion:
    """One annotation: `box` (y, x starts, y, x stops; half-open pixels), and what draws it.

    `label` is the rank of its category's id, from 1. `crowd` marks a region not to be judged.
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
    images, annotations, categories = (
        _records(content, key, path) for key in ("images", "annotations", "categories")
    )
    ranked = sorted(categories, key=lambda c: _number(c, "id", path))
    label_of = {_number(c, "id", path): rank for rank, c in enumerate(ranked, start=1)}
    problems, info = Problems(), content.get("info")
    lesions = _lesions(images, annotations, label_of, path, problems)
    cases = tuple(
        _case(root, image, tuple(lesions[_key(image, "id", path)]), problems) for image in images
    )
    return Dataset(
        name=root.name,
        root=root,
        convention="coco",
        dims=2,
        channel_names=("image",),
        labels={label_of[_number(c, "id", path)]: str(c.get("name", c["id"])) for c in ranked},
        cases=cases,
        incomplete_reference=isinstance(info, Mapping) and bool(info.get("incomplete_reference")),
        problems=problems.listed,
    )


def _records(content: Any, key: str, path: Path) -> list[dict[str, Any]]:
    records = content.get(key) if isinstance(content, dict) else None
    well_formed = isinstance(records, list) and all(isinstance(r, dict) for r in records)
    if well_formed and (records or key == "annotations"):
        return list(records or ())
    raise DatasetError(f"The file has no list of {key!r}.", where=path, expected="COCO's format")


def _field(record: Mapping[str, Any], key: str, path: Path) -> Any:
    if record.get(key) is None:
        raise DatasetError(f"An entry lacks {key!r}.", where=path, seen=dict(record))
    return record[key]


def _key(record: Mapping[str, Any], key: str, path: Path) -> str:
    """An id: a number or a text."""
    value = _field(record, key, path)
    if not isinstance(value, int | str) or len(str(value)) > _LONGEST_ID:
        expected = f"a number or a text of up to {_LONGEST_ID} letters"
        raise DatasetError(f"An entry's {key!r} is no id.", where=path, expected=expected)
    return str(value)


def _number(record: Mapping[str, Any], key: str, path: Path) -> int:
    value = _field(record, key, path)
    if not is_count(value):
        seen = str(value)[:40]
        what, expected = f"An entry's {key!r} is not an integer.", "0, 1, 2, …"
        raise DatasetError(what, where=path, seen=seen, expected=expected)
    return int(value)


def _lesions(
    images: Iterable[Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
    label_of: Mapping[int, int],
    path: Path,
    problems: Problems,
) -> dict[Any, list[CocoLesion]]:
    """Lesions by image id, in the file's order; unusable annotations become problems."""
    names = {_key(image, "id", path): _stem(image) for image in images}
    lesions: dict[Any, list[CocoLesion]] = {number: [] for number in names}
    for annotation in annotations:
        with problems.of(names.get(str(annotation.get("image_id")), "")):
            image = _key(annotation, "image_id", path)
            category = _number(annotation, "category_id", path)
            if image not in lesions or category not in label_of:
                raise DatasetError(
                    f"Annotation {annotation.get('id')} points to an image or category not listed.",
                    where=path,
                    seen=f"image_id {image}, category_id {category}",
                )
            lesions[image].append(_lesion(annotation, label_of[category], names[image], path))
    return lesions


def _stem(image: Mapping[str, Any]) -> str:
    return strip_suffix(Path(str(image.get("file_name", ""))))


def _lesion(annotation: Mapping[str, Any], label: int, case: str, path: Path) -> CocoLesion:
    box = annotation.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(is_number(v) for v in box)):
        raise ContentError(
            f"Annotation {annotation.get('id')} of the case {case!r} has no box.",
            where=path,
            seen=box,
            expected="bbox: [x, y, width, height]",
        )
    x, y, width, height = (float(v) for v in box)
    if width <= 0 or height <= 0:
        raise ContentError(
            f"The box of annotation {annotation.get('id')} of the case {case!r} is empty.",
            where=path,
            seen=box,
            expected="bbox: [x, y, width, height] with a width and a height above 0",
        )
    stated = annotation.get("mask_label")
    mask_label = None if stated is None else _number(annotation, "mask_label", path)
    return CocoLesion(
        label=label,
        box=(y, x, y + height, x + width),
        segmentation=annotation.get("segmentation") or None,
        mask_label=mask_label,
        crowd=bool(annotation.get("iscrowd", 0)),
    )


def _case(
    root: Path, image: Mapping[str, Any], lesions: tuple[CocoLesion, ...], problems: Problems
) -> CaseFiles:
    path = root / ANNOTATIONS
    file, mask = _image_file(root, image, problems), image.get("mask_file")
    mask_path = None if mask is None else root / "masks" / check_name(str(mask), path)
    role, fold = None, None
    with problems.of(strip_suffix(file)):
        role = parse_role(str(image.get("role") or ""), path)
    with problems.of(strip_suffix(file)):
        fold = parse_fold(str(image.get("fold", "")), path)
    return CaseFiles(
        case=strip_suffix(file),
        images=(file,),
        reference=mask_path if mask_path is not None and mask_path.is_file() else None,
        group=str(image.get("patient") or ""),
        role=role,
        fold=fold,
        annotations={"lesions": lesions, "size": (image.get("height"), image.get("width"))},
        columns={"pixel_mm": "", **_columns(image)},
    )


def _image_file(root: Path, image: Mapping[str, Any], problems: Problems) -> Path:
    """The image's file, or where it should lie and a problem."""
    name = check_name(str(_field(image, "file_name", root / ANNOTATIONS)), root / ANNOTATIONS)
    usual = root / "images" / name
    file = next((f for f in (usual, root / name) if f.is_file()), None)
    if file is None:
        error = DatasetError(
            "An image that the annotations name is not there.",
            where=root / ANNOTATIONS,
            seen=name,
            expected=f"images/{name}",
        )
        problems.add(strip_suffix(usual), error, repeated=True)
    return file or usual


def _columns(image: Mapping[str, Any]) -> dict[str, str]:
    plain = {k: v for k, v in image.items() if isinstance(v, str | int | float)}
    return {key: str(value) for key, value in plain.items() if key not in _OWN_FIELDS}
