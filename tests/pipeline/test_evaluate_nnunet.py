"""`evaluate` reads nnU-Net's probabilities: FROC, thresholds, and masks at a threshold."""

import shutil

import numpy as np
import pytest

from lesionseg.config import ReportSection
from lesionseg.errors import ConfigError, ConflictError, DatasetError, format_score
from lesionseg.evaluation import read_scores
from lesionseg.io.masks import read_mask
from lesionseg.io.results.index import find_predictions
from lesionseg.io.text import read_csv, read_json, write_json
from lesionseg.pipeline import match_files
from lesionseg.reporting.images import Sources
from lesionseg.reporting.write import write_report
from tests.commands import evaluate
from tests.inference.nnunet.probability_files import (
    blobs,
    softmax_of,
    write_labels,
    write_outputs,
)
from tests.pipeline.cases import boxes, counts, write_array

SHAPE = (12, 24, 24)
FIRST = (2, 2, 2)
SECOND = (2, 12, 12)
FALSE = (7, 2, 14)


def write_case(folder, name, lesions, false):
    """Write two lesions, the second found with `lesions`, and a false positive with `false`."""
    p = blobs(SHAPE, (FIRST, 3, 0.97), (SECOND, 3, lesions), (FALSE, 3, false))
    write_outputs(folder, name, softmax_of(p), p > 0.5)


def write_truth(path):
    write_array(path, boxes(SHAPE, (*FIRST, 3), (*SECOND, 3)))


@pytest.fixture
def folders(tmp_path):
    """Write six cases. Each has a lesion at 0.3, and half of them a false positive at 0.4."""
    for i in range(6):
        write_truth(tmp_path / "labels" / f"P{i}.nii.gz")
        write_case(tmp_path / "out", f"P{i}", lesions=0.3, false=0.4 if i % 2 else 0.1)
    return tmp_path / "labels", tmp_path / "out", tmp_path / "scores"


def scores_of(*paths, **settings):
    return evaluate(*paths, **settings).scores


def test_probabilities_give_a_froc_and_nnunet_s_own_mask(folders):
    scores = scores_of(*folders)
    assert scores.operating_point.score == 0.5
    assert scores["lesion_recall"].value == 0.5  # as its mask has it
    assert scores.curve("froc")[-1].value == 1.0  # below one half it finds the others, too
    assert len(read_csv(folders[2] / "candidates.csv")) == 18
    kept = find_predictions(folders[2] / "predictions")
    assert sorted(kept) == [f"P{i}" for i in range(6)]
    found = kept["P1"].read()
    assert [round(c.score, 2) for c in found.candidates] == [0.97, 0.4, 0.3]
    assert not list(folders[2].glob(".*"))


@pytest.mark.parametrize(
    ("plans", "model"),
    [
        ({"2d": {}}, "nnU-Net nnUNetPlans for Dataset900_x"),
        ({}, ""),  # as lesionseg writes it
        (None, ""),
    ],
)
def test_report_on_nnunet_states_its_model(tmp_path, plans, model):
    folder = tmp_path / "out"
    for name in ("a", "b"):
        write_truth(tmp_path / "labels" / f"{name}.nii.gz")
        write_case(folder, name, lesions=0.9, false=0.1)
    facts = {"labels": {"background": 0, "a": 1}, "channel_names": {"0": "T1"}, "numTraining": 7}
    write_json(folder / "dataset.json", facts | {"file_ending": ".nii.gz"})
    if plans is not None:
        names = {"plans_name": "nnUNetPlans", "dataset_name": "Dataset900_x"}
        write_json(folder / "plans.json", names | {"configurations": plans})
    scores = scores_of(tmp_path / "labels", folder, tmp_path / "scores")
    assert scores.provenance.model == model
    assert scores.provenance.training_scans == (7 if model else None)


def test_rate_gives_masks_and_candidates_at_its_threshold(
    folders,
):
    outcome = evaluate(*folders, operating_point="fp_per_case:1")
    point = outcome.scores.operating_point
    assert outcome.scores["lesion_recall"].value == 1.0
    assert outcome.scores["false_positives_per_case"].value <= 1
    assert (point.name, point.optimistic) == ("fp_per_case:1", True)  # chosen on these cases
    assert outcome.kept == folders[2] / "predictions"
    mask = read_mask(folders[2] / "predictions" / "P0_mask.nii.gz").labels
    assert mask[SECOND] == 1
    content = read_json(folders[2] / "predictions" / "P0_candidates.json")
    assert content["operating_point"]["name"] == "fp_per_case:1"
    assert f"prediction={folders[2] / 'predictions'}" in outcome.next
    again = scores_of(folders[0], folders[2] / "predictions", folders[2] / "again")
    assert again["lesion_recall"].value == 1.0


def test_bare_masks_have_no_threshold_to_choose(folders):
    for file in folders[1].glob("*.npz"):
        file.unlink()
    with pytest.raises(ConfigError, match="scores"):
        scores_of(*folders, operating_point="fp_per_case:1")
    assert not folders[2].exists()


def test_only_the_case_of_an_unreadable_archive_fails(folders):
    n_cases = scores_of(*folders).count("n_cases")
    (folders[1] / "P5.npz").write_bytes(b"no archive")
    scores = scores_of(*folders)
    assert scores.count("n_cases") == n_cases - 1
    assert [*scores.failed_cases] == ["P5"]
    assert "P5.npz" in scores.failed_cases["P5"]


def test_table_names_an_unreadable_archive_of_a_case_without_reference(
    folders,
):
    write_case(folders[1], "P9", lesions=0.3, false=0.1)
    (folders[1] / "P9.npz").write_bytes(b"PK damaged")
    outcome = evaluate(*folders)
    assert (outcome.scores.count("n_cases"), outcome.exit_status) == (6, 3)
    rows = {row["case"]: row for row in read_csv(folders[2] / "cases.csv")}
    assert rows["P9"]["status"] == "failed"
    assert "P9.npz" in rows["P9"]["message"]
    assert [*outcome.scores.failed_cases] == ["P9"]


def test_nothing_is_written_if_all_archives_are_unreadable(
    folders,
):
    for file in folders[1].glob("*.npz"):
        file.write_bytes(b"no archive")
    with pytest.raises(DatasetError, match=r"P5\.npz"):
        scores_of(*folders)
    assert not folders[2].exists()


@pytest.fixture
def model(tmp_path):
    return tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres"


@pytest.fixture
def dataset(tmp_path, model):
    """Write an nnU-Net raw folder, a model folder of two folds, and predicted test cases."""
    root = tmp_path / "Dataset001_X"
    write_labels(root, {"background": 0, "lesion": 1})
    write_labels(model, {"background": 0, "lesion": 1})
    for i in range(6):
        write_truth(root / "labelsTr" / f"P{i}.nii.gz")
        write_array(root / "imagesTr" / f"P{i}_0000.nii.gz", np.ones(SHAPE, np.float32))
        folder = model / f"fold_{i % 2}" / "validation"
        write_case(folder, f"P{i}", lesions=0.3, false=0.4 if i < 2 else 0.2)
    for i in (7, 8):
        write_truth(root / "labelsTs" / f"P{i}.nii.gz")
        write_array(root / "imagesTs" / f"P{i}_0000.nii.gz", np.ones(SHAPE, np.float32))
        write_case(tmp_path / "out", f"P{i}", lesions=0.35, false=0.25)
    return root


@pytest.mark.parametrize("reference", [".", "labelsTs"])
def test_a_threshold_of_the_cross_validation_is_applied_to_test_cases(
    dataset, tmp_path, reference, model
):
    scores = scores_of(
        dataset / reference,
        tmp_path / "out",
        tmp_path / "scores",
        chosen_on=model,
        operating_point="fp_per_case:0.5",
    )
    point = scores.operating_point
    assert (scores.evaluated_on, scores.count("n_cases")) == ("test", 2)
    assert (point.chosen_on, point.optimistic) == ("out-of-fold", False)
    assert 0.2 < point.score < 0.4
    assert point.expected_false_positives_per_case == pytest.approx(0.5, abs=0.01)
    assert scores["lesion_recall"].value == 1.0
    page = write_report(
        tmp_path / "scores",
        tmp_path / "page",
        images=dataset,
        prediction=tmp_path / "scores" / "predictions",
        options=ReportSection.of(pdf=False),
    ).read_text()
    assert "chosen on out-of-fold scans" in page


@pytest.mark.parametrize(("group", "is_shared"), [(None, False), ("(P[78])", True)])
def test_threshold_of_another_visit_of_a_patient_is_optimistic(
    dataset,
    tmp_path,
    group,
    is_shared,
    caplog,
):
    """Each test case has an earlier visit among the development cases."""
    run = tmp_path / "run"
    for i in (7, 8):
        write_case(run / "validation", f"P{i}_earlier", lesions=0.3, false=0.4)
        write_truth(tmp_path / "masks" / f"P{i}_earlier.nii.gz")
    scores = scores_of(
        dataset,
        tmp_path / "out",
        tmp_path / "scores",
        chosen_on=run,
        chosen_on_reference=tmp_path / "masks",
        operating_point="fp_per_case:1",
        group=group,
    )
    assert scores.is_point_chosen_here == is_shared
    assert ("on patients who are evaluated (P7, P8)" in caplog.text) == is_shared


def test_threshold_is_chosen_on_the_validation_cases_of_a_run_without_folds(
    dataset, tmp_path, model
):
    run = tmp_path / "run"
    run.mkdir()
    (model / "fold_0" / "validation").rename(run / "validation")
    scores = scores_of(
        dataset,
        tmp_path / "out",
        tmp_path / "scores",
        chosen_on=run,
        operating_point="fp_per_case:0.5",
    )
    point = scores.operating_point
    assert (point.name, point.chosen_on) == ("fp_per_case:0.5", "validation")
    assert (scores.evaluated_on, point.optimistic) == ("test", False)


def test_test_cases_without_a_reference_get_masks_at_the_threshold(
    dataset, tmp_path, caplog, model
):
    for file in (dataset / "labelsTs").iterdir():
        file.unlink()
    scores = scores_of(dataset, tmp_path / "out", tmp_path / "scores", chosen_on=model)
    assert scores.count("n_cases") == 0
    assert "nothing is scored" in caplog.text
    kept = find_predictions(tmp_path / "scores" / "predictions")
    point = kept["P7"].read().operating_point
    assert point is not None
    assert (point.name, point.chosen_on) == ("fp_per_case:1", "out-of-fold")


def test_chosen_on_without_usable_cases_is_refused(dataset, tmp_path, model):
    paths = dataset, tmp_path / "out", tmp_path / "scores"
    with pytest.raises(ConfigError, match="chosen_on"):
        scores_of(*paths, chosen_on=model, operating_point="score:0.3")
    with pytest.raises(ConfigError, match="chosen_on_reference"):
        scores_of(*paths, chosen_on_reference=dataset)
    (dataset / "labelsTs").rename(tmp_path / "masks")  # no file names the training masks
    paths = tmp_path / "masks", *paths[1:]
    with pytest.raises(DatasetError, match="chosen_on_reference"):
        scores_of(*paths, chosen_on=model)
    masks = dataset / "labelsTr"
    assert scores_of(*paths, chosen_on=model, chosen_on_reference=masks).count("n_cases") == 2
    (model / "fold_1").rename(model / "fold_all")
    (model / "fold_0").rename(tmp_path / "gone")
    with pytest.raises(DatasetError, match="fold_all"):
        scores_of(*paths, chosen_on=model)


POINTS = ("fp_per_case:1", "sensitivity:0.9", "best_f1", "score:0.5", "auto", None)


@pytest.fixture
def copy(folders, tmp_path):
    """Copy the predictions into a folder of the same name. Its last case is damaged below."""
    write_truth(folders[0] / "P6.nii.gz")
    write_case(folders[1], "P6", lesions=0.2, false=0.9)
    return shutil.copytree(folders[1], tmp_path / "other" / "out")


def compared(*paths, **settings):
    """Return the comparison: values and difference of each number, and the two programs."""
    scores = scores_of(*paths, **settings)
    rows = {name: (x.one, x.other, x.difference) for name, x in scores.comparison.items()}
    return rows, scores.programs


@pytest.mark.parametrize("is_damaged", [False, True])
@pytest.mark.parametrize("point", POINTS)
def test_a_program_does_not_differ_from_its_copy(folders, copy, point, is_damaged):
    if is_damaged:  # both thresholds are then chosen without this case
        (copy / "P6.npz").write_bytes(b"no archive")
    rows, programs = compared(*folders, compare=copy, operating_point=point)
    assert {difference for _, _, difference in rows.values()} == {0.0}
    assert len(rows) == 10
    one, other = programs
    assert one.operating_point == other.operating_point
    assert (one.name, other.name) == ("out", "other/out")
    for folder in (folders[2], folders[2] / "compare"):
        content = read_json(folder / "scores.json")
        assert [program["name"] for program in content["programs"]] == ["out", "other/out"]
        assert content["comparison"]["lesion_recall"]["difference"] == 0


def test_request_gives_each_program_its_own_threshold(folders, copy, capsys):
    for i in range(7):
        write_case(copy, f"P{i}", lesions=0.25, false=0.45)
    outcome = evaluate(*folders, compare=copy, operating_point="best_f1")
    one, other = outcome.scores.programs
    assert one.operating_point.score != other.operating_point.score
    assert {program.operating_point.name for program in (one, other)} == {"best_f1"}
    second = read_scores(folders[2] / "compare" / "scores.json")
    assert second.operating_point == other.operating_point
    lines = {line.split("  ")[0]: line.split() for line in outcome.summary()}
    assert lines["accepted from score"][-2:] == [
        format_score(program.operating_point.score) for program in (one, other)
    ]
    recall = outcome.scores.comparison["lesion_recall"]
    assert f"{recall.one:.3f}" in lines["lesion recall"]
    assert f"{recall.other:.3f}" in lines["lesion recall"]


AT_THRESHOLDS = {
    *("lesion_recall", "lesion_precision", "lesion_f1", "false_positives_per_case", "dice"),
    "surface_dice",
}


def left_out(scores):
    """Return the names of numbers without values, and the reasons."""
    rows = scores.comparison
    undefined = {name for name, row in rows.items() if row.reason and row.difference is None}
    for name in undefined:
        assert (rows[name].one, rows[name].other, rows[name].p_value) == (None, None, None)
    return undefined, {rows[name].reason for name in undefined}


def test_threshold_of_one_program_on_development_cases_is_not_compared(dataset, tmp_path, model):
    copy = shutil.copytree(tmp_path / "out", tmp_path / "copy")
    paths = dataset, tmp_path / "out", tmp_path / "scores"
    settings = {"compare": copy, "chosen_on": model, "operating_point": "fp_per_case:0.5"}
    names, reasons = left_out(scores_of(*paths, **settings))
    assert names == AT_THRESHOLDS
    assert "compare_chosen_on=" in reasons.pop()
    rows, programs = compared(*paths, **settings, compare_chosen_on=model)
    assert {difference for _, _, difference in rows.values()} == {0.0}
    assert [program.operating_point.chosen_on for program in programs] == ["out-of-fold"] * 2
    with pytest.raises(ConfigError, match="compare_chosen_on"):
        scores_of(*paths, chosen_on=model, compare_chosen_on=model)
    settings = {"compare": copy, "compare_chosen_on": model}
    with pytest.raises(ConfigError, match="given score cannot be chosen"):
        scores_of(*paths, **settings, operating_point="score:0.5")
    settings |= {"chosen_on_reference": dataset, "operating_point": "fp_per_case:0.5"}
    names, reasons = left_out(scores_of(*paths, **settings))
    assert names == AT_THRESHOLDS
    assert "chosen_on= and compare_chosen_on=" in reasons.pop()


def test_stored_threshold_of_one_program_is_not_compared(dataset, tmp_path, model):
    scores_of(
        dataset,
        tmp_path / "out",
        tmp_path / "first",
        chosen_on=model,
        operating_point="fp_per_case:0.5",
    )
    stored = tmp_path / "first" / "predictions"
    paths = dataset, stored, tmp_path / "scores"
    names, reasons = left_out(scores_of(*paths, compare=tmp_path / "out"))
    assert names == AT_THRESHOLDS
    assert "not chosen alike" in reasons.pop()
    # the second program gets the request of the stored point, or both get another one
    for settings in ({"compare_chosen_on": model}, {"operating_point": "best_f1"}):
        rows, _ = compared(*paths, compare=tmp_path / "out", **settings)
        assert {difference for _, _, difference in rows.values()} == {0.0}


def test_masks_without_scores_are_compared_unless_a_threshold_is_chosen(folders, tmp_path):
    reader = tmp_path / "reader"
    for i in range(6):
        write_truth(reader / f"P{i}.nii.gz")
    rows, _ = compared(*folders, compare=reader)
    assert rows["lesion_recall"] == (0.5, 1.0, -0.5)
    scores = scores_of(*folders, compare=reader, operating_point="fp_per_case:1")
    names, reasons = left_out(scores)
    assert names == AT_THRESHOLDS
    assert "scores" in reasons.pop()
    kept = folders[2] / "predictions"
    assert left_out(scores_of(folders[0], kept, tmp_path / "2", compare=reader))[0] == names


def test_folders_of_one_name_get_the_parents_in_which_they_differ(folders):
    copy = shutil.copytree(folders[1], folders[1] / "out")
    assert [program.name for program in compared(*folders, compare=copy)[1]] == ["out", "out/out"]


def test_progress_says_which_program_is_scored(folders, copy, monkeypatch):
    steps = []
    real = match_files.bar
    monkeypatch.setattr(match_files, "bar", lambda what, *a: steps.append(what) or real(what, *a))
    evaluate(*folders, compare=copy)
    assert steps == [f"Scoring {folders[1]}", f"Scoring {copy}"]


def test_regions_of_bare_masks_are_named_by_the_output_folder(tmp_path):
    whole = blobs(SHAPE, (FIRST, 4, 0.9))
    core = blobs(SHAPE, ((3, 3, 3), 2, 0.8))
    painted = np.where(core > 0.5, 2, np.where(whole > 0.5, 1, 0))
    write_outputs(tmp_path / "out", "a", np.stack([whole, core]).astype(np.float32), painted)
    regions = {"background": 0, "whole": [1, 2], "core": 2}
    write_labels(tmp_path / "out", regions, regions_class_order=[1, 2])
    write_array(tmp_path / "labels" / "a.nii.gz", painted.astype(np.uint8))
    scores = scores_of(tmp_path / "labels", tmp_path / "out", tmp_path / "scores")
    assert (scores.count("n_lesions"), scores.count("n_true_positive"), scores["dice"].value) == (
        1,
        1,
        1.0,
    )
    assert set(scores.labels) == {"whole", "core"}


@pytest.mark.parametrize("named", [True, False])
def test_merge_labels_applies_to_bare_masks(folders, tmp_path, named):
    # numbers of lesions, two of which touch
    numbered = boxes(SHAPE, (*FIRST, 3)) + 2 * boxes(SHAPE, (*SECOND, 3))
    numbered[4, 2:5, 2:5] = 3
    for file in folders[0].iterdir():
        write_array(file, numbered)
    if named:
        write_labels(folders[1], {"background": 0, "lesion": 1})
        with pytest.raises(DatasetError, match="evaluate merge_labels=true"):
            scores_of(*folders)
    scores = scores_of(*folders, merge_labels=True)
    assert counts(scores, "n_cases", "n_lesions") == (6, 12)
    assert set(scores.labels) == {"lesion"}
    # masks of another program, in which two labels touch
    for i in range(6):
        write_array(tmp_path / "masks" / f"P{i}.nii.gz", numbered)
    masks = tmp_path / "masks"
    scores = scores_of(folders[0], masks, tmp_path / "again", merge_labels=True)
    assert counts(scores, "n_lesions", "n_true_positive", "n_false_positive") == (12, 12, 0)
    write_array(tmp_path / "scans" / "P0.nii.gz", np.ones(SHAPE, np.float32))
    shown = Sources(tmp_path / "scans", folders[0], masks, made=scores.provenance)
    scene = shown.load("P0", frozenset({1, 2}))
    assert np.array_equal(scene.accepted, numbered > 0)


@pytest.mark.parametrize("with_probabilities", [True, False])
def test_ignored_voxels_of_bare_masks_are_stated_by_the_output_folder(
    folders, tmp_path, with_probabilities
):
    write_labels(folders[1], {"background": 0, "lesion": 1, "ignore": 2})
    for file in folders[0].iterdir():
        write_array(file, boxes(SHAPE, (*FIRST, 3)) + 2 * boxes(SHAPE, (*FALSE, 3)))
    for file in folders[1].glob("*.npz"):
        if not with_probabilities:
            file.unlink()
    (folders[0] / "P0.nii.gz").write_bytes(b"damaged")
    scores = scores_of(*folders)
    assert [*scores.failed_cases] == ["P0"]
    assert counts(scores, "n_cases", "n_lesions", "n_true_positive") == (5, 5, 5)
    write_array(tmp_path / "scans" / "P1.nii.gz", np.ones(SHAPE, np.float32))
    scene = Sources(tmp_path / "scans", folders[0], folders[1]).load("P1", frozenset())
    assert np.array_equal(scene.reference, boxes(SHAPE, (*FIRST, 3)) > 0)


def test_bare_masks_of_development_cases_have_the_labels_of_the_model(dataset, tmp_path, model):
    write_labels(model, {"background": 0, "lesion": 1, "ignore": 2})
    reference = boxes(SHAPE, (*FIRST, 3)) + 2 * boxes(SHAPE, (*SECOND, 3))
    for i in range(6):
        write_array(tmp_path / "masks" / f"P{i}.nii.gz", reference)
    scores = scores_of(
        dataset,
        tmp_path / "out",
        tmp_path / "scores",
        chosen_on=model,
        chosen_on_reference=tmp_path / "masks",
        operating_point="sensitivity:0.9",
    )
    # the candidate with a score of 0.3 is in an ignored region, so it need not be accepted
    assert scores.operating_point.score > 0.3


@pytest.mark.parametrize("reference", [".", "labelsTs"])
def test_development_cases_with_faults_are_left_out(dataset, tmp_path, reference, caplog, model):
    paths = (dataset / reference, tmp_path / "out", tmp_path / "scores")
    (dataset / "labelsTr" / "P1.nii.gz").unlink()
    with caplog.at_level("INFO"):
        scores = scores_of(*paths, chosen_on=model)
    assert scores.operating_point.chosen_on == "out-of-fold"
    assert "'P1' has no mask in labelsTr" in caplog.text
    assert "On out-of-fold cases: recall" in caplog.text
    assert scores.operating_point.n_cases == 5
    for file in (dataset / "labelsTr").iterdir():
        file.unlink()
    with pytest.raises(DatasetError, match="has no mask in labelsTr"):
        scores_of(*paths, chosen_on=model)


def test_development_cases_of_one_fold_are_out_of_fold(dataset, tmp_path, model):
    paths = (dataset, tmp_path / "out", tmp_path / "scores")
    scores = scores_of(*paths, chosen_on=model / "fold_0")
    assert scores.operating_point.chosen_on == "out-of-fold"
    (model / "fold_1").rename(model / "fold_1_old")  # no fold
    assert scores_of(*paths, chosen_on=model).operating_point == scores.operating_point
    (model / "fold_1_old").rename(model / "fold_all")
    with pytest.raises(DatasetError, match="fold_all"):
        scores_of(*paths, chosen_on=model / "fold_all")


def test_merged_labels_also_apply_to_kept_cases_without_a_reference(
    folders,
):
    first = blobs(SHAPE, (FIRST, 3, 0.9))
    second = blobs(SHAPE, (SECOND, 3, 0.8))
    painted = np.where(first > 0.5, 1, np.where(second > 0.5, 2, 0))
    for i in range(7):  # P6 has no reference
        write_outputs(folders[1], f"P{i}", softmax_of(first, second), painted)
    write_labels(folders[1], {"background": 0, "a": 1, "b": 2})
    scores_of(*folders, merge_labels=True)
    kept = find_predictions(folders[2] / "predictions")
    for case in ("P0", "P6"):
        assert np.array_equal(kept[case].read().mask(), painted > 0)


def test_kept_predictions_of_an_earlier_evaluation_are_removed(
    folders,
):
    regions = {"background": 0, "whole": [1, 2], "core": 2}
    write_labels(folders[1], regions, regions_class_order=[1, 2])
    for i in range(6):
        whole = blobs(SHAPE, (FIRST, 5, 0.9))
        core = blobs(SHAPE, ((3, 3, 3), 2, 0.8))
        painted = np.where(core > 0.5, 2, np.where(whole > 0.5, 1, 0))
        write_outputs(folders[1], f"P{i}", np.stack([whole, core]).astype(np.float32), painted)
    scores_of(*folders)
    kept = folders[2] / "predictions"
    assert (kept / "P0_regions.nii.gz").is_file()
    (kept / "own_mask.nii.gz").write_bytes(b"x")
    (kept / "P5.nii.gz").write_bytes(b"x")
    write_json(kept / "Q_candidates.json", {"candidates": [], "source": {"digest": "of predict"}})
    (folders[1] / "P5.npz").unlink()
    scores_of(*folders, merge_labels=True)
    names = {file.name for file in kept.iterdir()}
    assert {name for name in names if name.startswith("P5")} == {"P5.nii.gz"}
    assert {"P0_mask.nii.gz", "own_mask.nii.gz", "Q_candidates.json"} <= names
    assert not any("_regions" in name for name in names)


def test_kept_predictions_are_removed_if_bare_masks_follow(
    folders,
):
    evaluate(*folders)
    assert list((folders[2] / "predictions").iterdir())
    evaluate(folders[0], folders[0], folders[2])
    assert not list((folders[2] / "predictions").iterdir())


def test_nothing_is_written_if_results_of_predict_would_be_replaced(
    folders,
):
    source = {"digest": "d", "study_uid": "", "series_uid": "", "instance_uid": ""}
    content = {"case": "P0", "candidates": [], "source": source}
    write_json(folders[2] / "predictions" / "P0_candidates.json", content)
    with pytest.raises(
        ConflictError, match=r"P0_candidates\.json, which may belong to another scan"
    ):
        evaluate(*folders)
    assert not (folders[2] / "scores.json").exists()


def test_candidates_of_other_programs_remain(folders):
    kept = folders[2] / "predictions"
    kept.mkdir(parents=True)
    write_json(kept / "Q_candidates.json", {"candidates": []})
    (kept / "damaged_candidates.json").write_text("{")
    (kept / "predictions.csv").write_text("case\nQ\n")
    scores_of(*folders)
    assert (kept / "Q_candidates.json").is_file()
    assert (kept / "damaged_candidates.json").is_file()
    assert (kept / "P0_candidates.json").is_file()


@pytest.mark.parametrize("with_probabilities", [True, False])
def test_labels_of_nnunet_are_compared_by_name(tmp_path, with_probabilities):
    """The model numbers nodule before mass, and the reference the other way round."""
    root = tmp_path / "dataset"
    probabilities = np.stack([blobs(SHAPE, (FIRST, 4, 0.9)), blobs(SHAPE, (SECOND, 4, 0.9))])
    painted = np.where(probabilities[0] > 0.5, 1, np.where(probabilities[1] > 0.5, 2, 0))
    write_labels(tmp_path / "out", {"background": 0, "nodule": 1, "mass": 2})
    if with_probabilities:
        background = 1 - probabilities.sum(axis=0, keepdims=True)
        stored = np.concatenate([background, probabilities]).astype(np.float32)
        write_outputs(tmp_path / "out", "a", stored, painted)
    else:
        write_array(tmp_path / "out" / "a.nii.gz", painted.astype(np.uint8))
    write_array(root / "imagesTs" / "a_0000.nii.gz", np.ones(SHAPE, np.float32))
    swapped = np.array([0, 2, 1], np.uint8)[painted]
    write_array(root / "labelsTs" / "a.nii.gz", swapped)
    write_labels(root, {"background": 0, "mass": 1, "nodule": 2}, channel_names={"0": "CT"})
    scores = scores_of(root, tmp_path / "out", tmp_path / "scores")
    found = {name: scores.find("n_true_positive", label=name).value for name in scores.labels}
    assert found == {"mass": 1, "nodule": 1}
    assert sum(scores.find("n_false_positive", label=x).value for x in scores.labels) == 0


@pytest.mark.parametrize("content", ['{"name": "x"}', '{"training": [{"image": "a.nii"}]}', "{"])
def test_dataset_file_of_another_program_next_to_masks_is_ignored(tmp_path, content):
    for folder in ("labels", "out"):
        write_array(tmp_path / folder / "a.nii.gz", boxes(SHAPE, (*FIRST, 3)))
    (tmp_path / "out" / "dataset.json").write_text(content)
    scores = scores_of(tmp_path / "labels", tmp_path / "out", tmp_path / "scores")
    assert scores.count("n_true_positive") == 1


def test_dataset_file_without_labels_is_named(tmp_path):
    write_truth(tmp_path / "labels" / "P0.nii.gz")
    write_case(tmp_path / "out", "P0", 0.3, 0.2)
    write_json(tmp_path / "out" / "dataset.json", {"channel_names": {"0": "a"}, "labels": {}})
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        scores_of(tmp_path / "labels", tmp_path / "out", tmp_path / "scores")
