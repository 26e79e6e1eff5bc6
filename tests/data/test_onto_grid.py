import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lesionseg.core import Geometry, Volume
from lesionseg.data.onto_grid import copy_float32, read_linear, turned
from lesionseg.ops.resample import resample_linear


def _volume(rng: np.random.Generator) -> Volume:
    affine = np.array([[0.1, 0, -0.7, 9], [0, -1.1, 0.1, -4], [2, 0, 0.1, 3], [0, 0, 0, 1]])
    return Volume(
        rng.normal(size=(2, 21, 14, 17)).astype(np.float32), Geometry((21, 14, 17), affine)
    )


def test_turning_is_a_view_whose_voxels_stay_where_they_are(rng: np.random.Generator) -> None:
    volume = _volume(rng)
    view = turned(volume)
    assert np.shares_memory(view.array, volume.array)
    there = view.geometry.affine[:3, :3]
    assert (np.diag(there[::-1]) > 0).all()  # z, y, x run along +S, +A, +R
    index = np.array([[3, 5, 2]])
    found = np.rint(view.geometry.to_index(volume.geometry.to_mm(index))).astype(int)
    assert view.array[(0, *found[0])] == volume.array[0, 3, 5, 2]


@pytest.mark.parametrize("ratio", [0.7, 2.0, 3.7, 5.0])
def test_slabs_of_a_coarser_grid_are_what_one_reading_gives(
    rng: np.random.Generator, ratio: float
) -> None:
    """Axes that do not mix, and more rows than one slab has."""
    array = rng.random((1, 100, 6)).astype(np.float32)
    step = np.diag([ratio, 1.0, 1.0])
    step[0, -1] = ratio / 2 - 0.5
    shape = (int(100 / ratio), 6)
    found = read_linear(Volume(array, Geometry((100, 6), np.eye(3))), Geometry(shape, step)).array
    expected = resample_linear(torch.from_numpy(array), step, shape, average=True).numpy()
    np.testing.assert_allclose(found[:, 1:-1], expected[:, 1:-1], atol=1e-5)


def test_slabs_together_are_what_one_reading_gives(rng: np.random.Generator) -> None:
    volume = _volume(rng)
    # half as many voxels along the first axis, turned a little against the second
    step = np.array([[2, 0.2, 0, 0.3], [-0.1, 1, 0, 1], [0, 0, 1.3, 0.2], [0, 0, 0, 1]])
    geometry = Geometry((9, 11, 12), volume.geometry.affine @ step)
    found = read_linear(volume, geometry).array
    whole = torch.from_numpy(volume.array)
    expected = resample_linear(whole, step, geometry.shape, average=True).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_beyond_its_edge_an_image_goes_on(rng: np.random.Generator) -> None:
    volume = Volume(rng.random((1, 4, 5)).astype(np.float32), Geometry((4, 5), np.eye(3)))
    wider = Geometry((8, 9), np.array([[1, 0, -2], [0, 1, -2], [0, 0, 1.0]]))
    found = read_linear(volume, wider).array
    np.testing.assert_array_equal(found[0], np.pad(volume.array[0], 2, mode="edge"))


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_copy_is_spared_only_on_leave(rng: np.random.Generator, overwrite: bool) -> None:
    volume = Volume(rng.random((1, 4, 5)).astype(np.float32), Geometry((4, 5), np.eye(3)))
    found = copy_float32(volume, overwrite=overwrite)
    assert np.shares_memory(found.array, volume.array) == overwrite
    flipped = Volume(volume.array[:, ::-1], volume.geometry)
    assert not np.shares_memory(copy_float32(flipped, overwrite=overwrite).array, volume.array)


def test_importing_monai_holds_no_volume(repository: Path) -> None:
    # MONAI keeps a traceback of each package it misses, frames and their volumes with it
    program = (
        "import weakref; import numpy as np; from lesionseg.core import Geometry, Volume\n"
        "from lesionseg.data.onto_grid import turned\n"
        "def first():\n"
        "    grid = Geometry.from_spacing((4, 5, 6), (1, 1, 1))\n"
        "    volume = Volume(np.zeros((1, 4, 5, 6), np.float32), grid)\n"
        "    turned(volume)\n"
        "    return weakref.ref(volume)\n"
        "print(first()())\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
