"""Each lesion counts alike, whether it has 20 voxels or 20 000."""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from scipy import ndimage
from torch import Tensor

from lesionseg.errors import GeometryError, require
from lesionseg.losses.compound import FocalLoss
from lesionseg.losses.inputs import Alpha, Normaliser, spatial_shape
from lesionseg.losses.voxel_loss import LossTerms, VoxelLoss


class InstanceWise(VoxelLoss):
    """A loss over the whole tile, plus the mean over lesions of the same loss around each one.

    Blob loss (Kofler et al. 2022, arXiv 2205.08209): the loss of a lesion leaves out the voxels of
    all other lesions. There it runs over the whole image; here, with a `margin`, over the lesion's
    box and that many voxels around it, so that all lesions together cost about one more pass and
    the background near a lesion weighs more (as in the regions of CC-DiceCE); far background is
    the whole tile's part. `margin: null` is blob loss itself. Weights 2 and 1 are the authors'.

    Terms: those of `loss`, and for each a `lesion_…`, 0 when there is no lesion. Inside a lesion's
    box a term is divided by its own lesion voxels. Finding the boxes copies the instances to the
    CPU once.
    """

    needs_instances = True

    def __init__(
        self,
        loss: VoxelLoss,
        tile_weight: float = 2.0,
        lesion_weight: float = 1.0,
        margin: int | None = 8,
    ) -> None:
        super().__init__(loss.activation)
        require((margin or 0) >= 0, "A margin is at least 0 voxels.", where="margin", seen=margin)
        self.loss, self.margin = loss, margin
        self.tile_weight, self.lesion_weight = tile_weight, lesion_weight

    @property
    def link(self) -> tuple[Alpha, float] | None:
        """That of the loss it wraps, which the background sees unchanged."""
        return self.loss.link

    def forward(
        self,
        logits: Float[Tensor, "b c *spatial"],
        labels: Shaped[Tensor, "b *any"],
        *,
        valid: Bool[Tensor, "b *spatial"] | None = None,
        normaliser: Normaliser = None,
        instances: Integer[Tensor, "b *spatial"] | None = None,
    ) -> LossTerms:
        """The terms of the whole tile and those of its lesions."""
        if instances is None or instances.shape != spatial_shape(logits):
            raise GeometryError(
                "Lesion ids are needed, one map a tile.",
                where="instances",
                seen=None if instances is None else tuple(instances.shape),
                expected=spatial_shape(logits),
            )
        if valid is not None:
            instances = instances.masked_fill(~valid.bool(), 0)  # what is left out is no lesion
        whole: LossTerms = self.loss(logits, labels, valid=valid, normaliser=normaliser)
        terms = {name: self.tile_weight * term for name, term in whole.items()}
        lesions = [
            self._around(place, lesion, logits, labels, valid, instances)
            for place, lesion in _places(instances, self.margin)
        ]
        for name, term in whole.items():
            mean = torch.stack([t[name] for t in lesions]).mean() if lesions else 0 * term.detach()
            terms[f"lesion_{name}"] = self.lesion_weight * mean
        return terms

    def _around(
        self,
        place: tuple[slice, ...],
        lesion: int,
        logits: Tensor,
        labels: Tensor,
        valid: Tensor | None,
        instances: Tensor,
    ) -> LossTerms:
        """The loss in one lesion's box, blind to the other lesions."""
        ids = instances[place]
        kept = (ids == lesion) | (ids == 0)
        if valid is not None:
            kept = kept & valid[place].bool()
        inside = (place[0], slice(None), *place[1:])
        target = labels[place] if labels.shape == instances.shape else labels[inside]
        terms: LossTerms = self.loss(logits[inside], target, valid=kept)
        return terms


class LesionWiseFocalLoss(InstanceWise):
    """Focal loss over the whole tile, plus the mean over lesions of focal loss around each one.

    Arguments as in `FocalLoss` and `InstanceWise`. The second part teaches where a small lesion
    ends: over the whole tile its rim is among the easy background that focal loss silences.
    """

    def __init__(
        self,
        alpha: Alpha = 0.25,
        gamma: float = 2.0,
        activation: str = "sigmoid",
        tile_weight: float = 2.0,
        lesion_weight: float = 1.0,
        margin: int | None = 8,
    ) -> None:
        loss = FocalLoss(alpha, gamma, activation=activation)
        super().__init__(loss, tile_weight, lesion_weight, margin)


def _places(instances: Tensor, margin: int | None) -> Iterator[tuple[tuple[slice, ...], int]]:
    """Where each lesion lies, as slices into `[B, *spatial]`, and its id."""
    shape = instances.shape[1:]
    for b, sample in enumerate(instances.cpu().numpy()):
        for index, box in enumerate(ndimage.find_objects(sample)):
            if box is None:
                continue
            if margin is None:
                around = tuple(slice(0, n) for n in shape)
            else:
                around = tuple(
                    slice(max(s.start - margin, 0), min(s.stop + margin, n))
                    for s, n in zip(box, shape, strict=True)
                )
            yield (slice(b, b + 1), *around), index + 1
