"""cuDNN's choice of the fastest convolution algorithm for each shape, within a context."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fastest_convolutions() -> Iterator[None]:
    """Let cuDNN choose the fastest algorithm for each shape of a convolution, within the context.

    cuDNN measures the time of its algorithms at the first call with a shape, which is slow. The
    previous setting is restored at the exit. Without cuDNN nothing changes.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
