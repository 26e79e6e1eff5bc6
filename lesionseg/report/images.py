"""Images, reference and detections of one case from the folders a report is given."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Case, CaseFiles, Dataset, Geometry, Prediction, Reference
from lesionseg.core.lesions import box_slices
from lesionseg.errors import DatasetError, GeometryError, ReadError
from lesionseg.io.cases import read_case, read_mask
from lesionseg.io.layouts.conventions import read_dataset
from lesionseg.io.layouts.input_images import find_images
from lesionseg.io.predictions import (
    PredictionFiles,
    find_masks,
    find_predictions,
    read_prediction,
)
from lesionseg.io.volumes import read_volume
from lesionseg.ops.components import filled_boxes, lesion_mask

_log = logging.getLogger(__name__)

# In voxels: programs round a grid differently, and no outline moves visibly by this.
GRID_TOLERANCE = 0.05

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Scene:
    """One case to be drawn: the first channel it has `[*spatial]`, and masks on its grid, or None.

    `reference` holds all reference lesions, `accepted` all detections, `below` the ids of the
    candidates whose score is too low to count, 0 elsewhere; `prediction` all of them.
    """

    image: NDArray[Any]
    geometry: Geometry
    reference: Mask | None = None
    accepted: Mask | None = None
    below: NDArray[np.integer[Any]] | None = None
    prediction: Prediction | None = None


@dataclass(frozen=True, eq=False)
class Folder:
    """Cases by name: of a recognised dataset, or bare files."""

    dataset: Dataset | None
    files: Mapping[str, CaseFiles]


class Sources:
    """Where pictures come from; `load` reads one case.

    `images` and `reference` are dataset roots or folders of bare files, `images` may also be a
    dataset read already; `prediction` is a folder of prediction files. A dataset given as
    `images` brings its own reference. Raises `ReadError` for a folder that is not there.
    """

    def __init__(
        self,
        images: Path | Dataset,
        reference: Path | None = None,
        prediction: Path | None = None,
    ) -> None:
        self._images = _open_images(images)
        self._dataset = None if reference is None else _open_dataset(reference)
        bare = reference if self._dataset is None else None
        self._masks = {} if bare is None else find_masks(bare)
        self._predictions: Mapping[str, PredictionFiles] = {}
        if prediction is not None:
            self._predictions = find_predictions(_existing(prediction))

    def load(self, case: str, accepted: frozenset[int]) -> Scene:
        """Read one case; `accepted` names the candidates to be drawn.

        Raises `LesionsegError` when it is missing, unreadable or on another grid.
        """
        found = self._read_image(case)
        geometry = found.image.geometry
        reference = self._reference(case, found)
        scene = Scene(found.image.present[0], geometry, reference)
        if case not in self._predictions:
            return scene
        prediction = read_prediction(self._predictions[case], geometry=geometry)
        return replace(
            scene,
            accepted=_accepted_mask(prediction, accepted),
            below=candidate_ids(prediction, accepted),
            prediction=prediction,
        )

    def _read_image(self, case: str) -> Case:
        if case not in self._images.files:
            raise ReadError(f"The image of the case {case!r} is not there.")
        files = self._images.files[case]
        if self._images.dataset is not None:
            return read_case(files, self._images.dataset)
        return Case(case, read_volume(files.images[0]))

    def _reference(self, case: str, found: Case) -> Mask | None:
        geometry = found.image.geometry
        if self._dataset is not None and self._dataset.dataset is not None:
            there = self._dataset.files.get(case)
            other = None if there is None else read_case(there, self._dataset.dataset)
            return None if other is None else _reference_mask(other.reference, geometry)
        if case in self._masks:
            mask = read_mask(self._masks[case], raster_mm=geometry.spacing_mm[0])
            return _reference_mask(mask, geometry)
        return _reference_mask(found.reference, geometry)


def _open_images(source: Path | Dataset) -> Folder:
    if isinstance(source, Dataset):
        return _of_dataset(source)
    found = _open_dataset(source)
    if found is not None:
        return found
    return Folder(None, {item.case: item for item in find_images(source, 1)})


def _of_dataset(dataset: Dataset) -> Folder:
    return Folder(dataset, {item.case: item for item in dataset.cases})


def _open_dataset(folder: Path) -> Folder | None:
    try:
        return _of_dataset(read_dataset(_existing(folder), may_lack=True))
    except DatasetError:
        _log.info("%s: no known dataset layout; read as plain image files.", folder)
        return None


def _existing(folder: Path) -> Path:
    if not folder.exists():
        raise ReadError(f"{folder}: the folder for the report's pictures is not there.")
    return folder


def _reference_mask(reference: Reference | None, geometry: Geometry) -> Mask | None:
    if reference is None:
        return None
    if not reference.geometry.matches(geometry, GRID_TOLERANCE * min(geometry.spacing_mm)):
        raise GeometryError(
            f"A reference of shape {reference.geometry.shape} does not lie on its image's grid of "
            f"{geometry.shape}."
        )
    return lesion_mask(reference)


def _accepted_mask(prediction: Prediction, accepted: frozenset[int]) -> Mask:
    boxes = [
        (*c.start_vox, *c.stop_vox)
        for c in prediction.candidates
        if c.id in accepted and (not c.has_mask or prediction.instances is None)
    ]
    mask = filled_boxes(boxes, prediction.geometry.shape)
    if prediction.instances is not None:
        mask |= np.isin(prediction.instances, np.fromiter(accepted, dtype=np.int64))
    return mask


def candidate_ids(
    prediction: Prediction, without: frozenset[int] = frozenset()
) -> NDArray[np.integer[Any]]:
    """Ids `[*spatial]` of the candidates but for some: their masks, else their boxes."""
    ids = np.zeros(prediction.geometry.shape, dtype=np.int32)
    boxes = [c for c in prediction.candidates if not c.has_mask or prediction.instances is None]
    for candidate in reversed([c for c in boxes if c.id not in without]):  # the best on top
        ids[box_slices((*candidate.start_vox, *candidate.stop_vox), ids.ndim)] = candidate.id
    if prediction.instances is None:
        return ids
    others = np.isin(prediction.instances, [0, *without], invert=True)
    return np.where(others, prediction.instances, ids)
