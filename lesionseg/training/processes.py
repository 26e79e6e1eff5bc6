"""Device of a training; processes by torchrun or srun, sums over them, missing compiler."""

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
    """Return the type of the device to train on, `cuda` or `cpu`.

    The device is `cuda` if torch finds a GPU and the setting `accelerator` is not `cpu`.
    """
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def require_device(accelerator: str) -> None:
    """Raise `ConfigError` if the setting `accelerator` requires a GPU and torch finds none.

    `auto` and `cpu` require none.
    """
    if accelerator not in ("auto", "cpu") and training_device(accelerator) == "cpu":
        raise ConfigError(
            f"trainer.accelerator={accelerator}: torch finds no GPU here. Set "
            "trainer.accelerator=auto to train on the CPU; for a GPU, read docs/install.md."
        )


def require_compiler(trainer: TrainerConfig) -> None:
    """Raise `ConfigError` if `trainer.compile=true` but torch.compile lacks its compiler."""
    missing = find_missing_compiler(training_device(trainer.accelerator))
    if trainer.compile is True and missing:
        raise ConfigError(
            f"trainer.compile=true: torch.compile needs a compiler, and there is no {missing} "
            "here. Install gcc and g++, or leave trainer.compile out."
        )


def find_missing_compiler(device: str) -> str:
    """Return the name of the C or C++ compiler that torch.compile lacks on this machine.

    On a CPU, torch.compile needs a C++ compiler, because it translates the network to C++. On a
    GPU, Triton needs a C compiler for the code that starts its kernels. The result is "" if one is
    installed, and on systems other than Linux, which are not checked.

    Args:
        device: `cuda` or `cpu`.

    Returns:
        Alternatives joined by " or ", such as "gcc or clang".
    """
    names: tuple[str, ...] = (os.environ.get("CXX", "g++"),)
    if device == "cuda":
        names = (os.environ.get("CC", "gcc"), "clang")
    return "" if (sys.platform != "linux" or any(map(shutil.which, names))) else " or ".join(names)


def find_launcher(trainer: TrainerConfig) -> "ClusterEnvironment | None":
    """Return Lightning's environment class for torchrun or srun, if one has started this training.

    An environment tells Lightning the rank of this process and the number of processes. None means
    that this process is a training by itself. This applies in three cases:

    - Neither torchrun nor srun has started the process.
    - They have started a single process.
    - srun has started several tasks, but the settings have one device. Each task is then a separate
      training.

    For srun, `SLURM_NTASKS_PER_NODE` is set if it is missing, because Lightning asks for it.

    Raises:
        ConfigError: If the number of processes or nodes differs from the settings, if the settings
            have several nodes without a launcher, or if torchrun would restart processes that
            cannot connect again.
    """
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    env = os.environ
    if TorchElasticEnvironment.detect():
        _refuse_restarts()
        n_started = int(env["WORLD_SIZE"])
        n_per_node = int(env["LOCAL_WORLD_SIZE"])
        _require_started_as_set(trainer, "torchrun", n_per_node, n_started // n_per_node)
        return TorchElasticEnvironment() if n_started > 1 else None
    n_started = int(env.get(TASKS, "1"))  # srun's tasks; torchrun was handled above
    if n_started > 1 and not trainer.has_one_device:
        n_nodes = int(env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES", "1")))
        n_per_node = n_started // n_nodes
        env.setdefault("SLURM_NTASKS_PER_NODE", str(n_per_node))  # Lightning asks for it
        _require_started_as_set(trainer, "srun", n_per_node, n_started // n_per_node)
        return SLURMEnvironment(auto_requeue=False)  # a job continues from our own checkpoint
    if trainer.n_nodes > 1:
        raise ConfigError(
            f"trainer.lightning.num_nodes={trainer.n_nodes}: the processes of the other nodes have "
            "not been started. Start the command by torchrun or srun, or leave this key out."
        )
    return None


def _refuse_restarts() -> None:
    """Raise `ConfigError` if torchrun would restart processes that cannot connect again.

    Processes cannot connect again if torchrun lends its store of addresses to the processes
    (`TORCHELASTIC_USE_AGENT_STORE`). After a restart this store still has the addresses of the
    processes that died (seen with torch 2.13).
    """
    may_restart = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if may_restart and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise ConfigError(
            "--max-restarts: restarted processes would not find each other. Set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 and --rdzv-backend c10d, or leave it out."
        )


def _require_started_as_set(
    trainer: TrainerConfig, launcher: str, n_per_node: int, n_nodes: int
) -> None:
    """Raise `ConfigError` if the processes that a launcher started differ from the settings.

    Compared are the number of nodes, and the number of processes per node with the number of
    devices. `trainer.devices=auto` fits any number of processes.

    Args:
        trainer: The settings.
        launcher: "torchrun" or "srun", for the message.
        n_per_node: Number of processes per node that were started.
        n_nodes: Number of nodes on which they were started.
    """
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

    Processes are connected if torchrun or srun has started several of them. In the block, only the
    first process logs more than warnings. `MASTER_ADDR` and `MASTER_PORT` are set in the
    environment. After an error the processes stay connected, because the launcher ends them.

    Raises:
        ConfigError: If the GPU does not exist, or in the cases of `find_launcher`.
    """
    environment = find_launcher(trainer)
    devices = trainer.devices
    local_rank = environment.local_rank() if environment is not None else 0
    on_gpu = training_device(trainer.accelerator) == "cuda"
    if on_gpu:  # planning, trial steps and scoring use the same GPU as training
        device = devices[local_rank] if isinstance(devices, tuple) else local_rank
        _require_gpu(device, trainer)
        torch.cuda.set_device(device)
    # nothing to connect: one process, or an outer call has connected them
    if environment is None or distributed.is_initialized():
        yield
        return
    # `init_process_group` reads these two variables
    os.environ["MASTER_ADDR"] = environment.main_address
    os.environ["MASTER_PORT"] = str(environment.main_port)
    distributed.init_process_group(
        backend="nccl" if on_gpu else "gloo",
        timeout=PATIENCE,
        rank=environment.global_rank(),
        world_size=environment.world_size(),
    )
    package_log = logging.getLogger("lesionseg")
    level_before = package_log.level
    if not is_rank_zero():
        package_log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        package_log.setLevel(level_before)
    distributed.destroy_process_group()  # not after an error


def _require_gpu(device: int, trainer: TrainerConfig) -> None:
    """Raise `ConfigError` if this machine has no GPU with the number `device`, counted from 0."""
    n_gpus = torch.cuda.device_count()
    if device >= n_gpus:
        raise ConfigError(
            f"trainer.devices={trainer.devices}: torch finds no GPU {device} here. The numbers of "
            f"the GPUs are 0 to {n_gpus - 1}."
        )


def n_processes(trainer: TrainerConfig) -> int:
    """Return the number of processes that train together, one per device of each node.

    Processes that are not started yet are counted too, so that the settings can be checked before.
    """
    if distributed.is_initialized():
        return distributed.get_world_size()
    n_per_node = trainer.n_devices
    if n_per_node is None:  # all GPUs, or the CPU as one device
        on_gpu = training_device(trainer.accelerator) == "cuda"
        n_per_node = torch.cuda.device_count() if on_gpu else 1
    return trainer.n_nodes * n_per_node


def is_rank_zero() -> bool:
    """Return True if this process is the one that writes files and logs.

    It is the only process of the training, or the first of several.
    """
    return not distributed.is_initialized() or distributed.get_rank() == 0


def broadcast_from_rank_zero(make: Callable[[], T]) -> T:
    """Call `make` in the first process only, and return its result in all processes.

    If `make` fails, all processes raise an error, so that none waits. The first process raises the
    error itself. The other processes raise the same error if it is an error of lesionseg, otherwise
    a `TrainingError`.
    """
    if not distributed.is_initialized():
        return make()
    # the other processes have no result yet, so they pass a placeholder
    shared: list[Any] = _call_on_turn(make, is_turn=is_rank_zero()) or [None]
    distributed.broadcast_object_list(shared)  # replaces the item in the other processes
    result: T = shared[0]
    return result


def _to_shared_error(error: Exception) -> LesionsegError:
    """Return the error that the other processes raise if one process fails with `error`.

    An error of lesionseg is sent unchanged. Any other error becomes a `TrainingError` with its name
    and message.
    """
    if isinstance(error, LesionsegError):
        return error
    return TrainingError(f"Another process failed: {type(error).__name__}: {error}")


def sum_over_processes(sums: Tensor) -> Tensor:
    """Return the sums over all processes, with a gradient. All processes call it together.

    The gradient with respect to this process's `sums` is multiplied by the number of processes,
    because the processes average their gradients afterwards.
    """
    constant = sums.detach()
    total = constant.clone()
    distributed.all_reduce(total)  # replaces `total` by the sum, without a gradient
    # `sums - constant` is 0, but its gradient with respect to `sums` is 1
    return total + distributed.get_world_size() * (sums - constant)


def call_on_local_rank_zero_first(make: Callable[[], T]) -> T:
    """Call `make` in every process, on each node in one process before the others.

    The function is used for work whose results are files on the node, such as a cache: the first
    process writes the files, and the waiting processes find them. If `make` fails in one process,
    all processes raise an error.

    Returns:
        The result of this process's call.
    """
    if not distributed.is_initialized():
        return make()
    # number of this process on its node, from torchrun or srun
    comes_first = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID")) == "0"
    results = _call_on_turn(make, is_turn=comes_first)
    results += _call_on_turn(make, is_turn=not comes_first)
    return results[0]  # one of the two calls was this process's turn


def _call_on_turn(make: Callable[[], T], *, is_turn: bool) -> list[T]:
    """Call `make` if it is this process's turn, and tell all processes if the call failed.

    All processes call this function together and wait for each other. If `make` fails in one of
    them, all of them raise an error.

    Returns:
        A list with the result, or an empty list if it is not this process's turn.
    """
    result: list[T] = []
    own_error: Exception | None = None
    if is_turn:
        try:
            result.append(make())
        except Exception as error:  # raised below, because the other processes wait for this one
            own_error = error
    errors_of_processes: list[Any] = [None] * distributed.get_world_size()
    # each process gets the errors of all processes, None for those without an error
    distributed.all_gather_object(errors_of_processes, own_error and _to_shared_error(own_error))
    if own_error is not None:
        raise own_error
    for other_error in errors_of_processes:
        if other_error is not None:
            raise other_error
    return result
