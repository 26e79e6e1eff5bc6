"""Cases on a Ray cluster: actors all over it, each predicting some cases as one machine does.

Every machine must see bundle, input and output under the same paths. Ray starts an actor that died
again and repeats its cases, in the end one by one; one that kills its actors thrice has failed.
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
_CORES = 2  # of an actor on a CPU: one reads and writes slower than it computes
_AT_ONCE = 4  # cases that an actor gets


def predict_on_ray(
    cfg: PredictConfig,
    output: Path,
    scans: Sequence[FoundScan],
    known: Known,
    architectures: Mapping[str, NetworkFactory] | None = None,
) -> Generator[CaseRow]:
    """Predict scans on a Ray cluster; yields rows as they are done.

    The cluster is the one that this process is connected to or that `ray.init` finds, else one on
    this machine for the time being. Raises `ConfigError` without the extra `ray`, or when
    the cluster has no core.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves this machine
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
            raise ConfigError("engine=ray: the cluster has no core to compute on.")
        n_actors = min(gpus or max(cores // _CORES, 1), len(scans))
        share = cfg.inference.max_memory_gb or default_budget() / 2**30 / max(n_actors, 1)
        inference = cfg.inference.model_copy(update={"max_memory_gb": share})
        bundles = tuple(str(Path(bundle).resolve()) for bundle in cfg.bundle)
        zones = cfg.zones and str(Path(cfg.zones).resolve())
        cfg = cfg.model_copy(update={"bundle": bundles, "inference": inference, "zones": zones})
        each = {"num_gpus": 1} if gpus else {"num_cpus": min(_CORES, cores)}
        each |= {"max_restarts": -1, "max_task_retries": ATTEMPTS - 1}
        kind = ray.remote(**each)(_Actor)
        # put once for all actors, however large
        given = cfg, output.resolve(), ray.put(known), ray.put(architectures)
        idle = [kind.remote(*given) for _ in range(n_actors)]
        n = max(1, min(_AT_ONCE, len(scans) // max(n_actors, 1)))
        found = [scan.to_absolute() for scan in scans]
        left = [found[i : i + n] for i in range(0, len(scans), n)]
        under_way: dict[Any, tuple[Any, list[FoundScan]]] = {}
        while left or under_way:
            while idle and left:
                actor, some = idle.pop(), left.pop(0)
                under_way[actor.predict.remote(some)] = actor, some
            (done,), _ = ray.wait(list(under_way))
            actor, some = under_way.pop(done)
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
    """Predicts some cases per call; the networks stay from one to the next."""

    def __init__(
        self,
        cfg: PredictConfig,
        output: Path,
        known: Known,
        architectures: Mapping[str, NetworkFactory] | None,
    ) -> None:
        if cfg.private:  # the setting of the process that asked is not inherited by Ray's workers
            os.umask(0o077)
        self._given = cfg, make_predictor(cfg, architectures), output, known

    def predict(self, scans: Sequence[FoundScan]) -> list[CaseRow]:
        cfg, predictor, output, known = self._given
        return list(predict_cases(cfg, predictor, output, scans, known))
