"""The files that store an image or a case, their digest and their state."""

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
    """Return the files that store an image.

    These are the slices of one series of a folder, all DICOM files of a folder, a header and its
    voxels, a TIFF file and the file of its spacing, or the file itself. A damaged header counts
    without its voxels. Raise `ReadError` if a folder or a slice cannot be read.
    """
    with convert_read_errors(path):
        if split_series(path) is not None:
            return tuple(series_headers(path))
        if path.is_dir():
            return tuple(sorted(filter(is_dicom, path.iterdir())))
    if path.suffix.lower() in itk.SUFFIXES and path.is_file():
        try:
            return tuple(dict.fromkeys((path, itk.voxel_file(path))))
        except ReadError:  # reading the image reports the damage
            return (path,)
    spacing = find_spacing_file(path)
    return (path,) if spacing is None else (path, spacing)


def voxel_files(images: Iterable[Path]) -> set[Path]:
    """Return the files that contain the voxels of the headers among some images (NRRD, MHD)."""
    headers = {image for image in images if image.suffix.lower() in itk.SUFFIXES}
    return {file for header in headers for file in content_files(header)} - headers


def content_digest(images: Sequence[Sequence[Path]]) -> str:
    """Compute the SHA-256 of a scan's files as hexadecimal digits.

    For a single file the result equals the output of `sha256sum`. For several files it is the
    digest of a text with the files' digests, one per line. Channels keep their order. The files of
    one image (the slices of a series, or a header and its voxels) are sorted by digest, so that
    file names do not matter.

    Args:
        images: The files of each channel's image.
    """
    digests: list[str] = []
    for files in images:
        digests += sorted(map(_file_digest, files))
    if len(digests) == 1:
        return digests[0]
    return digest_of(*(f"{digest}\n" for digest in digests))


def _file_digest(path: Path) -> str:
    """Return the SHA-256 of a file. Raise `ReadError` if it cannot be read."""
    with convert_read_errors(path):
        return digest_of(path)


def case_digest(files: CaseFiles) -> str:
    """Compute the SHA-256 of all that a case is read from, as hexadecimal digits.

    These are the content of its images and reference, and what tables state of it: annotations,
    group, annotated labels, missing channels and pixel size. Raise `ReadError` if a file is
    missing.
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
    """Return a text that changes if one of the files is replaced or written, without reading them.

    The text is a digest of name, size, times of change and inode of each file. The change time of
    an inode cannot be set back. Therefore a different file of the same name, size and date changes
    the text. Raise `ReadError` if a file is missing.
    """
    states = []
    for path in paths:
        with convert_read_errors(path):
            stat = path.stat()
        values = (path.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        states.append(repr(values))
    return digest_of(*states)[:16]


def image_state(images: Iterable[Path]) -> str | None:
    """Return the `file_state` of all files of images, or None if it is not known for certain.

    For a DICOM series these are the files of its folder. The state is unknown if a file is missing
    or has changed in the last two seconds.
    """
    files: list[Path] = []
    try:
        for image in images:
            place, _ = split_series(image) or (image, "")
            files += sorted(place.iterdir()) if place.is_dir() else content_files(place)
        recent = time_ns() - _RECENT_NS
        if any(file.stat().st_mtime_ns > recent for file in files):
            return None
        return file_state(dict.fromkeys(files))
    except (OSError, ReadError):
        return None
