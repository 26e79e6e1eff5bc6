"""DICOM references: segmentation objects and contours on the image's grid."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from lesionseg.core import Geometry
from lesionseg.errors import GeometryError, LesionsegError
from lesionseg.io.cases import read_case
from lesionseg.io.layouts.conventions import read_dataset
from tests.io.dicom_files import (
    RTSTRUCT,
    blob,
    item,
    lps,
    manifest,
    save,
    segmentation,
)

Series = Callable[..., Path]


def test_a_segmentation_object_is_read_as_label_values(
    series: Series, grid: Geometry, tmp_path: Path
) -> None:
    series()
    masks = {"Lung": blob((0, 0, 0)), "LESION": blob((1, 2, 3), (3, 1, 0)), "cyst": blob((4, 3, 5))}
    segmentation(tmp_path / "seg.dcm", grid, masks)
    root = manifest(tmp_path, "scan", "seg.dcm", '{"1": "lesion", "2": "cyst"}')
    dataset = read_dataset(root)
    reference = read_case(dataset.cases[0], dataset).reference
    assert reference is not None
    expected = masks["LESION"] + 2 * masks["cyst"]
    np.testing.assert_array_equal(reference.labels, expected)


def test_a_segmentation_of_another_grid_or_of_other_names_is_refused(
    series: Series, grid: Geometry, tmp_path: Path
) -> None:
    series()
    affine = grid.affine.copy()
    affine[:3, 3] += 1.0
    segmentation(tmp_path / "seg.dcm", Geometry(grid.shape, affine), {"lesion": blob((1, 2, 3))})
    dataset = read_dataset(manifest(tmp_path, "scan", "seg.dcm"))
    with pytest.raises(GeometryError, match=r"not drawn on the image's grid.*seg\.dcm"):
        read_case(dataset.cases[0], dataset)
    segmentation(tmp_path / "seg.dcm", grid, {"a": blob((1, 2, 3)), "b": blob((1, 1, 1))})
    with pytest.raises(LesionsegError, match="has the name of a label"):
        read_case(dataset.cases[0], dataset)


def test_contours_are_filled_and_inner_ones_are_holes(
    series: Series, grid: Geometry, tmp_path: Path
) -> None:
    series()

    def contour(z: float, *corners: tuple[float, float]) -> Dataset:
        points = [v for y, x in corners for v in lps(grid, (z, y, x))]
        return item(ContourGeometricType="CLOSED_PLANAR", ContourData=points)

    outer = contour(2, (-0.5, -0.5), (-0.5, 4.5), (3.5, 4.5), (3.5, -0.5))
    inner = contour(2, (0.5, 0.5), (0.5, 2.5), (2.5, 2.5), (2.5, 0.5))

    def struct(*contours: Dataset) -> None:
        roi = item(ReferencedROINumber=7, ContourSequence=Sequence(contours))
        save(
            tmp_path / "rt.dcm",
            None,
            RTSTRUCT,
            Modality="RTSTRUCT",
            StructureSetROISequence=Sequence([item(ROINumber=7, ROIName="Lesion")]),
            ROIContourSequence=Sequence([roi]),
        )

    struct(outer, inner)
    dataset = read_dataset(manifest(tmp_path, "scan", "rt.dcm"))
    reference = read_case(dataset.cases[0], dataset).reference
    assert reference is not None
    expected = np.zeros((5, 4, 6), dtype=np.uint8)
    expected[2, :, :5] = 1
    expected[2, 1:3, 1:3] = 0
    np.testing.assert_array_equal(reference.labels, expected)
    struct(contour(2.4, (0, 0), (0, 2), (2, 2)))
    with pytest.raises(GeometryError, match=r"rt\.dcm"):
        read_case(dataset.cases[0], dataset)


def test_a_segment_called_ignore_is_ignored(series: Series, grid: Geometry, tmp_path: Path) -> None:
    series()
    masks = {"lesion": blob((1, 2, 3)), "Ignore": blob((4, 3, 5), (4, 3, 4))}
    segmentation(tmp_path / "seg.dcm", grid, masks)
    root = manifest(tmp_path, "scan", "seg.dcm", '{"1": "lesion", "9": "ignore"}')
    dataset = read_dataset(root)
    reference = read_case(dataset.cases[0], dataset).reference
    assert reference is not None
    np.testing.assert_array_equal(reference.labels, masks["lesion"])
    np.testing.assert_array_equal(reference.ignore, masks["Ignore"])
