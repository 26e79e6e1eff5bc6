"""The page of a search: its surface, its table and what it says of the best trial."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from lesionseg.report.sections.tuning_page import (
    BANDWIDTH,
    State,
    TuningSearch,
    TuningTrial,
    draw_surface,
    smoothed_surface,
    steadiest,
    table,
    write_tuning_page,
)


def trial(number: int, alpha: float, gamma: float, value: float | None, state: State = "complete"):
    scores = {} if value is None else {"recall": value}
    return TuningTrial(number, alpha, gamma, state, value, scores, seconds=61.2)


SEARCH = TuningSearch(
    alpha=(0.0, 1.0),
    gamma=(0.0, 5.0),
    trials=(
        trial(0, 0.25, 2.0, 0.6),
        trial(1, 0.75, 2.0, 0.4),
        trial(2, 0.9, 4.5, 0.9, "pruned"),
        trial(3, 0.1, 0.1, None, "running"),
        trial(4, 0.3, 2.5, 0.6),
    ),
    objective="lesion recall at 1 false positive a case",
    title="A search <here>",
    notes=("One & only.",),
)


def test_the_surface_is_the_weighted_mean_of_trials_nearby() -> None:
    two = replace(SEARCH, trials=SEARCH.trials[:2])
    middle = smoothed_surface(two, np.array([0.5]), np.array([2.0]))
    assert np.isnan(middle).all() or middle[0, 0] == pytest.approx(0.5)
    near = smoothed_surface(two, np.array([0.25, 0.25 + BANDWIDTH]), np.array([2.0]))[0]
    far = np.exp(-((0.5 / BANDWIDTH) ** 2) / 2)
    assert near[0] == pytest.approx((0.6 + far * 0.4) / (1 + far))
    assert 0.4 < near[1] < near[0] < 0.6


def test_where_no_trial_was_near_nothing_is_claimed() -> None:
    surface = smoothed_surface(SEARCH, np.array([0.95, 0.25]), np.array([4.9, 2.0]))
    assert np.isnan(surface[0, 0])  # a pruned trial is here, whose value does not compare
    assert np.isfinite(surface[1, 1])
    assert np.isnan(smoothed_surface(replace(SEARCH, trials=()), np.zeros(2), np.zeros(3))).all()


def test_the_best_is_the_earliest_of_those_trained_to_the_end() -> None:
    assert SEARCH.best == SEARCH.trials[0]
    assert replace(SEARCH, trials=SEARCH.trials[2:4]).best is None


def test_the_table_has_a_dash_where_there_is_no_number() -> None:
    header, first, *others = table(SEARCH)
    assert header == ["trial", "α", "γ", "recall", "state", "seconds", "note"]
    assert first == ["0", "0.250", "2.00", "0.600", "complete", "61", ""]
    assert others[2][3] == "–"


@pytest.mark.parametrize("trials", [SEARCH.trials, SEARCH.trials[3:4], ()])
def test_the_page_stands_alone_whatever_there_is(
    trials: tuple[TuningTrial, ...], tmp_path: Path
) -> None:
    page = write_tuning_page(replace(SEARCH, trials=trials), tmp_path / "tune.html").read_text()
    assert "A search &lt;here&gt;" in page
    assert "One &amp; only." in page
    assert 'src="data:image/svg+xml' in page
    assert "http:" not in page
    assert "https:" not in page


def test_the_map_shows_every_trial_that_has_a_value() -> None:
    figure = Figure()
    draw_surface(figure, SEARCH)
    axes = figure.axes[0]
    assert len(axes.collections[1].get_offsets()) == 3  # after the surface itself
    crosses, ring, square = axes.lines
    assert list(crosses.get_xdata()) == [0.9]
    assert list(ring.get_xdata()) == [0.25]
    assert list(square.get_xdata()) == [0.25]


def test_a_lucky_trial_without_neighbours_is_not_the_steadiest() -> None:
    crowd = [trial(i, 0.3 + 0.01 * i, 2.0, 0.6) for i in range(4)]
    lucky = trial(4, 0.9, 4.5, 0.62)
    bad = trial(5, 0.9, 0.2, 0.3)
    search = replace(SEARCH, trials=(*crowd, lucky, bad))
    assert search.best == lucky
    found = steadiest(search)
    assert found is not None
    assert found.number < 4
    assert steadiest(replace(SEARCH, trials=())) is None
