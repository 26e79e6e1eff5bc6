"""What a device does during some training steps, by torch's profiler."""

import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator

import pytorch_lightning as pl
import torch
from rows import Row, absent
from torch.profiler import ProfilerActivity, profile

from benchmarks.peers.training_work import covered, on_gpu

# the first that fits; names of CUDA kernels and of torch's operations on a CPU
FAMILIES = {
    "loss": r"_(sigmoid|softmax)_(sums|gradient)|^_targets|^_add_up|focal",
    "optimiser": r"multi_tensor|foreach|fused_adam|lerp",
    "copy": r"memcpy|memset|copy_|nchw|nhwc|contiguous|transpose_",
    "norm": r"norm",
    "convolution": r"conv|xmma|gemm|cutlass|cudnn|implicit|wgrad|dgrad|fprop|sm90_|bmm|mm$",
    "fused": r"triton",
    "reduction": r"reduce|sum|mean|amax",
    "elementwise": r"elementwise|vectorized|unrolled|add|mul|relu|sigmoid",
}


def family(name: str) -> str:
    """What kind of work a kernel does, by its name.

    >>> family("sm90_xmma_fprop_implicit_gemm"), family("Memcpy HtoD (Pinned -> Device)")
    ('convolution', 'copy')
    """
    lower = name.lower()
    return next((f for f, pattern in FAMILIES.items() if re.search(pattern, lower)), "other")


class ProfileSteps(pl.Callback):
    """Watches `n` steps after `warm_up` others, then ends training."""

    def __init__(self, warm_up: int, n: int, *, cuda: bool) -> None:
        self.warm_up, self.n, self.cuda = warm_up, n, cuda
        kind = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
        self._profile = profile(activities=[kind])
        self._done, self._began, self._wall = 0, 0.0, 0.0
        self._syncs: int | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Begin or end the watch; the steps after it are looked at for host syncs."""
        self._done += 1
        if self._done == self.warm_up:
            self._wait()
            self._profile.start()
            self._began = time.perf_counter()
        elif self._done == self.warm_up + self.n:
            self._wait()
            self._wall = time.perf_counter() - self._began
            self._profile.stop()
            if self.cuda:
                self._record = warnings.catch_warnings(record=True)
                self._warned = self._record.__enter__()
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
        elif self._done == self.warm_up + 2 * self.n:
            if self.cuda:
                torch.cuda.set_sync_debug_mode("default")
                self._syncs = sum("synchroniz" in str(w.message) for w in self._warned)
                self._record.__exit__(None, None, None)
            trainer.should_stop = True

    def rows(self) -> Iterator[Row]:
        """Share of each family, launches a step, gaps and syncs."""
        spans = self._spans()
        total = sum(stop - start for _, start, stop in spans) or 1.0
        shares: Counter[str] = Counter()
        for name, start, stop in spans:
            shares[family(name)] += 100 * (stop - start) / total
        for kind, share in shares.most_common():
            yield Row(f"profile_{kind}", share, "% of device time")
        yield Row("launches", len(spans) / self.n, "a step", note="" if self.cuda else "of the CPU")
        busy = covered([(start, stop) for _, start, stop in spans]) / 1e6 / self._wall
        yield Row("gaps", 100 * (1 - busy), "% of time", note="one batch in memory, profiler on")
        if self._syncs is None:
            yield absent("host_syncs", "only a GPU can be waited for")
        else:
            yield Row("host_syncs", self._syncs / self.n, "a step", 0.0)

    def _spans(self) -> list[tuple[str, float, float]]:
        """Name, start and end in µs of what ran on the device; on a CPU of the outermost calls."""
        if self.cuda:
            return on_gpu(self._profile)
        return [
            (event.name, event.time_range.start, event.time_range.end)
            for event in self._profile.events() or ()
            if event.cpu_parent is None
        ]

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
