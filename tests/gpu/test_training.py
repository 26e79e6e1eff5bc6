"""Training on a pretend card: no devices are mixed, numbers are the CPU's, and nothing waits."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import default_collate

from lesionseg.config import TrainConfig
from lesionseg.models.build import build_network
from lesionseg.plan.plan import Plan
from lesionseg.training.fit import fit
from lesionseg.training.objective import Objective, Targets, make_objective
from tests.gpu.plans import ARCHITECTURES, Cubes, card_config, card_plan
from tests.gpu.pretend_cuda import Cards, pretend_cards

# Waits of the host in a step that is not logged, by network; the flag of the step before it is
# read by an event and is not among them
MOST_WAITS = dict.fromkeys(ARCHITECTURES, 0)
LOSSES = ("dice_focal", "focal", "cross_entropy", "dice_cross_entropy", "lesion_balanced", "custom")
STEPS = [
    *((name, f"loss={loss}", {}) for name in ("unet", "retina_unet") for loss in LOSSES),
    ("residual_unet", "loss=dice_focal", {}),
    ("retinanet", "detection.hard_negatives=false", {}),
    ("retinanet", "detection.hard_negatives=true", {}),
    ("unet", "loss=dice_focal", {"activation": "softmax"}),
    ("unet", "loss.alpha=[0.2,0.3,0.4]", {"activation": "softmax", "labels": ("a", "b")}),
    ("unet", "loss.alpha=[0.3,0.4]", {"labels": ("a", "b")}),
    ("unet", "loss=lesion_balanced", {"labels": ("a", "b")}),
    ("unet", "loss=dice_focal", {"labels": ("a", "b"), "regions": ((1, 2), (2,))}),
]


def forward(plan: Plan, cfg: TrainConfig, device: str) -> tuple[Objective, Targets, Any, Any]:
    """Return an objective, the targets of a batch, the output in fp32, and the network."""
    network = build_network(plan).to(device).train()
    objective = make_objective(plan, cfg)
    tiles = Cubes()
    batch = objective.batch_targets(default_collate([tiles[0], tiles[1]]))
    batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
    unannotated = torch.zeros(2, len(plan.labels), dtype=torch.bool, device=device)
    output = objective.mask_unannotated(network(batch["image"]), unannotated)
    return objective, objective.targets(batch), output, network


def learn(
    objective: Objective, targets: Targets, output: Any, network: nn.Module
) -> dict[str, torch.Tensor]:
    """Return the terms of the loss, and the gradient of all weights together."""
    terms = objective.terms(output, targets, torch.ones_like(targets.counts()))
    torch.stack(list(terms.values())).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    return {**terms, "gradient": gradient}


@pytest.mark.parametrize(("name", "setting", "changes"), STEPS)
def test_a_step_computes_what_the_cpu_does_and_waits_for_nothing(
    name: str, setting: str, changes: dict[str, Any]
) -> None:
    plan = card_plan(name, **changes)
    cfg = card_config(f"model={name}", f"model.activation={plan.activation}", setting)
    expected = learn(*forward(plan, cfg, "cpu"))
    with pretend_cards() as cards:
        objective, targets, output, network = forward(plan, cfg, "cuda")
        objective.terms(output, targets, torch.ones_like(targets.counts()))  # makes constants
        before = len(cards.waits)
        on_card = learn(objective, targets, output, network)
        assert cards.waits[before:] == []
        found = {key: value.detach().cpu() for key, value in on_card.items()}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value.detach(), rtol=1e-3, atol=1e-4)


class Marks(pl.Callback):
    """Notes how many waits there were at the beginning of each step."""

    def __init__(self, cards: Cards) -> None:
        self.cards = cards
        self.n_waits: list[int] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.n_waits.append(len(self.cards.waits))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_step_of_a_training_waits_for_the_step_before_it_alone(name: str, tmp_path) -> None:
    plan, cfg = card_plan(name), card_config(f"model={name}", "trainer.max_steps=3")
    with pretend_cards() as cards:
        marks = Marks(cards)
        result = fit(build_network(plan), plan, Cubes(), cfg, tmp_path, callbacks=[marks])
        second = cards.waits[marks.n_waits[1] : marks.n_waits[2]]
    assert (result.device, result.steps, result.skipped) == ("cuda", 3, 0)
    assert [wait.kind for wait in second].count("event") == 1
    assert len(second) - 1 <= MOST_WAITS[name], cards.by_place()


@pytest.mark.parametrize("bf16", [True, False])
def test_a_step_without_finite_gradient_is_left_out_and_counted(bf16: bool, tmp_path) -> None:
    class Bad(Cubes):
        def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
            tile = super().__getitem__(number)
            if number in (2, 3):  # of the second step
                tile["image"] = torch.full_like(tile["image"], torch.nan)
            return tile

    class Weights(pl.Callback):
        def __init__(self) -> None:
            self.seen: list[torch.Tensor] = []

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            flat = [p.detach().flatten() for p in module.network.parameters()]
            self.seen.append(torch.cat(flat).cpu())

    plan, cfg, weights = card_plan("unet"), card_config("trainer.max_steps=3"), Weights()
    with pretend_cards(bf16=bf16):
        result = fit(build_network(plan), plan, Bad(), cfg, tmp_path, callbacks=[weights])
    assert (result.steps, result.skipped) == (3, 1)
    assert torch.equal(weights.seen[0], weights.seen[1])
    assert not torch.equal(weights.seen[1], weights.seen[2])
    assert weights.seen[2].isfinite().all()
