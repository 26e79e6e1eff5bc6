"""The device and the number format to compute in."""

import torch

from lesionseg.config import InferenceConfig
from lesionseg.errors import ConfigError
from lesionseg.models.build import fast_dtype


def dtype_of(settings: InferenceConfig, device: torch.device) -> torch.dtype:
    """The number format to compute in on `device`."""
    if settings.precision == "auto":
        return fast_dtype(device)
    return torch.bfloat16 if settings.precision == "bf16" else torch.float32


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
