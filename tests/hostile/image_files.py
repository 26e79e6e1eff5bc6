"""Hostile images: every field of every header with values that it must not have, and bombs."""

import gzip
import io
import struct
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import numpy as np
import pydicom
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.hostile.hostile_file import Files, HostileFile, damaged, files, some_of
from tests.io.dicom_files import CT, DX, save

VOXELS = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
PICTURE = (np.arange(20 * 16) % 256).astype(np.uint8).reshape(20, 16)
LONG = 2**31 - 1


def zipped(content: bytes, level: int = 9) -> bytes:
    """By gzip, the same each time."""
    return gzip.compress(content, level, mtime=0)


def nifti(array: np.ndarray = VOXELS, kind: Any = nibabel.Nifti1Image) -> bytes:
    """A valid NIfTI file."""
    image = kind(array.T, np.diag([1.0, 1.0, 2.0, 1.0]))
    image.set_qform(image.affine, code=1)
    return bytes(image.to_bytes())


_NIFTI_FIELDS = (
    *("sizeof_hdr", "dim", "dim", "dim", "datatype", "bitpix", "pixdim", "pixdim", "vox_offset"),
    *("scl_slope", "scl_inter", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_d"),
    *("qoffset_x", "srow_x", "srow_y", "srow_z", "magic", "intent_code"),
)


@st.composite
def _nifti_contents(draw: st.DrawFn, kind: Any) -> bytes:
    """A header with one to three fields that hold something else, of lists one number."""
    plain, dtype = nifti(kind=kind), kind.header_class.template_dtype
    header = np.frombuffer(plain, dtype, 1).copy()
    for name in draw(st.lists(st.sampled_from(_NIFTI_FIELDS), min_size=1, max_size=3)):
        field = header[name].reshape(-1)
        at = draw(st.integers(0, field.size - 1))
        likely = (0, 1, 2, 3, 7, 16, 32, 127) if field.dtype.kind in "iuf" else (b"n+1", b"ni1")
        value = draw(st.sampled_from(likely) | npst.from_dtype(field.dtype))
        header[name].reshape(-1)[at] = value
    return header.tobytes() + plain[dtype.itemsize :]


_METAIMAGE = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "CompressedData": "False",
    "BinaryDataByteOrderMSB": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "0 0 0",
    "ElementSpacing": "1 1 1",
    "DimSize": "6 5 4",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}
_NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "6 5 4",
    "space directions": "(1,0,0) (0,1,0) (0,0,1)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(0,0,0)",
}
_NRRD_MORE = ("data file", "byte skip", "line skip", "measurement frame")
_WORDS = st.one_of(
    st.sampled_from(
        (
            *("", "-1", "0", "2000000000", "1e999", "nan nan nan", "9" * 400, "%n%n%n%n 1 8 1"),
            *("/etc/passwd", "../x", "LIST", "a b c d", "(nan,0,0) (0,0,0) (0,0,inf)", "\x7f"),
            *("True", "MET_UCHAR", "MET_DOUBLE_ARRAY", "gzip", "bzip2", "ascii", "hex", "block"),
        )
    ),
    st.lists(st.integers(-1, 2**33) | st.floats(), max_size=9).map(
        lambda numbers: " ".join(map(str, numbers))
    ),
    st.text(max_size=9),
)


def _header(fields: dict[str, str], sign: str, first: str = "", end: str = "") -> bytes:
    return (first + "".join(f"{k}{sign}{v}\n" for k, v in fields.items()) + end).encode(
        "utf-8", "replace"
    )


def metaimage(changes: dict[str, str]) -> bytes:
    """A MetaImage with other values in its header."""
    return _header({**_METAIMAGE, **changes}, " = ") + VOXELS.tobytes()


def nrrd(changes: dict[str, str], data: bytes = VOXELS.tobytes()) -> bytes:
    """An NRRD with other values in its header."""
    return _header({**_NRRD, **changes}, ": ", "NRRD0004\n", "\n") + data


_PACKED_NRRD = nrrd({"encoding": "gzip"}, zipped(VOXELS.tobytes()))


def png(width: int, height: int, bits: int = 8, colour: int = 0, data: bytes = b"") -> bytes:
    """A PNG whose header says what it likes."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(data)),
        (b"IEND", b""),
    )
    packed = (
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def encoded(picture: np.ndarray, kind: str, **options: Any) -> bytes:
    """A picture in one of Pillow's formats."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format=kind, **options)
    return stream.getvalue()


_SIDES = st.sampled_from((0, 1, 2**16, LONG)) | st.integers(0, LONG)
_PNG = st.builds(
    png, _SIDES, _SIDES, st.integers(0, 17), st.integers(0, 9), st.binary(max_size=100)
)
_OTHERS = [damaged(encoded(PICTURE, kind)) for kind in ("GIF", "WEBP", "ICO", "PPM", "TGA")]


@st.composite
def _tiff_contents(draw: st.DrawFn) -> bytes:
    """A TIFF with another value in one to three of its tags."""
    compression = draw(st.sampled_from(("raw", "tiff_lzw", "tiff_adobe_deflate")))
    content = bytearray(encoded(PICTURE, "TIFF", compression=compression))
    start = struct.unpack_from("<I", content, 4)[0] + 2
    tags = range(struct.unpack_from("<H", content, start - 2)[0])
    numbers = st.sampled_from((0, 1, LONG)) | st.integers(0, 2**32 - 1)
    for tag, value in draw(some_of(tags, lambda _: numbers)).items():
        struct.pack_into("<I", content, start + 12 * tag + 8, value)
    return bytes(content)


_SHORT = st.sampled_from((0, 1, 2, 3, 7, 64, 65535)) | st.integers(0, 65535)
_DECIMALS = st.lists(
    st.sampled_from(("1e300", "-1e300", "1e-300", "0", "-1", "1")) | st.floats(-1e9, 1e9),
    max_size=7,
)
_ELEMENTS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("Rows", "Columns", "SamplesPerPixel", "PixelRepresentation"), _SHORT),
    **dict.fromkeys(("BitsAllocated", "BitsStored", "HighBit", "PlanarConfiguration"), _SHORT),
    **dict.fromkeys(("SmallestImagePixelValue", "PixelPaddingValue"), _SHORT),
    "NumberOfFrames": st.integers(-1, LONG),
    "PhotometricInterpretation": st.sampled_from(("", "YBR_FULL", "RGB", "PALETTE COLOR", "x")),
    **dict.fromkeys(("PixelSpacing", "ImageOrientationPatient", "SliceThickness"), _DECIMALS),
    **dict.fromkeys(("ImagePositionPatient", "RescaleSlope", "RescaleIntercept"), _DECIMALS),
    **dict.fromkeys(("WindowCenter", "ImagerPixelSpacing"), _DECIMALS),
    "SpecificCharacterSet": st.sampled_from(("ISO_IR 9999", ["", "x"])),
    "PixelData": st.sampled_from((b"", b"\0", bytes(10**6))),
}
_SYNTAXES = (RLELossless, JPEGBaseline8Bit, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless)
_PIECES = st.one_of(
    st.sampled_from((bytes(2), b"\xff\xd8\xff\xd9", b"\0\0\0\x0cjP  \r\n\x87\n")),
    st.binary(min_size=2, max_size=300),
    damaged(encoded(PICTURE, "JPEG")).map(lambda piece: piece.ljust(2, b"\0")),
)


def _dicom_base(sop_class: str) -> bytes:
    """A valid slice or radiograph."""
    elements = {
        "Modality": "CT",
        "ImagePositionPatient": [0, 0, 0],
        "PixelSpacing": [1, 1],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "SliceThickness": 1,
        "RescaleSlope": 1,
        "RescaleIntercept": 0,
    }
    with TemporaryDirectory() as folder:
        path = save(Path(folder) / "a.dcm", PICTURE.astype(np.uint16), sop_class, **elements)
        made, stream = pydicom.dcmread(path), io.BytesIO()
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


_SLICE, _RADIOGRAPH = _dicom_base(CT), _dicom_base(DX)


def _dicom(base: bytes, changes: dict[str, Any], syntax: Any = None) -> bytes:
    """The file with other elements; nothing where pydicom will not write them."""
    made, stream = pydicom.dcmread(io.BytesIO(base)), io.BytesIO()
    try:
        for name, value in changes.items():
            setattr(made, name, value)
        if syntax is not None:
            made.file_meta.TransferSyntaxUID = syntax
            made["PixelData"].is_undefined_length = True
        made.save_as(stream, enforce_file_format=True)
    except (ValueError, TypeError, OverflowError, AttributeError, struct.error):
        return b""
    return stream.getvalue()


def _encapsulated(piece: bytes, syntax: Any) -> bytes:
    return _dicom(_SLICE, {"PixelData": encapsulate([piece])}, syntax)


def _deflated(behind: bytes) -> bytes:
    start = 144 + int.from_bytes(_SLICE[140:144], "little")
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(_SLICE[start:] + behind) + packer.flush()
    old, new = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"
    meta = _SLICE[:start].replace(struct.pack("<H", 20) + old, struct.pack("<H", 22) + new)
    length = int.from_bytes(meta[140:144], "little") + 2
    return meta[:140] + struct.pack("<I", length) + meta[144:] + packed


_NIFTI1 = _nifti_contents(nibabel.Nifti1Image)
IMAGES: dict[str, Files] = {
    "NIfTI": st.one_of(
        files("a.nii", _NIFTI1),
        files("a.nii.gz", _NIFTI1.map(zipped)),
        files("a.nii", _nifti_contents(nibabel.Nifti2Image)),
        npst.arrays(np.int16, st.lists(st.integers(1, 4), min_size=1, max_size=7).map(tuple)).map(
            lambda array: HostileFile("a.nii", nifti(array))
        ),
    ),
    "MetaImage": files("a.mha", some_of(_METAIMAGE, lambda _: _WORDS).map(metaimage)),
    "NRRD": files(
        "a.nrrd",
        some_of((*_NRRD, *_NRRD_MORE), lambda _: _WORDS).map(nrrd) | damaged(_PACKED_NRRD),
    ),
    "PNG": files("a.png", st.one_of(_PNG, damaged(encoded(PICTURE, "PNG")), *_OTHERS)),
    "JPG": files("a.jpg", damaged(encoded(PICTURE, "JPEG"))),
    "BMP": files("a.bmp", damaged(encoded(PICTURE, "BMP"))),
    "TIF": files("a.tif", _tiff_contents()),
    "DICOM": files(
        "a.dcm",
        st.one_of(
            st.builds(
                _dicom,
                st.sampled_from((_SLICE, _RADIOGRAPH)),
                some_of(_ELEMENTS, _ELEMENTS.__getitem__),
            ),
            st.builds(_encapsulated, _PIECES, st.sampled_from(_SYNTAXES)),
            damaged(_deflated(b"")),
        ),
    ),
}


def bombs() -> list[tuple[str, HostileFile]]:
    """Small files that mean large arrays, and one that is a program; of which kind each is."""
    claim = bytearray(nifti(np.zeros((1, 1, 1), np.uint8)))
    struct.pack_into("<8h", claim, 40, 3, 2**15 - 1, 2**15 - 1, 64, 1, 1, 1, 1)
    zeros = zipped(bytes(2**26), 1)
    large = nrrd({"sizes": "1024 1024 1000", "encoding": "gzip"}, zeros)
    wide = png(30_000, 30_000, 1, 0, bytes(30_000 * 3751))
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) = quit\n"
    return [
        ("NIfTI", HostileFile("a.nii.gz", zipped(bytes(claim) + bytes(2**26), 1))),
        ("NRRD", HostileFile("a.nrrd", large)),
        ("PNG", HostileFile("a.png", wide)),
        ("PNG", HostileFile("a.png", program)),
        ("DICOM", HostileFile("a.dcm", _deflated(bytes(2**26)))),
    ]
