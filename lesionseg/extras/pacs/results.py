"""DICOM result files `<case>_seg.dcm`, `<case>_sr.dcm` of a prediction; error without highdicom.

A segmentation (SEG) and a report (SR, TID 1500) are written.
"""

import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lesionseg.core import Prediction
from lesionseg.errors import ConfigError, ContentError, LesionsegError, pip_install
from lesionseg.extras.pacs.result_origin import Comparison, ResultOrigin
from lesionseg.io import atomic_path
from lesionseg.io.results import REPORT, SEGMENTATION

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def require_highdicom() -> None:
    """Raise `ConfigError` if the package highdicom, which writes DICOM results, is not installed.

    A missing dependency of highdicom is named instead.
    """
    try:
        import highdicom.sr  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"dicom_output: DICOM results need the package {error.name}. Run "
            f"{pip_install('dicom')}, or set dicom_output=false."
        ) from error


def write_dicom_results(
    scan: Path,
    prediction: Prediction,
    origin: ResultOrigin,
    labels: Mapping[int, str],
    *,
    folder: Path,
    mask_labels: Mapping[int, str] | None = None,
    comparison: Comparison | None = None,
    check: Callable[[], None] | None = None,
) -> bool:
    """Write the report `<case>_sr.dcm` and the segmentation `<case>_seg.dcm` of a prediction.

    The segmentation contains the accepted candidates that have voxels. Each is a segment. Its name
    consists of label and id, such as "lesion 7", and is the same in the report. If more than 100
    accepted candidates have voxels, or if labels are regions, each mask value is a segment, named
    by its label.

    The report has a group of measurements for every accepted candidate: score, probability, volume
    and diameter, as far as they are known. The group refers to the candidate's segment, or to its
    box on every slice. If no candidate is accepted, the report states 0. Patient, study and date
    are copied from the scan. UIDs depend only on the scan, `origin` and the candidates.

    Args:
        scan: The folder of a series, or a DICOM file.
        prediction: The prediction on this scan.
        origin: The origin of the prediction.
        labels: The names of the candidates' labels.
        folder: The folder of both files.
        mask_labels: The names of mask values, if they differ from `labels`.
        comparison: The comparison with an earlier visit. With it, only the report is written.
        check: Called before the files are written, for example to find out if the scan changed.

    Returns:
        True if a segmentation was written. It is not written if it would be empty.

    Raises:
        ConfigError: If highdicom is not installed.
        ContentError: If the scan's headers do not allow a result. No report remains in `folder`.
        OutputError: If a file cannot be written.
        ReadError: If the scan cannot be read.
        GeometryError: If the slices do not form an even stack, or the prediction is on another
            grid.
    """
    require_highdicom()
    from lesionseg.extras.pacs.result_objects import ResultObjects, read_source_images

    logging.getLogger("highdicom").setLevel(logging.CRITICAL)  # warnings may quote patient data
    report_path = folder / f"{prediction.case}{REPORT}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            objects = ResultObjects(
                read_source_images(scan, prediction), prediction, origin, labels
            )
            seg = None
            segments: dict[int, int] = {}
            if comparison is None:
                seg, segments = objects.make_segmentation(mask_labels or labels)
            report = objects.make_report(seg, segments, comparison or Comparison())
            if check is not None:
                check()
            _save_object(report, report_path)
            if seg is not None:
                _save_object(seg, folder / f"{prediction.case}{SEGMENTATION}")
    except (LesionsegError, MemoryError):
        raise
    except Exception as error:  # any error of the libraries; its text may quote the patient
        report_path.unlink(missing_ok=True)
        raise ContentError(
            f"{scan}: the headers do not allow a DICOM result ({type(error).__name__}). Correct "
            "them, or set dicom_output=false."
        ) from None
    return seg is not None


def _save_object(dataset: "Dataset", path: Path) -> None:
    """Write a DICOM object to a file.

    The times of its creation are removed before, so that equal runs give equal bytes.
    """
    for name in ("InstanceCreationDate", "InstanceCreationTime"):
        dataset.pop(name, None)
    for equipment in dataset.get("ContributingEquipmentSequence", ()):
        equipment.pop("ContributionDateTime", None)
    with atomic_path(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)
