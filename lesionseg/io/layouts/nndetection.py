"""nnDetection raw folders: nnU-Net's layout with instance masks and a `<case>.json` beside each.

Format: nnDetection, readme, "Adding New Data Sets".
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lesionseg.core import CaseFiles, Dataset, Reference
from lesionseg.errors import ContentError, DatasetError
from lesionseg.io.atomic import read_json
from lesionseg.io.layouts.case_problems import Problems, count_axes, is_count
from lesionseg.io.layouts.nnunet import PARTS, channel_files, collect_cases, name_channels
from lesionseg.io.volumes import read_volume, strip_suffix
from lesionseg.ops.components import mask_boxes

_SPLIT = "raw_splitted"


def recognises_nndetection(root: Path) -> bool:
    """Whether masks have a JSON each, in the folder itself or in its `raw_splitted`."""
    labels = _home(root) / "labelsTr"
    return (root / "dataset.json").is_file() and next(labels.glob("*.json"), None) is not None


def read_nndetection(root: Path) -> Dataset:
    """Read an nnDetection task: mask values are instances, classes from 0 become labels from 1.

    Raises `DatasetError` when a case's JSON is missing or names an unknown class.
    """
    facts = read_json(root / "dataset.json")
    names = facts.get("labels") if isinstance(facts, dict) else None
    if not isinstance(names, dict) or not all(is_count(key) for key in names) or not names:
        raise DatasetError(
            "The classes are not named.",
            where=root / "dataset.json",
            seen=names,
            expected='"labels": {"0": "nodule"}',
        )
    labels = {int(key) + 1: str(names[key]) for key in sorted(names, key=int)}
    channels = name_channels({"modality": facts.get("modalities")}, root / "dataset.json")
    home, problems, cases = _home(root), Problems(), []
    for part, role in PARTS:
        for case in collect_cases(home, part, role, channels, {}, channel_files, problems):
            with problems.of(case.case):
                cases.append(_with_instances(case, labels))
    if not cases and not problems.listed:
        raise DatasetError("No labelled case found.", where=home)
    return Dataset(
        name=str(facts.get("name") or root.name),
        root=root,
        convention="nndetection",
        dims=count_axes(cases),
        channel_names=channels,
        labels=labels,
        cases=tuple(cases),
        problems=problems.listed,
    )


def _home(root: Path) -> Path:
    return root / _SPLIT if (root / _SPLIT).is_dir() else root


def _with_instances(case: CaseFiles, labels: Mapping[int, str]) -> CaseFiles:
    mask = case.reference
    path = mask.with_name(f"{strip_suffix(mask)}.json") if mask else Path()
    content: Any = read_json(path)
    try:
        label_of = {int(i): int(k) + 1 for i, k in content["instances"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(
            "The instances are unclear.", where=path, expected='{"instances": {"1": 0}}'
        ) from error
    if unknown := sorted(set(label_of.values()) - set(labels)):
        raise DatasetError(
            "An instance is of a class that dataset.json does not name.",
            where=path,
            seen=[k - 1 for k in unknown],
            expected=[k - 1 for k in labels],
        )
    return replace(case, annotations={"instances": label_of})


def read_instances(files: CaseFiles, raster_mm: float | None, merged: bool) -> Reference:
    """Read the instance mask of a case, on its own grid.

    `annotations["instances"]` maps each id to its label; without it (None) every id is label 1.
    Ids are made consecutive in ascending order. Raises `ContentError` for ids without a label.
    """
    path = files.reference
    if path is None:
        raise DatasetError(f"The case {files.case!r} has no instance mask.")
    label_of: Mapping[int, int] | None = files.annotations["instances"]
    volume = read_volume(path, raster_mm=raster_mm, as_labels=True)
    values, inverse = np.unique(volume.array[0], return_inverse=True)
    _check(path, values, label_of)
    ids = [int(v) for v in values if v != 0]
    labels = [1 if label_of is None or merged else label_of[i] for i in ids]
    position = np.searchsorted(np.array(ids), values) + 1
    numbers = np.where(values == 0, 0, position).astype(np.int32)
    instances = numbers[inverse.reshape(volume.array[0].shape)]
    table = np.array([0, *labels])
    return Reference(
        volume.geometry,
        labels=table.astype(np.min_scalar_type(int(table.max())))[instances],
        instances=instances,
        instance_labels=tuple(labels),
        boxes=mask_boxes(instances, len(labels)),
        box_labels=tuple(labels),
    )


def _check(path: Path, values: np.ndarray, label_of: Mapping[int, int] | None) -> None:
    if (values < 0).any() or (values != np.round(values)).any():
        raise ContentError("The instance mask contains values that cannot be ids.", where=path)
    unknown = [int(v) for v in values if v != 0 and label_of is not None and int(v) not in label_of]
    if unknown:
        raise ContentError(
            "The instance mask contains ids that the case's table lacks.",
            where=path,
            seen=unknown[:10],
            remedy="Name the class of every instance.",
        )
