"""Who gets the focal loss and its gradient: lesions, the hardest background or the easy rest.

All is computed in closed form from the logits alone. With z the error logit of an element (see
`ops.kernels.focal_plain`), its loss is w · sigmoid(z)^γ · softplus(z) and the L1 norm of its
gradient by the logits is w · sigmoid(z)^γ · (γ · sigmoid(−z) · softplus(z) + sigmoid(z)) for a
sigmoid, and twice that for a softmax, since the others' derivatives add up to the truth's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, Shaped
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lesionseg.losses.compound import FocalLoss
from lesionseg.losses.dice import lesion_probabilities
from lesionseg.losses.inputs import (
    Alpha,
    everywhere,
    lesion_target,
    sigmoid_weights,
    softmax_weights,
)
from lesionseg.losses.trimmed import TrimmedFocalLoss

HARD_SHARE = 0.01  # of the background: its hardest elements
N_QUANTILES = 101  # 0, 1 … 100 % of the elements


@dataclass(frozen=True)
class FocalTerm:
    """A focal loss as it stands in a compound; γ = 0 is a weighted cross-entropy."""

    alpha: Alpha
    gamma: float
    weight: float = 1.0


@dataclass(frozen=True)
class Parts:
    """A sum over lesion elements, over the hardest 1 % of background and over the easy rest."""

    lesion: float
    hard: float
    easy: float

    @property
    def total(self) -> float:
        """The whole."""
        return self.lesion + self.hard + self.easy

    def shares(self) -> "Parts | None":
        """Each part's share of the whole; None when there is nothing to share.

        >>> Parts(1.0, 2.0, 1.0).shares()
        Parts(lesion=0.25, hard=0.5, easy=0.25)
        """
        if self.total <= 0:
            return None
        return Parts(*(part / self.total for part in (self.lesion, self.hard, self.easy)))

    def __add__(self, other: "Parts") -> "Parts":
        return Parts(self.lesion + other.lesion, self.hard + other.hard, self.easy + other.easy)


@dataclass(frozen=True)
class Balance:
    """What one batch teaches: sums of loss and gradient, and the highest probabilities.

    `lesion_p`: the highest probability of its own class in each lesion, in order of tile and id.
    `background_p`: the highest in background, None without any.
    """

    loss: Parts
    gradient: Parts
    lesion_p: tuple[float, ...]
    background_p: float | None


@dataclass(frozen=True, eq=False)
class LossCurves:
    """Cumulative share of the loss `[101]` at 0, 1 … 100 % of the elements, easiest first.

    The curves of figure 4 of Lin et al. 2017, for lesion and for background elements apart; None
    where a class has no loss.
    """

    lesion: NDArray[np.float64] | None
    background: NDArray[np.float64] | None


@dataclass(frozen=True, eq=False)
class _Elements:
    """Loss and L1 norm of its gradient of each element `[n]`."""

    loss: Tensor
    gradient: Tensor


def focal_terms(loss: nn.Module) -> tuple[FocalTerm, ...]:
    """The focal terms within a loss, cross-entropies included; none for a loss that has no such.

    Reductions are not looked at: they divide lesion and background alike.
    """
    found = [m for m in loss.modules() if isinstance(m, FocalLoss | TrimmedFocalLoss)]
    return tuple(FocalTerm(m.alpha, m.gamma, m.weight) for m in found)


@torch.no_grad()
def measure_balance(
    logits: Float[Tensor, "b c *spatial"],
    labels: Shaped[Tensor, "b *any"],
    instances: Integer[Tensor, "b *spatial"],
    terms: Sequence[FocalTerm],
    *,
    activation: str = "sigmoid",
    valid: Bool[Tensor, "b *spatial"] | None = None,
) -> Balance:
    """Who gets the loss `terms` of a batch and their gradient.

    Labels as a `VoxelLoss` takes them; `instances` lesion ids, unique within a tile. An element is
    a logit of a sigmoid (a voxel is background to all classes but its own) or a voxel of a softmax.
    Without terms the sums are 0.
    """
    lesion, background = _elements(logits, labels, valid, activation, terms)
    n_hard = min(max(round(HARD_SHARE * len(background.loss)), 1), len(background.loss))
    hardest = background.loss.topk(n_hard, sorted=False).indices
    sums = torch.stack(
        [
            part.sum(dtype=torch.float64)
            for of in ("loss", "gradient")
            for part in (
                getattr(lesion, of),
                getattr(background, of)[hardest],
                getattr(background, of),
            )
        ]
    ).tolist()
    loss, gradient = (Parts(a, hard, max(b - hard, 0.0)) for a, hard, b in (sums[:3], sums[3:]))
    return Balance(loss, gradient, *_highest(logits, labels, instances, valid, activation))


@torch.no_grad()
def loss_curves(
    logits: Float[Tensor, "b c *spatial"],
    labels: Shaped[Tensor, "b *any"],
    terms: Sequence[FocalTerm],
    *,
    activation: str = "sigmoid",
    valid: Bool[Tensor, "b *spatial"] | None = None,
) -> LossCurves:
    """The cumulative loss of lesions and of background in one batch."""
    lesion, background = _elements(logits, labels, valid, activation, terms)
    return LossCurves(cumulative_share(lesion.loss), cumulative_share(background.loss))


def cumulative_share(values: Float[Tensor, " n"]) -> NDArray[np.float64] | None:
    """Share of the sum of `values` in the smallest 0, 1 … 100 % of them; None for no sum.

    >>> cumulative_share(torch.tensor([3.0, 1.0]))[[0, 25, 50, 100]].tolist()
    [0.0, 0.125, 0.25, 1.0]
    """
    # numpy sorts without the indices that torch brings along
    ascending = np.sort(values.detach().float().cpu().numpy())
    total = np.concatenate([[0.0], np.cumsum(ascending, dtype=np.float64)])
    if not total[-1] > 0:
        return None
    at = np.linspace(0, len(ascending), N_QUANTILES)
    return np.asarray(np.interp(at, np.arange(len(total)), total) / total[-1])


def _elements(
    logits: Tensor,
    labels: Tensor,
    valid: Tensor | None,
    activation: str,
    terms: Sequence[FocalTerm],
) -> tuple[_Elements, _Elements]:
    """The elements of lesions and those of background."""
    kept = everywhere(logits) if valid is None else valid.bool()
    logits = logits.detach().float()
    n = logits.shape[1]
    if activation == "softmax":
        weights = [softmax_weights(term.alpha, n) for term in terms]
        of_lesion, of_background = [w[1:] for w in weights], [w[:1] for w in weights]
        lesion, background = _softmax_errors(logits, labels, kept)
    else:
        both = [sigmoid_weights(term.alpha, n) for term in terms]
        of_lesion, of_background = [w[0] for w in both], [w[1] for w in both]
        lesion, background = _sigmoid_errors(logits, labels, kept)
    return _weighted(lesion, terms, of_lesion), _weighted(background, terms, of_background)


def _sigmoid_errors(
    logits: Tensor, labels: Tensor, kept: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Error logits by class: those of its lesions, and those of everything else."""
    lesion, background = [], []
    for errors, truth in zip(
        logits.unbind(1), lesion_target(labels, logits).unbind(1), strict=True
    ):
        lesion.append(-errors[kept & truth])
        background.append(errors[kept & ~truth])
    return lesion, background


def _softmax_errors(
    logits: Tensor, labels: Tensor, kept: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Error logits of each lesion class, and of background."""
    index = labels.long().unsqueeze(1)
    others = torch.logsumexp(logits.scatter(1, index, -torch.inf), dim=1)
    error = others - logits.gather(1, index).squeeze(1)
    lesion = [error[kept & (labels == k)] for k in range(1, logits.shape[1])]
    return lesion, [error[kept & (labels == 0)]]


def _weighted(
    errors: Sequence[Tensor], terms: Sequence[FocalTerm], weights: Sequence[Sequence[float]]
) -> _Elements:
    """All elements in one row; `weights[term][group of errors]`."""
    error = torch.cat(list(errors))
    loss, gradient = torch.zeros_like(error), torch.zeros_like(error)
    if len(error):
        cross_entropy = F.softplus(error)
        truth, log_wrong = torch.exp(-cross_entropy), error - cross_entropy
    for term, of_group in zip(terms, weights, strict=True):
        if not len(error):
            break
        each = _spread(of_group, errors, error) * term.weight
        focus = each * torch.exp(term.gamma * log_wrong)
        loss += focus * cross_entropy
        gradient += focus * (term.gamma * truth * cross_entropy + (1 - truth))
    return _Elements(loss, gradient)


def _spread(weights: Sequence[float], errors: Sequence[Tensor], like: Tensor) -> Tensor:
    """The weight of each element: one number where all groups have the same."""
    if len(set(weights)) == 1:
        return like.new_tensor(weights[0])
    return torch.cat([torch.full_like(e, w) for e, w in zip(errors, weights, strict=True)])


def _highest(
    logits: Tensor, labels: Tensor, instances: Tensor, valid: Tensor | None, activation: str
) -> tuple[tuple[float, ...], float | None]:
    """The highest probability in each lesion, and in background."""
    kept = everywhere(logits) if valid is None else valid.bool()
    p = lesion_probabilities(logits.detach(), activation)
    truth = lesion_target(labels, p)
    lesion = truth.any(1)
    background = kept & ~lesion
    over = torch.where(background, p.amax(1), -1.0).max() if labels.numel() else p.new_tensor(-1.0)
    inside = kept & lesion & (instances > 0)
    tile = inside.nonzero()[:, 0]
    own = p.masked_fill(~truth, -1).amax(1)[inside]
    key = torch.stack([tile, instances[inside].long()], dim=1)
    found, which = torch.unique(key, dim=0, return_inverse=True)
    highest = own.new_zeros(len(found)).scatter_reduce(0, which, own, "amax", include_self=False)
    highest_background = float(over)
    return tuple(highest.tolist()), None if highest_background < 0 else highest_background
