"""MONAI datalists: a JSON file that names image and label, or image and boxes, of every case.

Format: MONAI, `monai.data.load_decathlon_datalist`; boxes as its detection tutorial writes them.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field

from lesionseg.core import (
    CaseFiles,
    Dataset,
    Geometry,
    Labels,
    Problem,
    Reference,
    Role,
    StatedBoxes,
)
from lesionseg.core.lesions import clipped_boxes
from lesionseg.errors import ContentError, DatasetError, ReadError
from lesionseg.io.files import read_json
from lesionseg.io.layouts.checks import Count, Number, Problems, path_id, validated
from lesionseg.io.layouts.manifest import LABELS, read_labels

_LISTS = ("training", "validation", "test", "testing")
_ROLES: tuple[Role | None, ...] = (None, "validation", "test", "test")
Class = Annotated[int, Field(ge=0, lt=255)]  # as many as a mask of bytes holds


class _Entry(BaseModel):
    image: str | Annotated[list[str], Field(min_length=1)]
    label: str | list[Class] | None = None
    box: list[Annotated[list[Number], Field(min_length=4, max_length=6)]] | None = None
    patient: str = ""
    fold: Count | None = None


def find_datalist(root: Path) -> Path | None:
    """The JSON file of a folder that has a list `training` of objects with an `image`.

    The `dataset.json` of nnU-Net and the Decathlon may have one too, with an `imagesTr` beside.
    """
    for path in sorted(root.glob("*.json")):
        with suppress(ReadError):
            match read_json(path, allow_nan=True):
                case {"training": [{"image": _}, *_]}:
                    if path.name != "dataset.json" or not (root / "imagesTr").is_dir():
                        return path
    return None


def read_datalist(root: Path) -> Dataset:
    """Read the datalist of a folder; paths are relative to it, a list of images is channels.

    Entries of `training` and `validation` without `label` are unlabelled cases; those of the test
    lists are left out. With `box`, `label` lists the class of each from 0, which becomes label 1
    and so on; boxes are centre and size in LPS millimetres (`cccwhd`), on pictures corners in
    pixels (`xyxy`). Labels are named by `labels.json` beside it.
    """
    if (path := find_datalist(root)) is None:
        raise DatasetError(f'{root}: no datalist, a JSON file with {{"training": […]}}.')
    content = read_json(path, allow_nan=True)
    for key in ("box_mode", "box_space"):
        if key in content:
            raise DatasetError(f"{path}: {key} is not read; write cccwhd in LPS mm, or xyxy.")
    cases: list[CaseFiles] = []
    problems = Problems()
    for key, role in zip(_LISTS, _ROLES, strict=True):
        entries = content.get(key, [])
        if not isinstance(entries, list):
            problems.append(Problem("", f"{path}: {key!r} is not a list of cases."))
            continue
        for place, entry in enumerate(entries):
            is_named = isinstance(entry, dict) and "image" in entry
            if role == "test" and not (isinstance(entry, dict) and "label" in entry):
                continue  # a scan to predict on
            with problems.of(str(entry["image"]) if is_named else "", f"{path}: {key}[{place}]"):
                cases.append(_case(root, validated(_Entry, entry), role))
    cases = _told_apart(root, cases)
    n_channels = len(cases[0].images) if cases else 1
    names = content.get("modality")
    if not (isinstance(names, dict) and len(names) == n_channels):
        names = {i: f"channel {i}" for i in range(n_channels)}
    labels = read_labels(root)
    highest = max((k for c in cases for k in c.annotations.get("boxes", ((), ()))[1]), default=1)
    if highest > 1 and not (root / LABELS).is_file():
        labels = Labels.of({k: f"class {k}" for k in range(1, highest + 1)}, labels.ignore)
    return Dataset(
        name=root.name,
        root=root,
        convention="datalist",
        dims=3,
        channel_names=tuple(str(names[key]) for key in sorted(names, key=str)),
        labels=labels,
        cases=tuple(cases),
        problems=tuple(problems),
    )


def _told_apart(root: Path, cases: Sequence[CaseFiles]) -> list[CaseFiles]:
    """Put the folders' names before ids that several files share: `p1/t1.nii`, `p2/t1.nii`."""
    times = Counter(case.case for case in cases)
    named: list[CaseFiles] = []
    for case in cases:
        file = case.images[0]
        inner = file.relative_to(root) if file.is_relative_to(root) else file
        is_alone = times[case.case] == 1
        named.append(case if is_alone else replace(case, case=path_id(inner)))
    return named


def _case(root: Path, entry: _Entry, role: Role | None) -> CaseFiles:
    images = [entry.image] if isinstance(entry.image, str) else entry.image
    case = path_id(Path(Path(images[0]).name))
    mask = entry.label if isinstance(entry.label, str) else None
    classes = entry.label if isinstance(entry.label, list) else None
    if (entry.box is None) != (classes is None) or len(entry.box or ()) != len(classes or ()):
        raise DatasetError(f"{case!r} needs a mask's path as label, or boxes and as many classes.")
    return CaseFiles(
        case,
        tuple(root / name for name in images),
        reference=root / mask if mask else None,
        group=entry.patient,
        role=role,
        fold=entry.fold,
        annotations={} if classes is None else {"boxes": (entry.box, [k + 1 for k in classes])},
    )


def read_boxes(files: CaseFiles, geometry: Geometry, *, merged: bool = False) -> Reference:
    """Boxes of a datalist cut to the image, of a rotated one what holds them; zeros for none."""
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
        # world coordinates are points: voxel i covers [i, i + 1) and has its centre at the point i
        centre = geometry.to_index(values[:, :3] * (-1, -1, 1)) + 0.5
        half = values[:, 3:] / 2 @ np.abs(np.linalg.inv(geometry.affine)[:3, :3]).T
        low, high = centre - half, centre + half
    ends = np.concatenate([low, high], axis=1)
    boxes = clipped_boxes(ends, geometry.shape, files.images[0])
    box_labels = (1,) * len(boxes) if merged else tuple(labels)
    stated = StatedBoxes(ends, box_labels)
    return Reference(geometry, boxes=boxes, box_labels=box_labels, stated=stated)
