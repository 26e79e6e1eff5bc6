from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure, FigureBase

from lesionseg.report.figures import chart_drawing as figures
from lesionseg.report.figures import froc_figure
from lesionseg.report.result_tables import HistoryCurve, Tables, read_tables
from tests.report.conftest import Blob, Evaluation


@pytest.fixture
def tables(scores_dir: Path) -> Tables:
    return read_tables(scores_dir)


def test_bars_show_the_share_found_and_the_counts(tables: Tables) -> None:
    figure = Figure()
    figures.recall_by_size(figure, tables.scores, tables.lesions)
    shares, counts = figure.axes
    assert [bar.get_height() for bar in shares.patches] == [0, 1, 0, 1, 1]
    assert sum(bar.get_height() for bar in counts.patches) == len(tables.lesions)
    hatched = sum(bar.get_height() for bar in counts.patches if bar.get_hatch())
    assert hatched == sum(lesion.near_resolution for lesion in tables.lesions)
    assert "1 of 1" in counts.get_xticklabels()[1].get_text()


def test_drawing_is_reproducible_svg(tables: Tables) -> None:
    def draw(onto: FigureBase) -> None:
        froc_figure.froc_curve(onto, tables.scores)

    assert figures.draw_svg(draw, 3) == figures.draw_svg(draw, 3)
    assert b"<svg" in figures.draw_svg(draw, 3).svg


def test_froc_joins_rates_beyond_the_last_mark_by_dots(tmp_path: Path) -> None:
    froc = {"fp_per_case": [1, 2, 4], "recall": [0.2, 0.4, None], "beyond_reached": [0, 1, 1]}
    scores = read_tables(Evaluation(changes={"froc": froc}).write(tmp_path)).scores
    figure = Figure()
    froc_figure.froc_curve(figure, scores)
    reached, beyond = figure.axes[0].lines[:2]
    assert list(reached.get_xdata()) == [1]
    assert list(beyond.get_xdata()) == [1, 2]
    assert beyond.get_linestyle() == ":"


def test_dice_and_training_are_drawn(tables: Tables) -> None:
    figures.dice_per_case(Figure(), tables.cases, 0.5)
    figures.dice_per_case(Figure(), tables.cases[2:], None)
    curves = [HistoryCurve("loss", (1, 2), (1, 0.5)), HistoryCurve("loss_focal", (1,), (1,))]
    figure = Figure()
    figures.training_curves(figure, curves)
    assert [line.get_label() for line in figure.axes[0].lines] == ["loss", "loss_focal"]


def test_m5_dollars_in_a_name_are_dollars() -> None:
    def draw(onto: FigureBase) -> None:
        axes = onto.subplots()  # type: ignore[attr-defined]
        froc_figure.doubling_axis(axes, 1 / 8, 8)
        figures.tidy(axes, r"$\alpha_{$")

    svg = figures.draw_svg(draw, 3.0).svg.decode()
    assert r"<!-- $\alpha_{$ -->" in svg
    assert "mathdefault" not in svg


def test_no_false_positive_has_a_place_of_its_own_and_the_band_steps(tables: Tables) -> None:
    figure = Figure()
    froc_figure.froc_curve(figure, tables.scores)
    axes = figure.axes[0]
    first, last = froc_figure.froc_range(tables.scores)
    labels = dict(
        zip(axes.get_xticks(), [t.get_text() for t in axes.get_xticklabels()], strict=True)
    )
    assert labels[first] == "0"
    assert labels[1.0] == "1"
    assert first < 1 / 8 < last
    corners = axes.collections[0].get_paths()[0].vertices
    # up to 0.7 per scan the band reaches to the next point's upper end, 0.6
    assert (0.3, 0.6) in {(round(float(x), 3), float(y)) for x, y in corners}


def test_a_size_of_which_nothing_was_found_has_a_dot(tmp_path: Path) -> None:
    blobs = [Blob("a", at, (9, 9, 9), 2.0, detected=False) for at in range(1, 4)]
    tables = read_tables(Evaluation(blobs).write(tmp_path))
    figure = Figure()
    figures.recall_by_size(figure, tables.scores, tables.lesions)
    (dot,) = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert (list(dot.get_xdata()), list(dot.get_ydata())) == ([0], [0])


def test_a_cloud_of_very_many_points_becomes_an_image() -> None:
    def cloud(onto: FigureBase) -> None:
        axes = onto.subplots()  # type: ignore[attr-defined]
        axes.scatter(np.arange(20_000), np.arange(20_000))
        axes.plot(np.arange(20_000), np.arange(20_000) % 7)

    drawn = figures.draw_svg(cloud, 3).svg
    assert len(drawn) < 300_000
    assert b"<image" in drawn
