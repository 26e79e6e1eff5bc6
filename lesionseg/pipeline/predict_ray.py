"""`predict` on a Ray cluster: number of actors, cases per call, attempts after a crash.

Each actor predicts some cases, as a single machine would.

Every machine must see bundle, input and output under the same paths. If an actor dies, Ray restarts
it and repeats its cases. If they kill it again and again, each case is sent on its own. A case that
kills its actor three times has failed.
"""

import logging
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lesionseg.config import PredictConfig
from lesionseg.errors import ConfigError, pip_install
from lesionseg.host_memory import default_budget
from lesionseg.io.results.folder import PredictionFolder
from lesionseg.io.results.index import Digests
from lesionseg.io.results.row import CaseRow
from lesionseg.io.scans import Scan
from lesionseg.models.build import NetworkFactory
from lesionseg.pipeline.predict_case import (
    CaseWork,
)

ATTEMPTS = 3
_CORES_PER_ACTOR = 2  # on a CPU: one computes while the other one reads and writes
_CASES_PER_CALL = 4  # at most


def predict_on_ray(
    cfg: PredictConfig,
    output: Path,
    scans: Sequence[Scan],
    digests: Digests,
    architectures: Mapping[str, NetworkFactory] | None,
) -> Generator[CaseRow]:
    """Predict scans on a Ray cluster. Yield the row of each scan as soon as it is finished.

    If this process is not connected to a cluster, `ray.init` connects to a running cluster, or
    starts a temporary one on this machine.

    Args:
        cfg: The settings, with absolute paths.
        output: The folder of the results.
        scans: The scans.
        digests: The digests of files that earlier runs have read.
        architectures: The caller's own networks.

    Raises:
        ConfigError: If the extra `ray` is not installed, the cluster has no CPU core, or the
            settings name a GPU by its number.
    """
    if cfg.device.startswith("cuda:"):
        raise ConfigError(
            f"engine=ray device={cfg.device}: Ray gives each of its processes a GPU. Leave the "
            "number out."
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends no statistics
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"engine=ray needs the extra `ray` ({error}). Run {pip_install('ray')}."
        ) from error
    is_own_cluster = not ray.is_initialized()
    if is_own_cluster:
        ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        # Stored once and shared by all actors, because these may be large. The references must live
        # as long as the actors: one that is restarted reads the objects again.
        digests_ref = ray.put(digests)
        architectures_ref = ray.put(architectures)
        n_actors, resources = _share_cluster(cfg.device, len(scans))
        max_memory_gb = cfg.inference.max_memory_gb
        if not max_memory_gb:  # all actors may run on one machine
            # from bytes to GB
            max_memory_gb = default_budget() / 1e9 / max(n_actors, 1)
        inference = cfg.inference.model_copy(update={"max_memory_gb": max_memory_gb})
        # this process sends results
        cfg = cfg.model_copy(update={"inference": inference, "send": None})
        actor_class = ray.remote(_Actor).options(
            # a dead actor is always restarted; of the attempts at a group, the first is no retry
            max_restarts=-1,
            max_task_retries=ATTEMPTS - 1,
            **resources,
        )
        actors = [
            actor_class.remote(cfg, output.resolve(), digests_ref, architectures_ref)
            for _ in range(n_actors)
        ]
        yield from _distribute(actors, scans)
    finally:
        if is_own_cluster:
            ray.shutdown()


def _share_cluster(device: str, n_scans: int) -> tuple[int, dict[str, int | None]]:
    """Return the number of actors (worker processes), and the resources of each for Ray's options.

    Each GPU gets one actor. Without GPUs, two CPU cores get one actor. There are not more actors
    than scans.

    Raises:
        ConfigError: If the cluster has no CPU core.
    """
    import ray

    n_gpus = int(ray.cluster_resources().get("GPU", 0)) if device != "cpu" else 0
    n_cores = int(ray.cluster_resources().get("CPU", 0))
    if not n_cores:
        raise ConfigError(
            "engine=ray: the cluster has no CPU core. Start it with at least one, or leave engine= "
            "out."
        )
    # None is Ray's default
    resources = {
        "num_gpus": 1 if n_gpus else None,
        "num_cpus": None if n_gpus else min(_CORES_PER_ACTOR, n_cores),
    }
    return min(n_gpus or max(n_cores // _CORES_PER_ACTOR, 1), n_scans), resources


def _distribute(actors: Sequence[Any], scans: Sequence[Scan]) -> Iterator[CaseRow]:
    """Send the scans in small groups to idle actors. Yield rows as soon as they are finished.

    An actor can die of a scan, for example if memory runs out. Ray repeats the call `ATTEMPTS`
    times. If the actor still dies, each scan of the group is sent in a call of its own. If a single
    scan still kills the actor, its row has the status `failed`. An error while an actor starts is
    raised.
    """
    import ray

    # few scans per call, so that all actors are busy and a repeated call repeats little work
    group_size = max(1, min(_CASES_PER_CALL, len(scans) // max(len(actors), 1)))
    waiting = [scans[i : i + group_size] for i in range(0, len(scans), group_size)]
    idle = list(actors)
    running: dict[Any, tuple[Any, Sequence[Scan]]] = {}  # actor and scans by Ray's object reference
    while waiting or running:
        while idle and waiting:
            actor = idle.pop()
            group = waiting.pop(0)
            running[actor.predict.remote(group)] = (actor, group)
        (done,), _ = ray.wait(list(running))  # waits for one group
        actor, group = running.pop(done)
        idle.append(actor)  # even if it died: Ray restarts it
        try:
            yield from ray.get(done)
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            # set by Ray if the constructor failed: no scan is the cause
            if getattr(error, "actor_init_failed", False):
                raise
            if len(group) > 1:
                waiting += [[scan] for scan in group]
                continue
            message = f"{ATTEMPTS} workers died of this case, perhaps out of memory."
            yield replace(group[0].row(), status="failed", message=message)


class _Actor:
    """A process that predicts some cases per call. It keeps the networks between calls.

    With `cfg.private`, all files that it creates are private.
    """

    def __init__(
        self,
        cfg: PredictConfig,
        output: Path,
        digests: Digests,
        architectures: Mapping[str, NetworkFactory] | None,
    ) -> None:
        """Load the networks in the actor's process."""
        if cfg.private:  # Ray's workers do not inherit the umask of this command
            os.umask(0o077)
        self._work = CaseWork(cfg, architectures)
        self._output = output
        self._digests = digests

    def predict(self, scans: Sequence[Scan]) -> list[CaseRow]:
        """Predict a group of scans in the actor's process, and return their rows."""
        cfg = self._work.cfg
        # listed again in each call, because an actor that died may have written some of the cases
        results = PredictionFolder(self._output, cfg.output, cfg.names)
        return list(self._work.predict(scans, results, self._digests))
