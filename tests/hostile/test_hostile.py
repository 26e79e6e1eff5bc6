"""Damaged and hostile files fail by name, without crash, hang, full memory or foreign files."""

import gzip
import os
import struct
import sys
import time
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from lesionseg.core import CaseFiles, Dataset, Geometry, Labels
from lesionseg.errors import GeometryError, LesionsegError, ReadError
from lesionseg.io import limits as io_limits
from lesionseg.io import worker as io_worker
from lesionseg.io.cases import read_image
from lesionseg.io.limits import FileLimits, limits, set_limits
from lesionseg.io.volumes import read_geometry, read_volume
from lesionseg.io.worker import run_in_worker
from tests.commands import python
from tests.io.dicom_files import CT, slice_elements, write_dicom_file

SECRET = "root:x:0:0"
MHA = """ObjectType = Image
NDims = 3
DimSize = {size}
ElementType = MET_UCHAR
{more}ElementDataFile = {file}
"""
NRRD = """NRRD0004
type: uint8
dimension: 3
sizes: {size}
encoding: {encoding}
{more}
"""


@pytest.fixture
def change_limits():
    """Return a function that sets limits for one test."""
    before = limits()
    yield lambda **changes: set_limits(FileLimits(**changes))
    set_limits(before)


def check_error(path, *words):
    for read in (read_volume, read_geometry):
        with pytest.raises(ReadError) as caught:
            read(path)
        assert path.name in str(caught.value)
        assert SECRET not in str(caught.value)
        assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../out.raw", "%03d.raw 1 3 1", "LIST", "-", "link"]
)
@pytest.mark.parametrize("suffix", [".mhd", ".nhdr", ".nrrd"])
def test_voxels_outside_of_the_folder_are_not_read(tmp_path, name, suffix):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "out.raw").write_bytes(bytes(1000))
    (folder / "link").symlink_to("/etc/passwd")
    text = MHA.format(size="4 4 4", more="", file=name)
    if suffix != ".mhd":
        text = NRRD.format(size="4 4 4", encoding="raw", more=f"data file: {name}\n")
    (folder / f"a{suffix}").write_text(text)
    check_error(folder / f"a{suffix}", "voxels elsewhere")
    for sneaky in ("Data File: /etc/passwd", "datafile:/etc/passwd", "x\rdata file: /etc/passwd"):
        text = NRRD.format(size="4 4 4", encoding="raw", more=f"{sneaky}\n")
        (folder / "b.nrrd").write_bytes(text.encode() + bytes(64))
        check_error(folder / "b.nrrd", "voxels elsewhere")


@pytest.mark.parametrize(
    ("more", "file", "word"),
    [
        ("Comment = ElementDataFile = LOCAL\n", "/etc/passwd", "more than once"),
        ("X-ElementDataFile = LOCAL\n", "/etc/passwd", "more than once"),
        ("elementdatafile = LOCAL\n", "/etc/passwd", "more than once"),
        ("ElementDataFile = LOCAL\n", "/etc/passwd", "more than once"),
        ("  ElementDataFile : own.raw\n", "/etc/passwd", "more than once"),
        # MetaIO takes the next line as the value of a key without one
        ("Comment\n", "/etc/passwd", "damaged"),
        ("Comment =\n\n", "/etc/passwd", "damaged"),
        # it would read on, up to a key beyond the part of the header that is checked
        ("X-", "LOCAL", "damaged"),
    ],
)
def test_metaimage_that_hides_its_file_is_an_error(tmp_path, more, file, word):
    (tmp_path / "own.raw").write_bytes(bytes(64))
    text = MHA.format(size="4 4 4", more=more, file=file)
    for name in ("a.mhd", "a.mha"):
        (tmp_path / name).write_bytes(text.encode() + bytes(64))
        check_error(tmp_path / name, word)


@pytest.mark.parametrize("name", ["LIST", "LIST.raw", "LoCaL", "=link"])
def test_file_whose_name_has_a_meaning_for_the_decoder_is_an_error(tmp_path, name):
    """A file of this name exists in the folder, so it is not the name that is missing."""
    (tmp_path / "link").symlink_to("/etc/passwd")
    if name == "LoCaL":
        (tmp_path / name).symlink_to("/etc/passwd")
    else:
        (tmp_path / name).write_bytes(bytes(64))
    (tmp_path / "a.mhd").write_text(MHA.format(size="4 4 4", more="", file=name))
    check_error(tmp_path / "a.mhd", "voxels elsewhere")


@pytest.mark.parametrize("name", ["own.raw", "LOCAL"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_metaimage_with_blanks_before_its_last_key_is_read(tmp_path, name, line_end):
    voxels = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    (tmp_path / "own.raw").write_bytes(voxels.tobytes())
    text = MHA.format(size="2 2 2", more="Comment = a = b\n\n \t", file=name)
    path = tmp_path / "a.mha"
    content = text.replace("\n", line_end).encode()
    path.write_bytes(content + voxels.tobytes() if name == "LOCAL" else content)
    np.testing.assert_array_equal(read_volume(path).array[0], voxels)


def png_chunk(name, data):
    length = struct.pack(">I", len(data))
    checksum = struct.pack(">I", zlib.crc32(name + data))
    return length + name + data + checksum


def write_bomb(path):
    """Write a few KB that ask for 108 GB of memory."""
    size = "3000 6000 6000"
    packed = gzip.compress(bytes(2**22))
    if path.suffix == ".mha":
        head = MHA.format(size=size, more="CompressedData = True\n", file="LOCAL")
        path.write_bytes(head.encode() + zlib.compress(bytes(2**22)))
    elif path.suffix == ".nrrd":
        path.write_bytes(NRRD.format(size=size, encoding="gzip", more="").encode() + packed)
    elif path.suffix == ".gz":
        nibabel.save(nibabel.Nifti1Image(np.zeros((128, 128, 128), np.uint8), np.eye(4)), path)
        enlarge = patch_header(DIM + 2, "<3h", 3000, 6000, 6000)
        path.write_bytes(enlarge(path.read_bytes()))
    else:
        content = b"\x89PNG\r\n\x1a\n"
        content += png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 16, 2, 0, 0, 0))
        content += png_chunk(b"IDAT", zlib.compress(bytes(2**22)))
        path.write_bytes(content + png_chunk(b"IEND", b""))
    assert path.stat().st_size < 10_000


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd", "a.nii.gz", "a.png"])
def test_file_of_kilobytes_that_asks_for_gigabytes_is_an_error(tmp_path, name):
    write_bomb(tmp_path / name)
    check_error(tmp_path / name)


def crash(path):
    """Crash like a native library with some damaged files."""
    os.abort()


def spin(path):
    """Compute without end."""
    while True:
        pass


def hang(path):
    time.sleep(600)


def nap(path):
    time.sleep(1.5)
    return 7


def work(path, seconds):
    """Use processor time."""
    begin = time.process_time()
    n = 0
    while time.process_time() < begin + seconds:
        n += 1
    return n


def grow(path):
    return np.ones((1000, 2**27))


ONE_SECOND = FileLimits(read_seconds=1.0)
FEW_VOXELS = FileLimits(max_voxels=10**6)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit of processor time")
@pytest.mark.parametrize(
    ("misbehave", "allowed", "wall_per_processor", "error", "words"),
    [
        (crash, FileLimits(), 1000, ReadError, r"bad\.png: .*crashed"),
        (spin, ONE_SECOND, 1000, ReadError, r"bad\.png: .*longer than 1 s of processor time"),
        (hang, ONE_SECOND, 1, ReadError, r"bad\.png: .*did not answer for 1 s"),
        (grow, FEW_VOXELS, 1000, MemoryError, ".*"),
    ],
)
def test_crash_of_the_worker_fails_only_its_file(
    tmp_path, monkeypatch, misbehave, allowed, wall_per_processor, error, words
):
    """Only the tested limit is narrow, so a busy machine reaches no other limit."""
    good = tmp_path / "a.png"
    Image.new("L", (2, 2), 1).save(good)
    monkeypatch.setattr(io_limits, "_limits", allowed)
    monkeypatch.setattr(io_worker, "_WALL_PER_PROCESSOR", wall_per_processor)
    with pytest.raises(error, match=words):
        run_in_worker(misbehave, tmp_path / "bad.png")
    monkeypatch.undo()
    assert read_volume(good).array.sum() == 4


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of the worker")
def test_memory_of_the_worker_is_limited_by_that_of_the_container():
    program = """
from lesionseg.io import limits, worker
worker.physical_bytes = lambda: 2**28
worker._limit_this_process(limits.FileLimits(), 60)
bytearray(2**29)
"""
    assert "MemoryError" in python("-c", program).stderr


def test_time_of_waiting_for_a_processor_does_not_count(tmp_path, change_limits):
    """Simulate a busy machine by a sleeping decoder. The times of several files do not add up."""
    run_in_worker(work, tmp_path / "start.png", 0.0)  # starting the worker takes long
    change_limits(read_seconds=1.0)
    assert run_in_worker(nap, tmp_path / "slow.png") == 7
    for _ in range(3):  # together more than the limit, which the system rounds up to 2 s
        assert run_in_worker(work, tmp_path / "a.png", 0.7) > 0


def test_gif_named_png_is_an_error(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png", "gif")
    check_error(tmp_path / "a.png")


# offsets in a NIfTI-1 header
DIM, DATATYPE, VOX_OFFSET, SFORM, HEADER = 40, 70, 108, 280, 352


def patch_header(offset, form, *values):
    """Return a function that writes these values into the unpacked file."""

    def patch(file):
        plain = bytearray(gzip.decompress(file))
        struct.pack_into(form, plain, offset, *values)
        return gzip.compress(bytes(plain))

    return patch


DAMAGES = {
    **{f"{value}_voxel": patch_header(HEADER + 40, "<f", value) for value in (np.nan, np.inf)},
    "magic": patch_header(344, "<4s", b"xyz\0"),
    "zero_dim": patch_header(DIM + 4, "<h", 0),
    "negative_dim": patch_header(DIM + 2, "<h", -5),
    "huge_dims": patch_header(DIM + 2, "<3h", 30000, 30000, 30000),
    "datatype": patch_header(DATATYPE, "<h", 12345),
    "far_offset": patch_header(VOX_OFFSET, "<f", 1e9),
    "flat_affine": patch_header(SFORM, "<12f", 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_an_error_with_its_name(tmp_path, rng, damage):
    path = tmp_path / f"{damage}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(rng.normal(size=(12, 10, 14)).astype("f4"), np.eye(4)), path)
    dataset = Dataset("x", tmp_path, "nnunet", 3, ("T1",), Labels.of({1: "lesion"}), ())
    assert read_image(CaseFiles("a", (path,)), dataset).array.shape == (1, 14, 10, 12)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(LesionsegError, match=damage):
        read_image(CaseFiles("a", (path,)), dataset)


def write_scan(path, spacing_mm, unit):
    """Write a scan of zeros whose header gives lengths as numbers of this unit."""
    zeros = np.zeros((20, 40, 30), np.int16)
    if path.suffix == ".dcm":  # a folder
        grid = Geometry.from_spacing(zeros.shape, spacing_mm)
        for z, pixels in enumerate(zeros):
            write_dicom_file(path / f"{z}.dcm", pixels, CT, **slice_elements(grid, z))
    elif path.suffix == ".gz":
        image = nibabel.Nifti1Image(zeros.T, np.diag([*spacing_mm[::-1], 1]))
        image.header.set_xyzt_units(unit)
        nibabel.save(image, path)
    else:
        image = sitk.GetImageFromArray(zeros)
        image.SetSpacing([float(mm) for mm in spacing_mm[::-1]])
        sitk.WriteImage(image, str(path))


SPACINGS = [
    # spacing in the header, unit, words of the error ("" for none)
    ((1.5, 1.5, 1.5), "micron", "micrometres"),  # 0.0015 mm, extent 0.06 mm
    ((5, 0.5, 0.5), "micron", "micrometres"),
    ((1, 1, 1), "meter", "metres"),
    ((0.09, 0.5, 0.5), "meter", "metres"),
    ((999, 1, 1), "mm", "outside 0.001–100 mm"),
    ((0.0005, 1, 1), "mm", "outside 0.001–100 mm"),
    ((0.001, 0.001, 0.001), "mm", "longest side is 0.04 mm"),  # probably metres
    ((1500, 1500, 1500), "micron", ""),
    ((0.0015, 0.0015, 0.0015), "meter", ""),
    ((0.05, 0.05, 0.05), "mm", ""),  # ex vivo
    ((100, 100, 100), "mm", ""),
]


# only NIfTI has units other than millimetres
SCANS = [
    (f"a.{ending}", *row)
    for row in SPACINGS
    for ending in ("nii.gz", "nrrd", "mha", "dcm")
    if ending == "nii.gz" or row[1] == "mm"
]


@pytest.mark.parametrize(("name", "spacing_mm", "unit", "words"), SCANS, ids=str)
def test_implausible_spacing_or_extent_is_an_error(tmp_path, name, spacing_mm, unit, words):
    path = tmp_path / name
    write_scan(path, spacing_mm, unit)
    if not words:
        assert read_volume(path).array.shape == (1, 20, 40, 30)
    elif name == "a.dcm" and spacing_mm[0] < 0.001:  # these slices count as duplicates
        with pytest.raises(GeometryError, match="duplicates"):
            read_volume(path)
    else:
        check_error(path, words, "Correct the spacing or its unit")


@pytest.mark.parametrize("mm", [0.0, -1.0, float("nan"), 1e-4, 101.0, 1e-9])
def test_implausible_pixel_size_is_an_error(tmp_path, mm):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ReadError, match=r"a\.png: the pixel size .*Correct pixel_mm"):
        read_volume(tmp_path / "a.png", pixel_mm=mm)
    Image.new("L", (12000, 2)).save(tmp_path / "b.png")  # without a pixel size, 12 m is no error
    assert read_volume(tmp_path / "b.png").array.shape == (1, 2, 12000)
