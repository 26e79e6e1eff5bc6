"""Settings that make no sense are refused by name."""

import pytest

from lesionseg.errors import ConfigError
from lesionseg.training.settings import OptimiserSettings, TrainerSettings


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_minutes": 0},
        {"max_minutes": "abc"},  # null by default: the command line lets it pass
        {"max_steps": 0},
        {"accumulate": 0},
        {"precision": "8-mixed"},
        {"accelerator": "gpuu"},
        {"ema_decay": 1.0},
        {"gradient_clip": 0.0},
        {"workers": -1},
        {"checkpoint_every_minutes": -1},
        {"log_every": 0},
        {"select": "first"},
        {"memory_gb": 0.0},
        {"validate_every_minutes": 0.0},
    ],
)
def test_a_wrong_trainer_setting_is_named(wrong):
    with pytest.raises(ConfigError, match=f"trainer.{next(iter(wrong))}"):
        TrainerSettings(**{"max_steps": 1, **wrong})


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


@pytest.mark.parametrize(("devices", "one"), [(1, True), ("1", True), (4, False), ("auto", False)])
def test_devices_are_a_number_or_all_of_them(devices, one):
    assert TrainerSettings(max_steps=1, devices=devices).has_one_device == one


@pytest.mark.parametrize("devices", [[], [-1], "0,1", 0, -1, "cuda:1", None])
def test_devices_that_are_no_number_and_no_list_are_refused_with_the_way_to_name_them(devices):
    with pytest.raises(ConfigError, match=r"trainer\.devices"):
        TrainerSettings(max_steps=1, devices=devices)
