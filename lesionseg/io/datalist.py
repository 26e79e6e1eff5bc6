"""MONAI datalists: a JSON file that names image and label of every case.

Format: MONAI, `monai.data.load_decathlon_datalist`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lesionseg.core import CaseFiles, Dataset, Role
from lesionseg.errors import DatasetError, ReadError
from lesionseg.io.atomic import read_json
from lesionseg.io.manifest import parse_fold, read_label_names
from lesionseg.io.volumes import read_geometry, strip_suffix

_ROLES: tuple[tuple[str, Role | None], ...] = (
    ("training", None),
    ("validation", "validation"),
    ("test", "test"),
    ("testing", "test"),
)


def recognises_datalist(root: Path) -> bool:
    """Whether a JSON file in the folder has a list `training` of objects with an `image`.

    nnU-Net's and the Decathlon's `dataset.json` may have one too: they have an `imagesTr` beside.
    """
    path = _find(root)
    return path is not None and not (path.name == "dataset.json" and (root / "imagesTr").is_dir())


def read_datalist(root: Path) -> Dataset:
    """Read the datalist of a folder; paths are relative to it, a list of images is channels.

    `fold` of an entry is kept; entries without `label` are left out. Labels are named by
    `labels.json` beside it, else 1 is the lesion. Raises `DatasetError`.
    """
    path = _find(root)
    if path is None:
        raise DatasetError(
            "No datalist found.", where=root, expected='a JSON file with {"training": […]}'
        )
    content = read_json(path)
    cases = [
        _case(root, path, entry, role)
        for key, role in _ROLES
        for entry in content.get(key, ())
        if isinstance(entry, dict) and "label" in entry
    ]
    if not cases:
        raise DatasetError("No entry of the datalist has a label.", where=path)
    channels = tuple(f"channel {i}" for i in range(len(cases[0].images)))
    names = content.get("modality")
    if isinstance(names, dict) and len(names) == len(channels):
        channels = tuple(str(names[key]) for key in sorted(names, key=str))
    return Dataset(
        name=str(content.get("name") or root.name),
        root=root,
        convention="datalist",
        dims=read_geometry(cases[0].images[0]).dims,
        channel_names=channels,
        labels=read_label_names(root),
        cases=tuple(cases),
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


def _case(root: Path, path: Path, entry: Mapping[str, Any], role: Role | None) -> CaseFiles:
    if "box" in entry or not isinstance(entry["label"], str):
        raise DatasetError(
            "A datalist of boxes is not read.",
            where=path,
            seen=str(entry.get("image")),
            expected="the path of a mask as label",
            remedy="Convert it to COCO (2-D), or to LUNA16's annotations.csv (3-D).",
        )
    images = entry["image"] if isinstance(entry["image"], Sequence) else None
    named = [images] if isinstance(images, str) else list(images or ())
    files = [_existing(root, path, str(name)) for name in (*named, entry["label"])]
    return CaseFiles(
        case=strip_suffix(files[0]).removesuffix("_0000"),
        images=tuple(files[:-1]),
        reference=files[-1],
        group=str(entry.get("patient") or ""),
        role=role,
        fold=parse_fold(str(entry.get("fold", "")), path),
    )


def _existing(root: Path, path: Path, name: str) -> Path:
    file = root / name
    if not file.exists():
        raise DatasetError(
            "A file that the datalist names is not there.",
            where=path,
            seen=name,
            remedy="Write paths relative to the datalist's folder.",
        )
    return file
