"""Prepared cases on disk: memory maps that tiles are copied out of, and a table of lesions.

folder/<key of plan and dataset>/<case>/    see cached_case.py
"""

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from pathlib import Path
from urllib.parse import quote

from lesionseg.core import Case, CaseFiles, Dataset
from lesionseg.data.cached_case import (
    CACHE_VERSION,
    read_cached_case,
    write_cached_case,
)
from lesionseg.data.cached_case import CachedCase as CachedCase
from lesionseg.data.cached_case import CachedLesion as CachedLesion
from lesionseg.data.prepare import PreparedCase, prepare_case
from lesionseg.errors import ContentError, OutputError, ReadError
from lesionseg.io.volumes import content_files
from lesionseg.plan.plan import Plan

logger = logging.getLogger(__name__)

MAX_WORKERS = 8  # each holds a case, and disks are busy with that many
_PARTIAL = ".partial-"
_DAY_SECONDS = 86400


class Cache:
    """Prepared cases of one plan and dataset under `folder`, one folder a case.

    `key` (`cache_key`) names what the plan and the dataset decide about the arrays; other keys lie
    beside it untouched.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder / key
        self.key = key

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
        if prepared.reference is None:
            raise ContentError(
                "A case without a reference cannot teach.",
                where=prepared.case,
                remedy="leave it out, or give it an empty mask if it is free of lesions.",
            )
        made = self._scratch()
        try:
            made.mkdir(parents=True)
            write_cached_case(made, prepared, prepared.reference, source)
            self._put(made, self._entry(prepared.case))
        except OSError as error:
            raise OutputError(
                "The cache cannot be written.",
                where=self.folder,
                seen=error,
                remedy="check that the folder may be written to and that the disk has room.",
            ) from error
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return self.open(prepared.case)

    def sweep(self) -> None:
        """Remove what runs that were killed have left behind a day ago or earlier."""
        for left in self.folder.glob(f"{_PARTIAL}*"):
            if time.time() - left.stat().st_mtime > _DAY_SECONDS:
                shutil.rmtree(left, ignore_errors=True)

    def _entry(self, case: str) -> Path:
        return self.folder / quote(case, safe=" ")

    def _scratch(self) -> Path:
        return self.folder / f"{_PARTIAL}{uuid.uuid4().hex}"

    def _put(self, made: Path, entry: Path) -> None:
        if entry.exists():
            old = self._scratch()
            entry.replace(old)
            shutil.rmtree(old, ignore_errors=True)
        try:
            made.replace(entry)
        except OSError:
            # another run has put the same case there in the meantime
            if not (entry / "case.json").exists():
                raise


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
    }
    text = json.dumps(decisions, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def source_hash(files: CaseFiles) -> str:
    """SHA-256 of the content of a case's files and of what tables say of its lesions."""
    digest = hashlib.sha256()
    named = (*files.images, *((files.reference,) if files.reference else ()))
    for path in (part for image in named for part in content_files(image)):
        try:
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise ReadError("The file cannot be read.", where=path, seen=error) from error
    said = json.dumps([files.annotations, files.group], sort_keys=True, default=str)
    digest.update(said.encode())
    return digest.hexdigest()


def fill_cache(
    dataset: Dataset,
    cases: Sequence[CaseFiles],
    plan: Plan,
    folder: Path,
    *,
    read: Callable[[CaseFiles], Case],
    progress: Callable[[str, int, int], None] | None = None,
    workers: int | None = None,
) -> list[CachedCase]:
    """Prepare every case that the cache lacks; the cached cases in the order of `cases`.

    `read` turns a case's files into arrays. `workers` threads hold one case each (None: as many as
    there are cores, eight at most); 1 works in this thread. `progress(case, done, total)` is
    called here after each case. What is made stays made: the next call goes on where an
    interrupted one stopped. The first error ends the call.
    """
    cache = Cache(folder, cache_key(dataset, plan))
    cache.sweep()
    make = partial(_cached, cache=cache, plan=plan, read=read)
    found: dict[int, CachedCase] = {}
    for i, cached in _run(make, cases, workers or min(_cores(), MAX_WORKERS)):
        found[i] = cached
        if progress is not None:
            progress(cached.case, len(found), len(cases))
    return [found[i] for i in range(len(cases))]


def _cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cached(
    files: CaseFiles, *, cache: Cache, plan: Plan, read: Callable[[CaseFiles], Case]
) -> CachedCase:
    source = source_hash(files)
    return cache.find(files.case, source) or cache.store(prepare_case(read(files), plan), source)


def _run(
    make: Callable[[CaseFiles], CachedCase], cases: Sequence[CaseFiles], workers: int
) -> Iterator[tuple[int, CachedCase]]:
    if workers <= 1:
        yield from ((i, make(files)) for i, files in enumerate(cases))
        return
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(make, files): i for i, files in enumerate(cases)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
