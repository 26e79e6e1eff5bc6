"""Intervals of a case's number and volume of lesions: by hand, and how often they hold."""

from types import SimpleNamespace

import numpy as np
import pytest

from lesionseg.evaluation.statistics.burden import burden_errors, count_interval, volume_interval


def case(group, n, accepted=(), ml=0.0, share=1.0):
    """A judged case of `n` lesions and `ml`; `accepted` are score and volume of candidates."""
    candidates = [SimpleNamespace(score=score, volume_ml=volume) for score, volume in accepted]
    return SimpleNamespace(
        group=group,
        lesions=[None] * n,
        candidates=candidates,
        reference_ml=ml,
        annotated_share=share,
    )


def test_the_largest_of_nineteen_patients_holds_for_the_twentieth():
    """2 lesions where 1 is accepted: √2.375 − √1.375; the faint candidate is not."""
    cases = [case(str(i), 1, [(0.9, 0.1)], ml=0.1) for i in range(18)]
    worst = case("worst", 2, [(0.5, 0.1), (0.4, 7.0)], ml=0.3)
    count, volume = burden_errors([*cases, worst], 0.5)
    assert count == pytest.approx(np.sqrt(2.375) - np.sqrt(1.375))
    assert volume == pytest.approx(np.log(0.365 / 0.165))
    assert count_interval(1, count) == (1, 2)
    low, high = volume_interval(0.1, volume)
    assert (low, high) == (pytest.approx(0.1 - 0.09, abs=1e-3), pytest.approx(0.3, abs=1e-3))
    assert burden_errors([*cases[1:], worst], 0.5) == (None, None)


def test_a_patient_counts_once_however_many_cases():
    cases = [case(str(i), 1, [(0.9, 0.1)]) for i in range(38)]
    # 1 of 39 patients has one bad case of ten: far less than one in twenty
    many = [case("often", 9 if i == 0 else 1, [(0.9, 0.1)]) for i in range(10)]
    assert burden_errors([*cases, *many], 0.5)[0] == 0


def test_what_is_not_known_has_no_interval():
    cases = [case(str(i), 1, [(0.9, None)]) for i in range(20)]
    assert burden_errors(cases, 0.5) == (0, None)  # boxes
    partly = [case(str(i), 1, [(0.9, 0.1)], share=0.5) for i in range(20)]
    assert burden_errors(partly, 0.5) == (None, None)
    assert burden_errors([], 0.5) == (None, None)


def test_nothing_accepted_may_still_be_a_lesion():
    assert count_interval(0, 0.6) == (0, 1)
    assert volume_interval(0.0, 1.0)[0] == 0


def test_intervals_hold_for_nineteen_of_twenty_new_patients():
    """Misses and false positives differ from patient to patient, so that a binomial law fails."""
    rng, held, n = np.random.default_rng(0), 0, 400
    for _ in range(n):
        cases = []
        for group in range(30):
            lesions, ease = rng.poisson(4), rng.beta(2, 1)
            found = rng.binomial(lesions, ease) + rng.poisson(2 * rng.random())
            cases.append(case(str(group), lesions, [(0.9, 0.1)] * found))
        error, _ = burden_errors(cases[1:], 0.5)
        low, high = count_interval(len(cases[0].candidates), error)
        held += low <= len(cases[0].lesions) <= high
    assert 0.93 <= held / n <= 0.99
