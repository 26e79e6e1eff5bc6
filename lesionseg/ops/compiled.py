"""Decorators that compile loops to machine code with numba and cache it on disk."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

from lesionseg.core.arrays import Integers

Function = TypeVar("Function", bound=Callable[..., Any])


def make_compiler(*fastmath: str) -> Callable[[Function], Function]:
    """Return a decorator that compiles a function, which then runs without Python's lock.

    A function is compiled at its first call. The machine code is cached on disk, if a folder is
    writable. `fastmath` contains flags of LLVM, such as `contract`.
    Without flags, arithmetic follows IEEE 754. Division by 0 gives infinity, as in numpy.
    """
    flags = set(fastmath)

    def compile_function(function: Function) -> Function:
        """Return the function that compiles itself at its first call."""
        try:
            cached = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=flags)
            return cast(Function, cached(function))
        except RuntimeError:  # no folder is writable
            uncached = numba.njit(nogil=True, error_model="numpy", fastmath=flags)
            return cast(Function, uncached(function))

    return compile_function


compile_loops = make_compiler()


@compile_loops
def root_of(parent: Integers, i: int) -> int:
    """Return the root of node `i` in a forest, and halve the path to it in place.

    `parent` `[n]` contains the parent of each node. That of a root is the root itself.
    """
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i
