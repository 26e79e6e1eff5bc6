"""A point chosen with confidence keeps to its rate on new patients, and is not too strict."""

from dataclasses import replace

import numpy as np
import pytest

from lesionseg.evaluation import PRESETS, CaseResult, choose, evaluate_case
from lesionseg.evaluation.statistics.operating_point import most_false_positives
from tests.evaluation.hand_cases import HandCase, make_prediction, make_reference

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
