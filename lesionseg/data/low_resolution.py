"""Random low resolution of 2-D and 3-D tiles, a transform of `experiment=nnunet_recipe`."""

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import RandSimulateLowResolutiond

# MONAI's names of linear interpolation, by the number of spatial axes
LINEAR_MODE = {2: "bilinear", 3: "trilinear"}


class RandLowResolutiond(RandSimulateLowResolutiond):  # type: ignore[misc]  # MONAI: no types
    """MONAI's random low resolution, with linear interpolation in 2-D and 3-D.

    MONAI's transform has one mode of interpolation, and its default fails in 2-D. The arguments are
    the same as in MONAI, but `upsample_mode` has no effect.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Lower the resolution of the images under `self.keys`, each with MONAI's probability.

        Args:
            data: Contains the images `[C, *spatial]`.

        Returns:
            The data with the changed images, which keep their shapes.
        """
        image = data[self.keys[0]]
        # The base class calls this transform for each image. Its mode is fixed in the constructor,
        # but the number of axes is known only now, so an attribute of MONAI is set.
        self.sim_lowres_tfm.upsample_mode = LINEAR_MODE[image.ndim - 1]
        result: dict[Hashable, Any] = super().__call__(data)
        return result
