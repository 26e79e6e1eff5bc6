"""Training on a pretend card: devices are not mixed, results equal the CPU's, and no step waits."""

from datetime import timedelta

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import default_collate

from lesionseg.models.build import build_network
from lesionseg.training.callbacks import FocalStatistics
from lesionseg.training.fit import fit
from lesionseg.training.objective import make_objective
from tests.gpu.plans import ARCHITECTURES, Cubes, card_config, card_plan
from tests.gpu.pretend_cuda import pretend_cards
from tests.training.conftest import make_module, weights

LOSSES = ("dice_focal", "focal", "cross_entropy", "dice_cross_entropy", "lesion_balanced", "custom")
STEPS = [
    *((name, f"loss={loss}", {}) for name in ("unet", "retina_unet") for loss in LOSSES),
    ("residual_unet", "loss=lesion_balanced", {}),
    ("retina_unet", "loss.lesion_weight=0.5", {}),
    ("retinanet", "detection.hard_negatives=false", {}),
    ("retinanet", "detection.hard_negatives=true", {}),
    ("unet", "loss=lesion_balanced", {"activation": "softmax"}),
    ("unet", "loss.alpha=[0.2,0.3,0.4]", {"activation": "softmax", "labels": ("a", "b")}),
    ("unet", "loss.alpha=[0.3,0.4]", {"labels": ("a", "b")}),
    ("unet", "loss=lesion_balanced", {"labels": ("a", "b")}),
    ("unet", "loss=lesion_balanced", {"labels": ("a", "b"), "regions": ((1, 2), (2,))}),
]


def make_outputs(plan, cfg, device):
    """Return an objective, the targets of a batch, the output in fp32, and the network."""
    network = build_network(plan).to(device).train()
    objective = make_objective(plan, cfg.loss, cfg.detection)
    tiles = Cubes()
    batch = objective.batch_targets(default_collate([tiles[0], tiles[1]]))
    batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
    unannotated = torch.zeros(2, len(plan.labels), dtype=torch.bool, device=device)
    output = objective.mask_unannotated(network(batch["image"]), unannotated)
    return objective, objective.targets(batch), output, network


def compute_gradient(objective, targets, output, network):
    """Return the terms of the loss, and the gradient of all weights together."""
    terms = objective.terms(output, targets, torch.ones_like(targets.counts()))
    torch.stack(list(terms.values())).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    return {**terms, "gradient": gradient}


@pytest.mark.parametrize(("name", "setting", "changes"), STEPS)
def test_step_on_a_card_equals_that_of_the_cpu_without_waits(name, setting, changes):
    plan = card_plan(name, **changes)
    cfg = card_config(f"model={name}", f"model.activation={plan.activation}", setting)
    expected = compute_gradient(*make_outputs(plan, cfg, "cpu"))
    with pretend_cards() as cards:
        objective, targets, output, network = make_outputs(plan, cfg, "cuda")
        objective.terms(output, targets, torch.ones_like(targets.counts()))  # makes constants
        before = len(cards.waits)
        on_card = compute_gradient(objective, targets, output, network)
        assert cards.waits[before:] == []
        found = {key: value.detach().cpu() for key, value in on_card.items()}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["unet", "retinanet"])
def test_statistics_of_a_step_on_a_card_equal_those_of_the_cpu_and_wait_once(name):
    plan = card_plan(name)
    cfg = card_config(f"model={name}")

    def observed(device):
        objective, targets, output, network = make_outputs(plan, cfg, device)
        statistics = FocalStatistics()
        statistics.observe(objective.finest_logits(output, targets))
        compute_gradient(objective, targets, output, network)
        return statistics

    expected = observed("cpu").latest()
    assert len(expected) == 3
    with pretend_cards() as cards:
        observed("cuda")  # makes constants
        before = len(cards.waits)
        statistics = observed("cuda")
        waits_before_reading = len(cards.waits)
        found = statistics.latest()
        assert len(cards.waits) == waits_before_reading + 1
        own = [wait for wait in cards.waits[before:-1] if "callbacks.py" in wait.place]
    assert own == []
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


class WaitCounter(pl.Callback):
    """A callback that keeps the number of waits before each step."""

    def __init__(self, cards):
        self.cards = cards
        self.n_waits = []

    def on_train_batch_start(self, *_):
        self.n_waits.append(len(self.cards.waits))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_step_waits_only_for_the_previous_step(name, tmp_path, monkeypatch):
    # no checkpoint, which a slow machine would write
    monkeypatch.setattr("lesionseg.training.fit.CHECKPOINT_EVERY", timedelta(days=1))
    plan = card_plan(name)
    cfg = card_config(f"model={name}", "trainer.max_steps=3")
    with pretend_cards() as cards:
        counter = WaitCounter(cards)
        result = fit(make_module(plan, cfg), Cubes(), tmp_path, callbacks=[counter])
        second = cards.waits[counter.n_waits[1] : counter.n_waits[2]]
    assert (result.device, result.steps, result.skipped) == ("cuda", 3, 0)
    # the flag of the previous step
    assert [wait.kind for wait in second] == ["event"], second


class BadCubes(Cubes):
    """Tiles of which those of the second step contain only NaN."""

    def __getitem__(self, number):
        tile = super().__getitem__(number)
        if number in (2, 3):
            tile["image"] = torch.full_like(tile["image"], torch.nan)
        return tile


@pytest.mark.parametrize("bf16", [True, False])
def test_step_without_finite_gradient_is_skipped_and_counted(bf16, tmp_path):
    module = make_module(card_plan("unet"), card_config("trainer.max_steps=3"))
    with pretend_cards(bf16=bf16):
        result = fit(module, BadCubes(), tmp_path)
        assert weights(result.network).isfinite().all()
    assert (result.steps, result.skipped) == (3, 1)
