"""`lazy_names`: public names of a package that are imported when they are first used."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the functions `__getattr__` and `__dir__` of a package that imports its names lazily.

    The modules of a package's public names may import torch or MONAI, which needs seconds. With
    these functions, the module of a public name is imported when the name is first used.

    Args:
        package: The package's name.
        homes: The name of the module of each public name, relative to the package.
    """

    def get(name: str) -> Any:
        """Import the module that defines a public name, and return the object of this name.

        Raise `AttributeError` if the name is not public, as an ordinary module does.
        """
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    def list_names() -> list[str]:
        """Return the public names of the package (`__all__`), for `dir()` and completion."""
        return sorted(import_module(package).__all__)

    return get, list_names
