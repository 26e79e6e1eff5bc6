"""Prediction files: round trips, files of other programs, and invalid files."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from PIL import Image

from lesionseg.core import Candidate, Geometry, InputCheckResult, OperatingPoint, Prediction, Volume
from lesionseg.errors import ContentError, DatasetError, GeometryError, OutputError, ReadError
from lesionseg.io.predictions import (
    PredictionFiles,
    find_masks,
    find_predictions,
    read_prediction,
    write_prediction,
)
from lesionseg.io.volumes import write_volume

FIELDS = (
    "candidates",
    "case",
    "operating_point",
    "has_scores",
    "removed",
    "input",
    "n_left_out",
)


def _candidate(number, geometry, index, **changes):
    one = Candidate.from_voxels(number, 2, 1 / (1 + number), np.array([index]), geometry)
    return replace(one, **{"diameter_mm": 1.5, "probability": 0.125, **changes})


def _prediction(geometry, **changes):
    """Make a prediction with an accepted candidate at the first voxel and another at the last."""
    instances, first = np.zeros(geometry.shape, np.int32), (0,) * geometry.dims
    last = tuple(n - 1 for n in geometry.shape)
    instances[first], instances[last] = 1, 2
    second = _candidate(2, geometry, last, accepted=False, probability=None)
    point = OperatingPoint("fp_per_case:1", 0.4, "validation", 0.75, 1.0)
    candidates = (_candidate(1, geometry, first), second)
    made = Prediction("A", geometry, candidates, instances, operating_point=point)
    return replace(made, **changes)


def _read(folder, geometry=None):
    return read_prediction(find_predictions(folder)["A"], geometry=geometry)


def _check_round_trip(folder, prediction, geometry=None, **settings):
    write_prediction(folder, prediction, **settings)
    again = _read(folder, geometry)
    np.testing.assert_array_equal(again.instances, prediction.instances)
    assert again.geometry.matches(prediction.geometry, 1e-4)
    for name in FIELDS:
        assert getattr(again, name) == getattr(prediction, name)


def test_number_of_candidates_left_out_survives_a_round_trip(tmp_path, oblique):
    _check_round_trip(tmp_path, _prediction(oblique, n_left_out=17))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_volume_and_picture_survive_a_round_trip(tmp_path, oblique, suffix):
    _check_round_trip(tmp_path, _prediction(oblique), suffix=suffix)
    names = {"A_candidates.json", f"A_instances{suffix}", f"A_mask{suffix}"}
    assert {f.name for f in tmp_path.iterdir()} == names
    gone = _candidate(1, oblique, (2, 3, 4), has_mask=False, accepted=False)
    said = InputCheckResult(2.5, "Another grid.", ("T1",))
    _check_round_trip(tmp_path, _prediction(oblique, removed=(gone,), input=said), suffix=suffix)
    empty = Prediction("A", oblique, (), np.zeros(oblique.shape, np.int32))
    _check_round_trip(tmp_path, empty, suffix=suffix)
    # a PNG states none of this: a plane as ITK writes it, off the origin, of pixels not square
    plane = Geometry((6, 9), np.array([[0, -0.2, 5], [-0.25, 0, 7], [0, 0, 1]]))
    _check_round_trip(tmp_path / "flat", _prediction(plane), plane, suffix=suffix)
    assert (tmp_path / "flat" / "A_mask.png").is_file()
    with Image.open(tmp_path / "flat" / "A_instances.png") as image:
        assert image.mode == "I;16"


def test_files_have_the_documented_content(tmp_path, oblique):
    write_prediction(tmp_path, _prediction(oblique))
    content = json.loads((tmp_path / "A_candidates.json").read_text())
    keys = "id label score probability start_vox stop_vox centre_mm diameter_mm volume_ml"
    assert set(content["candidates"][0]) == {*keys.split(), "has_mask", "accepted"}
    mask = np.asarray(nibabel.load(tmp_path / "A_mask.nii.gz").dataobj).T
    assert (np.argwhere(mask).tolist(), mask[0, 0, 0], mask.dtype) == ([[0, 0, 0]], 2, np.uint8)
    geometry = Geometry.from_spacing((1, 1, 2), (1, 1, 1))  # more ids than 16 bits hold
    candidates = (_candidate(70000, geometry, (0, 0, 1)),)
    _check_round_trip(
        tmp_path, Prediction("A", geometry, candidates, np.array([[[0, 70000]]], np.int32))
    )
    assert nibabel.load(tmp_path / "A_instances.nii.gz").get_data_dtype() == np.int32


def test_boxes_need_a_grid_and_nan_scores_are_not_written(tmp_path, oblique):
    candidates = (_candidate(1, oblique, (0, 0, 0), has_mask=False),)
    boxes = _prediction(oblique, instances=None, candidates=candidates)
    _check_round_trip(tmp_path, boxes, oblique)
    assert [f.name for f in tmp_path.iterdir()] == ["A_candidates.json"]
    with pytest.raises(ReadError, match=r"A_candidates\.json"):
        _read(tmp_path)
    broken = _candidate(1, oblique, (0, 0, 0), score=float("nan"))
    with pytest.raises(OutputError, match=r"A_candidates\.json"):
        write_prediction(tmp_path, _prediction(oblique, instances=None, candidates=(broken,)))
    with pytest.raises(OutputError, match="file name"):
        write_prediction(tmp_path, _prediction(oblique, case="../A"))


@pytest.mark.parametrize("name", ["A_mask.nii.gz", "A.nii.gz"])
def test_masks_without_candidates_give_unscored_candidates(tmp_path, oblique, name):
    """Two voxels that touch at a corner are one candidate. Another label is another candidate."""
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
    diameter_mm = 2 * (3 * volume_mm3 / (4 * np.pi)) ** (1 / 3)
    assert first.diameter_mm == pytest.approx(diameter_mm, rel=1e-5)
    np.testing.assert_array_equal(prediction.mask(), mask[0])
    write_volume(tmp_path / name, Volume(np.zeros_like(mask), oblique))
    assert _read(tmp_path).candidates == ()


def test_instances_without_candidates_stay_separate(tmp_path, write_nifti):
    """Two touching instances stay separate. Ids become consecutive, labels come from the mask."""
    ids = np.zeros((5, 4, 3), np.int32)
    ids[0, 0, 0], ids[1, 0, 0] = 12, 5
    write_nifti(tmp_path / "A_instances.nii.gz", ids)
    prediction = _read(tmp_path)
    assert [(c.id, c.label) for c in prediction.candidates] == [(1, 1), (2, 1)]
    assert prediction.instances[0, 0, :2].tolist() == [2, 1]
    write_nifti(tmp_path / "A_mask.nii.gz", np.where(ids == 5, 3, 0).astype(np.uint8))
    assert [c.label for c in _read(tmp_path).candidates] == [3, 1]


def test_candidates_with_only_boxes_and_scores_are_completed(tmp_path):
    first = {"score": 0.2, "start_vox": [0, 0, 0], "stop_vox": [1, 1, 1]}
    second = {"score": 0.9, "start_vox": [2, 2, 2], "stop_vox": [4, 5, 8]}
    (tmp_path / "A_candidates.json").write_text(json.dumps({"candidates": [first, second]}))
    prediction = _read(tmp_path, Geometry.from_spacing((10, 10, 10), (3, 2, 1)))
    best = prediction.candidates[0]
    assert [c.id for c in prediction.candidates] == [2, 1]
    assert (best.label, best.accepted, best.has_mask) == (1, True, False)
    assert best.centre_mm == (4.5, 6.0, 7.5)
    assert best.diameter_mm == pytest.approx(6)  # sides of 6 mm each
    assert prediction.has_scores


WRONG = [
    *({"score": score} for score in (1.5, None, True)),
    *({"start_vox": [0, 0]}, {"stop_vox": [0, 1, 1]}, {"stop_vox": "1 1 1"}, {"centre_mm": [0]}),
    *({"id": 0}, {"label": 0.5}, {"diameter_mm": "big"}, {"id": 2}),
]
BEGIN = '{"candidates": []'
NO_CANDIDATES = [
    *("{", "[]", '{"candidates": [3]}', '{"candidates": [{"score": NaN}]}'),
    *(BEGIN + ', "removed": "all"}', BEGIN + ', "input_check": {"warning": 3}}'),
    *(BEGIN + ', "schema_version": 9}', BEGIN + ', "operating_point": {}}'),
    BEGIN + ', "n_left_out": "x"}',
]


@pytest.mark.parametrize("change", [*WRONG, *NO_CANDIDATES], ids=str)
def test_invalid_candidates_are_an_error(tmp_path, oblique, change):
    write_prediction(tmp_path, _prediction(oblique))
    path, named = tmp_path / "A_candidates.json", ""
    if isinstance(change, dict):
        content, (named,) = json.loads(path.read_text()), change
        content["candidates"][0].update(change)
        change = json.dumps(content)
    path.write_text(change)
    with pytest.raises((ContentError, ReadError), match=rf"A_candidates\.json.*{named}"):
        _read(tmp_path, oblique)


def test_files_that_do_not_fit_together_are_an_error(tmp_path, oblique, write_nifti):
    write_prediction(tmp_path, _prediction(oblique))
    moved = oblique.affine.copy()
    moved[0, 3] += 2
    with pytest.raises(GeometryError, match="2 mm apart"):
        _read(tmp_path, Geometry(oblique.shape, moved))
    path = tmp_path / "A_candidates.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "candidates": content["candidates"][:1]}))
    with pytest.raises(ContentError, match=r"\[2\]"):  # an id without candidate
        _read(tmp_path)
    write_nifti(tmp_path / "A_mask.nii.gz", np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(GeometryError, match=r"A_mask\.nii\.gz and A_instances\.nii\.gz"):
        _read(tmp_path)


def _touch(folder, names):
    for name in names.split():
        (folder / name).touch()


def test_finding_sorts_files_into_cases(tmp_path):
    _touch(tmp_path, "B_mask.png A_mask.nii.gz A_instances.nii.gz A_candidates.json C.nrrd")
    _touch(tmp_path, "D_candidates.json predictions.csv dataset.json .E.nii a_seg.dcm")
    found = find_predictions(tmp_path)
    assert list(found) == ["A", "B", "C", "D"]
    names = ("mask.nii.gz", "instances.nii.gz", "candidates.json")
    assert found["A"] == PredictionFiles("A", *(tmp_path / f"A_{n}" for n in names))
    assert found["C"] == PredictionFiles("C", mask=tmp_path / "C.nrrd")
    assert found["D"] == PredictionFiles("D", candidates=tmp_path / "D_candidates.json")
    masks = {"A": "A_mask.nii.gz", "B": "B_mask.png", "C": "C.nrrd"}
    assert find_masks(tmp_path) == {case: tmp_path / name for case, name in masks.items()}


@pytest.mark.parametrize("find", [find_masks, find_predictions])
def test_two_masks_of_a_case_and_empty_or_missing_folders_are_an_error(tmp_path, find):
    for folder in (tmp_path / "gone", tmp_path):
        with pytest.raises(DatasetError):
            find(folder)
    _touch(tmp_path, "A_mask.nii.gz A.nii.gz")
    with pytest.raises(DatasetError, match=r"A_mask\.nii\.gz.*same case"):
        find(tmp_path)
    (tmp_path / "A.nii.gz").rename(tmp_path / "a\nb_mask.nii.gz")
    with pytest.raises(DatasetError, match="invisible"):
        find(tmp_path)
