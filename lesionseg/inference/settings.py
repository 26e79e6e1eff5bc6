"""What a user chooses about inference: settings and device, nothing that training must share."""

from dataclasses import dataclass
from typing import Literal

import torch

from lesionseg.errors import ConfigError
from lesionseg.models.build import fast_dtype


@dataclass(frozen=True)
class InferenceSettings:
    """How a network is slid over a volume.

    `overlap` in [0, 1): the fraction of a tile that its neighbour covers too. `flips` averages over
    mirrored images: 2^dims times the work. `batch_size` None is the plan's on a GPU, 1 on a CPU.
    `precision`: "auto" is bf16 where the device is faster in it, else fp32. `body_mask`: what lies
    outside the patient's body is background, and tiles wholly there are left out (see
    `inference.body`). `max_memory_gb`: memory for all cases at work, network left out; None
    is a fraction of what is free. Above it, cases go one by one and probabilities go to a temporary
    file.
    """

    overlap: float = 0.5
    flips: bool = False
    batch_size: int | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    body_mask: bool = True
    max_memory_gb: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"inference.overlap={self.overlap}: not in [0, 1).")
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"inference.batch_size={self.batch_size}: not at least 1, or null.")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ConfigError(f"inference.precision={self.precision}: not auto, fp32 or bf16.")
        if self.max_memory_gb is not None and not self.max_memory_gb > 0:
            raise ConfigError(
                f"inference.max_memory_gb={self.max_memory_gb}: not above 0, or null."
            )

    def dtype(self, device: torch.device) -> torch.dtype:
        """The number format to compute in on `device`."""
        if self.precision == "auto":
            return fast_dtype(device)
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


def choose_device(name: str | torch.device) -> torch.device:
    """The device called `name`; "auto" is the GPU where there is one, else the CPU.

    Raises `ConfigError` for a device that is unknown or absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device={name}: {reason} Choose auto, cpu or cuda.") from error
    return device
