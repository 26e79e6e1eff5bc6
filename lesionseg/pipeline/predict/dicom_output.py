"""Results as DICOM beside the other files, for scans that came as DICOM."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lesionseg.core import CaseFiles, Prediction
from lesionseg.io.dicom.seg_write import write_segmentation
from lesionseg.io.dicom.source_images import (
    REPORT,
    SEGMENTATION,
    ResultOrigin,
    read_source,
    require_highdicom,
)
from lesionseg.io.dicom.sr_write import write_report
from lesionseg.io.formats.volumes import is_dicom_image
from lesionseg.plan.plan import Plan

NO_SEGMENTATION = "No DICOM segmentation: no accepted candidate has voxels."


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
