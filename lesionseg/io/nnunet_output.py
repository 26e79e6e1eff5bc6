"""Probabilities as nnU-Net v2 writes them, for `nnUNetv2_ensemble` and `nnUNetv2_evaluate_folder`.

Of a case: `<case>.npz` with `probabilities` `[K, z, y, x]`, background first unless labels are
regions, and `<case>.pkl` with the geometry, in which nnU-Net keeps it; lesionseg writes that file
and never reads one. Of the folder: `dataset.json` and `plans.json`.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Labels
from lesionseg.errors import ConfigError
from lesionseg.io.files import write_json

ENDINGS = (".npz", ".pkl")
_READERS = {".nii": "NibabelIO", ".png": "NaturalImage2DIO"}
_READER = "SimpleITKIO"
_LPS = np.array([-1.0, -1.0, 1.0])  # from RAS
_ACROSS_MM = 999.0  # nnU-Net's spacing across a picture


def check_nnunet_labels(labels: Labels) -> None:
    """Raise `ConfigError` for labels that nnU-Net cannot have."""
    if not labels.regions and labels.values != tuple(range(1, len(labels) + 1)):
        raise ConfigError(
            f"names=nnunet save_probabilities=true: nnU-Net needs the mask values 1 to "
            f"{len(labels)}, not {', '.join(map(str, labels.values))}. Use names=lesionseg."
        )


def write_description(
    folder: Path, channel_names: Sequence[str], labels: Labels, suffix: str
) -> None:
    """Write `dataset.json` and `plans.json`; `suffix` is that of the masks."""
    values: Sequence[Any] = labels.regions or labels.values
    named = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in zip(labels.names, values, strict=True)
    }
    facts: dict[str, Any] = {
        "channel_names": {str(i): name for i, name in enumerate(channel_names)},
        "labels": {"background": 0, **named},
        "file_ending": suffix,
        "numTraining": 0,
    }
    if labels.regions:
        facts["regions_class_order"] = list(labels.values)
    write_json(folder / "dataset.json", facts)
    plans = {
        "dataset_name": "lesionseg",
        "plans_name": "lesionseg",
        "image_reader_writer": _READERS.get(suffix, _READER),
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {},
    }
    write_json(folder / "plans.json", plans)


def write_probabilities(
    folder: Path,
    case: str,
    probabilities: NDArray[np.float16],
    geometry: Geometry,
    *,
    are_regions: bool,
) -> None:
    """Write `<case>.npz` and `<case>.pkl` of probabilities `[labels, *spatial]`.

    The background of labels is what they leave of 1. If independent labels leave less than nothing,
    they are scaled down to 1 together.
    """
    if geometry.dims == 2:
        probabilities = probabilities[:, np.newaxis]
    if not are_regions:
        total = probabilities.sum(axis=0, dtype=np.float32)
        whole = np.empty((len(probabilities) + 1, *total.shape), dtype=np.float16)
        whole[0] = (1 - total).clip(min=0)
        whole[1:] = probabilities
        if (above := total > 1).any():
            whole[1:, above] = (probabilities[:, above] / total[above]).astype(np.float16)
        probabilities = whole
    np.savez_compressed(folder / f"{case}.npz", probabilities=probabilities)
    with (folder / f"{case}.pkl").open("wb") as file:
        pickle.dump(_properties(geometry), file, protocol=4)


def _properties(geometry: Geometry) -> dict[str, Any]:
    """Return what nnU-Net's readers keep of a file's geometry, in plain numbers and lists."""
    spacing = [float(mm) for mm in geometry.spacing_mm]
    if geometry.dims == 2:
        return {"spacing": [_ACROSS_MM, 1.0, 1.0]}
    in_file_order = geometry.affine[:, [2, 1, 0, 3]]  # of x, y, z indices
    directions = in_file_order[:3, :3] / spacing[::-1]
    affine = in_file_order.tolist()
    return {
        "spacing": spacing,
        "sitk_stuff": {
            "spacing": tuple(spacing[::-1]),
            "origin": tuple((in_file_order[:3, 3] * _LPS).tolist()),
            "direction": tuple((directions * _LPS[:, np.newaxis]).reshape(-1).tolist()),
        },
        "nibabel_stuff": {"original_affine": affine},
    }
