"""Helpers that make grids and DICOM files on them, with each element written by pydicom."""

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from scipy.spatial.transform import Rotation

from lesionseg.core import Geometry

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
SERIES, STUDY = "1.2.3.4", "1.2.3"
LPS = np.array([-1.0, -1.0, 1.0])
VOXELS = np.arange(5 * 4 * 6, dtype=np.int16).reshape(5, 4, 6)  # of series and enhanced files


def grid_of(axes, spacing=(3.0, 0.75, 0.5), angles=(0, 0, 0), shape=(5, 4, 6)):
    """Make a grid whose array axes have the patient's directions, such as "SPL", then rotate it."""
    along = dict(zip("RASLPI", [*np.eye(3), *-np.eye(3)], strict=True))
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.transpose([along[a] for a in axes]) * spacing
    affine[:3, 3] = (12.5, -40.25, 7.75)
    return Geometry(shape, affine)


def item(**elements):
    made = Dataset()
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def one(**elements):
    """Make a sequence of one item."""
    return Sequence([item(**elements)])


def save(path, pixels, sop_class, **elements):
    """Write a DICOM file with 16-bit pixels and the given elements. None removes an element."""
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
        setattr(header, name, value)
        if value is None:
            delattr(header, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return path


def lps(geometry, index):
    return [float(v) for v in geometry.to_mm([index])[0] * LPS]


def place(geometry, z):
    """Return position, orientation and pixel size of slice z. Axis 0 of the grid is the normal."""
    spacing = geometry.spacing_mm
    across, down = ((geometry.affine[:3, a] * LPS / spacing[a]).tolist() for a in (2, 1))
    return {
        "ImagePositionPatient": lps(geometry, (z, 0, 0)),
        "ImageOrientationPatient": [*across, *down],
        "PixelSpacing": [spacing[1], spacing[2]],
    }


def framed(path, grid, frames, sop_class, **elements):
    """Write a file of frames, each with its slice, pixels and sequences."""
    where, own = place(grid, 0), Sequence()
    orientation = one(ImageOrientationPatient=where["ImageOrientationPatient"])
    measures = one(PixelSpacing=where["PixelSpacing"], SliceThickness=9)
    elements["SharedFunctionalGroupsSequence"] = one(
        PlaneOrientationSequence=orientation, PixelMeasuresSequence=measures
    )
    for z, _, sequences in frames:
        position = one(ImagePositionPatient=place(grid, int(z))["ImagePositionPatient"])
        own.append(item(PlanePositionSequence=position, **sequences))
    elements["PerFrameFunctionalGroupsSequence"] = own
    return save(path, np.stack([pixels for _, pixels, _ in frames]), sop_class, **elements)


def enhanced(path, grid):
    """Write an enhanced MR file with its frames in the order from the last slice to the first."""
    frames = []
    for z in range(grid.shape[0])[::-1]:
        rescaled = one(RescaleSlope=1 + z, RescaleIntercept=0, RescaleType="US")
        frames.append((z, VOXELS[z], {"PixelValueTransformationSequence": rescaled}))
    return framed(path, grid, frames, ENHANCED_MR, Modality="MR")


def segmentation(path, grid, masks):
    """Write a fractional SEG file of 8 bits with a frame for every slice that is not empty."""
    frames, named = [], Sequence()
    for number, (name, mask) in enumerate(masks.items(), start=1):
        named.append(item(SegmentNumber=number, SegmentLabel=name))
        own = {"SegmentIdentificationSequence": one(ReferencedSegmentNumber=number)}
        for z in np.flatnonzero(mask.any(axis=(1, 2))):
            frames.append((z, mask[z].astype(np.uint16) * 255, own))
    kind = {"SegmentationType": "FRACTIONAL", "MaximumFractionalValue": 255, "Modality": "SEG"}
    return framed(path, grid, frames, SEG, SegmentSequence=named, **kind)


def contours(path, grid, *drawn, name="Lesion"):
    """Write an RTSTRUCT file with one set of polygons, given by slice z and corners (y, x)."""
    polygons = Sequence()
    for z, corners in drawn:
        points = [v for y, x in corners for v in lps(grid, (z, y, x))]
        polygons.append(item(ContourGeometricType="CLOSED_PLANAR", ContourData=points))
    roi = one(ReferencedROINumber=7, ContourSequence=polygons)
    named = one(ROINumber=7, ROIName=name)
    more = {"StructureSetROISequence": named, "ROIContourSequence": roi}
    return save(path, None, RTSTRUCT, Modality="RTSTRUCT", **more)


def manifest(root, image, reference, labels=None):
    (root / "manifest.csv").write_text(f"case,image,reference\nA,{image},{reference}\n")
    if labels:
        (root / "labels.json").write_text(labels)
    return root


def blob(*where):
    mask = np.zeros((5, 4, 6), dtype=bool)
    mask[tuple(np.transpose(where))] = True
    return mask


def write_series(root, grid, changes=None, folder="scan"):
    """Write a CT series in shuffled file order. `changes` replace elements, by slice."""
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
        save(root / folder / f"{name}.dcm", VOXELS[z], CT, **elements)
    return root / folder
