"""Predictions as DICOM: a segmentation (SEG) on the scan's slices and a report (SR, TID 1500)."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Candidate, Prediction
from lesionseg.errors import ConfigError, LesionsegError, OutputError, pip_install
from lesionseg.io.dicom.elements import Header
from lesionseg.io.dicom.headers import LPS_TO_RAS, read_header
from lesionseg.io.dicom.radiograph import radiograph_file
from lesionseg.io.dicom.series import read_stack, series_headers
from lesionseg.io.files import atomic_path
from lesionseg.ops.components import present_values

# what the names of a case's results end in
SEGMENTATION, REPORT = "_seg.dcm", "_sr.dcm"
RESEARCH_ONLY = "For research use only: not a medical device."
# beyond this many viewers become slow, and a list of segments is no longer read
MOST_SEGMENTS = 100
_LONGEST = 64  # characters of a label, PS3.5 LO
# CIELab, light enough to be seen on grey: red, yellow, green, cyan, blue, magenta
_COLOURS = ((60, 70, 45), (85, -5, 75), (75, -60, 55), (80, -45, -15), (55, 10, -60), (60, 80, -45))
# what every object of a study must state, though it may state that it is not known
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
_LOCATED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_OWN_CODES = "99LESIONSEG"  # for what the standard has no word for


@dataclass(frozen=True)
class ResultOrigin:
    """lesionseg's version, the model's digest and a key that changes with scan and settings."""

    version: str
    bundle: str
    key: str


def require_highdicom() -> Any:
    """The package highdicom; raises `ConfigError` where it is not installed."""
    try:
        import highdicom
        import highdicom.sr  # what it shows is imported with it
    except ImportError as error:
        raise ConfigError(
            f"dicom_output: DICOM results need {error.name}: {pip_install('dicom')}, "
            "or give dicom_output=false."
        ) from error
    return highdicom


def write_dicom_results(
    scan: Path,
    prediction: Prediction,
    origin: ResultOrigin,
    labels: Mapping[int, str],
    *,
    report: Path,
    segmentation: Path | None = None,
    mask_labels: Mapping[int, str] | None = None,
    since: Mapping[int, tuple[str, float | None]] | None = None,
    remark: str = "",
) -> bool:
    """Write a `report` and, where a path is given, a `segmentation`; False where that is empty.

    The segmentation holds the accepted candidates that have voxels. Each is a segment with the name
    that the report tracks it by, such as "lesion 7": its label and id. Beyond 100 of them, and if
    labels are regions, each mask value is a segment, named by its label. The report has a group for
    every accepted candidate with score, probability, volume and diameter as far as they are known.
    It refers to the segment or, without one, to the box on every slice. Without an accepted
    candidate it says so. Patient, study and date are those of `scan`, a series' folder or a file.
    UIDs follow from it and `origin`.

    `labels`: names of candidates' labels; `mask_labels`: of mask values, where these are others;
    `since`: by candidate's id what became of the lesion since an earlier visit, and its volume then
    in ml; `remark` ends the report's comment. Raises `ConfigError` without highdicom,
    `OutputError` and as `read_dicom` does.
    """
    hd = require_highdicom()
    logging.getLogger("highdicom").setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = _Results(hd, prediction, origin, labels, *_source(scan))
            seg, segments = None, dict[int, int]()
            if segmentation is not None:
                seg, segments = results.segmentation(mask_labels or labels)
            made = results.report(seg, segments, since or {}, remark)
            for path, dataset in ((segmentation, seg), (report, made)):
                if path is not None and dataset is not None:
                    with atomic_path(path) as temporary:
                        dataset.save_as(temporary, enforce_file_format=True)
    except LesionsegError:
        raise
    except Exception as error:  # whatever a library says of headers it does not like; it may
        raise OutputError(  # quote the patient
            f"{report}: the scan's headers do not allow a DICOM result ({type(error).__name__}). "
            "Give dicom_output=false for masks alone."
        ) from None
    return seg is not None


def _source(path: Path) -> tuple[list["Header"], list[tuple[int, int | None]]]:
    """The complete headers of a scan's files, and where each slice lies; see `_Results`."""
    radiograph = radiograph_file(path)
    if radiograph is not None:
        header = _complete(read_header(radiograph))
        if not all(name in header for name in _LOCATED):
            header.pop("FrameOfReferenceUID", None)  # of what has no place it says nothing
        return [header], []
    files = series_headers(path)
    stack, geometry = read_stack(path)
    index: dict[Path, int] = {}
    slices = [(index.setdefault(p.path, len(index)), p.frame) for p in stack]
    headers = [_complete(files[file]) for file in index]
    for header in headers:  # what the files say of distances is not always so, or not there
        header.SpacingBetweenSlices = float(f"{geometry.spacing_mm[0]:.6g}")
        header.SliceThickness = header.get("SliceThickness") or header.SpacingBetweenSlices
    return headers, slices


def _complete(header: "Header") -> "Header":
    from pydicom.valuerep import DA, TM

    for name in _MAY_BE_EMPTY:
        if header.get(name) is None:
            setattr(header, name, "")
    for name, parse in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        try:
            parse(str(header[name].value))
        except ValueError:
            setattr(header, name, "")
    if str(header.PatientSex) not in ("M", "F", "O"):
        header.PatientSex = ""
    header.Modality = str(header.get("Modality", None) or "OT")
    for name in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        if not header.get(name):
            parent = "SOPInstanceUID" if name.startswith("Series") else "SeriesInstanceUID"
            setattr(header, name, _made_up_uid(header[parent].value, name))
    return header


def _made_up_uid(*parts: object) -> str:
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=[repr([str(part) for part in parts])]))


def _name(labels: Mapping[int, str], value: int) -> str:
    return labels.get(value, f"label {value}")[:_LONGEST]


def _undated(dataset: Any) -> Any:
    """The object without the time of its making: the same run gives the same bytes."""
    for name in ("InstanceCreationDate", "InstanceCreationTime"):
        dataset.pop(name, None)
    for equipment in dataset.get("ContributingEquipmentSequence", ()):
        equipment.pop("ContributionDateTime", None)
    return dataset


@dataclass(frozen=True, eq=False)
class _Results:
    """The objects of one case.

    `headers` of the scan's files; `slices`: of slice z the index into `headers` and, in a file of
    many, the frame from 0; none of a radiograph.
    """

    hd: Any
    prediction: Prediction
    origin: ResultOrigin
    labels: Mapping[int, str]
    headers: Sequence["Header"]
    slices: Sequence[tuple[int, int | None]]

    @cached_property
    def accepted(self) -> list[Candidate]:
        return [candidate for candidate in self.prediction.candidates if candidate.accepted]

    @cached_property
    def parameters(self) -> dict[str, str]:
        """What a reader of the result may want to know of its making, by name."""
        point = self.prediction.operating_point
        at = {} if point is None else {"operating point": point.name, "score": f"{point.score:g}"}
        return {"bundle": self.origin.bundle, **at, "use": RESEARCH_ONLY}

    def uid(self, *parts: object) -> str:
        """A UID that follows from the series and `parts`: the same in every run."""
        return _made_up_uid(self.headers[0].SeriesInstanceUID, *parts)

    def lesion_codes(self) -> tuple[Any, Any]:
        code = self.hd.sr.CodedConcept
        kind = code("49755003", "SCT", "Morphologically Abnormal Structure")
        return code("52988006", "SCT", "Lesion"), kind

    def tracking(self, candidate: Candidate) -> str:
        """Return the name of a candidate in both objects: its label and its id."""
        number = f" {candidate.id}"
        name = _name(self.labels, candidate.label)
        return name[: _LONGEST - len(number)].rstrip() + number

    def stated(self, kind: str, nth: int) -> dict[str, Any]:
        """What every object states; the date is the study's."""
        header, key = self.headers[0], self.origin.key
        number = min(int(header.get("SeriesNumber", None) or 0), 10**6)
        return {
            "series_instance_uid": self.uid(f"{kind} series", key),
            # another machine may round otherwise: what differs must not be called the same
            "sop_instance_uid": self.uid(kind, key, self.prediction.candidates),
            "series_number": number * 100 + nth,
            "instance_number": 1,
            "manufacturer": "lesionseg",
            "manufacturer_model_name": "lesionseg",
            "software_versions": self.origin.version,
            "device_serial_number": self.origin.bundle,
            "content_date": header.StudyDate or "19700101",
            "content_time": header.StudyTime or "000000",
            "specific_character_set": "ISO_IR 192",
        }

    def segmentation(self, mask_labels: Mapping[int, str]) -> tuple[Any, dict[int, int]]:
        """A binary SEG, and the segment of each candidate; None and none without voxels.

        Candidates have none where labels do: because these are regions, or candidates too many.
        """
        hd = self.hd
        values: NDArray[Any] | None = self.prediction.instances
        present = set() if values is None else set(present_values(values))
        drawn = [candidate for candidate in self.accepted if candidate.id in present]
        if values is None or not drawn:
            return None, {}
        segments = [(c.id, self.tracking(c)) for c in drawn]
        by_label = len(drawn) > MOST_SEGMENTS or self.prediction.values is not None
        if by_label:
            values = self.prediction.mask()
            shown = ((value, _name(mask_labels, value)) for value in present_values(values))
            segments = [(value, name) for value, name in sorted(shown) if value]
        number_of = np.zeros(int(values.max()) + 1, np.uint8)  # of a value its segment; 0: in none
        number_of[[value for value, _ in segments]] = np.arange(len(segments)) + 1
        algorithm = hd.AlgorithmIdentificationSequence(
            name="lesionseg",
            family=hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
            version=self.origin.version,
            source="lesionseg",
            parameters=self.parameters,
        )
        lesion, kind = self.lesion_codes()
        images, pixels = self._on_frames(values, number_of)
        used = {id(image) for image in images}
        dataset = hd.seg.Segmentation(
            source_images=images,
            pixel_array=pixels,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[
                hd.seg.SegmentDescription(
                    segment_number=n,
                    segment_label=name,
                    segmented_property_type=lesion,
                    segmented_property_category=kind,
                    algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                    algorithm_identification=algorithm,
                    tracking_id=name,
                    tracking_uid=self.uid("tracking", self.origin.key, name),
                    display_color=hd.color.CIELabColor(*_COLOURS[(n - 1) % len(_COLOURS)]),
                )
                for n, (_, name) in enumerate(segments, start=1)
            ],
            content_label="LESIONS",
            content_description=RESEARCH_ONLY,
            series_description="lesionseg: lesions (research use only)",
            further_source_images=[h for h in self.headers if id(h) not in used] or None,
            **self.stated("SEG", 1),
        )
        uid = self.uid("dimensions", self.origin.key)  # the library draws a random one
        for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
            item.DimensionOrganizationUID = uid
        return _undated(dataset), {} if by_label else {c.id: n for n, c in enumerate(drawn, 1)}

    def _on_frames(
        self, values: NDArray[Any], number_of: NDArray[np.uint8]
    ) -> tuple[Sequence[Any], Any]:
        """Source images, and segment numbers frame for frame, where those may lie a bit uneven.

        Of several enhanced files it is a volume with its own place: the library takes one of them.
        """
        if not self.slices:
            return self.headers, number_of[values]
        planes = np.flatnonzero(number_of[values].any(axis=(1, 2))).tolist()
        if all(frame is None for _, frame in self.slices):
            return [self.headers[z] for z in planes], number_of[values[planes]]
        if len(self.headers) == 1:
            return self.headers, number_of[values[np.argsort([f or 0 for _, f in self.slices])]]
        affine = LPS_TO_RAS @ self.prediction.geometry.affine
        affine[:, 3] += affine[:, 0] * planes[0]
        place = str(self.headers[0].FrameOfReferenceUID)
        numbers = number_of[values[planes[0] : planes[-1] + 1]]
        volume = self.hd.Volume(numbers, affine, "PATIENT", frame_of_reference_uid=place)
        return self.headers[:1], volume

    def report(
        self,
        seg: Any,
        segments: Mapping[int, int],
        since: Mapping[int, tuple[str, float | None]],
        remark: str,
    ) -> Any:
        """A Measurement Report; `segments`: of candidates in `seg`, others are boxes."""
        sr, code, origin = self.hd.sr, self.hd.sr.CodedConcept, self.origin
        lesion, kind = self.lesion_codes()
        parameters = [f"{name}: {value}" for name, value in self.parameters.items()]

        def common(name: str) -> dict[str, Any]:
            uid = self.uid("tracking", origin.key, name)
            return {
                "finding_type": lesion,
                "algorithm_id": sr.AlgorithmIdentification("lesionseg", origin.version, parameters),
                "tracking_identifier": sr.TrackingIdentifier(uid=uid, identifier=name),
            }

        group = sr.PlanarROIMeasurementsAndQualitativeEvaluations
        if self.slices:
            group = sr.VolumetricROIMeasurementsAndQualitativeEvaluations
        change = code("change", _OWN_CODES, "Change since the earlier visit")
        groups = []
        for candidate in self.accepted:
            state, volume_before = since.get(candidate.id, ("", None))
            now = code(f"state-{state}", _OWN_CODES, state.capitalize()) if state else None
            groups.append(
                group(
                    **self._place(candidate, seg, segments.get(candidate.id)),
                    **common(self.tracking(candidate)),
                    finding_category=kind,
                    measurements=self._measurements(candidate, volume_before),
                    qualitative_evaluations=now and [sr.QualitativeEvaluation(change, now)],
                )
            )
        if not groups:  # a report needs a group
            name = code("n-accepted", _OWN_CODES, "Number of accepted candidates")
            none = sr.Measurement(name, 0, code("1", "UCUM", "no units"))
            empty = sr.MeasurementsAndQualitativeEvaluations
            groups = [empty(**common("accepted candidates"), measurements=[none])]
        names = {"name": "lesionseg", "manufacturer_name": "lesionseg", "model_name": "lesionseg"}
        device = sr.DeviceObserverIdentifyingAttributes(
            uid=_made_up_uid("device", origin.bundle), serial_number=origin.bundle, **names
        )
        observer = sr.ObserverContext(code("121007", "DCM", "Device"), device)
        content = sr.MeasurementReport(
            observation_context=sr.ObservationContext(observer_device_context=observer),
            procedure_reported=code("363679005", "SCT", "Imaging procedure"),
            imaging_measurements=groups,
        )[0]
        point, check = self.prediction.operating_point, self.prediction.input
        n = len(self.prediction.candidates)
        summary = f"{len(self.accepted)} of {n} candidates were accepted"
        rule = "" if point is None else f" at the operating point {point.name} ({point.score:g})"
        warning = f" Warning: {check.warning}" if check and check.warning else ""
        text = f"{RESEARCH_ONLY} {summary}{rule}.{warning} {remark}".strip()
        comment, contains = code("121106", "DCM", "Comment"), sr.RelationshipTypeValues.CONTAINS
        content.ContentSequence.append(sr.TextContentItem(comment, text, contains))
        own_codes = self.hd.coding_schemes.CodingSchemeIdentificationItem(
            designator=_OWN_CODES, name="lesionseg", version=origin.version
        )
        report = sr.Comprehensive3DSR(
            evidence=[*self.headers, *([] if seg is None else [seg])],
            content=content,
            is_complete=True,
            series_description="lesionseg: measurements (research use only)",
            coding_schemes=[own_codes],
            **self.stated("SR", 2),
        )
        return _undated(report)

    def _measurements(self, candidate: Candidate, volume_before: float | None) -> list[Any]:
        code, unit = self.hd.sr.CodedConcept, self.prediction.geometry.size_unit
        score = candidate.score if self.prediction.scored else None  # none is invented
        one, ml = code("1", "UCUM", "no units"), code("ml", "UCUM", "milliliter")
        mm, pixels = code("mm", "UCUM", "millimeter"), code("{pixels}", "UCUM", "pixels")
        shape = "a ball of equal volume" if self.slices else "a disc of equal area"
        where = "" if unit == "px" else unit.removeprefix("mm").strip()
        how = code("equivalent", _OWN_CODES, f"of {shape}{where and ', '}{where}")
        probability = code("probability", _OWN_CODES, "Calibrated probability of a lesion")
        earlier = code("volume-before", _OWN_CODES, "Volume at the earlier visit")
        diameter = code("81827009", "SCT", "Diameter")
        rows = (
            (code("score", _OWN_CODES, "Score of the model"), score, one, None),
            (probability, candidate.probability, one, None),
            (code("118565006", "SCT", "Volume"), candidate.volume_ml, ml, None),
            (earlier, volume_before, ml, None),
            (diameter, candidate.diameter_mm, pixels if unit == "px" else mm, how),
        )
        # six digits: more than is known, and what fits a decimal string
        measurement = self.hd.sr.Measurement
        return [
            measurement(n, float(f"{v:.6g}"), u, method=m) for n, v, u, m in rows if v is not None
        ]

    def _place(self, candidate: Candidate, seg: Any, number: int | None) -> dict[str, Any]:
        """The candidate's segment; without one its box on each slice."""
        sr, headers = self.hd.sr, self.headers
        if number is not None:
            written = (str(seg.SOPClassUID), str(seg.SOPInstanceUID))
            if self.slices:
                series = sr.SourceSeriesForSegmentation(headers[0].SeriesInstanceUID)
                segment = sr.ReferencedSegment(*written, number, source_series=series)
                return {"referenced_segment": segment}
            # of a radiograph the frames are its segments in their order
            image = sr.SourceImageForSegmentation.from_source_image(headers[0])
            frame = sr.ReferencedSegmentationFrame(*written, number, number, source_image=image)
            return {"referenced_segment": frame}
        # columns and rows from the corner of the first pixel
        shape = self.prediction.geometry.shape[-2:]
        start, stop = (np.clip(v[-2:], 0, shape) for v in (candidate.start_vox, candidate.stop_vox))
        (top, left), (bottom, right) = start.tolist(), stop.tolist()
        corners = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        first = min(max(floor(candidate.start_vox[0]), 0), max(len(self.slices) - 1, 0))
        last = max(ceil(candidate.stop_vox[0]), first + 1)
        regions = []
        for index, frame in self.slices[first:last] or [(0, None)]:
            frames = None if frame is None else [frame + 1]
            image = sr.SourceImageForRegion.from_source_image(headers[index], frames)
            regions.append(sr.ImageRegion("POLYLINE", np.array(corners), image))
        return {"referenced_regions": regions} if self.slices else {"referenced_region": regions[0]}
