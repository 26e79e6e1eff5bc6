"""Networks by class name (MONAI, user): arguments filled in, outputs, tile sizes that fit.

`Architecture.network` contains both. The result is a module that trains like our own networks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lesionseg.config import TARGET, build_object, import_target, parameters_of
from lesionseg.core import describe_sides
from lesionseg.errors import ConfigError, count
from lesionseg.models.heads import prior_bias
from lesionseg.ops.device_memory import first_line
from lesionseg.plan.plan import Architecture, Plan, total_strides

# Names of the arguments that the plan fills in: channels, logits, axes, tile.
_INPUTS = ("in_channels", "in_chans", "input_channels", "n_channels")
_OUTPUTS = ("out_channels", "num_classes", "n_classes")
_AXES = ("spatial_dims", "dimensions", "dims")
_TILE = ("img_size", "image_size", "input_size", "tile_shape")
_BACKBONE_SIDE = 64  # voxels along each axis of the tile that shows the strides of a backbone


class CustomNetwork(nn.Module):
    """A network whose outputs are converted to a list of maps, finest first.

    The network may return one tensor `[B, K, *tile]`, several with any resolutions, or one
    `[B, n, K, *tile]` like MONAI's `DynUNet`. With `bias` the maps are logits. The bias is added to
    each of them, so that training starts at the lesion fraction, as with our own heads. In eval
    mode only the finest logits are returned. Without `bias` the maps are the features of a
    backbone.
    """

    def __init__(self, network: nn.Module, bias: Sequence[float] = ()) -> None:
        super().__init__()
        self.network = network
        # one value per channel of the logits; None if the maps are features of a backbone
        self.bias = nn.Parameter(torch.tensor(list(bias))) if bias else None

    def forward(self, image: Float[Tensor, "b c *tile"]) -> list[Tensor]:
        """Return the network's outputs as a list of logits or features, finest first.

        Logits have the bias added. In eval mode, only the finest logits are returned.
        """
        levels = as_levels(self.network(image), image.ndim, is_backbone=self.bias is None)
        if self.bias is None:
            return levels
        bias = self.bias.reshape([-1] + [1] * (image.ndim - 2))  # [K, 1, …], for all voxels
        return [level + bias for level in (levels if self.training else levels[:1])]


def as_levels(output: Any, ndim: int, *, is_backbone: bool) -> list[Tensor]:
    """Convert the output of any network to a list of tensors, finest (longest last axis) first.

    Args:
        output: A tensor, a list, tuple or mapping of tensors, or one tensor with `ndim` + 1 axes,
            whose axis 1 numbers the resolution levels, as of MONAI's `DynUNet`.
        ndim: Number of axes that each tensor must have, with the axes of batch and channels.
        is_backbone: True if the error message shall name the setting `model.backbone` instead of
            `model.network`.

    Raises:
        ConfigError: If the output is something else, or if a tensor has not `ndim` axes.

    >>> levels = as_levels((torch.zeros(1, 2, 4), torch.zeros(1, 2, 8)), 3, is_backbone=False)
    >>> [tuple(x.shape) for x in levels]
    [(1, 2, 8), (1, 2, 4)]
    """
    levels: list[Any] = [output]
    if isinstance(output, Tensor) and output.ndim == ndim + 1:  # `[B, n, K, *tile]`
        levels = list(output.unbind(1))
    elif isinstance(output, Mapping):
        levels = list(output.values())
    elif isinstance(output, list | tuple):
        levels = list(output)
    if not levels or not all(isinstance(x, Tensor) and x.ndim == ndim for x in levels):
        # the shapes of tensors, and the types of other objects
        shapes = [list(getattr(x, "shape", [type(x)])) for x in levels]
        if is_backbone:
            raise ConfigError(
                f"model.backbone returns {shapes}, not feature maps with {ndim - 2} spatial axes, "
                "[B, C, …]. Choose a class that returns a list of feature maps, or change its "
                "arguments."
            )
        raise ConfigError(
            f"model.network returns {shapes}, not tensors [B, K, *tile]. Choose a class that "
            "returns logits, or change its arguments."
        )
    # Compare one axis: an export would turn a product of axes into a condition.
    return sorted(levels, key=lambda x: -x.shape[-1]) if len(levels) > 1 else levels


def custom_network(plan: Plan) -> CustomNetwork:
    """Build the segmentation network whose class the plan names, with its bias at the prior.

    The class and its arguments are `plan.architecture.network`. Raise `ConfigError` if the class
    cannot be imported or constructed.
    """
    spec = plan.architecture.network
    n_inputs = len(plan.channel_names)
    network = _construct(
        "model.network",
        spec,
        n_inputs=n_inputs,
        n_outputs=n_logits(plan),
        tile=plan.tile_shape,
    )
    bias = prior_bias(plan.lesion_fraction, len(plan.labels), plan.activation)
    return CustomNetwork(network, bias)


def custom_backbone(
    spec: Mapping[str, Any], n_channels: int, tile: tuple[int, ...]
) -> CustomNetwork:
    """Build the backbone of a detector, which returns feature maps.

    Args:
        spec: The class (key `_target_`) and its arguments.
        n_channels: Number of channels of the image.
        tile: Shape of the tile.

    Raises:
        ConfigError: If the class cannot be imported or constructed.
    """
    # without a bias, because the outputs are features
    return CustomNetwork(
        _construct("model.backbone", spec, n_inputs=n_channels, n_outputs=None, tile=tile)
    )


def _construct(
    where: str, spec: Mapping[str, Any], n_inputs: int, n_outputs: int | None, tile: tuple[int, ...]
) -> nn.Module:
    """Construct the class that `spec` names, and fill in the arguments that the plan determines.

    Filled in are the numbers of channels and axes and the shape of the tile, if the class has
    parameters with the usual names (`_INPUTS`, `_OUTPUTS`, `_AXES`, `_TILE`). Arguments in `spec`
    have priority.

    Args:
        where: The key of the settings, for messages.
        spec: The class (key `_target_`) and its arguments.
        n_inputs: Number of channels of the image.
        n_outputs: Number of output channels. None for a backbone, which chooses the number itself.
        tile: Shape of the tile.

    Raises:
        ConfigError: If the class cannot be imported or constructed, or is not a `torch.nn.Module`.
    """
    parameters = parameters_of(import_target(spec.get(TARGET, ""), where)) or {}
    filled: dict[str, Any] = {}
    for names, value in (
        (_INPUTS, n_inputs),
        (_OUTPUTS, n_outputs),
        (_AXES, len(tile)),
        (_TILE, tile),
    ):
        if value is not None:
            # classes of different authors have different names for the same parameter
            filled |= {name: value for name in names if name in parameters}
    network = build_object({**filled, **spec}, where)
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"{where}: {type(network).__name__} is not a torch.nn.Module. Name a class that is one."
        )
    return network


def n_logits(plan: Plan) -> int:
    """Return the number of logits per voxel: one per label, and one for background with softmax."""
    return len(plan.labels) + (1 if plan.activation == "softmax" else 0)


def probe_network(plan: Plan, *, by_hand: bool, keeps_batch: bool = False) -> Plan:
    """Run the network of a `custom` plan, and complete the plan with the properties that it shows.

    - The tile is rounded to sides that the network accepts (`_round_tile`).
    - If the rounded tile is larger, the batch size is reduced (`_limit_batch`).
    - `Architecture.levels` becomes the strides of the network's outputs, all of which training
      supervises.
    - The strides of the architecture only state the step by which a tile may grow.

    Plans of other architectures are returned unchanged.

    Args:
        plan: The plan.
        by_hand: True if the user chose the tile, which is then not rounded.
        keeps_batch: True if the user chose the batch size, which is then not reduced.

    Raises:
        ConfigError: If the network accepts no tile, or does not accept the tile that the user
            chose, or if its outputs do not fit the labels or the tile.
    """
    if plan.architecture.name != "custom":
        return plan
    rounded, levels = _round_tile(plan, by_hand=by_hand)
    if not keeps_batch:
        rounded = _limit_batch(rounded, plan)
    step = _tile_step(rounded)
    features = plan.architecture.features[0]
    architecture = replace(  # two stages whose only purpose is to state the step
        plan.architecture,
        levels=levels,
        n_supervised=len(levels),
        features=(features, features),
        strides=((1,) * plan.dims, (step,) * plan.dims),
        kernels=((3,) * plan.dims,) * 2,
    )
    name = plan.architecture.network.get(TARGET)
    summary = f"{name}, {len(levels)} supervised outputs, tiles in multiples of {step}"
    reasons = {**rounded.reasons, "architecture": summary}
    return rounded.with_(architecture=architecture, reasons=reasons)


def _round_tile(plan: Plan, *, by_hand: bool) -> tuple[Plan, tuple[tuple[int, ...], ...]]:
    """Round the sides of the plan's tile so that the network accepts the tile.

    The network runs on the tile with unchanged sides first, then with sides rounded to multiples of
    8, 16, 32 and 64. The first accepted tile is used.

    Args:
        plan: The plan.
        by_hand: True if the user chose the tile. It is then not changed; the error message names
            the first tile that the network accepts.

    Returns:
        The plan with the accepted tile, and the stride of each output of the network.

    Raises:
        ConfigError: If the network accepts none of the tiles, or does not accept the tile that the
            user chose, or if its outputs do not fit the labels or the tile.
    """
    message = ""  # of the first error, which is that of the plan's unchanged tile
    remedy = (
        "Set model.tile_shape to sides that it accepts, or correct the arguments model.network.…; "
        "only channels, axes and tile are filled in, by their usual names."
    )
    for multiple in (1, 8, 16, 32, 64):  # 1 leaves the sides unchanged
        tile = tuple(max(round(n / multiple), 1) * multiple for n in plan.tile_shape)
        rounded = plan.with_(tile_shape=tile)
        try:
            strides = _output_strides(rounded)
        except ConfigError:  # unfit class, arguments or outputs; other tiles are not tried
            raise
        except Exception as error:  # a network may raise any type
            message = message or _describe_error(error)
            continue
        if tile == plan.tile_shape:
            return rounded, strides
        if by_hand:
            remedy = f"Set model.tile_shape={list(tile)}."
            break
        reason = (
            f"{describe_sides(tile)}, so that the network accepts it; the rules chose "
            f"{plan.reasons.get('tile_shape', describe_sides(plan.tile_shape))}"
        )
        reasons = {**plan.reasons, "tile_shape": reason}
        reasons.pop("memory", None)  # it states the memory of the other tile
        return rounded.with_(reasons=reasons), strides
    raise ConfigError(
        f"The network does not accept tiles of {list(plan.tile_shape)}: {message}. {remedy}"
    )


def _describe_error(error: Exception) -> str:
    """Describe an error of a network for a message: its type and the first line of its text."""
    return f"{type(error).__name__}: {first_line(str(error))}"


def _limit_batch(rounded: Plan, plan: Plan) -> Plan:
    """Reduce the batch size of a plan whose tile was enlarged, so that a step fits into memory.

    The batch has at most as many voxels as the batch of the original plan, but at least 2 tiles. It
    is never enlarged.

    Args:
        rounded: The plan with the rounded tile.
        plan: The original plan.
    """
    batch = max(2, plan.batch_size * prod(plan.tile_shape) // prod(rounded.tile_shape))
    if batch >= plan.batch_size:
        return rounded
    reason = (
        f"{batch}, because a step has at most the voxels of {plan.batch_size} tiles of "
        f"{describe_sides(plan.tile_shape)}, but at least 2 tiles"
    )
    return rounded.with_(batch_size=batch, reasons={**rounded.reasons, "batch_size": reason})


def _tile_step(plan: Plan) -> int:
    """Find by how many voxels the sides of a tile may grow, by running the network on larger tiles.

    The result is the smallest power of 2, up to 64, for which the network accepts the plan's tile
    with each side enlarged by this number. If no larger tile is accepted, the result is the longest
    side of the plan's tile.
    """
    for step in (1, 2, 4, 8, 16, 32, 64):
        larger = tuple(n + step for n in plan.tile_shape)
        try:
            _output_strides(plan.with_(tile_shape=larger))
        except Exception:  # any error means that this tile is not accepted
            continue
        return step
    return max(plan.tile_shape)


def _output_strides(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """Run the network of a plan on a tile of zeros, and return the stride of each output.

    The stride of an output is the number of voxels of the tile per voxel of the output, along each
    axis. The finest output is first. Errors of the network itself are not caught.

    Raises:
        ConfigError: If a side of the tile is not a multiple of an output's side, if the finest
            output is smaller than the tile, or if the number of an output's channels is wrong.
    """
    tile = plan.tile_shape
    outputs = _run_network(partial(custom_network, plan), len(plan.channel_names), tile)
    remedy = "Choose a network that pads its convolutions, or another model.tile_shape."
    strides = _strides_of(outputs, tile, remedy)
    has_all_logits = all(x.shape[1] == n_logits(plan) for x in outputs)
    is_full_resolution = max(strides[0]) == 1  # the finest output is the first one
    if not (has_all_logits and is_full_resolution):
        raise ConfigError(
            f"The network's logits do not fit the labels: {[list(x.shape) for x in outputs]}, not "
            f"{n_logits(plan)} channels of {list(tile)} voxels. Correct the arguments "
            "model.network.…."
        )
    return strides


def backbone_pyramid(name: str, spec: dict[str, Any], dims: int, n_channels: int) -> Architecture:
    """Run the backbone of a detector on a tile of zeros, and return the architecture of its stages.

    Each feature map that the backbone returns is a stage with the map's channels and stride.

    Args:
        name: Name of the detector, such as "retinanet".
        spec: The backbone's class (key `_target_`) and its arguments.
        dims: Number of spatial axes.
        n_channels: Number of channels of the image.

    Raises:
        ConfigError: If the backbone cannot be constructed, if it does not accept a tile of 64
            voxels per axis, or if the stride of a map is not a multiple of the finer map's.
    """
    ones = (1,) * dims
    tile = (_BACKBONE_SIDE,) * dims
    try:
        maps = _run_network(partial(custom_backbone, spec, n_channels, tile), n_channels, tile)
    except ConfigError:
        raise
    except Exception as error:  # a backbone may raise any type
        raise ConfigError(
            f"model.backbone does not accept images of {count(n_channels, 'channel')} with "
            f"{describe_sides(tile)} voxels: {_describe_error(error)}. Correct the arguments "
            "model.backbone.…; only input channels, axes and tile are filled in, by their usual "
            "names."
        ) from error
    # strides from the tile to the tile itself and to each map
    cumulative = (
        ones,
        *_strides_of(maps, tile, "Choose a backbone that pads its convolutions."),
    )
    strides = tuple(map(tuple, np.floor_divide(cumulative[1:], cumulative[:-1]).tolist()))
    # the products differ from `cumulative` if a division above had a remainder
    if total_strides(strides) != cumulative[1:]:
        raise ConfigError(
            f"model.backbone: maps with strides {cumulative[1:]} do not form a pyramid. Choose a "
            "backbone in which each stride is a multiple of the one before."
        )
    features = tuple(int(x.shape[1]) for x in maps)
    return Architecture(
        name=name,
        features=features,
        strides=strides,
        kernels=((3,) * dims,) * len(maps),  # of our decoder
        n_supervised=1,
        network=spec,
    )


def _run_network(
    make: Callable[[], nn.Module], n_channels: int, tile: tuple[int, ...], device: str = "meta"
) -> list[Tensor]:
    """Run a network on a tile of zeros in train mode, to see the shapes of its outputs.

    The network runs on torch's device `meta`, which computes shapes but no numbers. If this raises
    another error than `ConfigError`, the network runs again on the CPU, because not all operations
    exist on `meta`. Errors on the CPU are not caught.

    Args:
        make: Builds the network.
        n_channels: Number of channels of the tile.
        tile: Shape of the tile.
        device: The device of the first attempt.
    """
    try:
        network = make().to(device).train()
        with torch.no_grad():
            outputs: list[Tensor] = network(torch.zeros((1, n_channels, *tile), device=device))
    except ConfigError:
        raise
    except Exception:  # an operation that the meta device lacks, or a tile that does not fit
        if device == "cpu":
            raise
        return _run_network(make, n_channels, tile, device="cpu")
    return outputs


def _strides_of(
    outputs: Sequence[Tensor], tile: tuple[int, ...], remedy: str
) -> tuple[tuple[int, ...], ...]:
    """Return how many voxels of the tile one voxel of each output spans along each axis.

    Raise `ConfigError` if a side of the tile is not a multiple of the output's side. The text
    `remedy` is the end of the message.
    """
    shapes = [tuple(x.shape[2:]) for x in outputs]  # without batch and channels
    if np.remainder(tile, shapes).any():
        raise ConfigError(
            f"The network's outputs {shapes} do not divide a tile of {list(tile)}. {remedy}"
        )
    return tuple(map(tuple, np.floor_divide(tile, shapes).tolist()))
