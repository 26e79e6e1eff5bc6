import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lesionseg.errors import OutputError, ReadError
from lesionseg.io.files import (
    atomic_path,
    private_files,
    read_csv,
    read_json,
    read_yaml,
    write_csv,
    write_json,
    write_text,
)


def test_the_temporary_file_lies_beside_and_keeps_the_suffix(tmp_path: Path) -> None:
    target = tmp_path / "new" / "scan.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.name.endswith(".nii.gz")
        assert temporary.name.startswith(".")
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_a_failure_leaves_the_old_file_and_no_half_file(tmp_path: Path) -> None:
    target = tmp_path / "scores.json"
    target.write_text("old")

    def break_off() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        break_off()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written") as refused:
        write_text(tmp_path / "file" / "a.txt", "x")
    assert "a.txt" in str(refused.value)


def test_json_round_trip_turns_numpy_and_paths_plain(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"n": np.int64(3), "x": np.float32(0.5), "v": np.arange(2), "p": Path("b")})
    assert read_json(path) == {"n": 3, "x": 0.5, "v": [0, 1], "p": "b"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), object()])
def test_json_refuses_what_it_cannot_hold(tmp_path: Path, value: object) -> None:
    with pytest.raises(OutputError, match="does not fit JSON"):
        write_json(tmp_path / "a.json", {"x": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{", '{"x": NaN}', '{"x": -Infinity}', ""])
def test_reading_json_refuses_what_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ReadError, match=r"a\.json"):
        read_json(path)


def test_json_with_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"ä": 1}), encoding="utf-8-sig")
    assert read_json(path) == {"ä": 1}


def test_csv_round_trip_with_commas_quotes_and_none(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_csv(path, [{"case": 'a,"b"', "dice": 0.5}, {"case": "c", "dice": None}], ["case", "dice"])
    assert read_csv(path) == [{"case": 'a,"b"', "dice": "0.5"}, {"case": "c", "dice": ""}]


def test_csv_of_no_rows_is_its_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_csv(path, [], ["case", "dice"])
    assert path.read_text() == "case,dice\n"
    assert read_csv(path) == []


def test_csv_refuses_an_unknown_column(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dyce"):
        write_csv(tmp_path / "a.csv", [{"dyce": 1}], ["dice"])


def test_csv_as_spreadsheets_save_it(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfcase, image\r\nA, a.nii \r\n")
    assert read_csv(path) == [{"case": "A", "image": "a.nii"}]


@pytest.mark.parametrize(
    ("content", "match"),
    [(b"", "no first line"), (b"a\n1,2\n", "line 2"), (b"a\n\xff\n", "cannot be read as a table")],
)
def test_csv_refusals_name_the_file(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(ReadError, match=match) as refused:
        read_csv(path)
    assert "table.csv" in str(refused.value)


def test_private_files_are_their_user_s_alone(tmp_path: Path) -> None:
    with private_files():
        write_text(tmp_path / "mine" / "pseudonyms.csv", "x")
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
    assert modes["mine"] == 0o700
    assert modes["pseudonyms.csv"] == 0o600


def test_the_content_is_on_the_disk_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    monkeypatch.setattr("os.fsync", lambda _: order.append((tmp_path / "a").exists()))
    write_text(tmp_path / "a", "x")
    assert order == [False]


BILLION = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe",
        b"a: [1",
        b"a: !!python/object/apply:os.system [ls]",
        b"[" * 200_000,
        b"- a\n- b",
        b"",
        b"a: &a [*a]",
        BILLION.encode(),
    ],
)
def test_yaml_that_is_none_is_refused_in_one_sentence(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "study.yaml").write_bytes(text)
    with pytest.raises(ReadError) as caught:
        read_yaml(tmp_path / "study.yaml")
    assert str(tmp_path / "study.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


RUN_BY_SPREADSHEETS = ["=1+1", "+cmd", "-a", "@SUM(A1)", "'=x", "''@x", "-"]


@pytest.mark.parametrize("text", RUN_BY_SPREADSHEETS)
def test_m6_no_cell_is_run_by_a_spreadsheet_and_all_come_back(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.csv"
    write_csv(path, [{"case": text}], ["case"])
    assert path.read_text().splitlines()[1].startswith("'")
    assert read_csv(path) == [{"case": text}]


@pytest.mark.parametrize("cell", ["-0.5", "+1e-3", "-inf", "'quoted'", "a=b", "scan-1"])
def test_numbers_and_other_text_stay_as_they_are(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "a.csv"
    write_csv(path, [{"x": cell}], ["x"])
    assert path.read_text() == f"x\n{cell}\n"
    assert read_csv(path) == [{"x": cell}]


def test_negative_numbers_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_csv(path, [{"x": -2.5}], ["x"])
    assert path.read_text() == "x\n-2.5\n"
