"""How much memory a piece of code takes of torch, on a GPU or a processor."""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """Highest number of bytes held at a time during one run, beyond those held before.

    What torch's allocator gave out; on a CPU by the profiler's record of every allocation, which
    knows neither compiled code nor libraries, nor the scratch space inside a convolution.
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
    held, peak = 0, 0
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
