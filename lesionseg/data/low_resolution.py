"""Simulated low resolution of 2-D and 3-D tiles, for `experiment=nnunet_recipe`."""

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import RandSimulateLowResolutiond

# MONAI's names of linear interpolation, by the number of spatial axes
LINEAR_MODE = {2: "bilinear", 3: "trilinear"}


class RandLowResolutiond(RandSimulateLowResolutiond):  # type: ignore[misc]  # MONAI: no types
    """MONAI's random low resolution, with linear interpolation in 2-D and 3-D.

    MONAI's transform has one mode of interpolation, and its default fails in 2-D. The arguments are
    those of MONAI; `upsample_mode` has no effect.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data. Each image `[C, *spatial]` may have lost resolution."""
        image = data[self.keys[0]]
        self.sim_lowres_tfm.upsample_mode = LINEAR_MODE[image.ndim - 1]
        result: dict[Hashable, Any] = super().__call__(data)
        return result
