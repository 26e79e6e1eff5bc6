"""What a loss is shown where some classes were not annotated: it teaches nothing of them."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_SURE = 30.0  # a logit at which a probability is 0 to thirteen digits


def known_logits(
    logits: Float[Tensor, "b c *spatial"], unannotated: Bool[Tensor, "b k"], activation: str
) -> Float[Tensor, "b c *spatial"]:
    """The logits of what the reference tells apart; `unannotated` has the others' classes per tile.

    Their lesions count as background in the labels. Any loss of the result is the marginal loss of
    Shi et al. 2021 (Marginal loss and exclusion loss for partially supervised multi-organ
    segmentation, Medical Image Analysis 70): with a softmax, classes exclude each other and

        p'_0 = p_0 + sum of p_u over unannotated u,    p'_u = 0,    p'_k = p_k of all others,

    so that background may be of any class that nobody looked for, and a known lesion may not. With
    a sigmoid a class is judged by itself, and p'_u = 0 is a constant: its gradient is exactly 0,
    its loss is too, to thirteen digits. fp32, of the logits' shape: C is K, or 1 + K of a softmax.

    >>> known_logits(torch.zeros(1, 2, 1), torch.tensor([[False, True]]), "sigmoid").tolist()
    [[[0.0], [-30.0]]]
    """
    logits = logits.float()
    unknown = unannotated.view(*unannotated.shape, *(1,) * (logits.ndim - 2))
    if activation == "sigmoid":
        return logits.masked_fill(unknown, -_SURE)
    background, lesions = logits[:, :1], logits[:, 1:]
    merged = torch.cat([background, lesions.masked_fill(~unknown, -torch.inf)], 1)
    outside = merged.logsumexp(1, keepdim=True)
    return torch.cat([outside, torch.where(unknown, outside.detach() - _SURE, lesions)], 1)
