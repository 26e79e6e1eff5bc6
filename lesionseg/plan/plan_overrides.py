"""What somebody decides about a plan instead of the rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from lesionseg.errors import ConfigError
from lesionseg.plan.anchor_plan import Merge
from lesionseg.plan.plan import Activation, CandidateSource, ComponentScore, Stem, sources_of

# about what nnU-Net plans its ResEnc presets M and L for
SIZES_GB: Mapping[str, float] = {"M": 10.0, "L": 24.0}


@dataclass(frozen=True)
class PlanOverrides:
    """What somebody decides instead of the rules; None leaves it to them.

    `init_from`: the bundle, or the run, whose weights training starts from; its grid,
    normalisation and backbone are followed (`make_plan`'s `before`). `stem`: folded turns blocks of
    2 voxels along each fine axis into channels, and the backbone works on half the grid. `size`, M
    or L: of a residual U-Net, the memory it is planned for. `merge`: of a detector's boxes
    (`AnchorPlan`). `component_score`: of candidates from voxels (`CandidateRule`).
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

    def __post_init__(self) -> None:
        spacing, tile = self.spacing_mm or (1.0,), self.tile_shape or (1,)
        counts = (self.batch_size or 1, self.base_features or 1)
        if min(spacing) <= 0 or min(tile) < 1 or min(counts) < 1:
            raise ConfigError("Sizes of a plan are positive.", where="model", seen=self)
        sources = sources_of(self.architecture)
        if self.candidates not in (None, *sources):
            raise ConfigError(
                f"A {self.architecture} does not give such candidates.",
                where="model.candidates",
                seen=self.candidates,
                expected=", ".join(sources),
            )
        known = get_args(Merge) if "detection" in sources else ()
        if self.merge not in (None, *known):
            raise ConfigError(
                f"The boxes of a {self.architecture} are not merged in such a way.",
                where="model.merge",
                seen=self.merge,
                expected=", ".join(known) or "null: it gives no boxes",
            )
        if self.component_score not in get_args(ComponentScore):
            raise ConfigError(
                "There is no such score of a candidate.",
                where="model.component_score",
                seen=self.component_score,
                expected=", ".join(get_args(ComponentScore)),
            )
        if self.stem not in (None, *get_args(Stem)):
            raise ConfigError(
                "There is no such stem.",
                where="model.stem",
                seen=self.stem,
                expected=", ".join(get_args(Stem)),
            )
        residual = self.architecture == "residual_unet"
        if self.size not in (None, *(SIZES_GB if residual else ())):
            raise ConfigError(
                "A network of this name has no such size.",
                where="model.size",
                seen=f"{self.size} for {self.architecture}",
                expected="M or L for residual_unet, null for all others",
            )
        if self.activation not in ("sigmoid", "softmax"):
            raise ConfigError(
                "The activation is unknown.",
                where="model.activation",
                seen=self.activation,
                expected="sigmoid or softmax",
            )
