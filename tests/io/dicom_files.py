"""Helpers that make grids and DICOM files on them, with each element written by pydicom."""

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from scipy.spatial.transform import Rotation

from lesionseg.core import Geometry
from lesionseg.io.volumes import read_volume

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
SERIES = "1.2.3.4"
STUDY = "1.2.3"
LPS = np.array([-1.0, -1.0, 1.0])
PATIENT = {
    "PatientName": "Müller^Äsop",
    "PatientID": "77-1",
    "PatientBirthDate": "19480229",
    "PatientSex": "F",
    "AccessionNumber": "A7",
    "StudyDate": "20240131",
    "StudyTime": "101112",
    "SpecificCharacterSet": "ISO_IR 100",
    "FrameOfReferenceUID": "1.2.9",
}
# the pixels of series and enhanced files
VOXELS = np.arange(5 * 4 * 6, dtype=np.int16).reshape(5, 4, 6)


def grid_of(axes, spacing=(3.0, 0.75, 0.5), angles=(0, 0, 0), shape=(5, 4, 6)):
    """Make a grid whose array axes have the patient's directions, such as "SPL", then rotate it."""
    direction_of = dict(zip("RASLPI", [*np.eye(3), *-np.eye(3)], strict=True))
    directions = np.transpose([direction_of[letter] for letter in axes])
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = rotation @ directions * spacing
    affine[:3, 3] = (12.5, -40.25, 7.75)
    return Geometry(shape, affine)


GRIDS = {
    "axial": grid_of("SPL"),
    "head first": grid_of("IPL"),
    "coronal": grid_of("AIL"),
    "oblique": grid_of("SPL", angles=(20, -10, -35)),
    "oblique sagittal": grid_of("RIP", angles=(-15, 25, 8)),
}


def check_pixels(path, expected):
    """Check the values of the only channel of a file or series."""
    np.testing.assert_array_equal(read_volume(path).array[0], expected)


def check_is_whole(path):
    """Check that all slices of a series are read."""
    assert read_volume(path).array.shape == (1, *VOXELS.shape)


def make_item(**elements):
    item = Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return item


def make_sequence(**elements):
    """Make a sequence of one item."""
    return Sequence([make_item(**elements)])


def write_dicom_file(path, pixels, sop_class, **elements):
    """Write one DICOM file with 16-bit pixels and the given elements. None removes an element."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID = sop_class
    header.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    header.SeriesInstanceUID = SERIES
    header.StudyInstanceUID = STUDY
    if pixels is not None:
        header.Rows, header.Columns = pixels.shape[-2:]
        if pixels.ndim == 3:
            header.NumberOfFrames = len(pixels)
        header.SamplesPerPixel = 1
        header.PhotometricInterpretation = "MONOCHROME2"
        header.BitsAllocated = 16
        header.BitsStored = 16
        header.HighBit = 15
        header.PixelRepresentation = int(pixels.dtype == np.int16)
        header.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(header, name, value)
        if value is None:
            delattr(header, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return path


def write_xray(path, pixels, **elements):
    """Write a radiograph of 12 bits. `elements` replace its elements."""
    defaults = {"Modality": "DX", "BitsStored": 12, "HighBit": 11}
    return write_dicom_file(path, pixels, DX, **{**defaults, **elements})


def to_lps(geometry, index):
    """Return the position of a voxel in DICOM's millimetres."""
    return [float(v) for v in geometry.to_mm([index])[0] * LPS]


def slice_elements(geometry, z):
    """Return position, orientation and pixel size of slice z. Axis 0 of the grid is the normal."""
    spacing = geometry.spacing_mm
    across = geometry.affine[:3, 2] * LPS / spacing[2]
    down = geometry.affine[:3, 1] * LPS / spacing[1]
    return {
        "ImagePositionPatient": to_lps(geometry, (z, 0, 0)),
        "ImageOrientationPatient": [*across.tolist(), *down.tolist()],
        "PixelSpacing": [spacing[1], spacing[2]],
    }


def write_frames(path, grid, frames, sop_class, **elements):
    """Write a file of frames, each with its slice, pixels and sequences."""
    first = slice_elements(grid, 0)
    orientation = make_sequence(ImageOrientationPatient=first["ImageOrientationPatient"])
    measures = make_sequence(PixelSpacing=first["PixelSpacing"], SliceThickness=9)
    elements["SharedFunctionalGroupsSequence"] = make_sequence(
        PlaneOrientationSequence=orientation, PixelMeasuresSequence=measures
    )
    per_frame = Sequence()
    for z, _, sequences in frames:
        position = slice_elements(grid, int(z))["ImagePositionPatient"]
        plane = make_sequence(ImagePositionPatient=position)
        per_frame.append(make_item(PlanePositionSequence=plane, **sequences))
    elements["PerFrameFunctionalGroupsSequence"] = per_frame
    pixels = np.stack([of_frame for _, of_frame, _ in frames])
    return write_dicom_file(path, pixels, sop_class, **elements)


def write_enhanced(path, grid):
    """Write an enhanced MR file with its frames in the order from the last slice to the first."""
    frames = []
    for z in range(grid.shape[0])[::-1]:
        rescaled = make_sequence(RescaleSlope=1 + z, RescaleIntercept=0, RescaleType="US")
        frames.append((z, VOXELS[z], {"PixelValueTransformationSequence": rescaled}))
    return write_frames(path, grid, frames, ENHANCED_MR, Modality="MR")


def write_seg(path, grid, masks, types=(), **elements):
    """Write a fractional SEG file of 8 bits with a frame for every slice that is not empty.

    `types` are the property types of the segments, if they state any.
    """
    frames = []
    segments = Sequence()
    for number, (name, mask) in enumerate(masks.items(), start=1):
        segments.append(make_item(SegmentNumber=number, SegmentLabel=name))
        if types:
            code = make_sequence(CodeValue=types[number - 1], CodingSchemeDesignator="SCT")
            segments[-1].SegmentedPropertyTypeCodeSequence = code
        own = {"SegmentIdentificationSequence": make_sequence(ReferencedSegmentNumber=number)}
        for z in np.flatnonzero(mask.any(axis=(1, 2))):
            frames.append((z, mask[z].astype(np.uint16) * 255, own))
    return write_frames(
        path,
        grid,
        frames,
        SEG,
        SegmentSequence=segments,
        SegmentationType="FRACTIONAL",
        MaximumFractionalValue=255,
        Modality="SEG",
        **elements,
    )


def write_rtstruct(path, grid, *drawn, name="Lesion"):
    """Write an RTSTRUCT file with one set of polygons, given by slice z and corners (y, x)."""
    polygons = Sequence()
    for z, corners in drawn:
        points = [v for y, x in corners for v in to_lps(grid, (z, y, x))]
        polygons.append(make_item(ContourGeometricType="CLOSED_PLANAR", ContourData=points))
    return write_dicom_file(
        path,
        None,
        RTSTRUCT,
        Modality="RTSTRUCT",
        StructureSetROISequence=make_sequence(ROINumber=7, ROIName=name),
        ROIContourSequence=make_sequence(ReferencedROINumber=7, ContourSequence=polygons),
    )


def write_manifest(root, image, reference, labels=None):
    (root / "manifest.csv").write_text(f"case,image,reference\nA,{image},{reference}\n")
    if labels:
        (root / "labels.json").write_text(labels)
    return root


def make_mask(*voxels):
    """Make a mask of the series with the given voxels."""
    mask = np.zeros((5, 4, 6), dtype=bool)
    mask[tuple(np.transpose(voxels))] = True
    return mask


def write_series(root, grid, changes=None, folder="scan", **elements):
    """Write a CT series in shuffled file order. `changes` replace elements of single slices."""
    for z, name in enumerate(("d", "a", "c", "e", "b")):
        own = {
            "Modality": "CT",
            "RescaleSlope": 1 + z,
            "RescaleIntercept": -1000,
            "SliceThickness": 5,
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            **slice_elements(grid, z),
            **elements,
            **(changes or {}).get(z, {}),
        }
        write_dicom_file(root / folder / f"{name}.dcm", VOXELS[z], CT, **own)
    return root / folder


def write_patient_series(root, grid, **elements):
    return write_series(root, grid, **{**PATIENT, **elements})
