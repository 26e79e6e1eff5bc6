"""Fixtures that write small volumes and dataset folders."""

import json
from functools import partial

import nibabel
import numpy as np
import pytest

from tests.io.dicom_files import grid_of, write_series


@pytest.fixture
def oblique():
    """Return an asymmetric grid, rotated about two axes, with three different spacings."""
    return grid_of("SAR", (3.3, 1.1, 0.7), (20, 0, -35), (3, 4, 5))


@pytest.fixture
def grid():
    """Return an oblique grid with three spacings, whose axis 0 is the normal of the slices."""
    return grid_of("SAR", angles=(20, 0, -35))


@pytest.fixture
def write_nifti():
    """Write an array (x, y, z) by nibabel, with the identity as affine unless one is given."""

    def write(path, array, affine=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
        return path

    return write


@pytest.fixture
def nnunet_folder(tmp_path, write_nifti):
    """Write an nnU-Net raw folder. `facts` are added to dataset.json or replace its keys."""

    def write(cases=("A", "B"), channels=2, **facts):
        root = tmp_path / "Dataset001_toy"
        root.mkdir(exist_ok=True)
        mask = np.zeros((5, 4, 3), np.uint8)
        mask[1, 2, 0] = 1
        for case in cases:
            write_nifti(root / "labelsTr" / f"{case}.nii.gz", mask)
            for channel in range(channels):
                image = np.full(mask.shape, channel, np.int16)
                write_nifti(root / "imagesTr" / f"{case}_{channel:04d}.nii.gz", image)
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
def series(tmp_path, grid):
    """Write a CT series in shuffled file order. `changes` replace elements of single slices."""
    return partial(write_series, tmp_path, grid)
