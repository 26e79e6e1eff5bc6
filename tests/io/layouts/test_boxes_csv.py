"""The table `boxes.csv` next to images or to a manifest."""

import os

import numpy as np
import pytest
from pydicom.uid import DigitalXRayImageStorageForPresentation

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ContentError, DatasetError, LesionsegError, ReadError
from lesionseg.io.layouts import list_dataset, read_dataset
from lesionseg.io.layouts.checks import list_images
from lesionseg.io.references import References
from lesionseg.io.volumes import write_volume
from tests.io.dicom_files import write_dicom_file
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
    _, cases = read_all(tmp_path)
    assert [*cases] == ["a"]
    assert_rectangle(cases["a"])


def test_results_are_not_images_and_links_are_followed(tmp_path):
    root = tmp_path / "set"
    write_picture(root / "a.png")
    write_picture(root / "found" / "a_mask.png")
    (root / "found" / "predictions.csv").write_text("")
    write_picture(root / ".hidden" / "a.png")
    write_picture(tmp_path / "elsewhere" / "b.png", bright=False)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    (root / "boxes.csv").write_text(f"{HEADER}a,nodule,{BRIGHT}\n")
    dataset = read_dataset(root)
    assert [c.case for c in dataset.cases] == ["a", "linked_b"]


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


@pytest.mark.parametrize(
    ("separator", "encoding"), [(",", "utf-8-sig"), (";", "utf-8"), ("\t", "utf-16")]
)
def test_separator_and_encoding_of_spreadsheets_are_read(write_folder, separator, encoding):
    row = f"a,nodule,{BRIGHT}".replace(",", separator)
    _, cases = read_all(write_folder([row], HEADER.replace(",", separator), encoding))
    assert_rectangle(cases["a"])


def test_line_of_excel_that_states_the_separator_is_skipped(write_folder):
    rows = [f"a,nodule,{BRIGHT}".replace(",", ";"), "b;nodule;x;1;2;3"]
    root = write_folder(rows[:1], "sep=;\n" + HEADER.replace(",", ";"))
    _, cases = read_all(root)
    assert_rectangle(cases["a"])
    with pytest.raises(LesionsegError, match="line 4: x0"):
        read_dataset(write_folder(rows, "sep=;\n" + HEADER.replace(",", ";")))


ROWS = [f"a,nodule,{BRIGHT}", "b,mass,1,2,3,4", "b,nodule,5,6,7,8"]


def test_labels_are_numbered_in_alphabetical_order(write_folder):
    dataset, cases = read_all(write_folder(ROWS))
    assert dataset.labels.value_names == {1: "mass", 2: "nodule"}
    assert cases["b"].reference.box_labels == (1, 2)


def test_labels_json_gives_the_numbers_of_labels(write_folder):
    root = write_folder(ROWS)
    (root / "labels.json").write_text('{"1": "nodule", "4": "mass"}')
    _, cases = read_all(root)
    assert_rectangle(cases["a"])
    assert cases["b"].reference.box_labels == (4, 1)
    _, cases = read_all(write_folder([f"a,4,{BRIGHT}"]))
    assert_rectangle(cases["a"], label=4)


def test_merged_labels_have_the_number_1(write_folder):
    _, cases = read_all(write_folder(ROWS), merge_labels=True)
    assert cases["b"].reference.box_labels == (1, 1)


def test_manifest_gives_images_patients_and_roles(write_folder):
    root = write_folder([f"first,nodule,{BRIGHT}", "images/b.png,nodule,1,2,3,4"])
    (root / "manifest.csv").write_text(
        "case,image,group,role,pixel_mm\n"
        "first,images/a.png,P1,train,0.2\n"
        "second,images/b.png,P2,test,\n"
        "third,images/p1/c.png,P3,,\n"
    )
    dataset, cases = read_all(root)
    assert dataset.layout == "boxes"
    assert [(c.case, c.group, c.role) for c in dataset.cases] == [
        ("first", "P1", "train"),
        ("second", "P2", "test"),
        ("third", "P3", None),
    ]
    assert_rectangle(cases["first"])
    assert cases["first"].image.geometry.spacing_mm == (0.2, 0.2)
    assert cases["second"].reference.boxes.tolist() == [[2, 1, 4, 3]]
    assert_negative(cases["third"])


FACTS = "case,label,x0,y0,x1,y1,group,role,fold\n"


def test_rows_state_patient_role_and_fold_of_their_case(write_folder):
    # pandas writes 0.0 if a cell of the column is empty
    rows = [f"a,nodule,{BRIGHT},P1,train,0", "a,nodule,1,2,3,4,P1,,0.0", "b,,,,,,P2,test,"]
    dataset = read_dataset(write_folder(rows, FACTS))
    found = [(c.case, c.group, c.role, c.fold) for c in dataset.cases]
    assert found == [
        ("a", "P1", "train", 0),
        ("b", "P2", "test", None),
        ("p1_c", "p1_c", None, None),
    ]


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (
            [f"a,nodule,{BRIGHT},P1,train,", "a,nodule,1,2,3,4,P2,train,"],
            "line 3: group of the case 'a' is 'P2' here, but 'P1' in .*line 2",
        ),
        (
            [f"a,nodule,{BRIGHT},,train,", "a,nodule,1,2,3,4,,test,"],
            "line 3: role of the case 'a' is 'test' here, but 'train' in .*line 2",
        ),
        ([f"a,nodule,{BRIGHT},,tset,"], "line 2: role: tset "),
        ([f"a,nodule,{BRIGHT},,,-1"], "line 2: fold: -1 "),
    ],
)
def test_contradictory_or_wrong_facts_of_a_case_are_an_error(write_folder, rows, match):
    with pytest.raises(LesionsegError, match=rf"boxes\.csv: {match}"):
        read_dataset(write_folder(rows, FACTS))


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
    rows = [f"a,nodule,{BRIGHT},P1,test,A,7"]
    header = "case,label,x0,y0,x1,y1,patient_id,split,Reader,note\n"
    remarks = read_dataset(write_folder(rows, header)).findings
    found = [remark.message for remark in remarks if remark.kind == "columns"]
    for column, meant in (("Reader", "reader"), ("patient_id", "group"), ("split", "role")):
        text = f"the column {column!r} is unknown and has no effect. Did you mean {meant!r}?"
        assert text in found.pop(0)
    assert not found


def test_case_with_a_mask_in_the_manifest_keeps_it(write_folder):
    root = write_folder([f"a,lesion,{BRIGHT}"])
    write_picture(root / "mask.png")
    (root / "manifest.csv").write_text(
        "case,image,reference\na,images/a.png,\nb,images/b.png,mask.png\n"
    )
    (root / "labels.json").write_text('{"255": "lesion"}')
    _, cases = read_all(root)
    assert_rectangle(cases["a"], label=255)
    assert (cases["b"].reference.labels > 0).sum() == 160


@pytest.mark.parametrize(
    "rows",
    [[f"a,lesion,{BRIGHT},"], ["a,,,,,,"], [f"a,lesion,{BRIGHT},R1", f"a,lesion,{BRIGHT},R2"]],
    ids=["one box", "no lesion", "two readers"],
)
def test_case_with_rows_and_a_mask_is_an_error(write_folder, rows):
    root = write_folder(rows, header="case,label,x0,y0,x1,y1,reader\n")
    write_picture(root / "mask.png")
    (root / "manifest.csv").write_text(
        "case,image,reference\na,images/a.png,mask.png\nb,images/b.png,mask.png\n"
    )
    (root / "labels.json").write_text('{"255": "lesion"}')
    with pytest.raises(LesionsegError, match=r"boxes\.csv: line 2: the case 'a' has a mask"):
        read_dataset(root)


def test_box_of_a_volume_has_slices_last_in_the_table_and_first_in_the_array(tmp_path):
    array = np.zeros((1, 6, 20, 30), np.int16)  # z, y, x
    array[0, 1:3, 4:9, 10:22] = 100
    for name in ("a.nii.gz", "b.mha"):
        grid = Geometry.from_spacing((6, 20, 30), (3, 1, 1))
        write_volume(tmp_path / name, Volume(array, grid))
    header = "case,label,x0,y0,x1,y1,z0,z1\n"
    rows = "".join(f"{case},nodule,10,4,22,9,1,3\n" for case in "ab")
    (tmp_path / "boxes.csv").write_text(header + rows)
    dataset, cases = read_all(tmp_path)
    assert dataset.dims == 3
    for case in cases.values():
        z0, y0, x0, z1, y1, x1 = case.reference.boxes[0].astype(int)
        assert (case.image.array[0, z0:z1, y0:y1, x0:x1] == 100).all()
        assert (case.image.array > 0).sum() == (z1 - z0) * (y1 - y0) * (x1 - x0)


def test_box_of_a_volume_without_slices_is_an_error(tmp_path):
    grid = Geometry.from_spacing((6, 20, 30), (3, 1, 1))
    write_volume(tmp_path / "a.nii.gz", Volume(np.zeros((1, 6, 20, 30), np.int16), grid))
    (tmp_path / "boxes.csv").write_text("case,label,x0,y0,x1,y1\na,nodule,1,2,3,4\n")
    with pytest.raises(ContentError, match=r"boxes\.csv: line 2: the box has 2 axes.*z0 and z1"):
        read_all(tmp_path)


def test_volumes_numbered_like_channels_need_a_manifest(tmp_path):
    grid = Geometry.from_spacing((6, 20, 30), (3, 1, 1))
    for name in ("a_0000.nii.gz", "a_0001.nii.gz"):
        write_volume(tmp_path / name, Volume(np.zeros((1, 6, 20, 30), np.int16), grid))
    (tmp_path / "boxes.csv").write_text(HEADER)
    with pytest.raises(LesionsegError, match=r"two channels of one case.*manifest\.csv"):
        read_dataset(tmp_path)


def test_numbers_of_radiographs_are_not_channels(tmp_path):
    for name in ("a_0000.dcm", "a_0001.dcm"):
        pixels = np.zeros((20, 30), np.uint16)
        write_dicom_file(
            tmp_path / name, pixels, DigitalXRayImageStorageForPresentation, PixelSpacing=[1, 1]
        )
    (tmp_path / "boxes.csv").write_text(HEADER + "a_0001,nodule,1,2,3,4,\n")
    assert [files.case for files in read_dataset(tmp_path).cases] == ["a", "a_0001"]


def test_box_that_reaches_outside_is_clipped_and_kept_as_stated(write_folder):
    _, cases = read_all(write_folder(["a,nodule,60,-3,70,5"]))
    reference = cases["a"].reference
    assert reference.boxes.tolist() == [[0, 60, 5, 64]]
    assert reference.stated.boxes.tolist() == [[-3, 60, 5, 70]]


def test_repeated_rows_count_once_with_a_warning(write_folder, caplog):
    root = write_folder([f"a,nodule,{BRIGHT}"] * 3 + ["b,,,,,", "b,,,,,"])
    _, cases = read_all(root)
    assert_rectangle(cases["a"])
    assert "boxes.csv: line 3: the row repeats an earlier one, and so does 1 more." in caplog.text


WRONG = [
    ("gone,nodule,1,2,3,4", r"line 2: the case 'gone' has no image"),
    ("p1_d,nodule,1,2,3,4", r"the case 'p1_d' has no image. Did you mean 'p1_c'\?"),
    ("../images/a,nodule,1,2,3,4", r"the case '\.\./images/a' has no image"),
    ("/etc/passwd,nodule,1,2,3,4", r"the case '/etc/passwd' has no image"),
    ("a,nodule,1,2,x,4", r"x1 is 'x'\. Write a number\."),
    ("a,nodule,1,2,nan,4", "x1 is 'nan'"),
    ("a,nodule,1,2,inf,4", "x1 is 'inf'"),
    ("a,nodule,1,2,1e300,4", "x1 is '1e300'"),
    ("a,nodule,1,2,1_0,4", "x1 is '1_0'"),
    ('a,nodule,1,2,"3,5",4', "x1 is '3,5'. Write a number with a decimal point"),
    ("a,nodule,1,2,1e10,4", "x1 is '1e10'. Write a number below 1e[+]09 in absolute value"),
    ("a,nodule,1,2,,4", "x1 is empty, but another coordinate is not"),
    ("a,nodule,1,2,1,4", "x1 is 1, but must be greater than x0, 1"),
    ("a,nodule,1,9,3,4", "y1 is 4, but must .* y0, 9. If y1 is a length, write y0 .+ length"),
    ("a,,1,2,3,4", "the label is empty"),
    ("a,nodule,1,2,3,4,5", "line 2 has more values than there are columns"),
    ("a,nodule,.1,.2,.3,.4", "line 2: the box .* shares of the image. Multiply x by the width"),
    ("a,,,,,\na,nodule,1,2,3,4", "line 2: the row states that 'a' has no lesion, but another row"),
]


@pytest.mark.parametrize(("rows", "match"), WRONG)
def test_wrong_row_is_an_error_that_names_file_and_line(write_folder, rows, match):
    with pytest.raises(LesionsegError, match=rf"boxes\.csv.*{match}") as caught:
        read_dataset(write_folder([rows]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rotation", ["0", "0.0", "180", "359.999", "", "90", "12.5"])
def test_rotated_boxes_are_refused(write_folder, rotation):
    root = write_folder([f"a,nodule,{BRIGHT},{rotation}"], "case,label,x0,y0,x1,y1,rotation\n")
    if rotation in ("90", "12.5"):
        with pytest.raises(DatasetError, match=r"line 2: the box is rotated\. Write the"):
            read_dataset(root)
    else:
        assert_rectangle(read_all(root)[1]["a"])


def test_box_of_the_first_pixel_is_read(write_folder):
    _, cases = read_all(write_folder(["a,nodule,0,0,1,1"]))
    assert cases["a"].reference.boxes.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("name", ["No finding", "no_findings", "NO LESION"])
def test_no_finding_with_a_dummy_box_is_a_case_without_lesions(write_folder, name):
    """A reader who found nothing counts as one who read the case."""
    rows = [f"a,nodule,{BRIGHT},r1", f"b,{name},0,0,1,1,r1", f"p1/c,{name},,,,,r1"]
    header = "case,label,x0,y0,x1,y1,reader\n"
    dataset, cases = read_all(write_folder(rows, header))
    assert dataset.labels.value_names == {1: "nodule"}
    assert [finding.severity for finding in dataset.findings] == ["note"]
    assert_rectangle(cases["a"])
    assert_negative(cases["b"])
    assert_negative(cases["p1_c"])
    rows = [f"a,{name},0,0,1,1,r{reader}" for reader in (1, 2)]
    _, cases = read_all(write_folder([*rows, f"a,nodule,{BRIGHT},r3"], header))
    assert_negative(cases["a"])  # one of three readers
    for box in ("0,0,1,1", "0,0,0,0", "-1,-1,-1,-1", "NaN,NaN,NaN,NaN"):
        dataset, cases = read_all(write_folder([f"a,{name},{box}"]))
        assert dataset.labels.value_names == {1: "lesion"}
        assert_negative(cases["a"])


def test_check_lists_a_wrong_row_and_keeps_the_other_cases(write_folder):
    dataset = list_dataset(write_folder(["a,nodule,1,2,1,4", "b,nodule,1,2,3,4"]))
    assert [problem.case for problem in dataset.errors] == ["a"]
    assert [c.case for c in dataset.cases] == ["a", "b", "p1_c"]
    remark = dataset.findings[-1].message
    assert "1 image of 3 without a row, counted" in remark
    assert remark.endswith(": p1_c.")


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ("case,label,x0,y0,x1\n", "columns 'y1' are missing.*case, label, x0, y0, x1. Rename"),
        (
            "case,label,x,y,w,h\n",
            "'x0', 'y0', 'x1', 'y1' are missing.* case, label, x, y, w, h. Write x1 = x0 .+ wid",
        ),
        ("case,label,x0,x0,x1,y1\n", "two columns are called 'x0'"),
        ("case;label;x0;y0\n", "'x1', 'y1' are missing"),
    ],
)
def test_missing_column_is_an_error(write_folder, header, match):
    with pytest.raises(LesionsegError, match=rf"boxes\.csv: .*{match}"):
        read_dataset(write_folder(["a,nodule,1,2"], header))


def test_table_of_another_program_is_not_a_layout_and_its_missing_columns_are_listed(write_folder):
    root = write_folder(["a,c,1,2,3,4"], "image,class,xmin,ymin,xmax,ymax\n")
    with pytest.raises(LesionsegError, match=r"columns 'case'.* Rename"):
        read_dataset(root)
    with pytest.raises(LesionsegError, match="columns 'case'"):
        read_dataset(write_folder(["a,nodule,1,2,3,4"], ""))
    (root / "manifest.csv").write_text("case,image\na,images/a.png\n")
    assert read_dataset(root).layout == "manifest"


def test_line_numbers_count_empty_lines(write_folder):
    with pytest.raises(LesionsegError, match="line 5: x1 is 'x'"):
        read_dataset(write_folder(["b,,,,,", "", "", "a,nodule,1,2,x,4"]))


def test_table_in_another_encoding_is_an_error(write_folder):
    with pytest.raises(LesionsegError, match=r"boxes\.csv: the text is not UTF-8 \(line 2\)"):
        read_dataset(write_folder(["a,Rundherd größer,1,2,3,4"], encoding="latin-1"))


def test_huge_table_is_an_error(write_folder):
    root = write_folder([])
    with (root / "boxes.csv").open("r+b") as file:
        file.truncate(2**31)
    with pytest.raises(LesionsegError, match=r"boxes\.csv: the text has more than 1024 MiB"):
        read_dataset(root)


def test_too_many_labels_are_an_error(write_folder):
    rows = [f"a,finding {number},{number % 30},2,{number % 30 + 1},4" for number in range(256)]
    with pytest.raises(LesionsegError, match=r"label 256 .* is above 255"):
        read_dataset(write_folder(rows))


def test_too_many_boxes_of_a_case_are_an_error(write_folder, monkeypatch):
    monkeypatch.setattr("lesionseg.io.layouts.table.MAX_LESIONS", 3)
    with pytest.raises(LesionsegError, match="line 5: the case 'a' has more than 3 boxes"):
        read_dataset(write_folder([f"a,nodule,{x},2,{x + 1},4" for x in range(4)]))


def test_references_of_which_all_rows_are_wrong_give_the_errors_of_the_rows(write_folder):
    root = write_folder([f"{case},nodule,1,2,x,4" for case in ("a", "b", "p1/c")])
    with pytest.raises(DatasetError, match=r"boxes\.csv: line 2: x1 is 'x'"):
        References.find(root)


def test_label_with_thousands_of_digits_is_an_error(write_folder):
    root = write_folder([f"a,{'9' * 5000},1,2,3,4"])
    (root / "labels.json").write_text('{"1": "nodule"}')
    with pytest.raises(DatasetError, match=r"line 2: the label '999.*is not in labels\.json"):
        read_dataset(root)


def test_table_with_an_open_quote_is_an_error(tmp_path):
    (tmp_path / "boxes.csv").write_text('"' + "a" * 200_000)
    with pytest.raises(ReadError, match="closing double quote"):
        read_dataset(tmp_path)


def test_no_image_is_suggested_if_several_have_the_name(write_folder):
    root = write_folder(["x0,nodule,1,2,3,4"])
    for folder in ("A", "patient2"):
        write_picture(root / "images" / folder / "x0.png")
    with pytest.raises(DatasetError, match=r"the case 'x0' has no image\. Correct"):
        read_dataset(root)
