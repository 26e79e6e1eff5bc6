"""Which device to compute on."""

import torch

from lesionseg.errors import ConfigError


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
