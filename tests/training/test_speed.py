"""The fastest way to train, told from timings; and what compiling leaves of names."""

import pytest
import torch
from torch import nn

from lesionseg.errors import ConfigError
from lesionseg.losses import FocalLoss
from lesionseg.losses.detection import DetectionLoss
from lesionseg.models import build_network
from lesionseg.training import module as training_module
from lesionseg.training import speed
from lesionseg.training.detection_objective import make_objective
from lesionseg.training.settings import TrainerSettings
from lesionseg.training.speed import Speed, choose_speed, time_step, timed_choice, wants_compiling

FIRST, LAST = torch.contiguous_format, torch.channels_last


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)


def clock(first, last, compiled):
    """Seconds of a step by layout, or compiled; an exception in place of them is raised."""

    def seconds(network):
        if network._compiled_call_impl is not None:
            if isinstance(compiled, Exception):
                raise compiled
            return compiled
        is_last = network.conv.weight.is_contiguous(memory_format=LAST)
        return last if is_last else first

    return seconds


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize(
    ("times", "compiling", "expected"),
    [
        ((2.0, 1.0, 0.5), None, Speed(LAST, compiled=True)),
        ((1.0, 2.0, 0.5), None, Speed(FIRST, compiled=True)),
        ((1.0, 2.0, 1.5), None, Speed(FIRST, compiled=False)),
        ((1.0, 2.0, RuntimeError("no compiler")), None, Speed(FIRST, compiled=False)),
        ((1.0, 2.0, 0.1), False, Speed(FIRST, compiled=False)),
        ((1.0, 2.0, 9.0), True, Speed(FIRST, compiled=True)),
    ],
)
def test_the_fastest_is_chosen(times, compiling, expected):
    network = Conv()
    assert timed_choice(network, clock(*times), (FIRST, LAST), compiling) == expected
    assert network._compiled_call_impl is None
    assert network.conv.weight.is_contiguous()


def test_only_long_budgets_are_worth_a_try():
    assert wants_compiling(TrainerSettings(max_minutes=60)) is None
    assert wants_compiling(TrainerSettings(max_minutes=5)) is False
    assert wants_compiling(TrainerSettings(max_minutes=60, max_steps=100)) is False
    assert wants_compiling(TrainerSettings(max_minutes=5, compile=True)) is True
    assert wants_compiling(TrainerSettings(max_minutes=60, compile=False)) is False
    with pytest.raises(ConfigError, match=r"trainer\.compile"):
        TrainerSettings(max_minutes=60, compile="yes")


def test_a_cpu_compiles_only_when_told(make_plan):
    plan, cpu = make_plan(), torch.device("cpu")
    objective = make_objective(FocalLoss(), DetectionLoss(), plan)
    network = build_network(plan)
    for chosen, compiled in (("auto", False), (True, True)):
        settings = TrainerSettings(max_minutes=60, compile=chosen)
        found = choose_speed(network, objective, plan, settings, cpu, torch.float32)
        assert found == Speed(LAST, compiled=compiled)
    assert time_step(network, objective, plan, cpu, torch.float32) > 0
    assert all(p.grad is None for p in network.parameters())


def test_a_compiled_network_has_the_same_names_and_weights(train, tmp_path, monkeypatch):
    compiled = []

    def compile_(network, backend):
        assert backend == speed.BACKEND
        network._compiled_call_impl = network._call_impl
        compiled.append(network)

    monkeypatch.setattr(nn.Module, "compile", compile_)
    assert training_module.BACKEND == "inductor"
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
