"""The plan: every decision taken from a dataset's statistics, as a versioned JSON file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat
from pydantic_core import from_json

from lesionseg.core import Labels
from lesionseg.core.records import read_record
from lesionseg.core.selection import SELECTED
from lesionseg.errors import BundleError
from lesionseg.ops.anchors import AnchorLevel
from lesionseg.plan.nnunet_recipe import NnunetRecipe

SCHEMA: Literal[2] = 2  # of the plan.json that is written
_MOST_TILE_VOXELS = 2**28  # 1 GiB per channel of float32
# labels are flat in plan.json: its keys, and the fields of `Labels` that they state
_LABEL_KEYS = {"label_values": "values", "label_names": "names", "regions": "regions"}
_FLAT_KEYS = {f"labels.{name}": key for key, name in _LABEL_KEYS.items()}
Modality = Literal["mri", "ct", "xray"]
Activation = Literal["sigmoid", "softmax"]
Layout = Literal["lesionseg", "nnunet"]
CandidateSource = Literal["segmentation", "detection", "both"]

# ranges of what a file may hold; pydantic takes no NaN and no infinity for them
Share = Annotated[float, Field(ge=0, le=1)]
Millimetres = Annotated[float, Field(ge=1e-3, le=100)]
Voxels = Annotated[int, Field(ge=1, le=2**16)]
Gamma = Annotated[float, Field(ge=0, le=100)]
_Blocks = Annotated[int, Field(ge=1, le=100)]

# what candidates of our own networks may come from, the default first
SOURCES: Mapping[str, tuple[CandidateSource, ...]] = {
    "unet": ("segmentation",),
    "residual_unet": ("segmentation",),
    "retinanet": ("detection",),
    "retina_unet": ("both", "detection", "segmentation"),
}


def sources_of(architecture: str) -> tuple[CandidateSource, ...]:
    """What candidates of a network to be planned may come from; of an unknown one: its voxels."""
    return SOURCES.get(architecture, ("segmentation",))


@dataclass(frozen=True)
class Normalisation:
    """How one channel's intensities become network input: clip to [lower, upper], then scale.

    `zscore`: mean and std of each case's own non-zero voxels (MRI). `dataset`: the stated
    `mean` and `std` of the training lesions' and bodies' voxels (CT). `range`: each case's own
    0.5 and 99.5 percentiles become 0 and 1, then zero mean and unit variance (X-ray).
    """

    scheme: Literal["zscore", "dataset", "range"]
    lower: FiniteFloat | None = None
    upper: FiniteFloat | None = None
    mean: FiniteFloat = 0.0
    std: Annotated[float, Field(ge=1e-12, le=1e12)] = 1.0


@dataclass(frozen=True)
class Architecture:
    """A network by name from the closed table in `models.build`, and its shape.

    One entry per resolution stage in `features`, `strides` and `kernels`. `blocks` per stage;
    `encoder_blocks` are a residual encoder's own, one number per stage. `layout` nnunet: transposed
    convolutions have biases, all starts as there (He, residual branches at 0, no prior), and coarse
    levels are taught the voxel in the middle of each block.

    `network` names a network or backbone that is not ours (`_target_`) and its arguments, as JSON
    has them. `levels`: its supervised outputs, as the input's voxels per output voxel, finest
    first. The product of its `strides` is what a tile's sides are multiples of.
    """

    name: str
    features: tuple[Annotated[int, Field(ge=1, le=2**12)], ...]
    strides: tuple[tuple[Annotated[int, Field(ge=1, le=64)], ...], ...]
    kernels: tuple[tuple[Annotated[int, Field(ge=1, le=31)], ...], ...]
    blocks: _Blocks = 2
    n_supervised: Annotated[int, Field(ge=0, le=32)] = 3
    encoder_blocks: tuple[_Blocks, ...] = ()
    network: Mapping[str, Any] = field(default_factory=dict, hash=False)
    levels: tuple[tuple[Annotated[int, Field(ge=1, le=2**12)], ...], ...] = ()
    layout: Layout = "lesionseg"


def total_strides(strides: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Stride from the input to each stage.

    >>> total_strides(((1, 1), (1, 2), (2, 2)))
    ((1, 1), (1, 2), (2, 4))
    """
    return tuple(accumulate(strides, lambda a, b: tuple(x * y for x, y in zip(a, b, strict=True))))


def total_stride(architecture: Architecture) -> tuple[int, ...]:
    """By how much each axis shrinks to the coarsest stage: a tile's sides are multiples of it."""
    return total_strides(architecture.strides)[-1]


@dataclass(frozen=True)
class CandidateRule:
    """The rule by which probabilities become candidates.

    A candidate is a local peak with the connected voxels of p ≥ peak / `ratio` or p ≥ `extent`.
    Peaks below `floor`, candidates of fewer than `min_voxels` and shoulders of a higher candidate
    (`inference.candidates.PROMINENCE`) are dropped. Below the operating point a case keeps its
    highest candidates until it has `candidate_limit`; above it there is no limit. `source`: voxels,
    a detector's boxes or both.
    """

    ratio: Annotated[float, Field(ge=1, le=1e6)] = 1.6
    extent: Share = 0.35
    floor: Share = 0.05
    min_voxels: Annotated[int, Field(ge=0, le=2**31)] = 2
    candidate_limit: Annotated[int, Field(ge=1, le=2**31)] = 10_000
    source: CandidateSource = "segmentation"


@dataclass(frozen=True)
class AnchorPlan:
    """Which stages of the backbone look for lesions, and the boxes they start from.

    `stages`: their numbers, finest first. `sizes[level]`: side lengths in voxels of the anchors at
    each cell, the same number at every level. `width` and `depth`: channels and convolutions of the
    two heads that all levels share. `prior`: the share of anchors expected to be positive at the
    start. `alpha`, `gamma`: as in `FocalCorrection`, of the scores. `merge_iou`: of boxes that
    overlap by more the highest alone is kept. `mean_iou`, `small_recall`: how well the sizes fit
    the training lesions (mean IoU with the best one, share of the smallest tenth with IoU ≥ 0.5);
    None without.
    """

    stages: tuple[Annotated[int, Field(ge=0, le=31)], ...]
    sizes: tuple[tuple[tuple[Annotated[float, Field(ge=1e-3, le=1e6)], ...], ...], ...]
    width: Voxels = 32
    depth: Annotated[int, Field(ge=0, le=64)] = 1
    prior: Share = 0.01
    alpha: Share | tuple[Share, ...] | None = None
    gamma: Gamma | None = None
    merge_iou: Share = 0.2
    mean_iou: FiniteFloat | None = field(default=None, compare=False)
    small_recall: FiniteFloat | None = field(default=None, compare=False)

    @property
    def n_shapes(self) -> int:
        return len(self.sizes[0])

    def levels(
        self, strides: Sequence[tuple[int, ...]], tile_shape: Sequence[int]
    ) -> tuple[AnchorLevel, ...]:
        """The grids on a tile of this shape, for a backbone of these strides per stage."""
        totals = total_strides(strides)
        return tuple(
            AnchorLevel(
                tuple(n // s for n, s in zip(tile_shape, totals[stage], strict=True)),
                totals[stage],
                sizes,
            )
            for stage, sizes in zip(self.stages, self.sizes, strict=True)
        )


@dataclass(frozen=True)
class FocalCorrection:
    """α (one number or one a label) and γ of the focal loss that taught the network.

    Inference undoes them (`losses.focal`), so that its probabilities mean probabilities.
    """

    alpha: Share | tuple[Share, ...] | None
    gamma: Gamma


# fields in which networks may differ although their probabilities are averaged
_OWN = {"own": True}


@dataclass(frozen=True)
class Plan:
    """The decisions made from the data before training; tuples in array order (z, y, x).

    What is chosen after training is a `core.Selection`.

    `labels`: those that the network predicts, one per channel of its voxels. `lesion_fraction` is
    the share of lesion voxels (the prior π). `link`: None if outputs are taken as they are.
    `anchors`: of a detector. `prepare_extra`: further transforms of a prepared image
    (`data.transforms`). `may_lack`: a scan may lack any one channel. `raster_mm`: the pixel size of
    radiographs that state none (None: `spacing_mm`). `nan_background`: NaN voxels of a scan are
    background. `grid_of_image`: channels of equal shape and spacing are on the first one's grid.
    `nnunet`: of a model that nnU-Net trained, which prepares and slides in its own way;
    `spacing_mm`, `normalisation` and `tile_shape` then only describe it. `reasons`: a sentence for
    each decision. `schema_version`: of the `plan.json` that it was read from; files of version 1
    contain the selection, too.
    """

    dims: Annotated[int, Field(ge=2, le=3)]
    modality: Modality
    channel_names: tuple[str, ...]
    labels: Labels
    spacing_mm: tuple[Millimetres, ...]
    normalisation: tuple[Normalisation, ...]
    tile_shape: tuple[Voxels, ...]
    batch_size: Voxels = field(metadata=_OWN)
    architecture: Architecture = field(metadata=_OWN)
    lesion_fraction: Share = field(metadata=_OWN)
    activation: Activation = "sigmoid"
    candidate_rule: CandidateRule = field(default_factory=CandidateRule, metadata=_OWN)
    link: FocalCorrection | None = None
    anchors: AnchorPlan | None = None
    prepare_extra: tuple[Mapping[str, Any], ...] = ()
    may_lack: bool = field(default=False, metadata=_OWN)
    raster_mm: Millimetres | None = field(default=None, metadata=_OWN)
    nan_background: bool = field(default=False, metadata=_OWN)
    grid_of_image: bool = field(default=False, metadata=_OWN)
    nnunet: NnunetRecipe | None = None
    reasons: Mapping[str, str] = field(default_factory=dict, metadata=_OWN)
    schema_version: Literal[1, 2] = field(default=SCHEMA, compare=False, metadata=_OWN)

    @property
    def has_boxes(self) -> bool:
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
        return len(self.labels) if self.has_voxels else 0

    def with_(self, **changes: Any) -> "Plan":
        return replace(self, **changes)

    def differences(self, other: "Plan") -> list[str]:
        """Return the decisions, by name, that keep networks of two plans from being averaged.

        Probabilities can be averaged if tiles, channels and labels of the networks agree. Each
        network may have an architecture of its own, and labels may have other names.
        """
        found = []
        for decision in fields(self):
            ours = getattr(self, decision.name)
            theirs = getattr(other, decision.name)
            if decision.name == "labels":
                theirs = replace(theirs, names=ours.names)
            if not decision.metadata.get("own") and ours != theirs:
                found.append(decision.name)
        return found

    def to_json(self) -> str:
        record = asdict(self)
        labels = record.pop("labels")
        for key, name in _LABEL_KEYS.items():
            record[key] = labels[name]
        record["schema_version"] = SCHEMA
        return json.dumps(record, indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str | Path = "plan.json") -> "Plan":
        """Read a plan; raises `BundleError` naming `where` and the key that is wrong."""
        plan = read_record(cls, _with_labels(text), where, BundleError, _FLAT_KEYS)
        shape = plan.architecture
        anchors = plan.anchors
        labels = plan.labels
        n = len(labels)
        stages = {len(shape.features), len(shape.strides), len(shape.kernels)}
        axes = {plan.dims, len(plan.spacing_mm), len(plan.tile_shape)}
        for key, fits in {  # what belongs together is of one length; a value names one channel
            "label_names": len(labels.names) == n,
            "label_values": len(set(labels.values)) == n > 0,
            "regions": len(labels.regions) in (0, n),
            "normalisation": len(plan.normalisation) == len(plan.channel_names),
            "spacing_mm or tile_shape": len(axes) == 1,
            "tile_shape": prod(plan.tile_shape) <= _MOST_TILE_VOXELS,
            "architecture.strides or kernels": len(stages) == 1,
            "anchors.stages": not anchors
            or (
                len(anchors.sizes) == len(anchors.stages) > 0
                and max(anchors.stages) < len(shape.features)
            ),
        }.items():
            if not fits:
                raise BundleError(f"{where}: {key} does not fit the rest of the plan.")
        network = dict(tuples(shape.network))  # as it was written
        reasons = {name: why for name, why in plan.reasons.items() if name not in SELECTED}
        return plan.with_(architecture=replace(shape, network=network), reasons=reasons)


def _with_labels(text: str) -> str:
    """Gather the keys of `plan.json` that describe labels under `labels`, as `Plan` has them."""
    try:
        content = from_json(text)
    except ValueError:
        return text  # `read_record` reports what is wrong
    if not isinstance(content, dict):
        return text
    labels = {name: content.pop(key) for key, name in _LABEL_KEYS.items() if key in content}
    return json.dumps({**content, "labels": labels})


def tuples(value: Any) -> Any:
    """JSON lists as (nested) tuples, so that a plan read back equals the plan written."""
    if isinstance(value, list | tuple):
        return tuple(tuples(v) for v in value)
    if isinstance(value, dict):
        return {key: tuples(v) for key, v in value.items()}
    return value
