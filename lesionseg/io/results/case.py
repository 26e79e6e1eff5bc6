"""Candidate file: JSON keys, version, checks; masks and instances of a case, read and written.

Predictions are files: `<case>_mask`, `<case>_instances`, `<case>_candidates.json`.

The mask contains the accepted candidates. If labels are regions, `<case>_regions` contains the mask
values of all retained candidates. Other programs may also write these files.
"""

import logging
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
)

from lesionseg.config import MaskNames
from lesionseg.core import (
    Candidate,
    Geometry,
    InputCheckResult,
    Labels,
    OperatingPoint,
    Prediction,
    Volume,
)
from lesionseg.core.labels import LabelValue
from lesionseg.core.records import parse_as
from lesionseg.errors import (
    ContentError,
    GeometryError,
    LesionsegError,
    OutputError,
    ReadError,
    RegionError,
)
from lesionseg.io.case_ids import check_case_id
from lesionseg.io.grids import GridPair
from lesionseg.io.layouts.nnunet import DATASET_JSON, read_nnunet_labels
from lesionseg.io.masks import read_instances, read_mask, require_exact_values
from lesionseg.io.nnunet_probabilities import LEVELS_UP
from lesionseg.io.results.names import (
    BIDS_SUFFIXES,
    CANDIDATES,
    case_and_kind,
    mask_stem,
)
from lesionseg.io.results.row import EMPTY, CaseRow, read_row, row_fields
from lesionseg.io.text import read_json, write_json
from lesionseg.io.volumes import (
    format_suffix,
    is_image_file,
    read_geometry,
    result_suffix,
    strip_suffix,
    write_volume,
)
from lesionseg.io.warn_once import warn_once
from lesionseg.ops.components import present_values, unscored_prediction

_log = logging.getLogger(__name__)


# with names=nnunet: the suffix of instances and regions, by the suffix of the masks
_OTHER_SUFFIX = {".png": ".tif", ".nrrd": ".mha"}


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

    def read_nnunet_labels(self) -> Labels | None:
        """Read the labels of nnU-Net's `dataset.json` for masks that nnU-Net predicted.

        - nnU-Net writes the file into the folder of its outputs, and into the model folder above
          `fold_0/validation`. With probabilities, all these folders are searched.
        - Without probabilities, the masks may be those of another program. Only their folder is
          searched, and only if there is no candidate file. A file that is not valid is ignored with
          a warning.

        Returns:
            The labels, or None if no file is used.

        Raises:
            LesionsegError: If the labels of probabilities are not valid.
            RegionError: If the labels are regions that are not valid.
        """
        if self.probabilities is not None:
            # from the folder of the file up to the model folder
            files = [folder / DATASET_JSON for folder in self.probabilities.parents[:LEVELS_UP]]
            return next((read_nnunet_labels(file) for file in files if file.is_file()), None)
        if self.mask is None or self.candidates is not None:
            return None
        file = self.mask.with_name(DATASET_JSON)
        try:
            return read_nnunet_labels(file) if file.is_file() else None
        except RegionError:
            raise
        except LesionsegError as error:
            warn_once(_log, "The labels next to the masks are not used. %s", error)
            return None

    def read_row(self) -> CaseRow | None:
        """Return the row of the case from its candidate file: scan, run and results in numbers.

        Return None if there is no candidate file.

        Raises:
            ReadError: If the file is not JSON.
            ContentError: If a value has another type.
        """
        return None if self.candidates is None else read_row(self.candidates)

    def read_shape(self) -> tuple[int, ...] | None:
        """Return the shape of the scan from the candidate file.

        Return None if there is no candidate file or it contains no shape.

        Raises:
            ReadError: If the file is not JSON.
            ContentError: If a key or a candidate is not valid.
        """
        shape = None if self.candidates is None else CaseContent.read(self.candidates).shape
        return None if shape is None else tuple(shape)

    def read(
        self,
        *,
        geometry: Geometry | None = None,
        binary: bool = False,
        by_image: bool = False,
    ) -> Prediction:
        """Read the prediction from the files of a case. Its candidates have descending scores.

        - With a candidate file, a candidate must have `score`, `start_vox` and `stop_vox`. By
          default `id` is its number in the file, `label` is 1 and `accepted` is true. The remaining
          attributes are computed from the box, see `Candidate.from_box`.
        - The voxels of these candidates come from the instance mask. The label mask is only checked
          against the accepted candidates, if each candidate has the key `accepted`. With `binary`,
          it also gives the regions if there is no file of regions.
        - Without a candidate file, each instance or connected component of the masks is a candidate
          with score 1, and the prediction has `has_scores=False`.

        Args:
            geometry: The grid of the scan. The masks must be on it; a picture needs only its shape.
                None means the grid of the masks, which is impossible for candidates without masks.
            binary: True if the values of a mask are regions. Without a candidate file, a candidate
                is then a component of their union, with label 1.
            by_image: True accepts masks of equal shape and spacing, whatever their headers contain.

        Raises:
            ReadError: If a file is damaged, there is no grid, or candidate file, mask and instances
                are all missing.
            GeometryError: If a mask is on another grid, or the candidate file contains another
                shape.
            ContentError: If the candidates are not valid, or do not fit the masks. This includes a
                mask that was edited.
        """
        if self.candidates is None and self.mask is None and self.instances is None:
            raise ReadError(
                f"{self.regions or self.probabilities}: the mask {self.case}_mask.* or "
                f"{self.case}.* is missing in this folder. Copy it there."
            )
        grid = _common_grid(self, geometry, by_image=by_image)
        if self.candidates is None:
            return _read_masks(self, grid, binary=binary)
        content, candidates, removed = read_candidates(self.candidates, grid)
        ids = {candidate.id for candidate in candidates}
        if len(ids) < len(candidates):
            raise ContentError(
                f"{self.candidates}: two candidates have the same id. Give each its own id."
            )
        # the voxels of the candidates
        instances = None
        ids_with_voxels: set[int] = set()
        if self.instances is not None:
            instances = np.asarray(read_mask(self.instances).labels, np.int32)
            ids_with_voxels = set(present_values(instances)) - {0}
            unknown = sorted(ids_with_voxels - ids)
            if unknown:
                raise ContentError(
                    f"{self.instances}: the ids {unknown[:10]} are not in {self.candidates.name}. "
                    "Write both files together."
                )
        # with `binary`, the values of the mask are the regions of the accepted candidates
        regions = self.mask if binary and self.regions is None else self.regions
        ranked = sorted(candidates, key=lambda candidate: (-candidate.score, candidate.id))
        prediction = Prediction(
            case=self.case,
            geometry=grid,
            candidates=tuple(replace(one, has_mask=one.id in ids_with_voxels) for one in ranked),
            instances=instances,
            operating_point=content.operating_point,
            has_scores=content.scored,
            values=None if regions is None else read_mask(regions).labels,
            removed=tuple(removed),
            input=content.input_check,
            n_left_out=content.n_left_out,
            n_outside=content.n_outside,
            labels=content.labels,
        )
        # without this key, every candidate counts as accepted, and the mask may have fewer
        if all("accepted" in entry.model_fields_set for entry in content.candidates):
            _check_mask(self, prediction)
        return prediction


def write_prediction(
    place: Path,
    prediction: Prediction,
    *,
    like: Path | None = None,
    names: MaskNames = "lesionseg",
    row: CaseRow | None = None,
) -> None:
    """Write the files of one case. The candidate file is written last.

    Each file is written atomically. Masks and regions are uint8, instances uint16, or int32 if an
    id is above 65535. A prediction without instances consists of boxes, and only its candidate file
    is written.

    Args:
        place: The folder, or the file of the mask, such as `found.nii.gz`. The other files are
            written next to that file, such as `found_candidates.json`.
        prediction: The prediction.
        like: The file of the scan. Masks get its format, see `result_suffix`, and its header, see
            `write_volume`. None writes `.nii.gz`, or `.png` for two axes.
        names: The names of the masks, see `mask_stem`. With `nnunet`, instances and regions get
            another suffix, because nnU-Net's commands treat every file with the suffix of the masks
            as a mask. With `bids`, the mask is NIfTI. If `place` is a file, its name decides
            instead.
        row: The details of the scan and the run for the candidate file.

    Raises:
        OutputError: If the case id cannot be a file name, `place` is a file of a picture that is
            not PNG, or a file cannot be written.
    """
    if is_image_file(place):
        folder = place.parent
        prediction, names = _name_by_mask(place, prediction)
        mask = strip_suffix(place)
        suffix = format_suffix(place).lower()
    else:
        folder = place
        mask = mask_stem(prediction.case, names)
        # Path() has no format, so that masks are .nii.gz or .png
        suffix = result_suffix(like or Path(), prediction.geometry.dims)
        suffix = BIDS_SUFFIXES[0] if names == "bids" else suffix
    case = prediction.case
    instances = prediction.instances
    check_case_id(case, folder, OutputError)
    other_suffix = _OTHER_SUFFIX.get(suffix, ".nrrd") if names == "nnunet" else suffix

    def write(name: str, array: NDArray[Any]) -> None:
        volume = Volume(array[np.newaxis], prediction.geometry)  # one channel
        write_volume(folder / name, volume, like)

    if instances is not None:
        fits_uint16 = instances.max(initial=0) <= np.iinfo(np.uint16).max
        ids = instances.astype(np.uint16 if fits_uint16 else np.int32)
        write(f"{mask}{suffix}", prediction.mask())
        write(f"{case}_instances{other_suffix}", ids)
        if prediction.values is not None:
            # 0 outside the retained candidates
            regions = np.where(instances > 0, prediction.values, np.uint8(0))
            write(f"{case}_regions{other_suffix}", regions)
    write_candidates(folder / f"{case}{CANDIDATES}", prediction, names=names, row=row)


def _name_by_mask(mask: Path, prediction: Prediction) -> tuple[Prediction, MaskNames]:
    """Return the prediction with the case id in the name of its mask, and the `names` setting.

    The setting is `lesionseg` if the name ends in `_mask`, otherwise `nnunet`. It is used if the
    user names a file instead of a folder.

    Raises:
        OutputError: If the image has two axes, but the suffix is not `.png`.
    """
    if prediction.geometry.dims == 2 and format_suffix(mask).lower() != ".png":
        raise OutputError(f"{mask}: the mask of a picture is PNG. Name a file in .png.")
    if not strip_suffix(mask).endswith("_mask"):
        return replace(prediction, case=strip_suffix(mask)), "nnunet"
    case, _ = case_and_kind(mask)
    return replace(prediction, case=case), "lesionseg"


def _check_mask(files: PredictionFiles, prediction: Prediction) -> None:
    """Raise `ContentError` if the mask of a case differs from the accepted candidates.

    The voxels of candidates come from the instance mask, so corrections in the mask would have no
    effect. Without an instance mask, there is only a warning that the mask is not used.
    """
    if files.mask is None or files.candidates is None:
        return
    advice = "To use the mask, copy it without the other files of the case into another folder."
    if files.instances is None:
        text = "%s: this mask is not used, because %s_instances.* is missing next to %s. %s"
        warn_once(_log, text, files.mask, files.case, files.candidates.name, advice)
        return
    # Without a file of regions, `prediction.values` may be this same mask. `prediction.mask()`
    # would then be 0 where somebody erased voxels, and nothing would differ.
    if files.regions is None:
        prediction = replace(prediction, values=None)
    if not np.array_equal(np.asarray(read_mask(files.mask).labels) > 0, prediction.mask() > 0):
        raise ContentError(
            f"{files.mask}: this mask was edited: it differs from the accepted candidates in "
            f"{files.instances.name}, which are used instead. {advice}"
        )


def _common_grid(files: PredictionFiles, geometry: Geometry | None, *, by_image: bool) -> Geometry:
    """Return the grid of a case, and check that all of its masks are on this grid.

    Args:
        files: The files of the case.
        geometry: The grid of the scan. None means the grid of the first mask.
        by_image: True accepts masks of equal shape and spacing, whatever their headers contain.

    Raises:
        GeometryError: If a mask is on another grid.
        ReadError: If the case has only a candidate file and `geometry` is None, or a mask is
            damaged.
    """
    grid = geometry
    source_of_grid = Path("the scan")
    # the file of a picture contains no pixel size, so the one of the scan is used
    pixel_mm = geometry.spacing_mm[0] if geometry is not None and geometry.dims == 2 else None
    for file in filter(None, (files.instances, files.mask, files.regions)):
        mask_grid = read_geometry(file, pixel_mm=pixel_mm)
        if grid is None:
            grid = mask_grid
            source_of_grid = file
        pair = GridPair(path=file, seen=mask_grid, other=source_of_grid, expected=grid)
        pair.check(by_image=by_image)
    if grid is None:
        raise ReadError(
            f"{files.candidates}: the boxes of this file need the grid of the scan. Give the scan "
            "as well."
        )
    return grid


def _read_masks(files: PredictionFiles, grid: Geometry, *, binary: bool) -> Prediction:
    """Read the prediction of a case without candidate file from its masks. All scores are 1.

    The values of the mask are usually labels, and a candidate has one label. If the labels are
    regions (sets of mask values), voxels of one candidate may have different values.

    Args:
        files: The files of the case.
        grid: The grid of the masks.
        binary: True if the labels are regions. Candidates are then components of all non-zero
            voxels, with label 1, and the mask values become `Prediction.values`.

    Raises:
        ContentError: If the values of the mask or the ids of the instances were changed by a
            program that stores other numbers, see `require_exact_values`.
    """
    values = np.zeros(grid.shape, np.uint8)
    if files.mask is not None:
        values = np.asarray(read_mask(files.mask).labels)
        require_exact_values(files.mask, values)
    labels = (values > 0).astype(np.uint8) if binary else values
    instances = read_instances(files.instances).instances if files.instances is not None else None
    prediction = unscored_prediction(files.case, grid, labels, instances)
    # `values` are needed only for regions; otherwise each candidate has its label
    return replace(prediction, values=values if binary and files.mask else None)


class _Entry(BaseModel):
    """A candidate as the candidate file contains it, see `Candidate` for the keys."""

    model_config = ConfigDict(strict=True)

    score: Annotated[FiniteFloat, Field(ge=0, le=1)]
    start_vox: list[FiniteFloat]
    stop_vox: list[FiniteFloat]
    id: PositiveInt | None = None
    label: LabelValue = 1
    centre_mm: list[FiniteFloat] | None = None
    diameter_mm: FiniteFloat | None = None
    volume_ml: FiniteFloat | None = None
    has_mask: bool = False
    accepted: bool = True
    probability: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = None
    zone: str = ""

    def to_candidate(self, number: int, geometry: Geometry) -> Candidate:
        """Return the candidate, with computed values for the keys that the file lacks.

        Args:
            number: The number of the candidate in the file, from 1. It is the id if the file
                contains none.
            geometry: The grid of the scan.

        Raises:
            ValueError: If the numbers do not describe a box with the axes of this grid.
        """
        content = self.model_dump(exclude_none=True)
        for name, value in content.items():
            if isinstance(value, list):  # one number per axis
                if len(value) != geometry.dims:
                    raise ValueError(f"{name} {value} does not have {geometry.dims} numbers")
                content[name] = tuple(value)
        if not all(start < stop for start, stop in zip(self.start_vox, self.stop_vox, strict=True)):
            raise ValueError(f"stop_vox {self.stop_vox} is not above start_vox {self.start_vox}")
        box = (*self.start_vox, *self.stop_vox)
        # values of the file replace those that are computed from the box
        return replace(Candidate.from_box(number, self.label, self.score, box, geometry), **content)


class CaseContent(BaseModel):
    """The content of a candidate file.

    The keys are attributes of `Prediction`, in which `scored` is called `has_scores`, and
    `input_check` is called `input`. `shape` is that of the scan.
    """

    schema_version: Literal[1] = 1
    shape: list[PositiveInt] | None = None
    labels: dict[LabelValue, str] = {}
    candidates: list[_Entry]
    removed: list[_Entry] = []
    operating_point: OperatingPoint | None = None
    scored: bool = True
    input_check: InputCheckResult | None = None
    n_left_out: NonNegativeInt = 0
    n_outside: NonNegativeInt = 0

    @classmethod
    def read(cls, path: Path) -> "CaseContent":
        """Read and check a candidate file.

        Raises:
            ReadError: If the file is missing or not JSON.
            ContentError: If a key or a candidate is not valid.
        """
        return parse_as(cls, read_json(path), path, ContentError)


def write_candidates(
    path: Path,
    prediction: Prediction,
    *,
    names: MaskNames = "lesionseg",
    row: CaseRow | None = None,
) -> None:
    """Write the candidate file of a case. Optional keys are left out if they are empty.

    Args:
        path: The file.
        prediction: The prediction.
        names: The names of the masks next to the file.
        row: The details of the scan and the run, which become the keys `source`, `key` and `row`.
            None leaves out these keys.
    """
    point = prediction.operating_point
    # values in `EMPTY`, such as None for a count of 0, are left out
    optional: dict[str, Any] = {
        **({} if row is None else row_fields(row)),
        "names": "" if names == "lesionseg" else names,
        "labels": {str(value): name for value, name in prediction.labels.items()},
        "input_check": None if prediction.input is None else asdict(prediction.input),
        "removed": list(map(_entry_json, prediction.removed)),
        "n_left_out": prediction.n_left_out or None,
        "n_outside": prediction.n_outside or None,
        # False if the predicting program states no scores, so all of them are 1
        "scored": None if prediction.has_scores else False,
    }
    content = {
        "schema_version": 1,
        "case": prediction.case,
        "shape": list(prediction.geometry.shape),
        "size_unit": prediction.geometry.size_unit,
        "operating_point": None if point is None else asdict(point),
        **{name: value for name, value in optional.items() if value not in EMPTY},
        "candidates": list(map(_entry_json, prediction.candidates)),  # last, see `_read_head`
    }
    write_json(path, content)


def _entry_json(candidate: Candidate) -> dict[str, Any]:
    """Return the attributes of a candidate for its JSON file, without an empty zone."""
    entry = asdict(candidate)
    if not candidate.zone:
        del entry["zone"]
    return entry


def read_candidates(
    path: Path, grid: Geometry
) -> tuple[CaseContent, list[Candidate], list[Candidate]]:
    """Read a candidate file.

    Args:
        path: The file.
        grid: The grid of the scan, to compute the values that the file lacks.

    Returns:
        The content of the file, its candidates, and the candidates that were removed from it.

    Raises:
        ReadError: If the file is missing or not JSON.
        GeometryError: If the file contains another shape than the grid has.
        ContentError: If a key or a candidate is not valid, or has a label without a name.
    """
    content = CaseContent.read(path)
    if content.shape not in (None, [*grid.shape]):
        raise GeometryError(
            f"{path}: the candidates belong to a scan of {content.shape} voxels, but the scan "
            f"has {[*grid.shape]}. Predict this scan."
        )
    try:
        candidates = [
            entry.to_candidate(n, grid) for n, entry in enumerate(content.candidates, start=1)
        ]
        removed = [entry.to_candidate(n, grid) for n, entry in enumerate(content.removed, start=1)]
        unnamed = {candidate.label for candidate in (*candidates, *removed)} - content.labels.keys()
        if content.labels and unnamed:
            raise ValueError(f"labels has no name for the label {min(unnamed)}")
    except ValueError as error:
        raise ContentError(f"{path}: {error}. Correct the candidate.") from error
    return content, candidates, removed
