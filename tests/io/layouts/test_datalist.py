"""Boxes in MONAI's detection datalists."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lesionseg.core import Geometry, Reference, Volume
from lesionseg.errors import ContentError, DatasetError
from lesionseg.io.cases import read_case
from lesionseg.io.layouts.conventions import read_dataset
from lesionseg.io.volumes import write_volume

# starts and stops in array order (z, y, x), half-open
BOX = (2.0, 3.0, 4.0, 5.0, 5.0, 10.0)


@pytest.fixture
def grid() -> Geometry:
    """Axes along -S, +P, +L (as in the array), three spacings, off the origin."""
    affine = np.eye(4)
    affine[:3, :3] = np.fliplr(np.diag([-0.5, -0.8, -2.0]))
    affine[:3, 3] = (30, -20, 50)
    return Geometry((8, 10, 12), affine)


def written(grid: Geometry) -> list[float]:
    """`BOX` as MONAI's tutorial writes it, centre and size in LPS, computed the long way round."""
    start, stop = np.array(BOX[:3]), np.array(BOX[3:])
    ends = grid.to_mm([start - 0.5, stop - 0.5]) * (-1, -1, 1)
    low, high = ends.min(axis=0), ends.max(axis=0)
    return [float(v) for v in (*((low + high) / 2), *(high - low))]


def datalist(root: Path, grid: Geometry, entry: dict[str, Any], **facts: Any) -> Path:
    write_volume(root / "a.nii.gz", Volume(np.ones((1, *grid.shape), np.int16), grid))
    entries = [{"image": "a.nii.gz", **entry}]
    (root / "datalist.json").write_text(json.dumps({"training": entries, **facts}))
    return root


def reference_of(root: Path) -> Reference:
    dataset = read_dataset(root)
    reference = read_case(dataset.cases[0], dataset).reference
    assert reference is not None
    return reference


def test_boxes_are_centres_and_sizes_in_lps(tmp_path: Path, grid: Geometry) -> None:
    entry = {"box": [written(grid)] * 2, "label": [0, 1]}
    reference = reference_of(datalist(tmp_path, grid, entry))
    assert reference.boxes is not None
    np.testing.assert_allclose(reference.boxes, [BOX, BOX], atol=1e-4)
    assert reference.box_labels == (1, 2)
    assert reference.labels is None
    assert read_dataset(tmp_path).labels == {1: "class 1", 2: "class 2"}
    (tmp_path / "labels.json").write_text('{"1": "nodule", "2": "mass"}')
    assert read_dataset(tmp_path).labels == {1: "nodule", 2: "mass"}


def test_a_case_without_boxes_is_lesion_free(tmp_path: Path, grid: Geometry) -> None:
    reference = reference_of(datalist(tmp_path, grid, {"box": [], "label": []}))
    assert reference.labels is not None
    assert not reference.labels.any()


def test_boxes_on_a_picture_are_pixels(tmp_path: Path) -> None:
    flat = Geometry.from_spacing((6, 9), (1, 1))
    write_volume(tmp_path / "a.png", Volume(np.zeros((1, 6, 9), np.uint8), flat))
    content = {"training": [{"image": "a.png", "box": [[1, 2, 5, 4]], "label": [0]}]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    reference = reference_of(tmp_path)
    assert reference.boxes is not None
    assert reference.boxes.tolist() == [[2, 1, 4, 5]]


def test_a_box_beside_its_image_is_refused(tmp_path: Path, grid: Geometry) -> None:
    datalist(tmp_path, grid, {"box": [[900, 0, 0, 5, 5, 5]], "label": [0]})
    with pytest.raises(ContentError, match=r"outside its image"):
        reference_of(tmp_path)


@pytest.mark.parametrize(
    ("entry", "facts"),
    [
        ({"box": [[1, 2, 3]], "label": [0]}, {}),
        ({"box": [[1, 2, 3, 4, 5, 6]], "label": []}, {}),
        ({"box": [[1, 2, 3, 4, 5, 6]], "label": [-1]}, {}),
        ({"box": [[1, 2, 3, 4, 5, 6]], "label": [10**9]}, {}),
        ({"box": [[1, 2, 3, 4, 5, 6]], "label": [0]}, {"box_mode": "xyxy"}),
    ],
)
def test_unclear_boxes_are_refused(
    tmp_path: Path, grid: Geometry, entry: dict[str, Any], facts: dict[str, Any]
) -> None:
    with pytest.raises(DatasetError, match=r"needs a mask|box|label"):
        read_dataset(datalist(tmp_path, grid, entry, **facts))
