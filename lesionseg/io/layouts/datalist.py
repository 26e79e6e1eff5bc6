"""MONAI datalists: a JSON file that names image and label, or image and boxes, of every case.

Format: MONAI, `monai.data.load_decathlon_datalist`; boxes as its detection tutorial writes them.
"""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field

from lesionseg.core import CaseFiles, Dataset, Geometry, Reference, Role
from lesionseg.core.lesions import clipped_boxes
from lesionseg.errors import ContentError, DatasetError, ReadError
from lesionseg.io.files import read_json
from lesionseg.io.layouts.checks import Count, Number, Problems, validated
from lesionseg.io.layouts.manifest import LABELS, read_labels
from lesionseg.io.volumes import strip_suffix

_LISTS = ("training", "validation", "test", "testing")
_ROLES: tuple[Role | None, ...] = (None, "validation", "test", "test")
Class = Annotated[int, Field(ge=0, lt=255)]  # as many as a mask of bytes holds


class _Entry(BaseModel):
    image: str | Annotated[list[str], Field(min_length=1)]
    label: str | list[Class]
    box: list[Annotated[list[Number], Field(min_length=4, max_length=6)]] | None = None
    patient: str = ""
    fold: Count | None = None


def find_datalist(root: Path) -> Path | None:
    """The JSON file of a folder that has a list `training` of objects with an `image`.

    The `dataset.json` of nnU-Net and the Decathlon may have one too, with an `imagesTr` beside.
    """
    for path in sorted(root.glob("*.json")):
        with suppress(ReadError):
            match read_json(path):
                case {"training": [{"image": _}, *_]}:
                    if path.name != "dataset.json" or not (root / "imagesTr").is_dir():
                        return path
    return None


def read_datalist(root: Path) -> Dataset:
    """Read the datalist of a folder; paths are relative to it, a list of images is channels.

    Entries without `label` are left out. With `box`, `label` lists the class of each from 0, which
    becomes label 1 and so on; boxes are centre and size in LPS millimetres (`cccwhd`), on pictures
    corners in pixels (`xyxy`). Labels are named by `labels.json` beside it.
    """
    if (path := find_datalist(root)) is None:
        raise DatasetError(f'{root}: no datalist, a JSON file with {{"training": […]}}.')
    content = read_json(path)
    for key in ("box_mode", "box_space"):
        if key in content:
            raise DatasetError(f"{path}: {key} is not read; write cccwhd in LPS mm, or xyxy.")
    cases, problems = list[CaseFiles](), Problems()
    for key, role in zip(_LISTS, _ROLES, strict=True):
        entries = content.get(key)
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict) and "label" in entry:
                with problems.of(str(entry.get("image", "")), path):
                    cases.append(_case(root, validated(_Entry, entry), role))
    n_channels = len(cases[0].images) if cases else 1
    names = content.get("modality")
    if not (isinstance(names, dict) and len(names) == n_channels):
        names = {i: f"channel {i}" for i in range(n_channels)}
    labels, ignore = read_labels(root)
    highest = max((k for c in cases for k in c.annotations.get("boxes", ((), ()))[1]), default=1)
    if highest > 1 and not (root / LABELS).is_file():
        labels = {k: f"class {k}" for k in range(1, highest + 1)}
    channels = tuple(str(names[key]) for key in sorted(names, key=str))
    every = (root.name, root, "datalist", 3, channels, labels, tuple(cases))
    return Dataset(*every, ignore_label=ignore, problems=tuple(problems))


def _case(root: Path, entry: _Entry, role: Role | None) -> CaseFiles:
    images = [entry.image] if isinstance(entry.image, str) else entry.image
    case = strip_suffix(root / images[0]).removesuffix("_0000")
    mask, classes = (entry.label, None) if isinstance(entry.label, str) else (None, entry.label)
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
    boxes = clipped_boxes(np.concatenate([low, high], axis=1), geometry.shape, files.images[0])
    box_labels = (1,) * len(boxes) if merged else tuple(labels)
    return Reference(geometry, boxes=boxes, box_labels=box_labels)
