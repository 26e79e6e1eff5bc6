"""What bench_training.py and its two workers share: the network, the job, and the clock of steps.

Read in the project's environment and in the peers', so it imports little.
"""

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lesionseg.plan.plan import Architecture


@dataclass(frozen=True)
class Size:
    """An equal network, tile and batch for both tools."""

    features: tuple[int, ...]
    side: int
    batch: int = 2

    @property
    def tile(self) -> tuple[int, int, int]:
        """The shape of a tile."""
        return (self.side,) * 3

    def architecture(self) -> Architecture:
        """nnU-Net's plain U-Net of two blocks a stage as ours.

        nnU-Net has logits at all stages but the coarsest and gives the last of them no weight.
        """
        n = len(self.features)
        strides, kernels = ((1,) * 3, *((2,) * 3,) * (n - 1)), ((3,) * 3,) * n
        return Architecture("unet", self.features, strides, kernels, n_supervised=max(n - 2, 1))


SIZES = {
    "cpu": Size((16, 32, 64, 128, 128), 64),
    "cuda": Size((32, 64, 128, 256, 320, 320), 128),
    "small": Size((4, 8, 8), 16),
    "tiny": Size((4, 8), 16),
}


@dataclass(frozen=True)
class Job:
    """One measurement in a process of its own.

    `what`: `step` (a batch in memory, `steps` of them timed one by one) or `tiles` (the real data
    pipeline for `seconds` on end), each after `warm_up` steps. `folder` holds what was prepared.
    `precision` is ours alone.
    """

    what: str
    folder: str
    size: str = "cpu"
    device: str = "cpu"
    threads: int = 1
    workers: int = 1
    warm_up: int = 3
    steps: int = 9
    seconds: float = 10.0
    precision: str = "auto"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Laps:
    """The clock of a training: call `begin` and `end` around each step until `end` says stop.

    A `step` waits for the device before and after, `tiles` do not.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._cuda = job.device.startswith("cuda")
        self._steps: list[float] = []
        self._n, self._began, self._first, self._cpu = 0, 0.0, 0.0, 0.0
        self._wall, self._used, self._timed = 0.0, 0.0, 0

    def begin(self) -> None:
        """A step starts: its batch is there."""
        self._wait()
        self._began = time.perf_counter()

    def end(self) -> bool:
        """A step has ended; whether all is measured."""
        self._wait()
        now = time.perf_counter()
        self._n += 1
        if self._n <= self.job.warm_up:
            self._first, self._cpu = now, time.process_time()
            if self._cuda and self._n == self.job.warm_up:
                torch.cuda.reset_peak_memory_stats()
            return False
        self._steps.append(now - self._began)
        self._wall, self._timed = now - self._first, len(self._steps)
        self._used = time.process_time() - self._cpu
        if self.job.what == "step":
            return self._timed >= self.job.steps
        return self._wall >= self.job.seconds

    def result(self) -> dict[str, float]:
        """Median milliseconds of a step, seconds a tile, share of time outside of steps.

        `tile_cpu_s`: processor time a tile, of this process with all its threads alone.
        """
        tiles = self._timed * SIZES[self.job.size].batch
        found = {
            "steps": float(self._timed),
            "step_ms": 1e3 * statistics.median(self._steps),
            "tile_s": self._wall / tiles,
            "tile_cpu_s": self._used / tiles,
            "outside": 1 - sum(self._steps) / self._wall,
        }
        if self._cuda:
            found["peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
        return found

    def _wait(self) -> None:
        if self._cuda and self.job.what == "step":
            torch.cuda.synchronize()


def memory_mb(name: str) -> float:
    """MB of a line of /proc/self/status: `VmRSS` (held now) or `VmHWM` (the most so far)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(name)).split()[1]) / 1024
