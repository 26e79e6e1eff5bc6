"""From the settings of a command to the call of its recipe: the one place that builds objects.

What is no setting is a constant where it is used, or here. Losses, callbacks, loggers and networks
of the user's own are built by their `_target_`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any

from lesionseg import config
from lesionseg.errors import ConfigError, LesionsegError, nearest

# what SGD's users expect (nnU-Net's); AdamW has the defaults of `OptimiserSettings`
SGD: Mapping[str, Any] = {"momentum": 0.99, "warmup_fraction": 0.0, "schedule": "poly"}


def run(command: str, cfg: config.Settings) -> Any:
    """Call the recipe of a command with its settings; returns what it returns."""
    from lesionseg.io.limits import FileLimits, set_limits

    if isinstance(cfg, config.Command):
        set_limits(FileLimits(max_voxels=cfg.max_voxels))
    return _RECIPES[command](cfg)


def build(spec: Mapping[str, Any], key: str, *, partially: bool = False) -> Any:
    """The object of a `_target_` and its arguments; raises `ConfigError` where there is none."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate({**spec, "_partial_": partially}, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, LesionsegError):
            raise error.__cause__ from None
        raise ConfigError(f"{key}: {error}") from error


def loss_of(cfg: config.TrainConfig, **pair: float) -> Any:
    """The loss of voxels, with α and γ of a `pair` in place of its own.

    It is a partial, for what it still takes from the plan (`losses.complete_loss`). Raises
    `ConfigError` for an argument that its class does not take, naming the nearest.
    """
    loss = build({**cfg.loss.plain(), **pair}, "loss", partially=True)
    takes = signature(loss.func).parameters
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in takes.values()):
        for name in loss.keywords.keys() - takes.keys():
            raise ConfigError(f"loss takes no setting {name!r}.{nearest(name, takes)}")
    return loss


def detection_of(cfg: config.TrainConfig, **pair: float) -> Any:
    """The loss of anchors, likewise."""
    from lesionseg.losses import DetectionLoss

    return DetectionLoss(**{**cfg.detection.plain(), **pair})


def data_of(cfg: config.TrainConfig) -> Any:
    """The dataset's settings, with what simulates it where it is simulated."""
    import lesionseg.phantoms
    from lesionseg.pipeline.dataset import DataSettings

    given = cfg.data.plain()
    if phantoms := given.pop("phantoms", None):
        options = dict(phantoms)
        kind = str(options.pop("kind", ""))
        write = getattr(lesionseg.phantoms, f"write_{kind}_phantoms", None)
        if write is None:
            raise ConfigError(f"data.phantoms.kind={kind}: not mri, ct or xray.")
        takes = signature(write).parameters
        for name in options.keys() - takes.keys():
            raise ConfigError(f"data.phantoms takes no setting {name!r}.{nearest(name, takes)}")
        given["phantoms"] = partial(write, **options)
    return DataSettings(**given)


def training_of(cfg: config.TrainConfig) -> dict[str, Any]:
    """What `train`, `prepare` and `tune` share, as their recipes take it."""
    from lesionseg.data.augment import AugmentationSettings
    from lesionseg.data.sampling import SamplingSettings
    from lesionseg.data.transforms import PrepareSettings
    from lesionseg.inference.settings import InferenceSettings
    from lesionseg.plan.make import PlanOverrides
    from lesionseg.training.settings import OptimiserSettings, TrainerSettings

    optim = {**(SGD if cfg.optim.name == "sgd" else {}), **cfg.optim.plain()}
    return {
        "data": data_of(cfg),
        "model": PlanOverrides(**cfg.model.plain()),
        "prepare": PrepareSettings(**cfg.prepare.plain()),
        "sampling": SamplingSettings(**cfg.sampling.plain()),
        "augment": AugmentationSettings(**cfg.augment.plain()),
        "optim": OptimiserSettings(**optim),
        "trainer": TrainerSettings(**cfg.trainer.plain()),
        "inference": InferenceSettings(**cfg.inference.plain()),
        "run_dir": cfg.run_dir,
        "seed": cfg.seed,
    }


def _train(cfg: config.TrainConfig) -> Any:
    from lesionseg.evaluation import find_preset
    from lesionseg.losses import complete_loss
    from lesionseg.pipeline.train import train

    shared = training_of(cfg)
    return train(
        **shared,
        loss=complete_loss(loss_of(cfg), cfg.model.activation),
        detection=detection_of(cfg),
        callbacks=[build(spec, "callbacks") for spec in cfg.callbacks],
        logger=[build(spec, "logger", partially=True) for spec in cfg.logger],
        preset=find_preset(cfg.preset),
        report=cfg.report,
        operating_point=cfg.operating_point,
        rate_confidence=cfg.rate_confidence,
        config={"command": "train", **cfg.plain()},
    )


def _prepare(cfg: config.PrepareConfig) -> Any:
    from lesionseg.pipeline.prepare import prepare

    shared = training_of(cfg)
    return prepare(
        **{name: shared[name] for name in ("data", "model", "trainer", "prepare")},
        run_dir=cfg.run_dir,
        seed=cfg.seed,
        check=cfg.check,
        identifiers=cfg.identifiers,
        config={"command": "prepare", **cfg.plain()},
    )


def _tune(cfg: config.TuneConfig) -> Any:
    from lesionseg.pipeline.tune import tune

    return tune(cfg)


def _predict(cfg: config.PredictConfig) -> Any:
    from lesionseg.inference.settings import InferenceSettings
    from lesionseg.pipeline.predict import predict

    inference = InferenceSettings(**cfg.inference.plain())
    return predict(**{**_flat(cfg), "inference": inference})


def _serve(cfg: config.ServeConfig) -> Any:
    from lesionseg.inference.settings import InferenceSettings
    from lesionseg.pipeline.serve import serve

    return serve(**{**_flat(cfg), "inference": InferenceSettings(**cfg.inference.plain())})


def _evaluate(cfg: config.EvaluateConfig) -> Any:
    from lesionseg.pipeline.evaluate import evaluate

    return evaluate(**_flat(cfg))


def _follow(cfg: config.FollowConfig) -> Any:
    from lesionseg.pipeline.follow import follow

    return follow(**_flat(cfg))


def _report(cfg: config.ReportConfig) -> Any:
    from lesionseg.pipeline.report import report

    return report(cfg)


def _export(cfg: config.ExportConfig) -> Any:
    from lesionseg.pipeline.export import export

    return export(**_flat(cfg))


def _flat(cfg: config.Settings, without: Sequence[str] = ("max_voxels", "debug")) -> dict[str, Any]:
    """The settings as the arguments of a recipe."""
    return {key: value for key, value in cfg.plain().items() if key not in without}


_RECIPES: Mapping[str, Callable[[Any], Any]] = {
    "train": _train,
    "prepare": _prepare,
    "tune": _tune,
    "predict": _predict,
    "evaluate": _evaluate,
    "follow": _follow,
    "report": _report,
    "export": _export,
    "serve": _serve,
}
