"""Import of an nnU-Net v2 model: supported networks, plans.json keys, resampling, refusals.

A model folder or zip (`plans.json` and checkpoints) is read without nnU-Net.

The plans are checked key by key. A class that they name is compared with the names of the two
supported networks, but never imported. Checkpoints are read as tensors and numbers.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from io import BytesIO
from typing import Annotated, Any, Literal, cast, get_args

import torch
from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    Field,
    FiniteFloat,
)
from torch import nn

from lesionseg.core import Labels
from lesionseg.core.records import parse_as
from lesionseg.errors import BundleError, ConfigError
from lesionseg.inference.nnunet.outputs import NNUNET_RULE
from lesionseg.io.layouts.nnunet import DATASET_JSON
from lesionseg.io.nnunet_model import PLANS, NnunetModelFiles
from lesionseg.models.build import build_network, build_with_weights, require_finite
from lesionseg.models.nnunet_checkpoint import (
    NnunetCheckpoint,
    architecture_of,
    read_nnunet_checkpoint,
)
from lesionseg.plan.nnunet_preprocessing import (
    NnunetNormalisation,
    NnunetRecipe,
    NnunetResampling,
    NnunetScheme,
)
from lesionseg.plan.plan import Architecture, Modality, Normalisation, Plan

_NETWORKS = {"PlainConvUNet": "unet", "ResidualEncoderUNet": "residual_unet"}
_PREPROCESSOR = "DefaultPreprocessor"
_LABEL_MANAGER = "LabelManager"
_SPLINES = "resample_data_or_seg_to_shape"
# the functions of nnU-Net that resample, and the orders that their arguments do not state
_RESAMPLING: Mapping[str, Mapping[str, int]] = {
    _SPLINES: {},
    "resample_torch_fornnunet": {"order": 1, "order_z": 0},
}
_PICTURES = "NaturalImage2DIO"
_REORIENTING = "WithReorient"
_SLOPE = 0.01  # nnU-Net's default for the leaky ReLU
_UNKNOWN_FRACTION = 0.01  # placeholder for the share of lesion voxels
_THICKEST_MM = 100.0  # of a slice; nnU-Net gives a picture one slice of 999 mm
_EPS = 1e-5  # nnU-Net's default for the instance norm


class _Intensities(BaseModel):
    """The intensities of one channel in the lesions of the training data."""

    mean: FiniteFloat = 0.0
    std: FiniteFloat = 1.0
    percentile_00_5: FiniteFloat = 0.0
    percentile_99_5: FiniteFloat = 0.0


class _ResamplingOptions(BaseModel):
    """The arguments of nnU-Net's resampling by splines, or linearly by torch.

    The first two decide if thick slices are resized on their own.
    """

    force_separate_z: bool | None = None
    separate_z_anisotropy_threshold: float = 3.0
    order: int = 3
    order_z: int = 0
    mode: Literal["linear"] = "linear"
    aniso_axis_mode: Literal["nearest-exact"] = "nearest-exact"


class _Architecture(BaseModel):
    """The class of a network and its arguments."""

    network_class_name: str = ""
    arch_kwargs: dict[str, Any] = {}


class _Configuration(BaseModel):
    """One configuration of `plans.json`; old plans name the network by `UNet_class_name`."""

    patch_size: Annotated[list[Annotated[int, Field(ge=1, le=2**16)]], Field(min_length=2)]
    spacing: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2)]
    normalization_schemes: list[str]
    use_mask_for_norm: list[bool]
    preprocessor_name: str = _PREPROCESSOR
    resampling_fn_data: str = _SPLINES
    resampling_fn_data_kwargs: dict[str, Any] = {}
    resampling_fn_probabilities: str = _SPLINES
    resampling_fn_probabilities_kwargs: dict[str, Any] = {}
    # old plans have none, or null
    architecture: Annotated[_Architecture, BeforeValidator(lambda given: given or {})] = (
        _Architecture()
    )
    UNet_class_name: str = ""
    previous_stage: str | None = None
    batch_size: int = 2


class _Plans(BaseModel):
    """The keys of `plans.json` that are used."""

    configurations: dict[str, dict[str, Any]]
    transpose_forward: Annotated[list[int], Field(min_length=3, max_length=3)]
    image_reader_writer: str
    label_manager: str = _LABEL_MANAGER
    intensities: dict[str, _Intensities] = Field(
        default={},
        validation_alias=AliasChoices(
            "foreground_intensity_properties_per_channel",
            "foreground_intensity_properties_by_modality",
        ),
    )
    original_median_spacing_after_transp: list[float] = []


def read_nnunet_model(files: NnunetModelFiles) -> tuple[tuple[nn.Module, ...], Plan]:
    """Read the networks of all folds of an nnU-Net model, in eval mode, and their common plan.

    Raises:
        BundleError: If the model is a cascade, if its network, preprocessor or resampling is not
            supported, if a checkpoint contains anything besides tensors and numbers, or if the
            weights do not fit the plans.
    """
    checkpoints = [_read_fold(files, fold) for fold in files.folds]
    plan = _make_plan(files, checkpoints[0])
    networks = [
        _build_network_of(plan, checkpoint, files.where(files.checkpoint(fold)))
        for fold, checkpoint in zip(files.folds, checkpoints, strict=True)
    ]
    return tuple(networks), plan


def nnunet_plan(files: NnunetModelFiles) -> Plan:
    """Read the plan of an nnU-Net model without building its networks.

    The checkpoint of the first fold is read, because its weights show the sizes of the network.
    Raise `BundleError` if the model is not supported.
    """
    return _make_plan(files, _read_fold(files, files.folds[0]))


def _read_fold(files: NnunetModelFiles, fold: str) -> NnunetCheckpoint:
    """Read the checkpoint of a fold. Raise `BundleError` if it contains more than plain data."""
    name = files.checkpoint(fold)
    return read_nnunet_checkpoint(BytesIO(files.read_bytes(name)), files.where(name))


def _make_plan(files: NnunetModelFiles, checkpoint: NnunetCheckpoint) -> Plan:
    """Convert the plans of an nnU-Net model and the shapes of its weights to our `Plan`.

    - `lesion_fraction` and `normalisation` are placeholders that prediction does not use: nnU-Net
      states no lesion fraction, and `Plan.nnunet` contains its normalisation.
    - The batch size is at most 16. Trainings in 2-D have larger ones, which would only need more
      memory in prediction.

    Raises:
        BundleError: If the model is not supported, or if its files do not fit each other.
    """
    # read plans.json, dataset.json and the configuration of the checkpoint
    path = files.where(PLANS)
    plans = parse_as(_Plans, files.read_json(PLANS), path, BundleError)
    channels, labels = files.read_channels_and_labels()
    name = checkpoint.configuration or files.configuration
    where = f"{path}: configurations.{name}"
    config = parse_as(_Configuration, _inherit(plans, name, path), where, BundleError)
    _require_known("label_manager", plans.label_manager, [_LABEL_MANAGER], path)
    architecture = _read_architecture(config, where, checkpoint, files)
    recipe = _make_recipe(plans, config, name, checkpoint, where, len(channels))
    _require_fitting_layers(files, checkpoint, labels, len(channels))
    dims = 2 if _reads_pictures(plans, recipe) else 3
    if dims == 2:
        # nnU-Net gives a picture a third axis with one slice of 999 mm, and its plans put this axis
        # first. `prepare_scan` adds it there, so the axes need no other order.
        uses_pixel_size = plans.image_reader_writer != _PICTURES
        recipe = replace(recipe, transpose=(0, 1, 2), uses_pixel_size=uses_pixel_size)
    # axes without a size in the patch: a 2-D network of a volume has tiles of one slice
    tile_shape = (1,) * (dims - len(recipe.patch)) + recipe.patch
    folds = ", ".join(files.folds)
    source = f"nnU-Net v2, {files.name}, {folds}; trainer {checkpoint.trainer or 'not stated'}"
    return Plan(
        dims=dims,
        modality=_guess_modality(channels, dims),
        channel_names=channels,
        labels=labels.predicted(),
        spacing_mm=_grid_spacing(recipe, plans, dims),
        normalisation=(Normalisation("zscore"),) * len(channels),
        tile_shape=tile_shape,
        batch_size=max(1, min(config.batch_size, 16)),
        architecture=architecture,
        lesion_fraction=_UNKNOWN_FRACTION,
        activation="sigmoid" if labels.regions else "softmax",
        candidate_rule=NNUNET_RULE,
        raster_mm=1.0 if dims == 2 else None,
        grid_of_image=True,  # nnU-Net's readers only warn
        nnunet=recipe,
        reasons={"source": source},
    )


def _reads_pictures(plans: _Plans, recipe: NnunetRecipe) -> bool:
    """Return True if the model segments 2-D images, not slices of volumes.

    nnU-Net either reads such images with its reader for PNG, or from NIfTI with one slice. In plans
    it gives the slice a thickness of 999 mm, so a median spacing above 100 mm shows this case.
    """
    if plans.image_reader_writer == _PICTURES:
        return True
    median = plans.original_median_spacing_after_transp
    return recipe.network_dims == 2 and bool(median) and median[0] > _THICKEST_MM


def _require_fitting_layers(
    files: NnunetModelFiles, checkpoint: NnunetCheckpoint, labels: Labels, n_channels: int
) -> None:
    """Check that the first and the last layer of the network fit `dataset.json`.

    The network must have an input for each of the `n_channels` channels and an output for each
    label. Labels that are not regions also need an output for the background. Raise `BundleError`
    otherwise.
    """
    n_outputs = len(labels) if labels.regions else len(labels) + 1
    if checkpoint.n_outputs != n_outputs or checkpoint.n_inputs != n_channels:
        raise BundleError(
            f"{files.where(files.folds[0])}: the weights have {checkpoint.n_inputs} inputs and "
            f"{checkpoint.n_outputs} outputs, but {files.where(DATASET_JSON)} needs {n_channels} "
            f"and {n_outputs}. Use the files of one training."
        )


def _read_architecture(
    config: _Configuration, where: str, checkpoint: NnunetCheckpoint, files: NnunetModelFiles
) -> Architecture:
    """Read the architecture of the network from the shapes of its weights, and compare the plans.

    The architecture has only the finest output, because coarser outputs are only used in training
    (deep supervision). Raise `BundleError` if weights and plans do not fit.
    """
    kind = _network_kind(config, where, checkpoint, files)
    try:
        trained = architecture_of(checkpoint.weights, kind, where)
    except ConfigError as error:  # its advice concerns a training that begins with the weights
        raise BundleError(
            f"{where}: the weights are not those of a {kind}. Use plans and checkpoints of one "
            "training."
        ) from error
    architecture = replace(trained, n_supervised=1)  # coarser outputs are only for training
    _check_strides(architecture.strides, config, where)
    if len(config.patch_size) != len(architecture.strides[0]):
        raise BundleError(
            f"{where}: patch_size does not fit the network's number of axes. Use plans and "
            "checkpoints of one training."
        )
    return architecture


def _inherit(plans: _Plans, name: str, where: str) -> dict[str, Any]:
    """Return the configuration `name` of `plans.json`, with the keys that it inherits.

    The key `inherits_from` of a configuration names another configuration. A key of the inheriting
    configuration has priority. Raise `BundleError` if a configuration is missing or inherits from
    itself. `where` is the path of `plans.json` for messages.
    """
    if name not in plans.configurations:
        names = ", ".join(plans.configurations) or "none"
        raise BundleError(
            f"{where}: the configuration {name!r} is missing (it has {names}). Use plans and "
            "checkpoints of one training."
        )
    content: dict[str, Any] = {}
    visited = []
    current: Any = name
    while current is not None:
        is_name = isinstance(current, str)
        if not is_name or current in visited or current not in plans.configurations:
            raise BundleError(
                f"{where}: configurations.{name} inherits from {current!r}, which is missing or "
                "inherits from itself. Correct inherits_from."
            )
        visited.append(current)
        inherited = plans.configurations[current]
        content = {**inherited, **content}  # the later mapping has priority
        current = inherited.get("inherits_from")
    return content


def _network_kind(
    config: _Configuration, where: str, checkpoint: NnunetCheckpoint, files: NnunetModelFiles
) -> str:
    """Return the name in our `ARCHITECTURES` of the network that the plans name.

    Raise `BundleError` if the network, one of its options or the preprocessor is not supported, or
    if the model is the second stage of a cascade.
    """
    if config.previous_stage is not None:
        raise BundleError(
            f"{where}: this is a cascade, which needs the predictions of {config.previous_stage}. "
            "Use the model of 3d_fullres or 2d."
        )
    _require_known("preprocessor_name", config.preprocessor_name, [_PREPROCESSOR], where)
    class_path = config.architecture.network_class_name or config.UNet_class_name  # in old plans
    name = class_path.rpartition(".")[2]  # without its module
    if name not in _NETWORKS:
        raise BundleError(
            f"{where}: the network {class_path or 'not stated'} is none of "
            f"{', '.join(_NETWORKS)}; it was not imported. Predict with nnU-Net and give its "
            "probabilities to evaluate."
        )
    unknown_option = _find_unknown_option(config.architecture.arch_kwargs)
    if checkpoint.unknown or unknown_option:
        change = unknown_option or f"layers such as {checkpoint.unknown[0]}"
        trainer = checkpoint.trainer or files.trainer or "the trainer"
        raise BundleError(
            f"{where}: {trainer} changed the network ({change}), which is unknown here. Predict "
            "with nnU-Net and give its probabilities to evaluate."
        )
    return _NETWORKS[name]


def _require_known(key: str, name: str, supported: Collection[str], where: str) -> None:
    """Check that the plans name a class or function of nnU-Net that is supported here.

    Args:
        key: The key of the plans, for the message.
        name: The name in the plans.
        supported: The supported names.
        where: The file or configuration, for the message.

    Raises:
        BundleError: If the name is not supported.
    """
    if name not in supported:
        raise BundleError(
            f"{where}: {key} is {name}, but only {', '.join(supported)} can be used here. Predict "
            "with nnU-Net and give its probabilities to evaluate."
        )


def _find_unknown_option(options: Mapping[str, Any]) -> str:
    """Return name and value of the first option of a network that our U-Net does not support.

    Our U-Net supports only nnU-Net's defaults of normalisation, activation and squeeze-excitation.
    Other options are not checked, because sizes follow from the weights, and dropout is inactive in
    prediction. Return "" if all checked options have their defaults.
    """
    norm = str(options.get("norm_op") or "InstanceNorm")
    norm_options = options.get("norm_op_kwargs") or {}
    has_eps = norm_options.get("eps", _EPS) == _EPS
    slope = (options.get("nonlin_kwargs") or {}).get("negative_slope", _SLOPE)
    # for each checked option, whether it has nnU-Net's default; classes may have a module's prefix
    has_default = {
        "norm_op": "InstanceNorm" in norm,
        "norm_op_kwargs": has_eps and norm_options.get("affine", True) is True,
        "nonlin": str(options.get("nonlin") or "LeakyReLU").rpartition(".")[2] == "LeakyReLU",
        "nonlin_kwargs": slope == _SLOPE,
        "nonlin_first": not options.get("nonlin_first"),
        "squeeze_excitation": not options.get("squeeze_excitation"),
    }
    changed = [name for name, is_default in has_default.items() if not is_default]
    return f"{changed[0]} {options[changed[0]]}" if changed else ""


def _check_strides(
    strides: tuple[tuple[int, ...], ...], config: _Configuration, where: str
) -> None:
    """Check that the plans state the same strides as the weights have.

    The plans state a number or a list for each stage, such as [1, [1, 2, 2], 2]; a number holds for
    all axes. Plans without strides, as of old versions of nnU-Net, are not checked. Raise
    `BundleError` if the strides differ.
    """
    options = config.architecture.arch_kwargs
    if "strides" not in options:
        return
    planned = options["strides"]
    dims = len(strides[0])
    try:
        expected = tuple((n,) * dims if isinstance(n, int) else tuple(n) for n in planned)
    except TypeError as error:
        raise BundleError(
            f"{where}: architecture.arch_kwargs.strides is {planned}, not a list with the strides "
            "of each stage. Copy plans.json again."
        ) from error
    if expected != strides:
        raise BundleError(
            f"{where}: strides {planned} are not those of the weights, {list(strides)}. Use plans "
            "and checkpoints of one training."
        )


def _make_recipe(
    plans: _Plans,
    config: _Configuration,
    name: str,
    checkpoint: NnunetCheckpoint,
    where: str,
    n_channels: int,
) -> NnunetRecipe:
    """Convert the preprocessing that the plans describe to a recipe for `prepare_scan`.

    Args:
        plans: The content of `plans.json`.
        config: The configuration of the model.
        name: Name of the configuration.
        checkpoint: The checkpoint, which states the axes of mirrored views.
        where: The configuration, for messages.
        n_channels: Number of channels in `dataset.json`.

    Raises:
        BundleError: If the preprocessing is not supported, or does not fit the channels.
    """
    if sorted(plans.transpose_forward) != [0, 1, 2]:
        raise BundleError(
            f"{where}: transpose_forward is {plans.transpose_forward}, not an order of the axes 0, "
            "1 and 2. Copy plans.json again."
        )
    schemes = config.normalization_schemes
    masks = config.use_mask_for_norm
    fits_channels = len(schemes) == n_channels and len(masks) == n_channels
    if not fits_channels or len(config.spacing) != len(config.patch_size):
        raise BundleError(
            f"{where}: normalization_schemes, use_mask_for_norm and spacing do not fit "
            f"{n_channels} channels and the patch {config.patch_size}. Use the plans.json and "
            "dataset.json of one training."
        )
    normalisation = []
    for channel, (scheme, use_mask) in enumerate(zip(schemes, masks, strict=True)):
        intensities = plans.intensities.get(str(channel))
        if intensities is None and scheme == "CTNormalization":
            raise BundleError(
                f"{where}: the plans state no intensities of channel {channel}, which "
                "CTNormalization needs. Copy plans.json again."
            )
        # schemes other than CTNormalization do not use them
        known_intensities = intensities or _Intensities()
        normalisation.append(_convert_normalisation(scheme, use_mask, known_intensities, where))
    first, second, third = plans.transpose_forward  # a tuple of three for the recipe
    content = {
        "configuration": name,
        "spacing": config.spacing,
        "patch": config.patch_size,
        "normalisation": tuple(normalisation),
        "image_resampling": _convert_resampling(
            config.resampling_fn_data,
            config.resampling_fn_data_kwargs,
            f"{where}.resampling_fn_data",
        ),
        "logit_resampling": _convert_resampling(
            config.resampling_fn_probabilities,
            config.resampling_fn_probabilities_kwargs,
            f"{where}.resampling_fn_probabilities",
        ),
        "transpose": (first, second, third),
        "reorients": plans.image_reader_writer.endswith(_REORIENTING),
        "mirror_axes": checkpoint.mirror_axes,
    }
    recipe = parse_as(NnunetRecipe, content, where, BundleError)
    if any(axis >= recipe.network_dims for axis in recipe.mirror_axes):
        raise BundleError(
            f"{where}: mirror axes {recipe.mirror_axes} do not fit the patch. Use plans and "
            "checkpoints of one training."
        )
    return recipe


def _convert_normalisation(
    scheme: str, use_mask: bool, intensities: _Intensities, where: str
) -> NnunetNormalisation:
    """Convert the normalisation of a channel in the plans.

    Args:
        scheme: Name of the class of nnU-Net, such as "CTNormalization".
        use_mask: The entry of `use_mask_for_norm`: True if only voxels inside a mask are
            normalised. Schemes other than the z-score ignore it.
        intensities: Intensities of the channel in the training data.
        where: The configuration, for messages.

    Raises:
        BundleError: If the scheme is unknown.
    """
    _require_known("the normalisation", scheme, get_args(NnunetScheme), where)
    return NnunetNormalisation(
        scheme=cast(NnunetScheme, scheme),
        use_mask=use_mask and scheme == "ZScoreNormalization",
        mean=intensities.mean,
        std=intensities.std,
        lower=intensities.percentile_00_5,
        upper=intensities.percentile_99_5,
    )


def _convert_resampling(function: str, options: Mapping[str, Any], where: str) -> NnunetResampling:
    """Convert a function of nnU-Net that resamples, and its arguments, to spline orders.

    `where` is the key of the plans for messages. Raise `BundleError` if the function or the value
    of an argument is unknown.
    """
    _require_known("the resampling", function, _RESAMPLING, where)
    content = {**options, **_RESAMPLING[function]}  # the function has priority over its arguments
    parsed = parse_as(_ResamplingOptions, content, f"{where}_kwargs", BundleError)
    return NnunetResampling(
        order=parsed.order,
        order_z=parsed.order_z,
        separate_z=parsed.force_separate_z,
        threshold=parsed.separate_z_anisotropy_threshold,
    )


def _grid_spacing(recipe: NnunetRecipe, plans: _Plans, dims: int) -> tuple[float, ...]:
    """Return the spacing in mm of the plan's grid, which is used for tables and memory estimates.

    The spacing has `dims` numbers. A 2-D network that segments slices of volumes states no slice
    distance. The median slice distance of the training scans is then used, or 1 mm if it is not
    stated. Each number is clipped to the range that a plan accepts.
    """
    spacing = recipe.spacing
    if len(spacing) < dims:
        median = plans.original_median_spacing_after_transp
        spacing = (median[0] if median else 1.0, *spacing)
    return tuple(min(max(mm, 1e-3), 100.0) for mm in spacing)  # the range that a plan accepts


def _guess_modality(channels: tuple[str, ...], dims: int) -> Modality:
    """Guess the modality of the scans from the names of the channels, as nnU-Net states none.

    - 3-D: "ct" if a channel is called CT, otherwise "mri".
    - 2-D: "colour" if there are three channels whose names begin with r, g and b, otherwise "xray".
    """
    if dims == 2:
        return "colour" if "".join(name[:1].casefold() for name in channels) == "rgb" else "xray"
    return "ct" if any(name.casefold() == "ct" for name in channels) else "mri"


def _build_network_of(plan: Plan, checkpoint: NnunetCheckpoint, where: str) -> nn.Module:
    """Build the network of a plan with the weights of a checkpoint, in eval mode.

    Weights of the coarser outputs, which are only used in training, are left out. Raise
    `BundleError` if the weights do not fit the plan or are not finite.
    """
    with torch.device("meta"):  # without memory, because only the names are needed
        needed = set(build_network(plan).state_dict())
    weights = {name: tensor for name, tensor in checkpoint.weights.items() if name in needed}
    require_finite(weights, where)
    try:
        return build_with_weights(plan, weights)
    except RuntimeError as error:
        raise BundleError(
            f"{where}: the weights do not fit the plans. Use the files of one training. {error}"
        ) from error
