"""Each lesion counts alike, whether it has 20 voxels or 20 000."""

import torch
from jaxtyping import Integer
from scipy import ndimage
from torch import Tensor

from lesionseg.errors import ConfigError, GeometryError
from lesionseg.losses.base import Labels, Logits, LossTerms, Valid, VoxelLoss
from lesionseg.losses.dice import FocalLoss
from lesionseg.losses.focal import Alpha, Normaliser


class InstanceWise(VoxelLoss):
    """A loss over the whole tile, plus the mean over lesions of the same loss around each one.

    Blob loss (Kofler et al. 2022, arXiv 2205.08209): the loss of a lesion leaves out the voxels of
    all other lesions. There it runs over the whole image; here, with a `margin`, over the lesion's
    box and that many voxels around it, so that all lesions together cost about one more pass and
    the background near a lesion weighs more (as in the regions of CC-DiceCE). `margin: null` is
    blob loss itself. Weights 2 and 1 are the authors'.

    Terms: those of `loss`, and for each a `lesion_…`, 0 when there is no lesion. Around a lesion a
    term is divided by its own lesion voxels. The boxes are found on the CPU.
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
        if margin is not None and margin < 0:
            raise ConfigError(f"loss.margin={margin} must be at least 0 voxels.")
        self.loss, self.margin = loss, margin
        self.tile_weight, self.lesion_weight = tile_weight, lesion_weight

    @property
    def link(self) -> tuple[Alpha, float] | None:
        """That of the loss it wraps, which the background sees unchanged."""
        return self.loss.link

    def forward(
        self,
        logits: Logits,
        labels: Labels,
        *,
        valid: Valid = None,
        normaliser: Normaliser = None,
        instances: Integer[Tensor, "b *spatial"] | None = None,
    ) -> LossTerms:
        """The terms of the whole tile and those of its lesions."""
        spatial = (logits.shape[0], *logits.shape[2:])
        if instances is None or instances.shape != spatial:
            seen = None if instances is None else tuple(instances.shape)
            raise GeometryError(f"Lesion ids of shape {spatial} are needed, not {seen}.")
        if valid is not None:
            instances = instances.masked_fill(~valid.bool(), 0)  # what is left out is no lesion
        whole: LossTerms = self.loss(logits, labels, valid=valid, normaliser=normaliser)
        wide = max(spatial) if self.margin is None else self.margin
        lesions: list[LossTerms] = []
        for b, sample in enumerate(instances.cpu().numpy()):
            for index, box in enumerate(ndimage.find_objects(sample), 1):
                if box is None:
                    continue
                around = (
                    slice(b, b + 1),
                    *(slice(max(s.start - wide, 0), s.stop + wide) for s in box),
                )
                inside = (around[0], slice(None), *around[1:])
                ids = instances[around]
                keep = (ids == index) | (ids == 0)  # blind to the other lesions
                if valid is not None:
                    keep = keep & valid[around].bool()
                target = labels[around] if labels.shape == instances.shape else labels[inside]
                lesions.append(self.loss(logits[inside], target, valid=keep))
        terms = {name: self.tile_weight * term for name, term in whole.items()}
        for name, term in whole.items():
            own = [of[name] for of in lesions]
            mean = torch.stack(own).mean() if own else 0 * term.detach()
            terms[f"lesion_{name}"] = self.lesion_weight * mean
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
