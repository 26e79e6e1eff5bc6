"""References that are boxes in a table, in any of the ways MONAI writes them, as array boxes.

Modes: MONAI, `monai.data.box_utils`. World coordinates are points, array boxes half-open: voxel i
covers [i, i + 1) and has its centre at the point i.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import CaseFiles, Geometry, Reference
from lesionseg.errors import ContentError

BoxSpace = Literal["LPS", "RAS", "voxel"]
BOX_MODES = ("xyxy", "xyzxyz", "xxyy", "xxyyzz", "xywh", "xyzwhd", "ccwh", "cccwhd")
BOX_SPACES: tuple[BoxSpace, ...] = get_args(BoxSpace)


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
    """The boxes and labels (from 0) of one entry. Raises `ContentError` when they do not fit."""
    boxes = entry_boxes if isinstance(entry_boxes, Sequence) else None
    labels = entry_labels if isinstance(entry_labels, Sequence) else None
    n_numbers = len(mode) if mode else 0
    well_formed = (
        boxes is not None
        and labels is not None
        and len(boxes) == len(labels)
        and all(isinstance(b, Sequence) and len(b) == n_numbers for b in boxes)
        and all(_is_number(v) for b in boxes for v in b)
        and all(isinstance(k, int) and k >= 0 for k in labels)
    )
    if not well_formed or boxes is None or labels is None:
        raise ContentError(
            f"The boxes of {case!r} cannot be read.",
            where=where,
            seen=f"box {str(entry_boxes)[:80]}, label {str(entry_labels)[:40]}",
            expected=f"box: a list of {n_numbers} numbers each ({mode}); label: as many from 0 on",
        )
    return TableBoxes(
        tuple(tuple(float(v) for v in box) for box in boxes),
        tuple(int(k) + 1 for k in labels),
        mode,
        space,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))
