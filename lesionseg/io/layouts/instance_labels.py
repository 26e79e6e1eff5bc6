"""References whose mask values are lesion ids, with a table that says which label each has."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lesionseg.core import CaseFiles, Reference
from lesionseg.errors import ContentError, DatasetError
from lesionseg.io.formats.volumes import read_volume
from lesionseg.ops.components import mask_boxes


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
