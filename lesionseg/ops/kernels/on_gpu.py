"""Triton's kernels, where they can be launched; everything has a plain formula beside it."""

import logging
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

import torch

log = logging.getLogger(__name__)


DEVICES = ("cuda",)  # that Triton has kernels for
Name = Literal["focal_triton", "levels_triton", "nms_triton"]


def gpu_kernels(name: Name, device_type: str = "cuda") -> ModuleType | None:
    """The module of kernels of this name; None where there are none for the device.

    Triton is missing or cannot launch any, or torch's compiler fuses the plain formula by itself.
    """
    if device_type not in DEVICES or torch.compiler.is_compiling():
        return None
    if not _launches(torch.device("cuda")):
        return None
    return import_module(f"lesionseg.ops.kernels.{name}")


def launch(kernel: Any, n_programs: int, arguments: list[Any], options: dict[str, Any]) -> None:
    """Launch a kernel of Triton."""
    kernel[(n_programs,)](*arguments, **options)


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
