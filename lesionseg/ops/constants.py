"""Constants as small tensors that are sent to a GPU once."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def constant(values: Sequence[float], like: Tensor, *, n_after: int = 0) -> Tensor:
    """Return numbers as a tensor `[n, 1, …]` with `n_after` axes of length 1 after the first.

    The further axes let the tensor broadcast against images. It has the dtype and device of `like`
    and must not be changed. On a GPU the same tensor is returned each time, because every copy from
    the host waits until all queued work is done.
    """
    if like.device.type == "cpu" or torch.compiler.is_compiling():
        return like.new_tensor(values).view([-1] + [1] * n_after)
    return _make_once(tuple(values), n_after, like.dtype, like.device)


@lru_cache(maxsize=64)
def _make_once(
    values: tuple[float, ...], n_after: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Make the tensor that `constant` describes, or return the cached one for equal arguments."""
    with torch.inference_mode(False):  # training may use a tensor that a prediction has created
        return torch.tensor(values, dtype=dtype, device=device).view([-1] + [1] * n_after)
