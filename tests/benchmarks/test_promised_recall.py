"""The promise of a sensitivity on simulated studies."""

import numpy as np
import pytest

from benchmarks.robustness.promised_recall import (
    DRAWS,
    draw_studies,
    measure,
    simulate_patients,
    simulate_studies,
)


def test_new_patients_have_the_promised_recall_and_hardly_more():
    ((sensitivity, n_studies, promised, recall, _),) = measure(
        simulate_studies(50, 0.0, 60), (0.9,)
    )
    assert (sensitivity, n_studies, promised) == ("0.9", "60", "100.0")
    assert 0.9 <= float(recall) <= 0.93


@pytest.mark.parametrize(("n", "share_without"), [(8, 0.0), (10, 1.0)])
def test_nothing_is_promised_with_too_few_patients_or_candidates(n, share_without):
    ((*_, promised, recall, below),) = measure(simulate_studies(n, share_without, 3), (0.9,))
    assert (promised, recall, below) == ("0.0", "", "")


def test_draws_choose_on_some_patients_and_count_the_lesions_of_others():
    tables = simulate_patients(30, 0.1, np.random.default_rng(0))
    draws = list(draw_studies(tables))
    assert len(draws) == DRAWS
    for chosen, recall in draws:
        assert len(chosen.cases) == 10
        assert 0 < recall(-100.0) <= 1
        assert recall(100.0) == 0
