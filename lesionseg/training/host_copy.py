"""Copies of small tensors from a GPU to the host, without stopping either of them."""

import torch
from torch import Tensor


class HostCopy:
    """A copy of a tensor that the host reads later, so that a GPU does not wait for the host.

    `item()` and `cpu()` wait until a GPU has done all queued work. The GPU is then idle until the
    host has queued more. This copy waits only for the work that was queued before it. For a tensor
    on a CPU it is an ordinary copy.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None  # happens when the copy from a GPU is complete
        if tensor.device.type != "cuda":
            self._values = tensor.detach().clone()
            return
        # only a copy to pinned memory runs in the background; the event is recorded at its end
        self._values = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._values.copy_(tensor.detach(), non_blocking=True)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record()

    def read(self) -> Tensor:
        """Wait until the copy is complete, and return the copied tensor on the CPU."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        return self._values
