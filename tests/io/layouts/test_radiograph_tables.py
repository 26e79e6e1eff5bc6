"""Tables of VinDr-CXR and of the RSNA pneumonia challenge."""

import numpy as np
import pytest

from lesionseg.errors import ContentError, LesionsegError
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

KAGGLE = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
PHYSIONET = "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\n"
BRIGHT = "16,4,32,14"


def write_table(path, header, rows, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((header + "".join(f"{row}\n" for row in rows)).encode(encoding))


@pytest.fixture
def write_vindr(tmp_path):
    """Write the pictures `a` (with the rectangle), `b` and the unlisted `t`, and Kaggle's table."""

    def write(rows, header=KAGGLE, encoding="utf-8"):
        write_picture(tmp_path / "train" / "a.png")
        write_picture(tmp_path / "train" / "b.png", bright=False)
        write_picture(tmp_path / "test" / "t.png", bright=False)
        write_table(tmp_path / "train.csv", header, rows, encoding)
        return tmp_path

    return write


def test_box_of_vindr_is_the_bright_rectangle(write_vindr, caplog):
    caplog.set_level("INFO")
    root = write_vindr([f"a,Nodule/Mass,8,R1,{BRIGHT}", "b,No finding,14,R1,,,,"])
    dataset, cases = read_all(root)
    assert (dataset.convention, dataset.lesions_are_boxes) == ("vindr", True)
    assert [*cases] == ["a", "b"]
    assert_rectangle(cases["a"])
    assert_negative(cases["b"])
    assert "1 image without a row, left out: t.png." in caplog.text


def test_labels_of_vindr_are_in_the_order_of_class_ids(write_vindr):
    rows = [f"a,Cardiomegaly,3,R1,{BRIGHT}", "a,Mass,0,R1,1,2,3,4", "b,No finding,14,R1,0,0,1,1"]
    dataset, cases = read_all(write_vindr(rows))
    assert dataset.labels.value_names == {1: "Mass", 2: "Cardiomegaly"}
    assert cases["a"].reference.box_labels == (2, 1)
    assert_negative(cases["b"])


def test_tables_of_physionet_give_roles(write_vindr):
    root = write_vindr([f"a,Mass,0,R1,{BRIGHT}"])
    (root / "train.csv").unlink()
    tables = root / "annotations"
    write_table(tables / "annotations_train.csv", PHYSIONET, [f"a,R1,Mass,{BRIGHT}"])
    assert [c.role for c in read_dataset(root).cases] == [None]  # a single table gives no roles
    header = "image_id,class_name,x_min,y_min,x_max,y_max\n"
    rows = ["t,Nodule,1,2,3,4"]
    write_table(tables / "annotations_test.csv", header, rows)
    dataset, cases = read_all(root)
    assert [(c.case, c.role) for c in dataset.cases] == [("a", "train"), ("t", "test")]
    assert dataset.labels.value_names == {1: "Mass", 2: "Nodule"}
    assert_rectangle(cases["a"])
    assert cases["t"].reference.boxes.tolist() == [[2, 1, 4, 3]]
    write_table(tables / "annotations_test.csv", header, [*rows, "a,Nodule,1,2,3,4"])
    with pytest.raises(LesionsegError, match=r"test\.csv: line 3: the image 'a' is in two tables"):
        read_dataset(root)


VINDR_WRONG = [
    ("gone,Mass,0,R1,1,2,3,4", "line 2: there is no image 'gone'"),
    ("../train/a,Mass,0,R1,1,2,3,4", r"there is no image '\.\./train/a'"),
    ("a,Mass,0,R1,1,2,x,4", "x_max is 'x'"),
    ("a,Mass,0,R1,1,2,NaN,4", "x_max is 'NaN'"),
    ("a,Mass,0,R1,9,2,3,4", "x_max is 3, but must be greater than x_min, 9"),
    ("a,Mass,0,R1,,,,", "a class without a box"),
    ("a,,0,R1,1,2,3,4", "a box without a class"),
    ("a,Mass,x,R1,1,2,3,4", "class_id is 'x'"),
    ("a,Mass,0,R1,1,2,3,4\na,Mass,1,R1,5,6,7,8", "line 3: the class 'Mass' has the class_id '1'"),
    ("a,Mass,0,R1,1,2,3,4\na,Cyst,0,R1,5,6,7,8", "line 3: the class 'Cyst' has the class_id '0'"),
    ("a,Mass,0,R1,1,2,3,4\na,No finding,14,R1,,,,", "of the reader 'R1' has a box"),
    ("a,Mass,0,R1,1,2,3,4\na,Mass,0,,1,2,3,4", "line 3: the row of 'a' names no reader"),
]


@pytest.mark.parametrize(("rows", "match"), VINDR_WRONG)
def test_wrong_row_of_vindr_is_an_error_that_names_file_and_line(write_vindr, rows, match):
    with pytest.raises(LesionsegError, match=rf"train\.csv.*{match}") as caught:
        read_dataset(write_vindr([rows]))
    assert "\n" not in str(caught.value)


def test_missing_columns_of_vindr_are_an_error(write_vindr):
    with pytest.raises(LesionsegError, match=r"train\.csv: .* no columns 'x_max', 'y_max', only"):
        read_dataset(write_vindr([], "image_id,class_name,x_min,y_min\n"))


def test_box_of_vindr_outside_its_image_is_an_error(write_vindr):
    with pytest.raises(ContentError, match=r"train\.csv: line 2: the box is .*outside its image"):
        read_all(write_vindr(["a,Mass,0,R1,500,400,600,500"]))


def test_two_images_with_the_same_name_are_an_error(write_vindr):
    root = write_vindr([f"a,Mass,0,R1,{BRIGHT}"])
    write_picture(root / "test" / "a.png")
    with pytest.raises(LesionsegError, match=r"line 2: .*are both called 'a'. Keep one"):
        read_dataset(root)


@pytest.mark.parametrize(
    ("separator", "encoding"), [(",", "utf-8-sig"), (";", "utf-8"), ("\t", "utf-16")]
)
def test_separator_and_encoding_of_spreadsheets_are_read(write_vindr, separator, encoding):
    header = KAGGLE.replace(",", separator)
    row = f"a,Mass,0,R1,{BRIGHT}".replace(",", separator)
    _, cases = read_all(write_vindr([row], header, encoding))
    assert_rectangle(cases["a"])


def write_radiograph(path, bright):
    """Write a DICOM radiograph with padding in its first 8 rows, over a part of the rectangle."""
    pixels = np.full((HEIGHT, WIDTH), 100, np.uint16)
    if bright:
        pixels[Y0:Y1, X0:X1] = 200
    pixels[:8] = 0
    write_dicom_file(
        path,
        pixels,
        DX,
        Modality="DX",
        ImagerPixelSpacing=[0.2, 0.2],
        PixelPaddingValue=0,
    )


@pytest.mark.parametrize("layout", ["vindr", "rsna"])
def test_box_of_a_dicom_radiograph_is_in_its_pixels(tmp_path, layout):
    if layout == "vindr":
        names = [tmp_path / "train" / f"{name}.dicom" for name in "ab"]
        rows = [f"a,Mass,0,R1,{BRIGHT}", "b,No finding,14,R1,,,,"]
        write_table(tmp_path / "train.csv", KAGGLE, rows)
    else:
        names = [tmp_path / "stage_2_train_images" / f"{name}.dcm" for name in "ab"]
        write_table(tmp_path / "stage_2_train_labels.csv", RSNA, ["a,16,4,16,10,1", "b,,,,,0"])
    write_radiograph(names[0], bright=True)
    write_radiograph(names[1], bright=False)
    dataset, cases = read_all(tmp_path)
    reference = cases["a"].reference
    assert reference.boxes.tolist() == [[Y0, X0, Y1, X1]]
    assert cases["a"].image.geometry.spacing_mm == (0.2, 0.2)
    assert (cases["a"].image.array[0, 8:Y1, X0:X1] > cases["a"].image.array[0, 8, 0]).all()
    # padding is ignored, except in the box
    assert reference.ignore.sum() == 8 * WIDTH - (8 - Y0) * (X1 - X0)
    assert read_reference(dataset.cases[0], dataset).ignore.sum() == reference.ignore.sum()
    assert not cases["b"].reference.labels.any()


RSNA = "patientId,x,y,width,height,Target\n"


@pytest.fixture
def write_rsna(tmp_path):
    """Write the pictures `a` (with the rectangle) and `b`, and the table."""

    def write(rows, header=RSNA):
        write_picture(tmp_path / "stage_2_train_images" / "a.png")
        write_picture(tmp_path / "stage_2_train_images" / "b.png", bright=False)
        write_table(tmp_path / "stage_2_train_labels.csv", header, rows)
        return tmp_path

    return write


def test_box_of_rsna_is_the_bright_rectangle(write_rsna):
    dataset, cases = read_all(write_rsna(["a,16.0,4.0,16.0,10.0,1", "b,,,,,0"]))
    assert (dataset.convention, dataset.lesions_are_boxes) == ("rsna", True)
    assert dataset.labels.value_names == {1: "lung opacity"}
    assert_rectangle(cases["a"])
    assert_negative(cases["b"])


RSNA_WRONG = [
    ("gone,1,2,3,4,1", "line 2: there is no image 'gone'"),
    ("a,1,2,3,4,0", "Target is '0', but the row has a box"),
    ("a,,,,,1", "Target is '1', but the row has no box"),
    ("a,1,2,3,4,2", "Target is '2'"),
    ("a,1,2,3,4,", "Target is 'empty'"),
    ("a,1,2,-3,4,1", "the box is -3 wide and 4 high"),
    ("a,1,2,nan,4,1", "width is 'nan'"),
    ("a,1,2,,4,1", "width is empty"),
    ("a,1,2,3,4,1\na,,,,,0", "line 3: the row states that 'a' has no lesion, but another row has"),
]


@pytest.mark.parametrize(("rows", "match"), RSNA_WRONG)
def test_wrong_row_of_rsna_is_an_error_that_names_file_and_line(write_rsna, rows, match):
    with pytest.raises(LesionsegError, match=rf"stage_2_train_labels\.csv.*{match}") as caught:
        read_dataset(write_rsna([rows]))
    assert "\n" not in str(caught.value)


def test_missing_column_of_rsna_is_an_error(write_rsna):
    with pytest.raises(LesionsegError, match=r"no column 'Target', only patientId, x, y"):
        read_dataset(write_rsna(["a,1,2,3,4"], "patientId,x,y,width,height\n"))


def test_box_of_rsna_outside_its_image_is_an_error(write_rsna):
    with pytest.raises(ContentError, match=r"line 3: the box is .*x 64 to 66 of 0 to 64"):
        read_all(write_rsna(["b,,,,,0", "a,64,4,2,3,1"]))
