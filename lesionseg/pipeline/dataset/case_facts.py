"""Facts of cases, kept on disk: a second start of a training reads no scan that has not changed.

folder/<2 characters>/<32 characters>.safetensors    samples of voxels; all else as JSON inside

A file's path, size and time of change stand for its content, as for make, rsync and git.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, overload

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lesionseg.core import CaseFiles, Dataset
from lesionseg.data.cache.case_cache import source_hash
from lesionseg.data.cache.fill import MAX_WORKERS, cores
from lesionseg.errors import LesionsegError, OutputError
from lesionseg.io.atomic import atomic_path
from lesionseg.io.cases import read_case
from lesionseg.io.formats.content import hashed_once
from lesionseg.io.local_files import file_states, image_digests
from lesionseg.ops.host_memory import default_budget
from lesionseg.plan.fingerprint import CaseFacts, facts_of

FACTS_VERSION = 1
# below it, processes take longer to start than threads take to read
_CASES_FOR_PROCESSES = 64
_LARGE_CASE_BYTES = 2**32  # what reading a CT of 512 × 512 × 1000 voxels takes
_ARRAYS = ("sample", "lesion_sample")


@dataclass(frozen=True)
class KeptFacts:
    """What is known of a case: None for one without a reference; SHA-256 of its files.

    `images`: of each channel alone, see `image_digests`.
    """

    facts: CaseFacts | None
    source: str
    images: tuple[str, ...]


class FactsFolder:
    """The facts of a dataset's cases under `folder`, each for its files as they were when read.

    None keeps nothing.
    """

    def __init__(self, folder: Path | None, dataset: Dataset) -> None:
        self.folder = folder
        self.dataset = dataset
        self._about = _about(dataset)

    def alone(self) -> "FactsFolder":
        """The same without the list of cases, which would travel to a process with each share."""
        return FactsFolder(self.folder, replace(self.dataset, cases=()))

    def known(self, files: CaseFiles) -> KeptFacts | None:
        """What is kept of the case, if its files are those it was read from."""
        if self.folder is None or not self.folder.is_dir():  # a first start
            return None
        signature = self._signature(files)
        return None if signature is None else self._kept(signature)

    def look(self, files: CaseFiles) -> KeptFacts:
        """Read the case, and keep its facts."""
        signature = self._signature(files)
        with hashed_once():
            case = read_case(files, self.dataset)
            facts = None if case.reference is None else facts_of(case, case.reference)
            facts_now = KeptFacts(facts, source_hash(files), image_digests(files))
        if signature is not None and signature == self._signature(files):
            self._keep(signature, facts_now)
        return facts_now

    def source(self, files: CaseFiles) -> str:
        """SHA-256 of the case's files: `source_hash`, remembered."""
        kept = self.known(files)
        return source_hash(files) if kept is None else kept.source

    def images(self, files: CaseFiles) -> tuple[str, ...]:
        """What tells the content of each channel: `image_digests`, remembered."""
        kept = self.known(files)
        return image_digests(files) if kept is None else kept.images

    def _signature(self, files: CaseFiles) -> str | None:
        """A name for the case's files as they are; None where that cannot be relied on."""
        if self.folder is None:
            return None
        named = (*files.images, *((files.reference,) if files.reference else ()))
        states = file_states(named)
        if states is None:
            return None
        about = [self._about, files.case, files.group, files.annotations, *files.missing]
        content = [*about, files.columns, states]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def _path(self, signature: str) -> Path:
        return (self.folder or Path()) / signature[:2] / f"{signature[2:34]}.safetensors"

    def _kept(self, signature: str) -> KeptFacts | None:
        try:
            with safe_open(self._path(signature), framework="numpy") as file:
                content = json.loads(file.metadata()["facts"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = _facts(content["facts"], arrays)
            return KeptFacts(facts, content["source"], tuple(content["images"]))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None  # missing or damaged: read again

    def _keep(self, signature: str, kept_facts: KeptFacts) -> None:
        """Keep facts; a disk that refuses them costs time at the next start, nothing else."""
        values = None if kept_facts.facts is None else asdict(kept_facts.facts)
        arrays = {} if values is None else {name: values.pop(name) for name in _ARRAYS}
        text = json.dumps(
            {"facts": values, "source": kept_facts.source, "images": kept_facts.images}
        )
        try:
            with atomic_path(self._path(signature), lasting=False) as path:
                save_file(arrays, path, metadata={"facts": text})
        except (OutputError, SafetensorError):
            return


def look_at_all(
    folder: FactsFolder, cases: Sequence[CaseFiles], voxels: int, workers: int | None = None
) -> Iterator[KeptFacts | LesionsegError]:
    """What is known of each case, in order, or why it cannot be used; `workers` read at a time.

    Processes read where many cases are left on Linux, threads elsewhere. Samples
    are thinned to `voxels`.
    """
    known = [_thinned(folder.known(files), voxels) for files in cases]
    unknown = [files for files, kept in zip(cases, known, strict=True) if kept is None]
    with _pool(workers or _workers(), len(unknown)) as run:
        read = run(partial(_look, folder.alone(), voxels), unknown)
        yield from (next(read) if kept is None else kept for kept in known)


def _workers() -> int:
    """One per core: eight, and more where the memory holds a large CT for each."""
    return min(cores(), max(MAX_WORKERS, default_budget() // _LARGE_CASE_BYTES))


_Run = Callable[[Callable[[CaseFiles], Any], Sequence[CaseFiles]], Iterator[Any]]


@contextmanager
def _pool(workers: int, n_cases: int) -> Iterator[_Run]:
    """A `map` in order over so many cases."""
    if workers == 1 or n_cases < 2:
        yield map
    elif n_cases < _CASES_FOR_PROCESSES or sys.platform != "linux":
        with ThreadPoolExecutor(min(workers, n_cases)) as threads:
            yield threads.map
    else:
        yield partial(_forked, workers)


def _forked(
    workers: int, look: Callable[[CaseFiles], Any], cases: Sequence[CaseFiles]
) -> Iterator[Any]:
    """As `map`. The first case is read here: the processes then have what it loads and compiles."""
    yield look(cases[0])
    chunk = min(16, -(-len(cases) // (4 * workers)))
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as processes:
        yield from processes.map(look, cases[1:], chunksize=chunk)


def _look(folder: FactsFolder, voxels: int, files: CaseFiles) -> KeptFacts | LesionsegError:
    try:
        return _thinned(folder.look(files), voxels)
    except LesionsegError as error:
        return error


@overload
def _thinned(kept: KeptFacts, voxels: int) -> KeptFacts: ...
@overload
def _thinned(kept: KeptFacts | None, voxels: int) -> KeptFacts | None: ...
def _thinned(kept: KeptFacts | None, voxels: int) -> KeptFacts | None:
    if kept is None or kept.facts is None:
        return kept
    return replace(kept, facts=kept.facts.thinned(voxels))


def _about(dataset: Dataset) -> str:
    """What of a dataset, besides a case's own files, decides how the case is read."""
    settings = {f.name: getattr(dataset, f.name) for f in fields(dataset)}
    for name in ("name", "root", "cases", "problems", "incomplete_reference", "may_lack"):
        del settings[name]
    return json.dumps([FACTS_VERSION, settings], sort_keys=True, default=str)


def _facts(values: dict[str, Any] | None, arrays: dict[str, Any]) -> CaseFacts | None:
    if values is None:
        return None
    lists = {name: _tuples(value) for name, value in values.items()}
    return CaseFacts(**lists, **{name: arrays[name] for name in _ARRAYS})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
