"""Hand-made snapshots of a handful of places."""

from dataclasses import asdict

import pytest

from lesionseg.training.callbacks.suspects import (
    N_ALIKE,
    Observation,
    Snapshot,
    rank_suspects,
    snapshot_from_json,
)


def lesion(number, p, case="a", centre=(0.0, 0.0, 0.0), diameter=4.0):
    return Observation("lesion", case, case, "lesion", number, centre, diameter, p)


def spot(centre, p, case="a", diameter=4.0, label="lesion"):
    return Observation("spot", case, case, label, None, centre, diameter, p)


def ranked(*snapshots):
    n = len(snapshots)
    return rank_suspects([Snapshot((i + 1) / n, s) for i, s in enumerate(snapshots)])


def test_missed_lesions_and_sure_spots_come_first():
    here = (0.0, 0.0, 9.0)
    found = ranked(
        (lesion(1, 0.9), lesion(2, 0.2), lesion(3, 0.6), spot(here, 0.6)),
        (lesion(1, 0.9), lesion(2, 0.1), lesion(3, 0.4), spot(here, 0.9)),
    )
    said = [(s.place.kind, s.place.lesion, s.p, round(s.suspicion, 6)) for s in found]
    # lesions of this size are seen with 0.5, the median of 0.9, 0.15 and 0.5
    assert said == [
        ("spot", None, (0.6, 0.9), 0.75),
        ("lesion", 2, (0.2, 0.1), 0.7),
        ("lesion", 1, (0.9, 0.9), 0.0),
        ("lesion", 3, (0.6, 0.4), 0.0),
    ]


def test_a_lesion_is_compared_with_those_of_its_size():
    dots = [lesion(i, 0.2, diameter=2.0) for i in range(N_ALIKE)]
    large = [lesion(100 + i, 0.8, diameter=12.0) for i in range(N_ALIKE)]
    odd = lesion(200, 0.2, diameter=12.0)
    (first, *others) = ranked((*dots, *large, odd))
    assert first.place.lesion == 200
    assert first.suspicion == pytest.approx(0.75)
    assert all(other.suspicion == 0 for other in others)


def test_a_spot_smaller_than_the_median_lesion_counts_less():
    found = ranked((lesion(1, 0.9, diameter=8.0), spot((0, 0, 9), 0.8), spot((9, 0, 0), 0.8, "b")))
    assert [round(s.suspicion, 6) for s in found] == [0.4, 0.4, 0.0]
    large = spot((0, 0, 9), 0.8, diameter=20.0)
    assert ranked((lesion(1, 0.9, diameter=8.0), large))[0].suspicion == 0.8


def test_a_network_that_sees_nothing_suspects_every_lesion():
    assert [s.suspicion for s in ranked((lesion(1, 0.0), lesion(2, 0.01)))] == [1.0, 0.9]


def test_a_spot_is_followed_by_its_position():
    (found,) = ranked((spot((0, 0, 0), 0.5),), (spot((0, 0, 3), 0.7, diameter=2.0),))
    assert found.p == (0.5, 0.7)
    assert found.place.centre_mm == (0, 0, 3)  # as last seen


def test_spots_further_apart_than_their_size_are_two():
    found = ranked((spot((0, 0, 0), 0.5),), (spot((0, 0, 4), 0.7),))
    assert [s.p for s in found] == [(0.0, 0.7), (0.5, 0.0)]


def test_a_spot_that_comes_and_goes_has_nothing_in_between():
    (found,) = ranked((spot((0, 0, 0), 0.6),), (), (spot((0, 0, 1), 0.9),))
    assert found.p == (0.6, 0.0, 0.9)
    assert found.suspicion == pytest.approx(0.5)


def test_nearest_pairs_are_joined_first():
    near, far = spot((0, 0, 1), 0.3), spot((0, 0, 3), 0.4)
    found = ranked((near, far), (spot((0, 0, 0), 0.9),))
    assert [s.p for s in found] == [(0.3, 0.9), (0.4, 0.0)]


@pytest.mark.parametrize("other", [{"case": "b"}, {"label": "cyst"}])
def test_spots_of_other_cases_or_labels_are_not_the_same(other):
    found = ranked((spot((0, 0, 0), 0.5),), (spot((0, 0, 0), 0.5, **other),))
    assert len(found) == 2


def test_ties_go_by_kind_case_and_position():
    found = ranked((spot((0, 0, 1), 1.0, "b"), spot((0, 0, 0), 1.0, "b"), lesion(1, 0.0, "c")))
    assert [(s.place.kind, s.place.centre_mm[2]) for s in found] == [
        ("lesion", 0),
        ("spot", 0),
        ("spot", 1),
    ]


def test_no_snapshot_and_empty_snapshots_give_nothing():
    assert rank_suspects([]) == []
    assert ranked((), ()) == []


def test_snapshots_survive_json():
    snapshot = Snapshot(0.5, (lesion(1, 0.9), spot((1.0, 2.0), 0.3)))
    assert snapshot_from_json(asdict(snapshot)) == snapshot
