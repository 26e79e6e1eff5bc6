"""DICOM headers: which files are DICOM, and which of those are images we read."""

import logging
import re
import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import MAX_WBITS, decompressobj

import numpy as np

from lesionseg.errors import ReadError, pip_install
from lesionseg.io.formats.guard import reading

if TYPE_CHECKING:
    from pydicom.dataset import Dataset as Header

logger = logging.getLogger(__name__)

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
# storage classes without an image of the patient, PS3.4 table B.5-1: waveforms, presentation
# states, raw data, registrations, segmentations, reports, documents, radiotherapy but its images
_OTHER_OBJECTS = re.compile(
    r"1\.2\.840\.10008\.5\.1\.4\.(34|1\.1\.(9|11|66|67|68|88|104|20[012]|481\.(?!1$)\d+))(\.|$)"
)
_SORTED_BY = (
    *("SOPClassUID", "Modality", "ImageType", "SeriesInstanceUID", "SeriesNumber"),
    *("NumberOfFrames", "SamplesPerPixel"),
)
_PREAMBLE = 132
_GROUP_2 = 144  # behind the element that holds the length of group 2, PS3.10 section 7.1
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MOST_HEADER_BYTES = 2**25  # thousands of frames describe themselves in a few MB
_LOCALISERS = {"LOCALIZER", "LOCALISER", "SCOUT", "TOPOGRAM"}


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its suffix, or by the letters DICM behind the preamble."""
    if not path.is_file() or path.name.startswith("."):
        return False
    if path.name.lower().endswith(SUFFIXES):
        return True
    with path.open("rb") as stream:
        return stream.read(_PREAMBLE)[128:] == b"DICM"


def read_header(path: Path, *, pixels: bool = False) -> "Header":
    """Read a file's elements, its pixels only when asked. Raises `ReadError`."""
    try:
        from pydicom import dcmread
    except ImportError as error:
        what = "DICOM files need the package pydicom."
        raise ReadError(what, where=path, remedy=pip_install("dicom")) from error
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it quotes what it finds odd
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what vendors write differently is no fault of the user's
        if _is_deflated(path):
            return _deflated(path, pixels)
        return dcmread(path, stop_before_pixels=not pixels)


def pixel_bytes(header: "Header") -> int:
    """The bytes of pixels that a header claims: rows, columns, frames, samples and bits."""
    frames = header.get("PerFrameFunctionalGroupsSequence", None) or ()
    n_frames = max(int(header.get("NumberOfFrames", None) or 1), len(frames))
    n_bits = int(header.get("BitsAllocated", 8)) * int(header.get("SamplesPerPixel", 1))
    return int(header.get("Rows", 0)) * int(header.get("Columns", 0)) * n_frames * n_bits // 8


def _is_deflated(path: Path) -> bool:
    """Whether the transfer syntax, in the first elements, is the one that deflates headers too."""
    with path.open("rb") as stream:
        return _DEFLATED in stream.read(2**10)


def _deflated(path: Path, pixels: bool) -> "Header":
    """A deflated file, inflated no further than its header, or what that claims, asks for."""
    from pydicom import dcmread
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    most = _MOST_HEADER_BYTES + (pixel_bytes(_deflated(path, False)) if pixels else 0)
    data = path.read_bytes()
    start = _GROUP_2 + int.from_bytes(data[_GROUP_2 - 4 : _GROUP_2], "little")
    inflater = decompressobj(-MAX_WBITS)
    content = inflater.decompress(data[start:], most)
    if pixels and inflater.unconsumed_tail:
        raise ReadError(
            "The deflated DICOM file holds more than its header claims.",
            where=path,
            expected=f"at most {most} bytes",
            remedy="Export the images again, uncompressed.",
        )
    # inflated, the file is one of the plain syntax: the same without the last three characters
    plain = data[:start].replace(_DEFLATED, _DEFLATED[:-3] + b"\0\0\0")
    header = dcmread(BytesIO(plain + content), stop_before_pixels=not pixels)
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return header


def image_headers(folder: Path) -> dict[Path, "Header"]:
    """Headers of the image files right in a folder, by path.

    Files that are not DICOM and other objects are left out, by name in the log. Raises `ReadError`
    for a DICOM file that is cut short: an image must not miss a slice unnoticed.
    """
    headers = {}
    for file in sorted(folder.iterdir()):
        if not file.is_file() or file.name.startswith("."):
            continue
        header = image_header(file)
        if header is None:
            logger.info("%s is left out: it is not a DICOM image.", file)
        else:
            headers[file] = header
    return headers


def image_header(file: Path) -> "Header | None":
    """Header of an image; None for what is no DICOM file or another object.

    Raises `ReadError` for a file that ends before it says which of the two it is.
    """
    if file.name.upper() == "DICOMDIR":
        return None
    if not is_dicom(file):
        if _ends_in_preamble(file):
            raise _cut_short(file)
        return None
    header = read_header(file)
    with reading(file):
        for name in _SORTED_BY:  # pydicom understands an element when it is asked for
            header.get(name)
    if is_image(header):
        return header
    if "SeriesInstanceUID" in header and _is_other_object(header):
        return None
    raise _cut_short(file)


def is_image(header: "Header") -> bool:
    """Whether it is an image, and no segmentation, contour set, report or the like."""
    return "Rows" in header and str(header.get("Modality", "")) not in _NO_IMAGE


def _is_other_object(header: "Header") -> bool:
    """Whether it is a report, segmentation, plan or the like, or a vendor's own without pixels."""
    uid = str(header.get("SOPClassUID", ""))
    if str(header.get("Modality", "")) in _NO_IMAGE or _OTHER_OBJECTS.match(uid):
        return True
    return bool(uid) and not uid.startswith("1.2.840.10008.")


def _ends_in_preamble(file: Path) -> bool:
    """Whether a file without a suffix may be DICOM of which no more than its start was copied."""
    if file.suffix.strip(".").isalpha():
        return False
    return file.stat().st_size < _PREAMBLE and b"DICM".startswith(file.read_bytes().strip(b"\0"))


def _cut_short(file: Path) -> ReadError:
    return ReadError(
        "The DICOM file is cut short: it ends before its image.",
        where=file,
        seen=f"{file.stat().st_size} bytes",
        remedy="Copy it again from its source, or take it out of the folder if it is not an image.",
    )


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
            "Leave it out: a scan has one value per voxel.",
        ),
        (
            n_frames > 1 and "PerFrameFunctionalGroupsSequence" not in header,
            f"The DICOM file holds {n_frames} frames without saying where each lies",
            "Take the enhanced or the classic single-frame form of the series.",
        ),
    ):
        if wrong:
            raise ReadError(f"{what}.", where=path, seen=sorted(kinds) or None, remedy=remedy)
