"""Who starts the processes that train: lesionseg itself, also within a job of SLURM."""

import os

from lesionseg.errors import ConfigError

TASKS = "SLURM_STEP_NUM_TASKS"  # srun tells it to what it starts; a batch script does not have it


def require_own_processes(devices: int | str) -> None:
    """Raise `ConfigError` where srun has started the command more than once for many devices.

    Each of them would start a process for every device. With one device, each is a training of
    its own.
    """
    tasks = int(os.environ.get(TASKS, "1"))
    if tasks > 1 and devices not in (1, "1"):
        raise ConfigError(
            "SLURM has started this command several times, and each would start processes.",
            where="trainer.devices",
            seen=f"{devices} devices in each of {tasks} tasks",
            remedy="ask for one task with all GPUs, such as --ntasks=1 --gpus-per-node=4.",
        )
