"""docs/dependencies.md lists what pyproject.toml asks for, and the library imports each of it."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {
    name: v for name, v in PROJECT["optional-dependencies"].items() if name not in ("test", "docs")
}
PACKAGES = sorted(
    {
        re.split(r"[\[>=;]", line)[0]
        for line in [
            *PROJECT["dependencies"],
            *(line for lines in EXTRAS.values() for line in lines),
        ]
    }
)
MODULES = {
    "connected-components-3d": "cc3d",
    "hydra-core": "hydra",
    "hydra-submitit-launcher": "hydra_plugins.hydra_submitit_launcher",
    "pillow": "PIL",
    "pytorch-lightning": "pytorch_lightning",
}
# others import these; the library only names or needs them: s3fs is fsspec's way to S3,
# fastapi reads forms by python-multipart, torch exports by onnxscript, MONAI's transformers
# rearrange by einops
INDIRECT = {"einops", "s3fs", "python-multipart", "onnxscript"}


def named() -> set[str]:
    """Every module that a file of the library imports, and every text that may name one."""
    names = set[str]()
    for path in (ROOT / "lesionseg").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
    return names | {name.partition(".")[0] for name in names}


NAMED = named()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_dependency_is_listed_and_used(package: str) -> None:
    listed = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    assert re.search(rf"\b{re.escape(package)}\b", listed), f"{package} is not in the table"
    assert package in INDIRECT or MODULES.get(package, package) in NAMED
