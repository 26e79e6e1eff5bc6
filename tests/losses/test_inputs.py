"""What the focal losses refuse."""

import pytest
import torch

from lesionseg.errors import ConfigError, ContentError, GeometryError
from lesionseg.losses import sigmoid_focal_loss, softmax_focal_loss

LOGITS, LABELS = torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.int64)
BOTH = pytest.mark.parametrize("function", [sigmoid_focal_loss, softmax_focal_loss])


@BOTH
@pytest.mark.parametrize(
    "setting",
    [
        {"reduction": "average"},
        {"gamma": -1.0},
        {"gamma": float("nan")},
        {"alpha": 1.5},
        {"alpha": -0.1},
        {"alpha": [0.1, 0.2, 0.3, 0.4, 0.5]},
        {"normaliser": 0.0},
        {"normaliser": 5.0, "reduction": "mean"},
    ],
)
def test_settings_without_meaning(function, setting) -> None:
    with pytest.raises(ConfigError):
        function(LOGITS, LABELS, **setting)


@BOTH
@pytest.mark.parametrize("shape", [(2, 5), (1, 4), (2, 4, 1), (2, 2, 4), ()])
def test_a_target_or_a_mask_of_another_shape(function, shape) -> None:
    with pytest.raises(GeometryError):
        function(LOGITS, torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(GeometryError):
        function(LOGITS, LABELS, valid=torch.ones(shape))


@BOTH
@pytest.mark.parametrize("value", [-1, 4, 255])
def test_labels_that_are_no_class(function, value: int) -> None:
    labels = LABELS.clone()
    labels[0, 1] = value
    with pytest.raises(ContentError):
        function(LOGITS, labels)
    assert torch.isfinite(function(LOGITS, labels, valid=labels != value))


@pytest.mark.parametrize("value", [-0.1, 0.5, 1.1, float("nan"), 2])
def test_targets_that_are_not_0_or_1(value: float) -> None:
    with pytest.raises(ContentError):
        sigmoid_focal_loss(LOGITS, torch.full((2, 3, 4), value))


@pytest.mark.parametrize(
    ("function", "logits", "labels", "error"),
    [
        (sigmoid_focal_loss, LOGITS, LABELS.float(), ContentError),
        (softmax_focal_loss, LOGITS.long(), LABELS, ContentError),
        (softmax_focal_loss, LOGITS[:, :1], LABELS, GeometryError),
        (softmax_focal_loss, LOGITS, LOGITS, GeometryError),
        (sigmoid_focal_loss, torch.zeros(4), torch.zeros(4), GeometryError),
    ],
)
def test_label_maps_and_logits_of_the_wrong_kind(function, logits, labels, error) -> None:
    with pytest.raises(error):
        function(logits, labels)
