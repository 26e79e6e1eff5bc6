"""DICOM of archives and public collections: unusual elements, no preamble, and all codecs."""

import io
import logging
import sys
from functools import partial

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom import config, dcmread, uid
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from lesionseg.core import CaseFiles, Dataset, Labels
from lesionseg.errors import DatasetError, ReadError
from lesionseg.io.contents import content_files
from lesionseg.io.dicom import headers
from lesionseg.io.dicom.headers import image_header
from lesionseg.io.inspection import inspect_case
from lesionseg.io.scans import find_scans
from lesionseg.io.volumes import is_dicom_image, read_geometry, read_volume
from tests.io import dicom_files as dicom
from tests.io.dicom_files import (
    VOXELS,
    check_is_whole,
    check_pixels,
    make_item,
    make_sequence,
    write_dicom_file,
)

PIXELS = np.arange(100, 124, dtype=np.uint16).reshape(4, 6) * 10
XA = "1.2.840.10008.5.1.4.1.1.12.1"
RF = "1.2.840.10008.5.1.4.1.1.12.2"
RADIOGRAPHS = [
    (dicom.SECONDARY_CAPTURE, "CR"),  # RSNA pneumonia, SIIM pneumothorax
    (dicom.SECONDARY_CAPTURE, "MG"),  # CBIS-DDSM
    (f"{dicom.SECONDARY_CAPTURE}.2", "DX"),  # Multi-frame Grayscale Byte, with one frame
    (XA, "XA"),
    (f"{RF}.1", "RF"),
]


@pytest.mark.parametrize(("kind", "modality"), RADIOGRAPHS)
@pytest.mark.parametrize("frames", [None, 1])
def test_one_grey_frame_of_an_x_ray_modality_is_a_radiograph(tmp_path, kind, modality, frames):
    facts = {"PixelSpacing": [0.143, 0.143], "ConversionType": "WSD", "NumberOfFrames": frames}
    path = write_dicom_file(tmp_path / "a.dcm", PIXELS, kind, Modality=modality, **facts)
    check_pixels(path, PIXELS)
    assert read_geometry(path).spacing_mm == pytest.approx((0.143, 0.143))
    assert [c.images for c in find_scans(tmp_path, 1).cases()] == [(path,)]


COLOUR = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
PALETTE = {"PhotometricInterpretation": "PALETTE COLOR"}
FILM = np.stack([PIXELS] * 3)
NOT_RADIOGRAPHS = [
    (dicom.SECONDARY_CAPTURE, PIXELS, {"Modality": "OT"}, "screenshot"),
    (dicom.SECONDARY_CAPTURE, PIXELS, {"Modality": "CT"}, "screenshot"),
    (dicom.SECONDARY_CAPTURE, PIXELS, {"Modality": "CR", **COLOUR}, "screenshot"),
    (dicom.DX, PIXELS, {"Modality": "DX", **PALETTE}, "colours of a palette"),
    (dicom.CT, PIXELS, {"Modality": "MR", **PALETTE}, "colours of a palette"),
    (XA, FILM, {"Modality": "XA"}, "3 frames.*Save one frame"),
    (RF, FILM, {"Modality": "RF"}, "3 frames.*Save one frame"),
]


@pytest.mark.parametrize(("kind", "pixels", "elements", "words"), NOT_RADIOGRAPHS)
def test_screenshots_colour_images_and_films_are_not_radiographs(
    tmp_path, kind, pixels, elements, words
):
    path = write_dicom_file(tmp_path / "a.dcm", pixels, kind, **elements)
    with pytest.raises(ReadError, match=rf"a\.dcm: .*{words}"):
        read_volume(path)
    with pytest.raises(DatasetError):
        find_scans(tmp_path, 1).cases()


def test_spectroscopy_is_no_image_although_it_has_rows(tmp_path):
    kind = "1.2.840.10008.5.1.4.1.1.4.2"
    size = {"Rows": 16, "Columns": 16, "NumberOfFrames": 8}
    path = write_dicom_file(tmp_path / "a.dcm", None, kind, Modality="MR", **size)
    assert image_header(path) is None
    for source in (tmp_path, path):
        found = find_scans(source, 1)
        assert found.scans == ()
        assert ["not images" in note.message for note in found.left_out] == [True]


def test_file_of_two_classes_without_pixels_is_an_error(tmp_path):
    classes = {"SOPClassUID": [dicom.CT, dicom.SEG]}
    path = write_dicom_file(tmp_path / "a.dcm", None, dicom.CT, **classes)
    with pytest.raises(ReadError, match=r"a\.dcm: .*no pixels"):
        image_header(path)


def test_scanned_document_is_no_image_and_not_damaged(tmp_path):
    path = write_dicom_file(tmp_path / "a.dcm", PIXELS, dicom.SECONDARY_CAPTURE, Modality="DOC")
    assert image_header(path) is None


@pytest.mark.skipif(sys.platform == "win32", reason="links need permissions on Windows")
def test_unreadable_file_with_a_number_as_suffix_may_be_a_slice(tmp_path):
    path = tmp_path / "MR.1.2.840.17"
    path.symlink_to(tmp_path / "absent")
    assert headers.is_dicom(path)


@pytest.fixture
def xray(tmp_path):
    """Write the radiograph `a.dcm` with the given elements."""
    return partial(dicom.write_xray, tmp_path / "a.dcm", PIXELS)


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


EDGES = (
    "ShutterUpperHorizontalEdge",
    "ShutterLowerHorizontalEdge",
    "ShutterLeftVerticalEdge",
    "ShutterRightVerticalEdge",
)


def edges(*values):
    return {"ShutterShape": "RECTANGULAR", **dict(zip(EDGES, values, strict=True))}


def circle(row, column, radius):
    centre = {"CenterOfCircularShutter": [row, column]}
    return {"ShutterShape": "CIRCULAR", **centre, "RadiusOfCircularShutter": radius}


def polygon(*corners):
    return {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": list(corners)}


NO_LUT = make_sequence(LUTDescriptor=[4, 0, 16])  # without data
NO_ITEM = Sequence([make_item()])
IGNORED = [
    ({"WindowCenter": 200, "WindowWidth": 0.5}, "window of width 0.5"),
    ({"WindowCenter": 0, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"}, "window of width 0"),
    ({"WindowCenter": 40000, "WindowWidth": 20}, "shows no grey values"),
    ({"WindowCenter": 1200, "WindowWidth": 1}, "shows no grey values"),
    ({"WindowCenter": "", "WindowWidth": ""}, ""),
    ({"WindowCenter": 200}, "does not consist of a centre and a width"),
    ({"VOILUTFunction": "ODD"}, "VOILUTFunction 'ODD'"),
    ({"VOILUTFunction": "", "ImageType": "", "SeriesNumber": "", "NumberOfFrames": ""}, ""),
    ({"VOILUTSequence": Sequence(), "ModalityLUTSequence": Sequence()}, ""),
    ({"VOILUTSequence": NO_LUT, "ModalityLUTSequence": NO_ITEM}, "table of values of interest"),
    ({"VOILUTSequence": NO_ITEM, "ModalityLUTSequence": NO_LUT}, "modality table"),
    ({"RescaleSlope": "", "RescaleIntercept": ""}, "RescaleSlope is missing"),
    ({"RescaleSlope": 1}, "RescaleIntercept is missing"),
    ({"RescaleSlope": 0, "RescaleIntercept": 0}, "RescaleSlope is 0"),
    ({"RescaleSlope": [1, 2], "RescaleIntercept": [0, 3]}, ""),
    ({"PixelPaddingValue": ""}, ""),
    ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": ""}, ""),
    ({"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 0}, "padding is ignored"),
    ({"PresentationLUTShape": "", "PresentationIntentType": ""}, ""),
    ({"PhotometricInterpretation": ""}, ""),
    ({"PhotometricInterpretation": None, "SamplesPerPixel": None}, ""),
    ({"PixelRepresentation": None, "BitsStored": None, "HighBit": None}, ""),
    ({"PixelSpacing": [0.2], "ImagerPixelSpacing": ""}, "PixelSpacing does not consist of two"),
    ({"EstimatedRadiographicMagnificationFactor": "", "DistanceSourceToPatient": ""}, ""),
    # shutters
    (edges(3, 2, 5, 3), "shutter is ignored"),
    ({"ShutterShape": "RECTANGULAR", "ShutterUpperHorizontalEdge": 2}, "incomplete"),
    (polygon(1, 1, 2, 2, 3), "incomplete"),
    (polygon(), "incomplete"),
    ({"ShutterShape": "BITMAP"}, "BITMAP"),
    ({"ShutterShape": "", "ShutterLeftVerticalEdge": 3}, ""),
]


@pytest.mark.parametrize(("elements", "words"), IGNORED)
def test_impossible_element_is_ignored_with_a_warning(xray, caplog, elements, words):
    path = xray(**elements)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array[0], PIXELS)
    assert volume.valid is None
    assert read_geometry(path).shape == (4, 6)
    warnings = warnings_of(caplog)
    assert bool(warnings) == bool(words), warnings
    assert all(str(path) in message for message in warnings)
    assert words in " ".join(warnings)


NUMBERS = [
    "WindowWidth",
    "RescaleSlope",
    "PixelSpacing",
    "SeriesNumber",
    "EstimatedRadiographicMagnificationFactor",
    "NumberOfFrames",
    "DistanceSourceToDetector",
]


@pytest.mark.filterwarnings("ignore")  # as for users: pydicom warns, and returns the text
@pytest.mark.parametrize("name", NUMBERS)
def test_text_instead_of_a_number_is_ignored(xray, monkeypatch, name):
    monkeypatch.setattr(config.settings, "writing_validation_mode", config.IGNORE)
    value = [12345, 12345] if name == "PixelSpacing" else 12345
    path = xray(**{name: value, "WindowCenter": 250})
    content = path.read_bytes()
    assert b"12345" in content
    path.write_bytes(content.replace(b"12345", b"a.bcd"))
    check_pixels(path, PIXELS)


def test_text_instead_of_a_padding_value_is_ignored(xray):
    path = xray(PixelPaddingValue=12345)
    element = b"US\x02\x00" + np.uint16(12345).tobytes()
    content = path.read_bytes()
    assert element in content
    path.write_bytes(content.replace(element, b"LO\x02\x00xy"))
    check_pixels(path, PIXELS)


def test_first_usable_window_is_used(xray):
    seen = read_volume(xray(WindowCenter=1150, WindowWidth=100)).array[0]
    check_pixels(xray(WindowCenter=[0, 1150], WindowWidth=[0, 100]), seen)
    assert len(np.unique(seen)) > 4


SLICES = [
    ({"RescaleSlope": "", "RescaleIntercept": ""}, VOXELS * 1.0, "RescaleSlope is missing"),
    ({"RescaleSlope": 0}, VOXELS - 1000.0, "RescaleSlope is 0"),
    ({"RescaleSlope": 2, "RescaleIntercept": None}, 2.0 * VOXELS, "RescaleIntercept is missing"),
    ({"EchoTime": "", "ImageType": "", "SeriesNumber": "", "RescaleSlope": 1}, VOXELS - 1000, ""),
    ({"WindowWidth": 0, "WindowCenter": 0, "RescaleSlope": 1}, VOXELS - 1000, ""),
]


@pytest.mark.parametrize(("elements", "expected", "words"), SLICES)
def test_series_with_impossible_rescale_elements_warns_once(
    series, caplog, elements, expected, words
):
    folder = series(**elements)
    check_pixels(folder, expected)
    warnings = warnings_of(caplog)
    assert bool(warnings) == bool(words)
    assert all("d.dcm, a.dcm, c.dcm and 2 more: " in message for message in warnings)
    assert words in " ".join(warnings)


@pytest.mark.parametrize("thickness", ["", None, 0, -3])
def test_single_slice_without_a_thickness_is_1_mm_thick(series, thickness):
    folder = series(SliceThickness=thickness)
    slab = read_volume(folder / "d.dcm").geometry
    assert slab.spacing_mm[0] == pytest.approx(1)
    whole = read_volume(folder).geometry  # its slices are 3 mm apart
    np.testing.assert_allclose(3 * slab.affine[:3, 0], whole.affine[:3, 0])


def remove_preamble(path, syntax, *, keep_file_meta=False):
    """Write a file again without its preamble, like old archives."""
    header = dcmread(path)
    if keep_file_meta:
        path.write_bytes(path.read_bytes()[132:])
        return path
    out = DicomBytesIO()
    out.is_implicit_VR = syntax.is_implicit_VR
    out.is_little_endian = syntax.is_little_endian
    if not syntax.is_little_endian:
        header.PixelData = np.frombuffer(header.PixelData, "<u2").astype(">u2").tobytes()
    write_dataset(out, header)
    path.write_bytes(out.getvalue())
    return path


SYNTAXES = [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
@pytest.mark.parametrize("name", ["b.dcm", "IM0001", "1.2.840.77", "0001.IMA"])
def test_file_without_preamble_is_read_under_any_name(tmp_path, xray, syntax, name):
    path = remove_preamble(xray().rename(tmp_path / name), syntax)
    assert is_dicom_image(path)
    check_pixels(path, PIXELS)
    assert [c.images for c in find_scans(tmp_path, 1).cases()] == [(path,)]
    if syntax == uid.ExplicitVRLittleEndian:
        check_pixels(remove_preamble(xray(), syntax, keep_file_meta=True), PIXELS)


@pytest.mark.parametrize("name", ["d", "b"])  # the first and the last slice by position
def test_slice_without_preamble_stays_in_its_series(series, name):
    folder = series()
    whole = read_volume(folder).array[0]
    file = remove_preamble(folder / f"{name}.dcm", uid.ImplicitVRLittleEndian)
    check_pixels(folder, whole)
    file = file.rename(folder / name)
    assert file in content_files(folder)
    check_pixels(folder, whole)
    assert [c.images for c in find_scans(folder, 1).cases()] == [(folder,)]


@pytest.mark.parametrize("name", ["IM0099", "0006.bak", "README", "1.2.3.99"])
def test_stray_file_in_a_series_gives_a_warning_and_a_remark(series, caplog, name):
    folder = series()
    (folder / name).write_text("Not a slice, but perhaps the remains of one. " * 20)
    (folder / "notes.txt").write_text("A slice would not have this name.")
    check_is_whole(folder)
    assert warnings_of(caplog) == [f"{folder}: {name}: not a DICOM image, left out."]
    dataset = Dataset("x", folder, "manifest", 3, ("CT",), Labels.of({1: "lesion"}), ())
    findings = inspect_case(CaseFiles("scan", (folder,)), dataset).findings
    assert any(name in finding.message for finding in findings)


def test_error_names_a_dcm_file_that_is_not_dicom(series):
    folder = series()
    (folder / "z.dcm").write_text("Not a slice. " * 40)
    for path in (folder, folder / "z.dcm"):
        with pytest.raises(ReadError, match=r"z\.dcm: this is not a DICOM file.*move it out") as e:
            read_volume(path)
        assert "force=" not in str(e.value)


def write_compressed(path, pixels, stream, syntax, bits):
    """Write a radiograph with a compressed stream as pixels."""
    path = write_dicom_file(
        path,
        pixels.astype(np.uint16),
        dicom.DX,
        Modality="DX",
        BitsAllocated=8 if bits <= 8 else 16,
        BitsStored=bits,
        HighBit=bits - 1,
    )
    header = dcmread(path)
    header.PixelData = encapsulate([stream])
    header["PixelData"].VR = "OB"
    header["PixelData"].is_undefined_length = True
    header.file_meta.TransferSyntaxUID = syntax
    header.save_as(path, enforce_file_format=True)
    return path


def encode_jpeg_lossless(pixels, bits):
    return imagecodecs.jpeg_encode(pixels, lossless=True, bitspersample=bits, predictor=1)


def encode_jpeg_ls(pixels, bits):
    return imagecodecs.jpegls_encode(pixels)


def encode_jpeg_2000(pixels, bits):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg2000", irreversible=False, no_jp2=True)
    return stream.getvalue()


CODECS = [
    ("JPEG Lossless SV1", uid.JPEGLosslessSV1, encode_jpeg_lossless),
    ("JPEG Lossless", uid.JPEGLossless, encode_jpeg_lossless),
    ("JPEG-LS", uid.JPEGLSLossless, encode_jpeg_ls),
    ("JPEG 2000", uid.JPEG2000Lossless, encode_jpeg_2000),
]


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize(("name", "syntax", "encode"), CODECS)
def test_lossless_codecs_give_the_exact_pixels(tmp_path, rng, bits, name, syntax, encode):
    kind = np.uint8 if bits == 8 else np.uint16
    pixels = rng.integers(0, 2**bits, (24, 32)).astype(kind)
    pixels[0, :2] = (0, 2**bits - 1)
    blank = np.zeros((2000, 1800), kind)  # in a much smaller file than any image with content
    for values in (pixels, blank):
        path = tmp_path / "a.dcm"
        write_compressed(path, values, encode(values, bits), syntax, bits)
        check_pixels(path, values)


def test_baseline_jpeg_is_decoded(tmp_path):
    y, x = np.mgrid[:16, :24]
    smooth = (5 * y + 4 * x).astype(np.uint8)
    stream = imagecodecs.jpeg_encode(smooth, level=95)
    path = write_compressed(tmp_path / "a.dcm", smooth, stream, uid.JPEGBaseline8Bit, 8)
    assert np.abs(read_volume(path).array[0] - smooth).max() <= 6


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize(("name", "syntax", "encode"), CODECS)
def test_bits_above_bits_stored_are_not_part_of_the_value(
    tmp_path, rng, is_signed, name, syntax, encode
):
    expected = rng.integers(-1000 * is_signed, 1000, (24, 32))
    stored = (expected & 0xFFF).astype(np.uint16)
    if not is_signed:
        stored[4:9] |= 0x8000  # an overlay
    path = write_compressed(tmp_path / "a.dcm", stored, encode(stored, 16), syntax, 12)
    header = dcmread(path)
    header.PixelRepresentation = int(is_signed)
    header.save_as(path)
    check_pixels(path, expected)


@pytest.mark.parametrize(
    ("syntax", "advice"),
    [
        (uid.JPEGLosslessSV1, "JPEG Lossless.*pip install .*python-gdcm"),
        (uid.HTJ2KLossless, "pylibjpeg-openjpeg>=2"),
        (uid.UID("1.2.840.10008.1.2.4.100"), "MPEG2.*Export the file uncompressed"),
        (uid.UID("1.2.840.113619.5.2"), "Export the file uncompressed"),
    ],
)
def test_error_for_a_missing_decoder_names_it(tmp_path, monkeypatch, syntax, advice):
    path = write_compressed(tmp_path / "a.dcm", PIXELS, b"\0" * 40, syntax, 12)
    monkeypatch.setattr(headers, "run_in_worker", lambda read, *args: read(*args))
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.is_available", False)
    with pytest.raises(ReadError, match=rf"a\.dcm: .*{advice}"):
        read_volume(path)


def make_table(descriptor, data, kind="OW", type_of_descriptor="US"):
    """Make a sequence with one table. `kind` is the type of its data."""
    table = make_item()
    table.add_new("LUTDescriptor", type_of_descriptor, descriptor)
    table.add_new("LUTData", kind, data)
    return Sequence([table])


N = 1301  # an odd number of entries, which includes all values of PIXELS
RISING = (np.arange(N) // 6).astype("<u2")  # 8 bits
FALLING = np.arange(4095, -1, -1).astype("<u2")  # 12 bits
LONG = np.arange(65535, -1, -1).astype("<u2")
BYTES = RISING.astype("u1").tobytes()
TABLES = {
    "8 bits in words": (make_table([N, 0, 8], RISING.tobytes()), RISING[PIXELS]),
    "8 bits in bytes": (make_table([N, 0, 8], BYTES + b"\0"), RISING[PIXELS]),
    "8 bits in a list": (make_table([N, 0, 8], RISING.tolist(), "US"), RISING[PIXELS]),
    "12 bits that fall": (make_table([4096, 0, 12], FALLING.tobytes()), 4095 - PIXELS),
    "65536 entries": (make_table([0, 0, 16], LONG.tobytes()), 65535 - PIXELS),
    "40000 entries": (
        make_table([40000, 0, 16], LONG[:40000].tobytes(), type_of_descriptor="SS"),
        65535 - PIXELS,
    ),
    "words with a sign": (
        make_table([N, 0, 16], LONG[:N].view("<i2").tolist(), "SS"),
        65535 - PIXELS,
    ),
    "negative start": (
        make_table([N, -60, 8], RISING.tobytes(), type_of_descriptor="SS"),
        RISING[PIXELS + 60],
    ),
    "values below and above": (
        make_table([101, 1050, 16], FALLING[:101].tobytes()),
        4095 - np.clip(PIXELS - 1050.0, 0, 100),
    ),
    "first of two": (
        Sequence([*make_table([N, 0, 8], BYTES + b"\0"), *make_table([N, 0, 8], bytes(N + 1))]),
        RISING[PIXELS],
    ),
}


@pytest.mark.parametrize("name", ["ModalityLUTSequence", "VOILUTSequence"])
@pytest.mark.parametrize(("tables", "expected"), TABLES.values(), ids=TABLES)
def test_table_of_any_encoding_is_applied(xray, caplog, name, tables, expected):
    path = xray(**{name: tables})
    check_pixels(path, expected)
    remove_preamble(path, uid.ImplicitVRLittleEndian)
    check_pixels(path, expected)
    assert not warnings_of(caplog)


@pytest.mark.parametrize("data", [BYTES + b"\0", RISING.tobytes()], ids=["bytes", "words"])
def test_table_of_a_big_endian_file_is_applied(xray, data):
    swapped = np.frombuffer(data, "<u2").byteswap().tobytes()
    path = xray(VOILUTSequence=make_table([N, 0, 8], swapped))
    check_pixels(remove_preamble(path, uid.ExplicitVRBigEndian), RISING[PIXELS])


def test_odd_length_of_a_table_is_read(xray):
    tables = make_table([N, 0, 8], BYTES + b"\0")
    tables[0].is_undefined_length_sequence_item = True
    path = xray(VOILUTSequence=tables)
    header = dcmread(path)
    header["VOILUTSequence"].is_undefined_length = True  # so that only the data state a length
    header.save_as(path)
    content = path.read_bytes()
    stated, odd = (n.to_bytes(4, "little") for n in (N + 1, N))
    assert stated + BYTES in content
    path.write_bytes(content.replace(stated + BYTES + b"\0", odd + BYTES))
    check_pixels(path, RISING[PIXELS])


@pytest.mark.parametrize(("start", "kind"), [(-200, "SS"), (65536 - 200, "US")])
@pytest.mark.parametrize("name", ["ModalityLUTSequence", "VOILUTSequence"])
def test_table_of_signed_pixels_is_applied(tmp_path, name, start, kind):
    pixels = PIXELS.astype(np.int16) - 1100
    tables = make_table([40000, start, 16], LONG[:40000].tobytes(), "OW", kind)
    path = write_dicom_file(tmp_path / "a.dcm", pixels, dicom.DX, Modality="DX", **{name: tables})
    check_pixels(path, 65535 - (pixels + 200.0))


@pytest.mark.parametrize(
    ("slope", "intercept", "expected"),
    [
        (100, -100_000, 4095 - np.clip(100.0 * PIXELS - 100_000, 0, 4095)),  # 0 to 23 000
        (100, 0, 0),  # 100 000 and more
        (0.0017, 0, 4093),  # 1.7 to 2.1: the nearest entry
    ],
)
def test_rescaled_value_gets_the_nearest_entry_of_a_table(xray, slope, intercept, expected):
    path = xray(
        VOILUTSequence=TABLES["12 bits that fall"][0],
        RescaleSlope=slope,
        RescaleIntercept=intercept,
    )
    check_pixels(path, expected)


def test_table_comes_before_the_window_and_before_the_inversion(xray):
    path = xray(
        PhotometricInterpretation="MONOCHROME1",
        ModalityLUTSequence=TABLES["12 bits that fall"][0],
        VOILUTSequence=TABLES["65536 entries"][0],
        WindowCenter=2000,
        WindowWidth=10,
    )
    # both tables fall, and MONOCHROME1 inverts once more
    check_pixels(path, 1000.0 + 1230 - PIXELS + 61440)


@pytest.mark.parametrize(
    "tables",
    [
        make_table([N, 0, 16], RISING[:-1].tobytes()),
        make_table([N, 0, 16], bytes(2)),
        make_table([N, 0, 16], b""),
        make_table([N, 0], RISING.tobytes()),
    ],
    ids=["one entry is missing", "one entry", "no data", "two numbers"],
)
@pytest.mark.parametrize("name", ["ModalityLUTSequence", "VOILUTSequence"])
def test_incomplete_table_is_ignored_with_a_warning(xray, caplog, name, tables):
    check_pixels(xray(**{name: tables}), PIXELS)
    assert "table" in " ".join(warnings_of(caplog))


@pytest.mark.parametrize("kind", [XA, RF, f"{XA}.1"])
def test_modality_table_of_fluoroscopy_is_not_for_display(tmp_path, kind):
    tables = {"ModalityLUTSequence": TABLES["12 bits that fall"][0]}
    path = write_dicom_file(tmp_path / "a.dcm", PIXELS, kind, Modality="XA", **tables)
    check_pixels(path, PIXELS)


def test_functional_groups_of_an_enhanced_radiograph_are_read(tmp_path):
    own = {"WindowCenter": 1150, "WindowWidth": 100}
    shared = make_item(
        PixelMeasuresSequence=make_sequence(PixelSpacing=[0.1, 0.15]),
        FrameVOILUTSequence=make_sequence(WindowCenter=10, WindowWidth=1),
        FrameDisplayShutterSequence=make_sequence(**edges(1, 4, 1, 5)),
    )
    frame = make_item(
        FrameVOILUTSequence=make_sequence(**own),
        FramePixelDataPropertiesSequence=make_sequence(ImagerPixelSpacing=[0.2, 0.3]),
    )
    groups = {
        "SharedFunctionalGroupsSequence": Sequence([shared]),
        "PerFrameFunctionalGroupsSequence": Sequence([frame]),
        "NumberOfFrames": 1,
    }
    path = write_dicom_file(tmp_path / "a.dcm", PIXELS, f"{XA}.1", Modality="XA", **groups)
    plain = write_dicom_file(tmp_path / "b.dcm", PIXELS, XA, Modality="XA", **own)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array[0][:, :5], read_volume(plain).array[0][:, :5])
    assert volume.valid.all(axis=0).tolist() == [True] * 5 + [False]
    for geometry in (volume.geometry, read_geometry(path)):
        assert geometry.spacing_mm == pytest.approx((0.1, 0.15))


INNER = slice(1, 3), slice(2, 5)  # of four rows and six columns
SHUTTERS = {
    "rectangle": (edges(2, 3, 3, 5), INNER),
    "edges outside": (edges(-9, 3, 0, 99), (slice(0, 3), slice(0, 6))),
    "dot": (circle(3, 4, 0), (2, 3)),
    "circle": (circle(3, 4, 1), ([1, 2, 2, 2, 3], [3, 2, 3, 4, 3])),
    "circle outside": (circle(-2, 1, 3), (0, 0)),
    "tall pixels": (
        {**circle(2, 4, 2), "PixelSpacing": [0.4, 0.2]},
        ([0, 1, 1, 1, 1, 1, 2], [3, 1, 2, 3, 4, 5, 3]),
    ),
    "both": (
        {**edges(2, 3, 3, 5), **circle(3, 4, 1), "ShutterShape": ["RECTANGULAR", "CIRCULAR"]},
        ([1, 2, 2, 2], [3, 2, 3, 4]),
    ),
    "white": ({**edges(2, 3, 3, 5), "ShutterPresentationValue": 65535}, INNER),
}


@pytest.mark.parametrize(("elements", "seen"), SHUTTERS.values(), ids=SHUTTERS)
def test_pixels_outside_the_shutter_are_not_valid(xray, elements, seen):
    volume = read_volume(xray(**elements))
    expected = np.zeros(PIXELS.shape, dtype=bool)
    expected[seen] = True
    np.testing.assert_array_equal(volume.valid, expected)
    darkest = PIXELS[expected].min()
    np.testing.assert_array_equal(volume.array[0], np.where(expected, PIXELS, darkest))


def test_pixels_outside_a_polygonal_shutter_are_not_valid(tmp_path):
    pixels = np.arange(400, dtype=np.uint16).reshape(20, 20)
    shutter = polygon(-4, 3, 16, 3, 16, 23)
    path = write_dicom_file(tmp_path / "a.dcm", pixels, dicom.DX, Modality="DX", **shutter)
    y, x = np.indices(pixels.shape) + 1
    signed_distance = np.minimum(np.minimum(16 - y, x - 3), y - x + 7)  # rows to the nearest side
    is_clear = signed_distance != 0
    np.testing.assert_array_equal(read_volume(path).valid[is_clear], signed_distance[is_clear] > 0)


def test_shutter_that_leaves_only_padding_is_ignored(xray, caplog):
    first_row = {"PixelPaddingValue": 1000, "PixelPaddingRangeLimit": 1050}
    volume = read_volume(xray(**first_row, **edges(1, 1, 1, 6)))
    assert volume.valid.all(axis=1).tolist() == [False, True, True, True]
    assert "shutter is ignored" in " ".join(warnings_of(caplog))


@pytest.mark.parametrize("pixel_mm", [None, 0.2])
def test_pixels_that_are_not_square_are_refused_without_a_pixel_size(xray, pixel_mm):
    path = xray(PixelAspectRatio=[2, 1])
    for read in (read_geometry, read_volume):
        with pytest.raises(ReadError, match=r"a\.dcm: PixelAspectRatio.*square pixels"):
            read(path, pixel_mm=pixel_mm)
    xray(PixelAspectRatio=[2, 1], PixelSpacing=[0.3, 0.3])
    assert read_geometry(path).spacing_mm == pytest.approx((0.3, 0.3))  # spacing has priority
    assert read_geometry(xray(PixelAspectRatio=[1, 1])).size_unit == "px"
