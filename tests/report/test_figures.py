from pathlib import Path

import pytest

from lesionseg.report import figures
from lesionseg.report.tables import Curve, Tables, read_tables

from .conftest import Evaluation


@pytest.fixture
def tables(scores_dir: Path) -> Tables:
    return read_tables(scores_dir)


def test_bars_show_the_share_found_and_the_counts(tables: Tables) -> None:
    figure = figures.recall_by_size(tables.scores, tables.lesions)
    shares, counts = figure.axes
    assert [bar.get_height() for bar in shares.patches] == [0, 1, 0, 1, 1]
    assert sum(bar.get_height() for bar in counts.patches) == len(tables.lesions)
    hatched = sum(bar.get_height() for bar in counts.patches if bar.get_hatch())
    assert hatched == sum(lesion.near_resolution for lesion in tables.lesions)
    assert "1 of 1" in counts.get_xticklabels()[1].get_text()


def test_drawing_is_reproducible_svg(tables: Tables) -> None:
    def make():  # type: ignore[no-untyped-def]
        return figures.recall_by_size(tables.scores, tables.lesions)

    assert figures.draw_svg(make) == figures.draw_svg(make)
    assert b"<svg" in figures.draw_svg(make)


def test_froc_is_drawn_with_and_without_intervals(tables: Tables, tmp_path: Path) -> None:
    figures.draw_svg(lambda: figures.froc_curve(tables.scores))
    bare = Evaluation(changes={"froc": {"fp_per_case": [0.0], "recall": [0.0], "ci95": None}})
    scores = read_tables(bare.write(tmp_path / "bare")).scores
    figures.draw_svg(lambda: figures.froc_curve(scores))


def test_dice_and_training_are_drawn(tables: Tables) -> None:
    figures.draw_svg(lambda: figures.dice_per_case(tables.cases, 0.5))
    figures.draw_svg(lambda: figures.dice_per_case(tables.cases[2:], None))
    curves = [Curve("loss", (1, 2), (1, 0.5)), Curve("focal_loss", (1,), (1,))]
    figures.draw_svg(lambda: figures.training_curves(curves))
