"""The loss in which each lesion has the same weight."""

import pytest
import torch
from scipy import ndimage

from lesionseg.errors import ConfigError, GeometryError
from lesionseg.losses import DiceFocalLoss, LesionBalancedLoss, nearest_lesions
from tests.noise import noise

TILE = (2, 24, 24)
SIDES = {2: (1, 1, 2), 20: (2, 2, 5), 500: (5, 10, 10)}  # of a box with this many voxels


def make_two_lesions():
    """Make a tile with lesions of 1 and 49 pixels, and a lesion-free tile."""
    instances = torch.zeros(TILE, dtype=torch.int32)
    instances[0, 4, 4] = 7
    instances[0, 13:20, 13:20] = 2
    logits = noise(2, 1, *TILE[1:]) - 2
    return logits, (instances > 0).to(torch.uint8), instances


def make_box(size, side):
    """Make labels of a tile of `side`³ voxels with a lesion of `size` voxels in the middle."""
    labels = torch.zeros(1, side, side, side, dtype=torch.uint8)
    start = side // 2 - 5
    labels[(0, *(slice(start, start + n) for n in SIDES[size]))] = 1
    return labels, start


@pytest.mark.parametrize(("activation", "normaliser"), [("sigmoid", 30), ("softmax", None)])
def test_lesion_terms_equal_a_loop_over_lesions(activation, normaliser):
    """The background of all cells is divided by the normaliser or by the lesion voxels."""
    logits, labels, instances = make_two_lesions()
    valid = torch.ones(TILE, dtype=torch.bool)
    valid[0, 15:, 19:] = False
    instances = instances.masked_fill(~valid, 0)
    if activation == "softmax":
        logits = torch.cat([-logits, logits], 1)
    nearest = nearest_lesions(instances, (3.0, 3.0))
    loss = LesionBalancedLoss(0.4, 1.5, activation, focal_weight=0.3, lesion_weight=2.0)
    found = loss(logits, labels, valid=valid, normaliser=normaliser, nearest=nearest)
    one = DiceFocalLoss(0.4, 1.5, activation=activation, focal_weight=0.3)
    divisor = normaliser or (instances > 0).sum()
    whole = one(logits, labels, valid=valid, normaliser=divisor)
    torch.testing.assert_close({name: found[name] for name in whole}, whole)
    dice = [one(logits, labels, valid=valid & (nearest == i))["dice"] for i in (2, 7)]
    torch.testing.assert_close(found["lesion_dice"], 2 * sum(dice) / 2)
    lesions = [one(logits, labels, valid=instances == i)["focal"] for i in (2, 7)]
    background = valid & (nearest > 0) & (instances == 0)
    around = one(logits, labels, valid=background, normaliser=divisor)["focal"]
    torch.testing.assert_close(found["lesion_focal"], 2 * (sum(lesions) / 2 + around))


def gradients_of_term(term, size, side):
    """Return the gradients of a lesion and of a false positive of 27 voxels, with p = ½ in both.

    The lesion is in the middle of a tile of `side`³ voxels, and p is 1e-4 elsewhere.
    """
    labels, start = make_box(size, side)
    lesion = labels[:, None] > 0
    false = torch.zeros_like(lesion)
    false[(0, 0, *(slice(start - 4, start - 1),) * 3)] = True
    logits = torch.where(lesion | false, 0.0, -9.2).requires_grad_()
    nearest = nearest_lesions(labels)
    LesionBalancedLoss()(logits, labels, nearest=nearest, normaliser=100)[term].backward()
    gradient = logits.grad.abs()
    return gradient[lesion].sum().item(), gradient[false].sum().item()


def test_equal_errors_have_equal_gradients_next_to_lesions_of_any_size():
    found = [gradients_of_term("lesion_focal", size, side=32) for size in SIDES]
    for values in zip(*found, strict=True):  # of the lesion, then of the false positive
        assert max(values) < 2 * min(values)


def test_ratio_of_gradients_does_not_depend_on_the_size_of_the_tile():
    """The ratio of a lesion of 2 voxels to one of 500."""

    def ratio(side):
        small, large = (gradients_of_term("lesion_dice", size, side)[0] for size in (2, 500))
        return small / large

    assert [ratio(64), ratio(128)] == pytest.approx([ratio(32)] * 2, rel=0.1)


@pytest.mark.parametrize("size", SIDES)
def test_missed_lesion_costs_n_of_n_plus_1_and_learns_from_the_focal_term(size):
    """docs/focal.md states both for a lesion at p = 0.001."""
    labels, _ = make_box(size, 32)

    def compute(name, p):
        """Return a term, and the gradient of the lesion."""
        at = torch.logit(torch.tensor(p))
        logits = torch.where(labels[:, None] > 0, at, -20.0).requires_grad_()
        loss = LesionBalancedLoss()
        term = loss(logits, labels, nearest=nearest_lesions(labels), normaliser=100)[name]
        term.backward()
        return term.item(), logits.grad[labels[:, None] > 0].abs().sum().item()

    missed, _ = compute("lesion_dice", 1e-9)
    assert missed == pytest.approx(0.5 * size / (size + 1), rel=1e-3)
    _, of_dice = compute("lesion_dice", 1e-3)
    _, of_focal = compute("lesion_focal", 1e-3)
    assert 0.935 < of_focal / (of_focal + of_dice) < 0.98


@pytest.mark.parametrize("other", [DiceFocalLoss, LesionBalancedLoss])
def test_gradient_of_two_processes_equals_that_of_the_whole_batch(other):
    """Only the first process has lesions. The sums of both are recorded, then exchanged."""
    logits, labels, instances = make_two_lesions()

    def gradient(part, normaliser, sum_processes=None):
        loss = other()
        if sum_processes:
            loss.sum_processes = sum_processes
        given = {}
        if other is LesionBalancedLoss:
            given["nearest"] = nearest_lesions(instances[part], (5.0, 5.0))
        x = logits[part].clone().requires_grad_()
        sum(loss(x, labels[part], normaliser=normaliser, **given).values()).backward()
        return x.grad

    own = {0: [], 1: []}
    parts = (slice(0, 1), slice(1, 2))
    for rank, part in enumerate(parts):
        gradient(part, 15, lambda sums, rank=rank: own[rank].append(sums.detach()) or sums)
    halves = []
    for part in parts:
        totals = iter([a + b for a, b in zip(own[0], own[1], strict=True)])
        halves.append(
            gradient(part, 15, lambda sums, it=totals: next(it) + 2 * (sums - sums.detach()))
        )
    torch.testing.assert_close(torch.cat(halves) / 2, gradient(slice(0, 2), 30))


def test_weight_of_dice_is_that_of_both_dice_terms():
    logits, labels, instances = make_two_lesions()
    nearest = nearest_lesions(instances)
    one = LesionBalancedLoss()(logits, labels, nearest=nearest)
    double = LesionBalancedLoss(dice_weight=2)(logits, labels, nearest=nearest)
    assert {name: (double[name] / one[name]).item() for name in one} == pytest.approx(
        {"dice": 2, "focal": 1, "lesion_dice": 2, "lesion_focal": 1}
    )


def test_lesion_dice_is_averaged_over_classes():
    labels = torch.tensor([[1, 1, 0, 0, 2, 2, 0]])
    logits = torch.full((1, 2, 7), -20.0)
    logits[0, 0, :2] = 20
    loss = LesionBalancedLoss(lesion_weight=1, smooth=1e-9)
    terms = loss(logits, labels, nearest=nearest_lesions(labels))
    torch.testing.assert_close(terms["lesion_dice"], torch.tensor(0.5))  # mean of 0 and 1


def test_lesion_terms_are_zero_without_lesions():
    logits = torch.zeros(1, 1, 9, 9, requires_grad=True)
    nothing = torch.zeros(1, 9, 9, dtype=torch.int32)
    terms = LesionBalancedLoss()(logits, nothing, nearest=nearest_lesions(nothing), normaliser=10)
    assert terms["lesion_dice"] == terms["lesion_focal"] == 0
    (gradient,) = torch.autograd.grad(sum(terms.values()), logits)
    assert torch.isfinite(gradient).all()
    with pytest.raises(GeometryError, match="nearest="):
        LesionBalancedLoss()(logits, nothing)
    with pytest.raises(ConfigError, match="normaliser=0 must be above 0"):
        LesionBalancedLoss()(logits, nothing, nearest=nothing, normaliser=0)


def test_terms_per_lesion_are_left_out_if_the_network_has_boxes():
    assert LesionBalancedLoss().lesion_weight == 0.5
    loss = LesionBalancedLoss(0.4, 1.5, has_boxes=True)
    assert (loss.lesion_weight, loss.needs_nearest) == (0, False)
    logits, labels, _ = make_two_lesions()
    whole = DiceFocalLoss(0.4, 1.5, focal_weight=0.06)(logits, labels)
    torch.testing.assert_close(loss(logits, labels), whole)
    assert LesionBalancedLoss(lesion_weight=0.2, has_boxes=True).needs_nearest
    with pytest.raises(ConfigError, match=r"loss\.lesion_weight='much' is not a number"):
        LesionBalancedLoss(lesion_weight="much")


def test_small_probabilities_of_a_large_cell_keep_their_sum():
    """The cell of a lesion of one voxel fills a tile of 64³, in which p is 1e-4 elsewhere."""
    p = torch.full((1, 1, 64, 64, 64), 1e-4)
    labels = torch.zeros(1, 64, 64, 64, dtype=torch.uint8)
    labels[0, 5, 5, 5] = 1
    p[0, 0, 5, 5, 5] = 0.5
    loss = LesionBalancedLoss(lesion_weight=1)
    terms = loss(torch.logit(p), labels, nearest=torch.ones_like(labels))
    total = 0.5 + 1e-4 * (64**3 - 1)
    expected = 1 - (2 * 0.5 + 1) / (total + 1 + 1)
    assert terms["lesion_dice"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("reach", [(2.5, 2.5, 2.5), (4.0, 2.0, 0.8)])
def test_nearest_lesions_equal_distance_maps_of_the_whole_tile(reach):
    """Each lesion has its own distance map. Some lesions touch."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 300, (1, 9, 12, 11), generator=generator)
    ids[ids > 5] = 0
    ids[0, 2:4, 3:7, 2:4] = 6
    nearest = nearest_lesions(ids, reach)[0].numpy()
    units = [1 / r for r in reach]
    distance = {
        number: ndimage.distance_transform_edt(ids[0].numpy() != number, sampling=units)
        for number in ids.unique().tolist()
        if number
    }
    minimum = sum(distance.values()) * 0 + min(distance.values(), key=lambda d: d.sum())
    for one in distance.values():
        minimum = minimum.clip(max=one)
    assert ((nearest > 0) == (minimum < 1 - 1e-6)).all()
    for number, one in distance.items():
        assert one[nearest == number] == pytest.approx(minimum[nearest == number], abs=1e-5)


def test_lesion_that_touches_another_keeps_its_cell():
    ids = torch.zeros(1, 80, 80, 80, dtype=torch.uint8)
    ids[0, 40, 40, 40] = 1
    ids[0, 40, 40, 41] = 2  # in the same block of two voxels per axis
    nearest = nearest_lesions(ids)[0]
    n_first, n_second = ((nearest == number).sum().item() for number in (1, 2))
    assert n_first == n_second > 2000


def test_tiles_without_lesions_have_no_nearest_lesion():
    ids = torch.zeros(2, 5, 6, dtype=torch.int32)
    assert not nearest_lesions(ids).any()
    assert nearest_lesions(ids[:0]).shape == (0, 5, 6)
