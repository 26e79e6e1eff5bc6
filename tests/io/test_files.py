"""Atomic files, JSON and tables, case ids in file names, and locks of folders."""

import json
import os
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lesionseg import config
from lesionseg.cli.command import private_files
from lesionseg.errors import DatasetError, OutputError, ReadError
from lesionseg.io.case_ids import MAX_ID_BYTES, check_case_id, printable_id
from lesionseg.io.files import LOCK, atomic_path, digest_of, locked_folder
from lesionseg.io.text import (
    read_csv,
    read_json,
    read_yaml,
    write_csv,
    write_json,
    write_text,
)
from lesionseg.pipeline import find_recipe


@pytest.fixture
def table(tmp_path):
    return tmp_path / "a.csv"


def test_file_is_complete_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    target = tmp_path / "new" / "scan.nii.gz"
    synced = []
    monkeypatch.setattr("os.fsync", lambda _: synced.append(target.exists()))
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert (temporary.name[0], temporary.name[-7:]) == (".", ".nii.gz")
        temporary.write_text("whole")
        assert not target.exists()
    assert synced == [False]


def test_digest_of_a_file_a_text_and_bytes_is_the_same(tmp_path):
    file = tmp_path / "a"
    file.write_text("ab")
    # sha256sum of a file that contains "ab"
    assert digest_of(file) == digest_of("ab") == digest_of(b"a", "b") == digest_of("a", b"b")
    assert digest_of(file).startswith("fb8e20fc2e4c3f248c60c39bd652f3c1")
    assert digest_of("M\udcfc") == digest_of("M?")  # the name of a file that is not UTF-8


def test_error_while_writing_keeps_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "whole")
    with pytest.raises(UnicodeEncodeError), atomic_path(target) as temporary:
        temporary.write_text("half" * 10**6 + "\udcff", encoding="utf-8")
    assert target.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [target]


def test_file_inside_a_file_is_an_error(tmp_path):
    write_text(tmp_path / "file", "x")
    with pytest.raises(OutputError, match=r"a\.txt"):
        write_text(tmp_path / "file" / "a.txt", "x")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file modes")
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_atomic_files_and_their_folders_follow_the_umask(tmp_path, mask):
    folder = tmp_path / "open"
    before = os.umask(mask)
    try:
        for text in ("x", "replaced"):
            write_text(folder / "a.txt", text)
        write_csv(folder / "a.csv", [{"a": 1}], ["a"])
        write_json(folder / "a.json", {})
        with locked_folder(tmp_path / "locked"):
            lock = (tmp_path / "locked" / LOCK).stat().st_mode
            write_text(tmp_path / "locked" / "a.txt", "x")
        with private_files():
            write_text(tmp_path / "mine" / "pseudonyms.csv", "x")
    finally:
        os.umask(before)
    modes = {str(p.relative_to(tmp_path)): p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
    assert (modes.pop("mine"), modes.pop("mine/pseudonyms.csv")) == (0o700, 0o600)
    assert lock & 0o777 == 0o666 & ~mask
    names = ("locked", "locked/a.txt", "open", *(f"open/a.{end}" for end in ("csv", "json", "txt")))
    assert modes == {name: (0o666 if "." in name else 0o777) & ~mask for name in names}


def test_json_of_numpy_and_path_values_survives_a_round_trip(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"n": np.int64(3), "x": np.float32(0.5), "v": np.arange(2), "p": Path("b")})
    assert read_json(path) == {"n": 3, "x": 0.5, "v": [0, 1], "p": "b"}


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"ä": 1}), encoding="utf-8-sig")
    assert read_json(path) == {"ä": 1}


def test_value_without_a_json_form_is_an_error_and_leaves_no_file(tmp_path):
    for value in (float("nan"), np.float32("inf"), object()):
        with pytest.raises(OutputError, match=r"b\.json"):
            write_json(tmp_path / "b.json", {"x": value})
    assert list(tmp_path.iterdir()) == []


def make_yaml_bomb():
    """Make a short YAML file with nested aliases, which expands to 10⁹ values."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]\n"]
    for old, new in pairwise("abcdefghi"):
        aliases = ", ".join([f"*{old}"] * 10)
        lines.append(f"{new}: &{new} [{aliases}]\n")
    return "".join(lines).encode()


DAMAGED = [
    (read_json, b"{"),
    (read_json, b'{"x": NaN}'),
    (read_json, b'{"x": -Infinity}'),
    (read_json, b""),
    (read_json, b"[" * 10**5),
    (read_json, b'{"1": "lesion", "1": "edema"}'),
    (read_yaml, b"\xff\xfe"),
    (read_yaml, b"a: [1"),
    (read_yaml, b"a: !!python/object/apply:os.system [ls]"),
    (read_yaml, b"[" * 200_000),
    (read_yaml, b"- a\n- b"),
    (read_yaml, b""),
    (read_yaml, b"a: &a [*a]"),
    (read_yaml, make_yaml_bomb()),
    (read_yaml, b"a: " + b"9" * 5000),
    (read_yaml, b"a: {b: [0x" + b"f" * 5000 + b"]}"),
    (read_yaml, b"a: 0b" + b"1" * 20_000),
    (read_yaml, b"names: " + b"[ #]\n" * 20_000),
    (read_csv, b""),
    (read_csv, b"a\n1,2\n"),
    (read_csv, b"a\n\xff\n"),
]


@pytest.mark.parametrize(("read", "text"), DAMAGED, ids=range(len(DAMAGED)))
def test_error_names_an_unreadable_file_in_one_line(tmp_path, read, text):
    path = tmp_path / "study.txt"
    path.write_bytes(text)
    with pytest.raises(ReadError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_table_survives_a_round_trip(table):
    rows = [{"case": 'a,"b"', "dice": 0.5}, {"case": "c", "dice": None}]
    write_csv(table, rows, ["case", "dice"])
    assert read_csv(table) == [{"case": 'a,"b"', "dice": "0.5"}, {"case": "c", "dice": ""}]
    write_csv(table, [], ["case", "dice"])
    assert table.read_text() == "case,dice\n"
    assert read_csv(table) == []


def test_name_that_is_not_utf_8_is_written_as_text(tmp_path):
    name = os.fsdecode(b"M\xfcller")
    write_csv(tmp_path / "t.csv", [{"case": name}], ["case"])
    assert read_csv(tmp_path / "t.csv") == [{"case": r"M\udcfcller"}]
    write_json(tmp_path / "a.json", {"case": name})
    assert read_json(tmp_path / "a.json") == {"case": name}


def test_unknown_column_of_a_row_is_an_error(table):
    with pytest.raises(ValueError, match="dyce"):
        write_csv(table, [{"dyce": 1}], ["dice"])


FORMULAS = ("=1+1", "+cmd", "-a", "@SUM(A1)", "'=x", "''@x", "-")
PLAIN = ("-0.5", "+1e-3", "-inf", "'quoted'", "a=b", "scan-1", -2.5)


@pytest.mark.parametrize("cell", [*FORMULAS, *PLAIN])
def test_formulas_are_quoted_and_all_cells_survive_a_round_trip(table, cell):
    write_csv(table, [{"x": cell}], ["x"])
    quote = "'" if cell in FORMULAS else ""
    assert table.read_text() == f"x\n{quote}{cell}\n"
    assert read_csv(table) == [{"x": str(cell)}]


BAD_IDS = (
    "",
    ".",
    "..",
    ".hidden",
    "a/b",
    "../a",
    "a\\b",
    "a ",
    " a",
    "a\0b",
    "a\nb",
    "a\x1b[31m",
    "a\u2028b",
    "a\udcffb",  # a byte that is not UTF-8
    "a\u202eb",  # right-to-left override
    "a\u200bb",  # zero-width space
    "a" * (MAX_ID_BYTES + 1),
    "扫" * 67,
)
GOOD_IDS = ("a", "MSCS_19L", "sub-01.v2", "a b", "患者　1", "扫" * 66, "Мария", "José", "a..b", "-")


@pytest.mark.parametrize("case", BAD_IDS)
def test_id_that_cannot_be_a_file_name_is_an_error(case):
    for error in (DatasetError, OutputError):
        with pytest.raises(error) as caught:
            check_case_id(case, Path("list.csv"), error)
        assert repr(case) in str(caught.value)
        assert "list.csv" in str(caught.value)
    assert printable_id(case) == repr(case)


def test_ids_of_any_script_are_valid_but_a_colon_is_an_error_on_windows(monkeypatch):
    for case in (*GOOD_IDS, "10:30"):
        check_case_id(case, Path("a"))
        assert printable_id(case) == case
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(DatasetError, match="Windows"):
        check_case_id("10:30", Path("a"))


def test_locked_folder_cannot_be_locked_again_until_it_is_released(tmp_path):
    folder = tmp_path / "out"
    with locked_folder(folder):
        with pytest.raises(OutputError, match="out"):
            locked_folder(folder).__enter__()
        with locked_folder(folder, ".other"):
            pass
    with locked_folder(tmp_path / "new" / "run"):
        pass
    assert [*tmp_path.iterdir()] == []  # the lock removes the empty folders that it made
    with locked_folder(folder):
        (folder / "a").touch()
    assert [*folder.iterdir()] == [folder / "a"]
    with pytest.raises(OutputError, match="a: "):
        locked_folder(folder / "a").__enter__()


def test_locking_a_folder_removes_temporary_files_of_killed_processes(tmp_path):
    temporary = [".5f85e7d9-report.pdf", "run/test/.00000000-a.csv"]
    remaining = [
        ".hidden-file",
        "5f85e7d9-report.pdf",
        # a folder in use by another process
        f"fold_0/{LOCK}",
        "fold_0/test/.00000000-a.csv",
        # a folder into which `predict` writes
        "night/.predictions.csv.lock",
        "night/.P1.part/.00000000-P1_mask.nii.gz",
    ]
    for name in (*temporary, *remaining):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name, expected in ((".part", temporary), (LOCK, [])):
        with locked_folder(tmp_path, name):
            assert [name for name in temporary if (tmp_path / name).exists()] == expected
    assert all((tmp_path / name).exists() for name in remaining)


SETTINGS = {
    "prepare": {"run_dir": "out"},
    "evaluate": {"reference": "r", "prediction": "p", "output": "out"},
    "follow": {"before": "b", "after": "a", "output": "out"},
    "export": {"bundle": "b", "output": "out"},
}


@pytest.mark.parametrize("name", [name for name in config.COMMANDS if name in SETTINGS])
def test_command_does_not_write_into_a_locked_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = find_recipe(name)
    cfg = config.COMMANDS[name].of(**SETTINGS[name])
    with locked_folder(Path("out")), pytest.raises(OutputError, match="another process"):
        command(cfg)


A = {"case": "A", "image": "a.nii"}
TABLES = [
    ("case;image;age, years\nA;a.nii;3\n", {**A, "age, years": "3"}),
    ("case,image,labels\nA,a.nii,scar;cyst\n", {**A, "labels": "scar;cyst"}),
    ("case;image;ml\nA;a.nii;0,5\n", {**A, "ml": "0,5"}),
    ("case,image,a;b\nA,a.nii,1\n", {**A, "a;b": "1"}),
    ("case,image\nA,a.nii\n,,\n", A),
    ("case,image\n,\nA,a.nii,,,\n\n", A),
    ("case, image\r\nA, a.nii \r\n", A),
    ("case\timage\rA\ta.nii\r", A),
    ('case,image\nA,"a,b.nii"\n', {"case": "A", "image": "a,b.nii"}),
]


@pytest.mark.parametrize(("text", "row"), TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_of_spreadsheets_are_read(table, text, row, encoding):
    table.write_bytes(text.encode(encoding))
    assert read_csv(table) == [row]


WRONG_TABLES = [
    ("case,image\nJürgen,a.nii\n".encode("latin-1"), 'not UTF-8 .line 2.*"CSV UTF-8"'),
    ("case,image\n".encode("utf-16-le"), "UTF-16. Save it as UTF-8"),
    (b"case,image,image\nA,a,b\n", "two columns are called 'image'"),
    (b"case,image\nA,a,b\n", "line 2 has more values"),
    (b'case,image\nA,"a\n' + b"b" * 200_000, "closing double quote"),
    (b'case,image\nA,"a\nB,b\nC,c\n', "closing double quote"),
    (b'case,"' + b"x" * 200_000, "line 1 .*closing double quote"),
    (b'case,note\nA,"\nB,"\nC,one\n', "the row before line 3.* ditto marks"),
]


@pytest.mark.parametrize(("content", "match"), WRONG_TABLES, ids=range(len(WRONG_TABLES)))
def test_error_for_an_unreadable_table_gives_advice(table, content, match):
    table.write_bytes(content)
    with pytest.raises(ReadError, match=match):
        read_csv(table)
