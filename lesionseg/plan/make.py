"""From a fingerprint to a plan: the rules in their order, each decision with its reason."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from lesionseg.core import Dataset
from lesionseg.plan import rules
from lesionseg.plan.anchor_plan import AnchorPlan
from lesionseg.plan.decisions import (
    DatasetGrid,
    allowed_budget,
    budget_for_lesions,
    candidate_source,
    check_axes,
    check_regions,
    chosen_anchors,
    chosen_architecture,
    chosen_batch,
    chosen_scales,
    chosen_spacing,
    chosen_tile,
    large_heads,
    whole_cells,
)
from lesionseg.plan.fingerprint import Fingerprint
from lesionseg.plan.plan import Architecture, Plan
from lesionseg.plan.plan_overrides import FOLLOWED_CHECKPOINT, refuse_stranger, said_to_follow
from lesionseg.plan.plan_overrides import PlanOverrides as PlanOverrides

logger = logging.getLogger(__name__)


StepMemory = Callable[[Plan], float]


def make_plan(
    fingerprint: Fingerprint,
    dataset: Dataset,
    *,
    memory_gb: float,
    device: str,
    overrides: PlanOverrides | None = None,
    before: Plan | None = None,
    step_memory: StepMemory | None = None,
    pyramid: Architecture | None = None,
) -> Plan:
    """Decide everything that training and inference must agree on.

    The same input gives the same plan.

    Args:
        fingerprint: what the training cases are like.
        dataset: its channels, labels and modality.
        memory_gb: of the device, in 10⁹ bytes.
        device: torch's name: "cpu", "cuda", …
        overrides: what is chosen; None for nothing.
        before: the plan of the network whose weights training starts from; grid, normalisation and
            backbone are its own, the tile too unless it is chosen.
        step_memory: 10⁹ bytes that a training step of a plan takes (`training.device.step_memory`).
        pyramid: the stages of a backbone that is not ours, or whose weights are not.

    Raises `ConfigError` for overrides that do not fit the dataset or `before`, and for a GPU
    without `step_memory`.
    """
    chosen = overrides or PlanOverrides()
    if before is not None:
        chosen = _following(before, chosen, fingerprint, dataset)
    check_axes(chosen, fingerprint.dims)
    check_regions(chosen, dataset)
    draft = _draft(fingerprint, dataset, device, chosen, before)
    grid = DatasetGrid(fingerprint, draft.spacing_mm)

    @cache
    def anchors_of(shape: Architecture) -> rules.Decision[AnchorPlan | None]:
        found = chosen_anchors(fingerprint, draft.spacing_mm, shape, chosen, before)
        return large_heads(found) if device.startswith("cuda") and before is None else found

    def sized(shape: Architecture, tile: Sequence[int], batch: int) -> Plan:
        return draft.with_(
            architecture=shape,
            tile_shape=tuple(tile),
            batch_size=batch,
            anchors=anchors_of(shape).value,
        )

    step_gb = None if step_memory is None else lambda *step: step_memory(sized(*step))
    device_budget = allowed_budget(device, memory_gb, chosen, step_gb, len(dataset.channel_names))
    allowed = budget_for_lesions(grid, device_budget.value, chosen)
    tile = chosen_tile(grid, allowed, chosen)
    if pyramid is not None:
        tile = whole_cells(tile, pyramid, chosen)
    shape = chosen_architecture(tile.value, draft.spacing_mm, allowed, chosen, before)
    if pyramid is not None:
        shape = rules.Decision(
            pyramid,
            f"{pyramid.network.get('_target_', FOLLOWED_CHECKPOINT)}, {len(pyramid.features)} maps",
        )
    batch = chosen_batch(grid, shape.value, tile.value, allowed, chosen)
    anchors = anchors_of(shape.value)
    plan = sized(shape.value, tile.value, batch.value).with_(
        reasons={
            **draft.reasons,
            "budget": device_budget.reason,
            "tile_shape": tile.reason,
            "architecture": shape.reason,
            "batch_size": batch.reason,
            **({"anchors": anchors.reason} if anchors.value else {}),
        }
    )
    if step_memory is not None and device.startswith("cuda"):
        reason = f"a training step takes about {step_memory(plan):.1f} GB, by prediction"
        plan = plan.with_(reasons={**plan.reasons, "memory": reason})
    return (
        plan
        if before is None
        else said_to_follow(plan, chose_tile=bool(overrides and overrides.tile_shape))
    )


def _draft(
    fingerprint: Fingerprint,
    dataset: Dataset,
    device: str,
    chosen: PlanOverrides,
    before: Plan | None,
) -> Plan:
    """All of the plan that no tile, network or batch decides, with the reasons for it."""
    spacing = chosen_spacing(fingerprint, device, chosen)
    scales = chosen_scales(fingerprint, before)
    prior = rules.prior(fingerprint.lesion_fraction)
    candidates = rules.candidate_rule(
        fingerprint.lesion_voxels, fingerprint.lesions_per_case, prior.value
    )
    slices = rules.thick_slices(fingerprint.spacings_mm)
    return Plan(
        dims=fingerprint.dims,
        modality=fingerprint.modality,
        channel_names=dataset.channel_names,
        label_values=tuple(r.painted for r in dataset.regions) or tuple(dataset.labels),
        label_names=tuple(r.name for r in dataset.regions) or tuple(dataset.labels.values()),
        regions=tuple(region.values for region in dataset.regions),
        spacing_mm=spacing.value,
        normalisation=tuple(scale.value for scale in scales),
        tile_shape=(),
        batch_size=1,
        architecture=Architecture(chosen.architecture, (), (), ()),
        lesion_fraction=prior.value,
        activation=chosen.activation,
        thick_slices=slices.value,
        tempered=True,
        raster_mm=rules.raster_mm(fingerprint.spacings_mm),
        candidate_rule=replace(
            candidates.value, source=candidate_source(chosen), score=chosen.component_score
        ),
        reasons={
            "spacing_mm": spacing.reason,
            "normalisation": "; ".join(dict.fromkeys(scale.reason for scale in scales)),
            "lesion_fraction": prior.reason,
            "candidate_rule": candidates.reason,
            **({"thick_slices": slices.reason} if slices.reason else {}),
        },
    )


def _following(
    before: Plan, chosen: PlanOverrides, fingerprint: Fingerprint, dataset: Dataset
) -> PlanOverrides:
    """The choices with which the rules come to the grid and the tile of `before`."""
    refuse_stranger(
        before,
        dims=fingerprint.dims,
        modality=fingerprint.modality,
        channel_names=dataset.channel_names,
        architecture=chosen.architecture,
        spacing_mm=chosen.spacing_mm,
        base_features=chosen.base_features,
        stem=chosen.stem,
        layout=chosen.layout,
        network=chosen.spec,
    )
    tile = chosen.tile_shape or before.tile_shape
    return replace(chosen, spacing_mm=before.spacing_mm, tile_shape=tile)
