import pytest
import torch

from lesionseg.ops import gaussian_weight


@pytest.mark.parametrize("shape", [(16,), (8, 13), (32, 64, 64)])
def test_the_centre_weighs_one_and_nothing_weighs_nothing(shape):
    weight = gaussian_weight(shape)
    assert weight.shape == shape
    assert weight.dtype == torch.float32
    assert weight.max() == 1
    assert weight.min() >= 0.001 * 0.999
