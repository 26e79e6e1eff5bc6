"""MONAI datalists of masks and of boxes."""

import numpy as np
import pytest
from PIL import Image

from lesionseg.core import Volume
from lesionseg.errors import ContentError, DatasetError
from lesionseg.io.layouts import list_dataset, read_dataset
from lesionseg.io.text import write_json
from lesionseg.io.volumes import write_volume
from tests.io.dicom_files import grid_of
from tests.io.first_case import read_first, read_first_of

# starts and stops in array order (z, y, x), half-open
BOX = (2.0, 3.0, 4.0, 5.0, 5.0, 10.0)


def write_cubes(root, write_nifti, *names):
    for name in names:
        write_nifti(root / name, np.ones((5, 4, 3), np.uint8))


def write_list(root, **lists):
    write_json(root / "datalist.json", lists)
    return root


def test_datalist_gives_channels_folds_and_roles(tmp_path, write_nifti):
    entries = []
    for fold, case in enumerate("ab"):
        images = [f"scans/{case}_t1.nii.gz", f"scans/{case}_t2.nii.gz"]
        entry = {"image": images, "label": f"masks/{case}.nii.gz", "fold": fold, "patient": "P"}
        entries.append(entry)
        write_cubes(tmp_path, write_nifti, *images, entry["label"])
    root = write_list(tmp_path, training=entries[:1], testing=entries[1:])
    dataset = read_dataset(root)
    assert dataset.layout == "datalist"
    cases = [(c.case, c.group, c.role, c.fold) for c in dataset.cases]
    assert cases == [("a_t1", "P", None, 0), ("b_t1", "P", "test", 1)]
    assert read_first(dataset).image.array.shape == (2, 3, 4, 5)
    (tmp_path / "masks" / "a.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"masks/a\.nii\.gz"):
        read_dataset(root)


@pytest.mark.parametrize("order", [1, -1])
def test_eleven_channels_have_the_names_of_their_numbers(tmp_path, write_nifti, order):
    files = [f"a_{channel}.nii.gz" for channel in range(11)]
    write_cubes(tmp_path, write_nifti, *files, "m.nii.gz")
    entries = [{"image": files, "label": "m.nii.gz"}]
    names = {str(channel): f"m{channel}" for channel in range(11)[::order]}
    dataset = read_dataset(write_list(tmp_path, modality=names, training=entries))
    assert dataset.channel_names == tuple(f"m{channel}" for channel in range(11))
    dataset = read_dataset(write_list(tmp_path, training=entries))
    assert dataset.channel_names == tuple(f"channel {channel}" for channel in range(11))


GRID = grid_of("IPL", (2.0, 0.8, 0.5), shape=(8, 10, 12))


def lps_box():
    """Return `BOX` in the form of MONAI's tutorial: centre and size in LPS."""
    ends = GRID.to_mm([np.array(BOX[:3]) - 0.5, np.array(BOX[3:]) - 0.5]) * (-1, -1, 1)
    low = ends.min(axis=0)
    high = ends.max(axis=0)
    return [*((low + high) / 2).tolist(), *(high - low).tolist()]


def write_datalist(root, entry, **facts):
    write_volume(root / "a.nii.gz", Volume(np.ones((1, *GRID.shape), np.int16), GRID))
    entries = [{"image": "a.nii.gz", **entry}]
    write_json(root / "datalist.json", {"training": entries, **facts})
    return root


def test_boxes_are_centres_and_sizes_in_lps(tmp_path):
    root = write_datalist(tmp_path, {"box": [lps_box()] * 2, "label": [0, 1]})
    reference = read_first_of(root).reference
    np.testing.assert_allclose(reference.boxes, [BOX, BOX], atol=1e-4)
    assert reference.box_labels == (1, 2)
    assert reference.labels is None
    dataset = read_dataset(tmp_path)
    assert dataset.lesions_are_boxes
    assert dataset.labels.value_names == {1: "class 1", 2: "class 2"}
    (tmp_path / "labels.json").write_text('{"1": "nodule", "2": "mass"}')
    assert read_dataset(tmp_path).labels.value_names == {1: "nodule", 2: "mass"}


def test_entry_without_boxes_is_lesion_free(tmp_path):
    case = read_first_of(write_datalist(tmp_path, {"box": [], "label": []}))
    assert not case.reference.labels.any()


def test_boxes_of_a_picture_are_pixels(tmp_path):
    Image.new("L", (9, 6)).save(tmp_path / "a.png")
    write_list(tmp_path, training=[{"image": "a.png", "box": [[1, 2, 5, 4]], "label": [0]}])
    assert read_first_of(tmp_path).reference.boxes.tolist() == [[2, 1, 4, 5]]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"label": []}, DatasetError),
        ({"label": "m.nii"}, DatasetError),
        ({"label": [-1]}, DatasetError),
        ({"label": [10**9]}, DatasetError),
        ({"box": [[1, 2, 3]]}, DatasetError),
        ({"box": [[1, 2, 3, 4, 5]]}, DatasetError),
        ({"box": [[1, 2, 3, 4]]}, ContentError),
        ({"box": [[900, 0, 0, 5, 5, 5]]}, ContentError),
    ],
)
def test_invalid_boxes_are_an_error(tmp_path, change, error):
    write_datalist(tmp_path, {"box": [[1, 2, 3, 4, 5, 6]], "label": [0], **change})
    with pytest.raises(error):
        read_first_of(tmp_path)


def test_other_box_mode_is_an_error(tmp_path):
    with pytest.raises(DatasetError):
        read_dataset(write_datalist(tmp_path, {"box": [lps_box()], "label": [0]}, box_mode="xyxy"))


@pytest.mark.parametrize("is_absolute", [False, True])
def test_equal_names_in_different_folders_are_different_cases(tmp_path, write_nifti, is_absolute):
    names = ("p1/t1.nii.gz", "p2/t1.nii.gz", "p3/t2_0000.nii.gz")
    write_cubes(tmp_path, write_nifti, *names, "m.nii.gz")
    start = f"{tmp_path}/" if is_absolute else ""
    entries = [{"image": f"{start}{name}", "label": "m.nii.gz"} for name in names]
    dataset = read_dataset(write_list(tmp_path, training=entries))
    assert [c.case for c in dataset.cases] == ["p1_t1", "p2_t1", "t2"]


@pytest.fixture
def images(tmp_path, write_nifti):
    """Write the images a, b, c and d."""
    write_cubes(tmp_path, write_nifti, *(f"{name}.nii.gz" for name in "abcd"))
    return tmp_path


LABELLED = {"image": "a.nii.gz", "label": "b.nii.gz"}


def test_entry_without_a_label_is_unlabelled(images):
    root = write_list(images, training=[LABELLED, {"image": "c.nii.gz"}], test=["d.nii.gz"])
    dataset = read_dataset(root)
    assert [(c.case, c.is_labelled) for c in dataset.cases] == [("a", True), ("c", False)]


def test_entries_may_state_case_group_and_role(images):
    entries = [
        {"case": "one", "image": "a.nii.gz", "label": "b.nii.gz", "group": "P1", "fold": 2},
        {"case": "two", "image": "c.nii.gz", "label": "d.nii.gz", "group": "P1", "role": "test"},
    ]
    dataset = read_dataset(write_list(images, training=entries))
    found = [(c.case, c.group, c.role, c.fold) for c in dataset.cases]
    assert found == [("one", "P1", None, 2), ("two", "P1", "test", None)]


@pytest.mark.parametrize("key", ["validation", "valid", "val"])
def test_validation_list_may_have_a_short_name(images, key):
    entries = [{"image": f"{name}.nii.gz", "label": "b.nii.gz"} for name in "ac"]
    root = write_list(images, **{"training": entries[:1], key: entries[1:]})
    dataset = read_dataset(root)
    assert [(c.case, c.role) for c in dataset.cases] == [("a", None), ("c", "validation")]
    assert not dataset.findings


def test_unknown_list_of_cases_is_named(images):
    root = write_list(
        images, training=[LABELLED], Val=[LABELLED], numbers=[1], modality={"0": "T1"}
    )
    (remark,) = read_dataset(root).findings
    assert "datalist.json: the unknown list 'Val' is left out, with 1 case." in remark.message


def test_check_names_every_wrong_entry(images):
    of_channels = {"image": ["p1/c_0000.nii.gz"], "fold": -1}
    named = {"image": "d.nii.gz", "case": "D", "fold": -1}
    training = [LABELLED, "c.nii.gz", {"label": "b.nii.gz"}, of_channels, named]
    root = write_list(images, training=training, validation={})
    errors = list_dataset(root).errors
    messages = [problem.message for problem in errors]
    assert [problem.case for problem in errors] == ["", "", "c", "D", ""]
    for place in ("training[1]", "training[2]", "'validation'"):
        assert any(place in message for message in messages)


@pytest.mark.parametrize(
    ("key", "meant"), [("mask", "label"), ("lable", "label"), ("subject_id", "patient")]
)
def test_key_that_resembles_a_known_one_is_named_even_if_other_entries_are_right(
    images, key, meant
):
    other = {"image": "c.nii.gz", key: "b.nii.gz"}
    dataset = read_dataset(write_list(images, training=[LABELLED, other]))
    (remark,) = [remark for remark in dataset.findings if remark.kind == "columns"]
    assert f"{key!r} is unknown" in remark.message
    assert repr(meant) in remark.message


def test_class_that_labels_json_lacks_is_an_error(tmp_path):
    write_datalist(tmp_path, {"box": [lps_box()], "label": [3]})
    (tmp_path / "labels.json").write_text('{"1": "nodule"}')
    match = r"training\[0\]: the label 4 \(in a datalist: class 3\) is not among.*nodule"
    with pytest.raises(DatasetError, match=match):
        read_dataset(tmp_path)
