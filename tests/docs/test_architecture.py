"""The page on the architecture is true, and no modules import each other in a circle."""

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lesionseg"
NAMED_IN = re.compile(r"^ +([\w.]+) +([\w/]+\.py)", re.MULTILINE)


@cache
def parse_modules():
    """Parse every module of the library. Return the trees by dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def find_imports(tree):
    """Yield the dotted names that a module imports, at its top or within a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def make_import_graph():
    """Return the modules that each module of the library imports.

    The package itself is left out, because it imports a public name when it is first used.
    """
    trees = parse_modules()
    graph = {}
    for name, tree in trees.items():
        # the name of `from package import name` is a module, or is defined in one
        found = {t if t in trees else t.rpartition(".")[0] for t in find_imports(tree)}
        graph[name] = (found & trees.keys()) - {name, "lesionseg"}
    return graph


def test_no_modules_import_each_other_in_a_circle():
    graph = make_import_graph()
    assert "lesionseg.inference.bundle" in graph["lesionseg.reporting.identity"]  # in a function
    TopologicalSorter(graph).prepare()  # its error names the circle


def test_functions_of_the_pipeline_have_at_most_six_parameters():
    many = []
    for name, tree in parse_modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and name.startswith("lesionseg.pipeline"):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if len([one for one in given if one.arg not in ("self", "cls")]) > 6:
                    many.append(f"{name}.{node.name}")
    assert many == []


def test_every_function_that_the_page_names_is_in_the_named_file():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = NAMED_IN.findall(page)
    assert len(named) > 40
    for name, file in named:
        tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
        nodes = tree.body
        for part in name.split("."):
            kinds = ast.FunctionDef | ast.ClassDef
            found = [node for node in nodes if isinstance(node, kinds) and node.name == part]
            assert found, f"{name} is not in {file}"
            nodes = found[0].body
