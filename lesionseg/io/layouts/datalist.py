"""MONAI datalists: a JSON file that names image and label, or image and boxes, of every case.

Format: MONAI, `monai.data.load_decathlon_datalist`; boxes as its detection tutorial writes them.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lesionseg.core import CaseFiles, Dataset, Geometry, Problem, Reference, Role
from lesionseg.errors import ContentError, DatasetError, LesionsegError, ReadError
from lesionseg.io.files import read_json
from lesionseg.io.layouts.checks import count_axes, is_number
from lesionseg.io.layouts.manifest import LABELS, parse_fold, read_labels
from lesionseg.io.volumes import strip_suffix

_ROLES: Mapping[str, Role | None] = {
    "training": None,
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
MOST_CLASSES = 255  # as many as a mask of bytes holds


def recognises_datalist(root: Path) -> bool:
    """Whether a JSON file in the folder has a list `training` of objects with an `image`.

    nnU-Net's and the Decathlon's `dataset.json` may have one too: they have an `imagesTr` beside.
    """
    path = _find(root)
    return path is not None and not (path.name == "dataset.json" and (root / "imagesTr").is_dir())


def read_datalist(root: Path) -> Dataset:
    """Read the datalist of a folder; paths are relative to it, a list of images is channels.

    `fold` of an entry is kept; entries without `label` are left out. With `box`, `label` lists the
    class of each from 0, which becomes label 1 and so on; boxes are centre and size in LPS
    millimetres (`cccwhd`), on pictures corners in pixels (`xyxy`). Labels are named by
    `labels.json` beside it, else 1 is the lesion. Raises `DatasetError`.
    """
    path = _find(root)
    if path is None:
        raise DatasetError(f'{root}: no datalist, a JSON file with {{"training": […]}}.')
    content = read_json(path)
    for key in ("box_mode", "box_space"):
        if key in content:
            raise DatasetError(f"{path}: {key} is not read; write cccwhd in LPS mm, or xyxy.")
    cases, problems = list[CaseFiles](), list[Problem]()
    for key, role in _ROLES.items():
        for entry in content.get(key, ()):
            if isinstance(entry, dict) and "label" in entry:
                try:
                    cases.append(_case(root, entry, role))
                except LesionsegError as error:
                    problems.append(Problem(str(entry.get("image", "")), f"{path}: {error}"))
    if not cases and not problems:
        raise DatasetError(f"{path}: no entry has a label.")
    n_channels = len(cases[0].images) if cases else 1
    names = content.get("modality")
    if not (isinstance(names, dict) and len(names) == n_channels):
        names = {i: f"channel {i}" for i in range(n_channels)}
    labels, ignore = read_labels(root)
    classes = [k for case in cases for k in case.annotations.get("boxes", ((), ()))[1]]
    if classes and not (root / LABELS).is_file() and max(classes) > 1:
        labels = {k: f"class {k}" for k in range(1, max(classes) + 1)}
    return Dataset(
        name=str(content.get("name") or root.name),
        root=root,
        convention="datalist",
        dims=count_axes(cases),
        channel_names=tuple(str(names[key]) for key in sorted(names, key=str)),
        labels=labels,
        cases=tuple(cases),
        ignore_label=ignore,
        problems=tuple(problems),
    )


def _find(root: Path) -> Path | None:
    for path in sorted(root.glob("*.json")):
        try:
            content = read_json(path)
        except ReadError:
            continue
        entries = content.get("training") if isinstance(content, dict) else None
        first = entries[0] if isinstance(entries, list) and entries else None
        if isinstance(first, dict) and "image" in first:
            return path
    return None


def _case(root: Path, entry: Mapping[str, Any], role: Role | None) -> CaseFiles:
    images, label, boxes = entry.get("image"), entry["label"], entry.get("box")
    named = [images] if isinstance(images, str) else images
    if not (isinstance(named, list) and named and all(isinstance(n, str) for n in named)):
        raise DatasetError(f"an entry names no image: {dict(entry)}.")
    case = strip_suffix(root / named[0]).removesuffix("_0000")
    if boxes is None and not isinstance(label, str):
        raise DatasetError(f"the label of {case!r} is not a path: {label}.")
    return CaseFiles(
        case=case,
        images=tuple(root / name for name in named),
        reference=root / label if isinstance(label, str) else None,
        group=str(entry.get("patient") or ""),
        role=role,
        fold=parse_fold(str(entry.get("fold", ""))),
        annotations={} if boxes is None else {"boxes": _boxes(case, boxes, label)},
    )


def _boxes(
    case: str, boxes: Any, labels: Any
) -> tuple[tuple[tuple[float, ...], ...], tuple[int, ...]]:
    """The boxes of an entry as written, and their labels from 1."""
    if (
        not isinstance(boxes, list)
        or not isinstance(labels, list)
        or len(boxes) != len(labels)
        or not all(isinstance(b, list) and len(b) in (4, 6) for b in boxes)
        or not all(is_number(v) for b in boxes for v in b)
        or not all(isinstance(k, int) and 0 <= k < MOST_CLASSES for k in labels)
    ):
        raise ContentError(
            f"the boxes of {case!r} are no lists of 4 or 6 numbers with as many labels from 0 to "
            f"{MOST_CLASSES - 1}."
        )
    return tuple(tuple(map(float, box)) for box in boxes), tuple(k + 1 for k in labels)


def read_boxes(files: CaseFiles, geometry: Geometry, *, merged: bool = False) -> Reference:
    """Reference of a case whose lesions are boxes in a datalist; none is lesion-free: zeros.

    Boxes are cut to the image; of a rotated one the box that holds it. Raises `ContentError` for
    one that lies outside.
    """
    given, labels = files.annotations["boxes"]
    dims = geometry.dims
    if not given:
        return Reference(geometry, labels=np.zeros(geometry.shape, dtype=np.uint8))
    if any(len(box) != 2 * dims for box in given):
        raise ContentError(f"case {files.case}: a box has not {2 * dims} numbers.")
    values = np.array(given, dtype=np.float64)
    if dims == 2:
        low, high = values[:, 1::-1], values[:, :1:-1]  # x, y to the array's order
    else:
        ends = [values[:, :3] + sign * values[:, 3:] / 2 for sign in (-1, 1)]
        corners = [
            geometry.to_index(np.where(np.array(far), ends[1], ends[0]) * (-1, -1, 1))
            for far in itertools.product((False, True), repeat=3)
        ]
        # world coordinates are points: voxel i covers [i, i + 1) and has its centre at the point i
        low, high = np.min(corners, axis=0) + 0.5, np.max(corners, axis=0) + 0.5
    boxes = np.clip(np.concatenate([low, high], axis=1), 0, 2 * geometry.shape)
    outside = ~(boxes[:, :dims] < boxes[:, dims:]).all(axis=1)
    if outside.any():
        number = int(outside.argmax())
        meant = "cccwhd in LPS millimetres" if dims == 3 else "xyxy in pixels"
        raise ContentError(
            f"{files.images[0]}: box {number + 1}, {list(given[number])} ({meant}), is empty or "
            "lies outside its image."
        )
    box_labels: Sequence[int] = (1,) * len(boxes) if merged else labels
    return Reference(geometry, boxes=boxes.astype(np.float32), box_labels=tuple(box_labels))
