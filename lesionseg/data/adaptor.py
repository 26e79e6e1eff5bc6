"""The one place that knows MONAI's convention: a `Geometry` to a `MetaTensor` and back.

MONAI asks of an affine only that it maps the array's own index to RAS millimetres, which is what
`Geometry.affine` does; the axes stay in our order (z, y, x), nothing is transposed or copied.
Only the target of `Orientation` and the size of 2-D affines need care. MONAI takes seconds to
import, so that is left to the first call.
"""

import sys
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from lesionseg.core import Geometry

if TYPE_CHECKING:
    from monai.data import MetaTensor

# our axes (z, y, x) run towards the head, the front and the patient's right hand
CANONICAL_AXES = "SAR"

# unsigned integers that torch cannot flip, pad or index
_WIDER = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}


def import_monai() -> None:
    """Import MONAI's transforms, in a thread of their own.

    Of each package that it does not find MONAI keeps a traceback for good, and with it the frames
    that imported it: the scans that these hold would stay in memory until the process ends.
    """
    if "monai.transforms" not in sys.modules:
        thread = Thread(target=import_module, args=("monai.transforms",))
        thread.start()
        thread.join()


def shell(geometry: Geometry) -> "MetaTensor":
    """One channel of nothing on a grid, for transforms that only ask where voxels lie.

    In 2-D the affine is padded with an identity third axis, as MONAI does itself.
    """
    from monai.data import MetaTensor

    nothing = torch.zeros((), dtype=torch.uint8).expand(1, *geometry.shape)
    return MetaTensor(nothing, affine=_padded(geometry.affine))


def geometry_of(tensor: "MetaTensor") -> Geometry:
    """Shape and affine, those of pending (lazy) transforms included."""
    from monai.data.utils import to_affine_nd

    shape = tuple(int(n) for n in tensor.peek_pending_shape())
    affine = tensor.peek_pending_affine().numpy()
    return Geometry(shape, to_affine_nd(len(shape), affine))


def as_torch(array: NDArray[Any]) -> torch.Tensor:
    """The array as a tensor, sharing memory unless torch cannot take it as it is.

    Foreign byte order, negative strides and read-only memory are copied; unsigned integers of 16
    bits and more become int32 or int64.
    """
    wider = _WIDER.get(array.dtype.name)
    if wider is not None or not array.dtype.isnative:
        array = array.astype(wider or array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def as_meta_tensor(
    tensor: torch.Tensor, affine: NDArray[np.float64], name: str = ""
) -> "MetaTensor":
    """`[C, *spatial]` with its affine (2-D padded), and with `name` where MONAI keeps a file's."""
    from monai.data import MetaTensor

    return MetaTensor(tensor, affine=_padded(affine), meta={"filename_or_obj": name})


def _padded(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    from monai.data.utils import to_affine_nd

    padded: NDArray[Any] = to_affine_nd(3, affine)
    return np.array(padded, dtype=np.float64)
