"""Review C1, C2: what a MetaImage or NRRD header says is checked before ITK sees the file."""

import gzip
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from lesionseg.core import CaseFiles
from lesionseg.errors import ReadError
from lesionseg.io.formats.header_fields import MOST_HEADER_BYTES
from lesionseg.io.local_files import content_files, fetch_images
from lesionseg.io.remote.local_disk import LocalDisk
from lesionseg.io.remote.mirror import mirror
from lesionseg.io.volumes import read_geometry, read_volume
from lesionseg.pipeline.run.run_log import redact

VOXELS = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
ZLIB = zlib.compress(VOXELS.tobytes())
TEXT = " ".join(map(str, VOXELS.ravel())).encode()
MHA = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "1 2 3",
    "ElementSpacing": "0.5 1 2",
    "DimSize": "4 3 2",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}
NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "4 3 2",
    "space directions": "(0.5,0,0) (0,1,0) (0,0,2)",
    "space origin": "(1,2,3)",
    "endian": "little",
    "encoding": "raw",
}


def metaimage(
    path: Path, content: bytes = VOXELS.tobytes(), end: str = "\n", **changes: str | None
) -> Path:
    """A MetaImage with fields changed, or left out where None, and `content` behind the header."""
    fields = {name: value for name, value in (MHA | changes).items() if value is not None}
    last = {"ElementDataFile": fields.pop("ElementDataFile", None)}
    lines = [f"{n} = {v}{end}" for n, v in (fields | last).items() if v is not None]
    path.write_bytes("".join(lines).encode("latin-1") + content)
    return path


def nrrd(
    path: Path,
    content: bytes = VOXELS.tobytes(),
    end: str = "\n",
    changes: dict[str, str | None] | None = None,
) -> Path:
    fields = {n: v for n, v in (NRRD | (changes or {})).items() if v is not None}
    lines = ["NRRD0004", "# a comment", *(f"{n}: {v}" for n, v in fields.items()), "key:=value: 1"]
    path.write_bytes(end.join([*lines, "", ""]).encode("latin-1") + content)
    return path


def refused(path: Path, words: str) -> None:
    for read in (read_volume, read_geometry):
        with pytest.raises(ReadError, match=words) as error:
            read(path)
        assert path.name in str(error.value)


def test_c1_headers_that_ended_the_process_are_refused(tmp_path: Path) -> None:
    """In a process of its own: a refusal is no crash, whatever stands in the header."""
    metaimage(tmp_path / "pattern.mha", ElementDataFile="%n%n%n%n 1 8 1")
    metaimage(tmp_path / "string.mha", ElementDataFile="%s%s%s%s 1 8 1")
    metaimage(tmp_path / "axes.mha", NDims="2000000000")
    metaimage(tmp_path / "comment.mha", Comment="c" * 480)
    metaimage(tmp_path / "key.mha", **{"k" * 480: "1"})
    nrrd(tmp_path / "pattern.nrrd", changes={"data file": "%n%n%n%d 1 8 1"})
    nrrd(tmp_path / "axes.nrrd", changes={"dimension": "2000000000"})
    code = (
        "import sys\nfrom pathlib import Path\nfrom lesionseg.errors import ReadError\n"
        "from lesionseg.io.volumes import read_geometry, read_volume\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    for read in (read_geometry, read_volume):\n"
        "        try:\n            read(path)\n"
        "        except ReadError:\n            print('refused', path.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused") == 2 * 7


ELSEWHERE = [
    "/etc/passwd",
    "../scan.raw",
    "sub/scan.raw",
    "sub\\scan.raw",
    "C:scan.raw",
    "%s",
    "scan%02d.raw 1 2 1",
    "LIST",
    "LIST 2",
    "LISTING.raw",
    "-",
    "=scan.raw",
    "",
]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_c2_a_header_points_out_of_its_folder_or_at_several_files(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "scan.raw").write_bytes(VOXELS.tobytes())
    refused(metaimage(tmp_path / "a.mha", b"", ElementDataFile=name), "points out of its folder")
    for field in ("data file", "datafile", "Data File", "DATAFILE"):
        path = nrrd(tmp_path / "a.nrrd", b"", changes={field: name})
        refused(path, "points out of its folder")


@pytest.mark.parametrize("kind", ["gone", "folder", "fifo", "link out", "device"])
def test_c2_voxels_are_a_regular_file_of_the_same_folder(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "other.raw").write_bytes(VOXELS.tobytes())
    file = folder / "scan.raw"
    if kind == "folder":
        file.mkdir()
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "link out":
        file.symlink_to(tmp_path / "other.raw")
    elif kind == "device":
        file.symlink_to("/dev/zero")
    refused(metaimage(folder / "a.mhd", b"", ElementDataFile="scan.raw"), "not a regular file")
    refused(nrrd(folder / "a.nhdr", b"", changes={"data file": "scan.raw"}), "not a regular file")


METAIMAGE_FAULTS: list[tuple[dict[str, str | None], str]] = [
    ({"NDims": None}, "lacks NDims"),
    ({"DimSize": None}, "lacks DimSize"),
    ({"ElementType": None}, "lacks ElementType"),
    ({"ElementDataFile": None}, "other than text|no field|lacks ElementDataFile"),
    ({"NDims": "0"}, "one value per voxel"),
    ({"NDims": "5"}, "one value per voxel"),
    ({"NDims": "-3"}, "NDims is wrong"),
    ({"NDims": "3x"}, "NDims is wrong"),
    ({"NDims": "3", "DimSize": "4 3"}, "DimSize is wrong"),
    ({"DimSize": "4 3 2 1"}, "DimSize is wrong"),
    ({"DimSize": "4 3 0"}, "DimSize is wrong"),
    ({"DimSize": "4 3 -2"}, "DimSize is wrong"),
    ({"DimSize": "4 3 2e9"}, "DimSize is wrong"),
    ({"DimSize": "4\xa03 2 1"}, "DimSize is wrong"),
    ({"ElementType": "MET_OTHER"}, "ElementType is wrong"),
    ({"ElementNumberOfChannels": "3"}, "claims more voxels|one value per voxel"),
    ({"ElementNumberOfChannels": "2000000000"}, "claims more voxels"),
    ({"ElementSpacing": "1 1"}, "ElementSpacing is wrong"),
    ({"ElementSpacing": "1 1 nan"}, "ElementSpacing is wrong"),
    ({"TransformMatrix": "1 0 0"}, "TransformMatrix is wrong"),
    ({"Color": "1 0 0"}, "Color is wrong"),
    ({"HeaderSize": "-2"}, "HeaderSize is wrong"),
    ({"CompressedData": "maybe"}, "CompressedData is wrong"),
    ({"CompressedData": "True", "CompressedDataSize": "999999999999"}, "claims more voxels"),
    ({"AnatomicalOrientation": "RAI" * 9}, "AnatomicalOrientation is wrong"),
    ({"Name": "n" * 251}, "Name is wrong"),
    ({"Comment": "a\x00b"}, "other than text"),
    ({"Comment": "a\rElementDataFile = /etc/passwd"}, "other than text"),
    ({"Comment": "a\nb"}, "not a field"),
    ({"Comment": "a\n\xa0"}, "not a field"),
    ({"Colon: ElementDataFile": "/etc/passwd"}, "not a field"),
    ({"BinaryData": "False", "DimSize": "100 100 100"}, "claims more voxels"),
]


@pytest.mark.parametrize(("changes", "words"), METAIMAGE_FAULTS)
def test_c1_a_metaimage_header_states_what_it_must_and_nothing_odd(
    tmp_path: Path, changes: dict[str, str | None], words: str
) -> None:
    refused(metaimage(tmp_path / "a.mha", **changes), words)


NRRD_FAULTS: list[tuple[dict[str, str | None], str]] = [
    ({"type": None}, "lacks type"),
    ({"dimension": None}, "lacks dimension"),
    ({"sizes": None}, "lacks sizes"),
    ({"encoding": None}, "lacks encoding"),
    ({"dimension": "0"}, "one value per voxel"),
    ({"dimension": "17"}, "one value per voxel"),
    ({"dimension": "-1"}, "dimension is wrong"),
    ({"sizes": "4 3"}, "sizes is wrong"),
    ({"sizes": "4 3 0"}, "sizes is wrong"),
    ({"sizes": "4 3 99999999999999999999"}, "sizes is wrong"),
    ({"type": "block"}, "type is wrong"),
    ({"encoding": "bzip2"}, "encoding is wrong"),
    ({"line skip": "-1"}, "lineskip is wrong"),
    ({"byte skip": "-2"}, "byteskip is wrong"),
    ({"byte skip": "-1", "encoding": "gzip"}, "byteskip is wrong"),
    ({"Sizes": "4 3 2"}, "sizes twice"),
    ({"datafile": "a.raw", "data file": "a.raw"}, "datafile twice"),
    ({"unknown": "1"}, "not a field"),
    ({"content": "a\x01b"}, "other than text"),
    ({"content": "a\rdata file: /etc/passwd"}, "other than text"),
    ({"encoding": "hex", "sizes": "10 10 10"}, "claims more voxels"),
    ({"encoding": "ascii", "sizes": "100 100 100"}, "claims more voxels"),
]


@pytest.mark.parametrize(("changes", "words"), NRRD_FAULTS)
def test_c2_an_nrrd_header_states_what_it_must_and_nothing_odd(
    tmp_path: Path, changes: dict[str, str | None], words: str
) -> None:
    refused(nrrd(tmp_path / "a.nrrd", changes=changes), words)


def test_c1_a_field_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    path.write_bytes(b"NDims = 3\n" + metaimage(path).read_bytes())
    refused(path, "NDims twice")


def test_c1_headers_without_an_end_are_refused(tmp_path: Path) -> None:
    line = b"%07d = " + b"x" * 400 + b"\n"
    (tmp_path / "long.mha").write_bytes(b"".join(line % n for n in range(3000)))
    refused(tmp_path / "long.mha", "no end")
    (tmp_path / "long.nrrd").write_bytes(b"NRRD0004\n" + b"# x\n" * MOST_HEADER_BYTES)
    refused(tmp_path / "long.nrrd", "no end")
    (tmp_path / "short.nrrd").write_bytes(b"NRRD0004\ntype: short\n")
    refused(tmp_path / "short.nrrd", "no end")
    (tmp_path / "a.raw").write_bytes(VOXELS.tobytes())
    path = metaimage(tmp_path / "a.mhd", bytes(MOST_HEADER_BYTES), ElementDataFile="a.raw")
    refused(path, "too long")


def image(dims: int, dtype: type[np.number]) -> sitk.Image:
    shape = (2, 3, 4) if dims == 3 else (6, 4)
    made = sitk.GetImageFromArray(np.arange(24).reshape(shape).astype(dtype))
    made.SetSpacing((0.5, 1.5, 3)[:dims])
    made.SetOrigin((-7, 8, 9)[:dims])
    if dims == 3:
        made.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))
    made.SetMetaData("0010|0010", "Doe^J\xe9: = %n")
    return made


def same(path: Path) -> None:
    """Voxels and place are those that ITK reads."""
    expected, volume = sitk.ReadImage(str(path)), read_volume(path)
    np.testing.assert_array_equal(volume.array[0], sitk.GetArrayFromImage(expected))
    assert read_geometry(path).matches(volume.geometry, 0)
    dims = expected.GetDimension()
    assert volume.geometry.spacing_mm == pytest.approx(expected.GetSpacing()[::-1])
    place = np.array(expected.TransformIndexToPhysicalPoint((1,) * dims))
    place[:2] *= -1
    np.testing.assert_allclose(volume.geometry.to_mm([[1] * dims])[0], place)


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.float32, np.float64, np.int64])
def test_what_itk_writes_is_read_as_itk_reads_it(
    tmp_path: Path, suffix: str, compressed: bool, dims: int, dtype: type[np.number]
) -> None:
    path = tmp_path / f"a scan{suffix}"
    sitk.WriteImage(image(dims, dtype), str(path), compressed)
    same(path)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("content", "changes"),
    [
        (VOXELS.tobytes(), {}),
        (VOXELS.tobytes(), {"HeaderSize": "-1"}),
        (VOXELS.tobytes(), {"ElementDataFile": "local", "CompressedData": None}),
        (VOXELS.astype(">i2").tobytes(), {"BinaryDataByteOrderMSB": "True"}),
        (ZLIB, {"CompressedData": "True", "CompressedDataSize": str(len(ZLIB))}),
        (TEXT + b" ", {"BinaryData": "False"}),
    ],
)
def test_metaimages_of_other_programs_are_read(
    tmp_path: Path, end: str, content: bytes, changes: dict[str, str | None]
) -> None:
    path = metaimage(tmp_path / "a.mha", content, end, **changes)
    same(path)
    np.testing.assert_array_equal(read_volume(path).array[0], VOXELS)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("content", "changes"),
    [
        (VOXELS.tobytes(), {}),
        (b"skipped" + VOXELS.tobytes(), {"byte skip": "-1"}),
        (b"line\n12" + VOXELS.tobytes(), {"lineskip": "1", "byteskip": "2"}),
        (VOXELS.astype(">i2").tobytes(), {"Endian": "big", "endian": None}),
        (gzip.compress(VOXELS.tobytes(), mtime=0), {"encoding": "gz"}),
        (TEXT, {"encoding": "ASCII", "endian": None}),
        (VOXELS.tobytes(), {"type": "Signed Short Int", "kinds": "domain domain domain"}),
    ],
)
@pytest.mark.parametrize("detached", [False, True])
def test_nrrds_of_other_programs_are_read(
    tmp_path: Path, end: str, content: bytes, changes: dict[str, str | None], detached: bool
) -> None:
    path = tmp_path / ("a.nhdr" if detached else "a.nrrd")
    if detached:
        (tmp_path / "a b.raw").write_bytes(content)
        changes, content = changes | {"data file": "a b.raw"}, b""
    same(nrrd(path, content, end, changes))
    np.testing.assert_array_equal(read_volume(path).array[0], VOXELS)


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "true.raw").write_bytes(VOXELS.tobytes())
    (tmp_path / "a.raw").symlink_to("true.raw")
    same(metaimage(tmp_path / "a.mhd", b"", ElementDataFile="a.raw"))


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr"])
def test_c2_voxels_in_another_file_count_as_content(tmp_path: Path, suffix: str) -> None:
    raw = tmp_path / "voxels of a patient.raw"
    raw.write_bytes(VOXELS.tobytes())
    path = tmp_path / f"a{suffix}"
    if suffix in (".mha", ".mhd"):
        metaimage(path, b"", ElementDataFile=raw.name)
    else:
        nrrd(path, b"", changes={"data file": raw.name})
    assert content_files(path) == (path, raw)
    assert "patient" not in redact(f"{raw} {raw.name}", CaseFiles("a", (path,)), "case 1")
    raw.unlink()
    assert content_files(path) == (path,)  # that it is not there is said when it is read


def test_c2_of_a_mirrored_set_only_small_files_are_fetched_to_know_the_content(
    tmp_path: Path,
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    nrrd(store / "small.nrrd", b"", changes={"data file": "small.raw"})
    (store / "small.raw").write_bytes(VOXELS.tobytes())
    nrrd(store / "large.nrrd", bytes(MOST_HEADER_BYTES))
    root = mirror(f"file://{store}", LocalDisk(tmp_path / "disk"))
    small, large = root / "small.nrrd", root / "large.nrrd"
    assert content_files(small) == (small, root / "small.raw")
    assert content_files(large) == (large,)
    assert large.stat().st_size == 1  # a placeholder still
    fetch_images([small])
    np.testing.assert_array_equal(read_volume(small).array[0], VOXELS)
