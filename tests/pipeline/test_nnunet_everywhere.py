"""An nnU-Net model folder instead of a bundle in `init_from`."""

import numpy as np
import pytest

from lesionseg.config import ModelConfig
from lesionseg.errors import ConfigError
from lesionseg.pipeline.planning import checkpoint_architecture, plan_to_start_from
from tests.inference.nnunet.small_models import SmallModel
from tests.io.dicom_files import grid_of

SHAPE = (12, 18, 20)
GRID = grid_of("SPL", spacing=(2.0, 1.0, 1.0), shape=SHAPE)
VOXELS = np.random.default_rng(0).normal(100, 30, SHAPE)


def test_training_from_the_folder_is_refused_and_a_checkpoint_advised(tmp_path):
    model = SmallModel().write(tmp_path / "results")
    with pytest.raises(ConfigError, match=r"fold_0/checkpoint_final\.pth") as caught:
        plan_to_start_from(str(model))
    advised = str(caught.value).rpartition("such as ")[2].removesuffix(".")
    shape = checkpoint_architecture(ModelConfig.of(init_from=advised), dims=3)
    assert shape is not None
    assert len(shape.features) == 3
