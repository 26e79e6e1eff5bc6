"""A Ray cluster: how to reach it, and tasks that go on where a worker has died."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from lesionseg.errors import ConfigError, LesionsegError, TrainingError, pip_install
from lesionseg.io.formats.guard import FileLimits, limits, set_limits

MAX_ATTEMPTS = 3
T = TypeVar("T")


def run_tasks(tasks: Sequence[Callable[[], T]], *, gpus: int = 0) -> list[T | LesionsegError]:
    """What each task returns, or raises of our errors, in order.

    A task whose worker dies begins again in another: it must find what the first one has left.
    Each has a process of its own, with `gpus` of them or an equal share of the cores. Machines must
    see the same paths. The cluster: see `connected`. Three dead workers are a `TrainingError`.
    """
    ray = ray_package()
    with connected(ray):
        cores = int(ray.cluster_resources().get("CPU", 1)) // max(len(tasks), 1)
        takes = {"num_gpus": gpus} if gpus else {"num_cpus": max(1, cores)}
        work = ray.remote(max_retries=MAX_ATTEMPTS - 1, max_calls=1, **takes)(_work)
        packed = [ray.cloudpickle.dumps(task) for task in tasks]
        begun = [work.remote(task, Path.cwd(), limits()) for task in packed]
        return [_ended(ray, one) for one in begun]


def _work(task: bytes, folder: Path, file_limits: FileLimits) -> Any:
    from ray import cloudpickle

    os.chdir(folder)
    set_limits(file_limits)
    try:
        return cloudpickle.loads(task)()  # our own, from `run_tasks`
    except LesionsegError as error:
        return error


def _ended(ray: Any, begun: Any) -> Any:
    try:
        return ray.get(begun)
    except ray.exceptions.WorkerCrashedError:
        return TrainingError(f"{MAX_ATTEMPTS} workers died of this, perhaps out of memory.")


@contextmanager
def connected(ray: Any) -> Iterator[None]:
    """Connected to a cluster, and quiet; a connection made here is closed again.

    The cluster is the one that this process is connected to. Else it is the one that `ray.init`
    finds, else one on this machine alone for the time being.
    """
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


def ray_package() -> Any:
    """Ray's module; raises `ConfigError` naming the way to install it when it is missing."""
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
