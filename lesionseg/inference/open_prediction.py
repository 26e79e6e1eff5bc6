"""Prediction for `evaluate`: candidate file, mask or nnU-Net's .npz, on the reference's grid."""

import logging
from dataclasses import replace

import numpy as np

from lesionseg.core import Geometry, Prediction
from lesionseg.errors import GeometryError
from lesionseg.evaluation.regrid import drop_off_grid, resample_prediction
from lesionseg.inference.nnunet.outputs import read_probabilities, with_nnunet_names
from lesionseg.io.grids import GridPair
from lesionseg.io.results.case import PredictionFiles
from lesionseg.io.volumes import read_geometry

log = logging.getLogger(__name__)


def open_prediction(
    files: PredictionFiles,
    *,
    geometry: Geometry | None = None,
    binary: bool = False,
    by_image: bool = False,
) -> Prediction:
    """Read the prediction of a case that lesionseg, nnU-Net or another program wrote.

    - If there is a candidates file of lesionseg, the candidates are read from the file.
    - Otherwise, if there are probabilities of nnU-Net, candidates are found in the probabilities.
    - Otherwise, candidates are the connected components of the mask. Its labels have names if
      nnU-Net's `dataset.json` is next to the mask.

    Args:
        files: The files of the case.
        geometry: Grid of the scan, which the prediction gets. None is the grid of the prediction.
        binary: True if all non-zero values of a mask without probabilities are one label.
        by_image: True if two grids of equal shape and spacing are the same grid, even if their
            headers state different positions.

    Raises:
        LesionsegError: If the files cannot be read, see `PredictionFiles.read` and
            `read_probabilities`.
    """
    if files.candidates is None and files.probabilities is not None:
        return read_probabilities(files, geometry=geometry, by_image=by_image)
    prediction = files.read(geometry=geometry, binary=binary, by_image=by_image)
    if files.mask is None or files.candidates is not None or binary:
        return prediction
    return with_nnunet_names(prediction, files.read_nnunet_labels())


def read_on_grid(
    files: PredictionFiles,
    geometry: Geometry,
    *,
    resample: bool = False,
    binary: bool = False,
    by_image: bool = False,
) -> Prediction:
    """Read a prediction on the grid of the reference mask with which it is compared.

    A prediction on another grid is resampled if `resample` is True. A candidates file without a
    mask states at most the shape of its grid. If this shape is not the reference's, boxes of a 2-D
    image can be resampled, but boxes of a volume cannot.

    Args:
        files: The prediction. nnU-Net's probabilities have the grid of the mask next to them.
        geometry: The grid of the reference.
        resample: Resample a prediction on another grid, with a warning.
        binary: True if all non-zero values of a mask are one label, see `open_prediction`.
        by_image: True if grids of equal shape and spacing are the same grid, whatever position
            their headers state.

    Returns:
        The prediction on the grid of the reference. Two 2-D images are assumed to cover the same
        area, even if they have different numbers of pixels.

    Raises:
        GeometryError: If the prediction is on another grid and `resample` is False, if it cannot be
            resampled, if less than half of the smaller grid is inside the other grid, or if the
            position in a header was lost.
    """
    # the grid of the prediction; 1 mm is assumed if a picture states no pixel size
    path = files.instances or files.mask
    own_grid = (
        _grid_of_boxes(files, geometry) if path is None else read_geometry(path, pixel_mm=1.0)
    )
    if own_grid.dims == geometry.dims == 2:
        # rasters have no position: assume that both cover the same area, for any size
        zoom = np.array(geometry.shape) / np.array(own_grid.shape)
        to_reference = np.diag([*zoom, 1.0])
        # align the edges of the outer pixels, not their centres: the edge at -0.5 stays there
        to_reference[:2, 2] = (zoom - 1) / 2
        own_grid = Geometry(own_grid.shape, geometry.affine @ to_reference)
    where = path or files.candidates or files.case
    grids = GridPair(path=where, seen=own_grid, other="the reference", expected=geometry)
    if grids.is_same(by_image=by_image):
        return drop_off_grid(
            open_prediction(files, geometry=geometry, binary=binary, by_image=by_image)
        )
    grids.check_headers(can_ignore_headers=True)
    grids.check_spacing()
    if not resample:
        raise GeometryError(
            f"{where}: the prediction {own_grid.describe()} is not on the grid of its reference "
            f"{geometry.describe()}: {own_grid.describe_difference(geometry)}. Give resample=true, "
            "or resample it with the program that wrote it."
        )
    if not grids.overlaps_by_half():
        raise GeometryError(
            f"{where}: the prediction {own_grid.describe()} is located outside its reference "
            f"{geometry.describe()}: less than half of the smaller grid is inside the other one. "
            "Give the prediction of the same scan, or correct its header."
        )
    log.warning("Resampled onto the grid of its reference: %s", files.case)
    read_as = own_grid if path is None else None  # boxes get this grid; masks state theirs
    prediction = open_prediction(files, geometry=read_as, binary=binary)
    return resample_prediction(replace(prediction, geometry=own_grid), geometry)


def _grid_of_boxes(files: PredictionFiles, geometry: Geometry) -> Geometry:
    """Return the grid of a candidates file without a mask, which states only the grid's shape.

    If the file states no shape, or the shape of the reference, the result is the grid of the
    reference. Another shape of a 2-D image gives a grid with a spacing of 1.

    Args:
        files: The prediction.
        geometry: The grid of the reference.

    Raises:
        GeometryError: If the shapes differ and one of them is the shape of a volume, because the
            file does not state the position of its grid.
    """
    shape = files.read_shape()
    if shape is None or shape == geometry.shape:
        return geometry
    if len(shape) != 2 or geometry.dims != 2:
        raise GeometryError(
            f"{files.candidates}: the boxes belong to a scan of {shape} voxels, but the reference "
            f"has {geometry.shape}. Boxes without masks cannot be resampled, so predict the scan "
            "of the reference."
        )
    return Geometry.from_spacing(shape, (1.0, 1.0))
