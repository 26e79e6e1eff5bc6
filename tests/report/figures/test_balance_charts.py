import csv
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from lesionseg.errors import ContentError
from lesionseg.report.figures import balance_charts as balance


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def row(step: int, lesion: float, total: float, n: int = 2, p: float | str = 0.5) -> dict:
    cells: dict[str, object] = {"step": step, "n_lesions": n, "lesion_p": p, "background_p": 0.1}
    for what in ("loss", "gradient"):
        hard = (1 - lesion) / 2
        cells |= {f"{what}_lesion": lesion, f"{what}_hard": hard, f"{what}_easy": hard}
        cells[f"{what}_sum"] = total
    return cells


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write(tmp_path / "focal_balance.csv", [row(5 * i, 0.5, 1.0) for i in range(1, 11)])
    curves = [
        {"quantile": i / 100, "lesion": i / 100, "background": (i / 100) ** 4} for i in range(101)
    ]
    write(tmp_path / "loss_curves.csv", curves)
    said = '[{"step": 9, "kind": "few_lesions", "sentence": "α is too low."}]'
    (tmp_path / "focal_balance.json").write_text(said, encoding="utf-8")
    return tmp_path


def test_a_run_has_both_charts_and_its_warnings(run: Path) -> None:
    charts = balance.balance_charts(run)
    assert list(charts) == ["balance", "curves"]
    assert "lesions 50%" in charts["balance"].alt
    assert "hardest tenth of background voxels holds 34%" in charts["curves"].alt
    assert all(chart.data_uri().startswith("data:image/svg") for chart in charts.values())
    assert balance.balance_warnings(run) == ("Step 9: α is too low.",)


def test_a_folder_without_the_files_has_nothing(tmp_path: Path) -> None:
    assert balance.balance_charts(tmp_path) == {}
    assert balance.balance_warnings(tmp_path) == ()


def test_neighbouring_rows_are_pooled_by_their_gradient(tmp_path: Path) -> None:
    # every second batch has no lesion and hardly any loss
    rows = [row(i, 0.0, 0.1, n=0, p="") if i % 2 else row(i, 0.8, 0.9) for i in range(1, 241)]
    course = balance.read_course(write(tmp_path / "focal_balance.csv", rows))
    assert course is not None
    assert len(course.steps) == balance.MAX_POINTS
    assert course.gradient[0] == pytest.approx(np.full(60, 0.8 * 0.9))
    assert course.gradient.sum(axis=0) == pytest.approx(np.ones(60))
    assert course.lesion_p == pytest.approx(np.full(60, 0.5))


def test_shares_are_stacked_to_one(run: Path) -> None:
    course = balance.read_course(run / "focal_balance.csv")
    assert course is not None
    figure = Figure()
    balance.draw_course(figure, course)
    for axes in figure.axes[:2]:
        top = axes.collections[-1].get_paths()[0].vertices[:, 1].max()
        assert top == pytest.approx(1)


def test_unknown_shares_leave_the_probabilities(tmp_path: Path) -> None:
    empty = dict.fromkeys(row(1, 0.5, 1.0), "") | {"step": 5, "n_lesions": 1, "lesion_p": 0.4}
    course = balance.read_course(write(tmp_path / "focal_balance.csv", [empty]))
    assert course is not None
    assert course.lesion_p == pytest.approx([0.4])
    balance.draw_course(Figure(), course)
    charts = balance.balance_charts(tmp_path)
    assert "Highest probabilities" in charts["balance"].alt


def test_a_class_without_loss_has_no_curve(tmp_path: Path) -> None:
    rows = [{"quantile": i / 100, "lesion": "", "background": i / 100} for i in range(101)]
    curves = balance.read_curves(write(tmp_path / "loss_curves.csv", rows))
    assert list(curves) == ["quantile", "background"]
    figure = Figure()
    balance.draw_curves(figure, curves)
    assert len(figure.axes) == 1


def test_broken_files_are_named(tmp_path: Path) -> None:
    write(tmp_path / "focal_balance.csv", [{"step": 1}])
    with pytest.raises(ContentError, match=r"focal_balance\.csv"):
        balance.balance_charts(tmp_path)
