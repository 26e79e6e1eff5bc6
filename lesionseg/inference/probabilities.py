"""Logits to probabilities: softmax, sigmoid, focal-loss correction, calibration, ranks near 1."""

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
    """Convert logits of voxels to probabilities float32 of the plan's labels.

    - A softmax has a channel of background, which is dropped.
    - Sigmoid outputs of a network trained with the focal loss are biased. If the plan has a `link`,
      the bias is corrected (`losses.focal.posterior_logits`).
    - Probabilities above 0.9997 keep their order (`compress_log_odds`).
    """
    logits = logits.float()
    if plan.activation == "softmax":  # log-odds of each label against all other channels
        n_channels = logits.shape[1]
        others = [
            logits[:, [c for c in range(n_channels) if c != label]].logsumexp(1)
            for label in range(1, n_channels)
        ]
        logits = logits[:, 1:] - torch.stack(others, dim=1)
    elif plan.link is not None:
        logits = posterior_logits(logits, alpha=plan.link.alpha, gamma=plan.link.gamma)
    return compress_log_odds(logits).sigmoid()


def compress_log_odds(logits: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Compress log-odds beyond ±8 logarithmically, so that high probabilities can be ranked.

    float32 has no number between 1 − 6e-8 (log-odds of 16.6) and 1. Networks that are trained with
    Dice return higher log-odds, which would all become the probability 1. The shape is arbitrary
    and may be empty.

    >>> [round(float(x), 2) for x in compress_log_odds(torch.tensor([-5.0, 8.0, 16.6, 200.0]))]
    [-5.0, 8.0, 10.26, 13.26]
    """
    return logits.clamp(-SURE, SURE) + (logits.abs() - SURE).clamp_min(0).log1p() * logits.sign()


def box_scores(logits: Float[Tensor, "*n k"], plan: Plan) -> Float[Tensor, "*n k"]:
    """Convert the logits of a detector's anchors to scores in [0, 1], float32.

    Outputs of a detector trained with the focal loss are biased. The bias is corrected if the plan
    states the gamma of the loss (`losses.focal.posterior_logits`).

    Args:
        logits: One logit per anchor and label, in any leading shape.
        plan: Plan of the network, with anchors.
    """
    logits = logits.float()
    anchors = planned_anchors(plan)
    if anchors.gamma is None:
        return compress_log_odds(logits).sigmoid()
    # `posterior_logits` expects the labels as the second axis: [1, k, n]
    by_label = logits.reshape(-1, logits.shape[-1]).T[None]
    corrected = posterior_logits(by_label, alpha=anchors.alpha, gamma=anchors.gamma)
    return compress_log_odds(corrected[0].T.reshape(logits.shape)).sigmoid()


def calibrated_voxels(p: Tensor, fit: Calibration) -> Tensor:
    """Calibrate the probabilities of voxels, in any shape, by a linear function of their logits.

    A probability of 0 stays 0, because such voxels were not predicted.

    Args:
        p: Probabilities.
        fit: Slope and intercept of the linear function.
    """
    clipped = p.clamp(1e-6, 1 - 1e-6)  # the logit of 0 and 1 is infinite
    line = fit.intercept + fit.slope * (clipped / (1 - clipped)).log()
    return torch.where(p > 0, line.sigmoid(), p)
