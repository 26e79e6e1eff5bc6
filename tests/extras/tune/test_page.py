"""The recommended pair of a search for α and γ."""

import pytest

from lesionseg.extras.tune.page import (
    TuningSearch,
    TuningTrial,
    best_smoothed_trial,
    write_tuning_page,
)
from lesionseg.reporting.pdf import write_pdf
from tests.pdf_pages import check_pages, keep_documents, needs_pango

PEAK = [(0.20, 2.0, "complete", 0.80)]
POOR_NEIGHBOURS = [
    (0.18, 2.0, "pruned", 0.30),
    (0.22, 2.0, "pruned", 0.30),
    (0.20, 2.2, "pruned", 0.30),
]
PLATEAU = [
    (0.70, 1.0, "complete", 0.70),
    (0.72, 1.0, "complete", 0.72),
    (0.70, 1.2, "complete", 0.71),
]


def search_of(rows, **trial):
    trials = [TuningTrial(i, *row, **{"scores": {}, **trial}) for i, row in enumerate(rows)]
    return TuningSearch((0.05, 0.95), (0.0, 5.0), tuple(trials), "recall", "Search")


def test_peak_with_poor_pruned_neighbours_loses_against_a_plateau():
    steadiest = best_smoothed_trial(search_of(PEAK + POOR_NEIGHBOURS + PLATEAU))
    assert (steadiest.alpha, steadiest.gamma) in {(0.70, 1.0), (0.72, 1.0), (0.70, 1.2)}


@pytest.mark.parametrize("value", [0.9, None])
def test_pruned_trial_is_not_recommended(value):
    rows = [(0.2, 2.0, "pruned", value), (0.7, 1.0, "complete", 0.4)]
    assert best_smoothed_trial(search_of(rows)).alpha == 0.7
    assert best_smoothed_trial(search_of(rows[:1])) is None


def test_trial_without_a_lesion_is_not_recommended():
    """Good neighbours on both sides give it the highest smoothed value."""
    nothing = (0.5, 2.0, "complete", 0.0)
    good = [(alpha, 2.0, "complete", 0.9) for alpha in (0.42, 0.58)]
    poor = [(alpha, 2.0, "pruned", 0.0) for alpha in (0.34, 0.66)]
    assert best_smoothed_trial(search_of([nothing, *good, *poor])).value == 0.9
    assert best_smoothed_trial(search_of([nothing])) is None


@needs_pango
def test_page_is_printed_completely(tmp_path, monkeypatch):
    documents = keep_documents(monkeypatch)
    scores = dict.fromkeys(("recall", "average_precision", "false_positives_per_case"), 0.5)
    search = search_of([(0.2, 2.0, "complete", 0.5)] * 3, scores=scores, note="x" * 40)
    page = write_tuning_page(search, tmp_path / "page.html")
    write_pdf(tmp_path / "page.pdf", page.read_text(encoding="utf-8"))
    assert "x" * 40 in check_pages(documents[0]).replace(" ", "")
