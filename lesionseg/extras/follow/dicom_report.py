"""DICOM report of `follow`: comment on gone lesions, sizes before, missing extra `pacs`."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lesionseg.core import OperatingPoint, Prediction
from lesionseg.errors import ConfigError, ContentError, GeometryError
from lesionseg.extra import find_extra
from lesionseg.extras.follow.changes import LesionChange
from lesionseg.extras.follow.visits import VisitFiles
from lesionseg.io import is_dicom_image

_log = logging.getLogger(__name__)


def find_reports(visits: Iterable[VisitFiles]) -> Any | None:
    """Return the class `ChangeReport` of the extra `pacs`, which writes reports on changes.

    Return None if no later visit has a DICOM scan, or, with a warning, if the extra is missing.

    Args:
        visits: The later visits.

    Raises:
        ConfigError: If the package that writes reports is missing.
    """
    images = [visit.image for visit in visits if visit.image is not None]
    if not any(map(is_dicom_image, images)):
        return None
    try:
        reports = find_extra("pacs").ChangeReport
    except ConfigError as missing:
        _log.warning("Scans in DICOM get no report. %s", missing)
        return None
    reports.check(images)
    return reports


def plan_report(reports: Any | None, visit: VisitFiles, folder: Path) -> Any | None:
    """Plan the report of a later visit, and remove the report of an earlier run.

    Return None if no report is possible: without `reports`, or if the visit has no DICOM scan.

    Args:
        reports: The class `ChangeReport`, or None (`find_reports`).
        visit: The later visit.
        folder: The folder of the reports.

    Raises:
        LesionsegError: If the report would replace other results, see `ChangeReport.plan`.
    """
    if reports is None or visit.image is None:
        return None
    return reports.plan(visit.image, visit.prediction, folder)


def write_change_report(
    report: Any,
    prediction: Prediction,
    changes: Sequence[LesionChange],
    point: OperatingPoint | None,
) -> str:
    """Write a DICOM structured report of the later visit, with the changes since the earlier one.

    New lesions below the operating point are left out. The comment lists the lesions that are gone,
    and those that are new but too thin to be sure.

    Args:
        report: The planned `ChangeReport`.
        prediction: The later visit.
        changes: The changes of the pair.
        point: The operating point of changes; None accepts all.

    Returns:
        The reason why the scan does not allow a report, which is also a warning, or "".

    Raises:
        OutputError: If the file cannot be written.
        ResourceError: If the scan has changed since the report was planned.
    """
    # by id of a lesion at the later visit: its change and its earlier volume
    since: dict[int, tuple[str, float | None]] = {}
    for change in changes:
        if change.reaches(point):
            for lesion in change.lesion_after:
                since[lesion] = (change.state, change.volume_before_ml)
    # the report lists the accepted candidates
    candidates = tuple(replace(c, accepted=c.id in since) for c in prediction.candidates)
    try:
        report.write(
            # the operating point of the prediction did not accept these candidates
            replace(prediction, candidates=candidates, operating_point=None),
            labels={c.label: f"lesion of label {c.label}" for c in candidates},
            since=since,
            remark=_comment_on_lesions(changes, point, prediction.geometry.size_unit),
        )
    except (ContentError, GeometryError) as error:
        _log.warning("%s has no DICOM report: %s", prediction.case, error)
        return f"No DICOM report: {error}"
    return ""


def _comment_on_lesions(
    changes: Sequence[LesionChange], point: OperatingPoint | None, unit: str
) -> str:
    """Return the comment of the report: lesions that are gone, and new ones that are too thin.

    The report itself only lists lesions of the later visit. New lesions below the operating point
    are left out.

    Args:
        changes: The changes of the pair.
        point: The operating point of changes; None accepts all.
        unit: The unit of diameters.
    """
    gone = [_size_before(change, unit) for change in changes if change.state == "gone"]
    comment = f"Compared with an earlier visit. Gone since: {', '.join(gone) or 'nothing'}."
    thin = [
        str(lesion)
        for change in changes
        if change.state == "new" and change.is_too_thin and change.reaches(point)
        for lesion in change.lesion_after
    ]
    if thin:
        comment += f" New but too thin to be sure: candidate {', '.join(thin)}."
    return comment


def _size_before(change: LesionChange, unit: str) -> str:
    """Return the size of a lesion at the earlier visit with its unit, such as "0.31 ml".

    The size is the volume, in 2-D the diameter. A note follows if the lesion is too thin to be
    sure.
    """
    if change.volume_before_ml is None:
        size = f"{change.diameter_before_mm or 0:.3g} {unit}"
    else:
        size = f"{change.volume_before_ml:.3g} ml"
    return f"{size} (too thin to be sure)" if change.is_too_thin else size
