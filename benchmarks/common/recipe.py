"""The settings of `train.py` under some overrides, for benchmarks that train without its report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionseg.cli import compose
from lesionseg.inference.settings import InferenceSettings
from lesionseg.losses import complete_loss
from lesionseg.pipeline.from_config import detection_of, loss_of, training_of
from lesionseg.plan.make import PlanOverrides
from lesionseg.training.settings import Learning


@dataclass(frozen=True)
class Recipe:
    """What the configuration says of learning, of the plan and of inference."""

    learning: Learning
    model: PlanOverrides
    inference: InferenceSettings


def recipe(overrides: Sequence[str] = (), root: Path = Path("data")) -> Recipe:
    """The configuration's own recipe, changed by `overrides`."""
    config: Any = compose("train", [f"data.root={root}", *overrides])
    chosen = training_of(config)
    learning = Learning(
        loss=complete_loss(loss_of(config), config.model.activation),
        sampling=chosen["sampling"],
        augmentation=chosen["augment"],
        optimiser=chosen["optim"],
        trainer=chosen["trainer"],
        detection=detection_of(config),
    )
    return Recipe(learning, chosen["model"], chosen["inference"])
