"""The one place that knows MONAI's convention: `Volume` to `MetaTensor` and back.

MONAI asks of an affine only that it maps the array's own index to RAS millimetres, which is what
`Geometry.affine` does; the axes stay in our order (z, y, x), nothing is transposed or copied.
Only the target of `Orientation` and the size of 2-D affines need care.
"""

from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume

# our axes (z, y, x) run towards the head, the front and the patient's right hand
CANONICAL_AXES = "SAR"


def to_monai(volume: Volume) -> MetaTensor:
    """View of the volume `[C, *spatial]` with its affine, float64 `[4, 4]`; no copy if writable.

    In 2-D the affine is padded with an identity third axis, as MONAI does itself.
    """
    array = volume.array
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return MetaTensor(torch.from_numpy(array), affine=_padded(volume.geometry.affine))


def from_monai(tensor: MetaTensor) -> Volume:
    """The volume of a `MetaTensor` `[C, *spatial]`; the array shares the tensor's memory."""
    array = tensor.as_tensor().numpy()
    return Volume(array, geometry_of(tensor))


def geometry_of(tensor: MetaTensor) -> Geometry:
    """Shape and affine, those of pending (lazy) transforms included."""
    shape = tuple(int(n) for n in tensor.peek_pending_shape())
    affine = tensor.peek_pending_affine().numpy()
    return Geometry(shape, to_affine_nd(len(shape), affine))


def affine_tensor(geometry: Geometry) -> torch.Tensor:
    """The geometry's affine as MONAI's transforms take it: float64 `[4, 4]`."""
    return torch.from_numpy(_padded(geometry.affine))


def _padded(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    padded: NDArray[Any] = to_affine_nd(3, affine)
    return np.array(padded, dtype=np.float64)
