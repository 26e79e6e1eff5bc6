from pathlib import Path

import pytest

from lesionseg.errors import ContentError, ReadError
from lesionseg.report.result_tables import read_history, read_tables


def test_rows_are_read_with_undefined_numbers_as_none(scores_dir: Path) -> None:
    tables = read_tables(scores_dir)
    assert [case.case for case in tables.cases] == ["a", "b", "c"]
    assert tables.cases[2].dice is None
    assert tables.cases[2].n_lesions == 0
    lesion = tables.lesions[1]
    assert (lesion.diameter_mm, lesion.detected, lesion.near_resolution) == (6.0, False, False)
    assert lesion.why_missed == "no_response"
    assert lesion.start_vox == (14, 37, 37)
    assert [c.outcome for c in tables.candidates][-1] == "false_positive"


@pytest.mark.parametrize("name", ["cases.csv", "lesions.csv", "candidates.csv"])
def test_missing_table_is_named(scores_dir: Path, name: str) -> None:
    (scores_dir / name).unlink()
    with pytest.raises(ReadError, match=name):
        read_tables(scores_dir)


def test_tables_of_another_evaluation_are_refused(scores_dir: Path) -> None:
    path = scores_dir / "lesions.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    with pytest.raises(ContentError, match="do not belong together"):
        read_tables(scores_dir)


def test_unreadable_line_is_named(scores_dir: Path) -> None:
    path = scores_dir / "lesions.csv"
    path.write_text(path.read_text().replace("12.0", "large"))
    with pytest.raises(ContentError, match=r"lesions\.csv, line 2"):
        read_tables(scores_dir)


def test_history_keeps_loss_columns_and_drops_blanks(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,minutes,loss,loss_dice,lr\n10,0.1,2.0,,1e-3\n20,0.2,nan,0.5,1e-3\n")
    loss, dice = read_history(path)
    assert (loss.name, loss.steps, loss.values) == ("loss", (10.0,), (2.0,))
    assert (dice.name, dice.steps, dice.values) == ("loss_dice", (20.0,), (0.5,))


def test_history_without_losses_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,lr\n1,0.1\n")
    assert read_history(path) == ()


def test_missing_history_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"metrics\.csv"):
        read_history(tmp_path / "metrics.csv")
