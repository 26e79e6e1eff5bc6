"""The device of a training, and its processes if torchrun or srun has started several."""

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed

from lesionseg.config import TrainerConfig
from lesionseg.errors import ConfigError, LesionsegError, TrainingError

if TYPE_CHECKING:
    from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment

T = TypeVar("T")
TASKS = "SLURM_STEP_NUM_TASKS"  # srun sets it for its tasks; a batch script does not have it
# the longest wait of other processes while the first one reads, plans, validates and scores
PATIENCE = timedelta(days=1)


def training_device(accelerator: str) -> str:
    """Return `cuda` if torch finds a GPU and `accelerator` is not `cpu`, otherwise `cpu`."""
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def require_device(accelerator: str) -> None:
    """Raise `ConfigError` if the settings require a GPU and there is none."""
    if accelerator not in ("auto", "cpu") and training_device(accelerator) == "cpu":
        raise ConfigError(
            f"trainer.accelerator={accelerator}: torch finds no GPU here. Set "
            "trainer.accelerator=auto to train on the CPU; for a GPU, read docs/install.md."
        )


def require_compiler(trainer: TrainerConfig) -> None:
    """Raise `ConfigError` if `trainer.compile=true` needs a compiler that is missing."""
    missing = find_missing_compiler(training_device(trainer.accelerator))
    if trainer.compile is True and missing:
        raise ConfigError(
            f"trainer.compile=true: torch.compile needs a compiler, and there is no {missing} "
            "here. Install gcc and g++, or leave trainer.compile out."
        )


def find_missing_compiler(device: str) -> str:
    """Return the names of the compilers of `torch.compile` if none is found (Linux only), or "".

    torch.compile translates the network to C++ on a CPU; on a GPU, Triton compiles its launchers.
    """
    names: tuple[str, ...] = (os.environ.get("CXX", "g++"),)
    if device == "cuda":
        names = (os.environ.get("CC", "gcc"), "clang")
    return "" if (sys.platform != "linux" or any(map(shutil.which, names))) else " or ".join(names)


def find_launcher(trainer: TrainerConfig) -> "ClusterEnvironment | None":
    """Return Lightning's environment of torchrun or srun, or None for a training of its own.

    None is returned if neither has started several processes, and for tasks of srun if the settings
    have one device: these are separate trainings. For srun, `SLURM_NTASKS_PER_NODE` is set if it is
    missing. Raise `ConfigError` if the number of processes or nodes differs from the settings, if
    the settings have several nodes without a launcher, or if torchrun would restart processes that
    cannot connect again.
    """
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    env = os.environ
    if TorchElasticEnvironment.detect():
        _refuse_restarts()
        n_started = int(env["WORLD_SIZE"])
        n_per_node = int(env["LOCAL_WORLD_SIZE"])
        _check_started(trainer, "torchrun", n_per_node, n_started // n_per_node)
        return TorchElasticEnvironment() if n_started > 1 else None
    n_started = int(env.get(TASKS, "1"))
    if n_started > 1 and not trainer.has_one_device:
        n_nodes = int(env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES", "1")))
        n_per_node = n_started // n_nodes
        env.setdefault("SLURM_NTASKS_PER_NODE", str(n_per_node))  # Lightning asks for it
        _check_started(trainer, "srun", n_per_node, n_started // n_per_node)
        return SLURMEnvironment(auto_requeue=False)  # a job continues from our own checkpoint
    if trainer.n_nodes > 1:
        raise ConfigError(
            f"trainer.lightning.num_nodes={trainer.n_nodes}: the processes of the other nodes have "
            "not been started. Start the command by torchrun or srun, or leave this key out."
        )
    return None


def _refuse_restarts() -> None:
    """Raise `ConfigError` if torchrun would restart processes that cannot connect again.

    The shared store keeps addresses of processes that died (seen with torch 2.13).
    """
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise ConfigError(
            "--max-restarts: restarted processes would not find each other. Set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 and --rdzv-backend c10d, or leave it out."
        )


def _check_started(trainer: TrainerConfig, launcher: str, n_per_node: int, n_nodes: int) -> None:
    """Raise `ConfigError` if a launcher's number of processes or nodes differs from those set."""
    has_all_devices = trainer.n_devices is None  # trainer.devices=auto fits any number
    fits_devices = has_all_devices or trainer.n_devices == n_per_node
    if not fits_devices or trainer.n_nodes != n_nodes:
        raise ConfigError(
            f"{launcher} started {n_per_node} processes on each of "
            f"{n_nodes} nodes, but the settings are {trainer.devices} on each of "
            f"{trainer.n_nodes}. "
            f"Set trainer.devices={n_per_node} and +trainer.lightning.num_nodes={n_nodes}."
        )


@contextmanager
def join_processes(trainer: TrainerConfig) -> Iterator[None]:
    """Choose this process's GPU, and connect it with the other processes of its training.

    Only the first process logs more than warnings. A training of a single process has nothing to
    connect. `MASTER_ADDR` and `MASTER_PORT` are set. After an error the processes stay connected,
    because the launcher ends them. Raise `ConfigError` if the GPU does not exist, or as
    `find_launcher` does.
    """
    environment = find_launcher(trainer)
    devices = trainer.devices
    local = environment.local_rank() if environment is not None else 0
    on_gpu = training_device(trainer.accelerator) == "cuda"
    if on_gpu:  # planning, trial steps and scoring use the same GPU as training
        device = devices[local] if isinstance(devices, tuple) else local
        _require_gpu(device, trainer)
        torch.cuda.set_device(device)
    if environment is None or distributed.is_initialized():
        yield
        return
    os.environ["MASTER_ADDR"] = environment.main_address
    os.environ["MASTER_PORT"] = str(environment.main_port)
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        timeout=PATIENCE,
        rank=environment.global_rank(),
        world_size=environment.world_size(),
    )
    ours = logging.getLogger("lesionseg")
    level = ours.level
    if not is_rank_zero():
        ours.setLevel(logging.WARNING)
    try:
        yield
    finally:
        ours.setLevel(level)
    distributed.destroy_process_group()  # not after an error


def _require_gpu(device: int, trainer: TrainerConfig) -> None:
    """Raise `ConfigError` if this machine has no GPU of this number."""
    n_gpus = torch.cuda.device_count()
    if device >= n_gpus:
        raise ConfigError(
            f"trainer.devices={trainer.devices}: torch finds no GPU {device} here. The numbers of "
            f"the GPUs are 0 to {n_gpus - 1}."
        )


def n_processes(trainer: TrainerConfig) -> int:
    """Return the number of processes that train together, including those not yet started."""
    if distributed.is_initialized():
        return distributed.get_world_size()
    n_per_node = trainer.n_devices
    if n_per_node is None:  # all GPUs, or the CPU as one device
        on_gpu = training_device(trainer.accelerator) == "cuda"
        n_per_node = torch.cuda.device_count() if on_gpu else 1
    return trainer.n_nodes * n_per_node


def is_rank_zero() -> bool:
    """Return True if this process writes files: it is the only one, or the first of several."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def broadcast_from_rank_zero(make: Callable[[], T]) -> T:
    """Call `make` in the first process, and return its result in all of them.

    If it fails, all of them raise its error; the others raise a `TrainingError` in place of an
    error that is not of lesionseg.
    """
    if not distributed.is_initialized():
        return make()
    shared: list[Any] = _call_if(make, is_turn=is_rank_zero()) or [None]
    distributed.broadcast_object_list(shared)  # replaces the item in the other processes
    result: T = shared[0]
    return result


def _to_shared_error(error: Exception) -> LesionsegError:
    """Return the error that the other processes raise if one of them fails with `error`."""
    if isinstance(error, LesionsegError):
        return error
    return TrainingError(f"Another process failed: {type(error).__name__}: {error}")


def sum_over_processes(sums: Tensor) -> Tensor:
    """Return the sums over all processes. All processes call it together.

    The gradient is that of the process's own sums, times the number of processes, because the
    processes average their gradients.
    """
    own = sums.detach()
    total = own.clone()
    distributed.all_reduce(total)
    return total + distributed.get_world_size() * (sums - own)


def call_on_local_rank_zero_first(make: Callable[[], T]) -> T:
    """Call `make` in every process, and return the process's own result.

    On each node, one process calls it first. The others wait, so that they find its files. If it
    fails in one process, all of them raise an error.
    """
    if not distributed.is_initialized():
        return make()
    comes_first = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID")) == "0"
    made = _call_if(make, is_turn=comes_first)
    made += _call_if(make, is_turn=not comes_first)
    return made[0]


def _call_if(make: Callable[[], T], *, is_turn: bool) -> list[T]:
    """Call `make` if it is this process's turn. Return a list of its result, or an empty list.

    All processes call this together. If `make` fails in one of them, all of them raise an error.
    """
    made: list[T] = []
    failure: Exception | None = None
    if is_turn:
        try:
            made.append(make())
        except Exception as error:  # the other processes would wait for a day
            failure = error
    shared: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(shared, failure and _to_shared_error(failure))
    if failure is not None:
        raise failure
    for other in shared:
        if other is not None:
            raise other
    return made
