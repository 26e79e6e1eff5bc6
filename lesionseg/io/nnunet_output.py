"""Writing probabilities for `nnUNetv2_ensemble` and `nnUNetv2_evaluate_folder`, as nnU-Net v2 does.

Each case has `<case>.npz` with `probabilities` `[K, z, y, x]`, with the background first unless
labels are regions, and `<case>.pkl` with the geometry. This file is a pickle because nnU-Net reads
the geometry only in this form. lesionseg itself reads no pickles. The folder also contains
`dataset.json` and `plans.json`.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Labels
from lesionseg.errors import ConfigError
from lesionseg.io.itk import itk_affine
from lesionseg.io.layouts.nnunet import DATASET_JSON
from lesionseg.io.nnunet_model import PLANS
from lesionseg.io.text import write_json

ENDINGS = (".npz", ".pkl")
DESCRIPTIONS = (DATASET_JSON, PLANS)
_READERS = {".nii": "NibabelIO", ".png": "NaturalImage2DIO"}
_READER = "SimpleITKIO"
_ACROSS_MM = 999.0  # nnU-Net's spacing along the third axis of a picture


def write_description(
    folder: Path, channel_names: Sequence[str], labels: Labels, suffix: str
) -> None:
    """Write `dataset.json` and `plans.json`. `suffix` is the suffix of the masks.

    Raise `ConfigError` if nnU-Net cannot represent the labels.

    `numTraining` is 0 and `configurations` is empty, because no training belongs to the folder. The
    labels are those that a network predicts, without the value to ignore. That is why
    `nnUNetv2_evaluate_folder` needs the `dataset.json` of the dataset.
    """
    _check_labels(labels)
    values: Sequence[Any] = labels.regions or labels.values  # a region is a tuple of values
    value_of_name: dict[str, Any] = {"background": 0}
    for name, value in zip(labels.names, values, strict=True):
        value_of_name[name] = list(value) if isinstance(value, tuple) else value
    facts: dict[str, Any] = {
        "channel_names": {str(i): name for i, name in enumerate(channel_names)},
        "labels": value_of_name,
        "file_ending": suffix,
        "numTraining": 0,
    }
    if labels.regions:
        facts["regions_class_order"] = list(labels.values)
    write_json(folder / DATASET_JSON, facts)
    plans = {
        "dataset_name": "lesionseg",
        "plans_name": "lesionseg",
        "image_reader_writer": _READERS.get(suffix, _READER),
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {},
    }
    write_json(folder / PLANS, plans)


def _check_labels(labels: Labels) -> None:
    """Raise `ConfigError` if nnU-Net cannot represent these labels.

    Regions, and the values 1 to n, can be represented.
    """
    if not labels.regions and labels.values != tuple(range(1, len(labels) + 1)):
        raise ConfigError(
            f"names=nnunet save_probabilities=true: nnU-Net needs the mask values 1 to "
            f"{len(labels)}, not {', '.join(map(str, labels.values))}. Use names=lesionseg."
        )


def write_probabilities(
    folder: Path,
    case: str,
    probabilities: NDArray[np.float16],
    geometry: Geometry,
    *,
    are_regions: bool,
) -> None:
    """Write `<case>.npz` and `<case>.pkl` of probabilities `[labels, *spatial]`.

    Unless labels are regions, a background channel is added: 1 minus the sum of the labels. In a
    voxel whose sum is above 1, the labels are divided by the sum and the background is 0. A picture
    gets an axis of length 1, as in nnU-Net: `[labels, 1, y, x]`.
    """
    if geometry.dims == 2:
        probabilities = probabilities[:, np.newaxis]
    if not are_regions:
        total = probabilities.sum(axis=0, dtype=np.float32)
        with_background = np.empty((len(probabilities) + 1, *total.shape), dtype=np.float16)
        with_background[0] = (1 - total).clip(min=0)
        with_background[1:] = probabilities
        is_above = total > 1
        if is_above.any():
            scaled = probabilities[:, is_above] / total[is_above]
            with_background[1:, is_above] = scaled.astype(np.float16)
        probabilities = with_background
    np.savez_compressed(folder / f"{case}.npz", probabilities=probabilities)
    with (folder / f"{case}.pkl").open("wb") as file:
        pickle.dump(_properties(geometry), file, protocol=4)


def _properties(geometry: Geometry) -> dict[str, Any]:
    """Return the geometry in the form of nnU-Net's readers, as plain numbers, lists and tuples.

    `spacing` has the order (z, y, x), the other entries have (x, y, z). SimpleITK's coordinates are
    LPS, those of nibabel are RAS. A picture has `spacing` only, with pixels of size 1 as nnU-Net's.
    """
    spacing = [float(mm) for mm in geometry.spacing_mm]
    if geometry.dims == 2:
        return {"spacing": [_ACROSS_MM, 1.0, 1.0]}
    lps_affine = itk_affine(geometry.affine)
    directions = lps_affine[:3, :3] / spacing[::-1]  # unit vectors in the columns
    return {
        "spacing": spacing,
        "sitk_stuff": {
            "spacing": tuple(spacing[::-1]),
            "origin": tuple(lps_affine[:3, 3].tolist()),
            "direction": tuple(directions.reshape(-1).tolist()),
        },
        # of the indices (x, y, z)
        "nibabel_stuff": {"original_affine": geometry.affine[:, [2, 1, 0, 3]].tolist()},
    }
