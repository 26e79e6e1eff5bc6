import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lesionseg.errors import ReadError
from lesionseg.report import text
from lesionseg.report.inputs.origin import make_pseudonyms, rename
from lesionseg.report.inputs.study_file import Study
from lesionseg.report.page import make_page
from lesionseg.report.rendering import render
from lesionseg.report.result_tables import Tables, read_scores, read_tables
from lesionseg.report.sections.first_screen import banners, facts
from lesionseg.report.sections.gallery import GallerySection, choose_items, draw_gallery, trim
from lesionseg.report.text.fact_sentences import operating_point_sentence
from lesionseg.report.write import Options, write_report
from tests.report.conftest import FORBIDDEN, Blob, Evaluation

NAMED = Options(title="a < b & c", identifiers=True)


def summary(tables: Tables) -> tuple[str, ...]:
    """The words of the first screen."""
    return tuple(fact.words for fact in facts(tables))


class Words(HTMLParser):
    """Visible text, addresses and alternative texts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.sources: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self._hidden = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden = tag in ("style", "script")
        found = dict(attrs)
        self.sources += [found[key] or "" for key in ("src", "href") if key in found]
        if tag in ("img", "svg"):
            self.images.append(found)

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden and data.strip():
            self.words.append(" ".join(data.split()))


def read(page: Path) -> Words:
    words = Words()
    words.feed(page.read_text(encoding="utf-8"))
    return words


def page_words(page: Path) -> str:
    return " ".join(read(page).words).replace("\xa0", " ")


def test_page_says_what_was_found_and_at_what_price(scores_dir: Path, tmp_path: Path) -> None:
    words = page_words(write_report(scores_dir, tmp_path / "out"))
    for said in (
        "Lesion sensitivity 2/3 at ≥ 5 mm equivalent diameter, 1/2 below, at 0.67 false positives "
        "per scan (target 0.5).",
        "Sensitivity ≥ 5 mm 2/3",
        "Sensitivity < 5 mm 1/2",
        "60 % (3/5; 95 % CI 30 to 80 %); 2 missed.",
        "Observed 0.67: 2 false positives on 3 scans; target 0.5; expected 0.9; on 1 lesion-free "
        "scan 0.5.",
        "2 patients with lesions, 1 without; 3 scans; 5 reference lesions.",
        "test data, not used in training",
        "Not stated. Intended use, population.",
        "Not for Excluding a lesion",
        "A candidate counts from a score of 0.5, chosen on validation data.",
        "No reader was studied",
        "An empty result does not exclude a lesion.",
        "Research use only. Not a medical device.",
        "not defined: under 8 scans",
        text.NO_PICTURES,
    ):
        assert said in words


def test_page_needs_no_network_and_every_figure_has_words(scores_dir: Path, tmp_path: Path) -> None:
    history = tmp_path / "metrics.csv"
    history.write_text("step,minutes,loss\n1,0.1,2\n2,0.2,1\n")
    page = read(write_report(scores_dir, tmp_path / "out", history=history))
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert len(page.images) == 5
    assert all(image.get("alt") or image.get("aria-label") for image in page.images)


@pytest.mark.parametrize("role", ["train", "validation", "test", "external", "unknown"])
def test_page_claims_nothing_it_cannot_show(
    evaluation: Evaluation, tmp_path: Path, role: str
) -> None:
    evaluation.changes = {"evaluated_on": role}
    words = page_words(write_report(evaluation.write(tmp_path / "s"), tmp_path / "out"))
    assert not re.search(r"\b(nan|NaN|inf|None|null)\b", words)
    words = words.lower()
    for word in FORBIDDEN:
        assert not re.search(rf"\b{word}\b", words)
    assert ("development data: optimistic" in words) == (role in ("train", "validation"))
    assert ("not used in training" in words) == (role in ("test", "external"))
    assert ("the role of these scans was not stated" in words) == (role == "unknown")
    assert ("evaluated_on=test or evaluated_on=external" in words) == (role == "unknown")


def test_banners_for_simulated_scans_and_shared_patients(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    evaluation.changes = {"provenance": {"simulated": True}, "split_is_group_safe": False}
    titles = [b.title for b in banners(read_scores(evaluation.write(tmp_path) / "scores.json"))]
    assert titles == [text.SIMULATED, text.NOT_GROUP_SAFE]


def test_operating_point_chosen_on_the_same_scans_is_optimistic(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    point = {"score": 0.5, "chosen_on": "test", "optimistic": True}
    evaluation.changes = {"operating_point": point}
    (banner,) = banners(read_scores(evaluation.write(tmp_path) / "scores.json"))
    assert banner.title == text.DEVELOPMENT


def test_a_score_chosen_by_another_match_rule_is_said(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    chosen = {"score": 0.5, "chosen_on": "validation", "optimistic": False}
    for rule, said in (("lesionseg 1", True), ("lesionseg 2", False)):
        evaluation.changes = {
            "operating_point": chosen | {"match_rule": rule},
            "match_rule": "lesionseg 2",
        }
        scores = read_scores(evaluation.write(tmp_path / rule) / "scores.json")
        assert ("It was chosen by match rule" in operating_point_sentence(scores)) is said


def test_incomplete_reference_makes_detections_unconfirmed(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    evaluation.changes = {"provenance": {"incomplete_reference": True}}
    said = " ".join(summary(read_tables(evaluation.write(tmp_path))))
    assert "2 unconfirmed detections on 3 scans" in said


def test_nothing_found_and_nothing_to_find_both_make_a_page(tmp_path: Path) -> None:
    missed = Evaluation([Blob("a", 1, (9, 9, 9), 2.0, detected=False)], cases=("a",))
    words = page_words(write_report(missed.write(tmp_path / "missed"), tmp_path / "out"))
    assert ", all lesions < 5 mm equivalent diameter, at 0 false positives per scan" in words
    empty = Evaluation(changes={"froc": None, "dice": {"mean": None, "reason": "no lesion"}})
    words = page_words(write_report(empty.write(tmp_path / "empty"), tmp_path / "out"))
    assert "No reference lesion in these scans; 0 false positives per scan (target 0.5)." in words
    assert text.FROC_NONE in words
    assert "not defined: no lesion" in words


def test_names_from_tables_are_escaped(tmp_path: Path) -> None:
    odd = Evaluation(cases=("<script>alert(1)</script>",))
    page = write_report(odd.write(tmp_path / "s"), tmp_path / "out", options=NAMED)
    html = page.read_text(encoding="utf-8")
    assert "<script>alert" not in html
    assert "<h1>a &lt; b &amp; c</h1>" in html


def test_failed_scans_are_said(evaluation: Evaluation, tmp_path: Path) -> None:
    evaluation.failed = ("c",)
    assert "1 scan without a prediction" in " ".join(
        summary(read_tables(evaluation.write(tmp_path)))
    )


def test_missing_scores_leave_no_page(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"scores\.json"):
        write_report(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def hang(evaluation: Evaluation, folder: Path) -> tuple[GallerySection, ...]:
    tables = read_tables(evaluation.write(folder))
    return draw_gallery(choose_items(tables), tables, evaluation.scene)


def test_gallery_shows_misses_false_positives_and_finds(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    missed, false, found = hang(evaluation, tmp_path)
    assert [len(selection.cards) for selection in (missed, false, found)] == [2, 2, 3]
    assert "missed: no response" in missed.cards[0].caption
    assert "score 0.90" in false.cards[0].caption
    for card in missed.cards:
        assert [view.plane for view in card.views] == ["axial", "coronal", "sagittal"]
        assert all(view.reference for view in card.views)
    assert all(view.accepted for card in false.cards for view in card.views)


def test_each_case_is_read_once_and_progress_is_told(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    tables = read_tables(evaluation.write(tmp_path))
    read_cases: list[str] = []
    told: list[tuple[str, int, int]] = []

    def load(case: str, accepted: frozenset[int]):  # type: ignore[no-untyped-def]
        read_cases.append(case)
        return evaluation.scene(case, accepted)

    draw_gallery(choose_items(tables), tables, load, lambda *step: told.append(step))
    assert read_cases == ["a", "b", "c"]
    assert told[-1] == ("c", 3, 3)


def test_case_that_cannot_be_read_leaves_a_note(evaluation: Evaluation, tmp_path: Path) -> None:
    tables = read_tables(evaluation.write(tmp_path))

    def load(case: str, accepted: frozenset[int]):  # type: ignore[no-untyped-def]
        raise ReadError("The image of a case is not there.", where=case)

    for selection in draw_gallery(choose_items(tables), tables, load):
        assert all(card.note == "The image of a case is not there." for card in selection.cards)


def test_trimmed_gallery_counts_what_it_leaves_out(evaluation: Evaluation, tmp_path: Path) -> None:
    tables = read_tables(evaluation.write(tmp_path))
    selections = choose_items(tables)
    missed, *_ = trim(draw_gallery(selections, tables, evaluation.scene), 1)
    assert len(missed.cards) == 1
    assert missed.sentence.endswith("1 not shown.")


def test_scores_json_of_the_contract_alone_is_enough(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    raw = json.loads((evaluation.write(tmp_path) / "scores.json").read_text())
    for optional in ("dice", "surface_dice", "lesion_f1", "cpm", "froc", "provenance"):
        raw[optional] = None
    (tmp_path / "scores.json").write_text(json.dumps(raw))
    assert "not defined" in page_words(write_report(tmp_path, tmp_path / "out"))


def test_batch_whose_every_scan_failed_still_makes_a_page(tmp_path: Path) -> None:
    lost = [Blob("a", 1, (9, 9, 9), 6.0, detected=False), Blob("b", 1, (9, 9, 9), 2.0, False)]
    batch = Evaluation(lost, failed=("a", "b", "c"))
    words = page_words(write_report(batch.write(tmp_path / "s"), tmp_path / "out"))
    assert "Lesion sensitivity 0/1 at ≥ 5 mm equivalent diameter, 0/1 below, at" in words
    assert "3 scans without a prediction" in words
    assert "No scan has a prediction." in words


def test_patients_are_counted_only_where_somebody_named_them(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    folder = evaluation.write(tmp_path / "s")
    for table in ("cases", "lesions", "candidates"):
        path = folder / f"{table}.csv"
        path.write_text(path.read_text().replace("group ", ""))
    tables = read_tables(folder)
    for shown in (tables, rename(tables, make_pseudonyms(tables))):
        said = " ".join(summary(shown))
        assert "2 scans with lesions, 1 without; 5 reference lesions; patients not stated" in said
        assert "2 patients" not in said


def test_500_scans_fit_and_rows_beyond_the_limit_are_counted(tmp_path: Path) -> None:
    cases = tuple(f"scan {n}" for n in range(500))
    lesions = [Blob(case, k, (9, 9, 9), 2.0 + k, score=0.8) for case in cases for k in range(7)]
    page = write_report(Evaluation(lesions, cases=cases).write(tmp_path / "s"), tmp_path / "out")
    assert page.stat().st_size < 5_000_000
    assert "500 further lines not shown" in page_words(page)


def test_too_few_patients_are_told_how_many_are_missing(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    none = {"value": 0.6, "ci95": None, "reason": "too few"}
    evaluation.changes = {"lesion_recall": none}
    said = " ".join(summary(read_tables(evaluation.write(tmp_path / "few"))))
    assert "At least 3 more patients" in said
    evaluation.cases += ("d", "e")  # lesion-free: they help no interval of found lesions
    evaluation.lesions.append(Blob("d", 1, (20, 60, 50), 12.0))
    said = " ".join(summary(read_tables(evaluation.write(tmp_path / "free"))))
    assert "At least 2 more patients with lesions" in said
    evaluation.changes = {"n_groups": 43}
    said = " ".join(summary(read_tables(evaluation.write(tmp_path / "many"))))
    assert "about 129 more patients" in said


def test_why_there_is_no_interval_is_said_once(evaluation: Evaluation, tmp_path: Path) -> None:
    few = "fewer than 5 groups are too few for an interval"
    missing = {"value": 0.6, "ci95": None, "reason": few}
    evaluation.changes = {
        "lesion_recall": missing,
        "lesion_precision": missing,
        "lesion_f1": missing,
    }
    words = page_words(write_report(evaluation.write(tmp_path / "s"), tmp_path / "out"))
    assert words.count("fewer than 5 patients") == 1
    assert "too few for an interval" not in words
    assert "Lesion sensitivity 2/3" in words


def test_model_of_a_run_directory_is_named_by_its_configuration(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    evaluation.changes = {"provenance": {"lesionseg": "0.1.0", "git_commit": "4d1ea46653dd"}}
    folder = evaluation.write(tmp_path / "run" / "test")
    assert facts(read_tables(folder))[1].words == text.NOT_STATED
    (tmp_path / "run" / "config.yaml").write_text("model: {architecture: unet}\n")
    said = "unet, trained by lesionseg 0.1.0 (commit 4d1ea46653dd)"
    assert facts(read_tables(folder))[1].words == said


def test_first_page_has_what_a_study_states_and_no_banner_then(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        "intended_use: second reading\npopulation: adults with MS\nmodel: finder 1.2\n"
        "reference_readers: two neuroradiologists\nnot_for: children\n"
    )
    evaluation.changes = {
        "operating_point": {"name": "sensitivity:0.9", "score": 0.5, "chosen_on": "validation"},
        "lesion_recall_mean_per_group": None,
    }
    page = write_report(
        evaluation.write(tmp_path / "s"), tmp_path / "out", options=Options(study=study)
    )
    words = page_words(page)
    for said in (
        "Intended use second reading",
        "Population adults with MS",
        "Model and version finder 1.2",
        "Reference read by two neuroradiologists",
        "Not for children",
        "per scan (target sensitivity 90 %).",
    ):
        assert said in words
    assert "cannot be told without" not in words


def test_what_says_nothing_is_left_out(evaluation: Evaluation, tmp_path: Path) -> None:
    few = {"prevalence": 0.1, **{k: {"value": 1.0, "ci95": None} for k in ("ppv", "npv")}}
    counts = dict.fromkeys(
        ("true_positive", "false_negative", "false_positive", "true_negative"), 1
    )
    alike = {"from_mm": 0.0, "to_mm": None, "contrast_from": 0.0, "contrast_to": None}
    found = {"n": 7, "detected": 4, "recall": 4 / 7, "ci95": None}
    evaluation.changes = {
        "case_table": {**counts, "predictive_values": [few]},
        "recall_by_size_and_contrast": [alike | found],
        "other_criteria": {},
    }
    folder = evaluation.write(tmp_path / "s")
    history = tmp_path / "metrics.csv"
    history.write_text("step,loss\n1,0.5\n2,0.4\n")
    page = write_report(folder, tmp_path / "out", history=history).read_text()
    assert text.ALIKE in page
    assert "they need 5 patients with lesions and 5 without" in page
    for absent in ("PPV of a scan", "0 of 0</td>", text.OTHER_RULES, "def-second-reader"):
        assert absent not in page
    tables = read_tables(folder)
    shown = make_page(tables, Study(), history=history)
    assert '<section id="training">' in render("report.html.j2", shown, gallery=())
    assert '<section id="training">' not in render("report.html.j2", shown, gallery=(), paper=True)
