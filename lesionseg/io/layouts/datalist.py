"""MONAI datalists: a JSON file that names image and label, or image and boxes, of every case.

Format: MONAI, `monai.data.load_decathlon_datalist`; boxes as in its detection tutorials, modes by
`monai.data.box_utils`. World coordinates are points, array boxes half-open: voxel i covers
[i, i + 1) and has its centre at the point i.
"""

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import CaseFiles, Dataset, Geometry, Reference, Role
from lesionseg.errors import ContentError, DatasetError, ReadError
from lesionseg.io.atomic import read_json
from lesionseg.io.layouts.case_problems import Problems, check_name, count_axes, is_number
from lesionseg.io.layouts.manifest import LABELS, parse_fold, read_label_names
from lesionseg.io.layouts.nnunet_labels import FileLabels
from lesionseg.io.volumes import strip_suffix

logger = logging.getLogger(__name__)

_ROLES: tuple[tuple[str, Role | None], ...] = (
    ("training", None),
    ("validation", "validation"),
    ("test", "test"),
    ("testing", "test"),
)
BoxSpace = Literal["LPS", "RAS", "voxel"]
MOST_CLASSES = 255  # as many as a mask of bytes holds
BOX_MODES = ("xyxy", "xyzxyz", "xxyy", "xxyyzz", "xywh", "xyzwhd", "ccwh", "cccwhd")
BOX_SPACES: tuple[BoxSpace, ...] = get_args(BoxSpace)
# what MONAI's own detection tutorial writes, by the number of axes
_USUAL: Mapping[int, tuple[str, BoxSpace]] = {2: ("xyxy", "voxel"), 3: ("cccwhd", "LPS")}


def recognises_datalist(root: Path) -> bool:
    """Whether a JSON file in the folder has a list `training` of objects with an `image`.

    nnU-Net's and the Decathlon's `dataset.json` may have one too: they have an `imagesTr` beside.
    """
    path = _find(root)
    return path is not None and not (path.name == "dataset.json" and (root / "imagesTr").is_dir())


def read_datalist(root: Path) -> Dataset:
    """Read the datalist of a folder; paths are relative to it, a list of images is channels.

    `fold` of an entry is kept; entries without `label` are left out. With `box`, `label` lists
    the class of each from 0, which becomes label 1 and so on. `box_mode` (MONAI's names) and
    `box_space` ("LPS", "RAS" or "voxel") at the top say what the numbers are; without them they
    are taken as MONAI's detection tutorial writes them: "cccwhd" in LPS millimetres, on pictures
    "xyxy" in pixels. Labels are named by `labels.json` beside it, else 1 is the lesion. What is
    wrong with single entries becomes `Dataset.problems`. Raises `DatasetError`.
    """
    path, problems = _find(root), Problems()
    if path is None:
        raise DatasetError(
            "No datalist found.", where=root, expected='a JSON file with {"training": […]}'
        )
    content = read_json(path)
    entries = [
        (entry, role)
        for key, role in _ROLES
        for entry in content.get(key, ())
        if isinstance(entry, dict) and "label" in entry
    ]
    if not entries:
        raise DatasetError("No entry of the datalist has a label.", where=path)
    read = [_case(root, path, entry, role, problems) for entry, role in entries]
    cases = [case for case in read if case is not None]
    dims = count_axes(cases)
    if any("box" in entry for entry, _ in entries):
        mode, space = _box_format(content, dims, path)
        cases = _with_boxes(cases, mode, space, path, problems)
    labels = _labels(root, cases)
    return Dataset(
        name=str(content.get("name") or root.name),
        root=root,
        convention="datalist",
        dims=dims,
        channel_names=_channels(content, len(cases[0].images) if cases else 1),
        labels=labels.names,
        cases=tuple(cases),
        ignore_label=labels.ignore,
        problems=problems.listed,
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


def _channels(content: Mapping[str, Any], n: int) -> tuple[str, ...]:
    names = content.get("modality")
    if isinstance(names, dict) and len(names) == n:
        return tuple(str(names[key]) for key in sorted(names, key=str))
    return tuple(f"channel {i}" for i in range(n))


def _case(
    root: Path, path: Path, entry: Mapping[str, Any], role: Role | None, problems: Problems
) -> CaseFiles | None:
    """The case of an entry; None when it names no image. Boxes stay as they are written."""
    images = entry.get("image")
    named = [images] if isinstance(images, str) else images
    if not (isinstance(named, list) and named and all(isinstance(n, str) for n in named)):
        problems.add("", DatasetError("An entry names no image.", where=path, seen=dict(entry)))
        return None
    for name in named:
        check_name(name, path)
    case = strip_suffix(root / named[0]).removesuffix("_0000")
    mask = check_name(entry["label"], path) if isinstance(entry["label"], str) else None
    if mask is None and "box" not in entry:
        error = DatasetError(
            f"The label of {case!r} is not a path.",
            where=path,
            seen=entry["label"],
            expected="a mask",
        )
        problems.add(case, error)
    for name in (*named, *([mask] if mask else [])):
        problems.check_file(case, root / name, where=path, named=name, by="the datalist")
    fold = None
    with problems.of(case):
        fold = parse_fold(str(entry.get("fold", "")), path)
    return CaseFiles(
        case=case,
        images=tuple(root / name for name in named),
        reference=root / mask if mask else None,
        group=str(entry.get("patient") or ""),
        role=role,
        fold=fold,
        annotations={"boxes": (entry["box"], entry["label"])} if "box" in entry else {},
    )


def _box_format(content: Mapping[str, Any], dims: int, path: Path) -> tuple[str, BoxSpace]:
    """Mode and space of the boxes, as stated or as is usual. Raises `DatasetError`."""
    mode, space = _USUAL[dims]
    if "box_mode" not in content and "box_space" not in content:
        logger.warning("%s: boxes are taken as %s in %s coordinates.", path.name, mode, space)
    mode = str(content.get("box_mode", mode))
    stated = str(content.get("box_space", space))
    box_space = next((known for known in BOX_SPACES if known == stated), None)
    if mode not in BOX_MODES or len(mode) != 2 * dims or box_space is None:
        raise DatasetError(
            "The boxes are written in a way that is not known.",
            where=path,
            seen=f"box_mode {mode}, box_space {stated}",
            expected=f"box_mode {', '.join(m for m in BOX_MODES if len(m) == 2 * dims)}; "
            f"box_space {', '.join(BOX_SPACES)}",
        )
    return mode, box_space


def _with_boxes(
    cases: Sequence[CaseFiles], mode: str, space: BoxSpace, path: Path, problems: Problems
) -> list[CaseFiles]:
    read = []
    for case in cases:
        if "boxes" in case.annotations:
            boxes, labels = case.annotations["boxes"]
            table = TableBoxes((), (), mode, space)
            with problems.of(case.case):
                table = parse_boxes(boxes, labels, mode, space, path, case.case)
            case = replace(case, annotations={"boxes": table})
        read.append(case)
    return read


def _labels(root: Path, cases: Sequence[CaseFiles]) -> FileLabels:
    """Names by value: those of `labels.json`, else one for every class that the boxes have."""
    if (root / LABELS).is_file():
        return read_label_names(root)
    tables = [c.annotations["boxes"] for c in cases if "boxes" in c.annotations]
    highest = max((k for table in tables for k in table.labels), default=1)
    if highest == 1:
        return read_label_names(root)
    return FileLabels({k: f"class {k}" for k in range(1, highest + 1)})


@dataclass(frozen=True)
class TableBoxes:
    """Boxes `[n, 2·dims]` as a table writes them, and the label of each.

    `mode` is MONAI's name for the order of the numbers, x first; `space` says whether they are
    millimetres along LPS or RAS, or voxels along the file's axes x, y, z.
    """

    boxes: tuple[tuple[float, ...], ...]
    labels: tuple[int, ...]
    mode: str
    space: BoxSpace


def read_boxes(files: CaseFiles, geometry: Geometry, *, merged: bool = False) -> Reference:
    """Reference of a case whose lesions are boxes in a table; none is lesion-free: zeros.

    Boxes are cut to the image. Raises `ContentError` for one that lies outside it.
    """
    table: TableBoxes = files.annotations["boxes"]
    if not table.boxes:
        return Reference(geometry, labels=np.zeros(geometry.shape, dtype=np.uint8))
    given = np.array(table.boxes, dtype=np.float64)
    low, high = _corners(given, table.mode, geometry.dims)
    if table.space == "voxel":
        low, high = low[:, ::-1], high[:, ::-1]  # x, y, z to the array's order
    else:
        low, high = _to_array(low, high, table.space, geometry)
    boxes = np.clip(np.concatenate([low, high], axis=1), 0, 2 * geometry.shape)
    outside = ~(boxes[:, : geometry.dims] < boxes[:, geometry.dims :]).all(axis=1)
    if outside.any():
        number = int(outside.argmax())
        raise ContentError(
            f"Box {number + 1} of the case {files.case!r} lies outside its image, or is empty.",
            where=files.images[0],
            seen=[float(v) for v in given[number]],
            expected=f"{table.mode} in {table.space} coordinates",
            remedy='Say what the numbers are: "box_mode" and "box_space" in the datalist.',
        )
    labels = (1,) * len(boxes) if merged else table.labels
    return Reference(geometry, boxes=boxes.astype(np.float32), box_labels=labels)


def _corners(
    boxes: NDArray[np.float64], mode: str, dims: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper corners `[n, dims]`, x first."""
    first, second = boxes[:, :dims], boxes[:, dims:]
    if mode in ("xxyy", "xxyyzz"):
        return boxes[:, ::2], boxes[:, 1::2]
    if mode in ("xywh", "xyzwhd"):
        return first, first + second
    if mode in ("ccwh", "cccwhd"):
        return first - second / 2, first + second / 2
    return first, second


def _to_array(
    low: NDArray[np.float64], high: NDArray[np.float64], space: BoxSpace, geometry: Geometry
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Corners in millimetres as starts and stops; of a rotated box the one that holds it."""
    sign = np.array([-1.0, -1.0, 1.0][: geometry.dims] if space == "LPS" else [1.0] * geometry.dims)
    index = np.stack(
        [
            geometry.to_index(np.where(np.array(corner), high, low) * sign)
            for corner in itertools.product((False, True), repeat=geometry.dims)
        ]
    )
    return index.min(axis=0) + 0.5, index.max(axis=0) + 0.5


def parse_boxes(
    entry_boxes: Any, entry_labels: Any, mode: str, space: BoxSpace, where: Path, case: str
) -> TableBoxes:
    """The boxes and labels (from 0) of one entry; raises `ContentError` when they do not fit."""
    boxes = entry_boxes if isinstance(entry_boxes, Sequence) else None
    labels = entry_labels if isinstance(entry_labels, Sequence) else None
    n_numbers = len(mode) if mode else 0
    well_formed = (
        boxes is not None
        and labels is not None
        and len(boxes) == len(labels)
        and all(isinstance(b, Sequence) and len(b) == n_numbers for b in boxes)
        and all(is_number(v) for b in boxes for v in b)
        and all(isinstance(k, int) and 0 <= k < MOST_CLASSES for k in labels)
    )
    if not well_formed or boxes is None or labels is None:
        raise ContentError(
            f"The boxes of {case!r} cannot be read.",
            where=where,
            seen=f"box {str(entry_boxes)[:80]}, label {str(entry_labels)[:40]}",
            expected=f"box: a list of {n_numbers} numbers each ({mode}); label: as many from 0 to "
            f"{MOST_CLASSES - 1}",
        )
    return TableBoxes(
        tuple(tuple(float(v) for v in box) for box in boxes),
        tuple(int(k) + 1 for k in labels),
        mode,
        space,
    )
