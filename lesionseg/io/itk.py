"""NRRD and MetaImage (.nrrd, .mha): suffixes, header checks, separate voxel file, writing.

SimpleITK reads them. Its axes point left, posterior and superior.
"""

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
# the key of the voxel file in a NRRD header; group 1 is the name, `:=` would be another key
_NRRD_FILE = re.compile(rb"(?i)(?:\A|[\r\n])[ \t]*data ?file[ \t]*:(?!=)([^\r\n]*)")
# MetaIO (the library that reads MetaImage) distinguishes upper and lower case in keys, and accepts
# this key only at the start of a line
_METAIMAGE_FILE = re.compile(rb"(?m)^[ \t\r]*ElementDataFile[ \t]*[=:]([^\n]*)\n?")
_ANY_METAIMAGE_FILE = re.compile(rb"(?i)ElementDataFile")
# a line with a key, a separator and at least one other character
_KEY_WITH_VALUE = re.compile(rb"[^=:]*[=:][ \t=:]*[^ \t\r=:]")
_COMPRESSED_METAIMAGE = re.compile(rb"(?m)^[ \t\r]*CompressedData[ \t]*[=:][ \t]*[Tt1]")
_COMPRESSED_BYTES = re.compile(
    rb"(?m)^[ \t\r]*CompressedDataSize[ \t]*[=:][ \t]*([1-9]\d*)[ \t\r]*$"
)
_GZIP_NRRD = re.compile(rb"(?im)^encoding[ \t]*:[ \t]*gz")
# a header that skips lines or bytes before the voxels: `line skip:` or `byte skip:` of NRRD, or a
# `HeaderSize` of MetaImage other than 0
_SKIPPED_BYTES = re.compile(
    rb"(?im)^(?:(?:line|byte)[ ]?skip[ \t]*:|(?-i:[ \t\r]*HeaderSize[ \t]*[=:][ \t]*-?[1-9]))"
)
_LOCAL = ("LOCAL", "Local", "local")  # MetaIO takes any other spelling as the name of a file


def itk_image(array: NDArray[Any], geometry: Geometry) -> Any:
    """Return an array `[*spatial]` as an image of SimpleITK, with the position of `geometry`."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    spacing = np.asarray(geometry.spacing_mm)[::-1]  # ITK has the order (x, y, z)
    affine = itk_affine(geometry.affine)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:-1, -1].tolist())
    # unit vectors in the columns
    image.SetDirection((affine[:-1, :-1] / spacing).ravel().tolist())
    return image


def itk_affine(affine: Numbers) -> Numbers:
    """Convert an affine from lesionseg's convention to that of ITK, or from ITK's to lesionseg's.

    The affines of lesionseg map indices (z, y, x) to RAS millimetres. The affines of ITK map
    (x, y, z) to LPS millimetres. The conversion is the same in both directions.
    """
    dims = len(affine) - 1
    signs = np.ones(dims + 1)
    signs[:2] = -1  # the first two axes point in opposite directions
    reversed_axes = [*reversed(range(dims)), dims]  # the last column is the position
    return np.diag(signs) @ affine[:, reversed_axes]


def read_itk(path: Path, pixel_mm: float | None, as_labels: bool) -> Volume:
    """Read a NRRD or MetaImage file as a volume `[1, *spatial]` in the dtype of the file.

    The file has two or three spatial axes. The header states the voxel size, so `pixel_mm` is not
    used. `as_labels` is not used, because masks are read like images.
    """
    import SimpleITK as sitk

    reader, geometry = _read_header(path)
    _check_compressed_voxels(path, _count_bytes(reader))
    return Volume(np.asarray(sitk.GetArrayFromImage(reader.Execute()))[np.newaxis], geometry)


def read_itk_geometry(path: Path, pixel_mm: float | None) -> Geometry:
    """Read the grid from the header of a NRRD or MetaImage file.

    The header states the voxel size, so `pixel_mm` is not used.
    """
    return _read_header(path)[1]


def write_itk(path: Path, array: NDArray[Any], geometry: Geometry, like: Path | None) -> None:
    """Write an array `[*spatial]` as a compressed NRRD or MetaImage file. `like` is not used."""
    import SimpleITK as sitk

    sitk.WriteImage(itk_image(array, geometry), str(path), True)  # True: compressed


def _check_compressed_voxels(path: Path, n_bytes: int) -> None:
    """Check that the compressed voxels of a file are complete and have the right checksum.

    ITK does not verify the checksum, and returns wrong values without an error if the compressed
    stream is damaged or too short. Voxels without compression, with bzip2, or after skipped lines
    or bytes are not checked.

    Args:
        path: The file of the header, which may contain the voxels as well.
        n_bytes: The size of the uncompressed voxels by the header.

    Raises:
        ReadError: If the stream is damaged or too short. Also for a MetaImage whose
            CompressedDataSize is not a number, or is absent although header and voxels are in one
            file.
    """
    # find the end of the header, and the compression that it states
    voxels = voxel_file(path)
    is_nrrd = path.suffix.lower() in _NRRD
    first_bytes = _read_head(path)
    last_line = (_END_OF_NRRD if is_nrrd else _METAIMAGE_FILE).search(first_bytes)
    header = first_bytes[: last_line.end()] if last_line else first_bytes
    is_compressed = _GZIP_NRRD if is_nrrd else _COMPRESSED_METAIMAGE
    if not is_compressed.search(header) or _SKIPPED_BYTES.search(header):
        return
    # a MetaImage states the compressed size
    voxels_follow = voxels == path
    stated_size = _COMPRESSED_BYTES.search(header)
    must_state_size = voxels_follow or b"CompressedDataSize" in header
    if must_state_size and not is_nrrd and stated_size is None:
        raise ReadError(  # ITK would inflate the header as well
            f"{path}: the header has no CompressedDataSize with a number, without which the voxels "
            "cannot be read. Write the image again as .nii.gz."
        )
    # inflate the stream to compare its lengths
    with voxels.open("rb") as stream:
        stream.seek(len(header) if voxels_follow else 0)
        n_compressed, n_inflated = _measure_stream(stream)
        # ITK reads only as many bytes as the header states
        is_cut = stated_size is not None and int(stated_size[1]) < n_compressed
        if is_cut or n_inflated < n_bytes:
            raise ReadError(
                f"{path}: the compressed voxels are damaged. Copy the file again from its source."
            )


def _measure_stream(stream: BinaryIO) -> tuple[int, int]:
    """Inflate a zlib or gzip stream, and return its compressed and inflated length in bytes.

    The stream begins at the present position of the file. Both lengths are 0 if the stream is
    damaged: a block or the checksum is wrong, or the file ends before the stream does.
    """
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: zlib or gzip, as the header says
    begin = stream.tell()
    n_inflated = 0
    try:
        while not inflater.eof:
            # the tail is the input that the last call did not use, because its output was full
            block = inflater.unconsumed_tail or stream.read(_BLOCK_BYTES)
            if not block:
                return 0, 0
            n_inflated += len(inflater.decompress(block, _BLOCK_BYTES))
    except zlib.error:
        return 0, 0
    # `unused_data` was read, but follows the end of the compressed stream
    return stream.tell() - begin - len(inflater.unused_data), n_inflated


def voxel_file(path: Path) -> Path:
    """Return the file that contains the voxels: `path` itself, or a file in the same folder.

    ITK would read any file that a header names, even a private file of the user. Therefore only one
    file in the folder of the header is accepted.

    Raises:
        ReadError: If the header is damaged, or names a missing file, a file in another folder, a
            list or a pattern.
    """
    is_nrrd = path.suffix.lower() in _NRRD
    head = _read_head(path)
    names = _names_in_nrrd(head) if is_nrrd else _names_in_metaimage(path, head)
    if names is None:
        raise ReadError(f"{path}: the header is damaged. Write the image again as .nii.gz.")
    if not names or (names[0] in _LOCAL and not is_nrrd):  # the voxels follow the header
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
    """Return the voxel files that a NRRD header names, or None if the header is damaged.

    The list is empty if the voxels follow the header in the same file. The header ends at an empty
    line, or at the end of a file without voxels. A header counts as damaged if it has a control
    character, or if no voxels follow and it names no file.
    """
    header, *voxels = _END_OF_NRRD.split(head, maxsplit=1)
    names = _NRRD_FILE.findall(header)
    if not (voxels or names) or _CONTROL_CHARACTER.search(header):
        return None
    return [_decode_name(name) for name in names]


def _names_in_metaimage(path: Path, head: bytes) -> list[str] | None:
    """Return the value of `ElementDataFile` in a MetaImage header, as a list of one name.

    The value is the name of the voxel file, or `LOCAL` if the voxels follow the header. Return None
    if the header is damaged: the key is missing, a control character occurs, or the line before the
    key has no value. In this last case MetaIO reads the line of the key as the missing value.

    Args:
        path: The file, for messages.
        head: The first bytes of the file, which contain the header.

    Raises:
        ReadError: If `head` contains the key twice, even within a line or in voxels, because MetaIO
            may use another occurrence than this function.
    """
    if len(_ANY_METAIMAGE_FILE.findall(head)) > 1:
        raise ReadError(
            f"{path}: the header contains ElementDataFile more than once. Write the image again as "
            ".nii.gz."
        )
    key_line = _METAIMAGE_FILE.search(head)
    if key_line is None or _CONTROL_CHARACTER.search(head[: key_line.end()]):
        return None
    lines_with_text = [line for line in head[: key_line.start()].split(b"\n") if line.strip()]
    if lines_with_text and not _KEY_WITH_VALUE.match(lines_with_text[-1]):
        return None
    return [_decode_name(key_line[1])]


def _decode_name(name: bytes) -> str:
    """Decode the bytes of a file name so that Python opens the same file as ITK.

    Spaces around the name are removed. Bytes that are not UTF-8 become surrogates, which Python
    encodes as the same bytes.
    """
    return name.strip().decode("utf-8", "surrogateescape")


def _read_header(path: Path) -> tuple[Any, Geometry]:
    """Read the header of a NRRD or MetaImage file, and check it before voxels are read.

    Returns:
        The `SimpleITK.ImageFileReader`, which can then read the voxels, and the grid.

    Raises:
        ReadError: If `voxel_file` refuses the file of the voxels, the image does not have two or
            three axes, has several values per voxel, or has a size outside the limits.
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
    check_size(voxels, _count_bytes(reader))  # the error of ITK would not name the damage
    affine = np.eye(dims + 1)
    direction = np.asarray(reader.GetDirection()).reshape(dims, dims)
    affine[:-1, :-1] = direction * np.asarray(reader.GetSpacing())
    affine[:-1, -1] = reader.GetOrigin()
    geometry = Geometry(size[::-1], itk_affine(affine))  # ITK's size has the order (x, y, z)
    check_grid(path, geometry)
    return reader, geometry


def _count_bytes(reader: Any) -> int:
    """Return the size in bytes of the uncompressed voxels, by the header that `reader` has read."""
    import SimpleITK as sitk

    # the reader does not state the number of bytes of a voxel, but an image does
    size = [1] * reader.GetDimension()
    one_voxel = sitk.Image(size, reader.GetPixelID())
    return int(math.prod(reader.GetSize()) * one_voxel.GetSizeOfPixelComponent())
