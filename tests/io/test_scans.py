"""Scans to predict on: folders, patterns and tables, ids, channels, and files left out."""

import os
import sys
from dataclasses import replace
from errno import EACCES
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from lesionseg.core import CaseFiles
from lesionseg.errors import DatasetError, ReadError
from lesionseg.io.case_ids import MAX_ID_BYTES
from lesionseg.io.contents import content_files
from lesionseg.io.scans import describe_scan, find_scans
from tests.io.dicom_files import DX, write_dicom_file

needs_links = pytest.mark.skipif(
    sys.platform == "win32", reason="links need permissions on Windows"
)


def _touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def _find_names(source, channels=1):
    """Find the scans. Return the names of their files by case id."""
    return {c.case: [f.name for f in c.images] for c in find_scans(source, channels).cases()}


@pytest.mark.parametrize(
    ("names", "channels", "expected"),
    [
        (
            "b.nii.gz deep/er/c.mha notes.txt .hidden.nii .old/d.nii",
            1,
            {"b": "b.nii.gz", "deep_er_c": "c.mha"},
        ),
        ("a_0000.nii.gz b.nii.gz", 1, {"a": "a_0000.nii.gz", "b": "b.nii.gz"}),
        ("a_2023.nii a_2024.nii", 2, {"a_2023": "a_2023.nii", "a_2024": "a_2024.nii"}),
        # a year next to a channel number is a separate scan
        ("a_0000.nii a_2023.nii", 2, {"a": "a_0000.nii", "a_2023": "a_2023.nii"}),
        # the missing channel of the first is an error when it is read
        ("a_0001.nii b_0000.nii b_0001.nii", 2, {"a": "a_0001.nii", "b": "b_0000.nii b_0001.nii"}),
        # the superfluous channel is an error when it is read
        ("a_0000.nii a_0001.nii a_0002.nii", 2, {"a": "a_0000.nii a_0001.nii a_0002.nii"}),
        # numbered films are a case each if there is one channel
        (
            "film_0000.png film_0001.png film_0002.png",
            1,
            {"film": "film_0000.png", "film_0001": "film_0001.png", "film_0002": "film_0002.png"},
        ),
        ("a.nii.gz out/a_mask.nii.gz out/a_instances.nii.gz", 1, {"a": "a.nii.gz"}),
        ("a.nii.gz out/b.nii.gz out/b_candidates.json", 1, {"a": "a.nii.gz"}),
        (
            "imagesTs/a_0000.nii labelsTs/a.nii labelsTr/b.nii",
            1,
            {"imagesTs_a": "a_0000.nii"},
        ),
        ("x/P1.nii y/p1.nii", 1, {"x_P1": "P1.nii", "y_p1": "p1.nii"}),
    ],
)
def test_files_of_a_folder_are_cases_named_by_their_path(tmp_path, names, channels, expected):
    found = _find_names(_touch(tmp_path, *names.split()), channels)
    assert found == {case: files.split() for case, files in expected.items()}


def test_id_does_not_depend_on_other_scans(tmp_path):
    _touch(tmp_path, "2026-01-07/P017/flair.nii.gz")
    first, second = "2026-01-07_P017_flair", "2026-01-08_P018_flair"
    assert [*_find_names(tmp_path)] == [first]
    _touch(tmp_path, "2026-01-08/P018/flair.nii.gz", "flair.nii.gz")
    assert [*_find_names(tmp_path)] == [first, second, "flair"]
    assert [*_find_names(tmp_path / "2026-*" / "*" / "flair.nii.gz")] == [first, second]


def test_colour_pictures_and_grey_ones_among_them_are_not_channels(tmp_path):
    for n in range(3):
        colour = (0, 0, 0) if n == 1 else (n, 0, 9)
        for name, mode, value in (("film", "RGB", (n, 0, 9)), ("mixed", "RGB", colour)):
            Image.new(mode, (8, 8), value).save(tmp_path / f"{name}_{n:04d}.png")
        Image.new("L", (8, 8), n).save(tmp_path / f"grey_{n:04d}.png")
    expected = {"grey": [f"grey_{n:04d}.png" for n in range(3)]}
    for name in ("film", "mixed"):
        expected |= {name: [f"{name}_0000.png"]}
        expected |= {f"{name}_000{n}": [f"{name}_000{n}.png"] for n in (1, 2)}
    assert _find_names(tmp_path, 3) == expected


@pytest.mark.parametrize(
    ("pattern", "cases"),
    [
        ("a_0000.nii", ["a"]),
        ("*.nii", ["a", "b"]),
        ("scans [1]", ["a"]),
        ("labelsTr", ["b"]),  # the folder is given by name
        ("scans*", ["scans [1]_a"]),  # the pattern matches a folder
        ("[bP]*", ["P1_b", "P1_deep_c", "b"]),
        ("P?/deep/*", ["P1_deep_c"]),
    ],
)
def test_file_pattern_and_name_with_brackets_are_found(tmp_path, pattern, cases):
    _touch(tmp_path, "a_0000.nii", "b.nii", "c.png", "scans [1]/a.nii", "labelsTr/b.nii")
    _touch(tmp_path, "P1/b.nii", "P1/deep/c.nii")
    assert [*_find_names(tmp_path / pattern)] == cases


@pytest.mark.parametrize("pattern", ["**", "**/*", "*"])
def test_pattern_that_matches_folders_in_each_other_finds_each_file_once(tmp_path, pattern):
    for number, name in enumerate(("P1/a.dcm", "P1/deep/b.dcm", "P2/c.dcm")):
        pixels = np.zeros((4, 6), np.uint16)
        write_dicom_file(tmp_path / "day" / name, pixels, DX, SeriesInstanceUID=f"1.2.{number}")
    _touch(tmp_path, "day/P1/d.nii", "day/P1/deep/e.img", "day/labelsTr/d.nii")
    found = find_scans(tmp_path / pattern, 1)
    names = ["day_P1_a", "day_P1_d", "day_P1_deep_b", "day_P2_c"]
    assert [scan.case for scan in found.scans] == names
    assert not any(scan.findings for scan in found.scans)
    (note,) = [note for note in found.left_out if note.file == "*.img"]
    assert note.message.startswith("Left out: 1 × *.img, of an unknown format (")


@needs_links
@pytest.mark.parametrize("source", [".", "*"])
def test_linked_folder_is_searched_like_any_other_folder(tmp_path, source):
    _touch(tmp_path, "other/a.nii", "other/deep/b.nii", "in/c.nii")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "other")
    assert list(_find_names(tmp_path / "in" / source)) == ["c", "link_a", "link_deep_b"]


@needs_links
@pytest.mark.parametrize("source", [".", "*", "**"])
def test_links_in_a_circle_are_not_followed(tmp_path, source):
    _touch(tmp_path, "P1/a.nii", "P2/b.nii")
    for link, target in (("P1/other", "P2"), ("P2/other", "P1"), ("P2/all", ""), ("self", "self")):
        (tmp_path / link).symlink_to(tmp_path / target)
    expected = {"P1_a", "P1_other_b", "P2_b", "P2_other_a"}
    assert {*_find_names(tmp_path / source)} - {"self"} == expected


@needs_links
@pytest.mark.parametrize("source", [".", "*"])
@pytest.mark.parametrize("target", ["out", "out/deep", "out/deep/b.nii"])
def test_link_to_a_result_is_no_scan(tmp_path, source, target):
    _touch(tmp_path, "out/deep/b.nii", "in/c.nii")
    (tmp_path / "in" / "link.nii").symlink_to(tmp_path / target)
    found = find_scans(tmp_path / "in" / source, 1, results=(tmp_path / "out").resolve())
    assert [scan.case for scan in found.scans] == ["c"]


@pytest.mark.parametrize("source", [".", "*", "*/*", "*/*/*.nii"])
def test_folder_that_cannot_be_opened_is_a_fault(tmp_path, monkeypatch, source):
    _touch(tmp_path, "day/P1/a.nii", "day/P2/a.nii")
    # not `chmod`, because the superuser may open every folder
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "P2")
    scans = {scan.case: scan for scan in find_scans(tmp_path / source, 1).scans}
    assert [case for case, scan in scans.items() if scan.is_unreadable] == ["day_P2"]
    assert "day/P2: cannot be opened: permission denied" in scans["day_P2"].problem
    assert scans["day_P1_a"].problem == ""


@pytest.mark.parametrize("source", [".", "*"])
def test_link_that_cannot_be_followed_is_a_fault(tmp_path, monkeypatch, source):
    _touch(tmp_path, "a.nii", "b.nii")
    usual = Path.is_dir

    def is_dir(path):
        if path.name == "b.nii":
            raise PermissionError(13, "Permission denied")
        return usual(path)

    monkeypatch.setattr(Path, "is_dir", is_dir)
    scans = find_scans(tmp_path / source, 1).scans
    assert {scan.path: scan.is_unreadable for scan in scans} == {"a.nii": False, "b.nii": True}


def test_input_folder_that_cannot_be_opened_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DatasetError, match="cannot be opened: permission denied"):
        find_scans(tmp_path, 1)


def test_error_for_a_folder_without_scans_names_its_files(tmp_path):
    for source in (tmp_path, tmp_path / "gone", tmp_path / "*.nii"):
        with pytest.raises(DatasetError):
            find_scans(source, 1).cases()
    _touch(tmp_path, "old/a.img", "old/a.hdr")
    with pytest.raises(DatasetError, match=r"old/a\.img"):
        find_scans(tmp_path, 1).cases()
    _touch(tmp_path, "a_mask.nii.gz", "b.nii.gz", "b_candidates.json")
    match = r"apart from what is left out.*\*\.nii\.gz, results of predict.*\*_mask\.\*"
    with pytest.raises(DatasetError, match=match):
        find_scans(tmp_path, 1).cases()


def test_seg_nrrd_next_to_its_scan_is_no_scan(tmp_path):
    _touch(tmp_path, "a.nrrd", "a.seg.nrrd", "p1/b.seg.nrrd")
    found = find_scans(tmp_path, 1)
    scans = [(scan.path, scan.case) for scan in found.scans]
    assert scans == [("a.nrrd", "a"), ("p1/b.seg.nrrd", "p1_b")]
    assert "*.seg.nrrd, segmentations" in found.left_out[0].message


def test_missing_dicom_file_is_an_error(tmp_path):
    with pytest.raises(ReadError, match="no such file"):
        describe_scan(CaseFiles("a", (tmp_path / "a.dcm",)))


def test_series_in_a_folder_that_cannot_be_opened_is_an_error(tmp_path, monkeypatch):
    def deny(_):
        raise PermissionError(EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", deny)
    with pytest.raises(ReadError, match="permission denied"):
        content_files(tmp_path / "series=3")


def test_clash_in_a_table_names_files_outside_its_folder(tmp_path):
    _touch(tmp_path, "x/a.nii", "y/a.nii", "lists/scans.csv")
    table = tmp_path / "lists" / "scans.csv"
    table.write_text(f"case,image\nP1,{tmp_path}/x/a.nii\np1,{tmp_path}/y/a.nii\n")
    for scan in find_scans(table, 1).scans:
        assert scan.problem.startswith(f"a.nii and a.nii would get the same case id, {scan.case}.")


@pytest.mark.parametrize(
    ("names", "n_clashing"),
    [
        ("a.nii a.png b.nii", 2),
        ("a.nii a_0000.nii b.nii", 2),
        ("a_b/c.nii a/b_c.nii a/c.nii", 2),
        ("x/a.nii x_a.nii y/a.nii", 2),
        # both are the same file on Windows and macOS
        ("P1.nii p1.mha q.nii", 2),
        ("e\u0301.nii \u00e9.mha q.nii", 2),
    ],
)
def test_only_scans_with_the_same_id_are_faults(tmp_path, names, n_clashing):
    *clashing, other = names.split()
    _touch(tmp_path, *clashing, other)
    found = find_scans(tmp_path, 1)
    problems = {scan.path: scan.problem for scan in found.scans if scan.problem}
    assert {*problems} == {*clashing}
    assert all(path in problem for problem in problems.values() for path in clashing)
    assert [file.name for case in found.cases() for file in case.images] == [Path(other).name]


def test_repeated_channel_is_a_fault(tmp_path):
    _touch(tmp_path, "a_0000.nii", "a_0001.nii", "a_0001.mha", "b_0000.nii", "b_0001.nii")
    found = {s.case: s.problem for s in find_scans(tmp_path, 2).scans}
    assert found["b"] == ""
    assert "a_0001.mha and a_0001.nii" in found["a"]


def test_long_id_is_shortened_the_same_way_each_time(tmp_path):
    deep = "/".join(["1.2.840.113619.2.55.3.604688119.971.1268071029.320"] * 5)
    _touch(tmp_path, f"{deep}/a.nii", f"{deep}/b.nii")
    ids = [*_find_names(tmp_path)]
    assert max(map(len, ids)) <= MAX_ID_BYTES
    assert len({*ids}) == 2
    assert [*_find_names(tmp_path)] == ids


def test_files_that_are_not_scans_are_counted_and_named(tmp_path):
    _touch(tmp_path, "a.nii", "old/b.hdr", "old/b.img", "c.png", "a_mask.nii", "notes.txt")
    _touch(tmp_path, "voxels.raw", "other.raw", "README", "labelsTr/a.nii")
    header = "ObjectType = Image\nNDims = 3\nElementDataFile = voxels.raw\n"
    (tmp_path / "a2.mhd").write_text(header)
    found = find_scans(tmp_path, 1, dims=3)
    assert [scan.path for scan in found.scans] == ["a.nii", "a2.mhd"]
    notes = {note.file: note.message for note in found.left_out}
    assert {kind: text.partition("(")[2].rstrip(")") for kind, text in notes.items()} == {
        "*.hdr": "old/b.hdr",
        "*.img": "old/b.img",
        "*.raw": "other.raw",
        "*.png": "c.png",
        "*_mask.*": "a_mask.nii",
        "labelsTr": "labelsTr",
        "without a known suffix": "README",
    }
    assert "1 × *.img, of an unknown format" in notes["*.img"]
    assert "Write a NIfTI pair as one file" in notes["*.hdr"] + notes["*.img"]


def test_table_names_cases_channels_and_pixel_sizes(tmp_path):
    table = tmp_path / "manifest.csv"
    rows = "b,more/b.nii,c.nii,,P1\na,a.png,,0.2,\n"
    table.write_text(f"case,image,image_0001,pixel_mm,group\n{rows}")
    first, second = find_scans(table, 2).cases()
    assert (first.case, first.images, first.group) == ("a", (tmp_path / "a.png",), "a")
    assert first.columns["pixel_mm"] == "0.2"
    assert (second.case, second.group) == ("b", "P1")
    assert second.images == (tmp_path / "more/b.nii", tmp_path / "c.nii")


@pytest.mark.parametrize("rows", ["b,", "a,b\na,c\n", "../a,b.nii\n"])
def test_wrong_row_of_a_table_is_an_error_only_if_no_row_is_valid(tmp_path, rows):
    table = tmp_path / "manifest.csv"
    table.write_text(f"case,image\n{rows}")
    with pytest.raises(DatasetError, match=r"manifest\.csv"):
        find_scans(table, 1).cases()
    table.write_text(f"case,image\n{rows}\nfine,c.nii\n")
    assert list(_find_names(table)) == ["fine"]


def test_channels_without_a_file_in_a_folder_are_missing(tmp_path):
    names = ("a_0000.nii", "a_0002.nii", "b_0001.nii", "c.nii", "d_0000.nii", "d_0001.nii")
    found = {c.case: c.missing for c in find_scans(_touch(tmp_path, *names), 3).cases()}
    assert found == {"a": (1,), "b": (0, 2), "c": (), "d": (2,)}


def test_channels_without_a_file_in_a_table_are_missing(tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("case,image,image_0001\na,a.nii,\nb,,b.nii\n")
    assert [c.missing for c in find_scans(table, 2).cases()] == [(1,), (0,)]
    # the second column is a channel too many, which is an error when the case is read
    assert [c.missing for c in find_scans(table, 1).cases()] == [(), (0,)]


def test_model_of_volumes_finds_stacks_but_no_pictures(tmp_path):
    grey = {"photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((3, 8, 9), np.uint8), **grey)
    tifffile.imwrite(tmp_path / "picture.tif", np.zeros((8, 9), np.uint8), **grey)
    damaged = {"description": "ImageJ=1.11a\nimages=damaged", "metadata": None}
    tifffile.imwrite(tmp_path / "damaged.tif", np.zeros((8, 9), np.uint8), **damaged)
    found = find_scans(tmp_path, 1, dims=3)
    assert [scan.case for scan in found.scans] == ["stack"]
    (left_out,) = found.left_out
    assert "2 × *.tif, pictures, while this model reads volumes" in left_out.message


@pytest.mark.parametrize("control", ["\x1b[31m", "\n", "\x9b", "\u202e"])
@pytest.mark.parametrize("group", ["", "patient "])
def test_row_of_a_scan_has_no_control_characters(tmp_path, control, group):
    _touch(tmp_path, f"a{control}b.nii.gz")
    (scan,) = find_scans(tmp_path, 1).scans
    if group:
        scan = replace(scan, files=replace(scan.files, group=group + control))
    row = scan.row("")
    assert control not in row.case + row.group + row.path
    assert row.group.startswith(group or "a")


def test_picture_of_a_result_is_no_scan(tmp_path):
    _touch(tmp_path, "found/a_candidates.json", "found/a_preview.png", "knee_preview.png")
    found = find_scans(tmp_path, 1, dims=2)
    assert [scan.path for scan in found.scans] == ["knee_preview.png"]
    assert "results of predict (found/a_preview.png)" in found.left_out[0].message


def _name_by_patient(root):
    """Find scans with names of BIDS and subjects of PatientIDs. Return the errors by case id."""
    scans = find_scans(root, 1, names="bids", by_patient_id=True).scans
    return {scan.case: scan.problem for scan in scans}


def test_subject_is_the_patient_id_only_on_request(tmp_path):
    for n, patient in enumerate(("P-1", "P-1", "P2", "")):
        place = tmp_path / ("sub-9" if n == 3 else "night") / f"{n}.dcm"
        write_dicom_file(place, np.ones((8, 9), np.uint16), DX, PatientID=patient)
    found = _name_by_patient(tmp_path)
    # a scan without PatientID has the subject of its path
    assert found == dict.fromkeys(
        ("sub-P1_night0", "sub-P1_night1", "sub-P2_night2", "sub-9_3"), ""
    )
    scans = find_scans(tmp_path, 1, names="bids").scans
    assert sorted(scan.case for scan in scans if not scan.problem) == ["sub-9_3"]
    assert not any("P1" in scan.case for scan in find_scans(tmp_path, 1).scans)


def test_patients_with_the_same_subject_are_an_error_that_lists_them(tmp_path):
    for n, patient in enumerate(("P-1", "p1", "P2")):
        place = tmp_path / f"{n}.dcm"
        write_dicom_file(place, np.ones((8, 9), np.uint16), DX, PatientID=patient)
    found = _name_by_patient(tmp_path)
    assert found.pop("sub-P2_2") == ""
    assert len(found) == 2
    for message in found.values():
        assert "'P-1', 'p1'" in message
