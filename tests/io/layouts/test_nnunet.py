"""nnU-Net raw folders (versions 1 and 2), Decathlon folders, and errors in them."""

import shutil

import numpy as np
import pytest
from PIL import Image

from lesionseg.core import Labels
from lesionseg.errors import DatasetError, ReadError
from lesionseg.io.cases import read_case
from lesionseg.io.layouts import list_dataset, read_dataset
from lesionseg.io.scans import find_scans
from lesionseg.io.text import read_json, write_json
from tests.io.first_case import read_first


def rename(root, part, names):
    """Rename the files of a part, `images` or `labels`, by their stems."""
    for before, after in names.items():
        file = root / f"{part}Tr" / f"{before}.nii.gz"
        file.rename(file.with_name(f"{after}.nii.gz"))


def test_folder_of_version_2_is_read(nnunet_folder):
    labels = {"background": 0, "lesion": 1, "ignore": 2}
    root = nnunet_folder(name="toy", labels=labels)
    dataset = read_dataset(root)
    assert (dataset.layout, dataset.name, dataset.dims) == ("nnunet", "toy", 3)
    assert dataset.channel_names == ("channel0", "channel1")
    assert dataset.labels == Labels((1,), ("lesion",), ignore=2)
    first = dataset.cases[0]
    assert first.case == first.group == "A"
    assert [f.name for f in first.images] == ["A_0000.nii.gz", "A_0001.nii.gz"]
    assert first.reference.name == "A.nii.gz"
    assert (first.role, first.fold) == (None, None)


def test_folder_of_version_1_is_read(nnunet_folder):
    root = nnunet_folder()
    labels = {"0": "background", "2": "cyst", "1": "scar"}
    write_json(root / "dataset.json", {"modality": {"0": "FLAIR", "1": "T1"}, "labels": labels})
    dataset = read_dataset(root)
    assert (dataset.channel_names, dataset.name) == (("FLAIR", "T1"), root.name)
    assert dataset.labels == Labels((1, 2), ("scar", "cyst"))


def test_labelled_test_scan_has_the_test_role_and_an_unlabelled_one_is_no_case(nnunet_folder):
    root = nnunet_folder()
    for part in ("images", "labels"):
        (root / f"{part}Ts").mkdir()
        for file in [*(root / f"{part}Tr").glob("B*")]:
            file.rename(root / f"{part}Ts" / file.name)
    assert [(c.case, c.role) for c in read_dataset(root).cases] == [("A", None), ("B", "test")]
    (root / "labelsTs" / "B.nii.gz").unlink()
    assert [(c.case, c.role) for c in read_dataset(root).cases] == [("A", None)]


def test_split_file_in_the_folder_is_found(nnunet_folder):
    root = nnunet_folder()
    assert read_dataset(root).split_file is None
    for name in ("splits_final.pkl", "splits_final.json"):  # the JSON file has priority
        (root / name).write_text("not read here")
        assert read_dataset(root).split_file == root / name


REGIONS = {"background": 0, "whole tumor": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}


def test_lists_of_values_are_regions_that_can_be_merged(nnunet_folder):
    root = nnunet_folder(labels=REGIONS, regions_class_order=[1, 2, 3])
    names = {1: "whole tumor", 2: "core", 3: "enhancing"}
    regions = ((1, 2, 3), (2, 3), (3,))
    assert read_dataset(root).labels == Labels((*names,), (*names.values(),), regions, ignore=4)
    merged = read_dataset(root, merge_labels=True)
    assert merged.labels == Labels((1,), ("lesion",), ignore=4, merged=names)
    assert read_first(merged).reference.labels.sum() == 1


CANCER = {"0": "background", "1": "cancer"}


@pytest.fixture
def decathlon_folder(nnunet_folder):
    """Write a Decathlon folder of one channel, with a stray file of macOS."""
    root = nnunet_folder(channels=1)
    write_json(root / "dataset.json", {"modality": {"0": "CT"}, "labels": CANCER})
    rename(root, "images", {"A_0000": "A", "B_0000": "B"})
    (root / "imagesTr" / "._A.nii.gz").write_text("left by a Mac")
    return root


def test_decathlon_folder_of_one_channel_is_read(decathlon_folder):
    dataset = read_dataset(decathlon_folder)
    assert (dataset.layout, dataset.channel_names) == ("msd", ("CT",))
    assert dataset.labels == Labels((1,), ("cancer",))
    assert [c.case for c in dataset.cases] == ["A", "B"]


def test_4_d_file_of_a_decathlon_folder_is_an_error_with_advice(decathlon_folder, write_nifti):
    write_nifti(decathlon_folder / "imagesTr" / "A.nii.gz", np.zeros((5, 4, 3, 2), np.int16))
    dataset = read_dataset(decathlon_folder)
    with pytest.raises(ReadError, match="one file per channel"):
        read_first(dataset)
    facts = {"modality": {"0": "T1", "1": "T2"}, "labels": CANCER}
    write_json(decathlon_folder / "dataset.json", facts)
    with pytest.raises(DatasetError, match=r"split a 4-D file.*_0000"):
        read_dataset(decathlon_folder)


WRONG = [
    {"labels": {"background": 0, "whole": [1, 2], "core": 2}},  # without an order
    {"labels": {"background": 0, "whole": [0, 1]}},
    {"labels": {"background": 0, "whole": [1, 2], "ignore": 2}},
    {"labels": {"background": 0, "whole": [1, 2], "ignore": [3, 4]}},
    {"labels": {"background": 0, "a": 1, "b": 1}},
    {"labels": {"background": 0}},
    {"labels": None},
    {"labels": {"background": 0, "a": 1.5}},
    {"labels": {"background": 0, "a": -1}},
    {"channel_names": {}},
    {"channel_names": {"0": "T1", "2": "T2"}},
    {"channel_names": ["T1", "T2"]},
    {"labels": REGIONS, "regions_class_order": [1, 2]},
    {"labels": REGIONS, "regions_class_order": [1, 2, 2]},
    {"labels": REGIONS, "regions_class_order": 3},
    {"labels": REGIONS, "regions_class_order": [2, 1, 3]},
]


@pytest.mark.parametrize("facts", WRONG, ids=str)
def test_invalid_dataset_json_is_an_error(nnunet_folder, facts):
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        read_dataset(nnunet_folder(**facts))


def test_case_may_lack_a_channel_if_allowed(nnunet_folder):
    root = nnunet_folder()
    (root / "imagesTr" / "B_0000.nii.gz").unlink()
    dataset = read_dataset(root, may_lack=True)
    assert [c.missing for c in dataset.cases] == [(), (0,)]
    image = read_case(dataset.cases[1], dataset).image
    assert image.missing == (0,)
    assert image.array.any(axis=(1, 2, 3)).tolist() == [False, True]


@pytest.mark.parametrize(
    ("before", "after", "match"),
    [
        ("imagesTr/B_0001.nii.gz", "imagesTr/B.nii.gz", r"B\.nii\.gz: .* no channel number"),
        ("imagesTr/B_0000.nii.gz", "B_0000.nii.gz", "'B' does not have one file per channel"),
        ("imagesTr/B_0000.nii.gz", "imagesTr/B_0002.nii.gz", "'B' does not have one file"),
        ("imagesTr/A_0000.nii.gz", "imagesTr/B_0002.nii.gz", "'B' has more files than the dataset"),
        ("labelsTr/B.nii.gz", "B.nii.gz", "'B' has no mask.*mask of zeros"),
        ("labelsTr/B.nii.gz", "labelsTr/C.nii.gz", "'C' has no image"),
        ("labelsTr/B.nii.gz", "labelsTr/A.nrrd", r"A\.nrrd' here, but .*A\.nii\.gz'"),
        ("imagesTr/B_0000.nii.gz", "imagesTr/A_0000.nrrd", "is the same channel"),
    ],
)
def test_files_without_a_counterpart_are_named(nnunet_folder, before, after, match):
    root = nnunet_folder(file_ending=None)
    (root / before).rename(root / after)
    with pytest.raises(DatasetError, match=match):
        read_dataset(root)
    if "0002" in after:  # an unknown channel, also if channels may be missing
        with pytest.raises(DatasetError, match="'B'"):
            read_dataset(root, may_lack=True)


def test_case_for_training_and_testing_is_an_error(nnunet_folder):
    root = nnunet_folder()
    for part in ("images", "labels"):
        shutil.copytree(root / f"{part}Tr", root / f"{part}Ts")
    with pytest.raises(DatasetError, match="'A' is listed more than once"):
        read_dataset(root)


@pytest.mark.parametrize("name", ["a.png", "a_0000.png"])
def test_colour_picture_is_a_case_of_three_channels(nnunet_folder, name):
    names = {"0": "R", "1": "G", "2": "B"}
    root = nnunet_folder((), channel_names=names, file_ending=".png")
    for place, mode, colour in ((f"imagesTr/{name}", "RGB", (1, 2, 3)), ("labelsTr/a.png", "L", 0)):
        (root / place).parent.mkdir()
        Image.new(mode, (7, 6), colour).save(root / place)
    for cases in (read_dataset(root).cases, find_scans(root / "imagesTr", 3).cases()):
        assert [(c.case, len(c.images), c.missing) for c in cases] == [("a", 1, ())]


def test_names_of_masks_decide_whether_four_digits_are_a_channel_number(nnunet_folder):
    root = nnunet_folder(channels=1)
    rename(root, "images", {"A_0000": "lesion_0000", "B_0000": "lesion_0001"})
    rename(root, "labels", {"A": "lesion_0000", "B": "lesion_0001"})
    dataset = read_dataset(root)
    found = [(case.case, case.images[0].name) for case in dataset.cases]
    assert found == [(f"lesion_000{n}", f"lesion_000{n}.nii.gz") for n in (0, 1)]
    (remark,) = dataset.findings
    assert "lesion_0000, belong to the case id" in remark.message


def test_mask_with_the_whole_name_of_a_numbered_image_is_an_error(nnunet_folder):
    root = nnunet_folder(("A", "B", "C"), channels=1)
    rename(root, "images", {"B_0000": "B_0001"})
    rename(root, "labels", {"B": "B_0001"})
    first, second = (error.message for error in list_dataset(root).errors)
    assert "B_0001.nii.gz: the training image 'B' has no mask" in first
    assert "B_0001.nii.gz: the case 'B_0001' has no image" in second


def test_check_lists_every_fault_of_a_dataset_without_usable_cases(nnunet_folder):
    root = nnunet_folder(channels=1)
    rename(root, "labels", {"A": "other1", "B": "other2"})
    dataset = list_dataset(root)
    messages = "\n".join(problem.message for problem in dataset.errors)
    for words in ("'other1' has no image", "'other2'", "'A' has no mask", "no labelled case"):
        assert words in messages
    assert dataset.cases == ()


@pytest.mark.parametrize("pattern", ["(", "x(.)"])
def test_check_lists_a_wrong_group_among_other_faults(nnunet_folder, pattern):
    root = nnunet_folder()
    (root / "labelsTr" / "B.nii.gz").unlink()
    messages = "\n".join(p.message for p in list_dataset(root, group=pattern).errors)
    assert "'B' has no mask" in messages
    assert "data.group=" in messages


def test_previews_next_to_volumes_are_left_out(nnunet_folder):
    root = nnunet_folder()
    for name in ("imagesTr/A_0000.png", "imagesTr/overview.jpg", "labelsTr/A.png"):
        Image.new("L", (4, 4)).save(root / name)
    dataset = read_dataset(root)
    assert [case.case for case in dataset.cases] == ["A", "B"]
    assert all(file.suffix == ".gz" for case in dataset.cases for file in case.images)
    warnings = " ".join(remark.message for remark in dataset.findings)
    assert "2 files not ending in .nii.gz" in warnings
    assert "A_0000.png, overview.jpg" in warnings


def test_wrong_file_ending_in_dataset_json_is_an_error(nnunet_folder):
    with pytest.raises(DatasetError, match=r"4 files not ending in \.nrrd \(file_ending in"):
        read_dataset(nnunet_folder(file_ending=".nrrd"))


def test_files_of_unknown_formats_are_counted_and_named(nnunet_folder, caplog):
    root = nnunet_folder()
    for name in ("C_0000.hdr", "C_0000.img", "D_0000.rar", "notes.txt", "A.json", ".hidden"):
        (root / "imagesTr" / name).write_text("x")
    (root / "imagesTr" / "patient7").mkdir()
    read_dataset(root)
    expected = "4 items of formats that are not read here (.hdr, .img, .rar, folders): "
    assert expected + "C_0000.hdr, C_0000.img, D_0000.rar, patient7." in caplog.text


def test_list_dataset_names_the_training_files(nnunet_folder, tmp_path, monkeypatch):
    root = nnunet_folder(channels=1)
    monkeypatch.setenv("SCANS", str(root / "imagesTr"))
    (root / "imagesTr" / "A_0000.nii.gz").rename(tmp_path / "A.nii.gz")
    entries = {
        "first": {"images": ["../A.nii.gz"], "label": "labelsTr/A.nii.gz"},
        "second": {"images": ["$SCANS/B_0000.nii.gz"], "label": str(root / "labelsTr/B.nii.gz")},
    }
    facts = read_json(root / "dataset.json")
    write_json(root / "dataset.json", {**facts, "dataset": entries})
    dataset = read_dataset(root)
    assert [case.case for case in dataset.cases] == ["first", "second"]
    assert all(read_case(case, dataset).reference.labels.sum() == 1 for case in dataset.cases)
    (tmp_path / "A.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"A\.nii\.gz of case 'first'"):
        read_dataset(root)


def test_remark_names_cases_that_the_list_of_dataset_json_leaves_out(nnunet_folder):
    entries = [{"image": "./imagesTr/A.nii.gz", "label": "./labelsTr/A.nii.gz"}]
    remark = read_dataset(nnunet_folder(training=entries)).findings[0]
    assert "1 case of imagesTr not in the list training: B" in remark.message


def test_nan_in_an_unused_field_of_dataset_json_is_allowed(nnunet_folder):
    root = nnunet_folder(spacing=float("nan"))
    assert len(read_dataset(root).cases) == 2
