"""The data of the page that shows a scan."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from lesionseg.core import Candidate, Geometry, Prediction
from lesionseg.reporting.images import Scene
from lesionseg.reporting.pictures import SLICE_SIDE
from lesionseg.reporting.viewer import viewer_data

PLACE = (4, 5, 6)  # of the only voxel of the candidate


def predict_voxel(grid):
    instances = np.zeros(grid.shape, np.int32)
    instances[PLACE[-grid.dims :]] = 1
    centre = (grid.affine @ [*PLACE[-grid.dims :], 1.0])[: grid.dims]
    start = tuple(map(float, PLACE[-grid.dims :]))
    stop = tuple(index + 1 for index in start)
    candidate = Candidate(1, 1, 0.9, start, stop, tuple(centre), diameter_mm=1.0, volume_ml=None)
    return Prediction("case", grid, (candidate,), instances)


def find_outlined(uris):
    """Return the indices of the slices in which something is not grey."""
    pictures = [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in uris]
    colours = [np.asarray(picture).astype(int) for picture in pictures]
    return [i for i, rgb in enumerate(colours) if (rgb.max(axis=2) - rgb.min(axis=2)).max() > 60]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1)])
def test_slice_of_a_candidate_is_the_one_with_its_outline(order, signs):
    affine = np.eye(4)
    affine[:3, :3] = np.diag(signs)[:, list(order)] * 1.5
    grid = Geometry((12, 14, 16), affine)
    scene = Scene(
        np.arange(12 * 14 * 16.0).reshape(grid.shape), grid, prediction=predict_voxel(grid)
    )
    data = viewer_data(scene, with_slices=True)
    assert len(data["slices"]) == grid.shape[order.index(2)]
    assert find_outlined(data["slices"]) == [data["candidates"][0]["slice"]]


def test_image_is_one_slice_with_square_pixels():
    grid = Geometry.from_spacing((12, 14), (2.0, 1.0))
    scene = Scene(np.arange(12 * 14.0).reshape(grid.shape), grid, prediction=predict_voxel(grid))
    data = viewer_data(scene, with_slices=True)
    (uri,) = data["slices"]
    width, height = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size
    assert (width, height) == (299, SLICE_SIDE)  # 14 by 24 mm
    assert data["candidates"][0]["slice"] == 0
    assert find_outlined(data["slices"]) == [0]
