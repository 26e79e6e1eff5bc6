"""The page of an evaluation: words, charts, pictures, and hidden names."""

import os
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lesionseg.cli import run
from lesionseg.config import ReportSection
from lesionseg.core import Geometry, OperatingPoint
from lesionseg.errors import ConfigError, ContentError, ReadError, format_score
from lesionseg.evaluation import read_scores
from lesionseg.io.results.case import write_prediction
from lesionseg.io.text import read_json, write_json
from lesionseg.pipeline.report import ReportOutcome, remove_report
from lesionseg.reporting.evaluation_tables import read_evaluation
from lesionseg.reporting.pictures import _choose_bar
from lesionseg.reporting.rendering import TEMPLATES
from lesionseg.reporting.viewer import NIIVUE
from lesionseg.reporting.words import headline, size_text, tiles
from lesionseg.reporting.write import read_study, write_adjudication, write_report
from tests.evaluation.hand_cases import prediction_of
from tests.pdf_pages import HAS_PANGO
from tests.pipeline.cases import write_array, write_scan

GRID = Geometry.from_spacing((16, 32, 32), (2.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Write four scans. Three have two lesions each, and the small ones are missed."""
    root = tmp_path_factory.mktemp("study")
    point = OperatingPoint("score:0.5", 0.5, "validation")
    for k, case in enumerate(f"P{k}_$x$" for k in range(4)):
        truth = np.zeros(GRID.shape, np.uint8)
        found = np.zeros(GRID.shape, np.int32)
        scores = []
        if k < 3:
            truth[3:6, 4:10, 4:10] = truth[8:9, 20:22, 20:22] = 1
            found[3:6, 4:9, 5:10] = 1
            scores.append(0.9)
        if k != 1:
            scores.append(0.6)
            found[10:12, 4:7, 25:28] = len(scores)
        write_scan(root / "scans" / f"{case}.nii.gz", GRID, seed=k)
        write_array(root / "masks" / f"{case}.nii.gz", truth, GRID)
        prediction = prediction_of(found, scores, GRID, case=case, operating_point=point)
        write_prediction(root / "found", prediction)
    places = [f"reference={root}/masks", f"prediction={root}/found", f"output={root}/scores"]
    assert run("evaluate", [*places, "evaluated_on=test"]) == 0
    return root


@pytest.fixture(scope="module")
def page(study):
    path = write_report(
        study / "scores",
        study / "page",
        images=study / "scans",
        reference=study / "masks",
        prediction=study / "found",
    )
    return path.read_text(encoding="utf-8")


def test_first_screen_states_lesions_found_and_missed(study, page):
    tables = read_evaluation(study / "scores")
    assert [tile.value for tile in tiles(tables)] == ["3 of 3", "0 of 3", "0.75", "3 scans"]
    assert "test scans, not used in training" in page
    assert headline(tables) in page


def test_page_has_pictures_and_no_names(study, page):
    assert page.count("data:image/jpeg;base64") == 3 + 3 + 3 + 3  # top, missed, false, found
    text = re.sub(r"base64,[^\"']*", "", page)
    assert "P0_" not in text
    assert "case 1" in text
    named = pd.read_csv(study / "page/pseudonyms.csv").set_index("pseudonym")["name"]
    assert named["case 1"] == "P0_$x$"
    assert (study / "page/report.pdf").is_file() == HAS_PANGO
    assert not re.search(r"(?:src|href)=.https?:", text)


def test_every_group_of_pictures_has_the_key_of_its_outlines(page):
    for part in ('id="missed"', 'id="false"', 'id="found"'):
        group = page.partition(part)[2].partition("</details>")[0]
        assert "lesion in the reference" in group


def test_heading_of_found_lesions_states_how_many_are_shown(study, tmp_path, monkeypatch):
    monkeypatch.setattr("lesionseg.reporting.write.MOST_FOUND", 2)
    page = draw_report(study, tmp_path, study / "found")
    assert "Found lesions, by size (2 of 3)" in page


def test_found_lesions_are_shown_from_the_smallest_to_the_largest(study, tmp_path, monkeypatch):
    monkeypatch.setattr("lesionseg.reporting.write.MOST_FOUND", 2)
    shutil.copytree(study / "scores", tmp_path / "scores")
    lesions = pd.read_csv(tmp_path / "scores/lesions.csv")
    lesions.loc[lesions["detected"], "diameter_mm"] = [6.0, 7.0, 8.0]
    lesions.to_csv(tmp_path / "scores/lesions.csv", index=False)
    options = ReportSection.of(pdf=False)
    places = tmp_path / "scores", tmp_path / "page"
    path = write_report(*places, images=study / "scans", options=options)
    found = path.read_text(encoding="utf-8").partition('id="found"')[2].partition("</details>")[0]
    assert re.findall(r"<b>(\d)", found) == ["6", "8"]


def test_first_screen_shows_the_smallest_found_lesions_if_none_is_missed(study, tmp_path):
    shutil.copytree(study / "scores", tmp_path / "scores")
    lesions = pd.read_csv(tmp_path / "scores/lesions.csv").assign(detected=True)
    lesions.to_csv(tmp_path / "scores/lesions.csv", index=False)
    places = tmp_path / "scores", tmp_path / "page"
    path = write_report(*places, images=study / "scans", options=ReportSection.of(pdf=False))
    screen = path.read_text(encoding="utf-8").partition('<p class="limits">')[0]
    found = screen.partition("Smallest lesions it found")[2]
    found, _, false = found.partition("The false positives with the highest rating")
    smallest = lesions["diameter_mm"].min()
    assert re.findall(r"<b>([\d.]+) mm</b>", found) == 3 * [size_text(smallest)]
    assert false.count("<figure>") == 3


def test_dark_style_of_a_page_sets_every_colour_again():
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root {(.*)}", style)
    assert "color-scheme: dark" in dark
    assert re.findall(r"--\w+", light) == re.findall(r"--\w+", dark)
    before = style.partition(dark)[0]
    assert before.rpartition("@media")[2].startswith(" screen and (prefers-color-scheme: dark)")


def test_page_has_names_on_request_and_no_pictures_without_images(study, tmp_path):
    (tmp_path / "study.yaml").write_text("title: <b>Ours</b> $x^$")
    options = ReportSection.of(identifiers=True, pdf=False, study=tmp_path / "study.yaml")
    page = write_report(study / "scores", tmp_path, options=options).read_text(encoding="utf-8")
    assert "P0_$x$" in page
    assert "<b>Ours</b>" not in page
    assert "data:image/jpeg" not in page
    assert not [*tmp_path.glob("pseudonyms.csv"), *tmp_path.glob("*.pdf")]


def test_answers_are_kept_when_the_table_is_written_again(study, tmp_path):
    tables = read_evaluation(study / "scores")
    path = tmp_path / "adjudicate.csv"
    assert write_adjudication(path, tables) == 3
    rows = pd.read_csv(path, dtype=str)
    assert rows["case"].tolist() == ["P0_$x$", "P2_$x$", "P3_$x$"]
    answers = ["", "lesion", "", "unsure"]
    gone = rows.iloc[[0]].assign(candidate="9")  # not a false positive any more
    rows = pd.concat([rows, gone], ignore_index=True).assign(answer=answers)
    rows["start_z_vox"] = rows["start_z_vox"].str.removesuffix(".0")  # like spreadsheets
    rows.to_csv(path, index=False, sep=";")
    before = os.umask(0o027)
    write_adjudication(path, tables)
    os.umask(before)
    if sys.platform != "win32":
        assert path.stat().st_mode & 0o777 == 0o640
    again = pd.read_csv(path, dtype=str)
    assert again["answer"].fillna("").tolist() == answers
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ContentError, match=r"adjudicate\.csv: a column or number"):
        write_adjudication(path, tables)


def test_answers_of_a_table_with_further_columns_are_kept(study, tmp_path):
    tables = read_evaluation(study / "scores")
    path = tmp_path / "adjudicate.csv"
    write_adjudication(path, tables)
    rows = pd.read_csv(path, dtype=str).assign(date="2026", answer="lesion")
    rows.to_csv(path, index=False)
    none_is_false = tables.candidates[tables.candidates["outcome"] != "false_positive"]
    write_adjudication(path, replace(tables, candidates=none_is_false))
    again = pd.read_csv(path, dtype=str)
    assert again["answer"].tolist() == ["lesion"] * 3
    assert "date" not in again


def test_files_of_an_earlier_page_are_removed(study, tmp_path):
    write_report(study / "scores", tmp_path)
    (tmp_path / "report.pdf").touch()
    assert (tmp_path / "pseudonyms.csv").is_file()
    write_report(study / "scores", tmp_path, options=ReportSection.of(identifiers=True, pdf=False))
    assert not (tmp_path / "report.pdf").exists()
    assert not (tmp_path / "pseudonyms.csv").exists()


def test_removed_report_leaves_no_scores(study, tmp_path):
    shutil.copytree(study / "scores", tmp_path / "test")
    write_report(study / "scores", tmp_path / "test")
    (tmp_path / "test" / "notes.txt").touch()  # of the user
    for _ in range(2):
        remove_report(tmp_path / "test")
        left = {path.name for path in (tmp_path / "test").iterdir()}
        assert left == {"notes.txt", "adjudicate.csv"}
    remove_report(tmp_path / "absent")


def test_comparison_with_other_cases_is_refused(study, tmp_path):
    shutil.copytree(study / "scores", tmp_path / "other")
    cases = tmp_path / "other" / "cases.csv"
    cases.write_text(cases.read_text().replace("P0_", "Q0_"))
    with pytest.raises(ContentError, match="evaluation of other cases"):
        write_report(study / "scores", tmp_path / "page", compare=tmp_path / "other")


def test_models_are_compared_if_a_prediction_of_one_could_not_be_scored(study, tmp_path):
    for name in ("one", "other"):
        shutil.copytree(study / "masks", tmp_path / name)
    (tmp_path / "other" / "P1_$x$.nii.gz").write_bytes(b"damaged")
    places = [f"reference={study}/masks", f"prediction={tmp_path}/one", f"output={tmp_path}/out"]
    assert run("evaluate", [*places, "evaluated_on=test", f"compare={tmp_path}/other"]) == 3
    options = ReportSection.of(pdf=False)
    path = write_report(tmp_path / "out", tmp_path / "page", options=options)
    text = path.read_text(encoding="utf-8")
    assert "on the 3 scans that were scored for both" in text
    # the differences are those to `compare=` of evaluate
    path = write_report(
        tmp_path / "out", tmp_path / "page", options=options, compare=study / "scores"
    )
    assert "scored for both" not in path.read_text(encoding="utf-8")


def test_page_shows_both_programs_with_their_limits(study, tmp_path):
    other = shutil.copytree(study / "found", tmp_path / "found")
    for path in other.glob("P2*"):
        path.unlink()  # a case that the other program did not predict
    out = tmp_path / "out"
    places = [f"reference={study}/masks", f"prediction={study}/found", f"output={out}"]
    assert run("evaluate", [*places, f"compare={other}", "operating_point=best_f1"]) == 0
    scores = read_scores(out / "scores.json")
    names = [program.name for program in scores.programs]
    assert len(set(names)) == 2
    recall = scores.comparison["lesion_recall"]
    shown = [f"{value:.3f}" for value in (recall.one, recall.other)]
    shown.append(f"{recall.difference:+.3f}")
    shown += [format_score(program.operating_point.score) for program in scores.programs]
    text = write_report(out, tmp_path / "page").read_text(encoding="utf-8")
    for word in [*names, *shown]:
        assert f">{word}</t" in text
    assert "sensitivity at 1 false positive per scan (primary)" in text


def test_scores_of_an_earlier_version_are_compared_without_names(study, tmp_path):
    out = tmp_path / "out"
    places = [f"reference={study}/masks", f"prediction={study}/found", f"output={out}"]
    assert run("evaluate", [*places, f"compare={study}/found"]) == 0
    for path in (out / "scores.json", out / "compare" / "scores.json"):
        content = read_json(path)
        content.pop("programs")
        write_json(path, content)
    text = write_report(out, tmp_path / "page").read_text(encoding="utf-8")
    assert "Comparison of this program and other program" in text
    assert "Differences are this program minus other program" in text


def test_table_of_an_earlier_setting_is_removed_if_no_false_positive_is_left(study, tmp_path):
    tables = read_evaluation(study / "scores")
    path = tmp_path / "adjudicate.csv"
    write_adjudication(path, tables)
    found = tables.candidates["outcome"] != "false_positive"
    assert write_adjudication(path, replace(tables, candidates=tables.candidates[found])) == 0
    assert not path.exists()


def test_scores_of_a_table_are_read_exactly(study, tmp_path):
    """A score equal to the operating point must not become lower when it is read."""
    shutil.copytree(study / "scores", tmp_path, dirs_exist_ok=True)
    rng = np.random.default_rng(0)
    scores = rng.random(3).tolist()
    path = tmp_path / "candidates.csv"
    rows = pd.read_csv(path, dtype=str).iloc[:3].assign(score=[repr(value) for value in scores])
    rows.to_csv(path, index=False)
    assert read_evaluation(tmp_path).candidates["score"].tolist() == scores


@pytest.mark.parametrize(
    ("side", "bar"), [(10.0, 2), (25.0, 10), (30.0, 10), (6.0, 2), (100.0, 20), (130.0, 50)]
)
def test_scale_bar_is_at_most_four_tenths_of_its_panel(side, bar):
    assert _choose_bar(side) == bar


def test_next_command_does_not_replace_the_scores(tmp_path):
    (tmp_path / "adjudicate.csv").write_text("case")
    settings = {"reference": "MASKS", "output": tmp_path / "adjudicated"}
    command = ReportOutcome(tmp_path / "report.html", settings).next
    assert f" output={tmp_path / 'adjudicated'} " in command


def test_tables_that_do_not_fit_are_named(study, tmp_path):
    with pytest.raises(ReadError, match=r"scores\.json"):
        read_evaluation(tmp_path)
    shutil.copytree(study / "scores", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "lesions.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ContentError, match=r"lesions\.csv has 5 lesions"):
        read_evaluation(tmp_path)
    path.unlink()
    with pytest.raises(ReadError, match=r"lesions\.csv"):
        read_evaluation(tmp_path)


def test_a_study_file_with_an_unknown_key_names_the_nearest(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("population: 40 adults\nreader: [A, B]\n")
    assert read_study(path) == {"population": "40 adults", "reader": "A; B"}
    assert read_study(None) == {}
    path.write_text("populaton: 40 adults\n")
    with pytest.raises(ConfigError, match="population"):
        read_study(path)


def test_wrong_adjudication_table_is_an_error_before_any_file_changes(study, tmp_path):
    options = ReportSection.of(pdf=False)
    path = write_report(study / "scores", tmp_path, options=options)
    (tmp_path / "adjudicate.csv").write_text("a,b\n1,2\n")
    for file in (path, tmp_path / "pseudonyms.csv"):
        file.write_text("earlier")
    with pytest.raises(ContentError, match=r"adjudicate\.csv: a column or number"):
        write_report(study / "scores", tmp_path, options=options)
    assert path.read_text() == (tmp_path / "pseudonyms.csv").read_text() == "earlier"


def test_answers_without_a_column_of_comments_are_kept(study, tmp_path):
    options = ReportSection.of(pdf=False)
    write_report(study / "scores", tmp_path, options=options)
    path = tmp_path / "adjudicate.csv"
    rows = pd.read_csv(path, dtype=str).drop(columns=["comment", "reader"])
    rows.assign(answer="lesion").to_csv(path, index=False)
    write_report(study / "scores", tmp_path, options=options)
    assert pd.read_csv(path, dtype=str)["answer"].tolist() == ["lesion"] * 3


def test_viewer_pages_of_an_earlier_report_are_removed(study, tmp_path):
    (tmp_path / "viewer").mkdir()
    page = tmp_path / "viewer" / "P0.html"
    page.touch()
    options = ReportSection.of(pdf=False)
    write_report(study / "scores", tmp_path, options=options)
    assert page.is_file()  # a folder without NiiVue is not ours
    (tmp_path / "viewer" / NIIVUE.name).touch()
    write_report(study / "scores", tmp_path, options=options)
    assert [path.name for path in (tmp_path / "viewer").iterdir()] == [NIIVUE.name]


def draw_report(study, output, prediction):
    path = write_report(
        study / "scores",
        output,
        images=study / "scans",
        reference=study / "masks",
        prediction=prediction,
        options=ReportSection.of(pdf=False),
    )
    return path.read_text(encoding="utf-8")


def test_predictions_that_were_not_scored_are_not_drawn(study, tmp_path, caplog):
    """Shift the markings of all scans, as another model would draw them."""
    for path in (study / "found").glob("*_candidates.json"):
        case = path.name.removesuffix("_candidates.json")
        found = np.zeros(GRID.shape, np.int32)
        found[1:3, 14:18, 14:18] = 1
        write_prediction(tmp_path / "other", prediction_of(found, [0.9], GRID, case=case))
    text = draw_report(study, tmp_path / "page", tmp_path / "other")
    assert "the files are not those that were scored" in caplog.text
    assert "marking of the program" not in text


def test_candidates_that_were_not_scored_are_not_called_below_the_limit(study, tmp_path):
    """Add an accepted candidate that candidates.csv lacks, such as that of a stable lesion."""
    shutil.copytree(study / "found", tmp_path / "found")
    for k, case in enumerate(f"P{k}_$x$" for k in range(4)):
        found = np.zeros(GRID.shape, np.int32)
        scores = []
        if k < 3:
            found[3:6, 4:9, 5:10] = 1
            scores.append(0.9)
        if k != 1:
            scores.append(0.6)
            found[10:12, 4:7, 25:28] = len(scores)
        scores.append(0.95)
        found[8:9, 18:21, 18:21] = len(scores)
        write_prediction(tmp_path / "found", prediction_of(found, scores, GRID, case=case))
    text = draw_report(study, tmp_path / "page", tmp_path / "found")
    assert "marking of the program" in text
    assert "marking rated below the limit" not in text
