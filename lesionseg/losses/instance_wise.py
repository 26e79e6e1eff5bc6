"""Each lesion counts alike, whether it has 20 voxels or 20 000."""

from collections.abc import Iterator
from itertools import product
from math import prod

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from scipy import ndimage
from torch import Tensor

from lesionseg.errors import GeometryError, require
from lesionseg.losses.compound import FocalLoss
from lesionseg.losses.focal import sigmoid_focal_loss, softmax_focal_loss
from lesionseg.losses.inputs import Alpha, Normaliser, spatial_shape
from lesionseg.losses.voxel_loss import LossTerms, VoxelLoss
from lesionseg.ops.fixed_rows import lesion_table


class InstanceWise(VoxelLoss):
    """A loss over the whole tile, plus the mean over lesions of the same loss around each one.

    Blob loss (Kofler et al. 2022, arXiv 2205.08209): the loss of a lesion leaves out the voxels of
    all other lesions. There it runs over the whole image; here, with a `margin`, over the lesion's
    box and that many voxels around it, so that all lesions together cost about one more pass and
    the background near a lesion weighs more (as in the regions of CC-DiceCE); far background is
    the whole tile's part. `margin: null` is blob loss itself. Weights 2 and 1 are the authors'.

    Terms: those of `loss`, and for each a `lesion_…`, 0 when there is no lesion. Inside a lesion's
    box a term is divided by its own lesion voxels. Any loss will do, and is computed once a lesion:
    the boxes are found on the CPU, which waits for a GPU.
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
        means = self._lesion_means(logits, labels, valid, instances)
        for name, term in whole.items():
            mean = means[name] if means else 0 * term.detach()
            terms[f"lesion_{name}"] = self.lesion_weight * mean
        return terms

    def _lesion_means(
        self, logits: Tensor, labels: Tensor, valid: Tensor | None, instances: Tensor
    ) -> LossTerms:
        """The terms of each lesion, averaged; none without lesions."""
        lesions = [
            self._around(place, lesion, logits, labels, valid, instances)
            for place, lesion in _places(instances, self.margin)
        ]
        names = lesions[0] if lesions else ()
        return {name: torch.stack([terms[name] for terms in lesions]).mean() for name in names}

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

    A focal loss is a sum over voxels. So the mean over lesions is one sum with a weight for each
    voxel, by the same operations however many lesions there are; the host reads nothing of a GPU.
    """

    loss: FocalLoss

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

    def _lesion_means(
        self, logits: Tensor, labels: Tensor, valid: Tensor | None, instances: Tensor
    ) -> LossTerms:
        """The weighted sum."""
        function = softmax_focal_loss if self.activation == "softmax" else sigmoid_focal_loss
        alpha, gamma = self.loss.alpha, self.loss.gamma
        each = function(logits, labels, alpha=alpha, gamma=gamma, reduction="none", valid=valid)
        each = each if each.shape == instances.shape else each.sum(1)
        n_positive = (labels > 0) if labels.shape == instances.shape else labels.sum(1)
        weights = lesion_weights(instances, n_positive.long(), self.margin)
        return {"focal": (each * weights).sum()}


@torch.no_grad()
def lesion_weights(
    instances: Integer[Tensor, "b *spatial"],
    n_positive: Integer[Tensor, "b *spatial"],
    margin: int | None,
) -> Float[Tensor, "b *spatial"]:
    """How much each voxel counts in the mean over lesions of sums divided by lesion elements.

    A voxel of lesion l counts 1 / (L · n_l), with L lesions in all tiles and n_l the sum of
    `n_positive` in l; a background voxel the sum of that over the lesions in whose box it lies,
    `margin` voxels wider on each side (None: the whole tile). No lesion gives 0 throughout.
    """
    table, shape = lesion_table(instances, instances), instances.shape[1:]
    n_rows, flat = table.ids.numel(), n_positive.flatten()
    counts = torch.zeros(n_rows + 1, dtype=torch.int64, device=flat.device)
    rows = table.rows.clamp(max=n_rows)
    counts = counts.scatter_add_(0, rows, torch.where(rows < n_rows, flat[table.voxels], 0))
    exists = table.counts > 0
    share = exists / counts[:-1].view_as(exists).clamp(min=1) / exists.sum().clamp(min=1)
    own = torch.zeros(len(flat), device=flat.device)
    own = own.scatter_(0, table.voxels, table.at_voxels(share.float()))
    start, stop = table.boxes.long().chunk(2, dim=-1)
    around = _boxes_filled(start, stop, share, shape, margin)
    return torch.where(instances > 0, own.view_as(instances), around)


def _boxes_filled(
    start: Tensor, stop: Tensor, values: Tensor, shape: torch.Size, margin: int | None
) -> Tensor:
    """The sum of the values `[B, m]` of all boxes `[B, m, dims]` that a voxel lies in.

    By sums along each axis of what begins and ends at the boxes' corners.
    """
    wide = max(shape) if margin is None else margin
    ends = [
        [(start[..., axis] - wide).clamp(min=0), (stop[..., axis] + wide).clamp(max=n)]
        for axis, n in enumerate(shape)
    ]
    padded = [n + 1 for n in shape]
    filled = torch.zeros((len(values), prod(padded)), dtype=torch.float64, device=values.device)
    for corner in product((0, 1), repeat=len(shape)):
        place = torch.zeros_like(start[..., 0])
        for axis, which in enumerate(corner):
            place = place * padded[axis] + ends[axis][which]
        filled.scatter_add_(1, place, (-1) ** sum(corner) * values.double())
    filled = filled.view(len(values), *padded)
    for axis, n in enumerate(shape, 1):
        filled = filled.cumsum(axis).narrow(axis, 0, n)
    return filled.float()


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
