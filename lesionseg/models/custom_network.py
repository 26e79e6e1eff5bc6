"""Networks of MONAI, another installed package or the user, given by class name and arguments.

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
        """Return logits or features, finest first."""
        levels = as_levels(self.network(image), image.ndim, is_backbone=self.bias is None)
        if self.bias is None:
            return levels
        bias = self.bias.reshape([-1] + [1] * (image.ndim - 2))
        return [level + bias for level in (levels if self.training else levels[:1])]


def as_levels(output: Any, ndim: int, *, is_backbone: bool) -> list[Tensor]:
    """Return the tensors of a network's output, finest first by their last axis.

    The output is a tensor, a list, tuple or mapping of tensors, or one tensor with `ndim` + 1 axes,
    which contains the levels along axis 1. Raise `ConfigError` if it contains anything else, or a
    tensor without `ndim` axes. The error names `model.backbone` if `is_backbone`, otherwise
    `model.network`.

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
        seen = [list(getattr(x, "shape", [type(x)])) for x in levels]
        if is_backbone:
            raise ConfigError(
                f"model.backbone returns {seen}, not feature maps with {ndim - 2} spatial axes, "
                "[B, C, …]. Choose a class that returns a list of feature maps, or change its "
                "arguments."
            )
        raise ConfigError(
            f"model.network returns {seen}, not tensors [B, K, *tile]. Choose a class that returns "
            "logits, or change its arguments."
        )
    # Compare one axis: an export would turn a product of axes into a condition.
    return sorted(levels, key=lambda x: -x.shape[-1]) if len(levels) > 1 else levels


def custom_network(plan: Plan) -> CustomNetwork:
    """Build the network that the plan names by `_target_`.

    Raise `ConfigError` if it cannot be imported or constructed.
    """
    spec = plan.architecture.network
    n_inputs = len(plan.channel_names)
    network = _construct("model.network", spec, n_inputs, n_logits(plan), plan.tile_shape)
    bias = prior_bias(plan.lesion_fraction, len(plan.labels), plan.activation)
    return CustomNetwork(network, bias)


def custom_backbone(
    spec: Mapping[str, Any], n_channels: int, tile: tuple[int, ...]
) -> CustomNetwork:
    """Build the backbone of a detector that `spec` names by `_target_`.

    Raise `ConfigError` if it cannot be imported or constructed.
    """
    return CustomNetwork(_construct("model.backbone", spec, n_channels, None, tile))


def _construct(
    where: str, spec: Mapping[str, Any], n_inputs: int, n_outputs: int | None, tile: tuple[int, ...]
) -> nn.Module:
    """Construct the class that `spec` names, with the arguments that the plan fills in.

    These are the channels, the number of axes and the tile, by the names that the class uses.
    Arguments in `spec` take precedence. Without `n_outputs`, the number of output channels is left
    to the class: a backbone has its own. Raise `ConfigError` if the class cannot be constructed or
    is not a module. `where` is the key of the settings for messages.
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
            filled |= {name: value for name in names if name in parameters}
    network = build_object({**filled, **spec}, where)
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"{where}: {type(network).__name__} is not a torch.nn.Module. Name a class that is one."
        )
    return network


def n_logits(plan: Plan) -> int:
    """Return the number of logits per voxel: one per label, and one for softmax's background."""
    return len(plan.labels) + (1 if plan.activation == "softmax" else 0)


def probe_network(plan: Plan, *, by_hand: bool, keeps_batch: bool = False) -> Plan:
    """Run the network of a `custom` plan, and return the plan with its supervised levels.

    Other plans are returned unchanged. If the network does not accept the tile, the tile is rounded
    to multiples of 8 to 64, unless the user chose it (`by_hand`). A batch of larger tiles has fewer
    of them, unless the user chose their number (`keeps_batch`). The network runs on torch's meta
    device, which computes no numbers, or on the CPU if that fails. The strides of the returned plan
    only state by what step a tile may grow. Raise `ConfigError` with the network's own message if
    it accepts no tile or not that of the user, and if its outputs do not fit the labels or the
    tile.
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
    """Round the tile to the first multiple of 1, 8, 16, 32 or 64 that the network accepts.

    Return the plan with this tile, and the stride of each output of the network. Raise
    `ConfigError` if it accepts none, or not the tile that the user chose (`by_hand`), or if its
    outputs do not fit the labels or the tile.
    """
    message = ""  # of the first error, which is that of the plan's own tile
    remedy = (
        "Set model.tile_shape to sides that it accepts, or correct the arguments model.network.…; "
        "only channels, axes and tile are filled in, by their usual names."
    )
    for multiple in (1, 8, 16, 32, 64):
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
    """Return the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {first_line(str(error))}"


def _limit_batch(rounded: Plan, plan: Plan) -> Plan:
    """Return the rounded plan with a batch of at most the voxels of `plan`, but at least 2 tiles.

    A plan that already has fewer tiles keeps them.
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
    """Return the step in voxels in which the network accepts other tile sides.

    It is the smallest power of 2, up to 64, by which all sides of the plan's tile may grow.

    It is found by running the network on larger tiles. If none of them is accepted, it is the
    longest side of the plan's own tile.
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
    """Return the stride of each output along each axis, in voxels of the tile.

    Raise `ConfigError` if the outputs do not divide the tile, the finest is not of its size, or one
    has not one channel per logit. Errors of the network itself are passed on.
    """
    tile = plan.tile_shape
    outputs = _run_network(partial(custom_network, plan), len(plan.channel_names), tile)
    remedy = "Choose a network that pads its convolutions, or another model.tile_shape."
    strides = _strides(outputs, tile, remedy)
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
    """Return the stages of the detector `name` on the backbone that `spec` names.

    Raise `ConfigError` if the backbone cannot be constructed, does not accept a tile of 64 voxels
    per axis, or its maps do not divide the tile or each other.
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
    totals = (ones, *_strides(maps, tile, "Choose a backbone that pads its convolutions."))
    strides = tuple(map(tuple, np.floor_divide(totals[1:], totals[:-1]).tolist()))
    # the products differ from the totals if a division above had a remainder
    if total_strides(strides) != totals[1:]:
        raise ConfigError(
            f"model.backbone: maps with strides {totals[1:]} do not form a pyramid. Choose a "
            "backbone in which each stride is a multiple of the one before."
        )
    features = tuple(int(x.shape[1]) for x in maps)
    kernels = ((3,) * dims,) * len(maps)
    return Architecture(name, features, strides, kernels, n_supervised=1, network=spec)


def _run_network(
    make: Callable[[], nn.Module], n_channels: int, tile: tuple[int, ...], device: str = "meta"
) -> list[Tensor]:
    """Return the outputs of the network that `make` builds for a tile of zeros, in train mode.

    The network runs on torch's meta device, which computes no numbers, or on the CPU if that fails
    by another error than `ConfigError`. Errors on the CPU are passed on.
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
        return _run_network(make, n_channels, tile, "cpu")
    return outputs


def _strides(
    outputs: Sequence[Tensor], tile: tuple[int, ...], remedy: str
) -> tuple[tuple[int, ...], ...]:
    """Return how many voxels of the tile one voxel of each output spans along each axis.

    Raise `ConfigError` with the remedy if an output does not divide the tile.
    """
    shapes = [tuple(x.shape[2:]) for x in outputs]
    if np.remainder(tile, shapes).any():
        raise ConfigError(
            f"The network's outputs {shapes} do not divide a tile of {list(tile)}. {remedy}"
        )
    return tuple(map(tuple, np.floor_divide(tile, shapes).tolist()))
