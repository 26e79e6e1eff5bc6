"""Pictures and masks have the values that a viewer shows, for every form of TIFF, PNG and BMP.

Expected values come from the stored array by the rules of TIFF 6.0 and PNG, which are written out
here. If Pillow reads the file at full depth, they are also compared with those of Pillow.
"""

import logging
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from lesionseg.errors import ReadError
from lesionseg.io.masks import read_mask
from lesionseg.io.volumes import read_volume

RNG = np.random.default_rng(5)
COMPRESSIONS = (None, "deflate", "lzw", "packbits", "zstd")
LAYOUTS = {
    "strips": {"rowsperstrip": 5},
    "tiles": {"tile": (16, 16)},
    "bigtiff": {"bigtiff": True},
    "big endian": {"byteorder": ">"},
}
DEPTHS = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64")


def draw_samples(dtype, *shape):
    """Draw numbers over the whole range of a type, or 0 to 1 for floating point."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return RNG.random(shape).astype(kind)
    limits = np.iinfo(kind)
    return RNG.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)


def invert(array):
    """Convert grey values with 0 as white to values with 0 as black."""
    return np.iinfo(array.dtype).max - array


def check(path, expected, *, as_labels=False):
    array = read_volume(path, as_labels=as_labels).array
    np.testing.assert_array_equal(array, expected)
    assert array.dtype == expected.dtype


def check_refused(path):
    """Check that a kind of picture is refused with the remedy, as image and as mask."""
    for as_labels in (False, True):
        with pytest.raises(ReadError, match=rf"{path.name}.*PNG"):
            read_volume(path, as_labels=as_labels)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", DEPTHS)
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_grey_tiff_gives_its_values_in_images_and_masks(tmp_path, photometric, dtype, compression):
    stored = draw_samples(dtype, 21, 34)
    is_refused = photometric == "miniswhite" and not dtype.startswith("uint")
    for name, layout in LAYOUTS.items():
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, stored, photometric=photometric, compression=compression, **layout)
        if is_refused:
            check_refused(path)
            continue
        expected = (invert(stored) if photometric == "miniswhite" else stored)[np.newaxis]
        check(path, expected)
    if dtype == "uint8" and compression != "zstd":
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image)[np.newaxis], expected)


@pytest.mark.parametrize("compression", ["deflate", "lzw"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_tiff_predictors_do_not_change_values(tmp_path, dtype, compression):
    stored = draw_samples(dtype, 21, 34)
    for predictor in (True, False):
        path = tmp_path / "a.tif"
        tifffile.imwrite(
            path,
            stored,
            photometric="minisblack",
            compression=compression,
            predictor=predictor,
        )
        check(path, stored[np.newaxis])


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_colour_tiff_gives_three_channels(tmp_path, dtype, compression):
    stored = draw_samples(dtype, 21, 34, 3)
    expected = np.moveaxis(stored, -1, 0)
    path = tmp_path / "a.tif"
    for layout in LAYOUTS.values():
        tifffile.imwrite(path, stored, photometric="rgb", compression=compression, **layout)
        check(path, expected)
    planes = np.ascontiguousarray(expected)
    tifffile.imwrite(
        path, planes, photometric="rgb", compression=compression, planarconfig="separate"
    )
    check(path, expected)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_opacity_of_a_tiff_is_not_a_channel(tmp_path, dtype, compression):
    stored = draw_samples(dtype, 21, 34, 3)
    expected = np.moveaxis(stored, -1, 0)
    path = tmp_path / "a.tif"
    for meaning in ("unassalpha", "assocalpha", "unspecified"):
        four = np.concatenate([stored, draw_samples(dtype, 21, 34, 1)], axis=-1)
        tifffile.imwrite(
            path, four, photometric="rgb", compression=compression, extrasamples=[meaning]
        )
        check(path, expected)
    two = np.concatenate([stored[..., :1], draw_samples(dtype, 21, 34, 1)], axis=-1)
    tifffile.imwrite(
        path,
        two,
        photometric="minisblack",
        compression=compression,
        extrasamples=["unassalpha"],
        planarconfig="contig",
    )
    check(path, expected[:1])


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_colour_tiff_with_equal_colours_gives_one_channel(tmp_path, dtype, compression):
    stored = draw_samples(dtype, 21, 34, 1)
    path = tmp_path / "a.tif"
    grey = np.repeat(stored, 3, axis=-1)
    tifffile.imwrite(path, grey, photometric="rgb", compression=compression)
    check(path, np.moveaxis(stored, -1, 0))


@pytest.mark.parametrize("compression", [None, "lzw"])
def test_inks_are_refused_in_tiff_and_become_colours_in_jpeg(tmp_path, compression):
    stored = draw_samples("uint8", 9, 11, 4)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, photometric="separated", compression=compression)
    check_refused(path)
    image = Image.fromarray(stored, "CMYK")
    image.save(tmp_path / "a.jpg", quality=100)
    seen = np.moveaxis(read_volume(tmp_path / "a.jpg").array, 0, -1)
    with Image.open(tmp_path / "a.jpg") as image:
        np.testing.assert_array_equal(seen, image.convert("RGB"))


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize(
    "compression",
    [None, "tiff_ccitt", "group3", "group4", "packbits", "tiff_lzw", "tiff_adobe_deflate"],
)
@pytest.mark.parametrize("form", ["mask", "image"])
def test_one_bit_tiff_is_0_and_255_in_images_and_0_and_1_in_masks(
    tmp_path, form, compression, photometric
):
    shown = np.zeros((40, 70), bool)
    shown[10:20, 30:42] = True
    path = tmp_path / "a.tif"
    Image.fromarray(shown).save(path, compression=compression, tiffinfo={262: photometric})
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages[0].photometric == photometric
    expected = shown.astype(np.uint8)[np.newaxis]
    if form == "mask" and photometric == 0:  # some programs store 1 for the lesion, others 0
        with pytest.raises(ReadError, match=r"a\.tif: white is stored as 0.* as PNG"):
            read_volume(path, as_labels=True)
        return
    check(path, expected if form == "mask" else 255 * expected, as_labels=form == "mask")
    blank = Image.fromarray(np.zeros_like(shown))
    blank.save(path, compression=compression, tiffinfo={262: photometric})
    check(path, np.zeros_like(expected), as_labels=form == "mask")


@pytest.mark.parametrize("compression", ["jpeg", "lzw"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb", "ycbcr"])
@pytest.mark.parametrize("layout", ["strips", "tiles"])
def test_jpeg_in_tiff_is_read_as_an_image_but_not_as_a_mask(
    tmp_path, photometric, compression, layout
):
    y, x = np.mgrid[:32, :48]
    smooth = (3 * y + 2 * x).astype(np.uint8)
    path = tmp_path / "a.tif"
    expected = 255 - smooth[np.newaxis] if photometric == "miniswhite" else smooth[np.newaxis]
    if photometric in ("rgb", "ycbcr"):
        smooth = np.stack([smooth, smooth, 255 - smooth], axis=-1)
        expected = np.moveaxis(smooth, -1, 0)
    if photometric == "ycbcr" and compression != "jpeg":
        Image.fromarray(smooth).convert("YCbCr").save(path, compression="tiff_lzw")
        check_refused(path)
        return
    options = {"level": 98} if compression == "jpeg" else {}
    if photometric == "ycbcr":
        options["outcolorspace"] = "ycbcr"
    tifffile.imwrite(
        path,
        smooth,
        photometric="rgb" if photometric == "ycbcr" else photometric,
        compression=compression,
        compressionargs=options,
        rowsperstrip=16 if layout == "strips" else None,
        tile=(16, 16) if layout == "tiles" else None,
    )
    assert np.abs(read_volume(path).array.astype(int) - expected).max() <= 8
    if compression == "jpeg":
        with pytest.raises(ReadError, match=r"a\.tif: a mask in JPEG"):
            read_volume(path, as_labels=True)


def write_png(path, bits, colour, rows, palette=None, transparent=None):
    """Write a PNG from the rows of `pack_rows`. Few programs can write all of its forms."""
    height = len(rows)
    width = rows[0][1]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))]
    if palette is not None:
        chunks.append((b"PLTE", np.array(palette, np.uint8).tobytes()))
    if transparent is not None:
        chunks.append((b"tRNS", transparent))
    chunks.append((b"IDAT", zlib.compress(b"".join(b"\0" + row for row, _ in rows))))
    chunks.append((b"IEND", b""))
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        content += struct.pack(">I", len(data)) + name + data + checksum
    path.write_bytes(content)
    return path


def pack_rows(values, bits):
    """Pack integers `[y, x]` or `[y, x, n]` into rows, each as bytes and number of pixels."""
    rows = []
    for row in np.asarray(values):
        if bits == 16:
            rows.append((row.astype(">u2").tobytes(), len(row)))
            continue
        each = ((row.reshape(-1, 1) >> np.arange(bits)[::-1]) & 1).astype(np.uint8)
        rows.append((np.packbits(each.reshape(-1)).tobytes(), len(row)))
    return rows


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_png_of_every_depth_gives_its_values(tmp_path, bits):
    most = 2**bits - 1
    stored = RNG.integers(0, most, (7, 13), endpoint=True)
    path = write_png(tmp_path / "a.png", bits, 0, pack_rows(stored, bits))
    kind = np.uint16 if bits == 16 else np.uint8
    spread = stored * 255 // most if bits < 8 else stored
    check(path, spread.astype(kind)[np.newaxis])
    check(path, stored.astype(kind)[np.newaxis], as_labels=True)
    if bits < 16:
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image.convert("L")), spread)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("form", ["png", "tif", "bmp"])
def test_palettes_are_colours_in_images_and_indices_in_masks(tmp_path, form, bits):
    n = min(2**bits, 16)
    table = RNG.integers(60, 255, (n, 3), dtype=np.uint8)
    table[0] = 0
    stored = RNG.integers(0, n, (7, 13)).astype(np.uint8)
    stored[0, 0] = 0
    stored[0, 1] = n - 1
    path = tmp_path / f"a.{form}"
    if form == "png":
        write_png(path, bits, 3, pack_rows(stored, bits), table)
    else:
        image = Image.frombytes("P", (13, 7), stored.tobytes())
        image.putpalette(table.tobytes())
        image.save(path)
    check(path, np.moveaxis(table[stored], -1, 0))
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), table[stored])
    if form == "bmp":
        with pytest.raises(ReadError, match=r"a\.bmp.*PNG"):
            read_volume(path, as_labels=True)
        return
    check(path, stored.astype(np.uint16)[np.newaxis], as_labels=True)


@pytest.mark.parametrize("wide", [np.uint8, np.uint16])
@pytest.mark.parametrize("colour", [2, 4, 6], ids=["rgb", "grey and opacity", "rgba"])
def test_png_with_colour_or_opacity_gives_its_colours(tmp_path, caplog, colour, wide):
    n_samples = {2: 3, 4: 2, 6: 4}[colour]
    bits = 8 * np.dtype(wide).itemsize
    stored = draw_samples(wide, 7, 13, n_samples)
    path = write_png(tmp_path / "a.png", bits, colour, pack_rows(stored, bits))
    n_colours = 1 if colour == 4 else 3
    with caplog.at_level(logging.WARNING):
        check(path, np.moveaxis(stored[..., :n_colours], -1, 0))
    assert ("opacity is ignored" in caplog.text) == (colour != 2)
    stored[..., :n_colours] = stored[..., :1]
    path = write_png(tmp_path / "a.png", bits, colour, pack_rows(stored, bits))
    check(path, np.moveaxis(stored[..., :1], -1, 0))  # equal colours are grey
    stored[..., n_colours:] = np.iinfo(wide).max
    path = write_png(tmp_path / "a.png", bits, colour, pack_rows(stored, bits))
    check(path, np.moveaxis(stored[..., :1], -1, 0), as_labels=True)


BLACK = (0, 0, 0)
WHITE = (255, 255, 255)
GREY = (128, 128, 128)
RED = (128, 0, 0)
GREEN = (0, 128, 0)
VOC = [BLACK, RED, (0, 128, 0), (128, 128, 0), (0, 0, 128), *[(192, 128, 64)] * 251]
RAMP = [(i, i, i) for i in range(256)]
PALETTES = [
    # name, palette, indices in the file, True if they are the labels (False: an error)
    ("Pascal VOC", VOC, [0, 1, 2, 4, 255], True),
    ("Pascal VOC, no lesion", VOC, [0], True),
    ("black, white", [BLACK, WHITE], [0, 1], True),
    ("three greys, filled up", [BLACK, GREY, WHITE, *[BLACK] * 253], [0, 1, 2], True),
    ("ramp", RAMP, [0, 1, 5, 255], True),
    ("white, black", [WHITE, BLACK], [0, 1], False),
    ("white, black; white only", [WHITE, BLACK], [0], False),
    ("light, dark, filled up", [(220,) * 3, (30,) * 3, *[BLACK] * 254], [0, 1], False),
    ("labels as greys, in another order", [(1,) * 3, BLACK, (2,) * 3], [0, 1, 2], False),
    ("labels as greys, with a gap", [BLACK, (2,) * 3, (5,) * 3], [0, 1, 2], False),
    ("red, black; red only", [RED, BLACK], [0], False),
    ("white, red", [WHITE, RED], [0, 1], False),
    ("a label as black as the background", [BLACK, RED, BLACK], [0, 1, 2], False),
]


@pytest.mark.parametrize(
    ("name", "table", "stored", "are_labels"), PALETTES, ids=[row[0] for row in PALETTES]
)
@pytest.mark.parametrize("form", ["png", "tif", "lzw.tif"])
def test_mask_with_a_palette_gives_its_indices_or_an_error(
    tmp_path, form, name, table, stored, are_labels
):
    path = tmp_path / f"m.{form}"
    indices = np.array(stored, np.uint8)[np.newaxis].repeat(3, axis=0)
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette(np.array(table, np.uint8).tobytes())
    if form == "lzw.tif":
        image.save(path, compression="tiff_lzw")
    else:
        image.save(path)
    if not are_labels:
        with pytest.raises(ReadError, match=r"m\..*palette.*Save"):
            read_mask(path)
        return
    np.testing.assert_array_equal(read_mask(path).labels, indices)


MARK = np.zeros((6, 8), np.uint8)
MARK[2:4, 3:6] = 1
CLEAR = np.where(MARK > 0, 255, 0).astype(np.uint8)
OPAQUE = np.full_like(MARK, 255)


@pytest.mark.parametrize("form", ["la.png", "rgba.png", "la.tif", "rgba.tif", "palette.png"])
@pytest.mark.parametrize(
    ("values", "opacity", "is_read"),
    [
        (MARK, OPAQUE, True),
        (MARK, 0 * MARK, True),
        (0 * MARK, OPAQUE, True),
        (MARK, CLEAR, False),
        (MARK, 255 - CLEAR, False),
        (0 * MARK, CLEAR, False),
    ],
    ids=["opaque", "equal", "no lesion", "clear background", "hidden labels", "drawn in opacity"],
)
def test_mask_whose_opacity_varies_is_an_error(tmp_path, form, values, opacity, is_read):
    path = tmp_path / form
    both = np.stack([values, opacity], axis=-1)
    four = np.stack([values] * 3 + [opacity], axis=-1)
    if form == "palette.png":
        if not values.any() and not is_read:
            return  # a palette entry has one opacity
        of_entry = [int(opacity[values == v].max(initial=0)) for v in (0, 1)]
        write_png(path, 8, 3, pack_rows(values, 8), [BLACK, WHITE], bytes(of_entry))
    elif form == "la.tif":
        options = {"planarconfig": "contig", "extrasamples": ["unassalpha"]}
        tifffile.imwrite(path, both, photometric="minisblack", **options)
    elif form == "rgba.tif":
        tifffile.imwrite(path, four, photometric="rgb", extrasamples=["assocalpha"])
    else:
        Image.fromarray(both if form == "la.png" else four).save(path)
    if is_read:
        np.testing.assert_array_equal(read_mask(path).labels, values)
        return
    with pytest.raises(ReadError, match=f"{form}.*opacity of the mask.*Save"):
        read_mask(path)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_transparent_colour_of_a_png_counts_as_opacity(tmp_path, bits):
    path = write_png(tmp_path / "m.png", bits, 0, pack_rows(MARK, bits), None, b"\0\1")
    shown = MARK * (255 // (2**bits - 1)) if bits < 8 else MARK
    np.testing.assert_array_equal(read_volume(path).array[0], shown)
    with pytest.raises(ReadError, match="opacity of the mask"):
        read_mask(path)


def test_mask_with_an_extra_sample_is_an_error(tmp_path):
    path = tmp_path / "m.tif"
    four = np.stack([MARK, MARK, MARK, CLEAR], axis=-1)
    tifffile.imwrite(path, four, photometric="rgb", extrasamples=["unspecified"])
    with pytest.raises(ReadError, match=r"m\.tif: 4 values per pixel"):
        read_volume(path, as_labels=True)


def test_grey_tiff_with_extra_samples_is_an_error(tmp_path):
    path = tmp_path / "m.tif"
    for n in (2, 4, 5):
        many = np.stack([MARK] * n, axis=-1)
        tifffile.imwrite(path, many, photometric="minisblack", planarconfig="contig")
        with pytest.raises(ReadError, match=f"{n} values per pixel"):
            read_volume(path)


def test_white_is_zero_masks_do_not_exchange_lesion_and_background(tmp_path):
    path = tmp_path / "m.tif"
    # 0 for the lesion, as in a mask of one bit; 0 is white and 1 a little darker
    tifffile.imwrite(path, 1 - MARK, photometric="miniswhite")
    np.testing.assert_array_equal(read_mask(path).labels, 254 + MARK)
    tifffile.imwrite(path, 255 - MARK, photometric="miniswhite")
    np.testing.assert_array_equal(read_mask(path).labels, MARK)


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("upside_down", [False, True])
def test_bmp_of_few_bits_with_a_grey_palette_gives_indices_or_greys(tmp_path, bits, upside_down):
    n = 2**bits
    path = tmp_path / "a.bmp"
    stored = RNG.integers(0, n, (7, 13)).astype(np.uint8)
    table = np.zeros((n, 4), np.uint8)
    table[:, :3] = np.arange(n)[:, None] * (255 // (n - 1))
    in_file_order = stored if upside_down else stored[::-1]
    rows = b"".join(row + b"\0" * (-len(row) % 4) for row, _ in pack_rows(in_file_order, bits))
    start = 54 + table.size
    info = (40, 13, -7 if upside_down else 7, 1, bits, 0, len(rows), 0, 0, n, 0)
    head = b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start)
    path.write_bytes(head + struct.pack("<IiiHHIIiiII", *info) + table.tobytes() + rows)
    check(path, stored[np.newaxis] * np.uint8(255 // (n - 1)))
    if bits == 4:
        with pytest.raises(ReadError, match=r"a\.bmp.*PNG"):
            read_volume(path, as_labels=True)
    else:
        np.testing.assert_array_equal(read_volume(path, as_labels=True).array[0], stored)
    for cut in (30, start - 3, start + 5):
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(ReadError, match=r"a\.bmp"):
            read_volume(path)


def test_bmp_with_two_greys_in_eight_bits_is_refused(tmp_path):
    """Pillow would read it with other values."""
    image = Image.frombytes("P", MARK.shape[::-1], MARK.tobytes())
    image.putpalette([*BLACK, *WHITE])
    image.save(tmp_path / "a.bmp")
    check_refused(tmp_path / "a.bmp")


def test_thumbnails_and_masks_in_a_tiff_are_not_pages(tmp_path):
    path = tmp_path / "a.tif"
    stored = draw_samples("uint8", 20, 30)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(stored[::4, ::4].copy(), subfiletype=1, metadata=None)
        tiff.write(stored, metadata=None)
        tiff.write(stored > 9, subfiletype=4, metadata=None)
    check(path, stored[np.newaxis])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"metadata": None},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
        {"ome": True, "metadata": {"axes": "ZYX"}},
        {"truncate": True},
        {"compression": "lzw"},
        {"photometric": "miniswhite"},
    ],
    ids=str,
)
def test_pages_of_a_tiff_are_slices(tmp_path, options):
    path = tmp_path / "a.tif"
    stack = draw_samples("uint8", 3, 20, 30)
    tifffile.imwrite(path, stack, **({"photometric": "minisblack"} | options))
    check(path, (255 - stack if "photometric" in options else stack)[np.newaxis])


@pytest.mark.parametrize("kind", ["imagej", "ome", "shaped"])
@pytest.mark.parametrize(
    ("axes", "shape", "is_read"),
    [
        ("ZYX", (3, 20, 30), True),
        ("CYX", (3, 20, 30), False),
        ("TYX", (3, 20, 30), False),
        ("ZCYX", (4, 2, 20, 30), False),
        ("TZYX", (2, 3, 20, 30), False),
        ("TZCYX", (2, 1, 1, 20, 30), False),
    ],
)
def test_channels_and_times_of_a_tiff_are_not_slices(tmp_path, kind, axes, shape, is_read):
    path = tmp_path / "a.tif"
    stack = draw_samples("uint8", *shape)
    form = {} if kind == "shaped" else {kind: True}
    tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": axes}, **form)
    if is_read:
        check(path, stack[np.newaxis])
    else:
        with pytest.raises(ReadError, match=r"a\.tif: the pages have .* expected grey slices"):
            read_volume(path)


@pytest.mark.parametrize("shape", [(20, 30), (3, 20, 30)])
@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"metadata": None}, {"rowsperstrip": 3}],
    ids=str,
)
def test_boolean_mask_of_tifffile_keeps_its_stored_numbers(tmp_path, shape, options):
    """tifffile states by default that 0 is white."""
    path = tmp_path / "a.tif"
    mask = draw_samples("uint8", *shape) > 200
    tifffile.imwrite(path, mask, **options)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages[0].photometric == tifffile.PHOTOMETRIC.MINISWHITE
    check(path, mask.astype(np.uint8)[np.newaxis], as_labels=True)
    check(path, np.where(mask, 0, 255).astype(np.uint8)[np.newaxis])  # as a viewer shows it


BITS, ROWS = 258, 257  # tags of a TIFF


@pytest.mark.parametrize("compression", [*COMPRESSIONS, "lzma", "jpeg"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize(
    ("tag", "numbers"), [(BITS, (1, 2, 4, 5, 6, 7, 8, 16, 32)), (ROWS, (20, 16, 10))]
)
def test_strip_that_is_longer_than_its_rows_is_an_error(tmp_path, compression, dtype, tag, numbers):
    if compression == "jpeg":  # a picture that knows its size
        numbers = numbers[:6] if tag == BITS else ()
    path = tmp_path / "a.tif"
    stored = RNG.integers(0, 3, (21, 32)).astype(dtype)  # the last of five strips has one row
    tifffile.imwrite(path, stored, compression=compression, rowsperstrip=5, metadata=None)
    assert read_volume(path).array.shape == (1, 21, 32)
    intact = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        entry = tiff.pages[0].tags[tag]
    for number in numbers:
        if number == entry.value:
            continue
        damaged = bytearray(intact)
        struct.pack_into("<H", damaged, entry.valueoffset, number)
        path.write_bytes(damaged)
        for as_labels in (False, True):
            with pytest.raises(ReadError, match=r"a\.tif"):
                read_volume(path, as_labels=as_labels)


@pytest.mark.parametrize("layout", [{"rowsperstrip": 21}, {"tile": (32, 32)}], ids=str)
def test_bytes_after_the_rows_of_an_uncompressed_strip_are_an_error(tmp_path, layout):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, draw_samples("uint8", 21, 32), metadata=None, **layout)
    with tifffile.TiffFile(path) as tiff:
        tags = tiff.pages[0].tags
        entry = tags["StripByteCounts" if "rowsperstrip" in layout else "TileByteCounts"]
    content = bytearray(path.read_bytes() + bytes(8 * 32 * 32))
    for factor in (1, 2, 8):
        struct.pack_into("<I", content, entry.valueoffset, factor * entry.value[0])
        path.write_bytes(content)
        if factor == 1:
            assert read_volume(path).array.shape == (1, 21, 32)
        else:
            with pytest.raises(ReadError, match=r"a\.tif: the file is damaged"):
                read_volume(path)


def test_stack_with_a_preview_is_an_error_with_advice(tmp_path):
    path = tmp_path / "a.tif"
    stack = draw_samples("uint8", 3, 20, 30)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(stack, photometric="minisblack", metadata=None)
        tiff.write(stack[0, ::4, ::4].copy(), subfiletype=1, metadata=None)
    with pytest.raises(ReadError, match=r"\(3, 20, 30\) and \(5, 8\)"):
        read_volume(path)


def test_stack_that_was_cut_is_an_error(tmp_path):
    """Writers such as ITK store each page before its directory."""
    path = tmp_path / "a.tif"
    pages = [Image.fromarray(page) for page in draw_samples("uint8", 12, 40, 50)]
    pages[0].save(path, save_all=True, append_images=pages[1:], compression="tiff_lzw")
    assert read_volume(path).array.shape == (1, 12, 40, 50)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 5])
    with pytest.raises(ReadError, match=r"a\.tif: the file is damaged or cut short"):
        read_volume(path)


def test_planes_of_other_files_are_not_read(tmp_path):
    """OME-TIFF may name any file of the machine."""
    stack = draw_samples("uint8", 4, 20, 30)
    tifffile.imwrite(tmp_path / "b.tif", stack[2:])
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, photometric="minisblack")
    text = tifffile.tiffcomment(tmp_path / "a.ome.tif").replace('SizeZ="4"', 'SizeZ="6"')
    text = text.replace('SizeT="4"', 'SizeT="6"').replace('SizeC="4"', 'SizeC="6"')
    tifffile.tiffcomment(tmp_path / "a.ome.tif", text.encode())
    with pytest.raises(ReadError, match=r"a\.ome\.tif"):
        read_volume(tmp_path / "a.ome.tif")


def test_format_is_recognised_by_content_not_by_suffix(tmp_path):
    y, x = np.mgrid[:16, :24]
    smooth = (5 * y + 4 * x).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.png", smooth, photometric="miniswhite")
    check(tmp_path / "a.png", 255 - smooth[np.newaxis])
    Image.fromarray(smooth).save(tmp_path / "b.tif", "png")
    check(tmp_path / "b.tif", smooth[np.newaxis])
    Image.fromarray(MARK).save(tmp_path / "c.png", "jpeg")
    with pytest.raises(ReadError, match=r"c\.png: a mask in JPEG"):
        read_volume(tmp_path / "c.png", as_labels=True)


@pytest.mark.parametrize("compression", ["group4", "tiff_lzw", "jpeg", "packbits", "zstd"])
def test_blank_picture_passes_the_size_check(tmp_path, compression):
    """Read a file that is much smaller than that of any picture with content."""
    path = tmp_path / "a.tif"
    blank = Image.new("1" if compression == "group4" else "L", (6000, 5000))
    blank.save(path, compression=compression)
    assert not read_volume(path).array.any()


@pytest.mark.parametrize("n_pages", [1, 3, 120])
def test_tiff_whose_pages_form_a_loop_is_an_error_at_once(tmp_path, n_pages):
    path = tmp_path / "a.tif"
    for _ in range(n_pages):
        tifffile.imwrite(path, np.zeros((4, 5), np.uint8), append=True, metadata=None)
    with tifffile.TiffFile(path) as tiff:
        first = tiff.pages[0].offset
        last = tiff.pages[-1]
        place = last.offset + 2 + 12 * len(last.tags)  # of the offset of the next page
    content = bytearray(path.read_bytes())
    content[place : place + 4] = first.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ReadError, match=r"a\.tif: the pages form a loop"):
        read_volume(path)
