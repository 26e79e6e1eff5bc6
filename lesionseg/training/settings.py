"""What can be chosen about training, as plain numbers that a configuration can hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lesionseg.errors import ConfigError

BUDGETS = ("auto", "quick", "standard", "full")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True)
class OptimiserSettings:
    """The optimiser and how its learning rate runs from the start (0) to the end (1) of training.

    Linear warm-up over `warmup_fraction`, then `cosine` or `poly` decay to 0. `momentum` is SGD's
    (Nesterov); AdamW takes it as its first β, and `beta2` as its second: how long it remembers how
    large gradients were. `weight_decay` spares norms and biases, unless `decay` is all.
    `backbone_lr_scale`: all but the heads learn at so much of the rate, for weights that come from
    a bundle; 0 leaves them.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 3e-3
    weight_decay: float = 1e-2
    decay: Literal["kernels", "all"] = "kernels"
    momentum: float = 0.9
    beta2: float = 0.95
    warmup_fraction: float = 0.05
    schedule: Literal["cosine", "poly"] = "cosine"
    backbone_lr_scale: float = 1.0

    def __post_init__(self) -> None:
        _one_of("optim.name", self.name, ("adamw", "sgd"))
        _one_of("optim.decay", self.decay, ("kernels", "all"))
        _one_of("optim.schedule", self.schedule, ("cosine", "poly"))
        _require("optim.lr", self.lr, self.lr > 0, "a number above 0")
        _require("optim.weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more")
        _require("optim.momentum", self.momentum, 0 <= self.momentum < 1, "a number in [0, 1)")
        _require("optim.beta2", self.beta2, 0 <= self.beta2 < 1, "a number in [0, 1)")
        scale = self.backbone_lr_scale
        _require("optim.backbone_lr_scale", scale, scale >= 0, "0 or more, such as 0.1")
        share = self.warmup_fraction
        _require("optim.warmup_fraction", share, 0 <= share < 1, "a number in [0, 1)")


@dataclass(frozen=True)
class TrainerSettings:
    """How long, on what and how to train.

    Training ends at `max_minutes` of wall time (validations included, mid-epoch if need be) or at
    `max_steps`, whichever comes first; these or a `budget` must be given, else `ConfigError`. What
    a budget comes to is known with the plan (`step.schedule.settled`). `memory_gb`: the memory to
    plan for, None for the device's own. A step is one update from `accumulate` batches per device;
    `steps_per_epoch` of them are an epoch of the sampler. `compile`: by `torch.compile`, `graphs`
    with CUDA graphs; `auto` as timed on a GPU. `ema_decay`: of the averaged weights that are kept
    in the end, None for the last ones.
    `validate_every_minutes`: None validates at the end only, if at all, `auto` meanwhile in
    trainings of more than half an hour (`settled`); `validate_cases` of the validation role are
    then looked at (None: all). `select`: whether the `best` or the `last` weights are kept, None
    for the best of two validations or more. `checkpoint_every_minutes`: at most so much work is
    lost when training is killed, or 50 times what writing takes. `workers`: processes that make
    tiles, 0 for none, `auto` as many as help (`device.accelerator`). `devices`: a number, `auto`,
    or a list of GPUs. `callbacks` are Lightning's, and act after our own; `lightning` is handed to
    `pl.Trainer`.
    """

    max_minutes: float | None = None
    max_steps: int | None = None
    budget: str | None = None
    memory_gb: float | None = None
    steps_per_epoch: int = 50
    accelerator: str = "auto"
    devices: int | str | Sequence[int] = 1
    precision: str = "auto"
    compile: bool | str = "auto"
    accumulate: int = 1
    gradient_clip: float = 12.0
    ema_decay: float | None = 0.99
    workers: int | Literal["auto"] = "auto"
    validate_every_minutes: float | Literal["auto"] | None = None
    validate_cases: int | None = 16
    select: str | None = None
    checkpoint_every_minutes: float = 0.25
    log_every: int = 5
    progress: bool = True
    callbacks: Sequence[Any] | None = None
    lightning: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.max_minutes is None and self.max_steps is None and self.budget is None:
            raise ConfigError(
                "Nothing says when training ends.",
                where="trainer",
                expected="max_minutes, max_steps or a budget",
                remedy="set trainer.max_minutes=60, say.",
            )
        _require(
            "trainer.compile",
            self.compile,
            self.compile in (True, False, "auto", "graphs"),
            "auto, true, false or graphs",
        )
        if self.budget is not None:
            _one_of("trainer.budget", self.budget, BUDGETS)
        _one_of("trainer.accelerator", self.accelerator, ACCELERATORS)
        _require_devices(self.devices, self.accelerator)
        _one_of("trainer.precision", self.precision, PRECISIONS)
        if self.validate_every_minutes != "auto":
            self._require_positive("validate_every_minutes")
        for name in ("max_minutes", "memory_gb", "gradient_clip"):
            self._require_positive(name)
        if self.select is not None:
            _one_of("trainer.select", self.select, ("best", "last"))
        if self.select == "best" and self.validate_every_minutes is None:
            raise ConfigError(
                "The best weights are not known where nothing is validated meanwhile.",
                where="trainer.select",
                seen="best, and trainer.validate_every_minutes=null",
                remedy="set trainer.validate_every_minutes=10, say, or leave trainer.select out.",
            )
        for name in ("max_steps", "steps_per_epoch", "accumulate", "log_every", "validate_cases"):
            value = getattr(self, name)
            _require(f"trainer.{name}", value, value is None or value >= 1, "1 or more")
        holds = self.checkpoint_every_minutes >= 0
        _require(
            "trainer.checkpoint_every_minutes", self.checkpoint_every_minutes, holds, "0 or more"
        )
        holds = self.workers == "auto" or (type(self.workers) is int and self.workers >= 0)
        _require("trainer.workers", self.workers, holds, "0 or more, or auto")
        decay = self.ema_decay
        _require("trainer.ema_decay", decay, decay is None or 0 <= decay < 1, "in [0, 1), or null")
        self._check_lightning()

    def _check_lightning(self) -> None:
        """Only what is given needs Lightning, which takes seconds to import."""
        if self.callbacks or self.lightning:
            from lesionseg.training.own_options import check_callbacks, check_options

            check_callbacks(self.callbacks or [])
            check_options(self.lightning or {})

    def _require_positive(self, name: str) -> None:
        value = getattr(self, name)
        holds = value is None or (isinstance(value, int | float) and value > 0)
        _require(f"trainer.{name}", value, holds, "a number above 0")

    @property
    def n_devices(self) -> int | None:
        """How many of each node train; None for all of them."""
        if isinstance(self.devices, list | tuple):
            return len(self.devices)
        return None if self.devices == "auto" else int(str(self.devices))

    @property
    def n_nodes(self) -> int:
        """How many machines train together."""
        return int((self.lightning or {}).get("num_nodes", 1))

    @property
    def has_one_device(self) -> bool:
        """Whether one process trains, on one device."""
        return self.n_devices == self.n_nodes == 1

    def gpu(self, process: int) -> int:
        """The GPU of a node's process by its number there."""
        return int(self.devices[process]) if isinstance(self.devices, list | tuple) else process


def _require(where: str, seen: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ConfigError("A training setting is wrong.", where=where, seen=seen, expected=expected)


def _one_of(where: str, seen: str, choices: tuple[str, ...]) -> None:
    _require(where, seen, seen in choices, ", ".join(choices))


def _require_devices(devices: object, accelerator: str) -> None:
    """A number, all, or the numbers of GPUs."""
    if isinstance(devices, list | tuple):
        numbers = all(type(d) is int and d >= 0 for d in devices)
        if devices and numbers and len(set(devices)) == len(devices) and accelerator != "cpu":
            return
    elif devices == "auto" or (str(devices).isdecimal() and int(str(devices)) > 0):
        return
    raise ConfigError(
        "The devices to train on are a number of them, or a list of GPUs.",
        where="trainer.devices",
        seen=devices,
        expected="a number from 1 on, auto, or GPUs such as [2,3]",
        remedy="set trainer.devices=2, or put CUDA_VISIBLE_DEVICES=2,3 before the command.",
    )
