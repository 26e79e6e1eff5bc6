from pathlib import Path

from lesionseg.evaluation.rows import LesionRow
from lesionseg.report.result_tables import read_tables
from lesionseg.report.sections.gallery import Limits, choose_items
from tests.report.conftest import Blob, Evaluation


def test_misses_come_from_all_sizes_by_turns_the_largest_first(tmp_path: Path) -> None:
    sizes = [2.0, 2.5, 2.9, 4.0, 6.0, 8.0, 25.0]
    blobs = [Blob("a", i + 1, (20, 60, 50), s, detected=False) for i, s in enumerate(sizes)]
    missed, false, found = choose_items(read_tables(Evaluation(blobs).write(tmp_path)))
    shown = [e.subject.diameter_mm for e in missed.items]
    assert shown == [25.0, 8.0, 4.0, 2.9, 6.0, 2.5, 2.0]
    assert (false.total, found.total) == (0, 0)


def test_false_positives_come_by_descending_score(scores_dir: Path) -> None:
    _, false, _ = choose_items(read_tables(scores_dir))
    scores = [None if isinstance(e.subject, LesionRow) else e.subject.score for e in false.items]
    assert scores == [0.9, 0.7]


def test_limits_leave_the_total_standing(scores_dir: Path) -> None:
    missed, false, found = choose_items(read_tables(scores_dir), Limits(1, 1, 0))
    assert [len(selection.items) for selection in (missed, false, found)] == [1, 1, 0]
    assert [selection.total for selection in (missed, false, found)] == [2, 2, 3]


def test_choice_is_the_same_every_time(scores_dir: Path) -> None:
    tables = read_tables(scores_dir)
    assert choose_items(tables) == choose_items(tables)
