"""Rasters: bit depths, colour, palettes, masks and claims."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ContentError, OutputError, ReadError
from lesionseg.io.volumes import read_geometry, read_volume, write_volume

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


@pytest.mark.parametrize(("name", "dtype"), [("a.png", "uint8"), ("a.png", "uint16")])
@pytest.mark.parametrize("raster_mm", [None, 0.2])
def test_png_round_trip(tmp_path: Path, name: str, dtype: str, raster_mm: float | None) -> None:
    array = (GREY.astype(dtype) * (250 if dtype == "uint16" else 1))[np.newaxis]
    write_volume(tmp_path / name, Volume(array, Geometry.from_spacing((3, 4), (1, 1))))
    volume = read_volume(tmp_path / name, raster_mm=raster_mm)
    assert volume.array.dtype == dtype
    np.testing.assert_array_equal(volume.array, array)
    assert volume.geometry.spacing_mm == (raster_mm or 1.0, raster_mm or 1.0)
    assert read_geometry(tmp_path / name, raster_mm=raster_mm).matches(volume.geometry, 0)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_tiff_round_trip(tmp_path: Path, dtype: str) -> None:
    array = GREY.astype(dtype)[np.newaxis]
    write_volume(tmp_path / "a.tif", Volume(array, Geometry.from_spacing((3, 4), (1, 1))))
    volume = read_volume(tmp_path / "a.tif")
    assert volume.array.dtype == dtype
    np.testing.assert_array_equal(volume.array, array)
    assert read_geometry(tmp_path / "a.tif").shape == (3, 4)


def test_the_first_axis_runs_down_the_picture(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.bmp")
    volume = read_volume(tmp_path / "a.bmp")
    assert volume.array[0, 2, 0] == GREY[2, 0]
    np.testing.assert_array_equal(volume.geometry.to_mm([[2, 1]]), [[1, 2]])


def test_jpeg_is_read(tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 24), 100, np.uint8)).save(tmp_path / "a.jpeg")
    volume = read_volume(tmp_path / "a.jpeg")
    assert volume.array.shape == (1, 16, 24)
    assert abs(int(volume.array[0, 5, 5]) - 100) <= 2


def test_colour_becomes_grey_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    colour = np.zeros((2, 2, 3), np.uint8)
    colour[0, 0] = (255, 0, 0)
    Image.fromarray(colour).save(tmp_path / "red.png")
    grey = read_volume(tmp_path / "red.png").array
    assert grey.tolist() == [[[76, 0], [0, 0]]]
    assert "red.png is in colour" in caplog.text


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_grey_stored_as_colour_is_exact_and_silent(
    tmp_path: Path, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(GREY).convert(mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.png").array[0], GREY)
    assert caplog.text == ""


def test_a_palette_is_colour_in_an_image_and_a_label_in_a_mask(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 2]], np.uint8))
    image.putpalette([0, 0, 0, 128, 128, 128, 255, 255, 255])
    image.save(tmp_path / "a.png")
    assert read_volume(tmp_path / "a.png").array.tolist() == [[[0, 128], [255, 255]]]
    assert read_volume(tmp_path / "a.png", as_labels=True).array.tolist() == [[[0, 1], [2, 2]]]


def test_a_mask_of_one_bit_is_zero_and_one(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    volume = read_volume(tmp_path / "a.png", as_labels=True)
    assert volume.array.dtype == np.uint8
    assert volume.array.tolist() == [[[1, 0]]]


def test_masks_in_colour_or_jpeg_are_refused(tmp_path: Path) -> None:
    colour = np.zeros((2, 2, 3), np.uint8)
    colour[0, 0] = (255, 0, 0)
    Image.fromarray(colour).save(tmp_path / "m.png")
    Image.fromarray(colour).save(tmp_path / "m.jpg")
    with pytest.raises(ReadError, match=r"colour.*m\.png"):
        read_volume(tmp_path / "m.png", as_labels=True)
    with pytest.raises(ReadError, match=r"JPEG.*m\.jpg"):
        read_volume(tmp_path / "m.jpg", as_labels=True)


def test_tiff_where_zero_is_white_is_turned_round(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="miniswhite")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").array[0], 255 - GREY)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "raw"])
def test_tiff_compressions(tmp_path: Path, compression: str) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.tiff", compression=compression)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tiff").array[0], GREY)


def test_a_tiff_of_two_pages_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "stack.tif", np.zeros((2, 8, 9), np.uint8), photometric="minisblack"
    )
    with pytest.raises(ReadError, match=r"more than one page.*stack\.tif"):
        read_volume(tmp_path / "stack.tif")


@pytest.mark.parametrize("raster_mm", [0.0, -1.0, float("nan")])
def test_an_impossible_pixel_size_is_refused(tmp_path: Path, raster_mm: float) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    with pytest.raises(ContentError, match="pixel size"):
        read_volume(tmp_path / "a.png", raster_mm=raster_mm)


def test_floats_do_not_fit_png(tmp_path: Path) -> None:
    plane = Geometry.from_spacing((2, 2), (1, 1))
    with pytest.raises(OutputError, match=r"unchanged.*a\.png"):
        write_volume(tmp_path / "a.png", Volume(np.zeros((1, 2, 2), np.float32), plane))


def test_three_axes_do_not_fit_png(tmp_path: Path, oblique: Geometry) -> None:
    with pytest.raises(OutputError, match="two axes"):
        write_volume(tmp_path / "a.png", Volume(np.zeros((1, 3, 4, 5), np.uint8), oblique))


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")


def test_a_claim_beyond_the_file_is_refused_before_allocating(tmp_path: Path) -> None:
    (tmp_path / "huge.png").write_bytes(_png(9000, 9000))
    with pytest.raises(ReadError, match=r"claims more voxels.*huge\.png"):
        read_volume(tmp_path / "huge.png")


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_a_stated_rotation_is_followed_and_said(
    tmp_path: Path, suffix: str, turn: int, caplog: pytest.LogCaptureFixture
) -> None:
    picture = np.zeros((16, 24), np.uint8)  # bright at the upper left, dim at the upper right
    picture[:8, :8], picture[:8, 16:] = 200, 100
    stored, path = picture, tmp_path / f"a{suffix}"
    if turn in (2, 3, 6, 7):
        stored = stored[:, ::-1]
    if turn in (3, 4, 7, 8):
        stored = stored[::-1]
    if turn > 4:
        stored = stored.T
    exif = Image.Exif()
    exif[274] = turn
    if suffix == ".tif":
        tifffile.imwrite(path, stored, extratags=[(274, "H", 1, turn, True)])
    else:
        Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=100)
    if suffix == ".jpg":  # of a TIFF, what Pillow shows depends on its version
        shown = np.asarray(ImageOps.exif_transpose(Image.open(path)), dtype=int)
        assert np.abs(shown - picture).max() < 8
    volume = read_volume(path)
    assert np.abs(volume.array[0].astype(int) - picture).max() < 8
    assert read_geometry(path).matches(volume.geometry)
    assert ("says how to turn it" in caplog.text) == (turn > 1)


def test_m4_another_format_under_a_raster_s_name_is_refused(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    with pytest.raises(ReadError, match="cannot identify image file"):
        read_volume(tmp_path / "a.png")
