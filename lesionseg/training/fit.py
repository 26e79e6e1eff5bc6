"""Lightning's trainer: gradient clipping, precision, devices, checkpoint interval, errors.

This is the entry point of the package.
"""

import logging
import re
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from torch import nn
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.utils.data import Dataset

from lesionseg.config import SamplingConfig, Spec, TrainerConfig, build_object, check_arguments
from lesionseg.errors import ConfigError, TrainingError, count, find_error
from lesionseg.host_memory import reuse_memory
from lesionseg.models.build import autocast_dtype
from lesionseg.ops.device_memory import first_line, is_out_of_memory, says_out_of_memory
from lesionseg.plan.plan import Plan
from lesionseg.training.batch_targets import Batch
from lesionseg.training.callbacks import (
    AtomicCheckpoints,
    FocalStatistics,
    History,
    LastCheckpoint,
)
from lesionseg.training.checkpoints import (
    BEST,
    LAST,
    read_checkpoint,
    read_if_present,
    unusable_checkpoint,
)
from lesionseg.training.module import LesionModule, count_tiles_per_step
from lesionseg.training.processes import (
    PATIENCE,
    broadcast_from_rank_zero,
    find_launcher,
    is_rank_zero,
    training_device,
)
from lesionseg.training.tile_stream import LesionData
from lesionseg.training.validation import Validate, VolumeValidation

log = logging.getLogger(__name__)

CHECKPOINTS = Path("checkpoints")
CHECKPOINT_EVERY = timedelta(seconds=15)
STEPS_PER_EPOCH = 50  # the shares of kinds of tiles are exact over this many steps
GRADIENT_CLIP = 12.0  # default norm; trainer.lightning.gradient_clip_val replaces it
# Default number of steps from one row of metrics.csv to the next, by device.
# trainer.lightning.log_every_n_steps replaces it. A GPU waits for the host at each row.
LOG_EVERY = {"cpu": 5, "cuda": 50}
# Lightning's names of the number formats in which a device trains fastest
PRECISIONS: Mapping[torch.dtype, Any] = {
    torch.bfloat16: "bf16-mixed",
    torch.float16: "16-mixed",
    torch.float32: "32-true",
}
SECONDS_TO_END = 10.0  # for a spawned process to end after an interruption
# the error at the end of a traceback: the class with its modules, then ": " and the message, which
# may have several lines up to the end of the text
_ERROR_LINE = re.compile(r"^(?P<name>[\w.]+): (?P<message>.*)\Z", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, eq=False)
class FitResult:
    """The result of a training.

    Attributes:
        network: The network with the final weights, in eval mode on the CPU.
        steps: Number of steps, including the skipped ones. If the training was interrupted,
            `steps`, `skipped` and `minutes` are those of all its runs together.
        skipped: Number of steps whose gradient was not finite, so that they changed no weights.
        minutes: Duration of the training, with its validations.
        device: `cuda` or `cpu`.
    """

    network: nn.Module
    steps: int
    skipped: int
    minutes: float
    device: str


def fit(
    module: LesionModule,
    tiles: Dataset[Batch],
    run_dir: Path,
    *,
    validate: Validate | None = None,
    callbacks: Sequence[pl.Callback | Spec] = (),
    loggers: Sequence[Spec] = (),
) -> FitResult:
    """Train the module's network on numbered `tiles`, and return it with its final weights.

    The final weights are those of the last step, unless an earlier validation had a better score
    (`VolumeValidation`).

    - An interrupted training continues from `run_dir/checkpoints/last.ckpt`.
    - A finished training is not continued. It is finished if its budget is spent, or if a callback
      such as `EarlyStopping` ended it.
    - Errors of reading tiles and of `validate` are passed on, except a lack of memory.

    Args:
        module: The network, its objective, plan, budget and optimiser.
        tiles: A `TileDataset`, or another dataset that returns the same tile for a number each time
            (see `read_batches`).
        run_dir: Receives checkpoints and metrics.csv.
        validate: Returns scores by name for the network in eval mode. None trains without
            validations.
        callbacks: Lightning callbacks, or their classes and arguments, which are built if the
            training is not finished.
        loggers: Classes and arguments of Lightning loggers.

    Returns:
        The network, and the numbers of steps and minutes.

    Raises:
        TrainingError: If a checkpoint cannot be read or does not fit the network, if an interrupted
            training cannot continue on these devices, or if the gradient of ten steps in a row is
            not finite.
        ConfigError: If memory runs out in a step or in a validation, or if Lightning refuses the
            settings or lacks a package.
    """
    last = run_dir / CHECKPOINTS / LAST
    settings = module.settings
    before = broadcast_from_rank_zero(partial(read_if_present, last)) or {}
    steps_before = before.get("global_step", 0)
    minutes_before = before.get("minutes", 0.0)
    ended_early = before.get("ended_early", False)  # checkpoints of 1.0 do not state it
    max_steps = settings.max_steps
    max_minutes = settings.max_minutes
    if module.has_default_budget:
        # it follows from the device, and this start may have found another one
        max_steps = before.get("max_steps", max_steps)
        max_minutes = before.get("max_minutes", max_minutes)
    # a limit of None is no limit
    are_steps_spent = steps_before >= (max_steps or inf)
    are_minutes_spent = minutes_before >= (max_minutes or inf)
    device = training_device(settings.accelerator)
    # train, unless the training is finished
    if not (are_steps_spent or are_minutes_spent or ended_early):
        _require_equal_steps(before, module, last)
        data = LesionData(tiles, module.plan, settings)
        on_cpu = device == "cpu"
        with _convert_errors(module, last, steps_before), _lightning_settings(on_cpu=on_cpu):
            trainer = make_trainer(module, run_dir, steps_before, callbacks, loggers, validate)
            resumed = last if before else None
            try:
                trainer.fit(module, data, ckpt_path=resumed, weights_only=True)
            except Exception as error:
                # a scheduler's signal ended the loader's workers: see `LastCheckpoint.has_stopped`
                if any(
                    getattr(callback, "has_stopped", False)
                    for callback in trainer.checkpoint_callbacks
                ):
                    raise KeyboardInterrupt from error
                raise
            finally:
                _end_processes(trainer)
    # load the final weights, also those of a training that was finished before
    after = broadcast_from_rank_zero(partial(read_checkpoint, last))
    _load_final_weights(module, run_dir / CHECKPOINTS, after)
    network = module.network
    network.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    steps = after["global_step"]
    minutes = after["minutes"]
    log.info("Trained %d steps in %.1f minutes.", steps, minutes)
    return FitResult(network.eval(), steps, after["skipped"], minutes, device)


def _require_equal_steps(before: Mapping[str, Any], module: LesionModule, last: Path) -> None:
    """Raise `TrainingError` if an interrupted training cannot continue with equal steps here.

    There are two reasons:

    - The number of tiles per step differs, such as with fewer GPUs. The learning rate depends on
      it.
    - The device differs, and the training has the default budget, which depends on the device.

    Args:
        before: The content of the checkpoint, empty for a new training. An entry that is missing,
            as in version 1.0, counts as equal.
        module: The module that would continue the training.
        last: The file of the checkpoint, for messages.
    """
    n_tiles = count_tiles_per_step(module.settings, module.plan)
    n_before = before.get("tiles_per_step", n_tiles)
    device = training_device(module.settings.accelerator)
    device_before = before.get("device", device)
    if n_before != n_tiles:
        raise TrainingError(
            f"{last}: this training has {n_before} tiles per step, but {n_tiles} on the devices "
            "that were found here. Continue on as many devices as before."
        )
    if device_before != device and module.has_default_budget:
        raise TrainingError(
            f"{last}: this training began on {device_before} with the default budget of that "
            f"device, and torch finds only {device} here. Continue on {device_before}."
        )


@contextmanager
def _convert_errors(module: LesionModule, last: Path, steps_before: int) -> Iterator[None]:
    """Convert the errors of Lightning and torch in the block to the errors that `fit` documents.

    An interruption (Ctrl-C) is logged with advice on how to continue. Other errors are passed on
    unchanged.

    Args:
        module: The module that is trained.
        last: The file of the checkpoint from which an interrupted training continues.
        steps_before: Number of steps that this checkpoint already contains.
    """
    try:
        yield
    except ProcessRaisedException as error:  # of a process that Lightning spawned
        raise _error_of_process(error, module.plan, last) from error
    except (RuntimeError, KeyError, MemoryError) as error:
        if is_out_of_memory(error):
            # `global_step` counts the complete steps
            raise _out_of_memory(module.plan, str(error), module.global_step + 1) from error
        # torch names the state_dict if the weights or the optimiser of the checkpoint do not fit
        is_before_first_step = module.global_step <= steps_before
        if is_before_first_step and "state_dict" in str(error):
            raise unusable_checkpoint(last, str(error)) from error
        raise
    except ImportError as error:  # a callback or logger looks for its package when it starts
        raise ConfigError(
            f"callbacks, logger: {first_line(str(error))} Install the package that is missing, or "
            "leave the class out."
        ) from error
    except KeyboardInterrupt:
        advice = "No checkpoint was written yet."
        if last.is_file():
            # last is run_dir/checkpoints/last.ckpt
            advice = f"To continue, run the command again with run_dir={last.parent.parent}."
        # the step of processes that Lightning spawned is unknown here
        where = f" at step {module.global_step}" if module.global_step else ""
        if is_rank_zero():
            log.warning("Training stopped%s. %s", where, advice)
        raise


def _error_of_process(error: ProcessRaisedException, plan: Plan, last: Path) -> Exception:
    """Convert the error of a spawned process to the error that a single process would raise.

    Lightning passes on only the text of the traceback, so the class and message are read from it.
    The error is returned unchanged if it is none of these: an error of lesionseg, a lack of memory,
    or a checkpoint that does not fit the network.

    Args:
        error: torch's error, whose message is the traceback of the process.
        plan: The plan, for the advice if memory ran out.
        last: The file of the checkpoint, for messages.
    """
    # of chained errors, the last one left the process
    traceback = str(error).rpartition("Traceback (most recent call last):")[2]
    error_line = _ERROR_LINE.search(traceback)
    if error_line is None:
        return error
    name = error_line["name"]
    message = error_line["message"].strip()
    # first, because the message of an error of lesionseg may quote another error
    error_class = find_error(name.removeprefix("lesionseg.errors."))
    if error_class is not None:
        return error_class(message)
    if name.endswith("MemoryError") or says_out_of_memory(message):
        return _out_of_memory(plan, message)
    # torch names the state_dict if the weights or the optimiser of the checkpoint do not fit
    return unusable_checkpoint(last, message) if "state_dict" in message else error


def _end_processes(trainer: pl.Trainer) -> None:
    """End the processes that Lightning spawned, if some still run after an interruption.

    A process that does not end within `SECONDS_TO_END` is killed. Without this function, the
    processes would train on after this process has released the lock of the run directory.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _MultiProcessingLauncher):
        return
    for process in launcher.procs:
        if process.is_alive():
            process.terminate()
    for process in launcher.procs:
        process.join(SECONDS_TO_END)
        if process.is_alive():  # it waits for another process
            process.kill()
            process.join()


def _load_final_weights(module: LesionModule, folder: Path, after: dict[str, Any]) -> None:
    """Load the final weights of a training into the module, in place.

    The final weights are those in `best.ckpt` or, if no validation wrote this file, those of the
    last step.

    Args:
        module: Receives the weights.
        folder: The folder of the checkpoints.
        after: The content of the last checkpoint.

    Raises:
        TrainingError: If the weights cannot be read or do not fit the network.
    """
    path = folder / BEST
    checkpoint = broadcast_from_rank_zero(partial(read_if_present, path))
    if checkpoint is None:
        path = folder / LAST
        checkpoint = after
    else:
        log.info("The weights of step %d are kept.", checkpoint["global_step"])
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise unusable_checkpoint(path, str(error)) from error


def with_lesion_in_each_step(sampling: SamplingConfig, tiles_per_step: int) -> SamplingConfig:
    """Return the sampling settings with `lesion_share` raised, so that each step sees a lesion.

    `lesion_share` is the fraction of tiles that contain a lesion. It is raised to 1 /
    `tiles_per_step`, if it is lower. It is not changed if it is 0, or if a step has a single tile.

    Args:
        sampling: The settings of the user.
        tiles_per_step: Number of tiles of an optimiser step, over all processes and accumulated
            batches.
    """
    if not sampling.lesion_share or tiles_per_step == 1:
        return sampling
    share = max(sampling.lesion_share, 1 / tiles_per_step)
    return sampling.model_copy(update={"lesion_share": share})


def make_trainer(
    module: LesionModule,
    run_dir: Path,
    n_steps: int,
    callbacks: Sequence[pl.Callback | Spec],
    loggers: Sequence[Spec],
    validate: Validate | None,
) -> pl.Trainer:
    """Return Lightning's trainer with the callbacks of this package and those of the caller.

    An existing metrics.csv in `run_dir` keeps the rows of the first `n_steps` steps.

    Args:
        module: The module to train.
        run_dir: Receives checkpoints and metrics.csv.
        n_steps: The number of steps that a resumed training has already done.
        callbacks: Lightning callbacks, or their classes and arguments, which are built here.
        loggers: Classes and arguments of Lightning loggers.
        validate: Returns scores by name for the network; None trains without validations.

    Raises:
        ConfigError: If Lightning refuses the settings, or a callback or logger cannot be built.
    """
    settings = module.settings
    all_callbacks: list[pl.Callback] = [FocalStatistics()]
    all_callbacks += [
        build_object(it, "callbacks") if isinstance(it, Mapping) else it for it in callbacks
    ]
    if validate is not None:
        every = settings.validate_every_minutes
        minutes = float(every) if isinstance(every, int | float) else None  # None: only at the end
        all_callbacks.append(VolumeValidation(validate, minutes, run_dir / CHECKPOINTS))
    # after the validation, so that the checkpoint contains its result
    all_callbacks.append(LastCheckpoint(run_dir / CHECKPOINTS, CHECKPOINT_EVERY))
    built_loggers = [build_object(_with_save_dir(spec, run_dir), "logger") for spec in loggers]
    return _construct_trainer(
        settings, run_dir, all_callbacks, [History(run_dir, n_steps), *built_loggers]
    )


def check_trainer(
    settings: TrainerConfig, run_dir: Path, callbacks: Sequence[Spec], loggers: Sequence[Spec]
) -> None:
    """Raise `ConfigError` if the settings of Lightning's trainer, callbacks or loggers are wrong.

    This check runs before the plan is made. It constructs the trainer without the user's callbacks
    and loggers, because their constructors may write files. For these, it imports the classes and
    checks the names of their arguments.

    Args:
        settings: The settings of the trainer.
        run_dir: The folder that the trainer would write to.
        callbacks: Classes and arguments of callbacks.
        loggers: Classes and arguments of loggers.
    """
    check_arguments(callbacks, "callbacks")
    check_arguments([_with_save_dir(spec, run_dir) for spec in loggers], "logger")
    own_callbacks: list[pl.Callback] = [LastCheckpoint(run_dir / CHECKPOINTS, CHECKPOINT_EVERY)]
    with _lightning_settings(on_cpu=False):
        _construct_trainer(settings, run_dir, callbacks=own_callbacks, loggers=())


def _with_save_dir(spec: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    """Return a logger's class and arguments with `save_dir=run_dir`.

    A `save_dir` that the user set stays. It is the argument by which Lightning's loggers receive
    their folder.
    """
    return {"save_dir": run_dir, **spec}  # an entry of `spec` replaces the first one


def _construct_trainer(
    settings: TrainerConfig,
    run_dir: Path,
    callbacks: list[pl.Callback],
    loggers: Sequence[Logger],
) -> pl.Trainer:
    """Construct Lightning's trainer with the defaults of this package.

    An entry of `settings.lightning`, the user's arguments of `pl.Trainer`, replaces a default of
    the same name.

    Args:
        settings: The settings of the trainer.
        run_dir: Lightning's default folder for files.
        callbacks: All callbacks.
        loggers: All loggers.

    Raises:
        ConfigError: If Lightning refuses the arguments.
    """
    device = torch.device(training_device(settings.accelerator))
    environment = find_launcher(settings)
    precision = settings.precision
    if precision == "auto":
        precision = PRECISIONS[autocast_dtype(device)]
    # a dictionary, because the user's settings may replace any of these
    arguments: dict[str, Any] = {
        "accelerator": "gpu" if device.type == "cuda" else "cpu",
        "devices": _choose_devices(settings, device, environment),
        "strategy": _choose_strategy(settings, environment),
        "precision": precision,
        "gradient_clip_val": GRADIENT_CLIP,
        "log_every_n_steps": LOG_EVERY[device.type],
        "max_epochs": -1,  # the stream has no end; the budget ends the training
        "benchmark": device.type == "cuda",  # cuDNN then chooses the fastest convolutions
        "use_distributed_sampler": False,  # the stream itself divides the tiles among processes
        "enable_model_summary": False,
        "enable_progress_bar": False,  # without an end of the stream, Lightning's bar has none
        "default_root_dir": run_dir,
        # without it, Lightning would treat each SLURM task as a process of one training
        "plugins": [environment or LightningEnvironment(), AtomicCheckpoints()],
        **deepcopy(settings.lightning),
    }
    try:
        return pl.Trainer(callbacks=callbacks, logger=list(loggers), **arguments)
    except Exception as error:  # Lightning raises several kinds, also its own
        message = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(
            f"trainer.lightning, trainer.devices or callbacks: {message}. Correct the setting."
        ) from error


def _choose_devices(
    settings: TrainerConfig, device: torch.device, environment: ClusterEnvironment | None
) -> Any:
    """Return Lightning's argument `devices`: the devices of each node.

    - If torchrun or srun has started the processes, `auto` becomes the number of processes per
      node, because each process has one device.
    - A tuple of GPU numbers becomes a list. On a CPU it becomes its length, the number of
      processes.
    - Any other setting is returned unchanged, such as a number of devices.

    Args:
        settings: The settings of the trainer.
        device: The device on which the network is trained.
        environment: Lightning's class for torchrun or srun. None if neither has started processes.
    """
    if environment is not None and settings.devices == "auto":
        return environment.world_size() // settings.n_nodes
    if not isinstance(settings.devices, tuple):
        return settings.devices
    return list(settings.devices) if device.type == "cuda" else len(settings.devices)


def _choose_strategy(settings: TrainerConfig, environment: ClusterEnvironment | None) -> Any:
    """Return Lightning's argument `strategy`, which decides how processes train together.

    With one device it is "auto" (a single process). With several devices it is DDP: one process per
    device, which average their gradients. Lightning spawns these processes, unless torchrun or srun
    has started them (`environment`).
    """
    if settings.has_one_device:
        return "auto"
    # "popen" spawns nothing here, because the processes exist already
    start = "spawn" if environment is None else "popen"
    return DDPStrategy(start_method=start, timeout=PATIENCE)  # type: ignore[arg-type]


def _out_of_memory(plan: Plan, why: str, step: int | None = None) -> ConfigError:
    """Return the error of a training step that ran out of memory, with the setting to change.

    The advice is one tile less per step or, if the plan has a single tile, a smaller tile.

    Args:
        plan: The size and number of tiles.
        why: The message of the original error.
        step: The number of the step. None if it is unknown.
    """
    remedy = "a smaller model.tile_shape"
    if plan.batch_size > 1:
        remedy = f"model.batch_size={plan.batch_size - 1}"
    where = "training" if step is None else f"step {step} of training"
    tiles = count(plan.batch_size, "tile")
    return ConfigError(
        f"Memory ran out in {where}, with {tiles} of {list(plan.tile_shape)} ({first_line(why)}). "
        f"End other programs on the device, or train with {remedy} in another run_dir."
    )


@contextmanager
def _lightning_settings(*, on_cpu: bool) -> Iterator[None]:
    """Change the process for the time of a training with Lightning, and restore it afterwards.

    - Lightning's banners and warnings are silenced.
    - Ctrl-C raises `KeyboardInterrupt`. Lightning would exit with status 1, and ignore further
      Ctrl-C.
    - With `on_cpu`, glibc keeps freed memory. Otherwise it would return the memory of each layer's
      output to the system, which clears the pages before their next use. That costs a sixth of the
      time of a step of the 3-D U-Net (features 16 to 128, batch 2 × 64³, bf16).
    """
    lightning_log = logging.getLogger("pytorch_lightning")
    handler_before = signal.getsignal(signal.SIGINT)
    level_before = lightning_log.level
    lightning_log.setLevel(logging.WARNING)  # hides INFO, the level of banners
    try:
        with reuse_memory(is_wanted=on_cpu), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
            # Lightning 2.6 uses a class that newer versions of torch deprecate
            warnings.filterwarnings("ignore", ".*LeafSpec", category=FutureWarning)
            yield
    except SystemExit as error:
        # Lightning calls `exit` while it handles the interrupt, which is then the context
        is_ctrl_c = isinstance(error.__context__, KeyboardInterrupt)
        if not is_ctrl_c:
            raise
        signal.signal(signal.SIGINT, handler_before)  # Lightning has replaced it
        raise KeyboardInterrupt from error
    finally:
        lightning_log.setLevel(level_before)
