"""What bench_training.py and its two workers share: the network, the job, and the clock of steps.

Read in the project's environment and in the peers', so it imports little.
"""

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from lesionseg.plan.plan import Architecture

PROFILED = 20  # steps looked at for how busy a GPU is


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

    def architecture(self, *, space_to_depth: bool = False) -> Architecture:
        """nnU-Net's plain U-Net of two blocks a stage as ours.

        nnU-Net has logits at all stages but the coarsest and gives the last of them no weight.
        `space_to_depth`: the first stage's place is taken by blocks of voxels as channels.
        """
        n, first = len(self.features), int(space_to_depth)
        strides = ((1,) * 3, *((2,) * 3,) * (n - 1))
        return Architecture(
            "unet",
            self.features[first:],
            strides[first:],
            ((3,) * 3,) * (n - first),
            n_supervised=max(n - first - 2, 1),
        )


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
    `precision`, `compile` and the `space_to_depth` stem are ours alone.
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
    compile: bool | str = False
    space_to_depth: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "Job":
        """Back from plain values; those of later versions are left out."""
        return cls(**{f.name: raw[f.name] for f in fields(cls) if f.name in raw})


class Laps:
    """The clock of a training: call `begin` and `end` around each step until `end` says stop.

    A `step` waits for the device before and after, `tiles` do not. On a GPU some more steps of
    `tiles` run under the profiler, after the timed ones.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._cuda = job.device.startswith("cuda")
        self._steps: list[float] = []
        self._n, self._began, self._first, self._cpu = 0, 0.0, 0.0, 0.0
        self._wall, self._used, self._timed = 0.0, 0.0, 0
        self._profile: profile | None = None
        self._busy: float | None = None

    def begin(self) -> None:
        """A step starts: its batch is there."""
        self._wait()
        self._began = time.perf_counter()

    def end(self) -> bool:
        """A step has ended; whether all is measured."""
        self._wait()
        now = time.perf_counter()
        self._n += 1
        if self._profile is not None:
            return self._profiled()
        if self._n <= self.job.warm_up:
            self._first, self._cpu = now, time.process_time()
            if self._cuda and self._n == self.job.warm_up:
                torch.cuda.reset_peak_memory_stats()
            return False
        self._steps.append(now - self._began)
        self._wall, self._timed = now - self._first, len(self._steps)
        self._used = time.process_time() - self._cpu
        return self._over()

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
        return found if self._busy is None else found | {"busy": self._busy}

    def _over(self) -> bool:
        if self.job.what == "step":
            return self._timed >= self.job.steps
        if self._wall < self.job.seconds:
            return False
        if not self._cuda:
            return True
        self._profile = profile(activities=[ProfilerActivity.CUDA])
        self._profile.start()
        self._first = time.perf_counter()
        return False

    def _profiled(self) -> bool:
        if self._profile is None or self._n < self.job.warm_up + self._timed + PROFILED:
            return False
        torch.cuda.synchronize()
        wall = time.perf_counter() - self._first
        self._profile.stop()
        self._busy = covered(span[1:] for span in on_gpu(self._profile)) / 1e6 / wall
        return True

    def _wait(self) -> None:
        if self._cuda and self.job.what == "step":
            torch.cuda.synchronize()


def on_gpu(watched: profile) -> list[tuple[str, float, float]]:
    """Name, start and end in µs of each kernel and copy that the profiler saw on a GPU."""
    return [
        (event.name, event.time_range.start, event.time_range.end)
        for event in watched.events() or ()
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not getattr(event, "is_user_annotation", False)
    ]


def covered(spans: Iterable[Sequence[float]]) -> float:
    """Length of the union of (start, end) pairs.

    >>> covered([(0, 2), (1, 3), (5, 6)])
    4.0
    """
    total, reach = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reach))
        reach = max(reach, end)
    return total


def memory_mb(name: str) -> float:
    """MB of a line of /proc/self/status: `VmRSS` (held now) or `VmHWM` (the most so far)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(name)).split()[1]) / 1024
