"""Where a result comes from: the digest of a scan's files and the UIDs of its DICOM objects.

Results are kept under a case id. The source decides whether a result of that id belongs to the scan
that has the id now, or to another patient's.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_SHOWN = 12  # characters of a digest in a message


@dataclass(frozen=True)
class ScanSource:
    """The scan that a result was made from.

    `digest`: SHA-256 of the files' bytes (`content_digest`). The UIDs are those of a DICOM scan,
    else "": of its study, its series and, if the scan is a single file, of that instance. They hold
    no name and no PatientID.
    """

    digest: str
    study_uid: str = ""
    series_uid: str = ""
    instance_uid: str = ""

    def is_of_same_scan(self, other: "ScanSource") -> bool:
        """Return True if both are known to be the same scan, perhaps with changed content.

        Files without a UID are the same scan only if their content is. A series may hold several
        single-file images, such as the two views of a chest, so these compare their own UIDs.
        """
        if self.digest == other.digest:
            return True
        if self.instance_uid or other.instance_uid:
            return self.instance_uid == other.instance_uid
        return bool(self.series_uid) and self.series_uid == other.series_uid

    def stated(self) -> dict[str, str]:
        """Return what is known of the source, as JSON files state it."""
        return {name: value for name, value in asdict(self).items() if value}

    def __str__(self) -> str:
        if self.series_uid:
            return f"series {self.series_uid}"
        return f"digest {self.digest[:_SHOWN]}…"


def content_digest(images: Sequence[Sequence[Path]]) -> str:
    """Return the SHA-256 of an image's files as hexadecimal digits.

    For a single file it is what `sha256sum` prints. Otherwise it is the digest of the files' own
    digests, one per line: channels in their order, and within an image (the slices of a series, a
    header and its voxels) in the order of the digests, so that names do not matter.

    Args:
        images: the files of each channel's image.
    """
    digests = [sorted(map(file_digest, files)) for files in images]
    every = [digest for of_image in digests for digest in of_image]
    if len(every) == 1:
        return every[0]
    return hashlib.sha256("".join(f"{digest}\n" for digest in every).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_state(paths: Iterable[Path]) -> str:
    """Return a text that changes if one of the files is replaced or written, without reading it.

    It has name, size, times of change and inode of each file. The time of the inode's change cannot
    be set back, so another file of the same name, size and date gives another state.
    """
    whole = hashlib.sha256()
    for path in paths:
        found = path.stat()
        state = (path.name, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        whole.update(repr(state).encode())
    return whole.hexdigest()[:16]
