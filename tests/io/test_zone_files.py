"""Zone masks by case id, and tables of zone names."""

import logging

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ContentError, DatasetError, ReadError
from lesionseg.io.volumes import write_volume
from lesionseg.io.zone_files import ZoneFolder, read_zone_names

EXPECTED = {10: "Left-Thalamus", 17: "Left-Hippocampus"}
TABLES = {
    "a.csv": "value,name\n0,background\n10,Left-Thalamus\n17,Left-Hippocampus\n18,\n19,\n",
    "b.tsv": "value\tname\n10\tLeft-Thalamus\n17\tLeft-Hippocampus\n",
}
OTHERS = {
    "lut.txt": "#No. Label Name: R G B A\n10  Left-Thalamus  0 118 14 0\n",
    "names.json": '{"10": "Left-Thalamus"}',
    "dataset.json": '{"labels": {"background": 0, "Left-Thalamus": 10}}',
    "itk.label": '10 255 0 0 1 1 1 "Left-Thalamus"\n',
    "lut.csv": "10,0,118,14,Left-Thalamus\n",
    "names.csv": "10,Left-Thalamus\n17,Left-Hippocampus\n",
    "empty.csv": "value,name\nLeft-Thalamus,\n",
    "nothing.csv": "value,name\n",
    "digits.csv": f"value,name\n{'9' * 5000},area\n",
}


@pytest.fixture
def table(tmp_path):
    return tmp_path / "a.csv"


@pytest.mark.parametrize("name", TABLES)
def test_every_table_gives_the_same_names(name, tmp_path):
    (tmp_path / name).write_text(TABLES[name])
    assert read_zone_names(tmp_path / name) == EXPECTED


@pytest.mark.parametrize("name", OTHERS)
def test_other_table_is_refused_with_the_form_that_is_read(name, tmp_path):
    (tmp_path / name).write_text(OTHERS[name])
    match = rf"{name}: .*CSV file with the columns value and name"
    with pytest.raises(ContentError, match=match) as raised:
        read_zone_names(tmp_path / name)
    assert len(str(raised.value)) < 500


def test_name_with_a_comma_is_whole(table):
    table.write_text('value,name\n17,"Hippocampus, left"\n')
    assert read_zone_names(table) == {17: "Hippocampus, left"}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("value,name\n17,Hippocampus, left\n", "line 2 .*double quotes"),
        ("value,name\n17,area\n18,area\n", "the values 17 and 18 .* 'area'"),
    ],
    ids=["comma", "two values"],
)
def test_wrong_table_of_names_is_an_error(text, match, table):
    table.write_text(text)
    with pytest.raises((ContentError, ReadError), match=rf"a\.csv: {match}"):
        read_zone_names(table)


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
    (zone_folder / "more.txt").write_text(OTHERS["lut.txt"])
    with pytest.raises(DatasetError, match=r"several tables name.*names\.csv"):
        ZoneFolder.find(zone_folder)


def test_hidden_table_is_not_read(zone_folder):
    (zone_folder / "._names.csv").write_bytes(b"\0\5\26\7 resource fork of macOS")
    assert ZoneFolder.find(zone_folder).names == EXPECTED
