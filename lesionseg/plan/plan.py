"""The plan: every decision taken from a dataset's statistics, as a versioned JSON file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from lesionseg.core import UNION, Calibration, OperatingPoint
from lesionseg.core.schema import MisfitError, Range, build
from lesionseg.errors import BundleError, DatasetError
from lesionseg.plan.anchor_plan import AnchorPlan
from lesionseg.plan.candidate_rule import SHARE, SOURCES, CandidateRule

PLAN_VERSION = 1
_MOST_TILE_VOXELS = 2**28  # 1 GiB per channel of float32
Modality = Literal["mri", "ct", "xray"]
Activation = Literal["sigmoid", "softmax"]
Stem = Literal["full", "space_to_depth"]
Layout = Literal["lesionseg", "nnunet"]


@dataclass(frozen=True)
class Normalisation:
    """How one channel's intensities become network input: clip to [lower, upper], then scale.

    `zscore`: mean and std of each case's own non-zero voxels (MRI). `dataset`: the stated
    `mean` and `std` of the training lesions' and bodies' voxels (CT). `range`: each case's own
    0.5 and 99.5 percentiles become 0 and 1, then zero mean and unit variance (X-ray).
    """

    scheme: Literal["zscore", "dataset", "range"]
    lower: float | None = None
    upper: float | None = None
    mean: float = 0.0
    std: Annotated[float, Range(1e-12, 1e12)] = 1.0


@dataclass(frozen=True)
class Architecture:
    """A network by name from the closed table in `models.build`, and its shape.

    One entry per resolution stage in `features`, `strides` and `kernels`. The stride of stage 0 is
    the `block` of voxels that a space-to-depth stem turns into channels; all ones for none.
    `blocks` per stage; `encoder_blocks` are a residual encoder's own, one number per stage.
    `layout` nnunet: transposed convolutions have biases, all starts as there (He, residual branches
    at 0, no prior), and coarse levels are taught the voxel in the middle of each block.

    `network` names a network or backbone that is not ours (`_target_`) and its arguments, as JSON
    has them. `levels`: its supervised outputs, as the input's voxels per output voxel, finest
    first. The product of its `strides` is what a tile's sides are multiples of.
    """

    name: str
    features: Annotated[tuple[int, ...], Range(1, 2**12)]
    strides: Annotated[tuple[tuple[int, ...], ...], Range(1, 64)]
    kernels: Annotated[tuple[tuple[int, ...], ...], Range(1, 31)]
    blocks: Annotated[int, Range(1, 100)] = 2
    n_supervised: Annotated[int, Range(0, 32)] = 3
    encoder_blocks: Annotated[tuple[int, ...], Range(1, 100)] = ()
    network: Mapping[str, Any] = field(default_factory=dict, hash=False)
    levels: Annotated[tuple[tuple[int, ...], ...], Range(1, 2**12)] = ()
    layout: Layout = "lesionseg"

    @property
    def block(self) -> tuple[int, ...]:
        """Voxels along each axis that one voxel of the first stage stands for."""
        return self.strides[0]

    @property
    def stem(self) -> Stem:
        """Whether the first stage has a voxel for each of the image's, or for a block of them."""
        return "space_to_depth" if max(self.block) > 1 else "full"


@dataclass(frozen=True)
class FocalLink:
    """α (one number or one a label) and γ of the focal loss that taught the network.

    Inference undoes them (`losses.focal`), so that its probabilities mean probabilities.
    """

    alpha: Annotated[float | tuple[float, ...] | None, SHARE]
    gamma: Annotated[float, Range(0, 100)]


@dataclass(frozen=True)
class ChannelSet:
    """Scans without some channels, for which the network was trained too.

    `missing`: places of these channels in the plan, ascending. The rest is what was chosen on
    development cases shown without them, as in `Plan`.
    """

    missing: Annotated[tuple[int, ...], Range(0, 255)]
    operating_points: tuple[OperatingPoint, ...] = ()
    calibration: Calibration | None = None


@dataclass(frozen=True)
class ThickSlices:
    """Slices of some cases that are over twice as far apart as those of others.

    `axis`: of the plan's grid, across them. `spacing_mm`: least and most of these cases.
    """

    axis: Annotated[int, Range(0, 2)]
    spacing_mm: Annotated[tuple[float, float], Range(1e-3, 100)]


@dataclass(frozen=True)
class Plan:
    """Everything that training and inference must agree on; tuples in array order (z, y, x).

    `label_values[k]` is the mask value and `label_names[k]` the name of network channel k.
    `regions[k]`, where there are any, are the mask values of which channel k is taught, and
    `label_values[k]` is the one painted for it, later channels over earlier ones.
    `lesion_fraction` is the share of lesion voxels on the plan's grid (the prior π).
    `link`: None where the network's outputs are taken as they are. `anchors`: of a detector, else
    None. `calibration`: from score to chance, None where it was not fitted. `voxel_calibration`:
    what a voxel's probability is worth, put right before candidates are found; None takes it as it
    is. `n_members`: networks whose probabilities are averaged. `prepare_extra`: further transforms
    of a prepared image (`lesionseg.data.transforms`). `channel_sets`: what a scan may lack.
    `thick_slices`: of a dataset of thin and thick ones; None where all are about alike.
    `tempered`: whether probabilities beyond .9997 are kept apart (`inference.probabilities`); not
    in plans from before, whose operating points were chosen without. `raster_mm`: the pixel size
    taken for radiographs that state none, the median of the training images'; None: `spacing_mm`.
    `reasons` explains each decision in one sentence.
    """

    dims: Annotated[int, Range(2, 3)]
    modality: Modality
    channel_names: tuple[str, ...]
    label_values: Annotated[tuple[int, ...], Range(1, 255)]
    label_names: tuple[str, ...]
    spacing_mm: Annotated[tuple[float, ...], Range(1e-3, 100)]
    normalisation: tuple[Normalisation, ...]
    tile_shape: Annotated[tuple[int, ...], Range(1, 2**16)]
    batch_size: Annotated[int, Range(1, 2**16)]
    architecture: Architecture
    lesion_fraction: Annotated[float, SHARE]
    activation: Activation = "sigmoid"
    candidate_rule: CandidateRule = field(default_factory=CandidateRule)
    operating_points: tuple[OperatingPoint, ...] = ()
    link: FocalLink | None = None
    anchors: AnchorPlan | None = None
    calibration: Calibration | None = None
    voxel_calibration: Calibration | None = None
    n_members: Annotated[int, Range(1, 1000)] = 1
    regions: Annotated[tuple[tuple[int, ...], ...], Range(1, 255)] = ()
    prepare_extra: tuple[Mapping[str, Any], ...] = ()
    channel_sets: tuple[ChannelSet, ...] = ()
    thick_slices: ThickSlices | None = None
    tempered: bool = False
    raster_mm: Annotated[float | None, Range(1e-3, 100)] = None
    reasons: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = PLAN_VERSION

    @property
    def has_boxes(self) -> bool:
        """Whether the network gives boxes: it does where there are anchors for them."""
        return self.anchors is not None

    @property
    def has_voxels(self) -> bool:
        """Whether the network gives probabilities of voxels.

        One that is not ours does, unless `candidate_rule.source` takes its boxes alone.
        """
        sources = SOURCES.get(self.architecture.name, (self.candidate_rule.source,))
        return sources != ("detection",)

    @property
    def n_voxel_channels(self) -> int:
        """Channels of probabilities that the network gives of each voxel."""
        return len(self.label_values) if self.has_voxels else 0

    @property
    def mask_values(self) -> tuple[int, ...]:
        """The mask values that prepared labels 1, 2, … stand for."""
        if not self.regions:
            return self.label_values
        return tuple(sorted({value for region in self.regions for value in region}))

    @property
    def label_regions(self) -> tuple[tuple[int, ...], ...]:
        """The prepared labels of which each channel is taught; none without regions."""
        place = {value: k for k, value in enumerate(self.mask_values, start=1)}
        return tuple(tuple(place[value] for value in region) for region in self.regions)

    @property
    def lesion_labels(self) -> Mapping[int, str]:
        """Labels by which lesions are told apart: one for all where there are regions."""
        if self.regions:
            return UNION
        return dict(zip(self.label_values, self.label_names, strict=True))

    def names_of(self, channels: Sequence[int]) -> tuple[str, ...]:
        """Names of the channels at these places."""
        return tuple(self.channel_names[c] for c in channels)

    def without(self, missing: Sequence[int]) -> ChannelSet:
        """What was chosen for scans that lack these channels; for none, what the plan says itself.

        Raises `DatasetError` naming them where the network was not trained to do without.
        """
        if not missing:
            return ChannelSet((), self.operating_points, self.calibration)
        for known in self.channel_sets:
            if known.missing == tuple(missing):
                return known
        lacking = " or ".join(", ".join(self.names_of(s.missing)) for s in self.channel_sets)
        raise DatasetError(
            "The scan lacks a channel that this model needs.",
            seen=f"no {', '.join(self.names_of(missing))}",
            expected=", ".join(self.channel_names)
            + (f"; it may lack {lacking}" if lacking else ""),
            remedy="give the missing file, or train with data.channel_dropout=0.3, say.",
        )

    def with_(self, **changes: Any) -> "Plan":
        """Copy of the plan with some fields changed."""
        return replace(self, **changes)

    def to_json(self) -> str:
        """The plan as indented JSON."""
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str | Path = "plan.json") -> "Plan":
        """Read a plan; raises `BundleError` naming `where` and the key that is wrong."""
        try:
            return _plan(json.loads(text))
        except MisfitError as error:
            raise BundleError(
                f"The plan's {error.key} is wrong.",
                where=where,
                seen=error.seen,
                expected=error.expected,
                remedy="correct it, or train again.",
            ) from error
        except (TypeError, ValueError, RecursionError) as error:
            raise BundleError(
                "The plan cannot be read.",
                where=where,
                seen=repr(error),
                expected=f"a plan of schema_version {PLAN_VERSION}",
                remedy="use a bundle written by this version of lesionseg, or train again.",
            ) from error


def _plan(raw: Any) -> Plan:
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != PLAN_VERSION:
        raise ValueError(f"schema_version {version}")
    # operating points of older plans were fitted without joining, and by the peak alone
    rule = {"join": 1.0, "extent": 1.0, **(raw.get("candidate_rule") or {})}
    raw = {**raw, "candidate_rule": rule}
    plan = build(Plan, raw)
    _check_lengths(plan)
    network = dict(tuples(plan.architecture.network))  # as it was written
    return plan.with_(architecture=replace(plan.architecture, network=network))


def _check_lengths(plan: Plan) -> None:
    """Lists that belong together are of one length; a mask value names one channel."""
    n, dims, stages = len(plan.label_values), plan.dims, len(plan.architecture.features)
    for key, length, expected in (
        ("label_names", len(plan.label_names), n),
        ("label_values", len(set(plan.label_values)), max(n, 1)),
        ("regions", len(plan.regions) or n, n),
        ("normalisation", len(plan.normalisation), len(plan.channel_names)),
        ("spacing_mm", len(plan.spacing_mm), dims),
        ("tile_shape", len(plan.tile_shape), dims),
        ("architecture.strides", len(plan.architecture.strides), stages),
        ("architecture.kernels", len(plan.architecture.kernels), stages),
    ):
        if length != expected:
            raise MisfitError(key, f"{length} entries", f"{expected} different ones")
    n_channels = len(plan.channel_names)
    for known in plan.channel_sets:
        kept = 0 < len(known.missing) < n_channels and max(known.missing) < n_channels
        if not (kept and sorted(set(known.missing)) == list(known.missing)):
            some = f"some of the {n_channels} channels, ascending"
            raise MisfitError("channel_sets.missing", known.missing, some)
    if prod(plan.tile_shape) > _MOST_TILE_VOXELS:
        raise MisfitError("tile_shape", plan.tile_shape, f"at most {_MOST_TILE_VOXELS} voxels")
    anchors = plan.anchors
    if anchors and not (len(anchors.sizes) == len(anchors.stages) and max(anchors.stages) < stages):
        raise MisfitError("anchors.stages", anchors.stages, f"stages of the {stages}, with sizes")


def tuples(value: Any) -> Any:
    """JSON lists as (nested) tuples, so that a plan read back equals the plan written."""
    if isinstance(value, list | tuple):
        return tuple(tuples(v) for v in value)
    if isinstance(value, dict):
        return {key: tuples(v) for key, v in value.items()}
    return value
