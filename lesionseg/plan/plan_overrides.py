"""What somebody decides about a plan instead of the rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from lesionseg.errors import one_of, require
from lesionseg.plan.anchor_plan import Merge
from lesionseg.plan.plan import (
    SOURCES,
    Activation,
    CandidateSource,
    ComponentScore,
    Layout,
    Stem,
    sources_of,
    tuples,
)

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
    component_score: ComponentScore = "max"
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
