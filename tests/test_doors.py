"""A package's `__init__` is its door: it lists the public names and imports them when used."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

import lesionseg

ROOT = Path(lesionseg.__file__).parent
# its `__init__` contains code
WITH_CODE = {"lesionseg.cli"}


def find_doors():
    """Return the name of each package that lists public names, with the tree of its `__init__`."""
    doors = {}
    for path in sorted(ROOT.rglob("__init__.py")):
        name = ".".join(path.parent.relative_to(ROOT.parent).parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        statements = tree.body[1:]  # without the docstring
        if statements and name not in WITH_CODE:
            doors[name] = statements
    return doors


DOORS = find_doors()


def typed_homes(statements):
    """Return the module of each name that is imported for type checkers."""
    (block,) = [node for node in statements if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    homes = {}
    for node in block.body:
        for alias in node.names:
            assert alias.asname == alias.name  # mypy's form of a public name
            homes[alias.name] = node.module
    return homes


@pytest.mark.parametrize("name", DOORS)
def test_lists_of_a_door_agree_and_each_name_is_from_its_own_package(name):
    door = import_module(name)
    homes = {public: f"{name}.{module}" for public, module in door._HOMES.items()}
    assert typed_homes(DOORS[name]) == homes
    # a module that is imported becomes an attribute of its package, and would hide such a name
    assert not {*homes} & {module.rpartition(".")[2] for module in homes.values()}
    assert {*door.__all__} - {"__version__"} == {*homes} == {*dir(door)} - {"__version__"}
    for public, module in homes.items():
        assert getattr(door, public) is getattr(import_module(module), public)


@pytest.mark.parametrize("name", DOORS)
def test_door_imports_nothing_but_its_lists(name):
    imported = {node.module for node in DOORS[name] if isinstance(node, ast.ImportFrom)}
    assert imported <= {"typing", "lesionseg.lazy", "lesionseg.version"}
    assert not any(isinstance(node, ast.Import) for node in DOORS[name])


def test_unknown_name_of_a_door_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'lesionseg\.evaluation' has no attribute 'scorer'"):
        _ = import_module("lesionseg.evaluation").scorer
