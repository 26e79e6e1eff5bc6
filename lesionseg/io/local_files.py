"""The files of a case on this machine: the one place where remote files come in.

A dataset at a URL is a folder of placeholders (`io.remote.mirror`). What opens a case, or looks
into a dataset, fetches its files here first; every reader below is handed plain local paths.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import monotonic, time_ns

from lesionseg.core import CaseFiles
from lesionseg.io.dicom.headers import SUFFIXES as DICOM
from lesionseg.io.dicom.headers import is_dicom
from lesionseg.io.dicom.series import series_headers, split_series, starts_with_radiograph
from lesionseg.io.formats import itk
from lesionseg.io.formats.content import file_digest
from lesionseg.io.formats.header_fields import MOST_HEADER_BYTES
from lesionseg.io.remote.mirror import IN_USE_SECONDS, bring, is_mirrored, states

# a store may be so slow that the first files have made room for others before the last are here
_MOST_PASSES = 3
# a file that changed so shortly before may change again within one tick of its clock
_SETTLED_NS = 2_000_000_000


def fetch_case(files: CaseFiles) -> None:
    """See that the images and the reference of a case are here; local files are left alone.

    They stay for two minutes at least. Raises `ReadError` when the store does not give one.
    """
    fetch_images((*files.images, *([files.reference] if files.reference else [])))


def fetch_images(paths: Iterable[Path]) -> None:
    """See that all files of these images are here: see `fetch_case`."""
    mirrored = [path for path in paths if is_mirrored(path)]
    for _ in range(_MOST_PASSES if mirrored else 0):
        begin = monotonic()
        for path in mirrored:
            _fetch(path)
        if monotonic() - begin < IN_USE_SECONDS / 2:
            return


def fetch_radiograph(path: Path) -> None:
    """Fetch an image if it is a radiograph; of a series no more than tells that it is none."""
    if is_mirrored(path):
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        if starts_with_radiograph(_fetched(files)):
            bring(path)


def content_files(path: Path) -> tuple[Path, ...]:
    """The files an image consists of: itself, those of a series, or header and voxels.

    Of a remote image no more is fetched than tells them apart.
    """
    series = split_series(path)
    if series is not None:
        bring(series[0])
        return tuple(series_headers(path))
    if path.is_dir():
        files = (file for file in path.iterdir() if file.is_file())
        return tuple(sorted(file for file in files if _is_dicom(file)))
    if path.suffix.lower() in itk.SUFFIXES and path.is_file():
        bring(path, at_most=MOST_HEADER_BYTES)
        return tuple(dict.fromkeys((path, itk.voxel_file(path))))
    return (path,)


def image_digests(files: CaseFiles) -> tuple[str, ...]:
    """Sixteen hexadecimal digits of each channel's content, wherever the files lie (SHA-256).

    A `.gz` file counts as what is in it, a series as its files in any order. Remote files are
    fetched. Raises `ReadError` for a file that cannot be read.
    """
    fetch_images(files.images)
    return tuple(_digest_of_all(content_files(path)) for path in files.images)


def _digest_of_all(paths: Iterable[Path]) -> str:
    digests = sorted(file_digest(path, unpacked=True).hex() for path in paths)
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def file_states(paths: Iterable[Path]) -> tuple[tuple[str, int, int | str], ...] | None:
    """Path, bytes and time of change (ns) of all files of these images, without opening any.

    Of a series, all files of its folder; of remote files, what the store says in place of a time.
    None where they are unknown: a header whose voxels lie elsewhere, what is missing, and what
    changed within two seconds.
    """
    facts: list[tuple[str, int, int | str]] = []
    for path in paths:
        series = split_series(path)
        place = path if series is None else series[0]
        states_there = states(place) if is_mirrored(place) else _local_states(place)
        if states_there is None or place.suffix.lower() in itk.SUFFIXES:
            return None
        facts += states_there
    return tuple(dict.fromkeys(facts))


def _local_states(place: Path) -> list[tuple[str, int, int]] | None:
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    try:
        about = [(str(file), file.stat()) for file in files]
    except OSError:
        return None
    latest = time_ns() - _SETTLED_NS
    if any(state.st_mtime_ns > latest for _, state in about):
        return None
    return [(name, state.st_size, state.st_mtime_ns) for name, state in about]


def _fetch(path: Path) -> None:
    """Fetch a file, a folder's files or, of a header, the voxels in another file as well."""
    bring(path if split_series(path) is None else path.parent)
    if path.suffix.lower() in itk.SUFFIXES and path.is_file():
        voxels = itk.voxel_file(path)
        if voxels != path:
            bring(voxels)


def _fetched(files: Iterable[Path]) -> Iterator[Path]:
    for file in files:
        bring(file)
        yield file


def _is_dicom(file: Path) -> bool:
    """Whether a file is DICOM; only one whose name does not say so is fetched."""
    if not file.name.startswith(".") and not file.name.lower().endswith(DICOM):
        bring(file)
    return is_dicom(file)
