"""What a predicted case leaves in the output folder, and how it gets there."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import CaseFiles, Geometry, InputVerdict, Prediction, Volume, Zones
from lesionseg.errors import OutputError
from lesionseg.inference.decision import Inferred, Slab
from lesionseg.inference.predictor import Predictor
from lesionseg.io.case_ids import check_case_id
from lesionseg.io.dicom.seg_write import write_segmentation
from lesionseg.io.dicom.source_images import (
    REPORT,
    SEGMENTATION,
    ResultOrigin,
    read_source,
    require_highdicom,
)
from lesionseg.io.dicom.sr_write import write_report
from lesionseg.io.predictions import MASK_ENDINGS, MaskNames, write_prediction
from lesionseg.io.volumes import is_dicom_image, result_suffix, write_volume
from lesionseg.ops.components import candidates_of, present_values
from lesionseg.pipeline.predict.study_table import Burden, burden
from lesionseg.plan.plan import Plan

NO_SEGMENTATION = "No DICOM segmentation: no accepted candidate has voxels."
SaveProbabilities = Literal["none", "uint8", "float16"]
PROBABILITIES = "probabilities"


def check_dicom_output(cases: Sequence[CaseFiles]) -> None:
    """Raise `ConfigError` when there is a DICOM scan and nothing to write DICOM with."""
    for files in cases:
        with suppress(OSError):  # a file that cannot be opened fails by itself
            if is_dicom_image(files.images[0]):
                require_highdicom()
                return


def dicom_paths(
    folder: Path, files: CaseFiles, plan: Plan, *, segmented: bool = True
) -> list[Path]:
    """Segmentation, where there is one, and report of a case whose first image is DICOM."""
    if not is_dicom_image(files.images[0]):
        return []
    segmented = segmented and plan.candidate_rule.source != "detection"
    names = [SEGMENTATION, REPORT] if segmented else [REPORT]
    return [folder / f"{files.case}{name}" for name in names]


def write_dicom(
    folder: Path, prediction: Prediction, files: CaseFiles, plan: Plan, origin: ResultOrigin
) -> str:
    """Write both as far as there is something to say; returns what the table says of it."""
    source = read_source(files.images[0])
    values = dict(zip(plan.label_values, plan.label_names, strict=True))
    path = folder / f"{files.case}{SEGMENTATION}"
    segmentation = write_segmentation(path, prediction, source, origin, values)
    report = folder / f"{files.case}{REPORT}"
    write_report(report, prediction, source, origin, plan.lesion_labels, segmentation)
    return NO_SEGMENTATION if segmentation is None and prediction.instances is not None else ""


class CaseCounts(Burden):
    """What the table says of a case that is written, as `PredictionRow` names it."""

    n_candidates: int
    n_accepted: int
    message: str
    warning: str
    input_score: float | None
    missing: str
    operating_point: str


@dataclass(frozen=True)
class CaseOutputs:
    """The output folder, and in which numbers probabilities are kept beside the masks.

    `dicom`: whether DICOM scans get DICOM results too. `names`: of the masks.
    """

    folder: Path
    save_probabilities: SaveProbabilities = "none"
    dicom: bool = False
    names: MaskNames = "lesionseg"

    def paths(self, files: CaseFiles, plan: Plan, *, segmented: bool = True) -> list[Path]:
        """The files that a case has when it is done; `segmented`: if something was accepted.

        Raises `DatasetError` for an id that cannot name files, or would name others.
        """
        check_case_id(files.case, files.images[0])
        suffix = result_suffix(files.images[0], plan.dims)
        with_masks = plan.candidate_rule.source != "detection"
        masks = [f"{MASK_ENDINGS[self.names]}{suffix}", f"_instances{suffix}"] if with_masks else []
        masks += [f"_regions{suffix}"] if with_masks and plan.regions else []
        names = [*masks, "_candidates.json"]
        paths = [self.folder / f"{files.case}{name}" for name in names]
        if self.save_probabilities != "none" and plan.has_voxels:
            paths += [self.probability_path(files, plan, label) for label in plan.label_values]
        if self.dicom:
            paths += dicom_paths(self.folder, files, plan, segmented=segmented)
        return paths

    def probability_path(self, files: CaseFiles, plan: Plan, label: int) -> Path:
        """Where the probabilities of one label go."""
        suffix = result_suffix(files.images[0], plan.dims)
        if self.save_probabilities != "uint8":
            suffix = suffix.replace(".png", ".tif")
        return self.folder / PROBABILITIES / f"{files.case}_{label}{suffix}"

    def clear(self, files: CaseFiles, plan: Plan) -> None:
        """Remove a case's files and what a killed run left: old ones are not to pass for new.

        Raises `OutputError` for the first that cannot be removed, once the others are.
        """
        errors = [error for path in self.paths(files, plan) for error in _remove(path)]
        if errors:
            raise OutputError(
                "An earlier result cannot be removed.",
                where=errors[0].filename,
                seen=errors[0].strerror,
                remedy="remove it by hand, or choose another output folder.",
            ) from errors[0]


def write_case(
    predictor: Predictor,
    inferred: Inferred,
    files: CaseFiles,
    targets: CaseOutputs,
    origin: ResultOrigin,
    zones: Zones | None = None,
) -> CaseCounts:
    """Decide on a case and write it; the candidates' file comes last. `zones`: the case's own."""
    geometry, plan = inferred.file_geometry, predictor.plan

    def watch(channel: int, slabs: Iterator[Slab]) -> Iterator[Slab]:
        with saving(targets, files, geometry, plan, plan.label_values[channel]) as save:
            yield from map(save, slabs)

    prediction = _placed(predictor.decide(inferred, files.case, watch), zones)
    message = ""
    if targets.dicom and is_dicom_image(files.images[0]):
        message = write_dicom(targets.folder, prediction, files, plan, origin)
    suffix = result_suffix(files.images[0], plan.dims)
    like, names = files.images[0], targets.names
    write_prediction(targets.folder, prediction, suffix=suffix, like=like, names=names)
    verdict, point = prediction.input or InputVerdict(), prediction.operating_point
    return {
        "n_candidates": len(prediction.candidates),
        "n_accepted": sum(c.accepted for c in prediction.candidates),
        "message": message,
        "warning": verdict.warning,
        "input_score": None if verdict.score is None else round(verdict.score, 3),
        "missing": ", ".join(verdict.missing),
        "operating_point": point.name if point else "",
        **burden(prediction.candidates, plan.lesion_labels, _names(zones), point),
    }


def _names(zones: Zones | None) -> list[str]:
    """The zones that a case has."""
    if zones is None:
        return []
    return [zones.names.get(v, str(v)) for v in present_values(zones.values) if v > 0]


def _placed(prediction: Prediction, zones: Zones | None) -> Prediction:
    """The prediction whose candidates know their zone."""
    if zones is None:
        return prediction
    within = zip(prediction.candidates, zones.of(candidates_of(prediction)), strict=True)
    return replace(prediction, candidates=tuple(replace(c, zone=zone) for c, zone in within))


@contextmanager
def saving(
    targets: CaseOutputs, files: CaseFiles, geometry: Geometry, plan: Plan, label: int
) -> Iterator[Callable[[NDArray[np.float32]], NDArray[np.float32]]]:
    """Yield a function that notes each slab and passes it on; at the end they are written.

    uint8 holds p · 255, rounded. float16 is kept in half the memory and, as most formats have no
    such number, written as float32: what is lost to rounding compresses to nothing.
    """
    if targets.save_probabilities == "none":
        yield lambda slab: slab
        return
    stored = np.empty(geometry.shape, dtype=targets.save_probabilities)
    factor = 255.0 if targets.save_probabilities == "uint8" else 1.0
    row = 0

    def note(slab: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal row
        values = np.rint(slab * factor) if factor != 1.0 else slab
        stored[row : row + len(slab)] = values
        row += len(slab)
        return slab

    yield note
    volume = Volume(stored[np.newaxis], geometry)
    write_volume(targets.probability_path(files, plan, label), volume, like=files.images[0])


def _remove(path: Path) -> Iterator[OSError]:
    """Remove a file and the halves of it that a killed run left; what was in the way."""
    halves = path.parent.glob(f".????????-{_literal(path.name)}") if path.parent.is_dir() else ()
    for file in (path, *halves):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            yield error


def _literal(name: str) -> str:
    """The name as a pattern that matches itself alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
