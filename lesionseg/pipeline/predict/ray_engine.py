"""Cases on a Ray cluster: the same steps, on workers (Ray's actors) all over it.

Every machine must see bundle, input and output under the same paths. A worker takes a batch of
cases through the overlapped pipeline: one is read while another is inferred. One that dies is
replaced, and its batch goes to the next that is free, which takes the cases left one by one. Each
attempt leaves a file in the output folder. So a case that kills its workers, because it needs too
much memory say, is given up after three of them.
"""

import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any

from lesionseg.core import CaseFiles
from lesionseg.errors import ConfigError
from lesionseg.io.atomic import read_json, write_json
from lesionseg.io.case_ids import printable_id
from lesionseg.io.formats.guard import set_limits
from lesionseg.models.build import NetworkFactory
from lesionseg.ops.host_memory import default_budget
from lesionseg.pipeline.predict.predict_job import PredictJob, predict_cases
from lesionseg.pipeline.predict.predictions_table import PredictionRow
from lesionseg.pipeline.run.cluster import MAX_ATTEMPTS, batch_size, connected, ray_package

logger = logging.getLogger(__name__)

ATTEMPTS = ".attempts"
# a CPU worker's cores: one reads and writes slower than it computes
_CORES = 2
# workers in a row that may die before they take a case
_MOST_STILLBORN = 10
# a case and the row of an earlier run, if there is one
Batch = Sequence[tuple[CaseFiles, PredictionRow | None]]


@dataclass(frozen=True)
class Workers:
    """How many workers there are, what each takes, and how many share a machine's memory."""

    number: int
    cores: int
    gpus: int
    per_machine: int

    def each(self) -> dict[str, int]:
        """What Ray is to keep for one of them."""
        return {"num_gpus": self.gpus} if self.gpus else {"num_cpus": self.cores}


def predict_on_ray(
    job: PredictJob,
    cases: Sequence[CaseFiles],
    known: Mapping[str, PredictionRow],
    architectures: Mapping[str, NetworkFactory] | None = None,
) -> Generator[PredictionRow]:
    """Predict cases on a Ray cluster; yields rows as they are done.

    The cluster: see `connected`. Raises `ConfigError` without the extra `distributed`, or when the
    cluster has nothing to compute on.
    """
    ray = ray_package()
    bundles = tuple(bundle.resolve() for bundle in job.bundles)  # workers run in another folder
    job = replace(job, bundles=bundles, output=job.output.resolve())
    attempts = job.output / ATTEMPTS
    if not cases:
        return
    with connected(ray):
        workers = share_out(ray.nodes(), wants_gpu=job.device != "cpu")
        rmtree(attempts, ignore_errors=True)
        attempts.mkdir(parents=True)
        try:
            held = ray.put(architectures)  # once for all workers, however large
            actor = ray.remote(**workers.each())(Worker)
            start = partial(actor.remote, job, held, workers.per_machine)
            yield from _rows(ray, start, workers.number, cases, known)
        finally:
            rmtree(attempts, ignore_errors=True)


def share_out(nodes: Sequence[Mapping[str, Any]], *, wants_gpu: bool = True) -> Workers:
    """One worker per GPU where there are any and they are wanted, else one for two cores.

    `nodes` as `ray.nodes()` gives them. Raises `ConfigError` when none is alive with a core.

    >>> share_out([{"Alive": True, "Resources": {"CPU": 5.0}}] * 2)
    Workers(number=4, cores=2, gpus=0, per_machine=2)
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = [int(r.get("GPU", 0)) for r in alive] if wants_gpu else []
    if any(gpus):
        return Workers(sum(gpus), 0, 1, max(gpus))
    cores = [int(r.get("CPU", 0)) for r in alive if int(r.get("CPU", 0))]
    if not cores:
        raise ConfigError("The Ray cluster has no core to compute on.", where="engine")
    per_worker = min(_CORES, *cores)
    return Workers(sum(n // per_worker for n in cores), per_worker, 0, max(cores) // per_worker)


def _rows(
    ray: Any,
    start: Callable[[], Any],
    n_workers: int,
    cases: Sequence[CaseFiles],
    known: Mapping[str, PredictionRow],
) -> Iterator[PredictionRow]:
    """Each worker has one batch in hand; batches are made when their turn comes."""
    size = batch_size(len(cases), min(n_workers, len(cases)))
    left = deque(range(0, len(cases), size))
    n_left, n_stillborn, under_way = len(left), 0, dict[Any, tuple[Any, int | None]]()

    def begin() -> None:
        worker = start()
        under_way[worker.__ray_ready__.remote()] = worker, None

    for _ in range(min(n_workers, n_left)):
        begin()
    while n_left:  # a worker that the cluster has no room for yet is not waited for
        (done,), _ = ray.wait(list(under_way))
        worker, in_hand = under_way.pop(done)
        rows = _answer(ray, done)
        if rows is None:
            n_stillborn += in_hand is None
            _refuse_stillborn(n_stillborn)
            left.extendleft(() if in_hand is None else (in_hand,))
            begin()
            continue
        n_stillborn = 0
        if left:
            first = left.popleft()
            batch = [(_absolute(c), known.get(c.case)) for c in cases[first : first + size]]
            under_way[worker.predict.remote(batch)] = worker, first
        if in_hand is not None:
            n_left -= 1
            yield from rows


def _answer(ray: Any, done: Any) -> Any:
    """What a call returned; None where its worker has died."""
    try:
        return ray.get(done)
    except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
        if getattr(error, "actor_init_failed", False):  # it raised, as the next one would
            raise
        logger.warning("A worker died; another takes the cases that it had in hand.")
        return None


def _refuse_stillborn(n: int) -> None:
    if n >= _MOST_STILLBORN:
        raise ConfigError(
            "Ray's workers die before they take a case.",
            where="engine",
            seen=f"{n} in a row",
            remedy="see the cluster's logs (session_latest/logs in Ray's temporary folder); a "
            "machine may lack memory or a library. engine=local does without Ray.",
        )


def _absolute(files: CaseFiles) -> CaseFiles:
    """With paths that mean the same in a worker's folder."""
    return replace(files, images=tuple(path.absolute() for path in files.images))


class Worker:
    """Predicts a batch of cases per call; the networks stay from one to the next."""

    def __init__(
        self, job: PredictJob, architectures: Mapping[str, NetworkFactory] | None, sharers: int
    ) -> None:
        set_limits(job.limits)
        os.umask(0o077)  # results are their user's alone
        if job.inference.max_memory_gb is None:
            share = default_budget() / 2**30 / sharers
            job = replace(job, inference=replace(job.inference, max_memory_gb=share))
        self._job = job
        self._predictors = job.predictors(architectures)

    def predict(self, cases: Batch) -> list[PredictionRow]:
        """The cases' rows; those are kept that an attempt before this one has left."""
        attempts = _Attempts(self._job.output / ATTEMPTS)
        if attempts.begin(f"batch of {cases[0][0].case}") == 0:
            list(self._predict(cases, attempts))
        for files, earlier in cases:  # a worker died of one of them
            if attempts.row(files.case) is not None:
                continue
            n_before = attempts.begin(files.case)
            if n_before < MAX_ATTEMPTS:
                list(self._predict([(files, earlier)], attempts))
            else:
                message = f"{n_before} workers died of this case, perhaps out of memory."
                attempts.end(files.case, PredictionRow(_shown(files), "failed", message))
        rows = (attempts.row(files.case) for files, _ in cases)
        return [row for row in rows if row is not None]

    def _predict(self, cases: Batch, attempts: "_Attempts") -> Iterator[PredictionRow]:
        known = {files.case: row for files, row in cases if row is not None}
        by_name = {_shown(files): files.case for files, _ in cases}
        files = [f for f, _ in cases]
        for row in predict_cases(self._job, files, known=known, predictors=self._predictors):
            attempts.end(by_name[row.case], row)
            yield row


@dataclass(frozen=True)
class _Attempts:
    """How often something was begun, and the rows of cases that are done, in a folder."""

    folder: Path

    def begin(self, name: str) -> int:
        """How often it was begun before."""
        path = self._path(name)
        n_before = path.stat().st_size if path.is_file() else 0
        with path.open("ab") as file:
            file.write(b"x")
        return n_before

    def end(self, case: str, row: PredictionRow) -> None:
        """Keep the row of a case that is done, for as long as this machine runs."""
        write_json(self._path(case).with_suffix(".json"), asdict(row), lasting=False)

    def row(self, case: str) -> PredictionRow | None:
        """The row, if the case is done."""
        path = self._path(case).with_suffix(".json")
        return PredictionRow(**read_json(path)) if path.is_file() else None

    def _path(self, name: str) -> Path:
        return self.folder / hashlib.sha256(name.encode()).hexdigest()


def _shown(files: CaseFiles) -> str:
    return printable_id(files.case)
