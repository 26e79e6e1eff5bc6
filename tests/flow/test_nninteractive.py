"""Candidates become points for nnInteractive, and its outlines a dataset that our reader takes."""

import sys
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Candidate, Geometry, Prediction, Volume
from lesionseg.io import read_case, read_dataset, write_csv, write_prediction, write_volume

sys.path.append(str(Path(__file__).parents[2] / "examples"))
import nninteractive_from_candidates

SHAPE = (6, 8, 10)
GRID = Geometry.from_spacing(SHAPE, (2.0, 1.0, 1.0))
FAR = (5, 7, 9)


class BrightRegion:
    """A session with the methods of nnInteractive's client. It outlines equal bright voxels."""

    def set_image(self, image, properties):
        self.image, self.spacing = image[0], properties["spacing"]

    def set_target_buffer(self, target_buffer):
        self.target = target_buffer

    def reset_interactions(self):
        self.target.fill(0)

    def add_point_interaction(self, coordinates, include_interaction):
        assert include_interaction
        value = self.image[tuple(coordinates)]
        if value > 0:
            self.target[self.image == value] = 1


@pytest.fixture
def folders(tmp_path):
    """Write a scan with two bright objects, and candidates that cover a part of each, or none."""
    image = np.zeros(SHAPE, np.float32)
    image[1:3, 1:4, 1:4] = 7
    image[4, 5:7, 5:9] = 9
    write_volume(tmp_path / "scans" / "more" / "a.nii.gz", Volume(image[None], GRID))
    instances = np.zeros(SHAPE, np.int32)
    instances[1, 1, 1:3] = 1
    instances[4, 5, 5] = 2
    instances[FAR] = 3
    instances[0, 0, 0] = 4
    candidates = tuple(
        Candidate.from_voxels(number, label, score, np.argwhere(instances == number), GRID)
        for number, label, score in ((1, 1, 0.9), (2, 2, 0.8), (3, 1, 0.7), (4, 1, 0.1))
    )
    rejected = Candidate(**{**vars(candidates[3]), "accepted": False})
    prediction = Prediction(
        "more_a", GRID, (*candidates[:3], rejected), instances, labels={1: "scar", 2: "cyst"}
    )
    found = tmp_path / "found"
    write_prediction(found, prediction)
    write_csv(
        found / "predictions.csv", [{"case": "more_a", "path": "more/a.nii.gz"}], ("case", "path")
    )
    return found, tmp_path / "scans", tmp_path / "corrected", image


def test_outlines_of_accepted_candidates_are_a_dataset(folders):
    *places, image = folders
    nninteractive_from_candidates.convert(*places, BrightRegion())
    dataset = read_dataset(places[2])
    (files,) = dataset.cases
    assert dataset.labels.mask_names == {1: "scar", 2: "cyst"}
    expected = np.select([image == 7, image == 9], [1, 2])
    expected[FAR] = 1  # nothing was outlined there, so the candidate keeps its voxels
    case = read_case(files, dataset)
    np.testing.assert_array_equal(case.reference.labels, expected)
    np.testing.assert_array_equal(case.image.array[0], image)
