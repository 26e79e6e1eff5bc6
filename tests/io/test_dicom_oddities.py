"""DICOM of archives and public collections: odd elements, no preamble, any codec."""

import io
import logging

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom import config, dcmread, uid
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomFileLike
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from lesionseg.core import CaseFiles, Dataset, Labels
from lesionseg.errors import DatasetError, LesionsegError, ReadError
from lesionseg.io.cases import content_files
from lesionseg.io.dicom import headers
from lesionseg.io.inspection import inspect_case
from lesionseg.io.layouts.input_images import find_images
from lesionseg.io.volumes import is_dicom_image, read_geometry, read_volume
from tests.io import dicom_files as dicom
from tests.io.dicom_files import VOXELS, item, one, save

PIXELS = np.arange(100, 124, dtype=np.uint16).reshape(4, 6) * 10
XA, RF = "1.2.840.10008.5.1.4.1.1.12.1", "1.2.840.10008.5.1.4.1.1.12.2"
RADIOGRAPHS = [
    (dicom.SECONDARY_CAPTURE, "CR"),  # RSNA pneumonia, SIIM pneumothorax
    (dicom.SECONDARY_CAPTURE, "DX"),
    (dicom.SECONDARY_CAPTURE, "MG"),  # CBIS-DDSM
    (f"{dicom.SECONDARY_CAPTURE}.2", "DX"),  # of several grey bytes, with one frame
    (f"{dicom.SECONDARY_CAPTURE}.3", "CR"),
    (XA, "XA"),
    (RF, "RF"),
    (f"{XA}.1", "XA"),
    (f"{RF}.1", "RF"),
]


@pytest.mark.parametrize(("kind", "modality"), RADIOGRAPHS)
@pytest.mark.parametrize("frames", [None, 1])
def test_one_grey_frame_of_an_x_ray_modality_is_a_radiograph(tmp_path, kind, modality, frames):
    more = {} if frames is None else {"NumberOfFrames": frames}
    spacing = {"PixelSpacing": [0.143, 0.143], "ConversionType": "WSD"}
    path = save(tmp_path / "in" / "a.dcm", PIXELS, kind, Modality=modality, **spacing, **more)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array[0], PIXELS)
    assert volume.geometry.spacing_mm == pytest.approx((0.143, 0.143))
    assert [c.images for c in find_images(tmp_path / "in", 1)] == [(path,)]


def test_screenshots_colour_images_and_films_are_not_radiographs(tmp_path):
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    film = np.stack([PIXELS] * 3)
    for number, (kind, pixels, more, words) in enumerate(
        [
            (dicom.SECONDARY_CAPTURE, PIXELS, {"Modality": "OT"}, "screenshot"),
            (dicom.SECONDARY_CAPTURE, PIXELS, {"Modality": "CT"}, "screenshot"),
            (dicom.SECONDARY_CAPTURE, PIXELS, {"Modality": "CR", **colour}, "screenshot"),
            (XA, film, {"Modality": "XA"}, "3 frames.*Save one frame"),
            (RF, film, {"Modality": "RF"}, "3 frames.*Save one frame"),
        ]
    ):
        folder = tmp_path / f"{number}"
        path = save(folder / "a.dcm", pixels, kind, **more)
        with pytest.raises(ReadError, match=rf"a\.dcm: .*{words}"):
            read_volume(path)
        with pytest.raises(DatasetError):
            find_images(folder, 1)


def xray(path, **elements):
    bits = {"BitsStored": 12, "HighBit": 11}
    return save(path, PIXELS, dicom.DX, Modality="DX", **{**bits, **elements})


IGNORED = [
    ({"WindowCenter": 200, "WindowWidth": 0}, "window of width 0"),
    ({"WindowCenter": 200, "WindowWidth": 0.5}, "window of width 0.5"),
    ({"WindowCenter": 200, "WindowWidth": -400}, "window of width -400"),
    ({"WindowCenter": 0, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"}, "window of width 0"),
    ({"WindowCenter": 40000, "WindowWidth": 20}, "shows no grey values"),
    ({"WindowCenter": 1200, "WindowWidth": 1}, "shows no grey values"),
    ({"WindowCenter": "", "WindowWidth": ""}, ""),
    ({"WindowCenter": 200, "WindowWidth": ""}, "does not consist of a centre and a width"),
    ({"WindowCenter": 200}, "does not consist of a centre and a width"),
    ({"VOILUTFunction": "ODD"}, "VOILUTFunction 'ODD'"),
    ({"VOILUTFunction": ""}, ""),
    ({"VOILUTSequence": Sequence()}, ""),
    ({"VOILUTSequence": one(LUTDescriptor=[4, 0, 16])}, "table of values of interest"),
    ({"RescaleSlope": "", "RescaleIntercept": ""}, "RescaleSlope is missing"),
    ({"RescaleSlope": 1, "RescaleIntercept": ""}, "RescaleIntercept is missing"),
    ({"RescaleSlope": 1}, "RescaleIntercept is missing"),
    ({"RescaleSlope": 0, "RescaleIntercept": 0}, "RescaleSlope is 0"),
    ({"ModalityLUTSequence": Sequence()}, ""),
    ({"ModalityLUTSequence": one(LUTDescriptor=[4, 0, 16])}, "modality table"),
    ({"PixelPaddingValue": ""}, ""),
    ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": ""}, ""),
    ({"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 0}, "padding is ignored"),
    ({"PresentationLUTShape": "", "PresentationIntentType": ""}, ""),
    ({"ImageType": ""}, ""),
    ({"NumberOfFrames": ""}, ""),
    ({"SeriesNumber": ""}, ""),
    ({"PhotometricInterpretation": ""}, ""),
    ({"PhotometricInterpretation": None}, ""),
    ({"SamplesPerPixel": None}, ""),
    ({"PixelRepresentation": None}, ""),
    ({"BitsStored": None, "HighBit": None}, ""),
    ({"PixelSpacing": [0.2], "ImagerPixelSpacing": ""}, "PixelSpacing does not consist of two"),
    ({"EstimatedRadiographicMagnificationFactor": "", "DistanceSourceToPatient": ""}, ""),
]


@pytest.mark.parametrize(("elements", "words"), IGNORED, ids=lambda v: str(v)[:60])
def test_impossible_element_is_ignored_with_a_warning(tmp_path, caplog, elements, words):
    path = xray(tmp_path / "a.dcm", **elements)
    np.testing.assert_array_equal(read_volume(path).array[0], PIXELS)
    assert read_geometry(path).shape == (4, 6)
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert bool(said) == bool(words), said
    assert all(str(path) in message for message in said)
    assert words in " ".join(said)


TEXTS = ["WindowWidth", "RescaleSlope", "PixelSpacing", "PixelPaddingValue", "SeriesNumber"]
TEXTS += ["EstimatedRadiographicMagnificationFactor", "NumberOfFrames", "DistanceSourceToDetector"]


@pytest.mark.parametrize("name", TEXTS)
def test_text_instead_of_a_number_is_ignored(tmp_path, monkeypatch, name):
    monkeypatch.setattr(config.settings, "writing_validation_mode", config.IGNORE)
    value = {"PixelSpacing": [12345, 12345], "PixelPaddingValue": 12345}.get(name, 12345)
    more = {"WindowCenter": 250} if name == "WindowWidth" else {}
    path = xray(tmp_path / "a.dcm", **{name: value}, **more)
    old = np.uint16(12345).tobytes() if name == "PixelPaddingValue" else b"12345"
    content = path.read_bytes()
    if name == "PixelPaddingValue":  # of no known representation
        path.write_bytes(content.replace(b"US\x02\x00" + old, b"LO\x02\x00xy"))
    else:
        assert old in content
        path.write_bytes(content.replace(old, b"a.bcd"))
    np.testing.assert_array_equal(read_volume(path).array[0], PIXELS)


def test_first_usable_window_is_used(tmp_path):
    two = {"WindowCenter": [0, 1150], "WindowWidth": [0, 100]}
    seen = read_volume(xray(tmp_path / "a.dcm", **two)).array[0]
    expected = read_volume(xray(tmp_path / "b.dcm", WindowCenter=1150, WindowWidth=100)).array[0]
    np.testing.assert_array_equal(seen, expected)
    assert len(np.unique(seen)) > 4


SLICES = [
    ({"RescaleSlope": "", "RescaleIntercept": ""}, VOXELS * 1.0, "RescaleSlope is missing"),
    ({"RescaleSlope": ""}, VOXELS - 1000.0, "RescaleSlope is missing"),
    ({"RescaleSlope": None}, VOXELS - 1000.0, "RescaleSlope is missing"),
    ({"RescaleSlope": 0}, VOXELS - 1000.0, "RescaleSlope is 0"),
    ({"RescaleSlope": 2, "RescaleIntercept": None}, 2.0 * VOXELS, "RescaleIntercept is missing"),
    ({"EchoTime": "", "RescaleSlope": 1}, VOXELS - 1000.0, ""),
    ({"ImageType": "", "SeriesNumber": "", "RescaleSlope": 1}, VOXELS - 1000.0, ""),
    ({"WindowWidth": 0, "WindowCenter": 0, "RescaleSlope": 1}, VOXELS - 1000.0, ""),
]


@pytest.mark.parametrize(("elements", "expected", "words"), SLICES, ids=lambda v: str(v)[:50])
def test_series_with_impossible_rescale_elements_warns_once(
    series, caplog, elements, expected, words
):
    folder = series(dict.fromkeys(range(5), elements))
    np.testing.assert_array_equal(read_volume(folder).array[0], expected)
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert bool(said) == bool(words)
    assert all("in 5 files, the first is d.dcm" in message for message in said)
    assert words in " ".join(said)


@pytest.mark.parametrize("thickness", ["", None, 0, -3])
def test_a_single_slice_without_a_thickness_is_1_mm_thick(series, thickness):
    folder = series({z: {"SliceThickness": thickness} for z in range(5)})
    geometry = read_volume(folder / "d.dcm").geometry
    assert geometry.spacing_mm[0] == pytest.approx(1)
    assert np.linalg.det(geometry.affine[:3, :3]) == pytest.approx(
        np.linalg.det(read_volume(folder).geometry.affine[:3, :3]) / 3
    )


@pytest.mark.parametrize(
    "name", ["ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"]
)
def test_error_for_a_slice_without_position_gives_possible_advice(series, name):
    n = {"ImageOrientationPatient": 6, "ImagePositionPatient": 3, "PixelSpacing": 2}[name]
    for value in (None, "", [0] * n if n != 3 else [1, 2]):
        with pytest.raises(ReadError, match=rf"c\.dcm: {name} is .*leave the file out"):
            read_volume(series({2: {name: value}}))


def bare(path, syntax, *, group_2=False):
    """Write a file again without its preamble, like old archives."""
    header, content = dcmread(path), io.BytesIO()
    out = DicomFileLike(content)
    if group_2:
        header.file_meta.TransferSyntaxUID = syntax
        header.save_as(path, enforce_file_format=True)
        path.write_bytes(path.read_bytes()[132:])
        return path
    out.is_implicit_VR, out.is_little_endian = syntax.is_implicit_VR, syntax.is_little_endian
    if not syntax.is_little_endian:
        header.PixelData = np.frombuffer(header.PixelData, "<u2").astype(">u2").tobytes()
    write_dataset(out, header)
    path.write_bytes(content.getvalue())
    return path


SYNTAXES = [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
@pytest.mark.parametrize("name", ["b.dcm", "IM0001", "1.2.840.77", "0001.IMA"])
def test_files_without_preamble_are_read_by_any_name(tmp_path, syntax, name):
    path = bare(xray(tmp_path / "in" / name), syntax)
    assert is_dicom_image(path)
    np.testing.assert_array_equal(read_volume(path).array[0], PIXELS)
    assert [c.images for c in find_images(tmp_path / "in", 1)] == [(path,)]
    if syntax == uid.ExplicitVRLittleEndian:
        np.testing.assert_array_equal(
            read_volume(bare(xray(path), syntax, group_2=True)).array[0], PIXELS
        )


def test_a_slice_without_preamble_is_not_dropped_from_its_series(series):
    folder = series()
    whole = read_volume(folder)
    for name in ("d", "b"):  # the first and the last in place
        file = folder / f"{name}.dcm"
        bare(file, uid.ImplicitVRLittleEndian)
        np.testing.assert_array_equal(read_volume(folder).array, whole.array)
        file = file.rename(folder / name)
        assert file in content_files(folder)
        np.testing.assert_array_equal(read_volume(folder).array, whole.array)
        assert [c.images for c in find_images(folder, 1)] == [(folder,)]


@pytest.mark.parametrize("name", ["IM0099", "0006.bak", "README", "1.2.3.99"])
def test_a_stray_file_among_slices_is_a_warning_and_a_finding(series, caplog, name):
    folder = series()
    (folder / name).write_text("Not a slice, but perhaps the remains of one. " * 20)
    (folder / "notes.txt").write_text("A slice would not have this name.")
    assert read_volume(folder).array.shape == (1, 5, 4, 6)
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert said == [f"{folder}: {name} is not a DICOM image and is left out."]
    dataset = Dataset("x", folder, "manifest", 3, ("CT",), Labels.of({1: "lesion"}), ())
    seen = inspect_case(CaseFiles("scan", (folder,)), dataset)
    assert any(name in remark for remark in seen.remarks)


def test_error_names_a_dcm_file_that_is_not_dicom(series):
    folder = series()
    (folder / "z.dcm").write_text("Not a slice. " * 40)
    for path in (folder, folder / "z.dcm"):
        with pytest.raises(ReadError, match=r"z\.dcm: this is not a DICOM file.*move it out") as e:
            read_volume(path)
        assert "force=" not in str(e.value)


def packed(path, pixels, stream, syntax, bits):
    """Write a radiograph whose pixels are one compressed stream."""
    depth = {"BitsAllocated": 8 if bits <= 8 else 16, "BitsStored": bits, "HighBit": bits - 1}
    path = save(path, pixels.astype(np.uint16), dicom.DX, Modality="DX", **depth)
    header = dcmread(path)
    header.PixelData = encapsulate([stream])
    header["PixelData"].VR = "OB"
    header["PixelData"].is_undefined_length = True
    header.file_meta.TransferSyntaxUID = syntax
    header.save_as(path, enforce_file_format=True)
    return path


def jpeg_lossless(pixels, bits):
    return imagecodecs.jpeg_encode(pixels, lossless=True, bitspersample=bits, predictor=1)


def jpeg_2000(pixels, bits):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg2000", irreversible=False, no_jp2=True)
    return stream.getvalue()


CODECS = [
    ("JPEG Lossless SV1", uid.JPEGLosslessSV1, jpeg_lossless),
    ("JPEG Lossless", uid.JPEGLossless, jpeg_lossless),
    ("JPEG-LS", uid.JPEGLSLossless, lambda pixels, bits: imagecodecs.jpegls_encode(pixels)),
    ("JPEG 2000", uid.JPEG2000Lossless, jpeg_2000),
]


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize(("name", "syntax", "encode"), CODECS, ids=[c[0] for c in CODECS])
def test_lossless_codecs_give_the_exact_pixels(tmp_path, rng, bits, name, syntax, encode):
    kind = np.uint8 if bits == 8 else np.uint16
    pixels = rng.integers(0, 2**bits, (24, 32)).astype(kind)
    pixels[0, :2] = 0, 2**bits - 1
    path = packed(tmp_path / "a.dcm", pixels, encode(pixels, bits), syntax, bits)
    np.testing.assert_array_equal(read_volume(path).array[0], pixels)
    blank = np.zeros((2000, 1800), kind)  # its file is far smaller than that of a picture
    path = packed(tmp_path / "b.dcm", blank, encode(blank, bits), syntax, bits)
    assert not read_volume(path).array.any()


def test_error_for_a_missing_decoder_names_the_install_command(tmp_path, monkeypatch):
    pixels = PIXELS.astype(np.uint16)
    path = packed(tmp_path / "a.dcm", pixels, jpeg_lossless(pixels, 12), uid.JPEGLosslessSV1, 12)
    monkeypatch.setattr(headers, "run_in_worker", lambda read, *args: read(*args))
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.is_available", False)
    with pytest.raises(ReadError, match=r"a\.dcm: .*JPEG Lossless.*pip install .*python-gdcm"):
        read_volume(path)


def test_error_for_an_unknown_compression_gives_advice(tmp_path):
    path = packed(tmp_path / "a.dcm", PIXELS, b"\0" * 40, uid.UID("1.2.840.10008.1.2.4.100"), 12)
    with pytest.raises(ReadError, match=r"a\.dcm: .*MPEG2.*Export the file uncompressed"):
        read_volume(path)
    packed(path, PIXELS, b"\0" * 40, uid.UID("1.2.840.113619.5.2"), 12)
    with pytest.raises(ReadError, match=r"a\.dcm: .*Export the file uncompressed"):
        read_volume(path)


@pytest.mark.parametrize(
    "content", [b"no DICOM " * 60, b"\x08\0\x05\0" * 40, b"\0" * 500, b"\x08\0"]
)
@pytest.mark.parametrize("name", ["a.dcm", "a"])
def test_no_message_asks_for_force(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    for read in (read_volume, read_geometry):
        with pytest.raises(LesionsegError) as caught:
            read(tmp_path / name)
        assert "force=" not in str(caught.value)
        assert name in str(caught.value)


def test_items_of_a_sequence_may_be_empty(tmp_path):
    tables = Sequence([item()])
    path = xray(tmp_path / "a.dcm", VOILUTSequence=tables, ModalityLUTSequence=tables)
    np.testing.assert_array_equal(read_volume(path).array[0], PIXELS)
