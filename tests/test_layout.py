"""The layout: folders read at a glance, each name once, imports without circles."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "lesionseg"
MODULES = sorted(LIBRARY.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
FOLDERS = sorted({path.parent for path in MODULES})
BENCHMARKS = sorted({path.parent for path in (ROOT / "benchmarks").rglob("*.py")})
MOST_ENTRIES = 15
MOST_REPEATED_STEMS = 5
# names say what a thing is, not what became of it
RETIRED_NAMES = {"said", "told", "wishes", "seer", "lesson"}


def dotted(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


@pytest.mark.parametrize("folder", [*FOLDERS, *BENCHMARKS], ids=dotted)
def test_a_folder_shows_at_most_fifteen_entries(folder: Path) -> None:
    entries = {
        path.name
        for path in folder.iterdir()
        if path.name not in ("__init__.py", "__main__.py", "__pycache__", "py.typed")
        and (path.is_dir() or path.suffix == ".py")
    }
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


@pytest.mark.parametrize("folder", FOLDERS, ids=dotted)
def test_a_package_says_what_it_does(folder: Path) -> None:
    said = ast.get_docstring(TREES[folder / "__init__.py"])
    assert said, f"{folder / '__init__.py'} has no docstring"
    assert "to be described" not in said.lower()


def parameters(function: ast.FunctionDef) -> list[str]:
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def public_functions(tree: ast.Module | ast.ClassDef) -> Iterator[tuple[ast.FunctionDef, str]]:
    """Functions and methods with their docstrings; of a constructor that of its class."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node)
        if isinstance(node, ast.FunctionDef):
            if node.name == "__init__":
                yield node, ast.get_docstring(tree) or ""
            elif not node.name.startswith("_"):
                yield node, ast.get_docstring(node) or ""


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_more_than_six_parameters_are_listed_one_per_line(path: Path) -> None:
    for function, said in public_functions(TREES[path]):
        names = parameters(function)
        listed = re.findall(r"^ {4}(\w+): \S", said.partition("Args:\n")[2], re.MULTILINE)
        if len(names) > 6:
            assert [name for name in listed if name in names] == names, function.name


def test_file_names_stand_once() -> None:
    stems = Counter(path.stem for path in MODULES if path.stem not in ("__init__", "recipe"))
    repeated = sorted(stem for stem, n in stems.items() if n > 1)
    assert len(repeated) <= MOST_REPEATED_STEMS, repeated


def test_public_class_names_stand_once() -> None:
    classes = Counter(
        node.name
        for tree in TREES.values()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert sorted(name for name, n in classes.items() if n > 1) == []


def test_things_have_names_of_things() -> None:
    retired = {}
    for path, tree in TREES.items():
        nodes = list(ast.walk(tree))
        names = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        names |= {n.arg for n in nodes if isinstance(n, ast.arg)}
        if names & RETIRED_NAMES:
            retired[dotted(path)] = names & RETIRED_NAMES
    assert retired == {}


def test_imports_make_no_circle() -> None:
    """Of imports at the top of modules; packages' lists of public names are left out."""
    known = {dotted(path) for path in MODULES}
    graph = {
        dotted(path): set(imported(tree, known)) - {dotted(path)}
        for path, tree in TREES.items()
        if path.name != "__init__.py"
    }
    inner = {name: {other for other in others if other in graph} for name, others in graph.items()}
    try:
        TopologicalSorter(inner).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("folder", FOLDERS, ids=dotted)
def test_what_lies_in_a_folder_has_an_order(folder: Path) -> None:
    """Its files and folders import each other one way only; lists of public names are left out."""
    package, known = dotted(folder / "__init__.py"), {dotted(path) for path in MODULES}

    def child(module: str) -> str:
        return module.removeprefix(f"{package}.").partition(".")[0]

    graph: dict[str, set[str]] = {}
    for path in MODULES:
        if folder in path.parents and path != folder / "__init__.py":
            inside = (m for m in imported(TREES[path], known) if m.startswith(f"{package}."))
            own = child(dotted(path))
            graph.setdefault(own, set()).update({child(m) for m in inside} - {own})
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def imported(tree: ast.Module, known: set[str]) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in known)


def test_tests_mirror_the_library() -> None:
    """A test file lies in the folder of what it tests: no folder of tests without its package."""
    others = {"benchmarks", "docs", "flow", "gold", "examples", "hostile", "simulated_gpu"}
    files = (ROOT / "tests").glob("*/**/test_*.py")
    folders = {path.parent.relative_to(ROOT / "tests") for path in files}
    strays = [
        str(folder)
        for folder in sorted(folders)
        if folder.parts[0] not in others and not (LIBRARY / folder).is_dir()
    ]
    assert strays == []
