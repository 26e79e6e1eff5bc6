"""Predictions as files: `<case>_mask`, `<case>_instances`, `<case>_candidates.json`.

The mask contains the accepted candidates. If labels are regions, `<case>_regions` contains the mask
values of all retained candidates. Other programs may also write these files.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
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
    TypeAdapter,
    ValidationError,
)

from lesionseg.core import (
    Candidate,
    Geometry,
    InputCheckResult,
    OperatingPoint,
    Prediction,
    Volume,
)
from lesionseg.core.finding import Finding, collect_errors, require_no_errors
from lesionseg.core.labels import LabelValue
from lesionseg.errors import (
    ContentError,
    DatasetError,
    GeometryError,
    OutputError,
    ReadError,
    describe_misfits,
)
from lesionseg.io.cases import check_grid, read_instances, read_mask
from lesionseg.io.dicom.results import REPORT, SEGMENTATION
from lesionseg.io.exact_values import require_exact_values
from lesionseg.io.files import (
    check_case_id,
    explain_missing,
    is_broken_link,
    is_file_or_broken_link,
    read_json,
    write_json,
)
from lesionseg.io.nnunet_probabilities import SUFFIX as NPZ
from lesionseg.io.scans import ScanSource
from lesionseg.io.volumes import is_image_file, is_raster, read_geometry, strip_suffix, write_volume
from lesionseg.io.warn_once import warn_once
from lesionseg.ops.components import present_values, unscored_prediction

_log = logging.getLogger(__name__)

CANDIDATES = "_candidates.json"
_KINDS = ("mask", "instances", "regions", "candidates")
PROBABILITIES = "probabilities"
MaskNames = Literal["lesionseg", "nnunet"]
# with names=nnunet: the suffix of instances and regions, by the suffix of the masks
_OTHER_SUFFIX = {".png": ".tif", ".nrrd": ".mha"}
MASK_ENDINGS: dict[MaskNames, str] = {"lesionseg": "_mask", "nnunet": ""}


@dataclass(frozen=True)
class PredictionFiles:
    """The files of one predicted case. At least one of them exists.

    Attributes:
        case: The case id.
        mask: The label values of the accepted candidates.
        instances: The ids of all retained candidates.
        candidates: The JSON file with the scores.
        regions: The mask values of all retained candidates, if labels are regions.
        probabilities: nnU-Net's `<case>.npz`, which belongs to `mask`.
    """

    case: str
    mask: Path | None = None
    instances: Path | None = None
    candidates: Path | None = None
    regions: Path | None = None
    probabilities: Path | None = None


class _Entry(BaseModel):
    """A candidate as its file states it."""

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

    def to_candidate(self, place: int, geometry: Geometry) -> Candidate:
        """Make the candidate and compute the values that the file does not state.

        Args:
            place: The number of the candidate in the file, from 1. It is the id if the file does
                not state one.
            geometry: The grid of the scan.

        Raises:
            ValueError: The numbers do not describe a box on this grid.
        """
        stated = self.model_dump(exclude_none=True)
        for name, value in stated.items():
            if isinstance(value, list):
                stated[name] = tuple(value)
        for name in ("start_vox", "stop_vox", "centre_mm"):
            if name in stated and len(stated[name]) != geometry.dims:
                raise ValueError(f"{name} {stated[name]} does not have {geometry.dims} numbers")
        if not all(a < b for a, b in zip(self.start_vox, self.stop_vox, strict=True)):
            raise ValueError(f"stop_vox {self.stop_vox} is not above start_vox {self.start_vox}")
        box = (*self.start_vox, *self.stop_vox)
        computed = Candidate.from_box(place, self.label, self.score, box, geometry)
        return replace(computed, **stated)


class _Content(BaseModel):
    """The content of a candidate file."""

    schema_version: Literal[1] = 1
    shape: list[PositiveInt] | None = None
    labels: dict[LabelValue, str] = {}
    candidates: list[_Entry]
    removed: list[_Entry] = []
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
    key: str = "",
) -> None:
    """Write the files of one case, each atomically, and the candidate file last.

    Masks and regions are uint8, instances uint16, or int32 for more than 65535 candidates. A
    prediction without instances consists of boxes, and only its candidate file is written.

    The candidate file also contains these keys:

    - `shape`: the number of voxels along each axis of the scan, in array order.
    - `labels`: the names of the model's labels by their values.
    - `size_unit`: "mm", "mm at the detector" or, if the pixel size is unknown, "px".
    - `removed`: the candidates that were dropped because of their size.
    - `input_check`: the distance of the scan from the training scans, the warning and the missing
      channels. Distances above 1 cause a warning.

    Args:
        folder: The folder.
        prediction: The prediction.
        suffix: The suffix of the masks. Cases with two axes get `.png` instead.
        like: The file of the scan, see `write_volume`.
        names: The names of the masks: `lesionseg` for `<case>_mask`, `nnunet` for `<case>`. With
            `nnunet`, instances and regions get another suffix, because nnU-Net's commands treat
            every file with the suffix of the masks as a mask.
        source: The scan that the prediction is of. The candidate file states it as `source`.
        key: A hash of scan, bundle and settings, which the candidate file states as `key`.

    Raises:
        OutputError: The case id cannot be a file name, or a file cannot be written.
    """
    case = prediction.case
    instances = prediction.instances
    check_case_id(case, folder, OutputError)
    if prediction.geometry.dims == 2:
        suffix = ".png"
    other_suffix = _OTHER_SUFFIX.get(suffix, ".nrrd") if names == "nnunet" else suffix

    def write(ending: str, array: NDArray[Any]) -> None:
        volume = Volume(array[np.newaxis], prediction.geometry)
        write_volume(folder / f"{case}{ending}", volume, like)

    if instances is not None:
        is_short = instances.max(initial=0) <= np.iinfo(np.uint16).max
        write(f"{MASK_ENDINGS[names]}{suffix}", prediction.mask())
        write(f"_instances{other_suffix}", instances.astype(np.uint16 if is_short else np.int32))
        if prediction.values is not None:
            regions = np.where(instances > 0, prediction.values, np.uint8(0))
            write(f"_regions{other_suffix}", regions)
    write_json(folder / f"{case}{CANDIDATES}", _candidate_json(prediction, names, source, key))


def _candidate_json(
    prediction: Prediction, names: MaskNames, source: ScanSource | None, key: str
) -> dict[str, Any]:
    """Return the content of the candidate file. Optional keys are left out if they are empty."""
    point = prediction.operating_point
    labels = {str(value): name for value, name in prediction.labels.items()}
    content: dict[str, Any] = {
        "schema_version": 1,
        "case": prediction.case,
        "shape": list(prediction.geometry.shape),
        "size_unit": prediction.geometry.size_unit,
        "operating_point": None if point is None else asdict(point),
        "candidates": list(map(_entry_json, prediction.candidates)),
    }
    if labels:
        content["labels"] = labels
    if names != "lesionseg":
        content["names"] = names
    if source is not None:
        content["source"] = source.to_json()
    if key:
        content["key"] = key
    if prediction.input is not None:
        content["input_check"] = asdict(prediction.input)
    if prediction.removed:
        content["removed"] = list(map(_entry_json, prediction.removed))
    if prediction.n_left_out:
        content["n_left_out"] = prediction.n_left_out
    if not prediction.has_scores:  # the predicting program states no scores, so all of them are 1
        content["scored"] = False
    return content


def _entry_json(candidate: Candidate) -> dict[str, Any]:
    """Return the attributes of a candidate, without an empty zone."""
    entry = asdict(candidate)
    if not candidate.zone:
        del entry["zone"]
    return entry


def remove_predictions(folder: Path, cases: Collection[str]) -> None:
    """Remove the files that `write_prediction` has written for these cases.

    Masks named `<case>.*` remain, because other programs write these names, too.
    """
    for file in sorted(folder.iterdir()):
        case, kind = _case_and_kind(file)
        is_written_by_others = strip_suffix(file) == case
        if case in cases and kind in _KINDS and not is_written_by_others:
            file.unlink()


def read_source(path: Path) -> ScanSource | None:
    """Return the scan that a candidate file states as its source, or None if it states none.

    Raises:
        ReadError: The file is missing or not JSON.
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


def read_shape(path: Path) -> tuple[int, ...] | None:
    """Return the shape of the scan that a candidate file states, or None if it states none.

    Raises:
        ReadError: The file is missing or not JSON.
        ContentError: The shape is not a list of positive numbers.
    """
    content = read_json(path)
    stated = content.get("shape") if isinstance(content, dict) else None
    if stated is None:
        return None
    try:
        return tuple(TypeAdapter(list[PositiveInt]).validate_python(stated))
    except ValidationError as error:
        raise ContentError(
            f"{path}: shape is {str(stated)[:100]}, not a list of positive numbers. Correct it."
        ) from error


def read_key(path: Path) -> str:
    """Read from a candidate file the hash of scan, bundle and settings, or "" if it states none.

    Raises:
        ReadError: The file is missing or not JSON.
    """
    content = read_json(path)
    return str(content.get("key", "")) if isinstance(content, dict) else ""


def read_mask_names(path: Path) -> MaskNames:
    """Read from a candidate file how the masks of its case are named.

    Raises:
        ReadError: The file is missing or not JSON.
    """
    content = read_json(path)
    names = content.get("names") if isinstance(content, dict) else None
    return "nnunet" if names == "nnunet" else "lesionseg"


def find_predictions(folder: Path) -> dict[str, PredictionFiles]:
    """Find the predicted cases of a folder, all of which must be usable. See `list_predictions`."""
    found, findings = list_predictions(folder)
    require_no_errors(findings, folder)
    return found


def list_predictions(folder: Path) -> tuple[dict[str, PredictionFiles], list[Finding]]:
    """Find the predicted cases of a folder.

    This includes the files of `write_prediction`, masks `<case>_mask.*` or `<case>.*` of other
    programs, nnU-Net's probabilities `<case>.npz`, and candidate files without masks.

    Args:
        folder: The folder.

    Returns:
        The files by case id, sorted, and a finding for each case that is left out: it has two
        masks, its file is a link to nothing, or its id cannot be a file name (`check_case_id`).

    Raises:
        DatasetError: The folder is missing or contains no prediction.
    """
    by_case, findings = _files_by_case(folder, (*_KINDS, PROBABILITIES))
    return {case: PredictionFiles(case, **files) for case, files in by_case.items()}, findings


def find_masks(folder: Path) -> dict[str, Path]:
    """Find reference masks `<case>.*` or `<case>_mask.*`, all of which must be usable."""
    masks, findings = list_masks(folder)
    require_no_errors(findings, folder)
    return masks


def list_masks(folder: Path) -> tuple[dict[str, Path], list[Finding]]:
    """Find reference masks by case id, and findings about masks; see `list_predictions`."""
    by_case, findings = _files_by_case(folder, ("mask",))
    return {case: files["mask"] for case, files in by_case.items()}, findings


def _files_by_case(
    folder: Path, kinds: Collection[str]
) -> tuple[dict[str, dict[str, Path]], list[Finding]]:
    """Return the files of the given kinds by case and kind; see `list_predictions`."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: the folder does not exist. Check its name.")
    by_case: dict[str, dict[str, Path]] = {}
    findings: list[Finding] = []
    for file in sorted(folder.iterdir()):
        case, kind = _case_and_kind(file)
        if kind not in kinds or not is_file_or_broken_link(file):
            continue
        first = by_case.setdefault(case, {}).setdefault(kind, file)
        with collect_errors(findings, case):
            if is_broken_link(file):
                raise DatasetError(explain_missing(file))
            if first != file:
                raise DatasetError(f"{file} and {first.name} belong to the same case. Keep one.")
            check_case_id(case, file)
    if not by_case:
        names = ", ".join(f"<case>_{kind}.*" for kind in kinds)
        raise DatasetError(
            f"{folder}: the folder contains no predictions or masks. Name them <case>.* or {names}."
        )
    first_of_case: dict[str, Finding] = {}
    for finding in findings:
        first_of_case.setdefault(finding.case, finding)
    found = {case: by_case[case] for case in sorted(by_case) if case not in first_of_case}
    return found, [*first_of_case.values()]


def _case_and_kind(file: Path) -> tuple[str, str]:
    """Return case id and kind of a file by its name. The kind is "" for files to ignore.

    The probabilities that lesionseg writes are ignored, too, because the candidate file has the
    scores.
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

    A candidate must state only `score`, `start_vox` and `stop_vox`. By default `id` is its number
    in the file, `label` is 1 and `accepted` is true. The remaining values follow from the box, see
    `Candidate.from_box`. Without a candidate file, each instance or connected component of the
    masks is a candidate with score 1, and the prediction has `has_scores=False`.

    With a candidate file, the voxels are those of the instances. The mask is only compared with
    the accepted ones.

    Args:
        files: The files of the case.
        geometry: The grid of the scan. The masks must be on it; a picture needs only its shape.
            None takes the grid of the masks, which is impossible for candidates without masks.
        binary: True if the values of a mask are regions. A candidate is then a component of their
            union, with label 1.
        by_image: True accepts masks of equal shape and spacing, whatever their headers state.

    Raises:
        ReadError: A file is damaged, or there is no grid.
        GeometryError: A mask is on another grid, or the candidate file states another shape.
        ContentError: The candidates are not valid, or do not fit the masks. This includes a mask
            that was edited.
    """
    grid = _common_grid(files, geometry, by_image=by_image)
    if files.candidates is None:
        return _read_masks(files, grid, binary=binary)
    stated, kept, removed = _read_candidates(files.candidates, grid)
    ids = {candidate.id for candidate in kept}
    if len(ids) < len(kept):
        raise ContentError(
            f"{files.candidates}: two candidates have the same id. Give each its own id."
        )
    instances = None
    with_voxels: set[int] = set()
    if files.instances is not None:
        instances = np.asarray(read_mask(files.instances).labels, dtype=np.int32)
        with_voxels = set(present_values(instances)) - {0}
        unknown = sorted(with_voxels - ids)
        if unknown:
            raise ContentError(
                f"{files.instances}: the ids {unknown[:10]} are not in {files.candidates.name}. "
                "Write both files together."
            )
    ranked = sorted(kept, key=lambda candidate: (-candidate.score, candidate.id))
    prediction = Prediction(
        case=files.case,
        geometry=grid,
        candidates=tuple(replace(c, has_mask=c.id in with_voxels) for c in ranked),
        instances=instances,
        operating_point=stated.operating_point,
        has_scores=stated.scored,
        values=_read_region_values(files, binary=binary),
        removed=tuple(removed),
        input=stated.input_check,
        n_left_out=stated.n_left_out,
        labels=stated.labels,
    )
    if all("accepted" in entry.model_fields_set for entry in stated.candidates):
        _check_mask(files, prediction)
    return prediction


def _check_mask(files: PredictionFiles, prediction: Prediction) -> None:
    """Raise `ContentError` if the mask does not consist of the accepted candidates.

    The mask itself is not used, so corrections in it would have no effect. Warn if the voxels of
    the candidates are missing.
    """
    if files.mask is None or files.candidates is None:
        return
    advice = "To use the mask, copy it without the other files of the case into another folder."
    if files.instances is None:
        text = "%s: this mask is not used, because %s_instances.* is missing next to %s. %s"
        warn_once(_log, text, files.mask, files.case, files.candidates.name, advice)
        return
    if files.regions is None:  # the values of the regions may come from the mask itself
        prediction = replace(prediction, values=None)
    is_drawn = np.asarray(read_mask(files.mask).labels) > 0
    if not np.array_equal(is_drawn, prediction.mask() > 0):
        raise ContentError(
            f"{files.mask}: this mask was edited: it differs from the accepted candidates in "
            f"{files.instances.name}, which are used instead. {advice}"
        )


def _read_region_values(files: PredictionFiles, *, binary: bool) -> NDArray[np.uint8] | None:
    """Read the mask values that state the regions of each voxel; None without such a file.

    Other programs write no regions file. If the values are regions (`binary`), their mask states
    them for the accepted candidates.
    """
    file = files.regions
    if file is None and binary:
        file = files.mask
    if file is None:
        return None
    return np.asarray(read_mask(file).labels, dtype=np.uint8)


def _common_grid(files: PredictionFiles, geometry: Geometry | None, *, by_image: bool) -> Geometry:
    """Return the grid of a case and check that all masks are on it.

    A picture states no position, so only its shape is checked. Its pixel size is that of the scan.
    """
    grid = geometry
    source_of_grid = Path("the scan")
    is_plane = geometry is not None and geometry.dims == 2
    pixel_mm = geometry.spacing_mm[0] if geometry is not None and is_plane else None
    for file in filter(None, (files.instances, files.mask, files.regions)):
        own = read_geometry(file, raster_mm=pixel_mm)
        if grid is None:
            grid = own
            source_of_grid = file
        fits_as_picture = is_raster(file) and own.shape == grid.shape
        if not fits_as_picture:
            check_grid(file, own, source_of_grid, grid, by_image=by_image)
    if grid is None:
        raise ReadError(
            f"{files.candidates}: the boxes of this file need the grid of the scan. Give the scan "
            "as well."
        )
    return grid


def _read_masks(files: PredictionFiles, grid: Geometry, *, binary: bool) -> Prediction:
    """Make a prediction without scores from masks."""
    values = np.zeros(grid.shape, dtype=np.uint8)
    if files.mask is not None:
        values = np.asarray(read_mask(files.mask).labels)
        require_exact_values(files.mask, values)
    labels = (values > 0).astype(np.uint8) if binary else values
    instances = None
    if files.instances is not None:
        instances = read_instances(files.instances).instances
    prediction = unscored_prediction(files.case, grid, labels, instances)
    regions = values.astype(np.uint8) if binary and files.mask else None
    return replace(prediction, values=regions)


def _read_candidates(
    path: Path, grid: Geometry
) -> tuple[_Content, list[Candidate], list[Candidate]]:
    """Read a candidate file. Return its content, its candidates and its removed candidates.

    Other programs may write an operating point with a score only. It is named after its score.
    """
    content = read_json(path)
    point = content.get("operating_point") if isinstance(content, dict) else None
    if isinstance(point, dict) and "name" not in point:
        content["operating_point"] = {"name": f"score:{point.get('score')}", **point}
    try:
        stated = _Content.model_validate(content)
        if stated.shape not in (None, [*grid.shape]):
            raise GeometryError(
                f"{path}: the candidates belong to a scan of {stated.shape} voxels, but the scan "
                f"has {[*grid.shape]}. Predict this scan."
            )
        kept = [entry.to_candidate(n, grid) for n, entry in enumerate(stated.candidates, 1)]
        removed = [entry.to_candidate(n, grid) for n, entry in enumerate(stated.removed, 1)]
        _check_labels(stated.labels, [*kept, *removed])
    except ValidationError as error:
        raise ContentError(f"{path}: {describe_misfits(error, content)[:300]}.") from error
    except ValueError as error:
        raise ContentError(f"{path}: {error}. Correct the candidate.") from error
    return stated, kept, removed


def _check_labels(names: Mapping[int, str], candidates: Sequence[Candidate]) -> None:
    """Raise `ValueError` if a file names its labels, but not that of a candidate."""
    for candidate in candidates:
        if names and candidate.label not in names:
            raise ValueError(f"labels has no name for the label {candidate.label}")
