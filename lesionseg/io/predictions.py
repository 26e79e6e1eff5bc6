"""Predictions as files: `<case>_mask`, `<case>_instances`, `<case>_candidates.json`.

Where labels are regions `<case>_regions` holds the mask values of all retained candidates; the mask
holds those of the accepted ones. Other programs may write these files, too.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)

from lesionseg.core import (
    Candidate,
    Geometry,
    InputCheckResult,
    OperatingPoint,
    Prediction,
    Problem,
    Volume,
)
from lesionseg.errors import ContentError, DatasetError, OutputError, ReadError, misfits
from lesionseg.io.cases import check_grid, read_instances, read_mask
from lesionseg.io.dicom.results import REPORT, SEGMENTATION
from lesionseg.io.files import check_case_id, read_json, write_json
from lesionseg.io.nnunet_probabilities import SUFFIX as NPZ
from lesionseg.io.sources import ScanSource
from lesionseg.io.volumes import is_image_file, is_raster, read_geometry, strip_suffix, write_volume
from lesionseg.ops.components import present_values, unscored_prediction

CANDIDATES = "_candidates.json"
_KINDS = ("mask", "instances", "regions", "candidates")
PROBABILITIES = "probabilities"
MaskNames = Literal["lesionseg", "nnunet"]
_BESIDE_NNUNET = {".png": ".tif", ".nrrd": ".mha"}
MASK_ENDINGS: dict[MaskNames, str] = {"lesionseg": "_mask", "nnunet": ""}


@dataclass(frozen=True)
class PredictionFiles:
    """The files of one predicted case; at least one of them exists.

    `probabilities`: nnU-Net's `<case>.npz`, which belongs to `mask`.
    """

    case: str
    mask: Path | None = None
    instances: Path | None = None
    candidates: Path | None = None
    regions: Path | None = None
    probabilities: Path | None = None


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True)

    score: Annotated[FiniteFloat, Field(ge=0, le=1)]
    start_vox: list[FiniteFloat]
    stop_vox: list[FiniteFloat]
    id: PositiveInt | None = None
    label: PositiveInt = 1
    centre_mm: list[FiniteFloat] | None = None
    diameter_mm: FiniteFloat | None = None
    volume_ml: FiniteFloat | None = None
    has_mask: bool = False
    accepted: bool = True
    probability: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = None
    zone: str = ""

    def candidate(self, place: int, geometry: Geometry) -> Candidate:
        """The candidate, with what is not stated; raises `ValueError` for what fits nothing."""
        stated = self.model_dump(exclude_none=True)
        stated |= {name: tuple(value) for name, value in stated.items() if isinstance(value, list)}
        for name in ("start_vox", "stop_vox", "centre_mm"):
            if len(stated.get(name, geometry.shape)) != geometry.dims:
                raise ValueError(f"{name} {stated[name]} has not {geometry.dims} numbers")
        if not all(a < b for a, b in zip(self.start_vox, self.stop_vox, strict=True)):
            raise ValueError(f"stop_vox {self.stop_vox} is not beyond start_vox {self.start_vox}")
        box = (*self.start_vox, *self.stop_vox)
        return replace(Candidate.from_box(place, self.label, self.score, box, geometry), **stated)


class _Content(BaseModel):
    schema_version: Literal[1] = 1
    candidates: list[_Entry]
    removed: list[_Entry] = []
    voxel_threshold: FiniteFloat | None = None
    operating_point: OperatingPoint | None = None
    scored: bool = True
    input_check: InputCheckResult | None = None
    n_left_out: NonNegativeInt = 0


def write_prediction(
    folder: Path,
    prediction: Prediction,
    *,
    suffix: str = ".nii.gz",
    like: Path | None = None,
    names: MaskNames = "lesionseg",
    source: ScanSource | None = None,
) -> None:
    """Write the files of one case, each atomically, the candidates last.

    Two-axis cases get `.png` whatever the `suffix`. Bare boxes (no instances) get the candidates
    alone. Mask and regions are uint8, the instances uint16, or int32 beyond 65535 candidates.
    `like` is the scan's own file: see `write_volume`. `names`: of the masks, as nnU-Net's
    `<case>.nii.gz` or with `_mask`. Beside nnU-Net's names, instances and regions have another
    suffix than the masks, because nnU-Net's commands take every file with that suffix for a mask.
    Raises `OutputError`.

    `source`: the scan that the prediction is of, which the candidate file then states as `source`.

    The candidate file also states `size_unit` ("mm", "mm at the detector" or, where no pixel size
    is known, "px"), `removed`: what was dropped for its size alone, and `input_check`: how unlike
    the training scans this one is (1 is the limit), the warning, and the channels it lacks.
    """
    case, instances = prediction.case, prediction.instances
    check_case_id(case, folder, OutputError)
    suffix = ".png" if prediction.geometry.dims == 2 else suffix

    beside = _BESIDE_NNUNET.get(suffix, ".nrrd") if names == "nnunet" else suffix

    def write(name: str, array: NDArray[Any], suffix: str = beside) -> None:
        volume = Volume(array[np.newaxis], prediction.geometry)
        write_volume(folder / f"{case}{name}{suffix}", volume, like)

    def stated(candidate: Candidate) -> dict[str, Any]:
        return {k: value for k, value in asdict(candidate).items() if k != "zone" or value}

    if instances is not None:
        is_short = instances.max(initial=0) <= np.iinfo(np.uint16).max
        write(MASK_ENDINGS[names], prediction.mask(), suffix)
        write("_instances", instances.astype(np.uint16 if is_short else np.int32))
        if prediction.values is not None:
            write("_regions", np.where(instances > 0, prediction.values, np.uint8(0)))
    content: dict[str, Any] = {
        "schema_version": 1,
        "case": case,
        "size_unit": prediction.geometry.size_unit,
        "voxel_threshold": prediction.voxel_threshold,
        "operating_point": prediction.operating_point and asdict(prediction.operating_point),
        "candidates": [stated(candidate) for candidate in prediction.candidates],
    }
    if names != "lesionseg":
        content["names"] = names
    if source is not None:
        content["source"] = source.stated()
    if prediction.input is not None:
        content["input_check"] = asdict(prediction.input)
    if prediction.removed:
        content["removed"] = [stated(candidate) for candidate in prediction.removed]
    if prediction.n_left_out:
        content["n_left_out"] = prediction.n_left_out
    if not prediction.scored:  # the scores stand in for another program's missing ones
        content["scored"] = False
    write_json(folder / f"{case}{CANDIDATES}", content)


def read_source(path: Path) -> ScanSource | None:
    """Return the scan that a candidate file states as its source; None if it states none.

    Raises `ReadError` for a file that is no JSON.
    """
    content = read_json(path)
    stated = content.get("source") if isinstance(content, dict) else None
    if not isinstance(stated, dict) or not isinstance(stated.get("digest"), str):
        return None
    return ScanSource(
        digest=stated["digest"],
        study_uid=str(stated.get("study_uid", "")),
        series_uid=str(stated.get("series_uid", "")),
        instance_uid=str(stated.get("instance_uid", "")),
    )


def read_mask_names(path: Path) -> MaskNames:
    """Return how the masks of a candidate file's case are named. Raises `ReadError`."""
    content = read_json(path)
    names = content.get("names") if isinstance(content, dict) else None
    return "nnunet" if names == "nnunet" else "lesionseg"


def find_predictions(
    folder: Path, faults: list[Problem] | None = None
) -> dict[str, PredictionFiles]:
    """Find the predicted cases of a folder, by case id, sorted.

    Known are our own files of a case, bare masks `<case>_mask.*` or `<case>.*`, nnU-Net's
    probabilities `<case>.npz` and candidate files alone. Raises `DatasetError` if the folder is
    missing or contains none, and for two masks of one case or a case whose id cannot be one
    (`check_case_id`). With a list `faults`, such a case is left out and added to the list.
    """
    by_case = _files_by_case(folder, (*_KINDS, PROBABILITIES), faults)
    return {case: PredictionFiles(case, **files) for case, files in by_case.items()}


def find_masks(folder: Path, faults: list[Problem] | None = None) -> dict[str, Path]:
    """Find reference masks `<case>.*`, `<case>_mask.*` by case id, as `find_predictions` does."""
    by_case = _files_by_case(folder, ("mask",), faults)
    return {case: files["mask"] for case, files in by_case.items()}


def _files_by_case(
    folder: Path, kinds: Collection[str], faults: list[Problem] | None
) -> dict[str, dict[str, Path]]:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: the folder does not exist.")
    by_case: dict[str, dict[str, Path]] = {}
    wrong: dict[str, Problem] = {}
    for file in sorted(folder.iterdir()):
        case, kind = _case_and_kind(file)
        if kind not in kinds or not file.is_file():
            continue
        before = by_case.setdefault(case, {}).setdefault(kind, file)
        try:
            if before != file:
                raise DatasetError(f"{file} and {before.name} are of the same case. Keep one.")
            check_case_id(case, file)
        except DatasetError as error:
            if faults is None:
                raise
            wrong.setdefault(case, Problem(case, str(error)))
    if not by_case:
        names = ", ".join(f"<case>_{kind}.*" for kind in kinds)
        raise DatasetError(f"{folder}: no files are there. Name them <case>.*, or {names}.")
    if faults is not None:
        faults += wrong.values()
    return dict(sorted((case, files) for case, files in by_case.items() if case not in wrong))


def _case_and_kind(file: Path) -> tuple[str, str]:
    """Return a file's case id and kind by its name; the kind is empty for any other file.

    Our own probabilities come with a candidate file, which has the scores: their kind is empty.
    """
    stem = strip_suffix(file)
    case, _, kind = stem.rpartition("_")
    if file.name.startswith(".") or file.name.endswith((SEGMENTATION, REPORT)):
        return stem, ""
    if file.name.endswith(NPZ):
        return stem, "" if kind == PROBABILITIES else PROBABILITIES
    if file.name.endswith(CANDIDATES):
        return case, "candidates"
    if not is_image_file(file) or kind == "candidates":
        return stem, ""
    return (case, kind) if kind in _KINDS else (stem, "mask")


def read_prediction(
    files: PredictionFiles,
    *,
    geometry: Geometry | None = None,
    binary: bool = False,
    by_image: bool = False,
) -> Prediction:
    """Read one predicted case.

    `by_image`: masks of the shape and spacing of `geometry` are on it, whatever their headers say.
    `geometry` is the scan's: the masks must lie on it (a raster of its shape does), and candidates
    without masks cannot do without it. Of a candidate only `score`, `start_vox` and
    `stop_vox` must be stated: `id` is then its place in the file, `label` 1, `accepted` true, the
    rest as of `Candidate.from_box`. Masks without candidate file give candidates from their
    connected components (or instances) with score 1 and `scored=False`. `binary`: a mask's values
    are regions, and a candidate is a component of their union, of label 1. Raises `ReadError`,
    `GeometryError`, `ContentError`.
    """
    grid, source = geometry, files.candidates
    pixel_mm = geometry.spacing_mm[0] if geometry is not None and geometry.dims == 2 else None
    for file in filter(None, (files.instances, files.mask, files.regions)):
        own = read_geometry(file, raster_mm=pixel_mm)
        if grid is not None and not (is_raster(file) and own.shape == grid.shape):
            check_grid(file, own, source or Path("the scan"), grid, by_image=by_image)
        grid, source = grid or own, file
    if grid is None:
        raise ReadError(f"{files.candidates}: boxes alone have no grid. Give the scan as well.")
    if files.candidates is None:
        marked = np.zeros(grid.shape, dtype=np.uint8)
        if files.mask is not None:
            marked = np.asarray(read_mask(files.mask).labels)
        labels = (marked > 0).astype(np.uint8) if binary else marked
        cut = None if files.instances is None else read_instances(files.instances).instances
        regions = marked.astype(np.uint8) if binary and files.mask else None
        return replace(unscored_prediction(files.case, grid, labels, cut), values=regions)
    path, content = files.candidates, read_json(files.candidates)
    point = content.get("operating_point") if isinstance(content, dict) else None
    if isinstance(point, dict) and "name" not in point:
        content["operating_point"] = {"name": f"score:{point.get('score')}", **point}
    try:
        stated = _Content.model_validate(content)
        kept, removed = (
            [entry.candidate(place, grid) for place, entry in enumerate(entries, start=1)]
            for entries in (stated.candidates, stated.removed)
        )
    except ValidationError as error:
        raise ContentError(f"{path}: {misfits(error, content)[:300]}.") from error
    except ValueError as error:
        raise ContentError(f"{path}: {error}.") from error
    ids = {candidate.id for candidate in kept}
    if len(ids) < len(kept):
        raise ContentError(f"{path}: two candidates have the same id.")
    instances, present = None, set[int]()
    if files.instances is not None:
        instances = np.asarray(read_mask(files.instances).labels, dtype=np.int32)
        present = set(present_values(instances)) - {0}
        if unknown := sorted(present - ids):
            raise ContentError(f"{files.instances}: ids {unknown[:10]} are not in the candidates.")
    values = files.regions or (files.mask if binary else None)  # of all, else of accepted ones
    ranked = sorted(kept, key=lambda c: (-c.score, c.id))
    return Prediction(
        files.case,
        grid,
        tuple(replace(c, has_mask=c.id in present) for c in ranked),
        instances,
        stated.voxel_threshold,
        stated.operating_point,
        stated.scored,
        None if values is None else np.asarray(read_mask(values).labels, dtype=np.uint8),
        tuple(removed),
        stated.input_check,
        stated.n_left_out,
    )
