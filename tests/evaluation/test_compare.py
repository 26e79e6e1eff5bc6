import itertools

import numpy as np
import pytest

from lesionseg.errors import ContentError, DatasetError
from lesionseg.evaluation.adjudication import Answer, adjudicate, read_answers
from lesionseg.evaluation.compare import AT_THRESHOLDS
from lesionseg.evaluation.compare import compare as compare_tables
from lesionseg.evaluation.curves import average_precision, case_auroc, cpm, froc
from tests.evaluation.hand_cases import box_of, evaluate_hand_case, result, tables_of


def compare(one, other, **options):
    return compare_tables(tables_of(one), tables_of(other), **options)


def make_model(names):
    return [evaluate_hand_case(n, case=f"case{i}", group=f"g{i // 2}") for i, n in enumerate(names)]


def test_equal_models_do_not_differ_and_a_better_one_does():
    same = make_model(["perfect", "missed"] * 8)
    found = compare(same, same, replicates=200)["lesion_recall"]
    assert (found.one, found.difference, found.p_value) == (0.5, 0.0, 1.0)
    assert found.ci95 is None
    one = make_model(["perfect"] * 15 + ["missed"])
    other = make_model(["missed"] * 12 + ["perfect"] * 4)
    found = compare(one, other, replicates=500)["lesion_recall"]
    assert found.difference == pytest.approx(15 / 16 - 4 / 16)
    low, high = found.ci95
    assert 0 < low < found.difference < high <= 1
    assert found.p_value < 0.1
    back = compare(other, one, replicates=500)["lesion_recall"]
    assert back.difference == -found.difference
    assert back.p_value == pytest.approx(found.p_value)


def test_interval_of_a_difference_may_have_both_signs():
    """Five patients say little, even if all resampled differences are positive."""
    one = [result(f"c{i}", [0.9], dice=dice) for i, dice in enumerate([0.72] * 4 + [0.9])]
    other = [result(f"c{i}", [0.9], dice=dice) for i, dice in enumerate([0.7] * 4 + [0.3])]
    found = compare(one, other, replicates=500)["dice"]
    assert found.difference == pytest.approx((4 * 0.02 + 0.6) / 5)
    assert -1 <= found.ci95[0] < 0 < found.ci95[1] <= 1


def test_dice_is_compared_only_between_models_of_masks():
    masks = [result(case, [0.9], dice=0.8) for case in "abcdef"]
    boxes = [result(case, [0.9], dice=None) for case in "abcde"]
    # the failed case of a model of boxes has a Dice of 0
    failed = result("f", [None], status="missing", dice=0.0)
    found = compare([*boxes, failed], masks, replicates=20)["dice"]
    assert (found.one, found.other, found.difference, found.p_value) == (None,) * 4
    found = compare([*masks[:5], failed], masks, replicates=20)["dice"]
    assert (found.one, found.other) == pytest.approx((4.0 / 6, 0.8))


def make_scored_model(seed, shift, n_false=1, n_groups=40):
    """Return patients with one lesion and `n_false` false positives.

    Lesions score `shift` higher.
    """
    rng = np.random.default_rng(seed)
    results = []
    for i in range(n_groups):
        detected_at = rng.normal(shift, size=1)
        false = rng.normal(size=n_false)
        results.append(result(f"c{i}", detected_at.tolist(), false.tolist()))
    return results


def test_models_are_compared_at_equal_false_positives():
    one = make_scored_model(0, 2.0)
    other = make_scored_model(1, 0.0)
    found = compare(one, other, replicates=100)
    for rate in (0.5, 1, 2):
        row = found[f"recall_at_{rate:g}"]
        recalls = [froc(tables_of(m), [rate])(np.ones((1, 40)))[0, 0] for m in (one, other)]
        assert (row.one, row.other) == tuple(recalls)
    assert found["recall_at_0.5"].ci95[0] > 0
    primary = [name for name, row in found.items() if row.primary]
    assert primary == ["recall_at_1"]
    assert found["recall_at_1"].p_holm is None
    rows = sorted((r for r in found.values() if r.p_holm is not None), key=lambda row: row.p_value)
    assert rows[0].p_holm == pytest.approx(min(1, len(rows) * rows[0].p_value))
    assert all(a.p_holm <= b.p_holm for a, b in itertools.pairwise(rows))
    assert compare(one, one, replicates=50)["cpm"].p_value == 1.0


def test_copies_differ_by_exactly_zero_in_each_number():
    """The sums of both models are formed in another order, which changes their last digits."""
    rng = np.random.default_rng(0)
    model = []
    for i in range(37):
        at = rng.random(3).tolist()
        dice = rng.random()
        model.append(result(f"c{i}", at, rng.random(2).tolist(), dice=dice, surface_dice=dice / 3))
    found = compare(model, model, replicates=20)
    assert {row.difference for row in found.values()} == {0.0}
    assert not any(np.signbit(row.difference) for row in found.values())


def test_numbers_at_unlike_thresholds_are_undefined_with_the_reason():
    one = make_scored_model(0, 2.0)
    other = make_scored_model(1, 0.0)
    found = compare(one, other, replicates=20, margin=0.1, why_not_at_thresholds="unlike")
    undefined = {name for name, row in found.items() if row.reason == "unlike"}
    defined = {"recall_at_0.5", "recall_at_1", "recall_at_2", "cpm", "average_precision"}
    assert defined == found.keys() - undefined
    assert {*AT_THRESHOLDS} == undefined
    for name in undefined:
        row = found[name]
        assert (row.one, row.other, row.difference, row.ci95, row.p_value) == (None,) * 5
    # the p-values of the other numbers are corrected for their own number
    assert max(found[name].p_holm for name in defined - {"recall_at_1"}) <= 4 * max(
        found[name].p_value for name in defined
    )


def test_margin_is_compared_with_the_lower_end_of_the_interval(monkeypatch):
    monkeypatch.setattr("lesionseg.evaluation.compare._PERMUTATIONS", 20)  # of the p-value
    one = make_scored_model(0, 1.0, 3)
    other = make_scored_model(1, 1.0, 3)
    low, high = compare(one, other, replicates=100)["recall_at_1"].ci95
    assert low < 0 < high
    for margin, shown in ((abs(low) + 0.01, True), (abs(low) / 2, False), (None, None)):
        found = compare(one, other, margin=margin, replicates=100)
        assert found["recall_at_1"].not_inferior is shown


def test_p_value_needs_five_patients_and_the_same_cases():
    one = make_model(["perfect"] * 10)  # five patients
    other = make_model(["missed"] * 10)
    assert compare(one, other, replicates=10)["lesion_recall"].p_value == 2 / 32
    found = compare(one[:6], other[:6])["lesion_recall"]
    assert (found.difference, found.ci95, found.p_value) == (1.0, None, None)
    assert "5 patients" in found.reason
    with pytest.raises(DatasetError, match="different cases: case9"):
        compare(one, other[:-1])
    with pytest.raises(DatasetError, match="case4 and 2 more"):
        compare(one, other[7:])
    with pytest.raises(DatasetError, match="another order"):
        compare(one, other[::-1])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"case": "c0", "candidate": "1", "answer": "maybe"}, "'maybe' is not known"),
        ({"answer": "lesion"}, "the case, the candidate or its box is missing"),
        ({"case": "c0", "candidate": "inf", "answer": "lesion"}, "is missing or is not a number"),
    ],
    ids=["unknown answer", "no candidate", "infinite candidate"],
)
def test_unusable_row_is_an_error_with_its_line_and_reason(row, reason):
    with pytest.raises(ContentError, match=f"line 3: .*{reason}"):
        read_answers([{"answer": " "}, row], "adjudicate.csv")


def test_equal_answers_count_once_and_different_ones_are_an_error():
    cases = [result("c0", (), [0.8])]
    (wrong,) = cases[0].candidates
    key = "c0", wrong.candidate, box_of(wrong)
    answers = [Answer(key, word) for word in ("lesion", "lesion", "unsure")]
    numbers = {row.name: row.value for row in adjudicate(tables_of(cases), answers[:2])}
    assert numbers["n_false_positive"] == 0
    with pytest.raises(ContentError, match="has two answers"):
        adjudicate(tables_of(cases), answers)


# --- curves by hand, without lesions, and of resampled groups ---

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def random_results(rng):
    """Return nine cases of six patients with equal scores. Some are only partly annotated."""
    results = []
    for i in range(9):
        at = [None if rng.random() < 0.3 else rng.integers(1, 10) / 10 for _ in range(i % 4)]
        false = rng.integers(1, 10, rng.integers(0, 6)) / 10
        results.append(
            result(
                f"c{i}",
                at,
                false.tolist(),
                group=f"{i % 6}",
                annotated={1: True, 2: bool(i % 3)},
                case_score=rng.integers(0, 10) / 10,
            )
        )
    return results


@pytest.mark.parametrize("seed", range(8))
def test_weight_of_a_group_equals_repeating_its_cases(seed):
    """Compare with repeated cases. test_matching.py checks the unweighted curves."""
    rng = np.random.default_rng(seed)
    results = random_results(rng)
    one = np.ones((1, 6))
    pool = tables_of(results)
    weights = rng.multinomial(6, np.full(6, 1 / 6), 5)
    for curve in (lambda p: froc(p, RATES), average_precision, case_auroc):
        for found, often in zip(curve(pool)(weights.astype(float)), weights, strict=True):
            again = tables_of([r for r in results for _ in range(often[int(r.group)])])
            expected = curve(again)(np.ones((1, len(again.groups))))[0]
            np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(cpm(pool, RATES)(one)[:, 0], froc(pool, RATES)(one).mean(1))


def test_froc_equals_the_values_by_hand():
    cases = [result("a", [0.9, 0.8, 0.5, None], [0.6, 0.85]), *(result(f"{i}") for i in range(7))]
    found = froc(tables_of(cases), (0.1, 0.125, 0.25, 8))(np.ones((1, 8)))
    assert found.tolist() == [[0.25, 0.5, 0.75, 0.75]]


def test_curves_are_zero_without_detections_and_undefined_without_lesions():
    one = np.ones((1, 1))
    never = tables_of([result("a", [None])])
    free = tables_of([result("a")])
    assert not froc(never, RATES)(one).any()
    assert average_precision(never)(one).item() == 0
    assert np.isnan(froc(free, RATES)(one)).all()
    assert np.isnan(average_precision(free)(one)).all()


@pytest.mark.parametrize(("n_cases", "has_cpm"), [(7, False), (8, True)])
def test_cpm_is_compared_only_if_it_is_defined(n_cases, has_cpm):
    model = make_model(["perfect", "missed", "perfect", "missed"] * 2)[:n_cases]
    assert ("cpm" in compare(model, model, replicates=10)) == has_cpm
