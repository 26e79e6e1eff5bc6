"""Types of an nnU-Net recipe in a plan: normalisation, resampling, transpose, mirror axes.

The recipe comes from `plans.json` of an nnU-Net v2 model.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from lesionseg.config import Axis, Voxels

_Order = Annotated[int, Field(ge=0, le=5)]

NnunetScheme = Literal[
    "ZScoreNormalization",
    "CTNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
]


@dataclass(frozen=True)
class NnunetNormalisation:
    """The normalisation of one channel.

    `mean`, `std`, `lower` and `upper` (0.5 and 99.5 percentiles) describe the training lesions and
    are used for CT. With `use_mask`, the z-score is computed from the non-zero voxels and from the
    holes that they enclose.
    """

    scheme: NnunetScheme
    use_mask: bool = False
    mean: FiniteFloat = 0.0
    std: Annotated[float, Field(ge=0, le=1e12)] = 1.0
    lower: FiniteFloat = 0.0
    upper: FiniteFloat = 0.0


@dataclass(frozen=True)
class NnunetResampling:
    """The resizing of arrays by spline interpolation.

    Attributes:
        order: Order of the splines.
        order_z: Order along the axis of thick slices, if this axis is resized separately.
        separate_z: True if the axis of thick slices is resized separately. None means True if one
            spacing is more than `threshold` times another.
        threshold: Ratio of two spacings above which slices count as thick.
    """

    order: _Order = 3
    order_z: _Order = 0
    separate_z: bool | None = None
    threshold: Annotated[float, Field(gt=0, le=1e6)] = 3.0


@dataclass(frozen=True)
class NnunetRecipe:
    """The preprocessing and test-time augmentation of an nnU-Net model.

    The network's axes are those of the file, permuted by `transpose`. If the reader `reorients`,
    the axes are first turned along +S, +A, +R. `spacing` and `patch` have two entries for a 2-D
    network, which processes a volume slice by slice along the first axis. Predictions are averaged
    over all mirror images of the patch along the axes `mirror_axes`. nnU-Net's reader of PNG and
    TIFF ignores the pixel size of a picture; `uses_pixel_size` is True for pictures in NIfTI.
    """

    configuration: str
    spacing: Annotated[
        tuple[Annotated[float, Field(ge=1e-3, le=1e4)], ...], Field(min_length=2, max_length=3)
    ]
    patch: Annotated[tuple[Voxels, ...], Field(min_length=2, max_length=3)]
    normalisation: tuple[NnunetNormalisation, ...]
    image_resampling: NnunetResampling
    logit_resampling: NnunetResampling
    transpose: tuple[Axis, Axis, Axis] = (0, 1, 2)
    reorients: bool = False
    uses_pixel_size: bool = False
    mirror_axes: Annotated[tuple[Axis, ...], Field(max_length=3)] = ()

    @property
    def network_dims(self) -> int:
        """Number of spatial axes of the network: 2 or 3."""
        return len(self.patch)
