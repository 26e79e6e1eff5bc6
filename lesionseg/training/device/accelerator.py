"""The device that trains: which it is, whether it is there, and its memory."""

from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from lesionseg.data.cache import cores
from lesionseg.errors import ConfigError
from lesionseg.ops.host_memory import physical_bytes
from lesionseg.ops.transfers import to_host

MOST_WORKERS = 8  # a GPU is fed by as many
AHEAD = 2  # steps that each worker reads ahead


def training_device(accelerator: str) -> str:
    """`cuda` or `cpu`: a GPU where one is there and `accelerator` does not say `cpu`."""
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def require_device(accelerator: str) -> None:
    """Raise `ConfigError` where a GPU is asked for and there is none."""
    if accelerator not in ("auto", "cpu") and training_device(accelerator) == "cpu":
        raise ConfigError(
            "There is no GPU that torch can use.",
            where="trainer.accelerator",
            seen=accelerator,
            remedy="set trainer.accelerator=auto to train on the processor, or start the command "
            "where `nvidia-smi` and torch.cuda.is_available() see a GPU.",
        )


def loader_workers(asked: int | Literal["auto"], device: str, n_processes: int = 1) -> int:
    """Processes that make tiles for each of those that train on this machine.

    `auto`: on a GPU the cores that each has, but one, 1 to `MOST_WORKERS`; on a CPU, which
    training itself fills, one.
    """
    if asked != "auto":
        return asked
    if device == "cpu":
        return 1
    return min(max(cores() // n_processes - 1, 1), MOST_WORKERS)


class LateFigures(NamedTuple):
    """A few numbers of a device, on their way to the host.

    Read after more work has been given to a GPU, they are there, and it never stands idle.
    """

    host: Tensor
    sent: torch.cuda.Event | None

    @classmethod
    def of(cls, figures: Tensor) -> Self:
        """Send them; nothing waits."""
        return cls(*to_host(figures))

    def read(self) -> list[float]:
        """The numbers; waits for what was computed before they were sent, and no more."""
        if self.sent is not None:
            self.sent.synchronize()
        numbers: list[float] = self.host.tolist()
        return numbers


def available_memory_gb(device: str) -> float:
    """Memory of the device in GB (10⁹ bytes): the GPU's own, or the host's physical memory."""
    if device.startswith("cuda"):
        return float(torch.cuda.get_device_properties(device).total_memory) / 1e9
    return physical_bytes() / 1e9
