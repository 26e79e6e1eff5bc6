"""What a network that is not ours takes and gives, from a trial that computes no number."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lesionseg.errors import ConfigError
from lesionseg.models.build import TRUSTED, build_network
from lesionseg.models.foreign_network import READY, TARGET, foreign_backbone, n_logits
from lesionseg.plan.plan import Architecture, Normalisation, Plan, total_strides

_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
_SIDE = 64  # of the tile on which a backbone's strides are looked at
Strides = tuple[tuple[int, ...], ...]


def tried(plan: Plan, *, by_hand: bool) -> Plan:
    """The plan of a network that is not ours, with its supervised levels; ours are returned as is.

    A tile that it cannot take is rounded to multiples of 8 to 64, unless it was chosen `by_hand`.
    The trial runs on torch's meta device, or the CPU where that fails. Raises `ConfigError` with
    what the network said.
    """
    architecture = plan.architecture
    if architecture.name not in ("custom", *READY):
        return plan
    fits = next(_fitting(plan), None)
    if fits is None or (by_hand and fits.tile_shape != plan.tile_shape):
        raise ConfigError(
            "The network does not take a tile of this size.",
            where="model.tile_shape",
            seen=f"{list(plan.tile_shape)}: {_fault(plan)}",
            remedy=f"set model.tile_shape={list(fits.tile_shape)}."
            if fits
            else "look at the arguments model.network.…; its channels are filled in only where "
            "they have a usual name (in_channels, out_channels).",
        )
    levels = _levels(fits)
    multiple = _multiple(fits)
    tables = {} if architecture.name == "dynunet" else _tables(plan, multiple)
    name = architecture.network.get(TARGET, architecture.name)
    summary = f"{name}, {len(levels)} supervised outputs, tiles in multiples of {multiple}"
    return fits.with_(
        architecture=replace(architecture, levels=levels, n_supervised=len(levels), **tables),
        reasons={**plan.reasons, "architecture": summary},
    )


def backbone_pyramid(name: str, spec: dict[str, Any], dims: int, n_channels: int) -> Architecture:
    """The stages of a detector called `name` on the backbone that `spec` names.

    Raises `ConfigError` for a backbone whose maps do not divide a tile of 64 voxels a side.
    """
    ones = (1,) * dims
    bare = Architecture(name, (1,), (ones,), ((3,) * dims,), network=spec)
    plan = Plan(
        dims=dims,
        modality="ct",
        channel_names=tuple(map(str, range(n_channels))),
        label_values=(1,),
        label_names=("lesion",),
        spacing_mm=(1.0,) * dims,
        normalisation=(Normalisation("zscore"),) * n_channels,
        tile_shape=(_SIDE,) * dims,
        batch_size=1,
        architecture=bare,
        lesion_fraction=0.01,
    )
    maps = _run(foreign_backbone(plan).to("meta"), plan, "meta")
    totals = (ones, *_strides(maps, plan))
    steps = tuple(
        tuple(b // a for a, b in zip(fine, coarse, strict=True))
        for fine, coarse in pairwise(totals)
    )
    if total_strides(steps) != totals[1:]:
        raise ConfigError(
            "The backbone's maps are no pyramid.", where="model.backbone", seen=totals
        )
    features = tuple(int(x.shape[1]) for x in maps)
    kernels = ((3,) * dims,) * len(maps)
    return replace(bare, features=features, strides=steps, kernels=kernels, n_supervised=1)


def _fitting(plan: Plan) -> Iterator[Plan]:
    """The plan with its tile rounded to coarser and coarser multiples, where that can be taken."""
    for m in (1, 8, 16, 32, 64):
        tile = tuple(max(round(n / m), 1) * m for n in plan.tile_shape)
        rounded = plan.with_(tile_shape=tile)
        if not _fault(rounded):
            yield rounded


def _fault(plan: Plan) -> str:
    """Why the network cannot take the plan's tile; empty where it can."""
    try:
        _levels(plan)
    except ConfigError:  # of another thing than the tile
        raise
    except ImportError as error:
        raise ConfigError(
            "The network needs a package that is not installed.",
            where="model.network",
            seen=str(error).splitlines()[0],
        ) from error
    except Exception as error:  # of the network's own choice
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


def _levels(plan: Plan) -> Strides:
    """Voxels of the tile per voxel of each output; raises what the network raises."""
    try:
        outputs = _run(build_network(plan, architectures=TRUSTED).to("meta"), plan, "meta")
    except ConfigError:
        raise
    except Exception:  # what the meta device cannot do, or a tile that does not fit
        outputs = _run(build_network(plan, architectures=TRUSTED), plan, "cpu")
    levels = _strides(outputs, plan)
    channels = {int(x.shape[1]) for x in outputs}
    if channels != {n_logits(plan)} or max(levels[0]) > 1:
        raise ConfigError(
            "The network's logits do not fit the labels.",
            where="model.network",
            seen=[list(x.shape) for x in outputs],
            expected=f"{n_logits(plan)} channels and {list(plan.tile_shape)} voxels",
            remedy=f"set the argument that says its output channels to {n_logits(plan)}.",
        )
    return levels


def _run(network: nn.Module, plan: Plan, device: str) -> list[Tensor]:
    """Its outputs for a tile of zeros, in train mode; one tile, as norms refuse a single value."""
    tiles = torch.zeros((1, len(plan.channel_names), *plan.tile_shape), device=device)
    with torch.no_grad():
        outputs: list[Tensor] = network.train()(tiles)
    return outputs


def _strides(outputs: Sequence[Tensor], plan: Plan) -> Strides:
    shapes = [tuple(x.shape[2:]) for x in outputs]
    tile = plan.tile_shape
    if any(n % max(m, 1) for shape in shapes for n, m in zip(tile, shape, strict=True)):
        raise ConfigError(
            "The network's outputs do not divide the tile.",
            where="model.tile_shape",
            seen=f"{shapes} of {list(tile)}",
            expected="outputs of which each voxel stands for a whole number of the tile's",
        )
    return tuple(tuple(n // m for n, m in zip(tile, shape, strict=True)) for shape in shapes)


def _multiple(plan: Plan) -> int:
    """By how many voxels the tile may grow along every axis; its longest side where by none."""
    for m in _MULTIPLES:
        grown = plan.with_(tile_shape=tuple(n + m for n in plan.tile_shape))
        try:
            if not _fault(grown):
                return m
        except ConfigError:
            continue
    return max(plan.tile_shape)


def _tables(plan: Plan, multiple: int) -> dict[str, Any]:
    """Two stages that say nothing but the multiple of a tile's sides."""
    features, ones = plan.architecture.features[0], (1,) * plan.dims
    return {
        "features": (features, features),
        "strides": (ones, (multiple,) * plan.dims),
        "kernels": ((3,) * plan.dims,) * 2,
    }
