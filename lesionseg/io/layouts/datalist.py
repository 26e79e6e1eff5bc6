"""MONAI datalist layout: names of lists and their roles, keys of an entry, boxes.

Format: `monai.data.load_decathlon_datalist`, with boxes as in MONAI's detection tutorial.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field

from lesionseg.core import CaseFiles, Labels, Role, numbers_first
from lesionseg.core.finding import LISTED, Finding, collect_errors
from lesionseg.core.records import parse_as
from lesionseg.errors import DatasetError, ReadError, count
from lesionseg.io.case_ids import path_id
from lesionseg.io.layouts.annotated_lesions import AnnotatedLesion
from lesionseg.io.layouts.checks import Count, Number, listed_file, with_distinct_ids
from lesionseg.io.layouts.manifest import LABELS, read_labels
from lesionseg.io.layouts.nnunet import DATASET_JSON
from lesionseg.io.layouts.table import Row, Table, column_findings
from lesionseg.io.text import read_json

# the lists of a datalist, and the role of the cases in each
_LISTS: Mapping[str, Role | None] = {
    "training": None,
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}
_FOLDERS_OF_NNUNET = ("imagesTr", "gt_segmentations")
Class = Annotated[int, Field(ge=0, lt=255)]  # label 1 to 255, the values of an 8-bit mask


class _Entry(BaseModel):
    """A case of a datalist, before its numbers become a mask path or lesions.

    `label` is the path of a mask, or the class of each box. A box in `box` is x0, y0, x1, y1 in
    pixels, or centre and size in LPS millimetres.
    """

    image: str | Annotated[list[str], Field(min_length=1)]
    label: str | list[Class] | None = None
    box: list[Annotated[list[Number], Field(min_length=4, max_length=6)]] | None = None
    patient: str = ""
    group: str = ""  # another name of `patient`
    case: str = ""
    role: Role | None = None
    fold: Count | None = None


def find_datalist(root: Path) -> Path | None:
    """Return the first JSON file of a folder that is a MONAI datalist, or None if there is none.

    A datalist has a list `training` whose first entry is an object with a key `image`. A
    `dataset.json` next to a folder `imagesTr` or `gt_segmentations` does not count, because nnU-Net
    and the Decathlon write such a list, too.
    """
    for path in sorted(root.glob("*.json")):
        with suppress(ReadError):
            match read_json(path, allow_nan=True):
                case {"training": [{"image": _}, *_]}:
                    has_folder = any((root / name).is_dir() for name in _FOLDERS_OF_NNUNET)
                    is_nnunet = path.name == DATASET_JSON and has_folder
                    if not is_nnunet:
                        return path
    return None


def read_datalist(root: Path) -> Table:
    """Read the datalist of a folder as a table.

    - Paths are relative to the folder. A list of images has one image per channel.
    - The lists are `training`, `validation` (or `valid`, `val`) and `test` (or `testing`). A list
      of cases under another key is left out, with a finding.
    - Entries of `training` and `validation` without `label` are unlabelled cases. Entries of the
      test lists without `label` are left out.
    - `box` lists boxes and `label` the class of each box. Class 0 becomes label 1, and so on. A box
      is centre and size in LPS millimetres (`cccwhd`), on pictures the corners in pixels (`xyxy`).
    - `labels.json` in the same folder names the labels. Without it, the label is `lesion`, or the
      labels are `class 1`, `class 2` and so on if a box has a class above 0.
    - `modality` names the channels. If it does not have one name per image of the first case, they
      are called `channel 0`, `channel 1`, and so on.
    - A case id that several entries have is replaced by the path of the image.

    Wrong entries become findings.

    Raises:
        DatasetError: If the folder has no datalist, boxes in an unknown form, or a `labels.json`
            that is not valid.
        ReadError: If a file cannot be read.
    """
    path = find_datalist(root)
    if path is None:
        raise DatasetError(
            f'{root}: the folder has no datalist. Write a JSON file with {{"training": […]}}.'
        )
    content = read_json(path, allow_nan=True)
    for key in ("box_mode", "box_space"):
        if key in content:
            raise DatasetError(
                f"{path}: the key {key} is not supported. Remove it, and write boxes as cccwhd in "
                "LPS mm, or as xyxy on pictures."
            )
    findings: list[Finding] = []
    rows = _read_rows(root, path, content, findings)
    distinct_cases = with_distinct_ids([row.files for row in rows], root)
    rows = [replace(row, files=case) for row, case in zip(rows, distinct_cases, strict=True)]
    n_channels = len(rows[0].files.images) if rows else 1
    names = content.get("modality")
    if not isinstance(names, dict) or len(names) != n_channels:
        # in the form of `modality`: {"0": "CT", "1": "PET"}
        names = {str(i): f"channel {i}" for i in range(n_channels)}
    channel_names = tuple(str(names[key]) for key in sorted(names, key=numbers_first))
    return Table(path, rows, _read_or_number_labels(root, rows), channel_names, findings)


def _read_rows(
    root: Path, path: Path, content: Mapping[str, object], findings: list[Finding]
) -> list[Row]:
    """Return a row for each entry in the lists of a datalist.

    Test entries without `label` have no row. Wrong entries, unknown lists of cases and misspelt
    keys become findings.

    Args:
        root: The folder, to which paths are relative.
        path: The datalist, for messages.
        content: The content of the datalist.
        findings: Receives the findings.
    """
    rows: list[Row] = []
    keys_of_entries: set[frozenset[str]] = set()
    for key, entries in content.items():
        if key not in _LISTS:
            findings += _find_unknown_list(path, key, entries)
            continue
        if not isinstance(entries, list):
            text = f"{path}: {key!r} is not a list of cases. Make it one."
            findings.append(Finding(LISTED, text, severity="error"))
            continue
        for index, entry in enumerate(entries):
            fields = entry if isinstance(entry, dict) else {}  # `parse_as` reports a wrong type
            keys_of_entries.add(frozenset(fields))
            if _LISTS[key] == "test" and "label" not in fields:
                continue
            where = f"{path}: {key}[{index}]"
            case = _case_id(root, fields)
            with collect_errors(findings, case, where):
                rows.append(_read_row(root, case, parse_as(_Entry, entry), _LISTS[key], where))
    # each set of keys is checked once, because most entries have the same keys
    known_keys = tuple(_Entry.model_fields)
    for keys in sorted(map(sorted, keys_of_entries)):
        misspelt = column_findings(path, keys, known_keys, effect="is not used")
        findings += [finding for finding in misspelt if finding not in findings]
    return rows


def _find_unknown_list(path: Path, key: str, entries: object) -> list[Finding]:
    """Return a finding if the value of an unknown key is a list of cases, otherwise [].

    Args:
        path: The datalist, for the message.
        key: The key, which is not in `_LISTS`.
        entries: The value of the key. A list of cases contains an object with a key `image`.
    """
    listed = entries if isinstance(entries, list) else []
    n_cases = sum(isinstance(entry, dict) and "image" in entry for entry in listed)
    if not n_cases:
        return []
    text = (
        f"{path}: the unknown list {key[:100]!r} is left out, with {count(n_cases, 'case')}. Known "
        f"lists are {', '.join(_LISTS)}. Rename it to use its cases."
    )
    return [Finding("left_out", text)]


def _read_or_number_labels(root: Path, rows: list[Row]) -> Labels:
    """Return the labels of `labels.json`, or number the labels if the file does not exist.

    Without the file, the only label is `lesion`. If a box has a label value K above 1, the labels
    are called `class 1` to `class K` instead.
    """
    labels = read_labels(root)
    values = [lesion.label for row in rows for lesion in row.lesions or ()]
    if max(values, default=1) == 1 or (root / LABELS).is_file():
        return labels
    return Labels.of({k: f"class {k}" for k in range(1, max(values) + 1)}, labels.ignore)


def _case_id(root: Path, entry: Mapping[str, Any]) -> str:
    """Return the case id of an unchecked entry, so that errors in the entry can name its case.

    The id is `case` of the entry, otherwise the file name of the first image without its suffix.
    Return "" if the entry has neither.
    """
    image_entry = entry.get("image") or ""
    image = image_entry[0] if isinstance(image_entry, list) else image_entry
    # `listed_file` replaces the separators of Windows, so that `name` is the file name
    return str(entry.get("case") or (image and path_id(Path(listed_file(root, str(image)).name))))


def _read_row(root: Path, case: str, entry: _Entry, role: Role | None, where: str) -> Row:
    """Return the row of an entry: its images, and either a mask or lesions as boxes.

    Args:
        root: The folder, to which paths are relative.
        case: The case id.
        entry: The entry.
        role: The role of the list that contains the entry. It is used if the entry has no `role`.
        where: File and entry, for messages.

    Raises:
        DatasetError: If the entry has boxes without classes, classes without boxes, or a different
            number of boxes and classes.
    """
    images = [entry.image] if isinstance(entry.image, str) else entry.image
    mask = entry.label if isinstance(entry.label, str) else None
    classes = entry.label if isinstance(entry.label, list) else None
    has_only_one = (entry.box is None) != (classes is None)
    if has_only_one or len(entry.box or ()) != len(classes or ()):
        raise DatasetError(
            f"{case!r} must have the path of a mask as label, or boxes as box and as many classes "
            "as label."
        )
    lesions = None
    if entry.box is not None and classes is not None:
        pairs = zip(entry.box, classes, strict=True)
        # MONAI's classes begin at 0, and label values at 1, because 0 is background
        lesions = tuple(_read_lesion(box, label=k + 1, where=where) for box, k in pairs)
    files = CaseFiles(
        case,
        tuple(listed_file(root, name) for name in images),
        reference=listed_file(root, mask) if mask else None,
        group=entry.patient or entry.group,
        role=entry.role or role,
        fold=entry.fold,
    )
    return Row(files, where, lesions)


def _read_lesion(box: list[float], label: int, where: str) -> AnnotatedLesion:
    """Return the lesion of a box in a datalist.

    A box of 4 numbers is x0, y0, x1, y1 in pixels. A box of 6 numbers is its centre (x, y, z) and
    its size in LPS millimetres.

    Args:
        box: The numbers.
        label: The label value.
        where: File and entry, for messages.

    Raises:
        DatasetError: If the box has neither 4 nor 6 numbers.
    """
    if len(box) == 4:
        x0, y0, x1, y1 = box
        return AnnotatedLesion(label, (y0, x0, y1, x1), where=where)
    if len(box) != 6:
        raise DatasetError(
            f"the box {box} needs 6 numbers (centre and size), on pictures 4 (x0, y0, x1, y1)."
        )
    centre = np.array(box[:3])
    half = np.array(box[3:]) / 2
    ends = np.concatenate([centre - half, centre + half])  # axes stay (x, y, z) in millimetres
    return AnnotatedLesion(label, tuple(ends.tolist()), unit="mm", where=where)
