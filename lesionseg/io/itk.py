"""NRRD and MetaImage files, read by SimpleITK, whose axes point left, posterior and superior."""

import math
import re
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.core.arrays import Numbers
from lesionseg.errors import ReadError
from lesionseg.io.limits import (
    ONE_VALUE,
    check_grid,
    check_size,
    convert_read_errors,
)

_NRRD = (".nrrd", ".nhdr")
SUFFIXES = (".seg.nrrd", *_NRRD, ".mha", ".mhd")  # 3D Slicer calls its segmentations .seg.nrrd
_BLOCK_BYTES = 2**20  # of a compressed stream
_MAX_HEADER_BYTES = 2**20  # headers of Slicer with many segments have a few 100 kB
_CONTROL_CHARACTER = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # except tab and line ends
_END_OF_NRRD = re.compile(rb"\r?\n\r?\n")
_NRRD_FILE = re.compile(rb"(?i)(?:\A|[\r\n])[ \t]*data ?file[ \t]*:(?!=)([^\r\n]*)")
# MetaIO, which compares keys with regard to case, takes the key only at the start of a line
_METAIMAGE_FILE = re.compile(rb"(?m)^[ \t\r]*ElementDataFile[ \t]*[=:]([^\n]*)\n?")
_ANY_METAIMAGE_FILE = re.compile(rb"(?i)ElementDataFile")
_KEY_WITH_VALUE = re.compile(rb"[^=:]*[=:][ \t=:]*[^ \t\r=:]")
_COMPRESSED_METAIMAGE = re.compile(rb"(?m)^[ \t\r]*CompressedData[ \t]*[=:][ \t]*[Tt1]")
_COMPRESSED_BYTES = re.compile(
    rb"(?m)^[ \t\r]*CompressedDataSize[ \t]*[=:][ \t]*([1-9]\d*)[ \t\r]*$"
)
_GZIP_NRRD = re.compile(rb"(?im)^encoding[ \t]*:[ \t]*gz")
_SKIPPED_BYTES = re.compile(
    rb"(?im)^(?:(?:line|byte)[ ]?skip[ \t]*:|(?-i:[ \t\r]*HeaderSize[ \t]*[=:][ \t]*-?[1-9]))"
)
_LOCAL = ("LOCAL", "Local", "local")  # MetaIO takes any other spelling as the name of a file


def itk_image(array: NDArray[Any], geometry: Geometry) -> Any:
    """Return an array `[*spatial]` as an image of SimpleITK, located in the patient."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    spacing = np.asarray(geometry.spacing_mm)[::-1]
    affine = itk_affine(geometry.affine)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:-1, -1].tolist())
    image.SetDirection((affine[:-1, :-1] / spacing).ravel().tolist())
    return image


def itk_affine(affine: Numbers) -> Numbers:
    """Convert an affine between our convention and ITK's. The conversion is its own inverse.

    Ours maps indices (z, y, x) to RAS millimetres, ITK's maps (x, y, z) to LPS millimetres.
    """
    dims = len(affine) - 1
    signs = np.ones(dims + 1)
    signs[:2] = -1  # the first two axes point in opposite directions
    reversed_axes = [*reversed(range(dims)), dims]  # the last column is the position
    return np.diag(signs) @ affine[:, reversed_axes]


def read_itk(path: Path, pixel_mm: float | None, as_labels: bool) -> Volume:
    """Read a volume `[1, *spatial]` in the dtype of the file, with two or three spatial axes.

    The header states the voxel size, so `pixel_mm` is not used. Masks have the same values as
    images.
    """
    import SimpleITK as sitk

    reader, geometry = _read_header(path)
    _check_compressed_voxels(path, _count_bytes(reader))
    return Volume(np.asarray(sitk.GetArrayFromImage(reader.Execute()))[np.newaxis], geometry)


def read_itk_geometry(path: Path, pixel_mm: float | None) -> Geometry:
    """Read the grid from the header, which states the voxel size. `pixel_mm` is not used."""
    return _read_header(path)[1]


def write_itk(path: Path, array: NDArray[Any], geometry: Geometry, like: Path | None) -> None:
    """Write an array `[*spatial]`, compressed. `like` is not used."""
    import SimpleITK as sitk

    sitk.WriteImage(itk_image(array, geometry), str(path), True)


def _check_compressed_voxels(path: Path, n_bytes: int) -> None:
    """Check the `n_bytes` of a compressed file's voxels, whose checksum ITK does not verify.

    ITK returns wrong values without an error if the stream is damaged or shorter than the header
    states. Voxels without compression, with bzip2, or after skipped lines or bytes are not checked.

    Raises:
        ReadError: If the stream is damaged, a MetaImage with its own voxels states no length, or
            the length that a MetaImage states is not a number.
    """
    voxels = voxel_file(path)
    is_nrrd = path.suffix.lower() in _NRRD
    head = _read_head(path)
    end = (_END_OF_NRRD if is_nrrd else _METAIMAGE_FILE).search(head)
    header = head[: end.end()] if end else head
    is_compressed = _GZIP_NRRD if is_nrrd else _COMPRESSED_METAIMAGE
    if not is_compressed.search(header) or _SKIPPED_BYTES.search(header):
        return
    has_own_voxels = voxels == path
    given = _COMPRESSED_BYTES.search(header)
    should_state_bytes = has_own_voxels or b"CompressedDataSize" in header
    if should_state_bytes and not is_nrrd and given is None:
        raise ReadError(  # ITK would inflate the header as well
            f"{path}: the header has no CompressedDataSize with a number, without which the voxels "
            "cannot be read. Write the image again as .nii.gz."
        )
    with voxels.open("rb") as stream:
        stream.seek(len(header) if has_own_voxels else 0)
        n_compressed, n_inflated = _measure_stream(stream)
        is_cut = given is not None and int(given[1]) < n_compressed
        if is_cut or n_inflated < n_bytes:
            raise ReadError(
                f"{path}: the compressed voxels are damaged. Copy the file again from its source."
            )


def _measure_stream(stream: BinaryIO) -> tuple[int, int]:
    """Return the compressed and the inflated length of a stream of zlib or gzip.

    The stream begins at the present position of the file. Both lengths are 0 if a block or the
    checksum is wrong, or if the file ends before the stream.
    """
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: zlib or gzip, as the header says
    begin = stream.tell()
    n_inflated = 0
    try:
        while not inflater.eof:
            block = inflater.unconsumed_tail or stream.read(_BLOCK_BYTES)
            if not block:
                return 0, 0
            n_inflated += len(inflater.decompress(block, _BLOCK_BYTES))
    except zlib.error:
        return 0, 0
    return stream.tell() - begin - len(inflater.unused_data), n_inflated


def voxel_file(path: Path) -> Path:
    """Return the file that contains the voxels: `path` itself, or a file in the same folder.

    Raises:
        ReadError: If the header is damaged, or names a missing file, a file in another folder, a
            list or a pattern. ITK itself would read any file that a header names.
    """
    is_nrrd = path.suffix.lower() in _NRRD
    head = _read_head(path)
    names = _names_in_nrrd(head) if is_nrrd else _names_in_metaimage(path, head)
    if names is None:
        raise ReadError(f"{path}: the header is damaged. Write the image again as .nii.gz.")
    if not names or (names[0] in _LOCAL and not is_nrrd):
        return path
    name = names[0]
    file: Path = path.parent / name
    is_plain_name = Path(name).name == name
    is_in_folder = is_plain_name and file.resolve().parent == path.parent.resolve()
    # "LIST" begins a list of files, "%" a pattern of one file per slice, "-" is the standard input
    has_special_meaning = name.startswith(("LIST", "=", ":")) or "%" in name or name == "-"
    if len(names) > 1 or has_special_meaning or not is_in_folder or not file.is_file():
        raise ReadError(
            f"{path}: the header names voxels elsewhere ({name[:60]!r}), but they must be in "
            "one file in the same folder. Copy that file there, or write the image again as "
            ".nii.gz."
        )
    return file


def _read_head(path: Path) -> bytes:
    """Return the first MiB of a file, which contains its header."""
    with convert_read_errors(path), path.open("rb") as stream:
        return stream.read(_MAX_HEADER_BYTES)


def _names_in_nrrd(head: bytes) -> list[str] | None:
    """Return the files that a NRRD header names, or None if the header is damaged.

    The header ends at an empty line, or at the end of a file without voxels. A header with its own
    voxels names no file.
    """
    header, *voxels = _END_OF_NRRD.split(head, maxsplit=1)
    names = _NRRD_FILE.findall(header)
    if not (voxels or names) or _CONTROL_CHARACTER.search(header):
        return None
    return [_decode_name(name) for name in names]


def _names_in_metaimage(path: Path, head: bytes) -> list[str] | None:
    """Return the only name in a MetaImage header, or None if the header is damaged.

    `LOCAL` is returned like a name. MetaIO skips the key if the line before has no value, because
    it then takes the next line as the value. Raise `ReadError` if `head` contains the key twice,
    even within a line or in voxels, because MetaIO may read the other one.
    """
    if len(_ANY_METAIMAGE_FILE.findall(head)) > 1:
        raise ReadError(
            f"{path}: the header contains ElementDataFile more than once. Write the image again as "
            ".nii.gz."
        )
    found = _METAIMAGE_FILE.search(head)
    if found is None or _CONTROL_CHARACTER.search(head[: found.end()]):
        return None
    lines_with_text = [line for line in head[: found.start()].split(b"\n") if line.strip()]
    if lines_with_text and not _KEY_WITH_VALUE.match(lines_with_text[-1]):
        return None
    return [_decode_name(found[1])]


def _decode_name(name: bytes) -> str:
    """Decode the name of a file so that Python opens the same file as ITK."""
    return name.strip().decode("utf-8", "surrogateescape")


def _read_header(path: Path) -> tuple[Any, Geometry]:
    """Return SimpleITK's reader of the file and the grid that its header states.

    Raise `ReadError` for voxels that `voxel_file` refuses, for axes other than two or three, for
    several values per voxel, and for sizes outside the limits.
    """
    import SimpleITK as sitk

    voxels = voxel_file(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NrrdImageIO" if path.suffix.lower() in _NRRD else "MetaImageIO")
    reader.ReadImageInformation()
    dims = reader.GetDimension()
    n_channels = reader.GetNumberOfComponents()
    size = reader.GetSize()
    if dims not in (2, 3) or n_channels != 1:
        raise ReadError(
            f"{path}: the image has {dims} axes and {n_channels} values per voxel, expected 2 or 3 "
            f"axes and one value. {ONE_VALUE}"
        )
    check_size(voxels, _count_bytes(reader))  # ITK would state another reason
    affine = np.eye(dims + 1)
    direction = np.asarray(reader.GetDirection()).reshape(dims, dims)
    affine[:-1, :-1] = direction * np.asarray(reader.GetSpacing())
    affine[:-1, -1] = reader.GetOrigin()
    geometry = Geometry(size[::-1], itk_affine(affine))
    check_grid(path, geometry)
    return reader, geometry


def _count_bytes(reader: Any) -> int:
    """Return the size of the voxels that a header states."""
    import SimpleITK as sitk

    # the reader does not state the number of bytes of a voxel, but an image does
    one_voxel = sitk.Image([1] * reader.GetDimension(), reader.GetPixelID())
    return int(math.prod(reader.GetSize()) * one_voxel.GetSizeOfPixelComponent())
