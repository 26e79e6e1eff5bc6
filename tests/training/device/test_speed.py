"""The fastest way to train, told from timings; and what compiling leaves of names."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lesionseg.errors import ConfigError
from lesionseg.losses import DetectionLoss, FocalLoss
from lesionseg.models import build_network
from lesionseg.training import lightning_module, run_trainer
from lesionseg.training.device import speed
from lesionseg.training.device.speed import (
    CHOICES,
    GRAPHS,
    PLAIN,
    Speed,
    choose_speed,
    time_step,
    timed_choice,
    wanted_modes,
)
from lesionseg.training.settings import TrainerSettings
from lesionseg.training.step.detection_objective import make_objective

FIRST, LAST = torch.contiguous_format, torch.channels_last


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)


def clock(first, last, plain, graphs):
    """Seconds of a step by layout, or compiled; an exception in place of them is raised."""
    compiled = {PLAIN: plain, GRAPHS: graphs}

    def seconds(network, mode):
        assert (network._compiled_call_impl is None) == (mode is None)
        if mode is not None:
            if isinstance(compiled[mode], Exception):
                raise compiled[mode]
            return compiled[mode]
        is_last = network.conv.weight.is_contiguous(memory_format=LAST)
        return last if is_last else first

    return seconds


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize(
    ("times", "asked", "expected"),
    [
        ((2.0, 1.0, 0.5, 0.6), "auto", Speed(LAST, PLAIN)),
        ((2.0, 1.0, 0.5, 0.4), "auto", Speed(LAST, GRAPHS)),
        ((1.0, 2.0, 0.5, 0.6), "auto", Speed(FIRST, PLAIN)),
        ((1.0, 2.0, 1.5, 0.6), "auto", Speed(FIRST, GRAPHS)),
        ((1.0, 2.0, 1.5, 1.1), "auto", Speed(FIRST, None)),
        ((1.0, 2.0, RuntimeError("no compiler"), RuntimeError()), "auto", Speed(FIRST, None)),
        ((1.0, 2.0, 0.9, RuntimeError("no room for graphs")), "auto", Speed(FIRST, PLAIN)),
        ((1.0, 2.0, 0.1, 0.1), False, Speed(FIRST, None)),
        ((1.0, 2.0, 9.0, 0.1), True, Speed(FIRST, PLAIN)),
        ((1.0, 2.0, 0.1, 9.0), "graphs", Speed(FIRST, GRAPHS)),
    ],
)
def test_the_fastest_is_chosen(times, asked, expected):
    network = Conv()
    assert timed_choice(network, clock(*times), (FIRST, LAST), CHOICES[asked]) == expected
    assert network._compiled_call_impl is None
    assert network.conv.weight.is_contiguous()


def test_only_long_budgets_are_worth_a_try():
    assert wanted_modes(TrainerSettings(max_minutes=60)) == (None, PLAIN, GRAPHS)
    assert wanted_modes(TrainerSettings(max_minutes=15)) == (None, PLAIN, GRAPHS)
    assert wanted_modes(TrainerSettings(max_minutes=60, devices=2)) == (None, PLAIN)
    assert wanted_modes(TrainerSettings(max_minutes=60, devices=2, compile="graphs")) == (PLAIN,)
    assert wanted_modes(TrainerSettings(max_minutes=5)) == (None,)
    assert wanted_modes(TrainerSettings(max_minutes=60, max_steps=100)) == (None,)
    assert wanted_modes(TrainerSettings(max_minutes=5, compile=True)) == (PLAIN,)
    assert wanted_modes(TrainerSettings(max_minutes=5, compile="graphs")) == (GRAPHS,)
    assert wanted_modes(TrainerSettings(max_minutes=60, compile=False)) == (None,)
    with pytest.raises(ConfigError, match=r"trainer\.compile"):
        TrainerSettings(max_minutes=60, compile="yes")


def test_a_cpu_compiles_only_when_told(make_plan):
    plan, cpu = make_plan(), torch.device("cpu")
    objective = make_objective(FocalLoss(), DetectionLoss(), plan)
    network = build_network(plan)
    for chosen, compiled in (("auto", None), (True, PLAIN), ("graphs", PLAIN)):
        settings = TrainerSettings(max_minutes=60, compile=chosen)
        found = choose_speed(network, objective, plan, settings, cpu, torch.float32)
        assert found == Speed(LAST, compiled)
    assert time_step(network, objective, plan, cpu, torch.float32) > 0
    assert all(p.grad is None for p in network.parameters())


def test_a_compiled_network_has_the_same_names_and_weights(train, tmp_path, monkeypatch):
    compiled = []

    def compile_(network, backend, mode):
        assert (backend, mode) == (speed.BACKEND, PLAIN)
        network._compiled_call_impl = network._call_impl
        compiled.append(network)

    monkeypatch.setattr(nn.Module, "compile", compile_)
    assert lightning_module.BACKEND == "inductor"
    one, two = (
        train(run_dir=tmp_path / str(c), max_steps=4, compile=c).network for c in (False, True)
    )
    assert len(compiled) == 1
    assert two._compiled_call_impl is None
    assert one.state_dict().keys() == two.state_dict().keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], tensor), name
    left = torch.load(tmp_path / "True" / "checkpoints" / "last.ckpt", weights_only=True)
    assert not any("_orig_mod" in name for name in left["module"])


class Graphed(nn.Module):
    """A network whose outputs lie where the last ones did, as those of a CUDA graph do."""

    def __init__(self, network):
        super().__init__()
        self.network, self.memory = network, None

    def forward(self, image):
        if self.memory is not None:
            self.memory.fill_(torch.nan)
        outputs = self.network(image)
        self.memory = outputs[0].detach()
        return outputs


class Watch(pl.Callback):
    """Keeps the logits that it is shown, and where the gradients lie after each step."""

    def __init__(self):
        self.seen, self.places = [], set()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.watchers.append(lambda logits, targets: self.seen.append(logits))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.places.add(tuple(p.grad.data_ptr() for p in pl_module.network.parameters()))


def test_a_training_with_cuda_graphs_learns_the_same(
    train, squares, make_plan, monkeypatch, tmp_path
):
    """Parts that add up, skipped steps, the weights' average and those who watch are all right."""
    watch, begun, usual = Watch(), [], {"accumulate": 2, "max_steps": 5}
    plain = train(run_dir=tmp_path / "plain", tiles=squares(bad={9}), **usual)
    monkeypatch.setattr(nn.Module, "compile", lambda network, backend, mode: None)
    monkeypatch.setattr(run_trainer, "choose_speed", lambda *_: Speed(LAST, GRAPHS))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    graphed = train(
        run_dir=tmp_path / "graphs",
        tiles=squares(bad={9}),
        network=Graphed(build_network(make_plan())),
        callbacks=[watch],
        **usual,
    )
    assert plain.skipped == graphed.skipped == 1
    for name, tensor in plain.network.state_dict().items():
        assert torch.equal(graphed.network.state_dict()[f"network.{name}"], tensor), name
    assert len(begun) == len(watch.seen) == 10  # before each of both parts' forward passes
    assert sum(bool(logits.isnan().any()) for logits in watch.seen) == 1  # the bad tile's
    assert len(watch.places) == 1  # added to memory of the training's own, not to the graph's


def test_a_layout_that_memory_does_not_suffice_for_is_not_taken():
    seconds = clock(torch.OutOfMemoryError("too large"), 3.0, 9.0, 9.0)

    def raising(network, mode):
        found = seconds(network, mode)
        if isinstance(found, Exception):
            raise found
        return found

    assert timed_choice(Conv(), raising, (FIRST, LAST), CHOICES[False]) == Speed(LAST, None)
