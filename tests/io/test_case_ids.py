"""A case id names files: which ids may, and that every way a case comes in refuses the others."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.errors import DatasetError, OutputError
from lesionseg.io.files import MAX_ID_BYTES, bounded_name, check_case_id, printable_id, write_json
from lesionseg.io.layouts.conventions import read_dataset
from lesionseg.io.predictions import find_masks, find_predictions
from lesionseg.io.volumes import write_volume

Folder = Callable[..., Path]

BAD = {
    "": "is empty",
    ".": "begins with a dot",
    "..": "begins with a dot",
    ".hidden": "begins with a dot",
    "a/b": "path separator",
    "../a": "begins with a dot",
    "a\\b": "path separator",
    "a ": "space",
    " a": "space",
    "a\0b": "does not show",
    "a\nb": "does not show",
    "a\x1b[31m": "does not show",
    "a\u202eb": "does not show",  # right-to-left override
    "a\u200bb": "does not show",  # zero-width space
    "a\u2028b": "does not show",
    "a\udcffb": "does not show",  # a byte of a file's name that is no UTF-8
    "a" * (MAX_ID_BYTES + 1): "too long, 201 of 200 bytes",
    "扫" * 67: "too long, 201 of 200 bytes",
}
GOOD = ("a", "MSCS_19L", "sub-01.v2", "a b", "患者　1", "扫" * 66, "Мария", "José", "a..b", "-")


@pytest.mark.parametrize(("case", "fault"), BAD.items())
def test_h6_an_id_that_cannot_name_files_is_refused(case: str, fault: str) -> None:
    with pytest.raises(DatasetError, match=fault) as refused:
        check_case_id(case, Path("list.csv"))
    assert repr(case) in str(refused.value)
    assert "list.csv" in str(refused.value)
    assert "Rename it" in str(refused.value)
    assert printable_id(case) == repr(case)


@pytest.mark.parametrize("case", GOOD)
def test_other_ids_pass_in_any_script(case: str) -> None:
    check_case_id(case, None)
    assert printable_id(case) == case


def test_on_windows_its_signs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_case_id("10:30", None)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(DatasetError, match="Windows has in no name"):
        check_case_id("10:30", None)


def test_the_caller_chooses_the_class_of_the_error() -> None:
    with pytest.raises(OutputError, match="begins with a dot"):
        check_case_id("..", None, OutputError)


def test_a_name_of_any_id_is_bounded() -> None:
    assert bounded_name("a b/ä") == "a b%2F%C3%A4"
    assert len({bounded_name("扫" * n) for n in (64, 65, 66)}) == 3


def _scan(path: Path) -> None:
    geometry = Geometry.from_spacing((4, 4, 4), (1, 1, 1))
    write_volume(path, Volume(np.zeros((1, 4, 4, 4), np.uint8), geometry))


@pytest.mark.parametrize("case", ["..", ".", "a\u202eb", "a\\b"])
def test_h6_a_manifest_with_such_an_id_is_refused(tmp_path: Path, case: str) -> None:
    _scan(tmp_path / "fine.nii.gz")
    (tmp_path / "manifest.csv").write_text(f"case,image\n{case},fine.nii.gz\nfine,fine.nii.gz\n")
    with pytest.raises(DatasetError, match="cannot be a file name") as refused:
        read_dataset(tmp_path)
    assert repr(case) in str(refused.value)
    assert "fine.nii.gz" in str(refused.value)
    (problem,) = read_dataset(tmp_path, lenient=True).problems
    assert problem.case == case


def test_an_nnunet_folder_with_such_an_id_is_refused(nnunet_folder: Folder) -> None:
    with pytest.raises(DatasetError, match="ends with a space"):
        read_dataset(nnunet_folder(cases=("A ", "B")))


def test_a_coco_list_with_such_an_id_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    flat = Volume(np.zeros((1, 9, 9), np.uint8), Geometry.from_spacing((9, 9), (1, 1)))
    write_volume(tmp_path / "images" / "a\u202eb.png", flat)
    image = {"id": 1, "file_name": "a\u202eb.png", "width": 9, "height": 9}
    content = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "lesion"}]}
    write_json(tmp_path / "annotations.json", content)
    with pytest.raises(DatasetError, match="does not show"):
        read_dataset(tmp_path)


def test_a_datalist_with_such_an_id_is_refused(tmp_path: Path) -> None:
    for name in ("a\u200bb", "c"):
        _scan(tmp_path / f"{name}.nii.gz")
    entries = [{"image": f"{n}.nii.gz", "label": "c.nii.gz"} for n in ("a\u200bb", "c")]
    write_json(tmp_path / "datalist.json", {"training": entries})
    with pytest.raises(DatasetError, match="does not show"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("find", [find_masks, find_predictions])
def test_evaluate_refuses_files_of_such_a_name(
    tmp_path: Path, find: Callable[[Path], object]
) -> None:
    _scan(tmp_path / "a\nb_mask.nii.gz")
    with pytest.raises(DatasetError, match="does not show"):
        find(tmp_path)
