"""Constructed courses for and against each warning."""

from itertools import cycle, islice

import pytest

from lesionseg.losses.gradient_balance import Parts
from lesionseg.training.callbacks.degeneration import (
    STRETCH,
    BalanceRow,
    find_degenerations,
    mean_lesion_p,
    pooled_shares,
)


def course(n=STRETCH, *, gradient=(0.5, 0.3, 0.2), lesion_p=(0.6,), loss=(1.0,), n_lesions=3):
    """Rows every five steps; shorter sequences are repeated."""

    def repeated(values):
        return list(islice(cycle(values), n))

    parts = repeated(gradient if isinstance(gradient, list) else [gradient])
    rows = zip(parts, repeated(lesion_p), repeated(loss), strict=True)
    return [
        BalanceRow(
            step=5 * i,
            loss=now,
            parts=None if part is None else Parts(*part),
            gradient=None if part is None else Parts(*part),
            n_lesions=0 if p is None else n_lesions,
            lesion_p=p,
            background_p=0.3,
        )
        for i, (part, p, now) in enumerate(rows, start=1)
    ]


def falling(start, stop):
    return [start + (stop - start) * i / (STRETCH - 1) for i in range(STRETCH)]


def kinds(rows):
    return [found.kind for found in find_degenerations(rows)]


def test_a_balanced_training_is_left_alone():
    assert kinds(course()) == []


def test_fewer_rows_than_a_stretch_say_nothing():
    assert kinds(course(STRETCH - 1, gradient=(0.0, 0.9, 0.1))) == []
    assert kinds([]) == []


def test_hard_background_with_most_of_the_gradient_is_told():
    (found,) = find_degenerations(course(gradient=(0.2, 0.7, 0.1)))
    assert (found.kind, found.step) == ("hard_background", 5 * STRETCH)
    assert "70%" in found.sentence
    assert "γ" in found.sentence
    assert kinds(course(gradient=(0.4, 0.55, 0.05))) == []


def test_one_wild_batch_is_no_stretch():
    rows = [(0.5, 0.3, 0.2)] * (STRETCH - 1) + [(0.0, 1.0, 0.0)]
    assert kinds(course(gradient=rows)) == []


def test_batches_count_by_their_gradient_not_by_their_number():
    # lesion-free batches are all background, but hardly teach
    rows = [(0.0, 0.001, 0.0005), (5.0, 3.0, 2.0)]
    assert kinds(course(gradient=rows, lesion_p=(None, 0.6))) == []
    shares = pooled_shares(course(gradient=rows))
    assert shares.lesion == pytest.approx(0.5, abs=1e-3)


def test_lesions_with_almost_none_of_the_gradient_are_told():
    (found,) = find_degenerations(course(gradient=(0.005, 0.395, 0.6)))
    assert found.kind == "few_lesions"
    assert "α is too low" in found.sentence
    assert kinds(course(gradient=(0.02, 0.38, 0.6))) == []


def test_a_stretch_without_any_lesion_says_nothing_of_alpha():
    assert kinds(course(gradient=(0.0, 0.4, 0.6), lesion_p=(None,))) == []


def test_collapse_is_a_falling_probability_with_a_falling_loss():
    p, loss = falling(0.6, 0.1), falling(2.0, 1.0)
    (found,) = find_degenerations(course(lesion_p=p, loss=loss))
    assert found.kind == "collapse"
    assert kinds(course(lesion_p=p, loss=falling(1.0, 2.0))) == []
    assert kinds(course(lesion_p=falling(0.6, 0.5), loss=loss)) == []
    assert kinds(course(lesion_p=falling(0.1, 0.6), loss=loss)) == []


def test_noise_between_lesions_is_no_collapse():
    assert kinds(course(lesion_p=[0.9, 0.2, 0.5], loss=falling(2.0, 1.0))) == []


def test_a_loss_without_a_focal_term_can_still_collapse():
    rows = course(gradient=[None], lesion_p=falling(0.6, 0.1), loss=falling(2.0, 1.0))
    assert kinds(rows) == ["collapse"]


def test_the_mean_over_lesions_weighs_batches_by_their_lesions():
    one, none, three = (
        BalanceRow(1, 1.0, None, None, n, p, None) for n, p in ((1, 0.2), (0, None), (3, 0.6))
    )
    assert mean_lesion_p([one, none, three]) == pytest.approx(0.5)
    assert mean_lesion_p([none]) is None


def test_lesions_that_stay_unseen_are_told_once_a_quarter_of_the_budget_is_spent():
    unseen = course(lesion_p=(0.02,))
    assert [found.kind for found in find_degenerations(unseen, 0.2)] == []
    (found,) = find_degenerations(unseen, 0.3)
    assert found.kind == "nothing_found"
    assert "After 30%" in found.sentence
    assert find_degenerations(course(lesion_p=(0.02, 0.2)), 0.9) == ()
    assert find_degenerations(course(lesion_p=(None,)), 0.9) == ()
