"""Files of an image with its voxel files; their SHA-256, and state that shows a change."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import time_ns

from lesionseg.core import CaseFiles
from lesionseg.errors import ReadError
from lesionseg.io import itk
from lesionseg.io.dicom.headers import is_dicom
from lesionseg.io.dicom.series import series_headers, split_series
from lesionseg.io.files import digest_of
from lesionseg.io.limits import convert_read_errors
from lesionseg.io.tiff import find_spacing_file

# File systems round times. A file that changed less than this ago may change again and keep its
# time of change.
_RECENT_NS = 2_000_000_000


def content_files(path: Path) -> tuple[Path, ...]:
    """Return the files that store an image, so that a digest or a copy misses none of them.

    The files depend on the path:

    - `folder/series=…`: the slices of this series.
    - A folder: all DICOM files in it.
    - A header in NRRD or MetaImage format: the header and the file of the voxels. If the header is
      damaged, only the header.
    - A TIFF file: the file and the JSON file that states its spacing, if there is one.
    - Any other file: the file itself.

    Raise `ReadError` if a folder or a slice cannot be read.
    """
    with convert_read_errors(path):
        if split_series(path) is not None:
            return tuple(series_headers(path))
        if path.is_dir():
            return tuple(sorted(filter(is_dicom, path.iterdir())))
    if path.suffix.lower() in itk.SUFFIXES and path.is_file():
        try:  # without repetition, because the header may contain the voxels
            return tuple(dict.fromkeys((path, itk.voxel_file(path))))
        except ReadError:  # reading the image reports the damage
            return (path,)
    spacing = find_spacing_file(path)
    return (path,) if spacing is None else (path, spacing)


def voxel_files(images: Iterable[Path]) -> set[Path]:
    """Return the separate voxel files of the NRRD and MetaImage headers among some images.

    Such a file, `scan.raw` of `scan.mhd`, is not an image itself.
    """
    headers = {image for image in images if image.suffix.lower() in itk.SUFFIXES}
    return {file for header in headers for file in content_files(header)} - headers


def content_digest(images: Sequence[Sequence[Path]]) -> str:
    """Compute the SHA-256 of a scan's files as hexadecimal digits, to recognise the same scan.

    For a single file the result equals the output of `sha256sum`. For several files it is the
    digest of a text with the files' digests, one per line. The channels are in order. Within a
    channel, the files (the slices of a series, or a header and its voxels) are sorted by digest, so
    that file names do not matter.

    Args:
        images: For each channel, the files that store its image.
    """
    digests: list[str] = []
    for files in images:
        digests += sorted(map(_file_digest, files))
    if len(digests) == 1:
        return digests[0]
    return digest_of(*(f"{digest}\n" for digest in digests))


def _file_digest(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits. Raise `ReadError` if it is unreadable."""
    with convert_read_errors(path):
        return digest_of(path)


def case_digest(files: CaseFiles) -> str:
    """Compute the SHA-256 of the files and metadata of a case, as hexadecimal digits.

    The digest changes if the case would be read differently. It covers the content of the image and
    reference files, and these fields: annotations, group, annotated labels, missing channels and
    pixel size. Raise `ReadError` if a file is missing.
    """
    images = list(files.images)
    if files.reference:
        images.append(files.reference)
    digests = [
        bytes.fromhex(_file_digest(file)) for image in images for file in content_files(image)
    ]
    fields = [files.annotations, files.group, *files.annotated, *files.missing, files.pixel_mm]
    return digest_of(*digests, json.dumps(fields, sort_keys=True, default=str))


def file_state(paths: Iterable[Path]) -> str:
    """Return 16 hexadecimal digits that change if one of the files is replaced or written.

    The files are not read: this is a digest of each file's name, size, modification time (mtime),
    inode and the change time of the inode (ctime). Programs can set mtime back, but not ctime.
    Therefore a different file with the same name, size and date is noticed. Raise `ReadError` if a
    file is missing.
    """
    states = []
    for path in paths:
        with convert_read_errors(path):
            stat = path.stat()
        values = (path.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        states.append(repr(values))
    return digest_of(*states)[:16]


def image_state(images: Iterable[Path]) -> str | None:
    """Return the `file_state` of all files of some images, as the key of a cache, or None.

    For a DICOM series the state covers all files of its folder. None means that the state is not
    certain: a file is missing, or has changed in the last two seconds and may change again without
    a new modification time. Nothing should be cached then.
    """
    files: list[Path] = []
    try:
        for image in images:
            path, _ = split_series(image) or (image, "")  # the folder of a series, or the image
            files += sorted(path.iterdir()) if path.is_dir() else content_files(path)
        recent = time_ns() - _RECENT_NS
        if any(file.stat().st_mtime_ns > recent for file in files):
            return None
        return file_state(dict.fromkeys(files))
    except (OSError, ReadError):
        return None
