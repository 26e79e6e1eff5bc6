"""Start-up stays light: heavy packages are imported only where they are used."""

import subprocess
import sys

import pytest


def _imported_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


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
        ("import lesionseg.losses", {"numba", "pytorch_lightning", "monai"}),
        ("import lesionseg.inference.predictor", {"SimpleITK", "pytorch_lightning", "hydra"}),
        ("import lesionseg.evaluation", {"monai", "pytorch_lightning", "SimpleITK"}),
    ],
)
def test_import_stays_light(statement: str, heavy: set[str]) -> None:
    assert not _imported_by(statement) & heavy
