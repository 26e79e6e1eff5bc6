"""Measure the memory that torch allocates for a piece of code, on a GPU or a CPU."""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """Return the peak number of bytes that one run allocates beyond the earlier allocations.

    The numbers are those of torch's allocator. On a CPU they come from the profiler's record of all
    allocations, without compiled code, libraries and the workspace of convolutions.
    """
    run()
    if device.startswith("cuda"):
        return _peak_on_gpu(run)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    profiler = record.profiler
    assert profiler is not None
    kineto = profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in kineto if e.name() == "[memory]"]
    held = 0
    peak = 0
    for _, change in sorted(changes, key=lambda c: c[0]):
        held += change
        peak = max(peak, held)
    return peak


def _peak_on_gpu(run: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
