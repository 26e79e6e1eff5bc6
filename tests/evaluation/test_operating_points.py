"""Operating points: requests as text, the choice of the score, and finding it again."""

import numpy as np
import pytest

from lesionseg.core import OperatingPoint
from lesionseg.errors import ConfigError, ContentError
from lesionseg.evaluation import choose as choose_of_tables
from lesionseg.evaluation.operating_points import (
    Aim,
    default_rate,
    find_operating_point,
    most_false_positives,
)
from tests.evaluation.hand_cases import replace, result, tables_of


def choose(results, *aim, **options):
    return choose_of_tables(tables_of(results), *aim, **options)


# --- requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("auto", "auto", 0),
        (" best_f1 ", "best_f1", 0),
        ("fp_per_case:0", "fp_per_case", 0),
        ("fp_per_case: 1000000", "fp_per_case", 1e6),
        ("sensitivity:1", "sensitivity", 1),
        ("sensitivity:0", "sensitivity", 0),
        ("score:0.5", "score", 0.5),
        ("score:1", "score", 1),
    ],
)
def test_aim_is_parsed_and_written(text, kind, value):
    aim = Aim.parse(text)
    assert (aim.kind, aim.value) == (kind, value)
    assert Aim.parse(str(aim)) == aim


@pytest.mark.parametrize(
    "text",
    [
        "auto:1",
        "best_f1:",
        "score",
        "score:",
        "score:1.01",
        "score:-0.1",
        "score:nan",
        "sensitivity:1.5",
        "fp_per_case:1000001",
        "fp_per_case:-1",
        "recall:0.5",
        "",
    ],
)
def test_other_texts_are_errors_without_a_suggestion(text):
    with pytest.raises(ConfigError, match="operating_point=") as error:
        Aim.parse(text)
    assert "Did you mean" not in str(error.value)


@pytest.mark.parametrize(("text", "is_score"), [(0, True), (0.5, True), (1, True), (2, False)])
def test_number_without_a_kind_may_be_a_score(text, is_score):
    with pytest.raises(ConfigError) as error:
        Aim.parse(text)
    assert (f"Did you mean score:{text}?" in str(error.value)) is is_score


def test_score_after_a_wrong_kind_is_not_suggested():
    with pytest.raises(ConfigError) as error:
        Aim.parse("0.5:0.5")
    assert "Did you mean" not in str(error.value)


def test_number_may_be_allowed_as_a_score():
    assert Aim.parse(0.3, number_is_score=True) == Aim("score", 0.3)
    assert Aim.parse("1e-05", number_is_score=True) == Aim("score", 1e-5)
    with pytest.raises(ConfigError, match="operating_point=2: "):
        Aim.parse(2, number_is_score=True)


def test_operating_points_are_found_by_their_aim():
    points = (OperatingPoint("fp_per_case:1", 0.4), OperatingPoint("sensitivity:0.9", 0.2))
    assert find_operating_point(points) is points[0]
    assert find_operating_point(points, Aim("auto")) is points[0]
    assert find_operating_point(points, Aim.parse("sensitivity:0.90")) is points[1]
    assert find_operating_point(points, Aim("score", 0.37)).score == 0.37
    assert find_operating_point(()).score == 0.5
    for aim in (Aim("fp_per_case", 2), Aim("best_f1")):
        with pytest.raises(ConfigError, match="fp_per_case:1"):
            find_operating_point(points, aim)


# --- the choice ---------------------------------------------------------------------------------


@pytest.fixture
def results():
    """Return two cases: lesions found at 0.9, 0.6 and 0.2; false positives at 0.8, 0.5 and 0.4."""
    cases = {"a": ([0.9, 0.6], [0.8]), "b": ([0.2], [0.5, 0.4])}
    return [result(name, *scores) for name, scores in cases.items()]


# two cases allow 2k − 1 false positives, whose scores are .8, .5 and .4
@pytest.mark.parametrize(
    ("asked", "recall", "seen", "expected"),
    [
        (Aim("fp_per_case", 0.0), 1 / 3, 0.0, 0.5),
        (Aim("fp_per_case", 0.5), 1 / 3, 0.0, 0.5),
        (Aim("fp_per_case", 1.0), 2 / 3, 0.5, 1.0),
        (Aim("fp_per_case", 1.5), 2 / 3, 1.0, 1.5),
        (
            Aim("fp_per_case", 8.0),
            1.0,
            1.5,
            1.75,
        ),  # no further candidates, and half of one is expected
        # two patients promise 1/3 with a missed one, 2/3 without, and 0.9 not at all
        (Aim("sensitivity", 1 / 3), 2 / 3, 0.5, 0.5),
        (Aim("sensitivity", 2 / 3), 1.0, 1.5, 1.75),
        (Aim("sensitivity", 0.9), 1.0, 1.5, 1.75),
        (Aim("score", 0.45), 2 / 3, 1.0, 1.0),
    ],
)
def test_requested_rate_or_sensitivity_is_reached(results, asked, recall, seen, expected):
    point = choose(results, asked)
    assert point.lesion_recall == pytest.approx(recall)
    assert point.false_positives_per_case == pytest.approx(seen)
    assert point.expected_false_positives_per_case == pytest.approx(expected)
    assert Aim.parse(point.name).kind == asked.kind
    assert Aim.parse(point.name).value == pytest.approx(asked.value)
    assert point.chosen_on == (None if asked.kind == "score" else "validation")
    assert (point.attainable_recall, point.lesion_recall_ci95) == (1.0, None)  # of two patients


def test_score_is_just_above_the_first_false_positive_too_many(results):
    assert choose(results) == replace(choose(results, Aim("fp_per_case", 1)), is_default=True)
    assert 0.5 < choose(results).score <= 0.5002
    crowded = [result("a", [0.50001], [0.5])]
    assert 0.5 < choose(crowded, Aim("fp_per_case", 0)).score <= 0.50001
    # if a false positive has the highest score, a rate of 0 finds nothing
    point = choose([result("a", [0.5], [1.0])], Aim("fp_per_case", 0))
    assert point.score > 1.0
    assert (point.lesion_recall, point.false_positives_per_case) == (0.0, 0.0)


def test_score_without_candidates_is_one_half_and_is_logged(caplog):
    point = choose([result("a", [None])])
    assert (point.score, point.lesion_recall, point.false_positives_per_case) == (0.5, 0.0, 0.0)
    assert "detected nothing" in caplog.text
    caplog.clear()
    with pytest.raises(ContentError, match="0 of 1"):
        choose([result("a", [None])], Aim("sensitivity", 0.5))
    assert not caplog.text  # no threshold is used


def test_operating_point_out_of_reach_is_an_error():
    missing = result("a", [None], status="missing")
    for bad in ([result("a", [1.0], has_scores=False)], [], [missing]):
        with pytest.raises(ContentError):
            choose(bad)
    with pytest.raises(ContentError, match="No case has a prediction"):
        choose([])
    with pytest.raises(ContentError):
        choose([result("a", [], [0.3])], Aim("sensitivity", 0.5))
    with pytest.raises(ContentError, match=r"1 of 2"):
        choose([result("a", [0.7, None])], Aim("sensitivity", 0.9))


def test_eight_patients_give_intervals(results):
    many = [replace(r, case=f"p{i}", group=f"p{i}") for i, r in enumerate(results * 4)]
    point = choose(many, Aim("fp_per_case", 0.8))
    low, high = point.false_positives_per_case_ci95
    assert 0 <= low < point.false_positives_per_case < high
    assert point.lesion_recall_ci95[0] < point.lesion_recall < point.lesion_recall_ci95[1]


# --- false-positive rates of new patients ---

MEAN = 6.0  # false positives per case among all candidates, with scores uniform in [0, 1]


def draw_rates(n, variance, rng):
    """Return the expected false positives of `n` patients, gamma distributed or all equal."""
    return MEAN * (rng.gamma(1 / variance, variance, n) if variance else np.ones(n))


def draw_patients(n, variance, rng):
    """Return patients with a lesion that is always found."""
    numbers = rng.poisson(draw_rates(n, variance, rng))
    return [result(f"p{i}", [0.9999], rng.random(k).tolist()) for i, k in enumerate(numbers)]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("n", "asked", "variance"),
    [
        (10, 1.0, 0),
        slow(4, 2.0, 0),
        slow(4, 2.0, 1),
        slow(10, 1.0, 1),
        slow(30, 0.5, 0),
        slow(30, 0.5, 1),
    ],
)
def test_new_patients_have_the_requested_rate_on_average(n, asked, variance):
    rng = np.random.default_rng(0)
    sets = (draw_patients(n, variance, rng) for _ in range(400 if n == 4 else 200))
    points = [choose(some, Aim("fp_per_case", asked)) for some in sets]
    true = MEAN * np.array([1 - min(p.score, 1.0) for p in points])
    expected = np.array([p.expected_false_positives_per_case for p in points])
    assert true.mean() == pytest.approx(asked, rel=0.1)
    assert expected.mean() == pytest.approx(true.mean(), rel=0.1)
    assert (true > 2 * asked).mean() <= 0.12


@pytest.mark.parametrize(
    ("n", "variance", "asked", "used"),
    [(20, 1, 0.5, 0.35), slow(12, 0, 1.0, 0.4), slow(50, 2.5, 1.0, 0.4)],
)
def test_rate_of_new_patients_is_met_in_nine_sets_of_ten(n, variance, asked, used):
    rng = np.random.default_rng(0)
    kept = []
    given = []
    for _ in range(200):
        point = choose(draw_patients(n, variance, rng), Aim("fp_per_case", asked), confidence=0.9)
        share = 1 - min(point.score, 1.0)
        kept.append(rng.poisson(share * draw_rates(n, variance, rng)).sum() <= asked * n)
        given.append(share * MEAN / asked)
    assert np.mean(kept) >= 0.88
    assert used <= np.mean(given) < 1


def test_too_few_cases_allow_no_false_positive_and_have_no_confidence():
    # negative binomial: 1 − 2^−5 = .97 after none in 4 cases, .89 after one; 1 − 2^−4; 1 − 2^−3
    by_hand = {(1.0, 4): 0, (0.5, 6): 0, (0.5, 5): -1}
    assert {k: most_false_positives(*k, confidence=0.9) for k in by_hand} == by_hand
    few = draw_patients(4, 0, np.random.default_rng(1))
    point = choose(few, Aim("fp_per_case", 0.5), confidence=0.9)
    assert (point.false_positives_per_case, point.confidence) == (0.0, None)
    assert point.lesion_recall == 1.0
    more = draw_patients(30, 0, np.random.default_rng(1))
    assert choose(more, Aim("fp_per_case", 1.0), confidence=0.9).confidence == 0.9
    # without a false positive, lesions are found above all of them, so the stricter score is used
    strict = choose(few, Aim("fp_per_case", 1.0), confidence=0.9)
    assert strict.score > choose(few, Aim("fp_per_case", 1.0)).score
    assert strict.confidence == 0.9
    rare = choose(few, Aim("fp_per_case", 0.1))
    assert rare.false_positives_per_case == 0.0
    assert rare.expected_false_positives_per_case >= 0.25


def test_score_that_finds_no_lesion_is_not_chosen():
    few = [result(f"p{i}", [0.5], [0.9] * (i < 2)) for i in range(4)]
    for confidence in (
        None,
        0.9,
    ):  # 2 of 4 have a false positive, and without any no lesion is found
        point = choose(few, Aim("fp_per_case", 0.5), confidence=confidence)
        assert (point.lesion_recall, point.false_positives_per_case) == (1.0, 0.5)
        assert point.confidence is None


# --- the default, and the best F1 -------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_lesions", "n_cases", "rate"),
    [(0, 4, 1.0), (40, 4, 1.0), (41, 4, 1.0), (80, 4, 2.0), (1013, 51, 2.0), (5, 0, 1.0)],
)
def test_the_default_rate_is_one_or_a_tenth_of_the_lesions(n_lesions, n_cases, rate):
    assert default_rate(n_lesions, n_cases) == rate


def test_default_rate_grows_with_the_number_of_lesions():
    many = [result(f"c{i}", [0.9] * 30, [0.5] * 5) for i in range(4)]
    assert choose(many).name == "fp_per_case:3"
    few = [result(f"c{i}", [0.9] * 3, [0.5] * 5) for i in range(4)]
    assert choose(few).name == "fp_per_case:1"


def test_best_f1_equals_a_search_of_all_scores():
    rng = np.random.default_rng(3)
    results = [
        result(f"c{i}", rng.uniform(0.2, 1, 5).tolist(), rng.uniform(0, 0.8, 9).tolist())
        for i in range(4)
    ]
    point = choose(results, Aim("best_f1"))
    best = 0.0
    for score in np.linspace(0, 1, 2001):
        found = sum(lesion.detected_at >= score for r in results for lesion in r.lesions)
        false = sum(
            c.outcome_any == "false_positive" and c.score >= score
            for r in results
            for c in r.candidates
        )
        best = max(best, 2 * found / (found + false + 20))
    assert point.lesion_f1 == pytest.approx(best)
    assert point.name == "best_f1"


def test_no_false_positive_on_a_few_cases_does_not_promise_none_on_new_ones():
    results = [result(f"c{i}", [0.9], [0.1]) for i in range(4)]
    for text in ("best_f1", "sensitivity:0.9"):
        assert choose(results, Aim.parse(text)).expected_false_positives_per_case == 0.125


def test_best_f1_without_candidates_is_the_uninformed_score():
    assert choose([result("a", [None])], Aim("best_f1"), quiet=True).score == 0.5
