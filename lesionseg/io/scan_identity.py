"""The origin of a result: the digest of a scan's files and the UIDs of its DICOM objects.

Results are stored by case id. The origin shows whether a stored result belongs to the scan that has
this id now or to another scan.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_SHOWN_DIGITS = 12  # of a digest in a message


@dataclass(frozen=True)
class ScanSource:
    """The scan that a result was computed from. It contains no name and no PatientID.

    Attributes:
        digest: The SHA-256 of the files, see `content_digest`.
        study_uid: The UID of a DICOM study, otherwise "".
        series_uid: The UID of a DICOM series, otherwise "".
        instance_uid: The UID of the instance if the scan is a single DICOM file, otherwise "".
    """

    digest: str
    study_uid: str = ""
    series_uid: str = ""
    instance_uid: str = ""

    def is_of_same_scan(self, other: "ScanSource") -> bool:
        """Return True if both are known to be the same scan, possibly with changed content.

        Files without UIDs are the same scan only if their content is equal. Single DICOM files are
        compared by instance UID instead of series UID, because a series may contain several single
        images, such as two views of a chest.
        """
        if self.digest == other.digest:
            return True
        if self.instance_uid or other.instance_uid:
            return self.instance_uid == other.instance_uid
        return bool(self.series_uid) and self.series_uid == other.series_uid

    def to_json(self) -> dict[str, str]:
        """Return the known attributes as a JSON object."""
        return {name: value for name, value in asdict(self).items() if value}

    def __str__(self) -> str:
        if self.instance_uid:  # two images of one series are different scans
            return f"instance {self.instance_uid}"
        if self.series_uid:
            return f"series {self.series_uid}"
        return f"digest {self.digest[:_SHOWN_DIGITS]}…"


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
        digests += sorted(map(file_digest, files))
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Compute the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_state(paths: Iterable[Path]) -> str:
    """Return a text that changes if one of the files is replaced or written, without reading them.

    The text is a digest of name, size, times of change and inode of each file, see `stat_values`.
    """
    digest = hashlib.sha256()
    for path in paths:
        digest.update(repr((path.name, *stat_values(path))).encode())
    return digest.hexdigest()[:16]


def stat_values(path: Path) -> tuple[int, int, int, int]:
    """Return size in bytes, time of change (ns), change time of the inode (ns) and inode of a file.

    The change time of an inode cannot be set back. Therefore a different file of the same name,
    size and date has other values.
    """
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
