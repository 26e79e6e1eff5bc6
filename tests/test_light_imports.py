"""Importing lesionseg stays fast, because heavy packages are imported only if they are needed."""

import pytest

from tests.commands import python


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import lesionseg", {"torch", "monai", "numpy", "SimpleITK", "hydra"}),
        (
            "from lesionseg.cli import run; run('train', ['--help'])",
            {"torch", "monai", "SimpleITK", "hydra", "pytorch_lightning", "numba"},
        ),
        (
            "import lesionseg.io",
            {"SimpleITK", "nibabel", "PIL", "tifffile", "pycocotools", "torch"},
        ),
        ("from lesionseg.data import TileGrid", {"torch", "monai"}),
        ("import lesionseg.ops.components", {"torch"}),
        ("import lesionseg.losses", {"numba", "pytorch_lightning", "monai"}),
        ("import lesionseg.inference.predictor", {"SimpleITK", "pytorch_lightning", "hydra"}),
        ("import lesionseg.evaluation", {"monai", "pytorch_lightning", "SimpleITK"}),
    ],
)
def test_import_stays_light(statement: str, heavy: set[str]) -> None:
    done = python("-c", f"import sys; {statement}; print(*sys.modules)")
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "sys" in loaded
    assert not loaded & heavy
