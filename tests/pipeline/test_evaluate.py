import sys
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import CaseFiles, Geometry, OperatingPoint
from lesionseg.errors import ConfigError, DatasetError, OutputError
from lesionseg.evaluation import match_case
from lesionseg.io.results.case import write_prediction
from lesionseg.io.text import read_csv, read_json, write_csv, write_json
from lesionseg.pipeline.evaluate import cases_of_role
from lesionseg.reporting.images import CaseFolders
from tests.commands import evaluate, follow, report
from tests.evaluation.hand_cases import prediction_of
from tests.inference.nnunet.probability_files import write_labels
from tests.pdf_pages import HAS_PANGO
from tests.pipeline.cases import boxes, counts, write_array, write_boxes, write_scan

SHAPE = (10, 12, 14)
GEOMETRY = Geometry.from_spacing(SHAPE, (3.0, 1.0, 1.0))


def lesions(n, found=None):
    """Return a mask of n boxes. With `found`, only those are drawn, moved by a voxel."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    for i in range(n) if found is None else found:
        mask[2:4, 1 + 4 * i : 4 + 4 * i, 2 + (found is not None) : 6 + (found is not None)] = 1
    return mask


def write_mask(path, array, geometry=GEOMETRY):
    write_array(path, array.astype(np.uint8), geometry)


def write_painted(root, drawn, found, labels=None, **more):
    """Write a case whose boxes have these values in reference and prediction.

    Its dataset has the labels, if any are given. Return the folders.
    """
    folders = root / "labelsTs", root / "prediction", root / "out"
    if labels:
        write_labels(root, labels, **more)
    for folder, values in zip(folders, (drawn, found), strict=False):
        parts = [lesions(3, [i]) * np.uint8(value) for i, value in enumerate(values)]
        write_mask(folder / "a.nii.gz", sum(parts))
    return folders


def folders_of(root):
    """Return the folders of the references, the predictions and the scores."""
    return root / "reference", root / "prediction", root / "out"


@pytest.fixture
def folders(tmp_path):
    """Write three cases:

    both lesions found, one of three found, a false positive without lesion.
    """
    reference, prediction, out = folders_of(tmp_path)
    for name, n in (("a", 2), ("b", 3), ("c", 0)):
        write_mask(reference / f"{name}.nii.gz", lesions(n))
    for name, found in (("a", [0, 1]), ("b_mask", [2]), ("c", [0])):
        write_mask(prediction / f"{name}.nii.gz", lesions(3, found))
    return reference, prediction, out


def scores_of(*folders, **settings):
    return evaluate(*folders, **settings).scores


def columns(folder, table, *names):
    """Return a table's cells in the given columns, row by row. One column gives plain cells."""
    rows = read_csv(folder / f"{table}.csv")
    if len(names) == 1:
        return [row[names[0]] for row in rows]
    return [tuple(row[name] for name in names) for row in rows]


def test_bare_masks_are_scored_and_the_tables_agree(folders, caplog):
    outcome = evaluate(*folders)
    scores = outcome.scores
    out = folders[2]
    assert outcome.of_predicted is None  # all cases are predicted
    assert counts(scores, "n_cases", "n_lesions", "n_lesion_free_cases") == (3, 5, 1)
    assert counts(scores, "n_true_positive", "n_missed", "n_false_positive") == (3, 2, 1)
    assert scores["lesion_recall"].value == 0.6
    assert scores.evaluated_on == "unknown"  # nobody stated it
    assert read_json(out / "scores.json") == scores.to_json()
    assert columns(out, "cases", "n_detected") == ["2", "1", "0"]
    assert columns(out, "candidates", "score")[0] == ""
    assert float(columns(out, "cases", "reference_ml")[0]) == pytest.approx(2 * 24 * 3 / 1000)
    point = scores_of(*folders, operating_point="score:0.9").operating_point
    assert "accepted: a, b, c." in caplog.text  # they have no scores
    assert point.score is None is not point.reason


NODULE = {"background": 0, "nodule": 1, "ignore": 7}


@pytest.mark.parametrize("name", ["run", "run/test", "run/oof"])
def test_scores_of_a_training_are_not_replaced(folders, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("command: train\n")
    (folder / "scores.json").write_text("of the training")
    with pytest.raises(OutputError, match=r"such as .*run/evaluate"):
        evaluate(*folders[:2], folder)
    with pytest.raises(OutputError, match=r"such as .*run/follow"):
        follow(folders[1], folders[1], folder)
    assert (folder / "scores.json").read_text() == "of the training"
    assert scores_of(*folders[:2], tmp_path / "run" / "evaluate").count("n_cases") == 3


def test_page_of_a_training_is_drawn_only_from_its_own_scores(folders, tmp_path):
    run = tmp_path / "run"
    scores_of(*folders[:2], run)
    scores_of(*folders[:2], run / "oof")
    (run / "config.yaml").write_text("command: train\n")
    with pytest.raises(OutputError, match=r"such as .*run/report"):
        report(run / "oof", run)
    report(run, run)
    report(run / "oof", run / "oof")
    (run / "scores.json").unlink()  # as in a cross-validation
    assert report(run, run).page == run / "report.html"


def test_names_that_look_like_scans_of_one_patient_are_named(tmp_path, caplog):
    masks = tmp_path / "reference"
    for name in ("P1_0", "P1_1", "P2_0", "P2_1"):
        write_mask(masks / f"{name}.nii.gz", lesions(1))
    assert scores_of(masks, masks, tmp_path / "cases").count("n_groups") == 4
    assert "P1_0 and P1_1 look like scans of one patient" in caplog.text
    caplog.clear()
    pattern = r"(.+)[_-]\d{1,2}"  # as the warning advises
    assert scores_of(masks, masks, tmp_path / "out", group=pattern).count("n_groups") == 2
    assert "one patient" not in caplog.text


@pytest.mark.parametrize(
    ("name", "images", "role"),
    [
        ("labelsTs", "abc", "test"),
        ("labelsTs", "ab", "test"),
        ("labelsTs", "", "test"),
        ("gt_segmentations", "", "unknown"),
    ],
)
def test_masks_with_or_without_images_keep_role_and_labels_of_their_dataset(
    folders, tmp_path, name, images, role
):
    reference, prediction, out = folders
    write_mask(reference / "c.nii.gz", 7 * lesions(1, [0]))  # where something is found
    assert scores_of(*folders).count("n_lesions") == 6  # nothing says that 7 is no lesion
    # nnU-Net's first version writes this list
    listed = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    write_labels(tmp_path, NODULE, training=listed if name == "gt_segmentations" else [])
    for case in images:
        write_mask(tmp_path / "imagesTs" / f"{case}_0000.nii.gz", lesions(0))
    scores = scores_of(reference.rename(tmp_path / name), prediction, out)
    assert (scores.evaluated_on, set(scores.labels)) == (role, {"nodule"})
    assert counts(scores, "n_cases", "n_lesions", "n_false_positive") == (3, 5, 0)


THREE = {"a": 1, "b": 4, "c": 9}


@pytest.mark.parametrize(
    ("labels", "predicted", "found", "unknown"),
    [
        ({"lesion": 1}, (1, 2, 1), 2, [2]),
        (THREE, (1, 2, 3), 1, [2, 3]),
        (THREE, (1, 4, 9), 3, []),
    ],
)
def test_values_that_the_labels_lack_find_no_lesion(
    tmp_path, labels, predicted, found, unknown, caplog
):
    drawn = ([*labels.values()] * 3)[:3]
    folders = write_painted(tmp_path, drawn, predicted, {"background": 0, **labels})
    scores = scores_of(*folders)
    assert counts(scores, "n_true_positive", "n_false_positive") == (found, 3 - found)
    assert {*columns(folders[2], "labels", "label")} == {*labels, *map(str, unknown)}
    said = f"values {unknown} are not among the labels"
    assert ("not among the labels" in caplog.text) == (said in caplog.text) == bool(unknown)


@pytest.mark.parametrize(("value", "is_unknown"), [(255, True), (1, False)])
def test_values_that_no_bare_reference_has_are_named(tmp_path, value, is_unknown, caplog):
    scores_of(*write_painted(tmp_path, (1, 1), (value, value)))
    assert ("values [255] are not among the labels" in caplog.text) == is_unknown


@pytest.mark.parametrize(
    ("predicted", "is_exchanged"), [((4, 1), True), ((1, 4), False), ((4, 4), False)]
)
def test_labels_that_are_exchanged_are_named(tmp_path, predicted, is_exchanged, caplog):
    labels = {"background": 0, "cyst": 1, "scar": 4}
    scores_of(*write_painted(tmp_path, (1, 4), predicted, labels))
    assert ("cyst and scar are probably exchanged" in caplog.text) == is_exchanged


REGIONS = {"background": 0, "whole": [1, 2], "core": 2}


@pytest.mark.parametrize("of_prediction", [True, False])
def test_regions_without_their_values_are_an_error(folders, tmp_path, of_prediction):
    reference, prediction, out = folders
    write_labels(prediction if of_prediction else tmp_path, REGIONS)
    with pytest.raises(DatasetError, match="regions_class_order"):
        evaluate(reference.rename(tmp_path / "labelsTs"), prediction, out)


def test_values_of_no_region_do_not_count(tmp_path, caplog):
    folders = write_painted(tmp_path, (1, 2), (1, 7), REGIONS, regions_class_order=[1, 2])
    evaluate(*folders)
    found = columns(folders[2], "labels", "label", "n_detected")
    assert found == [("whole", "1"), ("core", "0")]
    assert "values [7] belong to no region" in caplog.text


def test_masks_of_a_damaged_dataset_are_read_without_it(folders, tmp_path, caplog):
    reference, prediction, out = folders
    (tmp_path / "dataset.json").write_text("{")
    scores = scores_of(reference.rename(tmp_path / "labelsTs"), prediction, out)
    assert scores.count("n_lesions") == 5
    assert "dataset.json" in caplog.text


@pytest.mark.parametrize("named", ["", "labelsTs"])
def test_labels_of_references_and_predictions_are_merged(tmp_path, named):
    root = tmp_path / "dataset"
    write_scan(root / "imagesTs" / "a_0000.nii.gz", GEOMETRY)
    write_mask(root / "labelsTs" / "a.nii.gz", lesions(2) * 255)  # no label of the dataset
    write_labels(root, {"background": 0, "lesion": 1, "scar": 2})
    halves = lesions(2)
    halves[2] *= 2  # two labels that touch
    write_mask(tmp_path / "prediction" / "a.nii.gz", halves)
    folders = (root / named, tmp_path / "prediction", tmp_path / "out")
    with pytest.raises(DatasetError, match=r"\[255\].*evaluate merge_labels=true"):
        scores_of(*folders)
    scores = scores_of(*folders, merge_labels=True)
    assert counts(scores, "n_true_positive", "n_missed", "n_false_positive") == (2, 0, 0)
    assert scores.provenance.merge_labels
    assert columns(tmp_path / "out", "candidates", "label") == ["lesion", "lesion"]


def test_candidate_files_supply_scores_and_operating_point(tmp_path):
    drawn = lesions(2).astype(np.int32)
    drawn[:, 5:8] *= 2
    prediction = prediction_of(drawn, (0.9, 0.3), GEOMETRY, accepted_from=0.5, case="a")
    point = OperatingPoint("score:0.5", 0.5)
    folders = folders_of(tmp_path)
    write_prediction(folders[1], replace(prediction, operating_point=point))
    write_mask(folders[0] / "a.nii.gz", lesions(2))
    scores = scores_of(*folders)
    assert (scores.count("n_true_positive"), scores.operating_point.score) == (1, 0.5)
    assert [point.value for point in scores.curve("froc")] == [1.0] * 7
    for lower in ("score:0.2", 0.2, "2e-1"):
        scores = scores_of(*folders, operating_point=lower)
        point = scores.operating_point
        assert (scores.count("n_true_positive"), point.score, point.chosen_on) == (2, 0.2, None)
    assert columns(folders[2], "lesions", "detected_at") == ["0.9", "0.3"]


@pytest.mark.parametrize(
    ("setting", "value", "error", "named"),
    [
        ("operating_point", "fp_per_case:1", ConfigError, "score"),
        ("operating_point", "score:1.5", ConfigError, "score"),
        ("preset", "luna", ConfigError, "preset"),
        ("group", "(two", ConfigError, "group"),
        ("group", "two", DatasetError, "group"),  # in no case's name
        ("subgroups", ["site"], ConfigError, "site"),
    ],
)
def test_invalid_setting_is_refused(folders, setting, value, error, named):
    with pytest.raises(error, match=named):
        evaluate(*folders, **{setting: value})
    assert not (folders[2] / "scores.json").exists()


@pytest.mark.parametrize("which", [0, 1])
def test_folders_that_are_empty_or_have_nothing_in_common_are_refused(folders, which):
    for path in sorted(folders[which].iterdir()):
        path.rename(path.with_name("other_" + path.name))
    with pytest.raises(DatasetError, match="other_a"):
        evaluate(*folders)
    for path in folders[which].iterdir():
        path.unlink()
    with pytest.raises(DatasetError):
        evaluate(*folders)
    assert not folders[2].exists()


def test_predictions_of_a_format_that_is_not_read_are_named(folders, caplog):
    for name in ("a.hdr", "a.img", "b.npz", "plans.json", "progress.png.tmp"):
        (folders[1] / name).write_bytes(b"x")
    evaluate(*folders)
    assert "3 items of formats that are not read here (.hdr, .img, .tmp)" in caplog.text


def test_second_reader_is_scored_and_compared(folders):
    recall = scores_of(*folders, compare=folders[0]).comparison["lesion_recall"]
    second = folders[2] / "compare"
    assert (recall.one, recall.other) == (0.6, 1.0)
    assert (second / "lesions.csv").is_file()
    (second / "own.txt").touch()
    evaluate(*folders)
    assert [path.name for path in second.iterdir()] == ["own.txt"]  # it may be anybody's folder


def subgroup(scores, name, *numbers):
    """Return numbers of a subgroup."""
    return [scores.find(number, subset=name).value for number in numbers]


def test_zones_give_recall_and_false_positives_by_zone(folders, tmp_path):
    zones = np.ones(SHAPE, dtype=np.uint8)
    zones[:, 5:] = 2  # the first lesion is located in 1, the remaining ones in 2
    for case in "abc":
        write_mask(tmp_path / "zones" / f"{case}.nii.gz", zones)
    (tmp_path / "zones" / "names.csv").write_text("value,name\n1,front\n2,back\n")
    scores = scores_of(*folders, zones=tmp_path / "zones")
    assert subgroup(scores, "zone: front", "n_lesions", "n_true_positive") == [2, 1]
    assert subgroup(scores, "zone: back", "n_lesions", "n_true_positive") == [3, 2]
    (false,) = subgroup(scores, "zone: front", "false_positives_per_case")
    assert false == pytest.approx(1 / 3)


def write_manifest(folders, column, cells):
    """Write a dataset around the reference masks. In the column, b has the second cell."""
    root = folders[0].parent
    lines = [f"case,image,reference,{column}"]
    for name in "abc":
        write_scan(root / "scans" / f"{name}.nii.gz", GEOMETRY)
        lines.append(f"{name},scans/{name}.nii.gz,reference/{name}.nii.gz,{cells[name == 'b']}")
    (root / "manifest.csv").write_text("\n".join(lines))
    return root


def test_columns_of_the_manifest_and_of_another_table_give_subgroups(folders, tmp_path):
    root = write_manifest(folders, "site", "NS")
    scores = scores_of(root, *folders[1:])
    assert scores.subgroups == ["site: N", "site: S"]
    assert subgroup(scores, "site: S", "n_cases", "n_lesions", "n_true_positive") == [1, 3, 1]
    assert scores_of(root, *folders[1:], subgroups=[]).subgroups == []
    table = tmp_path / "table.csv"
    table.write_text("case,scanner,sex\na,old,f\nb,new,m\nstranger,new,f\n")
    scores = scores_of(*folders, subgroups=["scanner"], columns=table)
    assert scores.subgroups == ["scanner: new", "scanner: old", "scanner: not stated"]
    assert [subgroup(scores, name, "n_cases") for name in scores.subgroups] == [[1]] * 3
    table.write_text("name,site\na,x\n")
    with pytest.raises(DatasetError, match="case"):
        evaluate(*folders, columns=table)


# --- grids ---

# a third and a half of the voxels' sides, with the same edges
TO_COARSE = np.diag([1 / 3, 0.5, 0.5, 1.0])
TO_COARSE[:3, 3] = (-1 / 3, -0.25, -0.25)
FINE = Geometry((30, 24, 28), GEOMETRY.affine @ TO_COARSE)


def refine(mask):
    return mask.repeat(3, 0).repeat(2, 1).repeat(2, 2)


def test_another_grid_is_refused_or_resampled(folders, caplog):
    before = scores_of(*folders)
    write_mask(folders[1] / "a.nii.gz", refine(lesions(2, [0, 1])), FINE)
    (refused,) = evaluate(*folders).failed
    assert (refused.case, "resample=true" in refused.message) == ("a", True)
    after = scores_of(*folders, resample=True)
    assert "reference: a" in caplog.text
    assert after["dice"] == before["dice"]


ON_MM_GRID = Geometry.from_spacing(SHAPE, (1.0, 1.0, 1.0))  # as np.eye(4) in nibabel
PLACED = Geometry(SHAPE, np.diag([-1.0, -1.0, 1.0, 1.0]) @ GEOMETRY.affine + np.eye(4, k=3) * 90)


# the grid of a file that has lost spacing and directions, but not the first voxel
WITHOUT_AXES = Geometry(SHAPE, np.c_[ON_MM_GRID.affine[:, :3], PLACED.affine[:, 3]])


def write_two_cases(root, side, grid):
    """Write the cases a and b. One side of a is on another grid. Return the folders."""
    for case in "ab":
        for folder in ("reference", "prediction"):
            own = grid if (folder, case) == (side, "a") else PLACED
            write_mask(root / folder / f"{case}.nii.gz", lesions(1), own)
    return folders_of(root)


def scaled(*factors):
    """Return the grid of the scan with other distances between voxels."""
    return Geometry(SHAPE, PLACED.affine @ np.diag([*factors[::-1], 1.0]))


LOST = [(grid, "header of the scan was lost") for grid in (ON_MM_GRID, WITHOUT_AXES)]


SCALED = [
    (scaled(1, 1, 0.5), "1 × 1 × 1.5 mm"),
    (scaled(1 / 1.2, 1 / 1.2, 1), "0.8333 × 0.8333 × 3 mm"),
    (scaled(3, 1, 1 / 3), "3 × 1 × 1 mm"),
]


@pytest.mark.parametrize("side", ["reference", "prediction"])
@pytest.mark.parametrize(
    ("grid", "words", "settings"),
    [(*case, {}) for case in LOST + SCALED]
    + [(*case, {"resample": True}) for case in LOST + SCALED]
    + [(*case, {"geometry": "image"}) for case in SCALED],
)
def test_mask_of_equal_shape_with_another_header_fails(tmp_path, side, grid, words, settings):
    outcome = evaluate(*write_two_cases(tmp_path, side, grid), **settings)
    (failed,) = outcome.failed
    assert (failed.case, outcome.exit_status) == ("a", 3)
    assert words in failed.message
    assert "header" in failed.message
    assert "lost" in words or "1 × 1 × 3 mm" in failed.message
    assert "resample=true" not in failed.message
    assert outcome.scores["dice"].value == 1.0


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (2, 1, 0)])
def test_the_same_grid_with_flipped_and_permuted_axes_is_resampled(tmp_path, axes):
    cube = boxes((12, 12, 12), (2, 4, 6, 4))
    grid = Geometry.from_spacing(cube.shape, (3.0, 1.2, 1.0))
    affine = grid.affine[:, [*axes, 3]]
    affine[:, 3] += affine[:, 0] * 11
    affine[:, 0] *= -1
    turned = cube.transpose(axes)[::-1]
    write_mask(tmp_path / "reference" / "a.nii.gz", cube, grid)
    write_mask(tmp_path / "prediction" / "a.nii.gz", turned, Geometry(cube.shape, affine))
    assert scores_of(*folders_of(tmp_path), resample=True)["dice"].value == 1.0


def test_prediction_without_its_header_is_scored_with_geometry_image(tmp_path):
    for name, grid in (("reference", PLACED), ("prediction", ON_MM_GRID)):
        write_mask(tmp_path / name / "a.nii.gz", lesions(2), grid)
    folders = folders_of(tmp_path)
    scores = scores_of(*folders, geometry="image")
    assert (scores["dice"].value, scores.count("n_true_positive")) == (1.0, 2)


@pytest.mark.parametrize(("shift_mm", "is_shown"), [(0, True), (5, True), (9, False), (400, False)])
def test_prediction_that_is_resampled_must_show_half_of_the_place(tmp_path, shift_mm, is_shown):
    moved = Geometry(SHAPE, GEOMETRY.affine + shift_mm * np.eye(4, k=3))  # along the 14 mm
    write_mask(tmp_path / "reference" / "a.nii.gz", lesions(1))
    write_mask(tmp_path / "prediction" / "a.nii.gz", lesions(1), moved)
    with nullcontext() if is_shown else pytest.raises(DatasetError, match="located outside"):
        evaluate(*folders_of(tmp_path), resample=True)


def test_case_that_needs_too_much_memory_fails_alone(folders, monkeypatch):
    def run_out(*args, case, **settings):
        if case == "b":
            raise MemoryError("Unable to allocate 5.46 GiB")
        return match_case(*args, case=case, **settings)

    monkeypatch.setattr("lesionseg.pipeline.score_cases.match_case", run_out)
    outcome = evaluate(*folders)
    (failed,) = outcome.failed
    assert (failed.case, outcome.exit_status) == ("b", 3)
    assert "5.46 GiB" in failed.message
    assert columns(folders[2], "cases", "status") == ["ok", "ok", "failed"]


def test_prediction_that_is_the_file_of_the_reference_is_named(folders, caplog):
    evaluate(folders[0], folders[0], folders[2])
    assert "compared with itself: a, b, c" in caplog.text


def write_eight_cases(folder, change=None):
    """Write eight references and predictions of one lesion. `change` damages predictions."""
    reference, prediction, out = folders_of(folder)
    for k in range(8):
        write_mask(reference / f"P{k}.nii.gz", lesions(1))
        write_mask(prediction / f"P{k}.nii.gz", lesions(1, [0]))
    if change is not None:
        change(prediction)
    return reference, prediction, out


def spoil(predictions):
    """Crop one prediction, move one by 0.6 mm, damage one, and duplicate one."""
    lacking = Geometry.from_spacing((9, 12, 14), (3.0, 1.0, 1.0))
    moved = Geometry(SHAPE, GEOMETRY.affine + 0.6 * np.eye(4, k=3))
    write_mask(predictions / "P1.nii.gz", lesions(1, [0])[:-1], lacking)
    write_mask(predictions / "P2.nii.gz", lesions(1, [0]), moved)
    (predictions / "P3.nii.gz").write_bytes(b"damaged")
    write_mask(predictions / "P4_mask.nii.gz", lesions(1, [0]))


def test_misfitting_cases_are_named_and_the_remaining_ones_scored(tmp_path, caplog):
    expected = scores_of(*write_eight_cases(tmp_path / "sound"))
    folders = write_eight_cases(tmp_path / "spoilt", spoil)
    outcome = evaluate(*folders)
    scores = outcome.scores
    assert counts(scores, "n_cases", "n_true_positive") == (4, 4)
    assert scores["dice"].value == expected["dice"].value
    assert (expected.failed_cases, outcome.exit_status) == ({}, 3)
    rows = columns(folders[2], "cases", "case", "status", "message")
    messages = {case: message for case, status, message in rows if status == "failed"}
    named = {"P1": "shapes", "P2": "0.6 mm", "P3": "P3.nii.gz", "P4": "same case"}
    assert messages.keys() == scores.failed_cases.keys() == named.keys()
    assert all(words in messages[case] for case, words in named.items())
    assert all(caplog.text.count(f"Not scored, {case}:") == 1 for case in named)
    record = outcome.record()
    assert record["scores"] == folders[2] / "scores.json"
    assert {finding["case"] for finding in record["failed"]} == named.keys()
    assert "4 scans could not be scored" in report(folders[2], tmp_path).page.read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="links need permissions on Windows")
@pytest.mark.parametrize("side", [0, 1], ids=["reference", "prediction"])
def test_only_the_case_of_a_link_to_nothing_fails(folders, side):
    file = next(folders[side].glob("b*"))
    file.unlink()
    file.symlink_to(".git/annex/objects/B")
    outcome = evaluate(*folders)
    (failed,) = outcome.failed
    assert (failed.case, outcome.exit_status) == ("b", 3)
    assert "points to nothing" in failed.message
    assert counts(outcome.scores, "n_cases", "n_lesions") == (2, 2)


def test_dataset_with_a_missing_reference_scores_the_remaining_cases(folders, tmp_path):
    root = write_manifest(folders, "site", "NS")
    (folders[0] / "b.nii.gz").unlink()
    outcome = evaluate(root, *folders[1:])
    assert outcome.scores.count("n_cases") == 2
    assert "b.nii.gz" in outcome.failed[0].message


def test_all_faults_are_listed_once_and_nothing_is_written_if_no_case_fits(folders, caplog):
    for name in "abc":
        (folders[0] / f"{name}.nii.gz").write_bytes(b"damaged")
    with pytest.raises(DatasetError, match=r"(?s)a\.nii\.gz.*b\.nii\.gz.*c\.nii\.gz"):
        evaluate(*folders)
    assert "nii.gz" not in caplog.text  # the error lists them
    assert not (folders[2] / "scores.json").exists()


def test_a_second_model_is_compared_on_the_cases_that_fit_in_both(tmp_path):
    reference, prediction, out = write_eight_cases(tmp_path / "one", spoil)
    _, other, _ = write_eight_cases(tmp_path / "two")
    (other / "P6.nii.gz").write_bytes(b"damaged")
    outcome = evaluate(reference, prediction, out, compare=str(other))
    assert outcome.scores.count("n_cases") == 4
    assert {problem.case for problem in outcome.failed} == {"P1", "P2", "P3", "P4"}
    assert [problem.case for problem in outcome.not_compared] == ["P6"]
    assert any("P6 of the second model" in line for line in outcome.summary())


def test_resampled_candidates_keep_their_scores_and_get_new_sizes(folders):
    drawn = refine(lesions(2, [0, 1])).astype(np.int32)
    drawn[:, 10:] *= 2
    drawn[0, 0, 0] = 3  # smaller than a voxel of the reference
    (folders[1] / "a.nii.gz").unlink()
    write_prediction(folders[1], prediction_of(drawn, (0.9, 0.4, 0.2), FINE, case="a"))
    scores_of(*folders, resample=True)
    found = [row for row in read_csv(folders[2] / "candidates.csv") if row["case"] == "a"]
    assert [float(row["score"]) for row in found] == [0.9, 0.4, 0.2]
    assert [found[0][f"start_{axis}_vox"] for axis in "zyx"] == ["2.0", "1.0", "3.0"]
    assert float(found[2]["volume_ml"]) == pytest.approx(0.003)  # one voxel of 3 mm³
    assert float(found[0]["diameter_mm"]) == pytest.approx((6 / np.pi * 24 * 3) ** (1 / 3))


def test_case_without_a_prediction_is_not_an_empty_result(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("lesionseg.reporting.write.MAX_MISSED", 9)
    reference, prediction, out = folders_of(tmp_path)
    for case, n in zip("abcdef", (2, 0, 3, 0, 1, 1), strict=True):
        write_mask(reference / f"{case}.nii.gz", lesions(n))
    write_mask(prediction / "a.nii.gz", lesions(2, [0]))
    write_mask(prediction / "b.nii.gz", lesions(0))
    write_mask(prediction / "stranger.nii.gz", lesions(1))
    steps = []
    outcome = evaluate(reference, prediction, out, progress=lambda *step: steps.append(step))
    assert steps == [(case, number, 6) for number, case in enumerate("abcdef", 1)]
    scores = outcome.scores
    assert scores.missing_predictions == ("c", "d", "e", "f")
    assert counts(scores, "n_cases", "n_lesion_free_cases", "n_lesions", "n_missed") == (6, 2, 7, 6)
    assert caplog.text.count("have no prediction") == 1
    assert "stranger" in caplog.text
    lines = {line[:22].strip(): line.split()[-2:] for line in outcome.summary()}
    assert lines["cases"] == ["6", "2"]  # all of them, and the predicted ones
    assert lines["lesion recall"] == ["0.143", "0.500"]
    rows = columns(out, "cases", "status", "n_missed", "n_candidates", "predicted_ml")
    assert rows[1] == ("ok", "0", "0", "0.0")
    assert rows[2:] == [("missing", n, "", "") for n in "3011"]
    assert columns(out, "cases", "dice", "surface_dice", "hd95_mm")[2] == ("0.0", "0.0", "")
    assert columns(out, "lesions", "why_missed")[2:] == ["case_failed"] * 5
    for case in "ab":  # only these scans are given
        write_scan(tmp_path / "scans" / f"{case}.nii.gz", GEOMETRY)
    caplog.clear()
    given = {"images": tmp_path / "scans", "prediction": prediction}
    page = report(out, tmp_path / "page", **given).page.read_text()
    assert "4 of 6 scans were not predicted" in page
    assert caplog.text.count("no pictures of") == 1


PLANS = {"plans_name": "Plans", "dataset_name": "Dataset001", "configurations": {"2d": {}}}


DESCRIBED = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "a": 1}, "numTraining": 7}


NNUNET = "nnU-Net Plans for Dataset001"


def test_candidates_outside_the_grid_are_no_false_positives(tmp_path):
    folders = folders_of(tmp_path)
    write_mask(folders[0] / "a.nii.gz", lesions(1))
    beyond = (0.8, [2, 1, 20], [4, 4, 26])
    write_boxes(folders[1], "a", (0.9, [2, 1, 2], [4, 4, 6]), beyond)
    for settings in ({}, {"operating_point": "score:0.5"}):
        evaluate(*folders, **settings)
        names = ("n_candidates", "n_outside", "n_false_positive", "n_detected")
        assert columns(folders[2], "cases", *names) == [("1", "1", "0", "1")]


@pytest.mark.parametrize(
    ("files", "model", "n_scans"),
    [
        ({"predict_from_raw_data_args": {}}, "nnU-Net", None),
        ({"plans": PLANS}, NNUNET, None),
        ({"plans": PLANS, "dataset": DESCRIBED}, NNUNET, 7),
        ({"plans": {**PLANS, "configurations": {}}, "dataset": DESCRIBED}, "", None),  # our own
        ({"dataset": DESCRIBED}, "", None),
    ],
)
def test_scores_state_that_nnunet_predicted(folders, files, model, n_scans):
    for name, content in files.items():
        write_json(folders[1] / f"{name}.json", content)
    found = scores_of(*folders).provenance
    assert (found.model, found.training_scans) == (model, n_scans)


def test_rasters_of_another_size_are_resampled_to_the_same_field(tmp_path):
    reference = boxes((12, 16), (2, 4, 4))
    folders = folders_of(tmp_path)
    write_array(folders[0] / "a.png", reference)
    write_array(folders[1] / "a.png", reference.repeat(2, 0).repeat(2, 1))
    with pytest.raises(DatasetError, match="grid"):
        evaluate(*folders)
    scores = scores_of(*folders, resample=True)
    assert scores["dice"].value == scores["surface_dice"].value == 1.0
    assert scores.size_unit == "% of the image width"
    assert columns(folders[2], "cases", "reference_ml") == [""]


def test_boxes_on_a_film_of_another_size_are_refused_or_resampled(tmp_path):
    folders = folders_of(tmp_path)
    write_array(folders[0] / "a.png", boxes((8, 12), (2, 4, 4)))
    box = (0.9, [4, 8], [12, 16])  # the film is twice as large
    write_boxes(folders[1], "a", box, shape=[16, 24])
    with pytest.raises(DatasetError, match=r"a_candidates\.json: .*shapes differ"):
        evaluate(*folders)
    assert scores_of(*folders, resample=True)["lesion_recall"].value == 1.0
    (found,) = columns(folders[2], "candidates", "stop_y_vox", "stop_x_vox", "diameter_percent")
    assert [float(number) for number in found] == pytest.approx([6, 8, 100 / 3])
    write_boxes(folders[1], "a", box, shape=[8, 12])
    assert scores_of(*folders)["lesion_recall"].value == 0.0


# --- predictions of other programs ---


def test_candidates_without_masks_are_scored_by_their_boxes(folders, tmp_path):
    false = (0.2, [7, 7, 7], [9, 9, 9])
    write_boxes(tmp_path / "boxes", "a", (0.9, [2, 1, 2], [4, 4, 6]), false)
    scores = scores_of(folders[0], tmp_path / "boxes", folders[2])
    assert counts(scores, "n_true_positive", "n_false_positive") == (1, 1)
    assert scores.missing_predictions == ("b", "c")
    assert columns(folders[2], "cases", "dice") == ["", "0.0", ""]
    assert scores["dice"].value is scores["specificity"].value is None  # only boxes, and none for c


def test_answers_in_the_report_s_table_are_counted_by_evaluate(folders, tmp_path):
    evaluate(*folders)
    report(folders[2], tmp_path / "report")
    path = tmp_path / "report" / "adjudicate.csv"
    (row,) = read_csv(path)
    rows = [{**row, "answer": "Lesion"}, {**row, "answer": "lesion", "case": "a"}]
    stale = {**row, "candidate": "7"}  # not a false positive of the case a
    write_csv(path, [*rows, stale], list(row))
    scores = scores_of(*folders, adjudication=path)
    assert subgroup(scores, "adjudicated", "n_answer_lesion", "n_stale", "n_open") == [1, 1, 0]
    names = "lesion_recall", "lesion_precision", "false_positives_per_case"
    assert subgroup(scores, "", *names) == pytest.approx([3 / 5, 3 / 4, 1 / 3])
    assert subgroup(scores, "adjudicated", *names) == pytest.approx([4 / 6, 1.0, 0.0])


# --- roles and layouts ---

ROLES = {"a": None, "b": None, "c": "test", "d": "test"}


def choose_cases(roles, predicted, evaluated_on=None):
    cases = [CaseFiles(case, (), role=role) for case, role in roles.items()]
    return "".join(c.case for c in cases_of_role(cases, predicted, evaluated_on))


@pytest.mark.parametrize(
    ("predicted", "evaluated_on", "expected"),
    [
        ("cd", None, "cd"),  # only the test part was predicted
        ("c", None, "cd"),  # d is missed: some of its role were predicted
        ("a", None, "ab"),
        ("", None, "abcd"),  # nothing in common: the caller says so
        ("abcd", "test", "cd"),
        ("ab", "test", "cd"),  # asked for, so missed
        ("abcd", "train", "ab"),
        ("cd", "external", "cd"),  # where the scans come from, not which of them
        ("abcd", "external", "abcd"),
    ],
)
def test_cases_of_the_requested_or_predicted_role_are_scored(predicted, evaluated_on, expected):
    assert choose_cases(ROLES, predicted, evaluated_on) == expected
    assert choose_cases(dict.fromkeys("abcd"), predicted, evaluated_on) == "abcd"  # none is stated


def test_role_without_cases_gives_empty_tables_and_an_explaining_page(folders, tmp_path, caplog):
    root = write_manifest(folders, "role", ("train", "test"))
    table = root / "manifest.csv"  # such a table names no case of the role
    settings = {"compare": folders[1], "columns": table, "subgroups": ["site"]}
    for more in (settings, {"operating_point": "best_f1"}):  # there is nothing to choose it on
        outcome = evaluate(root, *folders[1:], evaluated_on="validation", **more)
        assert outcome.scores.count("n_cases") == 0
    assert "it has test and train" in caplog.text
    page = report(folders[2], tmp_path / "page", images=root, report={"pdf": True}).page
    assert "No scan was evaluated" in page.read_text()
    assert page.with_suffix(".pdf").is_file() == HAS_PANGO


def test_unpredicted_cases_of_another_role_are_not_missed(folders):
    root = write_manifest(folders, "role", ("train", "test"))
    for name in "ac":
        (folders[1] / f"{name}.nii.gz").unlink()
    scores = scores_of(root, *folders[1:])
    assert (scores.count("n_cases"), scores.evaluated_on) == (1, "test")
    assert scores.missing_predictions == ()


@pytest.mark.parametrize("point", [None, "score:0.5", "best_f1"])
def test_candidates_of_a_label_that_is_not_annotated_do_not_count_at_any_point(tmp_path, point):
    root = tmp_path / "dataset"
    write_scan(root / "a.nii.gz", GEOMETRY)
    write_mask(root / "a_ref.nii.gz", lesions(1))
    write_json(root / "labels.json", {"1": "scar", "2": "cyst"})
    (root / "manifest.csv").write_text(
        "case,image,reference,annotated\na,a.nii.gz,a_ref.nii.gz,scar\n"
    )
    instances = lesions(3).astype(np.int32)
    instances[:, 5:8] *= 2
    instances[:, 9:] *= 3
    found = prediction_of(instances, (0.9, 0.8, 0.7), GEOMETRY, labels=(1, 2, 2), case="a")
    write_prediction(tmp_path / "found", found)
    scores = scores_of(root, tmp_path / "found", tmp_path / "out", operating_point=point)
    assert counts(scores, "n_true_positive", "n_false_positive") == (1, 0)


def test_report_draws_predictions_and_references_of_grids_that_evaluate_accepts(tmp_path):
    elsewhere = Geometry(SHAPE, GEOMETRY.affine + 5 * np.eye(4, k=3))
    near = Geometry(SHAPE, GEOMETRY.affine + 0.2 * np.eye(4, k=3))  # of a voxel of 1 mm
    write_scan(tmp_path / "images" / "a.nii.gz", GEOMETRY)
    write_mask(tmp_path / "masks" / "a.nii.gz", lesions(1), near)
    write_mask(tmp_path / "found" / "a.nii.gz", lesions(1), elsewhere)
    scene = CaseFolders(*(tmp_path / name for name in ("images", "masks", "found"))).load("a", {1})
    assert scene.reference.sum() == scene.accepted.sum() == lesions(1).sum()


@pytest.mark.parametrize("n_predictions", [0, 2])
def test_case_with_two_references_fails_once(tmp_path, n_predictions, caplog):
    folders = write_eight_cases(tmp_path)
    write_mask(folders[0] / "P5_mask.nii.gz", lesions(1))
    if n_predictions:
        write_mask(folders[1] / "P5_mask.nii.gz", lesions(1))
    else:
        (folders[1] / "P5.nii.gz").unlink()
    outcome = evaluate(*folders)
    assert "Not scored, P5:" in caplog.text
    assert [*outcome.scores.failed_cases] == ["P5"]
    assert (outcome.scores.count("n_cases"), outcome.exit_status) == (7, 3)
    rows = columns(folders[2], "cases", "case", "status")
    assert [status for case, status in rows if case == "P5"] == ["failed"]


def test_folder_whose_references_are_all_faulty_is_refused(tmp_path):
    folders = folders_of(tmp_path)
    for file in ("reference/a.nii.gz", "reference/a_mask.nii.gz", "prediction/b.nii.gz"):
        write_mask(tmp_path / file, lesions(1))
    with pytest.raises(DatasetError, match="same case"):
        evaluate(*folders)


def test_fault_of_a_prediction_without_reference_does_not_count(tmp_path):
    folders = write_eight_cases(tmp_path)
    for name in ("other.nii.gz", "other_mask.nii.gz"):
        write_mask(folders[1] / name, lesions(1))
    assert evaluate(*folders).exit_status == 0


def test_interrupted_evaluation_leaves_no_scores_of_an_earlier_one(folders, monkeypatch):
    evaluate(*folders)
    assert (folders[2] / "scores.json").is_file()

    def fail(path, *_):
        raise OSError(f"{path}: no space left")

    monkeypatch.setattr("lesionseg.evaluation.tables.write_csv", fail)
    with pytest.raises(OSError, match="no space left"):
        evaluate(*folders)
    assert not (folders[2] / "scores.json").exists()
