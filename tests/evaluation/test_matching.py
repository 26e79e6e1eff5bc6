"""Lesions found by what candidates cover together: against a naive reference, and by hand."""

from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pytest

from lesionseg.core import Geometry, Prediction, Reference
from lesionseg.evaluation import PRESETS, evaluate_case, summarise
from lesionseg.evaluation.criteria import INSTANCES
from lesionseg.evaluation.matching import (
    NEVER,
    Links,
    assign,
    detection_scores,
    match,
    overlap_table,
    score_of_cover,
)
from lesionseg.ops.components import candidates_of, lesions_of, mask_boxes
from tests.evaluation.hand_cases import HAND_CASES, make_prediction, make_reference, prediction_of

PRESET = PRESETS["lesionseg"]
BY_PAIRS = PRESETS["instances"]


def naive(lesions, candidates, scores):
    """Each candidate's support and each lesion's score, by counting voxels of masks `[bool]`."""
    union = np.logical_or.reduce(lesions) if lesions else False
    supported = [10 * (mask & union).sum() >= mask.sum() for mask in candidates]
    found_at = [NEVER] * len(lesions)
    for score in sorted(set(scores)):
        rows = [i for i, s in enumerate(scores) if supported[i] and s >= score]
        covered = np.logical_or.reduce([candidates[i] for i in rows]) if rows else False
        for i, lesion in enumerate(lesions):
            if 10 * (lesion & covered).sum() >= lesion.sum():
                found_at[i] = score  # ascending, so the highest stays
    return supported, found_at


def random_instances(rng, shape, n):
    """Up to `n` boxes that may hide each other; ids 1, 2, … of those that are left."""
    drawn = np.zeros(shape, np.int32)
    for number in range(1, rng.integers(0, n + 1) + 1):
        start = rng.integers(0, np.array(shape) - 1)
        stop = start + rng.integers(1, 8, len(shape))
        drawn[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = number
    ids = np.unique(drawn[drawn > 0])
    return np.searchsorted(ids, drawn).astype(np.int32) + (drawn > 0)


def random_case(seed):
    rng = np.random.default_rng(seed)
    shape = (12, 14) if seed % 2 else (6, 7, 8)
    reference, drawn = (random_instances(rng, shape, n) for n in (5, 8))
    labels, given = (rng.integers(1, 3, int(x.max())).tolist() for x in (reference, drawn))
    scores = (rng.integers(1, 6, len(given)) / 6).tolist()  # ties
    return reference, tuple(labels), drawn, tuple(given), tuple(scores)


def masks_of(instances, rows):
    return [instances == row + 1 for row in rows]


def link(reference, labels, drawn, given, scores):
    geometry = Geometry.from_spacing(reference.shape, (1.0,) * reference.ndim)
    truth = Reference(geometry, instances=reference, instance_labels=labels)
    prediction = prediction_of(drawn, scores, geometry, given)
    return match(truth, prediction, PRESET.criterion)


def check(links, lesions, candidates, scores):
    """Matched at every threshold as the naive reference has it, and never worse further down."""
    supported, found_at = naive(lesions, candidates, scores)
    before = np.zeros(len(lesions), bool)
    ids = links.candidates.ids - 1  # ranked by score, the masks by id
    for score in sorted({*scores, 1.0}, reverse=True):
        assert links.detected_at.tolist() == found_at
        by, outcomes = links.of_accepted(links.scores >= score)
        found = by >= 0
        assert found.tolist() == [at >= score for at in found_at]
        assert (found | ~before).all()  # what was found stays found
        before = found
        for row, candidate in enumerate(ids.tolist()):
            truth = "true_positive" if supported[candidate] else "false_positive"
            accepted = scores[candidate] >= score
            assert outcomes[row] == (truth if accepted else "not_accepted")


@pytest.mark.parametrize("block", range(10))
def test_equal_to_a_naive_reference_at_every_threshold(block):
    for seed in range(100 * block, 100 * (block + 1)):
        reference, labels, drawn, given, scores = random_case(seed)
        links = link(reference, labels, drawn, given, scores)
        lesions, candidates = (masks_of(x, range(int(x.max()))) for x in (reference, drawn))
        check(links, lesions, candidates, scores)


@pytest.mark.parametrize("block", range(2))
def test_equal_to_a_naive_reference_within_each_label(block):
    for seed in range(100 * block, 100 * (block + 1)):
        reference, labels, drawn, given, scores = random_case(seed)
        links = link(reference, labels, drawn, given, scores)
        part = links.within_labels or links
        _, outcomes = part.of_accepted(np.ones(len(part.candidates), bool))
        found_at = np.full(len(labels), NEVER)
        for label in {*labels, *given}:
            own = [i for i, one in enumerate(labels) if one == label]
            rows = [i for i, one in enumerate(given) if one == label]
            masks = masks_of(reference, own), masks_of(drawn, rows)
            supported, found_at[own] = naive(*masks, [scores[i] for i in rows])
            for row, good in zip(rows, supported, strict=True):
                (place,) = np.flatnonzero(part.candidates.ids == row + 1)
                assert (outcomes[place] == "true_positive") == good
        assert part.detected_at.tolist() == found_at.tolist()


@pytest.mark.parametrize("bare", ["both", "reference", "prediction"])
def test_boxes_take_the_place_of_voxels(bare):
    """Boxes may overlap, and what two of them cover counts once."""
    for seed in range(60):
        reference, _, drawn, _, scores = random_case(seed)
        if not reference.any() or not drawn.any():
            continue
        geometry = Geometry.from_spacing(reference.shape, (1.0,) * reference.ndim)
        labels = (1,) * int(reference.max())
        boxes = mask_boxes(reference, len(labels)).astype(np.float32)
        truth = Reference(geometry, instances=reference, instance_labels=labels)
        if bare != "prediction":
            truth = Reference(geometry, boxes=boxes, box_labels=labels)
        given = prediction_of(drawn, scores, geometry)
        if bare != "reference":
            rows = tuple(replace(c, has_mask=False) for c in given.candidates)
            given = Prediction("a", geometry, rows, None)
        links = match(truth, given, PRESET.criterion)
        solid = [filled(geometry.shape, mask_boxes(x, int(x.max()))) for x in (reference, drawn)]
        check(links, *solid, scores)


def filled(shape, boxes):
    found = []
    for box in boxes:
        mask = np.zeros(shape, bool)
        mask[tuple(slice(int(a), int(b)) for a, b in zip(*np.split(box, 2), strict=True))] = True
        found.append(mask)
    return found


def ball(shape, centre, diameter_mm):
    return (
        sum((g - c) ** 2 for g, c in zip(np.indices(shape), centre, strict=True))
        <= (diameter_mm / 2) ** 2
    )


def test_a_confluent_patient():
    """Two candidates in a lesion of 24 mm, one over five of 4 mm: all found, none false."""
    shape = (28, 40, 60)
    reference, drawn = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    reference[ball(shape, (14, 20, 14), 24)] = 1
    drawn[ball(shape, (14, 14, 14), 10)], drawn[ball(shape, (14, 27, 14), 10)] = 1, 2
    for i in range(5):
        reference[ball(shape, (14, 6 + 7 * i, 45), 4)] = 2 + i
    drawn[12:17, 4:37, 43:48] = 3
    geometry = Geometry.from_spacing(shape, (1.0,) * 3)
    truth = Reference(geometry, instances=reference, instance_labels=(1,) * 6)
    given = prediction_of(drawn, (0.9, 0.8, 0.7), geometry)
    joint = evaluate_case(truth, given, PRESET, case="a")
    assert (joint.n_detected, joint.n_outcome("false_positive")) == (6, 0)
    assert (joint.splits, joint.merges) == (1, 1)
    assert [x.split for x in joint.lesions] == [True] + [False] * 5
    assert [x.merged for x in joint.lesions] == [False] + [True] * 5
    pairs = evaluate_case(truth, given, BY_PAIRS, case="a")
    assert (pairs.n_detected, pairs.n_outcome("false_positive")) == (0, 3)
    scores = summarise([joint], PRESET, evaluated_on="test", replicates=5)
    assert scores["lesion_recall"]["value"] == scores["lesion_precision"]["value"] == 1.0
    assert scores["other_criteria"]["iou10"]["lesion_recall"]["value"] == 0.0


def test_labels_are_judged_together_and_by_themselves():
    """A lesion that a candidate of another label covers is found, but not in its label's row."""
    hand = next(case for case in HAND_CASES if case.name == "wrong_label")
    result = evaluate_case(make_reference(hand), make_prediction(hand), PRESET, case="a")
    scores = summarise(
        [result], PRESET, evaluated_on="test", labels={1: "cyst", 2: "tumour"}, replicates=5
    )
    assert (scores["n_missed"], scores["n_false_positive"]) == (0, 0)
    cyst, tumour = (scores["per_label"][name] for name in ("cyst", "tumour"))
    assert (cyst["n_lesions"], cyst["n_missed"], cyst["n_false_positive"]) == (1, 1, 0)
    assert (tumour["n_lesions"], tumour["n_false_positive"]) == (0, 1)


def test_a_crowd_of_boxes_in_one_lesion_takes_little_time_and_memory():
    """400 boxes of 6³ in a lesion of 90³: what they cover is that of their voxels."""
    rng = np.random.default_rng(0)
    start = rng.integers(0, 84, (400, 3))
    boxes = np.hstack([start, start + 6]).astype(np.float64)
    scores = np.sort(rng.random(400))[::-1]
    covered = np.zeros((90,) * 3, bool)
    for box, score in zip(boxes, scores, strict=True):
        covered |= filled(covered.shape, [box])[0]
        enough_at = score
        if 10 * covered.sum() >= covered.size:
            break
    share = np.full(400, 6**3 / 90**3)
    assert score_of_cover(scores, share, boxes, 0.1) == enough_at
    assert covered.mean() == pytest.approx(0.1, abs=1e-3)


# --- one to one ---


def random_links(rng, n_candidates, n_lesions, density=0.4):
    weight = rng.integers(10, 100, (n_candidates, n_lesions)) / 100
    weight[rng.random(weight.shape) > density] = 0
    return links_of(weight), weight


def links_of(weight, rule=INSTANCES):
    candidate, lesion = np.nonzero(weight)
    shape = np.shape(weight)
    return Links(rule, *shape, candidate, lesion, np.asarray(weight)[candidate, lesion])


def best_by_trying(weight):
    """Largest number of pairs, then largest sum, over all one-to-one assignments."""
    n_candidates, n_lesions = weight.shape
    best = (0, 0.0)
    for size in range(1, min(weight.shape) + 1):
        for rows in combinations(range(n_candidates), size):
            for columns in permutations(range(n_lesions), size):
                chosen = weight[list(rows), list(columns)]
                if (chosen > 0).all():
                    best = max(best, (size, round(float(chosen.sum()), 6)))
    return best


@pytest.mark.parametrize("seed", range(25))
def test_maximum_at_every_threshold_and_a_found_lesion_stays_found(seed):
    rng = np.random.default_rng(seed)
    links, weight = random_links(rng, 5, 4)
    scores = rng.integers(1, 5, 5) / 5  # with ties
    found_at = detection_scores(links, scores)
    for threshold in np.unique(scores):
        present = scores >= threshold
        n_best, sum_best = best_by_trying(weight[present])
        found = found_at >= threshold
        assert found.sum() == n_best
        candidate_of = assign(links, found, present=present)
        matched = candidate_of >= 0
        assert round(weight[candidate_of[matched], np.flatnonzero(matched)].sum(), 6) == sum_best
        assert len(set(candidate_of[matched])) == matched.sum()
        # the match of largest IoU finds the very lesions that the curve counts
        np.testing.assert_array_equal(matched, found)


# --- overlap ---


def instances_of(seed, shape=(9, 10, 11), n=4):
    rng = np.random.default_rng(seed)
    array = np.zeros(shape, dtype=np.int32)
    for i in range(1, n + 1):
        start = rng.integers(0, np.array(shape) - 4)
        array[tuple(slice(s, s + rng.integers(1, 5)) for s in start)] = i
    return array


def both(seed):
    a, b = instances_of(seed), instances_of(seed + 100)
    geometry = Geometry.from_spacing(a.shape, (2.0, 1.0, 1.0))
    lesions = lesions_of(Reference(geometry, instances=a, instance_labels=(1, 1, 2, 2)))
    prediction = prediction_of(b, (0.9, 0.8, 0.7, 0.6), geometry, labels=(1, 2, 1, 2))
    return a, b, lesions, candidates_of(prediction, None)


@pytest.mark.parametrize("seed", range(6))
def test_table_equals_counting_each_pair(seed):
    a, b, lesions, candidates = both(seed)
    table = overlap_table(candidates, lesions)
    found = {
        (int(candidates.ids[c]), int(lesions.ids[k])): (int(v), float(i))
        for c, k, v, i in zip(table.candidate, table.lesion, table.voxels, table.iou, strict=True)
    }
    expected = {}
    for candidate in candidates.ids:
        for lesion in lesions.ids:
            shared = int(((b == candidate) & (a == lesion)).sum())
            if shared:
                union = int(((b == candidate) | (a == lesion)).sum())
                expected[int(candidate), int(lesion)] = (shared, pytest.approx(shared / union))
    assert found == expected


def test_without_a_mask_boxes_are_compared():
    geometry = Geometry.from_spacing((20, 20), (1.0, 1.0))
    boxes = np.array([[0, 0, 10, 10], [12, 12, 14, 14]], dtype=np.float32)
    lesions = lesions_of(Reference(geometry, boxes=boxes, box_labels=(1, 1)))
    map_ = np.zeros((20, 20), dtype=np.int32)
    map_[0:10, 0:5] = 1
    candidates = candidates_of(prediction_of(map_, (0.9,), geometry), None)
    table = overlap_table(candidates, lesions)
    assert table.iou.tolist() == [0.5]
    assert table.voxels.tolist() == [0]
    assert lesions.diameters_mm.tolist() == [10.0, 2.0]
    np.testing.assert_allclose(lesions.centres_mm[0], [4.5, 4.5])
