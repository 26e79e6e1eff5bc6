"""Lesions are found by the common cover of candidates, as in a naive reference and by hand."""

import tracemalloc
from dataclasses import replace
from functools import partial
from itertools import combinations, permutations

import numpy as np
import pytest

from lesionseg.core import Geometry, OperatingPoint, Prediction, Reference
from lesionseg.evaluation import PRESETS, SummarySettings, summarise
from lesionseg.evaluation.criteria import BRATS, INSTANCES, Criterion
from lesionseg.evaluation.matching import Links, assign, detection_scores, match
from lesionseg.evaluation.tables import NEVER_FOUND
from lesionseg.ops.components import unscored_prediction
from tests.evaluation.hand_cases import (
    HandCase,
    evaluate_case,
    evaluate_hand_case,
    make_prediction,
    make_reference,
    mask_boxes,
    naive_curves,
    prediction_of,
    random_case,
    tables_of,
)
from tests.grids import unit_grid

PRESET = PRESETS["lesionseg"]
ANY_PAIR = Criterion("any_pair", "overlap")


def match_naively(lesions, candidates, scores):
    """Return the support of each candidate and the score of each lesion from masks `[bool]`."""
    union = np.logical_or.reduce(lesions) if lesions else False
    supported = [10 * (mask & union).sum() >= mask.sum() for mask in candidates]
    found_at = [NEVER_FOUND] * len(lesions)
    for score in sorted(set(scores)):
        rows = [i for i, s in enumerate(scores) if supported[i] and s >= score]
        covered = np.logical_or.reduce([candidates[i] for i in rows]) if rows else False
        for i, lesion in enumerate(lesions):
            if 10 * (lesion & covered).sum() >= lesion.sum():
                found_at[i] = score  # ascending, so the highest score remains
    return supported, found_at


def masks_of(instances):
    return [instances == number for number in range(1, int(instances.max()) + 1)]


def check(links, lesions, candidates, scores):
    """Compare with the naive reference at every threshold. Found lesions must remain found."""
    supported, found_at = match_naively(lesions, candidates, scores)
    assert links.detected_at.tolist() == found_at
    before = np.zeros(len(lesions), bool)
    ids = links.candidates.ids - 1  # ranked by score, the masks by id
    for score in sorted({*scores, 1.0}, reverse=True):
        by, outcomes = links.decide_outcomes(links.scores >= score)
        found = by >= 0
        assert found.tolist() == [at >= score for at in found_at]
        assert (found | ~before).all()  # found lesions remain found
        before = found
        for row, candidate in enumerate(ids.tolist()):
            truth = "true_positive" if supported[candidate] else "false_positive"
            accepted = scores[candidate] >= score
            assert outcomes[row] == (truth if accepted else "not_accepted")


@pytest.mark.parametrize("block", range(10))
def test_matches_equal_a_naive_reference_at_every_threshold(block):
    for seed in range(60 * block, 60 * (block + 1)):
        reference, labels, drawn, given, scores = random_case(seed)
        truth = Reference(unit_grid(*reference.shape), instances=reference, instance_labels=labels)
        found = match(
            truth, prediction_of(drawn, scores, unit_grid(*drawn.shape), given), PRESET.criterion
        )
        lesions = masks_of(reference)
        candidates = masks_of(drawn)
        pairs = found.overlaps
        check(found, lesions, candidates, scores)
        a = np.reshape(candidates, (len(candidates), reference.size)).astype(int)
        b = np.reshape(lesions, (len(lesions), reference.size)).astype(int)
        shared = a @ b.T
        table = np.zeros((2, len(a), len(b)))
        iou = shared / (a.sum(1)[:, None] + b.sum(1) - shared)
        ids = found.candidates.ids[pairs.candidate], found.lesions.ids[pairs.lesion]
        table[:, ids[0] - 1, ids[1] - 1] = pairs.voxels, pairs.iou
        np.testing.assert_allclose(table, [shared, iou])


def fill_boxes(instances):
    """Return the box of each instance as a mask."""
    index = np.indices(instances.shape).T
    boxes = mask_boxes(instances, int(instances.max()))
    starts, stops = np.split(boxes, 2, axis=1)
    return [((index >= a) & (index < b)).all(-1).T for a, b in zip(starts, stops, strict=True)]


@pytest.mark.parametrize("bare", ["both", "reference", "prediction"])
def test_boxes_are_matched_like_filled_masks(bare):
    """Boxes may overlap, and a place that two of them cover counts once."""
    for seed in range(60):
        reference, _, drawn, _, scores = random_case(seed)
        if not reference.any() or not drawn.any():
            continue
        labels = (1,) * int(reference.max())
        geometry = unit_grid(*reference.shape)
        truth = Reference(geometry, instances=reference, instance_labels=labels)
        if bare != "prediction":
            boxes = mask_boxes(reference, len(labels)).astype(np.float32)
            truth = Reference(geometry, boxes=boxes, box_labels=labels)
        given = prediction_of(drawn, scores, geometry)
        if bare != "reference":
            rows = tuple(replace(c, has_mask=False) for c in given.candidates)
            given = Prediction("a", geometry, rows, None)
        links = match(truth, given, PRESET.criterion)
        check(links, fill_boxes(reference), fill_boxes(drawn), scores)


def test_split_and_merged_lesions_are_marked():
    split = evaluate_hand_case("split")
    merge = evaluate_hand_case("merge")
    assert (split.splits, split.merges, split.lesions[0].split) == (1, 0, True)
    assert (merge.splits, merge.merges) == (0, 1)
    assert [(x.split, x.merged) for x in merge.lesions] == [(False, True)] * 2


# --- one to one ---


def best_assignment(weight, *, most_pairs):
    """Return number and sum of the pairs of the best one-to-one assignment.

    The number of pairs counts first with `most_pairs`, and their sum otherwise.
    """
    n_candidates, n_lesions = weight.shape
    best = (0, 0.0)
    for size in range(1, min(weight.shape) + 1):
        for rows in combinations(range(n_candidates), size):
            for columns in permutations(range(n_lesions), size):
                chosen = weight[list(rows), list(columns)]
                found = (size, round(float(chosen.sum()), 6))
                if (chosen > 0).all():
                    best = max(best, found, key=lambda it: it if most_pairs else it[::-1])
    return best


@pytest.mark.parametrize("rule", [INSTANCES, BRATS])
@pytest.mark.parametrize("seed", range(25))
def test_assignment_is_maximal_at_every_threshold(seed, rule):
    rng = np.random.default_rng(seed)
    weight = rng.integers(10, 100, (5, 4)) / 100
    weight[rng.random(weight.shape) > 0.4] = 0
    candidate, lesion = np.nonzero(weight)
    boxes = np.zeros((len(candidate), 6))
    links = Links(rule, 4, candidate, lesion, weight[candidate, lesion], boxes)
    scores = rng.integers(1, 5, 5) / 5  # with ties
    found_at = detection_scores(links, scores)
    for threshold in np.unique(scores):
        present = scores >= threshold
        n_best, sum_best = best_assignment(weight[present], most_pairs=rule == INSTANCES)
        found = found_at >= threshold
        assert found.sum() == n_best
        candidate_of = assign(links, present, found)
        matched = candidate_of >= 0
        assert round(weight[candidate_of[matched], np.flatnonzero(matched)].sum(), 6) == sum_best
        assert len(set(candidate_of[matched])) == matched.sum()
        # the match of largest IoU finds the same lesions as the curve
        np.testing.assert_array_equal(matched, found)


def test_brats_pairs_the_largest_sum_of_dice_and_counts_the_rest_as_false():
    """Candidate 1 covers lesion 1 and touches lesion 2; candidate 2 touches lesion 1 only."""
    case = HandCase("case", "..11111111112222222222", "2221111111111.........", (0.9, 0.8))
    for rule, pairs, outcomes in (
        (ANY_PAIR, [1, 0], ["true_positive", "true_positive"]),
        (BRATS, [0, -1], ["true_positive", "false_positive"]),
        # an IoU of 0.82 does not reach the threshold, although the Dice of 0.9 would
        (Criterion("iou85", "iou", 0.85, "largest_sum"), [-1, -1], ["false_positive"] * 2),
    ):
        found = match(make_reference(case), make_prediction(case), rule)
        by, decided = found.decide_outcomes(np.array([True, True]))
        assert (by.tolist(), decided.tolist()) == (pairs, outcomes)


# --- scores.json is compared with an independent scorer of masks and plain loops ---

POINT = 0.4
SPACING = (2.5, 1.5, 0.8)
VOXEL_MM3 = 3.0
EDGES = [0, 3, 5, 10, 20, np.inf]
TOLERANCE = 1e-9


def naive_scores(cases):
    """Return the numbers of `(lesion masks, candidate masks, scores)` by case at the point.

    The recalls of lesions by size follow as a list.
    """
    at = []
    false = []
    free_false = []
    dice = []
    volumes = []
    sizes = []
    accepted = 0
    true = 0
    for lesions, candidates, scores in cases:
        supported, found_at = match_naively(lesions, candidates, scores)
        at += found_at
        sizes += [2 * (3 * m.sum() * VOXEL_MM3 / (4 * np.pi)) ** (1 / 3) for m in lesions]
        false += [s for s, good in zip(scores, supported, strict=True) if not good]
        shown = [i for i, s in enumerate(scores) if s >= POINT]
        accepted = accepted + len(shown)
        true = true + sum(supported[i] for i in shown)
        drawn = sum(candidates[i].sum() for i in shown)
        both = sum((candidates[i] & m).sum() for i in shown for m in lesions)
        present = sum(m.sum() for m in lesions)
        if lesions:
            dice.append(2 * both / (drawn + present))
        else:
            free_false.append(sum(not supported[i] for i in shown))
        volumes.append((drawn - present) * VOXEL_MM3 / 1000)
    hits = np.array(at) >= POINT
    wrong = sum(s >= POINT for s in false)
    area, _ = naive_curves(at, false, len(cases), ())
    bins = [np.searchsorted(EDGES, sizes, side="right") == i for i in range(1, len(EDGES))]
    by_size = [hits[inside].mean() for inside in bins if inside.any()]
    numbers = {
        "lesion_recall": hits.mean(),
        "lesion_precision": true / accepted,
        "lesion_f1": 2 * hits.sum() / (hits.sum() + len(at) + wrong),
        "false_positives_per_case": wrong / len(cases),
        "false_positives_per_lesion_free_case": np.mean(free_false),
        "specificity": np.mean([count == 0 for count in free_false]),
        "average_precision": area,
        "dice": np.mean(dice),
        "volume_ml_bias": np.mean(volumes),
    }
    return numbers, by_size


@pytest.mark.parametrize("block", range(4))
def test_scores_equal_a_naive_scorer(block):
    cases = {None: [], 1: [], 2: []}
    results = []
    for seed in range(80 * block, 80 * (block + 1), 2):  # even seeds have three axes
        reference, labels, drawn, given, scores = random_case(seed)
        lesions = [*zip(labels, masks_of(reference), strict=True)]
        candidates = [*zip(given, masks_of(drawn), scores, strict=True)]
        for label, some in cases.items():
            own = [x for x in candidates if label in (None, x[0])]
            masks = [mask for value, mask in lesions if label in (None, value)]
            some.append((masks, [mask for _, mask, _ in own], [score for *_, score in own]))
        geometry = Geometry.from_spacing(reference.shape, SPACING)
        values = np.array([0, *labels])[reference]
        truth = Reference(geometry, values, instances=reference, instance_labels=labels)
        prediction = prediction_of(drawn, scores, geometry, given)
        point = OperatingPoint("", POINT)
        name = f"c{seed:03d}"
        results.append(evaluate_case(truth, prediction, PRESET, case=name, operating_point=point))
    settings = SummarySettings(evaluated_on="test", replicates=0)
    found = summarise(tables_of(results), PRESET, settings)
    close = partial(pytest.approx, abs=TOLERANCE, rel=TOLERANCE)
    for label, own in cases.items():
        numbers, by_size = naive_scores(own)
        name = "" if label is None else f"{label}"
        known = {row.name for row in found.rows if row.label == name and not row.subset}
        assert label is not None or numbers.keys() <= known
        for key in numbers.keys() & known:
            assert found.find(key, label=name).value == close(numbers[key]), (label, key)
        if label is None:
            rows = [row.value for row in found.curve("recall_by_size") if row.value is not None]
            assert rows == close(by_size)


@pytest.mark.parametrize("rule", [p.criterion for p in PRESETS.values()], ids=list(PRESETS))
def test_memory_grows_with_the_overlaps_and_not_with_the_product(rule):
    """With 1000 lesions and candidates, a table of all pairs has 8 MB for each number."""
    mask = np.zeros((20, 20, 20), dtype=np.uint8)
    mask[::2, ::2, ::2] = 1
    grid = Geometry.from_spacing(mask.shape, (3.0, 1.0, 1.0))
    prediction = unscored_prediction("c", grid, mask, None)
    tracemalloc.start()
    found = match(Reference(grid, labels=mask), prediction, rule)
    candidate_of, outcomes = found.decide_outcomes(np.ones(1000, dtype=np.bool_))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6
    assert (candidate_of == np.arange(1000)).all()
    assert set(outcomes) == {"true_positive"}
