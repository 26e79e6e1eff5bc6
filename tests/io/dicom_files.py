"""DICOM files for tests, each element written by hand with pydicom."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from lesionseg.core import Geometry

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
SERIES, STUDY = "1.2.3.4", "1.2.3"
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


def voxels() -> np.ndarray:
    return np.arange(5 * 4 * 6, dtype=np.int16).reshape(5, 4, 6)


def enhanced(path: Path, grid: Geometry) -> Path:
    """An enhanced MR file whose frames are stored from the last slice to the first."""
    order = range(grid.shape[0])[::-1]
    frames = [
        item(
            PlanePositionSequence=one(ImagePositionPatient=place(grid, z)["ImagePositionPatient"]),
            PixelValueTransformationSequence=one(
                RescaleSlope=1 + z, RescaleIntercept=0, RescaleType="US"
            ),
        )
        for z in order
    ]
    groups = {"PerFrameFunctionalGroupsSequence": Sequence(frames), **shared(grid)}
    return save(path, voxels()[list(order)], ENHANCED_MR, Modality="MR", **groups)


def one(**elements: Any) -> Sequence:
    """A sequence of one item."""
    return Sequence([item(**elements)])


def shared(grid: Geometry) -> dict[str, Any]:
    """What all frames on a grid have in common."""
    where = place(grid, 0)
    orientation = one(ImageOrientationPatient=where["ImageOrientationPatient"])
    measures = one(PixelSpacing=where["PixelSpacing"], SliceThickness=9)
    groups = one(PlaneOrientationSequence=orientation, PixelMeasuresSequence=measures)
    return {"SharedFunctionalGroupsSequence": groups}


def segmentation(path: Path, grid: Geometry, masks: Mapping[str, np.ndarray]) -> Path:
    """A SEG file with a frame for every slice that holds something, 8 bits fractional."""
    frames, pixels = [], []
    for number, mask in enumerate(masks.values(), start=1):
        for z in np.flatnonzero(mask.any(axis=(1, 2))):
            pixels.append(mask[z].astype(np.uint16) * 255)
            position = place(grid, int(z))["ImagePositionPatient"]
            frames.append(
                item(
                    PlanePositionSequence=one(ImagePositionPatient=position),
                    SegmentIdentificationSequence=one(ReferencedSegmentNumber=number),
                )
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
        PerFrameFunctionalGroupsSequence=Sequence(frames),
        **shared(grid),
    )


def contours(path: Path, grid: Geometry, *drawn: tuple[float, Any], name: str = "Lesion") -> Path:
    """An RTSTRUCT file with one contour set of polygons, each slice z and corners (y, x)."""
    polygons = [
        item(
            ContourGeometricType="CLOSED_PLANAR",
            ContourData=[v for y, x in corners for v in lps(grid, (z, y, x))],
        )
        for z, corners in drawn
    ]
    roi = item(ReferencedROINumber=7, ContourSequence=Sequence(polygons))
    named = Sequence([item(ROINumber=7, ROIName=name)])
    more = {"StructureSetROISequence": named, "ROIContourSequence": Sequence([roi])}
    return save(path, None, RTSTRUCT, Modality="RTSTRUCT", **more)


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


def write_series(
    root: Path,
    grid: Geometry,
    changes: Mapping[int, Mapping[str, Any]] | None = None,
    folder: str = "scan",
) -> Path:
    """Write a CT series in shuffled file order; `changes` by slice replace elements."""
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
        save(root / folder / f"{name}.dcm", voxels()[z], CT, **elements)
    return root / folder
