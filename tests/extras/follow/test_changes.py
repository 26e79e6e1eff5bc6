"""The change of each lesion between two visits, in tiny cases drawn by hand."""

from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import Geometry
from lesionseg.extras.follow.changes import (
    ChangeRule,
    Visit,
    compare_visits,
    find_changes,
    size_errors,
)
from lesionseg.ops.components import measure_instances
from tests.evaluation.hand_cases import prediction_of

SHAPE = (12, 24, 24)


def list_lesions(instances, labels=(), spacing=1.0):
    ids = np.arange(1, int(instances.max()) + 1)
    geometry = Geometry.from_spacing(instances.shape, (spacing,) * instances.ndim)
    found = measure_instances(geometry, ids, labels or (1,) * len(ids), None, instances)
    return replace(found, instances=instances)


def lesions(*boxes, labels=()):
    """Return cubes. Each is given by its first z, y, x and its side in voxels."""
    instances = np.zeros(SHAPE, dtype=np.int32)
    for number, (z, y, x, side) in enumerate(boxes, start=1):
        instances[z : z + side, y : y + side, x : x + side] = number
    return list_lesions(instances, labels)


def make_visit(found, accepted=None):
    everything = np.ones(len(found), dtype=np.bool_)
    return Visit(found, found, everything if accepted is None else np.array(accepted), everything)


def test_five_simple_states_have_volumes_and_diameters():
    """One lesion is stable, one triples its side, one halves it, one is gone, one is new."""
    before = lesions((0, 0, 0, 4), (0, 8, 0, 2), (0, 16, 0, 6), (8, 8, 16, 3))
    after = lesions((0, 0, 0, 4), (0, 7, 0, 6), (1, 17, 1, 3), (0, 16, 16, 3))
    found = find_changes("a", make_visit(before), make_visit(after))
    assert [c.state for c in found] == ["new", "enlarged", "stable", "shrunk", "gone"]
    new, enlarged, stable, shrunk, gone = found
    assert (new.lesion_before, new.lesion_after, gone.lesion_before) == ((), (4,), (4,))
    volumes = (enlarged.volume_before_ml, enlarged.volume_after_ml)
    assert volumes == pytest.approx((0.008, 0.216))
    assert enlarged.change_percent == pytest.approx(2600)
    assert shrunk.change_ml == pytest.approx(0.027 - 0.216)
    assert stable.diameter_before_mm == pytest.approx(2 * (3 * 64 / (4 * np.pi)) ** (1 / 3))
    assert new.volume_before_ml is new.change_percent is None
    assert [c.accepted for c in found] == [c.state != "stable" for c in found]


ONE = lesions((3, 3, 3, 3))
APART = lesions((2, 2, 2, 4), (2, 2, 7, 4))
JOINED = lesions((2, 2, 3, 8))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        # a lesion with a side of two voxels is matched even without overlap
        (lesions((3, 3, 3, 2)), lesions((5, 3, 3, 2)), ["stable"]),
        (lesions((3, 3, 3, 2)), lesions((6, 3, 3, 2)), ["new", "gone"]),
        # one voxel of background between them, but the old lesion is already matched
        (ONE, lesions((3, 3, 3, 3), (3, 3, 7, 3)), ["new", "stable"]),
        (ONE, lesions((3, 3, 3, 3), labels=(2,)), ["new", "gone"]),
        (APART, JOINED, ["merged"]),
        (JOINED, APART, ["split"]),
        # two before and two after, and one touches both
        (lesions((2, 2, 0, 8), (2, 2, 9, 8)), lesions((2, 2, 2, 8), (2, 2, 11, 8)), ["stable"]),
        (lesions(), lesions(), []),
        (ONE, lesions(), ["gone"]),
        (lesions(), ONE, ["new"]),
    ],
)
def test_state_of_each_pair_of_visits(before, after, expected):
    found = find_changes("a", make_visit(before), make_visit(after))
    assert [c.state for c in found] == expected
    if expected == ["merged"]:
        assert (found[0].lesion_before, found[0].lesion_after) == ((1, 2), (1,))
        assert found[0].volume_before_ml == pytest.approx(0.128)


def test_fragment_within_the_error_of_the_grid_is_no_split():
    whole = np.zeros(SHAPE, dtype=np.int32)
    whole[2:8, 2:8, 2:9] = 1
    crumbs = whole.copy()
    crumbs[..., 8] = 0
    crumbs[4, 4, 7:9] = [0, 2]
    (change,) = find_changes("a", make_visit(list_lesions(whole)), make_visit(list_lesions(crumbs)))
    assert (change.state, change.lesion_after) == ("stable", (1, 2))


def test_a_lesion_below_the_operating_point_before_is_not_new():
    after = lesions((3, 3, 3, 3), (8, 8, 8, 3))
    faint = make_visit(ONE, (False,))
    assert [c.state for c in find_changes("a", faint, make_visit(after))] == ["new", "stable"]
    assert find_changes("a", faint, make_visit(after, (False, False))) == []
    # a lesion that the other visit could not show is left out
    hidden = Visit(ONE, ONE, np.ones(1, bool), np.zeros(1, bool))
    assert find_changes("a", make_visit(lesions()), hidden) == []


def test_new_lesions_of_the_later_visit_have_its_scores():
    grid = Geometry.from_spacing((6, 9), (1, 1))
    old = np.zeros(grid.shape, np.int32)
    old[1:3, 1:3] = 1
    both = old.copy()
    both[1:3, 5:8] = 2
    both[4:6, 5:8] = 3
    before = prediction_of(old, (0.9,), grid)
    after = prediction_of(both, (0.8, 0.3, 0.7), grid)
    pair = compare_visits("a", before, after, ChangeRule())
    assert sorted(change.state for change in pair.changes) == ["new", "new", "stable"]
    new = pair.new_lesions()
    assert [(c.id, c.score) for c in new.candidates] == [(3, 0.7), (2, 0.3)]
    assert np.unique(new.instances).tolist() == [0, 2, 3]
    # without scores, a lesion of the diameter d has the score d / (d + 10 mm)
    bare = compare_visits("a", before, replace(after, has_scores=False), ChangeRule())
    by_size = {c.lesion_after: c.score for c in bare.changes if c.state == "new"}
    assert by_size == dict.fromkeys([(2,), (3,)], pytest.approx(1 / 11))


def test_size_error_of_a_box_equals_that_of_random_places():
    """Move each side of a box of 6 × 4 × 3 voxels of 2 mm by up to half a voxel."""
    instances = np.zeros(SHAPE, dtype=np.int32)
    instances[1:7, 2:6, 3:6] = 1
    found = list_lesions(instances, spacing=2.0)
    (error,) = size_errors(found)
    assert error == pytest.approx(8 * np.sqrt((np.array([4 * 3, 6 * 3, 6 * 4]) ** 2).sum() / 6))
    rng = np.random.default_rng(0)
    sides = np.array([6, 4, 3]) + rng.uniform(-0.5, 0.5, (20_000, 2, 3)).sum(axis=1)
    assert error == pytest.approx(8 * sides.prod(axis=1).std(), rel=0.03)
    for confidence, z in ((0.95, 1.96), (0.99, 2.576)):
        rule = ChangeRule(confidence=confidence)
        (change,) = find_changes("a", make_visit(found), make_visit(found), rule)
        assert change.smallest_change_ml == pytest.approx(z * np.sqrt(2) * error / 1000, rel=1e-3)


def test_changes_on_radiographs_have_diameters_and_no_volumes():
    instances = np.zeros((20, 20), dtype=np.int32)
    instances[3:9, 3:9] = 1
    (change,) = find_changes("a", *[make_visit(list_lesions(instances))] * 2)
    assert (change.volume_before_ml, change.smallest_change_ml) == (None, None)
    assert change.diameter_after_mm == pytest.approx(2 * np.sqrt(36 / np.pi))
