"""Who gets the focal loss and its gradient: lesions, the hardest background or the easy rest.

All is computed in closed form from the logits alone. With z the error logit of an element (see
`ops.kernels.focal_plain`), its loss is w · sigmoid(z)^γ · softplus(z) and the L1 norm of its
gradient by the logits is w · sigmoid(z)^γ · (γ · sigmoid(−z) · softplus(z) + sigmoid(z)) for a
sigmoid, and twice that for a softmax, since the others' derivatives add up to the truth's. All of
it stays on the logits' device, in one tensor of figures that can be read later.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Integer, Shaped
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lesionseg.losses.base import lesion_target
from lesionseg.losses.dice import FocalLoss
from lesionseg.losses.focal import Alpha, _per_class
from lesionseg.losses.focal import _class_tensor as class_tensor
from lesionseg.ops.fixed_rows import lesion_table


def lesion_probabilities(logits: Tensor, activation: str) -> Tensor:
    if activation == "softmax":
        return torch.softmax(logits.float(), dim=1)[:, 1:]
    return torch.sigmoid(logits.float())


def everywhere(logits: Tensor) -> Tensor:
    return torch.ones((len(logits), *logits.shape[2:]), dtype=torch.bool, device=logits.device)


def sigmoid_weights(alpha: Alpha, n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if alpha is None:
        return (1.0,) * n, (1.0,) * n
    positive = _per_class(alpha, n)
    return positive, tuple(1 - a for a in positive)


def softmax_weights(alpha: Alpha, n: int) -> tuple[float, ...]:
    weights = (1.0,) * n if alpha is None else _per_class(alpha, n)
    return (1 - weights[0], *weights[1:]) if isinstance(alpha, int | float) else weights


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

    @classmethod
    def of(cls, figures: Sequence[float]) -> "Balance":
        """From the figures of `balance_figures`, on the host."""
        loss, gradient, background, highest = figures[:3], figures[3:6], figures[6], figures[7:]
        parts = [Parts(a, hard, max(b - hard, 0.0)) for a, hard, b in (loss, gradient)]
        lesions = tuple(p for p in highest if p >= 0)
        return cls(parts[0], parts[1], lesions, None if background < 0 else background)


@dataclass(frozen=True, eq=False)
class LossCurves:
    """Cumulative share of the loss `[101]` at 0, 1 … 100 % of the elements, easiest first.

    The curves of figure 4 of Lin et al. 2017, for lesion and for background elements apart; None
    where a class has no loss.
    """

    lesion: NDArray[np.float64] | None
    background: NDArray[np.float64] | None

    @classmethod
    def of(cls, figures: Sequence[float]) -> "LossCurves":
        """From the figures of `curve_figures`, on the host."""
        curves = np.asarray(figures).reshape(2, N_QUANTILES)
        return cls(*(None if np.isnan(curve).any() else curve for curve in curves))


@dataclass(frozen=True, eq=False)
class _Elements:
    """Loss and L1 norm of its gradient of each element `[n]`, and which are to be looked at."""

    loss: Tensor
    gradient: Tensor
    lesion: Tensor
    background: Tensor


def focal_terms(loss: nn.Module) -> tuple[FocalTerm, ...]:
    """The focal terms within a loss, cross-entropies included; none for a loss that has no such.

    Reductions are not looked at: they divide lesion and background alike.
    """
    losses = [m for m in loss.modules() if isinstance(m, FocalLoss)]
    return tuple(FocalTerm(m.alpha, m.gamma, m.weight) for m in losses)


@torch.no_grad()
def balance_figures(
    logits: Float[Tensor, "b c *spatial"],
    labels: Shaped[Tensor, "b *any"],
    instances: Integer[Tensor, "b *spatial"],
    terms: Sequence[FocalTerm],
    *,
    activation: str = "sigmoid",
    valid: Bool[Tensor, "b *spatial"] | None = None,
) -> Float64[Tensor, " n"]:
    """What a `Balance` is made of, on the logits' device.

    Labels as a `VoxelLoss` takes them; `instances` lesion ids, unique within a tile. An element is
    a logit of a sigmoid (a voxel is background to all classes but its own) or a voxel of a softmax.
    Without terms the sums are 0.
    """
    of = _elements(logits, labels, valid, activation, terms)
    n_background = of.background.sum()
    n_hard = (HARD_SHARE * n_background.double()).round().clamp(min=1).minimum(n_background)
    most = min(round(HARD_SHARE * len(of.loss)) + 1, len(of.loss))
    where = torch.where(of.background, of.loss, -1).topk(most).indices
    hardest = torch.arange(most, device=where.device) < n_hard
    sums = [
        torch.where(mask, values, 0).sum(dtype=torch.float64)
        for each in (of.loss, of.gradient)
        for values, mask in ((each, of.lesion), (each[where], hardest), (each, of.background))
    ]
    return torch.cat([torch.stack(sums), _highest(logits, labels, instances, valid, activation)])


@torch.no_grad()
def curve_figures(
    logits: Float[Tensor, "b c *spatial"],
    labels: Shaped[Tensor, "b *any"],
    terms: Sequence[FocalTerm],
    *,
    activation: str = "sigmoid",
    valid: Bool[Tensor, "b *spatial"] | None = None,
) -> Float64[Tensor, " n"]:
    """What `LossCurves` are made of, on the logits' device."""
    of = _elements(logits, labels, valid, activation, terms)
    return torch.cat([cumulative_share(of.loss, mask) for mask in (of.lesion, of.background)])


def cumulative_share(
    values: Float[Tensor, " n"], mask: Bool[Tensor, " n"]
) -> Float64[Tensor, " quantiles"]:
    """Share of the sum of the masked `values` in the smallest 0, 1 … 100 % of them; NaN for no sum.

    >>> values, all_of_them = torch.tensor([3.0, 1.0]), torch.tensor([True, True])
    >>> cumulative_share(values, all_of_them)[[0, 25, 50, 100]].tolist()
    [0.0, 0.125, 0.25, 1.0]
    """
    n = mask.sum()
    ascending = torch.where(mask, values.detach().float(), torch.inf).sort().values
    counted = torch.arange(len(values), device=values.device) < n
    total = F.pad(torch.where(counted, ascending, 0).double().cumsum(0), (1, 0))
    at = torch.linspace(0, 1, N_QUANTILES, dtype=torch.float64, device=values.device) * n
    below = at.floor().long()
    low, high = total[below], total[(below + 1).minimum(n)]
    return (low + (at - below) * (high - low)) / total[-1]


def _elements(
    logits: Tensor,
    labels: Tensor,
    valid: Tensor | None,
    activation: str,
    terms: Sequence[FocalTerm],
) -> _Elements:
    """All elements in one row; those left out have no loss."""
    kept = everywhere(logits) if valid is None else valid.bool()
    logits = logits.detach().float()
    if activation == "softmax":
        error, truth = _softmax_error(logits, labels), labels > 0
        n = logits.shape[1]
        weights = [class_tensor(softmax_weights(t.alpha, n), logits)[labels.long()] for t in terms]
    else:
        truth = lesion_target(labels, logits)
        error, kept = torch.where(truth, -logits, logits), kept.unsqueeze(1).expand_as(logits)
        weights = [_sigmoid_weight(term, truth, logits) for term in terms]
    loss, gradient = torch.zeros_like(error), torch.zeros_like(error)
    cross_entropy = F.softplus(error)
    right, log_wrong = torch.exp(-cross_entropy), error - cross_entropy
    for term, weight in zip(terms, weights, strict=True):
        focus = term.weight * weight * torch.exp(term.gamma * log_wrong)
        loss += focus * cross_entropy
        gradient += focus * (term.gamma * right * cross_entropy + (1 - right))
    lesion, background = kept & truth, kept & ~truth
    return _Elements(*(t.flatten() for t in (loss, gradient, lesion, background)))


def _softmax_error(logits: Tensor, labels: Tensor) -> Tensor:
    index = labels.long().unsqueeze(1)
    others = torch.logsumexp(logits.scatter(1, index, -torch.inf), dim=1)
    return others - logits.gather(1, index).squeeze(1)


def _sigmoid_weight(term: FocalTerm, truth: Tensor, logits: Tensor) -> Tensor:
    """The weight of each element, `[B, K, *spatial]`."""
    axes = (-1, *[1] * (logits.ndim - 2))
    both = sigmoid_weights(term.alpha, logits.shape[1])
    lesion, background = (class_tensor(weights, logits).view(axes) for weights in both)
    return torch.where(truth, lesion, background)


def _highest(
    logits: Tensor, labels: Tensor, instances: Tensor, valid: Tensor | None, activation: str
) -> Tensor:
    """The highest probability in background, then in each lesion; −1 where there is none."""
    kept = everywhere(logits) if valid is None else valid.bool()
    p = lesion_probabilities(logits.detach(), activation)
    truth = lesion_target(labels, p)
    lesion = kept & truth.any(1)
    over = F.pad(torch.where(kept & ~truth.any(1), p.amax(1), -1).flatten(), (0, 1), value=-1.0)
    table = lesion_table(torch.where(lesion, instances, 0), instances)
    own = p.masked_fill(~truth, -1).amax(1).flatten()[table.voxels]
    n = table.ids.numel()
    highest = torch.full((n + 1,), -1.0, device=p.device)
    highest = highest.scatter_reduce_(0, table.rows.clamp(max=n), own, "amax")[:n]
    return torch.cat([over.max()[None], highest]).double()
