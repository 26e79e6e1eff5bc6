"""The focal loss as a formula: differentiable any number of times, in any precision.

Sigmoid and softmax share it. Call z the *error logit* of an element: sigmoid(z) = 1 − p_t, the
probability given to anything but the truth. Then −log p_t = softplus(z), and

    FL(z) = w · sigmoid(z)^γ · softplus(z)

where z = −x or +x for a sigmoid logit x of a lesion or of background, and
z = logsumexp(other logits) − (true logit) for a softmax. No probability near 0 or 1 is ever
subtracted from 1, so nothing is lost or overflows, however large the logits.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor
from torch.nn import functional as F


class FocalSums(NamedTuple):
    """Sum of the weighted loss (differentiable), number of lesion and of valid elements.

    A lesion element is a valid voxel (anchor) whose label is not background; `n_valid` counts
    voxels, not logits. All are 0-d tensors on the logits' device, so nothing waits for a GPU.
    """

    total: Float[Tensor, ""]
    n_positive: Float[Tensor, ""]
    n_valid: Float[Tensor, ""]


class Voxels(NamedTuple):
    """Logits `[b, c, s]`, labels `[b, s]` and the valid mask `[b, s]`, None for all."""

    logits: Tensor
    labels: Tensor
    valid: Tensor | None


def focal_term(error_logit: Float[Tensor, "*shape"], gamma: float) -> Float[Tensor, "*shape"]:
    """(1 − p_t)^γ · (−log p_t) of each error logit (Lin et al. 2017, equation 4)."""
    cross_entropy = -F.logsigmoid(-error_logit)
    if gamma == 0:
        return cross_entropy
    return torch.exp(gamma * F.logsigmoid(error_logit)) * cross_entropy


def sigmoid_focal_plain(
    logits: Float[Tensor, "b k *spatial"],
    lesion: Bool[Tensor, "b k *spatial"],
    positive_weight: Sequence[float],
    negative_weight: Sequence[float],
    gamma: float,
) -> Float[Tensor, "b k *spatial"]:
    """Weighted sigmoid focal loss of each logit; the weights are one per class."""
    loss = focal_term(torch.where(lesion, -logits, logits), gamma)
    axes = (-1, *[1] * (logits.ndim - 2))
    positive = class_tensor(positive_weight, logits).view(axes)
    negative = class_tensor(negative_weight, logits).view(axes)
    return torch.where(lesion, positive, negative) * loss


def soft_focal_plain(
    logits: Float[Tensor, "b k *spatial"],
    target: Float[Tensor, "b k *spatial"],
    positive_weight: Sequence[float],
    negative_weight: Sequence[float],
    gamma: float,
) -> Float[Tensor, "b k *spatial"]:
    """The same for targets y between 0 and 1.

    1 − p_t = y·(1 − p) + (1 − y)·p, the cross-entropy and the weight are likewise mixed by y.
    """
    axes = (-1, *[1] * (logits.ndim - 2))
    positive = class_tensor(positive_weight, logits).view(axes)
    negative = class_tensor(negative_weight, logits).view(axes)
    loss = -target * F.logsigmoid(logits) - (1 - target) * F.logsigmoid(-logits)
    if gamma != 0:
        error = target * torch.sigmoid(-logits) + (1 - target) * torch.sigmoid(logits)
        loss = error.clamp_min(torch.finfo(error.dtype).tiny).pow(gamma) * loss
    return (target * positive + (1 - target) * negative) * loss


def softmax_focal_plain(
    logits: Float[Tensor, "b c *spatial"],
    labels: Integer[Tensor, "b *spatial"],
    class_weight: Sequence[float],
    gamma: float,
) -> Float[Tensor, "b *spatial"]:
    """Weighted softmax focal loss of each voxel; one weight a class, background first."""
    index = labels.long()
    others = torch.logsumexp(logits.scatter(1, index.unsqueeze(1), -torch.inf), dim=1)
    truth = logits.gather(1, index.unsqueeze(1)).squeeze(1)
    return class_tensor(class_weight, logits)[index] * focal_term(others - truth, gamma)


def lesion_of_class(
    labels: Shaped[Tensor, "b *spatial"], n_classes: int
) -> Bool[Tensor, "b k *spatial"]:
    """Whether each voxel is a lesion of class 1..K, one channel a class."""
    classes = torch.arange(1, n_classes + 1, device=labels.device)
    return labels.unsqueeze(1) == classes.view(-1, *[1] * (labels.ndim - 1))


def class_tensor(weights: Sequence[float], like: Tensor) -> Float[Tensor, " k"]:
    """One number a class on the device of `like`, sent there without waiting for it."""
    return torch.tensor(weights, dtype=like.dtype).to(like.device, non_blocking=True)
