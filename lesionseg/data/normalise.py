"""Intensities become network input, in place, after the schemes of `plan.Normalisation`.

Every scheme is one straight line for all voxels of a channel after clipping: air of a brain scan
gets a constant below the tissue, and no edge between air and tissue is bent by it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lesionseg.errors import ContentError
from lesionseg.plan.plan import Normalisation

# percentiles that `range` takes from each case
RANGE_PERCENTILES = (0.5, 99.5)
# percentiles of larger arrays are taken from evenly spaced voxels: sorting copies what it sorts
_MAX_SORTED = 1 << 22
_SLAB_VOXELS = 1 << 18


@dataclass(frozen=True)
class _Moments:
    mean: float
    std: float


def normalise(array: NDArray[np.float32], schemes: Sequence[Normalisation]) -> None:
    """Normalise `[C, *spatial]` float32 in place, channel c by `schemes[c]`.

    A constant channel becomes 0 under `zscore` and `range`; so does one without a non-zero voxel.
    Temporaries stay under half a copy of one channel. Raises `ContentError` when the number of
    channels is another than the plan's.
    """
    if len(array) != len(schemes):
        raise ContentError(
            "The image's channels are not the plan's.", seen=len(array), expected=len(schemes)
        )
    for channel, scheme in zip(array, schemes, strict=True):
        _normalise_channel(channel, scheme)


def _normalise_channel(channel: NDArray[np.float32], scheme: Normalisation) -> None:
    # zero means air before clipping, so the mask is taken first
    inside = channel != 0 if scheme.scheme == "zscore" else None
    lower, upper = scheme.lower, scheme.upper
    if scheme.scheme == "range":
        lower, upper = _percentiles(channel)
    if lower is not None or upper is not None:
        np.clip(channel, lower, upper, out=channel)
    if scheme.scheme == "dataset":
        moments = _Moments(scheme.mean, scheme.std)
    else:
        moments = _moments(channel, inside)
    channel -= np.float32(moments.mean)
    channel /= np.float32(moments.std if moments.std > 0 else 1.0)


def _moments(channel: NDArray[np.float32], inside: NDArray[np.bool_] | None) -> _Moments:
    """Mean and standard deviation in float64, a slab at a time; std 0 when nothing varies."""
    count, total = 0, 0.0
    for values in _slabs(channel, inside):
        count += values.size
        total += float(values.sum())
    if count == 0:
        return _Moments(0.0, 0.0)
    mean = total / count
    squares = sum(float(np.square(values - mean).sum()) for values in _slabs(channel, inside))
    std = float(np.sqrt(squares / count))
    # rounding of float32 input is no variation
    return _Moments(mean, std if std > 1e-6 * abs(mean) else 0.0)


def _slabs(
    channel: NDArray[np.float32], inside: NDArray[np.bool_] | None
) -> Iterator[NDArray[np.float64]]:
    rows = max(1, _SLAB_VOXELS * len(channel) // max(channel.size, 1))
    for start in range(0, len(channel), rows):
        slab = channel[start : start + rows]
        chosen = slab if inside is None else slab[inside[start : start + rows]]
        yield chosen.astype(np.float64)


def _percentiles(channel: NDArray[np.float32]) -> tuple[float, float]:
    step = -(-channel.size // _MAX_SORTED)
    lower, upper = np.percentile(channel.reshape(-1)[::step], RANGE_PERCENTILES)
    return float(lower), float(upper)
