"""Boxes in tables: MONAI's detection datalists, and those that nnDetection and LUNA16 imply."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lesionseg.core import Geometry, Reference, Volume
from lesionseg.errors import ContentError, DatasetError
from lesionseg.io.cases import read_case
from lesionseg.io.layouts.conventions import read_dataset
from lesionseg.io.layouts.datalist import BoxSpace, TableBoxes
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


def written(grid: Geometry, mode: str, space: BoxSpace) -> list[float]:
    """`BOX` as a datalist would write it, computed the long way round."""
    start, stop = np.array(BOX[:3]), np.array(BOX[3:])
    if space == "voxel":
        low, high = start[::-1], stop[::-1]
    else:
        ends = grid.to_mm([start - 0.5, stop - 0.5])
        ends = ends * (-1, -1, 1) if space == "LPS" else ends
        low, high = ends.min(axis=0), ends.max(axis=0)
    pairs = {
        "xyzxyz": [*low, *high],
        "xxyyzz": np.stack([low, high], axis=1).ravel(),
        "xyzwhd": [*low, *(high - low)],
        "cccwhd": [*((low + high) / 2), *(high - low)],
    }
    return [float(v) for v in pairs[mode]]


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


@pytest.mark.parametrize("space", ["LPS", "RAS", "voxel"])
@pytest.mark.parametrize("mode", ["xyzxyz", "xxyyzz", "xyzwhd", "cccwhd"])
def test_a_box_comes_back_whatever_way_it_is_written(
    tmp_path: Path, grid: Geometry, mode: str, space: BoxSpace
) -> None:
    entry = {"box": [written(grid, mode, space)], "label": [0]}
    reference = reference_of(datalist(tmp_path, grid, entry, box_mode=mode, box_space=space))
    assert reference.boxes is not None
    np.testing.assert_allclose(reference.boxes, [BOX], atol=1e-4)
    assert reference.box_labels == (1,)
    assert reference.labels is None


def test_unsaid_boxes_are_taken_as_monai_writes_them(
    tmp_path: Path, grid: Geometry, caplog: pytest.LogCaptureFixture
) -> None:
    entry = {"box": [written(grid, "cccwhd", "LPS")] * 2, "label": [0, 1]}
    reference = reference_of(datalist(tmp_path, grid, entry))
    assert reference.boxes is not None
    np.testing.assert_allclose(reference.boxes, [BOX, BOX], atol=1e-4)
    assert reference.box_labels == (1, 2)
    assert "cccwhd in LPS" in caplog.text
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
    with pytest.raises(ContentError, match=r"outside its image.*box_space"):
        reference_of(tmp_path)


@pytest.mark.parametrize(
    ("entry", "facts", "match"),
    [
        ({"box": [[1, 2, 3]], "label": [0]}, {}, "cannot be read"),
        ({"box": [[1, 2, 3, 4, 5, 6]], "label": []}, {}, "cannot be read"),
        ({"box": [[1, 2, 3, 4, 5, 6]], "label": [-1]}, {}, "cannot be read"),
        ({"box": [[1, 2, 3, 4, 5, 6]], "label": [10**9]}, {}, "cannot be read"),
        ({"box": [[1, 2, 3, 4, 5, 6]], "label": [0]}, {"box_mode": "xyxy"}, "not known"),
        ({"box": [[1, 2, 3, 4, 5, 6]], "label": [0]}, {"box_space": "ras"}, "not known"),
    ],
)
def test_unclear_boxes_are_refused(
    tmp_path: Path, grid: Geometry, entry: dict[str, Any], facts: dict[str, Any], match: str
) -> None:
    with pytest.raises((ContentError, DatasetError), match=match):
        read_dataset(datalist(tmp_path, grid, entry, **facts))


def test_table_boxes_are_plain_values() -> None:
    assert hash(TableBoxes(((1.0, 2.0),), (1,), "xy", "voxel"))
