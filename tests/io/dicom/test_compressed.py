"""Compressed DICOM: decoded where a decoder is installed, refused by name where none is."""

import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from lesionseg.errors import ReadError
from lesionseg.io.dicom.headers import read_header
from lesionseg.io.volumes import read_volume
from tests.io.dicom_files import CT, DX, save

Series = Callable[..., Path]


def test_a_series_in_rle_is_the_same_scan(series: Series) -> None:
    folder = series()
    plain = read_volume(folder)
    for file in folder.iterdir():
        header = dcmread(file)
        header.compress(RLELossless)
        header.save_as(file)
    squeezed = read_volume(folder)
    np.testing.assert_array_equal(squeezed.array, plain.array)
    assert squeezed.geometry.matches(plain.geometry)


def test_jpeg_ls_is_decoded_where_its_package_is_there(series: Series) -> None:
    pytest.importorskip("jpeg_ls")
    folder = series()
    plain = read_volume(folder)
    for file in folder.iterdir():
        header = dcmread(file)
        header.compress(JPEGLSLossless)
        header.save_as(file)
    np.testing.assert_array_equal(read_volume(folder).array, plain.array)


def smooth() -> np.ndarray:
    y, x = np.mgrid[:16, :24]
    return (5 * y + 4 * x).astype(np.uint8)


@pytest.mark.parametrize(
    ("syntax", "kind", "off"), [(JPEGBaseline8Bit, "jpeg", 6), (JPEG2000Lossless, "jpeg2000", 0)]
)
def test_jpeg_is_decoded_by_pillow(tmp_path: Path, syntax: str, kind: str, off: int) -> None:
    stream = io.BytesIO()
    options = {"irreversible": False, "no_jp2": True} if off == 0 else {"quality": 95}
    Image.fromarray(smooth()).save(stream, kind, **options)
    path = save(tmp_path / "a.dcm", smooth().astype(np.uint16), DX, Modality="DX")
    header = dcmread(path)
    header.BitsAllocated, header.BitsStored, header.HighBit = 8, 8, 7
    header.PixelData = encapsulate([stream.getvalue()])
    header["PixelData"].VR = "OB"
    header.file_meta.TransferSyntaxUID = syntax
    header.save_as(path)
    assert np.abs(read_volume(path).array[0] - smooth()).max() <= off


def test_what_nothing_installed_decodes_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydicom.pixels.decoders.base import Decoder

    path = save(tmp_path / "a.dcm", np.ones((4, 6), np.uint16), CT, Modality="CT")
    header = dcmread(path)
    header.ImagePositionPatient, header.PixelSpacing = [0, 0, 0], [1, 1]
    header.ImageOrientationPatient, header.SliceThickness = [1, 0, 0, 0, 1, 0], 1
    header.PixelData = encapsulate([b"\xff\xd8 no picture \xff\xd9 "])
    header["PixelData"].VR = "OB"
    header.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    header.save_as(path)
    monkeypatch.setattr(Decoder, "is_available", property(lambda _: False))
    named = r"JPEG Lossless.*a\.dcm.*1\.2\.840\.10008\.1\.2\.4\.70.*pip install pylibjpeg"
    with pytest.raises(ReadError, match=named):
        read_volume(path)


def test_video_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", np.ones((4, 6), np.uint16), DX, Modality="DX")
    header = dcmread(path)
    header.PixelData = encapsulate([b"\0\0"])
    header["PixelData"].VR = "OB"
    header.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"
    header.save_as(path)
    with pytest.raises(ReadError, match=r"MPEG-4.*uncompressed"):
        read_volume(path)


def _deflate(path: Path, behind: bytes = b"") -> None:
    """The same file in the deflated syntax, with more behind it."""
    header = dcmread(path)
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    header.save_as(path, enforce_file_format=True)
    content = path.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(zlib.decompress(content[start:], -zlib.MAX_WBITS) + behind)
    path.write_bytes(content[:start] + packed + packer.flush())


def test_a_deflated_series_is_the_same_scan(series: Series) -> None:
    folder = series()
    before = read_volume(folder)
    for file in folder.iterdir():
        _deflate(file)
    after = read_volume(folder)
    assert after.geometry.matches(before.geometry)
    np.testing.assert_array_equal(after.array, before.array)


def test_h3_a_deflated_file_is_inflated_no_further_than_it_claims(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", np.zeros((4, 4), np.uint16), CT)
    _deflate(path, bytes(2**25 + 2**20))
    assert read_header(path).Rows == 4
    with pytest.raises(ReadError, match="holds more than its header claims"):
        read_header(path, pixels=True)
