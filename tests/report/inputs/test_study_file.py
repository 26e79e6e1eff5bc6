from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lesionseg.errors import ConfigError, ReadError
from lesionseg.report import text
from lesionseg.report.inputs.study_file import COUNTS, Study, make_flow, read_study
from lesionseg.report.result_tables import read_tables
from lesionseg.report.sections.checklists import CHECKLISTS, CLAIM, STARD_AI
from lesionseg.report.sections.first_screen import facts
from lesionseg.report.sections.table_cells import list_cases
from lesionseg.report.write import Options, write_report
from tests.report.conftest import Evaluation

FACTS = ("intervals", "found", "split", "test", "external")
TEMPLATE = Path(__file__).parents[3] / "docs" / "study.yaml"


def test_template_asks_every_question_once_and_answers_none() -> None:
    asked = yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))
    assert set(asked) == {*text.STUDY, *COUNTS}
    assert read_study(TEMPLATE) == Study()


def test_blanks_print_not_stated(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("dates: 2019 to\n  2021\nsites: [Bern, Basel]\nn_found: 12\nfunding:\n")
    study = read_study(path)
    answers = dict(study.lines())
    assert answers["Dates"] == "2019 to 2021"
    assert answers["Sites"] == "Bern; Basel"
    assert answers["Funding"] == text.NOT_STATED
    assert (study.n_found, study.n_excluded) == (12, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [("scaners: 3 T", "scanners"), ("n_found: many", "whole number"), ("n_excluded: -1", "whole")],
)
def test_mistakes_name_what_is_meant(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=said):
        read_study(path)


@pytest.mark.parametrize("content", ["- a\n- b", "a: [", None])
def test_unreadable_study_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "study.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ReadError, match=r"study"):
        read_study(path)


def test_flow_counts_failed_scans_and_says_when_numbers_do_not_add_up(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    evaluation.failed = ("b",)
    tables = read_tables(evaluation.write(tmp_path))
    flow = make_flow(tables, Study(n_found=10, n_excluded=6))
    assert (flow.n_entered, flow.n_failed, flow.n_with_result) == (3, 1, 2)
    assert text.unexplained(flow.n_unexplained).endswith("1 scan unaccounted for.")
    assert make_flow(tables, Study()).n_unexplained == 0


def test_failed_scans_are_counted_as_misses_and_left_out(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    evaluation.failed = ("b",)
    said = text.failed_sentence(read_tables(evaluation.write(tmp_path)))
    assert "1 scan without a prediction: lesions there count as missed (2)." in said
    assert "left out, 1 of 3 lesions found, 1 false positive per scan" in said
    evaluation.failed = evaluation.cases
    assert "No scan has a prediction" in text.failed_sentence(
        read_tables(evaluation.write(tmp_path))
    )


def test_scans_unlike_the_training_are_counted_with_what_was_found_there(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    tables = read_tables(evaluation.write(tmp_path))
    assert text.warned_sentence(tables) == ""
    reason = "Another grid: the spacing along S in mm is 4, in training 1 to 1."
    cases = tuple(replace(c, warning=reason if c.case == "b" else "") for c in tables.cases)
    warned = replace(tables, cases=cases)
    (b,) = (c for c in cases if c.warning)
    assert text.warned_sentence(warned).startswith(
        f"1 of 3 scans, with {b.n_detected} of {b.n_lesions} lesion"
    )
    assert text.warned_sentence(warned) in [fact.words for fact in facts(warned)]
    assert reason in {cell.shown for line in list_cases(cases, "mm").lines for cell in line}


def test_checklists_have_all_items_in_order() -> None:
    numbers = [item.number for item in CLAIM.items]
    assert numbers == [str(n) for n in range(1, 45)]
    stard = [item.number.rstrip("abcd*") for item in STARD_AI.items]
    assert list(dict.fromkeys(stard)) == [str(n) for n in range(1, 41)]
    assert len(stard) == 48
    assert sum("*" in item.number for item in STARD_AI.items) == 18


def test_items_point_at_sections_and_questions_that_exist() -> None:
    for checklist in CHECKLISTS:
        for item in checklist.items:
            for part in item.parts:
                known = text.SECTIONS if part[0] == "#" else FACTS if part[0] == "=" else text.STUDY
                assert part.lstrip("#=") in known


def test_items_are_automatic_only_where_all_that_they_ask_for_is_there() -> None:
    items = {item.number: item for item in STARD_AI.items}
    study = Study({"fairness": "by sex"})
    assert items["23*"].state(study, ["#why"]) == "supplied"
    assert items["23*"].section(study, ["#why"]) == "why"
    assert items["23*"].state(study, ["#cases"]) == "missing"
    assert items["23*"].state(Study(), ["#why"]) == "missing"
    assert items["31"].state(study, ["#size"]) == "missing"
    assert items["31"].state(study, ["#size", "=intervals"]) == "automatic"
    assert items["24"].state(study, ["#flow"]) == "missing"


def test_page_shows_study_flow_and_guidelines(scores_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("funding: none\nn_found: 3\nexclusions: none\n")
    page = write_report(scores_dir, tmp_path / "out", options=Options(study=path)).read_text()
    assert page.count(text.NOT_STATED) > 20
    assert "STARD" in page
    assert text.FLOW_EXCLUDED in page
    assert STARD_AI.counts(read_study(path), ())["supplied"] == 1
