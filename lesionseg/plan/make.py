"""Order of the planning rules; user's values, values of a bundle to start from, refusals.

A plan is made from a fingerprint, with reasons.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from math import prod
from typing import Any, TypeVar

import numpy as np

from lesionseg.config import AUTO_MODEL, ModelConfig
from lesionseg.core import Dataset, describe_sides
from lesionseg.errors import ConfigError
from lesionseg.plan import rules
from lesionseg.plan.anchor_sizes import fit_anchors
from lesionseg.plan.channel_matching import match_channels
from lesionseg.plan.fingerprint import Fingerprint
from lesionseg.plan.model_choice import ReferenceKinds, choose_model
from lesionseg.plan.plan import (
    AnchorPlan,
    Architecture,
    Modality,
    Normalisation,
    Plan,
    heads_of,
    to_tuples,
    total_stride,
)
from lesionseg.plan.rules import Decision, DeviceBudget, GridSizes

logger = logging.getLogger(__name__)

T = TypeVar("T")

BY_USER = "set by the user"
FOLLOWED = "as in the bundle that training starts from"
FOLLOWED_CHECKPOINT = "as in the checkpoint that training starts from"
# the heads of a detector on a GPU (Lin et al. 2017)
MIN_HEAD_WIDTH = 128  # channels
HEAD_DEPTH = 4  # convolutions
# networks with the same encoder and decoder: the weights of one can initialise another
_PLAIN = ("unet", "retinanet", "retina_unet")


def network_spec(model: ModelConfig) -> dict[str, Any]:
    """Return the class and arguments of the user's own network or backbone, or {} without one.

    The result is the field `Architecture.network`: a dictionary with `_target_` and the arguments.
    """
    return dict(to_tuples(model.network or model.backbone or {}))


def make_plan(
    fingerprint: Fingerprint,
    dataset: Dataset,
    *,
    memory_gb: float,
    device: str,
    overrides: ModelConfig | None = None,
    before: Plan | None = None,
    step_memory: Callable[[Plan], float] | None = None,
    pyramid: Architecture | None = None,
) -> Plan:
    """Decide everything that training and inference have to agree on.

    Warnings are logged for mixed pixel sizes, for channels that are not those of `before` and,
    without `before`, for channels that are masks of odd values.

    Args:
        fingerprint: Statistics of the dataset.
        dataset: The dataset. Its labels and channel names are used.
        memory_gb: Memory of the device in 10⁹ bytes.
        device: torch's name of the device, such as "cpu" or "cuda:0".
        overrides: The user's settings, which replace decisions; None for none. `choose_model`
            replaces the architecture "auto".
        before: Plan of the network whose weights training starts from. The new plan has its grid,
            backbone, anchors and the normalisation of its channels. It also has its tile, unless
            `overrides` has a tile.
        step_memory: Function that predicts the memory of a training step of a plan in 10⁹ bytes.
        pyramid: Stages of a user's own backbone, or of a backbone with another program's weights.

    Returns:
        The plan, with a reason for each decision, except for a model that `overrides` names.

    Raises:
        ConfigError: If overrides do not fit the data, `before` or `pyramid`, if `before` does not
            fit the data, or if a GPU has no `step_memory`.
    """
    # settings, and the decisions that do not depend on the device's limits
    model = _choose_model(fingerprint, overrides or ModelConfig.of())
    asked = model.value  # the user's settings
    chosen = asked  # the same with the values that `before` or `pyramid` fixes
    if before is not None:
        check_compatible(before, asked, fingerprint, dataset)
        tile_shape = asked.tile_shape or before.tile_shape
        fixed_values = {"spacing_mm": before.spacing_mm, "tile_shape": tile_shape}
        chosen = asked.model_copy(update=fixed_values)
    if pyramid is not None:
        _check_pyramid(pyramid, asked)
        if not pyramid.network:  # the tile is planned for the width of the checkpoint
            chosen = chosen.model_copy(update={"base_features": pyramid.features[0]})
    draft = _draft_plan(fingerprint, dataset, device, chosen, before)
    choose_anchors = cache(partial(_choose_anchors, fingerprint, draft, before, device))

    def complete(architecture: Architecture, tile: Sequence[int], batch: int) -> Plan:
        """Return the draft with tile, batch, architecture, and the anchors of this architecture."""
        return draft.with_(
            architecture=architecture,
            tile_shape=tuple(tile),
            batch_size=batch,
            anchors=choose_anchors(architecture).value,
        )

    # The rules try many sizes, and predict the memory of each by a complete plan. `sizes` are the
    # arguments of `complete`.
    budget = rules.budget(
        device,
        memory_gb,
        None if step_memory is None else lambda *sizes: step_memory(complete(*sizes)),
        n_channels=len(dataset.channel_names),
        dims=draft.dims,
    )
    # the limits of the device, then tile, architecture and batch within them
    sizes = _sizes_on_grid(fingerprint, draft)
    allowed = _adapt_budget(budget.value, chosen, device)
    # Small tiles only if the rules decide both sizes, because a smaller tile is compensated by a
    # larger batch
    if chosen.tile_shape is None and chosen.batch_size is None:
        allowed = rules.limit_to_small_tiles(allowed, sizes, draft.spacing_mm)
    elif before is not None and asked.tile_shape is None and asked.batch_size is None:
        allowed = _allow_small_tiles_of(before, allowed)
    tile = _choose_tile(sizes, draft, allowed, chosen, pyramid)
    architecture = _choose_architecture(tile.value, draft, allowed, chosen, before, pyramid)
    # the stride of a user's own network is not known; it is tried on the tile later
    if chosen.architecture != "custom" and (pyramid is not None or before is not None):
        _require_multiples(tile.value, total_stride(architecture.value))
    batch = _pick_decision(
        chosen.batch_size,
        lambda: rules.batch_size(architecture.value, tile.value, allowed, sizes.n_voxels),
    )
    plan = complete(architecture.value, tile.value, batch.value)
    reasons = {
        **draft.reasons,
        "budget": budget.reason,
        "tile_shape": tile.reason,
        "architecture": architecture.reason,
        "batch_size": batch.reason,
        "model": model.reason,
        "anchors": choose_anchors(architecture.value).reason,
    }
    if step_memory is not None and device.startswith("cuda"):
        reasons["memory"] = f"a training step is predicted to take {step_memory(plan):.1f} GB"
    if before is not None:  # otherwise the reasons would say that the user set these values
        reasons["spacing_mm"] = FOLLOWED
        reasons["tile_shape"] = tile.reason if asked.tile_shape else FOLLOWED
    # a model that the user named, and a network without anchors, have no reason
    return plan.with_(reasons={name: reason for name, reason in reasons.items() if reason})


def _choose_model(fingerprint: Fingerprint, asked: ModelConfig) -> Decision[ModelConfig]:
    """Return the settings with the architecture that `choose_model` selects, instead of "auto".

    The reason names the model and explains it. If the user named an architecture, the settings are
    returned unchanged, and the reason is empty.
    """
    if asked.architecture != AUTO_MODEL:
        return Decision(asked, "")
    model = choose_model(ReferenceKinds.of(fingerprint))
    with_model = asked.model_copy(update={"architecture": model.value})
    return Decision(with_model, f"{model.value}, because {model.reason}")


def _sizes_on_grid(fingerprint: Fingerprint, draft: Plan) -> GridSizes:
    """Compute the sizes of cases and lesions on the plan's grid, from which tile and batch follow.

    The fingerprint has sizes on the files' grids. The size of a lesion is that of a ball (2-D:
    disc) of its diameter.
    """
    sizes_mm = np.asarray(fingerprint.shapes) * np.asarray(fingerprint.spacings_mm)
    shapes = np.maximum(np.round(sizes_mm / np.asarray(draft.spacing_mm)), 1)
    diameters_mm = np.asarray(fingerprint.diameters_mm, float)
    # a ball of diameter d has the volume π/6 · d³, a disc the area π/4 · d²
    volume_of_unit_ball = np.pi / (6 if draft.dims == 3 else 4)
    voxels_of_unit_ball = volume_of_unit_ball / np.prod(draft.spacing_mm)
    return GridSizes(
        median_shape=tuple(map(int, np.ceil(np.median(shapes, axis=0)))),
        n_voxels=float(shapes.prod(axis=1).sum()),
        lesion_voxels=voxels_of_unit_ball * diameters_mm**draft.dims,
    )


def _choose_anchors(
    fingerprint: Fingerprint,
    draft: Plan,
    before: Plan | None,
    device: str,
    architecture: Architecture,
) -> Decision[AnchorPlan | None]:
    """Choose the anchors of a detector: those of `before`, or anchors that fit the lesions.

    On a GPU, fitted anchors have wider and deeper heads.

    Args:
        fingerprint: Sizes of the lesions.
        draft: The grid of the plan.
        before: The plan of the network that training starts from, or None.
        device: `cpu`, or a name that begins with `cuda`.
        architecture: The network.

    Returns:
        The anchors with the reason. They are None for a network without anchors.
    """
    if "detection" not in heads_of(architecture.name):
        return Decision(None, "")
    if before is not None and before.anchors is not None:
        return Decision(before.anchors, FOLLOWED)
    # `[n, dims]`, also without lesions
    extents = np.asarray(fingerprint.extents_mm).reshape(-1, fingerprint.dims)
    anchors = fit_anchors((extents / np.asarray(draft.spacing_mm)).tolist(), architecture)
    if device.startswith("cuda"):
        width = max(anchors.value.width, MIN_HEAD_WIDTH)
        anchors = replace(anchors, value=replace(anchors.value, width=width, depth=HEAD_DEPTH))
    return anchors


def _adapt_budget(budget: DeviceBudget, chosen: ModelConfig, device: str) -> DeviceBudget:
    """Adapt the device's limits to the architecture and the number of features in the settings.

    If the user sets `base_features`, the maximum number of features changes in the same proportion.
    """
    # A batch is limited to 5 % of the dataset, as in nnU-Net. Its presets for residual networks,
    # which are followed on a GPU, do not have this limit.
    is_residual_preset = device.startswith("cuda") and chosen.architecture == "residual_unet"
    adapted = replace(budget, architecture=chosen.architecture, limits_share=not is_residual_preset)
    base_features = chosen.base_features
    if base_features is None:
        return adapted
    # the largest number of features changes in the same proportion as that of the first stage
    widest = budget.widest * base_features // budget.base_features
    return replace(adapted, base_features=base_features, widest=max(widest, base_features))


def _allow_small_tiles_of(before: Plan, allowed: DeviceBudget) -> DeviceBudget:
    """Raise the maximum batch if `before` was planned with small tiles, and return the budget.

    The new maximum is that of a new plan with small tiles. Otherwise a training that starts from
    such a run would have a quarter of the tiles per step. The budget is not changed if it allows no
    small tiles, or already allows the batch of `before`.
    """
    has_small_tiles = prod(before.tile_shape) <= rules.SMALL_TILE
    if allowed.small_tiles and has_small_tiles and before.batch_size > allowed.batch:
        return replace(allowed, batch=rules.MAX_SMALL_TILES, limits_share=False)
    return allowed


def _choose_tile(
    sizes: GridSizes,
    draft: Plan,
    allowed: DeviceBudget,
    chosen: ModelConfig,
    pyramid: Architecture | None,
) -> Decision[tuple[int, ...]]:
    """Choose the tile: that of the settings, or the result of the rules.

    With a `pyramid`, the result of the rules is rounded to multiples of its stride and shortened
    until a step fits the device. The sides of the user's tile are checked later.

    Args:
        sizes: Sizes of the dataset on the plan's grid.
        draft: The grid of the plan.
        allowed: The limits of the device.
        chosen: The settings, with the values that the network that training starts from fixes.
        pyramid: Stages of a backbone that is not planned by the rules, or None.
    """
    if chosen.tile_shape is not None:
        return Decision(chosen.tile_shape, BY_USER)
    tile = rules.tile_shape(sizes.median_shape, draft.spacing_mm, allowed)
    if pyramid is None:
        return tile
    stride = total_stride(pyramid)
    rounded = _round_to_multiple(tile.value, stride, draft.spacing_mm)
    rounded = _shrink_to_budget(rounded, stride, pyramid, allowed)
    if rounded == tile.value:
        return tile
    reason = (
        f"{describe_sides(rounded)}, so that the backbone of stride {describe_sides(stride)} "
        f"accepts it and a step fits the device; the rules chose {tile.reason}"
    )
    return Decision(rounded, reason)


def _require_multiples(tile: Sequence[int], stride: Sequence[int]) -> None:
    """Raise `ConfigError` if the backbone does not accept a tile.

    The sides of the tile must be multiples of the stride. At least one side must be longer than the
    stride, because instance norm cannot normalise the single voxel that the coarsest stage would
    have.
    """
    if any(np.remainder(tile, stride)) or tuple(tile) == tuple(stride):
        raise ConfigError(
            f"model.tile_shape={list(tile)}: the sides must be multiples of {list(stride)} for "
            "this backbone, and at least one must be longer."
        )


def _round_to_multiple(
    tile: Sequence[int], stride: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[int, ...]:
    """Round each side of a tile to a multiple of the stride, so that the backbone accepts the tile.

    If all sides equal the stride, the axis of the fewest millimetres gets one stride more.
    Otherwise the coarsest stage would have a single voxel, which instance norm cannot normalise.
    """
    # at least one stride
    rounded = [max(round(n / s), 1) * s for n, s in zip(tile, stride, strict=True)]
    if rounded == list(stride):
        shortest = int(np.argmin(np.multiply(rounded, spacing_mm)))
        rounded[shortest] += stride[shortest]
    return tuple(rounded)


def _shrink_to_budget(
    tile: Sequence[int], stride: Sequence[int], pyramid: Architecture, allowed: DeviceBudget
) -> tuple[int, ...]:
    """Shorten a tile until a step of two tiles is allowed, or until it cannot be shortened.

    In each turn, the axis with the most strides is shortened by one stride. The tile stays larger
    than one stride along at least one axis.

    Args:
        tile: Shape of the tile, multiples of `stride`.
        stride: The total stride of the backbone.
        pyramid: The backbone.
        allowed: The limits of the device.
    """
    sides = list(tile)
    # two tiles, which each plan has; `fits` gets the number of tiles last
    while not allowed.fits(pyramid, sides, 2):
        longest = max(range(len(sides)), key=lambda axis: sides[axis] / stride[axis])
        if sum(sides) - stride[longest] <= sum(stride):  # one stride along each axis would remain
            break
        sides[longest] -= stride[longest]
    return tuple(sides)


def _choose_architecture(
    tile: Sequence[int],
    draft: Plan,
    allowed: DeviceBudget,
    chosen: ModelConfig,
    before: Plan | None,
    pyramid: Architecture | None,
) -> Decision[Architecture]:
    """Choose the architecture.

    The first of these that exists is used:

    - `pyramid`: the stages of a user's own backbone, or of a backbone with another program's
      weights.
    - The architecture of `before`, the plan of the bundle that training starts from, with the name
      of the chosen architecture.
    - The architecture that the rules choose for the tile, the spacing and the device.
    """
    if pyramid is not None:
        name = pyramid.network.get("_target_", FOLLOWED_CHECKPOINT)
        return Decision(pyramid, f"{name}, {len(pyramid.features)} resolutions")
    if before is not None:
        return Decision(replace(before.architecture, name=chosen.architecture), FOLLOWED)
    return _choose_stages(tile, draft.spacing_mm, allowed, chosen)


def _pick_decision(chosen: T | None, rule: Callable[[], Decision[T]]) -> Decision[T]:
    """Return the user's setting as a decision, or call the rule if the setting is None."""
    return rule() if chosen is None else Decision(chosen, BY_USER)


def _draft_plan(
    fingerprint: Fingerprint,
    dataset: Dataset,
    device: str,
    chosen: ModelConfig,
    before: Plan | None,
) -> Plan:
    """Make all decisions except tile, architecture and batch, and return them as a plan.

    Tile, architecture and batch need the grid of the draft. Warnings are logged for mixed pixel
    sizes and, without `before`, for channels that are masks of odd values.

    Args:
        fingerprint: Statistics of the dataset.
        dataset: The dataset.
        device: `cpu`, or a name that begins with `cuda`.
        chosen: The settings.
        before: The plan of the bundle that training starts from, or None.

    Raises:
        ConfigError: If the settings have another number of axes, or a softmax for regions.
    """
    _require_values_per_axis(chosen, fingerprint.dims)
    if dataset.labels.regions and chosen.activation == "softmax":
        raise ConfigError(
            "model.activation=softmax does not fit labels that are regions, because regions "
            "overlap. Set model.activation=sigmoid or data.merge_labels=true."
        )
    spacing: Decision[tuple[float, ...]] = _pick_decision(
        chosen.spacing_mm,
        lambda: rules.spacing(fingerprint.spacings_mm, fingerprint.diameters_mm, device),
    )
    scales = _choose_normalisations(fingerprint, spacing.value, dataset, before)
    if before is None:  # otherwise the bundle decides
        _warn_of_masks(fingerprint, [scale.value for scale in scales])
    # the fraction of lesion voxels, with which the head's bias begins
    prior = rules.prior(fingerprint.lesion_fraction, fingerprint.dims)
    candidates = rules.candidate_rule(fingerprint.lesion_voxels, prior.value, fingerprint.dims)
    raster_mm = None
    if fingerprint.dims == 2:
        # a radiograph that states no pixel size is assumed to have the median of the training set
        raster_mm = _median_pixel(fingerprint)
        _warn_of_mixed_pixel_sizes(fingerprint)
    return Plan(
        dims=fingerprint.dims,
        modality=fingerprint.modality,
        channel_names=dataset.channel_names,
        labels=dataset.labels.predicted(),
        spacing_mm=spacing.value,
        normalisation=tuple(scale.value for scale in scales),
        # tile, batch and architecture are placeholders until `make_plan` decides them
        tile_shape=(),
        batch_size=1,
        architecture=Architecture(chosen.architecture, features=(), strides=(), kernels=()),
        lesion_fraction=prior.value,
        activation=chosen.activation,
        raster_mm=raster_mm,
        # candidates come from the default output of the network
        candidate_rule=replace(candidates.value, source=heads_of(chosen.architecture)[0]),
        reasons={
            "spacing_mm": spacing.reason,
            # each reason once
            "normalisation": "; ".join(dict.fromkeys(scale.reason for scale in scales)),
            "lesion_fraction": prior.reason,
            "candidate_rule": candidates.reason,
        },
    )


def _median_pixel(fingerprint: Fingerprint) -> float:
    """Return the median height of a pixel in mm, over all images.

    The height is 1 for images without a known pixel size, because readers give them pixels of 1 mm.
    """
    # in a 2-D dataset, the first axis is that of the rows
    return float(np.median([spacing_mm[0] for spacing_mm in fingerprint.spacings_mm]))


def _warn_of_mixed_pixel_sizes(fingerprint: Fingerprint) -> None:
    """Warn if only some images have a known pixel size.

    Readers give an image without a pixel size pixels of 1 mm. The images would be trained at
    different scales.
    """
    n_unknown = sum(set(spacing) == {1.0} for spacing in fingerprint.spacings_mm)
    if 0 < n_unknown < len(fingerprint.spacings_mm):
        logger.warning(
            "%d of %d images state no size of a pixel and are trained with pixels of 1 mm. State "
            "it as pixel_mm in manifest.csv.",
            n_unknown,
            len(fingerprint.spacings_mm),
        )


def _warn_of_masks(fingerprint: Fingerprint, scales: Sequence[Normalisation]) -> None:
    """Warn of channels that are masks of 0 and a number other than 1, such as 255.

    The warning applies to channels with the normalisation `zscore`, which does not scale such a
    mask.

    Args:
        fingerprint: Intensities of each channel.
        scales: Normalisation of each channel.
    """
    for channel, scale in zip(fingerprint.channels, scales, strict=True):
        value = channel.body.mean  # of the voxels other than 0
        is_constant = channel.body.std <= 1e-6 * abs(value)  # equal apart from rounding
        has_zeros = channel.nonzero_share < 1
        if scale.scheme == "zscore" and is_constant and has_zeros and value not in (0, 1):
            logger.warning(
                "The channel %r has no values but 0 and %g, like a mask. The z-score does not "
                "scale it, so that it becomes %g and 0. Store the mask with the values 0 and 1%s.",
                channel.name,
                value,
                -value,
                # the name of nnU-Net for the division by 255
                ", or name the channel rgb_to_0_1" if value == 255 else "",
            )


def _require_values_per_axis(chosen: ModelConfig, dims: int) -> None:
    """Raise `ConfigError` if the user's `spacing_mm` or `tile_shape` has a wrong number of axes."""
    axes = "z, y, x" if dims == 3 else "y, x"
    for name in ("spacing_mm", "tile_shape"):
        values = getattr(chosen, name)
        if values is not None and len(values) != dims:
            raise ConfigError(
                f"model.{name}={list(values)} has {len(values)} values, but the images have "
                f"{dims} axes. Give one value each for {axes}."
            )


def _choose_normalisations(
    fingerprint: Fingerprint, spacing_mm: Sequence[float], dataset: Dataset, before: Plan | None
) -> list[Decision[Normalisation]]:
    """Choose the normalisation of each channel, by the rules or as in `before`.

    A channel that matches a channel of `before` (`match_channels`) has the same normalisation,
    because the weights were trained with it. A channel that `before` does not have follows the
    rules.

    Args:
        fingerprint: Intensities of each channel.
        spacing_mm: Spacing of the plan's grid, for radiographs.
        dataset: The channel names.
        before: The plan of the bundle that training starts from, or None.
    """
    # the median longer side of a radiograph in pixels of the plan; None for other images
    radiograph_side = None
    if fingerprint.modality == "xray" and len(fingerprint.channels) == 1:
        sides_mm = np.max(np.multiply(fingerprint.shapes, fingerprint.spacings_mm), axis=1)
        radiograph_side = float(np.median(sides_mm)) / max(spacing_mm)

    decide = partial(rules.normalisation, dims=fingerprint.dims, radiograph_side=radiograph_side)
    if before is None:
        return [decide(channel) for channel in fingerprint.channels]
    scales = []
    matches = match_channels(dataset.channel_names, before.channel_names)
    for channel, index_before in zip(fingerprint.channels, matches, strict=True):
        if index_before is None:  # a channel that the bundle does not have
            scales.append(decide(channel))
        else:
            scales.append(Decision(before.normalisation[index_before], FOLLOWED))
    return scales


def _choose_stages(
    tile: Sequence[int], spacing_mm: Sequence[float], allowed: DeviceBudget, chosen: ModelConfig
) -> Decision[Architecture]:
    """Choose stages and features by the rules, for a tile that is already chosen.

    A tile that the user sets has to fit the stages exactly. A user's own network may accept any
    tile, so its tile is not checked.

    Args:
        tile: Shape of the tile.
        spacing_mm: Spacing of the plan's grid.
        allowed: The limits of the device.
        chosen: The settings.

    Raises:
        ConfigError: If the user has set a tile that cannot be halved along any axis.
    """
    network = network_spec(chosen)
    # a tile that the user sets must fit, but the user's own network may accept any tile
    must_fit = chosen.tile_shape is not None and not network
    architecture = allowed.choose_architecture(tile, spacing_mm, exact=must_fit)
    if must_fit and len(architecture.features) == 1:
        raise ConfigError(
            f"model.tile_shape={list(tile)}: the network cannot halve any side. "
            "Give multiples of 16."
        )
    architecture = replace(
        architecture, network=network, layout=chosen.layout or architecture.layout
    )
    if chosen.layout == "nnunet":  # a loss at all resolutions except the two coarsest
        architecture = replace(architecture, n_supervised=max(len(architecture.features) - 2, 1))
    coarsest_shape = [n // s for n, s in zip(tile, total_stride(architecture), strict=True)]
    kind = "anisotropic" if rules.is_anisotropic(spacing_mm) else "nearly isotropic"
    element = rules.grid_element(len(tile))
    features = f"{architecture.features[0]} to {architecture.features[-1]} features"
    reason = (
        f"{len(architecture.features)} stages with {features}; the coarsest has "
        f"{describe_sides(coarsest_shape)} {element}s per tile; the spacing is {kind}"
    )
    return Decision(architecture, reason)


def backbone_kind(architecture: str) -> str:
    """Return the kind of backbone of an architecture, to test if weights can be transferred.

    Weights fit networks of the same kind. The U-Net and the detectors without residual blocks are
    "plain". Any other architecture is its own kind, also a user's own network.
    """
    return "plain" if architecture in _PLAIN else architecture


def _kind_of_scan(modality: Modality) -> str:
    """Return the modality by which datasets are compared: colour pictures count as X-ray.

    Bundles of version 1.0.0 did not distinguish the two.
    """
    return "xray" if modality == "colour" else modality


def check_compatible(
    before: Plan, chosen: ModelConfig, fingerprint: Fingerprint, dataset: Dataset
) -> None:
    """Raise `ConfigError` if the weights of `before` do not fit the plan that the user asks for.

    A user's own network needs the same channels in the same order, because its first layer is not
    known. For other networks, a warning is logged if the number or the names of the channels
    differ. Another order gives no warning.

    Args:
        before: The plan of the bundle that training starts from.
        chosen: The settings.
        fingerprint: Statistics of the new dataset.
        dataset: The new dataset.
    """
    architecture = before.architecture
    for name, of_bundle, asked_value in (
        ("number of axes", before.dims, fingerprint.dims),
        ("modality", _kind_of_scan(before.modality), _kind_of_scan(fingerprint.modality)),
        # safety: the class of a bundle's network is imported only if the user names it too
        ("network", dict(architecture.network), network_spec(chosen)),
        ("kind of backbone", backbone_kind(architecture.name), backbone_kind(chosen.architecture)),
    ):
        if of_bundle != asked_value:
            raise ConfigError(
                f"model.init_from: the {name} of the bundle is {of_bundle}, but here it is "
                f"{asked_value}. Use another bundle, or leave out model.init_from."
            )
    _check_pixel_sizes(before, fingerprint)
    # for each channel of the dataset its index in the bundle
    channels = match_channels(dataset.channel_names, before.channel_names)
    is_same_order = channels == tuple(range(len(before.channel_names)))
    if architecture.network and not is_same_order:
        raise ConfigError(
            f"model.init_from: the bundle has the channels {', '.join(before.channel_names)}, but "
            f"here they are {', '.join(dataset.channel_names)}. The first layer of your own "
            "network is not known, so give the same channels in the same order."
        )
    _warn_if_channels_differ(channels, dataset.channel_names, before.channel_names)
    for key, asked, fixed in (
        ("spacing_mm", chosen.spacing_mm, before.spacing_mm),
        ("base_features", chosen.base_features, architecture.features[0]),
        ("layout", chosen.layout, architecture.layout),
    ):
        _require_fixed_value(key, asked, fixed, source="the bundle of model.init_from")


def _check_pixel_sizes(before: Plan, fingerprint: Fingerprint) -> None:
    """Raise `ConfigError` if only the bundle or only the images have known pixel sizes in 2-D.

    The images would then be resampled by a wrong factor. A median pixel of 1 mm means an unknown
    size.
    """
    if before.dims != 2 or before.raster_mm is None:
        return
    # readers give images without a pixel size pixels of 1 mm
    is_known_before = before.raster_mm != 1.0
    is_known = _median_pixel(fingerprint) != 1.0
    if is_known != is_known_before:
        images = "these images" if is_known else "the images of the bundle"
        raise ConfigError(
            f"model.init_from: only {images} state the size of a pixel, so the grids do not fit. "
            "Give it as pixel_mm in manifest.csv, or leave out model.init_from."
        )


def _check_pyramid(pyramid: Architecture, chosen: ModelConfig) -> None:
    """Raise `ConfigError` if the user's `base_features` or `layout` differs from a fixed backbone.

    The stages of `pyramid` are fixed, because they come from the user's own backbone or from a
    checkpoint.
    """
    source = "model.backbone" if pyramid.network else "the checkpoint of model.init_from"
    _require_fixed_value("base_features", chosen.base_features, pyramid.features[0], source)
    _require_fixed_value("layout", chosen.layout, pyramid.layout, source)


def _require_fixed_value(key: str, asked: object, fixed: object, source: str) -> None:
    """Raise `ConfigError` if the user sets a value that differs from a value that is fixed.

    Args:
        key: The setting below `model`, for the message.
        asked: The user's value. None if the user set none.
        fixed: The fixed value.
        source: The object that fixes the value, for the message.
    """
    if asked is not None and asked != fixed:
        raise ConfigError(f"model.{key}={asked}: {source} has {fixed}. Leave out model.{key}.")


def _warn_if_channels_differ(
    matches: Sequence[int | None], here: Sequence[str], before: Sequence[str]
) -> None:
    """Log a warning if the number or the names of the channels differ from those of the bundle.

    Another order gives no warning, because channels are matched by name.

    Args:
        matches: The result of `match_channels` for `here`.
        here: Channel names of the dataset.
        before: Channel names of the bundle.
    """
    both_names = f"{', '.join(before)} in the bundle, {', '.join(here)} here"
    if None in matches or len(here) != len(before):
        logger.warning(
            "The channels differ (%s). Channels of the same name keep their weights and "
            "normalisation. New channels start from the mean weights of the bundle's channels and "
            "are normalised by the intensities of this dataset.",
            both_names,
        )
    elif not {name.strip().casefold() for name in here} <= {n.strip().casefold() for n in before}:
        logger.warning(
            "The channels have other names (%s). They are matched by their position.", both_names
        )
