"""Radiographs from DICOM: bright is dense, once; sizes say what they are measured on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, FileDataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ReadError
from lesionseg.io.cases import read_case, read_reference
from lesionseg.io.dicom.headers import read_header
from lesionseg.io.dicom.radiographs import pixel_size, radiograph_columns, read_hidden
from lesionseg.io.layouts.conventions import read_dataset
from lesionseg.io.volumes import read_geometry, read_volume, write_volume

DX = "1.2.840.10008.5.1.4.1.1.1.1"
PIXELS = np.array([[0, 100, 200], [300, 400, 500]], dtype=np.uint16)


def save(path: Path, pixels: np.ndarray = PIXELS, **elements: Any) -> Path:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = DX, generate_uid()
    header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = DX, meta.MediaStorageSOPInstanceUID
    header.Modality = "DX"
    header.Rows, header.Columns = pixels.shape
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 12, 11
    header.PixelRepresentation, header.PixelData = 0, pixels.tobytes()
    for name, value in elements.items():
        setattr(header, name, value)
    header.save_as(path, enforce_file_format=True)
    return path


def values(path: Path) -> np.ndarray:
    return np.asarray(read_volume(path).array[0])


def test_a_plain_radiograph_keeps_its_values(tmp_path: Path) -> None:
    volume = read_volume(save(tmp_path / "a.dcm"))
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[0], PIXELS)
    assert volume.geometry.dims == 2


@pytest.mark.parametrize(
    "inverted",
    [
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
    ],
)
def test_monochrome1_is_turned_once(tmp_path: Path, inverted: dict[str, str]) -> None:
    np.testing.assert_array_equal(values(save(tmp_path / "a.dcm", **inverted)), 500 - PIXELS)


def test_values_of_interest_are_applied_once(tmp_path: Path) -> None:
    seen = values(save(tmp_path / "a.dcm", WindowCenter=250, WindowWidth=200))
    assert seen.min() == seen[0, 0] == seen[0, 1] == 0
    assert seen.max() == seen[1, 1] == seen[1, 2] == 4095
    assert 0 < seen[0, 2] < seen[1, 0] < 4095


def test_a_table_of_values_of_interest_is_looked_up(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor = [501, 0, 16]
    table.LUTData = (2 * np.arange(501, dtype=np.uint16)).tobytes()
    np.testing.assert_array_equal(
        values(save(tmp_path / "a.dcm", VOILUTSequence=Sequence([table]))), 2 * PIXELS
    )


def test_padding_is_as_dark_as_the_darkest_pixel(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0)
    seen = values(path)  # white on paper, black where nothing was exposed
    assert seen[0, 0] == seen.min() == 0
    np.testing.assert_array_equal(np.ravel(seen)[1:], [400, 300, 200, 100, 0])


HIDING: list[tuple[dict[str, Any], list[list[int]]]] = [
    ({"PixelPaddingValue": 0}, [[0, 1, 1], [1, 1, 1]]),
    ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 150}, [[0, 0, 1], [1, 1, 1]]),
    (
        {
            "CollimatorShape": "RECTANGULAR",
            "CollimatorUpperHorizontalEdge": 1,
            "CollimatorLowerHorizontalEdge": 2,
            "CollimatorLeftVerticalEdge": 2,
            "CollimatorRightVerticalEdge": 2,
        },
        [[0, 1, 0], [0, 1, 0]],
    ),
    (
        {
            "ShutterShape": "CIRCULAR",
            "CenterOfCircularShutter": [1, 2],
            "RadiusOfCircularShutter": 1,
        },
        [[1, 1, 1], [0, 1, 0]],
    ),
    (
        {
            "ShutterShape": ["POLYGONAL", "RECTANGULAR"],
            "VerticesOfThePolygonalShutter": [0, 0, 0, 4, 3, 4, 3, 2, 2, 0],
            "ShutterUpperHorizontalEdge": 1,
            "ShutterLowerHorizontalEdge": 1,
            "ShutterLeftVerticalEdge": 1,
            "ShutterRightVerticalEdge": 3,
        },
        [[1, 1, 1], [0, 0, 0]],
    ),
]


@pytest.mark.parametrize(("elements", "valid"), HIDING)
def test_what_is_hidden_is_dark_and_not_valid(
    tmp_path: Path, elements: dict[str, Any], valid: list[list[int]]
) -> None:
    volume = read_volume(save(tmp_path / "a.dcm", PIXELS + np.uint16(7) * (PIXELS > 0), **elements))
    seen = np.array(valid, dtype=bool)
    assert volume.valid is not None
    np.testing.assert_array_equal(volume.valid, seen)
    assert (volume.array[0][~seen] == volume.array[0][seen].min()).all()
    hidden = read_hidden(tmp_path / "a.dcm")
    assert hidden is not None
    np.testing.assert_array_equal(hidden, ~seen)


@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"PixelPaddingValue": 4000},
        {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4000},
        {"CollimatorShape": "RECTANGULAR"},
        {"ShutterShape": "BITMAP"},
    ],
)
def test_nothing_is_hidden_without_a_credible_statement(
    tmp_path: Path, elements: dict[str, Any]
) -> None:
    path = save(tmp_path / "a.dcm", **elements)
    assert read_volume(path).valid is None
    assert read_hidden(path) is None


def test_padding_is_ignored_by_the_reference_but_for_lesions(tmp_path: Path) -> None:
    save(tmp_path / "a.dcm", PixelPaddingValue=0, PixelPaddingRangeLimit=150)
    mask = np.zeros((1, 2, 3), np.uint8)
    mask[0, 0, 1] = mask[0, 1, 2] = 1
    write_volume(tmp_path / "m.png", Volume(mask, Geometry.from_spacing((2, 3), (1, 1))))
    (tmp_path / "manifest.csv").write_text("case,image,reference\nA,a.dcm,m.png\n")
    dataset = read_dataset(tmp_path)
    case = read_case(dataset.cases[0], dataset)
    assert case.reference is not None
    assert case.reference.ignore is not None
    assert case.reference.ignore.tolist() == [[True, False, False], [False, False, False]]
    again = read_reference(dataset.cases[0], dataset, case.image.geometry)
    assert again is not None
    np.testing.assert_array_equal(again.ignore, case.reference.ignore)


def test_a_png_drawn_on_a_radiograph_takes_its_millimetres(tmp_path: Path) -> None:
    save(tmp_path / "a.dcm", ImagerPixelSpacing=[0.2, 0.2])
    mask = np.ones((1, 2, 3), np.uint8)
    write_volume(tmp_path / "m.png", Volume(mask, Geometry.from_spacing((2, 3), (1, 1))))
    (tmp_path / "manifest.csv").write_text("case,image,reference\nA,a.dcm,m.png\n")
    dataset = read_dataset(tmp_path)
    assert dataset.cases[0].columns["pixel_size_source"] == "at the detector"
    reference = read_case(dataset.cases[0], dataset).reference
    assert reference is not None
    assert reference.geometry.spacing_mm == pytest.approx((0.2, 0.2))
    assert reference.geometry.size_unit == "mm at the detector"


SIZES: list[tuple[dict[str, Any], float, str]] = [
    ({"PixelSpacing": [0.1, 0.1], "PixelSpacingCalibrationType": "GEOMETRY"}, 0.1, "calibrated"),
    (
        {"PixelSpacing": [0.1, 0.1], "ImagerPixelSpacing": [0.2, 0.2]},
        0.2,
        "at the detector",
    ),
    (
        {"ImagerPixelSpacing": [0.2, 0.2], "EstimatedRadiographicMagnificationFactor": 1.25},
        0.16,
        "at the detector, divided by the magnification",
    ),
    (
        {
            "ImagerPixelSpacing": [0.2, 0.2],
            "DistanceSourceToDetector": 1800,
            "DistanceSourceToPatient": 1500,
        },
        0.2 / 1.2,
        "at the detector, divided by the magnification",
    ),
    ({"PixelSpacing": [0.1, 0.1]}, 0.1, "at the detector"),
    ({}, 1.0, "unknown"),
]


@pytest.mark.parametrize(("elements", "mm", "source"), SIZES)
def test_the_pixel_size_is_trusted_only_when_calibrated(
    tmp_path: Path, elements: dict[str, Any], mm: float, source: str
) -> None:
    path = save(tmp_path / "a.dcm", **elements)
    assert read_geometry(path).spacing_mm == pytest.approx((mm, mm))
    assert read_volume(path).geometry.spacing_mm == pytest.approx((mm, mm))
    assert pixel_size(read_header(path)).source == source
    unit = {"at the detector": "mm at the detector", "unknown": "px"}.get(source, "mm")
    assert read_geometry(path).size_unit == unit


def test_side_view_and_intent_are_kept(tmp_path: Path) -> None:
    path = save(
        tmp_path / "a.dcm",
        ImageLaterality="L",
        ViewPosition="MLO",
        PresentationIntentType="FOR PRESENTATION",
    )
    assert radiograph_columns(path) == {
        "laterality": "L",
        "view": "MLO",
        "presentation_intent": "FOR PRESENTATION",
        "pixel_size_source": "unknown",
    }


def test_raw_grey_values_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_volume(save(tmp_path / "a.dcm", PresentationIntentType="FOR PROCESSING"))
    assert "for processing" in caplog.text


def test_a_folder_of_several_radiographs_is_no_image(tmp_path: Path) -> None:
    save(tmp_path / "a.dcm")
    assert read_volume(tmp_path).geometry.dims == 2
    save(tmp_path / "b.dcm")
    with pytest.raises(ReadError, match="several radiographs"):
        read_volume(tmp_path)


def test_a_pixel_size_that_is_not_positive_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path / "a.dcm", PixelSpacing=[-1, 1])
    assert read_geometry(path).spacing_mm == (1, 1)
    assert "its PixelSpacing is not two positive numbers and is not used" in caplog.text
