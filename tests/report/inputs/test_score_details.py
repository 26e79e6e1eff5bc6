from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from lesionseg.errors import ContentError
from lesionseg.evaluation.score_sections import Details
from lesionseg.report import text
from lesionseg.report.figures import detail_figures
from lesionseg.report.figures.second_model import (
    draw_differences,
    draw_froc_pair,
    draw_sizes_pair,
    read_pair,
)
from lesionseg.report.result_tables import read_tables
from lesionseg.report.write import Options, write_report
from tests.report.conftest import Blob, Evaluation

CURVE = {
    "diameters_mm": [2.0, 6.0, 20.0],
    "recall": [0.1, 0.5, 0.9],
    "ci95": [None, [0.3, 0.7], [0.8, 1.0]],
    "d50_mm": 6.0,
    "d50_ci95": [4.0, 9.0],
    "d90_mm": None,
    "d90_ci95": None,
    "reason": "outside",
}
CALIBRATION = {
    "of": "probability",
    "n": 30,
    "brier": 0.1,
    "slope": 0.9,
    "reliability": [
        {"from": 0.0, "to": 0.1, "n": 20, "mean_probability": 0.05, "true_share": 0.1},
        {"from": 0.9, "to": 1.0, "n": 10, "mean_probability": 0.95, "true_share": 0.8},
    ],
}
CELLS = [
    {"from_mm": 0.0, "to_mm": 5.0, "contrast_from": 0.0, "contrast_to": 2.0, "n": 4, "detected": 1}
    | {"recall": 0.25, "ci95": None},
    {"from_mm": 5.0, "to_mm": None, "contrast_from": 0.0, "contrast_to": 2.0, "n": 0, "detected": 0}
    | {"recall": None, "ci95": None, "reason": "no lesion"},
    {"from_mm": 0.0, "to_mm": 5.0, "contrast_from": 2.0, "contrast_to": None, "n": 2, "detected": 2}
    | {"recall": 1.0, "ci95": None},
]
DIFFERENCE = {"one": 0.6, "other": 0.4, "difference": 0.2, "ci95": [-0.1, 0.5], "p_value": 0.04}
RATE = {
    "one": 1.0,
    "other": 3.0,
    "difference": -2.0,
    "ci95": None,
    "p_value": None,
    "reason": "few",
}


QUALITIES = ("panoptic_quality", "recognition_quality", "segmentation_quality")


def subgroup(by: str, value: str, detected: int = 3, **changes: Any) -> dict[str, Any]:
    found = {"by": by, "value": value, "n_cases": 4, "n_groups": 4, "n_lesions": 6}
    numbers = {"recall": detected / 6, "ci95": [0.2, 0.8], "false_positives_per_case": 0.5}
    return {**found, "detected": detected, **numbers, "dice": None, **changes}


ALL: dict[str, Any] = {
    "size_curve": CURVE,
    "calibration": CALIBRATION,
    "recall_by_size_and_contrast": CELLS,
    "subgroups": [subgroup("sex", "F"), subgroup("sex", "M", 4, ci95=None, reason="few")],
    "quality_by_size": [
        {
            "from_mm": low,
            "to_mm": None,
            **{key: {"value": 0.5, "ci95": [0.4, 0.6]} for key in QUALITIES},
        }
        for low in (0.0, 3.0, 5.0, 10.0, 20.0)
    ],
    "comparison": {"lesion_recall": DIFFERENCE, "false_positives_per_case": RATE},
}


@pytest.fixture
def details() -> Details:
    return Details.from_json(ALL)


def test_what_scores_lack_is_absent_with_its_reason() -> None:
    empty = Details.from_json({"size_curve": {"d50_mm": None, "reason": "few"}, "subgroups": []})
    assert empty.size_curve is None
    assert empty.reasons["size_curve"] == "few"
    said = Details.from_json({"reasons": {"subgroups": "no table"}})
    assert (said.subgroups, said.reasons["subgroups"]) == ((), "no table")


def test_page_draws_and_lists_whatever_the_scores_hold(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    evaluation.changes = ALL
    page = write_report(evaluation.write(tmp_path / "s"), tmp_path / "out").read_text()
    for key in ("comparison", "subgroups", "calibration"):
        assert f'<section id="{key}">' in page
    for said in (
        "6 mm (95 % CI 4 to 9 mm)",
        "not defined: outside",
        "+0.20 (95 % CI −0.10 to +0.50)",
        text.CALIBRATION_NUMBERS["brier"],
        text.QUALITY,
        "Looked at: 2 groups, by 1 column.",
        "0.50 (95 % CI 0.40 to 0.60)",
    ):
        assert said in page
    assert page.count('<figure class="chart">') == page.count('alt="') == 9


def test_page_says_what_is_not_on_it(evaluation: Evaluation, tmp_path: Path) -> None:
    evaluation.changes = {"calibration": {"of": None, "reason": "too few marks"}}
    page = write_report(evaluation.write(tmp_path / "s"), tmp_path / "out").read_text()
    assert text.SECTIONS["absent"] in page
    assert "too few marks" in page
    assert text.NO_COMPARISON in page
    assert '<section id="calibration">' not in page


def test_broken_details_are_refused(evaluation: Evaluation, tmp_path: Path) -> None:
    evaluation.changes = {"subgroups": [{"by": "sex"}]}
    with pytest.raises(ContentError, match="detail"):
        read_tables(evaluation.write(tmp_path))


def test_subgroups_named_after_a_patient_have_a_pseudonym(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    evaluation.changes = {"subgroups": [subgroup("patient", "group b"), subgroup("patient", "x")]}
    page = write_report(evaluation.write(tmp_path / "s"), tmp_path / "out").read_text()
    assert "group b" not in page
    assert "patient 2" in page


def test_curve_marks_only_the_sizes_that_are_known(details: Details, scores_dir: Path) -> None:
    tables, figure = read_tables(scores_dir), Figure()
    assert details.size_curve is not None
    detail_figures.draw_size_curve(figure, details.size_curve, tables.lesions, tables.scores)
    assert [words.get_text() for words in figure.axes[0].texts] == ["50\xa0% at 6 mm"]


def test_fields_are_labelled_also_where_there_is_no_lesion(details: Details) -> None:
    figure = Figure()
    detail_figures.draw_cells(figure, details.cells, "mm")
    assert [words.get_text() for words in figure.axes[0].texts] == ["1 of 4", text.NONE, "2 of 2"]


def test_subgroups_say_how_far_they_differ_and_which_were_stated_beforehand(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    apart = {"recall_difference": -0.1, "difference_ci95": [-0.3, 0.12]}
    evaluation.changes = {"subgroups": [subgroup("sex", "F", **apart), subgroup("site", "A")]}
    study = tmp_path / "study.yaml"
    study.write_text("subgroups: [site, age]")
    options = Options(study=study)
    page = write_report(evaluation.write(tmp_path / "e"), tmp_path / "r", options=options)
    said = page.read_text()
    assert "Prespecified: site; exploratory: sex." in said
    assert "−10 (−30 to +12)" in said


def test_reliability_and_subgroups_are_drawn(details: Details) -> None:
    figure = Figure()
    assert details.calibration is not None
    detail_figures.draw_reliability(figure, details.calibration)
    assert [bar.get_height() for bar in figure.axes[1].patches] == [20, 10]
    figure = Figure()
    detail_figures.draw_subgroups(figure, details.subgroups, 0.5)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["sex", "F   3 of 6", "M   4 of 6"]
    assert len(figure.axes) == 2
    of_lesions, figure = replace(details.subgroups[0], false_positives_per_case=None), Figure()
    detail_figures.draw_subgroups(figure, (of_lesions,), 0.5)
    assert len(figure.axes) == 1  # lesions have no false positives


def test_differences_of_rates_have_a_panel_of_their_own(details: Details) -> None:
    figure = Figure()
    draw_differences(figure, details.differences)
    shares, rates = figure.axes
    assert shares.get_xlim()[1] < 1 < rates.get_xlim()[1]


def test_two_evaluations_are_drawn_side_by_side(evaluation: Evaluation, tmp_path: Path) -> None:
    one = read_tables(evaluation.write(tmp_path / "one"))
    evaluation.lesions[1].detected = True
    pair = read_pair(one, evaluation.write(tmp_path / "two"), ("net", "reader"))
    for draw in (draw_froc_pair, draw_sizes_pair):
        figure = Figure()
        draw(figure, pair)
        legend = figure.axes[0].get_legend()
        assert legend is not None
        assert [words.get_text() for words in legend.get_texts()] == ["net", "reader"]
    out = tmp_path / "out"
    page = write_report(
        tmp_path / "one", out, compare=tmp_path / "two", options=Options(names=("net", "reader"))
    ).read_text()
    assert "reader, sensitivity by size" in page
    assert text.NO_DIFFERENCES in page


@pytest.mark.parametrize(
    ("ci95", "said"),
    [([-0.04, 0.1], "shown. The whole"), ([-0.06, 0.1], "not shown. The 95"), (None, "no CI")],
)
def test_a_margin_is_said_to_be_met_or_not(
    evaluation: Evaluation, tmp_path: Path, ci95: list[float] | None, said: str
) -> None:
    row = {"one": 0.8, "other": 0.77, "difference": 0.03, "ci95": ci95, "p_value": 0.5}
    evaluation.changes = {"comparison": {"recall_at_1": {**row, "primary": True, "margin": 0.05}}}
    page = write_report(evaluation.write(tmp_path / "e"), tmp_path / "r").read_text()
    assert "margin 0.05" in page
    assert said in page


def test_evaluations_of_other_scans_are_not_compared(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    one = read_tables(evaluation.write(tmp_path / "one"))
    evaluation.lesions.append(Blob("c", 1, (9, 9, 9), 4.0))
    with pytest.raises(ContentError, match="same scans"):
        read_pair(one, evaluation.write(tmp_path / "two"), text.NAMES)


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        ("mm", ""),
        ("mm at the detector", "Sizes are measured at the detector"),
        ("mm, partly at the detector", "Some sizes are measured at the detector"),
        ("px", "Sizes are in pixels"),
    ],
)
def test_sizes_that_are_not_the_lesions_own_are_said_to_be(
    evaluation: Evaluation, tmp_path: Path, unit: str, said: str
) -> None:
    evaluation.changes = {"size_unit": unit}
    scores = read_tables(evaluation.write(tmp_path)).scores
    assert text.size_sentence(scores).startswith(said)
    assert bool(text.size_sentence(scores)) is bool(said)
    assert scores.size_unit == unit[:2]


def region(n_cases: int, n_missed: int, dice: float | None) -> dict[str, Any]:
    recall = {"value": (4 - n_missed) / 4, "ci95": [0.1, 0.9]}
    counts = {"n_cases": n_cases, "n_lesions": 4, "n_missed": n_missed}
    return {**counts, "lesion_recall": recall, "dice": {"mean": dice, "ci95": None}}


def test_regions_have_a_table_of_their_own(tmp_path: Path, evaluation: Evaluation) -> None:
    evaluation.changes = {
        "per_region": {"whole <tumor>": region(6, 1, 0.81), "core": region(5, 3, None)}
    }
    page = write_report(evaluation.write(tmp_path / "e"), tmp_path / "r").read_text()
    table = page.split('id="region-table"')[1].split("</table>")[0]
    for cell in ("whole &lt;tumor&gt;", "0.81", "3 of 4", "75\xa0%", "core", "1 of 4", "25\xa0%"):
        assert cell in table
    assert 'href="#regions"' in page


def test_without_regions_there_is_no_such_section(tmp_path: Path, evaluation: Evaluation) -> None:
    page = write_report(evaluation.write(tmp_path / "e"), tmp_path / "r").read_text()
    assert 'id="regions"' not in page
