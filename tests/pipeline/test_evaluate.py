import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from lesionseg.config import ReportSection
from lesionseg.core import CaseFiles, Geometry, OperatingPoint, Volume
from lesionseg.errors import ConfigError, DatasetError, GeometryError
from lesionseg.io.files import read_csv, write_csv
from lesionseg.io.predictions import write_prediction
from lesionseg.io.volumes import write_volume
from lesionseg.pipeline.evaluate import of_role, open_references
from lesionseg.report.write import write_report
from tests.commands import evaluate
from tests.evaluation.hand_cases import prediction_of

SHAPE, SPACING = (10, 12, 14), (3.0, 1.0, 1.0)
GEOMETRY = Geometry.from_spacing(SHAPE, SPACING)
ABOUT = {
    "channel_names": {"0": "T1"},
    "labels": {"background": 0, "lesion": 1},
    "file_ending": ".nii.gz",
}


def write_mask(path, array, geometry=GEOMETRY):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, Volume(array.astype(np.uint8)[None], geometry))


def lesions(n, found=None):
    """n boxes; with `found`, only those, and moved by a voxel."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    for i in range(n) if found is None else found:
        mask[2:4, 1 + 4 * i : 4 + 4 * i, 2 + (found is not None) : 6 + (found is not None)] = 1
    return mask


def write_image(path, seed=0, geometry=GEOMETRY):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).normal(100, 10, geometry.shape).astype(np.float32)
    write_volume(path, Volume(image[None], geometry))


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


def test_bare_masks_of_another_program_and_tables_that_agree(folders):
    scores, out = evaluate(*folders, replicates=20).scores, folders[2]
    assert (scores["n_cases"], scores["n_lesions"], scores["n_lesion_free_cases"]) == (3, 5, 1)
    assert (scores["n_true_positive"], scores["n_missed"], scores["n_false_positive"]) == (3, 2, 1)
    assert scores["lesion_recall"]["value"] == 0.6
    assert scores["froc"]["recall"] is scores["cpm"]["value"] is None
    assert scores["evaluated_on"] == "unknown"  # nobody stated it
    assert json.loads((out / "scores.json").read_text()) == scores
    cases, found, candidates = (
        read_csv(out / f"{name}.csv") for name in ("cases", "lesions", "candidates")
    )
    assert [row["n_detected"] for row in cases] == ["2", "1", "0"]
    assert sum(row["detected"] == "true" for row in found) == 3
    assert [row["outcome"] for row in candidates].count("false_positive") == 1
    assert candidates[0]["score"] == cases[2]["dice"] == ""
    assert float(cases[0]["reference_ml"]) == pytest.approx(2 * 24 * 3 / 1000)


def test_our_own_files_bring_scores_and_their_operating_point(tmp_path):
    geometry = Geometry.from_spacing(SHAPE, SPACING)
    drawn = lesions(2).astype(np.int32)
    drawn[2:4, 5:8][drawn[2:4, 5:8] > 0] = 2
    prediction = prediction_of(drawn, (0.9, 0.3), geometry, accepted_from=0.5, case="a")
    point = OperatingPoint("score:0.5", 0.5)
    write_prediction(tmp_path / "prediction", replace(prediction, operating_point=point))
    write_mask(tmp_path / "reference" / "a.nii.gz", lesions(2))
    folders = (tmp_path / "reference", tmp_path / "prediction", tmp_path / "out")
    scores = evaluate(*folders, replicates=5).scores
    assert scores["n_true_positive"] == 1
    assert scores["operating_point"]["score"] == 0.5
    assert scores["froc"]["recall"] == [1.0] * 7
    lower = evaluate(*folders, operating_point="score:0.2", replicates=5).scores
    assert lower["n_true_positive"] == 2
    assert [row["detected_at"] for row in read_csv(tmp_path / "out" / "lesions.csv")] == [
        "0.9",
        "0.3",
    ]
    assert lower["operating_point"]["chosen_on"] is None
    number = evaluate(*folders, operating_point=0.2, replicates=5).scores
    assert number["operating_point"]["score"] == 0.2


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("operating_point", "fp_per_case:1"),
        ("operating_point", "score:1.5"),
        ("preset", "luna"),
        ("groups", "(two"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(folders, setting, value):
    with pytest.raises(ConfigError, match=setting if setting != "operating_point" else "score"):
        evaluate(*folders, **{setting: value})
    assert not (folders[2] / "scores.json").exists()


def test_an_operating_point_does_not_apply_to_masks_without_scores(folders, caplog):
    (folders[1] / "a.nii.gz").unlink()
    with caplog.at_level(logging.WARNING):
        scores = evaluate(*folders, operating_point="score:0.9", replicates=5).scores
    assert "all their candidates stay accepted: b, c" in caplog.text
    assert scores["operating_point"]["score"] is None
    assert scores["operating_point"]["reason"]


def test_a_missing_prediction_is_named_and_its_lesions_are_missed(folders, caplog):
    (folders[1] / "b_mask.nii.gz").unlink()
    write_mask(folders[1] / "stranger.nii.gz", lesions(1))
    told = []
    scores = evaluate(*folders, replicates=5, progress=lambda *step: told.append(step)).scores
    assert told == [("a", 1, 3), ("b", 2, 3), ("c", 3, 3)]
    assert "without a reference are left out: stranger" in caplog.text
    assert scores["missing_predictions"] == ["b"]
    assert scores["n_missed"] == 3
    assert "missed: b" in caplog.text
    assert [row["status"] for row in read_csv(folders[2] / "cases.csv")] == ["ok", "missing", "ok"]
    assert {row["why_missed"] for row in read_csv(folders[2] / "lesions.csv")} == {
        "",
        "case_failed",
    }


def test_folders_that_have_nothing_in_common_are_refused(folders):
    for path in sorted(folders[1].iterdir()):
        path.rename(path.with_name("other_" + path.name))
    with pytest.raises(DatasetError, match="other_a"):
        evaluate(*folders)


def test_groups_by_pattern(folders):
    assert evaluate(*folders, groups="[abc]", replicates=5).scores["n_groups"] == 3
    with pytest.raises(DatasetError, match="groups"):
        evaluate(*folders, groups="two")


def test_a_second_reader_is_scored_alike_and_compared(folders):
    scores = evaluate(*folders, compare=folders[0], replicates=5).scores
    recall = scores["comparison"]["lesion_recall"]
    assert (recall["one"], recall["other"]) == (0.6, 1.0)
    assert "5 groups" in recall["reason"]
    beside = folders[2] / "compare"
    assert {row["detected"] for row in read_csv(beside / "lesions.csv")} == {"true"}
    assert (beside / "scores.json").is_file()


def test_a_dataset_folder_as_reference(folders):
    root = folders[0].parent / "dataset"
    for name in "abc":
        write_image(root / "imagesTr" / f"{name}_0000.nii.gz")
        write_mask(root / "labelsTr" / f"{name}.nii.gz", lesions("cab".index(name)))
    labels = {"background": 0, "metastasis": 1}
    (root / "dataset.json").write_text(json.dumps({**ABOUT, "labels": labels}))
    scores = evaluate(root, folders[1], folders[2], replicates=5).scores
    assert list(scores["per_label"]) == ["metastasis"]
    assert scores["n_lesions"] == 3
    assert read_csv(folders[2] / "lesions.csv")[0]["label"] == "metastasis"


def test_sensitivity_and_false_positives_by_zone(folders, tmp_path):
    zones = np.ones(SHAPE, dtype=np.uint8)
    zones[:, 5:] = 2  # the first lesion lies in 1, the others in 2
    for case in "abc":
        write_mask(tmp_path / "zones" / f"{case}.nii.gz", zones)
    (tmp_path / "zones" / "names.json").write_text('{"front": 1, "back": 2}')
    scores = evaluate(*folders, replicates=20, zones=tmp_path / "zones").scores
    by_zone = {g["value"]: g for g in scores["subgroups"] if g["by"] == "zone"}
    counts = {name: (g["n_lesions"], g["n_detected"]) for name, g in by_zone.items()}
    assert counts == {"front": (2, 1), "back": (3, 2)}
    assert by_zone["front"]["false_positives_per_case"]["value"] == pytest.approx(1 / 3)
    assert by_zone["back"]["false_positives_per_case"]["value"] == 0.0
    assert (by_zone["front"]["n_cases"], by_zone["front"]["dice"]) == (3, None)
    zones_of = [row["zone"] for row in read_csv(folders[2] / "lesions.csv")]
    assert zones_of == ["front", "back", "front", "back", "back"]


# --- tables and grids ---

FINE = Geometry.from_spacing((30, 24, 28), (1.0, 0.5, 0.5))


def shifted(fine, coarse):
    """The fine grid so placed that its edges are those of the coarse one."""
    affine = fine.affine.copy()
    affine[:3, 3] += [(a - b) / 2 for a, b in zip(fine.spacing_mm, coarse.spacing_mm, strict=True)][
        ::-1
    ]
    return Geometry(fine.shape, affine)


def manifest(folders, extra="site"):
    """A dataset with a manifest around the reference masks."""
    root = folders[0].parent
    for name in "abc":
        write_image(root / "scans" / f"{name}.nii.gz")
    lines = [f"{n},scans/{n}.nii.gz,reference/{n}.nii.gz,{'NS'[n == 'b']}" for n in "abc"]
    (root / "manifest.csv").write_text("\n".join([f"case,image,reference,{extra}", *lines]))
    return root


def test_subgroups_by_a_column_of_the_manifest(folders):
    scores = evaluate(manifest(folders), *folders[1:], replicates=5).scores
    found = {row["value"]: row for row in scores["subgroups"]}
    assert {row["by"] for row in scores["subgroups"]} == {"site"}
    assert (found["N"]["n_cases"], found["N"]["n_lesions"], found["N"]["n_detected"]) == (2, 2, 2)
    assert (found["S"]["n_lesions"], found["S"]["n_detected"]) == (3, 1)
    assert found["N"]["false_positives_per_case"]["value"] == 0.5
    none = evaluate(manifest(folders), *folders[1:], subgroups=[], replicates=5).scores
    assert none["subgroups"] == []


def test_subgroups_by_a_table_beside_bare_folders(folders, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("case,scanner,sex\na,old,f\nb,new,m\nstranger,new,f\n")
    how = {"columns": table, "replicates": 5}
    found = evaluate(*folders, subgroups=["scanner"], **how).scores["subgroups"]
    counts = {row["value"]: row["n_cases"] for row in found}
    assert counts == {"new": 1, "old": 1, "not stated": 1}
    with pytest.raises(ConfigError, match="site"):
        evaluate(*folders, subgroups=["site"], **how)
    table.write_text("name,site\na,x\n")
    with pytest.raises(DatasetError, match="case"):
        evaluate(*folders, **how)


def finer(mask):
    return mask.repeat(3, 0).repeat(2, 1).repeat(2, 2)


def test_another_grid_is_refused_or_resampled(folders, caplog):
    before = evaluate(*folders, replicates=5).scores
    write_mask(folders[1] / "a.nii.gz", finer(lesions(2, [0, 1])), shifted(FINE, GEOMETRY))
    with pytest.raises(GeometryError) as error:
        evaluate(*folders)
    for part in ("(30, 24, 28)", "(10, 12, 14)", "a.nii.gz", "resample=true"):
        assert part in str(error.value)
    with caplog.at_level(logging.WARNING):
        after = evaluate(*folders, resample=True, replicates=5).scores
    assert "reference: a" in caplog.text
    assert (after["n_true_positive"], after["dice"]) == (before["n_true_positive"], before["dice"])


def test_resampled_candidates_keep_their_scores_and_are_measured_anew(folders):
    grid = shifted(FINE, GEOMETRY)
    drawn = finer(lesions(2, [0, 1])).astype(np.int32)
    drawn[:, 10:][drawn[:, 10:] > 0] = 2
    drawn[0, 0, 0] = 3  # finer than a voxel of the reference
    (folders[1] / "a.nii.gz").unlink()
    write_prediction(folders[1], prediction_of(drawn, (0.9, 0.4, 0.2), grid, case="a"))
    evaluate(*folders, resample=True, replicates=5)
    found = [row for row in read_csv(folders[2] / "candidates.csv") if row["case"] == "a"]
    assert [float(row["score"]) for row in found] == [0.9, 0.4, 0.2]
    assert [found[0][f"start_{axis}_vox"] for axis in "zyx"] == ["2.0", "1.0", "3.0"]
    assert [row["outcome"] for row in found] == ["true_positive"] * 2 + ["false_positive"]
    assert float(found[2]["volume_ml"]) == pytest.approx(0.003)  # one voxel of 3 mm³
    assert float(found[0]["diameter_mm"]) == pytest.approx((6 / np.pi * 24 * 3) ** (1 / 3))


def test_rasters_of_another_size_show_the_same_field(tmp_path):
    reference = np.zeros((12, 16), np.uint8)
    reference[2:6, 4:8] = 1
    paths = [tmp_path / name for name in ("reference", "prediction", "out")]
    double = reference.repeat(2, 0).repeat(2, 1)
    for path, mask in zip(paths, (reference, double), strict=False):
        write_mask(path / "a.png", mask, Geometry.from_spacing(mask.shape, (1, 1)))
    with pytest.raises(GeometryError, match="grid"):
        evaluate(*paths)
    scores = evaluate(*paths, resample=True, replicates=5).scores
    assert scores["dice"]["mean"] == scores["surface_dice"]["mean"] == 1.0
    assert scores["size_unit"] == "px"
    assert read_csv(paths[2] / "cases.csv")[0]["reference_ml"] == ""


# --- what others' folders hold ---


def test_candidates_without_masks_are_scored_by_their_boxes(folders, tmp_path):
    (tmp_path / "boxes").mkdir()  # as any program may write them
    entries = [
        {"score": 0.9, "start_vox": [2, 1, 2], "stop_vox": [4, 4, 6]},
        {"score": 0.2, "start_vox": [7, 7, 7], "stop_vox": [9, 9, 9]},
    ]
    (tmp_path / "boxes" / "a_candidates.json").write_text(json.dumps({"candidates": entries}))
    scores = evaluate(folders[0], tmp_path / "boxes", folders[2], replicates=5).scores
    assert (scores["n_true_positive"], scores["n_false_positive"]) == (1, 1)
    assert scores["missing_predictions"] == ["b", "c"]
    assert [row["dice"] for row in read_csv(folders[2] / "cases.csv")] == ["", "0.0", ""]


@pytest.mark.parametrize("which", [0, 1])
def test_an_empty_folder_is_an_error(folders, which):
    for path in folders[which].iterdir():
        path.unlink()
    with pytest.raises(DatasetError):
        evaluate(*folders)
    assert not folders[2].exists()


def test_answers_survive_the_walk_through_the_report(folders, tmp_path, caplog):
    before = evaluate(*folders, replicates=5).scores
    write_report(folders[2], tmp_path / "report", options=ReportSection.of(pdf=False))
    path = tmp_path / "report" / "adjudicate.csv"
    table = read_csv(path)
    assert len(table) == before["n_false_positive"] == 1
    write_csv(path, [{**row, "answer": "Lesion"} for row in table], list(table[0]))
    with caplog.at_level(logging.WARNING):
        after = evaluate(*folders, adjudication=path, replicates=5).scores["adjudication"]
    assert (after["n_lesion"], after["n_stale"], after["n_open"]) == (1, 0, 0)
    assert after["adjudicated"]["n_false_positive"] == 0
    assert after["adjudicated"]["n_lesions"] == before["n_lesions"] + 1


# --- roles and layouts ---

ROLES = {"a": None, "b": None, "c": "test", "d": "test"}


def chosen(roles, predicted, evaluated_on=None):
    cases = [CaseFiles(case, (), role=role) for case, role in roles.items()]
    return "".join(c.case for c in of_role(cases, predicted, evaluated_on))


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
def test_the_roles_asked_for_or_predicted(predicted, evaluated_on, expected):
    assert chosen(ROLES, predicted, evaluated_on) == expected
    assert chosen(dict.fromkeys("abcd"), predicted, evaluated_on) == "abcd"  # none is stated


def test_a_role_that_no_case_has_gives_empty_tables_and_a_page_that_says_so(
    folders, tmp_path, caplog
):
    table = manifest(folders, "role") / "manifest.csv"
    table.write_text(table.read_text().replace(",N", ",train").replace(",S", ",test"))
    how = {"evaluated_on": "validation", "compare": folders[1]}
    outcome = evaluate(table.parent, *folders[1:], **how)
    assert outcome.scores["n_cases"] == 0
    assert "it has test and train" in caplog.text
    page = write_report(folders[2], tmp_path / "page", images=table.parent).read_text()
    assert "No scan was evaluated" in page
    assert page.count("<b>–</b>") == 4
    assert (tmp_path / "page/report.pdf").is_file()


def test_predictions_of_the_test_part_alone(tmp_path, caplog):
    """Of nnU-Net raw, training cases are no misses, unless they are asked for."""
    root = tmp_path / "raw"
    for name, role in ROLES.items():
        part = "Ts" if role else "Tr"
        write_image(root / f"images{part}" / f"{name}_0000.nii.gz")
        write_mask(root / f"labels{part}" / f"{name}.nii.gz", lesions(1))
    (root / "dataset.json").write_text(json.dumps(ABOUT))
    for name in "cd":
        write_mask(tmp_path / "found" / f"{name}.nii.gz", lesions(1, [0]))

    def missing(**settings):
        scores = evaluate(root, tmp_path / "found", tmp_path / "out", replicates=5, **settings)
        return "".join(scores.scores["missing_predictions"]), scores.scores["evaluated_on"]

    assert missing() == ("", "test")  # imagesTs and labelsTs say so
    write_mask(tmp_path / "found" / "a.nii.gz", lesions(1, [0]))
    assert missing() == ("b", "unknown")
    caplog.clear()
    assert missing(evaluated_on="test") == ("", "test")
    assert "without a reference" not in caplog.text  # a has one, and is not scored
    assert missing(evaluated_on="train") == ("b", "train")


def test_a_bids_folder_is_a_reference_and_its_masks_alone_are_a_folder(tmp_path):
    root, name = tmp_path / "bids", "sub-01_ses-a"
    image = Volume(np.ones((1, *SHAPE), dtype=np.float32), GEOMETRY)
    for folder in (root / "sub-01" / "ses-a" / "anat", tmp_path / "found"):
        folder.mkdir(parents=True)
    write_volume(root / "sub-01" / "ses-a" / "anat" / f"{name}_FLAIR.nii.gz", image)
    place = root / "derivatives" / "lesions" / "sub-01" / "ses-a" / "anat"
    write_mask(place / f"{name}_label-lesion_mask.nii.gz", lesions(2))
    write_mask(tmp_path / "found" / f"{name}.nii.gz", lesions(2, [0]))
    scores = evaluate(root, tmp_path / "found", tmp_path / "out", replicates=5).scores
    assert (scores["n_lesions"], scores["n_true_positive"]) == (2, 1)
    assert scores["provenance"]["convention"] == "bids"
    assert open_references(place)[0] is None
