"""How many cases may be in memory at once: each takes its share of a budget, or waits."""

import threading
from math import prod
from pathlib import Path

from lesionseg.core import Geometry
from lesionseg.pipeline.predict.stages import Halt
from lesionseg.plan.plan import Plan

# the most that a case needs at one time, in copies of its larger grid in float32
COPIES = 2.5
# of what the machine has free at the start
_DEFAULT_SHARE = 0.6
# bytes a voxel of the file for instances and masks while they are written
_DECISION = 8
_GIB = 2**30


def needed_bytes(geometry: Geometry, plan: Plan) -> int:
    """Memory that a case on a file's grid takes at most on its way, the network left out.

    Two copies of the image, file and plan, or image and probabilities, and half a one to spare.
    """
    finer = prod(geometry.spacing_mm) / prod(plan.spacing_mm)
    n_voxels = prod(geometry.shape) * max(1.0, finer)
    image = 4 * len(plan.channel_names)
    probabilities = 2 * len(plan.label_values)
    return int(n_voxels * max(COPIES * image, image + probabilities + _DECISION))


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
