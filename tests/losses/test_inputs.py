"""What the focal losses refuse, and in which words."""

import pytest
import torch

from lesionseg.errors import ConfigError, ContentError, GeometryError
from lesionseg.losses import sigmoid_focal_loss, softmax_focal_loss

LOGITS, LABELS = torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.int64)


@pytest.mark.parametrize("function", [sigmoid_focal_loss, softmax_focal_loss])
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"reduction": "average"}, "none, mean, sum, per_positive"),
        ({"gamma": -1.0}, "γ"),
        ({"gamma": float("nan")}, "γ"),
        ({"alpha": 1.5}, r"\[0, 1\]"),
        ({"alpha": -0.1}, r"\[0, 1\]"),
        ({"alpha": [0.1, 0.2, 0.3, 0.4, 0.5]}, "3 numbers"),
        ({"normaliser": 0.0}, "above 0"),
        ({"normaliser": 5.0, "reduction": "mean"}, "per_positive"),
    ],
)
def test_refuses_settings_without_meaning(function, setting, message) -> None:
    with pytest.raises(ConfigError):
        function(LOGITS, LABELS, **setting)


@pytest.mark.parametrize("function", [sigmoid_focal_loss, softmax_focal_loss])
@pytest.mark.parametrize("shape", [(2, 5), (1, 4), (2, 4, 1), (2, 2, 4), ()])
def test_refuses_a_target_of_another_shape(function, shape) -> None:
    with pytest.raises(GeometryError):
        function(LOGITS, torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("function", [sigmoid_focal_loss, softmax_focal_loss])
def test_refuses_a_mask_of_another_shape(function) -> None:
    with pytest.raises(GeometryError):
        function(LOGITS, LABELS, valid=torch.ones(2, 1, 4))


@pytest.mark.parametrize("value", [-1, 4, 255])
def test_refuses_labels_that_are_no_class(value: int) -> None:
    labels = LABELS.clone()
    labels[0, 1] = value
    with pytest.raises(ContentError):
        sigmoid_focal_loss(LOGITS, labels)
    with pytest.raises(ContentError):
        softmax_focal_loss(LOGITS, labels)


def test_refuses_targets_that_are_no_probability() -> None:
    for wrong in (-0.1, 0.5, 1.1, float("nan")):
        with pytest.raises(ContentError):
            sigmoid_focal_loss(LOGITS, torch.full((2, 3, 4), wrong))
    with pytest.raises(ContentError):
        sigmoid_focal_loss(LOGITS, torch.full((2, 3, 4), 2))


def test_refuses_label_maps_and_logits_of_the_wrong_kind() -> None:
    with pytest.raises(ContentError):
        sigmoid_focal_loss(LOGITS, LABELS.float())
    with pytest.raises(ContentError):
        softmax_focal_loss(LOGITS.long(), LABELS)
    with pytest.raises(GeometryError):
        softmax_focal_loss(torch.zeros(2, 1, 4), LABELS)
    with pytest.raises(GeometryError):
        sigmoid_focal_loss(torch.zeros(4), torch.zeros(4))
