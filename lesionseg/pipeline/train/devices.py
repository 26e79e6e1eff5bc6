"""Where trainings may run at the same time: the devices, or the processor's cores, of each."""

import os

import torch

from lesionseg.errors import ConfigError
from lesionseg.pipeline.train.parallel import Environment
from lesionseg.training.device.accelerator import training_device
from lesionseg.training.settings import TrainerSettings

VISIBLE = "CUDA_VISIBLE_DEVICES"
AUTO = "auto"


def places_of(trainer: TrainerSettings, asked: int | str) -> list[Environment]:
    """The environment of each training that runs beside others, `trainer.devices` being one's.

    `asked` is a number, or "auto" for as many as the visible GPUs have room for, one on a CPU.
    More trainings than that share the GPUs; on a CPU they share the cores. Raises `ConfigError`
    where one training asks for more GPUs than there are.
    """
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


def _devices_of_one(devices: int | str, n_gpus: int) -> int:
    """A number; under `auto` a training has all of them to itself."""
    return int(devices) if str(devices).isdigit() else n_gpus
