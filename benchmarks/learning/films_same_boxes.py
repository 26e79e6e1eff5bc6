"""A detector that does not look at films: it draws the same boxes on each of them.

    python benchmarks/learning/films_same_boxes.py --data DIR … --table same_boxes.csv

The boxes are at the usual places of the lesions of the training films, and have their mean size.
Films and scores are those of `films.py`. A network that learns what lesions look like must be
better.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.learning import films
from benchmarks.learning.held_out import held_out
from lesionseg.core import Candidate, Case, CaseFiles, Prediction
from lesionseg.evaluation import MatchedCase
from lesionseg.io.cases import read_case
from lesionseg.ops.components import lesions_of
from lesionseg.pipeline.dataset_inspection import DatasetInspection, inspect_dataset

BLUR = 0.05  # standard deviation of the density of lesions, as a share of the film's sides
CELLS = 100  # of the density along a side of the film
N_BOXES = 60
MIN_APART = 0.6  # between the centres of two boxes along one of the axes, in mean sides of a box

Array = NDArray[np.float64]


def main() -> None:
    """Print and write one row for each set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="dataset folders")
    parser.add_argument("--output", type=Path, default=Path("runs/films"))
    parser.add_argument("--table", type=Path, help="a CSV file for the rows")
    options = parser.parse_args()
    films.show([measure(root.resolve(), options.output) for root in options.data], options.table)


def measure(root: Path, output: Path) -> dict[str, Any]:
    """Return the scores of a set's validation films."""
    held = held_out(root, output / "cache", validation_fraction=films.VALIDATION_SHARE)
    found = held.as_development(inspect_dataset(held.data, 0))
    boxes, scores = usual_boxes(lesions_of_training(found))

    def match(files: CaseFiles) -> list[MatchedCase]:
        case = read_case(files, found.dataset)
        return films.match_boxes(case, predict(case, boxes, scores))

    scored = films.summarise_boxes([match(files) for files in found.of_role("validation")])
    return {"set": root.name, "variant": "same boxes", **films.scores_of_row(scored)}


def lesions_of_training(found: DatasetInspection) -> Array:
    """Return the boxes `[y0, x0, y1, x1]` of the training films as shares of the film's sides."""
    shares = []
    for files in found.of_role("train"):
        case = read_case(files, found.dataset)
        if case.reference is not None:
            sides = np.array(case.image.geometry.shape)
            shares.append(lesions_of(case.reference).boxes / np.tile(sides, 2))
    return np.concatenate(shares)


def usual_boxes(lesions: Array) -> tuple[Array, Sequence[float]]:
    """Return boxes where lesions are densest, and a score for each, highest first.

    >>> lesions = np.array([[0.1, 0.1, 0.2, 0.2], [0.1, 0.1, 0.2, 0.2], [0.6, 0.6, 0.7, 0.7]])
    >>> boxes, scores = usual_boxes(lesions)
    >>> boxes[:2].round(1).tolist()
    [[0.1, 0.1, 0.2, 0.2], [0.6, 0.6, 0.7, 0.7]]
    """
    centres = (lesions[:, :2] + lesions[:, 2:]) / 2
    size = np.exp(np.log(lesions[:, 2:] - lesions[:, :2]).mean(axis=0))
    places = (np.indices((CELLS, CELLS)) + 0.5) / CELLS
    density = np.zeros((CELLS, CELLS))
    for centre in centres:
        distance = np.hypot(places[0] - centre[0], places[1] - centre[1])
        density += np.exp(-(distance**2) / (2 * BLUR**2))
    highest = density.max()
    chosen: list[NDArray[np.float64]] = []
    scores: list[float] = []
    while density.any() and len(chosen) < N_BOXES:
        centre = places.reshape(2, -1)[:, density.argmax()]
        chosen.append(np.concatenate([centre - size / 2, centre + size / 2]))
        scores.append(float(density.max() / highest))
        offsets = np.abs(places - centre[:, None, None]) / size[:, None, None]
        density = np.where(offsets.max(axis=0) < MIN_APART, 0, density)
    return np.array(chosen), scores


def predict(case: Case, boxes: Array, scores: Sequence[float]) -> Prediction:
    """Return the boxes on a film, within its borders and at least a pixel wide."""
    geometry = case.image.geometry
    sides = np.array(geometry.shape)
    candidates = []
    for number, (box, score) in enumerate(zip(boxes, scores, strict=True), start=1):
        start = np.clip(np.round(box[:2] * sides), 0, sides - 1).astype(int)
        stop = np.clip(np.round(box[2:] * sides), start + 1, sides).astype(int)
        corners = (*start.tolist(), *stop.tolist())
        candidates.append(Candidate.from_box(number, 1, score, corners, geometry))
    return Prediction(case.case, geometry, tuple(candidates), None)


if __name__ == "__main__":
    main()
