import csv
import json
import logging
from contextlib import contextmanager

import numpy as np
import pytest

from lesionseg.core import Geometry, OperatingPoint, Volume
from lesionseg.errors import ConfigError, DatasetError, GeometryError
from lesionseg.evaluation import PRESETS
from lesionseg.evaluation.rows import CANDIDATE_COLUMNS, CASE_COLUMNS, LESION_COLUMNS
from lesionseg.io.predictions import write_prediction
from lesionseg.io.volumes import write_volume
from lesionseg.pipeline.evaluate.recipe import evaluate
from lesionseg.pipeline.judging.case_pairs import CasePair, Scoring, judge_pairs
from tests.evaluation.hand_cases import HAND_CASES, make_prediction, make_reference, prediction_of

SHAPE, SPACING = (10, 12, 14), (3.0, 1.0, 1.0)
GEOMETRY = Geometry.from_spacing(SHAPE, SPACING)


def write_mask(path, array, geometry=GEOMETRY):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, Volume(array.astype(np.uint8)[None], geometry))


def lesions(n, found=None):
    """n boxes; with `found`, only those, and moved by a voxel."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    for i in range(n) if found is None else found:
        mask[2:4, 1 + 4 * i : 4 + 4 * i, 2 + (found is not None) : 6 + (found is not None)] = 1
    return mask


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folders(tmp_path):
    """Three cases: both lesions found, one of three found, lesion-free with a false positive."""
    reference, prediction = tmp_path / "reference", tmp_path / "prediction"
    write_mask(reference / "a.nii.gz", lesions(2))
    write_mask(reference / "b.nii.gz", lesions(3))
    write_mask(reference / "c.nii.gz", lesions(0))
    write_mask(prediction / "a.nii.gz", lesions(2, [0, 1]))
    write_mask(prediction / "b_mask.nii.gz", lesions(3, [2]))
    write_mask(prediction / "c.nii.gz", lesions(0, [0]))
    return reference, prediction, tmp_path / "out"


def test_bare_masks_of_another_program(folders):
    scores = evaluate(*folders, replicates=20).scores
    assert (scores["n_cases"], scores["n_lesions"], scores["n_lesion_free_cases"]) == (3, 5, 1)
    assert (scores["n_true_positive"], scores["n_missed"], scores["n_false_positive"]) == (3, 2, 1)
    assert scores["lesion_recall"]["value"] == 0.6
    assert scores["froc"] is None
    assert scores["cpm"] is None
    assert scores["evaluated_on"] == "unknown"  # nobody stated it
    assert json.loads((folders[2] / "scores.json").read_text()) == scores


def test_tables_agree_with_the_scores(folders):
    scores = evaluate(*folders, replicates=5).scores
    out = folders[2]
    cases, found, candidates = (
        rows(out / f"{name}.csv") for name in ("cases", "lesions", "candidates")
    )
    assert tuple(cases[0]) == CASE_COLUMNS
    assert tuple(found[0]) == LESION_COLUMNS
    assert tuple(candidates[0]) == CANDIDATE_COLUMNS
    assert [row["case"] for row in cases] == ["a", "b", "c"]
    assert sum(int(row["n_detected"]) for row in cases) == scores["n_true_positive"]
    assert sum(row["detected"] == "true" for row in found) == scores["n_true_positive"]
    outcomes = [row["outcome"] for row in candidates]
    assert outcomes.count("false_positive") == scores["n_false_positive"]
    assert candidates[0]["score"] == ""
    assert cases[2]["dice"] == ""
    assert float(cases[0]["reference_ml"]) == pytest.approx(2 * 24 * 3 / 1000)


def test_our_own_files_bring_scores_and_their_operating_point(tmp_path):
    geometry = Geometry.from_spacing(SHAPE, SPACING)
    drawn = lesions(2).astype(np.int32)
    drawn[2:4, 5:8][drawn[2:4, 5:8] > 0] = 2
    prediction = prediction_of(drawn, (0.9, 0.3), geometry, accepted_from=0.5, case="a")
    point = OperatingPoint("score:0.5", 0.5)
    prediction = type(prediction)(
        "a", geometry, prediction.candidates, prediction.instances, operating_point=point
    )
    write_prediction(tmp_path / "prediction", prediction)
    write_mask(tmp_path / "reference" / "a.nii.gz", lesions(2))
    folders = (tmp_path / "reference", tmp_path / "prediction", tmp_path / "out")
    scores = evaluate(*folders, replicates=5).scores
    assert scores["n_true_positive"] == 1
    assert scores["operating_point"]["score"] == 0.5
    assert scores["froc"]["recall"] == [1.0] * 7
    lower = evaluate(
        *folders, operating_point=OperatingPoint("score:0.2", 0.2), replicates=5
    ).scores
    assert lower["n_true_positive"] == 2
    assert [row["detected_at"] for row in rows(tmp_path / "out" / "lesions.csv")] == ["0.9", "0.3"]
    named = evaluate(*folders, operating_point="score:0.2", replicates=5).scores
    assert named["operating_point"]["score"] == 0.2
    assert (
        evaluate(*folders, operating_point=0.2, replicates=5).scores["operating_point"]["score"]
        == 0.2
    )
    assert named["operating_point"]["chosen_on"] is None
    assert named["n_true_positive"] == 2
    assert (
        evaluate(*folders, operating_point="score:0.95", replicates=5).scores["n_true_positive"]
        == 0
    )


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("fp_per_case:1", r"Only a bundle knows.*fp_per_case:1.*score:<0 to 1>.*plan\.json"),
        ("sensitivity:0.9", "Only a bundle knows"),
        ("score:1.5", "score:<0 to 1>"),
        ("0.37", "score:<0 to 1>"),
    ],
)
def test_an_operating_point_that_no_file_states_is_refused(folders, point, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(*folders, operating_point=point)
    assert not folders[2].exists()


def test_an_operating_point_does_not_apply_to_masks_without_scores(folders, caplog):
    before = evaluate(*folders, replicates=5).scores
    (folders[1] / "a.nii.gz").unlink()
    with caplog.at_level(logging.WARNING):
        scores = evaluate(*folders, operating_point="score:0.9", replicates=5).scores
    assert "all their candidates stay accepted: b, c" in caplog.text
    assert scores["n_accepted"] == before["n_accepted"] - 2
    assert scores["operating_point"]["score"] is None
    assert scores["reasons"]["operating_point.score"]


def test_a_missing_prediction_is_named_and_its_lesions_are_missed(folders, caplog):
    (folders[1] / "b_mask.nii.gz").unlink()
    with caplog.at_level(logging.WARNING):
        scores = evaluate(*folders, replicates=5).scores
    assert scores["missing_predictions"] == ["b"]
    assert scores["n_missed"] == 3
    assert "missed: b" in caplog.text
    assert [row["status"] for row in rows(folders[2] / "cases.csv")] == ["ok", "missing", "ok"]
    assert {row["why_missed"] for row in rows(folders[2] / "lesions.csv")} == {"", "case_failed"}


def test_an_extra_prediction_is_named(folders, caplog):
    write_mask(folders[1] / "stranger.nii.gz", lesions(1))
    with caplog.at_level(logging.WARNING):
        assert evaluate(*folders, replicates=5).scores["n_cases"] == 3
    assert "not judged: stranger" in caplog.text


def test_another_grid_is_refused_and_nothing_is_written(folders):
    moved = Geometry(SHAPE, GEOMETRY.affine + np.array([[0, 0, 0, 5.0]] + [[0] * 4] * 3))
    write_mask(folders[1] / "a.nii.gz", lesions(2), moved)
    with pytest.raises(GeometryError) as error:
        evaluate(*folders)
    assert "a.nii.gz" in str(error.value)
    assert not folders[2].exists()


def test_folders_that_have_nothing_in_common_are_refused(folders):
    for path in sorted(folders[1].iterdir()):
        path.rename(path.with_name("other_" + path.name))
    with pytest.raises(DatasetError, match="name of a reference"):
        evaluate(*folders)


def test_groups_by_pattern(folders):
    scores = evaluate(*folders, groups="[abc]", replicates=5).scores
    assert scores["n_groups"] == 3
    for path in [*folders[0].iterdir(), *folders[1].iterdir()]:
        path.rename(path.with_name("one_" + path.name))
    assert evaluate(*folders, groups="one", replicates=5).scores["n_groups"] == 1
    with pytest.raises(DatasetError, match=r"does not fit.*\(in groups\)"):
        evaluate(*folders, groups="two")
    with pytest.raises(ConfigError, match=r"not a regular expression.*\(in groups\)"):
        evaluate(*folders, groups="(two")


def test_progress_is_told(folders):
    told = []
    evaluate(*folders, replicates=5, progress=lambda *step: told.append(step))
    assert told == [("a", 1, 3), ("b", 2, 3), ("c", 3, 3)]


def test_a_bar_is_drawn_unless_progress_is_told_elsewhere(folders, monkeypatch):
    drawn = []

    @contextmanager
    def bar(what):
        drawn.append(what)
        yield lambda *step: drawn.append(step[1:])

    monkeypatch.setattr("lesionseg.pipeline.evaluate.recipe.bar", bar)
    evaluate(*folders, replicates=5)
    assert drawn == ["Judging", (1, 3), (2, 3), (3, 3)]


def test_a_second_reader_is_judged_by_the_same_code_and_compared(folders):
    scores = evaluate(*folders, compare=folders[0], replicates=5).scores
    recall = scores["comparison"]["lesion_recall"]
    assert (recall["one"], recall["other"]) == (0.6, 1.0)
    assert "5 groups" in recall["reason"]
    beside = folders[2] / "compare"
    assert {row["detected"] for row in rows(beside / "lesions.csv")} == {"true"}
    assert (beside / "scores.json").is_file()


def test_verdicts_of_a_person_are_read_back(folders, tmp_path):
    evaluate(*folders, replicates=5)
    row = rows(folders[2] / "candidates.csv")[-1]
    path = tmp_path / "adjudicate.csv"
    names = ("case", "candidate", *(name for name in row if name.endswith("_vox")))
    cells = [*(row[name] for name in names), "lesion"]
    path.write_text(",".join((*names, "verdict")) + "\n" + ",".join(cells) + "\n")
    found = evaluate(*folders, adjudication=path, replicates=5).scores["adjudication"]
    assert (found["n_lesion"], found["n_stale"]) == (1, 0)
    assert found["by_reference"]["n_false_positive"] == 1
    assert found["adjudicated"]["n_false_positive"] == 0


def test_an_unknown_preset_is_refused(folders):
    with pytest.raises(ConfigError, match="no such preset"):
        evaluate(*folders, preset="luna")


def test_a_role_that_somebody_stated_is_kept(folders):
    assert (
        evaluate(*folders, evaluated_on="external", replicates=5).scores["evaluated_on"]
        == "external"
    )
    assert {row["role"] for row in rows(folders[2] / "cases.csv")} == {"external"}
    evaluate(*folders, replicates=5)
    assert {row["role"] for row in rows(folders[2] / "cases.csv")} == {"unknown"}


def test_a_mistyped_role_is_refused_and_nothing_is_written(folders):
    with pytest.raises(ConfigError, match=r"tets.*train, validation, test, external"):
        evaluate(*folders, evaluated_on="tets")
    assert not folders[2].exists()


def test_a_dataset_folder_as_reference(folders):
    root = folders[0].parent / "dataset"
    for name in "abc":
        image = np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32)
        (root / "imagesTr").mkdir(parents=True, exist_ok=True)
        write_volume(root / "imagesTr" / f"{name}_0000.nii.gz", Volume(image[None], GEOMETRY))
        write_mask(root / "labelsTr" / f"{name}.nii.gz", lesions("cab".index(name)))
    about = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "metastasis": 1},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(about))
    scores = evaluate(root, folders[1], folders[2], replicates=5).scores
    assert list(scores["per_label"]) == ["metastasis"]
    assert scores["n_lesions"] == 3
    assert rows(folders[2] / "lesions.csv")[0]["label"] == "metastasis"


def test_pairs_in_memory_need_no_files(tmp_path):
    pairs = [
        CasePair(
            c.name,
            lambda c=c: (make_reference(c), None),
            lambda _, c=c: make_prediction(c),
            role="test",
        )
        for c in HAND_CASES
    ]
    scoring = Scoring(PRESETS["lesionseg"], "test", replicates=20)
    results = judge_pairs(pairs, scoring.preset)
    scores = scoring.sum_up(results)
    scoring.write(tmp_path, results, scores)
    assert scores["n_true_positive"] == sum(c.tp for c in HAND_CASES)
    assert scores["n_false_positive"] == sum(c.fp for c in HAND_CASES)
    assert scores["n_missed"] == sum(c.fn for c in HAND_CASES)
    assert scores["n_ignored"] == sum(c.ignored for c in HAND_CASES)
    assert (tmp_path / "scores.json").is_file()


def test_sensitivity_and_false_positives_by_zone(folders, tmp_path):
    zones = np.ones(SHAPE, dtype=np.uint8)
    zones[:, 5:] = 2  # the first lesion lies in 1, the others in 2
    for case in "abc":
        write_mask(tmp_path / "zones" / f"{case}.nii.gz", zones)
    (tmp_path / "zones" / "names.json").write_text('{"front": 1, "back": 2}')
    scores = evaluate(*folders, replicates=20, zones=tmp_path / "zones").scores
    by_zone = {g["value"]: g for g in scores["subgroups"] if g["by"] == "zone"}
    counts = {name: (g["n_lesions"], g["detected"]) for name, g in by_zone.items()}
    assert counts == {"front": (2, 1), "back": (3, 2)}
    false = {name: g["false_positives_per_case"] for name, g in by_zone.items()}
    assert false == {"front": pytest.approx(1 / 3), "back": 0.0}
    assert (by_zone["front"]["n_cases"], by_zone["front"]["dice"]) == (3, None)
    assert sum(n for n, _ in counts.values()) == scores["n_lesions"]
    tables = {name: rows(folders[2] / f"{name}.csv") for name in ("lesions", "candidates")}
    assert [r["zone"] for r in tables["lesions"]] == ["front", "back", "front", "back", "back"]
    assert {r["zone"] for r in tables["candidates"]} == {"front", "back"}
    assert "subgroups" not in scores["reasons"]


def test_a_second_reader_is_judged_as_a_prediction_is(folders, tmp_path):
    reference, _, out = folders
    for case, found in (("a", [1]), ("b", [0, 1, 2])):  # who did not read c
        write_mask(tmp_path / "reader" / f"{case}.nii.gz", lesions(3, found))
    scores = evaluate(*folders, replicates=20, reader2=tmp_path / "reader").scores
    assert scores["n_true_positive"] == 3  # the model's own numbers stay
    (tmp_path / "both").mkdir()
    for case in "ab":
        (tmp_path / "both" / f"{case}.nii.gz").symlink_to(reference / f"{case}.nii.gz")
    alone = evaluate(tmp_path / "both", tmp_path / "reader", out, replicates=20).scores
    second = scores["second_reader"]
    assert (second["n_cases"], second["n_lesions"], second["n_true_positive"]) == (2, 5, 4)
    for key in ("lesion_recall", "recall_by_size", "recall_by_half"):
        assert second[key] == alone[key]
    assert second["false_positives_per_case"]["value"] == alone["false_positives_per_case"] == 0
    with pytest.raises(DatasetError, match="No prediction found"):
        evaluate(*folders, replicates=20, reader2=tmp_path)
