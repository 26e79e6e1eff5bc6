"""Read prediction files one by one and match them with the references of their cases."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lesionseg.core import (
    CaseFiles,
    Dataset,
    Finding,
    Geometry,
    Prediction,
)
from lesionseg.errors import CASE_ERRORS, GeometryError
from lesionseg.evaluation import (
    MatchedCase,
    Preset,
    match_case,
)
from lesionseg.evaluation.label_names import LabelNumbers
from lesionseg.evaluation.regrid import drop_off_grid, resample_prediction
from lesionseg.inference.open_prediction import open_prediction
from lesionseg.io.grids import GridPair
from lesionseg.io.references import open_reference
from lesionseg.io.results.case import PredictionFiles
from lesionseg.io.volumes import read_geometry
from lesionseg.io.zone_files import ZoneFolder
from lesionseg.pipeline.log import Advance, bar

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MatchOptions:
    """Settings for matching prediction files with references.

    Attributes:
        preset: the rule of matching.
        dataset: the dataset of the cases; None if there are only masks.
        role: the role of cases that state none.
        zones: the masks of zones; None without them.
        resample: resample a prediction on another grid, see `read_on_grid`.
        by_image: grids of equal shape and spacing are the same, see `read_on_grid`.
    """

    preset: Preset
    dataset: Dataset | None = None
    role: str = ""
    zones: ZoneFolder | None = None
    resample: bool = False
    by_image: bool = False


def match_cases(
    cases: Sequence[CaseFiles],
    predictions: Mapping[str, PredictionFiles],
    options: MatchOptions,
    *,
    progress: Advance | None = None,
    keep: Callable[[Prediction], None] | None = None,
    what: str = "Scoring",
) -> tuple[list[MatchedCase], list[Finding]]:
    """Match each case with its prediction, if it has one. Only one scan is in memory at a time.

    Args:
        cases: the cases with references.
        predictions: the prediction files by case.
        options: settings for matching.
        progress: called with case, number done and total, instead of a bar.
        keep: called with each prediction, under the case's id.
        what: the name of the step in progress lines.

    Returns:
        The matched cases, and the errors of the cases that cannot be matched.
    """
    matched: list[MatchedCase] = []
    faults: list[Finding] = []
    numbers = LabelNumbers(options.dataset.labels if options.dataset else None)
    with bar(what, progress) as advance:
        for done, files in enumerate(cases, start=1):
            try:
                predicted = predictions.get(files.case)
                matched.append(_match_one(files, predicted, options, numbers, keep))
            except CASE_ERRORS as error:
                faults.append(Finding.of(error, files.case))
            advance(files.case, done, len(cases))
    return matched, faults


def _match_one(
    files: CaseFiles,
    predicted: PredictionFiles | None,
    options: MatchOptions,
    numbers: LabelNumbers,
    keep: Callable[[Prediction], None] | None,
) -> MatchedCase:
    """Read the reference and the prediction of a case, and match them.

    `predicted`: the files of the prediction; without them, all lesions are missed. `numbers`: the
    label values of the reference. `keep`: see `match_cases`.
    """
    dataset = options.dataset
    labels = dataset.labels if dataset else None
    reference = open_reference(files, dataset)
    prediction = None
    if predicted is not None:
        prediction = read_on_grid(
            predicted,
            reference.geometry,
            resample=options.resample,
            binary=labels is not None and bool(labels.regions or labels.merged),
            by_image=options.by_image or (dataset is not None and dataset.grid_of_image),
        )
        prediction = numbers.apply(prediction)
        if labels is not None and labels.merged:
            prediction = prediction.merge_labels()
        if keep is not None:
            keep(replace(prediction, case=files.case))
    zones = None
    if options.zones is not None:
        zones = options.zones.read(files.case, reference.geometry.spacing_mm[0])
    return match_case(
        reference,
        prediction,
        options.preset,
        case=files.case,
        group=files.group,
        role=files.role or options.role,
        labels=labels,
        zones=zones,
    )


def read_on_grid(
    files: PredictionFiles,
    geometry: Geometry,
    *,
    resample: bool = False,
    binary: bool = False,
    by_image: bool = False,
) -> Prediction:
    """Read a prediction on the grid of its reference.

    Boxes without masks have no grid of their own. If their file states another shape than that of
    the reference, boxes of an image with two axes can be resampled, but not those of a volume.

    Args:
        files: the prediction. nnU-Net's probabilities have the grid of the mask next to them.
        geometry: the grid of the reference.
        resample: resample a prediction on another grid, with a warning.
        binary: see `PredictionFiles.read`.
        by_image: grids of equal shape and spacing are the same, see `GridPair.is_same`.

    Returns:
        The prediction. Two rasters are assumed to cover the same area, also with other sizes.

    Raises:
        GeometryError: if the prediction is on another grid and `resample` is False, or cannot be
            resampled, or less than half of the smaller grid is inside the other one, or if a header
            was lost.
    """
    path = files.instances or files.mask
    # the grid of the prediction's own file; None for boxes on the grid of the reference
    own = None
    if path is not None:
        own = read_geometry(path, pixel_mm=1.0)
    else:
        own = _other_grid_of_boxes(files, geometry)
    if own is not None and own.dims == geometry.dims == 2:
        # rasters have no position: assume that both cover the same area, for any size
        zoom = np.array(geometry.shape) / np.array(own.shape)
        to_reference = np.diag([*zoom, 1.0])
        # align the edges of the outer pixels, not their centres
        to_reference[:2, 2] = (zoom - 1) / 2
        own = Geometry(own.shape, geometry.affine @ to_reference)
    own = own or geometry
    where = path or files.candidates or files.case
    grids = GridPair(where, own, "the reference", geometry)
    if grids.is_same(by_image=by_image):
        return drop_off_grid(
            open_prediction(files, geometry=geometry, binary=binary, by_image=by_image)
        )
    grids.check_headers(can_ignore_headers=True)
    grids.check_spacing()
    if not resample:
        raise GeometryError(
            f"{where}: the prediction {own.describe()} is not on the grid of its reference "
            f"{geometry.describe()}: {own.describe_difference(geometry)}. Give resample=true, "
            "or resample it with the program that wrote it."
        )
    if not grids.overlaps_by_half():
        raise GeometryError(
            f"{where}: the prediction {own.describe()} is located outside its reference "
            f"{geometry.describe()}: less than half of the smaller grid is inside the other one. "
            "Give the prediction of the same scan, or correct its header."
        )
    log.warning("Resampled onto the grid of its reference: %s", files.case)
    grid = own if path is None else None  # masks state their grid
    prediction = open_prediction(files, geometry=grid, binary=binary)
    return resample_prediction(replace(prediction, geometry=own), geometry)


def _other_grid_of_boxes(files: PredictionFiles, geometry: Geometry) -> Geometry | None:
    """Return the grid of boxes without masks if their file states another shape, otherwise None.

    Raise `GeometryError` if one of both shapes is that of a volume, because the file does not state
    where the grid is.
    """
    shape = files.read_shape()
    if shape in (None, geometry.shape):
        return None
    if len(shape) != 2 or geometry.dims != 2:
        raise GeometryError(
            f"{files.candidates}: the boxes belong to a scan of {shape} voxels, but the reference "
            f"has {geometry.shape}. Boxes without masks cannot be resampled, so predict the scan "
            "of the reference."
        )
    return Geometry.from_spacing(shape, (1.0, 1.0))
