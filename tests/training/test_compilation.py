"""`trainer.compile`: when a step is compiled, equality with the eager step, and the fallback."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils.data import default_collate

from lesionseg.config import TrainerConfig
from lesionseg.losses import DiceFocalLoss
from lesionseg.training import compilation
from lesionseg.training.compilation import (
    compile_network_and_loss,
    keep_compiled_if_possible,
    should_compile,
)
from tests.gpu.plans import Cubes, card_config, card_plan, make_step
from tests.training.conftest import weights

# torch's own code is not this strict
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

LOSSES = ("lesion_balanced", "dice_focal")


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    yield
    torch.compiler.reset()


def two_tiles(objective):
    """Return a batch of a tile with two lesions and one without, with all targets."""
    return objective.batch_targets(default_collate([Cubes()[0], Cubes()[1]]))


def loss_and_gradient(step):
    """Return the terms of the loss of two tiles, and the gradient of all weights."""
    network, objective, _ = step
    network.zero_grad()
    batch = two_tiles(objective)
    targets = objective.targets(batch)
    output = network(batch["image"])
    terms = objective.terms(output, targets, torch.full_like(targets.counts(), 20.0))
    torch.stack(list(terms.values())).sum().backward()
    found = {name: term.detach() for name, term in terms.items()}
    found["gradient"] = torch.cat([p.grad.flatten() for p in network.parameters()])
    return found


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_is_traced_as_one_graph_and_equals_the_eager_loss(loss):
    """The backend runs what was traced. A break of the graph would be a wait of the host."""
    step = make_step(card_plan("unet"), card_config(f"loss={loss}"))
    expected = loss_and_gradient(step)
    step[1].loss.compile(backend="eager", fullgraph=True, dynamic=False)
    assert_equal(loss_and_gradient(step), expected)


def test_traced_step_equals_the_eager_step():
    step = make_step(card_plan("unet"), card_config("loss=dice_focal"))
    expected = loss_and_gradient(step)
    compile_network_and_loss(*step, backend="eager")
    assert_equal(loss_and_gradient(step), expected)


@pytest.mark.slow
def test_training_with_a_compiled_step_equals_the_eager_training(train, tmp_path):
    """The trainer of Lightning calls the network and the loss that `setup` compiled in place."""
    networks = []
    for compiled in (False, True):
        run = tmp_path / str(compiled)
        result = train(run_dir=run, max_steps=3, compile=compiled, loss=DiceFocalLoss())
        networks.append(weights(result.network))
    torch.testing.assert_close(*networks, rtol=1e-3, atol=1e-4)


LONG = {"max_minutes": 11, "max_steps": None}


@pytest.mark.parametrize(
    ("setting", "device", "budget", "missing", "expected"),
    [
        ("auto", "cuda", LONG, "", True),
        ("auto", "cuda", LONG, "gcc", False),
        ("auto", "cuda", {"max_minutes": 10, "max_steps": None}, "", False),
        ("auto", "cuda", {"max_minutes": None, "max_steps": 250_000}, "", True),
        ("auto", "cuda", {"max_minutes": None, "max_steps": 1_000}, "", False),
        ("auto", "cpu", LONG, "", False),
        (True, "cpu", LONG, "", True),
        (False, "cuda", LONG, "", False),
    ],
)
def test_auto_compiles_long_trainings_on_a_gpu(
    monkeypatch, setting, device, budget, missing, expected
):
    monkeypatch.setattr(compilation, "find_missing_compiler", lambda device: missing)
    assert should_compile(TrainerConfig.of(compile=setting, **budget), device) == expected


def test_failed_compilation_is_logged_once_and_the_step_stays_eager(caplog):
    def broken(graph, inputs):
        raise RuntimeError("no Triton")

    step = make_step(card_plan("unet"), card_config("loss=dice_focal"))
    expected = loss_and_gradient(step)
    step[0].zero_grad()
    compile_network_and_loss(*step, backend=broken)
    keep_compiled_if_possible(*step[:2], nullcontext)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("lesionseg")]
    assert len(ours) == 1
    assert "no Triton" in ours[0]
    assert all(p.grad is None for p in step[0].parameters())
    found = loss_and_gradient(step)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_trial_of_the_compilation_changes_neither_weights_nor_random_numbers():
    step = make_step(card_plan("unet"), card_config("loss=dice_focal"))
    before = {name: value.clone() for name, value in step[0].state_dict().items()}
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    compile_network_and_loss(*step, backend="eager")
    keep_compiled_if_possible(*step[:2], nullcontext)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, before[name]) for name, value in step[0].state_dict().items())
    assert all(p.grad is None for p in step[0].parameters())
