"""Operating points: requests as text, the choice of the score, and finding it again."""

import numpy as np
import pytest

from lesionseg.core import OperatingPoint
from lesionseg.errors import ConfigError, ContentError
from lesionseg.evaluation import choose as choose_of_tables
from lesionseg.evaluation.operating_points import (
    OperatingPointAim,
    default_rate,
    find_operating_point,
    max_false_positives,
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
        ("fp_per_case: 1000000", "fp_per_case", 1e6),
        ("sensitivity:1", "sensitivity", 1),
        ("sensitivity:0", "sensitivity", 0),
        ("score:0.5", "score", 0.5),
    ],
)
def test_aim_is_parsed_and_written(text, kind, value):
    aim = OperatingPointAim.parse(text)
    assert (aim.kind, aim.value) == (kind, value)
    assert OperatingPointAim.parse(str(aim)) == aim


@pytest.mark.parametrize("text", [0, 0.5, 1])
def test_score_is_suggested_for_a_number_without_a_kind(text):
    with pytest.raises(ConfigError, match=rf"operating_point=.*Did you mean score:{text}\?"):
        OperatingPointAim.parse(text)


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
        "0.5:0.5",
        "",
        2,
    ],
)
def test_other_texts_are_errors_without_a_suggestion(text):
    with pytest.raises(ConfigError, match=r"operating_point=(?!.*Did you mean)"):
        OperatingPointAim.parse(text)


def test_number_may_be_allowed_as_a_score():
    assert OperatingPointAim.parse(0.3, number_is_score=True) == OperatingPointAim("score", 0.3)
    assert OperatingPointAim.parse("1e-05", number_is_score=True) == OperatingPointAim(
        "score", 1e-5
    )
    with pytest.raises(ConfigError):
        OperatingPointAim.parse(2, number_is_score=True)


def test_operating_points_are_found_by_their_aim():
    points = (OperatingPoint("fp_per_case:1", 0.4), OperatingPoint("sensitivity:0.9", 0.2))
    assert find_operating_point(points) is points[0]
    assert find_operating_point(points, OperatingPointAim("auto")) is points[0]
    assert find_operating_point(points, OperatingPointAim.parse("sensitivity:0.90")) is points[1]
    assert find_operating_point(points, OperatingPointAim("score", 0.37)).score == 0.37
    assert find_operating_point(()).score == 0.5
    for aim in (OperatingPointAim("fp_per_case", 2), OperatingPointAim("best_f1")):
        with pytest.raises(ConfigError, match="fp_per_case:1"):
            find_operating_point(points, aim)


# --- the choice ---------------------------------------------------------------------------------


@pytest.fixture
def results():
    """Return two cases: lesions found at 0.9, 0.6 and 0.2; false positives at 0.8, 0.5 and 0.4."""
    cases = {"a": ([0.9, 0.6], [0.8]), "b": ([0.2], [0.5, 0.4])}
    return [result(name, *scores) for name, scores in cases.items()]


@pytest.mark.parametrize(
    ("asked", "recall", "seen", "expected"),
    [
        # two cases allow 2k − 1 false positives, whose scores are .8, .5 and .4
        ("fp_per_case:0", 1 / 3, 0.0, 0.5),
        ("fp_per_case:0.5", 1 / 3, 0.0, 0.5),
        ("fp_per_case:1", 2 / 3, 0.5, 1.0),
        ("fp_per_case:1.5", 2 / 3, 1.0, 1.5),
        ("fp_per_case:8", 1.0, 1.5, 1.75),  # no further candidates; half of one is expected
        # two patients promise 1/3 with a missed one, 2/3 without, and 0.9 not at all
        ("sensitivity:0.333", 2 / 3, 0.5, 0.5),
        ("sensitivity:0.666", 1.0, 1.5, 1.75),
        ("sensitivity:0.9", 1.0, 1.5, 1.75),
        ("score:0.45", 2 / 3, 1.0, 1.0),
    ],
)
def test_requested_rate_or_sensitivity_is_reached(results, asked, recall, seen, expected):
    point = choose(results, OperatingPointAim.parse(asked))
    assert point.lesion_recall == pytest.approx(recall)
    assert point.false_positives_per_case == pytest.approx(seen)
    assert point.expected_false_positives_per_case == pytest.approx(expected)
    assert point.name == asked
    assert point.chosen_on == (None if asked == "score:0.45" else "validation")
    assert (point.attainable_recall, point.lesion_recall_ci95) == (1.0, None)  # of two patients


def test_score_is_just_above_the_first_false_positive_too_many(results):
    assert choose(results) == replace(
        choose(results, OperatingPointAim("fp_per_case", 1)), is_default=True
    )
    assert 0.5 < choose(results).score <= 0.5002
    crowded = [result("a", [0.50001], [0.5])]
    assert 0.5 < choose(crowded, OperatingPointAim("fp_per_case", 0)).score <= 0.50001
    # if a false positive has the highest score, a rate of 0 finds nothing
    point = choose([result("a", [0.5], [1.0])], OperatingPointAim("fp_per_case", 0))
    assert point.score > 1.0
    assert (point.lesion_recall, point.false_positives_per_case) == (0.0, 0.0)


@pytest.mark.parametrize("aim", ["fp_per_case:1", "best_f1"])
def test_score_without_candidates_is_one_half_and_is_logged(aim, caplog):
    point = choose([result("a", [None])], OperatingPointAim.parse(aim))
    assert (point.score, point.lesion_recall, point.false_positives_per_case) == (0.5, 0.0, 0.0)
    assert "detected nothing" in caplog.text


@pytest.mark.parametrize(
    ("results", "aim", "words"),
    [
        ([], "auto", "No case has a prediction"),
        ([result("a", [1.0], has_scores=False)], "auto", None),
        ([result("a", [None], status="missing")], "auto", None),
        ([result("a", [], [0.3])], "sensitivity:0.5", None),
        ([result("a", [None])], "sensitivity:0.5", "0 of 1"),
        ([result("a", [0.7, None])], "sensitivity:0.9", "1 of 2"),
    ],
)
def test_operating_point_out_of_reach_is_an_error(results, aim, words, caplog):
    with pytest.raises(ContentError, match=words):
        choose(results, OperatingPointAim.parse(aim))
    assert not caplog.text  # no threshold is used


def test_eight_patients_give_intervals(results):
    many = [replace(r, case=f"p{i}", group=f"p{i}") for i, r in enumerate(results * 4)]
    point = choose(many, OperatingPointAim("fp_per_case", 0.8))
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


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("n", "asked", "variance"),
    [
        (10, 1.0, 0),
        pytest.param(4, 2.0, 0, marks=SLOW),
        pytest.param(4, 2.0, 1, marks=SLOW),
        pytest.param(10, 1.0, 1, marks=SLOW),
        pytest.param(30, 0.5, 0, marks=SLOW),
        pytest.param(30, 0.5, 1, marks=SLOW),
    ],
)
def test_new_patients_have_the_requested_rate_on_average(n, asked, variance):
    rng = np.random.default_rng(0)
    sets = (draw_patients(n, variance, rng) for _ in range(400 if n == 4 else 200))
    points = [choose(some, OperatingPointAim("fp_per_case", asked)) for some in sets]
    true = MEAN * np.array([1 - min(p.score, 1.0) for p in points])
    expected = np.array([p.expected_false_positives_per_case for p in points])
    assert true.mean() == pytest.approx(asked, rel=0.1)
    assert expected.mean() == pytest.approx(true.mean(), rel=0.1)
    assert (true > 2 * asked).mean() <= 0.12


@pytest.mark.parametrize(
    ("n", "variance", "asked", "used"),
    [
        (20, 1, 0.5, 0.35),
        pytest.param(12, 0, 1.0, 0.4, marks=SLOW),
        pytest.param(50, 2.5, 1.0, 0.4, marks=SLOW),
    ],
)
def test_rate_of_new_patients_is_met_in_nine_sets_of_ten(n, variance, asked, used):
    rng = np.random.default_rng(0)
    kept = []
    given = []
    for _ in range(200):
        point = choose(
            draw_patients(n, variance, rng), OperatingPointAim("fp_per_case", asked), confidence=0.9
        )
        share = 1 - min(point.score, 1.0)
        kept.append(rng.poisson(share * draw_rates(n, variance, rng)).sum() <= asked * n)
        given.append(share * MEAN / asked)
    assert np.mean(kept) >= 0.88
    assert used <= np.mean(given) < 1


def test_too_few_cases_allow_no_false_positive_and_have_no_confidence():
    # negative binomial: 1 − 2^−5 = .97 after none in 4 cases, .89 after one; 1 − 2^−4; 1 − 2^−3
    by_hand = {(1.0, 4): 0, (0.5, 6): 0, (0.5, 5): -1}
    assert {k: max_false_positives(*k, confidence=0.9) for k in by_hand} == by_hand
    few = draw_patients(4, 0, np.random.default_rng(1))
    point = choose(few, OperatingPointAim("fp_per_case", 0.5), confidence=0.9)
    assert (point.false_positives_per_case, point.confidence) == (0.0, None)
    assert point.lesion_recall == 1.0
    more = draw_patients(30, 0, np.random.default_rng(1))
    assert choose(more, OperatingPointAim("fp_per_case", 1.0), confidence=0.9).confidence == 0.9
    # without a false positive, lesions are found above all of them, so the stricter score is used
    strict = choose(few, OperatingPointAim("fp_per_case", 1.0), confidence=0.9)
    assert strict.score > choose(few, OperatingPointAim("fp_per_case", 1.0)).score
    assert strict.confidence == 0.9
    rare = choose(few, OperatingPointAim("fp_per_case", 0.1))
    assert rare.false_positives_per_case == 0.0
    assert rare.expected_false_positives_per_case >= 0.25


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_score_that_finds_no_lesion_is_not_chosen(confidence):
    # 2 of 4 have a false positive, and without any no lesion is found
    few = [result(f"p{i}", [0.5], [0.9] * (i < 2)) for i in range(4)]
    point = choose(few, OperatingPointAim("fp_per_case", 0.5), confidence=confidence)
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
    for n, name in ((30, "fp_per_case:3"), (3, "fp_per_case:1")):
        results = [result(f"c{i}", [0.9] * n, [0.5] * 5) for i in range(4)]
        assert choose(results).name == name


def test_best_f1_equals_a_search_of_all_scores():
    rng = np.random.default_rng(3)
    at = rng.uniform(0.2, 1, (4, 5))
    false = rng.uniform(0, 0.8, (4, 9))
    results = [result(f"c{i}", at[i].tolist(), false[i].tolist()) for i in range(4)]
    point = choose(results, OperatingPointAim("best_f1"))
    scores = np.linspace(0, 1, 2001)
    found = (at.ravel() >= scores[:, None]).sum(1)
    mistaken = (false.ravel() >= scores[:, None]).sum(1)
    assert point.lesion_f1 == pytest.approx((2 * found / (found + mistaken + 20)).max())
    assert point.name == "best_f1"


@pytest.mark.parametrize("aim", ["best_f1", "sensitivity:0.9"])
def test_no_false_positive_on_a_few_cases_does_not_promise_none_on_new_ones(aim):
    results = [result(f"c{i}", [0.9], [0.1]) for i in range(4)]
    assert choose(results, OperatingPointAim.parse(aim)).expected_false_positives_per_case == 0.125
