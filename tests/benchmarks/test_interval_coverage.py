"""The table of docs/evaluation.md is made by a command that runs."""

from functools import partial

from benchmarks.robustness import interval_coverage as bench


def test_every_line_has_a_cell_per_number_of_patients(monkeypatch):
    monkeypatch.setattr(bench, "REPLICATES", 20)
    curve, area = partial(bench.sensitivity_at_one, 0.8), partial(bench.auroc, 0.9)
    for measure in (bench.plain_numbers, curve, area, bench.chosen_score):
        for name, cells in bench.coverage(measure, 3).items():
            assert len(cells) == len(bench.PATIENTS), name


def test_a_score_chosen_for_a_rate_keeps_to_it():
    pool = bench.draw_pool(40, bench.np.random.default_rng(0))
    score = bench.allowing(pool, 0.5)
    assert (pool.false_score >= score).sum() <= 20 < (pool.false_score >= score - 0.5).sum()
