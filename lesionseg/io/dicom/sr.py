"""Predictions as DICOM structured reports: Measurement Report, TID 1500."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np

from lesionseg.core import Candidate, Prediction
from lesionseg.io.dicom.seg import (
    RESEARCH_ONLY,
    ResultOrigin,
    SourceSeries,
    WrittenSegmentation,
    lesion_codes,
    made_up_uid,
    making,
    require_highdicom,
    save_dicom,
    tracking_name,
)

_OWN_CODES = "99LESIONSEG"


@dataclass(frozen=True)
class SinceBefore:
    """What became of a lesion since an earlier visit, and its volume then, where it was there."""

    state: str
    volume_ml: float | None = None


def write_report(
    path: Path,
    prediction: Prediction,
    source: SourceSeries,
    origin: ResultOrigin,
    labels: Mapping[int, str],
    segmentation: WrittenSegmentation | None = None,
    *,
    since: Mapping[int, SinceBefore] | None = None,
    remark: str = "",
) -> None:
    """Write a report with a group of measurements for every accepted candidate.

    Each has score, probability, volume and diameter as far as they are known. It refers to its
    segment in `segmentation` or, without one, to its box on every slice. Without a candidate the
    report says that none was accepted. `labels`: names of candidates' labels; `since`: what became
    of candidates since an earlier visit, by id; `remark` ends the report's comment. Raises
    `ConfigError` without highdicom, `OutputError`.
    """
    hd = require_highdicom()
    with making(path):
        report = _report(hd, prediction, source, origin, labels, segmentation, since or {}, remark)
        save_dicom(path, report)


def _report(
    hd: Any,
    prediction: Prediction,
    source: SourceSeries,
    origin: ResultOrigin,
    labels: Mapping[int, str],
    segmentation: WrittenSegmentation | None,
    since: Mapping[int, SinceBefore],
    remark: str,
) -> Any:
    sr, code = hd.sr, hd.sr.CodedConcept
    unitless = code("1", "UCUM", "no units")
    parameters = [f"{name}: {value}" for name, value in origin.parameters.items()]
    of_candidate = {} if segmentation is None else segmentation.of_candidate

    def own(value: str, meaning: str) -> Any:  # for what the standard has no word for
        return code(value, _OWN_CODES, meaning)

    def algorithm() -> Any:
        return sr.AlgorithmIdentification("lesionseg", origin.version, parameters)

    def measured(name: Any, value: float, unit: Any, **more: Any) -> Any:
        # six digits: more than is known, and what fits a decimal string
        return sr.Measurement(name, float(f"{value:.6g}"), unit, **more)

    def tracked(name: str) -> Any:
        uid = source.uid("tracking", origin.key, name)
        return sr.TrackingIdentifier(uid=uid, identifier=name)

    def measurements(candidate: Candidate) -> list[Any]:
        found = []
        if prediction.scored:  # a score is never invented
            found.append(measured(own("score", "Score of the model"), candidate.score, unitless))
        if candidate.probability is not None:
            name = own("probability", "Calibrated probability of a lesion")
            found.append(measured(name, candidate.probability, unitless))
        if candidate.volume_ml is not None:
            ml, before = code("ml", "UCUM", "milliliter"), since.get(candidate.id)
            volume = code("118565006", "SCT", "Volume")
            found.append(measured(volume, candidate.volume_ml, ml))
            if before is not None and before.volume_ml is not None:
                name = own("volume-before", "Volume at the earlier visit")
                found.append(measured(name, before.volume_ml, ml))
        unit = prediction.geometry.size_unit
        shape = "a disc of equal area" if source.is_radiograph else "a ball of equal volume"
        where = unit.removeprefix("mm").strip() if unit != "px" else ""
        mm, pixels = code("mm", "UCUM", "millimeter"), code("{pixels}", "UCUM", "pixels")
        method = own("equivalent", f"of {shape}{', ' * bool(where)}{where}")
        diameter = code("81827009", "SCT", "Diameter")
        unit_code = pixels if unit == "px" else mm
        return [*found, measured(diameter, candidate.diameter_mm, unit_code, method=method)]

    def rectangle(candidate: Candidate, z: int | None) -> Any:
        """The box on one image: columns and rows from the corner of the first pixel."""
        index, frame = (0, None) if z is None else source.slices[z]
        frames = None if frame is None else [frame + 1]
        image = sr.SourceImageForRegion.from_source_image(
            source.headers[index], referenced_frame_numbers=frames
        )
        shape = prediction.geometry.shape[-2:]
        start, stop = (np.clip(v[-2:], 0, shape) for v in (candidate.start_vox, candidate.stop_vox))
        (top, left), (bottom, right) = start.tolist(), stop.tolist()
        corners = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        return sr.ImageRegion("POLYLINE", np.array(corners), image)

    def place(candidate: Candidate) -> dict[str, Any]:
        """The segment, or the box on every image that it meets."""
        number = of_candidate.get(candidate.id)
        if number is None and source.is_radiograph:
            return {"referenced_region": rectangle(candidate, None)}
        if number is None:
            n = len(source.slices)
            first = min(max(floor(candidate.start_vox[0]), 0), n - 1)
            stop = min(max(ceil(candidate.stop_vox[0]), first + 1), n)
            return {"referenced_regions": [rectangle(candidate, z) for z in range(first, stop)]}
        dataset: Any = None if segmentation is None else segmentation.dataset
        written = (str(dataset.SOPClassUID), str(dataset.SOPInstanceUID))
        if source.is_radiograph:  # whose frames are its segments in their order
            image = sr.SourceImageForSegmentation.from_source_image(source.headers[0])
            frame = sr.ReferencedSegmentationFrame(
                *written, frame_number=number, segment_number=number, source_image=image
            )
            return {"referenced_segment": frame}
        series = sr.SourceSeriesForSegmentation(source.headers[0].SeriesInstanceUID)
        return {"referenced_segment": sr.ReferencedSegment(*written, number, source_series=series)}

    def group(candidate: Candidate) -> Any:
        change = None
        if (before := since.get(candidate.id)) is not None:
            state = own(f"state-{before.state}", before.state.capitalize())
            name = own("change", "Change since the earlier visit")
            change = [sr.QualitativeEvaluation(name, state)]
        kind = (
            sr.PlanarROIMeasurementsAndQualitativeEvaluations
            if source.is_radiograph
            else sr.VolumetricROIMeasurementsAndQualitativeEvaluations
        )
        return kind(
            **place(candidate),
            tracking_identifier=tracked(tracking_name(candidate, labels)),
            finding_type=lesion_codes(hd)[0],
            finding_category=lesion_codes(hd)[1],
            algorithm_id=algorithm(),
            measurements=measurements(candidate),
            qualitative_evaluations=change,
        )

    accepted, total = [c for c in prediction.candidates if c.accepted], len(prediction.candidates)
    groups = [group(candidate) for candidate in accepted]
    if not groups:  # a report needs a group
        count = measured(own("n-accepted", "Number of accepted candidates"), 0, unitless)
        groups = [
            sr.MeasurementsAndQualitativeEvaluations(
                tracking_identifier=tracked("accepted candidates"),
                finding_type=lesion_codes(hd)[0],
                algorithm_id=algorithm(),
                measurements=[count],
            )
        ]
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=made_up_uid("device", origin.bundle),
        name="lesionseg",
        manufacturer_name="lesionseg",
        model_name="lesionseg",
        serial_number=origin.bundle,
    )
    observer = sr.ObserverContext(code("121007", "DCM", "Device"), device)
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=code("363679005", "SCT", "Imaging procedure"),
        imaging_measurements=groups,
    )
    point, check = prediction.operating_point, prediction.input
    rule = "" if point is None else f" at the operating point {point.name} ({point.score:g})"
    warning = f" Warning: {check.warning}" if check and check.warning else ""
    words = f"{len(accepted)} of {total} candidates were accepted{rule}.{warning}"
    if not accepted:
        words = f"No candidate was accepted{rule}; there were {total}.{warning}"
    comment = sr.TextContentItem(
        name=code("121106", "DCM", "Comment"),
        value=f"{RESEARCH_ONLY} {words} {remark}".strip(),
        relationship_type=sr.RelationshipTypeValues.CONTAINS,
    )
    content[0].ContentSequence.append(comment)
    date, time = source.moment
    return sr.Comprehensive3DSR(
        evidence=[*source.headers, *([] if segmentation is None else [segmentation.dataset])],
        content=content[0],
        series_instance_uid=source.uid("SR series", origin.key),
        series_number=source.number(2),
        sop_instance_uid=source.uid("SR", origin.key, prediction.candidates),
        instance_number=1,
        manufacturer="lesionseg",
        is_complete=True,
        manufacturer_model_name="lesionseg",
        software_versions=origin.version,
        device_serial_number=origin.bundle,
        series_description="lesionseg: measurements (research use only)",
        content_date=date,
        content_time=time,
        coding_schemes=[
            hd.coding_schemes.CodingSchemeIdentificationItem(
                designator=_OWN_CODES, name="lesionseg", version=origin.version
            )
        ],
        specific_character_set="ISO_IR 192",
    )
