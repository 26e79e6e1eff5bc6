"""Sliding-window inference of nnU-Net models, which average logits instead of probabilities.

Tiles, padding and Gaussian weights are those of `nnUNetPredictor`. Mirrored views and folds are
averaged tile by tile, which gives the same mean as averaging whole volumes.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn

from lesionseg.config import InferenceConfig
from lesionseg.errors import BundleError
from lesionseg.inference.agreement import Agreement
from lesionseg.inference.box_candidates import BoxCollector
from lesionseg.inference.nnunet.scan import NnunetScan
from lesionseg.inference.probabilities import label_probabilities
from lesionseg.inference.stitch import Store
from lesionseg.inference.window import SlidingWindow, mirrored_views
from lesionseg.models.custom_network import n_logits
from lesionseg.plan.nnunet_preprocessing import NnunetRecipe
from lesionseg.plan.plan import Plan

_SIGMA_SCALE = 1 / 8
_HIGHEST = 10.0  # the value in the middle of the Gaussian, as in nnU-Net
_SLICES_AT_ONCE = 8  # batch size of a 2-D network on a CPU, which a single slice does not fill


class LogitStore(Store):
    """Logits `[K, *resized]` as float16, in memory or in a nameless file."""

    def write(
        self,
        where: Sequence[slice],
        logits: Float[Tensor, "k *where"],
        inside: Bool[Tensor, "*where"] | None = None,
    ) -> None:
        """Store the logits of a part of the volume, clipped to the range of float16.

        Voxels that are not `inside` get 0.
        """
        most = torch.finfo(torch.float16).max
        self._store(where, logits.clamp(-most, most), inside)

    def decode(self, values: Tensor) -> Tensor:
        """Convert stored numbers to logits float32."""
        return values.float()


class NnunetWindow(SlidingWindow):
    """A sliding window with an nnU-Net model. `logits` applies it to a prepared scan.

    With `settings.flips`, logits are averaged over the mirrored views that the model was trained
    with. `tile_shape` always has three axes. A 2-D network processes a volume slice by slice, on a
    CPU in batches of 8. With `settings.precision` "auto", a GPU computes in float16, as in nnU-Net.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        plan: Plan,
        settings: InferenceConfig | None = None,
        *,
        device: torch.device | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> None:
        settings = settings or InferenceConfig.of()
        recipe = recipe_of(plan)
        self.recipe = recipe
        super().__init__(networks, plan, settings, device=device, memory_format=memory_format)
        if self.device.type == "cuda" and settings.precision == "auto":
            self.dtype = torch.float16
        if self.device.type == "cpu" and recipe.network_dims == 2:
            self.batch_size = _SLICES_AT_ONCE
        self.flips = mirrored_views(recipe.mirror_axes if settings.flips else ())
        # a prepared scan always has three axes, that of a picture with one slice
        tile = plan.tile_shape
        self.tile_shape = tile if len(tile) == 3 else (1, *tile)

    @property
    def n_outputs(self) -> int:
        """The number of logits per voxel: one per label, and one for background with a softmax."""
        return n_logits(self.plan)

    def tile_weight(self) -> Tensor:
        """Return the weights of the average over overlapping tiles, `[*tile]`."""
        return nnunet_weight(self.tile_shape)

    def logits(
        self,
        scan: NnunetScan,
        *,
        folder: Path | None = None,
        agreement: Agreement | None = None,
    ) -> LogitStore:
        """Return the mean logits `[K, *resized]` over tiles, mirrored views and folds.

        The voxels that each fold marks are added to `agreement`. `folder` is that of the file for
        the logits; None keeps them in memory.
        """
        store = LogitStore((self.n_outputs, *scan.image.shape[1:]), folder=folder)
        self(scan.image, store=store, agreement=agreement)
        return store

    def convert_logits(self, logits: Float[Tensor, "b k *tile"]) -> Float[Tensor, "b k *tile"]:
        """Return the logits in float32, because nnU-Net averages logits, not probabilities."""
        return logits.float()

    def marked(self, values: Float[Tensor, "b k *tile"]) -> Bool[Tensor, "b labels *tile"]:
        """Return the voxels whose probability is sufficient for a candidate, for each label."""
        return super().marked(label_probabilities(values, self.plan))

    @torch.inference_mode()
    def predict(
        self,
        tiles: Float[Tensor, "b c z y x"],
        numbers: Sequence[int] = (),
        collector: BoxCollector | None = None,
        agreement: Agreement | None = None,
    ) -> Float[Tensor, "b k z y x"]:
        """Return mean logits float32 over networks and mirrored views, at the finest resolution.

        `numbers` and `collector` are not used, because nnU-Net predicts no boxes.

        Raises `GeometryError` if an output of the network does not fit the plan.
        """
        if self.recipe.network_dims == 3:
            return super().predict(tiles, agreement=agreement)
        # tiles of a 2-D network have one slice
        return super().predict(tiles[:, :, 0], agreement=agreement)[:, :, None]


def recipe_of(plan: Plan) -> NnunetRecipe:
    """Return the recipe of an nnU-Net model's plan. Raise `BundleError` for other plans."""
    if plan.nnunet is None:
        raise BundleError(
            "plan.json: nnunet is missing, so this is not an nnU-Net model. Use SlidingWindow."
        )
    return plan.nnunet


@lru_cache(maxsize=4)
def nnunet_weight(tile_shape: tuple[int, ...]) -> Tensor:
    """Return nnU-Net's Gaussian over a tile `[*tile_shape]` float32, with 10 in the middle.

    Its standard deviation is an eighth of the tile along each axis. As in nnU-Net, values are
    rounded to 16 bits, and all values are above 0.

    >>> nnunet_weight((1, 5)).mul(100).round().int().tolist()
    [[6, 278, 1000, 278, 6]]
    """
    weight = np.ones((), dtype=np.float64)
    for n in tile_shape:
        peak = np.zeros(n)
        peak[n // 2] = 1
        along_axis = gaussian_filter1d(peak, n * _SIGMA_SCALE, mode="constant", cval=0)
        weight = weight[..., np.newaxis] * along_axis
    rounded = torch.from_numpy(weight / weight.max() * _HIGHEST).half()
    least = rounded[rounded > 0].min()
    return rounded.clamp_min(least).float()
