"""All losses: invalid voxels, overlapping classes, the normaliser, and MONAI's losses by name."""

import math
from functools import partial

import monai.losses
import pytest
import torch

from lesionseg.config import LossConfig
from lesionseg.errors import ConfigError
from lesionseg.losses import (
    CrossEntropyLoss,
    CustomLoss,
    DiceCrossEntropyLoss,
    DiceFocalLoss,
    FocalLoss,
    LesionBalancedLoss,
    PositiveAverage,
    make_loss,
    nearest_lesions,
)
from lesionseg.losses.base import count_positives, mask_unannotated, region_target

SHAPE = (2, 6, 7, 8)


def make_from_config(target, activation="sigmoid", **settings):
    return make_loss(LossConfig.model_validate({"_target_": target, **settings}), activation)


LOSSES = {
    "focal": FocalLoss,
    "cross_entropy": CrossEntropyLoss,
    "dice_focal": DiceFocalLoss,
    "dice_cross_entropy": DiceCrossEntropyLoss,
    "lesion_balanced": LesionBalancedLoss,
    "monai": partial(make_from_config, "monai.losses.DiceFocalLoss"),
}
EVERY = pytest.mark.parametrize("name", LOSSES)


def make_scene(channels):
    """Make logits, labels of two classes and lesion ids. The right half is empty."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn((SHAPE[0], channels, *SHAPE[1:]), generator=draw)
    labels = torch.zeros(SHAPE, dtype=torch.uint8)
    labels[0, 1:3, 1:4, 1:3] = 1
    labels[0, 4:6, 5:7, 0:2] = labels[1, 2:4, 2:5, 1:4] = 2
    return logits, labels, labels.int()


def compute_terms(loss, logits, labels, instances, valid):
    if not isinstance(loss, LesionBalancedLoss):
        return loss(logits, labels, valid=valid)
    visible = instances if valid is None else instances.masked_fill(~valid, 0)
    return loss(logits, labels, valid=valid, nearest=nearest_lesions(visible))


def compute_gradient(terms, logits):
    return torch.autograd.grad(torch.stack(list(terms.values())).sum(), logits)[0]


@EVERY
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("lesion", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_terms_are_finite_fp32_scalars_with_a_gradient(name, activation, lesion, dtype):
    """Try tiles with and without lesions, two classes and half precision."""
    logits, labels, instances = make_scene(2 if activation == "sigmoid" else 3)
    logits = logits.to(dtype).requires_grad_()
    loss = LOSSES[name](activation=activation)
    terms = compute_terms(loss, logits, lesion * labels, lesion * instances, None)
    for term in terms.values():
        assert (term.shape, term.dtype) == ((), torch.float32)
        assert 0 <= term.item() < 1000
    gradient = compute_gradient(terms, logits)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0


@EVERY
@pytest.mark.parametrize("activation", ["sigmoid", "softmax", "regions"])
def test_invalid_voxels_have_no_effect_and_no_gradient(name, activation):
    loss = LOSSES[name](activation="softmax" if activation == "softmax" else "sigmoid")
    logits, labels, instances = make_scene(3 if activation == "softmax" else 2)
    valid = torch.ones(SHAPE, dtype=torch.bool)
    valid[..., 4:] = False
    # other logits, labels and lesions in the invalid voxels
    other = logits.clone()
    other[..., 4:] = 50.0
    other_labels = labels.clone()
    other_labels[..., 4:] = 1
    other_instances = instances.clone()
    other_instances[..., 5:7] = 9
    if activation == "regions":
        labels = region_target(labels, [(1, 2), (2,)])
        other_labels = region_target(other_labels, [(1, 2), (2,)])
    first = compute_terms(loss, logits, labels, instances, valid)
    leaf = other.requires_grad_()
    second = compute_terms(loss, leaf, other_labels, other_instances, valid)
    torch.testing.assert_close(second, first)
    gradient = compute_gradient(second, leaf)
    assert gradient[..., 4:].abs().max() == 0
    assert gradient[..., :4].abs().max() > 0


@EVERY
def test_regions_of_one_label_each_give_the_loss_of_the_labels(name):
    loss = LOSSES[name](activation="sigmoid")
    logits, labels, instances = make_scene(2)
    by_label = compute_terms(loss, logits, labels, instances, None)
    by_region = compute_terms(loss, logits, region_target(labels, [(1,), (2,)]), instances, None)
    torch.testing.assert_close(by_region, by_label)


@EVERY
def test_unannotated_class_of_a_tile_has_no_effect_and_no_gradient(name):
    """Check that logits of class 2 have an effect in the first tile only."""
    logits, labels, instances = make_scene(2)
    labels[1][labels[1] == 2] = 0
    unannotated = torch.tensor([[False, False], [False, True]])
    loss = LOSSES[name](activation="sigmoid")
    values = []
    for factor in (1, -9):
        given = logits.clone()
        given[1, 1] *= factor
        given.requires_grad_()
        known = mask_unannotated(given, unannotated, "sigmoid")
        terms = compute_terms(loss, known, labels, instances, None)
        gradient = compute_gradient(terms, given)
        assert not gradient[1, 1].any()
        assert all(bool(gradient[b, k].any()) for b, k in ((0, 0), (0, 1), (1, 0)))
        values.append({term: value.item() for term, value in terms.items()})
    assert values[0] == values[1]


def test_marginal_loss_of_a_softmax_has_the_value_computed_by_hand():
    """Use p = 0.5, 0.2, 0.3. If class 2 is unknown, background is 0.8 and class 1 stays 0.2."""
    logits = torch.tensor([0.5, 0.2, 0.3]).log().view(1, 3, 1).expand(1, 3, 2)
    logits = logits.clone().requires_grad_()
    known = mask_unannotated(logits, torch.tensor([[False, True]]), "softmax")
    p = known.softmax(1)[0, :, 0]
    torch.testing.assert_close(p, torch.tensor([0.8, 0.2, 0.0]))
    loss = CrossEntropyLoss(reduction="sum", activation="softmax")
    terms = loss(known, torch.tensor([[0, 1]]))
    assert terms["cross_entropy"].item() == pytest.approx(-math.log(0.8) - math.log(0.2))
    # the gradient is p minus the posterior: (p_0, 0, p_2) / 0.8 in background, class 1 in a lesion
    background = [0.5 - 0.625, 0.2, 0.3 - 0.375]
    lesion = [0.5, 0.2 - 1, 0.3]
    expected = torch.tensor([background, lesion]).T[None]
    torch.testing.assert_close(compute_gradient(terms, logits), expected)


# --- the divisor ---


def test_positives_are_valid_lesion_voxels_counted_once_per_region():
    labels = torch.tensor([[0, 1, 2, 2]])
    valid = torch.tensor([[True, True, True, False]])
    target = region_target(labels, [(1, 2), (2,)])
    for given, all_voxels, valid_voxels in ((labels, 3, 2), (target, 5, 3)):
        assert count_positives(given).item() == all_voxels
        assert count_positives(given, valid).item() == valid_voxels


def test_labels_and_lesion_ids_may_be_unsigned():
    logits, labels, instances = make_scene(2)
    loss = LesionBalancedLoss()
    wide = labels.to(torch.uint16)
    found = loss(logits, wide, nearest=nearest_lesions(instances).to(torch.uint16))
    torch.testing.assert_close(found, compute_terms(loss, logits, labels, instances, None))
    assert count_positives(wide) == count_positives(labels)
    regions = [[1], [1, 2]]
    assert torch.equal(region_target(wide, regions), region_target(labels, regions))


def test_average_follows_counts_and_never_falls_below_the_expected_number():
    average = PositiveAverage(expected=50, momentum=0.5)
    counts = torch.tensor([150, 0, 0, 1000, 0])
    assert [average.update(n).item() for n in counts[:3]] == [100, 50, 50]
    assert PositiveAverage(expected=0).update(torch.tensor(0)).item() == 1
    restarted = PositiveAverage(expected=50, momentum=0.5)
    restarted.load_state_dict(average.state_dict())
    assert [restarted.update(n) for n in counts] == [average.update(n) for n in counts]


def test_several_averages_in_one_module_equal_single_ones():
    single = [PositiveAverage(expected=n) for n in (10, 100)]
    several = PositiveAverage((10.0, 100.0))
    for counts in (torch.tensor([50.0, 1000.0]), torch.zeros(2)):
        expected = [average.update(n) for average, n in zip(single, counts, strict=True)]
        assert torch.equal(several.update(counts), torch.stack(expected))


# --- losses by name, including those of MONAI ---


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("name", ["DiceFocalLoss", "DiceCELoss", "TverskyLoss", "FocalLoss"])
def test_term_of_a_monai_loss_is_its_value(name, activation):
    softmax = activation == "softmax"
    logits, labels, _ = make_scene(2 + softmax)
    loss = make_from_config(f"monai.losses.{name}", activation)
    one_hot = torch.stack([labels == k for k in range(0 if softmax else 1, 3)], 1).float()
    flags = {"use_softmax": softmax} if name == "FocalLoss" else {activation: True}
    expected = getattr(monai.losses, name)(**flags)(logits, one_hot)
    assert loss(logits, labels) == {name: pytest.approx(expected.item(), rel=1e-5)}


def test_our_losses_get_the_activation_and_others_are_wrapped():
    ours = make_from_config("lesionseg.losses.FocalLoss", "softmax", gamma=1.0)
    assert isinstance(ours, FocalLoss)
    assert ours.activation == "softmax"
    assert isinstance(make_from_config("torch.nn.BCEWithLogitsLoss"), CustomLoss)


@pytest.mark.parametrize(
    ("name", "settings"), [("HausdorffDTLoss", {"alpha": 2.0}), ("FocalLoss", {"gamma": 200.0})]
)
def test_alpha_and_gamma_of_other_losses_have_their_own_range(name, settings):
    assert isinstance(make_from_config(f"monai.losses.{name}", **settings), CustomLoss)


@pytest.mark.parametrize(
    ("target", "settings"),
    [
        ("monai.losses.DiceLoss", {"to_onehot_y": True}),
        ("monai.losses.DiceLoss", {"smoothness": 1}),
        ("monai.losses.DiceLoss", {"reduction": "none"}),  # an error when it is called
        ("builtins.dict", {}),  # a class that does not state its parameters
        ("monai.losses", {}),
    ],
)
def test_invalid_loss_configuration_is_an_error(target, settings):
    logits, labels, _ = make_scene(2)
    with pytest.raises(ConfigError):
        make_from_config(target, **settings)(logits, labels)


def test_error_for_an_unknown_setting_suggests_a_similar_one():
    with pytest.raises(ConfigError, match=r"'gama'.*'gamma'"):
        make_from_config("lesionseg.losses.FocalLoss", gama=2)
