"""The table `boxes.csv` next to images or to a manifest."""

import os

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ContentError, DatasetError, LesionsegError
from lesionseg.io.layouts import list_dataset, read_dataset
from lesionseg.io.layouts.checks import list_images
from lesionseg.io.references import References
from lesionseg.io.volumes import write_volume
from tests.io.dicom_files import DX, write_dicom_file
from tests.io.layouts.box_folders import assert_negative, assert_rectangle, read_all, write_picture

HEADER = "case,label,x0,y0,x1,y1\n"
BRIGHT = "16,4,32,14"


@pytest.fixture
def write_folder(tmp_path):
    """Write the pictures `a` (with the rectangle), `b` and `p1/c`, and the table."""

    def write(rows, header=HEADER, encoding="utf-8"):
        write_picture(tmp_path / "images" / "a.png")
        for name in ("b", "p1/c"):
            write_picture(tmp_path / "images" / f"{name}.png", bright=False)
        text = header + "".join(f"{row}\n" for row in rows)
        (tmp_path / "boxes.csv").write_bytes(text.encode(encoding))
        return tmp_path

    return write


def test_images_may_be_next_to_the_table(tmp_path):
    write_picture(tmp_path / "a.png")
    write_picture(tmp_path / "masks" / "a.png")  # not an image
    (tmp_path / "boxes.csv").write_text(f"{HEADER}a,nodule,{BRIGHT}\n")
    dataset, cases = read_all(tmp_path)
    assert len(dataset.cases) == 1
    assert_rectangle(cases["a"])


def test_results_are_not_images_and_links_are_followed(tmp_path):
    root = tmp_path / "set"
    for name in ("set/a", "set/found/a_mask", "set/.hidden/a", "elsewhere/b"):
        write_picture(tmp_path / f"{name}.png")
    (root / "found" / "predictions.csv").write_text("")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    (root / "boxes.csv").write_text(f"{HEADER}a,nodule,{BRIGHT}\n")
    assert [c.case for c in read_dataset(root).cases] == ["a", "linked_b"]


@pytest.mark.parametrize("is_reversed", [False, True])
def test_linked_folder_has_the_path_without_the_link(tmp_path, monkeypatch, is_reversed):
    """The order in which the disk lists the folders does not matter."""
    root = tmp_path / "set"
    write_picture(root / "b" / "deep" / "x.png")
    write_picture(tmp_path / "elsewhere" / "y.png")
    (root / "a").mkdir()
    for link, folder in (("a/up", "b"), ("c", "b"), ("d", "b/deep"), ("f", "a")):
        (root / link).symlink_to(root / folder)
    for link in ("e", "a/e"):
        (root / link).symlink_to(tmp_path / "elsewhere")

    def walk_in_order(top, **options):
        for place, folders, names in walk(top, **options):
            folders.sort(reverse=is_reversed)
            yield place, folders, names

    walk = os.walk
    monkeypatch.setattr(os, "walk", walk_in_order)
    assert list_images(root) == [root / "a" / "e" / "y.png", root / "b" / "deep" / "x.png"]


@pytest.mark.parametrize("name", ["p1_c", "p1/c", "p1/c.png", "images/p1/c.png", "images/p1/c"])
def test_case_may_be_named_by_its_id_or_its_path(write_folder, name):
    _, cases = read_all(write_folder([f"{name},nodule,1.5,2.25,3,4"]))
    assert cases["p1_c"].reference.boxes.tolist() == [[2.25, 1.5, 4, 3]]


ROWS = [f"a,nodule,{BRIGHT}", "b,mass,1,2,3,4", "b,nodule,5,6,7,8"]


@pytest.mark.parametrize(("merged", "labels"), [(False, (1, 2)), (True, (1, 1))])
def test_labels_are_numbered_in_alphabetical_order(write_folder, merged, labels):
    dataset, cases = read_all(write_folder(ROWS), merge_labels=merged)
    assert dataset.labels.value_names == ({1: "lesion"} if merged else {1: "mass", 2: "nodule"})
    assert cases["b"].reference.box_labels == labels


def test_labels_json_gives_the_numbers_of_labels(write_folder):
    root = write_folder([*ROWS[1:], f"a,nodule,{BRIGHT}"])
    (root / "labels.json").write_text('{"1": "nodule", "4": "mass"}')
    _, cases = read_all(root)
    assert_rectangle(cases["a"])
    assert cases["b"].reference.box_labels == (4, 1)
    for unknown in ("1", "9" * 5000):
        with pytest.raises(DatasetError, match=rf"line 2: the label '{unknown[:3]}.*is not in lab"):
            read_dataset(write_folder([f"a,{unknown},1,2,3,4"]))


def test_manifest_gives_images_patients_and_roles(write_folder):
    root = write_folder([f"first,nodule,{BRIGHT}", "images/b.png,nodule,1,2,3,4"])
    rows = (
        "first,images/a.png,P1,train,0.2\nsecond,images/b.png,P2,test,\nthird,images/p1/c.png,,,\n"
    )
    (root / "manifest.csv").write_text(f"case,image,group,role,pixel_mm\n{rows}")
    dataset, cases = read_all(root)
    assert dataset.layout == "boxes"
    found = [(c.case, c.group, c.role) for c in dataset.cases]
    assert found == [("first", "P1", "train"), ("second", "P2", "test"), ("third", "third", None)]
    assert_rectangle(cases["first"])
    assert cases["first"].image.geometry.spacing_mm == (0.2, 0.2)
    assert cases["second"].reference.boxes.tolist() == [[2, 1, 4, 3]]
    assert_negative(cases["third"])


FACTS = "case,label,x0,y0,x1,y1,group,role,fold\n"


def test_rows_state_patient_role_and_fold_of_their_case(write_folder):
    # pandas writes 0.0 if a cell of the column is empty
    rows = [f"a,nodule,{BRIGHT},P1,train,0", "a,nodule,1,2,3,4,P1,,0.0", "b,,,,,,P2,test,"]
    cases = read_dataset(write_folder(rows, FACTS)).cases
    found = [(c.group, c.role, c.fold) for c in cases]
    assert found == [("P1", "train", 0), ("P2", "test", None), ("p1_c", None, None)]


def test_manifest_and_table_must_not_contradict_each_other(write_folder):
    root = write_folder([f"a,nodule,{BRIGHT},P1,test,"], FACTS)
    table = root / "manifest.csv"
    table.write_text("case,image,group,fold\na,images/a.png,P1,3\n")
    (case,) = read_dataset(root).cases
    assert (case.group, case.role, case.fold) == ("P1", "test", 3)
    table.write_text("case,image,role\na,images/a.png,train\n")
    match = r"line 2: role of .*'test' here, but 'train' in .*manifest\.csv: line 2"
    with pytest.raises(LesionsegError, match=match):
        read_dataset(root)


def test_columns_whose_names_resemble_known_ones_are_named(write_folder):
    header = "case,label,x0,y0,x1,y1,patient_id,split,Reader,note\n"
    warnings = read_dataset(write_folder([f"a,nodule,{BRIGHT},P1,test,A,7"], header)).findings
    found = [remark.message for remark in warnings if remark.kind == "columns"]
    meant = (("Reader", "reader"), ("patient_id", "group"), ("split", "role"))
    for message, (column, known) in zip(found, meant, strict=True):
        assert f"{column!r} is unknown" in message
        assert f"Did you mean {known!r}?" in message


MASKS = "case,image,reference\na,images/a.png,{}\nb,images/b.png,mask.png\n"


def write_masks(root, mask_of_a=""):
    """Write a mask of case b and optionally of case a, with a manifest."""
    write_picture(root / "mask.png")
    (root / "manifest.csv").write_text(MASKS.format(mask_of_a))
    (root / "labels.json").write_text('{"255": "lesion"}')
    return root


def test_case_with_a_mask_in_the_manifest_keeps_it(write_folder):
    _, cases = read_all(write_masks(write_folder([f"a,lesion,{BRIGHT}"])))
    assert_rectangle(cases["a"], label=255)
    assert (cases["b"].reference.labels > 0).sum() == 160


@pytest.mark.parametrize(
    "rows",
    [[f"a,lesion,{BRIGHT},"], ["a,,,,,,"], [f"a,lesion,{BRIGHT},R1", f"a,lesion,{BRIGHT},R2"]],
    ids=["one box", "no lesion", "two readers"],
)
def test_case_with_rows_and_a_mask_is_an_error(write_folder, rows):
    root = write_masks(write_folder(rows, "case,label,x0,y0,x1,y1,reader\n"), "mask.png")
    with pytest.raises(LesionsegError, match=r"boxes\.csv: line 2: the case 'a' has a mask"):
        read_dataset(root)


def write_volumes(root, *names, bright=()):
    """Write volumes of 6 slices, which are dark except for a box."""
    array = np.zeros((1, 6, 20, 30), np.int16)
    array[bright] = 100
    for name in names:
        write_volume(root / name, Volume(array, Geometry.from_spacing((6, 20, 30), (3, 1, 1))))


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha"])
def test_box_of_a_volume_has_slices_last_in_the_table_and_first_in_the_array(tmp_path, name):
    write_volumes(tmp_path, name, bright=np.s_[0, 1:3, 4:9, 10:22])
    (tmp_path / "boxes.csv").write_text(
        "case,label,x0,y0,x1,y1,z0,z1\na,nodule,10,4,22,9,1,3\n",
    )
    dataset, cases = read_all(tmp_path)
    assert dataset.dims == 3
    assert cases["a"].reference.boxes.tolist() == [[1, 4, 10, 3, 9, 22]]
    assert (cases["a"].image.array[0, 1:3, 4:9, 10:22] == 100).all()


def test_box_of_a_volume_without_slices_is_an_error(tmp_path):
    write_volumes(tmp_path, "a.nii.gz")
    (tmp_path / "boxes.csv").write_text(f"{HEADER}a,nodule,1,2,3,4\n")
    with pytest.raises(ContentError, match=r"boxes\.csv: line 2: the box has 2 axes.*z0 and z1"):
        read_all(tmp_path)


def test_volumes_numbered_like_channels_need_a_manifest(tmp_path):
    write_volumes(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz")
    (tmp_path / "boxes.csv").write_text(HEADER)
    with pytest.raises(LesionsegError, match=r"two channels of one case.*manifest\.csv"):
        read_dataset(tmp_path)


def test_numbers_of_radiographs_are_not_channels(tmp_path):
    for name in ("a_0000.dcm", "a_0001.dcm"):
        write_dicom_file(tmp_path / name, np.zeros((20, 30), np.uint16), DX, PixelSpacing=[1, 1])
    (tmp_path / "boxes.csv").write_text(HEADER)
    assert [files.case for files in read_dataset(tmp_path).cases] == ["a", "a_0001"]


def test_repeated_rows_count_once_with_a_warning(write_folder, caplog):
    root = write_folder([f"a,nodule,{BRIGHT}"] * 3 + ["b,,,,,", "b,,,,,"])
    _, cases = read_all(root)
    assert_rectangle(cases["a"])
    assert "boxes.csv: 2 repeated rows counted once: " in caplog.text
    assert "boxes.csv: line 3, " in caplog.text


WRONG = [
    ("gone,nodule,1,2,3,4", r"line 2: the case 'gone' has no image"),
    ("p1_d,nodule,1,2,3,4", r"the case 'p1_d' has no image. Did you mean 'p1_c'\?"),
    ("../images/a,nodule,1,2,3,4", r"the case '\.\./images/a' has no image"),
    ("/etc/passwd,nodule,1,2,3,4", r"the case '/etc/passwd' has no image"),
    ("b,,,,,\n\n\na,nodule,1,2,x,4", r"line 5: x1 is 'x'\. Write a number\."),
    ("a,nodule,1,2,nan,4", "x1 is 'nan'"),
    ("a,nodule,1,2,inf,4", "x1 is 'inf'"),
    ("a,nodule,1,2,1_0,4", "x1 is '1_0'"),
    ('a,nodule,1,2,"3,5",4', "x1 is '3,5'. Write a number with a decimal point"),
    ("a,nodule,1,2,1e10,4", "x1 is '1e10'"),
    ("a,nodule,1,2,,4", "x1 is empty, but another coordinate is not"),
    ("a,nodule,1,2,1,4", "x1 is 1, but must be greater than x0, 1"),
    ("a,nodule,1,9,3,4", "y1 is 4, but must .* y0, 9. If y1 is a length, write y0 .+ length"),
    ("a,,1,2,3,4", "the label is empty"),
    ("a,nodule,1,2,3,4,5", "line 2 has more values than there are columns"),
    ("a,nodule,.1,.2,.3,.4", "line 2: the box .* shares of the image"),
    ("a,,,,,\na,nodule,1,2,3,4", "line 2: the row states that 'a' has no lesion, but another row"),
]
WRONG_TABLES = [
    ("case,label,x0,y0,x1\n", "", "columns 'y1' are missing.*case, label, x0, y0, x1"),
    ("case,label,x,y,w,h\n", "", "'x0', 'y0', 'x1', 'y1' are missing.*write x1 = x0 .+ wid"),
    ("case,label,x0,x0,x1,y1\n", "", "two columns are called 'x0'"),
    ("case;label;x0;y0\n", "", "'x1', 'y1' are missing"),
    ("", "a,nodule,1,2,3,4", "columns 'case'"),
    (
        FACTS,
        "a,nodule,1,2,3,4,P1,train,\na,nodule,5,6,7,8,P2,train,",
        "line 3: group of the case 'a' is 'P2' here, but 'P1' in .*line 2",
    ),
    (FACTS, "a,nodule,1,2,3,4,,tset,", "line 2: role: tset "),
    (FACTS, "a,nodule,1,2,3,4,,,-1", "line 2: fold: -1 "),
]


@pytest.mark.parametrize(
    ("header", "rows", "match"), [*((HEADER, *row) for row in WRONG), *WRONG_TABLES]
)
def test_wrong_row_is_an_error_that_names_file_and_line(write_folder, header, rows, match):
    with pytest.raises(LesionsegError, match=rf"boxes\.csv.*{match}") as caught:
        read_dataset(write_folder([rows], header))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rotation", ["0", "180", "359.999", "", "90", "12.5"])
def test_rotated_boxes_are_refused(write_folder, rotation):
    root = write_folder([f"a,nodule,{BRIGHT},{rotation}"], "case,label,x0,y0,x1,y1,rotation\n")
    if rotation in ("90", "12.5"):
        with pytest.raises(DatasetError, match="line 2: the box is rotated"):
            read_dataset(root)
    else:
        assert_rectangle(read_all(root)[1]["a"])


@pytest.mark.parametrize(
    ("stated", "box"), [([0, 0, 1, 1], [0, 0, 1, 1]), ([60, -3, 70, 5], [0, 60, 5, 64])]
)
def test_box_that_reaches_outside_is_clipped_and_kept_as_stated(write_folder, stated, box):
    _, cases = read_all(write_folder([",".join(map(str, ["a", "nodule", *stated]))]))
    reference = cases["a"].reference
    assert reference.boxes.tolist() == [box]
    x0, y0, x1, y1 = stated
    assert reference.annotated_boxes.boxes.tolist() == [[y0, x0, y1, x1]]


@pytest.mark.parametrize("name", ["No finding", "no_findings", "NO LESION"])
@pytest.mark.parametrize("box", [",,,", "0,0,1,1", "-1,-1,-1,-1", "NaN,NaN,NaN,NaN"])
def test_no_finding_with_a_dummy_box_is_a_case_without_lesions(write_folder, name, box):
    dataset, cases = read_all(write_folder([f"a,nodule,{BRIGHT}", f"b,{name},{box}"]))
    assert dataset.labels.value_names == {1: "nodule"}
    assert_rectangle(cases["a"])
    assert_negative(cases["b"])
    dataset, cases = read_all(write_folder([f"a,{name},{box}"]))
    assert dataset.labels.value_names == {1: "lesion"}
    assert_negative(cases["a"])


def test_reader_with_no_finding_counts_as_one_who_read_the_case(write_folder):
    rows = [*(f"a,No finding,0,0,1,1,r{reader}" for reader in (1, 2)), f"a,nodule,{BRIGHT},r3"]
    _, cases = read_all(write_folder(rows, "case,label,x0,y0,x1,y1,reader\n"))
    assert_negative(cases["a"])


def test_check_lists_a_wrong_row_and_keeps_the_other_cases(write_folder):
    dataset = list_dataset(write_folder(["a,nodule,1,2,1,4", "b,nodule,1,2,3,4"]))
    assert [problem.case for problem in dataset.errors] == ["a"]
    assert [c.case for c in dataset.cases] == ["a", "b", "p1_c"]
    assert "1 image of 3 without a row" in dataset.findings[-1].message


def test_table_of_another_program_is_an_error(write_folder):
    root = write_folder(["a,c,1,2,3,4"], "image,class,xmin,ymin,xmax,ymax\n")
    with pytest.raises(LesionsegError, match=r"columns 'case'.* Rename"):
        read_dataset(root)


def test_too_many_labels_or_boxes_of_a_case_are_an_error(write_folder, monkeypatch):
    rows = [f"a,finding {number},{number},2,{number + 1},4" for number in range(256)]
    with pytest.raises(LesionsegError, match=r"label 256 .* is above 255"):
        read_dataset(write_folder(rows))
    monkeypatch.setattr("lesionseg.io.layouts.table.MAX_LESIONS", 3)
    with pytest.raises(LesionsegError, match="line 5: the case 'a' has more than 3 boxes"):
        read_dataset(write_folder(rows[:4]))


def test_references_of_which_all_rows_are_wrong_give_the_errors_of_the_rows(write_folder):
    root = write_folder([f"{case},nodule,1,2,x,4" for case in ("a", "b", "p1/c")])
    with pytest.raises(DatasetError, match=r"boxes\.csv: line 2: x1 is 'x'"):
        References.find(root)
