"""Networks that are not ours, MONAI's, an installed package's or the user's, by name and arguments.

In come a plan and what `Architecture.network` names; out goes a module that trains as ours do.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lesionseg.config import TARGET, build, named
from lesionseg.errors import ConfigError
from lesionseg.models.heads import prior_bias
from lesionseg.plan.plan import Architecture, Plan, total_strides

# names of the arguments that the plan fills in: channels, logits, axes, tile
_INPUTS = ("in_channels", "in_chans", "input_channels", "n_channels")
_OUTPUTS = ("out_channels", "num_classes", "n_classes")
_AXES = ("spatial_dims", "dimensions", "dims")
_TILE = ("img_size", "image_size", "input_size", "tile_shape")
_BACKBONE_SIDE = 64  # of the tile on which a backbone's strides are looked at


class ForeignNetwork(nn.Module):
    """A network, whatever it returns, as one that gives a list of maps, finest first.

    It may return a tensor `[B, K, *tile]`, several of any resolutions, or one `[B, n, K, *tile]`
    (MONAI's `DynUNet`). With `bias` the maps are logits: it is added to every one, so that training
    starts at the lesion fraction, as with our own heads, and in eval mode the finest alone is
    returned. Without, they are a backbone's features.
    """

    def __init__(self, network: nn.Module, bias: Sequence[float] = ()) -> None:
        super().__init__()
        self.network = network
        self.bias = nn.Parameter(torch.tensor(list(bias))) if bias else None

    def forward(self, image: Float[Tensor, "b c *tile"]) -> list[Tensor]:
        """Logits or features, finest first."""
        levels = as_levels(self.network(image), image.ndim)
        if self.bias is None:
            return levels
        bias = self.bias.reshape(-1, *(1,) * (image.ndim - 2))
        return [level + bias for level in (levels if self.training else levels[:1])]


def as_levels(output: Any, ndim: int) -> list[Tensor]:
    """The tensors of a network's output, finest first; raises `ConfigError` for what is no tensor.

    >>> [tuple(x.shape) for x in as_levels((torch.zeros(1, 2, 4), torch.zeros(1, 2, 8)), 3)]
    [(1, 2, 8), (1, 2, 4)]
    """
    levels: list[Any] = [output]
    if isinstance(output, Tensor):
        levels = list(output.unbind(1)) if output.ndim == ndim + 1 else [output]
    elif isinstance(output, Mapping | list | tuple):
        levels = list(output.values() if isinstance(output, Mapping) else output)
    if not levels or not all(isinstance(x, Tensor) and x.ndim == ndim for x in levels):
        seen = [list(getattr(x, "shape", [type(x)])) for x in levels]
        raise ConfigError(f"model.network gives {seen}, not tensors [B, K, *tile].")
    # not by their product, of which an export would make a condition
    return sorted(levels, key=lambda x: -x.shape[-1]) if len(levels) > 1 else levels


def custom_network(plan: Plan) -> ForeignNetwork:
    """The network that the plan names by `_target_`; raises `ConfigError` where it cannot be."""
    bias = prior_bias(plan.lesion_fraction, len(plan.labels), plan.activation)
    n_inputs, spec = len(plan.channel_names), plan.architecture.network
    network = _construct("model.network", spec, n_inputs, n_logits(plan), plan.tile_shape)
    return ForeignNetwork(network, bias)


def foreign_backbone(plan: Plan) -> ForeignNetwork:
    """The backbone that the plan of a detector names."""
    n_inputs, spec = len(plan.channel_names), plan.architecture.network
    return ForeignNetwork(
        _construct("model.backbone", spec, n_inputs, n_logits(plan), plan.tile_shape)
    )


def _construct(
    where: str, spec: Mapping[str, Any], n_inputs: int, n_outputs: int, tile: tuple[int, ...]
) -> nn.Module:
    try:
        takes = list(signature(named(spec.get(TARGET, ""), where)).parameters)
    except ValueError:  # written in another language than Python
        takes = []
    values = (n_inputs, n_outputs, len(tile), tile)
    names = zip((_INPUTS, _OUTPUTS, _AXES, _TILE), values, strict=True)
    filled = {name: value for alike, value in names for name in alike if name in takes}
    network = build({**filled, **spec}, where)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{where}: a {type(network).__name__} is no torch.nn.Module.")
    return network


def n_logits(plan: Plan) -> int:
    """Channels of logits: one per label, and the background's of a softmax."""
    return len(plan.labels) + (plan.activation == "softmax")


def probe_network(plan: Plan, *, by_hand: bool) -> Plan:
    """The plan of a network that is not ours, with its supervised levels; ours are returned as is.

    A tile that it cannot take is rounded to multiples of 8 to 64, unless it was chosen `by_hand`.
    It is run on torch's meta device, which computes no number, or the CPU where that fails. Raises
    `ConfigError` with what the network said.
    """
    if plan.architecture.name != "custom":
        return plan
    said, levels, tile, fits = "", None, plan.tile_shape, plan
    for multiple in (1, 8, 16, 32, 64):
        tile = tuple(max(round(n / multiple), 1) * multiple for n in plan.tile_shape)
        fits = plan.with_(tile_shape=tile)
        try:
            levels = _levels(fits)
            break
        except ConfigError:  # of another thing than the tile
            raise
        except Exception as error:  # of the network's own choice
            said = said or f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if levels is None or (by_hand and tile != plan.tile_shape):
        remedy = f"Please set model.tile_shape={list(tile)}."
        if levels is None:
            remedy = "Look at the arguments model.network.…; only channels are filled in."
        raise ConfigError(
            f"The network does not take tiles of {list(plan.tile_shape)}: {said}. {remedy}"
        )
    step = max(tile)  # by how many voxels a tile may grow
    for multiple in (1, 2, 4, 8, 16, 32, 64):
        with suppress(Exception):  # whatever it says: the next
            _levels(fits.with_(tile_shape=tuple(n + multiple for n in tile)))
            step = multiple
            break
    features, ones = plan.architecture.features[0], (1,) * plan.dims
    architecture = replace(  # two stages that say nothing but that step
        plan.architecture,
        levels=levels,
        n_supervised=len(levels),
        features=(features, features),
        strides=(ones, (step,) * plan.dims),
        kernels=((3,) * plan.dims,) * 2,
    )
    name = plan.architecture.network.get(TARGET)
    summary = f"{name}, {len(levels)} supervised outputs, tiles in multiples of {step}"
    return fits.with_(architecture=architecture, reasons={**plan.reasons, "architecture": summary})


def _levels(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """Voxels of the tile per voxel of each output; raises what the network raises."""
    n_channels, tile = len(plan.channel_names), plan.tile_shape
    try:
        outputs = _run(custom_network(plan), n_channels, tile, "meta")
    except ConfigError:
        raise
    except Exception:  # what the meta device cannot do, or a tile that does not fit
        outputs = _run(custom_network(plan), n_channels, tile, "cpu")
    levels = _strides(outputs, tile)
    if {int(x.shape[1]) for x in outputs} != {n_logits(plan)} or max(levels[0]) > 1:
        raise ConfigError(
            f"The network's logits do not fit the labels: {[list(x.shape) for x in outputs]}, not "
            f"{n_logits(plan)} channels of {list(tile)} voxels."
        )
    return levels


def backbone_pyramid(name: str, spec: dict[str, Any], dims: int, n_channels: int) -> Architecture:
    """The stages of a detector called `name` on the backbone that `spec` names.

    Raises `ConfigError` for a backbone whose maps do not divide a tile of 64 voxels a side.
    """
    ones, tile = (1,) * dims, (_BACKBONE_SIDE,) * dims
    backbone = ForeignNetwork(_construct("model.backbone", spec, n_channels, 1, tile))
    maps = _run(backbone, n_channels, tile, "meta")
    totals = (ones, *_strides(maps, tile))
    strides = tuple(
        tuple(b // a for a, b in zip(fine, coarse, strict=True))
        for fine, coarse in pairwise(totals)
    )
    if total_strides(strides) != totals[1:]:
        raise ConfigError(f"model.backbone: maps of strides {totals[1:]} are no pyramid.")
    features, kernels = tuple(int(x.shape[1]) for x in maps), ((3,) * dims,) * len(maps)
    return Architecture(name, features, strides, kernels, n_supervised=1, network=spec)


def _run(network: nn.Module, n_channels: int, tile: tuple[int, ...], device: str) -> list[Tensor]:
    """Its outputs for a tile of zeros, in train mode; one tile, as norms refuse a single value."""
    with torch.no_grad():
        outputs: list[Tensor] = network.to(device).train()(
            torch.zeros((1, n_channels, *tile), device=device)
        )
    return outputs


def _strides(outputs: Sequence[Tensor], tile: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    shapes = [tuple(x.shape[2:]) for x in outputs]
    if any(n % max(m, 1) for shape in shapes for n, m in zip(tile, shape, strict=True)):
        raise ConfigError(f"The network's outputs {shapes} do not divide a tile of {list(tile)}.")
    return tuple(tuple(n // m for n, m in zip(tile, shape, strict=True)) for shape in shapes)
