"""Run several trainings at the same time, each a process with its own devices and log."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import Thread

import torch

from lesionseg.errors import ConfigError, LesionsegError, TrainingError
from lesionseg.io.limits import FileLimits, limits, set_limits
from lesionseg.pipeline.run.cluster import run_tasks
from lesionseg.pipeline.run.run_log import LINE, LOG
from lesionseg.training.device.accelerator import training_device
from lesionseg.training.device.processes import launched
from lesionseg.training.settings import TrainerSettings

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 15.0  # for a training that was asked to end
VISIBLE = "CUDA_VISIBLE_DEVICES"
AUTO, RAY = "auto", "ray"
Environment = Mapping[str, str]


@dataclass(frozen=True)
class Job:
    """What a process is to do, what it is called, and the folder of its log.

    `task` reaches the process pickled: a function of a module, or a `partial` of one.
    """

    name: str
    folder: Path
    task: Callable[[], object]


def run_together(jobs: Sequence[Job], places: Sequence[Environment]) -> None:
    """Run all jobs, one at a time in each place; a place is what its environment adds to ours.

    A job that fails leaves the others to finish. An interruption ends them all, and so does the
    end of this process. Raises `TrainingError` that names those that failed.
    """
    free, waiting, failed = list(places), list(jobs), list[Job]()
    running: dict[SpawnProcess, tuple[Job, Environment]] = {}
    try:
        while waiting or running:
            while waiting and free:
                job, place = waiting.pop(0), free.pop(0)
                running[_start(job, place)] = job, place
            wait([process.sentinel for process in running])
            for process in [p for p in running if not p.is_alive()]:
                job, place = running.pop(process)
                free.append(place)
                if not _succeeded(process, job):
                    failed.append(job)
    finally:
        _end(list(running))
    if failed:
        raise _failure(failed)


def run_on_ray(jobs: Sequence[Job], trainer: TrainerSettings) -> None:
    """Run all jobs on a Ray cluster; one whose worker dies goes on in another.

    Raises `TrainingError` that names those that failed.
    """
    on_gpu = trainer.accelerator in ("gpu", "cuda") or training_device(trainer.accelerator) != "cpu"
    gpus = max(1, _devices_of_one(trainer.devices, 1)) if on_gpu else 0
    for job in jobs:
        log.info("%s begins on Ray; its log: %s", job.name, job.folder / LOG)
    ends = run_tasks([partial(_logged, job) for job in jobs], gpus=gpus)
    failed = [job for job, end in zip(jobs, ends, strict=True) if end is not True]
    if failed:
        raise _failure(failed)


def _logged(job: Job) -> bool:
    """Do a job; what it says, its error included, goes to its log."""
    job.folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(job.folder / LOG, encoding="utf-8")
    handler.setFormatter(logging.Formatter(LINE))
    ours = logging.getLogger("lesionseg")
    ours.setLevel(logging.INFO)
    ours.addHandler(handler)
    try:
        job.task()
    except LesionsegError as error:
        ours.error("Error: %s", error)
        raise
    finally:
        ours.removeHandler(handler)
        handler.close()
    return True


def _start(job: Job, place: Environment) -> SpawnProcess:
    process = get_context("spawn").Process(target=_work, args=(job, limits()), name=job.name)
    with _environment(place):  # before the process begins: CUDA reads its variables once
        process.start()
    where = ", ".join(f"{name}={value}" for name, value in place.items())
    log.info("%s begins (%s); its log: %s", job.name, where, job.folder / LOG)
    return process


def _succeeded(process: SpawnProcess, job: Job) -> bool:
    if process.exitcode == 0:
        log.info("%s is finished.", job.name)
        return True
    log.error("%s failed; the others go on. See %s", job.name, job.folder / LOG)
    return False


def _end(processes: Sequence[SpawnProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(PATIENCE_SECONDS)
        process.kill()


def _failure(failed: Sequence[Job]) -> TrainingError:
    names = ", ".join(job.name for job in failed)
    lines = (failed[0].folder / LOG).read_text("utf-8", errors="replace").split("\n")
    return TrainingError(
        f"{names} failed; what else there was to train is finished.",
        where=", ".join(str(job.folder / LOG) for job in failed),
        seen=next((line for line in reversed(lines) if line.strip()), "an empty log"),
        remedy="the same command goes on with what is missing.",
    )


@contextmanager
def _environment(added: Environment) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(added)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _work(job: Job, limits: FileLimits) -> None:
    """The life of a process: all that it says goes to its log."""
    set_limits(limits)
    _write_to(job.folder / LOG)
    Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as by Ctrl-C, in good order
    try:
        job.task()
    except LesionsegError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted.")


def _write_to(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        for standard in (sys.stdout, sys.stderr):
            os.dup2(stream.fileno(), standard.fileno())
    logging.basicConfig(level=logging.WARNING, format=LINE)
    logging.getLogger("lesionseg").setLevel(logging.INFO)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def places_of(trainer: TrainerSettings, asked: int | str) -> list[Environment]:
    """The environment of each training that runs beside others, `trainer.devices` being one's.

    `asked` is a number, or "auto" for as many as the visible GPUs have room for, one on a CPU.
    More trainings than that share the GPUs; on a CPU they share the cores. Raises `ConfigError`
    where one training asks for more GPUs than there are. Processes that a launcher started train
    the folds in turn, together.
    """
    if launched(trainer) is not None:
        return [{}]
    if training_device(trainer.accelerator) != "cuda":
        n = 1 if asked == AUTO else int(asked)
        return [{"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // n))}] * n
    gpus = visible_gpus()
    each = max(1, _devices_of_one(trainer.devices, len(gpus)))
    groups = [gpus[i : i + each] for i in range(0, len(gpus) - each + 1, each)]
    if not groups:
        raise ConfigError(
            "There are fewer GPUs than one training asks for.",
            where="trainer.devices",
            seen=f"{trainer.devices} of {len(gpus)}",
        )
    n = len(groups) if asked == AUTO else int(asked)
    return [{VISIBLE: ",".join(groups[i % len(groups)])} for i in range(n)]


def visible_gpus() -> list[str]:
    """What CUDA calls the GPUs that this process may use: numbers, or names of MIG's parts."""
    n = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return named[:n] if named else [str(i) for i in range(n)]


def _devices_of_one(devices: object, n_gpus: int) -> int:
    """A number; under `auto` a training has all of them to itself."""
    return int(str(devices)) if str(devices).isdigit() else n_gpus
