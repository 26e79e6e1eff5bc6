"""Predictions as files: `<case>_mask`, `<case>_instances`, `<case>_candidates.json`.

Where labels are regions `<case>_regions` holds the mask values of all retained candidates; the mask
holds those of the accepted ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Candidate, Geometry, Prediction, Volume
from lesionseg.errors import ContentError, DatasetError, OutputError, ReadError
from lesionseg.io.candidate_file import read_candidates, write_candidates
from lesionseg.io.case_ids import check_case_id
from lesionseg.io.cases import check_grid, read_mask
from lesionseg.io.dicom.seg import REPORT, SEGMENTATION
from lesionseg.io.volumes import (
    is_image_file,
    read_geometry,
    strip_suffix,
    write_volume,
)
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
    by_case: dict[str, dict[str, Path]] = {}
    for file in _files(folder):
        case, kind = _case_and_kind(file)
        if kind in by_case.setdefault(case, {}):
            raise _twice(file, by_case[case][kind])
        by_case[case][kind] = file
    for case, files in by_case.items():
        check_case_id(case, next(iter(files.values())))
    if not by_case:
        raise DatasetError(
            "No prediction found.",
            where=folder,
            expected="<case>_mask.*, <case>.* or <case>_candidates.json",
        )
    return {case: PredictionFiles(case, **by_case[case]) for case in sorted(by_case)}


def find_masks(folder: Path) -> dict[str, Path]:
    """Find reference masks `<case>.*` or `<case>_mask.*` by case id; no instance masks.

    Raises `DatasetError` when the folder is missing, holds none, two masks of one case, or a case
    whose id cannot be one (`check_case_id`).
    """
    masks: dict[str, Path] = {}
    for file in _files(folder):
        case, kind = _case_and_kind(file)
        if kind != "mask":
            continue
        if case in masks:
            raise _twice(file, masks[case])
        check_case_id(case, file)
        masks[case] = file
    if not masks:
        raise DatasetError("No mask found.", where=folder, expected="<case>.nii.gz or the like")
    return dict(sorted(masks.items()))


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
    grid = _grid(files, geometry, raster_mm)
    if files.candidates is None:
        return _unscored(files, grid, united)
    stated = read_candidates(files.candidates, grid)
    instances = None if files.instances is None else _read_ids(files.instances)
    candidates = stated.candidates
    if instances is not None and files.instances is not None:
        candidates = _with_masks(candidates, instances, files.instances)
    else:
        candidates = tuple(replace(c, has_mask=False) for c in candidates)
    return Prediction(
        case=files.case,
        geometry=grid,
        candidates=candidates,
        instances=instances,
        voxel_threshold=stated.voxel_threshold,
        operating_point=stated.operating_point,
        scored=stated.scored,
        removed=stated.removed,
        input=stated.input,
        values=_read_values(files, united),
    )


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DatasetError("The folder does not exist.", where=folder)
    shown = (f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))
    files = (f for f in shown if not f.name.endswith((SEGMENTATION, REPORT)))
    return sorted(f for f in files if is_image_file(f) or f.name.endswith(_CANDIDATES))


def _case_and_kind(file: Path) -> tuple[str, str]:
    """The case id and which field of `PredictionFiles` the file is."""
    if file.name.endswith(_CANDIDATES):
        return file.name.removesuffix(_CANDIDATES), "candidates"
    stem = strip_suffix(file)
    if stem.endswith(_REGIONS):
        return stem.removesuffix(_REGIONS), "regions"
    if stem.endswith(_INSTANCES):
        return stem.removesuffix(_INSTANCES), "instances"
    return stem.removesuffix(_MASK), "mask"


def _twice(file: Path, other: Path) -> DatasetError:
    return DatasetError(
        "Two files are of the same case.",
        where=file,
        seen=f"also {other.name}",
        remedy="Keep one of the two.",
    )


def _grid(files: PredictionFiles, geometry: Geometry | None, raster_mm: float | None) -> Geometry:
    """The grid all present masks agree on; the scan's own where it is given."""
    grid, source = geometry, files.candidates
    for file in (files.instances, files.mask, files.regions):
        if file is None:
            continue
        spacing = raster_mm
        if spacing is None and geometry is not None and geometry.dims == 2:
            spacing = geometry.spacing_mm[0]
        own = read_geometry(file, raster_mm=spacing)
        if grid is not None:
            check_grid(file, own, source or Path("the scan"), grid)
        grid, source = grid or own, file
    if grid is None:
        raise ReadError(
            "Candidates without masks do not state the scan's grid.",
            where=files.candidates,
            remedy="Give the scan or its reference with the prediction.",
        )
    return grid


def _read_ids(path: Path) -> NDArray[np.int32]:
    labels = read_mask(path).labels
    return np.asarray(labels, dtype=np.int32)


def _with_masks(
    candidates: Sequence[Candidate], instances: NDArray[np.int32], path: Path
) -> tuple[Candidate, ...]:
    present = set(present_values(instances)) - {0}
    unknown = sorted(present - {c.id for c in candidates})
    if unknown:
        raise ContentError(
            "The instance mask contains ids that the candidate file lacks.",
            where=path,
            seen=unknown[:10],
            remedy="Both files must come from the same prediction.",
        )
    return tuple(replace(c, has_mask=c.id in present) for c in candidates)


def _read_values(files: PredictionFiles, united: bool) -> NDArray[np.uint8] | None:
    """The mask values within candidates: of all, else (from a mask) of the accepted ones."""
    path = files.regions or (files.mask if united else None)
    return None if path is None else np.asarray(read_mask(path).labels, dtype=np.uint8)


def _unscored(files: PredictionFiles, grid: Geometry, united: bool) -> Prediction:
    """A prediction from masks alone."""
    labels = None if files.mask is None else np.asarray(read_mask(files.mask).labels)
    values = labels.astype(np.uint8) if united and labels is not None else None
    if united and labels is not None:
        labels = (labels > 0).astype(np.uint8)
    if files.instances is not None:
        instances = _consecutive(_read_ids(files.instances))
        label_of = _labels_of(instances, labels)
    else:
        lesions = lesion_instances(np.zeros(grid.shape, np.uint8) if labels is None else labels)
        instances, label_of = lesions.instances, lesions.labels
    candidates = _candidates(instances, label_of, grid)
    return Prediction(files.case, grid, candidates, instances, scored=False, values=values)


def _consecutive(ids: NDArray[np.int32]) -> NDArray[np.int32]:
    _, inverse = np.unique(np.append(ids, 0), return_inverse=True)  # 0 is there, and first
    return inverse[:-1].reshape(ids.shape).astype(np.int32)


def _labels_of(instances: NDArray[np.int32], labels: NDArray[Any] | None) -> tuple[int, ...]:
    """Label of each instance: the value of its first labelled voxel, 1 where there is none."""
    n = int(instances.max(initial=0))
    label_of = np.ones(n + 1, dtype=np.int64)
    if labels is not None:
        inside = (instances > 0) & (labels > 0)
        ids, first = np.unique(instances[inside], return_index=True)
        label_of[ids] = labels[inside][first]
    return tuple(label_of[1:].tolist())


def _candidates(
    instances: NDArray[np.int32], labels: Sequence[int], geometry: Geometry
) -> tuple[Candidate, ...]:
    """One candidate of score 1 per instance."""
    lesions = listed_lesions(geometry, np.arange(1, len(labels) + 1), labels, None, instances)
    return tuple(
        Candidate.from_voxels(number, label, 1.0, lesions.voxels_of(row), geometry)
        for row, (number, label) in enumerate(zip(lesions.ids.tolist(), labels, strict=True))
    )
