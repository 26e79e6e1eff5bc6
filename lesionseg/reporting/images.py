"""Images, reference and detections of one case from the folders a report is given."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Case, CaseFiles, Dataset, Geometry, Prediction, Problem, Reference
from lesionseg.core.lesions import box_slices
from lesionseg.errors import DatasetError, GeometryError, ReadError
from lesionseg.inference.nnunet.outputs import open_prediction
from lesionseg.io.cases import read_case, read_mask
from lesionseg.io.layouts import read_dataset, read_dataset_of
from lesionseg.io.layouts.input_images import find_images
from lesionseg.io.predictions import find_masks, find_predictions
from lesionseg.io.volumes import read_volume
from lesionseg.ops.components import fill_boxes, lesion_mask

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

    def mask_of(self, candidate: int) -> Mask | None:
        """Return the mask of one candidate, its box if it has no mask; None without it."""
        if self.prediction is None:
            return None
        chosen = [c for c in self.prediction.candidates if c.id == candidate]
        only = replace(self.prediction, candidates=tuple(chosen))
        return _accepted_mask(only, frozenset({candidate})) if chosen else None


class Sources:
    """The sources of pictures; `load` reads one case.

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
        for folder in (images, reference, prediction):
            if isinstance(folder, Path) and not folder.exists():
                raise ReadError(f"{folder}: the folder for the report's pictures is not there.")
        self._images: Dataset | None
        if isinstance(images, Dataset):
            self._images, cases = images, images.cases
        else:
            self._images = _find_dataset(images)
            found = self._images
            cases = tuple(find_images(images, 1)) if found is None else found.cases
        self._files = _by_case(cases)
        self._reference = None if reference is None else _find_dataset(reference)
        bare = reference if self._reference is None else None
        unusable: list[Problem] = []  # named by `evaluate`; the report is of the others
        self._masks = {} if bare is None else find_masks(bare, unusable)
        self._reference = self._reference or read_dataset_of(self._masks.values())
        self._predictions = {} if prediction is None else find_predictions(prediction, unusable)

    def load(self, case: str, accepted: frozenset[int]) -> Scene:
        """Read one case; `accepted` names the candidates to be drawn.

        Raises `LesionsegError` when it is missing, unreadable or on another grid.
        """
        if case not in self._files:
            raise ReadError(f"The image of the case {case!r} is not there.")
        if self._images is None:
            found = Case(case, read_volume(self._files[case].images[0]))
        else:
            found = read_case(self._files[case], self._images)
        geometry, reference = found.image.geometry, found.reference
        if self._reference is not None:
            other = _by_case(self._reference.cases).get(case)
            reference = None if other is None else read_case(other, self._reference).reference
        elif case in self._masks:
            reference = read_mask(self._masks[case], raster_mm=geometry.spacing_mm[0])
        scene = Scene(
            found.image.present_channels[0], geometry, _reference_mask(reference, geometry)
        )
        if case not in self._predictions:
            return scene
        datasets = (self._images, self._reference)
        regions = any(data is not None and data.labels.regions for data in datasets)
        try:
            prediction = open_prediction(self._predictions[case], geometry=geometry, binary=regions)
        except GeometryError as error:  # evaluated by resample=true
            _log.warning("The report shows %s without its prediction: %s", case, error)
            return scene
        return replace(
            scene,
            accepted=_accepted_mask(prediction, accepted),
            below=candidate_ids(prediction, accepted),
            prediction=prediction,
        )


def _by_case(cases: Iterable[CaseFiles]) -> dict[str, CaseFiles]:
    return {files.case: files for files in cases}


def _find_dataset(folder: Path) -> Dataset | None:
    try:
        return read_dataset(
            folder, may_lack=True, nan_background=True, grid_of_image=True, lenient=True
        )
    except DatasetError:
        _log.debug("%s: no known dataset layout; read as plain image files.", folder)
        return None


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
    mask = fill_boxes(boxes, prediction.geometry.shape)
    if prediction.instances is not None:
        mask |= np.isin(prediction.instances, np.fromiter(accepted, dtype=np.int64))
    return mask


def candidate_ids(
    prediction: Prediction, without: frozenset[int] = frozenset()
) -> NDArray[np.integer[Any]]:
    """Return the ids `[*spatial]` of candidates except some: their masks, otherwise their boxes."""
    ids = np.zeros(prediction.geometry.shape, dtype=np.int32)
    boxes = [c for c in prediction.candidates if not c.has_mask or prediction.instances is None]
    for candidate in reversed([c for c in boxes if c.id not in without]):  # the best on top
        ids[box_slices((*candidate.start_vox, *candidate.stop_vox), ids.ndim)] = candidate.id
    if prediction.instances is None:
        return ids
    others = np.isin(prediction.instances, [0, *without], invert=True)
    return np.where(others, prediction.instances, ids)
