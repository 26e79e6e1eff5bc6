"""Scans that `predict` skips: modality, description, localisers, few slices; shards of jobs."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from lesionseg.config import SeriesConfig
from lesionseg.errors import LesionsegError
from lesionseg.io.results.index import TABLE
from lesionseg.io.scans import Scan
from lesionseg.io.volumes import read_geometry
from lesionseg.plan.plan import Plan

MIN_SLICES = 2  # a scan of an archive with fewer slices is skipped, if the model reads volumes


def is_archive(source: Path) -> bool:
    """Return True for a folder or a pattern, in which the user did not choose each scan.

    Return False for an input that names its scans: a file, a series `folder/series=…` or a table.
    """
    return not source.is_file() and not source.name.startswith("series=")


@dataclass(frozen=True)
class Shard:
    """The scans that one job of a job array predicts.

    The shard of a scan depends only on its id. Each job lists the input itself, and scans may be
    added or removed between two listings. A division by position in the list would then give a scan
    to two jobs, or to none.

    Attributes:
        index: The number of the job, from 0.
        n_shards: The number of jobs. A single job predicts all scans.
    """

    index: int
    n_shards: int

    @property
    def is_whole(self) -> bool:
        """True if there is only one job, which predicts all scans."""
        return self.n_shards == 1

    @property
    def table(self) -> str:
        """The file name of the table. Each job has its own, so no two jobs write one file."""
        if self.is_whole:
            return TABLE
        return f"predictions_{self.index}_of_{self.n_shards}.csv"

    def select(self, scans: Sequence[Scan]) -> list[Scan]:
        """Return the scans that belong to this shard, in their order."""
        return list(filter(self._contains, scans))

    def _contains(self, scan: Scan) -> bool:
        """Return True if a scan belongs to this shard.

        The id of the scan is hashed, and the hash modulo the number of shards is the number of the
        scan's shard.
        """
        encoded = scan.stable_id.encode(errors="surrogatepass")  # names may not be UTF-8
        # Python's own `hash` would differ between the jobs
        digest = blake2b(encoded, digest_size=8).digest()
        return int.from_bytes(digest) % self.n_shards == self.index


def explain_skipped(scan: Scan, cfg: SeriesConfig, plan: Plan, *, archive: bool) -> str:
    """Explain why a scan will not be predicted. Return "" if it will be predicted.

    Only DICOM scans can be left out, because the other formats lack these attributes:

    - `cfg.modality` and `cfg.description` must match, if they are set.
    - In an archive, a radiograph is left out by a model of volumes, and a volume by a model of
      radiographs.
    - In an archive, a model of volumes leaves out localisers (short overview scans), unless
      `cfg.description` is set.
    - A model of volumes leaves out scans with too few slices, see `_explain_too_few`.

    Args:
        scan: The scan.
        cfg: The conditions of the user.
        plan: The plan of the model.
        archive: True if the user did not choose each scan, see `is_archive`.
    """
    dicom = scan.dicom
    if dicom is None:
        return ""
    if cfg.modality is not None and dicom.modality.upper() not in cfg.modality:
        wanted = ", ".join(cfg.modality)
        return f"its modality is {dicom.modality or 'not stated'}, not {wanted} (series.modality)"
    if cfg.description is not None and not re.search(cfg.description, dicom.description, re.I):
        description = repr(dicom.description) if dicom.description else "not stated"
        return f"its description is {description}, unlike {cfg.description!r} (series.description)"
    if archive and dicom.is_radiograph != (plan.dims == 2):
        if dicom.is_radiograph:
            return "a radiograph, while this model reads volumes"
        return "a volume, while this model reads radiographs"
    if archive and dicom.is_localiser and plan.dims == 3 and cfg.description is None:
        return f"a localiser by its description, {dicom.description!r}"
    return _explain_too_few(dicom.n_slices, cfg, plan, archive=archive)


def explain_too_few_slices(scan: Scan, cfg: SeriesConfig, plan: Plan, *, archive: bool) -> str:
    """Explain that a scan in another format than DICOM has too few slices; "" if it has enough.

    The header is read, and slices are counted along the shortest axis. Return "" as well for a
    DICOM scan, which `explain_skipped` checks, for an image without three axes, and for a file that
    cannot be read.

    Args:
        scan: The scan.
        cfg: The conditions of the user.
        plan: The plan of the model.
        archive: True if the user did not choose each scan, see `is_archive`.
    """
    # the header is not read if a single slice is enough
    if scan.dicom is not None or not _explain_too_few(1, cfg, plan, archive=archive):
        return ""
    with suppress(LesionsegError, OSError):  # prediction will raise the same error
        shape = read_geometry(scan.files.images[0]).shape
        if len(shape) == 3:
            return _explain_too_few(min(shape), cfg, plan, archive=archive)
    return ""


def _explain_too_few(n_slices: int, cfg: SeriesConfig, plan: Plan, *, archive: bool) -> str:
    """Explain that a scan has too few slices. Return "" if it has enough, or for a 2-D model.

    The minimum is `cfg.min_slices`. By default it is `MIN_SLICES` if the user did not choose each
    scan (`archive`), otherwise 1.
    """
    min_slices = cfg.min_slices or (MIN_SLICES if archive else 1)
    if plan.dims == 2 or n_slices >= min_slices:
        return ""
    return f"it has {n_slices} of at least {min_slices} slices (series.min_slices)"
