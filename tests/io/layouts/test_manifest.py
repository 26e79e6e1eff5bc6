"""Datasets described by a table, including a table of the converter in `examples/`."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Labels
from lesionseg.errors import ContentError, DatasetError, ReadError
from lesionseg.io.cases import read_case
from lesionseg.io.layouts import list_dataset, read_dataset
from lesionseg.io.layouts.manifest import read_scan_list
from lesionseg.io.text import write_json
from lesionseg.ops.components import lesions_of
from tests.io.first_case import read_first

sys.path.append(str(Path(__file__).parents[3] / "examples"))
import nndetection_to_manifest


@pytest.fixture
def write_manifest(tmp_path, write_nifti):
    """Write a manifest, optional labels, images `a.nii` and `b.nii`, and a mask `m.nii`."""
    mask = np.zeros((5, 4, 3))
    mask[0, 0, 0] = 1
    for name in "abm":
        write_nifti(tmp_path / f"{name}.nii", mask)

    def write(text, labels=""):
        (tmp_path / "manifest.csv").write_text(text)
        if labels:
            (tmp_path / "labels.json").write_text(labels)
        return tmp_path

    return write


def read_reference(dataset, place=0):
    return read_case(dataset.cases[place], dataset).reference


CYST = '{"1": "cyst", "2": "scar"}'
ONE = "case,image,reference\nA,a.nii,m.nii\n"


def test_every_column_is_read(write_manifest):
    root = write_manifest(
        "case,image,image_0001,reference,group,role,fold,scanner\n"
        "A,a.nii,b.nii,m.nii,p1,test,,Siemens\n"
        "B,b.nii,a.nii,,,,3,\n"
    )
    (root / "dataset.json").write_text("{}")  # the manifest has priority
    dataset = read_dataset(root)
    assert dataset.layout == "manifest"
    assert dataset.channel_names == ("image", "image_0001")
    assert dataset.labels.value_names == {1: "lesion"}
    a, b = dataset.cases
    assert [f.name for f in a.images] == ["a.nii", "b.nii"]
    assert a.reference == root / "m.nii"
    assert (a.group, a.role, a.fold, a.columns) == ("p1", "test", None, {"scanner": "Siemens"})
    assert (b.reference, b.group, b.role, b.fold) == (None, "B", None, 3)
    assert read_case(b, dataset).reference is None
    assert read_reference(dataset).labels.sum() == 1


def test_image_columns_are_in_the_order_of_their_numbers(write_manifest):
    numbers = [10, 2, 1, 9]
    columns = ",".join(f"image_{number}" for number in numbers)
    cells = ",".join(f"{number}.nii" for number in numbers)
    root = write_manifest(f"case,image,{columns}\nA,a.nii,{cells}\n")
    dataset = list_dataset(root)
    assert dataset.channel_names == ("image", "image_1", "image_2", "image_9", "image_10")
    names = ("a.nii", "1.nii", "2.nii", "9.nii", "10.nii")
    (listed,) = read_scan_list(root / "manifest.csv")
    assert listed.images == dataset.cases[0].images == tuple(root / name for name in names)


def test_labels_json_names_the_values(write_manifest):
    dataset = read_dataset(write_manifest(ONE, '{"3": "cyst", "2": "scar"}'))
    assert dataset.labels == Labels((2, 3), ("scar", "cyst"))
    with pytest.raises(ContentError, match=r"m\.nii: the values \[1\]"):
        read_reference(dataset)


def test_label_that_does_not_fit_into_a_predicted_mask_is_an_error_unless_merged(write_manifest):
    root = write_manifest(ONE, '{"1": "cyst", "1000": "scar"}')
    with pytest.raises(DatasetError, match=r"label 1000 \(scar\).*255.*data\.merge_labels=true"):
        read_dataset(root)
    assert read_dataset(root, merge_labels=True).labels.value_names == {1: "lesion"}


def test_value_called_ignore_is_ignored(write_manifest):
    dataset = read_dataset(write_manifest(ONE, '{"1": "ignore", "2": "scar"}'))
    assert dataset.labels == Labels((2,), ("scar",), ignore=1)
    reference = read_reference(dataset)
    assert (int(reference.labels.sum()), int(reference.ignore.sum())) == (0, 1)


TWICE = '{"1": "lesion", "2": "cyst", "3": "lesion"}'


@pytest.mark.parametrize("labels", ["[]", "{}", '{"1": "ignore"}', '{"lesion": 1}', TWICE])
def test_labels_json_without_distinct_labels_by_value_is_an_error(write_manifest, labels):
    match = "values 1 and 3 are both called 'lesion'" if labels == TWICE else r"labels\.json"
    with pytest.raises(DatasetError, match=match):
        read_dataset(write_manifest(ONE, labels))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"manifest\.csv"),
        ("name,image\nA,a.nii\n", "'case'"),
        ("case,image\n", "no case"),
        ("case,image\n,a.nii\n", "line 2"),
        ("case,image,image_0001\nA,a.nii,\n", "one file per channel"),
        ("case,image,role\nA,a.nii,training\n", "line 2: role"),
        ("case,image,fold\nA,a.nii,x\n", "line 2: fold"),
        ("case,image\nB,a.nii\nA,a.nii\nA,b.nii\n", "line 4: 'A' is .* once, first in .*line 3"),
        ("case,image,reference\nA,m.nii,m.nii\n", "image as well as the mask of case 'A'"),
        ("case,image,reference,instances\nA,a.nii,a,b\n", "not both"),
        # one instance mask for several labels
        ("case,image,instances,annotated\nA,a.nii,m.nii,scar\n", "line 2: .*'cyst'"),
        ("case,image,annotated\nA,a.nii,\nB,a.nii,cysts\n", "line 3.*Did you mean 'cyst'"),
        ("case,image\nA,C:" + "\\scans" * 60 + "\\a.nii\n", "does not exist"),
    ],
)
def test_wrong_row_is_an_error_with_advice(write_manifest, text, match):
    with pytest.raises((DatasetError, ReadError), match=match):
        read_dataset(write_manifest(text, CYST))


def test_patient_in_training_and_test_is_a_warning(write_manifest, caplog):
    rows = "A,a.nii,m.nii,P1,train\nB,b.nii,m.nii,P1,test\n"
    read_dataset(write_manifest(f"case,image,reference,group,role\n{rows}"))
    assert "share 1 patient" in caplog.text


def test_separators_of_windows_are_read(write_manifest):
    (case,) = read_dataset(write_manifest("case,image,reference\nA,.\\a.nii,.\\m.nii\n")).cases
    assert [file.name for file in (*case.images, case.reference)] == ["a.nii", "m.nii"]


def test_empty_cell_is_a_missing_channel_if_allowed(write_manifest):
    root = write_manifest("case,image,image_0001\nA,,a.nii\nB,b.nii,a.nii\n")
    dataset = read_dataset(root, may_lack=True)
    assert [(c.missing, len(c.images)) for c in dataset.cases] == [((0,), 1), ((), 2)]
    assert read_first(dataset).image.array.shape[0] == 2
    with pytest.raises(DatasetError, match="'A'"):
        read_case(dataset.cases[0], replace(dataset, may_lack=False))


ANNOTATED = """case,image,reference,annotated
A,a.nii,m.nii,scar
B,b.nii,m.nii,
C,b.nii,m.nii, cyst ; scar
D,b.nii,m.nii,cyst
"""


def test_column_annotated_states_the_labels_that_were_annotated(write_manifest):
    """Read a mask with one voxel of a cyst, which is background if cysts were not annotated."""
    dataset = read_dataset(write_manifest(ANNOTATED, CYST))
    assert [case.annotated for case in dataset.cases] == [("scar",), (), (), ("cyst",)]
    assert dataset.cases[0].columns == {"annotated": "scar"}  # also used for subgroups
    references = [read_reference(dataset, place) for place in range(4)]
    assert [r.unannotated for r in references] == [(1,), (), (), (2,)]
    assert [int(r.labels.sum()) for r in references] == [0, 1, 1, 1]


def test_labels_of_partly_annotated_cases_cannot_be_merged(write_manifest):
    root = write_manifest(ANNOTATED, CYST)
    with pytest.raises(DatasetError, match="'A'"):
        read_dataset(root, merge_labels=True)


def test_instance_masks_in_a_table_with_semicolons_are_read(write_manifest, write_nifti):
    root = write_manifest("case;image;instances;age\nA;a.nii;ids.nii.gz;61\n")
    ids = np.zeros((5, 4, 3), np.uint8)
    ids[1, 2, 0] = 5
    ids[4, 0, 2] = 10
    write_nifti(root / "ids.nii.gz", ids)
    dataset = read_dataset(root)
    assert dataset.cases[0].columns == {"age": "61"}
    reference = read_reference(dataset)
    assert reference.instance_labels == (1, 1)
    assert (reference.instances[0, 2, 1], reference.instances[2, 0, 4]) == (1, 2)


@pytest.mark.parametrize("classes", [["nodule"], ["benign", "malignant"]])
def test_nndetection_instances_get_their_classes(tmp_path, write_nifti, classes):
    mask = np.zeros((5, 4, 3), np.uint8)
    mask[1, 2, 0] = 1
    mask[4, 0, 2] = 7
    raw = tmp_path / "raw_splitted"
    write_nifti(raw / "imagesTr" / "c1_0000.nii.gz", np.ones(mask.shape, np.int16))
    write_nifti(raw / "labelsTr" / "c1.nii.gz", mask)
    write_json(raw / "labelsTr" / "c1.json", {"instances": {"1": len(classes) - 1, "7": 0}})
    labels = {str(i): name for i, name in enumerate(classes)}
    write_json(tmp_path / "dataset.json", {"labels": labels, "dim": 3})
    nndetection_to_manifest.convert(tmp_path)
    dataset = read_dataset(tmp_path)
    assert dataset.labels.value_names == dict(enumerate(classes, start=1))
    found = read_reference(dataset)
    assert (found.labels[0, 2, 1], found.labels[2, 0, 4]) == (len(classes), 1)
    assert len(lesions_of(found)) == 2


COLUMNS = [
    ("mask", "reference"),
    ("Label", "reference"),
    ("ground truth", "reference"),
    ("refrence", "reference"),
    ("patient_id", "group"),
    ("split", "role"),
    ("pixel spacing", "pixel_mm"),
]


@pytest.mark.parametrize(("column", "meant"), COLUMNS)
def test_remark_names_a_column_similar_to_a_known_one(write_manifest, column, meant):
    dataset = read_dataset(write_manifest(f"case,image,{column}\nA,a.nii,m.nii\n"))
    (remark,) = dataset.findings
    assert f"the column {column!r} is unknown and is used for subgroups only" in remark.message
    assert f"Did you mean {meant!r}?" in remark.message


def test_columns_for_subgroups_are_not_remarked_on(write_manifest):
    text = "case,image,reference,label,scanner,age,sex\nA,a.nii,m.nii,x,y,1,f\n"
    assert read_dataset(write_manifest(text)).findings == ()


def test_remark_names_cases_without_a_fold_if_others_have_one(write_manifest):
    text = (
        "case,image,reference,fold,role\nA,a.nii,m.nii,0,\nB,b.nii,m.nii,,\nC,b.nii,m.nii,,test\n"
    )
    (remark,) = read_dataset(write_manifest(text)).findings
    assert "1 case without a fold, used for training in every fold: B" in remark.message


@pytest.mark.parametrize("size", ["nan", "0", "-1", "inf", "0,14"])
def test_invalid_pixel_size_is_an_error_with_an_example(write_manifest, size):
    dataset = read_dataset(write_manifest(f'case,image,pixel_mm\nA,a.nii,"{size}"\n'))
    with pytest.raises(DatasetError, match=f"pixel_mm of 'A' is {size}.*such as 0.143"):
        read_first(dataset)


def test_instance_masks_need_the_label_1_unless_labels_are_merged(write_manifest):
    root = write_manifest("case,image,instances\nA,a.nii,m.nii\n", '{"2": "cyst"}')
    with pytest.raises(DatasetError, match=r"instance masks have the label 1.*\[2\]"):
        read_dataset(root)
    assert read_reference(read_dataset(root, merge_labels=True)).instance_labels == (1,)
