"""Zone masks by case id, and tables of zone names of other programs."""

import logging

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ContentError, DatasetError, LesionsegError
from lesionseg.io.volumes import write_volume
from lesionseg.io.zone_files import ZoneFolder, read_zone_names

EXPECTED = {10: "Left-Thalamus", 17: "Left-Hippocampus"}
TABLES = {
    "lut.txt": "#No. Label Name: R G B A\n0 Unknown 0 0 0 0\n10  Left-Thalamus  0 118 14 0\n"
    "17  Left-Hippocampus  220 216 20 0\n",
    "pandas.csv": ",id,name\n0,10,Left-Thalamus\n1,17,Left-Hippocampus\n",
    "a.csv": "value,name\n0,background\n10,Left-Thalamus\n17,Left-Hippocampus\n",
    "b.tsv": "index\tname\tabbreviation\n10\tLeft-Thalamus\tLT\n17\tLeft-Hippocampus\tLH\n",
    "c.json": '{"10": "Left-Thalamus", "17": "Left-Hippocampus"}',
    "dataset.json": '{"labels": {"background": 0, "Left-Thalamus": 10, "Left-Hippocampus": 17}}',
    "itk.label": '10 255 0 0 1 1 1 "Left-Thalamus"\n17 0 255 0 1 1 1 "Left-Hippocampus"\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_every_table_gives_the_same_names(name, tmp_path):
    (tmp_path / name).write_text(TABLES[name])
    assert read_zone_names(tmp_path / name) == EXPECTED


@pytest.mark.parametrize(
    "line",
    [
        "17 Hippocampus, left",
        "17  Hippocampus, left  220 216 20 0",
        "17 'Hippocampus, left'",
        '17,"Hippocampus, left"',
        '"Hippocampus, left",17',
        '17;"Hippocampus, left";HL',
        "17;Hippocampus, left",
        "17\tHippocampus, left\t220\t216",
        '17 220 216 20 1 1 1 "Hippocampus, left"',
        '17 "Hippocampus, left" 220 216 20 0',
    ],
)
def test_name_with_blanks_and_a_comma_is_whole(line, tmp_path):
    (tmp_path / "a.txt").write_text(f"# zones\n{line}\n")
    assert read_zone_names(tmp_path / "a.txt") == {17: "Hippocampus, left"}


def test_value_without_a_name_is_left_out(tmp_path):
    (tmp_path / "a.csv").write_text("value,name\n17,left\n18,\n19,\n")
    assert read_zone_names(tmp_path / "a.csv") == {17: "left"}


def test_quoted_name_may_be_a_number(tmp_path):
    (tmp_path / "a.label").write_text('17 220 216 20 1 1 1 "44"\n18 0 0 0 1 1 1 "45"\n')
    assert read_zone_names(tmp_path / "a.label") == {17: "44", 18: "45"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "17 area 44 220 216 20 0\n18 area 45 220 216 20 0\n"),
        ("a.csv", "value,name\n17,area\n18,area\n"),
        ("a.json", '{"17": "area", "18": "area"}'),
    ],
)
def test_two_values_of_one_name_are_an_error(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ContentError, match=rf"{name}: the values 17 and 18 .* 'area'"):
        read_zone_names(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "{number},area\n17,left\n"),
        ("a.csv", "value,name\n{number},area\n"),
        ("a.txt", "{number} area 220 216 20 0\n"),
        ("a.json", '{{"{number}": "area"}}'),
        ("a.json", '{{"labels": {{"area": "{number}"}}}}'),
        ("a.json", '{{"area": {number}}}'),
    ],
)
def test_value_of_thousands_of_digits_is_an_error(name, content, tmp_path):
    (tmp_path / name).write_text(content.format(number="9" * 5000))
    with pytest.raises(LesionsegError, match=rf"{name}: .* digits") as raised:
        read_zone_names(tmp_path / name)
    assert len(str(raised.value)) < 500


@pytest.fixture
def zone_folder(tmp_path):
    """Write a zone mask for case a, with a table of names."""
    values = np.full((1, 4, 4, 4), 17, np.uint8)
    write_volume(tmp_path / "a.nii.gz", Volume(values, Geometry.from_spacing((4, 4, 4), (1, 1, 1))))
    (tmp_path / "names.csv").write_text(TABLES["a.csv"])
    return tmp_path


def test_zones_are_read_by_case_id(zone_folder):
    folder = ZoneFolder.find(zone_folder)
    zones = folder.read("a")
    assert (zones.values.shape, zones.names) == ((4, 4, 4), EXPECTED)
    assert folder.read("b") is None


def test_warning_names_cases_without_a_zone_mask(zone_folder, caplog):
    folder = ZoneFolder.find(zone_folder)
    folder.check([])
    with caplog.at_level(logging.WARNING):
        folder.check(["a", "b"])
    assert "have no zone: b" in caplog.text


def test_zone_masks_of_other_cases_only_are_an_error(zone_folder):
    folder = ZoneFolder.find(zone_folder)
    with pytest.raises(DatasetError, match=r"None of the zone masks \(a\) has the name of a case"):
        folder.check(["b"])


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        ZoneFolder.find(tmp_path / "typo")


def test_two_tables_of_names_are_an_error(zone_folder):
    (zone_folder / "more.txt").write_text(TABLES["lut.txt"])
    with pytest.raises(DatasetError, match=r"several tables name.*names\.csv"):
        ZoneFolder.find(zone_folder)


def test_hidden_table_is_not_read(zone_folder):
    (zone_folder / "._names.csv").write_bytes(b"\0\5\26\7 resource fork of macOS")
    assert ZoneFolder.find(zone_folder).names == EXPECTED


def test_table_without_names_is_an_error(tmp_path):
    for name in ("names.csv", "c.json"):
        (tmp_path / name).write_text("[1, 2]")
        with pytest.raises(ContentError, match=name):
            read_zone_names(tmp_path / name)
