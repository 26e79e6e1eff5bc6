"""A study's folder: which of its files are scans to predict on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lesionseg.errors import DatasetError, ReadError
from lesionseg.io.cases import read_case
from lesionseg.io.layouts.conventions import read_dataset
from lesionseg.io.layouts.input_images import find_images
from lesionseg.io.local_files import content_files
from lesionseg.io.volumes import read_volume
from tests.io.dicom_files import CT, DX, SECONDARY_CAPTURE, save, voxels

Series = Callable[..., Path]


def test_series_and_radiographs_are_found_for_prediction(series: Series, tmp_path: Path) -> None:
    series(folder="all/patient/scan_a")
    series(folder="all/patient/scan_b")
    for name in ("left.dcm", "right.dcm"):
        save(tmp_path / "all" / "xr" / name, np.ones((3, 4), np.uint16), DX, Modality="DX")
    found = {c.case: c.images for c in find_images(tmp_path / "all", 1)}
    assert set(found) == {"scan_a", "scan_b", "left", "right"}
    assert found["scan_a"] == (tmp_path / "all" / "patient" / "scan_a",)
    assert [c.case for c in find_images(tmp_path / "all" / "patient" / "scan_a", 1)] == ["scan_a"]
    globbed = find_images(tmp_path / "all" / "patient" / "scan_b" / "*.dcm", 1)
    assert [c.case for c in globbed] == ["scan_b"]


def localiser(folder: Path, name: str = "scout.dcm", number: int = 1) -> Path:
    return save(
        folder / name,
        np.ones((4, 6), np.uint16),
        CT,
        Modality="CT",
        SeriesInstanceUID="1.2.3.77",
        SeriesNumber=number,
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )


def screen_shot(folder: Path) -> Path:
    return save(
        folder / "shot.dcm",
        np.ones((4, 6), np.uint16),
        SECONDARY_CAPTURE,
        Modality="OT",
        SeriesInstanceUID="1.2.3.88",
        SeriesNumber=99,
    )


def test_localisers_and_screen_shots_are_left_out_by_name(
    series: Series, caplog: pytest.LogCaptureFixture
) -> None:
    folder = series()
    localiser(folder)
    screen_shot(folder)
    (found,) = find_images(folder, 1)
    assert found.case == "scan"
    assert read_volume(found.images[0]).array.shape == (1, 5, 4, 6)
    assert len(content_files(found.images[0])) == 5
    for said in ("scout.dcm", "localiser", "shot.dcm", "secondary capture"):
        assert said in caplog.text


def test_each_series_of_a_flat_folder_is_a_case(series: Series, tmp_path: Path) -> None:
    folder = series({z: {"SeriesNumber": 4} for z in range(5)})
    for file in list(folder.iterdir()):
        file.rename(file.with_name(f"first_{file.name}"))
    other = {"SeriesInstanceUID": "1.2.3.5", "SeriesNumber": 7, "RescaleSlope": 1}
    series(dict.fromkeys(range(5), other))
    localiser(folder)
    found = {c.case: c.images[0] for c in find_images(folder, 1)}
    assert set(found) == {"scan_4", "scan_7"}
    assert found["scan_7"] == folder / "series=7"
    np.testing.assert_array_equal(read_volume(found["scan_7"]).array[0], voxels() - 1000.0)
    assert read_volume(found["scan_4"]).array[0, 4, 0, 0] != voxels()[4, 0, 0] - 1000
    assert [c.case for c in find_images(folder / "series=7", 1)] == ["scan"]
    (tmp_path / "manifest.csv").write_text("case,image\nA,scan/series=1.2.3.5\n")
    dataset = read_dataset(tmp_path)
    assert read_case(dataset.cases[0], dataset).image.array.shape == (1, 5, 4, 6)
    with pytest.raises(ReadError, match=r"no such series.*series=7"):
        read_volume(folder / "series=8")


def test_series_without_a_number_of_their_own_are_named_by_their_uid(series: Series) -> None:
    folder = series()
    for file in list(folder.iterdir()):
        file.rename(file.with_name(f"first_{file.name}"))
    series({z: {"SeriesInstanceUID": "1.2.3.5"} for z in range(5)})
    assert {c.case for c in find_images(folder, 1)} == {"scan_1.2.3.4", "scan_1.2.3.5"}


def test_a_folder_of_nothing_but_localisers_has_no_scan(tmp_path: Path) -> None:
    localiser(tmp_path / "study")
    with pytest.raises(DatasetError, match="No image found"):
        find_images(tmp_path, 1)


def test_a_series_is_called_as_its_folder_also_from_within(
    series: Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = series()
    (folder / "deeper").mkdir()
    for place, source in ((folder, "."), (folder / "deeper", "..")):
        monkeypatch.chdir(place)
        assert [c.case for c in find_images(Path(source), 1)] == [folder.name]
