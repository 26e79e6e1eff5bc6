"""How many cases may be in memory at once: each takes its share of a budget, or waits."""

import threading
from pathlib import Path

from lesionseg.core import Geometry
from lesionseg.pipeline.stages import Halt

# the most that a case needs at one time, in copies of its larger grid in float32
COPIES = 2.5
# of what the machine has free at the start
_DEFAULT_SHARE = 0.6
_GIB = 2**30


def needed_bytes(file_geometry: Geometry, spacing_mm: tuple[float, ...], n_channels: int) -> int:
    """Memory that a case takes at most on its way through the pipeline, network left out."""
    n_file = n_plan = 1.0
    for n, own, wanted in zip(
        file_geometry.shape,
        sorted(file_geometry.spacing_mm),
        sorted(spacing_mm),
        strict=True,
    ):
        n_file *= n
        n_plan *= n * own / wanted
    return int(4 * COPIES * n_channels * max(n_file, n_plan))


def default_budget() -> int:
    """Bytes for all cases together: a share of what is free now; 4 GiB where that is unknown."""
    info = Path("/proc/meminfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.startswith("MemAvailable:"):
            return int(int(line.split()[1]) * 1024 * _DEFAULT_SHARE)
    return 4 * _GIB


class MemoryBudget:
    """Bytes that cases share. A case that needs more than all of them goes alone."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._shares: dict[str, int] = {}
        self._changed = threading.Condition()

    def take(self, case: str, n_bytes: int, halt: Halt) -> None:
        """Wait until `n_bytes` are free, or nobody else holds any, and take them."""
        with self._changed:
            while self._shares and sum(self._shares.values()) + n_bytes > self.total_bytes:
                halt.check()
                self._changed.wait(timeout=0.2)
            self._shares[case] = n_bytes

    def give_back(self, case: str) -> None:
        """Free what a case took."""
        with self._changed:
            self._shares.pop(case, None)
            self._changed.notify_all()
