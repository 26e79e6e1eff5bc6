"""A dataset as a table: `manifest.csv`, one row per case, next to or above its files."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from pydantic import BaseModel, PositiveInt, RootModel

from lesionseg.core import CaseFiles, Dataset, Labels, Remark, Role
from lesionseg.errors import DatasetError, one_of
from lesionseg.io.files import read_csv, read_json
from lesionseg.io.layouts.checks import Count, Problems, validated

MANIFEST, LABELS, IGNORE = "manifest.csv", "labels.json", "ignore"
_OWN_COLUMNS = {"case", "reference", "instances", "group", "role", "fold"}
_KNOWN_COLUMNS = (*sorted(_OWN_COLUMNS), "image", "annotated", "pixel_mm")
# what others call our columns, in small letters without spaces and lines
_MEANT = {
    "reference": "mask masks label labels seg segmentation annotation groundtruth gt truth target "
    "lesionmask maskpath labelpath maskfile labelfile roi lesion lesions",
    "group": "patient patientid subject subjectid participant participantid pid",
    "role": "split set subset partition",
    "fold": "folds cvfold kfold",
    "pixel_mm": "pixelspacing pixelsize spacing spacingmm",
}


class _Stated(BaseModel):
    role: Role | None = None
    fold: Count | None = None


_LabelsFile = RootModel[dict[PositiveInt, str]]


def read_manifest(root: Path) -> Dataset:
    """Read `manifest.csv`: `case, image[, image_0001 …], reference, group, role, fold` and others.

    Paths are relative to it; a folder is a DICOM series, an empty reference means unlabelled. In
    place of `reference`, `instances` names a mask whose values are lesion ids, all of label 1.
    `annotated` names the labels that were looked for, `lesion;cyst`; empty means all. `pixel_mm` is
    the pixel size of rasters. Labels are those of `labels.json` beside it (`{"1": "lesion", "9":
    "ignore"}`), else one lesion.
    """
    path = root / MANIFEST
    rows, images = _table(path)
    labels = read_labels(root)
    cases: list[CaseFiles] = []
    problems = Problems()
    names = labels.names
    for line, row in enumerate(rows, start=2):
        with problems.of(row["case"], f"{path}: line {line}"):
            files = _case(root, row, images)
            cases.append(files)  # stays where the rest is wrong: its files are checked, too
            mask, instances = row.get("reference", ""), row.get("instances", "")
            stated = validated(_Stated, {k: row[k] for k in ("role", "fold") if row.get(k)})
            given = {n.strip() for n in row.get("annotated", "").split(";") if n.strip()}
            for name in sorted(given):
                one_of("annotated", name, names)
            if mask and instances:
                raise DatasetError("a row has either a reference or instances, not both.")
            if instances and given and names[0] not in given:
                what = f"lesions of an instance mask are {names[0]!r}, not annotated here."
                raise DatasetError(what)
            cases[-1] = replace(
                files,
                reference=root / (mask or instances) if mask or instances else None,
                role=stated.role,
                fold=stated.fold,
                annotations={"instances": None} if instances else {},
                annotated=() if given == {*names} else tuple(n for n in names if n in given),
            )
    return Dataset(
        name=root.name,
        root=root,
        convention="manifest",
        dims=3,
        channel_names=images,
        labels=labels,
        cases=tuple(cases),
        problems=tuple(problems),
        remarks=tuple(_column_remarks(path, rows[0])),
    )


def _column_remarks(path: Path, columns: Iterable[str]) -> list[Remark]:
    """Remark on columns whose name is nearly that of a column that has a meaning here."""
    there = {*columns}
    remarks: list[Remark] = []
    for column in sorted(there - {*_KNOWN_COLUMNS, ""}):
        plain = re.sub(r"[\s_-]", "", column).lower()
        meant = [name for name, words in _MEANT.items() if plain in words.split()]
        meant += get_close_matches(column.lower(), _KNOWN_COLUMNS, n=1, cutoff=0.8)
        has_masks = bool({"reference", "instances"} & there)
        if meant and meant[0] not in there and not (meant[0] == "reference" and has_masks):
            text = f"{path}: the column {column!r} has no meaning here, it only makes subgroups."
            remarks.append(Remark("columns", f"{text} Did you mean {meant[0]!r}? Then rename it."))
    return remarks


def read_scan_list(path: Path, channels: int | None = None) -> list[CaseFiles]:
    """The cases that a table `case, image[, image_0001 …]` names, by case id; nothing is read.

    An empty cell among the first `channels` columns (None: all) is a channel that the case lacks.
    """
    listed, problems = read_scan_rows(path, channels)
    problems.raise_all(path)
    cases = {files.case: files for files in listed}
    if len(cases) < len(listed):
        twice = next(case for case, n in Counter(f.case for f in listed).items() if n > 1)
        raise DatasetError(f"{path}: the case {twice!r} is named twice.")
    return [cases[case] for case in sorted(cases)]


def read_scan_rows(path: Path, channels: int | None) -> tuple[list[CaseFiles], Problems]:
    """Read a table as `read_scan_list` does, with the rows that cannot be used as problems.

    Rows of one case id are all among the cases.
    """
    rows, images = _table(path)
    cases, problems = list[CaseFiles](), Problems()
    for line, row in enumerate(rows, start=2):
        with problems.of(row["case"] or f"line {line}", f"{path}: line {line}"):
            files = _case(path.parent, row, images, channels)
            if Path(files.case).name != files.case:
                raise DatasetError(f"the case {files.case!r} is a path.")
            cases.append(replace(files, group=files.group or files.case))
    return cases, problems


def _table(path: Path) -> tuple[list[dict[str, str]], tuple[str, ...]]:
    rows = read_csv(path)
    if not rows:
        raise DatasetError(f"{path}: the table has no case.")
    for name in ("case", "image"):
        if name not in rows[0]:
            raise DatasetError(f"{path}: no column {name!r} (it has {', '.join(rows[0])}).")
    further = (c for c in rows[0] if c.startswith("image_") and c[6:].isdigit())
    return rows, ("image", *sorted(further))


def _case(
    folder: Path, row: Mapping[str, str], images: Sequence[str], channels: int | None = None
) -> CaseFiles:
    files = tuple(folder / row[name] for name in images if row[name])
    if not row["case"] or not files:
        raise DatasetError("the case or its image is not named.")
    return CaseFiles(
        row["case"],
        files,
        group=row.get("group", ""),
        columns={k: v for k, v in row.items() if k not in _OWN_COLUMNS and k not in images},
        missing=tuple(place for place, name in enumerate(images[:channels]) if not row[name]),
    )


def read_labels(root: Path) -> Labels:
    """Read the labels from `labels.json`; without that file 1 is the lesion."""
    path = root / LABELS
    content = read_json(path, allow_nan=True) if path.is_file() else {"1": "lesion"}
    named = dict(sorted(validated(_LabelsFile, content, path).root.items()))
    ignored = [value for value, name in named.items() if name == IGNORE]
    lesions = {value: name for value, name in named.items() if name != IGNORE}
    if not lesions or len(ignored) > 1:
        raise DatasetError(f"{path}: the labels {named} are no lesions and one value to ignore.")
    return Labels.of(lesions, next(iter(ignored), None))
