"""What a user chooses about inference: settings and device, nothing that training must share."""

from dataclasses import astuple, dataclass, replace
from typing import Any, Literal, get_args

import torch

from lesionseg.errors import ConfigError
from lesionseg.models.precision import fast_dtype

Flips = bool | tuple[tuple[int, ...], ...]
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class InferenceSettings:
    """How a network is slid over a volume.

    `overlap` in [0, 1): the fraction of a tile that its neighbour covers too. `flips` averages over
    mirrored images: 2^dims times the work; or along the sets of axes that it holds. `batch_size`
    None is the plan's on a GPU, 1 on a CPU. `precision`: "auto" is bf16 where the device is
    faster in it, else fp32. `body_mask`: what lies outside the patient's body is background, and
    tiles wholly there are left out (see `inference.sliding.body`). `max_memory_gb`: memory for all
    cases at work, network left out; None is a fraction of what is free. Above it, cases go one by
    one and probabilities go to a temporary file. `readers`: threads that read and prepare scans for
    each device, and as many that write; "auto" is one on a CPU, and half a GPU's cores, at most 4.
    """

    overlap: float = 0.5
    flips: Flips = False
    batch_size: int | None = None
    precision: Precision = "auto"
    body_mask: bool = True
    max_memory_gb: float | None = None
    readers: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise _wrong("overlap", self.overlap, "a fraction in [0, 1)")
        if self.batch_size is not None and self.batch_size < 1:
            raise _wrong("batch_size", self.batch_size, "at least 1, or null")
        if self.precision not in get_args(Precision):
            raise _wrong("precision", self.precision, ", ".join(get_args(Precision)))
        if self.max_memory_gb is not None and not self.max_memory_gb > 0:
            raise _wrong("max_memory_gb", self.max_memory_gb, "gigabytes above 0, or null")
        if self.readers != "auto" and not (isinstance(self.readers, int) and self.readers > 0):
            raise _wrong("readers", self.readers, "at least 1, or auto")

    def dtype(self, device: torch.device) -> torch.dtype:
        """The number format to compute in on `device`."""
        if self.precision == "auto":
            return fast_dtype(device)
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def that_matter(self) -> tuple[Any, ...]:
        """The settings that may change a result, and not only what it takes."""
        *matter, _readers = astuple(replace(self, max_memory_gb=None))
        return tuple(matter)


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
        raise ConfigError(
            f"The device {str(name)!r} cannot be used.",
            where="device",
            seen=str(error).splitlines()[0],
            expected="auto, cpu or cuda",
        ) from error
    return device


def _wrong(name: str, seen: object, expected: str) -> ConfigError:
    return ConfigError(
        f"The inference setting {name} is wrong.",
        where=f"inference.{name}",
        seen=seen,
        expected=expected,
    )
