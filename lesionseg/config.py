"""Types and ranges of all settings, unknown keys, loggers, `_target_`; defaults are in `conf/`.

Each key is declared once in a model of this module, or in `settings.py` of an extra, and once in a
YAML file of `conf/`. On the command line, Hydra composes the files and the overrides
(`cli.compose`), and `read` checks the result. In Python, `TrainConfig.of(seed=1)` reads the
remaining values from the same files, without Hydra. The error for an unknown key names the nearest
known key.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from enum import Enum, auto
from functools import cache
from importlib.util import find_spec
from inspect import Parameter, signature
from os import PathLike, fspath
from pathlib import Path
from pkgutil import resolve_name
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticSerializationError

from lesionseg.errors import ConfigError, LesionsegError, describe_misfits, suggest
from lesionseg.extra import find_extra, has_extra

FractionBelow1 = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Voxels = Annotated[int, Field(ge=1, le=2**16)]
Axis = Annotated[int, Field(ge=0, le=2)]
StrPath = str | PathLike[str]
Confidence = Annotated[float, Field(gt=0, lt=1)]
HIGHEST_GAMMA = 100  # of our focal losses
Gamma = Annotated[float, Field(ge=0, le=HIGHEST_GAMMA)]
Arguments = dict[str, Any]
MaskNames = Literal["lesionseg", "nnunet", "bids"]  # the names of predicted masks
TARGET = "_target_"
OWN_LOSSES = "lesionseg.losses."  # the classes of our losses
CONFIG = "config.yaml"  # the settings of a run, in its directory
AUTO_MODEL = "auto"  # the architecture that leaves the choice to `plan.model_choice`


def expand_home(path: str | PathLike[str]) -> str:
    """Return a path as text, with a leading `~` or `~user` replaced by the home folder.

    A shell does not expand `~` in `data.root=~/scans`. If the user does not exist, the path stays
    unchanged.
    """
    text = fspath(path)
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:  # a name such as `~copy`, which is not that of a user
        return text


def _to_texts(value: Any) -> Any:
    """Convert a setting to a tuple of texts: a text, an integer, or a list or tuple.

    Any other value is returned unchanged, and pydantic then reports its type.
    """
    if isinstance(value, str | int):
        return (str(value),)
    if isinstance(value, list | tuple):
        return tuple(map(str, value))
    return value


Texts = Annotated[tuple[str, ...], BeforeValidator(_to_texts)]  # or one text


def _path_to_text(value: Any) -> Any:
    """Convert a setting that is a path to text, with `~` replaced by the home folder.

    Any other value is returned unchanged, and pydantic then reports its type.
    """
    return expand_home(value) if isinstance(value, str | PathLike) else value


def _path_to_tuple(value: Any) -> Any:
    """Convert a setting that is a single path to a tuple, because one or several are allowed.

    Any other value is returned unchanged.
    """
    return (value,) if isinstance(value, str | PathLike) else value


def _validate_whole_numbers(lightning: Arguments) -> Arguments:
    """Check the numbers of steps and nodes among the arguments of Lightning's `Trainer`.

    Return the arguments unchanged. Raise `ValueError` if one of these numbers is given, but is not
    an integer of at least 1.
    """
    for name in ("accumulate_grad_batches", "log_every_n_steps", "num_nodes"):
        value = lightning.get(name, 1)  # 1 is valid: an absent argument is not checked
        is_whole = isinstance(value, int) and not isinstance(value, bool)  # True is an int, too
        if not is_whole or value < 1:
            raise ValueError(f"{name}={value} is not a whole number of at least 1")
    return lightning


def _validate_target(spec: Arguments) -> Arguments:
    """Check a setting that names a class (`_target_`) and its arguments.

    Return the setting unchanged. Raise `ValueError` if `_target_` is missing or has no dot. The
    class is not imported.
    """
    if "." not in str(spec.get(TARGET, "")):  # a full name such as `package.Class` has a dot
        raise ValueError("not {_target_: package.Class, argument: …}")
    return spec


# Lightning's loggers by name, with the package that each of them needs
LOGGERS = {
    "csv": ("CSVLogger", "pytorch_lightning"),
    "tensorboard": ("TensorBoardLogger", "tensorboard"),
    "wandb": ("WandbLogger", "wandb"),
    "mlflow": ("MLFlowLogger", "mlflow"),
}


def _find_loggers(value: Any) -> Any:
    """Convert the setting `logger`: replace names, such as `wandb`, by Lightning's classes.

    The result is a tuple of items `{_target_: …}`. A value that is neither a name nor a list is
    returned unchanged. Raise `ValueError` if a name is unknown or its package is not installed.
    """
    loggers: list[Any] = [value] if isinstance(value, str) else value
    if not isinstance(loggers, list | tuple):
        return value
    return tuple(_find_logger(item) if isinstance(item, str) else item for item in loggers)


def _find_logger(name: str) -> Arguments:
    """Return the class of the logger `name` as `{_target_: …}`, the form for `build_object`.

    Raise `ValueError` if the name is not in `LOGGERS`, or its package is not installed.
    """
    if name not in LOGGERS:
        raise ValueError(
            f"the logger {name!r} is unknown. Choose one of {', '.join(LOGGERS)}, or give "
            "{_target_: package.Class, argument: …}"
        )
    class_name, package = LOGGERS[name]
    if find_spec(package) is None:
        raise ValueError(f"its package is not installed. Type: pip install {package}")
    return {TARGET: f"pytorch_lightning.loggers.{class_name}"}


def _validate_distinct(values: tuple[int, ...]) -> tuple[int, ...]:
    """Return the numbers of a setting unchanged. Raise `ValueError` if a number is repeated."""
    if len(set(values)) < len(values):
        raise ValueError("a number is repeated; give each number once")
    return values


Text = Annotated[str, BeforeValidator(_path_to_text)]
Spec = Annotated[Arguments, AfterValidator(_validate_target)]
# one path or several; the predictions of several bundles are averaged
Bundles = Annotated[tuple[Text, ...], BeforeValidator(_path_to_tuple)]


class PathKind(Enum):
    """The kind of file or folder that a setting names.

    `cli.paths` checks it before a command runs.
    """

    DATASET = auto()  # a folder with a known dataset layout
    FOLDER = auto()  # a folder that is not empty
    FILE = auto()
    SCANS = auto()  # a folder, a file or a pattern
    BUNDLE = auto()  # a bundle, a run directory or an nnU-Net model, or its address
    WEIGHTS = auto()  # as BUNDLE, or a checkpoint of nnU-Net
    EXISTING = auto()  # a file or a folder
    SCORES = auto()  # a folder with scores.json
    OUTPUT = auto()  # a folder, which need not exist
    OUTPUT_OR_URL = auto()  # as OUTPUT, or a URL


FolderPath = Annotated[Text | None, PathKind.FOLDER]
FilePath = Annotated[Text | None, PathKind.FILE]
OutputPath = Annotated[Text, PathKind.OUTPUT]


def _validate_pattern(text: str) -> str:
    """Return the text of a setting unchanged. Raise `ValueError` if it is no regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression ({error})") from error
    return text


class Settings(BaseModel):
    """Base class of all settings. They are frozen, and an undeclared key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def of(cls, **chosen: Any) -> Self:
        """Return the default settings of this class with some changes, without Hydra.

        `conf/` contains the defaults. A required setting that `chosen` lacks has the text `???` of
        its file.

        Args:
            chosen: The settings that differ from the defaults. A section is a dictionary.

        Raises:
            ConfigError: If a key is unknown or a value is wrong.

        >>> TrainConfig.of(data={"root": "scans"}, trainer={"max_steps": 9}).trainer.max_steps
        9
        """
        return read(cls, _merge_sections(_defaults(cls), _to_plain(chosen)))

    def to_plain(self) -> dict[str, Any]:
        """Convert the settings to dictionaries, lists, texts and numbers, to store them as YAML.

        The keys are the same as in the YAML files. A setting that is in no file of `conf/` and was
        not chosen by the user is left out.

        Raises:
            ConfigError: If an argument of a class is an object that YAML does not have.
        """
        try:
            return self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        except PydanticSerializationError as error:
            raise ConfigError(
                f"A setting cannot be stored: {error}. Give numbers, texts, lists and dictionaries."
            ) from error


class DataFolder(Settings):
    """A data folder and the settings with which its cases are listed."""

    root: Annotated[Text | None, PathKind.SCANS]
    annotations: Text | None
    group: Annotated[str, AfterValidator(_validate_pattern)] | None


class DataConfig(DataFolder):
    """The dataset of a training, its split into folds, and how its files are read."""

    root: Annotated[Text, PathKind.DATASET]
    merge_labels: bool
    validation_fraction: FractionBelow1
    fold: NonNegativeInt | Literal["all"] | None
    n_folds: Annotated[int, Field(ge=2)]
    splits: FilePath
    channel_dropout: FractionBelow1
    nan: Literal["error", "background"]
    geometry: Literal["header", "image"]
    colour: bool
    min_readers: PositiveInt | None
    cache_dir: Annotated[Text | None, PathKind.OUTPUT]
    phantoms: Arguments | None = None


class ModelConfig(Settings):
    """Settings of the network. The rules of the plan choose each value that is None.

    `architecture`: `auto` lets the references decide (`plan.model_choice`).
    `layout`: `nnunet` builds our own networks with the details of nnU-Net's. `network`: the
    arguments of a network from another package. If `architecture` is custom, its `_target_` names
    the class. `backbone`: the same for the network that computes a detector's feature maps.
    """

    architecture: str
    activation: Literal["sigmoid", "softmax"]
    # the ranges are those of plan.json
    spacing_mm: tuple[Annotated[float, Field(ge=1e-3, le=100)], ...] | None
    tile_shape: tuple[Voxels, ...] | None
    batch_size: Voxels | None
    base_features: Annotated[int, Field(ge=1, le=2**12)] | None
    init_from: Annotated[Text | None, PathKind.WEIGHTS]
    layout: Literal["lesionseg", "nnunet"] | None = None
    network: Arguments | None = None
    backbone: Arguments | None = None

    @model_validator(mode="after")
    def _validate_architecture(self) -> Self:
        """Return self. Raise `ValueError` if a setting does not fit the architecture.

        - `network` requires a network of the user or of another package (`model=custom`).
        - `backbone` requires a detector.
        - `layout=nnunet` requires one of the networks of lesionseg.
        - `base_features` must not be set together with `network`.
        """
        is_detector = self.architecture in ("retinanet", "retina_unet")
        is_ours = is_detector or self.architecture in (AUTO_MODEL, "unet", "residual_unet")
        if self.network and is_ours:
            raise ValueError(
                f"network: model={self.architecture} builds its own network. Use model=custom for "
                "a network of yours"
            )
        if self.backbone and not is_detector:
            raise ValueError(
                f"backbone: model={self.architecture} accepts no backbone. Use model=retinanet or "
                "model=retina_unet for a backbone of yours"
            )
        if self.layout == "nnunet" and not is_ours:
            raise ValueError(f"layout: {self.architecture} is not one of our own networks")
        if self.network and self.base_features is not None:
            raise ValueError(
                "base_features: your own network has its width from its arguments, "
                "model.network.…. Leave out model.base_features"
            )
        return self


class LossConfig(Settings):
    """The class of a loss and its arguments. The class checks the keys that are not listed here."""

    model_config = ConfigDict(extra="allow")
    target: str = Field(alias="_target_")
    alpha: float | tuple[float, ...] | None = None
    gamma: float | None = None

    def parameters(self) -> Mapping[str, Parameter]:
        """Import the class of the loss and return the parameters of its constructor by name.

        The result is empty if the class does not publish its parameters. Raise `ConfigError` if the
        class cannot be imported.
        """
        return parameters_of(import_target(self.target, "loss")) or {}

    @field_validator("alpha", "gamma")
    @classmethod
    def _validate_range(cls, value: Any, before: ValidationInfo) -> Any:
        """Check the range of α (0 to 1) and γ (0 to 100) of a loss of lesionseg.

        Return the value unchanged. Raise `ValueError` if it is out of range. Losses of other
        packages check their arguments themselves.

        Args:
            value: α or γ; α may be None or have one number per label.
            before: Contains the name of this setting, and the settings declared before it.
        """
        is_alpha = before.field_name == "alpha"
        is_ours = str(before.data.get("target")).startswith(OWN_LOSSES)
        if not is_ours or (is_alpha and value is None):
            return value
        highest = 1 if is_alpha else HIGHEST_GAMMA
        numbers = value if isinstance(value, tuple) else (value,)
        if any(number is None or not 0 <= number <= highest for number in numbers):
            raise ValueError(f"the losses of lesionseg need numbers from 0 to {highest}")
        return value


class DetectionConfig(Settings):
    """The focal loss of a detector's anchors. `hard_negatives` replaces it, see `DetectionLoss`."""

    alpha: Probability | tuple[Probability, ...]
    gamma: Gamma
    hard_negatives: bool


class SamplingConfig(Settings):
    """The mix of training tiles. `lesion_share`: the share of tiles around a lesion."""

    lesion_share: Probability


class PrepareSection(Settings):
    """Further transforms of MONAI that each image passes before it is cached or predicted."""

    extra: tuple[Spec, ...]


class AugmentConfig(Settings):
    """Random changes of training tiles. None for `flip_axes` means those that the plan allows."""

    flip_axes: (
        Annotated[tuple[Annotated[int, Field(ge=0, le=2)], ...], AfterValidator(_validate_distinct)]
        | None
    )
    spatial_probability: Probability
    rotate_degrees: Annotated[float, Field(ge=0, le=180)]
    intensity_probability: Probability
    extra: tuple[Spec, ...]


class OptimConfig(Settings):
    """The optimiser. `backbone_lr_scale` multiplies the rate of all weights except heads."""

    name: Literal["adamw", "sgd"]
    lr: PositiveFloat | Literal["auto"]
    weight_decay: NonNegativeFloat
    backbone_lr_scale: NonNegativeFloat


class TrainerConfig(Settings):
    """Budget, device and precision of a training. `lightning` is passed to `pl.Trainer`."""

    max_minutes: PositiveFloat | None
    max_steps: PositiveInt | None
    max_networks: PositiveInt | None
    accelerator: Literal["auto", "cpu", "gpu", "cuda"]
    devices: (
        PositiveInt
        | Literal["auto"]
        | Annotated[
            tuple[NonNegativeInt, ...], Field(min_length=1), AfterValidator(_validate_distinct)
        ]
    )
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
    compile: bool | Literal["auto"]
    memory_gb: PositiveFloat | None
    workers: NonNegativeInt | Literal["auto"]
    validate_every_minutes: PositiveFloat | Literal["auto"] | None
    lightning: Annotated[Arguments, AfterValidator(_validate_whole_numbers)]

    @property
    def n_devices(self) -> int | None:
        """The number of devices that train on each node; None for all devices of the node."""
        if isinstance(self.devices, tuple):
            return len(self.devices)
        return None if self.devices == "auto" else self.devices

    @property
    def n_nodes(self) -> int:
        """The number of nodes (machines) that train together."""
        return int(self.lightning.get("num_nodes", 1))

    @property
    def has_one_device(self) -> bool:
        """True if the settings demand exactly one device on one node; False for `devices=auto`."""
        return self.n_devices == self.n_nodes == 1


class InferenceConfig(Settings):
    """Settings for the prediction of whole volumes.

    `overlap`: the fraction of a tile that its neighbour covers as well. `flips`: average over the
    views mirrored along the axes that training flipped; n axes take 2ⁿ times as long.
    `max_memory_gb`: the memory for all cases that are processed at the same time; program and
    network take about 0.5 GB more.
    """

    overlap: FractionBelow1
    flips: bool
    precision: Literal["auto", "fp32", "bf16"]
    max_memory_gb: PositiveFloat | None


class PredictInferenceConfig(InferenceConfig):
    """Settings for the prediction of whole volumes by `predict`, which can also read zones.

    `keep_zones`: the names of the zones in which candidates are accepted. None accepts them
    everywhere.
    """

    model_config = ConfigDict(from_attributes=True)  # accepts an `InferenceConfig`

    keep_zones: Annotated[Texts, Field(min_length=1)] | None = None


class ReportSection(Settings):
    """The content of a report: the page, the PDF and the viewer of scans."""

    study: FilePath
    identifiers: bool
    pdf: bool
    viewer: bool


class TrainConfig(Settings):
    """The settings of `train`."""

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
    logger: Annotated[tuple[Spec, ...], BeforeValidator(_find_loggers)]
    preset: str
    operating_point: str
    rate_confidence: Confidence | None
    run_dir: Annotated[Text | None, PathKind.OUTPUT]
    seed: NonNegativeInt
    private: bool


class PrepareConfig(TrainConfig):
    """The settings of `prepare`. With `check`, the dataset is only checked."""

    check: bool
    identifiers: bool


class OutputCommand(Settings):
    """Base class of the settings of `predict`, `evaluate`, `follow` and `report`.

    `private`: only the user can read the results, for any umask.
    """

    private: bool


class SeriesConfig(Settings):
    """Conditions that a DICOM series must meet to be predicted.

    `modality`: the accepted modalities. `description`: a regular expression that must match part of
    SeriesDescription, regardless of case. None sets no condition. `min_slices`: the smallest number
    of slices. None means 2 in a folder or a glob, otherwise 1.
    """

    modality: Annotated[
        tuple[Annotated[str, StringConstraints(to_upper=True)], ...] | None,
        BeforeValidator(_to_texts),
    ]
    description: Annotated[str, AfterValidator(_validate_pattern)] | None
    min_slices: PositiveInt | None


class PredictConfig(OutputCommand):
    """The settings of `predict`."""

    bundle: Annotated[Bundles, PathKind.BUNDLE]
    input: Annotated[Text, PathKind.SCANS]
    output: Annotated[Text, PathKind.OUTPUT_OR_URL]
    inference: PredictInferenceConfig
    operating_point: str | None
    pixel_mm: PositiveFloat | None
    save_probabilities: bool
    preview: bool
    names: MaskNames
    subject: Literal["PatientID"] | None
    overwrite: bool
    series: SeriesConfig
    dicom_output: bool | Literal["all"]
    send: Text | None
    zones: FolderPath
    json_lines: bool
    device: str
    trust: bool
    engine: Literal["local", "ray"]
    num_shards: PositiveInt
    shard_index: NonNegativeInt

    def with_absolute_paths(self) -> Self:
        """Return the settings with absolute paths of bundles, input and zones.

        The paths are then valid in processes with another working directory. URLs of bundles and
        input stay unchanged. `zones` is always a local folder, and its symbolic links are followed.
        """
        changes = {
            "bundle": tuple(
                place if is_url(place) else str(Path(place).absolute()) for place in self.bundle
            ),
            "input": self.input if is_url(self.input) else str(Path(self.input).absolute()),
            "zones": self.zones and str(Path(self.zones).resolve()),
        }
        return self.model_copy(update=changes)

    @model_validator(mode="after")
    def _validate_needs(self) -> Self:
        """Return self. Raise `ValueError` if a setting requires another setting that is missing.

        `inference.keep_zones` requires `zones`, and `subject` requires `names=bids`.
        """
        if self.inference.keep_zones is not None and self.zones is None:
            raise ValueError("inference.keep_zones needs the masks of zones=FOLDER")
        if self.subject is not None and self.names != "bids":
            raise ValueError("subject=PatientID needs names=bids")
        return self

    @model_validator(mode="after")
    def _validate_dicomweb(self) -> Self:
        """Return self. Raise `ValueError` if a DICOMweb address does not fit the other settings.

        - `output` must not be such an address.
        - `send` must be such an address, and requires DICOM results in a local folder.
        - An `input` of this kind excludes `engine=ray` and `names=bids`.
        """
        if is_dicomweb(self.output):
            raise ValueError("output must be a folder; send=dicomweb://… stores DICOM results")
        if self.send is not None and not is_dicomweb(self.send):
            raise ValueError("send must be the address of a DICOMweb server, dicomweb://…")
        if self.send is not None and (is_url(self.output) or not self.dicom_output):
            raise ValueError("send needs dicom_output, and an output that is a local folder")
        if is_dicomweb(self.input) and (self.engine == "ray" or self.names == "bids"):
            raise ValueError("input=dicomweb://… needs engine=local, and names other than bids")
        return self

    @model_validator(mode="after")
    def _validate_shard(self) -> Self:
        """Return self. Raise `ValueError` if `shard_index` is not below `num_shards`."""
        if self.shard_index >= self.num_shards:
            raise ValueError(
                f"shard_index={self.shard_index} must be below num_shards={self.num_shards}"
            )
        return self


class EvaluateConfig(OutputCommand):
    """The settings of `evaluate`."""

    reference: Annotated[Text, PathKind.FOLDER]
    prediction: Annotated[Text, PathKind.FOLDER]
    output: OutputPath
    preset: str
    evaluated_on: Literal["train", "validation", "test", "external"] | None
    operating_point: str | float | None
    rate_confidence: Confidence | None
    chosen_on: FolderPath
    chosen_on_reference: FolderPath
    group: Annotated[str, AfterValidator(_validate_pattern)] | None
    compare: FolderPath
    compare_chosen_on: FolderPath
    margin: Confidence | None
    adjudication: FilePath
    columns: FilePath
    zones: FolderPath
    subgroups: tuple[str, ...] | None
    resample: bool
    geometry: Literal["header", "image"]
    min_readers: PositiveInt | None
    annotations: Text | None
    merge_labels: bool
    replicates: NonNegativeInt
    seed: NonNegativeInt


class ReportConfig(OutputCommand):
    """The settings of `report`."""

    scores: Annotated[Text | None, PathKind.SCORES]
    predictions: FolderPath
    output: OutputPath
    images: Annotated[Text | None, PathKind.EXISTING]
    reference: FolderPath
    prediction: FolderPath
    compare: Annotated[Text | None, PathKind.SCORES]
    report: ReportSection

    @model_validator(mode="after")
    def _validate_subject(self) -> Self:
        """Return self. Raise `ValueError` unless exactly one of `scores` and `predictions` is set.

        `scores` and `predictions` choose the kind of report.
        """
        if (self.scores is None) == (self.predictions is None):  # both or none
            raise ValueError(
                "give scores= for a report on an evaluation (prediction= draws outlines into it), "
                "or predictions= for the month page of an output of predict"
            )
        return self


class InfoConfig(Settings):
    """The settings of `info`."""

    private: ClassVar[bool] = True  # it writes no file
    bundle: Annotated[Text | None, PathKind.BUNDLE]
    data: DataFolder

    @model_validator(mode="after")
    def _validate_sources(self) -> Self:
        """Return self. Raise `ValueError` if neither `bundle` (a model) nor `data.root` is set."""
        if self.bundle is None and self.data.root is None:
            raise ValueError("give bundle= for a model, data.root= for a dataset, or both")
        return self


class _Commands(Mapping[str, type[Settings]]):
    """The settings of each command by its name. An extra that is missing is left out.

    The settings of an extra are imported when they are asked for, because they import this module.
    Those of a missing extra raise `ConfigError`.

    Args:
        kinds: The settings of all commands in the order of the help; None for an extra.
    """

    def __init__(self, kinds: Mapping[str, type[Settings] | None]) -> None:
        self.kinds = kinds

    def __getitem__(self, name: str) -> type[Settings]:
        # an extra has, for example, the class `TuneConfig` for the command `tune`
        return self.kinds[name] or getattr(find_extra(name), f"{name.capitalize()}Config")

    def __iter__(self) -> Iterator[str]:
        return (name for name, kind in self.kinds.items() if kind or has_extra(name))

    def __len__(self) -> int:
        return len([*self])


COMMANDS = _Commands(
    {
        "train": TrainConfig,
        "prepare": PrepareConfig,
        "tune": None,
        "predict": PredictConfig,
        "evaluate": EvaluateConfig,
        "follow": None,
        "report": ReportConfig,
        "export": None,
        "serve": None,
        "info": InfoConfig,
    }
)
S = TypeVar("S", bound=Settings)
# settings of one meaning: the folder of the results, the folder of the scans, the patient in a case
# id, and the pixel size of images without one in the header; also by their earlier names
_SAME_MEANING = (
    ("output", "run_dir"),
    ("input", "data.root"),
    ("groups", "group", "data.group"),
    ("raster_mm", "pixel_mm"),
)


def suggest_key(key: str, known: Collection[str]) -> str:
    """Return ` Did you mean …?` with the setting that an unknown key probably means, or "".

    The first of these that exists is suggested:

    1. The known setting that has the same meaning as the key has in another command.
    2. The only known setting whose name after the last dot is the key.
    3. The known setting that is spelt most like the key.

    >>> suggest_key("output", ["optim", "run_dir"]), suggest_key("max_steps", ["trainer.max_steps"])
    (" Did you mean 'run_dir'?", " Did you mean 'trainer.max_steps'?")
    >>> suggest_key("groups", ["group", "subgroups"]), suggest_key("groups", ["data.group"])
    (" Did you mean 'group'?", " Did you mean 'data.group'?")
    """
    # the known settings in the same row of `_SAME_MEANING` as the key
    matches = [
        other for names in _SAME_MEANING if key in names for other in names if other in known
    ]
    matches = matches or [name for name in known if name.rpartition(".")[2] == key]
    if len(matches) == 1:
        return f" Did you mean {matches[0]!r}?"
    return suggest(key, known)


def read(kind: type[S], plain: Mapping[str, Any]) -> S:
    """Convert plain data, such as the content of a YAML file, to checked settings.

    Args:
        kind: The class of the settings.
        plain: The settings by key. A section is a dictionary.

    Raises:
        ConfigError: If a key is unknown or values are wrong. The message names the first unknown
            key, or all keys with wrong values.
    """
    try:
        return kind.model_validate(dict(plain))
    except ValidationError as error:
        for misfit in error.errors():
            if misfit["type"] == "extra_forbidden":
                key = ".".join(map(str, misfit["loc"]))
                near = suggest_key(key, dict(keys(kind)))
                raise ConfigError(f"There is no setting {key!r}.{near}") from None
        raise ConfigError(describe_misfits(error, plain)) from None


def is_url(place: str) -> bool:
    """Return True if the text is a URL, such as a remote folder, and False for a local path.

    >>> is_url("s3://bucket/set"), is_url("data/set"), is_url("C:/set")
    (True, False, False)
    """
    return re.match(r"[A-Za-z][\w+.-]*://", place) is not None


def is_dicomweb(place: str) -> bool:
    """Return True if the text is the address of a DICOMweb server (`dicomweb://…`).

    >>> is_dicomweb("dicomweb://pacs/dicom-web"), is_dicomweb("https://host/scans")
    (True, False)
    >>> is_dicomweb("dicomweb")  # a folder
    False
    """
    return re.match(r"dicomweb(\+https?)?://", place) is not None


def has_config(folder: Path) -> bool:
    """Return True if a folder is a run directory, because it contains `config.yaml`."""
    return (folder / CONFIG).is_file()


def conf_dir() -> Path:
    """Return the folder of the YAML files with the defaults of all commands.

    The installed package contains it. In a clone it is in the root of the repository.
    """
    package = Path(__file__).resolve().parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def defaults(command: str, choices: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """Read the default settings of a command from the files in `conf/`.

    The `defaults:` list of a file may contain other commands, groups and `_self_`, as Hydra reads
    them. Experiments, interpolations and further folders need Hydra (`cli.compose`).

    Args:
        command: The name of the command.
        choices: Files of groups that replace the default ones, such as `{"loss": "focal"}`.

    Returns:
        The settings as plain data. A required setting, which has no default, is `"???"`.

    Raises:
        ConfigError: If a group does not have the file. The message names the files that it has.
    """
    return _compose_file(conf_dir() / f"{command}.yaml", choices)


def _compose_file(path: Path, choices: Mapping[str, str]) -> dict[str, Any]:
    """Read a YAML file of settings, and merge it with the files in its `defaults:` list.

    The file may be that of a command, or an option of a group such as `loss/focal.yaml`, whose list
    names other options of the group. `choices` is as in `defaults`, which has the same errors.
    """
    content = _read_yaml(path)
    entries = content.pop("defaults", [])
    if "_self_" not in entries:
        entries = [*entries, "_self_"]
    merged: dict[str, Any] = {}
    for entry in entries:
        if entry == "_self_":
            merged = _merge_sections(merged, content)
        elif isinstance(entry, str):
            merged = _merge_sections(merged, _compose_file(path.with_stem(entry), choices))
        else:
            for group, default in entry.items():
                choice = choices.get(group, default)
                if choice is not None:
                    option = conf_dir() / group / f"{choice}.yaml"
                    known = sorted(file.stem for file in option.parent.glob("*.yaml"))
                    require_option(group, choice, known)
                    merged = _merge_sections(merged, {group: _compose_file(option, choices)})
    return merged


def require_option(group: str, choice: str, known: Sequence[str]) -> None:
    """Raise `ConfigError` if `choice` is not one of the options `known` of a group of settings."""
    if choice not in known:
        hint = f"{suggest(choice, known)} There are {', '.join(known)}."
        raise ConfigError(f"There is no {group}={choice}.{hint}")


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings as a dictionary, which is empty for an empty file."""
    import yaml

    # the loader in C, which some builds of PyYAML lack, is six times as fast
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return dict(yaml.load(path.read_text("utf-8"), Loader=loader) or {})


def _merge_sections(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings `below`, overridden by the settings `above`, section by section.

    Keys that only `below` has are kept, with one exception: if a section of `above` names another
    class (`_target_`), it replaces the section of `below` completely, because the classes have
    different arguments.
    """
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            both_name_class = TARGET in inner and TARGET in value
            if not both_name_class or value[TARGET] == inner[TARGET]:
                value = _merge_sections(inner, value)
        merged[key] = value
    return merged


def _to_plain(value: Any) -> Any:
    """Convert numbers and arrays of numpy to numbers and lists of Python, which YAML can store.

    Dictionaries, lists and tuples are converted at all depths. Any other value stays unchanged.
    """
    if isinstance(value, Mapping):
        return {key: _to_plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [_to_plain(part) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    # numpy is not imported here, because it is not needed to check settings
    tolist = None if isinstance(value, type) else getattr(value, "tolist", None)
    return value if tolist is None else tolist()


def groups_of(command: str) -> list[str]:
    """Return the names of a command's groups of options, such as `loss` of `train`.

    The names are the keys in the `defaults:` lists of the command's YAML files.
    """
    entries = (entry for file in files_of(command) for entry in _defaults_list(file))
    return [str(group) for entry in entries if isinstance(entry, Mapping) for group in entry]


def files_of(command: str) -> Iterable[Path]:
    """Yield the YAML file of a command, then the files of the commands that it includes.

    A command includes another command in its `defaults:` list, at any depth.
    """
    path = conf_dir() / f"{command}.yaml"
    yield path
    for entry in _defaults_list(path):
        if isinstance(entry, str) and entry != "_self_":
            yield from files_of(entry)


@cache
def _defaults_list(path: Path) -> Sequence[Any]:
    """Read the `defaults:` list of a command's YAML file. Each file is read once per process."""
    return tuple(_read_yaml(path).get("defaults", ()))


@cache
def _defaults(kind: type[Settings]) -> Mapping[str, Any]:
    """Return the default settings of a class, for `Settings.of`. They are read only once.

    The class contains the settings of a command, or of a section such as `TrainerConfig`. A section
    gets the defaults of the first command that has it. Raise `ConfigError` for any other class.
    """
    for command, settings_class in COMMANDS.items():
        if settings_class is kind:
            return MappingProxyType(defaults(command))
        for name, field in settings_class.model_fields.items():
            if field.annotation is kind:
                return MappingProxyType(dict(defaults(command)[name]))
    raise ConfigError(f"{kind.__name__} is not a section of a command.")


def settings_of(
    command: str, values: Mapping[str, Any], composed: Mapping[str, Any] | None = None
) -> Settings:
    """Build the checked settings of a command from settings given in Python, without Hydra.

    Args:
        command: The name of the command.
        values: The chosen settings by dotted key (`{"trainer.max_steps": 9}`) or as a section
            (`{"trainer": {"max_steps": 9}}`). Without `composed`, also options by group
            (`{"loss": "focal"}`). Numbers and arrays of numpy are allowed.
        composed: The settings that `values` changes, such as Hydra has composed them. None for the
            defaults.

    Raises:
        ConfigError: If a key is unknown (the message names the nearest), required and missing, or
            has a wrong value.
    """
    choices: dict[str, str] = {}
    if composed is None:
        choices = chosen_options(command, values)
        composed = defaults(command, choices)
    # The values are merged with each other before they are merged with `composed`. Otherwise, in
    # {"a.b": 1, "a": {"_target_": "other.Class"}}, the class would replace the section `a` of
    # `composed` together with the b that was set just before (`_merge_sections`).
    merged_values: dict[str, Any] = {}
    for key, value in values.items():
        if key not in choices:
            section = _to_plain(value)
            # `a.b` becomes {"a": {"b": …}}, from the innermost key outwards
            for name in reversed(key.split(".")):
                section = {name: section}
            merged_values = _merge_sections(merged_values, section)
    plain = _merge_sections(composed, merged_values)
    require_given(command, plain)
    return read(COMMANDS[command], plain)


def require_given(command: str, plain: Mapping[str, Any], advice: str = "") -> None:
    """Raise `ConfigError` if a required setting is missing.

    A required setting has the text `???` in its YAML file.

    Args:
        command: The command, for the message.
        plain: The settings as plain data.
        advice: The end of the message.
    """
    missing = sorted(key for key, value in dotted_items(plain) if value == "???")
    if missing:
        missing_settings = " ".join(f"{key}=…" for key in missing)
        raise ConfigError(f"{command}: give {missing_settings}{advice}.")


def dotted_items(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the dotted key and the value of each setting and each section, at all depths.

    Args:
        node: The settings. A section is a dictionary, and is yielded before its settings.
        prefix: Put before each key.
    """
    for key, value in node.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from dotted_items(value, f"{prefix}{key}.")


def chosen_options(command: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Select the settings that choose an option of a group, such as `{"loss": "focal"}`.

    The selected settings are the entries of `values` whose key is a group of the command and whose
    value is text.
    """
    return {
        group: values[group] for group in groups_of(command) if isinstance(values.get(group), str)
    }


def import_target(target: str, key: str) -> Any:
    """Import the class or function that a setting names as `package.module.Name`.

    `key` is the setting, for messages. Raise `ConfigError` if the import fails, or if the name
    belongs to a module or a constant.
    """
    try:
        imported = resolve_name(target)
    except Exception as error:  # a module of the user may raise anything
        raise ConfigError(f"{key}._target_={target} cannot be imported: {error}") from error
    if not callable(imported):
        raise ConfigError(
            f"{key}._target_={target} is a {type(imported).__name__}, not a class. Give the full "
            "name of a class."
        )
    return imported


def parameters_of(make: Any) -> Mapping[str, Parameter] | None:
    """Return the parameters of a class or function by name, or None if Python cannot know them.

    Python cannot know the parameters of some classes that are not written in Python.
    """
    try:
        return signature(make).parameters
    except ValueError:
        return None


def check_arguments(value: Any, key: str) -> None:
    """Import each class (`_target_`) in a setting and check the names of its arguments.

    Nothing is constructed, so that the check is quick and has no effects. A class whose parameters
    are not known passes.

    Args:
        value: The value of the setting. Classes are found in it at all depths.
        key: The name of the setting, for messages.

    Raises:
        ConfigError: If a class cannot be imported or does not accept the arguments.
    """
    if isinstance(value, list | tuple):
        for part in value:
            check_arguments(part, key)
    if not isinstance(value, Mapping):
        return
    arguments = {name: part for name, part in value.items() if name != TARGET}
    for part in arguments.values():
        check_arguments(part, key)
    if TARGET not in value:
        return
    make = import_target(value[TARGET], key)
    try:
        signature(make).bind(**arguments)
    except ValueError:  # a class that is not written in Python has no signature
        return
    except TypeError as error:
        raise ConfigError(f"{key}: {value[TARGET]}: {error}. Correct the arguments.") from error


def build_object(spec: Mapping[str, Any], key: str) -> Any:
    """Construct an object from its class (`_target_`) and its arguments.

    Args:
        spec: The class and the arguments. Arguments may contain further objects of this form, which
            are constructed first.
        key: The setting that contains them, for messages.

    Raises:
        ConfigError: If a class cannot be imported, or a constructor raises an error that is not of
            lesionseg.
    """

    def construct(value: Any) -> Any:
        """Replace each dictionary with a `_target_` in `value` by its object, innermost first."""
        if isinstance(value, list | tuple):
            return type(value)(map(construct, value))
        if not isinstance(value, Mapping):
            return value
        arguments = {name: construct(part) for name, part in value.items() if name != TARGET}
        if TARGET not in value:
            return arguments
        return import_target(value[TARGET], key)(**arguments)

    try:
        return construct(spec)
    except LesionsegError:
        raise
    except Exception as error:  # a constructor may raise anything
        raise ConfigError(f"{key}: {spec.get(TARGET)} cannot be constructed: {error}") from error


def keys(kind: type[BaseModel], prefix: str = "") -> Iterable[tuple[str, bool]]:
    """Yield each key of a class of settings, with True if only text is allowed for it.

    The command line puts such text in quotes, so that Hydra does not interpret it. A setting for
    which lists of texts or None are allowed counts as text, too.

    Args:
        kind: The class of settings. A setting in a section has the key `section.key`.
        prefix: Put before each key.
    """
    for name, field in kind.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys(inner, f"{key}.")
        else:
            types = _possible_types(inner)
            # what is allowed besides text; `tuple[str, ...]` contains an Ellipsis
            others = types - {str, NoneType, Ellipsis}
            yield key, str in types and not others


def _possible_types(annotation: Any) -> set[Any]:
    """Return the types that the annotation of a setting allows.

    A union gives all its types, and a list or tuple the types of its items.
    """
    if get_origin(annotation) is Annotated:
        return _possible_types(get_args(annotation)[0])
    if get_origin(annotation) not in (Union, UnionType, tuple, list):
        return {annotation}
    types: set[Any] = set()
    for inner in get_args(annotation):
        types |= _possible_types(inner)
    return types
