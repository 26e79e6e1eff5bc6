"""Cases as a Ray Data job: the same steps, on workers all over a cluster.

Every machine must see bundle, input and output under the same paths. A worker takes a batch of
cases through the overlapped pipeline: one is read while another is inferred. Ray replaces a worker
that dies and gives its batch to another, which takes the cases left one by one. Each attempt leaves
a file in the output folder. So a case that kills its workers, because it needs too much memory say,
is given up after three of them.
"""

import hashlib
import json
import os
import pickle
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import Any

from lesionseg.core import CaseFiles
from lesionseg.errors import ConfigError
from lesionseg.inference.predictor import Predictor
from lesionseg.io.atomic import write_json
from lesionseg.io.case_ids import printable_id
from lesionseg.io.formats.guard import set_limits
from lesionseg.models.build import NetworkFactory
from lesionseg.ops.host_memory import default_budget
from lesionseg.pipeline.predict.predict_job import PredictJob, predict_cases
from lesionseg.pipeline.predict.predictions_table import PredictionRow
from lesionseg.pipeline.run.cluster import MAX_ATTEMPTS, batch_size, connected, ray_package

ATTEMPTS = ".attempts"
# a CPU worker's cores: one reads and writes slower than it computes
_CORES = 2


@dataclass(frozen=True)
class Workers:
    """How many workers there are, what each takes, and how many share a machine's memory."""

    number: int
    cores: int
    gpus: int
    per_machine: int


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
            yield from _rows(ray, job, cases, known, architectures, workers)
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
    job: PredictJob,
    cases: Sequence[CaseFiles],
    known: Mapping[str, PredictionRow],
    architectures: Mapping[str, NetworkFactory] | None,
    workers: Workers,
) -> Iterator[PredictionRow]:
    order = ray.cloudpickle.dumps((job, architectures, workers.per_machine))
    whole = [replace(c, images=tuple(p.absolute() for p in c.images)) for c in cases]
    n_workers = min(workers.number, len(cases))
    size = batch_size(len(cases), n_workers)
    batches = [whole[i : i + size] for i in range(0, len(whole), size)]
    items = [{"cases": pickle.dumps([(c, known.get(c.case)) for c in b])} for b in batches]
    takes = {"num_gpus": workers.gpus} if workers.gpus else {"num_cpus": workers.cores}
    rows = ray.data.from_items(items, override_num_blocks=len(items)).flat_map(
        Worker,
        fn_constructor_args=(order,),
        compute=ray.data.ActorPoolStrategy(size=n_workers),
        **takes,
    )
    for row in rows.iter_rows():
        yield PredictionRow(**json.loads(row["row"]))


class Worker:
    """Predicts a batch of cases per call; the networks stay from one to the next."""

    def __init__(self, order: bytes) -> None:
        job, architectures, sharers = pickle.loads(order)  # our own, from `_rows`
        set_limits(job.limits)
        os.umask(0o077)  # results are their user's alone
        if job.inference.max_memory_gb is None:
            share = default_budget() / 2**30 / sharers
            job = replace(job, inference=replace(job.inference, max_memory_gb=share))
        self._job: PredictJob = job
        self._predictors: tuple[Predictor, ...] = job.predictors(architectures)

    def __call__(self, item: Mapping[str, bytes]) -> list[dict[str, str]]:
        """The cases' rows as JSON: Arrow would give all rows the labels that one of them has."""
        cases: list[tuple[CaseFiles, PredictionRow | None]] = pickle.loads(item["cases"])
        attempts = _Attempts(self._job.output / ATTEMPTS)
        batch = hashlib.sha256(item["cases"]).hexdigest()
        if attempts.begin(batch) == 0:
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
        return [{"row": row} for row in rows if row is not None]

    def _predict(
        self, cases: Sequence[tuple[CaseFiles, PredictionRow | None]], attempts: "_Attempts"
    ) -> Iterator[PredictionRow]:
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

    def row(self, case: str) -> str | None:
        """The row as JSON, if the case is done."""
        path = self._path(case).with_suffix(".json")
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def _path(self, name: str) -> Path:
        return self.folder / hashlib.sha256(name.encode()).hexdigest()


def _shown(files: CaseFiles) -> str:
    return printable_id(files.case)
