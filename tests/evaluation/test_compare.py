import itertools

import numpy as np
import pytest

from lesionseg.errors import ContentError, DatasetError
from lesionseg.evaluation.adjudication import ReaderAnswer, adjudicate, read_answers
from lesionseg.evaluation.compare import AT_THRESHOLDS
from lesionseg.evaluation.compare import compare as compare_tables
from lesionseg.evaluation.curves import froc
from tests.evaluation.hand_cases import box_of, evaluate_hand_case, result, tables_of


def compare(one, other, **options):
    return compare_tables(tables_of(one), tables_of(other), **options)


def make_model(names):
    return [evaluate_hand_case(n, case=f"case{i}", group=f"g{i // 2}") for i, n in enumerate(names)]


def test_equal_models_do_not_differ_and_a_better_one_does():
    same = make_model(["perfect", "missed"] * 8)
    found = compare(same, same, replicates=200)["lesion_recall"]
    assert (found.one, found.difference, found.p_value, found.ci95) == (0.5, 0.0, 1.0, None)
    one = make_model(["perfect"] * 15 + ["missed"])
    other = make_model(["missed"] * 12 + ["perfect"] * 4)
    found = compare(one, other, replicates=500)["lesion_recall"]
    assert found.difference == pytest.approx(15 / 16 - 4 / 16)
    low, high = found.ci95
    assert 0 < low < found.difference < high <= 1
    back = compare(other, one, replicates=500)["lesion_recall"]
    assert back.difference == -found.difference
    assert back.p_value == pytest.approx(found.p_value)
    assert found.p_value < 0.1


def test_interval_of_a_difference_may_have_both_signs():
    """Five patients say little, even if all resampled differences are positive."""
    dice = {"a": (0.72, 0.7), "b": (0.72, 0.7), "c": (0.72, 0.7), "d": (0.72, 0.7), "e": (0.9, 0.3)}
    one, other = ([result(c, [0.9], dice=x[k]) for c, x in dice.items()] for k in (0, 1))
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


def make_scored_model(seed, shift, n_false=1):
    """Return 40 patients with one lesion and `n_false` false positives.

    Lesions score `shift` higher.
    """
    scores = np.random.default_rng(seed).normal(size=(40, 1 + n_false))
    scores[:, 0] += shift
    return [result(f"c{i}", row[:1], row[1:]) for i, row in enumerate(scores.tolist())]


def test_models_are_compared_at_equal_false_positives():
    models = make_scored_model(0, 2.0), make_scored_model(1, 0.0)
    found = compare(*models, replicates=100)
    for rate in (0.5, 1, 2):
        row = found[f"recall_at_{rate:g}"]
        recalls = [froc(tables_of(m), [rate])(np.ones((1, 40))).item() for m in models]
        assert [row.one, row.other] == recalls
    assert found["recall_at_0.5"].ci95[0] > 0
    assert [name for name, row in found.items() if row.primary] == ["recall_at_1"]
    assert found["recall_at_1"].p_holm is None
    rows = sorted((r for r in found.values() if r.p_holm is not None), key=lambda row: row.p_value)
    assert rows[0].p_holm == pytest.approx(min(1, len(rows) * rows[0].p_value))
    assert all(a.p_holm <= b.p_holm for a, b in itertools.pairwise(rows))
    assert compare(models[0], models[0], replicates=50)["cpm"].p_value == 1.0


def test_copies_differ_by_exactly_zero_in_each_number():
    """The sums of both models are formed in another order, which changes their last digits."""
    model = []
    for i, (a, b, c, d, e, dice) in enumerate(np.random.default_rng(0).random((37, 6)).tolist()):
        model.append(result(f"c{i}", [a, b, c], [d, e], dice=dice, surface_dice=dice / 3))
    differences = [row.difference for row in compare(model, model, replicates=20).values()]
    assert set(differences) == {0.0}
    assert not np.signbit(differences).any()


def test_numbers_at_unlike_thresholds_are_undefined_with_the_reason():
    models = make_scored_model(0, 2.0), make_scored_model(1, 0.0)
    found = compare(*models, replicates=20, margin=0.1, why_not_at_thresholds="unlike")
    defined = {"recall_at_0.5", "recall_at_1", "recall_at_2", "cpm", "average_precision"}
    assert found.keys() == {*AT_THRESHOLDS} | defined
    for name in AT_THRESHOLDS:
        row = found[name]
        assert (row.one, row.other, row.difference, row.ci95, row.p_value) == (None,) * 5
        assert row.reason == "unlike"
    # the p-values of the other numbers are corrected for their own number
    largest = max(found[name].p_value for name in defined)
    assert all(found[name].p_holm <= 4 * largest for name in defined - {"recall_at_1"})


def test_margin_is_compared_with_the_lower_end_of_the_interval(monkeypatch):
    monkeypatch.setattr("lesionseg.evaluation.compare._PERMUTATIONS", 20)  # of the p-value
    models = make_scored_model(0, 1.0, 3), make_scored_model(1, 1.0, 3)
    low, high = compare(*models, replicates=100)["recall_at_1"].ci95
    assert low < 0 < high
    for margin, shown in ((abs(low) + 0.01, True), (abs(low) / 2, False), (None, None)):
        found = compare(*models, margin=margin, replicates=100)
        assert found["recall_at_1"].not_inferior is shown


def test_p_value_needs_five_patients_and_the_same_cases():
    one = make_model(["perfect"] * 10)  # five patients
    other = make_model(["missed"] * 10)
    assert compare(one, other, replicates=10)["lesion_recall"].p_value == 2 / 32
    found = compare(one[:6], other[:6])["lesion_recall"]
    assert (found.difference, found.ci95, found.p_value) == (1.0, None, None)
    assert "5 patients" in found.reason
    for wrong, words in (
        (other[:-1], "different cases: case9"),
        (other[7:], "case4 and 2 more"),
        (other[::-1], "another order"),
    ):
        with pytest.raises(DatasetError, match=words):
            compare(one, wrong)


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
    case = result("c0", (), [0.8])
    (wrong,) = case.candidates
    answers = [
        ReaderAnswer(("c0", wrong.candidate, box_of(wrong)), word)
        for word in ("lesion", "lesion", "unsure")
    ]
    numbers = {row.name: row.value for row in adjudicate(tables_of([case]), answers[:2])}
    assert numbers["n_false_positive"] == 0
    with pytest.raises(ContentError, match="has two answers"):
        adjudicate(tables_of([case]), answers)


@pytest.mark.parametrize(("n_cases", "has_cpm"), [(7, False), (8, True)])
def test_cpm_is_compared_only_if_it_is_defined(n_cases, has_cpm):
    model = make_model(["perfect", "missed"] * 4)[:n_cases]
    assert ("cpm" in compare(model, model, replicates=10)) == has_cpm
