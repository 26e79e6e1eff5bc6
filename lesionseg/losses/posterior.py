"""From what a focal-trained network says to the probability that it means.

A network that minimises a focal loss does not say η, the probability of a lesion: γ draws it
towards one half (an easy voxel stops teaching before it is certain) and α moves the middle. Both
can be undone in closed form, so that a threshold such as "a lesion's extent ends at 40 % of its
peak" means the same whatever the loss.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Weights = float | Sequence[float] | None


def posterior_logits(
    logits: Float[Tensor, "b k *spatial"], *, alpha: Weights = 0.25, gamma: float = 2.0
) -> Float[Tensor, "b k *spatial"]:
    """Logits of η for K independent classes trained by `sigmoid_focal_loss` with α and γ.

    At the minimum of η·α·FL₁(p) + (1−η)·(1−α)·FL₀(p) the derivatives balance, which gives
    η : 1−η = h(p)/α : h(1−p)/(1−α) with h(v) = v / ((1−v)^γ − γ(1−v)^(γ−1)·v·log v)
    (Charoenphakdee et al., CVPR 2021, theorem 11, with α added). Strictly increasing, hence no
    ranking changes. `alpha`: one number or one a class; None is ½. γ = 0 and α = ½ change nothing.
    fp32; finite for finite logits.

    >>> import torch
    >>> half = torch.zeros(1, 1, 1)
    >>> round(float(posterior_logits(half, alpha=0.25, gamma=2.0).sigmoid()), 6)
    0.75
    """
    logits = logits.float()
    # by softplus: ONNX writes log-sigmoid as a log of a sigmoid, which is infinite from -18 on
    log_p, log_q = -functional.softplus(-logits), -functional.softplus(logits)
    ratio = _log_h(log_p, log_q, gamma) - _log_h(log_q, log_p, gamma)
    return ratio - _alpha_logits(alpha, logits)


def _log_h(log_v: Tensor, log_rest: Tensor, gamma: float) -> Tensor:
    """log h(v) from log v and log(1−v): log v − (γ−1)·log(1−v) − log((1−v) − γ·v·log v)."""
    # (1−v) − γ·v·log v = (1−v)·(1 + γ·v·(−log v)/(1−v)); the quotient tends to 1 as v tends to 1
    quotient = torch.where(
        log_rest > -15, log_v.exp() * -log_v / log_rest.exp().clamp_min(1e-30), 1.0
    )
    return log_v - gamma * log_rest - torch.log1p(gamma * quotient)


def _alpha_logits(alpha: Weights, logits: Tensor) -> Tensor:
    """log(α/(1−α)) per class, shaped to the class axis of `logits`."""
    values = [0.5] if alpha is None else [alpha] if isinstance(alpha, float | int) else [*alpha]
    odds = [math.log(a) - math.log1p(-a) if 0 < a < 1 else 0.0 for a in values]
    return torch.tensor(odds, device=logits.device).view(1, -1, *[1] * (logits.ndim - 2))
