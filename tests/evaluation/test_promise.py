"""The promise of a sensitivity: values by hand, a naive search, and simulated studies."""

from contextlib import suppress

import numpy as np
import pytest

from lesionseg.errors import ContentError
from lesionseg.evaluation.operating_points import (
    OperatingPointAim,
    choose,
    count_needed,
    describe_expected_recall,
    mean_recall,
)
from tests.evaluation.hand_cases import replace, result, tables_of


def choose_sensitivity(results, sensitivity):
    return choose(tables_of(results), OperatingPointAim("sensitivity", sensitivity))


def draw_patients(n, rng, *, never=0.0):
    """Return patients whose lesions have related scores; a share of `never` has no candidate."""
    results = []
    for i in range(n):
        scores = 1 / (1 + np.exp(-rng.normal() - rng.normal(0, 1, max(1, rng.poisson(4)))))
        scores = [None if rng.random() < never else float(s) for s in scores]
        results.append(result(f"p{i}", scores, rng.random(3).tolist()))
    return results


def search_naively(results, sensitivity):
    """Return the highest score of a lesion that keeps the promise, or None."""
    lesions = [[x.detected_at for x in r.lesions] for r in results]
    patients = [patient for patient in lesions if patient]
    n = len(patients)
    kept = None
    for score in sorted({s for patient in patients for s in patient if s is not None}):
        missed = [np.mean([s is None or s < score for s in patient]) for patient in patients]
        if (n * np.mean(missed) + 1) / (n + 1) <= 1 - sensitivity + 1e-9:
            kept = score
    return kept


@pytest.mark.parametrize(
    ("sensitivity", "needed"), [(0.0, 0), (0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (1.0, None)]
)
def test_number_of_patients_that_a_promise_needs(sensitivity, needed):
    assert count_needed(sensitivity) == needed


@pytest.mark.parametrize(("sensitivity", "score"), [(0.8, 0.2), (0.7, 0.4), (0.6, 0.6)])
def test_threshold_of_a_promise_by_hand(sensitivity, score):
    # four patients, (4·R + 1) / 5 ≤ 1 − S: 0.8 allows no missed lesion, 0.6 those of one patient
    results = [result(f"p{i}", [0.9, at]) for i, at in enumerate([0.2, 0.4, 0.6, 0.8])]
    point = choose_sensitivity(results, sensitivity)
    assert (point.score, point.promised, point.why_not_promised) == (score, sensitivity, None)
    assert point.expected_recall_per_patient >= sensitivity - 1e-9


def test_patients_count_equally_and_those_without_lesions_not_at_all():
    many = result("many", [0.9] * 9 + [0.3])
    results = [many, result("one", [0.5]), result("two", [0.6]), result("three", [0.7])]
    free = [result(f"free{i}", [], [0.95]) for i in range(20)]
    # (0.1 + 1) / 5 is above 0.2; pooled, one of 13 lesions may be missed
    assert choose_sensitivity(results, 0.8).score == 0.3
    assert choose_sensitivity(results, 0.78).score == 0.5
    assert choose_sensitivity([*results, *free], 0.78).score == 0.5
    assert "needed" in choose_sensitivity([*results[:2], *free], 0.8).why_not_promised


def test_scans_of_one_patient_count_together():
    scans = [result(f"s{i}", [0.9, 0.1 * i]) for i in range(1, 5)]
    joint = [replace(scan, group="p") for scan in scans]
    assert choose_sensitivity(scans, 0.8).promised == 0.8
    assert choose_sensitivity(joint, 0.8).why_not_promised.startswith("1 patient with lesions")
    # (2·R + 1) / 3 ≤ 0.4: one of the eight lesions may be missed; four scans of their own: two
    other = result("q", [0.9])
    assert choose_sensitivity([*joint, other], 0.6).score == 0.2
    assert choose_sensitivity([*scans, other], 0.6).score == pytest.approx(0.3)


def test_without_a_promise_the_threshold_is_that_of_the_pooled_lesions():
    results = [result(f"p{i}", [0.9 - i / 10]) for i in range(8)]
    point = choose_sensitivity(results, 0.9)
    assert (point.lesion_recall, point.promised) == (1.0, None)
    words = "8 patients with lesions cannot promise 0.9; at least 9 are needed"
    assert point.why_not_promised == words
    assert words in describe_expected_recall(point)
    assert "no number" in choose_sensitivity(results, 1.0).why_not_promised
    assert choose(tables_of(results), OperatingPointAim("fp_per_case", 1)).why_not_promised is None


@pytest.mark.parametrize(("n", "promised"), [(1, 0.9), (6, None)])
def test_lesions_without_a_candidate_are_missed_at_every_threshold(n, promised):
    """`n` of 19 patients have such a lesion."""
    lasts = [None] * n + [0.5] * (19 - n)
    results = [result(f"p{i}", [0.9, 0.8, 0.7, 0.6, last]) for i, last in enumerate(lasts)]
    point = choose_sensitivity(results, 0.9)
    assert point.promised == promised
    if promised is None:
        assert point.score == 0.5
        assert "0.063 of a patient's lesions have no candidate" in point.why_not_promised
    with pytest.raises(ContentError, match="0 of 2"):
        choose_sensitivity([result("p", [None, None])], 0.1)


@pytest.mark.parametrize("seed", range(6))
def test_threshold_equals_a_naive_search(seed):
    rng = np.random.default_rng(seed)
    for _ in range(10):
        results = draw_patients(int(rng.integers(1, 30)), rng, never=0.03)
        # equal scores within and between patients
        results += [result("tied", [0.5, 0.5, 0.7]), result("tied too", [0.5])]
        sensitivity = float(rng.choice([0.1, 0.5, 0.8, 0.9]))
        wanted = search_naively(results, sensitivity)
        if wanted is not None:
            point = choose_sensitivity(results, sensitivity)
            assert (point.score, point.promised) == (wanted, sensitivity)
            assert point.expected_recall_per_patient >= sensitivity - 1e-9
            continue
        with suppress(ContentError):  # fewer lesions of all patients have a candidate
            assert choose_sensitivity(results, sensitivity).promised is None


@pytest.mark.parametrize("n", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_promise_is_kept_on_average_over_studies(n):
    rng = np.random.default_rng(n)
    recalls = []
    for _ in range(200):
        score = choose_sensitivity(draw_patients(n, rng), 0.9).score
        new = tables_of(draw_patients(20, rng))
        found = new.add_up("lesions", new.detected_at >= score)
        recalls.append(mean_recall(found, new.lesions_by_group).value)
    assert np.mean(recalls) >= 0.9 - 2 * np.std(recalls) / np.sqrt(len(recalls))
    assert np.mean(recalls) <= 0.9 + (0.03 if n == 50 else 0.1)


def test_recall_per_patient_is_the_mean_of_shares():
    tables = tables_of([result("a", [0.9, 0.1]), result("b", [0.2]), result("free", [], [0.3])])
    found = tables.add_up("lesions", tables.detected_at >= 0.5)
    assert mean_recall(found, tables.lesions_by_group).value == pytest.approx(0.25)
    nobody = mean_recall(np.zeros(2), np.zeros(2))
    assert nobody.value is None
    assert nobody.reason


def test_promise_is_approximate_out_of_fold():
    point = choose_sensitivity([result(f"p{i}", [0.9, 0.5]) for i in range(4)], 0.8)
    words = describe_expected_recall(point)
    assert "0.8 of a new patient's lesions are promised" in words
    words = describe_expected_recall(replace(point, chosen_on="out-of-fold"))
    assert "approximately promised" in words
