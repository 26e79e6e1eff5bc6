"""MONAI datalists: a JSON file that names image and label, or image and boxes, of every case.

Format: MONAI, `monai.data.load_decathlon_datalist`; boxes as in its detection tutorials.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lesionseg.core import CaseFiles, Dataset, Role
from lesionseg.errors import DatasetError, ReadError
from lesionseg.io.atomic import read_json
from lesionseg.io.formats.volumes import strip_suffix
from lesionseg.io.layouts.box_tables import BOX_MODES, BOX_SPACES, BoxSpace, TableBoxes, parse_boxes
from lesionseg.io.layouts.case_problems import Problems, count_axes
from lesionseg.io.layouts.manifest import LABELS, parse_fold, read_label_names
from lesionseg.io.layouts.nnunet_labels import FileLabels

logger = logging.getLogger(__name__)

_ROLES: tuple[tuple[str, Role | None], ...] = (
    ("training", None),
    ("validation", "validation"),
    ("test", "test"),
    ("testing", "test"),
)
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
    found = [_case(root, path, entry, role, problems) for entry, role in entries]
    cases = [case for case in found if case is not None]
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
        problems=problems.found,
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
    named = [images] if isinstance(images, str) else [str(name) for name in images or ()]
    if not named:
        problems.add("", DatasetError("An entry names no image.", where=path, seen=dict(entry)))
        return None
    case = strip_suffix(root / named[0]).removesuffix("_0000")
    mask = entry["label"] if isinstance(entry["label"], str) else None
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
    chosen = next((known for known in BOX_SPACES if known == stated), None)
    if mode not in BOX_MODES or len(mode) != 2 * dims or chosen is None:
        raise DatasetError(
            "The boxes are written in a way that is not known.",
            where=path,
            seen=f"box_mode {mode}, box_space {stated}",
            expected=f"box_mode {', '.join(m for m in BOX_MODES if len(m) == 2 * dims)}; "
            f"box_space {', '.join(BOX_SPACES)}",
        )
    return mode, chosen


def _with_boxes(
    cases: Sequence[CaseFiles], mode: str, space: BoxSpace, path: Path, problems: Problems
) -> list[CaseFiles]:
    kept = []
    for case in cases:
        if "boxes" not in case.annotations:
            kept.append(case)
            continue
        boxes, labels = case.annotations["boxes"]
        table = TableBoxes((), (), mode, space)
        with problems.of(case.case):
            table = parse_boxes(boxes, labels, mode, space, path, case.case)
        kept.append(replace(case, annotations={"boxes": table}))
    return kept


def _labels(root: Path, cases: Sequence[CaseFiles]) -> FileLabels:
    """Names by value: those of `labels.json`, else one for every class that the boxes have."""
    if (root / LABELS).is_file():
        return read_label_names(root)
    tables = [c.annotations["boxes"] for c in cases if "boxes" in c.annotations]
    highest = max((k for table in tables for k in table.labels), default=1)
    if highest == 1:
        return read_label_names(root)
    return FileLabels({k: f"class {k}" for k in range(1, highest + 1)})
