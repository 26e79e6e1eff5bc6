"""The settings of `train.py` under some overrides, for benchmarks that train without its report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionseg.cli import compose
from lesionseg.inference.settings import InferenceSettings
from lesionseg.plan.make import PlanOverrides
from lesionseg.training.learning_settings import Learning


@dataclass(frozen=True)
class Recipe:
    """What the configuration says of learning, of the plan and of inference."""

    learning: Learning
    model: PlanOverrides
    inference: InferenceSettings


def recipe(overrides: Sequence[str] = (), root: Path = Path("data")) -> Recipe:
    """The configuration's own recipe, changed by `overrides`."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    config = compose("train", [f"data.root={root}", *overrides])
    plain: Any = OmegaConf.to_container(config, resolve=True)
    chosen = instantiate({**plain, "_partial_": True}, _convert_="all").keywords
    learning = Learning(
        loss=chosen["loss"],
        sampling=chosen["sampling"],
        augmentation=chosen["augment"],
        optimiser=chosen["optim"],
        trainer=chosen["trainer"],
        detection=chosen["detection"],
    )
    return Recipe(learning, chosen["model"], chosen["inference"])
