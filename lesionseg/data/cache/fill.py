"""Filling a cache: every case prepared once, by as many threads, processes and machines as help."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path

from lesionseg.core import Case, CaseFiles, Dataset
from lesionseg.data.cache.cached_case import CachedCase
from lesionseg.data.cache.case_cache import Cache, CaseStore, cache_key, source_hash
from lesionseg.data.cache.shards import ShardCache
from lesionseg.data.prepared_case import prepare_case
from lesionseg.io.cases import read_case
from lesionseg.io.layouts.conventions import read_dataset
from lesionseg.io.remote.local_disk import LocalDisk
from lesionseg.io.remote.remote_folder import RemoteFolder, is_url
from lesionseg.plan.plan import Plan

MAX_WORKERS = 8  # each holds a case, and disks are busy with that many
_PATIENCE_SECONDS = 1.0


def open_dataset(root: str | PathLike[str], *, group: str | None = None) -> Dataset:
    """What a data folder holds, in whatever layout; `.datalist()` of it is for MONAI.

    `group`: see `lesionseg.io.layouts.conventions.read_dataset`, which says what it raises.
    """
    return read_dataset(Path(root), group=group)


def fill_cache(
    dataset: Dataset,
    cases: Sequence[CaseFiles],
    plan: Plan,
    folder: Path | str,
    *,
    read: Callable[[CaseFiles], Case] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    workers: int | None = None,
    disk: LocalDisk | None = None,
    source: Callable[[CaseFiles], str] = source_hash,
) -> list[CachedCase]:
    """Prepare every case that the cache lacks; the cached cases in the order of `cases`.

    Cases that another process has claimed are waited for. What is made stays made: the next call
    goes on where an interrupted one stopped. The first error ends the call.

    Args:
        dataset: which the cases are of.
        cases: to prepare.
        plan: the grid and normalisation; another plan has another entry.
        folder: of the cache, or a URL whose cases are copied to `disk` when they are read.
        read: turns a case's files into arrays; None for `read_case`.
        progress: called here after each case with its id, how many are done and how many there are.
        workers: threads, each with one case; None for one per core, at most eight; 1 for this one.
        disk: where cases of a URL are kept.
        source: turns a case's files into the hash of their content.
    """
    store = open_store(folder, cache_key(dataset, plan), disk or LocalDisk())
    store.sweep()
    make = _Maker(store, plan, read or partial(read_case, dataset=dataset), source)
    pending = dict(enumerate(cases))
    filled: dict[int, CachedCase] = {}
    try:
        while pending:
            for i, cached in _run(make, pending, workers or min(cores(), MAX_WORKERS)):
                if cached is None:
                    continue
                filled[i] = cached
                if progress is not None:
                    progress(cached.case, len(filled), len(cases))
            pending = {i: files for i, files in pending.items() if i not in filled}
            if pending:  # others may be waiting for ours as we are for theirs
                store.flush()
                time.sleep(_PATIENCE_SECONDS)
    finally:
        store.flush()
    return [filled[i] for i in range(len(cases))]


def open_store(folder: Path | str, key: str, disk: LocalDisk) -> CaseStore:
    """The cache of that key in a local folder or at a URL."""
    if is_url(str(folder)):
        return ShardCache(RemoteFolder(str(folder)), key, disk)
    return Cache(Path(folder), key)


def cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass
class _Maker:
    """Finds or makes one case; None when another process is at it."""

    store: CaseStore
    plan: Plan
    read: Callable[[CaseFiles], Case]
    source: Callable[[CaseFiles], str]
    sources: dict[str, str] = field(default_factory=dict)

    def __call__(self, files: CaseFiles) -> CachedCase | None:
        if files.case not in self.sources:
            self.sources[files.case] = self.source(files)
        source = self.sources[files.case]
        cached = self.store.find(files.case, source)
        if cached is not None:
            return cached
        if not self.store.claim(files.case):
            return None
        try:
            cached = self.store.find(files.case, source)  # made while we asked
            if cached is None:
                return self.store.store(prepare_case(self.read(files), self.plan), source)
        except BaseException:
            self.store.give_back(files.case)
            raise
        self.store.give_back(files.case)
        return cached


def _run(
    make: Callable[[CaseFiles], CachedCase | None], cases: Mapping[int, CaseFiles], workers: int
) -> Iterator[tuple[int, CachedCase | None]]:
    if workers <= 1:
        yield from ((i, make(files)) for i, files in cases.items())
        return
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(make, files): i for i, files in cases.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
