"""The settings of every command: their types and ranges. Defaults and meanings stand in `conf/`.

A key is in one model here and in one YAML file there; `read` checks what Hydra composed from the
files and the overrides. An unknown key is an error that names the nearest one.
"""

from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lesionseg.errors import ConfigError, misfits, nearest

Above0 = Annotated[float, Field(gt=0)]
From0 = Annotated[float, Field(ge=0)]
From1 = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0)]
Spec = dict[str, Any]  # {_target_: package.Class, argument: value, …}
# several bundles are averaged
Bundles = Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)]


class Settings(BaseModel):
    """Base of all settings: frozen, and without keys that nobody declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def plain(self) -> dict[str, Any]:
        """The same as plain data, as the YAML files have it."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class DataConfig(Settings):
    """Where the data lie and how they are divided."""

    root: str
    group: str | None
    merge_labels: bool
    validation_fraction: Share
    fold: Annotated[int, Field(ge=0)] | Literal["all"] | None
    n_folds: Annotated[int, Field(ge=2)]
    splits: str | None
    channel_dropout: Share
    cache_dir: str | None
    phantoms: Spec | None = None


class ModelConfig(Settings):
    """What is decided by hand of the plan; None leaves it to the rules."""

    architecture: str
    activation: Literal["sigmoid", "softmax"]
    spacing_mm: tuple[Above0, ...] | None
    tile_shape: tuple[From1, ...] | None
    batch_size: From1 | None
    base_features: From1 | None
    init_from: str | None
    layout: Literal["lesionseg", "nnunet"] | None = None
    network: Spec | None = None
    backbone: Spec | None = None


class LossConfig(Settings):
    """A loss by its class; the class knows which further keys it takes."""

    model_config = ConfigDict(extra="allow")
    target: str = Field(alias="_target_")
    alpha: Probability | tuple[Probability, ...] | None = None
    gamma: From0 | None = None


class DetectionConfig(Settings):
    """The loss of a detector's anchors."""

    alpha: Probability
    gamma: From0
    hard_negatives: bool


class SamplingConfig(Settings):
    """The mix of tiles."""

    lesion_share: Probability


class PrepareSection(Settings):
    """What else is done to each image, in training and in prediction."""

    extra: tuple[Spec, ...]


class AugmentConfig(Settings):
    """How tiles are changed."""

    flip_axes: tuple[Annotated[int, Field(ge=0, le=2)], ...] | None
    spatial_probability: Probability
    rotate_degrees: Annotated[float, Field(ge=0, le=180)]
    intensity_probability: Probability
    extra: tuple[Spec, ...]


class OptimConfig(Settings):
    """The optimiser and its learning rate."""

    name: Literal["adamw", "sgd"]
    lr: Above0
    weight_decay: From0
    backbone_lr_scale: From0


class TrainerConfig(Settings):
    """How long, on what and how to train; `lightning` is handed to `pl.Trainer`."""

    max_minutes: Above0 | None
    max_steps: From1 | None
    accelerator: Literal["auto", "cpu", "gpu", "cuda"]
    devices: Annotated[int, Field(ge=1)] | Literal["auto"] | tuple[Annotated[int, Field(ge=0)], ...]
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
    compile: bool
    memory_gb: Above0 | None
    workers: Annotated[int, Field(ge=0)] | Literal["auto"]
    ema_decay: Share | None
    validate_every_minutes: Above0 | Literal["auto"] | None
    lightning: dict[str, Any]


class InferenceConfig(Settings):
    """How whole volumes are predicted."""

    overlap: Share
    flips: bool
    precision: Literal["auto", "fp32", "bf16"]
    max_memory_gb: Above0 | None


class ReportSection(Settings):
    """What a page shows."""

    study: str | None
    identifiers: bool
    pdf: bool
    viewer: bool


class TuneSection(Settings):
    """The rectangle that is searched, and for how long."""

    alpha: tuple[Probability, Probability]
    gamma: tuple[From0, From0]
    n_trials: From1
    fp_per_case: Above0
    prune: bool


class TrainConfig(Settings):
    data: DataConfig
    model: ModelConfig
    loss: LossConfig
    detection: DetectionConfig
    prepare: PrepareSection
    sampling: SamplingConfig
    augment: AugmentConfig
    optim: OptimConfig
    trainer: TrainerConfig
    inference: InferenceConfig
    report: ReportSection
    callbacks: tuple[Spec, ...]
    logger: tuple[Spec, ...]
    preset: str
    operating_point: Annotated[str, Field(pattern=r"^(fp_per_case|sensitivity|score):\d*\.?\d+$")]
    rate_confidence: Annotated[float, Field(gt=0, lt=1)] | None
    run_dir: str | None
    seed: Seed
    debug: bool


class PrepareConfig(TrainConfig):
    check: bool
    identifiers: bool


class TuneConfig(TrainConfig):
    tune: TuneSection


class Command(Settings):
    """What the commands that read files of others have in common."""

    max_voxels: Annotated[int, Field(ge=1, lt=2**31)]
    debug: bool


class PredictConfig(Command):
    bundle: Bundles
    input: str
    output: str
    inference: InferenceConfig
    operating_point: str | None
    raster_mm: Above0 | None
    save_probabilities: bool
    names: Literal["lesionseg", "nnunet"]
    dicom_output: bool
    zones: str | None
    device: str
    trust: bool
    engine: Literal["local", "ray"]
    num_shards: From1
    shard_index: Annotated[int, Field(ge=0)]


class EvaluateConfig(Command):
    reference: str
    prediction: str
    output: str
    preset: str
    evaluated_on: Literal["train", "validation", "test", "external"] | None
    operating_point: str | float | None
    groups: str | None
    compare: str | None
    margin: Share | None
    adjudication: str | None
    columns: str | None
    zones: str | None
    subgroups: tuple[str, ...] | None
    resample: bool
    replicates: Annotated[int, Field(ge=0)]
    seed: Seed


class FollowConfig(Command):
    before: str | None
    after: str | None
    output: str
    visits: str | None
    bundle: Bundles | None
    predictions: str | None
    operating_point: str | None
    before_images: str | None
    after_images: str | None
    register_: Literal["auto", "headers", "rigid"] = Field(alias="register")
    reference: str | None
    stable: str | tuple[str, ...] | None
    false_new_per_pair: From0
    overlap: Annotated[float, Field(gt=0, le=1)]
    confidence: Annotated[float, Field(gt=0, lt=1)]
    dicom_output: bool
    identifiers: bool
    replicates: Annotated[int, Field(ge=0)]
    seed: Seed


class ReportConfig(Command):
    scores: str
    output: str
    images: str | None
    reference: str | None
    prediction: str | None
    compare: str | None
    report: ReportSection


class ExportConfig(Settings):
    bundle: Bundles
    output: str
    format: Literal["onnx", "monai"]
    opset: Annotated[int, Field(ge=1)]
    trust: bool
    debug: bool


class ServeConfig(Command):
    bundle: Bundles
    inference: InferenceConfig
    host: str
    port: Annotated[int, Field(ge=0, le=65535)]
    hosts: tuple[str, ...]
    max_upload_mb: Above0
    max_waiting: From1
    request_seconds: Above0
    operating_point: str | None
    device: str
    trust: bool


COMMANDS: Mapping[str, type[Settings]] = {
    "train": TrainConfig,
    "prepare": PrepareConfig,
    "tune": TuneConfig,
    "predict": PredictConfig,
    "evaluate": EvaluateConfig,
    "follow": FollowConfig,
    "report": ReportConfig,
    "export": ExportConfig,
    "serve": ServeConfig,
}
S = TypeVar("S", bound=Settings)


def read(kind: type[S], plain: Mapping[str, Any]) -> S:
    """The settings that plain data hold; raises `ConfigError` naming every wrong key."""
    try:
        return kind.model_validate(dict(plain))
    except ValidationError as error:
        for one in error.errors():
            if one["type"] == "extra_forbidden":
                key = ".".join(map(str, one["loc"]))
                near = nearest(key, (known for known, _ in keys(kind)))
                raise ConfigError(f"There is no setting {key!r}.{near}") from None
        raise ConfigError(misfits(error, plain)) from None


def keys(kind: type[BaseModel], prefix: str = "") -> Iterable[tuple[str, bool]]:
    """Every key, `section.key` for those of a section, and whether it holds text.

    A path or other free text needs no quotes on the command line.
    """
    for name, field in kind.model_fields.items():
        key, inner = f"{prefix}{field.alias or name}", field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys(inner, f"{key}.")
        else:
            kinds = {*_kinds(inner)}
            yield key, str in kinds and kinds <= {str, NoneType, Ellipsis}


def _kinds(hint: Any) -> Iterable[Any]:
    """The types of an annotation; of lists and tuples those of their items."""
    if get_origin(hint) in (Union, UnionType, tuple, list, Annotated):
        return [kind for inner in get_args(hint) for kind in _kinds(inner)]
    return [hint]
