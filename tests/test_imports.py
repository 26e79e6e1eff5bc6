"""Start-up stays light: heavy packages are imported only where they are used."""

import pytest

from tests.commands import python


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import lesionseg", {"torch", "monai", "numpy", "SimpleITK", "hydra"}),
        ("import lesionseg.cli", {"torch", "monai", "SimpleITK", "hydra", "pytorch_lightning"}),
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
    assert "sys" in done.stdout.split()
    assert not set(done.stdout.split()) & heavy
