"""What can be chosen about training, as plain values that a configuration can hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from lesionseg.data.augment import AugmentationSettings
from lesionseg.data.sampling import SamplingSettings
from lesionseg.errors import ConfigError
from lesionseg.losses import DetectionLoss

ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
STEPS_PER_EPOCH = 50  # whose tiles have the sampler's exact mix


@dataclass(frozen=True)
class OptimiserSettings:
    """The optimiser, and how its learning rate runs from the start to the end of training.

    Linear warm-up over `warmup_fraction`, then `cosine` or `poly` decay to 0. `momentum` is SGD's
    (Nesterov) and AdamW's first β, `beta2` its second. `weight_decay` spares norms and biases
    unless `decay` is all. `backbone_lr_scale`: all but the heads learn at this share of the rate.
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
        _check("optim.name", self.name, self.name in ("adamw", "sgd"), "adamw or sgd")
        _check("optim.decay", self.decay, self.decay in ("kernels", "all"), "kernels or all")
        known = self.schedule in ("cosine", "poly")
        _check("optim.schedule", self.schedule, known, "cosine or poly")
        _check("optim.lr", self.lr, self.lr > 0, "above 0")
        _check("optim.weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more")
        _check(
            "optim.backbone_lr_scale", self.backbone_lr_scale, self.backbone_lr_scale >= 0, "≥ 0"
        )
        for name in ("momentum", "beta2", "warmup_fraction"):
            value = getattr(self, name)
            _check(f"optim.{name}", value, 0 <= value < 1, "in [0, 1)")


@dataclass(frozen=True)
class TrainerSettings:
    """How long, on what and how to train.

    Training ends at `max_minutes` of wall time, validations included, or at `max_steps`, whichever
    comes first; `schedule.resolve_budget` says what both None mean. `memory_gb`: the memory to plan
    for, None for the device's own. A step is one update from `accumulate` batches per process.
    `ema_decay`: of the averaged weights that are kept, None for the last ones.
    `validate_every_minutes`: None validates at the end only, if at all, `auto` six times in
    trainings of more than half an hour; at most `validate_cases` (None: all) are looked at.
    `select`: whether the `best` validated weights or the `last` are kept. `workers`: processes that
    make tiles. `lightning` is handed to `pl.Trainer` and goes before what is chosen here.
    """

    max_minutes: float | None = None
    max_steps: int | None = None
    memory_gb: float | None = None
    accelerator: str = "auto"
    devices: int | str | Sequence[int] = 1
    precision: str = "auto"
    compile: bool = False
    accumulate: int = 1
    gradient_clip: float = 12.0
    ema_decay: float | None = 0.99
    workers: int | Literal["auto"] = "auto"
    validate_every_minutes: float | Literal["auto"] | None = "auto"
    validate_cases: int | None = 16
    select: Literal["best", "last"] = "best"
    checkpoint_every_minutes: float = 0.25
    log_every: int = 5
    progress: bool = True
    lightning: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("max_minutes", "memory_gb", "gradient_clip", "validate_every_minutes"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and value > 0
            free = value is None or (name == "validate_every_minutes" and value == "auto")
            _check(f"trainer.{name}", value, number or free, "a number above 0")
        for name in ("max_steps", "accumulate", "log_every", "validate_cases"):
            value = getattr(self, name)
            _check(f"trainer.{name}", value, value is None or value >= 1, "1 or more")
        known = ", ".join(ACCELERATORS)
        _check("trainer.accelerator", self.accelerator, self.accelerator in ACCELERATORS, known)
        known = ", ".join(PRECISIONS)
        _check("trainer.precision", self.precision, self.precision in PRECISIONS, known)
        _check("trainer.select", self.select, self.select in ("best", "last"), "best or last")
        every = self.checkpoint_every_minutes
        _check("trainer.checkpoint_every_minutes", every, every >= 0, "0 or more")
        holds = self.workers == "auto" or (type(self.workers) is int and self.workers >= 0)
        _check("trainer.workers", self.workers, holds, "0 or more, or auto")
        decay = self.ema_decay
        _check("trainer.ema_decay", decay, decay is None or 0 <= decay < 1, "in [0, 1), or null")
        devices = self.devices
        listed = isinstance(devices, list | tuple) and bool(devices)
        listed = listed and all(type(d) is int and d >= 0 for d in devices)  # type: ignore[union-attr]
        holds = devices == "auto" or (str(devices).isdecimal() and int(str(devices)) > 0)
        _check("trainer.devices", devices, listed or holds, "a number, auto, or GPUs such as [2,3]")

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


@dataclass(frozen=True)
class Learning:
    """What a training needs besides its network, plan and cases.

    `loss` teaches voxels (`losses.VoxelLoss`), `detection` a detector's anchors. `seed` decides the
    first weights and the tiles. `init_from`: a bundle whose weights come first. `channel_dropout`:
    see `TileDataset`. `callbacks` and `loggers` are Lightning's, or functions that make one.
    """

    loss: nn.Module
    trainer: TrainerSettings
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    detection: DetectionLoss = field(default_factory=DetectionLoss)
    seed: int = 0
    init_from: str | None = None
    channel_dropout: float = 0.0
    callbacks: Sequence[Any] = ()
    loggers: Sequence[Any] = ()


def _check(key: str, seen: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ConfigError(f"{key}={seen} must be {expected}.")
