"""Volumes of every format: round trips of voxels, dtypes and positions, and damaged files."""

import gzip
import itertools
import re
import struct

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from lesionseg.core import CaseFiles, Dataset, Geometry, Labels, Volume
from lesionseg.errors import GeometryError, LesionsegError, ReadError
from lesionseg.io import limits
from lesionseg.io.cases import read_image
from lesionseg.io.contents import content_files
from lesionseg.io.nifti import has_orientation
from lesionseg.io.volumes import read_geometry, read_volume, write_volume
from tests.io.dicom_files import check_pixels

VOLUMES = (".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha")
GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def make_ramp(geometry, dtype="int16"):
    """Make a volume with a different value in each voxel."""
    shape = (1, *geometry.shape)
    return Volume(np.arange(np.prod(shape)).astype(dtype).reshape(shape), geometry)


def check_round_trip(path, volume):
    """Check that a volume is read as it was written. Return the volume that was read."""
    write_volume(path, volume)
    again = read_volume(path)
    np.testing.assert_array_equal(again.array, volume.array)
    assert read_geometry(path).matches(again.geometry)
    return again


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.nii"


@pytest.mark.parametrize("suffix", VOLUMES)
@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_every_orientation_survives_a_round_trip_and_agrees_with_simpleitk(
    tmp_path, oblique, suffix, axes
):
    path = tmp_path / f"a{suffix}"
    affine = oblique.affine.copy()
    affine[:3, :3] = affine[:3, axes] * (-1, 1, -1)
    volume = make_ramp(Geometry((3, 4, 5), affine))
    assert check_round_trip(path, volume).geometry.distance_mm(volume.geometry) < 1e-4
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume.array[0])
    theirs = np.array(image.TransformIndexToPhysicalPoint((4, 3, 2))) * (-1, -1, 1)  # x, y, z
    np.testing.assert_allclose(theirs, volume.geometry.to_mm([[2, 3, 4]])[0], atol=1e-4)


def write_by_itk(path, *, is_compressed):
    """Write 2 × 3 × 4 voxels by SimpleITK with a spacing and an origin. Return them."""
    image = sitk.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    image.SetSpacing((0.5, 0.75, 3))
    image.SetOrigin((10, -20, 30))
    sitk.WriteImage(image, str(path), is_compressed)
    return sitk.GetArrayFromImage(image)


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_header_is_read_with_the_file_of_its_voxels(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    expected = write_by_itk(path, is_compressed=suffix == ".mhd")
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array[0], expected)
    np.testing.assert_allclose(volume.geometry.to_mm([[1, 1, 1]]), [[-10.5, 19.25, 33]])
    assert len(content_files(path)) == 2


def test_limit_of_a_server_is_named_for_a_resampled_image(monkeypatch):
    monkeypatch.setattr(limits, "_limits", limits.FileLimits())
    limits.limit_voxels(100, "Start the server with more memory.")
    with pytest.raises(GeometryError, match=r"header\. Start the server with more memory\.$"):
        limits.check_resampled("a.nii", (5, 5, 5))


def test_bytes_before_compressed_voxels_are_skipped(tmp_path):
    path = tmp_path / "a.mhd"
    expected = write_by_itk(path, is_compressed=True)
    voxels = tmp_path / "a.zraw"
    voxels.write_bytes(b"skipped" + voxels.read_bytes())
    path.write_text(path.read_text().replace("DimSize", "HeaderSize = 7\nDimSize"))
    check_pixels(path, expected)


def test_big_endian_nifti_2_in_micrometres_is_read(path):
    array = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    header = nibabel.Nifti2Image(array, np.eye(4)).header.as_byteswapped(">")
    header.set_xyzt_units("micron")
    nibabel.save(nibabel.Nifti2Image(array, np.diag([1000.0, 2000, 3000, 1]), header), path)
    volume = read_volume(path)
    path.unlink()  # the array does not depend on the file
    assert volume.array.dtype.isnative
    np.testing.assert_array_equal(volume.array[0].T, array)
    assert volume.geometry.spacing_mm == (3, 2, 1)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
    ("kind", "offset", "is_read"),
    [
        (nibabel.Nifti1Image, 352, True),
        (nibabel.Nifti1Image, 353, True),
        (nibabel.Nifti1Image, 352.5, False),
        (nibabel.Nifti1Image, 348, False),
        (nibabel.Nifti1Image, 0, False),
        (nibabel.Nifti1Image, float("nan"), False),
        (nibabel.Nifti2Image, 544, True),
        (nibabel.Nifti2Image, 540, False),
        (nibabel.Nifti2Image, 352, False),
    ],
)
def test_header_of_nifti_is_never_read_as_voxels(tmp_path, name, kind, offset, is_read):
    array = np.arange(1, 2001, dtype=np.int16).reshape(20, 10, 10)
    image = kind(array, np.eye(4))
    begin = image.header.single_vox_offset
    content = bytearray(image.to_bytes())
    content[begin:begin] = bytes(offset == 353)
    field = ("<f", content, 108) if begin == 352 else ("<q", content, 168)
    struct.pack_into(*field, offset)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    if is_read:
        check_pixels(path, array.T)
    else:
        for read in (read_volume, read_geometry):
            with pytest.raises(ReadError, match=f"at least {begin}.*pair"):
                read(path)


@pytest.mark.parametrize("suffix", [".hdr", ".img"])
def test_pair_of_nifti_is_refused_with_the_way_to_convert_it(tmp_path, suffix):
    nibabel.save(nibabel.Nifti1Pair(np.ones((3, 4, 5)), np.eye(4)), tmp_path / "a.img")
    with pytest.raises(ReadError, match=r"nib-convert NAME\.hdr NAME\.nii\.gz"):
        read_volume(tmp_path / f"a{suffix}")


def test_slope_and_intercept_of_nifti_are_applied(path):
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    scaled = nibabel.Nifti1Image(array, np.eye(4))
    scaled.header.set_slope_inter(0.5, -10)
    nibabel.save(scaled, path)
    volume = read_volume(path)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[0].T, array * 0.5 - 10)


def test_nifti_of_two_axes_has_two_spatial_axes(tmp_path, write_nifti):
    affine = np.diag([-0.5, 2.0, 1, 1])
    affine[:2, 3] = (7, 8)
    array = np.arange(20, dtype=np.uint8).reshape(5, 4)
    volume = read_volume(write_nifti(tmp_path / "a.nii.gz", array, affine))
    np.testing.assert_array_equal(volume.array[0].T, array)
    np.testing.assert_allclose(volume.geometry.to_mm([[1, 2]]), [[6, 10]])
    again = check_round_trip(tmp_path / "b.nii.gz", volume)
    assert again.geometry.matches(volume.geometry, 1e-5)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((7,), None), ((5, 4, 1), (1, 4, 5)), ((5, 4, 3, 1), (3, 4, 5))],
)
def test_nifti_of_one_slice_or_one_time_point_is_a_volume(tmp_path, write_nifti, shape, expected):
    path = write_nifti(tmp_path / "c.nii", np.zeros(shape, np.uint8))
    if expected:
        assert read_volume(path).array.shape == (1, *expected)
        return
    with pytest.raises(ReadError, match=r"c\.nii"):
        read_volume(path)


def test_nifti_form_codes_and_matrices_of_the_scan_are_copied(tmp_path, oblique):
    path = tmp_path / "scan.nii.gz"
    write_volume(path, make_ramp(oblique))
    scan = nibabel.load(path)
    codes = [(int(scan.header["sform_code"]), int(scan.header["qform_code"]))]
    scan.set_sform(scan.affine, code=4)
    scan.set_qform(None, code=0)
    nibabel.save(scan, path)
    write_volume(tmp_path / "mask.nii.gz", make_ramp(oblique, "uint8"), like=path)
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    codes.append((int(mask.header["sform_code"]), int(mask.header["qform_code"])))
    assert codes == [(1, 1), (4, 0)]
    np.testing.assert_array_equal(mask.get_sform(), scan.get_sform())


def test_header_without_the_length_of_its_compressed_voxels_is_an_error(tmp_path, oblique):
    path = tmp_path / "a.mha"
    write_volume(path, make_ramp(oblique))
    path.write_bytes(re.sub(rb"CompressedDataSize = \d+\n", b"", path.read_bytes()))
    with pytest.raises(ReadError, match=r"a\.mha: the header has no CompressedDataSize"):
        read_volume(path)


@pytest.mark.parametrize(("unit", "mm"), [("micron", 0.001), ("meter", 1000.0), ("mm", 1.0)])
@pytest.mark.parametrize("codes", [(1, 1), (0, 2), (2, 0), (0, 0)])
def test_mask_is_written_in_the_unit_of_length_of_the_scan(tmp_path, unit, mm, codes):
    affine = np.diag([-1.5 / mm, 2 / mm, 3 / mm, 1])
    affine[:3, 3] = np.divide((9, -8, 7), mm)
    scan = nibabel.Nifti1Image(np.zeros((5, 4, 3), np.int16), affine)
    scan.header.set_xyzt_units(unit)
    scan.set_sform(affine, codes[0])
    scan.set_qform(affine, codes[1])
    paths = [tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz"]
    nibabel.save(scan, paths[0])
    geometry = read_geometry(paths[0])
    np.testing.assert_allclose(geometry.spacing_mm, (3, 2, 1.5), rtol=1e-5)
    write_volume(paths[1], make_ramp(geometry, "uint8"), paths[0])
    scan, mask = map(nibabel.load, paths)
    assert mask.header.get_xyzt_units()[0] == unit
    np.testing.assert_allclose(mask.affine, scan.affine, rtol=1e-5)
    np.testing.assert_allclose(mask.header.get_zooms(), scan.header.get_zooms(), rtol=1e-5)
    assert read_geometry(paths[1]).matches(geometry, 1e-4)


def write_header(path, q_code, s_code, sform=None, **fields):
    """Write a NIfTI scan with voxels of 3 × 2 × 1.5 mm and change fields of its header."""
    affine = np.diag([1.5, 2.0, 3.0, 1])
    image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), affine)
    image.set_qform(affine, q_code)
    image.set_sform(affine if sform is None else sform, s_code)
    content = image.to_bytes()
    header = nibabel.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + content[348:])
    return path


NAN = float("nan")
LONG = ((1 + 2e-6) / 2) ** 0.5  # two such components make a quaternion that is longer than 1
NO_QUATERNION = {"quatern_b": NAN, "quatern_c": NAN, "quatern_d": NAN}
UNKNOWN_SIZE = {"pixdim": [1, 1.5, 2, 0, 0, 0, 0, 0]}


@pytest.mark.parametrize(
    ("codes", "fields"),
    [
        ((0, 1), UNKNOWN_SIZE),
        ((1, 1), NO_QUATERNION),
        ((1, 0), {"quatern_b": LONG, "quatern_c": LONG}),
        ((1, 1), {"quatern_b": 3}),
    ],
    ids=["pixdim 0", "quaternion of NaN", "quaternion rounded up", "no unit quaternion"],
)
def test_header_with_one_valid_form_is_read_without_a_remark(tmp_path, path, caplog, codes, fields):
    write_header(path, *codes, **fields)
    mask = tmp_path / "mask.nii.gz"
    geometry = read_geometry(path)
    assert geometry.spacing_mm == pytest.approx((3, 2, 1.5))
    write_volume(mask, make_ramp(geometry), like=path)
    assert read_geometry(mask).matches(geometry, 1e-4)
    assert nibabel.load(mask).header.get_zooms() == pytest.approx((1.5, 2, 3))
    assert not caplog.text


@pytest.mark.parametrize(
    ("codes", "fields", "words"),
    [
        ((0, 0), UNKNOWN_SIZE, "voxel size is unknown"),
        ((1, 0), UNKNOWN_SIZE, "voxel size is unknown"),
        ((1, 0), NO_QUATERNION, "qform of the header contains NaN"),
        ((1, 1), {"srow_x": [NAN, 0, 0, 0]}, "set sform_code to 0"),
    ],
)
def test_header_without_size_or_position_is_an_error(path, codes, fields, words):
    write_header(path, *codes, **fields)
    with pytest.raises(ReadError, match=rf"a\.nii: .*{words}"):
        read_geometry(path)


@pytest.mark.parametrize(
    ("codes", "sform", "words"),
    [
        ((1, 1), [-1.5, 2, 3, 1], "left and right"),
        ((0, 1), [3, 4, 6, 1], "pixdim states 1.5 × 2 × 3 mm"),
        ((1, 1), [1.5, 2, 3.01, 1], ""),
    ],
)
def test_contradictions_of_a_header_are_remarks_of_its_volume(tmp_path, path, codes, sform, words):
    write_header(path, *codes, sform=np.diag(sform))
    dataset = Dataset("scans", tmp_path, "files", 3, ("T1",), Labels.of({1: "lesion"}), ())
    for _ in range(2):  # the second time, the log does not repeat the warning
        warnings = read_image(CaseFiles("a", (path,)), dataset).warnings
        assert len(warnings) == bool(words)
        assert all(text.startswith("a.nii: ") and words in text for text in warnings)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_compression_of_nifti_is_recognised_by_content_not_by_suffix(tmp_path, write_nifti, name):
    array = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    path = write_nifti(tmp_path / name, array)
    content = path.read_bytes()
    path.write_bytes(gzip.decompress(content) if name == "a.nii.gz" else gzip.compress(content))
    check_pixels(path, array.T)
    assert read_geometry(path).shape == (3, 4, 5)
    assert has_orientation(path)
    write_volume(tmp_path / "mask.nii.gz", read_volume(path), like=path)
    check_pixels(tmp_path / "mask.nii.gz", array.T)


COLOUR = np.stack([GREY, GREY.T.reshape(3, 4), 255 - GREY], axis=-1)


def test_colour_fills_three_named_channels_or_becomes_brightness(tmp_path):
    def read(picture, *channels):
        kind = "rgb" if picture.ndim == 3 else "minisblack"
        tifffile.imwrite(tmp_path / "a.tif", picture, photometric=kind)
        dataset = Dataset("x", tmp_path, "nnunet", 2, channels, Labels.of({1: "lesion"}), ())
        return read_image(CaseFiles("a", (tmp_path / "a.tif",)), dataset).array

    np.testing.assert_array_equal(read(COLOUR, "R", "G", "B"), np.moveaxis(COLOUR, -1, 0))
    np.testing.assert_array_equal(read(GREY, "R", "G", "B"), np.stack([GREY] * 3))
    luma = COLOUR @ [0.299, 0.587, 0.114]
    np.testing.assert_array_equal(read(COLOUR, "photo")[0], np.rint(luma))
    # values from 0 to 1 are not rounded
    shares = (COLOUR / 255).astype(np.float32)
    np.testing.assert_allclose(read(shares, "photo")[0], luma / 255, rtol=1e-6)
    with pytest.raises(LesionsegError, match="one file per channel"):
        read(COLOUR, "R", "G")


def test_colour_pages_of_a_tiff_are_an_error(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((2, 8, 9, 3), np.uint8), photometric="rgb")
    with pytest.raises(ReadError, match=r"a\.tif: the pages"):
        read_volume(path)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_stated_orientation_is_applied(tmp_path, suffix, turn):
    picture = np.zeros((16, 24), np.uint8)
    picture[:8, :8] = 200
    picture[:8, 16:] = 100
    path = tmp_path / f"a{suffix}"
    stored = picture[:, ::-1] if turn in (2, 3, 6, 7) else picture
    stored = stored[::-1] if turn in (3, 4, 7, 8) else stored
    tags = Image.Exif()
    tags[274] = turn
    options = {"tiffinfo": tags} if suffix == ".tif" else {"exif": tags, "quality": 100}
    Image.fromarray(stored.T if turn > 4 else stored).save(path, **options)
    volume = read_volume(path)
    assert np.abs(volume.array[0].astype(int) - picture).max() < 8
    assert read_geometry(path).matches(volume.geometry)


@pytest.mark.parametrize("slope", [None, 2])
@pytest.mark.parametrize("kind", ["one member", "two members", "bytes after the voxels"])
def test_large_gzip_is_read_like_a_small_one(tmp_path, monkeypatch, kind, slope):
    image = nibabel.Nifti1Image(np.arange(210, dtype=np.int16).reshape(5, 6, 7), np.eye(4))
    image.header.set_slope_inter(slope, slope)
    content = image.to_bytes()
    packed = {
        "one member": gzip.compress(content),
        "two members": gzip.compress(content[:500]) + gzip.compress(content[500:]),
        "bytes after the voxels": gzip.compress(content + b"more"),
    }
    path = tmp_path / "b.nii.gz"
    path.write_bytes(packed[kind])
    expected = read_volume(path)
    monkeypatch.setattr("lesionseg.io.nifti._LARGE_BYTES", 1)
    found = read_volume(path)
    assert found.array.dtype == expected.array.dtype
    np.testing.assert_array_equal(found.array, expected.array)
    assert found.geometry.matches(expected.geometry)


@pytest.mark.parametrize("damage", ["checksum", "truncated", "bytes after the stream", "voxels"])
def test_damaged_large_gzip_is_an_error(tmp_path, monkeypatch, damage):
    monkeypatch.setattr("lesionseg.io.nifti._LARGE_BYTES", 1)
    content = nibabel.Nifti1Image(np.ones((5, 6, 7), np.int16), np.eye(4)).to_bytes()
    packed = gzip.compress(content)
    damaged = {
        "checksum": packed[:-8] + b"abcd" + packed[-4:],
        "truncated": packed[:-9],
        "bytes after the stream": packed + b"junkjunk",
        "voxels": gzip.compress(content[:-8]),
    }
    path = tmp_path / "b.nii.gz"
    path.write_bytes(damaged[damage])
    with pytest.raises(ReadError, match=r"b\.nii\.gz"):
        read_volume(path)
