"""`evaluate` reads nnU-Net's probabilities: FROC, thresholds, and masks at a threshold."""

import shutil

import numpy as np
import pytest

from lesionseg.errors import ConfigError, ConflictError, DatasetError, format_score
from lesionseg.evaluation import read_scores
from lesionseg.io.masks import read_mask
from lesionseg.io.results.index import find_predictions
from lesionseg.io.text import write_json
from lesionseg.reporting.images import CaseFolders
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


def write_regions(folder, *cases):
    """Write probabilities and masks of a region within another one. Return the mask."""
    whole = blobs(SHAPE, (FIRST, 5, 0.9))
    core = blobs(SHAPE, ((3, 3, 3), 2, 0.8))
    painted = np.where(core > 0.5, 2, whole > 0.5)
    regions = {"background": 0, "whole": [1, 2], "core": 2}
    write_labels(folder, regions, regions_class_order=[1, 2])
    for case in cases:
        write_outputs(folder, case, np.stack([whole, core]).astype(np.float32), painted)
    return painted


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
    kept = find_predictions(folders[2] / "predictions")
    assert sorted(kept) == [f"P{i}" for i in range(6)]
    assert [round(c.score, 2) for c in kept["P1"].read().candidates] == [0.97, 0.4, 0.3]


def test_sensitivity_that_few_patients_cannot_promise_is_noted(folders):
    for request, promised in (("sensitivity:0.9", None), ("sensitivity:0.8", 0.8)):
        outcome = evaluate(*folders, operating_point=request)
        assert outcome.scores.operating_point.promised == promised
        said = "not promised: 6 patients with lesions cannot promise 0.9"
        assert (said in "".join(outcome.summary())) == (promised is None)


def test_rate_gives_masks_and_candidates_at_its_threshold(folders):
    outcome = evaluate(*folders, operating_point="fp_per_case:1")
    kept = folders[2] / "predictions"
    point = outcome.scores.operating_point
    assert outcome.scores["lesion_recall"].value == 1.0
    assert outcome.scores["false_positives_per_case"].value <= 1
    assert (point.name, point.optimistic) == ("fp_per_case:1", True)  # chosen on these cases
    assert outcome.kept == kept
    assert read_mask(kept / "P0_mask.nii.gz").labels[SECOND] == 1
    assert f"prediction={kept}" in outcome.next
    assert scores_of(folders[0], kept, folders[2] / "again")["lesion_recall"].value == 1.0


def remove_probabilities(folder):
    for file in folder.glob("*.npz"):
        file.unlink()


def test_bare_masks_have_no_threshold_to_choose(folders):
    remove_probabilities(folders[1])
    with pytest.raises(ConfigError, match="scores"):
        scores_of(*folders, operating_point="fp_per_case:1")
    assert not folders[2].exists()


@pytest.mark.parametrize(("case", "n_cases"), [("P5", 5), ("P9", 6)])
def test_only_the_case_of_an_unreadable_archive_fails(folders, case, n_cases):
    """The case P9 has no reference."""
    write_case(folders[1], "P9", lesions=0.3, false=0.1)
    (folders[1] / f"{case}.npz").write_bytes(b"PK damaged")
    outcome = evaluate(*folders)
    assert (outcome.scores.count("n_cases"), outcome.exit_status) == (n_cases, 3)
    assert [*outcome.scores.failed_cases] == [case]
    (failed,) = outcome.failed
    assert (failed.case, f"{case}.npz" in failed.message) == (case, True)


def test_nothing_is_written_if_all_archives_are_unreadable(folders):
    for file in folders[1].glob("*.npz"):
        file.write_bytes(b"no archive")
    with pytest.raises(DatasetError, match=r"P5\.npz"):
        evaluate(*folders)
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
    for part, numbers in (("Tr", range(6)), ("Ts", (7, 8))):
        for i in numbers:
            write_truth(root / f"labels{part}" / f"P{i}.nii.gz")
            write_array(root / f"images{part}" / f"P{i}_0000.nii.gz", np.ones(SHAPE, np.float32))
    for i in range(6):
        folder = model / f"fold_{i % 2}" / "validation"
        write_case(folder, f"P{i}", lesions=0.3, false=0.4 if i < 2 else 0.2)
    for i in (7, 8):
        write_case(tmp_path / "out", f"P{i}", lesions=0.35, false=0.25)
    return root


@pytest.fixture
def paths(dataset, tmp_path):
    """Return the dataset, the predicted test cases and the folder of the scores."""
    return dataset, tmp_path / "out", tmp_path / "scores"


@pytest.mark.parametrize("reference", [".", "labelsTs"])
def test_a_threshold_of_the_cross_validation_is_applied_to_test_cases(paths, reference, model):
    dataset, *others = paths
    settings = {"chosen_on": model, "operating_point": "fp_per_case:0.5"}
    scores = scores_of(dataset / reference, *others, **settings)
    point = scores.operating_point
    assert (scores.evaluated_on, scores.count("n_cases")) == ("test", 2)
    assert (point.chosen_on, point.optimistic) == ("out-of-fold", False)
    assert 0.2 < point.score < 0.4
    assert point.expected_false_positives_per_case == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("group", "is_shared"), [(None, False), ("(P[78])", True)])
def test_threshold_of_another_visit_of_a_patient_is_optimistic(
    paths, tmp_path, group, is_shared, caplog
):
    """Each test case has an earlier visit among the development cases."""
    run = tmp_path / "run"
    for i in (7, 8):
        write_case(run / "validation", f"P{i}_earlier", lesions=0.3, false=0.4)
        write_truth(tmp_path / "masks" / f"P{i}_earlier.nii.gz")
    settings = {"chosen_on": run, "chosen_on_reference": tmp_path / "masks", "group": group}
    scores = scores_of(*paths, operating_point="fp_per_case:1", **settings)
    assert scores.is_point_chosen_here == is_shared
    assert ("on patients who are evaluated (P7, P8)" in caplog.text) == is_shared


def test_threshold_is_chosen_on_the_validation_cases_of_a_run_without_folds(paths, tmp_path, model):
    run = tmp_path / "run"
    run.mkdir()
    (model / "fold_0" / "validation").rename(run / "validation")
    scores = scores_of(*paths, chosen_on=run, operating_point="fp_per_case:0.5")
    point = scores.operating_point
    assert (point.name, point.chosen_on) == ("fp_per_case:0.5", "validation")
    assert (scores.evaluated_on, point.optimistic) == ("test", False)


def test_test_cases_without_a_reference_get_masks_at_the_threshold(paths, caplog, model):
    for file in (paths[0] / "labelsTs").iterdir():
        file.unlink()
    assert scores_of(*paths, chosen_on=model).count("n_cases") == 0
    assert "nothing is scored" in caplog.text
    point = find_predictions(paths[2] / "predictions")["P7"].read().operating_point
    assert point is not None
    assert (point.name, point.chosen_on) == ("fp_per_case:1", "out-of-fold")


def test_chosen_on_without_usable_cases_is_refused(dataset, paths, tmp_path, model):
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
    second = read_scores(folders[2] / "compare" / "scores.json")
    assert (second.programs, second.comparison["lesion_recall"].difference) == (programs, 0)


def test_request_gives_each_program_its_own_threshold(folders, copy):
    for i in range(7):
        write_case(copy, f"P{i}", lesions=0.25, false=0.45)
    outcome = evaluate(*folders, compare=copy, operating_point="best_f1")
    points = [program.operating_point for program in outcome.scores.programs]
    assert points[0].score != points[1].score
    assert {point.name for point in points} == {"best_f1"}
    second = read_scores(folders[2] / "compare" / "scores.json")
    assert second.operating_point == points[1]
    lines = {line.split("  ")[0]: line.split() for line in outcome.summary()}
    assert lines["accepted from score"][-2:] == [format_score(point.score) for point in points]


AT_THRESHOLDS = {
    *("lesion_recall", "lesion_precision", "lesion_f1", "false_positives_per_case", "dice"),
    "surface_dice",
}


def why_not_at_thresholds(*paths, **settings):
    """Return the only reason why the numbers at thresholds, and only these, are not compared."""
    rows = scores_of(*paths, **settings).comparison
    undefined = {name: row.reason for name, row in rows.items() if row.difference is None}
    assert undefined.keys() == AT_THRESHOLDS
    (reason,) = {*undefined.values()}
    return reason


def test_threshold_of_one_program_on_development_cases_is_not_compared(paths, tmp_path, model):
    copy = shutil.copytree(tmp_path / "out", tmp_path / "copy")
    settings = {"compare": copy, "chosen_on": model, "operating_point": "fp_per_case:0.5"}
    assert "compare_chosen_on=" in why_not_at_thresholds(*paths, **settings)
    rows, programs = compared(*paths, **settings, compare_chosen_on=model)
    assert {difference for _, _, difference in rows.values()} == {0.0}
    assert [program.operating_point.chosen_on for program in programs] == ["out-of-fold"] * 2
    with pytest.raises(ConfigError, match="compare_chosen_on"):
        scores_of(*paths, chosen_on=model, compare_chosen_on=model)
    settings = {"compare": copy, "compare_chosen_on": model}
    with pytest.raises(ConfigError, match="given score cannot be chosen"):
        scores_of(*paths, **settings, operating_point="score:0.5")
    settings |= {"chosen_on_reference": paths[0], "operating_point": "fp_per_case:0.5"}
    assert "chosen_on= and compare_chosen_on=" in why_not_at_thresholds(*paths, **settings)


def test_stored_threshold_of_one_program_is_not_compared(paths, tmp_path, model):
    scores_of(*paths[:2], tmp_path / "first", chosen_on=model, operating_point="fp_per_case:0.5")
    stored = paths[0], tmp_path / "first" / "predictions", paths[2]
    assert "not chosen alike" in why_not_at_thresholds(*stored, compare=paths[1])
    # the second program gets the request of the stored point, or both get another one
    for settings in ({"compare_chosen_on": model}, {"operating_point": "best_f1"}):
        rows, _ = compared(*stored, compare=paths[1], **settings)
        assert {difference for _, _, difference in rows.values()} == {0.0}


def test_masks_without_scores_are_compared_unless_a_threshold_is_chosen(folders, tmp_path):
    reader = tmp_path / "reader"
    for i in range(6):
        write_truth(reader / f"P{i}.nii.gz")
    rows, _ = compared(*folders, compare=reader)
    assert rows["lesion_recall"] == (0.5, 1.0, -0.5)
    reason = why_not_at_thresholds(*folders, compare=reader, operating_point="fp_per_case:1")
    assert "scores" in reason
    kept = folders[2] / "predictions"
    assert why_not_at_thresholds(folders[0], kept, tmp_path / "2", compare=reader)


def test_regions_of_bare_masks_are_named_by_the_output_folder(tmp_path):
    painted = write_regions(tmp_path / "out", "a")
    write_array(tmp_path / "labels" / "a.nii.gz", painted.astype(np.uint8))
    scores = scores_of(tmp_path / "labels", tmp_path / "out", tmp_path / "scores")
    assert counts(scores, "n_lesions", "n_true_positive") == (1, 1)
    assert set(scores.labels) == {"whole", "core"}


@pytest.mark.parametrize("named", [True, False])
def test_merge_labels_applies_to_bare_masks(folders, tmp_path, named):
    # numbers of lesions, two of which touch
    numbered = boxes(SHAPE, (*FIRST, 3)) + 2 * boxes(SHAPE, (*SECOND, 3))
    numbered[4, 2:5, 2:5] = 3
    masks = tmp_path / "masks"  # of another program
    for i in range(6):
        write_array(folders[0] / f"P{i}.nii.gz", numbered)
        write_array(masks / f"P{i}.nii.gz", numbered)
    if named:
        write_labels(folders[1], {"background": 0, "lesion": 1})
        with pytest.raises(DatasetError, match="evaluate merge_labels=true"):
            scores_of(*folders)
    scores = scores_of(*folders, merge_labels=True)
    assert (scores.count("n_lesions"), set(scores.labels)) == (12, {"lesion"})
    scores = scores_of(folders[0], masks, tmp_path / "again", merge_labels=True)
    assert counts(scores, "n_lesions", "n_true_positive", "n_false_positive") == (12, 12, 0)
    write_array(tmp_path / "scans" / "P0.nii.gz", np.ones(SHAPE, np.float32))
    shown = CaseFolders(tmp_path / "scans", folders[0], masks, made=scores.provenance)
    assert np.array_equal(shown.load("P0", {1, 2}).accepted, numbered > 0)


@pytest.mark.parametrize("with_probabilities", [True, False])
def test_ignored_voxels_of_bare_masks_are_stated_by_the_output_folder(
    folders, tmp_path, with_probabilities
):
    write_labels(folders[1], {"background": 0, "lesion": 1, "ignore": 2})
    for file in folders[0].iterdir():
        write_array(file, boxes(SHAPE, (*FIRST, 3)) + 2 * boxes(SHAPE, (*FALSE, 3)))
    if not with_probabilities:
        remove_probabilities(folders[1])
    (folders[0] / "P0.nii.gz").write_bytes(b"damaged")
    scores = scores_of(*folders)
    assert [*scores.failed_cases] == ["P0"]
    assert counts(scores, "n_cases", "n_lesions", "n_true_positive") == (5, 5, 5)
    write_array(tmp_path / "scans" / "P1.nii.gz", np.ones(SHAPE, np.float32))
    scene = CaseFolders(tmp_path / "scans", *folders[:2]).load("P1", frozenset())
    assert np.array_equal(scene.reference, boxes(SHAPE, (*FIRST, 3)) > 0)


def test_bare_masks_of_development_cases_have_the_labels_of_the_model(paths, tmp_path, model):
    write_labels(model, {"background": 0, "lesion": 1, "ignore": 2})
    masks = tmp_path / "masks"
    for i in range(6):
        reference = boxes(SHAPE, (*FIRST, 3)) + 2 * boxes(SHAPE, (*SECOND, 3))
        write_array(masks / f"P{i}.nii.gz", reference)
    settings = {"chosen_on": model, "chosen_on_reference": masks}
    scores = scores_of(*paths, **settings, operating_point="sensitivity:0.9")
    # the candidate with a score of 0.3 is in an ignored region, so it need not be accepted
    assert scores.operating_point.score > 0.3


@pytest.mark.parametrize("reference", [".", "labelsTs"])
def test_development_cases_with_faults_are_left_out(paths, reference, caplog, model):
    dataset, *others = paths
    (dataset / "labelsTr" / "P1.nii.gz").unlink()
    scores = scores_of(dataset / reference, *others, chosen_on=model)
    point = scores.operating_point
    assert (point.chosen_on, point.n_cases) == ("out-of-fold", 5)
    assert "'P1' has no mask in labelsTr" in caplog.text
    for file in (dataset / "labelsTr").iterdir():
        file.unlink()
    with pytest.raises(DatasetError, match="has no mask in labelsTr"):
        scores_of(dataset / reference, *others, chosen_on=model)


def test_development_cases_of_one_fold_are_out_of_fold(paths, model):
    scores = scores_of(*paths, chosen_on=model / "fold_0")
    assert scores.operating_point.chosen_on == "out-of-fold"
    (model / "fold_1").rename(model / "fold_1_old")  # no fold
    assert scores_of(*paths, chosen_on=model).operating_point == scores.operating_point
    (model / "fold_1_old").rename(model / "fold_all")
    with pytest.raises(DatasetError, match="fold_all"):
        scores_of(*paths, chosen_on=model / "fold_all")


def test_merged_labels_also_apply_to_kept_cases_without_a_reference(folders):
    first = blobs(SHAPE, (FIRST, 3, 0.9))
    second = blobs(SHAPE, (SECOND, 3, 0.8))
    painted = (first > 0.5) + 2 * (second > 0.5)
    for i in range(7):  # P6 has no reference
        write_outputs(folders[1], f"P{i}", softmax_of(first, second), painted)
    write_labels(folders[1], {"background": 0, "a": 1, "b": 2})
    scores_of(*folders, merge_labels=True)
    kept = find_predictions(folders[2] / "predictions")
    for case in ("P0", "P6"):
        assert np.array_equal(kept[case].read().mask(), painted > 0)


def test_kept_predictions_of_an_earlier_evaluation_are_removed(folders):
    write_regions(folders[1], *(f"P{i}" for i in range(6)))
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


def test_kept_predictions_are_removed_if_bare_masks_follow(folders):
    for prediction in (folders[1], folders[0]):
        evaluate(folders[0], prediction, folders[2])
        is_bare = prediction == folders[0]
        assert bool(list((folders[2] / "predictions").iterdir())) != is_bare


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("P0_candidates.json", '{"case": "P0", "candidates": [], "source": {"digest": "d"}}'),
        ("P0_candidates.json", "{"),
        ("P0_mask.nii.gz", "of another program"),
    ],
)
def test_nothing_is_written_if_results_of_others_would_be_replaced(folders, name, content):
    file = folders[2] / "predictions" / name
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.raises(ConflictError, match=f"{name}, which.*another output"):
        evaluate(*folders)
    assert file.read_text() == content
    assert not (folders[2] / "scores.json").exists()


def test_candidates_of_other_programs_remain(folders):
    kept = folders[2] / "predictions"
    write_json(kept / "Q_candidates.json", {"candidates": []})
    (kept / "damaged_candidates.json").write_text("{")
    (kept / "predictions.csv").write_text("case\nQ\n")
    scores_of(*folders)
    for case in ("Q", "damaged", "P0"):
        assert (kept / f"{case}_candidates.json").is_file()


@pytest.mark.parametrize("with_probabilities", [True, False])
def test_labels_of_nnunet_are_compared_by_name(tmp_path, with_probabilities):
    """The model numbers nodule before mass, and the reference the other way round."""
    root = tmp_path / "dataset"
    out = tmp_path / "out"
    first = blobs(SHAPE, (FIRST, 4, 0.9))
    second = blobs(SHAPE, (SECOND, 4, 0.9))
    painted = (first > 0.5) + 2 * (second > 0.5)
    write_labels(out, {"background": 0, "nodule": 1, "mass": 2})
    write_outputs(out, "a", softmax_of(first, second), painted)
    if not with_probabilities:
        remove_probabilities(out)
    write_array(root / "imagesTs" / "a_0000.nii.gz", np.ones(SHAPE, np.float32))
    write_array(root / "labelsTs" / "a.nii.gz", np.array([0, 2, 1], np.uint8)[painted])
    write_labels(root, {"background": 0, "mass": 1, "nodule": 2})
    scores = scores_of(root, out, tmp_path / "scores")
    for label in ("mass", "nodule"):
        assert scores.find("n_true_positive", label=label).value == 1


@pytest.mark.parametrize("content", ['{"training": [{"image": "a.nii"}]}', "{"])
def test_dataset_file_of_another_program_next_to_masks_is_ignored(folders, content):
    (folders[1] / "dataset.json").write_text(content)
    remove_probabilities(folders[1])
    assert scores_of(*folders).count("n_true_positive") == 6


def test_dataset_file_without_labels_is_named(folders):
    write_labels(folders[1], {})
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        scores_of(*folders)
