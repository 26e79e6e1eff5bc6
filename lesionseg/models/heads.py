"""Heads: the last layers, which turn features into logits."""

from collections.abc import Sequence
from math import log, prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lesionseg.errors import ConfigError
from lesionseg.models.blocks import depth_to_space, layers
from lesionseg.plan.plan import Activation

HEAD_STD = 0.01  # Lin et al. 2017, section 4.1


class SegmentationHead(nn.Module):
    """A 1×1 convolution whose first predictions are the prior probability of a lesion.

    `[B, in_channels, *spatial]` to logits `[B, len(bias), *(spatial · block)]`: each voxel has
    logits of its own for every voxel of its block. Computed in the precision of its own weights
    (fp32) even under autocast: logits near ±10 carry three digits in bf16, and the focal loss of an
    easy voxel needs more.
    """

    def __init__(
        self, dims: int, in_channels: int, bias: Sequence[float], block: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.block = tuple(block) or (1,) * dims
        biases = torch.tensor(list(bias)).repeat_interleave(prod(self.block))
        self.conv = layers(dims).conv(in_channels, len(biases), kernel_size=1)
        nn.init.normal_(self.conv.weight, std=HEAD_STD)
        if self.conv.bias is not None:
            with torch.no_grad():
                self.conv.bias.copy_(biases)

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b k *larger"]:
        """Logits."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.conv.weight.dtype)
            logits = self._on_cpu(x) if x.device.type == "cpu" else torch.as_tensor(self.conv(x))
            return depth_to_space(logits, self.block)

    def _on_cpu(self, x: Tensor) -> Tensor:
        """The same 1×1 convolution as a matrix product.

        A convolution to one channel is badly vectorised there: at 2 × 16 × 64³ it took 27 ms
        forward and 73 ms backward of a step of 900 ms on two cores, the product a few. A product
        for each tile, as one for all would copy the features there and back: 24 ms against 49.
        """
        weight = self.conv.weight.flatten(1)
        logits = torch.matmul(weight.expand(x.shape[0], *weight.shape), x.flatten(2))
        if self.conv.bias is not None:
            logits = logits + self.conv.bias[:, None]
        # not len(x), which an export would take for a constant
        return logits.reshape(x.shape[0], -1, *x.shape[2:])


def prior_bias(lesion_fraction: float, n_labels: int, activation: Activation) -> tuple[float, ...]:
    """Biases with which a head starts at p = π / n for each of n labels, π = `lesion_fraction`.

    Sigmoid: n logits −log((1−p)/p) (Lin et al. 2017, section 3.3). Softmax: 1 + n logits, 0 for
    background (p = 1−π) and log(p/(1−π)) for each label. Raises `ConfigError` unless 0 < π < 1.

    >>> [round(b, 3) for b in prior_bias(0.01, 1, "sigmoid")]
    [-4.595]
    >>> [round(b, 3) for b in prior_bias(0.01, 1, "softmax")]
    [0.0, -4.595]
    """
    if not 0 < lesion_fraction < 1 or n_labels < 1:
        raise ConfigError(
            "The prior of the network's last layer cannot be set.",
            where="plan.lesion_fraction",
            seen=f"lesion_fraction {lesion_fraction} over {n_labels} labels",
            expected="a fraction between 0 and 1, both excluded, and at least one label",
        )
    p = lesion_fraction / n_labels
    if activation == "sigmoid":
        return (log(p) - log(1 - p),) * n_labels
    return (0.0, *(log(p) - log(1 - lesion_fraction),) * n_labels)
