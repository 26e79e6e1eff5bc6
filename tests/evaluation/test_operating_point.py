from dataclasses import replace

import numpy as np
import pytest
from scipy.special import erfc

from lesionseg.errors import ConfigError, ContentError
from lesionseg.evaluation import PRESETS, CaseResult, choose, evaluate_case, summarise
from lesionseg.evaluation.curves import Pool
from lesionseg.evaluation.operating_point import (
    attainable_recall,
    dealt_folds,
    most_false_positives,
    with_expectation,
    with_intervals,
)
from tests.evaluation.hand_cases import HandCase, make_prediction, make_reference


def judge(reference, prediction, scores, case="a", role="validation", scored=True):
    drawn = HandCase(case, "", reference, prediction, scores, 0, 0, 0)
    found = make_prediction(drawn)
    found = type(found)(case, found.geometry, found.candidates, found.instances, scored=scored)
    return evaluate_case(make_reference(drawn), found, PRESETS["lesionseg"], case=case, role=role)


@pytest.fixture
def results():
    """Two cases: lesions found at .9, .6 and .2; false positives at .8, .5 and .4."""
    return [
        judge("11.22.... .........", "11.22.333 .........", (0.9, 0.6, 0.8), "a"),
        judge("11....... .........", "11.22.333 .........", (0.2, 0.5, 0.4), "b"),
    ]


@pytest.mark.parametrize(
    ("rate", "recall", "false"), [(0.0, 1 / 3, 0.0), (0.5, 2 / 3, 0.5), (1.0, 2 / 3, 1.0)]
)
def test_no_more_false_positives_than_asked_for(results, rate, recall, false):
    point = choose(results, fp_per_case=rate)
    assert point.lesion_recall == pytest.approx(recall)
    assert point.false_positives_per_case == pytest.approx(false)
    assert point.chosen_on == "validation"
    assert point.name == f"fp_per_case:{rate:g}"


def test_one_false_positive_per_case_is_the_default(results):
    assert choose(results) == choose(results, fp_per_case=1)
    assert 0.4 < choose(results).score <= 0.5


def test_more_false_positives_than_there_are_accepts_everything(results):
    point = choose(results, fp_per_case=8)
    assert (point.lesion_recall, point.false_positives_per_case) == (1.0, 1.5)


@pytest.mark.parametrize(
    ("sensitivity", "false"), [(1 / 3, 0.0), (0.5, 0.5), (2 / 3, 0.5), (0.9, 1.5), (1.0, 1.5)]
)
def test_the_highest_score_of_the_sensitivity(results, sensitivity, false):
    point = choose(results, sensitivity=sensitivity)
    assert point.lesion_recall >= sensitivity - 1e-9
    assert point.false_positives_per_case == false


def test_an_unreachable_sensitivity_is_refused_with_what_can_be_reached():
    results = [judge("11.22 .....", "11... .....", (0.7,))]
    with pytest.raises(ContentError, match=r"1 of 2"):
        choose(results, sensitivity=0.9)
    assert choose(results, sensitivity=0.5).score == 0.7


def test_false_positives_that_outrank_everything():
    results = [judge("11... .....", "11.22 .....", (0.5, 1.0))]
    point = choose(results, fp_per_case=0)
    assert point.score > 1.0
    assert (point.lesion_recall, point.false_positives_per_case) == (0.0, 0.0)


def test_no_candidate_at_all_gives_a_score_halfway_and_says_so(caplog):
    missed = [judge("11... .....", "..... .....", ())]
    point = choose(missed)
    assert (point.score, point.lesion_recall, point.false_positives_per_case) == (0.5, 0.0, 0.0)
    assert "No case has a candidate" in caplog.text
    with pytest.raises(ContentError):
        choose(missed, sensitivity=0.5)


def test_refusals(results):
    with pytest.raises(ConfigError):
        choose(results, fp_per_case=1, sensitivity=0.9)
    with pytest.raises(ContentError):
        choose([judge("11 ..", "11 ..", (1.0,), scored=False)])
    with pytest.raises(ContentError):
        choose([])
    with pytest.raises(ContentError):
        choose([judge(".. ..", "11 ..", (0.3,))], sensitivity=0.5)


@pytest.mark.parametrize("name", ["fp_per_case:1", "fp_per_case:0", "sensitivity:0.5"])
def test_each_fold_is_accepted_by_the_score_of_the_others(results, name):
    # a (lesions .9 .6, false .8) by b's score (.45, just over .5, .2): 2 found, 1 false;
    # b (lesion .2, false .5 .4) by a's score (.6, .85, .85): nothing
    kind, value = name.split(":")
    point = with_expectation(choose(results, **{kind: float(value)}), results, {"a": 0, "b": 1})
    assert point.expected_recall == pytest.approx(2 / 3)
    assert point.expected_false_positives_per_case == pytest.approx(0.5)


def test_one_fold_expects_nothing(results):
    point = with_expectation(choose(results), results, {"a": 0, "b": 0})
    assert point.expected_recall is None


def test_a_sensitivity_the_other_folds_do_not_reach_takes_their_last_lesion():
    results = [
        judge("11.22 .....", "11.22 .....", (0.9, 0.3), "a"),
        judge("11.22 .....", "11... .....", (0.6,), "b"),
    ]
    point = with_expectation(choose(results, sensitivity=0.75), results, {"a": 0, "b": 1})
    # a by .6 of b: 1 of 2; b by .3 of a: 1 of 2
    assert point.expected_recall == pytest.approx(0.5)


def test_intervals_are_those_of_the_scores(results):
    assert with_intervals(choose(results), results).lesion_recall_ci95 is None  # 2 groups
    many = [
        judge(
            "11.22.... .........", "11.22.333 .........", (0.9, 0.6, 0.4 + i % 2 / 10 * 4), f"c{i}"
        )
        for i in range(8)
    ]
    many = [replace(r, group=r.case) for r in many]
    point = with_intervals(choose(many, fp_per_case=0.5), many)
    low, high = point.false_positives_per_case_ci95
    assert 0 <= low < point.false_positives_per_case < high
    judged = summarise(
        [
            replace(
                r,
                lesions=tuple(replace(x, detected=x.detected_at >= point.score) for x in r.lesions),
            )
            for r in many
        ],
        PRESETS["lesionseg"],
        evaluated_on="validation",
        replicates=10,
    )
    assert list(point.lesion_recall_ci95) == judged["lesion_recall"]["ci95"]


def drawn_study(n_groups, rng):
    """Patients with 1 lesion or more and false positives that crowd, the scores of either."""
    lesions = 1 + rng.poisson(rng.gamma(0.7, 4 / 0.7, n_groups))
    false = rng.poisson(rng.gamma(0.7, 3 / 0.7, n_groups))
    case = judge("11... .....", "..... .....", ())
    found = lambda score: replace(case.lesions[0], detected_at=float(score))  # noqa: E731
    wrong = judge("..... .....", "11... .....", (0.5,)).candidates[0]
    return [
        replace(
            case,
            case=f"c{i}",
            group=f"c{i}",
            lesions=tuple(map(found, rng.normal(1, 1, n) + rng.normal(0, 0.5))),
            candidates=tuple(replace(wrong, score=float(s)) for s in rng.normal(-0.5, 0.8, m)),
        )
        for i, (n, m) in enumerate(zip(lesions, false, strict=True))
    ]


@pytest.mark.parametrize("groups", [5, 10, 20])
def test_intervals_hold_what_the_score_gives_elsewhere_though_it_was_chosen_here(groups):
    rng = np.random.default_rng(groups)
    held = np.zeros(2)
    for _ in range(200):
        results = drawn_study(groups, rng)
        point = with_intervals(choose(results, fp_per_case=0.5, quiet=True), results)
        # lesions: normal of mean 1 and deviation √1.25; 3 false positives a patient
        truth = (
            0.5 * erfc((point.score - 1) / np.sqrt(2 * 1.25)),
            3 * 0.5 * erfc((point.score + 0.5) / (0.8 * np.sqrt(2))),
        )
        ends = point.lesion_recall_ci95, point.false_positives_per_case_ci95
        pairs = zip(truth, ends, strict=True)
        held += [True if pair is None else pair[0] <= t <= pair[1] for t, pair in pairs]
    assert (held / 200 >= 0.92).all()


def test_what_can_be_reached_and_folds_dealt_by_group(results):
    assert attainable_recall(results) == 1.0
    assert attainable_recall([judge(".. ..", "11 ..", (0.3,))]) is None
    grouped = [
        replace(r, case=f"{r.case}{i}", group=g)
        for i, (r, g) in enumerate(zip(results * 3, "ababca", strict=True))
    ]
    assert dealt_folds(grouped, 2) == {"a0": 0, "b1": 1, "a2": 0, "b3": 1, "a4": 0, "b5": 0}


# --- with confidence ---

MEAN = 2.0  # false positives per case among all candidates, their scores uniform in [0, 1]


@pytest.fixture(scope="module")
def template() -> CaseResult:
    """A lesion found and a false positive, to be multiplied."""
    drawn = HandCase("x", "", "11... .....", "11.22 .....", (0.9, 0.5), 0, 0, 0)
    return evaluate_case(
        make_reference(drawn), make_prediction(drawn), PRESETS["lesionseg"], case="x", group="x"
    )


def rates(n: int, shape: float | None, rng: np.random.Generator) -> np.ndarray:
    """False positives to expect of each of `n` patients: gamma distributed, or all alike."""
    return MEAN * (np.ones(n) if shape is None else rng.gamma(shape, 1 / shape, n))


def patients(
    template: CaseResult, n: int, shape: float | None, rng: np.random.Generator
) -> list[CaseResult]:
    false = template.candidates[1]
    return [
        replace(
            template,
            case=f"p{i:04d}",
            group=f"p{i:04d}",
            lesions=(replace(template.lesions[0], detected_at=0.999),),
            candidates=tuple(replace(false, score=float(s)) for s in rng.random(rng.poisson(rate))),
        )
        for i, rate in enumerate(rates(n, shape, rng))
    ]


# how alike the patients are (shape of the gamma law; None: all alike), and how much of the rate
# asked the chosen score gives on average at least
@pytest.mark.parametrize(
    ("n", "shape", "asked", "used"),
    [(12, None, 1.0, 0.4), (20, 1.0, 0.5, 0.35), (100, 0.4, 1.0, 0.6)],
)
def test_as_many_new_patients_keep_to_the_rate_in_nine_sets_of_ten(template, n, shape, asked, used):
    rng = np.random.default_rng(0)
    kept, given, kept_before = [], [], []
    for _ in range(min(24000 // n, 600)):
        results = patients(template, n, shape, rng)
        fresh = rates(n, shape, rng)
        for kept_by, confidence in ((kept, 0.9), (kept_before, None)):
            point = choose(results, fp_per_case=asked, confidence=confidence)
            share = 1 - min(point.score, 1.0)
            kept_by.append(rng.poisson(share * fresh).sum() <= asked * n)
            if confidence:
                given.append(share * MEAN / asked)
    assert np.mean(kept) >= 0.9
    assert used <= np.mean(given) < 1
    assert np.mean(kept_before) < 0.7  # the observed rate is exceeded about every second time


def test_how_many_may_be_seen():
    # P(X <= 1 | 1 + 1 seen and unseen alike) etc. by hand: the negative binomial's tail
    assert most_false_positives(1.0, 4) == 4
    assert most_false_positives(1.0, 4, 0.9) == 0  # 1 - 2^-5 = .97 after none, .89 after one
    assert most_false_positives(0.5, 6, 0.9) == 0  # 1 - 2^-4 = .94
    assert most_false_positives(0.5, 5, 0.9) == -1  # 1 - 2^-3 = .88
    assert most_false_positives(1.0, 10_000, 0.9) > 9_750
    assert most_false_positives(1.0, 100, 0.9, deff=4.0) < most_false_positives(1.0, 100, 0.9)


def test_too_few_cases_allow_no_false_positive_and_say_that_the_rate_is_not_held(template):
    rng = np.random.default_rng(1)
    few = patients(template, 4, None, rng)
    point = choose(few, fp_per_case=0.5, confidence=0.9)
    assert (point.false_positives_per_case, point.confidence) == (0.0, None)
    assert point.lesion_recall == 1.0
    assert choose(few, fp_per_case=1.0, confidence=0.9).confidence == 0.9


def test_a_score_that_finds_nothing_is_not_taken(template):
    false = replace(template.candidates[1], score=0.9)
    low = replace(template.lesions[0], detected_at=0.5)
    few = [
        replace(
            template, case=f"p{i}", group=f"p{i}", lesions=(low,), candidates=(false,) * (i < 2)
        )
        for i in range(4)
    ]
    point = choose(few, fp_per_case=0.5, confidence=0.9)
    assert point == choose(few, fp_per_case=0.5)  # as observed, 2 of 4; at none nothing is found
    assert (point.lesion_recall, point.confidence) == (1.0, None)


# --- expectation ---


def drawn_patients(template: CaseResult, n: int, rng: np.random.Generator) -> list[CaseResult]:
    """Patients of about three lesions and four false positives; some score higher throughout."""
    (lesion,), false = template.lesions, template.candidates[1]
    made = []
    for i in range(n):
        level = rng.normal(0, 0.5)
        found, wrong = (
            1 / (1 + np.exp(-rng.normal(middle + level, 1.1, rng.poisson(mean))))
            for middle, mean in ((0.5, 3), (-1.0, 4))
        )
        made.append(
            replace(
                template,
                case=f"p{i:04d}",
                group=f"p{i:04d}",
                lesions=tuple(replace(lesion, detected_at=float(s)) for s in found),
                candidates=tuple(replace(false, score=float(s)) for s in wrong),
            )
        )
    return made


def test_the_expectation_is_nearer_to_new_patients_than_what_was_chosen_on(template):
    """Averages of 300 data sets of 20 patients, by recall and false positives a case."""
    rng = np.random.default_rng(0)
    fresh = Pool.of(drawn_patients(template, 6000, rng))
    wishes = [{"fp_per_case": 0.5}, {"fp_per_case": 1.0}, {"sensitivity": 0.9}]
    chosen, expected, true = (np.zeros((3, 2)) for _ in range(3))
    for _ in range(300):
        results = drawn_patients(template, 20, rng)
        for k, wish in enumerate(wishes):
            point = with_expectation(choose(results, **wish), results, dealt_folds(results))
            chosen[k] += point.lesion_recall, point.false_positives_per_case
            expected[k] += point.expected_recall, point.expected_false_positives_per_case
            true[k] += (
                (fresh.detected_at >= point.score).mean(),
                (fresh.false_score >= point.score).sum() / fresh.n_cases,
            )
    optimism, error = (chosen - true) / 300, (expected - true) / 300
    assert optimism[:2, 1].max() < -0.02  # fewer false positives than there will be
    assert optimism[2, 0] > 0.01
    assert np.abs(error[:, 0]).max() < 0.01
    assert abs(error[1, 1]) < abs(optimism[1, 1])
    assert error[:, 1].min() > -0.02  # a fifth fewer patients to choose on flatter no one
    assert error[:, 1].max() < 0.05
