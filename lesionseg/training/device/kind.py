"""The kind of device that trains."""

import torch


def training_device(accelerator: str) -> str:
    """`cuda` or `cpu`: a GPU where one is there and `accelerator` does not say `cpu`."""
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"
