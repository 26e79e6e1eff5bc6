"""Network, job and clock that bench_training.py shares with its two workers.

The module imports little, because it is used in the project's and in the peers' environment.
"""

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lesionseg.plan.plan import Architecture

RGB = ("R", "G", "B")


@dataclass(frozen=True)
class Size:
    """An equal network, tile and batch for both programs.

    Attributes:
        features: Number of features of each stage.
        side: Voxels of a tile per axis.
        batch: Tiles per step.
        channels: Names of the channels.
        dims: 3 for scans, 2 for pictures.
    """

    features: tuple[int, ...]
    side: int
    batch: int = 2
    channels: tuple[str, ...] = ("FLAIR",)
    dims: int = 3

    @property
    def tile(self) -> tuple[int, ...]:
        """Shape of a tile."""
        return (self.side,) * self.dims

    @property
    def configuration(self) -> str:
        """nnU-Net's name of the configuration."""
        return "2d" if self.dims == 2 else "3d_fullres"

    def architecture(self) -> Architecture:
        """Return nnU-Net's plain U-Net of two blocks per stage as our architecture.

        nnU-Net has logits at all stages except the coarsest, and the last of them has no weight.
        """
        n = len(self.features)
        strides = ((1,) * self.dims, *((2,) * self.dims,) * (n - 1))
        kernels = ((3,) * self.dims,) * n
        return Architecture("unet", self.features, strides, kernels, n_supervised=max(n - 2, 1))


SIZES = {
    "cpu": Size((16, 32, 64, 128, 128), 64),
    "cuda": Size((32, 64, 128, 256, 320, 320), 128),
    "small": Size((4, 8, 8), 16),
    "tiny": Size((4, 8), 16),
    "cpu_2d": Size((16, 32, 64, 128, 128, 128), 320, batch=4, channels=RGB, dims=2),
    "cuda_2d": Size((32, 64, 128, 256, 512, 512, 512), 512, batch=12, channels=RGB, dims=2),
    "small_2d": Size((4, 8, 8), 32, channels=RGB, dims=2),
}


@dataclass(frozen=True)
class Job:
    """One measurement in a separate process.

    `what` is `step` (time `steps` single steps on a batch in memory) or `tiles` (run the real data
    pipeline for `seconds`). Both start after `warm_up` steps. `folder` contains the prepared data.
    `precision` applies only to ours.
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
        """Return the fields as JSON values."""
        return asdict(self)


class Laps:
    """The clock of a training: call `begin` and `end` around each step until `end` returns True.

    In a job `step`, the clock waits for the device before and after each step.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._cuda = job.device.startswith("cuda")
        self._steps: list[float] = []
        self._n = 0
        self._began = 0.0
        self._first = 0.0
        self._cpu = 0.0
        self._wall = 0.0
        self._used = 0.0
        self._timed = 0

    def begin(self) -> None:
        """Start the clock of a step whose batch is ready."""
        self._wait()
        self._began = time.perf_counter()

    def end(self) -> bool:
        """Stop the clock of a step. Return True if the measurement is complete."""
        self._wait()
        now = time.perf_counter()
        self._n += 1
        if self._n <= self.job.warm_up:
            self._first = now
            self._cpu = time.process_time()
            if self._cuda and self._n == self.job.warm_up:
                torch.cuda.reset_peak_memory_stats()
            return False
        self._steps.append(now - self._began)
        self._wall = now - self._first
        self._timed = len(self._steps)
        self._used = time.process_time() - self._cpu
        if self.job.what == "step":
            return self._timed >= self.job.steps
        return self._wall >= self.job.seconds

    def result(self) -> dict[str, float]:
        """Return median milliseconds of a step, seconds per tile, and the share outside of steps.

        `tile_cpu_s` is the processor time per tile of only this process with all its threads.
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
    """Return MB from /proc/self/status: `VmRSS` (current memory) or `VmHWM` (peak)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(name)).split()[1]) / 1024
