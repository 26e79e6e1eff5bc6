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

from lesionseg.config import PredictConfig
from lesionseg.core import CaseFiles
from lesionseg.errors import ConfigError, pip_install
from lesionseg.models.build import NetworkFactory
from lesionseg.ops.host_memory import default_budget
from lesionseg.pipeline.predict import CaseWork, make_predictor
from lesionseg.pipeline.predict_tables import Row, begun_row

MAX_ATTEMPTS = 3
_CORES = 2  # of an actor on a CPU: one reads and writes slower than it computes
_IN_HAND = 2


def predict_on_ray(
    cfg: PredictConfig,
    output: Path,
    cases: Sequence[CaseFiles],
    known: Mapping[str, Row],
    architectures: Mapping[str, NetworkFactory] | None = None,
) -> Generator[Row]:
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
    cfg = cfg.model_copy(update={"bundle": bundles})
    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    died = ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0)) if cfg.device != "cpu" else 0
        cores = int(ray.cluster_resources().get("CPU", 0))
        if not cores:
            raise ConfigError("engine=ray: the cluster has no core to compute on.")
        n_actors = min(gpus or max(cores // _CORES, 1), len(cases))
        if cfg.inference.max_memory_gb is None:
            share = default_budget() / 2**30 / max(n_actors, 1)
            inference = cfg.inference.model_copy(update={"max_memory_gb": share})
            cfg = cfg.model_copy(update={"inference": inference})
        each = {"num_gpus": 1} if gpus else {"num_cpus": min(_CORES, cores)}
        each |= {"max_restarts": -1, "max_task_retries": MAX_ATTEMPTS - 1}
        kind = ray.remote(max_concurrency=_IN_HAND, **each)(_Actor)
        # put once for all actors, however large
        given = cfg, output.resolve(), ray.put(known), ray.put(architectures)
        actors = [kind.remote(*given) for _ in range(n_actors)]
        left = [replace(c, images=tuple(p.absolute() for p in c.images)) for c in reversed(cases)]
        under_way: dict[Any, tuple[Any, CaseFiles]] = {}
        suspects: list[CaseFiles] = []
        idle = actors * _IN_HAND
        while left or under_way:
            while idle and left:
                actor, files = idle.pop(), left.pop()
                under_way[actor.predict.remote(files)] = actor, files
            (done,), _ = ray.wait(list(under_way))
            actor, files = under_way.pop(done)
            idle.append(actor)
            try:
                yield ray.get(done)
            except died as error:
                if getattr(error, "actor_init_failed", False):
                    raise
                suspects.append(files)  # or the case beside it
        for actor in actors if suspects else ():
            ray.kill(actor)  # make room
        for files in suspects:  # each alone
            alone = kind.remote(*given)
            try:
                yield ray.get(alone.predict.remote(files))
            except died:
                message = f"{MAX_ATTEMPTS} workers died of this case, perhaps out of memory."
                yield {**begun_row(files), "status": "failed", "message": message}
            ray.kill(alone)
    finally:
        if ours:
            ray.shutdown()


class _Actor:
    """Predicts a case per call; the networks stay from one to the next."""

    def __init__(
        self,
        cfg: PredictConfig,
        output: Path,
        known: Mapping[str, Row],
        architectures: Mapping[str, NetworkFactory] | None,
    ) -> None:
        os.umask(0o077)  # results are their user's alone
        self._work = CaseWork(cfg, make_predictor(cfg, architectures), output, known)
        self._turn = threading.Lock()

    def predict(self, files: CaseFiles) -> Row:
        """The case's row."""
        work, task = self._work, self._work.begin(files)
        scan = work.attempt(work.read, task)
        with self._turn:
            inferred = work.attempt(work.infer, task, scan)
        del scan
        return dict(work.attempt(work.write, task, inferred))
