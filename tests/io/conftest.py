"""Small volumes and dataset folders, written with the formats' own libraries or by hand."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lesionseg.core import Geometry
from tests.io.dicom_files import write_series

TURN = Rotation.from_euler("xz", (20, -35), degrees=True).as_matrix()


def placed(shape: tuple[int, ...], axes: np.ndarray) -> Geometry:
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = (12.5, -40.25, 7.75)
    return Geometry(shape, affine)


@pytest.fixture
def oblique() -> Geometry:
    """An asymmetric grid, turned about two axes, with three different spacings."""
    return placed((3, 4, 5), TURN @ np.diag([0.7, 1.1, 3.3])[:, ::-1])


@pytest.fixture
def write_nifti() -> Callable[..., Path]:
    """Write a file array (x, y, z) by nibabel, identity affine unless one is given."""

    def write(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
        return path

    return write


@pytest.fixture
def nnunet_folder(tmp_path: Path, write_nifti: Callable[..., Path]) -> Callable[..., Path]:
    """Write an nnU-Net raw folder of two training cases of two channels; facts may be changed."""

    def write(cases: tuple[str, ...] = ("A", "B"), channels: int = 2, **facts: object) -> Path:
        root = tmp_path / "Dataset001_toy"
        for case in cases:
            for channel in range(channels):
                image = np.full((5, 4, 3), channel, np.int16)
                write_nifti(root / "imagesTr" / f"{case}_{channel:04d}.nii.gz", image)
            mask = np.zeros((5, 4, 3), np.uint8)
            mask[1, 2, 0] = 1
            write_nifti(root / "labelsTr" / f"{case}.nii.gz", mask)
        content = {
            "channel_names": {str(c): f"channel{c}" for c in range(channels)},
            "labels": {"background": 0, "lesion": 1},
            "numTraining": len(cases),
            "file_ending": ".nii.gz",
            **facts,
        }
        (root / "dataset.json").write_text(json.dumps(content))
        return root

    return write


@pytest.fixture
def grid() -> Geometry:
    """Oblique, three spacings, axis 0 along the right-handed normal of the slices."""
    normal = np.cross(TURN[:, 0], TURN[:, 1])
    return placed((5, 4, 6), np.stack([normal * 3.0, TURN[:, 1] * 0.75, TURN[:, 0] * 0.5], axis=1))


@pytest.fixture
def series(tmp_path: Path, grid: Geometry) -> Callable[..., Path]:
    """Write a CT series in shuffled file order; `changes` by slice replace elements."""

    def write(changes: Mapping[int, Mapping[str, Any]] | None = None, folder: str = "scan") -> Path:
        return write_series(tmp_path, grid, changes, folder)

    return write
