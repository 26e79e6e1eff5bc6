"""`follow` on small files: written tables, scores, and refused input."""

import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from benchmarks.phantoms.visits import VisitSettings, write_visit_phantoms
from lesionseg.core import Geometry, OperatingPoint
from lesionseg.errors import ConfigError, ContentError, DatasetError, GeometryError
from lesionseg.evaluation.scores import read_scores
from lesionseg.extras.follow.changes import ChangeRule, compare_visits
from lesionseg.extras.follow.dicom_report import find_reports, plan_report, write_change_report
from lesionseg.extras.follow.page import _find_visit_below_limit, _lesions_to_outline
from lesionseg.extras.follow.visits import VisitFiles, order_visits, visits_of_folders
from lesionseg.io.layouts.manifest import read_scan_list
from lesionseg.io.results.case import PredictionFiles, write_prediction
from lesionseg.io.text import read_csv, write_json
from lesionseg.io.volumes import read_geometry, read_volume
from lesionseg.pipeline import predict_case
from tests.commands import follow
from tests.evaluation.hand_cases import prediction_of
from tests.inference.networks import make_bright
from tests.io.dicom_files import GRIDS, write_dicom_file, write_patient_series
from tests.pipeline.cases import boxes, counts, write_array, write_scan

SHAPE = (16, 24, 24)
GRID = Geometry.from_spacing(SHAPE, (2, 1, 1))
FAR = Geometry(SHAPE, GRID.affine + np.eye(4, k=3) * 900)
OLD = (2, 2, 2, 5)
NEW = (9, 12, 12, 4)


def write_cubes(folder, case, *places, value=1, geometry=GRID):
    """Write a mask of cubes."""
    write_array(folder / f"{case}.nii.gz", boxes(SHAPE, *places, value=value), geometry)


@pytest.fixture
def visits(tmp_path):
    """Write two patients, one with a new lesion and one without lesions."""
    write_cubes(tmp_path / "before", "a", OLD)
    write_cubes(tmp_path / "after", "a_mask", OLD, NEW)
    for visit in ("before", "after"):
        write_cubes(tmp_path / visit, "b")
    write_cubes(tmp_path / "reference", "a", NEW)
    return tmp_path


@pytest.fixture
def hd():
    """Return highdicom. A test is skipped without the packages that write reports."""
    pytest.importorskip("lesionseg.extras.pacs")
    return pytest.importorskip("highdicom")


needs_reports = pytest.mark.usefixtures("hd")


def follow_visits(root, after="after", *, has_images=False, **settings):
    if has_images:
        settings |= {f"{visit}_images": root / f"{visit}_images" for visit in ("before", "after")}
    return follow(root / "before", root / after, root / "out", **settings)


def follow_folders(root, **settings):
    """Return the rows of the changes."""
    follow_visits(root, **settings)
    return read_csv(root / "out/changes.csv")


def follow_table(table, **settings):
    return follow(None, None, table.parent / "out", visits=table, **settings)


def pairs_of(root):
    """Return the rows of pairs.csv by case."""
    return {row["case"]: row for row in read_csv(root / "out/pairs.csv")}


def page_of(root):
    return (root / "out/follow.html").read_text(encoding="utf-8")


def test_changes_pairs_and_rule_are_written(visits, caplog):
    write_cubes(visits / "after", "c")
    outcome = follow_visits(visits)
    assert "one visit only: c" in caplog.text
    rows = read_csv(visits / "out/changes.csv")
    names = "case", "state", "lesion_before_1", "lesion_after_1"
    found = [tuple(row[name] for name in names) for row in rows]
    assert found == [("a", "new", "", "2"), ("a", "stable", "1", "1")]
    assert float(rows[0]["volume_after_ml"]) == pytest.approx(64 * 2 / 1000)
    pairs = pairs_of(visits)
    assert {case: row["new"] for case, row in pairs.items()} == {"a": "1", "b": "0"}
    assert {row["registered"] for row in pairs.values()} == {"headers"}
    assert not (visits / "out/scores.json").exists()
    assert outcome.summary()[1].split() == ["new", "1", "1", "0.50"]
    follow_visits(visits, reference=visits / "reference")
    scores = read_scores(visits / "out/scores.json")
    assert counts(scores, "n_lesions", "n_true_positive", "n_false_positive") == (1, 1, 0)


def test_page_counts_new_lesion_that_is_too_thin_to_be_sure(visits):
    thin = np.zeros(SHAPE, dtype=np.uint8)
    thin[5, 2:20, 2:20] = 1
    write_array(visits / "after/b.nii.gz", thin, GRID)
    follow_visits(visits)
    assert "1 new, 1 new or gone but too thin to be sure; 1 lesion stable" in page_of(visits)


def test_operating_point_allows_the_stated_rate_on_stable_pairs(visits):
    stable = [f"s{n}" for n in range(6)]  # each has a small false new lesion
    for name in stable:
        write_cubes(visits / "before", name)
        write_cubes(visits / "after", name, (2, 2, 2, 3))
    rows = follow_folders(visits, stable=stable, false_new_per_pair=0.0)
    # the true lesion is larger than the false ones, so it remains accepted
    accepted = {r["case"]: r["accepted"] for r in rows if r["state"] == "new"}
    assert accepted == {"a": "true", **dict.fromkeys(stable, "false")}
    rows = follow_folders(visits, stable=[*stable, "b"], false_new_per_pair=2.0)
    assert {r["accepted"] for r in rows if r["state"] == "new"} == {"true"}


def test_scores_are_not_optimistic_if_no_stable_pair_is_scored(visits, caplog):
    follow_folders(visits, stable="b", reference=visits / "reference")
    assert not read_scores(visits / "out/scores.json").is_point_chosen_here
    assert "too optimistic" not in caplog.text


def test_visits_on_different_grids_are_matched_by_their_headers(visits):
    """Use a later scan with voxels of half the size and another origin."""
    fine = np.kron(boxes(SHAPE, OLD), np.ones((2, 2, 2), np.uint8))[2:]
    affine = GRID.affine @ np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] += GRID.affine[:3, :3] @ [0.75, -0.25, -0.25]
    write_array(visits / "fine/a.nii.gz", fine, Geometry(fine.shape, affine))
    (row,) = follow_folders(visits, after="fine", register="headers")
    assert row["state"] == "stable"
    assert float(row["volume_after_ml"]) == pytest.approx(float(row["volume_before_ml"]))


def test_earlier_lesion_outside_the_later_scan_does_not_shift_the_others(tmp_path):
    large = Geometry.from_spacing((24, 24, 24), (2, 1, 1))
    shift = np.eye(4)
    shift[0, 3] = 8  # the later scan begins eight slices higher
    small = Geometry(SHAPE, large.affine @ shift)
    drawn = boxes(large.shape, (1, 2, 2, 5), (12, 2, 2, 5))
    write_array(tmp_path / "before/a.nii.gz", drawn, large)
    write_cubes(tmp_path / "after", "a", (4, 2, 2, 5), geometry=small)
    (row,) = follow_folders(tmp_path)
    assert (row["state"], row["lesion_before_1"], row["lesion_after_1"]) == ("stable", "2", "1")


def test_radiographs_of_two_visits_are_compared_in_millimetres(tmp_path):
    for visit, pixel_mm, side in (("before", 0.2, 10), ("after", 0.1, 20)):
        mask = np.zeros((64, 64), np.uint8)
        mask[10 : 10 + side, 10 : 10 + side] = 1
        write_array(tmp_path / visit / "a.png", mask, Geometry.from_spacing((64, 64), (1, 1)))
        scan = Geometry.from_spacing((64, 64), (pixel_mm, pixel_mm))
        write_scan(tmp_path / f"{visit}_images" / "a.nii.gz", scan, seed=0)
    (row,) = follow_folders(tmp_path, has_images=True, register="headers")
    assert row["state"] == "stable"
    assert float(row["diameter_after_mm"]) == pytest.approx(4 / np.sqrt(np.pi), rel=0.01)


def test_scans_with_contradicting_headers_are_registered_and_drawn(tmp_path):
    """The earlier header is moved by 15 mm, and the scans have NaN around the head."""
    settings = VisitSettings(shape=(24, 40, 40), spacing_mm=(2, 2, 2))
    write_visit_phantoms(tmp_path, 1, settings, seed=4)
    for name in ("before", "before_images", "after_images"):
        path = tmp_path / name / "simulated_000.nii.gz"
        volume = read_volume(path)
        array = volume.array[0]
        if name != "before":
            array = np.where(array > 30, array, np.nan).astype(np.float32)
        shift = np.eye(4)
        shift[0, 3] = 0 if name == "after_images" else 15
        write_array(path, array, volume.geometry.move(shift))
    rows = follow_folders(tmp_path, has_images=True)
    assert sum(row["state"] == "stable" for row in rows) >= 6
    (pair,) = pairs_of(tmp_path).values()
    assert pair["registered"] == "rigid"
    assert float(pair["foreground_dice"]) > 0.9
    page = page_of(tmp_path)
    assert page.count("data:image/jpeg") == sum(row["accepted"] == "true" for row in rows) > 0
    assert "simulated_000" not in page
    follow_folders(tmp_path, has_images=True, register="headers", identifiers=True)
    assert "simulated_000" in page_of(tmp_path)


def test_a_poor_registration_is_refused(tmp_path):
    """Register a head to a small block."""
    settings = VisitSettings(shape=(16, 32, 32), spacing_mm=(2, 2, 2))
    write_visit_phantoms(tmp_path, 1, settings)
    block = np.zeros(settings.shape, dtype=np.float32)
    block[7:9, 4:28, 14:18] = 100
    grid = Geometry.from_spacing(settings.shape, settings.spacing_mm)
    write_array(tmp_path / "after_images/simulated_000.nii.gz", block, grid)
    with pytest.raises(GeometryError, match="registration is poor"):
        follow_folders(tmp_path, has_images=True, register="rigid")


def write_damaged_mask(root):
    write_cubes(root / "before", "c", OLD)
    (root / "after/c.nii.gz").write_bytes(b"damaged")


def write_other_names(root):
    for visit, labels in (("before", {1: "mass", 2: "nodule"}), ("after", {1: "nodule"})):
        prediction = prediction_of(boxes(SHAPE, OLD).astype(np.int32), [0.9], GRID, case="c")
        write_prediction(root / visit, replace(prediction, labels=labels))


def write_lost_header(root, visit):
    lost = Geometry.from_spacing(SHAPE, (1, 1, 1))  # as np.eye(4) in nibabel; GRID has 2 mm in z
    for folder in ("before", "after"):
        write_cubes(root / folder, "c", OLD, geometry=lost if folder == visit else GRID)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (write_damaged_mask, r"c\.nii\.gz"),
        (write_other_names, "label 1 is 'mass'"),
        (partial(write_lost_header, visit="before"), "^.*before/c.*header of the scan was lost"),
        (partial(write_lost_header, visit="after"), "^.*after/c.*header of the scan was lost"),
    ],
)
def test_only_the_pair_that_cannot_be_compared_fails(visits, caplog, write, words):
    write(visits)
    outcome = follow_visits(visits, stable=["b", "c"])
    assert (outcome.n_pairs, len(outcome.failed), outcome.exit_status) == (2, 1, 3)
    pairs = pairs_of(visits)
    assert pairs["a"]["new"] == "1"
    assert re.search(words, pairs["c"]["message"])
    assert "Not followed, c:" in caplog.text
    assert "do not choose the operating point" in caplog.text
    assert "not in these numbers: case 3." in page_of(visits)
    with pytest.raises(DatasetError, match=r"(?s)no stable pair can be compared.*c: "):
        follow_visits(visits, stable="c")


PLACES = (OLD, NEW, (2, 14, 2, 5))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1, 2, 3), (2, 3, 1)),  # instance ids numbered anew
        ((1, 1), (1, 2)),  # one of two lesions relabelled
    ],
)
@pytest.mark.parametrize("shift", [0, 1])
def test_lesion_with_another_label_at_the_same_place_is_not_gone_and_new(
    before, after, shift, visits
):
    for visit, values, dz in (("before", before, 0), ("after", after, shift)):
        mask = np.zeros(SHAPE, dtype=np.uint8)
        for (z, *place), value in zip(PLACES, values, strict=False):
            mask |= boxes(SHAPE, (z + dz, *place), value=value)
        write_array(visits / visit / "c.nii.gz", mask, GRID)
    outcome = follow_visits(visits)
    assert (outcome.n_pairs, outcome.exit_status) == (2, 3)
    assert "different labels" in pairs_of(visits)["c"]["message"]
    assert follow_visits(visits, merge_labels=True).exit_status == 0
    pair = pairs_of(visits)["c"]
    assert (pair["stable"], pair["new"], pair["gone"]) == (str(len(before)), "0", "0")


def test_adjacent_lesions_of_different_labels_may_be_gone_and_new(visits):
    """Let a lesion grow beside two that stay, while another label disappears beside one of them."""
    for visit, places in (("before", (OLD,)), ("after", (NEW,))):
        mask = boxes(SHAPE, *places) + boxes(SHAPE, (2, 7, 2, 5), (9, 8, 12, 4), value=2)
        write_array(visits / "d" / visit / "d.nii.gz", mask.astype(np.uint8), GRID)
    rows = follow_folders(visits / "d")
    assert [row["state"] for row in rows] == ["new", "stable", "stable", "gone"]


def test_labels_may_differ_if_no_lesion_is_at_the_same_place(visits):
    write_cubes(visits / "before", "c", OLD, value=255)
    write_cubes(visits / "after", "c", NEW)
    assert follow_visits(visits).exit_status == 0
    assert (pairs_of(visits)["c"]["gone"], pairs_of(visits)["c"]["new"]) == ("1", "1")


def test_visits_of_equal_shape_may_have_other_spacings(visits):
    for folder, spacing in (("before", (2, 1, 1)), ("after", (2, 1.2, 1.2))):
        write_cubes(visits / folder, "c", OLD, geometry=Geometry.from_spacing(SHAPE, spacing))
    outcome = follow_visits(visits)
    assert (outcome.n_pairs, outcome.exit_status) == (3, 0)


def test_reasons_are_printed_once_if_no_pair_can_be_compared(visits, caplog):
    for case in ("c", "d"):
        write_cubes(visits / "values/before", case, OLD, value=255)
        write_cubes(visits / "values/after", case, OLD)
    with pytest.raises(DatasetError, match=r"(?s)Case c: .*Case d: "):
        follow_folders(visits / "values")
    assert "different labels" not in caplog.text


@pytest.mark.parametrize(
    ("after", "settings", "error", "words"),
    [
        ("others", {}, DatasetError, "no case in common"),
        ("two", {}, ContentError, r"different labels: before \[1\], after \[2\]"),
        ("far", {}, GeometryError, "do not overlap in space"),
        ("after", {"register": "affine"}, ConfigError, "register"),
        ("after", {"before_images": "."}, ConfigError, "after_images"),
        ("after", {"register": "rigid"}, DatasetError, "(?s)a has no scan.*b has no scan"),
        ("after", {"stable": ["c"]}, ConfigError, "these are not pairs: c"),
        ("after", {"reference": "others"}, DatasetError, "reference of change"),
    ],
)
def test_bad_input_is_refused_with_its_name(visits, after, settings, error, words, monkeypatch):
    monkeypatch.chdir(visits)
    write_cubes(visits / "others", "z")
    write_cubes(visits / "two", "a", OLD, value=2)
    write_cubes(visits / "far", "a", OLD, geometry=FAR)
    with pytest.raises(error, match=words):
        follow_folders(visits, after=after, **settings)
    assert not (visits / "out").exists()


@pytest.mark.parametrize("has_images", [False, True])
def test_boxes_without_masks_are_not_compared(tmp_path, has_images):
    box = {"score": 0.9, "start_vox": [2, 2, 2], "stop_vox": [6, 6, 6]}
    for visit in ("before", "after"):
        (tmp_path / visit).mkdir()
        write_json(tmp_path / visit / "a_candidates.json", {"candidates": [box]})
        write_scan(tmp_path / f"{visit}_images" / "a.nii.gz", GRID)
    with pytest.raises(ContentError, match="boxes without masks"):
        follow_visits(tmp_path, has_images=has_images)


def read_report(hd, path):
    """Return the changes of the candidates in a report, and its last comment."""
    report = hd.sr.srread(path)
    groups = report.content.get_volumetric_roi_measurement_groups()
    named = [item for group in groups for item in group.get_qualitative_evaluations()]
    states = [x.value.meaning for x in named if x.name.meaning == "Change since the earlier visit"]
    comments = [item.value for item in report.iterall() if item.keyword == "TextValue"]
    return sorted(states), comments[-1]


def test_dicom_report_contains_states_and_both_volumes(hd, tmp_path):
    """Follow DICOM series with one stable, one gone and one new lesion."""
    for visit, places in {"before": [(0, 0, 0, 2), (0, 2, 4, 2)], "after": [(0, 0, 0, 2)]}.items():
        mask = boxes((5, 4, 6), *places)
        mask[3:, 1:, 3:] |= visit == "after"
        write_series_and_mask(tmp_path, visit, "P1", mask)
    follow_folders(tmp_path, has_images=True)
    path = tmp_path / "out/P1_scan_sr.dcm"
    states, comment = read_report(hd, path)
    assert states == ["New", "Stable"]
    assert "Gone since: 0.009 ml." in comment
    report = hd.sr.srread(path)
    names = [item.value for item in report.iterall() if item.keyword == "CodeMeaning"]
    assert "Volume at the earlier visit" in names
    assert "Score of the model" not in names, "masks have no scores"
    assert report.PatientID == "77-1"


def test_dicom_report_lists_new_and_gone_lesions_that_are_too_thin(hd, tmp_path):
    """Write a new lesion of score 0.75 and a gone one, each on one slice."""
    found = {}
    for visit, y in (("before", 0), ("after", 3)):
        scan = write_patient_series(tmp_path / f"{visit}_images" / "P1", GRIDS["axial"])
        drawn = np.zeros((5, 4, 6), np.int32)
        drawn[2, y, 1:4] = 1
        found[visit] = prediction_of(drawn, [0.75], read_geometry(scan), case="P1_scan")
        write_prediction(tmp_path / visit, found[visit])
    rows = follow_folders(tmp_path, has_images=True)
    states = [(row["state"], row["accepted"], row["score"]) for row in rows]
    assert states == [("new", "false", "0.75"), ("gone", "false", "")]
    states, comment = read_report(hd, tmp_path / "out/P1_scan_sr.dcm")
    assert states == ["New"]
    assert "ml (too thin to be sure). New but too thin to be sure: candidate 1." in comment
    # at an operating point above its score the new lesion is left out
    visits = compare_visits("P1_scan", found["before"], found["after"], ChangeRule())
    later = VisitFiles("P1_scan", PredictionFiles("P1_scan"), scan)
    planned = plan_report(find_reports([later]), later, tmp_path / "high")
    write_change_report(planned, visits.after, visits.changes, OperatingPoint("high", 0.9))
    states, comment = read_report(hd, tmp_path / "high/P1_scan_sr.dcm")
    assert states == []
    assert "New" not in comment


def write_series_and_mask(folder, visit, patient, mask, **elements):
    """Write a DICOM series and a mask of a patient's visit."""
    scan = write_patient_series(folder / f"{visit}_images" / patient, GRIDS["axial"], **elements)
    write_array(folder / visit / f"{patient}_scan.nii.gz", mask, read_geometry(scan))


def write_visits_of(folder, *patients, **elements):
    """Write a DICOM series and a mask with one lesion for both visits of the patients."""
    mask = boxes((5, 4, 6), (0, 0, 0, 2))
    for visit in ("before", "after"):
        for patient in patients:
            write_series_and_mask(folder, visit, patient, mask, **elements)


@needs_reports
@pytest.mark.parametrize("obstacle", ["prediction", "another study", "another series"])
def test_report_of_another_scan_is_not_replaced(tmp_path, obstacle, caplog):
    write_visits_of(tmp_path, "P1", "P2")
    out = tmp_path / "out"
    case = "P1_scan"
    stated = {"candidates": [], "source": {"digest": "aa", "series_uid": "1.99"}}
    if obstacle == "another study":
        path = out / f"{case}_sr.dcm"
        write_dicom_file(path, None, "1.2.3", Modality="SR", StudyInstanceUID="1.99")
    else:
        path = (out if obstacle == "prediction" else tmp_path / "after") / f"{case}_candidates.json"
        write_json(path, stated)
    before = path.read_bytes()
    assert follow_visits(tmp_path, has_images=True).exit_status == 3
    assert case in caplog.text
    assert path.read_bytes() == before
    assert (out / f"{case}_sr.dcm").is_file() == (obstacle == "another study")
    assert (out / "P2_scan_sr.dcm").is_file()


def test_without_the_extra_that_writes_reports_there_is_one_sentence(tmp_path, monkeypatch, caplog):
    def lack(_):
        raise ConfigError("pacs: this installation lacks the extra.")

    write_visits_of(tmp_path, "P1", "P2")
    monkeypatch.setattr("lesionseg.extras.follow.dicom_report.find_extra", lack)
    for dicom_output in (True, False):
        caplog.clear()
        outcome = follow_visits(tmp_path, has_images=True, dicom_output=dicom_output)
        assert (outcome.n_pairs, outcome.exit_status) == (2, 0)
        assert caplog.text.count("lacks the extra") == dicom_output
    assert not list((tmp_path / "out").glob("*_sr.dcm"))


@needs_reports
def test_scan_that_changes_while_its_pair_is_compared_gets_no_report(tmp_path, monkeypatch):
    """While P1 is compared, its folder gets the series of another patient on the same grid."""
    write_visits_of(tmp_path, "P1", "P2")

    def compare(case, *args):
        if case == "P1_scan":
            write_patient_series(tmp_path / "after_images/P1", GRIDS["axial"], PatientID="other")
        return compare_visits(case, *args)

    monkeypatch.setattr("lesionseg.extras.follow.pairs.compare_visits", compare)
    assert follow_visits(tmp_path, has_images=True).exit_status == 3
    assert [file.name for file in (tmp_path / "out").glob("*_sr.dcm")] == ["P2_scan_sr.dcm"]
    assert "scan changed while it was read" in pairs_of(tmp_path)["P1_scan"]["message"]


@needs_reports
def test_pair_whose_headers_allow_no_report_is_compared(tmp_path):
    write_visits_of(tmp_path, "P1", SOPInstanceUID=None)
    assert [row["state"] for row in follow_folders(tmp_path, has_images=True)] == ["stable"]
    (pair,) = pairs_of(tmp_path).values()
    assert pair["message"].startswith("No DICOM report: ")
    assert not (tmp_path / "out/P1_scan_sr.dcm").exists()


# --- visits from a table: order, prediction before the comparison, refused tables ---

VISITS = {
    "base": ("2023-01-20", [OLD]),
    "m12": ("2024-01-31", [OLD, NEW]),
    "m6": ("2023-07-01", []),
}


def write_table(root, *lines):
    (root / "visits.csv").write_text("\n".join(["case,image,group,visit", *lines]))
    return root / "visits.csv"


@pytest.fixture
def timeline(tmp_path):
    """Write a patient with three visits and a new lesion, and a patient with one visit."""
    rng = np.random.default_rng(0)
    for name, (_, places) in VISITS.items():
        mask = boxes(SHAPE, *places)
        image = rng.normal(100, 3, SHAPE) + 70 * mask
        write_array(tmp_path / f"{name}.nii.gz", image.astype(np.float32), GRID)
        write_array(tmp_path / f"masks/{name}.nii.gz", mask, GRID)
    write_array(tmp_path / "masks/once.nii.gz", mask, GRID)
    lines = [f"{name},{name}.nii.gz,P1,{when}" for name, (when, _) in VISITS.items()]
    return write_table(tmp_path, *lines, "once,base.nii.gz,P2,2023-01-01")


def read_and_order(path):
    return order_visits(read_scan_list(path), path)


def test_each_visit_is_compared_with_the_previous_visit(timeline, tmp_path, caplog):
    masks = tmp_path / "masks"
    outcome = follow_table(timeline, predictions=masks)
    assert (outcome.n_pairs, outcome.exit_status) == (2, 0)
    states = [(row["case"], row["state"]) for row in read_csv(tmp_path / "out/changes.csv")]
    assert states == [("m6", "gone"), ("m12", "new"), ("m12", "new")]
    names = "earlier", "earlier_visit", "case", "visit"
    order = [tuple(row[name] for name in names) for row in pairs_of(tmp_path).values()]
    assert order == [
        ("base", "2023-01-20", "m6", "2023-07-01"),
        ("m6", "2023-07-01", "m12", "2024-01-31"),
    ]
    assert "no other visit: once" in caplog.text
    for name in ("m6", "m12"):
        (masks / f"{name}.nii.gz").unlink()
    with pytest.raises(DatasetError, match="predictions of two visits"):
        follow_table(timeline, predictions=masks)


def test_scores_are_optimistic_if_a_stable_pair_is_of_a_scored_patient(timeline, tmp_path, caplog):
    write_cubes(tmp_path / "reference", "m12", OLD, NEW)
    settings = {"predictions": tmp_path / "masks", "reference": tmp_path / "reference"}
    follow_table(timeline, stable=["m6"], **settings)
    assert read_scores(tmp_path / "out/scores.json").is_point_chosen_here
    assert "(m12)" in caplog.text


@pytest.fixture
def used():
    """Return a list that will contain the settings of each prediction of `bright`."""
    return []


@pytest.fixture
def bright(bundle, monkeypatch, used):
    """Return a bundle whose network finds bright voxels."""
    make_predictor = predict_case.make_predictor

    def make_bright_predictor(cfg, _):
        used.append(cfg)
        return make_predictor(cfg, {"mine": make_bright})

    monkeypatch.setattr(predict_case, "make_predictor", make_bright_predictor)
    return bundle


def test_bundle_predicts_the_visits_before_they_are_compared(timeline, tmp_path, bright, used):
    rows = timeline.read_text().splitlines()
    lines = write_table(tmp_path, rows[1], rows[2], "lost,nowhere.nii.gz,P1,2025-01-01")
    settings = {"inference": {"overlap": 0.25, "flips": True}, "device": "cpu", "trust": True}
    outcome = follow_table(lines, bundle=bright, **settings)
    (cfg,) = used
    inference = cfg.inference
    assert (inference.overlap, inference.flips, cfg.device, cfg.trust) == (0.25, True, "cpu", True)
    assert (outcome.n_pairs, outcome.exit_status) == (1, 3)
    assert [c.state for c in outcome.changes if c.accepted].count("new") == 1
    rows = read_csv(tmp_path / "out/predictions/predictions.csv")
    study = {row["case"]: row for row in rows}
    assert study["lost"]["status"] == "failed"
    assert (study["m12"]["group"], study["m12"]["visit"]) == ("P1", "2024-01-31")


@needs_reports
def test_dicom_output_applies_to_the_predictions_too(tmp_path, bright):
    for name in ("v1", "v2"):
        write_patient_series(tmp_path / name, GRIDS["axial"])
    table = write_table(tmp_path, "v1,v1/scan,P1,1", "v2,v2/scan,P1,2")
    follow_table(table, bundle=bright, dicom_output=False)
    assert not list((tmp_path / "out").rglob("*.dcm"))


def test_reasons_are_named_if_no_visit_could_be_predicted(tmp_path, bright):
    table = write_table(tmp_path, "v1,v1.nii,P1,1", "v2,v2.nii,P1,2")
    for name in ("v1", "v2"):
        (tmp_path / f"{name}.nii").write_bytes(b"damaged")
    with pytest.raises(DatasetError, match=r"(?s)No pair can be followed.*v1: .*v2: "):
        follow_table(table, bundle=bright)


def test_visit_whose_prediction_fails_is_not_compared_by_its_earlier_mask(
    timeline, tmp_path, bright
):
    assert follow_table(timeline, bundle=bright).n_pairs == 2
    image = read_volume(tmp_path / "m6.nii.gz").array[0]
    write_array(tmp_path / "m6.nii.gz", image + 1, GRID)  # `predict` replaces no other result
    outcome = follow_table(timeline, bundle=bright)
    assert (outcome.n_pairs, len(outcome.failed), outcome.exit_status) == (1, 1, 3)
    pairs = pairs_of(tmp_path)
    assert pairs["m12"]["earlier"] == "base"
    assert "Name another output." in pairs["m6"]["message"]
    assert "overwrite" not in pairs["m6"]["message"]  # a setting that `follow` lacks


def test_stable_visit_whose_prediction_fails_is_no_wrong_setting(
    timeline, tmp_path, bright, caplog
):
    (tmp_path / "m6.nii.gz").write_bytes(b"damaged")
    outcome = follow_table(timeline, bundle=bright, stable=["m6", "m12"])
    assert (outcome.n_pairs, outcome.exit_status) == (1, 3)
    assert "m6: it or its earlier visit has no prediction" in caplog.text
    with pytest.raises(ConfigError, match="these are not pairs: m7"):
        follow_table(timeline, bundle=bright, stable="m7")


@pytest.mark.parametrize(
    "times",
    [
        ("2024-06-01", "20240531", "2023-12-31"),
        ("2024-06-01", "240531", "20231231.0"),
        ("2024-06-01T10:00", "2024-06-01T09:00", "2024-06-01"),
        ("000105", "991231", "980101"),
        ("10", "9.5", "9"),
        ("12.5", "1.9", "0.5"),
        ("2023", "12", "007"),
    ],
)
def test_visits_are_ordered_by_date_or_number(times, tmp_path):
    lines = [f"{case},{case}.nii,P,{when}" for case, when in zip("abc", times, strict=True)]
    visits, (single,) = read_and_order(write_table(tmp_path, *lines, "d,d.nii,Q,"))
    assert [files.case for files in visits] == ["c", "b", "a"]
    assert single.case == "d"


DATES_OF_OTHER_FORMS = (
    "31052023 05312023 053123 20231301 202305 10000 99999 123456789 31052023.0 "
    "05.2023 5.2023 12.1999 31.05 1.10 05.31 2023-5-31 2023-31-05 31.05.2023 -1 M6"
)


@pytest.mark.parametrize(
    "visits",
    [
        "P,first P,second",
        "P,2 P,2",
        "P,1 P,",
        "P,1 Q,2",
        "P,240531 P,2024-05-31",
        "P,2024.9 P,2024.10",
        *(f"P,1 P,{text}" for text in DATES_OF_OTHER_FORMS.split()),
        *(f"P,20000101 P,{text}" for text in DATES_OF_OTHER_FORMS.split()),
    ],
)
def test_table_without_order_or_second_visit_is_refused(visits, tmp_path):
    lines = (f"{case},{case}.nii,{when}" for case, when in zip("ab", visits.split(), strict=True))
    with pytest.raises(DatasetError, match=r"cannot be ordered|no patient has two visits"):
        read_and_order(write_table(tmp_path, *lines))


def test_incomplete_or_contradicting_arguments_are_refused(tmp_path):
    both = {"before": "b", "after": "a", "visits": "v.csv", "predictions": "p"}
    for given in ({}, {"visits": "v.csv"}, {"before": "b"}, both):
        with pytest.raises(ConfigError, match="give before= and after="):
            follow(output=tmp_path / "out", **{"before": None, "after": None, **given})
    images = {"before_images": "b", "after_images": "a"}
    with pytest.raises(ConfigError, match="the table names the scans"):
        follow(None, None, tmp_path / "out", visits="v.csv", predictions="p", **images)
    with pytest.raises(ConfigError, match="needs bundle="):
        follow("b", "a", tmp_path / "out", operating_point="score:0.9")


def test_scans_in_subfolders_are_paired_by_their_whole_path(tmp_path, caplog):
    for visit in ("before", "after"):
        for patient in ("p1", "p2"):
            write_cubes(tmp_path / visit, f"{patient}_scan", OLD)
            write_cubes(tmp_path / f"{visit}_images" / patient, "scan", OLD)
    folders = [tmp_path / name for name in ("before", "after", "before_images", "after_images")]
    pairs = visits_of_folders(*folders)
    scans = [visit.image.relative_to(tmp_path).as_posix() for pair in pairs for visit in pair]
    assert scans == [
        f"{v}_images/{p}/scan.nii.gz" for p in ("p1", "p2") for v in ("before", "after")
    ]
    assert "no scan with the name" not in caplog.text


def test_candidate_below_the_limit_at_one_visit_is_outlined_and_named():
    small = boxes(SHAPE, (2, 2, 2, 3)).astype(np.int32)
    large = boxes(SHAPE, (2, 2, 2, 8)).astype(np.int32)
    before = prediction_of(small, [0.2], GRID, accepted_from=0.5, case="c")
    after = prediction_of(large, [0.9], GRID, accepted_from=0.5, case="c")
    pair = compare_visits("c", before, after, ChangeRule())
    (change,) = pair.changes
    assert change.state == "enlarged"
    assert _lesions_to_outline(pair.before, [change.lesion_before]).sum() == 27
    assert not _lesions_to_outline(pair.before, []).any()
    assert _find_visit_below_limit(pair, change) == "earlier"
