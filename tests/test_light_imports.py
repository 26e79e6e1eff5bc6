"""Importing lesionseg stays fast, because heavy packages are imported only if they are needed."""

import json

import pytest

from tests.commands import python

# The statements of one process are executed in order. Each one must load none of its packages, and
# none of the statements before it may have loaded them.
LIGHT = {
    "import lesionseg": {"torch", "monai", "numpy", "SimpleITK", "hydra"},
    "from lesionseg.cli import run; run('train', ['--help'])": {
        *("torch", "monai", "SimpleITK", "hydra", "pytorch_lightning", "numba")
    },
    "import lesionseg.io": {"SimpleITK", "nibabel", "PIL", "tifffile", "pycocotools", "torch"},
    "from lesionseg.data import TileGrid": {"torch", "monai"},
    "import lesionseg.ops.components": {"torch"},
}
WITH_TORCH = {
    "import lesionseg.losses": {"numba", "pytorch_lightning", "monai"},
    "import lesionseg.evaluation": {"monai", "pytorch_lightning", "SimpleITK"},
    "import lesionseg.inference.predictor": {"SimpleITK", "pytorch_lightning", "hydra"},
}
PROGRAM = """
import json, sys
loaded = {}
for statement in json.loads(sys.argv[1]):
    exec(statement)
    loaded[statement] = [*sys.modules]
print(json.dumps(loaded))
"""


@pytest.fixture(scope="module")
def loaded():
    """Return the modules that a process has loaded after each statement."""
    found = {}
    for statements in (LIGHT, WITH_TORCH):
        done = python("-c", PROGRAM, json.dumps([*statements]))
        assert done.returncode == 0, done.stderr
        found |= json.loads(done.stdout.splitlines()[-1])
    return {statement: set(modules) for statement, modules in found.items()}


@pytest.mark.parametrize(("statement", "heavy"), [*LIGHT.items(), *WITH_TORCH.items()])
def test_import_stays_light(loaded, statement, heavy):
    assert "sys" in loaded[statement]
    assert not loaded[statement] & heavy
