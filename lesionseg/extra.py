"""Find the extras: commands and outputs that the core does not import, and that may be missing."""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from lesionseg.errors import ConfigError

_PACKAGE = "lesionseg.extras"  # nothing else in the core names it
WITHOUT_COMMAND = ("pacs",)  # extras that settings of other commands ask for


def has_extra(name: str) -> bool:
    """Return True if this installation has an extra. A folder without code does not count."""
    spec = find_spec(_PACKAGE) and find_spec(f"{_PACKAGE}.{name}")
    return spec is not None and spec.origin is not None


def find_extra(name: str, setting: str = "") -> ModuleType:
    """Return the package of an extra, whose public names the core uses.

    Raise `ConfigError` if the extra is missing. The message begins with the `setting` that asks
    for the extra, or with its name.
    """
    if not has_extra(name):
        raise ConfigError(
            f"{setting or name}: this installation lacks the extra, lesionseg/extras/{name}. "
            "Install lesionseg again to add it."
        )
    return import_module(f"{_PACKAGE}.{name}")
