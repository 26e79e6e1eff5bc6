"""The page of an evaluation: words, charts, pictures, and hidden names."""

import os
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lesionseg.config import ReportSection
from lesionseg.errors import ConfigError, ContentError, ReadError, format_score
from lesionseg.evaluation import read_scores
from lesionseg.io.results.case import write_prediction
from lesionseg.io.text import read_json, write_json
from lesionseg.pipeline.report import ReportOutcome, remove_report
from lesionseg.reporting.evaluation_tables import read_evaluation
from lesionseg.reporting.viewer import NIIVUE
from lesionseg.reporting.words import headline, key_figures, size_text
from lesionseg.reporting.write import read_study, write_adjudication, write_report
from tests.commands import evaluate
from tests.reporting.study import predict, write_cases

CASES = [f"P{k}_$x$" for k in range(4)]
FOUND = [("lesion", "false"), ("lesion",), ("lesion", "false"), ("false",)]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Write four scans. Three have two lesions each, and the small ones are missed."""
    root = tmp_path_factory.mktemp("study")
    write_cases(root, CASES, n_ill=3)
    for case, names in zip(CASES, FOUND, strict=True):
        write_prediction(root / "found", predict(case, *names))
    evaluate(root / "masks", root / "found", root / "scores", evaluated_on="test")
    return root


def write(scores, output, **places):
    """Write the report of scores without a PDF. Return its page."""
    path = write_report(scores, output, options=ReportSection.of(pdf=False), **places)
    return path.read_text(encoding="utf-8")


def write_with_pictures(study, output, prediction):
    places = {"images": study / "scans", "reference": study / "masks", "prediction": prediction}
    return write(study / "scores", output, **places)


def copy_scores(study, output, **columns):
    """Copy the scores of the study with other columns of lesions.csv."""
    shutil.copytree(study / "scores", output)
    lesions = pd.read_csv(output / "lesions.csv")
    lesions.assign(**columns).to_csv(output / "lesions.csv", index=False)
    return output


@pytest.fixture(scope="module")
def page(study):
    return write_with_pictures(study, study / "page", study / "found")


def test_first_screen_states_lesions_found_and_missed(study, page):
    tables = read_evaluation(study / "scores")
    assert [tile.value for tile in key_figures(tables)] == ["3 of 3", "0 of 3", "0.75", "3 scans"]
    assert "test scans, not used in training" in page
    assert headline(tables) in page


def test_page_has_pictures_with_a_key_and_no_names(study, page):
    assert page.count("data:image/jpeg;base64") == 3 + 3 + 3 + 3  # top, missed, false, found
    for part in ('id="missed"', 'id="false"', 'id="found"'):
        assert "lesion in the reference" in page.partition(part)[2].partition("</details>")[0]
    text = re.sub(r"base64,[^\"']*", "", page)
    assert "P0_" not in text
    assert "case 1" in text
    named = pd.read_csv(study / "page/pseudonyms.csv").set_index("pseudonym")["name"]
    assert named["case 1"] == "P0_$x$"
    assert not re.search(r"(?:src|href)=.https?:", text)


def test_found_lesions_are_shown_from_the_smallest_to_the_largest(study, tmp_path, monkeypatch):
    monkeypatch.setattr("lesionseg.reporting.write.MAX_FOUND", 2)
    # the first lesion of each case is found
    scores = copy_scores(study, tmp_path / "scores", diameter_mm=[6.0, 2.0, 7.0, 2.0, 8.0, 2.0])
    text = write(scores, tmp_path / "page", images=study / "scans")
    found = text.partition('id="found"')[2].partition("</details>")[0]
    assert "(2 of 3)" in found
    assert re.findall(r"<b>(\d)", found) == ["6", "8"]


def test_first_screen_shows_the_smallest_found_lesions_if_none_is_missed(study, tmp_path):
    scores = copy_scores(study, tmp_path / "scores", detected=True)
    text = write(scores, tmp_path / "page", images=study / "scans")
    screen = text.partition('<p class="limits">')[0]
    found = screen.partition("Smallest lesions it found")[2]
    found, _, false = found.partition("The false positives with the highest rating")
    smallest = pd.read_csv(scores / "lesions.csv")["diameter_mm"].min()
    assert re.findall(r"<b>([\d.]+) mm</b>", found) == 3 * [size_text(smallest)]
    assert false.count("<figure>") == 3


def test_page_has_names_on_request_and_no_pictures_without_images(study, tmp_path):
    write_report(study / "scores", tmp_path)
    (tmp_path / "report.pdf").touch()
    assert (tmp_path / "pseudonyms.csv").is_file()
    (tmp_path / "study.yaml").write_text("title: <b>Ours</b> $x^$")
    options = ReportSection.of(identifiers=True, pdf=False, study=tmp_path / "study.yaml")
    page = write_report(study / "scores", tmp_path, options=options).read_text(encoding="utf-8")
    assert "P0_$x$" in page
    assert "<b>Ours</b>" not in page
    assert "data:image/jpeg" not in page
    # the files of the earlier page are removed
    assert not [*tmp_path.glob("pseudonyms.csv"), *tmp_path.glob("*.pdf")]


def test_answers_are_kept_when_the_table_is_written_again(study, tmp_path):
    tables = read_evaluation(study / "scores")
    path = tmp_path / "adjudicate.csv"
    assert write_adjudication(path, tables) == 3
    rows = pd.read_csv(path, dtype=str)
    assert rows["case"].tolist() == ["P0_$x$", "P2_$x$", "P3_$x$"]
    answers = ["", "lesion", "", "unsure"]
    gone = rows.iloc[[0]].assign(candidate="9")  # not a false positive any more
    rows = pd.concat([rows, gone], ignore_index=True).assign(answer=answers, date="2026")
    rows["start_z_vox"] = rows["start_z_vox"].str.removesuffix(".0")  # like spreadsheets
    rows.drop(columns=["comment", "reader"]).to_csv(path, index=False, sep=";")
    before = os.umask(0o027)
    write_adjudication(path, tables)
    os.umask(before)
    if sys.platform != "win32":
        assert path.stat().st_mode & 0o777 == 0o640
    again = pd.read_csv(path, dtype=str)
    assert again["answer"].fillna("").tolist() == answers
    assert "date" not in again


@pytest.mark.parametrize("answer", ["lesion", ""])
def test_table_without_false_positives_is_kept_only_if_it_has_answers(study, tmp_path, answer):
    tables = read_evaluation(study / "scores")
    path = tmp_path / "adjudicate.csv"
    write_adjudication(path, tables)
    pd.read_csv(path, dtype=str).assign(answer=answer).to_csv(path, index=False)
    none_is_false = tables.candidates[tables.candidates["outcome"] != "false_positive"]
    write_adjudication(path, replace(tables, candidates=none_is_false))
    assert path.exists() == bool(answer)
    assert not answer or pd.read_csv(path)["answer"].tolist() == ["lesion"] * 3


def test_removed_report_leaves_no_scores(study, tmp_path):
    folder = shutil.copytree(study / "scores", tmp_path / "test")
    write_report(study / "scores", folder)
    (folder / "notes.txt").touch()  # of the user
    for _ in range(2):
        remove_report(folder)
        assert {path.name for path in folder.iterdir()} == {"notes.txt", "adjudicate.csv"}
    remove_report(tmp_path / "absent")


def test_comparison_with_other_cases_is_refused(study, tmp_path):
    cases = shutil.copytree(study / "scores", tmp_path / "other") / "cases.csv"
    cases.write_text(cases.read_text().replace("P0_", "Q0_"))
    with pytest.raises(ContentError, match="evaluation of other cases"):
        write_report(study / "scores", tmp_path / "page", compare=tmp_path / "other")


def test_models_are_compared_if_a_prediction_of_one_could_not_be_scored(study, tmp_path):
    for name in ("one", "other"):
        shutil.copytree(study / "masks", tmp_path / name)
    other = tmp_path / "other"
    (other / "P1_$x$.nii.gz").write_bytes(b"damaged")
    out = tmp_path / "out"
    evaluate(study / "masks", tmp_path / "one", out, evaluated_on="test", compare=other)
    assert "on the 3 scans that were scored for both" in write(out, tmp_path / "page")
    # the differences are those to `compare=` of evaluate
    assert "scored for both" not in write(out, tmp_path / "page", compare=study / "scores")


def test_page_shows_both_programs_with_their_limits(study, tmp_path):
    other = shutil.copytree(study / "found", tmp_path / "found")
    for path in other.glob("P2*"):
        path.unlink()  # a case that the other program did not predict
    out = tmp_path / "out"
    evaluate(study / "masks", study / "found", out, compare=other, operating_point="best_f1")
    scores = read_scores(out / "scores.json")
    shown = [program.name for program in scores.programs]
    assert len(set(shown)) == 2
    recall = scores.comparison["lesion_recall"]
    shown += [f"{recall.one:.3f}", f"{recall.other:.3f}", f"{recall.difference:+.3f}"]
    shown += [format_score(program.operating_point.score) for program in scores.programs]
    text = write(out, tmp_path / "page")
    assert [word for word in shown if f">{word}</t" not in text] == []
    # scores of an earlier version have no names of programs
    for path in (out / "scores.json", out / "compare/scores.json"):
        content = read_json(path)
        del content["programs"]
        write_json(path, content)
    assert "Comparison of this program and other program" in write(out, tmp_path / "page")


def test_scores_of_a_table_are_read_exactly(study, tmp_path):
    """A score equal to the operating point must not become lower when it is read."""
    shutil.copytree(study / "scores", tmp_path, dirs_exist_ok=True)
    scores = np.random.default_rng(0).random(3).tolist()
    path = tmp_path / "candidates.csv"
    rows = pd.read_csv(path, dtype=str).iloc[:3].assign(score=[repr(value) for value in scores])
    rows.to_csv(path, index=False)
    assert read_evaluation(tmp_path).candidates["score"].tolist() == scores


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
    write(study / "scores", tmp_path)
    written = tmp_path / "report.html", tmp_path / "pseudonyms.csv"
    for file in written:
        file.write_text("earlier")
    for table in ("a,b\n1,2\n", "case,candidate,answer\nA,inf,lesion\n"):
        (tmp_path / "adjudicate.csv").write_text(table)
        with pytest.raises(ContentError, match=r"adjudicate\.csv: a column or number"):
            write(study / "scores", tmp_path)
    assert [file.read_text() for file in written] == ["earlier"] * 2


def test_viewer_pages_of_an_earlier_report_are_removed(study, tmp_path):
    page = tmp_path / "viewer/P0.html"
    page.parent.mkdir()
    page.touch()
    write(study / "scores", tmp_path)
    assert page.is_file()  # a folder without NiiVue is not ours
    (tmp_path / "viewer" / NIIVUE.name).touch()
    write(study / "scores", tmp_path)
    assert [path.name for path in (tmp_path / "viewer").iterdir()] == [NIIVUE.name]


def test_predictions_that_were_not_scored_are_not_drawn(study, tmp_path, caplog):
    """Show the markings of another model."""
    for case in CASES:
        write_prediction(tmp_path / "other", predict(case, "other"))
    text = write_with_pictures(study, tmp_path / "page", tmp_path / "other")
    assert "the files are not those that were scored" in caplog.text
    assert "marking of the program" not in text


def test_candidates_that_were_not_scored_are_not_called_below_the_limit(study, tmp_path):
    """Add an accepted candidate that candidates.csv lacks, such as that of a stable lesion."""
    for case, names in zip(CASES, FOUND, strict=True):
        write_prediction(tmp_path / "found", predict(case, *names, "other"))
    text = write_with_pictures(study, tmp_path / "page", tmp_path / "found")
    assert "marking of the program" in text
    assert "marking rated below the limit" not in text
