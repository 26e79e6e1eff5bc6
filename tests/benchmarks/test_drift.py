"""The shares of alarms of the month page in simulated years."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.robustness.drift import Scans, changes, longest_runs, quiet_years
from tests.evaluation.test_drift import make_rows, write_rows


@pytest.fixture
def scans(tmp_path):
    """Return the distributions of scans of two folders, without and with a change."""
    rng = np.random.default_rng(0)
    found = {}
    for name, mean in (("same", 0.2), ("noise", 0.8)):
        rows = make_rows((mean + 0.05 * rng.random(20)).tolist())
        accepted = rng.poisson(8, size=len(rows)).tolist()
        rows = [replace(row, n_accepted=n) for row, n in zip(rows, accepted, strict=True)]
        write_rows(tmp_path / name, rows)
        found[name] = Scans(tmp_path / name)
    return found


def test_years_without_a_change_have_few_alarms(scans):
    assert np.max(longest_runs(quiet_years(scans["same"], 5))) < 12


def test_change_of_the_input_score_is_found_by_it_alone(scans):
    runs = longest_runs(changes(scans["same"], scans["noise"], 5), "changed")
    assert runs[..., 0].min() >= 9 > runs[..., 1].max()
