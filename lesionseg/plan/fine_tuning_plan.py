"""What a plan takes over from the one whose weights training starts from."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lesionseg.errors import ConfigError
from lesionseg.plan.plan import Architecture, Layout, Modality, Plan, Stem
from lesionseg.plan.tile_rules import total_stride

log = logging.getLogger(__name__)

FOLLOWED = "as in the bundle that training starts from"
FOLLOWED_CHECKPOINT = "as in the checkpoint that training starts from"
# Networks whose encoder and decoder are built alike, so that one's weights serve the other
_BACKBONES: Mapping[str, str] = {"unet": "plain", "retinanet": "plain", "retina_unet": "plain"}


def backbone_kind(architecture: str) -> str:
    """Networks of one kind share their backbone; a user's own network is a kind of its own."""
    return _BACKBONES.get(architecture, architecture)


def followed_architecture(before: Plan, name: str, tile: Sequence[int]) -> Architecture:
    """The tables of the backbone that has the weights, under the name of the network asked for.

    Raises `ConfigError` for a tile that its strides do not divide.
    """
    stride = total_stride(before.architecture)
    if any(n % s for n, s in zip(tile, stride, strict=True)):
        raise ConfigError(
            "The tile does not fit the network whose weights training starts from.",
            where="model.tile_shape",
            seen=list(tile),
            expected=f"multiples of {list(stride)}",
        )
    return replace(before.architecture, name=name)


def said_to_follow(plan: Plan, *, chose_tile: bool) -> Plan:
    """The plan with reasons that say what was followed: it was not chosen by hand."""
    followed = ["spacing_mm", *(() if chose_tile else ("tile_shape",))]
    return plan.with_(reasons={**plan.reasons, **dict.fromkeys(followed, FOLLOWED)})


def refuse_stranger(
    before: Plan,
    *,
    dims: int,
    modality: Modality,
    channel_names: Sequence[str],
    architecture: str,
    spacing_mm: Sequence[float] | None,
    base_features: int | None,
    stem: Stem | None = None,
    layout: Layout | None = None,
    network: Mapping[str, Any] | None = None,
) -> None:
    """Raise `ConfigError` when the weights of `before` cannot serve the plan that is asked for.

    Channels that are called otherwise are warned of.

    Args:
        before: the plan that the weights were trained by.
        dims: 2 or 3 axes that the new images have.
        modality: of the new images.
        channel_names: of the new images, in their order.
        architecture: name of the new network.
        spacing_mm: that is chosen (z, y, x); None for that of `before`, as for all that follows.
        base_features: that are chosen for the first stage.
        stem: that is chosen.
        layout: whose network it is, down to its blocks and heads.
        network: class and arguments of a network that is not ours.
    """
    mine = {
        "spatial axes": (before.dims, dims),
        "modality": (before.modality, modality),
        "image channels": (len(before.channel_names), len(channel_names)),
        # what a bundle names is imported only where the user names it too
        "network": (dict(before.architecture.network), dict(network or {})),
        "kind of backbone": (backbone_kind(before.architecture.name), backbone_kind(architecture)),
    }
    for what, (has, wanted) in mine.items():
        if has != wanted:
            raise ConfigError(
                f"Training cannot start from this bundle: another {what}.",
                where="model.init_from",
                seen=f"{what}: {has} in the bundle, {wanted} here",
                remedy="name a bundle that was trained on such images with such a network, or "
                "leave model.init_from out.",
            )
    _check_channels(before.channel_names, channel_names)
    _refuse_setting("spacing_mm", spacing_mm, before.spacing_mm)
    _refuse_setting("base_features", base_features, before.architecture.features[0])
    _refuse_setting("stem", stem, before.architecture.stem)
    _refuse_setting("layout", layout, before.architecture.layout)


def _check_channels(has: Sequence[str], here: Sequence[str]) -> None:
    """Weights and normalisation go over by a channel's place: no name may have moved."""
    theirs, ours = ([name.strip().casefold() for name in names] for names in (has, here))
    seen = f"{', '.join(has)} in the bundle, {', '.join(here)} here"
    if any(a != b and b in theirs for a, b in zip(theirs, ours, strict=True)):
        raise ConfigError(
            "Training cannot start from this bundle: its channels have another order.",
            where="model.init_from",
            seen=seen,
            remedy="give the dataset's channels in the bundle's order, or leave model.init_from "
            "out.",
        )
    if theirs != ours:
        log.warning(
            "The channels are called otherwise than in the bundle that training starts from: "
            "%s. They are normalised as there, by their place.",
            seen,
        )


def _refuse_setting(name: str, chosen: object, has: object) -> None:
    if isinstance(chosen, Sequence) and not isinstance(chosen, str):
        chosen = tuple(float(each) for each in chosen)
    if chosen is not None and chosen != has:
        raise ConfigError(
            f"model.{name} and the bundle that training starts from disagree.",
            where=f"model.{name}",
            seen=f"{chosen}, and {has} in the bundle",
            remedy=f"leave model.{name} out: the weights were learnt with the bundle's.",
        )
