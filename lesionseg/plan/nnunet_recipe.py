"""What an nnU-Net v2 model does with a scan before and after its network, by its `plans.json`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

_Order = Annotated[int, Field(ge=0, le=5)]
_Axis = Annotated[int, Field(ge=0, le=2)]
_Side = Annotated[int, Field(ge=1, le=2**16)]
_Spacing = Annotated[float, Field(ge=1e-3, le=1e4)]

NnunetScheme = Literal[
    "ZScoreNormalization",
    "CTNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
]


@dataclass(frozen=True)
class NnunetNormalisation:
    """The scheme of one channel.

    `mean`, `std`, `lower` and `upper` (0.5 and 99.5 percentiles) are those of the training lesions
    and belong to CT. `use_mask`: z-score from the voxels that are not 0, after holes are filled.
    """

    scheme: NnunetScheme
    use_mask: bool = False
    mean: FiniteFloat = 0.0
    std: Annotated[float, Field(ge=0, le=1e12)] = 1.0
    lower: FiniteFloat = 0.0
    upper: FiniteFloat = 0.0


@dataclass(frozen=True)
class NnunetResampling:
    """How arrays are resized: by splines of `order`, along a separate axis of `order_z`.

    `separate_z`: whether the axis of thick slices is separate; None: if one spacing is more than
    `threshold` times another.
    """

    order: _Order = 3
    order_z: _Order = 0
    separate_z: bool | None = None
    threshold: Annotated[float, Field(gt=0, le=1e6)] = 3.0


@dataclass(frozen=True)
class NnunetRecipe:
    """The way of a scan through an nnU-Net model.

    Network axes are the file's after `transpose`, or those along +S, +A, +R after it if the
    reader `reorients`. `spacing` and `patch` have two entries for a 2-D network, which sees a
    volume slice by slice along the first axis. `mirror_axes`: of the patch, for views that are
    averaged.
    """

    configuration: str
    spacing: Annotated[tuple[_Spacing, ...], Field(min_length=2, max_length=3)]
    patch: Annotated[tuple[_Side, ...], Field(min_length=2, max_length=3)]
    normalisation: tuple[NnunetNormalisation, ...]
    image_resampling: NnunetResampling
    logit_resampling: NnunetResampling
    transpose: tuple[_Axis, _Axis, _Axis] = (0, 1, 2)
    reorients: bool = False
    mirror_axes: Annotated[tuple[_Axis, ...], Field(max_length=3)] = ()

    @property
    def network_dims(self) -> int:
        """Spatial axes of the network: 2 or 3."""
        return len(self.patch)
