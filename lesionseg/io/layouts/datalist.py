"""MONAI datalists: a JSON file with image and label, or image and boxes, of every case.

Format: `monai.data.load_decathlon_datalist`, with boxes as in MONAI's detection tutorial.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field

from lesionseg.core import (
    CaseFiles,
    Dataset,
    Geometry,
    Labels,
    Reference,
    Role,
    numbers_first,
)
from lesionseg.core.finding import LISTED, Finding, collect_errors
from lesionseg.errors import ContentError, DatasetError, ReadError, count
from lesionseg.io.layouts.box_table import make_box_reference
from lesionseg.io.layouts.checks import Count, Number, listed_file, path_id, validate
from lesionseg.io.layouts.manifest import LABELS, column_findings, read_labels
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
    """A case of a datalist."""

    image: str | Annotated[list[str], Field(min_length=1)]
    label: str | list[Class] | None = None
    box: list[Annotated[list[Number], Field(min_length=4, max_length=6)]] | None = None
    patient: str = ""
    group: str = ""  # the name of `patient` in `Dataset.datalist`
    case: str = ""
    role: Role | None = None
    fold: Count | None = None


def find_datalist(root: Path) -> Path | None:
    """Find the JSON file of a folder that has a list `training` of objects with an `image`.

    A `dataset.json` next to a folder `imagesTr` or `gt_segmentations` does not count, because
    nnU-Net and the Decathlon write such a list, too.
    """
    for path in sorted(root.glob("*.json")):
        with suppress(ReadError):
            match read_json(path, allow_nan=True):
                case {"training": [{"image": _}, *_]}:
                    has_folder = any((root / name).is_dir() for name in _FOLDERS_OF_NNUNET)
                    is_nnunet = path.name == "dataset.json" and has_folder
                    if not is_nnunet:
                        return path
    return None


def read_datalist(root: Path) -> Dataset:
    """Read the datalist of a folder.

    - Paths are relative to the folder. A list of images names the channels.
    - The lists are `training`, `validation` (or `valid`, `val`) and `test` (or `testing`). A list
      of cases under another key is left out and named.
    - Entries of `training` and `validation` without `label` are unlabelled cases. Such entries of
      the test lists are left out.
    - `box` lists boxes and `label` the class of each. Class 0 becomes label 1, and so on. A box is
      centre and size in LPS millimetres (`cccwhd`), on pictures the corners in pixels (`xyxy`).
    - `labels.json` in the same folder names the labels.
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
    findings = list[Finding]()
    cases = _make_unique(root, _list_cases(root, path, content, findings))
    n_channels = len(cases[0].images) if cases else 1
    names = content.get("modality")
    names_all_channels = isinstance(names, dict) and len(names) == n_channels
    if not names_all_channels:
        names = {str(i): f"channel {i}" for i in range(n_channels)}
    return Dataset(
        name=root.name,
        root=root,
        convention="datalist",
        dims=3,  # `read_dataset` replaces it by the axes of the first image
        channel_names=tuple(str(names[key]) for key in sorted(names, key=numbers_first)),
        labels=_labels(root, cases),
        cases=tuple(cases),
        findings=(
            *findings,
            *_find_unknown_lists(path, content),
            *_find_unknown_keys(path, content),
        ),
    )


def _list_cases(
    root: Path, path: Path, content: Mapping[str, Any], findings: list[Finding]
) -> list[CaseFiles]:
    """Return a case of each entry in the lists of a datalist. Wrong entries become findings."""
    cases: list[CaseFiles] = []
    for key, role in _LISTS.items():
        entries = content.get(key, [])
        if not isinstance(entries, list):
            text = f"{path}: {key!r} is not a list of cases. Make it one."
            findings.append(Finding(LISTED, text, severity="error"))
            continue
        for place, entry in enumerate(entries):
            keys_of_entry = entry if isinstance(entry, dict) else {}
            is_scan_to_predict = role == "test" and "label" not in keys_of_entry
            if is_scan_to_predict:
                continue
            name = str(keys_of_entry.get("image", ""))
            with collect_errors(findings, name, f"{path}: {key}[{place}]"):
                cases.append(_make_case(root, validate(_Entry, entry), role))
    return cases


def _find_unknown_lists(path: Path, content: Mapping[str, Any]) -> list[Finding]:
    """Return a finding on each list of cases whose key is unknown."""
    findings: list[Finding] = []
    for key, entries in content.items():
        if key in _LISTS or not isinstance(entries, list):
            continue
        n_cases = sum(isinstance(entry, dict) and "image" in entry for entry in entries)
        if n_cases:
            text = (
                f"{path}: the unknown list {key[:100]!r} is left out, with "
                f"{count(n_cases, 'case')}. Known lists are {', '.join(_LISTS)}. "
                "Rename it to use its cases."
            )
            findings.append(Finding("left_out", text))
    return findings


def _find_unknown_keys(path: Path, content: Mapping[str, Any]) -> list[Finding]:
    """Return a finding on each unknown key of an entry that resembles a key it does not have."""
    keys_of_entries: set[frozenset[str]] = set()
    for name in _LISTS:
        entries = content.get(name, [])
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict):
                keys_of_entries.add(frozenset(map(str, entry)))
    known = tuple(_Entry.model_fields)
    found = dict[Finding, None]()
    for keys in keys_of_entries:
        found |= dict.fromkeys(column_findings(path, keys, known, "is not used"))
    return sorted(found, key=lambda finding: finding.message)


def _labels(root: Path, cases: Sequence[CaseFiles]) -> Labels:
    """Read the labels of the folder. Without a file of names, the classes of boxes are numbered."""
    labels = read_labels(root)
    highest = 1
    for case in cases:
        if "boxes" in case.annotations:
            _, box_labels = case.annotations["boxes"]
            highest = max([highest, *box_labels])
    if highest == 1 or (root / LABELS).is_file():
        return labels
    return Labels.of({k: f"class {k}" for k in range(1, highest + 1)}, labels.ignore)


def _make_unique(root: Path, cases: Sequence[CaseFiles]) -> list[CaseFiles]:
    """Add the names of the folders to the ids of files with equal names.

    `p1/t1.nii` and `p2/t1.nii` become `p1_t1` and `p2_t1`.
    """
    n_cases = Counter(case.case for case in cases)
    unique: list[CaseFiles] = []
    for case in cases:
        if n_cases[case.case] > 1:
            file = case.images[0]
            inner = file.relative_to(root) if file.is_relative_to(root) else file
            case = replace(case, case=path_id(inner))
        unique.append(case)
    return unique


def _make_case(root: Path, entry: _Entry, role: Role | None) -> CaseFiles:
    """Make the case of an entry. Its id is `case`, or the name of the first image.

    `role`: that of the list, if the entry states none.
    """
    images = [entry.image] if isinstance(entry.image, str) else entry.image
    case = entry.case or path_id(Path(listed_file(root, images[0]).name))
    mask = entry.label if isinstance(entry.label, str) else None
    classes = entry.label if isinstance(entry.label, list) else None
    has_only_boxes = entry.box is not None and classes is None
    has_only_classes = entry.box is None and classes is not None
    n_boxes = len(entry.box or ())
    n_classes = len(classes or ())
    if has_only_boxes or has_only_classes or n_boxes != n_classes:
        raise DatasetError(
            f"{case!r} must have the path of a mask as label, or boxes as box and as many classes "
            "as label."
        )
    annotations = {}
    if classes is not None:
        annotations["boxes"] = (entry.box, [number + 1 for number in classes])
    return CaseFiles(
        case,
        tuple(listed_file(root, name) for name in images),
        reference=listed_file(root, mask) if mask else None,
        group=entry.patient or entry.group,
        role=entry.role or role,
        fold=entry.fold,
        annotations=annotations,
    )


def read_boxes(files: CaseFiles, geometry: Geometry, *, merged: bool = False) -> Reference:
    """Read the boxes of a datalist as a reference, clipped to the image.

    In a rotated image, a box becomes the smallest box along the array axes that contains it.

    Args:
        files: The files of the case.
        geometry: The grid of the image.
        merged: True gives all boxes label 1.

    Returns:
        A reference with boxes, or a mask of zeros if there are none.

    Raises:
        ContentError: A box has the wrong number of values.
    """
    given, labels = files.annotations["boxes"]
    dims = geometry.dims
    if not given:
        return make_box_reference(geometry, [], [], [])
    if any(len(box) != 2 * dims for box in given):
        raise ContentError(
            f"case {files.case}: a box must have {2 * dims} numbers, as the image has {dims} axes."
        )
    values = np.array(given, dtype=np.float64)
    if dims == 2:
        low = values[:, [1, 0]]  # from x0, y0, x1, y1 to the order of the array
        high = values[:, [3, 2]]
    else:
        centre_ras = values[:, :3] * (-1, -1, 1)  # from LPS
        # a point with the index i is the centre of voxel i, which covers [i, i + 1) in boxes
        centre = geometry.to_index(centre_ras) + 0.5
        # half sides along the array axes: each axis gets a part of every side in millimetres
        half = values[:, 3:] / 2 @ np.abs(np.linalg.inv(geometry.affine)[:3, :3]).T
        low = centre - half
        high = centre + half
    ends = np.concatenate([low, high], axis=1)
    box_labels = [1] * len(given) if merged else labels
    return make_box_reference(geometry, ends, box_labels, [files.images[0]] * len(given))
