"""One DICOM file: recognition, header, unfit image, compressed pixels, missing decoder."""

import logging
import os
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any
from zlib import MAX_WBITS, decompressobj

import numpy as np
from numpy.typing import NDArray

from lesionseg.errors import ReadError, ResourceError, pip_install
from lesionseg.io.dicom.elements import Header, element_value, number, text
from lesionseg.io.files import is_file_or_broken_link
from lesionseg.io.limits import check_size, convert_read_errors
from lesionseg.io.text import printable_text
from lesionseg.io.worker import run_in_worker

# DICOM's x and y axes point to the patient's left and back, those of our affines to right and front
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SUFFIXES = (".dcm", ".dicom", ".ima")
# CR, DX, mammography, intra-oral, each for presentation and processing: PS3.4 table B.5-1
_XRAY = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.1(\.[123](\.1)?)?")
# angiography and fluoroscopy, classic and enhanced: a single frame is read as a radiograph
FLUOROSCOPY = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.12\.[12](\.1)?")
_XRAY_MODALITIES = ("CR", "DX", "MG", "IO", "PX", "RG", "RF", "XA")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_SPECTROSCOPY = "1.2.840.10008.5.1.4.1.1.4.2"  # it has rows and columns, but no pixels
NO_IMAGE = ("SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "SR", "PR", "KO", "REG", "DOC")
_LOCALISER = re.compile(r"\b(LOCALI[SZ]ER|SCOUT|TOPOGRAM)\b", re.I)  # among the image types
_SCANNER = ("Manufacturer", "ManufacturerModelName", "StationName")
_PREAMBLE = 132
# a low tag of group 2 or 8, with which a file without preamble begins: (0002,0000) or (0008,0005).
# In explicit files, of both byte orders, two letters follow, which are the type of the value.
_LOW_TAG = re.compile(rb"[\x02\x08]\0[\0-\x20]\0")
_EXPLICIT_ELEMENT = re.compile(rb"([\x02\x08]\0[\0-\x20]\0|\0[\x02\x08]\0[\0-\x20])[A-Z]{2}")
_START_BYTES = 2**10
_MAX_INFLATED_BYTES = 2**28
_DEFLATED = "1.2.840.10008.1.2.1.99"
# the only codec whose compression ratio has a known bound
_RLE = "1.2.840.10008.1.2.5"


def is_dicom(path: Path) -> bool:
    """Return True if a file is DICOM or may be a damaged DICOM file.

    One of these signs is sufficient:

    - The suffix is one of DICOM.
    - The content begins like DICOM, see `_is_dicom_start`.
    - The name has no suffix, or a suffix with other characters than letters, such as `.17`, and the
      file cannot be opened, is empty, or ends before the end of DICM: it consists of the zeros of
      the preamble, or of these and a part of DICM.

    Return False for folders and hidden files.
    """
    if path.name.startswith(".") or not is_file_or_broken_link(path):
        return False
    if path.name.lower().endswith(SUFFIXES):
        return True
    has_no_format = not path.suffix.strip(".").isalpha()  # no suffix, or a number such as ".17"
    if not os.access(path, os.R_OK):  # or the link is broken; reading a slice reports the error
        return has_no_format
    start = _read_start(path)
    if _is_dicom_start(start):
        return True
    # what follows the zeros is nothing, or the beginning of "DICM", such as b"DI"
    is_part_of_preamble = len(start) < _PREAMBLE and b"DICM".startswith(start.strip(b"\0"))
    return has_no_format and is_part_of_preamble


def _read_start(path: Path) -> bytes:
    """Return the first 1024 bytes of a file, or all bytes of a shorter file."""
    with path.open("rb") as stream:
        return stream.read(_START_BYTES)


def _is_dicom_start(start: bytes) -> bool:
    """Return True if the first bytes of a file are those of DICOM.

    A DICOM file begins with a preamble of 128 bytes and the letters DICM. Files of old archives
    have neither, and begin with an element. The tag of this element has the group 2 or 8 and a low
    number. After the tag there are two forms:

    - explicit: the two letters of the value's type follow, which is a sufficient sign,
    - implicit: the length of the value follows. This may be a coincidence in another format, so the
      tag after the value must be a higher tag of the same group.
    """
    if start[128:_PREAMBLE] == b"DICM" or _EXPLICIT_ELEMENT.match(start):
        return True
    # an implicit element: tag (4 bytes: group, number), length (4 bytes), value; `end` of the value
    end = 8 + int.from_bytes(start[4:8], "little")
    group = start[end : end + 2]
    element = start[end + 2 : end + 4]
    return bool(_LOW_TAG.match(start)) and group == start[:2] and element > start[2:4]


def read_header(path: Path, *, pixels: bool = False) -> "Header":
    """Read the elements of a DICOM file.

    A header without a transfer syntax (the encoding of elements and pixels) gets the syntax in
    which the file is written. The header of a radiograph also gets the elements of its functional
    groups, see `frame_header`. From the first call on, pydicom logs no warnings in this process.

    Args:
        path: The file.
        pixels: True reads the pixels, too.

    Raises:
        ReadError: If the file is damaged, is not DICOM, or pydicom is not installed.
    """
    try:
        from pydicom import uid
    except ImportError as error:
        install = pip_install("dicom")
        raise ReadError(f"{path}: DICOM files need the package pydicom: {install}.") from error
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its warnings may quote patient data
    with convert_read_errors(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # users cannot change how vendors deviate from the standard
        if not _is_dicom_start(_read_start(path)):
            raise ReadError(
                f"{path}: this is not a DICOM file, or it is cut short: it has neither the letters "
                "DICM at byte 128 nor a DICOM element at its start. Copy it again from its source, "
                "or move it out of the folder."
            )
        header = _read_elements(path, pixels=pixels)
        if "TransferSyntaxUID" not in header.file_meta:
            is_implicit, is_little_endian = header.original_encoding  # as pydicom detected it
            syntax = uid.ImplicitVRLittleEndian if is_implicit else uid.ExplicitVRLittleEndian
            header.file_meta.TransferSyntaxUID = (
                syntax if is_little_endian else uid.ExplicitVRBigEndian
            )
        if is_radiograph(header):
            header.update(frame_header(header))
        return header


def frame_header(header: "Header", n: int = 0) -> "Header":
    """Return the elements of one frame of an enhanced file as one header without nesting.

    An enhanced DICOM file contains several frames (slices). It states the elements of a frame, such
    as its position, in functional groups, which are sequences of one item. Shared groups apply to
    all frames. Elements of the groups per frame have priority over shared ones.

    Args:
        header: The header of the file.
        n: The index of the frame, from 0.
    """
    from pydicom.dataset import Dataset

    elements = Dataset()
    elements.update(header)
    shared = header.get("SharedFunctionalGroupsSequence") or ()  # one item, or none
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or ()
    # slices instead of indices, because a file may lack the item
    for group in (*shared[:1], *per_frame[n : n + 1]):
        for sequence in group:
            if sequence.VR == "SQ" and sequence.value and not sequence.tag.is_private:
                elements.update(sequence.value[0])
    return elements


class _LimitedFile(BufferedReader):
    """A DICOM file as a stream, with a limit of the size to which its elements inflate.

    The elements of a DICOM file may be compressed by deflate. pydicom reads compressed elements all
    at once, by `read()`, and inflates them without a limit. It reads other elements one by one.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        """Read `size` bytes. By default (-1), read all remaining bytes.

        pydicom reads all bytes only to inflate them. Raise `ReadError` if they would inflate to
        more than 256 MiB.
        """
        content = super().read(size)
        if size == -1:
            inflater = decompressobj(-MAX_WBITS)  # negative: deflate without the header of zlib
            # one more byte than the limit is sufficient to see that it is exceeded
            if len(inflater.decompress(content, _MAX_INFLATED_BYTES + 1)) > _MAX_INFLATED_BYTES:
                raise ReadError(
                    f"{self.name}: the file inflates to more than 256 MiB. Export it uncompressed."
                )
        return content


def _read_elements(path: Path, *, pixels: bool, names: Sequence[str] = ()) -> "Header":
    """Read a file with pydicom, even if it does not begin like a DICOM file.

    Args:
        path: The file.
        pixels: True reads the pixels, too.
        names: The keywords of the elements to read. Empty means all elements.

    Raises:
        ReadError: If the file is deflated and grows beyond the limit.
    """
    from pydicom import dcmread

    with _LimitedFile(FileIO(path)) as stream:
        return dcmread(
            stream,
            stop_before_pixels=not pixels,
            force=True,  # also without the letters DICM
            specific_tags=list(names) or None,  # None reads all
        )


def image_header(file: Path) -> "Header | None":
    """Read the header of a DICOM image. Return None for a file that is not a DICOM image.

    DICOM objects that are not images are reports, segmentations, spectra and similar files. The
    SOP class (the kind of the object) and the modality show this.

    Raises:
        ReadError: If the file is damaged or truncated. Such a file is not skipped, because a slice
            of a series would then be missing unnoticed.
    """
    if not is_dicom(file) or file.name.upper() == "DICOMDIR":
        return None
    header = read_header(file)
    # pydicom parses an element only when it is accessed, and then raises if it is damaged
    with convert_read_errors(file):
        sop_class = header.get("SOPClassUID")
        series_uid = header.get("SeriesInstanceUID")
        has_rows = bool(header.get("Rows"))
    if has_rows:
        is_other = sop_class == _SPECTROSCOPY or text(header, "Modality") in NO_IMAGE
        return None if is_other else header
    class_name = getattr(sop_class, "name", "Image Storage")  # several values have no name
    should_be_image = not sop_class or "Image Storage" in class_name
    if not series_uid or should_be_image:
        raise ReadError(
            f"{file}: the image has no pixels and may be cut short. Copy it again from its source, "
            "or move it out of the folder."
        )
    return None


def read_series_uid(file: Path) -> str:
    """Return the SeriesInstanceUID of a file with a damaged header.

    The UID shows to which series the file belongs. Return "" if it is absent or cannot be read.
    """
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = _read_elements(file, pixels=False, names=["SeriesInstanceUID"])
        return text(header, "SeriesInstanceUID")
    return ""


def read_acquisition(file: Path) -> dict[str, str]:
    """Read date and scanner of a DICOM file for the columns `acquired` and `scanner` of results.

    The date has the form 2026-01-31. The scanner consists of manufacturer, model and station. A
    text that the header does not contain is "". Raise `ReadError` if the header is damaged.
    """
    header = read_header(file)
    acquired = ""
    with suppress(ValueError):  # empty, or not a date; old archives write 2026.01.31
        acquired = date.fromisoformat(text(header, "StudyDate").replace(".", "")).isoformat()
    scanner = ", ".join(filter(None, (text(header, name) for name in _SCANNER)))
    return {"acquired": acquired, "scanner": printable_text(scanner)}


def is_radiograph(header: "Header") -> bool:
    """Return True if a DICOM image is a radiograph (projection X-ray image), by its SOP class.

    - CR, DX, mammograms and intra-oral images are radiographs.
    - Angiography and fluoroscopy, and secondary captures of an X-ray modality, are radiographs if
      they have one frame and one grey value per pixel. Public collections distribute radiographs
      in this form.
    """
    kind = text(header, "SOPClassUID")
    if _XRAY.fullmatch(kind):
        return True
    is_plane = n_frames(header) == 1 and number(header, "SamplesPerPixel", 1) == 1
    if FLUOROSCOPY.fullmatch(kind):
        return is_plane
    is_xray = text(header, "Modality") in _XRAY_MODALITIES
    return is_plane and is_xray and is_secondary_capture(header)


def is_secondary_capture(header: "Header") -> bool:
    """Return True for a secondary capture: an image made of another image, such as a screenshot.

    The SOP class of the file shows this.
    """
    kind = text(header, "SOPClassUID")
    return kind == _SECONDARY_CAPTURE or kind.startswith(f"{_SECONDARY_CAPTURE}.")


def n_frames(header: "Header") -> int:
    """Return the number of frames (slices or times) in a file. It is at least 1."""
    return max(int(number(header, "NumberOfFrames") or 1), 1)


def explain_unfit(header: "Header") -> str:
    """Explain why a DICOM image cannot be read as a scan. Return "" if it can.

    These images cannot be read as a scan:

    - secondary captures, such as screenshots, except for radiographs,
    - localisers (images on which scans are planned),
    - images in colour or with a palette. A segmentation (LABELMAP) may have a palette, because its
      pixels are numbers of segments.
    - several frames without a position in the patient, such as a cine of the heart.
    """
    if is_secondary_capture(header) and not is_radiograph(header):
        return "a secondary capture (a screenshot), not a scan"
    if _LOCALISER.search(text(header, "ImageType")):
        return "a localiser"
    has_palette = text(header, "PhotometricInterpretation") == "PALETTE COLOR"
    is_segmentation = text(header, "Modality") == "SEG"
    if number(header, "SamplesPerPixel", 1) != 1 or (has_palette and not is_segmentation):
        return "in colour or in the colours of a palette, but a scan has one intensity per voxel"
    if n_frames(header) > 1 and "PerFrameFunctionalGroupsSequence" not in header:
        return f"{n_frames(header)} frames without a position in the patient"
    return ""


def advice_on_unfit(header: "Header") -> str:
    """Return the advice for the message about an image that cannot be read as a scan.

    For modalities of volumes (CT, MR, PT, NM), a complete series may exist. Other images can be
    saved as pictures.
    """
    if text(header, "Modality") in ("CT", "MR", "PT", "NM"):
        return (
            "Export the original series again with a position of each slice, convert it with "
            "dcm2niix, or leave the file out."
        )
    return "Save one frame as PNG, or leave the file out."


def check_image(path: Path, header: "Header") -> None:
    """Raise `ReadError` if an image cannot be read as a scan, or if it claims too many pixels.

    The first check is `explain_unfit`. The second compares the pixels that the header claims with
    the size of the file. It is skipped if a codec other than RLE compresses the pixels, because the
    compression ratio of other codecs has no bound.
    """
    if reason := explain_unfit(header):
        raise ReadError(f"{path}: {reason}. {advice_on_unfit(header)}")
    syntax = header.file_meta.TransferSyntaxUID
    if _is_compressed(header) and syntax != _RLE:
        return
    frames = element_value(header, "PerFrameFunctionalGroupsSequence") or ()
    # a damaged header may state too few frames
    n_pixels = int(header.Rows) * int(header.Columns) * max(n_frames(header), len(frames))
    n_bits = n_pixels * int(number(header, "BitsAllocated") or 8)
    check_size(path, n_bits // 8, compressed=syntax in (_RLE, _DEFLATED))


def stored_pixels(path: Path) -> NDArray[Any]:
    """Return the stored pixels `[frame, y, x]` of a DICOM file, before any rescaling.

    Compressed pixels are decoded in the worker process, because a native codec may crash.

    Raises:
        ReadError: If the file is damaged, or its compression is not supported.
        ResourceError: If no decoder for its compression is installed, or the decoder crashes or
            exceeds a limit.
    """
    header = read_header(path, pixels=True)
    return run_in_worker(_decode, path) if _is_compressed(header) else _decode(path, header)


def _is_compressed(header: "Header") -> bool:
    """Return True if the pixels are compressed by a codec, according to the transfer syntax.

    Private transfer syntaxes of vendors count as compressed, too.
    """
    syntax = header.file_meta.TransferSyntaxUID
    return bool(syntax.is_private or syntax.is_compressed)


def _decode(path: Path, header: "Header | None" = None) -> NDArray[Any]:
    """Decode the pixels `[frame, y, x]` of a DICOM file in this process.

    Args:
        path: The file.
        header: The header of the file, including its pixels. None reads the header. Missing
            elements are set to the defaults of the decoder.

    Raises:
        ReadError: If the pixels cannot be decoded, see `stored_pixels`.
    """
    header = header or read_header(path, pixels=True)
    set_decoder_defaults(header)
    with convert_read_errors(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file may contain more frames than its header states
        _check_decoder(path, header)
        pixels = header.pixel_array.reshape(-1, int(header.Rows), int(header.Columns))
        return _drop_unused_bits(pixels, header)


def _drop_unused_bits(pixels: NDArray[Any], header: "Header") -> NDArray[Any]:
    """Remove the bits of each pixel that are not part of its value.

    A pixel of 16 bits may have a value of 12 bits (BitsStored). The higher bits may contain other
    data, such as an overlay (PS3.5 8.1.1), and pydicom does not always remove them. They become
    zeros, or copies of the sign bit if values are signed. Values that do not begin at the lowest
    bit stay unchanged.
    """
    n_unused = 8 * pixels.dtype.itemsize - int(header.BitsStored)
    if header.HighBit != header.BitsStored - 1 or n_unused <= 0:
        return pixels
    return (pixels << n_unused) >> n_unused  # a shift to the right copies the sign of signed types


def set_decoder_defaults(header: "Header") -> None:
    """Set elements that pydicom's decoder needs to their usual values if they are absent or empty.

    The usual values are those of an unsigned grey image. A NumberOfFrames without a number is
    removed.
    """
    stored = int(number(header, "BitsStored") or number(header, "BitsAllocated") or 16)
    usual: dict[str, int | str] = {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "PixelRepresentation": 0,
        "BitsStored": stored,
        "HighBit": stored - 1,
    }
    for name, value in usual.items():
        if element_value(header, name) is None:
            setattr(header, name, value)
    if "NumberOfFrames" in header and number(header, "NumberOfFrames") is None:
        del header.NumberOfFrames


def _check_decoder(path: Path, header: "Header") -> None:
    """Check that the pixels of a file can be decoded. Otherwise raise an error with advice.

    Raises:
        ReadError: If the pixels are compressed by an unsupported codec, or are compressed although
            the transfer syntax states no compression.
        ResourceError: If the codec is supported, but no decoder is installed.
    """
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
