"""nnU-Net raw (versions 1 and 2) and Decathlon folders, and everything that can be wrong there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lesionseg.core import LabelRegion
from lesionseg.errors import DatasetError, ReadError
from lesionseg.io.cases import read_case
from lesionseg.io.layouts.conventions import read_dataset
from lesionseg.io.layouts.input_images import find_images

Folder = Callable[..., Path]


def test_version_2_is_read(nnunet_folder: Folder) -> None:
    dataset = read_dataset(nnunet_folder(name="toy"))
    assert dataset.convention == "nnunet"
    assert dataset.name == "toy"
    assert dataset.dims == 3
    assert dataset.channel_names == ("channel0", "channel1")
    assert dataset.labels == {1: "lesion"}
    assert dataset.ignore_label is None
    first = dataset.cases[0]
    assert first.case == first.group == "A"
    assert [f.name for f in first.images] == ["A_0000.nii.gz", "A_0001.nii.gz"]
    assert first.reference is not None
    assert first.reference.name == "A.nii.gz"
    assert (first.role, first.fold) == (None, None)


def test_version_1_is_read(nnunet_folder: Folder) -> None:
    root = nnunet_folder()
    facts = {
        "modality": {"0": "FLAIR", "1": "T1"},
        "labels": {"0": "background", "2": "cyst", "1": "scar"},
    }
    (root / "dataset.json").write_text(json.dumps(facts))
    dataset = read_dataset(root)
    assert dataset.channel_names == ("FLAIR", "T1")
    assert list(dataset.labels.items()) == [(1, "scar"), (2, "cyst")]
    assert dataset.name == root.name


def _add_test_part(root: Path, *, labelled: bool) -> None:
    (root / "imagesTr" / "B_0000.nii.gz").parent.parent.joinpath("imagesTs").mkdir()
    for channel in range(2):
        name = f"B_{channel:04d}.nii.gz"
        (root / "imagesTr" / name).rename(root / "imagesTs" / name)
    (root / "labelsTs").mkdir()
    target = root / ("labelsTs" if labelled else "elsewhere") / "B.nii.gz"
    target.parent.mkdir(exist_ok=True)
    (root / "labelsTr" / "B.nii.gz").rename(target)


def test_labelled_test_scans_get_the_test_role(nnunet_folder: Folder) -> None:
    root = nnunet_folder()
    _add_test_part(root, labelled=True)
    assert [(c.case, c.role) for c in read_dataset(root).cases] == [("A", None), ("B", "test")]


def test_unlabelled_test_scans_are_left_out(nnunet_folder: Folder) -> None:
    root = nnunet_folder()
    _add_test_part(root, labelled=False)
    assert [c.case for c in read_dataset(root).cases] == ["A"]


def test_given_splits_become_folds(nnunet_folder: Folder) -> None:
    root = nnunet_folder()
    splits = [{"train": ["A"], "val": ["B"]}, {"train": ["B"], "val": ["A"]}]
    (root / "splits_final.json").write_text(json.dumps(splits))
    assert [(c.case, c.fold) for c in read_dataset(root).cases] == [("A", 1), ("B", 0)]


def test_splits_that_repeat_a_case_are_not_taken_for_folds(nnunet_folder: Folder) -> None:
    root = nnunet_folder()
    splits = [{"train": ["A"], "val": ["B"]}, {"train": ["A"], "val": ["B"]}]
    (root / "splits_final.json").write_text(json.dumps(splits))
    assert [c.fold for c in read_dataset(root).cases] == [None, None]


def test_the_ignore_label_is_no_lesion(nnunet_folder: Folder) -> None:
    dataset = read_dataset(nnunet_folder(labels={"background": 0, "lesion": 1, "ignore": 2}))
    assert dataset.labels == {1: "lesion"}
    assert dataset.ignore_label == 2


REGIONS = {"background": 0, "whole tumor": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}


def test_lists_of_values_are_regions(nnunet_folder: Folder) -> None:
    dataset = read_dataset(nnunet_folder(labels=REGIONS, regions_class_order=[1, 2, 3]))
    assert dataset.regions == (
        LabelRegion("whole tumor", (1, 2, 3), 1),
        LabelRegion("core", (2, 3), 2),
        LabelRegion("enhancing", (3,), 3),
    )
    assert dataset.labels == {1: "whole tumor", 2: "core", 3: "enhancing"}
    assert dataset.lesion_labels == {1: "lesion"}
    assert dataset.ignore_label == 4


def test_lists_of_one_value_are_plain_labels(nnunet_folder: Folder) -> None:
    dataset = read_dataset(nnunet_folder(labels={"background": 0, "b": [2], "a": [1]}))
    assert dataset.regions == ()
    assert list(dataset.labels.items()) == [(1, "a"), (2, "b")]


def test_merged_labels_have_no_regions(nnunet_folder: Folder) -> None:
    root = nnunet_folder(labels=REGIONS, regions_class_order=[1, 2, 3])
    dataset = read_dataset(root, merge_labels=True)
    assert dataset.regions == ()
    assert dataset.merged_values == (1, 2, 3)


@pytest.mark.parametrize(
    ("order", "match"),
    [
        ([1, 2], "need a regions_class_order"),
        ([1, 2, 2], "need a regions_class_order"),
        (3, "regions_class_order"),
        ([2, 1, 3], "need a regions_class_order"),
    ],
)
def test_an_order_that_does_not_fit_is_refused(
    nnunet_folder: Folder, order: Any, match: str
) -> None:
    with pytest.raises(DatasetError, match=match):
        read_dataset(nnunet_folder(labels=REGIONS, regions_class_order=order))


def test_decathlon_of_one_channel_is_read(
    nnunet_folder: Folder, write_nifti: Callable[..., Path]
) -> None:
    root = nnunet_folder(
        channels=1, modality={"0": "CT"}, labels={"0": "background", "1": "cancer"}
    )
    facts = json.loads((root / "dataset.json").read_text())
    del facts["channel_names"]
    (root / "dataset.json").write_text(json.dumps(facts))
    for file in list((root / "imagesTr").iterdir()):
        file.rename(file.with_name(file.name.replace("_0000", "")))
    (root / "imagesTr" / "._A.nii.gz").write_text("left by a Mac")
    dataset = read_dataset(root)
    assert dataset.convention == "msd"
    assert dataset.channel_names == ("CT",)
    assert dataset.labels == {1: "cancer"}
    assert [c.case for c in dataset.cases] == ["A", "B"]
    write_nifti(root / "imagesTr" / "A.nii.gz", np.zeros((5, 4, 3, 2), np.int16))
    dataset = read_dataset(root)
    with pytest.raises(ReadError, match="Split a 4-D file"):
        read_case(dataset.cases[0], dataset)
    (root / "dataset.json").write_text(json.dumps({**facts, "modality": {"0": "T1", "1": "T2"}}))
    with pytest.raises(DatasetError, match=r"split a 4-D one.*_0000"):
        read_dataset(root)


@pytest.mark.parametrize(
    ("facts", "match"),
    [
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, "need a regions_class_order"),
        ({"labels": {"background": 0, "whole": []}}, "distinct"),
        ({"labels": {"background": 0, "whole": [0, 1]}}, "distinct"),
        ({"labels": {"background": 0, "whole": [1, 2], "ignore": 2}}, "distinct"),
        ({"labels": {"background": 0, "whole": [1, 2], "ignore": [3, 4]}}, "distinct"),
        ({"labels": {"background": 0, "whole": [1, "x"]}}, "integer"),
        ({"labels": {"background": 0}}, "a lesion among them"),
        ({"labels": None}, "labels"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "distinct"),
        ({"labels": {"background": 0, "a": 1.5}}, "integer"),
        ({"labels": {"background": 0, "a": -1}}, "integer"),
        ({"channel_names": {}}, "channel_names"),
        ({"channel_names": {"0": "T1", "2": "T2"}}, "channels"),
        ({"channel_names": ["T1", "T2"]}, "channel_names"),
        (
            {"channel_names": {"0": "T1", "1": "T2", "2": "PD"}},
            "'A' does not have one file per channel",
        ),
        ({"channel_names": {"0": "T1"}}, "'A' does not have one file per channel"),
    ],
)
def test_facts_that_do_not_fit_are_refused(
    nnunet_folder: Folder, facts: dict[str, Any], match: str
) -> None:
    with pytest.raises(DatasetError, match=match):
        read_dataset(nnunet_folder(**facts))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_dataset_json_is_refused(nnunet_folder: Folder, text: str) -> None:
    root = nnunet_folder()
    (root / "dataset.json").write_text(text)
    with pytest.raises((DatasetError, ReadError), match=r"dataset\.json"):
        read_dataset(root)


def test_a_missing_channel_file_is_named(nnunet_folder: Folder) -> None:
    root = nnunet_folder()
    (root / "imagesTr" / "B_0001.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"'B' does not have one file per channel"):
        read_dataset(root)


def test_a_case_may_lack_a_channel_where_that_is_asked_for(nnunet_folder: Folder) -> None:
    root = nnunet_folder()
    (root / "imagesTr" / "B_0000.nii.gz").unlink()
    dataset = read_dataset(root, may_lack=True)
    assert {c.case: c.missing for c in dataset.cases if c.missing} == {"B": (0,)}
    files = next(c for c in dataset.cases if c.case == "B")
    whole = read_case(files, dataset).image
    assert whole.missing == (0,)
    assert not whole.array[0].any()
    assert whole.array[1].any()
    (root / "imagesTr" / "B_0001.nii.gz").rename(root / "imagesTr" / "B_0002.nii.gz")
    with pytest.raises(DatasetError, match="'B' does not have one file per channel"):
        read_dataset(root, may_lack=True)


def test_an_image_without_channel_number_is_named(nnunet_folder: Folder) -> None:
    root = nnunet_folder()
    (root / "imagesTr" / "B_0001.nii.gz").rename(root / "imagesTr" / "B.nii.gz")
    with pytest.raises(DatasetError, match=r"B\.nii\.gz: no channel number"):
        read_dataset(root)


def test_a_training_image_without_mask_is_named(nnunet_folder: Folder) -> None:
    root = nnunet_folder()
    (root / "labelsTr" / "B.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"'B' has no mask.*mask of zeros"):
        read_dataset(root)


def test_a_mask_without_image_is_named(nnunet_folder: Folder) -> None:
    root = nnunet_folder()
    (root / "labelsTr" / "B.nii.gz").rename(root / "labelsTr" / "C.nii.gz")
    with pytest.raises(DatasetError, match=r"'C' in .*labelsTr has no image"):
        read_dataset(root)


@pytest.mark.parametrize("folder", ["imagesTr", "labelsTr"])
def test_the_same_case_in_two_formats_is_refused(nnunet_folder: Folder, folder: str) -> None:
    root = nnunet_folder()
    file = next((root / folder).glob("A*"))
    file.with_name(file.name.replace(".nii.gz", ".nrrd")).write_bytes(file.read_bytes())
    with pytest.raises(DatasetError, match="is the same case"):
        read_dataset(root)


def test_a_case_for_training_and_testing_is_refused(
    nnunet_folder: Folder, write_nifti: Callable[..., Path]
) -> None:
    root = nnunet_folder(channels=1)
    write_nifti(root / "imagesTs" / "A_0000.nii.gz", np.zeros((5, 4, 3), np.int16))
    write_nifti(root / "labelsTs" / "A.nii.gz", np.zeros((5, 4, 3), np.uint8))
    with pytest.raises(DatasetError, match="'A' is listed more than once"):
        read_dataset(root)


def test_no_case_at_all_is_refused(nnunet_folder: Folder) -> None:
    root = nnunet_folder()
    for folder in ("imagesTr", "labelsTr"):
        shutil.rmtree(root / folder)
    with pytest.raises(DatasetError, match="no labelled case"):
        read_dataset(root)


@pytest.mark.parametrize("name", ["{}.png", "{}_0000.png"])
def test_a_picture_in_colour_is_a_case_of_three_channels(tmp_path: Path, name: str) -> None:
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
    for case in ("a", "b"):
        colours = np.random.default_rng(0).integers(0, 255, (6, 7, 3)).astype(np.uint8)
        Image.fromarray(colours).save(tmp_path / "imagesTr" / name.format(case))
        Image.fromarray(np.zeros((6, 7), np.uint8)).save(tmp_path / "labelsTr" / f"{case}.png")
    content = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "x": 1}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    dataset = read_dataset(tmp_path)
    for cases in (dataset.cases, find_images(tmp_path / "imagesTr", 3)):
        listed = [(c.case, len(c.images), c.missing) for c in cases]
        assert listed == [("a", 1, ()), ("b", 1, ())]
