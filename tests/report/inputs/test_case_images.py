import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Candidate, Geometry, Prediction, Volume
from lesionseg.errors import GeometryError, ReadError
from lesionseg.io.layouts.conventions import read_dataset
from lesionseg.io.predictions import write_prediction
from lesionseg.io.volumes import write_volume
from lesionseg.report.inputs.case_images import Sources

GEOMETRY = Geometry.from_spacing((12, 14, 16), (3.0, 1.0, 1.0))


@pytest.fixture
def image() -> np.ndarray:
    return np.arange(np.prod(GEOMETRY.shape), dtype=np.float32).reshape(GEOMETRY.shape)


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.zeros(GEOMETRY.shape, dtype=np.uint8)
    mask[3:6, 4:8, 5:9] = 1
    return mask


def put(path: Path, array: np.ndarray, geometry: Geometry = GEOMETRY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, Volume(array[None], geometry))
    return path


@pytest.fixture
def dataset(tmp_path: Path, image: np.ndarray, mask: np.ndarray) -> Path:
    """One nnU-Net case with two channels."""
    root = tmp_path / "dataset"
    put(root / "imagesTr" / "a_0000.nii.gz", image)
    put(root / "imagesTr" / "a_0001.nii.gz", image * 0)
    put(root / "labelsTr" / "a.nii.gz", mask)
    described = {
        "channel_names": {"0": "FLAIR", "1": "T1"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(described))
    return root


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """Two candidates with masks, of which the second is not accepted."""
    instances = np.zeros(GEOMETRY.shape, dtype=np.int32)
    instances[3:5, 4:7, 5:8] = 1
    instances[8:10, 2:4, 2:4] = 2
    first = Candidate(1, 1, 0.9, (3, 4, 5), (5, 7, 8), (6.0, 5.0, 10.0), 4.0, 0.05)
    second = replace(first, id=2, score=0.2, start_vox=(8, 2, 2), stop_vox=(10, 4, 4))
    found = Prediction("a", GEOMETRY, (first, replace(second, accepted=False)), instances)
    write_prediction(tmp_path / "predictions", found)
    return tmp_path / "predictions"


def test_dataset_gives_first_channel_and_reference(
    dataset: Path, image: np.ndarray, mask: np.ndarray
) -> None:
    for source in (dataset, read_dataset(dataset)):
        scene = Sources(source).load("a", frozenset())
        assert np.array_equal(scene.image, image)
        assert scene.reference is not None
        assert np.array_equal(scene.reference, mask > 0)
        assert scene.accepted is None


def test_bare_folders_of_files(
    tmp_path: Path, image: np.ndarray, mask: np.ndarray, predictions: Path
) -> None:
    put(tmp_path / "images" / "a.nii.gz", image)
    put(tmp_path / "masks" / "a.nii.gz", mask)
    sources = Sources(tmp_path / "images", tmp_path / "masks", predictions)
    scene = sources.load("a", frozenset({1}))
    assert np.array_equal(scene.image, image)
    assert scene.reference is not None
    assert scene.reference.sum() == mask.sum()


def test_marks_drawn_are_those_the_tables_accept(dataset: Path, predictions: Path) -> None:
    sources = Sources(dataset, prediction=predictions)
    for accepted, voxels in (({1}, 18), ({1, 2}, 26), (set(), 0)):
        scene = sources.load("a", frozenset(accepted))
        assert scene.accepted is not None
        assert scene.accepted.sum() == voxels
        assert scene.below is not None
        assert set(np.unique(scene.below)) - {0} == {1, 2} - accepted


def test_candidates_without_masks_are_drawn_as_boxes(
    tmp_path: Path, dataset: Path, predictions: Path
) -> None:
    box = Candidate(4, 1, 0.9, (3, 4, 5), (5, 7, 8), (6.0, 5.0, 10.0), 4.0, None, has_mask=False)
    write_prediction(tmp_path / "boxes", Prediction("a", GEOMETRY, (box,), None))
    scene = Sources(dataset, prediction=tmp_path / "boxes").load("a", frozenset({4}))
    assert scene.accepted is not None
    assert scene.accepted[3:5, 4:7, 5:8].all()
    assert scene.accepted.sum() == 18
    scene = Sources(dataset, prediction=tmp_path / "boxes").load("a", frozenset())
    assert scene.below is not None
    assert (scene.below[3:5, 4:7, 5:8] == 4).all()
    assert np.count_nonzero(scene.below) == 18


def test_reference_on_another_grid_is_refused(
    tmp_path: Path, dataset: Path, mask: np.ndarray
) -> None:
    shifted = GEOMETRY.affine.copy()
    shifted[0, 3] += 1.0
    put(tmp_path / "masks" / "a.nii.gz", mask, Geometry(GEOMETRY.shape, shifted))
    with pytest.raises(GeometryError, match="image's grid"):
        Sources(dataset, tmp_path / "masks").load("a", frozenset())


def test_missing_folder_and_missing_case_are_named(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(ReadError, match="nowhere"):
        Sources(tmp_path / "nowhere")
    with pytest.raises(ReadError, match="ghost"):
        Sources(dataset).load("ghost", frozenset())
