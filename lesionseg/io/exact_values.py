"""Masks whose values were changed by JPEG compression, smoothing or interpolation."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, mean

from lesionseg.errors import ContentError

_MIN_VALUES = 6  # of a mask whose values are compared with those of neighbouring voxels
_MAX_LABELS = 20  # values up to this are labels or lesion ids, and leave little room for noise
_MIN_SHARE = 0.55  # of the values that occur mainly next to higher ones, in a changed mask


def require_exact_values(
    path: Path, values: NDArray[np.integer[Any]], *, are_ids: bool = False
) -> None:
    """Raise `ContentError` if the values of a mask are those of a compressed or smoothed picture.

    Further values then surround each lesion, and each of them would count as lesion. There are two
    signs. Either several values are near the highest one and all remaining values are near 0, or
    most of at least six values occur mainly next to higher ones, unlike labels and lesion ids. A
    mask with values up to 20 is always accepted.

    Args:
        path: The file.
        values: The values of the mask, at least 0.
        are_ids: True if each value is a lesion id. The first sign does not count then, because the
            ids of a cropped mask may be of any size.
    """
    present = np.unique(values[values > 0])
    highest = int(present.max(initial=0))
    if highest <= _MAX_LABELS:
        return
    is_low = present < highest / 8
    is_high = present > highest * 7 / 8
    is_changed = not are_ids and is_low.any() and is_high.sum() > 1 and (is_low | is_high).all()
    if not is_changed and len(present) >= _MIN_VALUES:
        share_below = mean(maximum_filter(values, size=3) > values, values, present)
        is_changed = (share_below > 0.5).mean() > _MIN_SHARE
    if is_changed:
        raise ContentError(
            f"{path}: the mask has {len(present)} values up to {highest}, as after JPEG "
            "compression, smoothing or interpolation. Threshold it at half of the highest value: "
            f"save 1 where the mask is above {highest / 2:g}, otherwise 0. If it was drawn in "
            "several values, replace each value by the nearest of these."
        )
