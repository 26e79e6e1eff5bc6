"""plan.json: keys and ranges, versions that can be read, default candidate rule, old keys.

The plan has all decisions that follow from a dataset's statistics.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, FiniteFloat

from lesionseg.config import TARGET, Axis, Gamma, Probability, Voxels
from lesionseg.core import Labels
from lesionseg.core.records import parse_as, read_object
from lesionseg.core.selection import SELECTED
from lesionseg.errors import BundleError
from lesionseg.ops.anchors import AnchorLevel
from lesionseg.plan.nnunet_preprocessing import NnunetRecipe

SCHEMA: Literal[2] = 2  # version of the plan.json that is written
_MAX_TILE_VOXELS = 2**28  # 1 GiB per channel of float32
# plan.json describes labels by separate keys. Each key is mapped to its field of `Labels`.
_LABEL_KEYS = {"label_values": "values", "label_names": "names", "regions": "regions"}
# errors in a field of `Labels` name the key of plan.json instead
_FLAT_KEYS = {f"labels.{name}": key for key, name in _LABEL_KEYS.items()}
Modality = Literal["mri", "ct", "xray", "colour"]
Activation = Literal["sigmoid", "softmax"]
NetworkLayout = Literal["lesionseg", "nnunet"]
CandidateHead = Literal["segmentation", "detection", "both"]

# ranges of the values in a file; pydantic rejects NaN and infinity for them
Millimetres = Annotated[float, Field(ge=1e-3, le=100)]
_Blocks = Annotated[int, Field(ge=1, le=100)]

# possible sources of candidates for each of our networks, the default first
HEADS: Mapping[str, tuple[CandidateHead, ...]] = {
    "unet": ("segmentation",),
    "residual_unet": ("segmentation",),
    "retinanet": ("detection",),
    "retina_unet": ("both", "detection", "segmentation"),
}


def heads_of(architecture: str) -> tuple[CandidateHead, ...]:
    """Return the outputs of a network from which candidates can be extracted, the default first.

    A user's own network has only voxels ("segmentation").
    """
    # HEADS has the networks of this package
    return HEADS.get(architecture, ("segmentation",))


@dataclass(frozen=True)
class Normalisation:
    """The normalisation of one channel: clip to [lower, upper], then scale.

    `zscore`: by mean and standard deviation of the case's own non-zero voxels (MRI). `dataset`: by
    `mean` and `std`, which come from lesion and body voxels of the training cases (CT). `range`:
    clip to the case's own 0.5 and 99.5 percentiles, then scale to zero mean and unit variance
    (pictures in colour). `local`: as `range`, then add the local contrast, which is a pixel's
    difference from the mean of its surroundings in units of their standard deviation (X-ray). The
    surroundings are weighted by a Gaussian with the standard deviation `sigma`, in voxels of the
    plan.
    """

    scheme: Literal["zscore", "dataset", "range", "local"]
    lower: FiniteFloat | None = None
    upper: FiniteFloat | None = None
    mean: FiniteFloat = 0.0
    std: Annotated[float, Field(ge=1e-12, le=1e12)] = 1.0
    sigma: Annotated[float, Field(ge=0, le=1e4)] = 0.0


@dataclass(frozen=True)
class Architecture:
    """The shape of a network, and its name in `models.build`.

    Attributes:
        name: Name of the network.
        features: Number of features of each resolution stage.
        strides: Stride of each stage. The sides of a tile are multiples of their product.
        kernels: Kernel size of each stage.
        blocks: Number of blocks per stage.
        n_supervised: Number of resolutions with a loss (deep supervision).
        encoder_blocks: Number of blocks of each stage of a residual encoder.
        network: `_target_` and arguments of the user's own network or backbone, as in JSON.
        levels: For the user's own network, the stride of each supervised output, finest first.
        layout: "nnunet" for the details of nnU-Net: transposed convolutions have biases, the
            initialisation is nnU-Net's (He, residual branches at 0, no prior), and the target of a
            coarse output is the voxel in the middle of each block.
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
    layout: NetworkLayout = "lesionseg"

    @property
    def title(self) -> str:
        """The name of the network in messages: the class of the user's own network, or `name`."""
        return str(self.network.get(TARGET, self.name))


def total_strides(strides: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Return the stride from the input to each stage, given the stride of each stage.

    >>> total_strides(((1, 1), (1, 2), (2, 2)))
    ((1, 1), (1, 2), (2, 4))
    """
    return tuple(map(tuple, np.cumprod(strides, axis=0).tolist()))


def total_stride(architecture: Architecture) -> tuple[int, ...]:
    """Return the stride from the input to the coarsest stage.

    The sides of a tile have to be multiples of it.
    """
    return total_strides(architecture.strides)[-1]


@dataclass(frozen=True)
class CandidateRule:
    """The rule that finds candidates in probabilities.

    A candidate is a local peak with the connected voxels of p ≥ peak / `ratio` or p ≥ `extent`.
    Three kinds are dropped: peaks below `floor`, candidates of fewer than `min_voxels` voxels, and
    peaks that hardly rise above the side of a higher one (`inference.candidates.PROMINENCE`). A
    case keeps the `candidate_limit` highest candidates. Candidates above the operating point are
    always kept, except boxes that are not merged (`inference.box_candidates.MERGED_AT_FIRST`).
    `source` states whether candidates come from voxels, a detector's boxes or both.
    """

    ratio: Annotated[float, Field(ge=1, le=1e6)] = 1.6
    extent: Probability = 0.35
    floor: Probability = 0.05
    min_voxels: Annotated[int, Field(ge=0, le=2**31)] = 2
    candidate_limit: Annotated[int, Field(ge=1, le=2**31)] = 10_000
    source: CandidateHead = "segmentation"


@dataclass(frozen=True)
class AnchorPlan:
    """The anchors of a detector and its heads.

    Attributes:
        stages: Stages of the backbone with anchors, finest first.
        sizes: Side lengths in voxels of the anchors at each cell, for each level. All levels have
            the same number of sizes.
        width: Number of channels of the two heads, which all levels share.
        depth: Number of convolutions of each head.
        prior: Expected share of positive anchors at the start of training.
        alpha: As in `FocalCorrection`, for the scores.
        gamma: As in `FocalCorrection`, for the scores.
        merge_iou: If boxes have a higher IoU than this, only the one of the highest score is kept.
        floor: Lowest score of a box. None means the floor of the candidate rule, as in plans of
            earlier versions.
        mean_iou: Mean IoU of the training lesions with their best size. None without lesions.
        small_recall: Share of the smallest tenth of lesions with an IoU of 0.5 or more. None
            without lesions.
    """

    stages: tuple[Annotated[int, Field(ge=0, le=31)], ...]
    sizes: tuple[tuple[tuple[Annotated[float, Field(ge=1e-3, le=1e6)], ...], ...], ...]
    width: Voxels = 32
    depth: Annotated[int, Field(ge=0, le=64)] = 1
    prior: Annotated[float, Field(gt=0, lt=1)] = 0.01
    alpha: Probability | tuple[Probability, ...] | None = None
    gamma: Gamma | None = None
    merge_iou: Probability = 0.2
    floor: Probability | None = None
    mean_iou: FiniteFloat | None = field(default=None, compare=False)
    small_recall: FiniteFloat | None = field(default=None, compare=False)

    @property
    def n_shapes(self) -> int:
        """The number of anchors with different sizes at each cell, the same for all levels."""
        return len(self.sizes[0])


@dataclass(frozen=True)
class FocalCorrection:
    """The α (one number, or one per label) and γ of the focal loss that trained the network.

    Inference undoes their effect (`losses.focal`), so that outputs are probabilities.
    """

    alpha: Probability | tuple[Probability, ...] | None
    gamma: Gamma


# metadata of fields that may differ between networks whose probabilities are averaged
_MAY_DIFFER = {"may_differ": True}


@dataclass(frozen=True)
class Plan:
    """The decisions made from the data before training.

    Tuples are in array order (z, y, x). Choices made after training are in `core.Selection`.

    Attributes:
        dims: Number of spatial axes.
        modality: MRI, CT, X-ray, or colour pictures.
        channel_names: Names of the input channels, in order.
        labels: Labels that the network predicts, one per channel of its voxel output.
        spacing_mm: Spacing of the grid that the network works on.
        normalisation: Normalisation of each channel.
        tile_shape: Shape of a tile in voxels.
        batch_size: Number of tiles of a training step.
        architecture: Shape of the network.
        lesion_fraction: Share of lesion voxels (the prior π).
        activation: Function that converts logits to probabilities.
        candidate_rule: Rule that finds candidates.
        link: Focal loss whose effect on the outputs is undone. None if they are used as they are.
        anchors: Anchors of a detector. None for a segmentation network.
        prepare_extra: Further transforms of a prepared image (`data.transforms`).
        may_lack: True if a scan may lack any one channel.
        flip_axes: Axes along which tiles are flipped in training, and scans in mirrored views. None
            means the axes that suit the modality (`allowed_flips`).
        raster_mm: Assumed pixel size of radiographs that state none. None means `spacing_mm`.
        nan_background: True if NaN voxels of a scan are background.
        grid_of_image: True if channels of equal shape and spacing are on the first channel's grid.
        nnunet: Preprocessing of a model that nnU-Net trained. `spacing_mm`, `normalisation` and
            `tile_shape` then only describe the model.
        network_steps: Number of steps after which a network ends, so that the remaining minutes
            train further ones. None for a single network.
        reasons: A sentence for each decision.
        schema_version: Version of the `plan.json` that it was read from. Files of version 1 also
            contain the selection.
    """

    dims: Annotated[int, Field(ge=2, le=3)]
    modality: Modality
    channel_names: tuple[str, ...]
    labels: Labels
    spacing_mm: tuple[Millimetres, ...]
    normalisation: tuple[Normalisation, ...]
    tile_shape: tuple[Voxels, ...]
    batch_size: Voxels = field(metadata=_MAY_DIFFER)
    architecture: Architecture = field(metadata=_MAY_DIFFER)
    lesion_fraction: Annotated[float, Field(gt=0, lt=1)] = field(metadata=_MAY_DIFFER)
    activation: Activation = "sigmoid"
    candidate_rule: CandidateRule = field(default_factory=CandidateRule, metadata=_MAY_DIFFER)
    link: FocalCorrection | None = None
    anchors: AnchorPlan | None = None
    prepare_extra: tuple[Mapping[str, Any], ...] = ()
    may_lack: bool = field(default=False, metadata=_MAY_DIFFER)
    flip_axes: tuple[Axis, ...] | None = field(default=None, metadata=_MAY_DIFFER)
    raster_mm: Millimetres | None = field(default=None, metadata=_MAY_DIFFER)
    nan_background: bool = field(default=False, metadata=_MAY_DIFFER)
    grid_of_image: bool = field(default=False, metadata=_MAY_DIFFER)
    nnunet: NnunetRecipe | None = None
    network_steps: Annotated[int, Field(ge=1)] | None = field(default=None, metadata=_MAY_DIFFER)
    reasons: Mapping[str, str] = field(default_factory=dict, metadata=_MAY_DIFFER)
    schema_version: Literal[1, 2] = field(default=SCHEMA, compare=False, metadata=_MAY_DIFFER)

    @property
    def has_boxes(self) -> bool:
        """True if the network predicts boxes, as detectors do."""
        return self.anchors is not None

    @property
    def has_voxels(self) -> bool:
        """True if the network predicts probabilities of voxels.

        Of the networks of this package, only `retinanet` predicts none. A user's own network
        predicts them, unless `candidate_rule.source` is "detection".
        """
        # the outputs of the network; only boxes means no voxels
        return HEADS.get(self.architecture.name, (self.candidate_rule.source,)) != ("detection",)

    @property
    def allowed_flips(self) -> tuple[int, ...]:
        """The spatial axes along which tiles may be flipped in training.

        If `flip_axes` is None, these are all axes. A radiograph has none, because left and right,
        and top and bottom, differ in its content.
        """
        if self.flip_axes is not None:
            return self.flip_axes
        return () if self.modality == "xray" else tuple(range(self.dims))

    @property
    def assumed_pixel_mm(self) -> float:
        """The pixel size in mm that is assumed for images without a known pixel size.

        The size is `raster_mm` or, without it, the spacing of the plan's grid.
        """
        return self.raster_mm or self.spacing_mm[0]

    @property
    def anchor_levels(self) -> tuple[AnchorLevel, ...]:
        """The anchor grids of a tile, finest first; empty for a network without anchors.

        Each grid has as many cells along an axis as the tile has strides, and the anchor sizes of
        its level.
        """
        if self.anchors is None:
            return ()
        strides = total_strides(self.architecture.strides)
        levels = [
            AnchorLevel(
                tuple(n // s for n, s in zip(self.tile_shape, strides[stage], strict=True)),
                strides[stage],
                sizes,
            )
            for stage, sizes in zip(self.anchors.stages, self.anchors.sizes, strict=True)
        ]
        return tuple(levels)

    @property
    def box_floor(self) -> float:
        """The lowest score of a detector's box. Boxes below it are dropped.

        If the anchors have no floor, or the network has no anchors, it is the floor of the
        candidate rule.
        """
        if self.anchors is None or self.anchors.floor is None:
            return self.candidate_rule.floor
        return self.anchors.floor

    @property
    def n_voxel_channels(self) -> int:
        """The number of labels for which the network predicts probabilities of voxels.

        The number is 0 for a network that predicts only boxes.
        """
        return len(self.labels) if self.has_voxels else 0

    def with_(self, **changes: Any) -> "Plan":
        """Return a copy of the plan in which the named fields have other values."""
        return replace(self, **changes)

    def differences(self, other: "Plan") -> list[str]:
        """Return the names of decisions that prevent averaging the networks of two plans.

        An ensemble averages the probabilities of its networks. For this, tiles, channels and labels
        must agree. Fields that may differ are marked by `_MAY_DIFFER`, such as the architecture.
        The names of labels may differ too.
        """
        differing = []
        for decision in fields(self):
            ours = getattr(self, decision.name)
            theirs = getattr(other, decision.name)
            if decision.name == "labels":
                theirs = replace(theirs, names=ours.names)  # names may differ
            if not decision.metadata.get("may_differ") and ours != theirs:
                differing.append(decision.name)
        return differing

    def to_json(self) -> str:
        """Return the plan as JSON text for plan.json.

        The text has the present schema version. Labels are separate keys (`_LABEL_KEYS`).
        """
        record = asdict(self)
        labels = record.pop("labels")
        for key, name in _LABEL_KEYS.items():  # key in plan.json, field of the labels
            record[key] = labels[name]
        record["schema_version"] = SCHEMA
        return json.dumps(record, indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str | Path = "plan.json") -> "Plan":
        """Read a plan from JSON text. `where` is the name of the file for messages.

        Version 1 also contains reasons for the selection (`core.Selection`), which are skipped.

        Raises:
            BundleError: If a key is missing or wrong, or if keys contradict each other. The message
                names `where` and the key.
        """
        content = read_object(text, where, BundleError)
        labels = {name: content.pop(key) for key, name in _LABEL_KEYS.items() if key in content}
        # `_FLAT_KEYS`: errors name the keys of the file, which has no object `labels`
        plan = parse_as(cls, {**content, "labels": labels}, where, BundleError, _FLAT_KEYS)
        _require_consistent(plan, where)
        network = dict(to_tuples(plan.architecture.network))
        reasons = {name: why for name, why in plan.reasons.items() if name not in SELECTED}
        return plan.with_(architecture=replace(plan.architecture, network=network), reasons=reasons)


def _require_consistent(plan: Plan, where: str | Path) -> None:
    """Raise `BundleError` if the keys of a plan contradict each other.

    The lengths of tuples must agree, axes and stages must exist, and label values must be distinct.
    The tile must not have more than `_MAX_TILE_VOXELS` voxels.
    """
    architecture = plan.architecture
    anchors = plan.anchors
    n_labels = len(plan.labels)
    n_features = len(architecture.features)
    n_stages = {n_features, len(architecture.strides), len(architecture.kernels)}
    per_stage = (*architecture.strides, *architecture.kernels)  # one number per axis in each
    # these sets have one element if all lengths agree
    n_axes = {plan.dims, len(plan.spacing_mm), len(plan.tile_shape)}
    flips = plan.flip_axes or ()
    is_consistent_by_key = {
        "label_names": len(plan.labels.names) == n_labels,
        "label_values": n_labels > 0 and len(set(plan.labels.values)) == n_labels,
        "regions": len(plan.labels.regions) in (0, n_labels),
        "normalisation": len(plan.normalisation) == len(plan.channel_names),
        "spacing_mm or tile_shape": len(n_axes) == 1,
        "flip_axes": len(set(flips)) == len(flips) and all(axis < plan.dims for axis in flips),
        "tile_shape": prod(plan.tile_shape) <= _MAX_TILE_VOXELS,
        "architecture.strides or kernels": len(n_stages) == len(set(map(len, per_stage))) == 1,
        "architecture.encoder_blocks": len(architecture.encoder_blocks) in (0, n_features),
    }
    if anchors is not None:
        n_levels = len(anchors.stages)
        has_sizes = n_levels > 0 and len(anchors.sizes) == n_levels
        is_consistent_by_key["anchors.stages"] = has_sizes and max(anchors.stages) < n_features
    for key, is_consistent in is_consistent_by_key.items():
        if not is_consistent:
            raise BundleError(
                f"{where}: {key} does not fit the other keys. Restore the file that train wrote."
            )


def to_tuples(value: Any) -> Any:
    """Convert nested lists to tuples, also in dictionaries.

    JSON has only lists. After the conversion, a plan that is read equals the plan that was written.
    """
    if isinstance(value, list | tuple):
        return tuple(map(to_tuples, value))
    if isinstance(value, dict):
        return {key: to_tuples(v) for key, v in value.items()}
    return value
