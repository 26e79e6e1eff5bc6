"""Predictions as DICOM structured reports: Measurement Report, TID 1500."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Candidate, Prediction
from lesionseg.io.dicom.headers import LPS_TO_RAS
from lesionseg.io.dicom.seg_write import WrittenSegmentation, category, lesion, tracking_name
from lesionseg.io.dicom.source_images import (
    RESEARCH_ONLY,
    ResultOrigin,
    SourceSeries,
    made_up_uid,
    making,
    require_highdicom,
    save_dicom,
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
    segment or, without one, to its box on every slice (of a tilted gantry, to its centre). Without
    a candidate the report says that none was accepted. Raises `ConfigError` without highdicom,
    `OutputError`.

    Args:
        path: of the report.
        prediction: the candidates.
        source: the images they were found in.
        origin: what made them.
        labels: names of candidates' labels.
        segmentation: of the same candidates.
        since: what became of them since an earlier visit, by id.
        remark: ends the report's comment.
    """
    hd = require_highdicom()
    with making(path):
        change = (since or {}, remark)
        writer = _Writer(hd, prediction, source, origin, labels, segmentation, *change)
        save_dicom(path, writer.report())


@dataclass(frozen=True, eq=False)
class _Writer:
    """What every part of one report needs to know."""

    hd: Any
    prediction: Prediction
    source: SourceSeries
    origin: ResultOrigin
    labels: Mapping[int, str]
    segmentation: WrittenSegmentation | None
    since: Mapping[int, SinceBefore]
    remark: str

    def report(self) -> Any:
        """The report as a DICOM object."""
        segmentation = [] if self.segmentation is None else [self.segmentation.dataset]
        date, time = self.source.moment
        parts = (self.origin.key, self.prediction.candidates)
        return self.hd.sr.Comprehensive3DSR(
            evidence=[*self.source.headers, *segmentation],
            content=self.content()[0],
            series_instance_uid=self.source.uid("SR series", self.origin.key),
            series_number=self.source.number(2),
            sop_instance_uid=self.source.uid("SR", *parts),
            instance_number=1,
            manufacturer="lesionseg",
            is_complete=True,
            manufacturer_model_name="lesionseg",
            software_versions=self.origin.version,
            device_serial_number=self.origin.bundle,
            series_description="lesionseg: measurements (research use only)",
            content_date=date,
            content_time=time,
            coding_schemes=[
                self.hd.coding_schemes.CodingSchemeIdentificationItem(
                    designator=_OWN_CODES, name="lesionseg", version=self.origin.version
                )
            ],
            specific_character_set="ISO_IR 192",
        )

    def content(self) -> Any:
        """The tree of TID 1500: who looked, a group a candidate, and what to make of it."""
        sr = self.hd.sr
        accepted = [c for c in self.prediction.candidates if c.accepted]
        report = sr.MeasurementReport(
            observation_context=self.observer(),
            procedure_reported=self.code("363679005", "SCT", "Imaging procedure"),
            imaging_measurements=[self.group(c) for c in accepted] or [self.nothing()],
        )
        comment = sr.TextContentItem(
            name=self.code("121106", "DCM", "Comment"),
            value=f"{RESEARCH_ONLY} {self.found(len(accepted))} {self.remark}".strip(),
            relationship_type=sr.RelationshipTypeValues.CONTAINS,
        )
        report[0].ContentSequence.append(comment)
        return report

    def found(self, number: int) -> str:
        """How many candidates were accepted, from which score on, and any warning of the scan."""
        point = self.prediction.operating_point
        rule = "" if point is None else f" at the operating point {point.name} ({point.score:g})"
        n_candidates = len(self.prediction.candidates)
        verdict = self.prediction.input
        warning = f" Warning: {verdict.warning}" if verdict and verdict.warning else ""
        if number:
            return f"{number} of {n_candidates} candidates were accepted{rule}.{warning}"
        return f"No candidate was accepted{rule}; there were {n_candidates}.{warning}"

    def observer(self) -> Any:
        """A device: this program with this bundle."""
        sr = self.hd.sr
        device = sr.DeviceObserverIdentifyingAttributes(
            uid=made_up_uid("device", self.origin.bundle),
            name="lesionseg",
            manufacturer_name="lesionseg",
            model_name="lesionseg",
            serial_number=self.origin.bundle,
        )
        context = sr.ObserverContext(self.code("121007", "DCM", "Device"), device)
        return sr.ObservationContext(observer_device_context=context)

    def group(self, candidate: Candidate) -> Any:
        """The measurements of one candidate and where it lies."""
        name, sr = tracking_name(candidate, self.labels), self.hd.sr
        tracked = sr.TrackingIdentifier(
            uid=self.source.uid("tracking", self.origin.key, name), identifier=name
        )
        known = {
            "tracking_identifier": tracked,
            "finding_type": lesion(self.hd),
            "finding_category": category(self.hd),
            "algorithm_id": self.algorithm(),
            "measurements": self.measurements(candidate),
            "qualitative_evaluations": self.change(candidate),
        }
        planar = sr.PlanarROIMeasurementsAndQualitativeEvaluations
        volumetric = sr.VolumetricROIMeasurementsAndQualitativeEvaluations
        number = self.segment_number(candidate)
        if number is not None and self.source.is_radiograph:
            return planar(referenced_segment=self.frame(number), **known)
        if number is not None:
            return volumetric(referenced_segment=self.segment(number), **known)
        if self.source.is_radiograph:
            return planar(referenced_region=self.rectangle(candidate, None), **known)
        if self.source.aligned:
            return volumetric(referenced_regions=self.rectangles(candidate), **known)
        return planar(referenced_region=self.centre(candidate), **known)

    def nothing(self) -> Any:
        """A group that counts no lesion: a report needs one."""
        sr, name = self.hd.sr, "accepted candidates"
        count = sr.Measurement(
            self.own("n-accepted", "Number of accepted candidates"), 0, self.unitless()
        )
        return sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(
                uid=self.source.uid("tracking", self.origin.key, name), identifier=name
            ),
            finding_type=lesion(self.hd),
            algorithm_id=self.algorithm(),
            measurements=[count],
        )

    def algorithm(self) -> Any:
        """Program, version, bundle and operating point."""
        parameters = [f"{name}: {value}" for name, value in self.origin.parameters.items()]
        return self.hd.sr.AlgorithmIdentification("lesionseg", self.origin.version, parameters)

    def measurements(self, candidate: Candidate) -> list[Any]:
        """Score, probability, volume and diameter, as far as they are known."""
        sr, scores = self.hd.sr, list[tuple[Any, float]]()
        if self.prediction.scored:  # a score is never invented
            scores.append((self.own("score", "Score of the model"), candidate.score))
        if candidate.probability is not None:
            name = self.own("probability", "Calibrated probability of a lesion")
            scores.append((name, candidate.probability))
        measurements = [
            sr.Measurement(name, _short(value), self.unitless()) for name, value in scores
        ]
        if candidate.volume_ml is not None:
            volume = self.code("118565006", "SCT", "Volume")
            millilitre = self.code("ml", "UCUM", "milliliter")
            measurements.append(sr.Measurement(volume, _short(candidate.volume_ml), millilitre))
            since = self.since.get(candidate.id)
            if since is not None and since.volume_ml is not None:
                before = self.own("volume-before", "Volume at the earlier visit")
                measurements.append(sr.Measurement(before, _short(since.volume_ml), millilitre))
        return [*measurements, self.diameter(candidate)]

    def change(self, candidate: Candidate) -> list[Any] | None:
        """What became of it since the earlier visit, where that is known."""
        since = self.since.get(candidate.id)
        if since is None:
            return None
        state = self.own(f"state-{since.state}", since.state.capitalize())
        name = self.own("change", "Change since the earlier visit")
        return [self.hd.sr.QualitativeEvaluation(name, state)]

    def diameter(self, candidate: Candidate) -> Any:
        """The equivalent diameter, and what it is of."""
        unit = self.prediction.geometry.size_unit
        shape = "a disc of equal area" if self.source.is_radiograph else "a ball of equal volume"
        where = unit.removeprefix("mm").strip() if unit != "px" else ""
        pixels = self.code("{pixels}", "UCUM", "pixels")
        return self.hd.sr.Measurement(
            self.code("81827009", "SCT", "Diameter"),
            _short(candidate.diameter_mm),
            pixels if unit == "px" else self.code("mm", "UCUM", "millimeter"),
            method=self.own("equivalent", f"of {shape}{', ' * bool(where)}{where}"),
        )

    def segment_number(self, candidate: Candidate) -> int | None:
        """The candidate's segment; None when it has none of its own."""
        segmentation = self.segmentation
        return None if segmentation is None else segmentation.of_candidate.get(candidate.id)

    def segment(self, number: int) -> Any:
        """A segment of a volume."""
        series = self.hd.sr.SourceSeriesForSegmentation(self.source.first.SeriesInstanceUID)
        return self.hd.sr.ReferencedSegment(*self.written(), number, source_series=series)

    def frame(self, number: int) -> Any:
        """A segment of one image, whose frames are its segments in their order."""
        image = self.hd.sr.SourceImageForSegmentation.from_source_image(self.source.first)
        return self.hd.sr.ReferencedSegmentationFrame(
            *self.written(), frame_number=number, segment_number=number, source_image=image
        )

    def written(self) -> tuple[str, str]:
        """Class and UID of the segmentation."""
        dataset: Any = None if self.segmentation is None else self.segmentation.dataset
        return str(dataset.SOPClassUID), str(dataset.SOPInstanceUID)

    def rectangles(self, candidate: Candidate) -> list[Any]:
        """The candidate's box, on every slice that it meets."""
        n = len(self.source.slices)
        first = min(max(floor(candidate.start_vox[0]), 0), n - 1)
        stop = min(max(ceil(candidate.stop_vox[0]), first + 1), n)
        return [self.rectangle(candidate, z) for z in range(first, stop)]

    def rectangle(self, candidate: Candidate, z: int | None) -> Any:
        """The candidate's box on one image: columns and rows from the corner of the first pixel."""
        index, frame = (0, None) if z is None else self.source.slices[z]
        header = self.source.headers[index]
        image = self.hd.sr.SourceImageForRegion.from_source_image(
            header, referenced_frame_numbers=None if frame is None else [frame + 1]
        )
        corners = box_corners(candidate, self.prediction.geometry.shape[-2:])
        return self.hd.sr.ImageRegion("POLYLINE", corners, image)

    def centre(self, candidate: Candidate) -> Any:
        """The candidate's centre in the patient."""
        point = LPS_TO_RAS[:3, :3] @ np.asarray(candidate.centre_mm)
        frame = str(self.source.first.FrameOfReferenceUID)
        return self.hd.sr.ImageRegion3D("POINT", point[np.newaxis], frame)

    def own(self, value: str, meaning: str) -> Any:
        """A code of our own, for what the standard has no word for."""
        return self.code(value, _OWN_CODES, meaning)

    def unitless(self) -> Any:
        """The unit of what has none."""
        return self.code("1", "UCUM", "no units")

    def code(self, value: str, scheme: str, meaning: str) -> Any:
        """A code of a scheme."""
        return self.hd.sr.CodedConcept(value, scheme, meaning)


def box_corners(candidate: Candidate, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """A closed line (column, row) `[5, 2]` round a box, cut at the image's edges."""
    start, stop = (np.clip(v[-2:], 0, shape) for v in (candidate.start_vox, candidate.stop_vox))
    (top, left), (bottom, right) = start.tolist(), stop.tolist()
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom], [left, top]])


def _short(value: float) -> float:
    """Six significant digits: more than is known, and what fits a decimal string."""
    return float(f"{value:.6g}")
