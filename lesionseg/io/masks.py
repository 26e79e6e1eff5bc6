"""Mask files: labels rounded to integers, lesion ids, JPEG-like or smoothed masks refused."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, mean

from lesionseg.core import Reference
from lesionseg.errors import ContentError
from lesionseg.io.volumes import read_volume
from lesionseg.io.warn_once import warn_once

logger = logging.getLogger(__name__)

_MIN_VALUES = 6  # of a mask whose values are compared with those of neighbouring voxels
_MAX_LABELS = 20  # values up to this are labels or lesion ids, and leave little room for noise
_MIN_SHARE = 0.55  # of the values that occur mainly next to higher ones, in a changed mask
_SCALED_LABEL = 1e-3  # difference from an integer that the scaling of a header explains


def read_mask(
    path: Path, pixel_mm: float | None = None, *, nan_background: bool = False
) -> Reference:
    """Read a label mask as a reference without instances, on the grid of the mask.

    The label values get the smallest unsigned integer type that can store them.

    Args:
        path: The file, of any dtype.
        pixel_mm: The pixel size of a picture in millimetres. None means 1 mm.
        nan_background: True replaces NaN by 0.

    Raises:
        ReadError: If the file is damaged.
        ContentError: If a value is negative, above 2³¹ − 1 or not an integer. Differences that the
            scaling of a header explains are rounded, with a warning.
    """
    volume = read_volume(path, pixel_mm=pixel_mm, as_labels=True)
    array = volume.array[0]
    if array.dtype.kind == "f":
        if nan_background:
            array = np.where(np.isnan(array), array.dtype.type(0), array)
        array = _round_labels(path, array)
    lowest = array.min() if array.size else 0
    highest = array.max() if array.size else 0
    if lowest < 0 or highest > np.iinfo(np.int32).max:
        raise ContentError(
            f"{path}: the mask values are {lowest} to {highest}. Use 0 for background and 1, 2, … "
            "for labels."
        )
    values = array.astype(np.min_scalar_type(int(highest)), copy=False)
    return Reference(volume.geometry, labels=values)


def _round_labels(path: Path, array: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Round the floating-point values of a mask to integers, because labels are integers.

    A NIfTI header may scale integer labels, so that values differ slightly from integers. A
    difference of up to 0.001 gives a warning. Raise `ContentError` for larger differences, NaN and
    infinity.
    """
    rounded = np.round(array)
    with np.errstate(invalid="ignore"):  # the difference of infinite values is NaN
        # `~(… <= …)` is also True for NaN
        is_wrong = ~(np.abs(array - rounded) <= _SCALED_LABEL)
    if is_wrong.any():
        raise ContentError(
            f"{path}: {int(is_wrong.sum())} mask values are not integers, such as "
            f"{array[is_wrong][0]}. Resample masks with nearest-neighbour interpolation. If the "
            "values are probabilities, save a mask of those above a threshold, such as 0.5. If NaN "
            "is background, save 0 instead, or train with data.nan=background."
        )
    changed = array[array != rounded]
    if changed.size:
        text = "%s: mask values such as %s are rounded, because the header scales integer labels."
        warn_once(logger, text, path, changed[0])
    return rounded


def read_instances(
    path: Path, pixel_mm: float | None = None, *, nan_background: bool = False
) -> Reference:
    """Read an instance mask, whose values are lesion ids, as a reference on the grid of the mask.

    All lesions get label 1. The ids become 1 to n in the same order. Arguments and errors are those
    of `read_mask`. A mask whose ids look interpolated is an error, too (`require_exact_values`).
    """
    reference = read_mask(path, pixel_mm, nan_background=nan_background)
    require_exact_values(path, np.asarray(reference.labels), are_ids=True)
    values, inverse = np.unique(np.asarray(reference.labels), return_inverse=True)
    new_id_of_value = np.cumsum(values > 0).astype(np.int32)  # 0 stays 0, even if it is absent
    instances = new_id_of_value[inverse.reshape(reference.geometry.shape)]
    labels = (instances > 0).astype(np.uint8)
    return Reference(reference.geometry, labels, instances, (1,) * int(np.count_nonzero(values)))


def require_exact_values(
    path: Path, values: NDArray[np.integer[Any]], *, are_ids: bool = False
) -> None:
    """Raise `ContentError` if the values of a mask look like a JPEG-compressed or smoothed picture.

    Compression and smoothing surround each lesion by further values, and every value would count as
    a lesion. One of two signs is sufficient:

    - Several values are above 7/8 of the highest value, and all remaining positive values are below
      1/8 of it, as JPEG changes a mask of two values.
    - The mask has at least six positive values, and more than 55 % of these values occur mainly at
      edges: more than half of a value's voxels are next to a voxel of a higher value. The voxels of
      labels and lesion ids are usually next to background or equal voxels.

    A mask whose highest value is at most 20 is always accepted.

    Args:
        path: The file, for messages.
        values: The values of the mask, which are at least 0.
        are_ids: True if each value is a lesion id. The first sign is then not used, because the ids
            of a cropped mask may be any numbers.
    """
    present = np.unique(values[values > 0])
    highest = int(present.max(initial=0))
    if highest <= _MAX_LABELS:
        return
    is_low = present < highest / 8
    is_high = present > highest * 7 / 8
    is_inexact = not are_ids and is_low.any() and is_high.sum() > 1 and (is_low | is_high).all()
    if not is_inexact and len(present) >= _MIN_VALUES:
        # for each value, the fraction of its voxels that are next to a higher value
        fraction_below = mean(maximum_filter(values, size=3) > values, values, present)
        is_inexact = (fraction_below > 0.5).mean() > _MIN_SHARE
    if is_inexact:
        raise ContentError(
            f"{path}: the mask has {len(present)} values up to {highest}, as after JPEG "
            "compression, smoothing or interpolation. Threshold it at half of the highest value: "
            f"save 1 where the mask is above {highest / 2:g}, otherwise 0. If it was drawn in "
            "several values, replace each value by the nearest of these."
        )
