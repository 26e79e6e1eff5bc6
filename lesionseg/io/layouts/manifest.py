"""A dataset as a table: `manifest.csv`, one row per case, next to or above its files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from lesionseg.core import CaseFiles, Dataset, Problem, Reference, Role
from lesionseg.errors import ContentError, DatasetError, LesionsegError, one_of
from lesionseg.io.files import read_csv, read_json
from lesionseg.io.layouts.checks import count_axes, is_count
from lesionseg.io.volumes import read_volume
from lesionseg.ops.components import mask_boxes

MANIFEST, LABELS, IGNORE = "manifest.csv", "labels.json", "ignore"
_OWN_COLUMNS = {"case", "reference", "instances", "group", "role", "fold"}


def recognises_manifest(root: Path) -> bool:
    """Whether the folder holds a `manifest.csv`."""
    return (root / MANIFEST).is_file()


def read_manifest(root: Path) -> Dataset:
    """Read `manifest.csv`: `case, image[, image_0001 …], reference, group, role, fold` and others.

    Commas, semicolons or tabs between. Paths are relative to the manifest; a folder is a DICOM
    series, an empty reference means unlabelled. In place of `reference`, `instances` names a mask
    whose values are lesion ids, all of label 1. `annotated` names the labels that were looked for,
    `lesion;cyst`; empty means all. Further columns are kept in `CaseFiles.columns`; `pixel_mm` is
    the pixel size of rasters. Labels are those of `labels.json` beside it (`{"1": "lesion", "9":
    "ignore"}`), else that one lesion. What is wrong with single rows becomes `Dataset.problems`;
    what is wrong with the table raises `DatasetError`.
    """
    path = root / MANIFEST
    rows = read_csv(path)
    images = _image_columns(rows, path)
    labels, ignore = read_labels(root)
    cases, problems = list[CaseFiles](), list[Problem]()
    for line, row in enumerate(rows, start=2):
        name = row["case"]
        if not name or not any(row[column] for column in images):
            lacks = "image" if name else "case"
            problems.append(Problem(name, f"{path}: Line {line} lacks its {lacks}."))
            continue
        try:
            cases.append(_case(root, row, images, list(labels.values())))
        except LesionsegError as error:
            problems.append(Problem(name, f"{path}: line {line}: {error}"))
            # with what is wrong left out, so that the rest of the case can be checked
            plain = {**row, "role": "", "fold": "", "annotated": "", "instances": ""}
            cases.append(_case(root, plain, images, list(labels.values())))
    return Dataset(
        name=root.name,
        root=root,
        convention="manifest",
        dims=count_axes(cases),
        channel_names=images,
        labels=labels,
        cases=tuple(cases),
        ignore_label=ignore,
        problems=tuple(problems),
    )


def _case(
    root: Path, row: Mapping[str, str], images: Sequence[str], names: Sequence[str]
) -> CaseFiles:
    reference, instances = row.get("reference", ""), row.get("instances", "")
    annotated = parse_annotated(row.get("annotated", ""), names, "column annotated")
    if reference and instances:
        raise DatasetError("a row has either a reference or instances, not both.")
    if instances and annotated and names[0] not in annotated:
        raise DatasetError(f"lesions of an instance mask are {names[0]!r}, not annotated here.")
    mask = reference or instances
    return CaseFiles(
        case=row["case"],
        images=tuple(root / row[name] for name in images if row[name]),
        reference=root / mask if mask else None,
        group=row.get("group", ""),
        role=parse_role(row.get("role", "")),
        fold=parse_fold(row.get("fold", "")),
        annotations={"instances": None} if instances else {},
        columns=_further_columns(row, images),
        annotated=annotated,
        missing=tuple(place for place, name in enumerate(images) if not row[name]),
    )


def read_scan_list(path: Path, channels: int | None = None) -> list[CaseFiles]:
    """The cases that a table `case, image[, image_0001 …]` names, by case id; nothing is read.

    Paths are relative to the table; further columns (`pixel_mm`) are kept. An empty cell among the
    first `channels` columns (None: all) is a channel that the case lacks. Files are not looked
    for: a case whose files are missing fails by itself. Raises `DatasetError` for a table without
    these columns or cases, a line without case or image, a case that is a path or named twice.
    """
    rows = read_csv(path)
    images = _image_columns(rows, path)
    cases: dict[str, CaseFiles] = {}
    for line, row in enumerate(rows, start=2):
        case = row["case"]
        files = tuple(path.parent / row[name] for name in images if row[name])
        if not case or not files or Path(case).name != case or case in cases:
            raise DatasetError(f"{path}: line {line} names no case of its own and its image.")
        cases[case] = CaseFiles(
            case,
            files,
            group=row.get("group", "") or case,
            columns=_further_columns(row, images),
            missing=tuple(i for i, name in enumerate(images[:channels]) if not row[name]),
        )
    return [cases[case] for case in sorted(cases)]


def read_instances(path: Path, raster_mm: float | None) -> Reference:
    """An instance mask on its own grid: its ids made consecutive in ascending order, all label 1.

    Raises `ContentError` for values that cannot be ids.
    """
    volume = read_volume(path, raster_mm=raster_mm, as_labels=True)
    values, inverse = np.unique(volume.array[0], return_inverse=True)
    if (values < 0).any() or (values != np.round(values)).any():
        raise ContentError(f"{path}: an instance mask holds 0 and whole ids, not {values[:5]}.")
    n_lesions = int(np.count_nonzero(values))
    order = np.cumsum(values > 0).astype(np.int32)
    instances = order[inverse.reshape(volume.array[0].shape)]
    return Reference(
        volume.geometry,
        labels=(instances > 0).astype(np.uint8),
        instances=instances,
        instance_labels=(1,) * n_lesions,
        boxes=mask_boxes(instances, n_lesions),
        box_labels=(1,) * n_lesions,
    )


def parse_role(text: str) -> Role | None:
    """A role by name; None for nothing. Raises `DatasetError` for any other word."""
    for role in get_args(Role):
        if text == role:
            return text  # type: ignore[return-value]  # one of the four, as just compared
    if text:
        raise DatasetError(f"the role {text!r} is none of {', '.join(get_args(Role))}.")
    return None


def parse_fold(text: str) -> int | None:
    """A fold's number from 0; None for nothing. Raises `DatasetError` for anything else."""
    if text and not is_count(text):
        raise DatasetError(f"the fold {text!r} is not an integer from 0 on.")
    return int(text) if text else None


def parse_annotated(text: str, names: Sequence[str], where: str) -> tuple[str, ...]:
    """The labels that were looked for, of those a dataset has; empty for all of them.

    `text`: names with semicolons between, or nothing. Raises `ConfigError` for any other name.
    """
    given = {name.strip() for name in text.split(";") if name.strip()}
    for name in sorted(given):
        one_of(where, name, names)
    return () if given == set(names) else tuple(name for name in names if name in given)


def read_labels(root: Path) -> tuple[dict[int, str], int | None]:
    """Label names by value from `labels.json` in the folder, and the value to ignore.

    Label 1 is the lesion without the file. The value called `ignore` is one to ignore. Raises
    `DatasetError`.
    """
    path = root / LABELS
    content = read_json(path) if path.is_file() else {"1": "lesion"}
    if isinstance(content, dict) and all(is_count(k) and int(k) > 0 for k in content):
        named = {int(k): str(v) for k, v in sorted(content.items(), key=lambda kv: int(kv[0]))}
        ignored = [value for value, name in named.items() if name == IGNORE]
        lesions = {value: name for value, name in named.items() if name != IGNORE}
        if lesions and len(ignored) < 2:
            return lesions, next(iter(ignored), None)
    raise DatasetError(f'{path}: the labels are unclear. Write {{"1": "lesion"}} or the like.')


def _further_columns(row: Mapping[str, str], images: Sequence[str]) -> dict[str, str]:
    return {k: v for k, v in row.items() if k not in _OWN_COLUMNS and k not in images}


def _image_columns(rows: Sequence[Mapping[str, str]], path: Path) -> tuple[str, ...]:
    if not rows:
        raise DatasetError(f"{path}: the table has no case.")
    for name in ("case", "image"):
        if name not in rows[0]:
            raise DatasetError(f"{path}: no column {name!r} (it has {', '.join(rows[0])}).")
    return ("image", *sorted(c for c in rows[0] if c.startswith("image_") and c[6:].isdigit()))
