"""The tables of VinDr-CXR and of the RSNA challenge, converted by the scripts in `examples/`."""

import sys
from pathlib import Path

import numpy as np
import pytest

from lesionseg.errors import LesionsegError
from lesionseg.io.cases import read_reference
from lesionseg.io.layouts import read_dataset
from tests.io.dicom_files import DX, write_dicom_file
from tests.io.layouts.box_folders import (
    HEIGHT,
    WIDTH,
    X0,
    X1,
    Y0,
    Y1,
    assert_negative,
    assert_rectangle,
    read_all,
    write_picture,
)

sys.path.append(str(Path(__file__).parents[3] / "examples"))
import rsna_to_boxes
import vindr_to_boxes

KAGGLE = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
PHYSIONET = "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\n"
RSNA = "patientId,x,y,width,height,Target\n"
BRIGHT = "16,4,32,14"


def write_table(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header + "".join(f"{row}\n" for row in rows))


def write_folder(root, table, header, rows, *names):
    """Write pictures, of which only `a` has the rectangle, and a table."""
    for name in names:
        write_picture(root / f"{name}.png", bright=name.endswith("/a"))
    write_table(root / table, header, rows)
    return root


@pytest.fixture
def write_vindr(tmp_path):
    """Write the pictures `a` (with the rectangle), `b` and the unlisted `t`, and Kaggle's table."""
    names = ("train/a", "train/b", "test/t")
    return lambda rows: write_folder(tmp_path, "train.csv", KAGGLE, rows, *names)


@pytest.fixture
def write_rsna(tmp_path):
    """Write the pictures `a` (with the rectangle) and `b`, and the table."""
    names = [f"stage_2_train_images/{name}" for name in "ab"]
    return lambda rows: write_folder(tmp_path, "stage_2_train_labels.csv", RSNA, rows, *names)


def test_error_for_the_tables_names_their_scripts(write_vindr, write_rsna, tmp_path):
    root = write_vindr([f"a,Mass,0,R1,{BRIGHT}"])
    with pytest.raises(LesionsegError, match=r"train\.csv .*VinDr.*examples/vindr_to_boxes\.py"):
        read_dataset(root)
    (root / "train.csv").unlink()
    with pytest.raises(LesionsegError, match=r"labels\.csv .*RSNA.*examples/rsna_to_boxes\.py"):
        read_dataset(write_rsna(["a,16,4,16,10,1"]))


def test_labels_of_vindr_are_in_the_order_of_class_ids(write_vindr):
    rows = [f"a,Cardiomegaly,3,R1,{BRIGHT}", "a,Mass,0,R1,1,2,3,4", "b,No finding,14,R1,0,0,1,1"]
    root = write_vindr(rows)
    vindr_to_boxes.convert(root)
    dataset, cases = read_all(root)
    assert dataset.labels.value_names == {1: "Mass", 2: "Cardiomegaly"}
    assert cases["a"].reference.box_labels == (2, 1)
    assert_negative(cases["b"])


def test_tables_of_physionet_give_roles(write_vindr):
    root = write_vindr([])
    (root / "train.csv").unlink()
    tables = root / "annotations"
    write_table(tables / "annotations_train.csv", PHYSIONET, [f"a,R1,Mass,{BRIGHT}"])
    vindr_to_boxes.convert(root)
    assert [c.role for c in read_dataset(root).cases] == [None]  # a single table gives no roles
    header = "image_id,class_name,x_min,y_min,x_max,y_max\n"
    rows = ["t,Nodule,1,2,3,4"]
    write_table(tables / "annotations_test.csv", header, rows)
    vindr_to_boxes.convert(root)
    dataset, cases = read_all(root)
    assert [(c.case, c.role) for c in dataset.cases] == [("a", "train"), ("t", "test")]
    assert dataset.labels.value_names == {1: "Mass", 2: "Nodule"}
    assert_rectangle(cases["a"])
    write_table(tables / "annotations_test.csv", header, [*rows, "a,Nodule,1,2,3,4"])
    with pytest.raises(SystemExit, match="the image a is in the tables of two roles"):
        vindr_to_boxes.convert(root)


def test_readers_of_vindr_are_merged(write_vindr):
    boxes = {"R1": "15,4,31,14", "R2": "17,4,33,14"}
    rows = [f"a,Mass,0,{reader},{box}" for reader, box in boxes.items()]
    root = write_vindr([*rows, "a,Mass,0,R2,40,20,50,30", "a,No finding,14,R3,,,,"])
    vindr_to_boxes.convert(root)
    assert_rectangle(read_all(root)[1]["a"])


@pytest.mark.parametrize("row", ["a,Mass,0,R1,,,,", "a,,0,R1,1,2,3,4", "b,Mass,1,R1,5,6,7,8"])
def test_row_of_vindr_that_states_no_lesion_is_not_converted(write_vindr, row):
    with pytest.raises(SystemExit, match="class"):
        vindr_to_boxes.convert(write_vindr(["b,Mass,0,R1,1,2,3,4", row]))


def test_wrong_row_of_vindr_is_an_error_of_its_row_in_boxes_csv(write_vindr):
    root = write_vindr(["b,No finding,14,R1,,,,", "a,Mass,0,R1,9,2,3,4"])
    vindr_to_boxes.convert(root)
    with pytest.raises(LesionsegError, match=r"boxes\.csv: line 3: .*x1 is 3"):
        read_dataset(root)


def test_two_images_with_the_same_name_are_not_converted(write_vindr):
    root = write_vindr([f"a,Mass,0,R1,{BRIGHT}"])
    write_picture(root / "test" / "a.png")
    with pytest.raises(SystemExit, match="one name"):
        vindr_to_boxes.convert(root)


def test_box_of_rsna_is_the_bright_rectangle(write_rsna):
    root = write_rsna(["a,16.0,4.0,16.0,10.0,1", "b,,,,,0"])
    rsna_to_boxes.convert(root)
    dataset, cases = read_all(root)
    assert dataset.labels.value_names == {1: "lung opacity"}
    assert_rectangle(cases["a"])
    assert_negative(cases["b"])


@pytest.mark.parametrize("row", ["a,1,2,3,4,0", "a,,,,,1", "a,1,2,3,4,2", "a,1,2,3,4,"])
def test_target_of_rsna_that_contradicts_its_box_is_not_converted(write_rsna, row):
    with pytest.raises(SystemExit, match="Target"):
        rsna_to_boxes.convert(write_rsna([row]))


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (["gone,1,2,3,4,1"], "line 2: .*'gone' has no image"),
        (["a,1,2,-3,4,1"], "line 2: .*x1 is -2"),
        (["a,1,2,3,4,1", "a,,,,,0"], "line 3: the row states that 'a' has no lesion"),
    ],
)
def test_wrong_row_of_rsna_is_an_error_of_its_row_in_boxes_csv(write_rsna, rows, match):
    root = write_rsna([*rows, "b,,,,,0"])
    rsna_to_boxes.convert(root)
    with pytest.raises(LesionsegError, match=rf"boxes\.csv: {match}"):
        read_dataset(root)


def write_radiograph(path, bright):
    """Write a DICOM radiograph with padding in its first 8 rows, over a part of the rectangle."""
    pixels = np.full((HEIGHT, WIDTH), 100, np.uint16)
    pixels[Y0:Y1, X0:X1] += 100 * bright
    pixels[:8] = 0
    facts = {"Modality": "DX", "ImagerPixelSpacing": [0.2, 0.2], "PixelPaddingValue": 0}
    write_dicom_file(path, pixels, DX, **facts)


def test_box_of_a_dicom_radiograph_is_in_its_pixels(tmp_path):
    write_radiograph(tmp_path / "train" / "a.dicom", bright=True)
    write_radiograph(tmp_path / "train" / "b.dicom", bright=False)
    rows = [f"a,Mass,0,R1,{BRIGHT}", "b,No finding,14,R1,,,,"]
    write_table(tmp_path / "train.csv", KAGGLE, rows)
    vindr_to_boxes.convert(tmp_path)
    dataset, cases = read_all(tmp_path)
    reference = cases["a"].reference
    assert reference.boxes.tolist() == [[Y0, X0, Y1, X1]]
    assert cases["a"].image.geometry.spacing_mm == (0.2, 0.2)
    # padding is ignored, except in the box
    assert reference.ignore.sum() == 8 * WIDTH - (8 - Y0) * (X1 - X0)
    assert read_reference(dataset.cases[0], dataset).ignore.sum() == reference.ignore.sum()
    assert not cases["b"].reference.labels.any()
