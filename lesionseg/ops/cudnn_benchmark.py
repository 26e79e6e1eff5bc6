"""The choice of algorithms for convolutions on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fastest_convolutions() -> Iterator[None]:
    """Let cuDNN time its algorithms for each new shape and keep the fastest, while this is open.

    The first call with a shape is slow. Without cuDNN nothing changes.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
