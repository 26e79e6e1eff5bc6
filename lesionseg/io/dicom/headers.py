"""DICOM files: recognising images, and reading their elements and stored pixels."""

import logging
import os
import re
import struct
import warnings
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from zlib import MAX_WBITS, decompressobj

import numpy as np
from numpy.typing import NDArray

from lesionseg.errors import ReadError, ResourceError, pip_install
from lesionseg.io.dicom.elements import Header, text, texts, value_of, whole_number
from lesionseg.io.files import is_file_or_broken_link
from lesionseg.io.limits import check_size, convert_read_errors
from lesionseg.io.worker import run_in_worker

# DICOM's x and y axes point to the patient's left and back, those of our affines to right and front
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SUFFIXES = (".dcm", ".dicom", ".ima")
# CR, DX, mammography, intra-oral, each for presentation and processing: PS3.4 table B.5-1
_XRAY = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.1(\.[123](\.1)?)?")
# angiography and fluoroscopy, classic and enhanced: a single frame is read as a radiograph
_FLUOROSCOPY = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.12\.[12](\.1)?")
_XRAY_MODALITIES = ("CR", "DX", "MG", "IO", "PX", "RG", "RF", "XA")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_SPECTROSCOPY = "1.2.840.10008.5.1.4.1.1.4.2"  # it has rows and columns, but no pixels
_NO_IMAGE = ("SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "SR", "PR", "KO", "REG", "DOC")
_LOCALISERS = {"LOCALIZER", "LOCALISER", "SCOUT", "TOPOGRAM"}
_PREAMBLE = 132
# a file begins with a low element of its group, such as (0002,0000) or (0008,0005)
_MAX_FIRST_ELEMENT = 0x20
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MAX_INFLATED_BYTES = 2**28
_START_BYTES = 2**10
# the only codec whose compression ratio has a known bound
_RLE = "1.2.840.10008.1.2.5"
_VALUE_TYPES = {
    "AE", "AS", "AT", "CS", "DA", "DS", "DT", "FL", "FD", "IS", "LO", "LT", "OB", "OW", "PN",
    "SH", "SL", "SQ", "SS", "ST", "TM", "UI", "UL", "UN", "US", "UT",
}  # fmt: skip
_LONG_TYPES = {"OB", "OW", "SQ", "UN", "UT"}  # types whose length field has four bytes


def is_dicom(path: Path) -> bool:
    """Return True for a DICOM file: by its suffix, the letters DICM or its first element.

    Files of old archives have no preamble and no letters DICM. They begin with an element of group
    2 or 8. A file without a suffix also counts if it is cut short within the preamble, which
    consists of zeros.
    """
    if path.name.startswith(".") or not is_file_or_broken_link(path):
        return False
    if path.name.lower().endswith(SUFFIXES):
        return True
    if not os.access(path, os.R_OK):  # or the link is broken; reading a slice reports the error
        return not path.suffix
    with path.open("rb") as stream:
        start = stream.read(_START_BYTES)
    if start[128:_PREAMBLE] == b"DICM" or _is_dicom_without_preamble(start, path.stat().st_size):
        return True
    has_no_format = not path.suffix.strip(".").isalpha()  # no suffix, or a number such as ".17"
    return has_no_format and _is_part_of_preamble(start)


def _is_part_of_preamble(content: bytes) -> bool:
    """Return True if a file ends within the 128 zeros and the letters DICM that begin a file."""
    return len(content) < _PREAMBLE and b"DICM".startswith(content.strip(b"\0"))


def _is_dicom_without_preamble(start: bytes, n_bytes: int) -> bool:
    """Return True if a file without a preamble begins with two DICOM elements.

    Args:
        start: The first bytes of the file.
        n_bytes: The size of the file.
    """
    return any(_has_two_elements(start, n_bytes, byte_order) for byte_order in "<>")


def _has_two_elements(start: bytes, n_bytes: int, byte_order: str) -> bool:
    """Return True if the file begins with two elements of group 2 or 8 whose tags ascend.

    One element could be a coincidence in a file of another format. An element consists of its tag
    (4 bytes), its type (2 bytes, absent in implicit files), the length of its value and the value.
    `byte_order` is "<" for little endian or ">" for big endian, as in `struct`.
    """
    at = 0
    last_tag = (0, 0)
    for _ in range(2):
        if len(start) < at + 12:
            return False
        group, element = struct.unpack_from(f"{byte_order}HH", start, at)
        tag = (group, element)
        if group not in (2, 8) or tag <= last_tag:
            return False
        is_first = at == 0
        if is_first and element > _MAX_FIRST_ELEMENT:
            return False
        kind = start[at + 4 : at + 6].decode("latin-1")
        if kind not in _VALUE_TYPES:  # implicit: the length follows the tag
            (length,) = struct.unpack_from(f"{byte_order}I", start, at + 4)
            begin = at + 8
        elif kind in _LONG_TYPES:
            (length,) = struct.unpack_from(f"{byte_order}I", start, at + 8)
            begin = at + 12
        else:
            (length,) = struct.unpack_from(f"{byte_order}H", start, at + 6)
            begin = at + 8
        at = begin + length
        last_tag = tag
        is_odd = length % 2 == 1  # DICOM pads every value to an even length
        if at > n_bytes or is_odd:
            return False
    return True


def read_header(path: Path, *, pixels: bool = False) -> "Header":
    """Read the elements of a DICOM file.

    Args:
        path: The file. If it has no preamble, the transfer syntax in which it is written is found
            out and added to the header.
        pixels: True reads the pixels too.

    Raises:
        ReadError: The file is damaged, is not DICOM, or pydicom is not installed.
    """
    try:
        from pydicom import uid
    except ImportError as error:
        install = pip_install("dicom")
        raise ReadError(f"{path}: DICOM files need the package pydicom: {install}.") from error
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its warnings may quote patient data
    with convert_read_errors(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # users cannot change how vendors deviate from the standard
        with path.open("rb") as stream:
            start = stream.read(_START_BYTES)
        has_preamble = start[128:_PREAMBLE] == b"DICM"
        if not has_preamble and not _is_dicom_without_preamble(start, path.stat().st_size):
            raise ReadError(
                f"{path}: this is not a DICOM file, or it is cut short: it has neither the letters "
                "DICM at byte 128 nor a DICOM element at its start. Copy it again from its source, "
                "or move it out of the folder."
            )
        header = _read_elements(path, pixels=pixels)
        if "TransferSyntaxUID" not in header.file_meta:
            is_implicit, is_little_endian = header.original_encoding  # as pydicom detected it
            if is_implicit:
                syntax = uid.ImplicitVRLittleEndian
            elif is_little_endian:
                syntax = uid.ExplicitVRLittleEndian
            else:
                syntax = uid.ExplicitVRBigEndian
            header.file_meta.TransferSyntaxUID = syntax
        return header


def _read_elements(path: Path, *, pixels: bool, names: Sequence[str] = ()) -> "Header":
    """Read a file with pydicom, which has no limit when it decompresses a deflated file.

    Args:
        path: The file.
        pixels: True reads the pixels too.
        names: The elements to read. Empty reads all of them.

    Raises:
        ReadError: The file is deflated and grows beyond the limit.
    """
    from pydicom import dcmread, uid

    with path.open("rb") as stream:
        is_deflated = _is_deflated(stream)
        source = _inflate(path, stream) if is_deflated else path
    header = dcmread(
        source, stop_before_pixels=not pixels, force=True, specific_tags=list(names) or None
    )
    if is_deflated:
        header.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    return header


def _is_deflated(stream: BinaryIO) -> bool:
    """Return True if group 2 states that the elements after it are deflated.

    The stream is then at the first byte after group 2. Group 2 is read in the same way as in
    `dcmread`, which tries implicit elements if the type of the first one is unknown.
    """
    from pydicom.filereader import read_dataset, read_preamble

    read_preamble(stream, force=True)
    start = stream.tell()
    for is_implicit in (False, True):
        stream.seek(start)
        group_2 = read_dataset(stream, is_implicit, True, stop_when=_is_after_group_2)
        first = next(group_2.elements(), None)
        if first is None:
            return False
        with suppress(NotImplementedError):
            group_2[first.tag]  # pydicom parses an element only when it is accessed
            break
    return bool(group_2.get("TransferSyntaxUID") == _DEFLATED.decode())


def _is_after_group_2(tag: int, kind: str | None, length: int) -> bool:
    """Return True for the first element after group 2, at which pydicom stops."""
    return tag >> 16 != 2


def _inflate(path: Path, stream: BinaryIO) -> BytesIO:
    """Decompress a deflated file, up to a limit that pydicom does not have.

    Preamble and group 2, which end at the position of the stream, are not compressed. The result
    states the syntax without compression, so that pydicom does not decompress it a second time.
    """
    n_plain_bytes = stream.tell()
    stream.seek(0)
    head = stream.read(n_plain_bytes)
    inflater = decompressobj(-MAX_WBITS)  # negative: deflate without the header of zlib
    content = inflater.decompress(stream.read(), _MAX_INFLATED_BYTES + 1)
    if len(content) > _MAX_INFLATED_BYTES:
        raise ReadError(f"{path}: the file inflates to more than 256 MiB. Export it uncompressed.")
    if not inflater.eof:
        raise ReadError(f"{path}: the compressed elements have no end. Copy it from its source.")
    # the UID of the uncompressed syntax is the same without its last three characters, ".99"
    uncompressed = _DEFLATED[:-3] + b"\0\0\0"  # of equal length, so that no length changes
    inflated = BytesIO(head.replace(_DEFLATED, uncompressed) + content)
    if _is_deflated(inflated):  # the content begins with another group 2
        raise ReadError(f"{path}: the file is deflated twice. Export it uncompressed.")
    inflated.seek(0)
    return inflated


def image_header(file: Path) -> "Header | None":
    """Read the header of an image. Return None for any other file or DICOM object.

    Raises:
        ReadError: The file is damaged or truncated. If it were skipped, a slice of a series could
            be missing unnoticed.
    """
    if not is_dicom(file) or file.name.upper() == "DICOMDIR":
        return None
    header = read_header(file)
    # pydicom parses an element only when it is accessed, and then raises if it is damaged
    with convert_read_errors(file):
        sop_class = header.get("SOPClassUID")
        series_uid = header.get("SeriesInstanceUID")
        has_rows = bool(header.get("Rows"))
    if sop_class == _SPECTROSCOPY:
        return None
    if has_rows and text(header, "Modality") not in _NO_IMAGE:
        return header
    should_be_image = not sop_class or "Image Storage" in sop_class.name
    if not series_uid or should_be_image:
        raise ReadError(
            f"{file}: the image has no pixels and may be cut short. Copy it again from its source, "
            "or move it out of the folder."
        )
    return None


def read_series_uid(file: Path) -> str:
    """Return the SeriesInstanceUID of a file with a damaged header, or "" if it is unreadable."""
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = _read_elements(file, pixels=False, names=["SeriesInstanceUID"])
        return text(header, "SeriesInstanceUID")
    return ""


def is_radiograph(header: "Header") -> bool:
    """Return True for a projection X-ray image of one plane.

    Such images are CR, DX, mammograms and intra-oral images; single frames of angiography and
    fluoroscopy; and secondary captures of these modalities with one grey frame, because public
    collections distribute radiographs in this form.
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
    """Return the number of frames, or 1 if the file does not state it."""
    return max(whole_number(header, "NumberOfFrames", 1), 1)


def explain_unfit(header: "Header") -> str:
    """Explain why an image cannot be read as a scan, or return "" if it can.

    Localisers, screenshots, colour images and films cannot be read.
    """
    frames = n_frames(header)
    if is_secondary_capture(header) and not is_radiograph(header):
        return "a secondary capture (a screenshot), not a scan. Leave it out."
    if _LOCALISERS & set(texts(header, "ImageType")):
        return "a localiser. Leave it out of the series' folder."
    if whole_number(header, "SamplesPerPixel", 1) != 1:
        return "in colour, but a scan has one value per voxel. Leave it out."
    if text(header, "PhotometricInterpretation") == "PALETTE COLOR":
        return (
            "in the colours of a palette, so its values are not intensities. Leave it out, or "
            "export the scan that it was computed from."
        )
    if frames > 1 and "PerFrameFunctionalGroupsSequence" not in header:
        return (
            f"{frames} frames without a position in the patient, as in a film. Save one frame as "
            "a separate DICOM file, or as PNG."
        )
    return ""


def check_scan(path: Path, header: "Header") -> None:
    """Raise `ReadError` if an image cannot be read or its header claims too many pixels.

    The claim is not checked if a codec such as JPEG compresses the pixels, because the ratio of its
    compression has no bound.
    """
    if reason := explain_unfit(header):
        raise ReadError(f"{path}: {reason}")
    syntax = header.file_meta.TransferSyntaxUID
    if _is_compressed(header) and syntax != _RLE:
        return
    frames = value_of(header, "PerFrameFunctionalGroupsSequence") or ()
    n_planes = max(n_frames(header), len(frames))
    n_pixels = int(header.Rows) * int(header.Columns) * n_planes
    n_bits = n_pixels * whole_number(header, "BitsAllocated", 8)
    is_packed = syntax in (_RLE, _DEFLATED.decode())
    check_size(path, n_bits // 8, compressed=is_packed)


def stored_pixels(path: Path) -> NDArray[Any]:
    """Return a file's pixels `[frame, y, x]` as stored. The worker decodes compressed pixels."""
    header = read_header(path, pixels=True)
    return run_in_worker(_decode, path) if _is_compressed(header) else _decode(path, header)


def _is_compressed(header: "Header") -> bool:
    """Return True if a codec encodes the pixels. This includes the private syntaxes of vendors."""
    syntax = header.file_meta.TransferSyntaxUID
    return bool(syntax.is_private or syntax.is_compressed)


def _decode(path: Path, header: "Header | None" = None) -> NDArray[Any]:
    """Decode a file's pixels `[frame, y, x]`. The header is read first if it is not given."""
    header = header or read_header(path, pixels=True)
    _set_decoder_defaults(header)
    with convert_read_errors(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file may contain more frames than its header states
        _check_decoder(path, header)
        pixels = header.pixel_array.reshape(-1, int(header.Rows), int(header.Columns))
        return _drop_unused_bits(pixels, header)


def _drop_unused_bits(pixels: NDArray[Any], header: "Header") -> NDArray[Any]:
    """Replace the bits above BitsStored, such as those of an overlay, by zeros or the sign.

    These bits are not part of the value (PS3.5 8.1.1). pydicom keeps them in some syntaxes.
    """
    n_unused = 8 * pixels.dtype.itemsize - int(header.BitsStored)
    if header.HighBit != header.BitsStored - 1 or n_unused <= 0:
        return pixels
    return np.asarray((pixels << n_unused) >> n_unused)


def _set_decoder_defaults(header: "Header") -> None:
    """Set the elements that a decoder needs to their usual values if they are absent or empty."""
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
    """Raise `ReadError` with advice if no installed package can decode the file's pixels."""
    from pydicom.pixels.decoders.base import get_decoder

    syntax = header.file_meta.TransferSyntaxUID
    if not _is_compressed(header):
        if "PixelData" in header and header["PixelData"].is_undefined_length:
            raise ReadError(
                f"{path}: the pixels are compressed, but the file does not state how. Export it "
                "again with a transfer syntax, or uncompressed."
            )
        return
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise ReadError(
            f"{path}: the pixels are compressed as {syntax.name}, which is not supported. Export "
            "the file uncompressed (Explicit VR Little Endian)."
        ) from error
    if not decoder.is_available:
        install = pip_install("dicom")
        if syntax.name.startswith("High-Throughput"):  # the extra has no decoder for it
            install = 'pip install pylibjpeg "pylibjpeg-openjpeg>=2"'
        raise ResourceError(  # the same file can be read once a decoder is installed
            f"{path}: the pixels are compressed as {syntax.name}, and no decoder is installed. "
            f"Run {install}, or export the file uncompressed."
        )
