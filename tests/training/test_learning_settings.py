import pytest

from lesionseg.data.sampling import SamplingSettings
from lesionseg.errors import ConfigError
from lesionseg.losses import FocalLoss
from lesionseg.training.learning_settings import Learning
from lesionseg.training.settings import TrainerSettings


def learning(hard_share=0.2, **trainer):
    return Learning(
        FocalLoss(),
        TrainerSettings(max_steps=1, **trainer),
        SamplingSettings(hard_share=hard_share),
    )


def test_hard_background_is_collected_on_one_device():
    with pytest.raises(ConfigError, match=r"hard_share.*devices=2"):
        learning(devices=2)
    assert learning(hard_share=0.0, devices=2).trainer.devices == 2


def test_hard_background_must_be_known_before_its_tiles_are_read():
    with pytest.raises(ConfigError, match=r"workers=8.*steps_per_epoch above 16"):
        learning(workers=8, steps_per_epoch=16)
    assert learning(workers=8, steps_per_epoch=17).trainer.workers == 8
