"""Prediction files: round trips, files of other programs, and invalid files."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from lesionseg.core import Candidate, Geometry, InputCheckResult, OperatingPoint, Prediction, Volume
from lesionseg.errors import ContentError, GeometryError, OutputError, ReadError
from lesionseg.io.results.case import write_prediction
from lesionseg.io.results.index import find_predictions
from lesionseg.io.text import read_json, write_json
from lesionseg.io.volumes import write_volume

FIELDS = (
    "candidates",
    "case",
    "operating_point",
    "has_scores",
    "removed",
    "input",
    "n_left_out",
    "labels",
)


def _make_candidate(number, geometry, index, **changes):
    one = Candidate.from_voxels(number, 2, 1 / (1 + number), np.array([index]), geometry)
    return replace(one, **{"diameter_mm": 1.5, "probability": 0.125, **changes})


def _make_prediction(geometry, **changes):
    """Make a prediction with an accepted candidate at the first voxel and another at the last."""
    first = (0,) * geometry.dims
    last = tuple(n - 1 for n in geometry.shape)
    instances = np.zeros(geometry.shape, np.int32)
    instances[first] = 1
    instances[last] = 2
    second = _make_candidate(2, geometry, last, accepted=False, probability=None)
    point = OperatingPoint("fp_per_case:1", 0.4, "validation", 0.75, 1.0)
    candidates = (_make_candidate(1, geometry, first), second)
    prediction = Prediction("A", geometry, candidates, instances, operating_point=point)
    return replace(prediction, **changes)


@pytest.fixture
def written(tmp_path, oblique):
    """Write the prediction of the case A with its two candidates. Return the folder."""
    write_prediction(tmp_path, _make_prediction(oblique))
    return tmp_path


def _read(folder, geometry=None):
    return find_predictions(folder)["A"].read(geometry=geometry)


def _check_round_trip(folder, prediction, geometry=None, suffix=".nii.gz"):
    like = None if suffix == ".nii.gz" else Path(f"scan{suffix}")
    write_prediction(folder, prediction, like=like)
    again = _read(folder, geometry)
    np.testing.assert_array_equal(again.instances, prediction.instances)
    assert again.geometry.matches(prediction.geometry, 1e-4)
    for name in FIELDS:
        assert getattr(again, name) == getattr(prediction, name)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_volume_survives_a_round_trip(tmp_path, oblique, suffix):
    _check_round_trip(tmp_path, _make_prediction(oblique), suffix=suffix)
    names = {"A_candidates.json", f"A_instances{suffix}", f"A_mask{suffix}"}
    assert {f.name for f in tmp_path.iterdir()} == names


def test_all_that_a_prediction_states_survives_a_round_trip(tmp_path, oblique):
    removed = _make_candidate(1, oblique, (2, 3, 4), has_mask=False, accepted=False)
    prediction = _make_prediction(
        oblique,
        n_left_out=17,
        removed=(removed,),
        input=InputCheckResult(2.5, "Another grid.", ("T1",)),
        labels={1: "mass", 2: "nodule"},
    )
    _check_round_trip(tmp_path, prediction)
    assert read_json(tmp_path / "A_candidates.json")["labels"] == {"1": "mass", "2": "nodule"}


def test_prediction_without_candidates_survives_a_round_trip(tmp_path, oblique):
    empty = Prediction("A", oblique, (), np.zeros(oblique.shape, np.int32))
    _check_round_trip(tmp_path, empty)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_picture_survives_a_round_trip(tmp_path, suffix):
    # the origin and the shape of the pixels come from the geometry, as a PNG does not state them
    plane = Geometry((6, 9), np.array([[0, -0.2, 5], [-0.25, 0, 7], [0, 0, 1]]))
    _check_round_trip(tmp_path / "flat", _make_prediction(plane), plane, suffix=suffix)
    assert (tmp_path / "flat" / "A_mask.png").is_file()
    with Image.open(tmp_path / "flat" / "A_instances.png") as image:
        assert image.mode == "I;16"


def test_files_have_the_documented_content(written, oblique):
    content = read_json(written / "A_candidates.json")
    keys = "id label score probability start_vox stop_vox centre_mm diameter_mm volume_ml"
    assert set(content["candidates"][0]) == {*keys.split(), "has_mask", "accepted"}
    assert content["shape"] == list(oblique.shape)
    mask = np.asarray(nibabel.load(written / "A_mask.nii.gz").dataobj).T
    assert (np.argwhere(mask).tolist(), mask[0, 0, 0], mask.dtype) == ([[0, 0, 0]], 2, np.uint8)


def test_ids_beyond_16_bits_survive_a_round_trip(tmp_path):
    geometry = Geometry.from_spacing((1, 1, 2), (1, 1, 1))
    candidates = (_make_candidate(70000, geometry, (0, 0, 1)),)
    instances = np.array([[[0, 70000]]], np.int32)
    _check_round_trip(tmp_path, Prediction("A", geometry, candidates, instances))
    assert nibabel.load(tmp_path / "A_instances.nii.gz").get_data_dtype() == np.int32


def test_boxes_survive_a_round_trip_only_with_the_grid_of_their_scan(tmp_path, oblique):
    candidates = (_make_candidate(1, oblique, (0, 0, 0), has_mask=False),)
    boxes = _make_prediction(oblique, instances=None, candidates=candidates)
    _check_round_trip(tmp_path, boxes, oblique)
    assert [f.name for f in tmp_path.iterdir()] == ["A_candidates.json"]
    with pytest.raises(ReadError, match=r"A_candidates\.json"):
        _read(tmp_path)
    larger = Geometry.from_spacing([n + 1 for n in oblique.shape], (1, 1, 1))
    with pytest.raises(GeometryError, match=r"A_candidates\.json: the candidates belong to a scan"):
        _read(tmp_path, larger)


def test_nan_score_is_an_error_and_not_written(tmp_path, oblique):
    broken = _make_candidate(1, oblique, (0, 0, 0), score=float("nan"))
    with pytest.raises(OutputError, match=r"A_candidates\.json"):
        write_prediction(tmp_path, _make_prediction(oblique, instances=None, candidates=(broken,)))


def test_case_id_that_cannot_be_a_file_name_is_an_error(tmp_path, oblique):
    with pytest.raises(OutputError, match="file name"):
        write_prediction(tmp_path, _make_prediction(oblique, case="../A"))


@pytest.mark.parametrize("name", ["A_mask.nii.gz", "A.nii.gz"])
def test_masks_without_candidates_give_unscored_candidates(tmp_path, oblique, name):
    """Read two voxels that touch at a corner as one candidate, and another label as another."""
    mask = np.zeros((1, 3, 4, 5), np.uint8)
    mask[0, 0, 0, 0] = mask[0, 1, 1, 1] = 1
    mask[0, 1, 1, 2] = 3
    write_volume(tmp_path / name, Volume(mask, oblique))
    prediction = _read(tmp_path)
    assert not prediction.has_scores
    found = [(c.id, c.label, c.score, c.has_mask) for c in prediction.candidates]
    assert found == [(1, 1, 1.0, True), (2, 3, 1.0, True)]
    first = prediction.candidates[0]
    assert (first.start_vox, first.stop_vox) == ((0, 0, 0), (2, 2, 2))
    np.testing.assert_allclose(first.centre_mm, oblique.to_mm([[0.5, 0.5, 0.5]])[0], atol=1e-4)
    volume_mm3 = 2 * 0.7 * 1.1 * 3.3
    assert first.volume_ml == pytest.approx(volume_mm3 / 1000, rel=1e-5)
    assert first.diameter_mm == pytest.approx((6 * volume_mm3 / np.pi) ** (1 / 3), rel=1e-5)
    np.testing.assert_array_equal(prediction.mask(), mask[0])
    write_volume(tmp_path / name, Volume(0 * mask, oblique))
    assert _read(tmp_path).candidates == ()


def test_instances_without_candidates_stay_separate(tmp_path, write_nifti):
    """Read two touching instances. Ids become consecutive, and labels come from the mask."""
    ids = np.zeros((5, 4, 3), np.int32)
    ids[:2, 0, 0] = (12, 5)
    write_nifti(tmp_path / "A_instances.nii.gz", ids)
    prediction = _read(tmp_path)
    assert [(c.id, c.label) for c in prediction.candidates] == [(1, 1), (2, 1)]
    assert prediction.instances[0, 0, :2].tolist() == [2, 1]
    write_nifti(tmp_path / "A_mask.nii.gz", np.where(ids == 5, 3, 0).astype(np.uint8))
    assert [c.label for c in _read(tmp_path).candidates] == [3, 1]


def test_candidates_with_only_boxes_and_scores_are_completed(tmp_path):
    first = {"score": 0.2, "start_vox": [0, 0, 0], "stop_vox": [1, 1, 1]}
    second = {"score": 0.9, "start_vox": [2, 2, 2], "stop_vox": [4, 5, 8]}
    write_json(tmp_path / "A_candidates.json", {"candidates": [first, second]})
    prediction = _read(tmp_path, Geometry.from_spacing((10, 10, 10), (3, 2, 1)))
    assert prediction.has_scores
    assert [c.id for c in prediction.candidates] == [2, 1]
    best = prediction.candidates[0]
    assert (best.label, best.accepted, best.has_mask) == (1, True, False)
    assert best.centre_mm == (4.5, 6.0, 7.5)
    assert best.diameter_mm == pytest.approx(6)  # sides of 6 mm each


WRONG_VALUES = [
    ("score", 1.5),
    ("score", None),
    ("score", True),
    ("start_vox", [0, 0]),
    ("stop_vox", [0, 1, 1]),
    ("stop_vox", "1 1 1"),
    ("centre_mm", [0]),
    ("id", 0),
    ("label", 0.5),
    ("diameter_mm", "big"),
    ("id", 2),
]


def _edit_json(folder, change):
    """Change the content of a candidate file by a function."""
    path = folder / "A_candidates.json"
    content = read_json(path)
    change(content)
    write_json(path, content)


@pytest.mark.parametrize(("key", "value"), WRONG_VALUES, ids=str)
def test_error_names_an_invalid_value_of_a_candidate(written, oblique, key, value):
    _edit_json(written, lambda content: content["candidates"][0].update({key: value}))
    with pytest.raises((ContentError, ReadError), match=rf"A_candidates\.json.*{key}"):
        _read(written, oblique)


WRONG_FILES = [
    "{",
    "[]",
    '{"candidates": [3]}',
    '{"candidates": [{"score": NaN}]}',
    '{"candidates": [], "removed": "all"}',
    '{"candidates": [], "input_check": {"warning": 3}}',
    '{"candidates": [], "schema_version": 9}',
    '{"candidates": [], "operating_point": {}}',
    '{"candidates": [], "n_left_out": "x"}',
]


@pytest.mark.parametrize("text", WRONG_FILES)
def test_invalid_candidate_file_is_an_error(written, oblique, text):
    (written / "A_candidates.json").write_text(text)
    with pytest.raises((ContentError, ReadError), match=r"A_candidates\.json"):
        _read(written, oblique)


def test_label_of_a_candidate_without_a_name_is_an_error(tmp_path, oblique):
    write_prediction(tmp_path, _make_prediction(oblique, labels={1: "mass"}))
    with pytest.raises(ContentError, match=r"A_candidates\.json: labels has no name for .* 2"):
        _read(tmp_path)


@pytest.mark.parametrize("name", ["A_instances.nii.gz", "A_mask.nii.gz"])
def test_error_about_the_grid_of_the_scan_names_the_scan(written, oblique, name):
    affine = oblique.affine.copy()
    affine[0, 3] += 2
    moved = Geometry(oblique.shape, affine)
    values = np.zeros((1, *oblique.shape), np.uint8)
    for other in ("A_instances.nii.gz", "A_mask.nii.gz"):
        write_volume(written / other, Volume(values, moved if other != name else oblique))
    with pytest.raises(GeometryError, match=rf"{name} and the scan .*2 mm apart"):
        _read(written, moved)


def test_instance_without_a_candidate_is_an_error(written):
    _edit_json(written, lambda content: content["candidates"].pop())
    with pytest.raises(ContentError, match=r"\[2\]"):
        _read(written)


@pytest.mark.parametrize(
    ("value", "index", "n_lesions"),
    [(1, (2, 2, 2), 2), (0, (0, 0, 0), 0)],
    ids=["added", "removed"],
)
@pytest.mark.parametrize("with_regions", [False, True])
def test_edited_mask_next_to_instances_is_an_error(
    tmp_path, oblique, value, index, n_lesions, with_regions
):
    """Without the error, the scores would be those of the mask before a reader corrected it."""
    regions = np.full(oblique.shape, 3, np.uint8) if with_regions else None
    prediction = _make_prediction(oblique, values=regions)
    write_prediction(tmp_path, prediction)
    _read(tmp_path)
    mask = prediction.mask()
    mask[index] = value
    write_volume(tmp_path / "A_mask.nii.gz", Volume(mask[np.newaxis], oblique))
    with pytest.raises(ContentError, match=r"A_mask\.nii\.gz: this mask was edited.*copy it"):
        _read(tmp_path)
    _remove(tmp_path, "instances", "candidates", "regions")
    assert len(_read(tmp_path).candidates) == n_lesions


def _remove(folder, *kinds):
    """Remove the files of a kind, if there are any."""
    for kind in kinds:
        for file in folder.glob(f"A_{kind}.*"):
            file.unlink()


@pytest.mark.parametrize("kind", ["mask", "regions"])
def test_region_values_above_255_do_not_become_other_regions(tmp_path, oblique, kind):
    values = np.ones(oblique.shape, np.uint8)
    write_prediction(tmp_path, _make_prediction(oblique, values=values))
    values = np.full((1, *oblique.shape), 257, np.uint16)  # 257 is 1 in 8 bits
    write_volume(tmp_path / f"A_{kind}.nii.gz", Volume(values, oblique))
    _remove(tmp_path, *(("mask",) if kind == "regions" else ("instances", "candidates", "regions")))
    files = find_predictions(tmp_path)["A"]
    assert np.unique(files.read(geometry=oblique, binary=True).values).tolist() == [257]


def test_mask_of_a_program_that_states_no_accepted_candidates_is_not_compared(written):
    _edit_json(written, lambda content: [e.pop("accepted") for e in content["candidates"]])
    assert len(_read(written).candidates) == 2  # the mask contains one of them


def test_warning_names_a_mask_that_is_not_used(written, caplog):
    (written / "A_instances.nii.gz").unlink()
    assert _read(written).instances is None
    assert "A_mask.nii.gz: this mask is not used, because A_instances.* is missing" in caplog.text


def test_mask_and_instances_on_different_grids_are_an_error(written, write_nifti):
    write_nifti(written / "A_mask.nii.gz", np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(GeometryError, match=r"A_mask\.nii\.gz and A_instances\.nii\.gz"):
        _read(written)
