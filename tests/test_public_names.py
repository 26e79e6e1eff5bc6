"""Each room's door lists in `__all__` exactly what it re-exports."""

import importlib
from pkgutil import iter_modules
from types import ModuleType

import pytest

ROOMS = [
    "core",
    "ops",
    "io",
    "plan",
    "data",
    "models",
    "losses",
    "evaluation",
    "inference",
    "training",
    "report",
    "pipeline",
]


@pytest.mark.parametrize("package", ROOMS)
def test_a_package_says_what_it_is(package: str) -> None:
    said = importlib.import_module(f"lesionseg.{package}").__doc__ or ""
    assert len(said.split()) > 8
    assert "to be described" not in said.lower()


@pytest.mark.parametrize("room", ROOMS)
def test_door_lists_what_it_exports(room: str) -> None:
    door = importlib.import_module(f"lesionseg.{room}")
    listed = list(getattr(door, "__all__", []))
    assert len(listed) == len(set(listed)), "without doubles; ruff sorts them"
    for name in listed:
        assert hasattr(door, name)
    modules = {module.name for module in iter_modules(door.__path__)}
    assert not modules & set(listed), "the module, once imported, would hide the name"
    public = {
        n for n, v in vars(door).items() if not n.startswith("_") and not isinstance(v, ModuleType)
    }
    lazy = {"TYPE_CHECKING", "Any", "import_module"}
    assert public - lazy <= set(listed)
