"""Pictures and masks have the values that a viewer shows, for every form of TIFF, PNG and BMP.

Expected values come from the stored array by the rules of TIFF 6.0 and PNG, which are written out
here. If Pillow reads the file at full depth, they are also compared with those of Pillow.
"""

import re
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


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.tif"


def check(path, *channels, as_labels=False):
    """Check the values and the type of the channels that are read."""
    array = read_volume(path, as_labels=as_labels).array
    np.testing.assert_array_equal(array, channels)
    assert array.dtype == channels[0].dtype


def check_refused(path):
    """Check that a kind of picture is refused with the remedy, as image and as mask."""
    for as_labels in (False, True):
        with pytest.raises(ReadError, match=rf"{path.name}.*PNG"):
            read_volume(path, as_labels=as_labels)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", DEPTHS)
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_grey_tiff_gives_its_values(tmp_path, photometric, dtype, compression):
    stored = draw_samples(dtype, 21, 34)
    layouts = dict(LAYOUTS)
    if compression in ("deflate", "lzw") and dtype != "float16":
        layouts["predictor"] = {"predictor": True}
    for name, layout in layouts.items():
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, stored, photometric=photometric, compression=compression, **layout)
        if photometric == "minisblack":
            check(path, stored)
        elif dtype.startswith("uint"):
            check(path, np.iinfo(dtype).max - stored)
        else:
            check_refused(path)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_colour_tiff_gives_three_channels_without_its_opacity(path, dtype, compression):
    stored = draw_samples(dtype, 21, 34, 4)
    expected = np.moveaxis(stored[..., :3], -1, 0)

    def write(samples, **options):
        options = {"photometric": "rgb", "compression": compression, **options}
        tifffile.imwrite(path, np.ascontiguousarray(samples), **options)

    for layout in LAYOUTS.values():
        write(stored[..., :3], **layout)
        check(path, *expected)
    write(expected, planarconfig="separate")
    check(path, *expected)
    with pytest.raises(ReadError, match=r"a\.tif: the mask is in colour"):
        read_volume(path, as_labels=True)
    for meaning in ("unassalpha", "assocalpha", "unspecified"):
        write(stored, extrasamples=[meaning])
        check(path, *expected)
    grey = {"photometric": "minisblack", "planarconfig": "contig"}
    write(stored[..., :2], extrasamples=["unassalpha"], **grey)
    check(path, expected[0])
    write(np.repeat(stored[..., :1], 3, axis=-1))  # equal colours are grey
    check(path, expected[0])


def test_inks_are_refused_in_tiff_and_become_colours_in_jpeg(path):
    stored = draw_samples("uint8", 9, 11, 4)
    tifffile.imwrite(path, stored, photometric="separated")
    check_refused(path)
    path = path.with_suffix(".jpg")
    Image.fromarray(stored, "CMYK").save(path, quality=100)
    seen = np.moveaxis(read_volume(path).array, 0, -1)
    np.testing.assert_array_equal(seen, Image.open(path).convert("RGB"))


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize(
    "compression",
    [None, "tiff_ccitt", "group3", "group4", "packbits", "tiff_lzw", "tiff_adobe_deflate"],
)
def test_one_bit_tiff_is_0_and_255_in_images_and_0_and_1_in_masks(path, compression, photometric):
    shown = np.zeros((40, 70), bool)
    shown[10:20, 30:42] = True
    for plane in (shown, ~shown, shown & False):
        Image.fromarray(plane).save(path, compression=compression, tiffinfo={262: photometric})
        expected = plane.astype(np.uint8)
        check(path, 255 * expected)
        if photometric == 1:
            check(path, expected, as_labels=True)
            continue
        # some programs store 1 for the lesion, others 0
        with pytest.raises(ReadError, match=r"a\.tif: white is stored as 0.* as PNG"):
            read_volume(path, as_labels=True)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb", "ycbcr"])
@pytest.mark.parametrize("layout", [{"rowsperstrip": 16}, {"tile": (16, 16)}])
def test_jpeg_in_tiff_is_read_as_an_image_but_not_as_a_mask(path, photometric, layout):
    y, x = np.mgrid[:32, :48]
    smooth = (3 * y + 2 * x).astype(np.uint8)
    expected = [255 - smooth if photometric == "miniswhite" else smooth]
    options = {"level": 98}
    if photometric in ("rgb", "ycbcr"):
        smooth = np.stack([smooth, smooth, 255 - smooth], axis=-1)
        expected = np.moveaxis(smooth, -1, 0)
        options["outcolorspace"] = photometric
        layout = {**layout, "photometric": "rgb"}
    else:
        layout = {**layout, "photometric": photometric}
    tifffile.imwrite(path, smooth, compression="jpeg", compressionargs=options, **layout)
    assert np.abs(read_volume(path).array.astype(int) - expected).max() <= 8
    with pytest.raises(ReadError, match=r"a\.tif: a mask in JPEG"):
        read_volume(path, as_labels=True)


def test_ycbcr_without_jpeg_is_refused(path):
    Image.new("YCbCr", (8, 9)).save(path, compression="tiff_lzw")
    check_refused(path)


def write_png(path, bits, colour, values, palette=None, transparent=None):
    """Write a PNG of any form from integers `[y, x]` or `[y, x, n]`."""
    height, width = np.shape(values)[:2]
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in values]
    else:
        flat = np.asarray(values).reshape(height, -1, 1)
        each = (flat >> np.arange(bits)[::-1] & 1).astype(np.uint8).reshape(height, -1)
        rows = [row.tobytes() for row in np.packbits(each, axis=1)]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))]
    if palette is not None:
        chunks.append((b"PLTE", np.array(palette, np.uint8).tobytes()))
    if transparent is not None:
        chunks.append((b"tRNS", transparent))
    chunks.append((b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))))
    chunks.append((b"IEND", b""))
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        content += struct.pack(">I", len(data)) + name + data + checksum
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_png_of_every_depth_gives_its_values(tmp_path, bits):
    maximum = 2**bits - 1
    stored = RNG.integers(0, maximum, (7, 13), endpoint=True)
    path = write_png(tmp_path / "a.png", bits, 0, stored)
    kind = np.uint16 if bits == 16 else np.uint8
    spread = stored * 255 // maximum if bits < 8 else stored
    check(path, spread.astype(kind))
    check(path, stored.astype(kind), as_labels=True)


@pytest.mark.parametrize(
    ("name", "bits"),
    [("a.png", 1), ("a.png", 2), ("a.png", 4), ("a.png", 8), ("a.tif", 8), ("a.bmp", 8)],
)
def test_palettes_are_colours_in_images_and_indices_in_masks(tmp_path, name, bits):
    n = min(2**bits, 16)
    table = RNG.integers(60, 255, (n, 3), dtype=np.uint8)
    table[0] = 0
    stored = RNG.integers(0, n, (7, 13)).astype(np.uint8)
    stored[0, :2] = (0, n - 1)
    path = tmp_path / name
    if name == "a.png":
        write_png(path, bits, 3, stored, table)
    else:
        save_palette(path, stored, table)
    check(path, *np.moveaxis(table[stored], -1, 0))
    if name != "a.bmp":
        check(path, stored.astype(np.uint16), as_labels=True)
        return
    with pytest.raises(ReadError, match=r"a\.bmp.*PNG"):
        read_volume(path, as_labels=True)


def save_palette(path, indices, table, **options):
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette(np.array(table, np.uint8).tobytes())
    image.save(path, **options)


@pytest.mark.parametrize("wide", [np.uint8, np.uint16])
@pytest.mark.parametrize("colour", [2, 4, 6], ids=["rgb", "grey and opacity", "rgba"])
def test_png_with_colour_or_opacity_gives_its_colours(tmp_path, caplog, colour, wide):
    stored = draw_samples(wide, 7, 13, {2: 3, 4: 2, 6: 4}[colour])
    n_colours = 1 if colour == 4 else 3

    def check_colours(n, **options):
        path = write_png(tmp_path / "a.png", 8 * np.dtype(wide).itemsize, colour, stored)
        check(path, *np.moveaxis(stored[..., :n], -1, 0), **options)

    check_colours(n_colours)
    assert ("opacity is ignored" in caplog.text) == (colour != 2)
    stored[..., :n_colours] = stored[..., :1]
    check_colours(1)  # equal colours are grey
    stored[..., n_colours:] = np.iinfo(wide).max
    check_colours(1, as_labels=True)


BLACK = (0, 0, 0)
WHITE = (255, 255, 255)
GREY = (128, 128, 128)
RED = (128, 0, 0)
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
    ("labels as greys, in another order", [(1,) * 3, BLACK, (2,) * 3], [0, 1, 2], False),
    ("labels as greys, with a gap", [BLACK, (2,) * 3, (5,) * 3], [0, 1, 2], False),
    ("a label as black as the background", [BLACK, RED, BLACK], [0, 1, 2], False),
]


@pytest.mark.parametrize(("name", "table", "stored", "are_labels"), PALETTES)
@pytest.mark.parametrize("form", ["png", "tif", "lzw.tif"])
def test_mask_with_a_palette_gives_its_indices_or_an_error(
    tmp_path, form, name, table, stored, are_labels
):
    path = tmp_path / f"m.{form}"
    indices = np.array(stored, np.uint8)[np.newaxis].repeat(3, axis=0)
    save_palette(path, indices, table, compression="tiff_lzw" if form == "lzw.tif" else None)
    if are_labels:
        np.testing.assert_array_equal(read_mask(path).labels, indices)
        return
    with pytest.raises(ReadError, match=r"m\..*palette.*Save"):
        read_mask(path)


MARK = np.zeros((6, 8), np.uint8)
MARK[2:4, 3:6] = 1


@pytest.mark.parametrize("form", ["la.png", "rgba.png", "rgba.tif"])
@pytest.mark.parametrize(
    ("values", "opacity", "is_read"),
    [(MARK, 255, True), (MARK, 0, True), (MARK, 255 * MARK, False), (0 * MARK, 255 * MARK, False)],
    ids=["opaque", "equal", "clear background", "drawn in opacity"],
)
def test_mask_whose_opacity_varies_is_an_error(tmp_path, form, values, opacity, is_read):
    path = tmp_path / form
    n_colours = 1 if form == "la.png" else 3
    alpha = np.broadcast_to(np.uint8(opacity), values.shape)
    samples = np.stack([*[values] * n_colours, alpha], axis=-1)
    if form == "rgba.tif":
        tifffile.imwrite(path, samples, photometric="rgb", extrasamples=["assocalpha"])
    else:
        Image.fromarray(samples).save(path)
    if is_read:
        np.testing.assert_array_equal(read_mask(path).labels, values)
        return
    with pytest.raises(ReadError, match=f"{form}.*opacity of the mask.*Save"):
        read_mask(path)


@pytest.mark.parametrize(
    ("bits", "palette", "transparent"),
    [*((bits, None, b"\0\1") for bits in (1, 2, 4, 8, 16)), (8, [BLACK, WHITE], b"\0\xff")],
)
def test_transparent_colour_of_a_png_counts_as_opacity(tmp_path, bits, palette, transparent):
    colour = 0 if palette is None else 3
    path = write_png(tmp_path / "m.png", bits, colour, MARK, palette, transparent)
    if palette is None:
        shown = MARK * (255 // (2**bits - 1)) if bits < 8 else MARK
        np.testing.assert_array_equal(read_volume(path).array[0], shown)
    with pytest.raises(ReadError, match="opacity of the mask"):
        read_mask(path)


@pytest.mark.parametrize("n", [2, 4, 5])
def test_extra_samples_are_an_error_in_grey_and_in_masks(path, n):
    many = np.stack([MARK] * n, axis=-1)
    tifffile.imwrite(path, many, photometric="minisblack", planarconfig="contig")
    with pytest.raises(ReadError, match=f"{n} values per pixel"):
        read_volume(path)
    if n == 4:
        tifffile.imwrite(path, many, photometric="rgb", extrasamples=["unspecified"])
        with pytest.raises(ReadError, match=r"a\.tif: 4 values per pixel"):
            read_volume(path, as_labels=True)


def test_white_is_zero_masks_do_not_exchange_lesion_and_background(path):
    # 0 for the lesion, as in a mask of one bit; 0 is white and 1 a little darker
    for stored, expected in ((1 - MARK, 254 + MARK), (255 - MARK, MARK)):
        tifffile.imwrite(path, stored, photometric="miniswhite")
        np.testing.assert_array_equal(read_mask(path).labels, expected)


@pytest.mark.parametrize(("mode", "maximum"), [("1", 1), ("L", 255)])
def test_grey_bmp_gives_its_values(tmp_path, mode, maximum):
    stored = RNG.integers(0, maximum, (7, 13), np.uint8, endpoint=True)
    greys = stored * np.uint8(255 // maximum)
    Image.fromarray(greys).convert(mode).save(tmp_path / "a.bmp")
    check(tmp_path / "a.bmp", greys)
    check(tmp_path / "a.bmp", stored, as_labels=True)


def test_bmp_with_two_greys_in_eight_bits_is_refused(tmp_path):
    """Pillow would read it with other values."""
    save_palette(tmp_path / "a.bmp", MARK, [BLACK, WHITE])
    check_refused(tmp_path / "a.bmp")


def test_thumbnails_and_masks_in_a_tiff_are_not_pages(path):
    stored = draw_samples("uint8", 20, 30)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(stored[::4, ::4].copy(), subfiletype=1, metadata=None)
        tiff.write(stored, metadata=None)
        tiff.write(stored > 9, subfiletype=4, metadata=None)
    check(path, stored)


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
)
def test_pages_of_a_tiff_are_slices(path, options):
    stack = draw_samples("uint8", 3, 20, 30)
    tifffile.imwrite(path, stack, **({"photometric": "minisblack"} | options))
    check(path, 255 - stack if "photometric" in options else stack)


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
def test_channels_and_times_of_a_tiff_are_not_slices(path, kind, axes, shape, is_read):
    stack = draw_samples("uint8", *shape)
    form = {} if kind == "shaped" else {kind: True}
    tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": axes}, **form)
    if is_read:
        check(path, stack)
    else:
        with pytest.raises(ReadError, match=r"a\.tif: the pages have .* expected grey slices"):
            read_volume(path)


@pytest.mark.parametrize("shape", [(20, 30), (3, 20, 30)])
@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"metadata": None}]
)
def test_boolean_mask_of_tifffile_keeps_its_stored_numbers(path, shape, options):
    """tifffile states by default that 0 is white."""
    mask = draw_samples("uint8", *shape) > 200
    tifffile.imwrite(path, mask, **options)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages[0].photometric == tifffile.PHOTOMETRIC.MINISWHITE
    check(path, mask.astype(np.uint8), as_labels=True)
    check(path, np.where(mask, 0, 255).astype(np.uint8))  # as a viewer shows it


BITS, ROWS = 258, 257  # tags of a TIFF


@pytest.mark.parametrize("compression", [*COMPRESSIONS, "lzma", "jpeg"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize(
    ("tag", "numbers"), [(BITS, (1, 2, 4, 5, 6, 7, 8, 16, 32)), (ROWS, (20, 16, 10))]
)
def test_strip_that_is_longer_than_its_rows_is_an_error(path, compression, dtype, tag, numbers):
    if compression == "jpeg":  # a picture that knows its size
        numbers = numbers[:6] if tag == BITS else ()
    stored = RNG.integers(0, 3, (21, 32)).astype(dtype)  # the last of five strips has one row
    tifffile.imwrite(path, stored, compression=compression, rowsperstrip=5, metadata=None)
    assert read_volume(path).array.shape == (1, 21, 32)
    with tifffile.TiffFile(path) as tiff:
        entry = tiff.pages[0].tags[tag]
    content = bytearray(path.read_bytes())
    for number in {*numbers} - {entry.value}:
        struct.pack_into("<H", content, entry.valueoffset, number)
        path.write_bytes(content)
        for as_labels in (False, True):
            with pytest.raises(ReadError, match=r"a\.tif"):
                read_volume(path, as_labels=as_labels)


@pytest.mark.parametrize("layout", [{"rowsperstrip": 21}, {"tile": (32, 32)}])
def test_bytes_after_the_rows_of_an_uncompressed_strip_are_an_error(path, layout):
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


def test_stack_with_a_preview_is_an_error_with_advice(path):
    stack = draw_samples("uint8", 3, 20, 30)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(stack, photometric="minisblack", metadata=None)
        tiff.write(stack[0, ::4, ::4].copy(), subfiletype=1, metadata=None)
    with pytest.raises(ReadError, match=r"\(3, 20, 30\) and \(5, 8\)"):
        read_volume(path)


def test_stack_that_was_cut_is_an_error(path):
    """Writers such as ITK store each page before its directory."""
    first, *others = [Image.fromarray(page) for page in draw_samples("uint8", 12, 40, 50)]
    first.save(path, save_all=True, append_images=others, compression="tiff_lzw")
    assert read_volume(path).array.shape == (1, 12, 40, 50)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
    with pytest.raises(ReadError, match=r"a\.tif: the file is damaged or cut short"):
        read_volume(path)


def test_planes_of_other_files_are_not_read(tmp_path):
    """OME-TIFF may name any file of the machine."""
    path = tmp_path / "a.ome.tif"
    stack = draw_samples("uint8", 4, 20, 30)
    tifffile.imwrite(tmp_path / "b.tif", stack[2:])
    tifffile.imwrite(path, stack, photometric="minisblack")
    text = re.sub('(Size[ZTC]=)"4"', r'\1"6"', tifffile.tiffcomment(path))
    tifffile.tiffcomment(path, text.encode())
    with pytest.raises(ReadError, match=r"a\.ome\.tif"):
        read_volume(path)


def test_format_is_recognised_by_content_not_by_suffix(tmp_path):
    tifffile.imwrite(tmp_path / "a.png", MARK, photometric="miniswhite")
    check(tmp_path / "a.png", 255 - MARK)
    Image.fromarray(MARK).save(tmp_path / "b.tif", "png")
    check(tmp_path / "b.tif", MARK)
    Image.fromarray(MARK).save(tmp_path / "c.png", "jpeg")
    with pytest.raises(ReadError, match=r"c\.png: a mask in JPEG"):
        read_volume(tmp_path / "c.png", as_labels=True)


@pytest.mark.parametrize("compression", ["group4", "tiff_lzw", "jpeg", "packbits", "zstd"])
def test_blank_picture_passes_the_size_check(path, compression):
    """Read a file that is much smaller than that of any picture with content."""
    blank = Image.new("1" if compression == "group4" else "L", (6000, 5000))
    blank.save(path, compression=compression)
    assert not read_volume(path).array.any()


@pytest.mark.parametrize("n_pages", [1, 3, 120])
def test_tiff_whose_pages_form_a_loop_is_an_error_at_once(path, n_pages):
    for _ in range(n_pages):
        tifffile.imwrite(path, np.zeros((4, 5), np.uint8), append=True, metadata=None)
    with tifffile.TiffFile(path) as tiff:
        first = tiff.pages[0].offset
        last = tiff.pages[-1]
    content = bytearray(path.read_bytes())
    # the last page states the offset of the next one
    struct.pack_into("<I", content, last.offset + 2 + 12 * len(last.tags), first)
    path.write_bytes(content)
    with pytest.raises(ReadError, match=r"a\.tif: the pages form a loop"):
        read_volume(path)
