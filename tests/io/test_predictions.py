"""Predictions on disk: ours come back, others' are understood, broken ones refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from lesionseg.core import Candidate, Geometry, InputVerdict, OperatingPoint, Prediction, Volume
from lesionseg.errors import ContentError, DatasetError, GeometryError, OutputError, ReadError
from lesionseg.io.predictions import (
    PredictionFiles,
    find_masks,
    find_predictions,
    read_prediction,
    write_prediction,
)
from lesionseg.io.volumes import write_volume

Write = Callable[..., Path]


def _candidate(
    number: int, geometry: Geometry, index: tuple[int, ...], **changes: Any
) -> Candidate:
    one = Candidate(
        id=number,
        label=2,
        score=1 / (1 + number),
        start_vox=tuple(float(i) for i in index),
        stop_vox=tuple(float(i + 1) for i in index),
        centre_mm=tuple(float(v) for v in geometry.to_mm([index])[0]),
        diameter_mm=1.5,
        volume_ml=0.25 if geometry.dims == 3 else None,
        probability=0.125,
    )
    return replace(one, **changes)


def _prediction(geometry: Geometry) -> Prediction:
    """Candidate 1 accepted at the first voxel, candidate 2 not, at the last."""
    instances = np.zeros(geometry.shape, np.int32)
    last = tuple(n - 1 for n in geometry.shape)
    instances[(0,) * geometry.dims], instances[last] = 1, 2
    return Prediction(
        case="A",
        geometry=geometry,
        candidates=(
            _candidate(1, geometry, (0,) * geometry.dims),
            _candidate(2, geometry, last, accepted=False, probability=None),
        ),
        instances=instances,
        voxel_threshold=0.4,
        operating_point=OperatingPoint("fp_per_case:1", 0.4, "validation", 0.75, 1.0),
    )


def _same(a: Prediction, b: Prediction) -> None:
    assert a.candidates == b.candidates
    assert (a.case, a.voxel_threshold, a.operating_point, a.scored) == (
        b.case,
        b.voxel_threshold,
        b.operating_point,
        b.scored,
    )
    assert a.geometry.matches(b.geometry, 1e-4)
    np.testing.assert_array_equal(a.instances, b.instances)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_a_volume_comes_back(tmp_path: Path, oblique: Geometry, suffix: str) -> None:
    prediction = _prediction(oblique)
    write_prediction(tmp_path, prediction, suffix=suffix)
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(
        ["A_candidates.json", f"A_instances{suffix}", f"A_mask{suffix}"]
    )
    _same(read_prediction(find_predictions(tmp_path)["A"]), prediction)


def test_a_raster_comes_back_as_png(tmp_path: Path) -> None:
    prediction = _prediction(Geometry.from_spacing((6, 9), (0.2, 0.2)))
    write_prediction(tmp_path, prediction)
    assert (tmp_path / "A_mask.png").is_file()
    with Image.open(tmp_path / "A_instances.png") as image:
        assert image.mode == "I;16"
    files = find_predictions(tmp_path)["A"]
    _same(read_prediction(files, geometry=prediction.geometry), prediction)
    _same(read_prediction(files, raster_mm=0.2), prediction)


def test_the_candidate_file_holds_what_is_promised(tmp_path: Path, oblique: Geometry) -> None:
    write_prediction(tmp_path, _prediction(oblique))
    content = json.loads((tmp_path / "A_candidates.json").read_text())
    assert list(content) == [
        "schema_version",
        "case",
        "size_unit",
        "voxel_threshold",
        "operating_point",
        "candidates",
    ]
    assert content["schema_version"] == 1
    assert set(content["candidates"][0]) == {
        "id",
        "label",
        "score",
        "probability",
        "start_vox",
        "stop_vox",
        "centre_mm",
        "diameter_mm",
        "volume_ml",
        "has_mask",
        "accepted",
    }


def test_the_mask_holds_labels_of_accepted_candidates(tmp_path: Path, oblique: Geometry) -> None:
    write_prediction(tmp_path, _prediction(oblique))
    mask = np.asarray(nibabel.load(tmp_path / "A_mask.nii.gz").dataobj).T
    assert mask.dtype == np.uint8
    assert np.argwhere(mask).tolist() == [[0, 0, 0]]
    assert mask[0, 0, 0] == 2


def test_a_prediction_of_nothing_comes_back(tmp_path: Path, oblique: Geometry) -> None:
    empty = Prediction("A", oblique, (), np.zeros(oblique.shape, np.int32), 0.5)
    write_prediction(tmp_path, empty)
    _same(read_prediction(find_predictions(tmp_path)["A"]), empty)


def test_what_was_said_of_the_scan_comes_back(tmp_path: Path, oblique: Geometry) -> None:
    for said in (None, InputVerdict(0.5), InputVerdict(2.5, "Another grid."), InputVerdict()):
        write_prediction(tmp_path, replace(_prediction(oblique), input=said))
        assert read_prediction(find_predictions(tmp_path)["A"]).input == said
    path = tmp_path / "A_candidates.json"
    path.write_text(path.read_text().replace('"warning": ""', '"warning": 3'))
    with pytest.raises(ContentError, match=r"input_check.warning"):
        read_prediction(find_predictions(tmp_path)["A"])


def test_more_ids_than_16_bits(tmp_path: Path) -> None:
    geometry = Geometry.from_spacing((1, 1, 2), (1, 1, 1))
    instances = np.array([[[0, 70000]]], np.int32)
    write_prediction(
        tmp_path, Prediction("A", geometry, (_candidate(70000, geometry, (0, 0, 1)),), instances)
    )
    assert nibabel.load(tmp_path / "A_instances.nii.gz").get_data_dtype() == np.int32
    back = read_prediction(find_predictions(tmp_path)["A"]).instances
    np.testing.assert_array_equal(back, instances)


def test_boxes_alone_write_no_mask_and_need_a_grid(tmp_path: Path, oblique: Geometry) -> None:
    boxes = replace(
        _prediction(oblique),
        instances=None,
        candidates=(_candidate(1, oblique, (0, 0, 0), has_mask=False),),
    )
    write_prediction(tmp_path, boxes)
    assert [f.name for f in tmp_path.iterdir()] == ["A_candidates.json"]
    files = find_predictions(tmp_path)["A"]
    back = read_prediction(files, geometry=oblique)
    assert back.candidates == boxes.candidates
    assert back.instances is None
    with pytest.raises(ReadError, match=r"A_candidates\.json.* the scan\'s grid"):
        read_prediction(files)


def test_a_case_id_with_a_folder_in_it_is_refused(tmp_path: Path, oblique: Geometry) -> None:
    with pytest.raises(OutputError, match="file name"):
        write_prediction(tmp_path, replace(_prediction(oblique), case="../A"))


def test_scores_that_are_no_numbers_are_not_written(tmp_path: Path, oblique: Geometry) -> None:
    broken = _candidate(1, oblique, (0, 0, 0), score=float("nan"))
    with pytest.raises(OutputError, match=r"A_candidates\.json"):
        write_prediction(tmp_path, Prediction("A", oblique, (broken,), None))


@pytest.mark.parametrize("name", ["A_mask.nii.gz", "A.nii.gz"])
def test_bare_masks_give_unscored_candidates(tmp_path: Path, oblique: Geometry, name: str) -> None:
    """Two voxels that touch at a corner are one candidate, another label is another."""
    mask = np.zeros((1, 3, 4, 5), np.uint8)
    mask[0, 0, 0, 0] = mask[0, 1, 1, 1] = 1
    mask[0, 1, 1, 2] = 3
    write_volume(tmp_path / name, Volume(mask, oblique))
    prediction = read_prediction(find_predictions(tmp_path)["A"])
    assert not prediction.scored
    assert [(c.id, c.label, c.score, c.has_mask) for c in prediction.candidates] == [
        (1, 1, 1.0, True),
        (2, 3, 1.0, True),
    ]
    first = prediction.candidates[0]
    assert (first.start_vox, first.stop_vox) == ((0, 0, 0), (2, 2, 2))
    np.testing.assert_allclose(first.centre_mm, oblique.to_mm([[0.5, 0.5, 0.5]])[0], atol=1e-4)
    volume_mm3 = 2 * 0.7 * 1.1 * 3.3
    assert first.volume_ml == pytest.approx(volume_mm3 / 1000, rel=1e-5)
    assert first.diameter_mm == pytest.approx(
        2 * (3 * volume_mm3 / (4 * np.pi)) ** (1 / 3), rel=1e-5
    )
    np.testing.assert_array_equal(prediction.mask(), mask[0])


def test_an_empty_bare_mask_is_a_prediction_of_nothing(tmp_path: Path, write_nifti: Write) -> None:
    write_nifti(tmp_path / "A.nii.gz", np.zeros((5, 4, 3), np.uint8))
    prediction = read_prediction(find_predictions(tmp_path)["A"])
    assert prediction.candidates == ()
    assert prediction.instances is not None
    assert not prediction.instances.any()


def test_instances_without_candidates_keep_their_cut(tmp_path: Path, write_nifti: Write) -> None:
    """Two instances that touch stay two; ids become consecutive, labels come from the mask."""
    ids = np.zeros((5, 4, 3), np.int32)
    ids[0, 0, 0], ids[1, 0, 0] = 12, 5
    write_nifti(tmp_path / "A_instances.nii.gz", ids)
    prediction = read_prediction(find_predictions(tmp_path)["A"])
    assert [(c.id, c.label) for c in prediction.candidates] == [(1, 1), (2, 1)]
    assert prediction.instances is not None
    assert prediction.instances[0, 0, :2].tolist() == [2, 1]
    mask = np.where(ids == 5, 3, 0).astype(np.uint8)
    write_nifti(tmp_path / "A_mask.nii.gz", mask)
    labelled = read_prediction(find_predictions(tmp_path)["A"])
    assert [c.label for c in labelled.candidates] == [3, 1]


def test_candidates_with_only_boxes_and_scores_are_completed(tmp_path: Path) -> None:
    geometry = Geometry.from_spacing((10, 10, 10), (3, 2, 1))
    boxes = [
        {"score": 0.2, "start_vox": [0, 0, 0], "stop_vox": [1, 1, 1]},
        {"score": 0.9, "start_vox": [2, 2, 2], "stop_vox": [4, 5, 8]},
    ]
    (tmp_path / "A_candidates.json").write_text(json.dumps({"candidates": boxes}))
    prediction = read_prediction(find_predictions(tmp_path)["A"], geometry=geometry)
    best = prediction.candidates[0]
    assert [c.id for c in prediction.candidates] == [2, 1]
    assert (best.label, best.accepted, best.has_mask) == (1, True, False)
    assert best.centre_mm == (4.5, 6.0, 7.5)
    assert best.diameter_mm == pytest.approx(6)  # sides of 6 mm each
    assert prediction.scored


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"score": 1.5}, r"candidates\[0\].score: 1.5"),
        ({"score": None}, "score"),
        ({"score": True}, "score"),
        ({"start_vox": [0, 0]}, "start_vox"),
        ({"stop_vox": [0, 1, 1]}, "stop_vox .*beyond"),
        ({"stop_vox": "1 1 1"}, "stop_vox"),
        ({"id": 0}, r"\.id"),
        ({"id": "a"}, r"\.id"),
        ({"label": 0.5}, "label"),
        ({"centre_mm": [0]}, "centre_mm"),
        ({"diameter_mm": "big"}, "diameter_mm"),
        ({"id": 2}, "same id"),
    ],
)
def test_candidates_that_make_no_sense_are_refused(
    tmp_path: Path, oblique: Geometry, change: dict[str, Any], match: str
) -> None:
    write_prediction(tmp_path, _prediction(oblique))
    path = tmp_path / "A_candidates.json"
    content = json.loads(path.read_text())
    content["candidates"][0].update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(ContentError, match=match) as refused:
        read_prediction(find_predictions(tmp_path)["A"])
    assert "A_candidates.json" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("[]", ContentError, "the content"),
        ('{"candidates": [3]}', ContentError, r"candidates\[0\]: 3"),
        ('{"schema_version": 9, "candidates": []}', ContentError, "schema_version: 9"),
        ('{"candidates": [], "operating_point": {}}', ContentError, "operating_point.score"),
        ('{"candidates": [], "voxel_threshold": "x"}', ContentError, "voxel_threshold"),
        ('{"candidates": [{"score": NaN}]}', ReadError, "NaN is not JSON"),
        ("{", ReadError, "cannot be read as JSON"),
    ],
)
def test_files_that_are_no_candidates_are_refused(
    tmp_path: Path, oblique: Geometry, text: str, error: type[Exception], match: str
) -> None:
    (tmp_path / "A_candidates.json").write_text(text)
    with pytest.raises(error, match=match):
        read_prediction(find_predictions(tmp_path)["A"], geometry=oblique)


def test_ids_without_candidate_are_refused(tmp_path: Path, oblique: Geometry) -> None:
    write_prediction(tmp_path, _prediction(oblique))
    path = tmp_path / "A_candidates.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "candidates": content["candidates"][:1]}))
    with pytest.raises(ContentError, match=r"\[2\]"):
        read_prediction(find_predictions(tmp_path)["A"])


def test_masks_off_the_scan_are_refused(tmp_path: Path, oblique: Geometry) -> None:
    write_prediction(tmp_path, _prediction(oblique))
    moved = oblique.affine.copy()
    moved[0, 3] += 2
    with pytest.raises(GeometryError, match="2 mm apart"):
        read_prediction(find_predictions(tmp_path)["A"], geometry=Geometry(oblique.shape, moved))


def test_masks_of_two_grids_are_refused(tmp_path: Path, write_nifti: Write) -> None:
    files = PredictionFiles(
        "A",
        mask=write_nifti(tmp_path / "A_mask.nii", np.zeros((2, 2, 2), np.uint8)),
        instances=write_nifti(tmp_path / "A_instances.nii", np.zeros((3, 3, 3), np.uint8)),
    )
    with pytest.raises(GeometryError, match=r"A_mask\.nii and A_instances\.nii"):
        read_prediction(files)


def _touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def test_finding_sorts_files_into_cases(tmp_path: Path) -> None:
    _touch(tmp_path, "B_mask.png", "A_mask.nii.gz", "A_instances.nii.gz", "A_candidates.json")
    _touch(tmp_path, "C.nrrd", "D_candidates.json", "predictions.csv", "scores.json", ".E.nii")
    found = find_predictions(tmp_path)
    assert list(found) == ["A", "B", "C", "D"]
    assert found["A"] == PredictionFiles(
        "A", *(tmp_path / f"A_{n}" for n in ("mask.nii.gz", "instances.nii.gz", "candidates.json"))
    )
    assert found["C"] == PredictionFiles("C", mask=tmp_path / "C.nrrd")
    assert found["D"] == PredictionFiles("D", candidates=tmp_path / "D_candidates.json")


def test_finding_masks_leaves_instances_out(tmp_path: Path) -> None:
    _touch(tmp_path, "B.nii.gz", "A_mask.nii.gz", "A_instances.nii.gz", "dataset.json")
    assert find_masks(tmp_path) == {"A": tmp_path / "A_mask.nii.gz", "B": tmp_path / "B.nii.gz"}


@pytest.mark.parametrize("find", [find_masks, find_predictions])
def test_finding_refuses_doubles_emptiness_and_absence(
    tmp_path: Path, find: Callable[[Path], object]
) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        find(tmp_path / "gone")
    with pytest.raises(DatasetError, match=r"none of <case>"):
        find(tmp_path)
    _touch(tmp_path, "A_mask.nii.gz", "A.nii.gz")
    with pytest.raises(DatasetError, match=r"A_mask\.nii\.gz.*same case"):
        find(tmp_path)


def test_what_was_removed_for_its_size_comes_back(tmp_path: Path) -> None:
    geometry = Geometry.from_spacing((4, 5, 6), (2.0, 1.0, 1.0))
    gone = _candidate(1, geometry, (2, 3, 4), has_mask=False, accepted=False)
    write_prediction(tmp_path, replace(_prediction(geometry), removed=(gone,)))
    (files,) = find_predictions(tmp_path).values()
    assert read_prediction(files, geometry=geometry).removed == (gone,)
    path = next(tmp_path.glob("*_candidates.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "removed": "all"}))
    with pytest.raises(ContentError, match="removed"):
        read_prediction(files, geometry=geometry)
