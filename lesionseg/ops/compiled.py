"""Decorators that compile loops to machine code with numba and cache it on disk."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

from lesionseg.core.arrays import Integers

Function = TypeVar("Function", bound=Callable[..., Any])


def make_compiler(*fastmath: str) -> Callable[[Function], Function]:
    """Return a decorator that compiles a function of loops over arrays to machine code.

    The function is compiled at its first call, and runs without Python's global lock, so that
    threads run at the same time. The machine code is cached on disk if a folder is writable.
    `fastmath` contains flags of LLVM that permit faster arithmetic, such as `contract`. Without
    flags, arithmetic follows IEEE 754. Division by 0 gives infinity, as in numpy.
    """
    flags = set(fastmath)

    def compile_function(function: Function) -> Function:
        """Return numba's version of `function`, which compiles itself at its first call."""
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
    """Return the root of node `i` in a forest, and shorten the path to the root in place.

    The function is the find operation of a union-find structure, in which nodes with the same root
    belong to the same component. `parent` `[n]` contains the parent of each node; the parent of a
    root is the root itself. Nodes on the path get their grandparents as parents (path halving), so
    that later calls are faster.
    """
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i
