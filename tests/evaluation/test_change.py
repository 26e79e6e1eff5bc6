"""What became of each lesion between two visits, on tiny cases drawn by hand."""

import numpy as np
import pytest

from lesionseg.core import Geometry, Lesions
from lesionseg.evaluation.change import (
    ChangeRule,
    Visit,
    find_changes,
    size_errors,
)
from lesionseg.ops.components import listed_lesions

SHAPE = (12, 24, 24)
Box = tuple[int, int, int, int]  # first z, y, x, and the side in voxels


def lesions(*boxes: Box, labels: tuple[int, ...] = (), spacing: float = 1.0) -> Lesions:
    instances = np.zeros(SHAPE, dtype=np.int32)
    for number, (z, y, x, side) in enumerate(boxes, start=1):
        instances[z : z + side, y : y + side, x : x + side] = number
    geometry = Geometry.from_spacing(SHAPE, (spacing,) * 3)
    ids = np.arange(1, len(boxes) + 1)
    found = listed_lesions(geometry, ids, labels or (1,) * len(boxes), None, instances)
    return Lesions(**{**vars(found), "instances": instances})


def visit(found: Lesions, accepted: tuple[bool, ...] = ()) -> Visit:
    everyone = np.ones(len(found), dtype=np.bool_)
    return Visit(found, found, np.array(accepted, bool) if accepted else everyone, everyone)


def states(before: Lesions, after: Lesions, **rule: float) -> list[str]:
    return [c.state for c in find_changes("a", visit(before), visit(after), ChangeRule(**rule))]


def test_the_five_simple_states_with_volumes_and_diameters() -> None:
    """One lesion stays, one triples its side, one halves it, one goes, one comes."""
    before = lesions((0, 0, 0, 4), (0, 8, 0, 2), (0, 16, 0, 6), (8, 8, 16, 3))
    after = lesions((0, 0, 0, 4), (0, 7, 0, 6), (1, 17, 1, 3), (0, 16, 16, 3))
    found = find_changes("a", visit(before), visit(after))
    assert [c.state for c in found] == ["new", "enlarged", "stable", "shrunk", "gone"]
    new, enlarged, stable, shrunk, gone = found
    assert (new.lesion_before, new.lesion_after) == ((), (4,))
    assert (gone.lesion_before, gone.lesion_after) == ((4,), ())
    assert (enlarged.volume_before_ml, enlarged.volume_after_ml) == (0.008, 0.216)
    assert enlarged.change_percent == pytest.approx(2600)
    assert shrunk.change_ml == pytest.approx(0.027 - 0.216)
    assert stable.diameter_before_mm == pytest.approx(2 * (3 * 64 / (4 * np.pi)) ** (1 / 3))
    assert new.volume_before_ml is None
    assert new.change_percent is None
    assert [c.accepted for c in found] == [True, True, False, True, True]


def test_a_shift_of_a_voxel_changes_nothing() -> None:
    """Even of a lesion of two voxels' side that no longer overlaps itself."""
    assert states(lesions((3, 3, 3, 2)), lesions((4, 4, 4, 2))) == ["stable"]
    assert states(lesions((3, 3, 3, 2)), lesions((5, 3, 3, 2))) == ["stable"]
    assert states(lesions((3, 3, 3, 2)), lesions((6, 3, 3, 2))) == ["new", "gone"]


def test_a_new_lesion_beside_one_that_stays_is_new() -> None:
    """One voxel of background between them: the old one has its partner already."""
    both = lesions((3, 3, 3, 3), (3, 3, 7, 3))
    assert states(lesions((3, 3, 3, 3)), both) == ["new", "stable"]


def test_lesions_that_merge_and_split_say_so() -> None:
    apart, joined = lesions((2, 2, 2, 4), (2, 2, 7, 4)), lesions((2, 2, 3, 8))
    merged = find_changes("a", visit(apart), visit(joined))
    assert [(c.state, c.lesion_before, c.lesion_after) for c in merged] == [
        ("merged", (1, 2), (1,))
    ]
    assert merged[0].volume_before_ml == 0.128
    assert states(joined, apart) == ["split"]


def test_a_piece_that_the_grid_explains_makes_no_split() -> None:
    """Two voxels fall off a large lesion."""
    whole, crumbs = np.zeros(SHAPE, dtype=np.int32), np.zeros(SHAPE, dtype=np.int32)
    whole[2:8, 2:8, 2:9] = 1
    crumbs[2:8, 2:8, 2:8] = 1
    crumbs[4, 4, 8], crumbs[4, 4, 7] = 2, 0
    geometry = Geometry.from_spacing(SHAPE, (1, 1, 1))
    visits = []
    for array in (whole, crumbs):
        found = listed_lesions(
            geometry, np.arange(1, array.max() + 1), (1, 1)[: array.max()], None, array
        )
        visits.append(visit(Lesions(**{**vars(found), "instances": array})))
    (change,) = find_changes("a", *visits)
    assert (change.state, change.lesion_after) == ("stable", (1, 2))


def test_lesions_of_different_labels_are_different_lesions() -> None:
    assert states(lesions((3, 3, 3, 3), labels=(1,)), lesions((3, 3, 3, 3), labels=(2,))) == [
        "new",
        "gone",
    ]


def test_a_lesion_below_the_operating_point_before_is_not_new() -> None:
    before, after = lesions((3, 3, 3, 3)), lesions((3, 3, 3, 3), (8, 8, 8, 3))
    faint = visit(before, (False,))
    assert [c.state for c in find_changes("a", faint, visit(after))] == ["new", "stable"]
    assert find_changes("a", faint, visit(after, (False, False))) == []


def test_what_the_other_visit_could_not_show_is_left_out() -> None:
    after = lesions((3, 3, 3, 3))
    hidden = Visit(after, after, np.ones(1, bool), np.zeros(1, bool))
    assert find_changes("a", visit(lesions()), hidden) == []


def test_empty_visits() -> None:
    assert states(lesions(), lesions()) == []
    assert states(lesions((1, 1, 1, 3)), lesions()) == ["gone"]
    assert states(lesions(), lesions((1, 1, 1, 3))) == ["new"]


def test_the_error_of_a_box_is_what_random_places_give() -> None:
    """A box of 6 × 4 × 3 voxels of 2 mm whose sides are each moved by up to half a voxel."""
    instances = np.zeros(SHAPE, dtype=np.int32)
    instances[1:7, 2:6, 3:6] = 1
    geometry = Geometry.from_spacing(SHAPE, (2, 2, 2))
    found = listed_lesions(geometry, np.array([1]), (1,), None, instances)
    faces = np.array([4 * 3, 6 * 3, 6 * 4])
    assert size_errors(found)[0] == pytest.approx(8 * np.sqrt((faces**2).sum() / 6))
    rng = np.random.default_rng(0)
    sides = np.array([6, 4, 3]) + rng.uniform(-0.5, 0.5, (20_000, 2, 3)).sum(axis=1)
    assert size_errors(found)[0] == pytest.approx(8 * sides.prod(axis=1).std(), rel=0.03)


def test_the_confidence_sets_the_standard_deviations() -> None:
    assert ChangeRule(confidence=0.95).n_deviations == pytest.approx(1.96, abs=1e-3)
    one = find_changes("a", visit(lesions((1, 1, 1, 4))), visit(lesions((1, 1, 1, 4))))[0]
    error = float(size_errors(lesions((1, 1, 1, 4)))[0])
    expected = ChangeRule().n_deviations * np.sqrt(2) * error
    assert one.smallest_change_ml == pytest.approx(expected / 1000)


def test_in_two_dimensions_there_are_diameters_and_no_volumes() -> None:
    labels = np.zeros((20, 20), dtype=np.int32)
    labels[3:9, 3:9] = 1
    geometry = Geometry.from_spacing(labels.shape, (1, 1))
    found = listed_lesions(geometry, np.array([1]), (1,), None, labels)
    (change,) = find_changes("a", *[visit(Lesions(**{**vars(found), "instances": labels}))] * 2)
    assert change.volume_before_ml is None
    assert change.smallest_change_ml is None
    assert change.diameter_after_mm == pytest.approx(2 * np.sqrt(36 / np.pi))
