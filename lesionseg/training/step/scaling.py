"""Half precision: the number format of the forward pass, and the scale that fp16 gradients need."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
_DTYPES: dict[str, torch.dtype] = {
    "32-true": torch.float32,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}


def autocast_dtype(precision: str) -> torch.dtype:
    """What convolutions are computed in."""
    return _DTYPES[precision]


class LossScale(nn.Module):
    """Multiplies an fp16 loss so that small gradients do not vanish (Micikevicius et al. 2018).

    Halved by `update` after a step whose gradient overflowed, doubled after `patience` good steps
    in a row, between `LOWEST` and `HIGHEST`. A module, so that checkpoints carry it.
    """

    LOWEST, HIGHEST = 1.0, 2.0**16

    scale: Tensor
    good: Tensor

    def __init__(self, patience: int = 1000) -> None:
        super().__init__()
        self.patience = patience
        self.register_buffer("scale", torch.tensor(self.HIGHEST))
        self.register_buffer("good", torch.tensor(0))

    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide the gradients by the scale, in place."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_div_(gradients, self.scale.to(gradients[0].device))

    def update(self, finite: Tensor) -> None:
        """Learn from a step; `finite` is a 0-d bool that stays on the device."""
        good = torch.where(finite, self.good + 1, 0)
        grows = good >= self.patience
        factor = torch.where(grows, 2.0, torch.where(finite, 1.0, 0.5))
        self.scale.mul_(factor).clamp_(self.LOWEST, self.HIGHEST)
        self.good.copy_(torch.where(grows, 0, good))


def fp16_context(device_type: str, scale: LossScale | None) -> "torch.autocast | nullcontext[None]":
    """Autocast to fp16 where there is a scale: Lightning's own would scale and step by itself."""
    return nullcontext() if scale is None else torch.autocast(device_type, torch.float16)
