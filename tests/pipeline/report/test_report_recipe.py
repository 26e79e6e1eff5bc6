import json
from pathlib import Path

import pytest

from lesionseg.core import Dataset
from lesionseg.errors import ConfigError, ReadError
from lesionseg.pipeline.report.recipe import ReportSettings, report, report_run

TABLES = {
    "cases.csv": "case,group,role,status,n_lesions,n_detected,n_missed,n_false_positive\n"
    "a,p,validation,ok,1,1,0,0\n",
    "lesions.csv": "case,lesion,diameter_mm,start_vox,stop_vox,detected\na,1,6.0,1 1,4 4,True\n",
    "candidates.csv": "case,candidate,diameter_mm,start_vox,stop_vox,accepted,outcome\n"
    "a,1,6.0,1 1,4 4,True,true_positive\n",
}


def write_scores(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    zero = ("n_lesion_free_cases", "n_false_positive", "n_missed", "n_ignored")
    one = ("n_cases", "n_groups", "n_lesions", "n_true_positive")
    counts = dict.fromkeys(zero, 0) | dict.fromkeys(one, 1)
    size = {"from_mm": 0, "to_mm": None, "n": 1, "detected": 1, "recall": 1.0, "ci95": None}
    scores = {"schema_version": 1, "evaluated_on": "validation", "recall_by_size": [size]}
    (folder / "scores.json").write_text(json.dumps(scores | counts))
    for name, content in TABLES.items():
        (folder / name).write_text(content)
    return folder


def empty_dataset(root: Path) -> Dataset:
    return Dataset("toy", root, "nnunet", 2, ("X-ray",), {1: "nodule"}, ())


def test_page_from_tables_alone(tmp_path: Path) -> None:
    page = report(str(write_scores(tmp_path / "s")), str(tmp_path / "out"), title="My title").page
    assert page == tmp_path / "out" / "report.html"
    assert "<h1>My title</h1>" in page.read_text(encoding="utf-8")


def test_missing_scores_name_the_file_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"scores\.json.*run evaluate first"):
        report(tmp_path / "nowhere", tmp_path / "out")


def test_run_directory_brings_its_history(tmp_path: Path) -> None:
    run = write_scores(tmp_path / "run")
    (run / "metrics.csv").write_text("step,minutes,loss\n1,0.1,2\n2,0.2,1\n")
    assert "Course of loss" in report(run, tmp_path / "out").page.read_text(encoding="utf-8")


def test_run_gets_a_page_for_validation_and_one_for_test(tmp_path: Path) -> None:
    run = write_scores(tmp_path / "run")
    write_scores(run / "test")
    page = report_run(run, empty_dataset(tmp_path), ReportSettings())
    assert page == run / "report.html"
    assert (run / "test" / "report.html").is_file()


def test_run_without_scores_has_no_page(tmp_path: Path) -> None:
    assert report_run(tmp_path, empty_dataset(tmp_path), ReportSettings()) is None


def test_negative_number_of_pictures_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"report\.missed"):
        ReportSettings(missed=-1)
