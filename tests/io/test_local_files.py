"""Remote files come in where a case is opened: which are fetched, and when."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ReadError
from lesionseg.io.cases import read_case, read_grid
from lesionseg.io.inspection import inspect_case
from lesionseg.io.layouts.conventions import read_dataset
from lesionseg.io.local_files import content_files
from lesionseg.io.remote.local_disk import LocalDisk
from lesionseg.io.remote.mirror import mirror
from lesionseg.io.volumes import write_volume

pytest.importorskip("fsspec")


@pytest.fixture
def store(tmp_path: Path, grid: Geometry, series: Callable[..., Path]) -> Path:
    """A manifest of two DICOM series, the second one's files without a suffix."""
    for folder in ("a", "b"):
        series(folder=f"store/{folder}")
        labels = np.zeros((1, *grid.shape), np.uint8)
        labels[0, 1, 1, 1] = 1
        write_volume(tmp_path / "store" / f"{folder}_mask.nii.gz", Volume(labels, grid))
    for file in (tmp_path / "store" / "b").iterdir():
        file.rename(file.with_suffix(""))
    rows = [f"{case},{case},{case}_mask.nii.gz" for case in "ab"]
    table = tmp_path / "store" / "manifest.csv"
    table.write_text("\n".join(["case,image,reference", *rows]))
    return table.parent


def here(root: Path) -> list[str]:
    files = (f for f in root.rglob("*") if f.is_file() and f.stat().st_size > 1)
    return sorted(f.relative_to(root).as_posix() for f in files)


SLICES = {"a": [f"a/{name}.dcm" for name in "abcde"], "b": [f"b/{name}" for name in "abcde"]}


def test_a_dataset_is_opened_by_one_series_and_a_slice_of_each_other(
    store: Path, tmp_path: Path
) -> None:
    root = mirror(f"file://{store}", LocalDisk(tmp_path / "disk"))
    dataset = read_dataset(root)
    assert here(root) == [*SLICES["a"], "b/a", "manifest.csv"]
    case = read_case(dataset.cases[1], dataset)
    assert here(root) == sorted([*SLICES["a"], *SLICES["b"], "b_mask.nii.gz", "manifest.csv"])
    local = read_dataset(store)
    np.testing.assert_array_equal(case.image.array, read_case(local.cases[1], local).image.array)


def test_the_grid_needs_no_reference(store: Path, tmp_path: Path, grid: Geometry) -> None:
    root = mirror(f"file://{store}", LocalDisk(tmp_path / "disk"))
    dataset = read_dataset(root)
    assert read_grid(dataset.cases[1], dataset).matches(grid)
    assert "b_mask.nii.gz" not in here(root)


def test_the_files_of_a_series_are_known_without_those_that_their_names_tell(
    store: Path, tmp_path: Path
) -> None:
    root = mirror(f"file://{store}", LocalDisk(tmp_path / "disk"))
    assert content_files(root / "a") == tuple(root / name for name in SLICES["a"])
    assert here(root) == ["manifest.csv"]
    assert content_files(root / "b") == tuple(root / name for name in SLICES["b"])
    assert here(root) == [*SLICES["b"], "manifest.csv"]


def test_a_file_that_the_store_lost_is_the_fault_of_its_case(store: Path, tmp_path: Path) -> None:
    root = mirror(f"file://{store}", LocalDisk(tmp_path / "disk"))
    dataset = read_dataset(root)
    (store / "b_mask.nii.gz").unlink()
    with pytest.raises(ReadError, match=r"no such file.*b_mask"):
        read_case(dataset.cases[1], dataset)
    ((kind, error),) = inspect_case(dataset.cases[1], dataset).faults
    assert kind == "unreadable"
    assert "b_mask" in str(error)
