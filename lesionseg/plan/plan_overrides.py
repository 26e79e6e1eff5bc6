"""What a plan takes from its user, and from the plan whose weights training starts from."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from lesionseg.errors import ConfigError, one_of, require
from lesionseg.plan.anchor_plan import Merge
from lesionseg.plan.candidate_rule import SOURCES, CandidateSource, ComponentScore, sources_of
from lesionseg.plan.plan import (
    Activation,
    Architecture,
    Layout,
    Modality,
    Plan,
    Stem,
    tuples,
)
from lesionseg.plan.tile_rules import total_stride

# The memory of the cards that nnU-Net's presets M, L and XL are for; S is for the smallest
SIZES_GB: Mapping[str, float] = {"S": 6.0, "M": 11.0, "L": 24.0, "XL": 40.0}


@dataclass(frozen=True)
class PlanOverrides:
    """What somebody decides instead of the rules; None leaves it to them.

    `init_from`: the bundle, or the run, whose weights training starts from; its grid,
    normalisation and backbone are followed (`make_plan`'s `before`). `stem`: space_to_depth turns
    blocks of 2 voxels along each fine axis into channels, and the backbone works on half the grid.
    `layout`: nnunet gives our own networks nnU-Net's details (`Architecture`). `size`, S, M, L or
    XL: the most memory of a GPU that is planned with. `merge`: of a detector's
    boxes (`AnchorPlan`). `component_score`: of candidates from voxels (`CandidateRule`).
    `network`: the arguments of a network that is not ours, with `_target_` which class it is where
    `architecture` is "custom". `backbone`: likewise of a detector's feature maps.
    """

    architecture: str = "unet"
    spacing_mm: Sequence[float] | None = None
    tile_shape: Sequence[int] | None = None
    batch_size: int | None = None
    base_features: int | None = None
    activation: Activation = "sigmoid"
    candidates: CandidateSource | None = None
    init_from: str | None = None
    size: str | None = None
    merge: Merge | None = None
    component_score: ComponentScore = "top"
    stem: Stem | None = None
    layout: Layout | None = None
    network: Mapping[str, Any] | None = None
    backbone: Mapping[str, Any] | None = None

    @property
    def spec(self) -> dict[str, Any]:
        """The network or backbone that is not ours, as `Architecture.network` has it."""
        return dict(tuples(dict(self.network or self.backbone or {})))

    def __post_init__(self) -> None:
        ours = self.architecture in SOURCES
        detects = "detection" in sources_of(self.architecture)
        for name, fits in (("network", not ours), ("backbone", detects)):
            require(
                fits or not getattr(self, name),
                f"A {self.architecture} takes no {name} of another kind.",
                where=f"model.{name}",
                seen=getattr(self, name),
                remedy="take model=custom for a network of your own, model=retinanet for a "
                "backbone of your own.",
            )
        for name, usual in (("stem", "full"), ("layout", "lesionseg")):
            require(
                ours or getattr(self, name) in (None, usual),
                f"Only our own networks have a {name}.",
                where=f"model.{name}",
                seen=f"model={self.architecture}",
            )
        spacing, tile = self.spacing_mm or (1.0,), self.tile_shape or (1,)
        counts = (self.batch_size or 1, self.base_features or 1)
        positive = min(spacing) > 0 and min(tile) >= 1 and min(counts) >= 1
        require(positive, "Sizes of a plan are positive.", where="model", seen=self)
        sources = sources_of(self.architecture)
        require(
            self.candidates in (None, *sources),
            f"A {self.architecture} does not give such candidates.",
            where="model.candidates",
            seen=self.candidates,
            expected=", ".join(sources),
        )
        merges = get_args(Merge) if "detection" in sources else ()
        require(
            self.merge in (None, *merges),
            f"The boxes of a {self.architecture} are not merged in such a way.",
            where="model.merge",
            seen=self.merge,
            expected=", ".join(merges) or "null: it gives no boxes",
        )
        one_of(
            "score of a candidate",
            self.component_score,
            get_args(ComponentScore),
            where="model.component_score",
        )
        if self.stem is not None:
            one_of("stem", self.stem, get_args(Stem), where="model.stem")
        if self.layout is not None:
            one_of("layout", self.layout, get_args(Layout), where="model.layout")
        if self.size is not None:
            one_of("size", self.size, tuple(SIZES_GB), where="model.size")
        one_of("activation", self.activation, get_args(Activation), where="model.activation")


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
