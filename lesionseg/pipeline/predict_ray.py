"""Predict cases on a Ray cluster. Each actor predicts some cases, as a single machine would.

Every machine must see bundle, input and output under the same paths. If an actor dies, Ray restarts
it and repeats its cases, at last one by one. A case that kills its actor three times has failed.
"""

import logging
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lesionseg.config import PredictConfig
from lesionseg.errors import ConfigError, pip_install
from lesionseg.host_memory import default_budget
from lesionseg.io.layouts.input_images import FoundScan
from lesionseg.models.build import NetworkFactory
from lesionseg.pipeline.case_work import Known, make_predictor, predict_cases
from lesionseg.pipeline.predict_tables import CaseRow, begun_row

ATTEMPTS = 3
_CORES = 2  # of an actor on a CPU: while one computes, the other one reads and writes
_AT_ONCE = 4  # cases per call of an actor


def predict_on_ray(
    cfg: PredictConfig,
    output: Path,
    scans: Sequence[FoundScan],
    known: Known,
    architectures: Mapping[str, NetworkFactory] | None = None,
) -> Generator[CaseRow]:
    """Predict scans on a Ray cluster. Yield rows as soon as they are finished.

    The cluster is the one to which this process is connected, or which `ray.init` finds. If there
    is none, a temporary cluster is started on this machine.

    Raises:
        ConfigError: if the extra `ray` is not installed, or the cluster has no CPU core.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends no statistics
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"engine=ray: {error}. {pip_install('ray')}") from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0)) if cfg.device != "cpu" else 0
        cores = int(ray.cluster_resources().get("CPU", 0))
        if not cores:
            raise ConfigError("engine=ray: the cluster has no CPU core.")
        n_actors = min(gpus or max(cores // _CORES, 1), len(scans))
        share = cfg.inference.max_memory_gb or default_budget() / 2**30 / max(n_actors, 1)
        inference = cfg.inference.model_copy(update={"max_memory_gb": share})
        bundles = tuple(str(Path(bundle).resolve()) for bundle in cfg.bundle)
        zones = cfg.zones and str(Path(cfg.zones).resolve())
        cfg = cfg.model_copy(update={"bundle": bundles, "inference": inference, "zones": zones})
        resources = {"num_gpus": 1} if gpus else {"num_cpus": min(_CORES, cores)}
        as_actor = ray.remote(**resources, max_restarts=-1, max_task_retries=ATTEMPTS - 1)
        actor_class = as_actor(_Actor)
        # stored once and shared by all actors, because these may be large
        known_ref = ray.put(known)
        architectures_ref = ray.put(architectures)
        idle = [
            actor_class.remote(cfg, output.resolve(), known_ref, architectures_ref)
            for _ in range(n_actors)
        ]
        n = max(1, min(_AT_ONCE, len(scans) // max(n_actors, 1)))
        found = [scan.to_absolute() for scan in scans]
        left = [found[i : i + n] for i in range(0, len(scans), n)]
        running: dict[Any, tuple[Any, list[FoundScan]]] = {}
        while left or running:
            while idle and left:
                actor = idle.pop()
                some = left.pop(0)
                running[actor.predict.remote(some)] = (actor, some)
            (done,), _ = ray.wait(list(running))
            actor, some = running.pop(done)
            idle.append(actor)
            try:
                yield from ray.get(done)
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
                if getattr(error, "actor_init_failed", False):
                    raise
                if len(some) > 1:
                    left += [[scan] for scan in some]
                    continue
                message = f"{ATTEMPTS} workers died of this case, perhaps out of memory."
                yield replace(begun_row(some[0]), status="failed", message=message)
    finally:
        if ours:
            ray.shutdown()


class _Actor:
    """A process that predicts some cases per call. It keeps the networks between calls."""

    def __init__(
        self,
        cfg: PredictConfig,
        output: Path,
        known: Known,
        architectures: Mapping[str, NetworkFactory] | None,
    ) -> None:
        if cfg.private:  # Ray's workers do not inherit the umask of this command
            os.umask(0o077)
        self._cfg = cfg
        self._predictor = make_predictor(cfg, architectures)
        self._output = output
        self._known = known

    def predict(self, scans: Sequence[FoundScan]) -> list[CaseRow]:
        """Predict scans and return their rows."""
        return list(predict_cases(self._cfg, self._predictor, self._output, scans, self._known))
