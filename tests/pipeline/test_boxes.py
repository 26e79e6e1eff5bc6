"""Datasets of boxes: survey, cache, and references of several readers."""

import pytest

from lesionseg.config import DataConfig
from lesionseg.evaluation.scores import Provenance
from lesionseg.io.contents import case_digest
from lesionseg.io.layouts import read_dataset
from lesionseg.io.text import read_csv, write_json
from lesionseg.pipeline.dataset_inspection import inspect_dataset
from lesionseg.pipeline.provenance import scores_provenance
from tests.commands import evaluate
from tests.io.layouts.box_folders import write_picture
from tests.pipeline.cases import counts, write_boxes

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
    for min_readers, last in ((None, 0), (1, 1)):
        inspection = inspect_dataset(DataConfig.of(root=films, min_readers=min_readers), seed=0)
        assert [*inspection.counts.values()] == [1, 1, 1, 1, 1, last]


def test_scores_of_a_training_state_the_rule_for_several_readers(films):
    dataset = read_dataset(films)
    assert "min_readers" not in scores_provenance({"min_readers": None}, dataset)
    data = {"min_readers": 1, "merge_labels": True, "annotations": "a.json"}
    stated = Provenance(**scores_provenance(data, dataset))
    assert (stated.min_readers, stated.merge_labels, stated.annotations) == (1, True, "a.json")


def test_keys_of_cached_cases_depend_on_boxes_but_not_on_lines(films):
    table = films / "boxes.csv"
    text = table.read_text()

    def digests():
        return {files.case: case_digest(files) for files in read_dataset(films).cases}

    before = digests()
    table.write_text(text.replace(HEADER, HEADER + "\n\n"))
    assert digests() == before
    table.write_text(text.replace("f0,nodule,15", "f0,nodule,13"))
    assert {case for case, digest in digests().items() if before[case] != digest} == {"f0"}


def write_found(folder, label, **more):
    """Write a candidate at the lesion of the films f0 to f4."""
    for number in range(6):
        found = [(0.9, [4, 16], [14, 32], label)] if number < 5 else []
        write_boxes(folder, f"f{number}", *found, **more)
    return folder


def test_evaluate_merges_readers_of_the_reference_by_the_same_rule(films, tmp_path):
    found = write_found(tmp_path / "found", label=1)
    for min_readers, n_lesions in ((None, 5), (1, 6)):
        scores = evaluate(films, found, tmp_path / "scores", min_readers=min_readers).scores
        numbers = counts(scores, "n_lesions", "n_true_positive", "n_false_positive")
        assert numbers == (n_lesions, 5, 0)


def test_annotations_of_another_place_are_read_by_survey_and_evaluate(tmp_path):
    root = tmp_path / "films"
    content = {"images": [], "categories": [{"id": 1, "name": "nodule"}]}
    for number in range(6):
        write_picture(root / "images" / f"part{number % 2}" / f"f{number}.png")
        content["images"].append({"id": number, "file_name": f"f{number}.png"})
    lesion = {"category_id": 1, "bbox": [16, 4, 16, 10]}
    content["annotations"] = [{"image_id": number, **lesion} for number in range(5)]
    write_json(root / "notes" / "export 2.json", content)
    stated = {"annotations": "notes/export 2.json"}
    inspection = inspect_dataset(DataConfig.of(root=root, **stated), seed=0)
    assert [*inspection.counts.values()] == [1, 1, 1, 1, 1, 0]
    found = write_found(tmp_path / "found", label=1, labels={"1": "nodule"})
    scores = evaluate(root, found, tmp_path / "scores", **stated).scores
    assert counts(scores, "n_lesions", "n_true_positive") == (5, 5)


def test_label_that_the_reference_lacks_is_scored_under_its_own_name(films, tmp_path, caplog):
    found = write_found(tmp_path / "found", label=1, labels={"1": "mass", "2": "nodule"})
    scores = evaluate(films, found, tmp_path / "a").scores
    assert scores["lesion_recall"].value == 0  # a label that the dataset lacks finds nothing
    assert scores.find("n_candidates", label="mass").value == 5
    assert {row["label"] for row in read_csv(tmp_path / "a" / "candidates.csv")} == {"mass"}
    assert caplog.text.count("match none of its labels (nodule): mass.") == 1
    scores = evaluate(films, found, tmp_path / "b", merge_labels=True).scores
    assert scores.find("lesion_recall", label="lesion").value == 1.0
