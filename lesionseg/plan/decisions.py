"""Each decision of a plan: as it was chosen or taken over, else by its rule."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Dataset
from lesionseg.errors import ConfigError
from lesionseg.plan import rules, tile_rules
from lesionseg.plan.anchor_plan import AnchorPlan
from lesionseg.plan.anchor_rules import fit_anchors
from lesionseg.plan.candidate_rule import CandidateSource, sources_of
from lesionseg.plan.device_budget import DeviceBudget, StepGb, budget, for_space_to_depth
from lesionseg.plan.fingerprint import Fingerprint
from lesionseg.plan.plan import Architecture, Normalisation, Plan
from lesionseg.plan.plan_overrides import FOLLOWED, SIZES_GB, PlanOverrides, followed_architecture

logger = logging.getLogger(__name__)

# Of a detector on a GPU: at least so many channels, and so many convolutions (Lin et al. 2017)
HEAD_WIDTH, HEAD_DEPTH = 128, 4


@dataclass(frozen=True)
class DatasetGrid:
    """The dataset on the plan's grid."""

    fingerprint: Fingerprint
    spacing_mm: tuple[float, ...]

    @property
    def shapes(self) -> NDArray[np.float64]:
        """Shape of every case `[n, dims]`, resampled."""
        sizes = np.asarray(self.fingerprint.shapes) * np.asarray(self.fingerprint.spacings_mm)
        return np.asarray(np.maximum(np.round(sizes / np.asarray(self.spacing_mm)), 1))

    @property
    def median_shape(self) -> tuple[int, ...]:
        """Median number of voxels along each axis."""
        return tuple(int(n) for n in np.ceil(np.median(self.shapes, axis=0)))

    @property
    def n_voxels(self) -> float:
        """Voxels of all cases together."""
        return float(self.shapes.prod(axis=1).sum())

    @property
    def lesion_voxels(self) -> NDArray[np.float64]:
        """Voxels of every lesion `[n]`: of a ball, in 2-D a disc, of its diameter."""
        dims = self.fingerprint.dims
        unit = np.pi / (6 if dims == 3 else 4)
        diameters = np.asarray(self.fingerprint.diameters_mm, dtype=np.float64)
        return np.asarray(unit * diameters**dims / np.prod(self.spacing_mm))


def check_axes(chosen: PlanOverrides, dims: int) -> None:
    """Refuse spacings and tiles of another number of axes than the dataset's."""
    for name in ("spacing_mm", "tile_shape"):
        value = getattr(chosen, name)
        if value is not None and len(value) != dims:
            raise ConfigError(
                f"{name} has the wrong number of axes.",
                where=f"model.{name}",
                seen=list(value),
                expected=f"{dims} numbers, in array order ({'z, y, x' if dims == 3 else 'y, x'})",
            )


def check_regions(chosen: PlanOverrides, dataset: Dataset) -> None:
    """Refuse a softmax over regions: they overlap."""
    if dataset.regions and chosen.activation == "softmax":
        raise ConfigError(
            "Regions overlap: a softmax cannot learn them.",
            where="model.activation",
            seen=f"softmax for {', '.join(region.name for region in dataset.regions)}",
            remedy="set model.activation=sigmoid, or data.merge_labels=true to learn one label.",
        )


def allowed_budget(
    device: str,
    memory_gb: float,
    chosen: PlanOverrides,
    step_gb: StepGb | None,
    n_channels: int,
) -> rules.Decision[DeviceBudget]:
    """What the device allows, with the architecture, stem and width that were chosen."""
    memory_gb = min(memory_gb, SIZES_GB.get(chosen.size or "", memory_gb))
    found = budget(device, memory_gb, step_gb, n_channels)
    # nnU-Net's presets of residual networks take more than 5 % of a dataset, too
    capped = not (device.startswith("cuda") and chosen.architecture == "residual_unet")
    allowed = replace(found.value, architecture=chosen.architecture, capped=capped)
    if chosen.stem == "space_to_depth":
        allowed = for_space_to_depth(allowed)
    if (base := chosen.base_features) is not None:
        widest = max(allowed.widest * base // allowed.base_features, base)
        allowed = replace(allowed, base_features=base, widest=widest, wider=())
    return replace(found, value=allowed)


def chosen_spacing(
    fingerprint: Fingerprint, device: str, chosen: PlanOverrides
) -> rules.Decision[tuple[float, ...]]:
    """Spacing of the plan's grid in millimetres."""
    if chosen.spacing_mm is not None:
        return rules.Decision(tuple(float(s) for s in chosen.spacing_mm), "chosen by hand")
    found = rules.target_spacing(fingerprint.spacings_mm, fingerprint.diameters_mm)
    coarse = rules.halved_resolution(found.value, fingerprint.diameters_mm, device)
    reason = "; ".join(r for r in (found.reason, coarse.reason) if r)
    return rules.Decision(coarse.value, reason)


def budget_for_lesions(
    grid: DatasetGrid, allowed: DeviceBudget, chosen: PlanOverrides
) -> DeviceBudget:
    """The budget, spent on smaller tiles where the largest would hold several lesions.

    Not where tile or batch are chosen: the one cannot make up for the other then.
    """
    if chosen.tile_shape is not None or chosen.batch_size is not None:
        return allowed
    return tile_rules.for_small_tiles(
        allowed,
        grid.median_shape,
        grid.spacing_mm,
        grid.n_voxels,
        grid.lesion_voxels,
    )


def chosen_tile(
    grid: DatasetGrid, allowed: DeviceBudget, chosen: PlanOverrides
) -> rules.Decision[tuple[int, ...]]:
    """Shape of a tile in voxels of the plan's grid."""
    if chosen.tile_shape is not None:
        return rules.Decision(tuple(int(n) for n in chosen.tile_shape), "chosen by hand")
    return tile_rules.tile_shape(grid.median_shape, grid.spacing_mm, allowed)


def whole_cells(
    tile: rules.Decision[tuple[int, ...]], pyramid: Architecture, chosen: PlanOverrides
) -> rules.Decision[tuple[int, ...]]:
    """The tile, its sides multiples of the coarsest map's stride."""
    stride = tile_rules.total_stride(pyramid)
    whole = tuple(max(round(n / s), 1) * s for n, s in zip(tile.value, stride, strict=True))
    if chosen.tile_shape is not None and whole != tile.value:
        raise ConfigError(
            "The tile does not fit the backbone.",
            where="model.tile_shape",
            seen=list(tile.value),
            expected=f"multiples of {list(stride)}",
            remedy=f"set model.tile_shape={list(whole)}.",
        )
    return replace(tile, value=whole)


def chosen_architecture(
    tile: Sequence[int],
    spacing_mm: Sequence[float],
    allowed: DeviceBudget,
    chosen: PlanOverrides,
    before: Plan | None,
) -> rules.Decision[Architecture]:
    """Stages and features; raises `ConfigError` for a tile that cannot be halved."""
    if before is not None:
        backbone = followed_architecture(before, chosen.architecture, tile)
        return rules.Decision(backbone, FOLLOWED)
    by_hand = chosen.tile_shape is not None and not chosen.spec  # others have rules of their own
    shape = tile_rules.network_shape(
        tile,
        spacing_mm,
        allowed.base_features,
        allowed.widest,
        name=chosen.architecture,
        exact=by_hand,
        stem=allowed.stem,
    )
    if by_hand and len(shape.features) == 1:
        raise ConfigError(
            "A tile of this size cannot be halved once.",
            where="model.tile_shape",
            seen=list(tile),
            expected="sides that are multiples of 16, such as 64",
        )
    shape = tile_rules.widened(shape, tile, allowed)
    shape = replace(shape, network=chosen.spec, layout=chosen.layout or shape.layout)
    if chosen.layout == "nnunet":  # all levels but the two coarsest
        shape = replace(shape, n_supervised=max(len(shape.features) - 2, 1))
    rest = [n // s for n, s in zip(tile, tile_rules.total_stride(shape), strict=True)]
    kind = "anisotropic" if rules.is_anisotropic(spacing_mm) else "all axes alike"
    if shape.stem == "space_to_depth":
        kind += f"; blocks of {list(shape.block)} voxels as channels"
    reason = f"{len(shape.features)} stages, {shape.features[0]} to {shape.features[-1]} features, "
    return rules.Decision(shape, reason + f"coarsest map {rest} voxels wide; {kind}")


def chosen_scales(
    fingerprint: Fingerprint, before: Plan | None
) -> list[rules.Decision[Normalisation]]:
    """Normalisation of each channel."""
    if before is not None:
        return [rules.Decision(scale, FOLLOWED) for scale in before.normalisation]
    for channel in fingerprint.channels:
        if rules.scale_name(channel.name) in rules.UNKNOWN_SCALES:
            logger.warning(
                "The channel %r asks for nnU-Net's scaling of each image to 0..1, which lesionseg "
                "does not have: it is scaled as a channel of any other name. Scale the images "
                "yourself and call the channel noNorm to have it as it is.",
                channel.name,
            )
    return [rules.normalisation(c, fingerprint.dims) for c in fingerprint.channels]


def candidate_source(chosen: PlanOverrides) -> CandidateSource:
    """What candidates are made of: voxels or boxes."""
    return chosen.candidates or sources_of(chosen.architecture)[0]


def chosen_anchors(
    fingerprint: Fingerprint,
    spacing_mm: Sequence[float],
    architecture: Architecture,
    chosen: PlanOverrides,
    before: Plan | None,
) -> rules.Decision[AnchorPlan | None]:
    """Fitted to the lesions' boxes for a detector; none for a network that only segments."""
    if "detection" not in sources_of(architecture.name):
        return rules.Decision(None, "")
    if before is not None and before.anchors is not None:
        found: rules.Decision[AnchorPlan | None] = rules.Decision(before.anchors, FOLLOWED)
    else:
        extents = np.asarray(fingerprint.extents_mm).reshape(-1, fingerprint.dims)
        found = fit_anchors((extents / np.asarray(spacing_mm)).tolist(), architecture)
    if chosen.merge is None or found.value is None:
        return found
    return replace(found, value=replace(found.value, merge=chosen.merge))


def large_heads(found: rules.Decision[AnchorPlan | None]) -> rules.Decision[AnchorPlan | None]:
    """Heads as the paper has them, which a processor is spared."""
    if found.value is None:
        return found
    width = max(found.value.width, HEAD_WIDTH)
    return replace(found, value=replace(found.value, width=width, depth=HEAD_DEPTH))


def chosen_batch(
    grid: DatasetGrid,
    shape: Architecture,
    tile: Sequence[int],
    allowed: DeviceBudget,
    chosen: PlanOverrides,
) -> rules.Decision[int]:
    """Tiles per training step."""
    if chosen.batch_size is not None:
        return rules.Decision(chosen.batch_size, "chosen by hand")
    return tile_rules.batch_size(shape, tile, allowed, grid.n_voxels)
