"""MONAI datalists of masks and of boxes."""

import json

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ContentError, DatasetError
from lesionseg.io.cases import read_case
from lesionseg.io.layouts import read_dataset
from lesionseg.io.volumes import write_volume
from tests.io.dicom_files import grid_of

# starts and stops in array order (z, y, x), half-open
BOX = (2.0, 3.0, 4.0, 5.0, 5.0, 10.0)


def test_a_datalist_gives_channels_folds_and_roles(tmp_path, write_nifti):
    names = [f"scans/{case}_{channel}.nii.gz" for case in "ab" for channel in ("t1", "t2")]
    for name in (*names, "masks/a.nii.gz", "masks/b.nii.gz"):
        write_nifti(tmp_path / name, np.ones((5, 4, 3), np.uint8))
    first = {"image": names[:2], "label": "masks/a.nii.gz", "fold": 0}
    second = {"image": names[2:], "label": "masks/b.nii.gz", "fold": 1}
    content = {"training": [first], "testing": [second]}
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    dataset = read_dataset(tmp_path)
    assert dataset.convention == "datalist"
    cases = [(c.case, c.role, c.fold) for c in dataset.cases]
    assert cases == [("a_t1", None, 0), ("b_t1", "test", 1)]
    case = read_case(dataset.cases[0], dataset)
    assert case.image.array.shape == (2, 3, 4, 5)
    (tmp_path / "masks" / "a.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"masks/a\.nii\.gz"):
        read_dataset(tmp_path)


GRID = grid_of("IPL", (2.0, 0.8, 0.5), shape=(8, 10, 12))


def written():
    """Return `BOX` as MONAI's tutorial writes it, centre and size in LPS, computed step by step."""
    ends = GRID.to_mm([np.array(BOX[:3]) - 0.5, np.array(BOX[3:]) - 0.5]) * (-1, -1, 1)
    low, high = ends.min(axis=0), ends.max(axis=0)
    return [*((low + high) / 2).tolist(), *(high - low).tolist()]


def datalist(root, entry, **facts):
    write_volume(root / "a.nii.gz", Volume(np.ones((1, *GRID.shape), np.int16), GRID))
    entries = [{"image": "a.nii.gz", **entry}]
    (root / "datalist.json").write_text(json.dumps({"training": entries, **facts}))
    return root


def reference_of(root):
    dataset = read_dataset(root)
    return read_case(dataset.cases[0], dataset).reference


def test_boxes_are_centres_and_sizes_in_lps(tmp_path):
    reference = reference_of(datalist(tmp_path, {"box": [written()] * 2, "label": [0, 1]}))
    np.testing.assert_allclose(reference.boxes, [BOX, BOX], atol=1e-4)
    assert reference.box_labels == (1, 2)
    assert reference.labels is None
    dataset = read_dataset(tmp_path)
    assert dataset.lesions_are_boxes
    assert dataset.labels.value_names == {1: "class 1", 2: "class 2"}
    (tmp_path / "labels.json").write_text('{"1": "nodule", "2": "mass"}')
    assert read_dataset(tmp_path).labels.value_names == {1: "nodule", 2: "mass"}
    lesion_free = reference_of(datalist(tmp_path, {"box": [], "label": []}))
    assert not lesion_free.labels.any()
    flat = Geometry.from_spacing((6, 9), (1, 1))  # boxes on a picture are pixels
    write_volume(tmp_path / "a.png", Volume(np.zeros((1, 6, 9), np.uint8), flat))
    content = {"training": [{"image": "a.png", "box": [[1, 2, 5, 4]], "label": [0]}]}
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    assert reference_of(tmp_path).boxes.tolist() == [[2, 1, 4, 5]]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        *(({"label": label}, DatasetError) for label in ([], "m.nii", [-1], [10**9])),
        ({"box": [[1, 2, 3]]}, DatasetError),
        ({"box": [[1, 2, 3, 4, 5]]}, ContentError),
        ({"box": [[900, 0, 0, 5, 5, 5]]}, ContentError),
    ],
)
def test_invalid_boxes_and_other_box_modes_are_an_error(tmp_path, change, error):
    datalist(tmp_path, {"box": [[1, 2, 3, 4, 5, 6]], "label": [0], **change})
    with pytest.raises(error):
        reference_of(tmp_path)
    datalist(tmp_path, {"box": [written()], "label": [0]}, box_mode="xyxy")
    with pytest.raises(DatasetError):
        reference_of(tmp_path)


def write_list(root, **lists):
    (root / "datalist.json").write_text(json.dumps(lists))
    return root


def test_equal_names_in_different_folders_are_different_cases(tmp_path, write_nifti):
    names = ("p1/t1.nii.gz", "p2/t1.nii.gz", "p3/t2_0000.nii.gz")
    for name in names:
        write_nifti(tmp_path / name, np.ones((5, 4, 3), np.uint8))
    entries = [{"image": name, "label": name} for name in names]
    dataset = read_dataset(write_list(tmp_path, training=entries))
    assert [c.case for c in dataset.cases] == ["p1_t1", "p2_t1", "t2"]
    absolute = [{"image": str(tmp_path / name), "label": name} for name in names]
    dataset = read_dataset(write_list(tmp_path, training=absolute))
    assert [c.case for c in dataset.cases] == ["p1_t1", "p2_t1", "t2"]


def test_entries_without_a_label_are_unlabelled_and_wrong_entries_are_named(tmp_path, write_nifti):
    for name in "abcd":
        write_nifti(tmp_path / f"{name}.nii.gz", np.ones((5, 4, 3), np.uint8))
    labelled = {"image": "a.nii.gz", "label": "b.nii.gz"}
    root = write_list(tmp_path, training=[labelled, {"image": "c.nii.gz"}], test=["d.nii.gz"])
    dataset = read_dataset(root)
    assert [(c.case, c.is_labelled) for c in dataset.cases] == [("a", True), ("c", False)]
    write_list(tmp_path, training=[labelled, "c.nii.gz", {"label": "b.nii.gz"}], validation={})
    said = [problem.message for problem in read_dataset(root, lenient=True).problems]
    assert len(said) == 3
    assert all(any(w in s for s in said) for w in ("training[1]", "training[2]", "'validation'"))


def test_error_names_a_damaged_list(tmp_path):
    (tmp_path / "datalist.json").write_text('{"training": [{"image": "a.nii",}]}')
    with pytest.raises(DatasetError, match=r"datalist\.json: the JSON has an error in line 1"):
        read_dataset(tmp_path)
