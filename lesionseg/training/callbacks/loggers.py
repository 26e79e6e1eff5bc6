"""Where else than in metrics.csv a training is followed: TensorBoard, MLflow or Weights & Biases.

Each by Lightning's own logger class, imported when it is asked for; the packages are extras.
"""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from PIL import Image

from lesionseg.errors import ConfigError, ReadError, one_of, pip_install
from lesionseg.io.atomic import read_json, write_json
from lesionseg.training.callbacks.step_callbacks import Record, tell

log = logging.getLogger(__name__)

Kind = Literal["csv", "tensorboard", "mlflow", "wandb"]
MADE = Path("logger.json")


@dataclass(frozen=True)
class LoggerSettings:
    """Which logger gets the rows of metrics.csv and shown the previews; `csv` for none.

    `project` and `name` are what runs are called there (`name` None: the run directory's). W&B
    sends nothing while `offline`; `wandb sync` does so later. `tracking_uri` is MLflow's server,
    None for its own settings or else a file in the run directory. Previews of `preview_tiles`
    tiles are drawn every `previews_every_minutes` and at the end, of as many validation cases
    whenever they are predicted; None for none.
    """

    kind: Kind = "csv"
    project: str = "lesionseg"
    name: str | None = None
    offline: bool = True
    tracking_uri: str | None = None
    previews_every_minutes: float | None = None
    preview_tiles: int = 4

    @property
    def n_previews(self) -> int:
        """How many tiles or cases a picture shows."""
        return 0 if self.previews_every_minutes is None else self.preview_tiles

    def __post_init__(self) -> None:
        one_of("logger", self.kind, ["csv", *_MAKERS], where="logger.kind")
        every = self.previews_every_minutes
        if (every is not None and every <= 0) or self.preview_tiles < 1:
            raise ConfigError(
                "Previews are drawn of one tile or more, every so many minutes above 0.",
                where="logger",
                seen=f"previews_every_minutes={every}, preview_tiles={self.preview_tiles}",
            )


def require_logger(settings: LoggerSettings) -> None:
    """Raise `ConfigError` naming the way to install what the logger needs when it is missing."""
    if settings.kind != "csv" and find_spec(settings.kind) is None:
        raise ConfigError(
            f"This logger needs the package {settings.kind}.",
            where="logger",
            seen=f"no module named {settings.kind}",
            remedy=pip_install(settings.kind),
        )


class Follow(pl.Callback):
    """Passes on to a logger what `Record` writes, and the images of whoever calls `show`.

    On the first process alone. `about`: the settings to be kept with the run. A resumed training
    goes on in the same run of the logger; its rows of steps that were lost stay in it.
    """

    def __init__(self, settings: LoggerSettings, run_dir: Path, about: Mapping[str, Any]) -> None:
        require_logger(settings)
        self.settings, self.run_dir, self.about = settings, run_dir, about
        self.logger: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the logger and listen."""
        if not trainer.is_global_zero or self.settings.kind == "csv":
            return
        self.logger = _MAKERS[self.settings.kind](self.settings, self.run_dir)
        self.logger.log_hyperparams(dict(self.about))
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # in Lightning
            if isinstance(callback, Record):
                callback.listeners.append(partial(tell, self.logger))

    def show(self, name: str, image: NDArray[np.uint8], step: int) -> None:
        """Log an image `[height, width, 3]`."""
        if self.logger is not None:
            _SHOWERS[self.settings.kind](self.logger, name, image, step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the logger finish."""
        self._close("success")

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Let the logger know."""
        self._close("failed")

    def _close(self, status: str) -> None:
        if self.logger is not None:
            _close(self.logger, self.settings.kind, status)


def show_afterwards(
    settings: LoggerSettings, run_dir: Path, name: str, image: NDArray[np.uint8], step: int
) -> None:
    """Show an image to the run of the logger that a finished training wrote to."""
    if settings.kind == "csv":
        return
    logger = _MAKERS[settings.kind](settings, run_dir)
    _SHOWERS[settings.kind](logger, name, image, step)
    _close(logger, settings.kind, "success")


def _close(logger: Any, kind: Kind, status: str) -> None:
    logger.finalize(status)
    if kind == "wandb":
        logger.experiment.finish(exit_code=0 if status == "success" else 1)


def _tensorboard(settings: LoggerSettings, run_dir: Path) -> Any:
    from pytorch_lightning.loggers import TensorBoardLogger

    return TensorBoardLogger(run_dir, name="tensorboard", version="", default_hp_metric=False)


def _mlflow(settings: LoggerSettings, run_dir: Path) -> Any:
    from pytorch_lightning.loggers import MLFlowLogger

    server = settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    here = run_dir.resolve()
    logger = MLFlowLogger(
        experiment_name=settings.project,
        run_name=settings.name or run_dir.name,
        tracking_uri=server or f"sqlite:///{here / 'mlflow.db'}",
        artifact_location=None if server else (here / "mlflow").as_uri(),
        run_id=_known(run_dir).get("mlflow"),
    )
    _remember(run_dir, "mlflow", str(logger.run_id))
    return logger


def _wandb(settings: LoggerSettings, run_dir: Path) -> Any:
    from pytorch_lightning.loggers import WandbLogger

    identity = _known(run_dir).get("wandb") or uuid4().hex[:12]
    _remember(run_dir, "wandb", identity)
    return WandbLogger(
        project=settings.project,
        name=settings.name or run_dir.name,
        save_dir=run_dir,
        offline=settings.offline,
        id=identity,
        resume="allow",
    )


def _known(run_dir: Path) -> dict[str, str]:
    """The identity of this run in each logger that it has used."""
    try:
        return dict(read_json(run_dir / MADE))
    except ReadError:
        return {}


def _remember(run_dir: Path, kind: str, identity: str) -> None:
    write_json(run_dir / MADE, {**_known(run_dir), kind: identity})


def _to_tensorboard(logger: Any, name: str, image: NDArray[np.uint8], step: int) -> None:
    logger.experiment.add_image(name, image, step, dataformats="HWC")


def _to_mlflow(logger: Any, name: str, image: NDArray[np.uint8], step: int) -> None:
    logger.experiment.log_image(logger.run_id, image, artifact_file=f"{name}_{step:06d}.png")


def _to_wandb(logger: Any, name: str, image: NDArray[np.uint8], step: int) -> None:
    logger.log_image(name, [Image.fromarray(image)], step=step)


_MAKERS: Mapping[str, Callable[[LoggerSettings, Path], Any]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
_SHOWERS: Mapping[str, Callable[[Any, str, NDArray[np.uint8], int], None]] = {
    "tensorboard": _to_tensorboard,
    "mlflow": _to_mlflow,
    "wandb": _to_wandb,
}
