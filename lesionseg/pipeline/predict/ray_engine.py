"""Cases as a Ray Data job: the same steps, on workers all over a cluster.

Every machine must see bundle, input and output under the same paths. Ray replaces a worker that
dies and gives its case to another. Each attempt leaves a file in the output folder, so that a case
which kills its workers, for want of memory say, is given up after three of them.
"""

import logging
import os
import pickle
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from shutil import rmtree
from typing import Any

from lesionseg.core import CaseFiles
from lesionseg.errors import ConfigError, pip_install
from lesionseg.inference.predictor import Predictor
from lesionseg.io.case_ids import printable_id
from lesionseg.io.formats.guard import set_limits
from lesionseg.models.build import NetworkFactory
from lesionseg.pipeline.predict.case_pipeline import default_budget
from lesionseg.pipeline.predict.predict_job import PredictJob, predict_cases
from lesionseg.pipeline.predict.predictions_table import PredictionRow

logger = logging.getLogger(__name__)

ATTEMPTS = ".attempts"
MAX_ATTEMPTS = 3
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

    The cluster is the one that this process is connected to, else the one that `ray.init` finds,
    else one on this machine alone for the time being. Raises `ConfigError` without the extra
    `distributed`, or when the cluster has nothing to compute on.
    """
    ray = _ray()
    bundles = tuple(bundle.resolve() for bundle in job.bundles)  # workers run in another folder
    job = replace(job, bundles=bundles, output=job.output.resolve())
    attempts = job.output / ATTEMPTS
    if not cases:
        return
    with _connected(ray):
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
    items = [
        {"order": order, "case": pickle.dumps((c, known.get(c.case)))}
        for c in (replace(c, images=tuple(p.absolute() for p in c.images)) for c in cases)
    ]
    n_workers = min(workers.number, len(cases))
    takes = {"num_gpus": workers.gpus} if workers.gpus else {"num_cpus": workers.cores}
    rows = ray.data.from_items(items, override_num_blocks=len(items)).map(
        Worker, compute=ray.data.ActorPoolStrategy(size=n_workers), **takes
    )
    for row in rows.iter_rows():
        yield PredictionRow(**row)


class Worker:
    """Predicts one case per call; the networks stay from one to the next."""

    def __init__(self) -> None:
        self._order = b""
        self._job: PredictJob | None = None
        self._predictors: tuple[Predictor, ...] = ()

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """A case's row, as a dictionary."""
        job = self._prepare(item["order"])
        files, earlier = pickle.loads(item["case"])  # our own, from `_rows`
        attempts = (
            job.output / ATTEMPTS / blake2b(repr(files.case).encode(), digest_size=8).hexdigest()
        )
        n_before = attempts.stat().st_size if attempts.is_file() else 0
        if n_before >= MAX_ATTEMPTS:
            message = f"{n_before} workers died of this case, perhaps for want of memory."
            return asdict(PredictionRow(printable_id(files.case), "failed", message))
        with attempts.open("ab") as file:
            file.write(b"x")
        known = {} if earlier is None else {files.case: earlier}
        (row,) = predict_cases(job, [files], known=known, predictors=self._predictors)
        return asdict(row)

    def _prepare(self, order: bytes) -> PredictJob:
        if self._job is None or order != self._order:
            job, architectures, sharers = pickle.loads(order)
            set_limits(job.limits)
            os.umask(0o077)  # results are their user's alone
            if job.inference.max_memory_gb is None:
                share = default_budget() / 2**30 / sharers
                job = replace(job, inference=replace(job.inference, max_memory_gb=share))
            self._order, self._job = order, job
            self._predictors = job.predictors(architectures)
        return self._job


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """Connected to a cluster, and quiet; a connection made here is closed again."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def _ray() -> Any:
    # no usage statistics leave this machine
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.cloudpickle
        import ray.data
    except ImportError as error:
        raise ConfigError(
            "The engine ray needs packages that are not installed.",
            where="engine",
            seen=str(error),
            remedy=pip_install("distributed"),
        ) from error
    return ray
