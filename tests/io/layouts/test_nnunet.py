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
    version_1 = {"modality": {"0": "FLAIR", "1": "T1"}, "labels": labels}
    write_json(root / "dataset.json", version_1)
    dataset = read_dataset(root)
    assert dataset.channel_names == ("FLAIR", "T1")
    assert dataset.labels == Labels((1, 2), ("scar", "cyst"))
    assert dataset.name == root.name


def move_to_test(root, part, case):
    """Move the files of a case, `images` or `labels`, from training to testing."""
    (root / f"{part}Ts").mkdir()
    for file in list((root / f"{part}Tr").glob(f"{case}*")):
        file.rename(root / f"{part}Ts" / file.name)


def test_labelled_test_scan_has_the_test_role(nnunet_folder):
    root = nnunet_folder()
    move_to_test(root, "images", "B")
    move_to_test(root, "labels", "B")
    cases = read_dataset(root).cases
    assert [(c.case, c.role) for c in cases] == [("A", None), ("B", "test")]


def test_unlabelled_test_scan_is_not_a_case(nnunet_folder):
    root = nnunet_folder()
    move_to_test(root, "images", "B")
    (root / "labelsTr" / "B.nii.gz").unlink()
    assert [(c.case, c.role) for c in read_dataset(root).cases] == [("A", None)]


def test_split_file_in_the_folder_is_found(nnunet_folder):
    root = nnunet_folder()
    assert read_dataset(root).split_file is None
    for name in ("splits_final.pkl", "splits_final.json"):  # the JSON file has priority
        (root / name).write_text("not read here")
        assert read_dataset(root).split_file == root / name


REGIONS = {"background": 0, "whole tumor": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}


def test_lists_of_values_are_regions(nnunet_folder):
    root = nnunet_folder(labels=REGIONS, regions_class_order=[1, 2, 3])
    dataset = read_dataset(root)
    assert dataset.labels == Labels(
        values=(1, 2, 3),
        names=("whole tumor", "core", "enhancing"),
        regions=((1, 2, 3), (2, 3), (3,)),
        ignore=4,
    )


def test_merged_regions_are_one_lesion(nnunet_folder):
    root = nnunet_folder(labels=REGIONS, regions_class_order=[1, 2, 3])
    merged = read_dataset(root, merge_labels=True)
    names = {1: "whole tumor", 2: "core", 3: "enhancing"}
    assert merged.labels == Labels((1,), ("lesion",), ignore=4, merged=names)
    assert read_case(merged.cases[0], merged).reference.labels.sum() == 1


@pytest.fixture
def decathlon_folder(nnunet_folder):
    """Write a Decathlon folder of one channel, with a stray file of macOS."""
    root = nnunet_folder(channels=1)
    facts = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "cancer"}}
    write_json(root / "dataset.json", facts)
    for file in list((root / "imagesTr").iterdir()):
        file.rename(file.with_name(file.name.replace("_0000", "")))
    (root / "imagesTr" / "._A.nii.gz").write_text("left by a Mac")
    return root


def test_decathlon_folder_of_one_channel_is_read(decathlon_folder):
    dataset = read_dataset(decathlon_folder)
    assert (dataset.layout, dataset.channel_names) == ("msd", ("CT",))
    assert dataset.labels == Labels((1,), ("cancer",))
    assert [c.case for c in dataset.cases] == ["A", "B"]


def test_4_d_file_of_a_decathlon_folder_is_an_error_with_advice(decathlon_folder, write_nifti):
    image = decathlon_folder / "imagesTr" / "A.nii.gz"
    write_nifti(image, np.zeros((5, 4, 3, 2), np.int16))
    dataset = read_dataset(decathlon_folder)
    with pytest.raises(ReadError, match="one file per channel"):
        read_case(dataset.cases[0], dataset)


def test_decathlon_folder_of_two_channels_is_an_error_with_advice(decathlon_folder):
    facts = {"modality": {"0": "T1", "1": "T2"}, "labels": {"0": "background", "1": "cancer"}}
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
    with pytest.raises(DatasetError, match="'B' does not have one file per channel"):
        read_dataset(root)
    dataset = read_dataset(root, may_lack=True)
    assert {c.case: c.missing for c in dataset.cases if c.missing} == {"B": (0,)}
    image = read_case(dataset.cases[1], dataset).image
    assert image.missing == (0,)
    assert [bool(channel.any()) for channel in image.array] == [False, True]


def test_case_with_more_files_than_channels_is_an_error_with_advice(nnunet_folder):
    root = nnunet_folder()
    (root / "imagesTr" / "B_0002.nii.gz").write_bytes(b"")
    with pytest.raises(DatasetError, match="'B' has more files than the dataset has channels"):
        read_dataset(root)


def test_unknown_channel_is_an_error_even_if_channels_may_be_missing(nnunet_folder):
    root = nnunet_folder()
    (root / "imagesTr" / "B_0000.nii.gz").unlink()
    (root / "imagesTr" / "B_0001.nii.gz").rename(root / "imagesTr" / "B_0002.nii.gz")
    with pytest.raises(DatasetError, match="'B' does not have one file per channel"):
        read_dataset(root, may_lack=True)


@pytest.mark.parametrize(
    ("before", "after", "match"),
    [
        (
            "imagesTr/B_0001.nii.gz",
            "imagesTr/B.nii.gz",
            r"B\.nii\.gz: the name has no channel number",
        ),
        ("imagesTr/B_0000.nii.gz", "imagesTr/B_0002.nii.gz", "'B' does not have one file"),
        ("labelsTr/B.nii.gz", "B.nii.gz", "'B' has no mask.*mask of zeros"),
        ("labelsTr/B.nii.gz", "labelsTr/C.nii.gz", "'C' has no image"),
        ("labelsTr/B.nii.gz", "labelsTr/A.nrrd", r"A\.nii\.gz is the same channel"),
        ("imagesTr/B_0000.nii.gz", "imagesTr/A_0000.nrrd", "is the same channel"),
    ],
)
def test_files_without_a_counterpart_are_named(nnunet_folder, before, after, match):
    root = nnunet_folder()
    (root / before).rename(root / after)
    with pytest.raises(DatasetError, match=match):
        read_dataset(root)


def test_case_for_training_and_testing_is_an_error(nnunet_folder):
    root = nnunet_folder()
    for part in ("images", "labels"):
        shutil.copytree(root / f"{part}Tr", root / f"{part}Ts")
    with pytest.raises(DatasetError, match="'A' is listed more than once"):
        read_dataset(root)


def test_folder_without_training_cases_is_an_error(nnunet_folder):
    root = nnunet_folder()
    shutil.copytree(root / "imagesTr", root / "imagesTs")
    for part in ("imagesTr", "labelsTr"):
        shutil.rmtree(root / part)
    with pytest.raises(DatasetError, match="no labelled case"):
        read_dataset(root)


@pytest.mark.parametrize("name", ["a.png", "a_0000.png"])
def test_colour_picture_is_a_case_of_three_channels(nnunet_folder, name):
    root = nnunet_folder((), channel_names={"0": "R", "1": "G", "2": "B"})
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    colours = np.random.default_rng(0).integers(0, 255, (6, 7, 3)).astype(np.uint8)
    Image.fromarray(colours).save(root / "imagesTr" / name)
    Image.fromarray(np.zeros((6, 7), np.uint8)).save(root / "labelsTr" / "a.png")
    for cases in (read_dataset(root).cases, find_scans(root / "imagesTr", 3).cases()):
        assert [(c.case, len(c.images), c.missing) for c in cases] == [("a", 1, ())]


# --- names and stray files ---


def rename(root, part, names):
    """Rename the files of a part, `images` or `labels`, by their stems."""
    for before, after in names.items():
        file = root / f"{part}Tr" / f"{before}.nii.gz"
        file.rename(file.with_name(f"{after}.nii.gz"))


def test_names_of_masks_decide_whether_four_digits_are_a_channel_number(nnunet_folder):
    root = nnunet_folder(channels=1)
    rename(root, "images", {"A_0000": "lesion_0000", "B_0000": "lesion_0001"})
    rename(root, "labels", {"A": "lesion_0000", "B": "lesion_0001"})
    dataset = read_dataset(root)
    assert [case.case for case in dataset.cases] == ["lesion_0000", "lesion_0001"]
    assert [case.images[0].name for case in dataset.cases] == [
        "lesion_0000.nii.gz",
        "lesion_0001.nii.gz",
    ]
    (remark,) = dataset.findings
    assert "lesion_0000, belong to the case id" in remark.message


@pytest.mark.parametrize("channels", [1, 2])
def test_channel_number_of_masks_is_removed_from_their_case_id(nnunet_folder, channels):
    root = nnunet_folder(channels=channels)
    rename(root, "labels", {"A": "A_0000", "B": "B_0000"})
    dataset = read_dataset(root)
    assert [(c.case, c.reference.name) for c in dataset.cases] == [
        ("A", "A_0000.nii.gz"),
        ("B", "B_0000.nii.gz"),
    ]
    assert all(len(case.images) == channels for case in dataset.cases)
    assert "the masks end in _0000" in dataset.findings[0].message


def test_error_explains_an_id_that_was_read_as_a_channel_number(nnunet_folder):
    root = nnunet_folder(("A", "B", "C"), channels=1)
    rename(root, "images", {"B_0000": "B_0001"})
    rename(root, "labels", {"B": "B_0001"})
    with pytest.raises(DatasetError) as caught:
        read_dataset(root)
    message = str(caught.value)
    assert "B_0001.nii.gz: the last four digits, 0001, were read as a channel number" in message
    assert "rename the image to B_0001_0000.nii.gz" in message
    assert message.count("\n") == 0  # no other error is listed


def test_check_lists_every_fault_of_a_dataset_without_usable_cases(nnunet_folder):
    root = nnunet_folder(channels=1)
    rename(root, "labels", {"A": "other1", "B": "other2"})
    dataset = list_dataset(root)
    messages = [problem.message for problem in dataset.errors]
    for words in (
        "'other1' has no image",
        "'other2' has no image",
        "image 'A' has no mask",
        "no labelled case",
    ):
        assert any(words in message for message in messages)
    assert dataset.cases == ()


@pytest.mark.parametrize("pattern", ["(", "x(.)"])
def test_check_lists_a_wrong_group_among_other_faults(nnunet_folder, pattern):
    root = nnunet_folder()
    (root / "labelsTr" / "B.nii.gz").unlink()
    messages = [p.message for p in list_dataset(root, group=pattern).errors]
    assert any("'B' has no mask" in message for message in messages)
    assert any("data.group=" in message for message in messages)


def test_previews_next_to_volumes_are_left_out(nnunet_folder):
    root = nnunet_folder()
    for name in ("imagesTr/A_0000.png", "imagesTr/overview.jpg", "labelsTr/A.png"):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / name)
    dataset = read_dataset(root)
    assert [case.case for case in dataset.cases] == ["A", "B"]
    assert all(file.suffix == ".gz" for case in dataset.cases for file in case.images)
    remarks = " ".join(remark.message for remark in dataset.findings)
    assert "2 files next to those that end in .nii.gz" in remarks
    assert "A_0000.png, overview.jpg" in remarks


def test_wrong_file_ending_in_dataset_json_is_a_remark(nnunet_folder):
    dataset = read_dataset(nnunet_folder(file_ending=".nrrd"))
    assert len(dataset.cases) == 2
    assert "no file ends in .nrrd" in dataset.findings[0].message


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
    entries = {
        "first": {"images": ["imagesTr/A_0000.nii.gz"], "label": "labelsTr/A.nii.gz"},
        "second": {"images": ["$SCANS/B_0000.nii.gz"], "label": str(root / "labelsTr/B.nii.gz")},
    }
    facts = read_json(root / "dataset.json")
    write_json(root / "dataset.json", {**facts, "dataset": entries})
    dataset = read_dataset(root)
    assert [case.case for case in dataset.cases] == ["first", "second"]
    assert read_case(dataset.cases[1], dataset).reference.labels.sum() == 1
    entries["first"]["images"] = ["imagesTr/gone.nii.gz"]
    write_json(root / "dataset.json", {**facts, "dataset": entries})
    with pytest.raises(DatasetError, match=r"gone\.nii\.gz of case 'first'"):
        read_dataset(root)


def test_remark_names_a_wrong_number_of_training_cases(nnunet_folder):
    root = nnunet_folder(numTraining=5)
    assert "numTraining 5, but 2 training cases" in read_dataset(root).findings[0].message


def test_remark_names_cases_that_the_list_of_dataset_json_leaves_out(nnunet_folder):
    entries = [{"image": "./imagesTr/A.nii.gz", "label": "./labelsTr/A.nii.gz"}]
    remark = read_dataset(nnunet_folder(training=entries)).findings[0]
    assert "1 case of imagesTr not in the list training: B" in remark.message


def test_nan_in_an_unused_field_of_dataset_json_is_allowed(nnunet_folder):
    root = nnunet_folder(spacing=float("nan"))
    assert len(read_dataset(root).cases) == 2
