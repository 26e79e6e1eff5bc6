"""Public names of a package that are imported when they are first used."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__`; the latter lists `__all__`.

    The modules of a package's public names may import torch or MONAI, which takes seconds. With
    these functions, a module of the package that needs neither is imported without them.

    Args:
        package: the package's name.
        homes: the module of each public name, below the package.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    def names() -> list[str]:
        return sorted(import_module(package).__all__)

    return get, names
