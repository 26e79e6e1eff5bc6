"""Triton's kernels, where they can be launched; everything has a plain formula beside it."""

import logging
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Literal

import torch

log = logging.getLogger(__name__)


@lru_cache
def gpu_kernels(name: Literal["focal_triton", "nms_triton"]) -> ModuleType | None:
    """The module of kernels of this name; None where Triton is missing or cannot launch any."""
    if not _launches(torch.device("cuda")):
        return None
    return import_module(f"lesionseg.ops.kernels.{name}")


@lru_cache
def _launches(device: torch.device) -> bool:
    """Whether Triton launches a kernel: it needs a C compiler and Python's headers for its first.

    Images made for running programs often have neither.
    """
    try:
        from lesionseg.ops.kernels import triton_check

        triton_check.launch(device)
    except ImportError:
        return False
    except Exception as error:  # whatever Triton raises, the plain formula works without it
        log.warning(
            "Triton launches no kernel (%s: %s): plain, slower formulas are used. It needs a C "
            "compiler and Python's headers.",
            type(error).__name__,
            str(error).partition("\n")[0],
        )
        return False
    return True
