"""The sentences of the report state reasons, rates and shares correctly."""

import re

import numpy as np
import pytest

from lesionseg.core import Geometry, OperatingPoint
from lesionseg.evaluation import PRESETS, OperatingPointAim, SummarySettings, choose, summarise
from lesionseg.evaluation.intervals import Estimate
from lesionseg.evaluation.missed import WhyMissed
from lesionseg.evaluation.scores import Provenance, scores_table, write_scores
from lesionseg.reporting.charts import INK, froc_chart, has_size_trend, size_chart
from lesionseg.reporting.evaluation_tables import SizeClass, read_evaluation
from lesionseg.reporting.rendering import share_words
from lesionseg.reporting.words import (
    basis,
    explain_excess,
    false_positive_words,
    headline,
    key_figures,
    limit_words,
    measures,
    read_questions,
    size_class_words,
    size_text,
    size_words,
    study_lines,
    tags,
    why_missed,
)
from lesionseg.reporting.write import about_lines
from tests.boxes import predict_boxes, reference_of_boxes
from tests.evaluation.hand_cases import (
    CASES,
    evaluate_case,
    evaluate_hand_case,
    make_prediction,
    make_reference,
    replace,
)
from tests.evaluation.hand_cases import result as hand_result
from tests.evaluation.hand_cases import tables_of as result_tables

POINT = OperatingPoint("fp_per_case:1", 0.5, "validation", expected_false_positives_per_case=1.0)


def tables_of(results, folder, preset="lesionseg", point=POINT, evaluated_on="test"):
    """Write the results and return their tables as the report reads them."""
    settings = SummarySettings(evaluated_on=evaluated_on, operating_point=point, replicates=50)
    tables = result_tables(results)
    write_scores(folder, tables, summarise(tables, PRESETS[preset], settings))
    return read_evaluation(folder, identifiers=True)


def tables_of_hand_case(name, folder, preset="lesionseg", point=POINT):
    found = evaluate_hand_case(name, preset, operating_point=point)
    return tables_of([found], folder, preset, point)


def missed_words(tables, row=0):
    return why_missed(tables.lesions.iloc[row], tables)


HIGH = OperatingPoint("score:0.99", 0.99)


@pytest.mark.parametrize(
    ("name", "preset", "row", "point", "words"),
    [
        ("missed", "lesionseg", 0, POINT, "not seen at all"),
        ("below_the_point", "lesionseg", 0, POINT,
         "seen, but rated below the limit (0.3; limit 0.5)"),
        ("contained", "lesionseg", 0, POINT,
         "touched, but only 5 % of it is covered (10 % needed)"),
        ("under_a_tenth", "lesionseg", 0, POINT,
         "inside a marking that is too large to count: 9 % of the marking is lesion (10 % needed)"),
        ("unsupported", "lesionseg", 0, POINT,
         "10 % of it is inside a marking that is too large to count: 8 % of the marking is lesion "
         "(10 % needed)"),
        ("contained", "lesionseg", 0, HIGH,
         "touched, but only 5 % of it is covered (10 % needed); that marking is also rated just "
         "below the limit (0.9; limit 0.99)"),
        ("under_a_tenth", "instances", 0, POINT,
         "touched, but the outlines agree too little (IoU 0.09; 0.1 needed)"),
        ("under_a_tenth", "luna16", 0, POINT,
         "touched by a marking whose centre is too far away"),
        ("merge", "instances", 1, POINT, "marked together with another lesion"),
        ("wrong_label", "instances", 0, POINT, "marked as another kind of lesion"),
    ],
)  # fmt: skip
def test_missed_lesion_has_its_reason_in_words(name, preset, row, point, words, tmp_path):
    assert missed_words(tables_of_hand_case(name, tmp_path, preset, point), row) == words


def test_limit_that_was_chosen_on_these_scans_has_a_tag(tmp_path):
    for chosen_on in ("test", "validation"):
        point = replace(POINT, chosen_on=chosen_on)
        tables = tables_of_hand_case("perfect", tmp_path / chosen_on, point=point)
        assert ("Limit" in dict(tags(tables))) == (chosen_on == "test")


def test_scans_of_which_none_has_a_result_have_no_rate(tmp_path):
    tile = key_figures(tables_of([hand_result("a", [None], status="missing")], tmp_path))[2]
    assert tile.value == "–"
    assert "no scan has a result" in tile.words


def test_every_reason_has_words(tmp_path):
    tables = tables_of_hand_case("missed", tmp_path)
    lesion = tables.lesions.iloc[0]
    for why in set(WhyMissed) - {""}:
        words = why_missed({**lesion, "why_missed": str(why)}, tables)
        assert words not in ("", why.replace("_", " "))


def test_missed_lesion_of_masks_without_scores_has_a_reason(tmp_path):
    bare = replace(make_prediction(CASES["missed"]), has_scores=False)
    reference = make_reference(CASES["missed"])
    found = evaluate_case(reference, bare, PRESETS["lesionseg"], case="a")
    assert missed_words(tables_of([found], tmp_path, point=None)) == "no marking touches it"


def test_false_positive_states_its_share_in_a_lesion(tmp_path):
    tables = tables_of_hand_case("under_a_tenth", tmp_path)
    words = "rated 0.5, touches a lesion (9 % of the marking is lesion)"
    assert false_positive_words(tables.candidates.iloc[0]) == words


@pytest.mark.parametrize(
    ("hits", "n", "words"), [(1, 8, "1 of 8"), (3, 25, "3 of 25"), (9, 100, "1 in 10")]
)
def test_small_share_is_stated_as_counts(hits, n, words):
    assert share_words(hits, n) == words


@pytest.mark.parametrize(
    ("made", "n_cases", "n_false", "words", "is_weak"),
    [
        ({"training_steps": 19, "training_minutes": 3.2}, 1, 0,
         r"Trained 19 steps in 3 minutes; .*1 other scan with 0 .*expect 1 .*none on 1 scan", True),
        ({"training_steps": 2000, "training_minutes": 60.0}, 20, 0,
         r"2000 steps in 60 minutes; .*20 other scans with 0 .*expect 1 .*none on 20 scans", False),
        ({"training_steps": 3000, "training_minutes": 240.0, "folds": 5}, 40, 0,
         r"3000 steps in 4 hours, 5 networks .*40 other scans with 0 ", True),
        ({"training_steps": 1, "training_minutes": 0.1}, None, 0, r"1 step in 6 seconds\.$", True),
        ({}, 4, 3, r"Limit .* 4 other scans with 3 .*limit was fitted", True),
        ({}, 4, 4, r"chosen on 4 other scans with 4 false positives\.$", True),
    ],
)  # fmt: skip
def test_page_states_training_and_choice_of_the_limit(
    made, n_cases, n_false, words, is_weak, tmp_path
):
    point = replace(POINT, n_cases=n_cases, n_patients=n_cases, n_false_positives=n_false)
    tables = tables_of([hand_result("a", [0.9])], tmp_path, point=point)
    found = {}
    for optimistic in (False, True):  # chosen on other scans, or on those of the page
        used = replace(tables.scores.operating_point, optimistic=optimistic)
        scores = replace(tables.scores, provenance=Provenance(**made), operating_point=used)
        found[optimistic] = basis(replace(tables, scores=scores))
    assert re.search(words, found[False].words)
    assert found[True].words == found[False].words.replace("other scan", "scan")
    assert found[False].is_weak == is_weak


def test_scores_of_an_earlier_version_state_no_training(tmp_path):
    assert basis(tables_of([hand_result("a", [0.9])], tmp_path)) is None


def test_limit_states_the_scans_with_a_prediction_that_it_was_chosen_on():
    results = [hand_result(case, [0.9], [0.4, 0.3], group="p") for case in "ab"]
    with_missing = result_tables([*results, hand_result("c", [None], status="missing")])
    point = choose(with_missing, OperatingPointAim("best_f1"))
    assert (point.n_cases, point.n_patients, point.n_false_positives) == (2, 1, 0)


def test_page_states_the_promise_and_the_recall_of_patients(tmp_path):
    # of two patients, half of the lesions of one are found, and all of the other
    results = [hand_result("a", [0.9, None]), hand_result("b", [0.8])]
    point = replace(
        choose(result_tables(results), OperatingPointAim("sensitivity", 0.3)), score=0.5
    )
    assert point.promised == 0.3
    tables = tables_of(results, tmp_path / "promised", point=point)
    assert "find 30 % of the lesions of a new patient, on average" in limit_words(tables)
    shown = {one.name: one.value for one in measures(tables)[0]}
    assert shown["sensitivity per patient"] == "0.75"
    point = choose(result_tables(results[1:]), OperatingPointAim("sensitivity", 0.9))
    words = limit_words(tables_of(results, tmp_path / "not", point=point))
    assert "without a promise: 1 patient with lesions cannot promise 0.9" in words


def test_average_precision_below_one_is_not_shown_as_one(tmp_path):
    tables = tables_of([hand_result("a", [0.9])], tmp_path)
    number = Estimate(0.99984, (0.99951, 1.0), name="average_precision")
    scores = replace(tables.scores, rows=(*tables.scores.rows, number))
    shown = {one.name: one for one in measures(replace(tables, scores=scores))[0]}
    precision = shown["average precision"]
    assert (precision.value, precision.interval) == ("0.99984", "0.99951 to 1")
    rows = {row[0]: row[1] for row in scores_table({"test": scores})}
    assert rows["average precision"] == ">0.999"


def test_size_class_without_found_lesion_has_the_interval_of_its_patients(tmp_path):
    missed = [hand_result(f"p{k}", [None] * 10) for k in range(2)]
    (axes,) = size_chart(tables_of(missed, tmp_path)).figure.axes
    (line,) = (one for one in axes.lines if one.get_color() == INK)
    assert list(line.get_ydata()) == pytest.approx([0, 1 - 0.025**0.5])
    assert line.get_linestyle() == "--"  # of few patients


def test_upper_end_of_the_rate_is_stated_for_five_patients_or_more(tmp_path):
    found = [hand_result(case, [0.9]) for case in "abcde"]
    assert "may be up to 1.5 per scan." in key_figures(tables_of(found, tmp_path))[2].words
    found[0] = hand_result("a", [None], status="missing")
    assert "do not show how high" in key_figures(tables_of(found, tmp_path))[2].words


@pytest.mark.parametrize(
    ("n_false", "changes", "words"),
    [
        (16, {}, "set for 1 false positive per scan, but these scans have 16"),
        (1, {}, ""),
        (16, {"name": "sensitivity:0.9"}, "expected to give 1 .* but these scans have 16"),
        (16, {"name": "score:0.5", "expected_false_positives_per_case": None}, ""),
        (16, {"name": "fp_per_case:10"}, ""),
    ],
)
def test_rate_far_above_the_requested_one_is_explained(n_false, changes, words, tmp_path):
    false = np.linspace(0.6, 0.9, n_false).tolist()
    results = [hand_result(case, [0.9], false) for case in "ab"]
    tables = tables_of(results, tmp_path, point=replace(POINT, **changes))
    found = explain_excess(tables.scores)
    assert re.search(words, found)
    assert (("False positives", found) in tags(tables)) == bool(words) == bool(found)


def test_a_reason_that_measures_share_is_stated_once(tmp_path):
    tables = tables_of([hand_result(c, [0.9, None], [0.8]) for c in "ab"], tmp_path)
    rows, note = measures(tables)
    assert "fewer than 5 patients" in note
    assert not [m for m in rows if "fewer than 5 patients" in m.interval]


def test_auroc_states_its_scans(tmp_path):
    results = [hand_result("a", [0.9]), hand_result("b", [], [0.3]), hand_result("c", [None])]
    for more in ([], [hand_result("d", status="missing")]):
        rows = {m.name: m for m in measures(tables_of([*results, *more], tmp_path))[0]}
        words = rows["AUROC of scans"].meaning
        assert words.endswith("from 2 scans with and 1 without a lesion")


def test_a_size_next_to_a_limit_has_more_decimals():
    assert size_text(4.96) == "4.96"
    assert size_text(4.9996) == "4.9996"
    assert size_text(5.0) == "5.0"
    assert size_text(2.98, [0.0, 3.0, 5.0]) == "2.98"


@pytest.mark.parametrize(
    ("pairs", "grows"),
    [
        ([(1, 2), (23, 23), (43, 43), (10, 10)], False),  # a trend from one lesion
        ([(4, 5), (5, 5)], False),  # also a trend from one lesion
        ([(10, 30), (20, 30), (28, 30)], True),
        ([(10, 30), (30, 30), (20, 30)], False),
        ([(10, 30), (20, 30), (4, 4)], False),
        ([(10, 30)], False),
    ],
)
def test_size_trend_needs_several_lesions_per_class(pairs, grows):
    classes = [
        SizeClass(minimum=0.0, below=None, n=n, detected=hits, ci95=None) for hits, n in pairs
    ]
    assert has_size_trend(classes) == grows


def test_legend_of_the_froc_curves_has_any_name_and_every_limit(tmp_path):
    point = OperatingPoint("fp_per_case:1", 0.7)
    scores = np.linspace(0.4, 0.95, 12).tolist()
    curves = []
    for name, n_false in (("_one_$x$", 2), (40 * "b", 4)):
        results = [
            hand_result(f"c{k}", scores[k : k + 3], scores[k : k + n_false]) for k in range(8)
        ]
        curves.append((name, tables_of(results, tmp_path / name, point=point)))
    (legend,) = froc_chart(curves).figure.legends
    words = [text.get_text().replace("\n", "") for text in legend.get_texts()]
    assert words[:2] == ["one_$x$", 40 * "b"]
    assert [word.split(":")[0] for word in words[2:]] == ["in use", "lower limit", "set for 1"]


def test_froc_axis_extends_to_a_higher_rate(tmp_path):
    false = np.linspace(0.6, 0.9, 16).tolist()
    tables = tables_of([hand_result(case, [0.9, 0.7], false) for case in "ab"], tmp_path)
    (axes,) = froc_chart([("this", tables)]).figure.axes
    assert axes.get_xticklabels()[-1].get_text() == "32"


# --- identity ---


def test_questions_without_an_answer_are_not_stated(tmp_path):
    tables = tables_of([hand_result("a", [0.9])], tmp_path)
    lines = dict(study_lines({"sites": "one hospital, 3 T"}))
    assert (lines["Sites and scanners"], lines["Age"]) == ("one hospital, 3 T", "not stated")
    assert len(lines) == len(read_questions()) - 3  # without title, contact and remarks
    rows = dict(about_lines(tables, {}, Provenance(dataset="MS")))
    assert rows["Dataset"] == "MS"
    assert "1 scan" in rows["Scans"]


def film_tables(tmp_path, spacing_mm=(1.0, 1.0)):
    """Return tables of two films of 200 x 400 pixels with lesions of 40 and 6 pixels."""
    grid = Geometry.from_spacing((200, 400), spacing_mm)
    reference = reference_of_boxes(grid, (10, 10, 50, 50), (100, 300, 106, 306))
    prediction = predict_boxes(grid, (10, 10, 50, 26))  # IoU 0.4
    preset = PRESETS["lesionseg"]
    return tables_of(
        [evaluate_case(reference, prediction, preset, case=case) for case in "ab"], tmp_path
    )


def test_sizes_without_a_pixel_size_are_in_per_cent_of_the_image_width(tmp_path):
    tables = film_tables(tmp_path)
    unit = tables.scores.size_unit
    assert unit == "% of the image width"
    assert tables.lesions["diameter_percent"].tolist() == pytest.approx([10.0, 1.5] * 2)
    counts = [(point.at, point.n) for point in tables.scores.curve("recall_by_size")]
    assert counts == [(0, 2), (2, 0), (4, 0), (8, 2), (16, 0)]
    classes = [size_class_words(one, unit) for one in tables.size_classes]
    assert classes == ["under 2 %", "8–16 %"]
    assert size_words(tables.lesions.iloc[0], tables) == "10.0 % of the width"
    assert headline(tables) == "Finds 2 of 4 lesions, without a false positive on 2 scans."
    in_mm = replace(tables, scores=replace(tables.scores, size_unit="mm"))
    for own, name in ((tables, "HD95, pixels"), (in_mm, "HD95, mm")):
        assert name in {m.name for m in measures(own)[0]}


def test_sizes_of_films_with_a_pixel_size_are_in_millimetres(tmp_path):
    tables = film_tables(tmp_path, spacing_mm=(0.2, 0.2))
    assert tables.scores.size_unit == "mm"
    assert [point.n for point in tables.scores.curve("recall_by_size")] == [2, 0, 2, 0, 0]
    assert "5 mm or more" in headline(tables)


def test_first_screen_of_boxes_has_detections_with_an_iou_of_half(tmp_path):
    first, second = key_figures(film_tables(tmp_path))[:2]
    assert (first.value, second.value) == ("2 of 4", "0 of 4")
    assert "an IoU of ½ or more" in second.words
