"""Convert the logits of a network to probabilities."""

import torch
from jaxtyping import Float
from torch import Tensor

from lesionseg.core import Calibration
from lesionseg.losses.focal import posterior_logits
from lesionseg.models.retinanet import planned_anchors
from lesionseg.plan.plan import Plan

SURE = 8.0  # log-odds: p = 0.9997


def label_probabilities(
    logits: Float[Tensor, "b k *spatial"], plan: Plan
) -> Float[Tensor, "b labels *spatial"]:
    """Convert logits to probabilities float32 of the plan's labels.

    The background channel of a softmax is dropped. If the plan has a `link`, the effect of the
    focal loss on sigmoid logits is undone (`losses.focal`). Probabilities above 0.9997 keep their
    order (`compress_log_odds`).
    """
    logits = logits.float()
    if plan.activation == "softmax":  # log-odds of each label against all other channels
        n_channels = logits.shape[1]
        rest = [
            logits[:, [c for c in range(n_channels) if c != label]].logsumexp(1)
            for label in range(1, n_channels)
        ]
        logits = logits[:, 1:] - torch.stack(rest, dim=1)
    elif plan.link is not None:
        logits = posterior_logits(logits, alpha=plan.link.alpha, gamma=plan.link.gamma)
    return compress_log_odds(logits).sigmoid()


def compress_log_odds(logits: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Compress log-odds beyond ±8 logarithmically, so that probabilities keep their order.

    float32 has no number between 1 − 6e-8 (log-odds of 16.6) and 1. The log-odds of networks that
    are trained with Dice can be higher, and equal probabilities of 1 could not be ranked. The shape
    is arbitrary and may be empty.

    >>> [round(float(x), 2) for x in compress_log_odds(torch.tensor([-5.0, 8.0, 16.6, 200.0]))]
    [-5.0, 8.0, 10.26, 13.26]
    """
    return logits.clamp(-SURE, SURE) + (logits.abs() - SURE).clamp_min(0).log1p() * logits.sign()


def box_scores(logits: Float[Tensor, "*n k"], plan: Plan) -> Float[Tensor, "*n k"]:
    """Convert the logits of a detector's anchors to probabilities float32.

    The effect of the focal loss is undone if the plan states its gamma.
    """
    logits = logits.float()
    anchors = planned_anchors(plan)
    if anchors.gamma is None:
        return compress_log_odds(logits).sigmoid()
    # `posterior_logits` expects the labels as the second axis: [1, k, n]
    by_label = logits.reshape(-1, logits.shape[-1]).T[None]
    undone = posterior_logits(by_label, alpha=anchors.alpha, gamma=anchors.gamma)
    return compress_log_odds(undone[0].T.reshape(logits.shape)).sigmoid()


def calibrated_voxels(p: Tensor, fit: Calibration) -> Tensor:
    """Calibrate the probabilities of voxels, in any shape. A probability of 0 stays 0."""
    clipped = p.clamp(1e-6, 1 - 1e-6)  # the logit of 0 and 1 is infinite
    line = fit.intercept + fit.slope * (clipped / (1 - clipped)).log()
    return torch.where(p > 0, line.sigmoid(), p)
