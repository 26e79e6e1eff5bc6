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
    equipment,
    lesion_codes,
    made_up_uid,
    making,
    require_highdicom,
    save_dicom,
    tracking_name,
)

_OWN_CODES = "99LESIONSEG"  # for what the standard has no word for


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
    sr, code = hd.sr, hd.sr.CodedConcept
    accepted = [candidate for candidate in prediction.candidates if candidate.accepted]
    with making(path):
        parameters = [f"{name}: {value}" for name, value in origin.parameters.items()]
        common = {
            "finding_type": lesion_codes(hd)[0],
            "algorithm_id": sr.AlgorithmIdentification("lesionseg", origin.version, parameters),
        }

        def tracked(name: str) -> Any:
            uid = source.uid("tracking", origin.key, name)
            return sr.TrackingIdentifier(uid=uid, identifier=name)

        group = (
            sr.PlanarROIMeasurementsAndQualitativeEvaluations
            if source.is_radiograph
            else sr.VolumetricROIMeasurementsAndQualitativeEvaluations
        )
        groups = []
        for candidate in accepted:
            before = (since or {}).get(candidate.id)
            change = None
            if before is not None:
                name = code("change", _OWN_CODES, "Change since the earlier visit")
                state = code(f"state-{before.state}", _OWN_CODES, before.state.capitalize())
                change = [sr.QualitativeEvaluation(name, state)]
            groups.append(
                group(
                    **_place(hd, candidate, prediction, source, segmentation),
                    **common,
                    tracking_identifier=tracked(tracking_name(candidate, labels)),
                    finding_category=lesion_codes(hd)[1],
                    measurements=_measurements(hd, candidate, prediction, source, before),
                    qualitative_evaluations=change,
                )
            )
        if not groups:  # a report needs a group
            name = code("n-accepted", _OWN_CODES, "Number of accepted candidates")
            groups = [
                sr.MeasurementsAndQualitativeEvaluations(
                    **common,
                    tracking_identifier=tracked("accepted candidates"),
                    measurements=[sr.Measurement(name, 0, code("1", "UCUM", "no units"))],
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
        content[0].ContentSequence.append(
            sr.TextContentItem(
                name=code("121106", "DCM", "Comment"),
                value=f"{RESEARCH_ONLY} {_words(prediction, len(accepted))} {remark}".strip(),
                relationship_type=sr.RelationshipTypeValues.CONTAINS,
            )
        )
        own_codes = hd.coding_schemes.CodingSchemeIdentificationItem(
            designator=_OWN_CODES, name="lesionseg", version=origin.version
        )
        report = sr.Comprehensive3DSR(
            evidence=[*source.headers, *([segmentation.dataset] if segmentation else [])],
            content=content[0],
            series_instance_uid=source.uid("SR series", origin.key),
            series_number=source.number(2),
            sop_instance_uid=source.uid("SR", origin.key, prediction.candidates),
            is_complete=True,
            series_description="lesionseg: measurements (research use only)",
            coding_schemes=[own_codes],
            **equipment(source, origin),
        )
        save_dicom(path, report)


def _measurements(
    hd: Any,
    candidate: Candidate,
    prediction: Prediction,
    source: SourceSeries,
    before: SinceBefore | None,
) -> list[Any]:
    code, unit = hd.sr.CodedConcept, prediction.geometry.size_unit
    unitless, ml = code("1", "UCUM", "no units"), code("ml", "UCUM", "milliliter")
    mm, pixels = code("mm", "UCUM", "millimeter"), code("{pixels}", "UCUM", "pixels")
    score = code("score", _OWN_CODES, "Score of the model")
    probability = code("probability", _OWN_CODES, "Calibrated probability of a lesion")
    earlier = code("volume-before", _OWN_CODES, "Volume at the earlier visit")
    rows = [
        (score, candidate.score if prediction.scored else None, unitless),  # none is invented
        (probability, candidate.probability, unitless),
        (code("118565006", "SCT", "Volume"), candidate.volume_ml, ml),
        (earlier, before.volume_ml if before else None, ml),
    ]
    # six digits: more than is known, and what fits a decimal string
    made = [hd.sr.Measurement(n, float(f"{v:.6g}"), u) for n, v, u in rows if v is not None]
    shape = "a disc of equal area" if source.is_radiograph else "a ball of equal volume"
    where = "" if unit == "px" else unit.removeprefix("mm").strip()
    diameter = hd.sr.Measurement(
        code("81827009", "SCT", "Diameter"),
        float(f"{candidate.diameter_mm:.6g}"),
        pixels if unit == "px" else mm,
        method=code("equivalent", _OWN_CODES, f"of {shape}{where and ', '}{where}"),
    )
    return [*made, diameter]


def _place(
    hd: Any,
    candidate: Candidate,
    prediction: Prediction,
    source: SourceSeries,
    segmentation: WrittenSegmentation | None,
) -> dict[str, Any]:
    """The candidate's segment, or its box on every image that it meets."""
    sr = hd.sr
    if segmentation is not None and candidate.id in segmentation.of_candidate:
        number, dataset = segmentation.of_candidate[candidate.id], segmentation.dataset
        written = (str(dataset.SOPClassUID), str(dataset.SOPInstanceUID))
        if source.is_radiograph:  # whose frames are its segments in their order
            image = sr.SourceImageForSegmentation.from_source_image(source.headers[0])
            frame = sr.ReferencedSegmentationFrame(
                *written, frame_number=number, segment_number=number, source_image=image
            )
            return {"referenced_segment": frame}
        series = sr.SourceSeriesForSegmentation(source.headers[0].SeriesInstanceUID)
        return {"referenced_segment": sr.ReferencedSegment(*written, number, source_series=series)}
    # columns and rows from the corner of the first pixel
    shape = prediction.geometry.shape[-2:]
    start, stop = (np.clip(v[-2:], 0, shape) for v in (candidate.start_vox, candidate.stop_vox))
    (top, left), (bottom, right) = start.tolist(), stop.tolist()
    corners = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]

    def rectangle(index: int, frame: int | None) -> Any:
        image = sr.SourceImageForRegion.from_source_image(
            source.headers[index], referenced_frame_numbers=None if frame is None else [frame + 1]
        )
        return sr.ImageRegion("POLYLINE", np.array(corners), image)

    if source.is_radiograph:
        return {"referenced_region": rectangle(0, None)}
    first = min(max(floor(candidate.start_vox[0]), 0), len(source.slices) - 1)
    last = max(ceil(candidate.stop_vox[0]), first + 1)
    return {"referenced_regions": [rectangle(*place) for place in source.slices[first:last]]}


def _words(prediction: Prediction, n_accepted: int) -> str:
    """How many candidates were accepted, at which operating point, and what to beware of."""
    point, check, n = prediction.operating_point, prediction.input, len(prediction.candidates)
    rule = "" if point is None else f" at the operating point {point.name} ({point.score:g})"
    warning = f" Warning: {check.warning}" if check and check.warning else ""
    if not n_accepted:
        return f"No candidate was accepted{rule}; there were {n}.{warning}"
    return f"{n_accepted} of {n} candidates were accepted{rule}.{warning}"
