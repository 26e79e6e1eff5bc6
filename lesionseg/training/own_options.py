"""What users hand to Lightning's trainer themselves, and what would break a promise there."""

import inspect
from collections.abc import Mapping
from typing import Any

from lesionseg.errors import ConfigError, one_of, require

_BUDGET = "trainer.max_minutes and trainer.max_steps end a training, and the rate follows them"
_WHOLE_VOLUMES = "whole volumes are validated, every trainer.validate_every_minutes"
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time"), _BUDGET),
    **dict.fromkeys(("limit_train_batches",), _BUDGET),
    **dict.fromkeys(("val_check_interval", "check_val_every_n_epoch"), _WHOLE_VOLUMES),
    **dict.fromkeys(("limit_val_batches", "num_sanity_val_steps"), _WHOLE_VOLUMES),
    "accumulate_grad_batches": "trainer.accumulate counts the positives of all batches of a step "
    "before the first backward",
    "gradient_clip_val": "trainer.gradient_clip clips what all parts of a step add up to",
    "gradient_clip_algorithm": "trainer.gradient_clip clips the norm",
    "precision": "trainer.precision keeps heads and losses in fp32",
    "accelerator": "trainer.accelerator chooses it, and the plan is made for it",
    "devices": "trainer.devices chooses them",
    "callbacks": "trainer.callbacks takes them",
    "enable_checkpointing": "checkpoints/last.ckpt is the one that a run resumes from",
    "use_distributed_sampler": "tiles are numbered, and each process takes its own",
    "reload_dataloaders_every_n_epochs": "the stream of tiles has no end",
}


def check_options(options: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for what `pl.Trainer` does not take, or may not be given here."""
    import pytorch_lightning as pl

    known = [name for name in inspect.signature(pl.Trainer.__init__).parameters if name != "self"]
    allowed = [name for name in known if name not in REFUSED]
    for name in options:
        if name in REFUSED:
            raise ConfigError(
                f"Lightning's {name!r} would break what a training here promises.",
                where=f"trainer.lightning.{name}",
                expected=", ".join(allowed),
                remedy=f"leave it out: {REFUSED[name]}.",
            )
        one_of("option of pl.Trainer", name, allowed, where=f"trainer.lightning.{name}")
    _check_strategy(options.get("strategy", "auto"))


def _check_strategy(strategy: object) -> None:
    """Raise `ConfigError` for one that divides the weights among processes."""
    from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy

    whole = isinstance(strategy, DDPStrategy | SingleDeviceStrategy)
    named = isinstance(strategy, str) and (strategy == "auto" or strategy.startswith("ddp"))
    require(
        whole or named,
        "The average of the weights, their clipping and the checkpoint need all weights in each "
        "process.",
        where="trainer.lightning.strategy",
        seen=strategy if isinstance(strategy, str) else type(strategy).__name__,
        expected="auto or ddp",
        remedy="leave it out: a network here fits one GPU many times over; if its tiles do not, "
        "set trainer.memory_gb or model.tile_shape.",
    )


def check_callbacks(callbacks: object) -> None:
    """Raise `ConfigError` for what is no Lightning callback, or one that saves its own way."""
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import Checkpoint

    require(
        isinstance(callbacks, list | tuple),
        "The callbacks are a list.",
        where="trainer.callbacks",
        seen=callbacks,
        expected="[{_target_: package.MyCallback}]",
    )
    for callback in callbacks if isinstance(callbacks, list | tuple) else ():
        name = type(callback).__name__
        require(
            isinstance(callback, pl.Callback),
            "This is no Lightning callback.",
            where="trainer.callbacks",
            seen=name,
            expected="a pytorch_lightning.Callback, by _target_",
        )
        require(
            not isinstance(callback, Checkpoint),
            "A run resumes from one checkpoint, its own.",
            where="trainer.callbacks",
            seen=name,
            remedy="leave it out: checkpoints/last.ckpt and best.ckpt are written anyway.",
        )
