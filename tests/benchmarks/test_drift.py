"""The shares of alarms of the month page in simulated years."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.robustness.drift import Scans, changes, count_alarms, quiet_years
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
    alarms = count_alarms(quiet_years(scans["same"], 10), ["input_score", "n_accepted"])
    assert alarms[3] >= alarms[4] >= alarms[5] >= alarms[6] >= alarms[7] == 0


def test_change_of_the_input_score_is_found_by_it_alone(scans):
    for name, share in (("input_score", 1.0), ("n_accepted", 0.0)):
        repeats = changes(scans["same"], scans["noise"], 5)
        assert count_alarms(repeats, [name], "changed")[6] == share
