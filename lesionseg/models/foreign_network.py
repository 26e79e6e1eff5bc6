"""Networks that are not ours, MONAI's, an installed package's or the user's, by name and arguments.

In come a plan and what `Architecture.network` names; out goes a module that trains as ours do.
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from pkgutil import resolve_name
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lesionseg.errors import ConfigError
from lesionseg.models.heads import prior_bias
from lesionseg.plan.plan import Plan

TARGET = "_target_"
# MONAI's networks that have a name here, so that a bundle of them needs no trust
READY: Mapping[str, str] = {
    "dynunet": "DynUNet",
    "segresnet": "SegResNet",
    "swin_unetr": "SwinUNETR",
    "mednext": "MedNeXt",
}
_INPUTS = ("in_channels", "in_chans", "input_channels", "n_channels")
_OUTPUTS = ("out_channels", "num_classes", "n_classes")
_AXES = ("spatial_dims", "dimensions", "dims")
_TILE = ("img_size", "image_size", "input_size", "tile_shape")


class ForeignNetwork(nn.Module):
    """A network of logits, whatever it returns, as one that gives a list of them, finest first.

    It may return a tensor `[B, K, *tile]`, several of any resolutions, or one `[B, n, K, *tile]`
    (MONAI's `DynUNet`). In eval mode the finest alone is returned. `bias` is added to every level,
    so that training starts at the lesion fraction, as with our own heads.
    """

    def __init__(self, network: nn.Module, bias: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.bias = nn.Parameter(torch.tensor(list(bias)))

    def forward(self, image: Float[Tensor, "b c *tile"]) -> list[Tensor]:
        """Logits, finest first."""
        levels = as_levels(self.network(image), image.ndim)
        bias = self.bias.reshape(-1, *(1,) * (image.ndim - 2))
        return [level + bias for level in (levels if self.training else levels[:1])]


class ForeignBackbone(nn.Module):
    """A backbone whose feature maps, finest first, are those of whatever it returns."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Float[Tensor, "b c *tile"]) -> list[Tensor]:
        """Feature maps."""
        return as_levels(self.backbone(image), image.ndim)


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
        raise ConfigError(
            "The network's output is not made of tensors [B, K, *tile].",
            where="model.network",
            seen=", ".join(str(list(getattr(x, "shape", [type(x)]))) for x in levels) or "nothing",
        )
    # not by their product, of which an export would make a condition
    return sorted(levels, key=lambda x: -x.shape[-1]) if len(levels) > 1 else levels


def custom_network(plan: Plan) -> nn.Module:
    """The network that the plan names by `_target_`; raises `ConfigError` where it cannot be."""
    return _with_prior(construct(plan.architecture.network, plan), plan)


def ready_network(plan: Plan) -> nn.Module:
    """One of MONAI's networks in `READY`, by the plan's own name for it."""
    target = f"monai.networks.nets.{READY[plan.architecture.name]}"
    arguments = {k: v for k, v in plan.architecture.network.items() if k != TARGET}
    tables = _dynunet_tables(plan) if plan.architecture.name == "dynunet" else {}
    return _with_prior(construct({TARGET: target, **tables, **arguments}, plan), plan)


def foreign_backbone(plan: Plan) -> ForeignBackbone:
    """The backbone that the plan of a detector names."""
    return ForeignBackbone(construct(plan.architecture.network, plan, "model.backbone"))


def construct(spec: Mapping[str, Any], plan: Plan, where: str = "model.network") -> nn.Module:
    """What `spec` names, with its arguments; channels, axes and tile are filled in by the plan.

    Raises `ConfigError` for a name that cannot be imported, an argument that is none, and whatever
    the constructor raises.
    """
    make, given = load(str(spec.get(TARGET, "")), where), dict(spec)
    given.pop(TARGET, None)
    takes = _parameters(make)
    if not any(p.kind is Parameter.VAR_KEYWORD for p in takes.values()):
        _refuse_unknown(given, takes, where)
    filled = {name: value for name, value in _filled(plan).items() if name in takes}
    try:
        network: Any = make(**{**filled, **given})
    except Exception as error:  # of the constructor's own choice
        raise ConfigError(
            "The network cannot be built.",
            where=where,
            seen=f"{type(error).__name__}: {error}",
            expected=f"{', '.join(takes)}",
            remedy=f"set {where}.<argument>=value.",
        ) from error
    if not isinstance(network, nn.Module):
        raise ConfigError("This is no torch.nn.Module.", where=where, seen=type(network).__name__)
    return network


def load(target: str, where: str = "model.network") -> Callable[..., Any]:
    """The class that `package.module.Class` names; raises `ConfigError` where there is none."""
    try:
        value: Any = resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            "There is no such network.",
            where=f"{where}.{TARGET}",
            seen=f"{target or 'no name'}: {error}",
            expected="package.module.Class, of a package that is installed or on PYTHONPATH",
            remedy=f"set {where}.{TARGET}=monai.networks.nets.SegResNet, for example.",
        ) from error
    if not callable(value):
        raise ConfigError("This name is no class.", where=f"{where}.{TARGET}", seen=target)
    return value  # type: ignore[no-any-return]  # callable, as was just seen


def n_logits(plan: Plan) -> int:
    """Channels of logits: one per label, and the background's of a softmax."""
    return len(plan.label_values) + (plan.activation == "softmax")


def _with_prior(network: nn.Module, plan: Plan) -> ForeignNetwork:
    bias = prior_bias(plan.lesion_fraction, len(plan.label_values), plan.activation)
    return ForeignNetwork(network, bias)


def _parameters(make: Callable[..., Any]) -> Mapping[str, Parameter]:
    """What it takes; anything where it is written in another language than Python."""
    try:
        return signature(make).parameters
    except ValueError:
        return {"kwargs": Parameter("kwargs", Parameter.VAR_KEYWORD)}


def _filled(plan: Plan) -> dict[str, Any]:
    values = (len(plan.channel_names), n_logits(plan), plan.dims, plan.tile_shape)
    names = zip((_INPUTS, _OUTPUTS, _AXES, _TILE), values, strict=True)
    return {name: value for alike, value in names for name in alike}


def _refuse_unknown(given: Mapping[str, Any], takes: Mapping[str, Any], where: str) -> None:
    unknown = [name for name in given if name not in takes]
    if unknown:
        raise ConfigError(
            f"The network takes no argument {unknown[0]!r}.",
            where=f"{where}.{unknown[0]}",
            expected=", ".join(takes),
        )


def _dynunet_tables(plan: Plan) -> dict[str, Any]:
    """Kernels, strides and filters as the planning rules have them for a U-Net."""
    tables = plan.architecture
    deep = min(tables.n_supervised - 1, len(tables.strides) - 2)
    return {
        "kernel_size": tables.kernels,
        "strides": tables.strides,
        "upsample_kernel_size": tables.strides[1:],
        "filters": tables.features,
        "deep_supervision": deep > 0,
        "deep_supr_num": max(deep, 1),
    }
