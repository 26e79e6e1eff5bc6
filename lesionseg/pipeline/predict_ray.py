"""Cases on a Ray cluster: the same steps, by actors all over it.

Every machine must see bundle, input and output under the same paths. Each actor holds the network
and has two cases in hand: one is read or written while the other is inferred. Ray starts an actor
that died again and repeats its cases; one that kills its actors three times has failed.
"""

import logging
import os
import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lesionseg.core import CaseFiles
from lesionseg.errors import ConfigError, pip_install
from lesionseg.io.files import printable_id
from lesionseg.models.build import NetworkFactory
from lesionseg.ops.host_memory import default_budget
from lesionseg.pipeline.predict import CaseTask, CaseWork, PredictSettings, make_predictor
from lesionseg.pipeline.predict_tables import PredictionRow

MAX_ATTEMPTS = 3
_CORES = 2  # of an actor on a CPU: one reads and writes slower than it computes
_IN_HAND = 2


def predict_on_ray(
    cfg: PredictSettings,
    output: Path,
    cases: Sequence[CaseFiles],
    known: Mapping[str, PredictionRow],
    architectures: Mapping[str, NetworkFactory] | None = None,
) -> Generator[PredictionRow]:
    """Predict cases on a Ray cluster; yields rows as they are done.

    The cluster is the one that this process is connected to or that `ray.init` finds, else one on
    this machine for the time being. Raises `ConfigError` without the extra `ray`, or when
    the cluster has no core.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves this machine
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"engine=ray: {error}. {pip_install('ray')}") from error
    bundles = tuple(str(Path(bundle).resolve()) for bundle in cfg.bundle)  # actors run elsewhere
    cfg = replace(cfg, bundle=bundles)
    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0)) if cfg.device != "cpu" else 0
        cores = int(ray.cluster_resources().get("CPU", 0))
        if not cores:
            raise ConfigError("engine=ray: the cluster has no core to compute on.")
        each = {"num_gpus": 1} if gpus else {"num_cpus": min(_CORES, cores)}
        n_actors = min(gpus or max(cores // _CORES, 1), len(cases))
        share = default_budget() / 2**30 / max(n_actors, 1)
        if cfg.inference.max_memory_gb is None:
            cfg = replace(cfg, inference=replace(cfg.inference, max_memory_gb=share))
        actor = ray.remote(
            max_restarts=-1, max_task_retries=MAX_ATTEMPTS - 1, max_concurrency=_IN_HAND, **each
        )(_Actor)
        held = ray.put(architectures)  # once for all actors, however large
        actors = [actor.remote(cfg, output.resolve(), held) for _ in range(n_actors)]
        left = [replace(c, images=tuple(p.absolute() for p in c.images)) for c in reversed(cases)]
        under_way: dict[Any, tuple[Any, CaseFiles]] = {}
        suspects: list[CaseFiles] = []

        def give(worker: Any) -> None:
            if left:
                files = left.pop()
                task = worker.predict.remote(files, known.get(files.case))
                under_way[task] = worker, files

        for worker in actors * _IN_HAND:
            give(worker)
        while under_way:
            (done,), _ = ray.wait(list(under_way))
            worker, files = under_way.pop(done)
            try:
                yield ray.get(done)
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
                if getattr(error, "actor_init_failed", False):
                    raise
                suspects.append(files)  # or the case beside it
            give(worker)
        for worker in actors if suspects else ():
            ray.kill(worker)  # make room
        for files in suspects:  # each alone
            alone = actor.remote(cfg, output.resolve(), held)
            try:
                yield ray.get(alone.predict.remote(files, None))
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError):
                message = f"{MAX_ATTEMPTS} workers died of this case, perhaps out of memory."
                yield PredictionRow(printable_id(files.case), status="failed", message=message)
            ray.kill(alone)
    finally:
        if ours:
            ray.shutdown()


class _Actor:
    """Predicts a case per call; the networks stay from one to the next."""

    def __init__(
        self,
        cfg: PredictSettings,
        output: Path,
        architectures: Mapping[str, NetworkFactory] | None,
    ) -> None:
        os.umask(0o077)  # results are their user's alone
        self._cfg, self._output = cfg, output
        self._predictor, self._turn = make_predictor(cfg, architectures), threading.Lock()

    def predict(self, files: CaseFiles, earlier: PredictionRow | None) -> PredictionRow:
        """The case's row; `earlier`: of a run before, if there was one."""
        known = {} if earlier is None else {files.case: earlier}
        work = CaseWork(self._cfg, self._predictor, self._output, known)
        task = CaseTask(files)
        work.read(task)
        with self._turn:
            work.infer(task)
        work.write(task)
        return task.row or PredictionRow(printable_id(files.case), status="failed")
