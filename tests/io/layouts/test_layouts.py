"""Recognition of a dataset folder, and groups of cases in all layouts."""

from pathlib import Path

import pytest

from lesionseg.core import CaseFiles
from lesionseg.core.dataset import assign_groups
from lesionseg.errors import DatasetError
from lesionseg.io.layouts import read_dataset


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match="gone"):
        read_dataset(tmp_path / "gone")


def test_error_for_an_unknown_layout_lists_the_two_easiest_layouts(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DatasetError, match=r"manifest\.csv.*boxes\.csv") as caught:
        read_dataset(tmp_path)
    assert "stage_2_train_labels" not in str(caught.value)


SHAPES = '{"version": "5", "flags": {}, "shapes": [{"label": "a"}], "imagePath": "a.png"}'
TASKS = '[{"id": 1, "annotations": [{"id": 2, "result": []}], "data": {"image": "a.png"}}]'
COCO = '{"images": [{"id": 1}], "categories": [], "annotations": []}'
OTHER_FORMATS = [
    ("Annotations/a.xml", "<annotation>\n<folder>x</folder>", "Pascal VOC", "xmin - 1"),
    ("a.xml", '<?xml version="1.0"?>\n<annotations>\n<version>1.1', "CVAT", "as COCO"),
    ("images/a.json", SHAPES, "LabelMe", "labelme2coco"),
    ("tasks.json", TASKS, "Label Studio", "as COCO"),
    ("result.json", COCO, "COCO", r"data\.annotations"),
    ("BBox_List_2017.csv", "Image Index,Finding Label,Bbox [x,y,w,h],,,\n", "NIH", "x0 = x"),
    ("train.csv", "img/a.png,1,2,30,40,mass\nimg/b.png,,,,,\n", "keras-retinanet", "x0, y0"),
    ("labels/train/a.txt", "0 0.5 0.5 0.1 0.1\n", "YOLO", r"data\.yaml"),
]


@pytest.mark.parametrize(("name", "text", "program", "advice"), OTHER_FORMATS)
def test_annotations_of_other_programs_are_named_with_the_way_to_convert_them(
    tmp_path, name, text, program, advice
):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=rf"{Path(name).name} .*{program}.*{advice}"):
        read_dataset(tmp_path)


def link_mask(root, target, make=Path.symlink_to):
    """Replace a file of an nnU-Net folder by a link to the mask of case A."""
    (root / target).unlink()
    make(root / target, root / "labelsTr" / "A.nii.gz")
    return root


@pytest.mark.parametrize("make", [Path.symlink_to, Path.hardlink_to])
def test_one_mask_of_two_cases_is_a_warning(nnunet_folder, caplog, make):
    read_dataset(link_mask(nnunet_folder(channels=1), "labelsTr/B.nii.gz", make))
    assert "is the mask of several cases: A, B" in caplog.text


def test_image_that_is_its_own_mask_is_an_error(nnunet_folder):
    root = link_mask(nnunet_folder(channels=1), "imagesTr/A_0000.nii.gz")
    with pytest.raises(DatasetError, match="image as well as the mask of case 'A'"):
        read_dataset(root)


def test_error_for_a_folder_of_datasets_names_them(nnunet_folder):
    root = nnunet_folder()
    with pytest.raises(DatasetError, match=f"contains some: .*{root.name}"):
        read_dataset(root.parent)


@pytest.mark.parametrize(
    ("ids", "groups"),
    [
        ("", ""),
        ("A B_2", "A B_2"),
        ("MSCS_19L MSCS_19R MSCS_26L", "MSCS_19 MSCS_19 MSCS_26L"),
        ("P1_L P1_R P2-L P2-R P3.L P3.R", "P1 P1 P2 P2 P3 P3"),
        ("PAUL PETER L R", "PAUL PETER L R"),
        ("sub-01L sub-01R", "sub-01L sub-01R"),
        ("sub-01_ses-1 sub-01_ses-2 sub-02_FLAIR", "sub-01 sub-01 sub-02"),
    ],
)
def test_groups_follow_from_names(ids, groups):
    cases = [CaseFiles(case, (Path(f"{case}.nii"),)) for case in ids.split()]
    assert [case.group for case in assign_groups(cases, None)] == groups.split()


def test_groups_of_the_dataset_are_kept_if_some_cases_have_none():
    cases = [CaseFiles("P1L", (Path("a"),), group="ann"), CaseFiles("P1R", (Path("b"),))]
    assert [c.group for c in assign_groups(cases, None)] == ["ann", "P1R"]
