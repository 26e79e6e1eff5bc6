"""Quality focal and varifocal loss by hand."""

import math

import pytest
import torch

from lesionseg.errors import ConfigError, ContentError, GeometryError
from lesionseg.losses import quality_focal_loss, sigmoid_focal_loss, varifocal_loss


def test_quality_focal_hand_value() -> None:
    x, q = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[0.0, 0.25]])  # p = 0.5, 0.75
    each = quality_focal_loss(x, q, reduction="none")
    expected = [0.25 * math.log(2), 0.25 * (-0.25 * math.log(0.75) - 0.75 * math.log(0.25))]
    torch.testing.assert_close(each, torch.tensor([expected]))


def test_quality_focal_is_least_where_the_score_is_the_quality() -> None:
    x = torch.tensor([[0.4]], requires_grad=True)
    loss = quality_focal_loss(x, torch.sigmoid(x.detach()))
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss == 0
    assert gradient == 0


def test_quality_focal_of_certain_boxes_is_focal_loss() -> None:
    x, q = torch.randn(40, 2), (torch.rand(40, 2) < 0.2).float()
    ours = quality_focal_loss(x, q, beta=1.5)
    torch.testing.assert_close(ours, sigmoid_focal_loss(x, q.long(), alpha=None, gamma=1.5))


def test_varifocal_hand_value() -> None:
    x, q = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[0.0, 0.25]])
    each = varifocal_loss(x, q, reduction="none")
    expected = [
        0.75 * 0.25 * math.log(2),
        0.25 * (-0.25 * math.log(0.75) - 0.75 * math.log(0.25)),
    ]
    torch.testing.assert_close(each, torch.tensor([expected]))


@pytest.mark.parametrize("function", [quality_focal_loss, varifocal_loss])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_and_masked(function, dtype) -> None:
    x = torch.tensor([[-1e4, 1e4, 3.0]], dtype=dtype, requires_grad=True)
    q = torch.tensor([[0.9, 0.0, 0.4]])
    loss = function(x, q, valid=torch.tensor([[True, True, False]]))
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert gradient[0, 2] == 0
    assert function(x[:0], q[:0]) == 0


@pytest.mark.parametrize("function", [quality_focal_loss, varifocal_loss])
def test_gradients_and_refusals(function) -> None:
    x, q = torch.randn(5, 2, dtype=torch.float64, requires_grad=True), torch.rand(5, 2)
    q[q < 0.5] = 0
    assert torch.autograd.gradcheck(lambda x: function(x, q), (x,))
    with pytest.raises(GeometryError):
        function(x, q[:2])
    with pytest.raises(ContentError):
        function(x, q.long())
    with pytest.raises(ConfigError, match="per_positive"):
        function(x, q, reduction="median")
