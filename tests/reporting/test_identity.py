"""The page states dataset, date, model and training from scores.json and from the run."""

import shutil
from dataclasses import replace

import pytest

from lesionseg.core import CaseFiles, OperatingPoint
from lesionseg.evaluation.scores import Provenance
from lesionseg.inference.bundle import bundle_digest
from lesionseg.io.results.case import write_prediction
from lesionseg.io.text import read_json, write_json
from lesionseg.pipeline.provenance import training_counts
from lesionseg.reporting.identity import read_identity
from lesionseg.reporting.rendering import render_lines, render_sentence
from lesionseg.reporting.write import write_report
from tests.commands import evaluate
from tests.evaluation.hand_cases import CASES, make_prediction, make_reference
from tests.pdf_pages import HAS_PANGO, read_objects
from tests.pipeline.cases import write_array

TRAINED = {
    "date": "2026-01-31",
    "dataset": "MS",
    "model": "unet",
    "training_steps": 60,
    "training_patients": 12,
    "training_scans": 20,
}


@pytest.fixture
def trained_run(tmp_path):
    """Write a run directory with a bundle. Its weights cannot be read, only their digest."""
    folder = tmp_path / "run"
    write_json(folder / "bundle/plan.json", {"architecture": {"name": "unet"}})
    (folder / "bundle/weights.safetensors").write_bytes(b"weights")
    write_json(folder / "scores.json", {"provenance": TRAINED})
    return folder


def test_scores_of_a_training_have_the_digest_of_its_bundle(trained_run):
    stated = Provenance(**TRAINED)
    known = Provenance(**TRAINED, bundle=bundle_digest(trained_run / "bundle"))
    for folder in (trained_run, trained_run / "test"):
        assert read_identity(folder, stated) == known


def test_evaluation_in_a_run_directory_is_not_attributed_to_its_model(trained_run):
    found = read_identity(trained_run / "another_model", Provenance(date="2026-02-01"))
    assert (found.bundle, found.training_patients) == ("", None)
    assert "model unknown" in render_sentence("identity_line", identity=found)


def test_unreadable_bundle_leaves_the_digest_unknown(trained_run):
    (trained_run / "bundle/plan.json").write_text("{}")
    assert read_identity(trained_run, Provenance(training_steps=1)).bundle == ""


def evaluate_masks(root, prediction):
    """Evaluate a prediction. Return the provenance of the scores."""
    return evaluate(root / "masks", prediction, root / "scores").scores.provenance


def write_case(root, folder):
    hand = CASES["three_axes"]
    prediction = make_prediction(hand)
    path = root / "masks/three_axes.nii.gz"
    write_array(path, make_reference(hand).instances, prediction.geometry)
    write_prediction(folder, replace(prediction, operating_point=OperatingPoint("score:0.5", 0.5)))


def test_evaluate_records_date_dataset_and_predicting_model(tmp_path, trained_run):
    write_case(tmp_path, tmp_path / "found")
    found = evaluate_masks(tmp_path, tmp_path / "found")
    assert len(found.date) == len("2026-01-31")
    assert (found.dataset, found.bundle) == ("masks in masks", "")
    (tmp_path / "found/predictions.csv").write_text("case,bundle\nthree_axes,0123\n")
    assert evaluate_masks(tmp_path, tmp_path / "found").bundle == "0123"
    write_case(tmp_path, trained_run / "test/predictions")
    found = evaluate_masks(tmp_path, trained_run / "test/predictions")
    assert found.bundle == bundle_digest(trained_run / "bundle")
    assert (found.training_patients, found.training_scans) == (12, 20)


def test_page_and_pdf_have_title_and_identity(tmp_path, trained_run):
    write_case(tmp_path, tmp_path / "found")
    evaluate_masks(tmp_path, tmp_path / "found")
    scores = shutil.copytree(tmp_path / "scores", trained_run / "test") / "scores.json"
    content = read_json(scores)
    known = content["provenance"] | TRAINED
    write_json(scores, content | {"evaluated_on": "test", "provenance": known})
    page = write_report(trained_run / "test", tmp_path / "page")
    title = "MS: lesions found and missed in test scans, 2026-01-31"
    html = page.read_text(encoding="utf-8")
    assert f"<title>{title}</title>" in html
    digest = bundle_digest(trained_run / "bundle")
    line = f"dataset MS · evaluated 2026-01-31 · model unet {digest} · trained on 12 patients"
    assert line in html
    if HAS_PANGO:
        pdf = read_objects(page.with_suffix(".pdf"))
        assert f"/Title ({title})".encode() in pdf
        assert line.encode("utf-16-be").hex().encode() in pdf
        assert b"/Keywords (research use only: not a medical device)" in pdf
        assert b"D:20260131" in pdf


def test_a_case_without_a_stated_patient_counts_as_one_patient():
    cases = [CaseFiles(case, (), group="a") for case in ("a1", "a2")]
    alone = CaseFiles("b", ())
    assert training_counts(cases) == {"training_patients": 1, "training_scans": 2}
    assert training_counts([*cases, alone]) == {"training_patients": 2, "training_scans": 3}


def test_page_states_why_a_model_was_chosen():
    reason = "retinanet, because 9 of 9 cases with lesions have boxes and no mask"
    chosen = Provenance(model="retinanet", why_model=reason)
    assert f"Choice of the model: {reason}" in render_lines("identity_rows", identity=chosen)
    named = Provenance(model="retinanet")
    assert "Choice of the model" not in render_sentence("identity_rows", identity=named)
