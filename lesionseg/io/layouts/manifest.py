"""A dataset as a table: `manifest.csv`, one row per case, next to or above its files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from lesionseg.core import CaseFiles, Dataset, Role
from lesionseg.errors import DatasetError, one_of
from lesionseg.io.atomic import read_csv, read_json
from lesionseg.io.layouts.case_problems import (
    LACKING,
    Problems,
    check_name,
    count_axes,
    is_count,
)
from lesionseg.io.layouts.nnunet_labels import IGNORE, FileLabels

MANIFEST = "manifest.csv"
LABELS = "labels.json"
_OWN_COLUMNS = ("case", "reference", "instances", "group", "role", "fold")


def recognises_manifest(root: Path) -> bool:
    """Whether the folder holds a `manifest.csv`."""
    return (root / MANIFEST).is_file()


def read_manifest(root: Path) -> Dataset:
    """Read `manifest.csv`: `case, image[, image_0001 …], reference, group, role, fold` and others.

    Commas, semicolons or tabs between. Paths are relative to the manifest; a folder is a DICOM
    series, an empty reference means unlabelled. In place of `reference`, `instances` names a mask
    whose values are lesion ids, all of label 1. `annotated` names the labels that were
    looked for, `lesion;cyst`; empty means all. Further columns are kept in `CaseFiles.columns`;
    `pixel_mm` is the pixel size of rasters. Labels are those of `labels.json` beside it
    (`{"1": "lesion", "9": "ignore"}`), else that one lesion. What is wrong with single rows becomes
    `Dataset.problems`; what is wrong with the table raises `DatasetError`.
    """
    path, problems = root / MANIFEST, Problems()
    rows = read_csv(path)
    images = _image_columns(rows, path)
    labels = read_label_names(root)
    names = tuple(labels.names.values())
    read = [
        _case(root, row, images, names, line, problems) for line, row in enumerate(rows, start=2)
    ]
    cases = tuple(case for case in read if case is not None)
    return Dataset(
        name=root.name,
        root=root,
        convention="manifest",
        dims=count_axes(cases),
        channel_names=images,
        labels=labels.names,
        cases=cases,
        ignore_label=labels.ignore,
        problems=problems.listed,
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
            raise DatasetError(
                f"Line {line} does not name a case of its own.",
                where=path,
                seen=dict(row),
                expected="a case id that can be a file's name, and its image",
            )
        columns = {k: v for k, v in row.items() if k not in (*_OWN_COLUMNS, *images)}
        cases[case] = CaseFiles(
            case,
            files,
            group=row.get("group", "") or case,
            columns=columns,
            missing=_empty_cells(row, images[:channels]),
        )
    return [cases[case] for case in sorted(cases)]


def parse_role(text: str, where: Path) -> Role | None:
    """A role by name; None for nothing. Raises `DatasetError` for any other word."""
    for role in get_args(Role):
        if text == role:
            return text  # type: ignore[return-value]  # one of the four, as just compared
    if text:
        raise DatasetError(
            "The role is unknown.", where=where, seen=text, expected=", ".join(get_args(Role))
        )
    return None


def parse_fold(text: str, where: Path) -> int | None:
    """A fold's number from 0; None for nothing. Raises `DatasetError` for anything else."""
    if text and not is_count(text):
        raise DatasetError(
            "The fold is not an integer.", where=where, seen=text, expected="0, 1, 2, … or nothing"
        )
    return int(text) if text else None


def parse_annotated(text: str, names: Sequence[str], where: str) -> tuple[str, ...]:
    """The labels that were looked for, of those a dataset has; empty for all of them.

    `text`: names with semicolons between, or nothing. Raises `ConfigError` for any other name.
    """
    given = {name.strip() for name in text.split(";") if name.strip()}
    for name in sorted(given):
        one_of("label", name, names, where=where)
    return () if given == set(names) else tuple(name for name in names if name in given)


def _image_columns(rows: Sequence[Mapping[str, str]], path: Path) -> tuple[str, ...]:
    if not rows:
        raise DatasetError("The manifest has no case.", where=path)
    columns = list(rows[0])
    missing = [name for name in ("case", "image") if name not in columns]
    if missing:
        raise DatasetError(
            f"The manifest lacks the column {missing[0]!r}.",
            where=path,
            seen=columns,
            expected="case, image[, image_0001 …], reference, group, role, fold; commas between",
        )
    return ("image", *sorted(c for c in columns if c.startswith("image_") and c[6:].isdigit()))


def _empty_cells(row: Mapping[str, str], images: Sequence[str]) -> tuple[int, ...]:
    """Places of the channels of which a row names no file."""
    return tuple(place for place, name in enumerate(images) if not row[name])


def _case(
    root: Path,
    row: Mapping[str, str],
    images: Sequence[str],
    names: Sequence[str],
    line: int,
    problems: Problems,
) -> CaseFiles | None:
    """The case of a row, as far as it can be read; None without an id or any image.

    `names`: of the dataset's labels.
    """
    path, case = root / MANIFEST, row["case"]
    _note_lacking(row, images, f"Line {line}", path, problems)
    if not case or not any(row[name] for name in images):
        return None
    reference, instances = row.get("reference", ""), row.get("instances", "")
    if reference and instances:
        error = DatasetError(
            f"Line {line} has a reference and instances.",
            where=path,
            seen=[reference, instances],
            expected="one of them: a label mask, or a mask whose values are lesion ids",
        )
        problems.add(case, error)
    mask = reference or instances
    files = [name for name in (*(row[column] for column in images), mask) if name]
    try:
        for name in files:
            check_name(name, path)
    except DatasetError as error:
        problems.add(case, error)
        return None
    for name in files:
        problems.check_file(case, root / name, where=path, named=name, by=f"line {line}")
    role, fold = None, None
    annotated: tuple[str, ...] = ()
    with problems.of(case):
        annotated = _annotated(row, names, f"{path}, line {line}, column annotated")
    with problems.of(case):
        role = parse_role(row.get("role", ""), path)
    with problems.of(case):
        fold = parse_fold(row.get("fold", ""), path)
    return CaseFiles(
        case=case,
        images=tuple(root / row[name] for name in images if row[name]),
        reference=root / mask if mask else None,
        group=row.get("group", ""),
        role=role,
        fold=fold,
        annotations={"instances": None} if instances and not reference else {},
        columns={k: v for k, v in row.items() if k not in (*_OWN_COLUMNS, *images)},
        annotated=annotated,
        missing=_empty_cells(row, images),
    )


def _note_lacking(
    row: Mapping[str, str], images: Sequence[str], line: str, path: Path, problems: Problems
) -> None:
    """Note what a row does not name: its case or an image."""
    lacking = [name for name in ("case", *images) if not row[name]]
    if lacking:
        some = bool(row["case"] and any(row[name] for name in images))
        remedy = LACKING if some else None
        error = DatasetError(
            f"{line} lacks its {lacking[0]}.", where=path, seen=dict(row), remedy=remedy
        )
        problems.add(row["case"], error, repeated=some, lacking=some)


def _annotated(row: Mapping[str, str], names: Sequence[str], place: str) -> tuple[str, ...]:
    """The labels that a row says were looked for; raises `DatasetError`."""
    annotated = parse_annotated(row.get("annotated", ""), names, place)
    if row.get("instances") and annotated and names[0] not in annotated:
        raise DatasetError(
            "The lesions of an instance mask are of label 1, which is not annotated.",
            where=place,
            seen=row["annotated"],
            expected=names[0],
        )
    return annotated


def read_label_names(root: Path) -> FileLabels:
    """Label names by value from `labels.json` in the folder; label 1 is the lesion without it.

    The value called `ignore` is one to ignore. Raises `DatasetError`.
    """
    path = root / LABELS
    if not path.is_file():
        return FileLabels({1: "lesion"})
    labels = read_json(path)
    if isinstance(labels, dict) and all(is_count(k) and int(k) > 0 for k in labels):
        named = {int(k): str(v) for k, v in sorted(labels.items(), key=lambda kv: int(kv[0]))}
        ignored = [value for value, name in named.items() if name == IGNORE]
        lesions = {value: name for value, name in named.items() if name != IGNORE}
        if lesions and len(ignored) < 2:
            return FileLabels(lesions, next(iter(ignored), None))
    raise DatasetError(
        "The labels are unclear.", where=path, seen=labels, expected='{"1": "lesion"}'
    )
