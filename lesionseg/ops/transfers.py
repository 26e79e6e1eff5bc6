"""Copies between host and GPU that neither the host nor the GPU's other work waits for.

Each device has a stream for them, and they go through pinned memory. Elsewhere they are plain ones.
"""

from functools import lru_cache

import torch
from jaxtyping import Shaped
from torch import Tensor

PIECE_BYTES = 2**25  # pinned at a time: the system never gets such memory back


def to_host(values: Shaped[Tensor, "*shape"]) -> tuple[Tensor, torch.cuda.Event | None]:
    """The values on the host, there once the event has come; a CPU's own, without an event."""
    if not values.is_cuda:
        return values, None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    stream = _stream(values.device)
    stream.wait_stream(torch.cuda.current_stream(values.device))
    with torch.cuda.stream(stream):
        host.copy_(values, non_blocking=True)
    values.record_stream(stream)
    return host, stream.record_event()


def to_device(values: Shaped[Tensor, "n m *rest"], device: torch.device) -> Tensor:
    """The values on a device; what is given to its current stream next comes after them."""
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    stream, current = _stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        there = torch.empty(values.shape, dtype=values.dtype, device=device)
        n = max(there.nbytes // PIECE_BYTES, 1)
        for row, values_row in zip(there, values, strict=True):
            pieces = zip(row.tensor_split(n), values_row.tensor_split(n), strict=True)
            for target, source in pieces:
                pinned = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
                target.copy_(pinned.copy_(source), non_blocking=True)
    current.wait_event(stream.record_event())
    there.record_stream(current)
    return there


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
