"""Prepared cases on disk: memory maps that tiles are copied out of, and a table of lesions.

folder/<key of plan and dataset>/<2 characters>/<case>/    see cached_case.py

The two characters spread the cases over 256 folders: no disk likes 10⁵ entries in one. At a URL
cases lie in shards instead, see shards.py. Several processes may fill one cache: each case is
claimed by one of them (claims.py).
"""

import hashlib
import json
import logging
import shutil
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path

from lesionseg.core import CaseFiles, Dataset
from lesionseg.data.cache.cached_case import (
    CACHE_VERSION,
    CachedCase,
    read_cached_case,
    write_cached_case,
)
from lesionseg.data.cache.claims import ClaimFolder, Claims
from lesionseg.data.prepared_case import PreparedCase
from lesionseg.data.prepared_reference import PreparedReference
from lesionseg.errors import ContentError, OutputError, ReadError
from lesionseg.io.case_ids import bounded_name
from lesionseg.io.formats.content import file_digest
from lesionseg.io.local_files import content_files
from lesionseg.io.remote.local_disk import partial_name, sweep
from lesionseg.io.remote.mirror import bring
from lesionseg.plan.plan import Plan

logger = logging.getLogger(__name__)


class CaseStore(ABC):
    """Where `fill_cache` keeps cases: `Cache` on a disk, `shards.ShardCache` at a URL.

    `key` (`cache_key`) names what the plan and the dataset decide about the arrays; other keys lie
    beside it untouched.
    """

    def __init__(self, key: str, claims: Claims) -> None:
        self.key, self._claims = key, claims

    @abstractmethod
    def find(self, case: str, source: str) -> CachedCase | None:
        """The entry, or None when it is missing, damaged or made of other files than `source`."""

    @abstractmethod
    def store(self, prepared: PreparedCase, source: str) -> CachedCase:
        """Keep a case. Raises `ContentError` for one without a reference, `OutputError`."""

    def claim(self, case: str) -> bool:
        """Whether this process may make the case; then it must store it or give it back."""
        return self._claims.take(case)

    def give_back(self, case: str) -> None:
        """The claimed case will not be made, or has been found after all."""
        self._claims.give_back(case)

    @abstractmethod
    def flush(self) -> None:
        """Show others all that has been stored."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove what runs that were killed have left behind."""


class Cache(CaseStore):
    """Prepared cases of one plan and dataset under `folder`, one folder per case."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder / key
        super().__init__(key, Claims(ClaimFolder(self.folder / "claims")))

    def find(self, case: str, source: str) -> CachedCase | None:
        """The entry, or None when it is missing, damaged or made of other files than `source`."""
        if not self._entry(case).exists():
            return None
        try:
            cached = self.open(case)
        except ReadError as error:
            logger.warning("A cached case is damaged and made again: %s", error)
            return None
        if cached.source != source:
            logger.info("Cached case %s is made again: its files have changed.", case)
            return None
        return cached

    def open(self, case: str) -> CachedCase:
        """The entry as it is; raises `ReadError` when it is missing or damaged."""
        return read_cached_case(self._entry(case))

    def store(self, prepared: PreparedCase, source: str) -> CachedCase:
        """Write an entry beside its place and move it there whole, replacing what was there."""
        reference = reference_of(prepared)
        scratch = self._scratch()
        try:
            scratch.mkdir(parents=True)
            write_cached_case(scratch, prepared, reference, source)
            self._put(scratch, self._entry(prepared.case))
        except OSError as error:
            raise self._refused(error) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        self.give_back(prepared.case)
        return self.open(prepared.case)

    def claim(self, case: str) -> bool:
        """As in any store; raises `OutputError` where the disk refuses."""
        try:
            return super().claim(case)
        except OSError as error:
            raise self._refused(error) from error

    def flush(self) -> None:
        """Nothing to do: a stored case is there at once."""

    def sweep(self) -> None:
        """Remove what runs that were killed have left behind (`local_disk.sweep`)."""
        sweep(self.folder)

    def _entry(self, case: str) -> Path:
        prefix = hashlib.sha256(case.encode()).hexdigest()[:2]
        return self.folder / prefix / bounded_name(case)

    def _scratch(self) -> Path:
        return self.folder / partial_name()

    def _refused(self, error: OSError) -> OutputError:
        return OutputError(
            "The cache cannot be written.",
            where=self.folder,
            seen=error,
            remedy="check that the folder may be written to and that the disk has room.",
        )

    def _put(self, scratch: Path, entry: Path) -> None:
        entry.parent.mkdir(exist_ok=True)
        if entry.exists():
            old = self._scratch()
            entry.replace(old)
            shutil.rmtree(old, ignore_errors=True)
        try:
            scratch.replace(entry)
        except OSError:
            # another run has put the same case there in the meantime
            if not (entry / "case.json").exists():
                raise


def reference_of(prepared: PreparedCase) -> PreparedReference:
    """A case's reference; raises `ContentError` when it has none."""
    if prepared.reference is None:
        raise ContentError(
            "A case without a reference cannot teach.",
            where=prepared.case,
            remedy="leave it out, or give it an empty mask if it is free of lesions.",
        )
    return prepared.reference


def cache_key(dataset: Dataset, plan: Plan) -> str:
    """16 characters that change with whatever plan and dataset decide about prepared arrays."""
    decisions = {
        "version": CACHE_VERSION,
        "dims": plan.dims,
        "channels": plan.channel_names,
        "spacing_mm": plan.spacing_mm,
        "normalisation": [asdict(n) for n in plan.normalisation],
        "label_values": plan.label_values,
        "regions": plan.regions,
        "ignore_label": dataset.ignore_label,
        **({"extra": plan.prepare_extra} if plan.prepare_extra else {}),
    }
    text = json.dumps(decisions, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def source_hash(files: CaseFiles) -> str:
    """SHA-256 of the content of a case's files and of what tables say of its lesions."""
    digest = hashlib.sha256()
    named = (*files.images, *((files.reference,) if files.reference else ()))
    for path in (part for image in named for part in content_files(image)):
        bring(path)
        digest.update(file_digest(path))
    facts = [files.annotations, files.group, *files.annotated, *files.missing]
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return digest.hexdigest()
