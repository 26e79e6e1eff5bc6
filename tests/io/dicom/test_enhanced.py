"""Enhanced DICOM files: many frames in one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Geometry
from lesionseg.errors import ReadError
from lesionseg.io.volumes import read_volume
from tests.io.dicom_files import (
    enhanced,
    voxels,
)

Series = Callable[..., Path]


def test_enhanced_files_are_read_through_their_per_frame_groups(
    tmp_path: Path, grid: Geometry
) -> None:
    volume = read_volume(enhanced(tmp_path / "mr.dcm", grid))
    np.testing.assert_array_equal(volume.array[0], voxels() * np.arange(1, 6)[:, None, None])
    assert volume.geometry.distance_mm(grid) < 1e-6
    with pytest.raises(ReadError, match="different echo time"):
        read_volume(enhanced(tmp_path / "mixed.dcm", grid, echo=True))
