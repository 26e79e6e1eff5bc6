"""Importing the package loads no library of a file format; reading one format loads no other's."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

FORMATS = ("nibabel", "SimpleITK", "PIL", "tifffile", "pycocotools", "torch")


def _loaded(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint(*[m for m in {FORMATS} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_a_nifti_file_loads_nibabel_alone(tmp_path: Path, write_nifti: Callable[..., Path]) -> None:
    assert _loaded("import lesionseg.io") == set()
    path = write_nifti(tmp_path / "a.nii.gz", np.zeros((2, 2, 2), np.uint8))
    code = "from pathlib import Path; from lesionseg.io import read_volume"
    code += f"; read_volume(Path({str(path)!r}))"
    assert _loaded(code) - {"PIL"} == {"nibabel"}  # PIL comes with pydicom, which nibabel tries
