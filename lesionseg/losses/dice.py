"""Soft Dice loss, one minus the Dice overlap of probabilities and lesions."""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from lesionseg.losses.inputs import check_valid, lesion_target


def lesion_probabilities(
    logits: Float[Tensor, "b c *spatial"], activation: str
) -> Float[Tensor, "b k *spatial"]:
    """Probabilities of the K lesion classes in fp32; a softmax's background is dropped."""
    if activation == "softmax":
        return torch.softmax(logits.float(), dim=1)[:, 1:]
    return torch.sigmoid(logits.float())


def overlap_sums(
    probabilities: Float[Tensor, "b k *spatial"],
    lesion: Bool[Tensor, "b k *spatial"],
    valid: Bool[Tensor, "b *spatial"] | None = None,
    *,
    per_tile: bool = False,
) -> Float[Tensor, "3 *k"]:
    """Σ p·y, Σ p and Σ y of the valid voxels per class, over the whole batch or `per_tile`."""
    if valid is not None:
        keep = valid.bool().unsqueeze(1)
        probabilities = probabilities.masked_fill(~keep, 0)
        lesion = lesion & keep
    axes = (*([] if per_tile else [0]), *range(2, probabilities.ndim))
    hit = torch.where(lesion, probabilities, 0).sum(axes)
    return torch.stack([hit, probabilities.sum(axes), lesion.sum(axes).to(hit)])


def dice_loss(
    logits: Float[Tensor, "b c *spatial"],
    labels: Shaped[Tensor, "b *any"],
    *,
    activation: str = "sigmoid",
    valid: Bool[Tensor, "b *spatial"] | None = None,
    smooth: float = 1.0,
    per_tile: bool = False,
) -> Float[Tensor, ""]:
    """1 − (2·Σ p·y + s) / (Σ p + Σ y + s), summed over the batch, then the mean over classes.

    `labels`: a label map, or 0/1 of the probabilities' shape. `per_tile`: summed over each tile,
    then the mean over tiles and classes. Milletari et al. 2016 with sums instead of squares.
    Summing over the batch and `smooth` (in voxels) keep the loss of a lesion-free batch within
    [0, 1] with a gradient that lowers p. Empty input gives 0. fp32.
    """
    check_valid(logits, valid)
    probabilities = lesion_probabilities(logits, activation)
    lesion = lesion_target(labels, probabilities)
    hit, predicted, present = overlap_sums(probabilities, lesion, valid, per_tile=per_tile)
    overlap: Tensor = (2 * hit + smooth) / (predicted + present + smooth)
    return (1 - overlap).sum() / max(overlap.numel(), 1)
