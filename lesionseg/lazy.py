"""Public names of a package that are imported when they are first used."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the functions `__getattr__` and `__dir__` of a package.

    The modules of a package's public names may import torch or MONAI, which takes seconds. With
    these functions, a module of the package that needs neither is imported without them.

    Args:
        package: The package's name.
        homes: The module of each public name, below the package.
    """

    def get(name: str) -> Any:
        """Import the module of a public name, and return the name's value.

        Raise `AttributeError` if the name is not public, as a module without it does.
        """
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    def list_names() -> list[str]:
        """Return the names in `__all__`, for `dir()` and completion."""
        return sorted(import_module(package).__all__)

    return get, list_names
