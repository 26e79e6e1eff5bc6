"""Which changes of one expression do the tests notice?

`python benchmarks/robustness/mutants.py --output runs/mutants.csv` draws equally many mutants of
each package at random (the seed is an argument). A mutant is a module with one changed expression.
It exists in memory only, in a child process that then runs the quick tests of the package until one
fails. With `--wider`, mutants that survived in the table of `--output` are run against the tests of
all packages that use them. `--only ROW [ROW …]` runs single rows of the table again.

A mutant is caught if a test fails or if the tests need ten times as long as without a mutant.
"""

import argparse
import ast
import csv
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType

# The heavy packages are imported once, before the children are forked. lesionseg is not.
import matplotlib.pyplot  # noqa: F401
import monai.networks  # noqa: F401
import nibabel  # noqa: F401
import numba
import pandas  # noqa: F401
import pytest
import scipy.stats  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("core", "evaluation", "losses", "ops")
# tests outside the package's own ones, the most likely to notice first
WIDER = ("golden", "inference", "io", "plan", "data", "training", "models", "reporting", "pipeline")
COMPARED = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
LOGICAL = {ast.And: ast.Or, ast.Or: ast.And}


@dataclass(frozen=True)
class Mutant:
    """A changed expression of a module and what the tests say.

    Attributes:
        module: The name of the module.
        node: The position of the changed node in a walk over the module's syntax tree.
        line: The line of the node.
        kind: The kind of change.
        before: The source of the changed expression.
        failed: The first test that failed; empty if none did.
    """

    module: str
    node: int
    line: int
    kind: str
    before: str
    failed: str = ""


def main() -> None:
    """Run the mutants, or those that survived earlier, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="table of the mutants (CSV)")
    parser.add_argument("--each", type=int, default=80, help="mutants per package")
    parser.add_argument("--seed", type=int, default=103)
    parser.add_argument("--wider", action="store_true", help="run survivors against more tests")
    parser.add_argument("--only", type=int, nargs="+", help="rows to run again, from 1")
    args = parser.parse_args()
    os.chdir(ROOT)
    if args.output.exists():
        mutants = _read(args.output)
    else:
        mutants = [m for package in PACKAGES for m in _draw(package, args.each, args.seed)]
        args.output.parent.mkdir(parents=True, exist_ok=True)
    limits = {package: _seconds_without_mutant(package) for package in PACKAGES}
    for row, mutant in enumerate(mutants):
        package = mutant.module.split(".")[1]
        is_asked = args.only is None or row + 1 in args.only
        if not is_asked or (mutant.failed not in ("", "not run") and args.only is None):
            continue
        if args.only is None and args.wider != (mutant.failed == ""):
            continue
        tests = _tests(package) if not args.wider else [f"tests/{name}" for name in WIDER]
        failed = _run(mutant, tests, 10 * limits[package] if not args.wider else 3600)
        mutants[row] = replace(mutant, failed=failed)
        print(row + 1, mutant.module, mutant.line, mutant.kind, failed or "SURVIVED", flush=True)
        _write(args.output, mutants)
    _print_shares(mutants)


def _draw(package: str, number: int, seed: int) -> list[Mutant]:
    """Draw mutants of a package at random, each possible change with the same chance."""
    found = []
    for path in sorted(Path("lesionseg", package).rglob("*.py")):
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        found += list(_find_changes(module, path.read_text()))
    drawn = random.Random(f"{seed} {package}").sample(found, number)
    return sorted(drawn, key=lambda mutant: (mutant.module, mutant.line, mutant.node))


def _find_changes(module: str, source: str) -> Iterator[Mutant]:
    """Yield all possible mutants of a module. Annotations and texts are not changed."""
    tree = ast.parse(source)
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if annotation is not None
        for inner in ast.walk(annotation)
    }
    for position, node in enumerate(ast.walk(tree)):
        if id(node) in skipped or not isinstance(node, ast.expr | ast.stmt):
            continue
        for kind in _kinds(node):
            before = ast.unparse(node.test if isinstance(node, ast.If) else node)
            yield Mutant(module, position, node.lineno, kind, before, "not run")


def _kinds(node: ast.AST) -> tuple[str, ...]:
    """Return the kinds of change that a node permits."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED:
        return ("comparison",)
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        return ("arithmetic",)
    if isinstance(node, ast.BoolOp):
        return ("and/or",)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ("not removed",)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return ("number + 1",)
    if isinstance(node, ast.If):
        return ("if False", "if True")
    return ()


def _change(mutant: Mutant) -> CodeType:
    """Compile the module with the change."""
    path = _path(mutant.module)
    tree = ast.parse(path.read_text())
    node = list(ast.walk(tree))[mutant.node]
    match mutant.kind, node:
        case "comparison", ast.Compare():
            node.ops[0] = COMPARED[type(node.ops[0])]()
        case "arithmetic", ast.BinOp():
            node.op = ARITHMETIC[type(node.op)]()
        case "and/or", ast.BoolOp():
            node.op = LOGICAL[type(node.op)]()
        case "not removed", ast.UnaryOp():
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
        case "number + 1", ast.Constant():
            node.value += 1  # type: ignore[operator]
        case (("if False" | "if True"), ast.If()):
            node.test = ast.Constant(mutant.kind == "if True")
        case _:
            raise SystemExit(f"{mutant.module} has changed since the mutants were drawn.")
    ast.fix_missing_locations(tree)
    return compile(tree, str(path), "exec")


class _MutantLoader(Loader):
    """A finder and loader that imports one module from changed code."""

    def __init__(self, module: str, code: CodeType) -> None:
        self._module = module
        self._code = code

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the changed module's specification, or None for another module."""
        if name != self._module:
            return None
        return importlib.util.spec_from_file_location(name, _path(name), loader=self)

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave the creation of the module to Python."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed code."""
        exec(self._code, module.__dict__)


class _FirstFailure:
    """A plug-in of pytest that keeps the name of the first failed test."""

    failed = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the name of a failed test."""
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep the name of a file that cannot be imported."""
        if report.failed and not self.failed:
            self.failed = report.nodeid or "collection"


def _run(mutant: Mutant | None, tests: Sequence[str], seconds: float) -> str:
    """Run tests in a child process. Return the first that fails, or an empty text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            if mutant is not None:
                sys.meta_path.insert(0, _MutantLoader(mutant.module, _change(mutant)))
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            signal.setitimer(signal.ITIMER_PROF, seconds)  # of the processor
            seen = _FirstFailure()
            with tempfile.TemporaryDirectory() as folder:
                numba.config.CACHE_DIR = f"{folder}/numba"  # not the code without the change
                options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
                status = pytest.main([*options, f"--basetemp={folder}/t", *tests], plugins=[seen])
            failed = seen.failed or ("" if status in (0, 5) else f"status {status}")
            os.write(writing, json.dumps(failed).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return str(json.loads(text)) if text else "killed or too slow"


def _seconds_without_mutant(package: str) -> float:
    """Return the seconds of the package's tests, which must pass."""
    start = time.perf_counter()
    failed = _run(None, _tests(package), 3600)
    if failed:
        raise SystemExit(f"{failed} fails without a mutant.")
    return time.perf_counter() - start


def _tests(package: str) -> list[str]:
    """Return the folders of a package's own tests and doctests."""
    return [f"tests/{package}", f"lesionseg/{package}"]


def _path(module: str) -> Path:
    """Return the file of a module."""
    path = Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _read(path: Path) -> list[Mutant]:
    """Read the table of mutants."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        Mutant(**{**row, "node": int(row["node"]), "line": int(row["line"])})  # type: ignore[arg-type]
        for row in rows
    ]


def _write(path: Path, mutants: Sequence[Mutant]) -> None:
    """Write the table of mutants."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(Mutant.__dataclass_fields__))
        table.writeheader()
        table.writerows(asdict(mutant) for mutant in mutants)


def _print_shares(mutants: Sequence[Mutant]) -> None:
    """Print how many mutants of each package were caught."""
    for package in PACKAGES:
        own = [m for m in mutants if m.module.startswith(f"lesionseg.{package}")]
        caught = sum(m.failed not in ("", "not run") for m in own)
        print(f"{package:12} {caught} of {len(own)} mutants caught")


if __name__ == "__main__":
    main()
