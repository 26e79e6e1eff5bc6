"""Datasets of boxes: survey, cache, and references of several readers."""

import pytest

from lesionseg.config import DataConfig
from lesionseg.evaluation.scores import Provenance
from lesionseg.io.contents import case_digest
from lesionseg.io.layouts import read_dataset
from lesionseg.io.text import read_csv, write_json
from lesionseg.pipeline.provenance import scores_provenance
from lesionseg.pipeline.survey import take_survey
from tests.commands import evaluate
from tests.io.layouts.box_folders import write_picture
from tests.pipeline.cases import counts

HEADER = "case,label,x0,y0,x1,y1,reader\n"
READERS = ("Miller", "Otto", "Smith")


@pytest.fixture
def films(tmp_path):
    """Write six films. Three readers read them, two mark the lesion, the sixth has no lesion."""
    root = tmp_path / "films"
    rows = []
    for number in range(6):
        write_picture(root / f"f{number}.png", bright=number < 5)
        for shift, reader in enumerate(READERS):
            is_marked = number < 5 and reader != "Smith"
            box = f"nodule,{15 + 2 * shift},4,{31 + 2 * shift},14" if is_marked else ",,,,"
            rows.append(f"f{number},{box},{reader}")
    rows.append("f5,nodule,40,20,50,30,Miller")
    rows.remove("f5,,,,,,Miller")
    (root / "boxes.csv").write_text(HEADER + "\n".join(rows))
    return root


def test_survey_counts_merged_lesions(films):
    survey = take_survey(DataConfig.of(root=films), seed=0)
    assert survey.counts == {"f0": 1, "f1": 1, "f2": 1, "f3": 1, "f4": 1, "f5": 0}
    survey = take_survey(DataConfig.of(root=films, min_readers=1), seed=0)
    assert survey.counts["f5"] == 1


def test_scores_of_a_training_state_the_rule_for_several_readers(films):
    dataset = read_dataset(films)
    assert "min_readers" not in scores_provenance({"min_readers": None}, dataset)
    data = {"min_readers": 1, "merge_labels": True, "annotations": "a.json"}
    stated = Provenance(**scores_provenance(data, dataset))
    assert (stated.min_readers, stated.merge_labels, stated.annotations) == (1, True, "a.json")


def test_keys_of_cached_cases_depend_on_boxes_but_not_on_lines(films):
    table = films / "boxes.csv"
    before = {c.case: case_digest(c) for c in read_dataset(films).cases}
    table.write_text(table.read_text().replace(HEADER, HEADER + "\n\n"))
    assert {c.case: case_digest(c) for c in read_dataset(films).cases} == before
    table.write_text(table.read_text().replace("f0,nodule,15", "f0,nodule,13"))
    after = {c.case: case_digest(c) for c in read_dataset(films).cases}
    assert {case for case in before if before[case] != after[case]} == {"f0"}


def test_evaluate_merges_readers_of_the_reference_by_the_same_rule(films, tmp_path):
    for number in range(6):
        candidate = {"id": 1, "label": 1, "score": 0.9, "start_vox": [4, 16], "stop_vox": [14, 32]}
        write_json(
            tmp_path / "found" / f"f{number}_candidates.json",
            {"candidates": [candidate] if number < 5 else []},
        )
    folders = (films, tmp_path / "found")
    scores = evaluate(*folders, tmp_path / "a").scores
    assert counts(scores, "n_lesions", "n_true_positive", "n_false_positive") == (5, 5, 0)
    scores = evaluate(*folders, tmp_path / "b", min_readers=1).scores
    assert counts(scores, "n_lesions", "n_true_positive", "n_false_positive") == (6, 5, 0)


def test_annotations_of_another_place_are_read_by_survey_and_evaluate(tmp_path):
    root = tmp_path / "films"
    images = []
    for number in range(6):
        write_picture(root / "images" / f"part{number % 2}" / f"f{number}.png")
        images.append({"id": number, "file_name": f"f{number}.png"})
    lesion = {"category_id": 1, "bbox": [16, 4, 16, 10]}
    write_json(
        root / "notes" / "export 2.json",
        {
            "images": images,
            "annotations": [{"image_id": number, **lesion} for number in range(5)],
            "categories": [{"id": 1, "name": "nodule"}],
        },
    )
    stated = {"annotations": "notes/export 2.json"}
    survey = take_survey(DataConfig.of(root=root, **stated), seed=0)
    assert survey.counts == {"f0": 1, "f1": 1, "f2": 1, "f3": 1, "f4": 1, "f5": 0}
    found = write_candidates(tmp_path / "found", {"1": "nodule"}, 1)
    run = evaluate(root, found, tmp_path / "scores", **stated)
    assert counts(run.scores, "n_lesions", "n_true_positive") == (5, 5)


def write_candidates(folder, labels, label):
    """Write a candidate of a label at the lesion of the films f0 to f4."""
    for number in range(6):
        candidate = {"label": label, "score": 0.9, "start_vox": [4, 16], "stop_vox": [14, 32]}
        content = {"labels": labels, "candidates": [candidate] if number < 5 else []}
        write_json(folder / f"f{number}_candidates.json", content)
    return folder


def test_label_that_the_reference_lacks_is_scored_under_its_own_name(films, tmp_path, caplog):
    found = write_candidates(tmp_path / "found", {"1": "mass", "2": "nodule"}, label=1)
    scores = evaluate(films, found, tmp_path / "a").scores
    for label in ("", "nodule"):  # a candidate of a label that the dataset lacks finds nothing
        assert scores.find("lesion_recall", label=label).value == 0
    assert (
        scores.find("n_lesions", label="mass").value,
        scores.find("n_candidates", label="mass").value,
    ) == (0, 5)
    assert {row["label"] for row in read_csv(tmp_path / "a" / "candidates.csv")} == {"mass"}
    assert caplog.text.count("match none of its labels (nodule): mass.") == 1
    scores = evaluate(films, found, tmp_path / "b", merge_labels=True).scores
    assert scores.find("lesion_recall", label="lesion").value == 1.0
