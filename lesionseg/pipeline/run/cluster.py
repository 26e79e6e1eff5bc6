"""A Ray cluster: how to reach it, and tasks that go on where a worker has died."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from lesionseg.core import CaseFiles
from lesionseg.errors import ConfigError, LesionsegError, TrainingError, pip_install
from lesionseg.io.case_ids import printable_id
from lesionseg.io.limits import FileLimits, limits, set_limits
from lesionseg.pipeline.run.outcome import bar

EngineName = Literal["local", "ray"]
MAX_ATTEMPTS = 3
MOST_PER_BATCH = 32
_CALLS = 4  # for each worker, so that none waits long for the last
T = TypeVar("T")


def run_tasks(tasks: Sequence[Callable[[], T]], *, gpus: int = 0) -> list[T | LesionsegError]:
    """What each task returns, or raises of our errors, in order.

    A task whose worker dies begins again in another: it must find what the first one has left.
    Each has a process of its own, with `gpus` of them or an equal share of the cores. Machines must
    see the same paths. The cluster: see `connected`. Three dead workers are a `TrainingError`.
    """
    ray = ray_package()
    with connected(ray):
        cores = _cores(ray) // max(len(tasks), 1)
        takes = {"num_gpus": gpus} if gpus else {"num_cpus": max(1, cores)}
        return list(_ends(ray, tasks, max_calls=1, **takes))


def spread(
    what: str,
    work: Callable[[Sequence[CaseFiles]], None],
    cases: Sequence[CaseFiles],
    *,
    n_bytes: int = 0,
) -> None:
    """Let `work` go through all cases on a Ray cluster, some a call, under a bar called `what`.

    As many calls at a time as the cluster has cores, and room for `n_bytes` each: Ray counts them.
    A call whose worker dies is made again: see `run_tasks`; after three, its cases go one by one.
    Raises the first of our errors, and `TrainingError` naming a case of which three workers died.
    """
    ray = ray_package()
    with connected(ray), bar(what) as advance:
        size, n_done = batch_size(len(cases), _cores(ray)), 0
        shares = [cases[i : i + size] for i in range(0, len(cases), size)]
        room = max(int(node["Resources"].get("memory", 0)) for node in ray.nodes())
        ends_of = partial(_ends, ray, num_cpus=1, memory=min(n_bytes, room))
        ends = ends_of([partial(work, share) for share in shares])
        for share, end in zip(shares, ends, strict=True):
            if isinstance(end, TrainingError):
                _raise(share, ends_of([partial(work, [files]) for files in share]))
            else:
                _raise(share, [end])
            n_done += len(share)
            advance("", n_done, len(cases))


def _raise(cases: Sequence[CaseFiles], ends: Iterable[LesionsegError | None]) -> None:
    """The first of the errors, if there is one."""
    for files, end in zip(cases, ends, strict=False):
        if isinstance(end, TrainingError):
            name = printable_id(files.case)
            raise TrainingError(f"Case {name}: {end}") from end
        if end is not None:
            raise end


def batch_size(n_cases: int, n_workers: int) -> int:
    """Cases a call: enough that reading and writing overlap, and four calls for each worker.

    >>> batch_size(10_000, 4), batch_size(20, 2), batch_size(1, 1)
    (32, 3, 1)
    """
    return max(1, min(MOST_PER_BATCH, -(-n_cases // (_CALLS * n_workers))))


def _cores(ray: Any) -> int:
    return int(ray.cluster_resources().get("CPU", 1))


def _ends(
    ray: Any, tasks: Sequence[Callable[[], T]], **options: int
) -> Iterator[T | LesionsegError]:
    work = ray.remote(max_retries=MAX_ATTEMPTS - 1, **options)(_work)
    packed = [ray.cloudpickle.dumps(task) for task in tasks]
    begun = [work.remote(task, Path.cwd(), limits()) for task in packed]
    return (_ended(ray, one) for one in begun)


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
    """Connected to a cluster; a connection made here is quiet, and closed again.

    The cluster is the one that this process is connected to. Else it is the one that `ray.init`
    finds, else one on this machine alone for the time being.
    """
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
    except ImportError as error:
        raise ConfigError(
            "The engine ray needs packages that are not installed.",
            where="engine",
            seen=str(error),
            remedy=pip_install("ray"),
        ) from error
    return ray
