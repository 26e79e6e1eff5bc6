"""DICOM headers: which files are DICOM, and which of those are images we read."""

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lesionseg.errors import ReadError
from lesionseg.io.guard import reading
from lesionseg.io.mirror import bring

if TYPE_CHECKING:
    from pydicom.dataset import Dataset as Header

# DICOM's axes run to the patient's left and back, those of the affines here to right and front
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SUFFIXES = (".dcm", ".dicom", ".ima")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# storage classes of CR, DX, mammography and intra-oral radiographs, PS3.4 table B.5-1
_XRAY = (
    "1.2.840.10008.5.1.4.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.1.1",
    "1.2.840.10008.5.1.4.1.1.1.2",
    "1.2.840.10008.5.1.4.1.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.1.3",
    "1.2.840.10008.5.1.4.1.1.1.3.1",
)
_NO_IMAGE = ("SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "SR", "PR", "KO", "REG", "DOC")
_LOCALISERS = {"LOCALIZER", "LOCALISER", "SCOUT", "TOPOGRAM"}


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its suffix, or by the letters DICM behind the preamble."""
    if not path.is_file() or path.name.startswith("."):
        return False
    if path.name.lower().endswith(SUFFIXES):
        return True
    bring(path)
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def read_header(path: Path, *, pixels: bool = False) -> "Header":
    """Read a file's elements, its pixels only when asked. Raises `ReadError`."""
    try:
        from pydicom import dcmread
    except ImportError as error:
        raise ReadError(
            "DICOM files need the package pydicom.",
            where=path,
            remedy="pip install 'lesionseg[dicom]'",
        ) from error
    bring(path)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it quotes what it finds odd
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what vendors write differently is no fault of the user's
        return dcmread(path, stop_before_pixels=not pixels)


def image_headers(folder: Path) -> dict[Path, "Header"]:
    """Headers of the image files right in a folder, by path; other objects are left out."""
    headers = {
        file: read_header(file)
        for file in sorted(folder.iterdir())
        if is_dicom(file) and file.name.upper() != "DICOMDIR"
    }
    return {file: header for file, header in headers.items() if is_image(header)}


def is_image(header: "Header") -> bool:
    """Whether it is an image, and no segmentation, contour set, report or the like."""
    return "Rows" in header and str(header.get("Modality", "")) not in _NO_IMAGE


def is_xray(header: "Header") -> bool:
    """Whether it is a projection radiograph: CR, DX, mammogram or intra-oral."""
    return str(header.get("SOPClassUID", "")) in _XRAY


def is_secondary_capture(header: "Header") -> bool:
    """Whether it is a picture of a screen or of a film."""
    return str(header.get("SOPClassUID", "")).startswith(_SECONDARY_CAPTURE)


def refuse_unfit(path: Path, header: "Header") -> None:
    """Raise `ReadError` for localisers, secondary captures, colour and frames without a place."""
    kinds = {str(value).upper() for value in header.get("ImageType", None) or ()}
    n_frames = int(header.get("NumberOfFrames", None) or 1)
    for wrong, what, remedy in (
        (
            is_secondary_capture(header),
            "The DICOM file is a secondary capture (a screen shot), not a scan",
            "Leave it out of the dataset; take the series that it shows.",
        ),
        (
            bool(kinds & _LOCALISERS),
            "The DICOM file is a localiser",
            "Leave it out of the series' folder.",
        ),
        (
            int(header.get("SamplesPerPixel", 1)) != 1,
            "The DICOM image is in colour",
            "Leave it out: a scan has one value a voxel.",
        ),
        (
            n_frames > 1 and "PerFrameFunctionalGroupsSequence" not in header,
            f"The DICOM file holds {n_frames} frames without saying where each lies",
            "Take the enhanced or the classic single-frame form of the series.",
        ),
    ):
        if wrong:
            raise ReadError(f"{what}.", where=path, seen=sorted(kinds) or None, remedy=remedy)
