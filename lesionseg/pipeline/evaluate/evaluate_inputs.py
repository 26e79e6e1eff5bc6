"""What `evaluate` reads besides the reference: predictions, images, what tables say of cases."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from lesionseg.core import CaseFiles, Dataset, Geometry, OperatingPoint, Prediction, Volume
from lesionseg.errors import ConfigError, DatasetError, GeometryError
from lesionseg.evaluation.case.evaluate_case import describe_grid
from lesionseg.evaluation.case.regrid import onto_grid
from lesionseg.evaluation.statistics.subgroups import Columns
from lesionseg.inference.candidates.postprocess import choose_operating_point
from lesionseg.io.atomic import read_csv
from lesionseg.io.cases import pixel_mm, read_image
from lesionseg.io.formats.volumes import read_geometry, read_volume
from lesionseg.io.layouts.input_images import find_images
from lesionseg.io.predictions import PredictionFiles, read_prediction

_log = logging.getLogger(__name__)


def accepted_from(point: OperatingPoint | str | float | None) -> OperatingPoint | None:
    """The operating point as a user names it, `score:0.37` or 0.37; None: the predictions' own.

    Raises `ConfigError` for a point that only a bundle could look up.
    """
    if point is None or isinstance(point, OperatingPoint):
        return point
    if not isinstance(point, str):
        return choose_operating_point((), f"score:{point}")
    if point.partition(":")[0].strip() in ("fp_per_case", "sensitivity"):
        raise ConfigError(
            "Only a bundle knows the score of this operating point; predictions do not hold it.",
            where="operating_point",
            seen=point,
            expected="score:<0 to 1>",
            remedy="give the score itself; the bundle's plan.json lists its operating_points.",
        )
    return choose_operating_point((), point)


def prediction_reader(
    files: PredictionFiles, *, resample: bool = False, united: bool = False
) -> Callable[[Geometry], Prediction]:
    """Reads a case's prediction when it is given the reference's grid.

    A prediction on another grid is resampled when that is asked for, else a `GeometryError`.
    `united`: as in `read_prediction`.
    """

    def read(geometry: Geometry) -> Prediction:
        own = _grid_of(files, geometry)
        if own is None or own.matches(geometry):
            return read_prediction(files, geometry=geometry, united=united)
        if not resample:
            raise _other_grid(files, own, geometry)
        _log.warning("Resampled onto the grid of its reference: %s", files.case)
        return onto_grid(replace(read_prediction(files, united=united), geometry=own), geometry)

    return read


def _grid_of(files: PredictionFiles, geometry: Geometry) -> Geometry | None:
    """The grid of the prediction's masks; None for boxes alone, which state none.

    Rasters state no position: they show what the reference shows, whatever their size.
    """
    path = files.instances or files.mask
    if path is None:
        return None
    found = read_geometry(path, raster_mm=1.0)
    if found.dims != 2 or geometry.dims != 2:
        return found
    zoom = np.array(geometry.shape) / np.array(found.shape)
    to_reference = np.diag([*zoom, 1.0])
    to_reference[:2, 2] = (zoom - 1) / 2  # edges meet, not centres
    return Geometry(found.shape, geometry.affine @ to_reference)


def _other_grid(files: PredictionFiles, own: Geometry, geometry: Geometry) -> GeometryError:
    apart = own.distance_mm(geometry)
    return GeometryError(
        "The prediction is not on the grid of its reference.",
        where=files.instances or files.mask,
        seen=f"prediction {describe_grid(own)}"
        + (f", up to {apart:.4g} mm off" if np.isfinite(apart) else ""),
        expected=f"reference {describe_grid(geometry)}",
        remedy="give resample=true, or resample it with the program that wrote it.",
    )


def image_readers(
    cases: Sequence[CaseFiles], dataset: Dataset | None, images: str | Path | None
) -> dict[str, Callable[[], Volume]]:
    """How to read each case's image (its first channel at least), by case id.

    `images`: a folder, `dataset` for the dataset's own, None for none. Cases without are named in a
    warning.
    """
    if images is None:
        return {}
    if str(images) == "dataset":
        if dataset is None:
            raise ConfigError(
                "The reference is no dataset with images.",
                where="images",
                seen=images,
                expected="a folder of images named by case",
            )
        return {files.case: partial(read_image, files, dataset) for files in cases}
    found = {files.case: files for files in find_images(Path(images), 1)}
    missing = [files.case for files in cases if files.case not in found]
    if missing:
        _log.warning("No image; the contrast is not measured: %s", ", ".join(missing))
    return {
        files.case: partial(read_volume, found[files.case].images[0], raster_mm=pixel_mm(files))
        for files in cases
        if files.case in found
    }


def read_columns(cases: Sequence[CaseFiles], table: Path | None = None) -> Columns:
    """What the dataset, and a CSV file with a column `case`, say of each case.

    Raises `DatasetError` for a table without that column, or with none of the cases.
    """
    said = {files.case: dict(files.columns) for files in cases}
    if table is None:
        return said
    rows = read_csv(table)
    if not rows or "case" not in rows[0]:
        raise DatasetError(
            "The table has no column 'case'.",
            where=table,
            seen=list(rows[0]) if rows else "nothing",
        )
    if not any(row["case"] in said for row in rows):
        raise DatasetError(
            "The table names none of the cases.",
            where=table,
            seen=rows[0]["case"],
            expected=next(iter(said), ""),
        )
    for row in rows:
        if row["case"] in said:
            said[row["case"]] |= {key: value for key, value in row.items() if key != "case"}
    return said
