"""DICOM files: which are images that we read, their elements and their stored pixels."""

import logging
import os
import re
import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from zlib import MAX_WBITS, decompressobj

import numpy as np
from numpy.typing import NDArray

from lesionseg.errors import ReadError, pip_install
from lesionseg.io.limits import check_size, in_worker, reading

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Header: TypeAlias = "Dataset"
# DICOM's axes run to the patient's left and back, those of the affines here to right and front
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SUFFIXES = (".dcm", ".dicom", ".ima")
# CR, DX, mammography, intra-oral, each for presentation and processing: PS3.4 table B.5-1
_XRAY = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.1(\.[123](\.1)?)?")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_NO_IMAGE = ("SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "SR", "PR", "KO", "REG", "DOC")
_LOCALISERS = {"LOCALIZER", "LOCALISER", "SCOUT", "TOPOGRAM"}
_SORTED_BY = (
    *("SOPClassUID", "Modality", "ImageType", "SeriesInstanceUID", "SeriesNumber"),
    *("NumberOfFrames", "SamplesPerPixel"),
)
_PREAMBLE = 132
_GROUP_2 = 144  # behind the element that holds the length of group 2, PS3.10 section 7.1
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MOST_INFLATED = 2**28


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its suffix, or by the letters DICM behind the preamble.

    A file without a suffix of which no more than the first zeros were copied counts as one.
    """
    if not path.is_file() or path.name.startswith("."):
        return False
    if path.name.lower().endswith(SUFFIXES):
        return True
    if not os.access(path, os.R_OK):  # what may be a slice says so when it is read
        return not path.suffix
    with path.open("rb") as stream:
        start = stream.read(_PREAMBLE)
    is_cut = len(start) < _PREAMBLE and not path.suffix.strip(".").isalpha()
    return start[128:] == b"DICM" or (is_cut and b"DICM".startswith(start.strip(b"\0")))


def read_header(path: Path, *, pixels: bool = False) -> "Header":
    """Read a file's elements, its pixels only when asked. Raises `ReadError`."""
    try:
        from pydicom import dcmread
        from pydicom.uid import DeflatedExplicitVRLittleEndian
    except ImportError as error:
        install = pip_install("dicom")
        raise ReadError(f"{path}: DICOM files need the package pydicom: {install}.") from error
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it quotes what it finds odd
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what vendors write differently is no fault of the user's
        with path.open("rb") as stream:
            deflated = _DEFLATED in stream.read(2**10)
        header = dcmread(_inflated(path) if deflated else path, stop_before_pixels=not pixels)
        if deflated:
            header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        return header


def _inflated(path: Path) -> BytesIO:
    """A deflated file as one of the plain syntax; pydicom would inflate gigabytes."""
    data = path.read_bytes()
    start = _GROUP_2 + int.from_bytes(data[_GROUP_2 - 4 : _GROUP_2], "little")
    inflater = decompressobj(-MAX_WBITS)
    content = inflater.decompress(data[start:], _MOST_INFLATED)
    if inflater.unconsumed_tail:
        raise ReadError(f"{path}: the file inflates to over 256 MiB. Export it uncompressed.")
    # the plain syntax is the same without the last three characters
    return BytesIO(data[:start].replace(_DEFLATED, _DEFLATED[:-3] + b"\0\0\0") + content)


def image_header(file: Path) -> "Header | None":
    """Header of an image; None for what is no DICOM file or another object.

    Raises `ReadError` for a file that is cut short: an image must not miss a slice unnoticed.
    """
    if not is_dicom(file) or file.name.upper() == "DICOMDIR":
        return None
    header = read_header(file)
    with reading(file):
        for name in _SORTED_BY:  # pydicom understands an element when it is asked for
            header.get(name)
    if "Rows" in header and str(header.get("Modality", "")) not in _NO_IMAGE:
        return header
    kind = header.get("SOPClassUID")
    if "SeriesInstanceUID" not in header or not kind or "Image Storage" in kind.name:
        raise ReadError(f"{file}: the image has no pixels and may be cut short. Copy it again.")
    return None


def is_xray(header: "Header") -> bool:
    return _XRAY.fullmatch(str(header.get("SOPClassUID", ""))) is not None


def is_secondary_capture(header: "Header") -> bool:
    """Whether it is a picture of a screen or of a film."""
    return str(header.get("SOPClassUID", "")).startswith(_SECONDARY_CAPTURE)


def unfit(header: "Header") -> str:
    """Why an image is never read: localiser, screen shot, colour, frames without a place."""
    n_frames = int(header.get("NumberOfFrames", None) or 1)
    if is_secondary_capture(header):
        return "a secondary capture (a screen shot), not a scan. Leave it out."
    if _LOCALISERS & {str(value).upper() for value in header.get("ImageType", None) or ()}:
        return "a localiser. Leave it out of the series' folder."
    if int(header.get("SamplesPerPixel", 1)) != 1:
        return "in colour; a scan has one value per voxel. Leave it out."
    if n_frames > 1 and "PerFrameFunctionalGroupsSequence" not in header:
        return f"{n_frames} frames without a place. Export single-frame files."
    return ""


def check_scan(path: Path, header: "Header") -> None:
    """Raise `ReadError` for what is unfit, or claims more pixels than the file can hold."""
    if reason := unfit(header):
        raise ReadError(f"{path}: {reason}")
    frames = header.get("PerFrameFunctionalGroupsSequence", None) or ()
    n_frames = max(int(header.get("NumberOfFrames", None) or 1), len(frames))
    n_bits = int(header.Rows) * int(header.Columns) * n_frames * int(header.get("BitsAllocated", 8))
    syntax = header.file_meta.get("TransferSyntaxUID")
    packed = syntax is not None and (syntax.is_compressed or syntax.is_deflated)
    check_size(path, n_bits // 8, compressed=packed)


def stored_pixels(path: Path) -> NDArray[Any]:
    """The pixels of a file `[frame, y, x]` as stored; compressed ones are decoded in the worker."""
    header = read_header(path, pixels=True)
    syntax = header.file_meta.get("TransferSyntaxUID")
    packed = syntax is not None and syntax.is_compressed
    return in_worker(_decoded, path) if packed else _decoded(path, header)


def _decoded(path: Path, header: "Header | None" = None) -> NDArray[Any]:
    header = header or read_header(path, pixels=True)
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of more frames than stated: whoever wants one says so
        return header.pixel_array.reshape(-1, int(header.Rows), int(header.Columns))
