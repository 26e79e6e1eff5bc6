"""Find an extra (`tune`, `follow`, `export`, `serve`, `pacs`); error if it is not installed.

The core does not import the extras.
"""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from lesionseg.errors import ConfigError

_PACKAGE = "lesionseg.extras"  # nothing else in the core names it
WITHOUT_COMMAND = ("pacs",)  # extras that settings of other commands ask for


def has_extra(name: str) -> bool:
    """Return True if this installation contains the extra `name`.

    A folder without code, such as one with only cached byte code, does not count.
    """
    # a folder without __init__.py has a specification without origin
    spec = find_spec(_PACKAGE) and find_spec(f"{_PACKAGE}.{name}")
    return spec is not None and spec.origin is not None


def find_extra(name: str, setting: str = "") -> ModuleType:
    """Import the package of an extra when a command or setting needs it, and return it.

    Raise `ConfigError` if the extra is missing. The message begins with `setting`, the name of the
    setting that needs the extra, or with the name of the extra.
    """
    if not has_extra(name):
        raise ConfigError(
            f"{setting or name}: this installation lacks the extra, lesionseg/extras/{name}. "
            "Install lesionseg again to add it."
        )
    return import_module(f"{_PACKAGE}.{name}")
