"""Plans of every network, as large as a row needs them, and one training step of each."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.common.recipe import recipe
from lesionseg.models.build import build_network
from lesionseg.plan.anchor_plan import AnchorPlan
from lesionseg.plan.candidate_rule import SOURCES, CandidateRule
from lesionseg.plan.plan import Architecture, Normalisation, Plan
from lesionseg.training.device.memory_probe import Probe, some_batch
from lesionseg.training.device.step_memory import CONTEXT_GB, StepMemory
from lesionseg.training.step.detection_objective import make_objective
from lesionseg.training.step.optimiser import gradient_norm

NETWORKS = tuple(SOURCES)  # the table of networks that can be planned


def plan_of(name: str, dims: int, features: Sequence[int], side: int, batch: int = 2) -> Plan:
    """A plan of a network whose stages have these features, on tiles of `side` voxels."""
    n = len(features)
    strides = ((1,) * dims, *((2,) * dims,) * (n - 1))
    residual = tuple(min(1 + i, 4) for i in range(n)) if name == "residual_unet" else ()
    sizes = tuple(tuple((s * 2.0**i,) * dims for s in (4, 6, 8)) for i in range(2))
    return Plan(
        dims=dims,
        modality="ct",
        channel_names=("CT",),
        label_values=(1,),
        label_names=("lesion",),
        spacing_mm=(1.0,) * dims,
        normalisation=(Normalisation("zscore"),),
        tile_shape=(side,) * dims,
        batch_size=batch,
        architecture=Architecture(
            name,
            tuple(features),
            strides,
            ((3,) * dims,) * n,
            blocks=1 if residual else 2,
            n_supervised=max(n - 2, 1),
            encoder_blocks=residual,
        ),
        lesion_fraction=0.01,
        anchors=AnchorPlan(stages=(1, 2), sizes=sizes) if name.startswith("retina") else None,
        candidate_rule=CandidateRule(source=SOURCES[name][0]),
    )


def one_step(plan: Plan, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Loss and norm of the gradient of the first step, from the same weights on any device."""
    network = build_network(plan, seed=0).to(device).train()
    chosen = recipe().learning
    objective = make_objective(chosen.loss, chosen.detection, plan)
    batch = some_batch(plan, plan.batch_size, device)
    targets = objective.targets(batch)
    normalisers = torch.ones_like(targets.counts())
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        output = network(batch["image"])
    loss = torch.stack(list(objective.terms(output, targets, normalisers).values())).sum()
    loss.backward()
    return float(loss), float(gradient_norm(network))


def probe(device: torch.device, dtype: torch.dtype) -> Probe:
    """Trial steps as `train` takes them before its first."""
    chosen = recipe().learning
    return Probe(
        build=build_network,
        teach=lambda plan: make_objective(chosen.loss, chosen.detection, plan),
        settings=chosen.trainer,
        optimiser=chosen.optimiser,
        device=device,
        dtype=dtype,
    )


def predicted_gb(plan: Plan, *, half: bool) -> float:
    """What the planner says torch gives out in a step, in 10⁹ bytes: all but the driver's share."""
    chosen = recipe().learning
    memory = StepMemory(
        teach=partial(make_objective, chosen.loss, chosen.detection),
        optimiser=chosen.optimiser,
        half=half,
    )
    return memory(plan) - CONTEXT_GB


def read_plan(run: Path) -> Plan:
    """The plan of a run."""
    return Plan.from_json((run / "plan.json").read_text())
