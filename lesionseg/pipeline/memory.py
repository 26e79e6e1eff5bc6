"""The device that trains, and how much memory a plan may count on."""

import os

import torch


def training_device(accelerator: str) -> str:
    """`cuda` or `cpu`, as Lightning would choose for this accelerator."""
    wanted = accelerator in ("auto", "gpu", "cuda")
    return "cuda" if wanted and torch.cuda.is_available() else "cpu"


def available_memory_gb(device: str) -> float:
    """Memory of the device in GB (10⁹ bytes): the GPU's own, or the host's physical memory."""
    if device.startswith("cuda"):
        return float(torch.cuda.get_device_properties(device).total_memory) / 1e9
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
