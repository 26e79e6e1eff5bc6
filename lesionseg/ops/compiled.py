"""Loops as machine code, by numba: compiled at the first call, kept for the next process."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])


def compiler(*fastmath: str) -> Callable[[Function], Function]:
    """A decorator that makes machine code, which runs without Python's lock, and keeps it on disk.

    `fastmath`: LLVM's flags, such as `contract`; none: exactly what IEEE 754 says. Dividing by 0
    gives infinity, as in numpy.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath)}

    def compile_it(function: Function) -> Function:
        try:
            return cast(Function, numba.njit(cache=True, **options)(function))
        except RuntimeError:  # no folder can be written
            return cast(Function, numba.njit(**options)(function))

    return compile_it


compiled = compiler()


@compiled
def root_of(parent: NDArray[np.int64], i: int) -> int:
    """The one by which a set is known, of `parent` `[n]` in a forest; halves the way there."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i
