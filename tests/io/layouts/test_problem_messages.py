"""All that is wrong with a dataset's list is told at once, whatever its convention."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lesionseg.errors import DatasetError
from lesionseg.io.layouts.conventions import read_dataset

Write = Callable[..., Path]
SHAPE = (5, 4, 3)


def refused(root: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        read_dataset(root)
    return str(caught.value)


def test_every_fault_of_a_manifest_is_told_at_once(tmp_path: Path, write_nifti: Write) -> None:
    for name in "ab":
        write_nifti(tmp_path / f"{name}.nii.gz", np.ones(SHAPE, np.int16))
    (tmp_path / "hollow.nii.gz").touch()
    (tmp_path / "manifest.csv").write_text(
        "case,image,image_0001,reference,role,fold\n"
        "fine,a.nii.gz,b.nii.gz,,,\n"
        "gone,gone.nii.gz,b.nii.gz,,,\n"
        "one,a.nii.gz,,,,\n"
        "fine,a.nii.gz,b.nii.gz,,,\n"
        "role,a.nii.gz,b.nii.gz,,training,\n"
        "both,a.nii.gz,b.nii.gz,m.nii.gz,testing,x\n"
        "hollow,a.nii.gz,b.nii.gz,hollow.nii.gz,,\n"
        ",a.nii.gz,b.nii.gz,,,\n"
        "a/b,a.nii.gz,b.nii.gz,,,\n"
    )
    told = refused(tmp_path)
    assert "10 entries cannot be used" in told
    for said in (
        "line 3 does not exist",
        "Line 4 lacks its image_0001",
        "'fine' is listed more than once",
        "Seen: training",
        "Seen: testing",
        "fold is not an integer",
        "line 7 does not exist",
        "line 8 is empty",
        "Line 9 lacks its case",
        "cannot be a file name",
    ):
        assert said in told
    dataset = read_dataset(tmp_path, lenient=True)
    assert len(dataset.problems) == 10
    assert [c.case for c in dataset.cases][:2] == ["fine", "gone"]


def test_every_fault_of_an_nnunet_folder_is_told_at_once(nnunet_folder: Write) -> None:
    root = nnunet_folder(cases=("A", "B", "C", "D"))
    (root / "imagesTr" / "A_0001.nii.gz").unlink()
    (root / "labelsTr" / "B.nii.gz").unlink()
    (root / "imagesTr" / "C_0000.nii.gz").rename(root / "imagesTr" / "X_0000.nii.gz")
    (root / "imagesTr" / "C_0001.nii.gz").rename(root / "imagesTr" / "nonumber.nii.gz")
    told = refused(root)
    for said in (
        "'A' does not have the channel files",
        "'B' has no mask",
        "'C' in labelsTr has no image",
        "'X' has no mask",
        "no channel number",
    ):
        assert said in told


def test_every_fault_of_a_coco_folder_is_told_at_once(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.png", "role": "x" if i == 2 else ""} for i in (1, 2)]
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 0, 2]},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 2, 2]},
        {"id": 3, "image_id": 1, "category_id": 1},
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1}]}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    told = refused(tmp_path)
    assert "6 entries" in told
    empty, none = "annotation 1 of the case '1' is empty", "3 of the case '1' has no box"
    for said in (empty, "not listed", none, "1.png", "2.png", "Seen: x"):
        assert said in told


def test_every_fault_of_a_datalist_is_told_at_once(tmp_path: Path) -> None:
    entries = [
        {"image": "gone.nii.gz", "label": "m.nii.gz", "fold": "one"},
        {"image": [], "label": "m.nii.gz"},
        {"image": "b.nii.gz", "label": 3},
    ]
    (tmp_path / "list.json").write_text(json.dumps({"training": [*entries[:1], *entries[1:]]}))
    told = refused(tmp_path)
    for said in ("gone.nii.gz", "m.nii.gz", "not an integer", "names no image", "is not a path"):
        assert said in told


def test_every_fault_of_bids_and_luna16_tables_is_told_at_once(
    tmp_path: Path, write_nifti: Write
) -> None:
    bids = tmp_path / "bids"
    for subject in ("1", "2"):
        write_nifti(bids / f"sub-{subject}_label-lesion_mask.nii.gz", np.zeros(SHAPE, np.uint8))
    write_nifti(bids / "x" / "sub-1_label-lesion_mask.nii.gz", np.zeros(SHAPE, np.uint8))
    told = refused(bids)
    for said in ("two lesion masks", "'sub-1' has a mask and no image", "'sub-2' has a mask"):
        assert said in told
    luna = tmp_path / "luna"
    write_nifti(luna / "1.2.nii.gz", np.ones(SHAPE, np.int16))
    header = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"
    (luna / "annotations.csv").write_text(header + "1.2,1,1,x,3\n1.2,1,1,,3\n")
    assert "2 entries" in refused(luna)


def test_every_fault_of_nndetection_is_told_at_once(tmp_path: Path, write_nifti: Write) -> None:
    for case, content in (("a", '{"instances": {"1": 9}}'), ("b", "{}")):
        write_nifti(tmp_path / "imagesTr" / f"{case}_0000.nii.gz", np.ones(SHAPE, np.int16))
        write_nifti(tmp_path / "labelsTr" / f"{case}.nii.gz", np.zeros(SHAPE, np.uint8))
        (tmp_path / "labelsTr" / f"{case}.json").write_text(content)
    facts = {"labels": {"0": "nodule"}, "modalities": {"0": "CT"}}
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    told = refused(tmp_path)
    assert "class that dataset.json does not name" in told
    assert "instances are unclear" in told
