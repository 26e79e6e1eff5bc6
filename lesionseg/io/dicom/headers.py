"""DICOM files: which of them are images, their elements and their stored pixels."""

import logging
import os
import re
import struct
import warnings
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any
from zlib import MAX_WBITS, decompressobj

import numpy as np
from numpy.typing import NDArray

from lesionseg.errors import ReadError, pip_install
from lesionseg.io.dicom.elements import Header, text, texts, value_of, whole_number
from lesionseg.io.limits import check_size, in_worker, reading

# DICOM's axes run to the patient's left and back, those of the affines here to right and front
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SUFFIXES = (".dcm", ".dicom", ".ima")
# CR, DX, mammography, intra-oral, each for presentation and processing: PS3.4 table B.5-1
_XRAY = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.1(\.[123](\.1)?)?")
# angiography and fluoroscopy, classic and enhanced: one frame is a radiograph, several are a film
_FLUOROSCOPY = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.12\.[12](\.1)?")
_XRAY_MODALITIES = ("CR", "DX", "MG", "IO", "PX", "RG", "RF", "XA")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_NO_IMAGE = ("SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "SR", "PR", "KO", "REG", "DOC")
_LOCALISERS = {"LOCALIZER", "LOCALISER", "SCOUT", "TOPOGRAM"}
_PREAMBLE = 132
_GROUP_2 = 144  # behind the element that holds the length of group 2, PS3.10 section 7.1
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MOST_INFLATED = 2**28
_START_BYTES = 2**10
# compressed syntaxes with a known bound of their ratio: RLE; blank images of the others are tiny
_RLE = "1.2.840.10008.1.2.5"
_VALUE_TYPES = {
    *("AE", "AS", "AT", "CS", "DA", "DS", "DT", "FL", "FD", "IS", "LO", "LT", "OB", "OW", "PN"),
    *("SH", "SL", "SQ", "SS", "ST", "TM", "UI", "UL", "UN", "US", "UT"),
}
_LONG_TYPES = {"OB", "OW", "SQ", "UN", "UT"}  # whose length has four bytes


def is_dicom(path: Path) -> bool:
    """Return True for a DICOM file: by its suffix, the letters DICM, or its first element.

    Old archives write files without the preamble and the letters DICM: they begin with an element
    of group 2 or 8. A file without a suffix that is cut within the preamble's zeros counts as one.
    """
    if not path.is_file() or path.name.startswith("."):
        return False
    if path.name.lower().endswith(SUFFIXES):
        return True
    if not os.access(path, os.R_OK):  # what may be a slice says so when it is read
        return not path.suffix
    with path.open("rb") as stream:
        start = stream.read(_START_BYTES)
    if start[128:_PREAMBLE] == b"DICM" or _is_bare(start, path.stat().st_size):
        return True
    is_cut = len(start) < _PREAMBLE and not path.suffix.strip(".").isalpha()
    return is_cut and b"DICM".startswith(start.strip(b"\0"))


def _is_bare(start: bytes, n_bytes: int) -> bool:
    """Return True if two DICOM elements in ascending order begin a file, without a preamble."""
    for order in "<>":
        at, last = 0, (0, 0)
        for _ in range(2):
            if len(start) < at + 12:
                break
            tag = struct.unpack_from(f"{order}HH", start, at)
            if tag[0] not in (2, 8) or tag <= last or (not at and tag[1] > 0x20):
                break
            kind = start[at + 4 : at + 6].decode("latin-1")
            if kind not in _VALUE_TYPES:
                length, begin = struct.unpack_from(f"{order}I", start, at + 4)[0], at + 8
            elif kind in _LONG_TYPES:
                length, begin = struct.unpack_from(f"{order}I", start, at + 8)[0], at + 12
            else:
                length, begin = struct.unpack_from(f"{order}H", start, at + 6)[0], at + 8
            at, last = begin + length, tag
            if at > n_bytes or length % 2:
                break
        else:
            return True
    return False


def read_header(path: Path, *, pixels: bool = False) -> "Header":
    """Read a file's elements, and its pixels only if asked. Raises `ReadError`.

    The header of a file without a preamble gets the transfer syntax in which it is written.
    """
    try:
        from pydicom import dcmread, uid
    except ImportError as error:
        install = pip_install("dicom")
        raise ReadError(f"{path}: DICOM files need the package pydicom: {install}.") from error
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it quotes what it finds odd
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what vendors write differently is no fault of the user's
        with path.open("rb") as stream:
            start = stream.read(_START_BYTES)
        has_preamble = start[128:_PREAMBLE] == b"DICM"
        if not has_preamble and not _is_bare(start, path.stat().st_size):
            raise ReadError(
                f"{path}: this is not a DICOM file, or it is cut short: it has neither the letters "
                "DICM at byte 128 nor a DICOM element at its start. Copy it again from its source, "
                "or move it out of the folder."
            )
        deflated = has_preamble and _DEFLATED in start
        source = _inflated(path) if deflated else path
        header = dcmread(source, stop_before_pixels=not pixels, force=not has_preamble)
        if deflated:
            header.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
        elif "TransferSyntaxUID" not in header.file_meta:
            is_implicit, is_little_endian = header.original_encoding
            plain = uid.ExplicitVRLittleEndian if is_little_endian else uid.ExplicitVRBigEndian
            header.file_meta.TransferSyntaxUID = (
                uid.ImplicitVRLittleEndian if is_implicit else plain
            )
        return header


def _inflated(path: Path) -> BytesIO:
    """Return a deflated file as one of the plain syntax; pydicom would inflate gigabytes."""
    data = path.read_bytes()
    start = _GROUP_2 + int.from_bytes(data[_GROUP_2 - 4 : _GROUP_2], "little")
    inflater = decompressobj(-MAX_WBITS)
    content = inflater.decompress(data[start:], _MOST_INFLATED)
    if inflater.unconsumed_tail:
        raise ReadError(f"{path}: the file inflates to over 256 MiB. Export it uncompressed.")
    # the plain syntax is the same without the last three characters
    return BytesIO(data[:start].replace(_DEFLATED, _DEFLATED[:-3] + b"\0\0\0") + content)


def image_header(file: Path) -> "Header | None":
    """Return the header of an image; None for another file or another DICOM object.

    Raises `ReadError` for a file that is cut short: an image must not miss a slice unnoticed.
    """
    if not is_dicom(file) or file.name.upper() == "DICOMDIR":
        return None
    header = read_header(file)
    with reading(file):  # pydicom understands an element when it is asked for
        kind = header.get("SOPClassUID")
        header.get("SeriesInstanceUID")
        has_rows = bool(header.get("Rows"))
    if has_rows and text(header, "Modality") not in _NO_IMAGE:
        return header
    if value_of(header, "SeriesInstanceUID") is None or not kind or "Image Storage" in kind.name:
        raise ReadError(
            f"{file}: the image has no pixels and may be cut short. Copy it again from its source, "
            "or move it out of the folder."
        )
    return None


def stated_series(file: Path) -> str:
    """Return the SeriesInstanceUID of a file whose header is damaged; "" if it cannot be told."""
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pydicom import dcmread

        header = dcmread(
            file, stop_before_pixels=True, force=True, specific_tags=["SeriesInstanceUID"]
        )
        return text(header, "SeriesInstanceUID")
    return ""


def is_radiograph(header: "Header") -> bool:
    """Return True for a projection X-ray image of one plane.

    These are CR, DX, mammograms and intra-oral images; single frames of angiography and
    fluoroscopy; and secondary captures of these modalities with one grey frame, as public
    collections distribute radiographs.
    """
    kind = text(header, "SOPClassUID")
    if _XRAY.fullmatch(kind):
        return True
    is_plane = n_frames(header) == 1 and whole_number(header, "SamplesPerPixel", 1) == 1
    if _FLUOROSCOPY.fullmatch(kind):
        return is_plane
    is_xray = text(header, "Modality") in _XRAY_MODALITIES
    return is_plane and is_xray and is_secondary_capture(header)


def is_secondary_capture(header: "Header") -> bool:
    """Return True for an image made from another one: a screen, a film, an exported picture."""
    kind = text(header, "SOPClassUID")
    return kind == _SECONDARY_CAPTURE or kind.startswith(f"{_SECONDARY_CAPTURE}.")


def n_frames(header: "Header") -> int:
    """Return the number of frames; 1 if the file does not state it."""
    return max(whole_number(header, "NumberOfFrames", 1), 1)


def unfit(header: "Header") -> str:
    """Explain why an image is never read: a localiser, screen shot, colour image or film.

    Return an empty string if there is no reason.
    """
    frames = n_frames(header)
    if is_secondary_capture(header) and not is_radiograph(header):
        return "a secondary capture (a screen shot), not a scan. Leave it out."
    if _LOCALISERS & set(texts(header, "ImageType")):
        return "a localiser. Leave it out of the series' folder."
    if whole_number(header, "SamplesPerPixel", 1) != 1:
        return "in colour; a scan has one value per voxel. Leave it out."
    if frames > 1 and "PerFrameFunctionalGroupsSequence" not in header:
        return (
            f"{frames} frames without a place in the patient, as of a film. Save one frame as a "
            "DICOM file of its own, or as PNG."
        )
    return ""


def check_scan(path: Path, header: "Header") -> None:
    """Raise `ReadError` for an unfit image and for one with more pixels than the file can hold."""
    if reason := unfit(header):
        raise ReadError(f"{path}: {reason}")
    frames = value_of(header, "PerFrameFunctionalGroupsSequence") or ()
    n_planes = max(n_frames(header), len(frames))
    n_bits = whole_number(header, "BitsAllocated", 8)
    n_bits *= int(header.Rows) * int(header.Columns) * n_planes
    syntax = header.file_meta.TransferSyntaxUID
    if not _is_compressed(header) or syntax == _RLE:
        packed = syntax in (_RLE, _DEFLATED.decode())
        check_size(path, n_bits // 8, compressed=packed)


def stored_pixels(path: Path) -> NDArray[Any]:
    """Return a file's pixels `[frame, y, x]` as stored; the worker decodes compressed ones."""
    header = read_header(path, pixels=True)
    return in_worker(_decoded, path) if _is_compressed(header) else _decoded(path, header)


def _is_compressed(header: "Header") -> bool:
    """Return True if the pixels are encoded by a codec, as also a vendor's own syntax may do."""
    syntax = header.file_meta.TransferSyntaxUID
    return bool(syntax.is_private or syntax.is_compressed)


def _decoded(path: Path, header: "Header | None" = None) -> NDArray[Any]:
    header = header or read_header(path, pixels=True)
    _fill_in(header)
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of more frames than stated: whoever wants one says so
        _check_decoder(path, header)
        return header.pixel_array.reshape(-1, int(header.Rows), int(header.Columns))


def _fill_in(header: "Header") -> None:
    """Give elements that a decoder needs, but that are absent or empty, their usual values."""
    allocated = whole_number(header, "BitsAllocated", 16)
    stored = whole_number(header, "BitsStored", allocated)
    usual: dict[str, int | str] = {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "PixelRepresentation": 0,
        "BitsStored": stored,
        "HighBit": stored - 1,
    }
    for name, value in usual.items():
        if value_of(header, name) is None:
            setattr(header, name, value)
    if "NumberOfFrames" in header and value_of(header, "NumberOfFrames") is None:
        del header.NumberOfFrames


def _check_decoder(path: Path, header: "Header") -> None:
    """Raise `ReadError` with a remedy if no installed package decodes the file's pixels."""
    from pydicom.pixels.decoders.base import get_decoder

    syntax = header.file_meta.TransferSyntaxUID
    if not _is_compressed(header):
        if "PixelData" in header and header["PixelData"].is_undefined_length:
            raise ReadError(
                f"{path}: the pixels are compressed, and the file does not state how. Export it "
                "again with a transfer syntax, or uncompressed."
            )
        return
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise ReadError(
            f"{path}: the pixels are compressed as {syntax.name}, which is not read. Export the "
            "file uncompressed (Explicit VR Little Endian)."
        ) from error
    if not decoder.is_available:
        raise ReadError(
            f"{path}: the pixels are compressed as {syntax.name}; its decoder is not installed. "
            f"Run {pip_install('dicom')}, or export the file uncompressed."
        )
