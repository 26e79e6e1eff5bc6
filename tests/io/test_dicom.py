"""DICOM series: every file is written here, by pydicom; wrong ones are refused by name."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from lesionseg.core import Geometry
from lesionseg.errors import GeometryError, LesionsegError, ReadError
from lesionseg.io.cases import read_case
from lesionseg.io.conventions import read_dataset
from lesionseg.io.images import find_images
from lesionseg.io.volumes import content_files, read_geometry, read_volume, write_volume

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
SERIES, STUDY, FRAME = "1.2.3.4", "1.2.3", "1.2.9"
LPS = np.array([-1.0, -1.0, 1.0])


def item(**elements: Any) -> Dataset:
    made = Dataset()
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def save(path: Path, pixels: np.ndarray | None, sop_class: str, **elements: Any) -> Path:
    """Write a DICOM file with 16-bit pixels and the elements given; None leaves one out."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID = sop_class
    header.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    header.SeriesInstanceUID, header.StudyInstanceUID = SERIES, STUDY
    if pixels is not None:
        header.Rows, header.Columns = pixels.shape[-2:]
        if pixels.ndim == 3:
            header.NumberOfFrames = len(pixels)
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
        header.PixelRepresentation = int(pixels.dtype == np.int16)
        header.PixelData = pixels.tobytes()
    for name, value in elements.items():
        if value is None:
            header.pop(name, None)
        else:
            setattr(header, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return path


def lps(geometry: Geometry, index: tuple[float, ...]) -> list[float]:
    return [float(v) for v in geometry.to_mm([index])[0] * LPS]


def place(geometry: Geometry, z: int) -> dict[str, Any]:
    """Position, orientation and pixel size of slice z of a grid whose axis 0 is the normal."""
    spacing = geometry.spacing_mm
    across, down = ((geometry.affine[:3, a] * LPS / spacing[a]).tolist() for a in (2, 1))
    return {
        "ImagePositionPatient": lps(geometry, (z, 0, 0)),
        "ImageOrientationPatient": [*across, *down],
        "PixelSpacing": [spacing[1], spacing[2]],
    }


@pytest.fixture
def grid() -> Geometry:
    """Oblique, three spacings, axis 0 along the right-handed normal of the slices."""
    a, b = np.deg2rad(20), np.deg2rad(-35)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    turn = about_z @ about_x
    affine = np.eye(4)
    affine[:3, 0] = np.cross(turn[:, 0], turn[:, 1]) * 3.0
    affine[:3, 1] = turn[:, 1] * 0.75
    affine[:3, 2] = turn[:, 0] * 0.5
    affine[:3, 3] = (12.5, -40.25, 7.75)
    return Geometry((5, 4, 6), affine)


Series = Callable[..., Path]


@pytest.fixture
def series(tmp_path: Path, grid: Geometry) -> Series:
    """Write a CT series in shuffled file order; `changes` by slice replace elements."""

    def write(changes: Mapping[int, Mapping[str, Any]] | None = None, folder: str = "scan") -> Path:
        for z, name in enumerate(("d", "a", "c", "e", "b")):
            elements = {
                "Modality": "CT",
                "RescaleSlope": 1 + z,
                "RescaleIntercept": -1000,
                "SliceThickness": 5,
                "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
                **place(grid, z),
                **(changes or {}).get(z, {}),
            }
            save(tmp_path / folder / f"{name}.dcm", voxels()[z], CT, **elements)
        return tmp_path / folder

    return write


def voxels() -> np.ndarray:
    return np.arange(5 * 4 * 6, dtype=np.int16).reshape(5, 4, 6)


def test_slices_are_sorted_by_position_and_rescaled_each_by_its_own_slope(
    series: Series, grid: Geometry
) -> None:
    volume = read_volume(series())
    expected = voxels() * np.arange(1, 6)[:, None, None] - 1000.0
    np.testing.assert_array_equal(volume.array[0], expected)
    assert volume.geometry.distance_mm(grid) < 1e-6  # 3 mm by position, not 5 by thickness
    assert read_geometry(series()).distance_mm(grid) < 1e-6


def test_the_same_scan_as_nifti_lies_in_the_same_place(series: Series, tmp_path: Path) -> None:
    volume = read_volume(series())
    write_volume(tmp_path / "scan.nii.gz", volume)
    again = read_volume(tmp_path / "scan.nii.gz")
    assert again.geometry.matches(volume.geometry)
    np.testing.assert_array_equal(again.array, volume.array)


REFUSED: list[tuple[dict[str, Any], type[LesionsegError], str]] = [
    ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, ReadError, r"localiser.*c\.dcm"),
    ({"SOPClassUID": SECONDARY_CAPTURE}, ReadError, r"secondary capture.*c\.dcm"),
    ({"EchoTime": 80.0}, ReadError, "different echo time.*80"),
    ({"EchoNumbers": 2}, ReadError, "different echo"),
    ({"DiffusionBValue": 1000.0}, ReadError, "different b-value.*1000"),
    ({"TemporalPositionIdentifier": 2}, ReadError, "different temporal position"),
    ({"ImagePositionPatient": None}, ReadError, r"where its pixels lie.*c\.dcm"),
    ({"SeriesInstanceUID": "1.2.3.5"}, ReadError, r"2 DICOM series.*c\.dcm"),
    ({"PixelSpacing": [0.75, 0.6]}, GeometryError, r"pixel size.*c\.dcm"),
    ({"Rows": 3, "PixelData": b"\0" * 36}, GeometryError, r"number of pixels.*c\.dcm"),
    ({"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}, GeometryError, "direction"),
    ({"SamplesPerPixel": 3}, ReadError, r"in colour.*c\.dcm"),
    ({"NumberOfFrames": 2}, ReadError, r"2 frames.*c\.dcm"),
]


@pytest.mark.parametrize(
    ("change", "error", "named"), REFUSED, ids=[next(iter(r[0])) for r in REFUSED]
)
def test_what_is_no_slice_of_one_volume_is_refused_by_name(
    series: Series, change: dict[str, Any], error: type[LesionsegError], named: str
) -> None:
    with pytest.raises(error, match=named):
        read_volume(series({2: change}))


def test_a_duplicate_is_refused_and_phases_are_told_from_it(series: Series, grid: Geometry) -> None:
    at_one = place(grid, 1)
    with pytest.raises(ReadError, match=r"duplicates.*(a\.dcm|c\.dcm)"):
        read_volume(series({2: at_one}))
    with pytest.raises(ReadError, match="several phases of one place: acquisition"):
        read_volume(series({2: {**at_one, "AcquisitionNumber": 2}}))


def test_a_gap_over_five_per_cent_is_refused(series: Series, grid: Geometry) -> None:
    moved = {"ImagePositionPatient": lps(grid, (2.04, 0, 0))}
    assert read_volume(series({2: moved})).array.shape == (1, 5, 4, 6)
    moved = {"ImagePositionPatient": lps(grid, (2.06, 0, 0))}
    with pytest.raises(
        GeometryError, match=r"not evenly spaced.*3\.18 mm.*a\.dcm and c\.dcm|2\.82"
    ):
        read_volume(series({2: moved}))


def test_a_missing_slice_is_refused(series: Series) -> None:
    folder = series()
    (folder / "c.dcm").unlink()
    with pytest.raises(GeometryError, match="missing or displaced"):
        read_volume(folder)


def test_a_tilted_gantry_is_refused_or_resampled_upright(series: Series, grid: Geometry) -> None:
    pixels = {z: {"ImagePositionPatient": lps(grid, (z, 0.5 * z, 0))} for z in range(5)}
    folder = series({z: {**place(grid, z), **pixels[z], "RescaleSlope": 1} for z in range(5)})
    with pytest.raises(GeometryError, match=r"tilted.*data\.dicom\.tilt=resample"):
        read_volume(folder)
    upright = read_volume(folder, tilt="resample")
    assert upright.geometry.matches(read_geometry(folder, tilt="resample"))
    assert upright.geometry.shape == (5, 6, 6)
    axes = upright.geometry.affine[:3, :3] / np.array(upright.geometry.spacing_mm)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    # slice 2 lies one row further down than slice 0, and row 1 of it shows voxel row 0
    np.testing.assert_allclose(upright.array[0, 2, 1:5], voxels()[2] - 1000, atol=1e-3)
    np.testing.assert_allclose(upright.array[0, 0, :4], voxels()[0] - 1000, atol=1e-3)
    assert (upright.array[0, 0, 4:] == -1000).all()


def test_a_single_slice_takes_its_thickness(
    series: Series, caplog: pytest.LogCaptureFixture
) -> None:
    volume = read_volume(series() / "d.dcm")
    assert volume.array.shape == (1, 1, 4, 6)
    assert volume.geometry.spacing_mm[0] == pytest.approx(5)
    assert "single slice" in caplog.text


def test_a_file_without_suffix_is_known_by_its_preamble(series: Series) -> None:
    folder = series()
    for file in list(folder.iterdir()):
        file.rename(file.with_suffix(""))
    assert read_volume(folder).array.shape == (1, 5, 4, 6)
    assert len(content_files(folder)) == 5


def test_reports_beside_the_images_are_passed_by(series: Series) -> None:
    folder = series()
    save(folder / "report.dcm", None, "1.2.840.10008.5.1.4.1.1.88.11", Modality="SR")
    (folder / "notes.txt").write_text("x")
    assert read_volume(folder).array.shape == (1, 5, 4, 6)


def test_a_truncated_file_is_refused(series: Series) -> None:
    folder = series()
    file = folder / "c.dcm"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ReadError, match=r"c\.dcm"):
        read_volume(folder)


def enhanced(path: Path, grid: Geometry, **changes: Any) -> Path:
    """An enhanced MR file whose frames are stored from the last slice to the first."""
    order = range(grid.shape[0])[::-1]
    frames = []
    for z in order:
        where = place(grid, z)
        frames.append(
            item(
                PlanePositionSequence=Sequence(
                    [item(ImagePositionPatient=where["ImagePositionPatient"])]
                ),
                PixelValueTransformationSequence=Sequence(
                    [item(RescaleSlope=1 + z, RescaleIntercept=0, RescaleType="US")]
                ),
                **{k: v for k, v in changes.items() if k == f"frame{z}"},
            )
        )
    where = place(grid, 0)
    shared = item(
        PlaneOrientationSequence=Sequence(
            [item(ImageOrientationPatient=where["ImageOrientationPatient"])]
        ),
        PixelMeasuresSequence=Sequence(
            [item(PixelSpacing=where["PixelSpacing"], SliceThickness=9)]
        ),
    )
    if "echo" in changes:
        frames[0].MREchoSequence = Sequence([item(EffectiveEchoTime=80.0)])
    return save(
        path,
        voxels()[list(order)],
        ENHANCED_MR,
        Modality="MR",
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(frames),
    )


def test_enhanced_files_are_read_through_their_per_frame_groups(
    tmp_path: Path, grid: Geometry
) -> None:
    volume = read_volume(enhanced(tmp_path / "mr.dcm", grid))
    np.testing.assert_array_equal(volume.array[0], voxels() * np.arange(1, 6)[:, None, None])
    assert volume.geometry.distance_mm(grid) < 1e-6
    with pytest.raises(ReadError, match="different echo time"):
        read_volume(enhanced(tmp_path / "mixed.dcm", grid, echo=True))


def segmentation(path: Path, grid: Geometry, masks: Mapping[str, np.ndarray]) -> Path:
    """A SEG file with a frame for every slice that holds something, 8 bits fractional."""
    frames, pixels = [], []
    for number, mask in enumerate(masks.values(), start=1):
        for z in np.flatnonzero(mask.any(axis=(1, 2))):
            pixels.append(mask[z].astype(np.uint16) * 255)
            frames.append(
                item(
                    PlanePositionSequence=Sequence(
                        [item(ImagePositionPatient=place(grid, int(z))["ImagePositionPatient"])]
                    ),
                    SegmentIdentificationSequence=Sequence([item(ReferencedSegmentNumber=number)]),
                )
            )
    where = place(grid, 0)
    shared = item(
        PlaneOrientationSequence=Sequence(
            [item(ImageOrientationPatient=where["ImageOrientationPatient"])]
        ),
        PixelMeasuresSequence=Sequence([item(PixelSpacing=where["PixelSpacing"])]),
    )
    named = [item(SegmentNumber=i, SegmentLabel=name) for i, name in enumerate(masks, start=1)]
    return save(
        path,
        np.stack(pixels),
        SEG,
        Modality="SEG",
        SegmentationType="FRACTIONAL",
        MaximumFractionalValue=255,
        SegmentSequence=Sequence(named),
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(frames),
    )


def manifest(root: Path, image: str, reference: str, labels: str | None = None) -> Path:
    (root / "manifest.csv").write_text(f"case,image,reference\nA,{image},{reference}\n")
    if labels:
        (root / "labels.json").write_text(labels)
    return root


def blob(*where: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros((5, 4, 6), dtype=bool)
    for index in where:
        mask[index] = True
    return mask


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
    with pytest.raises(LesionsegError, match="called as a label"):
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


def test_an_independent_reader_sees_the_same_scan(series: Series) -> None:
    import SimpleITK as sitk

    folder = series({z: {"RescaleSlope": 2} for z in range(5)})
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.array[0], sitk.GetArrayFromImage(image))
    for index in ((0, 0, 0), (4, 3, 5), (1, 2, 0)):
        theirs = np.array(image.TransformIndexToPhysicalPoint(index[::-1])) * LPS
        np.testing.assert_allclose(volume.geometry.to_mm([index])[0], theirs, atol=1e-6)
