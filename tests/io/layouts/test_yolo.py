"""YOLO folders: data.yaml, and a text file with the boxes of each image."""

from pathlib import Path

import numpy as np
import pytest

from lesionseg.errors import LesionsegError
from lesionseg.io.layouts import list_dataset, read_dataset
from tests.io.layouts.box_folders import (
    assert_negative,
    assert_rectangle,
    read_all,
    write_picture,
)

# the rectangle: centre 24, 9 and sides 16, 10 of 64 by 40 pixels
BRIGHT = "0.375 0.225 0.25 0.25"
NAMES = "names: [nodule, mass]\n"
FOLDERS = "train: images/train\nval: images/val\n"
BOX_OF_A = {"train/a": f"0 {BRIGHT}"}


@pytest.fixture
def write_folder(tmp_path):
    """Write the pictures train/a (with the rectangle), train/b and val/c, and text files."""

    def write(data=FOLDERS + NAMES, texts=BOX_OF_A):
        for name in ("train/a", "train/b", "val/c"):
            write_picture(tmp_path / "images" / f"{name}.png", bright=name == "train/a")
        for name, text in texts.items():
            file = tmp_path / "labels" / f"{name}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        (tmp_path / "data.yaml").write_text(data)
        return tmp_path

    return write


@pytest.mark.parametrize(
    "names",
    [
        "names:\n  0: nodule\n  1: mass\n",
        "names: {0: nodule, 1: mass}\nnc: 2\n",
        "\ufeffnames: ['nodule', 'mass']\n",
    ],
)
def test_names_may_be_a_list_or_a_dictionary(write_folder, names):
    dataset, cases = read_all(write_folder(names + FOLDERS))
    assert dataset.labels.value_names == {1: "nodule", 2: "mass"}
    assert_rectangle(cases["a"])


@pytest.mark.parametrize(
    ("part", "role"), [("train", None), ("val", "validation"), ("test", "test")]
)
def test_images_of_a_single_part_have_its_role(write_folder, part, role):
    root = write_folder(f"{part}: images/train\n{NAMES}")
    assert {case.role for case in list_dataset(root).cases} == {role}


def test_repeated_names_get_numbers(write_folder):
    root = write_folder("names: [x, x (2), x]\n" + FOLDERS, {"train/a": f"2 {BRIGHT}"})
    dataset, cases = read_all(root)
    assert dataset.labels.value_names == {1: "x", 2: "x (2)", 3: "x (3)"}
    assert_rectangle(cases["a"], label=3)


def test_layout_of_roboflow_has_folders_next_to_data_yaml(tmp_path):
    for part in ("train", "valid"):
        write_picture(tmp_path / part / "images" / "a.png")
        (tmp_path / part / "labels").mkdir()
        (tmp_path / part / "labels" / "a.txt").write_text(f"0 {BRIGHT}")
    text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: [x]"
    (tmp_path / "data.yaml").write_text(text)
    dataset, cases = read_all(tmp_path)
    assert [c.role for c in dataset.cases] == ["train", "validation"]
    assert [*cases] == ["train_images_a", "valid_images_a"]
    for found in cases.values():
        assert_rectangle(found)


@pytest.mark.parametrize("base", ["path: .\n", "path: ../elsewhere\n", "path: /datasets/x\n"])
def test_path_on_another_computer_is_ignored(write_folder, base):
    _, cases = read_all(write_folder(base + FOLDERS + NAMES))
    assert_rectangle(cases["a"])


def test_text_files_may_be_next_to_the_images_and_folders_a_list(tmp_path):
    for name in ("p1/view1", "p2/view1"):
        write_picture(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"0 {BRIGHT}")
    (tmp_path / "data.yaml").write_text("train: [p1, p2]\nval: [p1, p2]\nnames: [x]\n")
    dataset, cases = read_all(tmp_path)
    assert [c.role for c in dataset.cases] == [None, None]
    assert_rectangle(cases["p1_view1"])
    assert_rectangle(cases["p2_view1"])


POLYGON = "0.25 0.1 0.5 0.1 0.5 0.35 0.25 0.35"


def test_polygon_is_filled_and_next_to_a_box_becomes_a_box(write_folder):
    dataset, cases = read_all(write_folder(texts={"train/a": f"1 {POLYGON}"}))
    assert not dataset.lesions_are_boxes
    reference = cases["a"].reference
    np.testing.assert_array_equal(reference.instances > 0, cases["a"].image.array[0] > 0)
    assert reference.instance_labels == (2,)
    dataset, cases = read_all(write_folder(texts={"train/a": f"1 {POLYGON}\n0 {BRIGHT}"}))
    assert dataset.lesions_are_boxes
    assert cases["a"].reference.boxes.tolist() == [[4, 16, 14, 32]] * 2


WRONG = [
    ("0 0.5 0.5 0.1", "the line has 4 values"),
    ("0 0.5 0.5 0.1 0.1 0.9", "6 values.*a prediction with its score"),
    ("0 24 9 16 10", "value 2 is 24, but coordinates are shares of the image"),
    ("0 0.5 0.5 1.2 0.1", "value 4 is 1.2"),
    ("0 -0.5 0.5 0.1 0.1", "value 2 is -0.5"),
    ("0 0.5 nan 0.1 0.1", "value 3 is 'nan'"),
    ("0 0,5 0.5 0.1 0.1", "value 2 is '0,5'"),
    ("0 0.5 0.5 0 0.1", "the box is empty"),
    ("2 0.5 0.5 0.1 0.1", "the class 2 is not in names of data.yaml, which has 0 to 1"),
    ("-1 0.5 0.5 0.1 0.1", "the class -1 is not in names"),
    ("0.5 0.5 0.5 0.1 0.1", "the class 0.5 is not in names"),
    ("nodule 0.5 0.5 0.1 0.1", "the class is 'nodule'"),
    ("0 0.1 0.1 0.2 0.2 0.3 7", "value 7 is 7"),
]


@pytest.mark.parametrize(("line", "match"), WRONG)
def test_wrong_line_is_an_error_that_names_file_and_line(write_folder, line, match):
    with pytest.raises(LesionsegError, match=rf"a\.txt: line 2: .*{match}") as caught:
        read_all(write_folder(texts={"train/a": f"\n{line}\n"}))
    assert "\n" not in str(caught.value)


DATA_WRONG = [
    ("names: [a]\ntrain: gone\n", "train is 'gone', which is not a folder below"),
    ("names: [a]\ntrain: ../..\n", r"train is '\.\./\.\.', which is not a folder below"),
    ("names: [a]\ntrain: /etc\n", "train is '/etc', which is not a folder below"),
    ("names: [a]\ntrain: 7\n", "train"),
    ("names: [a]\ntrain: train.txt\n", "train is 'train.txt'.*text file that lists images"),
    ("names: [a]\nkpt_shape: 4\ntrain: images/train\n", "kpt_shape"),
    ("names: []\ntrain: images/train\n", "names"),
    ("names: 7\ntrain: images/train\n", "names"),
    ("names: {x: a}\ntrain: images/train\n", "names"),
    ("names: [a]\nnc: 2\ntrain: images/train\n", "nc is 2, but names has 1 classes"),
    ("names: [a]\n", "contain no image"),
    ("names: [&a x, *a]\n", "aliases are not supported"),
]


@pytest.mark.parametrize(("data", "match"), DATA_WRONG)
def test_wrong_data_yaml_is_an_error(write_folder, data, match):
    with pytest.raises(LesionsegError, match=rf"data\.yaml: .*{match}") as caught:
        read_dataset(write_folder(data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("root", [".", "../here"])
def test_absolute_path_in_data_yaml_is_read_from_a_relative_folder(
    write_folder, tmp_path, monkeypatch, root
):
    write_folder(f"path: {tmp_path}\n{FOLDERS}{NAMES}")
    monkeypatch.chdir(tmp_path)
    cases = read_dataset(Path(root.replace("here", tmp_path.name))).cases
    n_boxes = {c.case: len(c.annotations["lesions"].lesions) for c in cases}
    assert n_boxes == {"a": 1, "b": 0, "c": 0}


@pytest.mark.parametrize(
    "data",
    [
        "train: images/train\nvalid: images/val\n",
        "Train: images/train\nValidation: images/val\n",
        f"test: images/val\n{FOLDERS}",  # validation goes before test
    ],
)
def test_other_names_of_the_parts_are_read(write_folder, data):
    dataset = read_dataset(write_folder(data + NAMES))
    roles = {c.case: c.role for c in dataset.cases}
    assert roles == {"a": "train", "b": "train", "c": "validation"}
    assert "left_out" not in [remark.kind for remark in dataset.findings]


def test_path_in_data_yaml_outside_its_folder_is_an_error(write_folder, monkeypatch):
    inner = write_folder() / "images"
    (inner / "data.yaml").write_text("names: [a]\ntrain: ../labels\n")
    monkeypatch.chdir(inner)
    with pytest.raises(LesionsegError, match=r"train is '\.\./labels', which is not a folder"):
        read_dataset(Path())


def test_folder_without_any_text_file_is_an_error(write_folder):
    with pytest.raises(LesionsegError, match="no image has a text file with boxes"):
        read_dataset(write_folder(texts={}))


@pytest.mark.parametrize(
    ("content", "match"), [(b"0 0.5 \xff\xe9", "not UTF-8"), (bytes(2**24 + 1), "more than 16 MiB")]
)
def test_text_file_that_cannot_be_read_is_an_error(write_folder, content, match):
    root = write_folder(texts={"train/a": ""})
    (root / "labels" / "train" / "a.txt").write_bytes(content)
    with pytest.raises(LesionsegError, match=rf"a\.txt: .*{match}"):
        read_dataset(root)


@pytest.mark.parametrize(
    ("shape", "points"), [("[4, 2]", " 0.5 0.1" * 4), ("[2, 3]", " 0.5 0.1 2" * 2), ("[4, 2]", "")]
)
def test_key_points_after_a_box_are_left_out(write_folder, shape, points):
    data = f"{FOLDERS}{NAMES}kpt_shape: {shape}\n"
    assert_rectangle(read_all(write_folder(data, {"train/a": f"0 {BRIGHT}{points}\n"}))[1]["a"])
    with pytest.raises(LesionsegError, match=r"a\.txt: line 1: .* 7 values"):
        read_dataset(write_folder(data, {"train/a": f"0 {BRIGHT} 0.5 0.1\n"}))


LISTS = [
    ("train.txt", "./images/train/a.png\n\n./images/train/b.png\n", "./images/val/c.png"),
    ("train.txt", "images/train/a.png\r\nimages/train/b.png\r\n", "images/val/c.png\n"),
    ("train.txt", "images\\train\\a.png\nimages\\train\\b.png\n", "images\\val\\c.png"),
    ("lists/train.txt", "../images/train/a.png\nimages/train/b.png", "images/val/c.png"),
]


@pytest.mark.parametrize(("name", "train", "val"), LISTS)
def test_parts_may_be_text_files_that_list_images(write_folder, name, train, val):
    root = write_folder(f"train: {name}\nval: val.txt\n{NAMES}")
    for file, text in ((root / name, train), (root / "val.txt", val)):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    dataset, cases = read_all(root)
    roles = {c.case: c.role for c in dataset.cases}
    assert roles == {"train_a": "train", "train_b": "train", "val_c": "validation"}
    assert_rectangle(cases["train_a"])
    assert_negative(cases["val_c"])


def test_wrong_line_of_a_list_of_images_is_an_error(write_folder):
    root = write_folder(f"train: train.txt\n{NAMES}")
    (root / "train.txt").write_text("images/train/a.png\nimages/gone.png\n/etc/passwd")
    second, third = list_dataset(root).errors
    assert "line 2" in second.message
    assert "line 3" in third.message
