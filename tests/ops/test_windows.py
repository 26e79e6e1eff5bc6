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


def test_symmetric_and_falling_outwards():
    weight = gaussian_weight((9, 10))
    assert torch.equal(weight, weight.flip(0))
    assert torch.equal(weight, weight.flip(1))
    assert (weight[4, 5:].diff() <= 0).all()
