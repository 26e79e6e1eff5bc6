"""Cases to judge: what is read of each when its turn comes, and what judging them gives."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import lesionseg
from lesionseg.core import (
    CaseFiles,
    Dataset,
    Geometry,
    LabelRegion,
    OperatingPoint,
    Prediction,
    Reference,
    Volume,
    Zones,
)
from lesionseg.errors import ConfigError, DatasetError, GeometryError
from lesionseg.evaluation import CaseResult, MatchedCase, Preset, match_case, summarise
from lesionseg.evaluation.case.regrid import onto_grid
from lesionseg.evaluation.one_case import describe_grid
from lesionseg.evaluation.rows import (
    CANDIDATE_COLUMNS,
    LESION_COLUMNS,
    candidate_rows,
    case_columns,
    case_rows,
    lesion_rows,
)
from lesionseg.evaluation.statistics.subgroups import Columns, LesionColumns
from lesionseg.io.atomic import read_csv, write_csv, write_json
from lesionseg.io.cases import read_case, read_grid, read_mask
from lesionseg.io.cases import read_reference as read_case_reference
from lesionseg.io.layouts.input_images import find_images
from lesionseg.io.predictions import PredictionFiles, read_prediction
from lesionseg.io.volumes import read_geometry, read_volume
from lesionseg.ops.host_memory import without_collection
from lesionseg.pipeline.run.outcome import Advance

_log = logging.getLogger(__name__)
# reads a case's reference, and its image where the lesions' contrast is to be measured
Opener = Callable[[], tuple[Reference, Volume | None]]
# is shown image, reference and prediction of a case
See = Callable[[Volume, Reference, Prediction], None]


@dataclass(frozen=True, eq=False)
class CasePair:
    """A case to judge; reference and prediction are read when its turn comes.

    `prediction` is given the reference's grid; None: there is no prediction of this case.
    `regions` are the dataset's; `zones` reads the anatomical zones of a case by its id.
    """

    case: str
    open: Opener
    prediction: Callable[[Geometry], Prediction] | None
    group: str = ""
    role: str = ""
    regions: tuple[LabelRegion, ...] = ()
    zones: Callable[[str], Zones | None] = lambda _: None


def match_pairs(
    pairs: Sequence[CasePair],
    preset: Preset,
    *,
    see: See | None = None,
    progress: Advance | None = None,
) -> Iterator[MatchedCase]:
    """The match of each pair in turn; what was read for it is freed before the next.

    `see` is shown the cases that have an image and a prediction.
    """
    for done, pair in enumerate(pairs, start=1):
        reference, image = pair.open()
        prediction = pair.prediction(reference.geometry) if pair.prediction else None
        if see is not None and image is not None and prediction is not None:
            see(image, reference, prediction)
        yield match_case(
            reference,
            prediction,
            preset,
            case=pair.case,
            group=pair.group,
            role=pair.role,
            image=image,
            regions=pair.regions,
            zones=pair.zones(pair.case),
        )
        if progress:
            progress(pair.case, done, len(pairs))


def judge_pairs(
    pairs: Sequence[CasePair],
    preset: Preset,
    *,
    operating_point: OperatingPoint | None = None,
    progress: Advance | None = None,
) -> list[CaseResult]:
    """The result of each pair, one of them in memory at a time."""
    matches = match_pairs(pairs, preset, progress=progress)
    return [match.result(operating_point) for match in matches]


def open_case(files: CaseFiles, dataset: Dataset) -> tuple[Reference, Volume]:
    """A labelled case's reference and image."""
    case = read_case(files, dataset)
    if case.reference is None:
        raise DatasetError("The case has no reference.", where=f"case {files.case}")
    return case.reference, case.image


def openers(
    cases: Sequence[CaseFiles], dataset: Dataset | None, images: str | Path | None = None
) -> dict[str, Opener]:
    """How to open each case, by case id.

    `images`: a folder of images named by case, `dataset` for the dataset's own, None for none.
    Cases without an image are named in a warning.
    """
    if str(images) == "dataset":
        if dataset is None:
            raise ConfigError(
                "The reference is no dataset with images.",
                where="images",
                seen=images,
                expected="a folder of images named by case",
            )
        return {files.case: partial(open_case, files, dataset) for files in cases}
    image_of: dict[str, Path] = {}
    if images is not None:
        image_of = {files.case: files.images[0] for files in find_images(Path(images), 1)}
        missing = [files.case for files in cases if files.case not in image_of]
        if missing:
            _log.warning("No image; the contrast is not measured: %s", ", ".join(missing))
    return {
        files.case: partial(_open_reference, files, dataset, image_of.get(files.case))
        for files in cases
    }


def _open_reference(
    files: CaseFiles, dataset: Dataset | None, image: Path | None
) -> tuple[Reference, Volume | None]:
    """The reference of a case on its image's grid, of which the header is read, and the `image`.

    Of a radiograph that states what it hides the pixels are read as well.
    """
    volume = None if image is None else read_volume(image, raster_mm=files.pixel_mm)
    reference = None
    if dataset is not None:
        reference = read_case_reference(files, dataset, read_grid(files, dataset))
    elif files.reference is not None:
        reference = read_mask(files.reference, raster_mm=files.pixel_mm)
    if reference is None:
        raise DatasetError("The case has no reference.", where=f"case {files.case}")
    return reference, volume


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
    own = read_geometry(path, raster_mm=1.0)
    if own.dims != 2 or geometry.dims != 2:
        return own
    zoom = np.array(geometry.shape) / np.array(own.shape)
    to_reference = np.diag([*zoom, 1.0])
    to_reference[:2, 2] = (zoom - 1) / 2  # edges meet, not centres
    return Geometry(own.shape, geometry.affine @ to_reference)


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


def read_columns(cases: Sequence[CaseFiles], table: Path | None = None) -> Columns:
    """What the dataset, and a CSV file with a column `case`, say of each case.

    Raises `DatasetError` for a table without that column, or with none of the cases.
    """
    columns = {files.case: dict(files.columns) for files in cases}
    if table is None:
        return columns
    rows = read_csv(table)
    if not rows or "case" not in rows[0]:
        raise DatasetError(
            "The table has no column 'case'.",
            where=table,
            seen=list(rows[0]) if rows else "nothing",
        )
    if not any(row["case"] in columns for row in rows):
        raise DatasetError(
            "The table names none of the cases.",
            where=table,
            seen=rows[0]["case"],
            expected=next(iter(columns), ""),
        )
    for row in rows:
        if row["case"] in columns:
            columns[row["case"]] |= {key: value for key, value in row.items() if key != "case"}
    return columns


@dataclass(frozen=True)
class Scoring:
    """How judged cases are summed up; the fields are those of `evaluation.summarise`."""

    preset: Preset
    evaluated_on: str
    operating_point: OperatingPoint | None = None
    labels: Mapping[int, str] = field(default_factory=dict)
    split_is_group_safe: bool | None = None
    replicates: int = 1000
    seed: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    columns: Columns | None = None
    subgroups: Sequence[str] | None = None
    lesion_columns: LesionColumns | None = None

    @without_collection()
    def sum_up(self, results: Sequence[CaseResult]) -> dict[str, Any]:
        """The content of scores.json."""
        return summarise(
            results,
            self.preset,
            evaluated_on=self.evaluated_on,
            operating_point=self.operating_point,
            labels=self.labels,
            split_is_group_safe=self.split_is_group_safe,
            replicates=self.replicates,
            seed=self.seed,
            provenance={"lesionseg": lesionseg.__version__, **self.provenance},
            columns=self.columns,
            subgroups=self.subgroups,
            lesion_columns=self.lesion_columns,
        )

    @without_collection()
    def write(self, output: Path, results: Sequence[CaseResult], scores: Mapping[str, Any]) -> None:
        """Write the three tables and, last, scores.json; each atomically."""
        output.mkdir(parents=True, exist_ok=True)
        write_csv(output / "cases.csv", case_rows(results), case_columns(results))
        write_csv(output / "lesions.csv", lesion_rows(results, self.labels), LESION_COLUMNS)
        rows = candidate_rows(results, self.labels)
        write_csv(output / "candidates.csv", rows, CANDIDATE_COLUMNS)
        write_json(output / "scores.json", scores)
