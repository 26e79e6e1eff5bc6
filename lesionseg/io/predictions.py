"""Predictions as files: `<case>_mask`, `<case>_instances`, `<case>_candidates.json`.

Where labels are regions `<case>_regions` holds the mask values of all retained candidates; the mask
holds those of the accepted ones.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Candidate, Geometry, Prediction, Volume
from lesionseg.errors import ContentError, DatasetError, OutputError, ReadError
from lesionseg.io.candidate_file import read_candidates, write_candidates
from lesionseg.io.cases import check_grid, read_mask
from lesionseg.io.dicom.results import REPORT, SEGMENTATION
from lesionseg.io.files import check_case_id
from lesionseg.io.volumes import is_image_file, read_geometry, strip_suffix, write_volume
from lesionseg.ops.components import lesion_instances, listed_lesions, present_values

_MASK, _INSTANCES, _CANDIDATES = "_mask", "_instances", "_candidates.json"
_REGIONS = "_regions"
MaskNames = Literal["lesionseg", "nnunet"]
MASK_ENDINGS: dict[MaskNames, str] = {"lesionseg": _MASK, "nnunet": ""}


@dataclass(frozen=True)
class PredictionFiles:
    """The files of one predicted case; at least one of the first three is there."""

    case: str
    mask: Path | None = None
    instances: Path | None = None
    candidates: Path | None = None
    regions: Path | None = None


def write_prediction(
    folder: Path,
    prediction: Prediction,
    *,
    suffix: str = ".nii.gz",
    like: Path | None = None,
    names: MaskNames = "lesionseg",
) -> None:
    """Write the files of one case, each atomically, the candidates last.

    Two-axis cases get `.png` whatever the `suffix`. Bare boxes (no instances) get the candidates
    alone. Mask and regions are uint8, the instances uint16, or int32 beyond 65535 candidates.
    `like` is the scan's own file: see `write_volume`. `names`: of the masks, as nnU-Net's
    `<case>.nii.gz` or with `_mask`. Raises `OutputError`.
    """
    case = prediction.case
    check_case_id(case, folder, OutputError)
    suffix = ".png" if prediction.geometry.dims == 2 else suffix

    def write(name: str, array: NDArray[Any]) -> None:
        volume = Volume(array[np.newaxis], prediction.geometry)
        write_volume(folder / f"{case}{name}{suffix}", volume, like)

    if prediction.instances is not None:
        highest = prediction.instances.max(initial=0)
        stored = np.uint16 if highest <= np.iinfo(np.uint16).max else np.int32
        write(MASK_ENDINGS[names], prediction.mask())
        write(_INSTANCES, prediction.instances.astype(stored))
        if prediction.values is not None:
            regions = np.where(prediction.instances > 0, prediction.values, np.uint8(0))
            write(_REGIONS, regions)
    write_candidates(folder / f"{case}{_CANDIDATES}", prediction)


def find_predictions(folder: Path) -> dict[str, PredictionFiles]:
    """Find the predicted cases of a folder, by case id, sorted.

    Known are our own files of a case, bare masks `<case>_mask.*` or `<case>.*`, and candidate files
    alone. Raises `DatasetError` when the folder is missing, holds none, two masks of one case, or
    a case whose id cannot be one (`check_case_id`).
    """
    by_case = _files_by_case(folder, ("candidates", "regions", "instances", "mask"))
    if not by_case:
        raise DatasetError(
            f"{folder}: No prediction found; <case>_mask.*, <case>.* or <case>_candidates.json."
        )
    return {case: PredictionFiles(case, **by_case[case]) for case in sorted(by_case)}


def find_masks(folder: Path) -> dict[str, Path]:
    """Find reference masks `<case>.*`, `<case>_mask.*` by case id; raises as `find_predictions`."""
    by_case = _files_by_case(folder, ("mask",))
    if not by_case:
        raise DatasetError(f"{folder}: No mask found, <case>.nii.gz or the like.")
    return {case: by_case[case]["mask"] for case in sorted(by_case)}


def _files_by_case(folder: Path, kinds: Collection[str]) -> dict[str, dict[str, Path]]:
    """Files by case id and the field of `PredictionFiles` they belong to."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: the folder does not exist.")
    by_case: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.iterdir()):
        shown = not file.name.startswith(".") and not file.name.endswith((SEGMENTATION, REPORT))
        known = is_image_file(file) or file.name.endswith(_CANDIDATES)
        if not (shown and known and file.is_file()):
            continue
        case, kind = strip_suffix(file).removesuffix(_MASK), "mask"
        for name, ending in (("regions", _REGIONS), ("instances", _INSTANCES)):
            if strip_suffix(file).endswith(ending):
                case, kind = strip_suffix(file).removesuffix(ending), name
        if file.name.endswith(_CANDIDATES):
            case, kind = file.name.removesuffix(_CANDIDATES), "candidates"
        if kind not in kinds:
            continue
        if kind in by_case.setdefault(case, {}):
            raise DatasetError(
                f"{file} and {by_case[case][kind].name} are of the same case. Keep one."
            )
        check_case_id(case, file)
        by_case[case][kind] = file
    return by_case


def read_prediction(
    files: PredictionFiles,
    *,
    geometry: Geometry | None = None,
    raster_mm: float | None = None,
    united: bool = False,
) -> Prediction:
    """Read one predicted case.

    `geometry` is the scan's: the masks must lie on it, rasters take their pixel size from it, and
    candidates without masks cannot do without it. Masks without candidate file give candidates
    from their connected components (or instances) with score 1 and `scored=False`. Candidates
    carry a mask where the instances hold their id. `united`: a mask's values are regions, and a
    candidate is a component of their union, of label 1. Raises `ReadError`, `GeometryError`,
    `ContentError`.
    """
    grid, source = geometry, files.candidates
    for file in filter(None, (files.instances, files.mask, files.regions)):
        spacing = raster_mm
        if spacing is None and geometry is not None and geometry.dims == 2:
            spacing = geometry.spacing_mm[0]
        own = read_geometry(file, raster_mm=spacing)
        if grid is not None:
            check_grid(file, own, source or Path("the scan"), grid)
        grid, source = grid or own, file
    if grid is None:
        raise ReadError(
            f"{files.candidates}: candidates without masks do not state the scan's grid. Give the "
            "scan or its reference as well."
        )
    if files.candidates is None:
        return _unscored(files, grid, united)
    stated = read_candidates(files.candidates, files.case, grid)
    instances, present = None, set[int]()
    if files.instances is not None:
        instances = _read_ids(files.instances)
        present = set(present_values(instances)) - {0}
        unknown = sorted(present - {c.id for c in stated.candidates})
        if unknown:
            raise ContentError(
                f"{files.instances}: the ids {unknown[:10]} are not in the candidate file. Both "
                "files must come from the same prediction."
            )
    values = files.regions or (files.mask if united else None)  # of all, else of accepted ones
    return replace(
        stated,
        candidates=tuple(replace(c, has_mask=c.id in present) for c in stated.candidates),
        instances=instances,
        values=None if values is None else np.asarray(read_mask(values).labels, dtype=np.uint8),
    )


def _read_ids(path: Path) -> NDArray[np.int32]:
    return np.asarray(read_mask(path).labels, dtype=np.int32)


def _unscored(files: PredictionFiles, grid: Geometry, united: bool) -> Prediction:
    """A prediction from masks alone: one candidate of score 1 per instance or component."""
    labels = None if files.mask is None else np.asarray(read_mask(files.mask).labels)
    values = labels.astype(np.uint8) if united and labels is not None else None
    if united and labels is not None:
        labels = (labels > 0).astype(np.uint8)
    if files.instances is not None:
        ids = _read_ids(files.instances)
        _, inverse = np.unique(np.append(ids, 0), return_inverse=True)  # 0 is there, and first
        instances = inverse[:-1].reshape(ids.shape).astype(np.int32)
        # the value of an instance's first labelled voxel, 1 where there is none
        label_of = np.ones(int(instances.max(initial=0)) + 1, dtype=np.int64)
        if labels is not None:
            inside = (instances > 0) & (labels > 0)
            numbers, first = np.unique(instances[inside], return_index=True)
            label_of[numbers] = labels[inside][first]
        of_instance = tuple(label_of[1:].tolist())
    else:
        found = lesion_instances(np.zeros(grid.shape, np.uint8) if labels is None else labels)
        instances, of_instance = found.instances, found.labels
    rows = np.arange(1, len(of_instance) + 1)
    lesions = listed_lesions(grid, rows, of_instance, None, instances)
    candidates = tuple(
        Candidate.from_voxels(number, label, 1.0, lesions.voxels_of(row), grid)
        for row, (number, label) in enumerate(zip(rows.tolist(), of_instance, strict=True))
    )
    return Prediction(files.case, grid, candidates, instances, scored=False, values=values)
