"""Settings that make no sense are refused by name."""

import pytest
import torch
from torch import nn

from lesionseg.errors import ConfigError
from lesionseg.training.settings import OptimiserSettings, TrainerSettings
from lesionseg.training.step.optimiser import make_optimiser, set_learning_rate


def test_training_without_an_end_is_refused():
    with pytest.raises(ConfigError, match="Nothing says when training ends"):
        TrainerSettings()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_minutes": 0},
        {"max_minutes": "abc"},  # null by default: the command line lets it pass
        {"max_steps": 0},
        {"steps_per_epoch": 0},
        {"accumulate": 0},
        {"precision": "8-mixed"},
        {"accelerator": "gpuu"},
        {"ema_decay": 1.0},
        {"gradient_clip": 0.0},
        {"workers": -1},
        {"checkpoint_every_minutes": -1},
        {"log_every": 0},
        {"budget": "endless"},
        {"memory_gb": 0.0},
        {"validate_every_minutes": 0.0},
    ],
)
def test_a_wrong_trainer_setting_is_named(wrong):
    with pytest.raises(ConfigError, match=f"trainer.{next(iter(wrong))}"):
        TrainerSettings(**{"max_steps": 1, **wrong})


def test_the_best_weights_are_only_asked_for_where_something_is_validated():
    with pytest.raises(ConfigError, match=r"trainer\.select.*validate_every_minutes=10"):
        TrainerSettings(max_steps=1, select="best")
    TrainerSettings(max_steps=1, select="best", validate_every_minutes=1.0)
    TrainerSettings(max_steps=1, select="last")


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "lion"},
        {"schedule": "flat"},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"weight_decay": -1.0},
        {"momentum": 1.0},
        {"beta2": 1.0},
        {"warmup_fraction": 1.0},
    ],
)
def test_a_wrong_optimiser_setting_is_named(wrong):
    with pytest.raises(ConfigError, match=f"optim.{next(iter(wrong))}"):
        OptimiserSettings(**wrong)


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_weight_decay_falls_on_kernels_only(name, kind):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(2, 2))
    optimiser = make_optimiser(network, OptimiserSettings(name=name, weight_decay=0.1))
    assert isinstance(optimiser, kind)
    decay = {id(p): g["weight_decay"] for g in optimiser.param_groups for p in g["params"]}
    assert {decay[id(p)] for p in network.parameters() if p.ndim > 1} == {0.1}
    assert {decay[id(p)] for p in network.parameters() if p.ndim <= 1} == {0.0}


def test_adamw_takes_both_betas():
    settings = OptimiserSettings(momentum=0.8, beta2=0.99)
    optimiser = make_optimiser(nn.Conv2d(1, 1, 1), settings)
    assert {group["betas"] for group in optimiser.param_groups} == {(0.8, 0.99)}


def test_the_learning_rate_is_set_for_all_weights():
    optimiser = make_optimiser(nn.Conv2d(1, 1, 1), OptimiserSettings())
    assert set_learning_rate(optimiser, 0.5) == 0.5
    assert [group["lr"] for group in optimiser.param_groups] == [0.5, 0.5]


@pytest.mark.parametrize(("devices", "one"), [(1, True), ("1", True), (4, False), ("auto", False)])
def test_devices_are_a_number_or_all_of_them(devices, one):
    assert TrainerSettings(max_steps=1, devices=devices).has_one_device == one


@pytest.mark.parametrize("devices", [[], [1, 1], [-1], "0,1", 0, -1, "cuda:1", None, "²"])
def test_devices_that_are_no_number_and_no_list_are_refused_with_the_way_to_name_them(devices):
    with pytest.raises(ConfigError, match=r"trainer\.devices.*CUDA_VISIBLE_DEVICES=2,3"):
        TrainerSettings(max_steps=1, devices=devices)
