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


def view(grid):
    """Return the data of a scan with a candidate of one voxel."""
    place = PLACE[-grid.dims :]
    instances = np.zeros(grid.shape, np.int32)
    instances[place] = 1
    candidate = Candidate.from_voxels(1, 1, 0.9, np.array([place]), grid)
    prediction = Prediction("case", grid, (candidate,), instances)
    image = np.arange(float(instances.size)).reshape(grid.shape)
    return viewer_data(Scene(image, grid, prediction=prediction), with_slices=True)


def open_slice(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def find_outlined(uris):
    """Return the indices of the slices in which something is not grey."""
    colours = [np.asarray(open_slice(uri)).astype(int) for uri in uris]
    return [i for i, rgb in enumerate(colours) if np.ptp(rgb, axis=2).max() > 60]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1)])
def test_slice_of_a_candidate_is_the_one_with_its_outline(order, signs):
    affine = np.eye(4)
    affine[:3, :3] = np.diag(signs)[:, list(order)] * 1.5
    grid = Geometry((12, 14, 16), affine)
    data = view(grid)
    assert len(data["slices"]) == grid.shape[order.index(2)]
    assert find_outlined(data["slices"]) == [data["candidates"][0]["slice"]]


def test_image_is_one_slice_with_square_pixels():
    data = view(Geometry.from_spacing((12, 14), (2.0, 1.0)))
    (uri,) = data["slices"]
    assert open_slice(uri).size == (299, SLICE_SIDE)  # 14 by 24 mm
    assert data["candidates"][0]["slice"] == 0
    assert find_outlined(data["slices"]) == [0]
