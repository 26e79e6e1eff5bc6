"""Whether the device that is asked for is there, and how much memory a plan may count on."""

import os

import torch

from lesionseg.errors import ConfigError
from lesionseg.training.device.kind import training_device


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


def available_memory_gb(device: str) -> float:
    """Memory of the device in GB (10⁹ bytes): the GPU's own, or the host's physical memory."""
    if device.startswith("cuda"):
        return float(torch.cuda.get_device_properties(device).total_memory) / 1e9
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
