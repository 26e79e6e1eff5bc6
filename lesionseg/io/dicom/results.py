"""Predictions as DICOM: a segmentation (SEG) on the scan's slices and a report (SR, TID 1500)."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Candidate, OperatingPoint, Prediction
from lesionseg.errors import ConfigError, LesionsegError, OutputError, pip_install
from lesionseg.io.dicom.headers import LPS_TO_RAS, read_header
from lesionseg.io.dicom.radiograph import radiograph_file
from lesionseg.io.dicom.series import read_stack, series_headers
from lesionseg.io.files import atomic_path
from lesionseg.ops.components import present_values

if TYPE_CHECKING:
    from pydicom.dataset import Dataset as Header

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
    """What made a result.

    `version`: lesionseg's; `bundle`: the model's digest; `key`: changes with scan and settings.
    """

    version: str
    bundle: str
    key: str
    operating_point: OperatingPoint | None = None

    @property
    def parameters(self) -> dict[str, str]:
        """What a reader of the result may want to know of it, by name."""
        point = self.operating_point
        at = {} if point is None else {"operating point": point.name, "score": f"{point.score:g}"}
        return {"bundle": self.bundle, **at, "use": RESEARCH_ONLY}


@dataclass(frozen=True)
class SinceBefore:
    """What became of a lesion since an earlier visit, and its volume then, where it was there."""

    state: str
    volume_ml: float | None = None


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
    since: Mapping[int, SinceBefore] | None = None,
    remark: str = "",
) -> bool:
    """Write a `report` and, where a path is given, a `segmentation`; False where that is empty.

    The segmentation holds the accepted candidates that have voxels, each a segment called by its
    label; beyond 100 of them, and where labels are regions, a mask value is a segment. The report
    has a group for every accepted candidate with score, probability, volume and diameter as far as
    they are known; it refers to the segment or, without one, to the box on every slice. Without an
    accepted candidate it says so. Patient, study and date are those of `scan`, a series' folder or
    a file; UIDs follow from it and `origin`.

    `labels`: names of candidates' labels; `mask_labels`: of mask values, where these are others;
    `since`: what became of candidates since an earlier visit, by id; `remark` ends the report's
    comment. Raises `ConfigError` without highdicom, `OutputError` and as `read_dicom` does.
    """
    require_highdicom()
    logging.getLogger("highdicom").setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = _read_source(scan)
            seg, segments = None, dict[int, int]()
            if segmentation is not None:
                seg, segments = _segmentation(prediction, source, origin, mask_labels or labels)
            made = _report(prediction, source, origin, labels, seg, segments, since or {}, remark)
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


# --- the scan whose patient, study and places results take over ----------------------------------


@dataclass(frozen=True, eq=False)
class _Source:
    """The headers of one image's files, and where each of its slices is stored.

    `slices`: of slice z the index into `headers` and, in a file of many, the frame from 0; none of
    a radiograph.
    """

    headers: tuple["Header", ...]
    slices: tuple[tuple[int, int | None], ...]

    def uid(self, *parts: object) -> str:
        """A UID that follows from the series and `parts`: the same in every run."""
        return _made_up_uid(self.headers[0].SeriesInstanceUID, *parts)

    def stated(self, origin: ResultOrigin, nth: int) -> dict[str, Any]:
        """What every object states; the date is the study's: the same run gives the same bytes."""
        header = self.headers[0]
        number = min(int(header.get("SeriesNumber", None) or 0), 10**6)
        return {
            "series_number": number * 100 + nth,
            "instance_number": 1,
            "manufacturer": "lesionseg",
            "manufacturer_model_name": "lesionseg",
            "software_versions": origin.version,
            "device_serial_number": origin.bundle,
            "content_date": header.StudyDate or "19700101",
            "content_time": header.StudyTime or "000000",
            "specific_character_set": "ISO_IR 192",
        }


def _read_source(path: Path) -> _Source:
    radiograph = radiograph_file(path)
    if radiograph is not None:
        header = read_header(radiograph)
        _complete(header)
        if not all(name in header for name in _LOCATED):
            header.pop("FrameOfReferenceUID", None)  # of what has no place it says nothing
        return _Source((header,), ())
    files = series_headers(path)
    stack, geometry = read_stack(path)
    index: dict[Path, int] = {}
    slices = [(index.setdefault(p.path, len(index)), p.frame) for p in stack]
    headers = tuple(files[file] for file in index)
    for header in headers:  # what the files say of distances is not always so, or not there
        _complete(header)
        header.SpacingBetweenSlices = float(f"{geometry.spacing_mm[0]:.6g}")
        header.SliceThickness = header.get("SliceThickness") or header.SpacingBetweenSlices
    return _Source(headers, tuple(slices))


def _complete(header: "Header") -> None:
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


def _made_up_uid(*parts: object) -> str:
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=[repr([str(part) for part in parts])]))


def _tracking_name(candidate: Candidate, labels: Mapping[int, str]) -> str:
    return f"{_name(labels, candidate.label)} {candidate.id}"


def _name(labels: Mapping[int, str], value: int) -> str:
    return labels.get(value, f"label {value}")[:_LONGEST]


def _lesion_codes(code: Any) -> tuple[Any, Any]:
    kind = code("49755003", "SCT", "Morphologically Abnormal Structure")
    return code("52988006", "SCT", "Lesion"), kind


# --- segmentation ---------------------------------------------------------------------------------


def _segmentation(
    prediction: Prediction, source: _Source, origin: ResultOrigin, labels: Mapping[int, str]
) -> tuple[Any, dict[int, int]]:
    """A binary SEG, and the segment of each candidate; None and none without voxels.

    Candidates have no segments where labels do: because they are regions, or candidates too many.
    """
    present = set() if prediction.instances is None else set(present_values(prediction.instances))
    accepted = [c for c in prediction.candidates if c.accepted and c.id in present]
    if prediction.instances is None or not accepted:
        return None, {}
    values: NDArray[Any] = prediction.instances
    segments = [(c.id, _name(labels, c.label), _tracking_name(c, labels)) for c in accepted]
    by_label = len(accepted) > MOST_SEGMENTS or prediction.values is not None
    if by_label:
        values = prediction.mask()
        shown = sorted(value for value in present_values(values) if value)
        segments = [(value, _name(labels, value), _name(labels, value)) for value in shown]
    number_of = np.zeros(int(values.max()) + 1, np.uint16)  # of a value its segment; 0: in none
    number_of[[value for value, *_ in segments]] = np.arange(len(segments)) + 1
    hd = require_highdicom()
    algorithm = hd.AlgorithmIdentificationSequence(
        name="lesionseg",
        family=hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
        version=origin.version,
        source="lesionseg",
        parameters=origin.parameters,
    )
    lesion, kind = _lesion_codes(hd.sr.CodedConcept)
    images, pixels = _on_frames(hd, prediction, values, number_of, source)
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
                tracking_id=tracking,
                tracking_uid=source.uid("tracking", origin.key, tracking),
                display_color=hd.color.CIELabColor(*_COLOURS[(n - 1) % len(_COLOURS)]),
            )
            for n, (_, name, tracking) in enumerate(segments, start=1)
        ],
        series_instance_uid=source.uid("SEG series", origin.key),
        # another machine may round otherwise: what differs must not be called the same
        sop_instance_uid=source.uid("SEG", origin.key, prediction.candidates),
        content_label="LESIONS",
        content_description=RESEARCH_ONLY,
        series_description="lesionseg: lesions (research use only)",
        further_source_images=[h for h in source.headers if id(h) not in used] or None,
        **source.stated(origin, 1),
    )
    uid = source.uid("dimensions", origin.key)  # the library draws a random one
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
    return _undated(dataset), {} if by_label else {c.id: n for n, c in enumerate(accepted, 1)}


def _on_frames(
    hd: Any,
    prediction: Prediction,
    values: NDArray[Any],
    number_of: NDArray[np.uint16],
    source: _Source,
) -> tuple[Sequence[Any], Any]:
    """Source images, and segment numbers frame for frame, or as a volume with its own place."""
    if not source.slices:
        return source.headers, number_of[values]
    planes = [z for z, plane in enumerate(values) if number_of[plane].any()]
    if all(frame is None for _, frame in source.slices):
        return [source.headers[z] for z in planes], np.stack([number_of[values[z]] for z in planes])
    if len(source.headers) == 1:
        order = np.argsort([frame or 0 for _, frame in source.slices])
        return source.headers, np.stack([number_of[values[z]] for z in order])
    affine = LPS_TO_RAS @ prediction.geometry.affine
    affine[:, 3] += affine[:, 0] * planes[0]
    place = str(source.headers[0].FrameOfReferenceUID)
    numbers = number_of[values[planes[0] : planes[-1] + 1]]
    volume = hd.Volume(numbers, affine, "PATIENT", frame_of_reference_uid=place)
    return source.headers[:1], volume


def _undated(dataset: Any) -> Any:
    for name in ("InstanceCreationDate", "InstanceCreationTime"):
        dataset.pop(name, None)
    for equipment in dataset.get("ContributingEquipmentSequence", ()):
        equipment.pop("ContributionDateTime", None)
    return dataset


# --- report ---------------------------------------------------------------------------------------


def _report(
    prediction: Prediction,
    source: _Source,
    origin: ResultOrigin,
    labels: Mapping[int, str],
    seg: Any,
    segments: Mapping[int, int],
    since: Mapping[int, SinceBefore],
    remark: str,
) -> Any:
    """A Measurement Report; `segments`: of candidates in `seg`, others are referred to by boxes."""
    hd = require_highdicom()
    sr, code = hd.sr, hd.sr.CodedConcept
    lesion, kind = _lesion_codes(code)
    accepted = [candidate for candidate in prediction.candidates if candidate.accepted]
    parameters = [f"{name}: {value}" for name, value in origin.parameters.items()]
    common = {
        "finding_type": lesion,
        "algorithm_id": sr.AlgorithmIdentification("lesionseg", origin.version, parameters),
    }

    def tracked(name: str) -> Any:
        uid = source.uid("tracking", origin.key, name)
        return sr.TrackingIdentifier(uid=uid, identifier=name)

    group = (
        sr.PlanarROIMeasurementsAndQualitativeEvaluations
        if not source.slices
        else sr.VolumetricROIMeasurementsAndQualitativeEvaluations
    )
    groups = []
    for candidate in accepted:
        before = since.get(candidate.id)
        change = None
        if before is not None:
            name = code("change", _OWN_CODES, "Change since the earlier visit")
            state = code(f"state-{before.state}", _OWN_CODES, before.state.capitalize())
            change = [sr.QualitativeEvaluation(name, state)]
        groups.append(
            group(
                **_place(sr, candidate, prediction, source, seg, segments.get(candidate.id)),
                **common,
                tracking_identifier=tracked(_tracking_name(candidate, labels)),
                finding_category=kind,
                measurements=_measurements(sr, candidate, prediction, source, before),
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
        uid=_made_up_uid("device", origin.bundle),
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
        evidence=[*source.headers, *([] if seg is None else [seg])],
        content=content[0],
        series_instance_uid=source.uid("SR series", origin.key),
        sop_instance_uid=source.uid("SR", origin.key, prediction.candidates),
        is_complete=True,
        series_description="lesionseg: measurements (research use only)",
        coding_schemes=[own_codes],
        **source.stated(origin, 2),
    )
    return _undated(report)


def _measurements(
    sr: Any,
    candidate: Candidate,
    prediction: Prediction,
    source: _Source,
    before: SinceBefore | None,
) -> list[Any]:
    code, unit = sr.CodedConcept, prediction.geometry.size_unit
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
    made = [sr.Measurement(n, float(f"{v:.6g}"), u) for n, v, u in rows if v is not None]
    shape = "a disc of equal area" if not source.slices else "a ball of equal volume"
    where = "" if unit == "px" else unit.removeprefix("mm").strip()
    diameter = sr.Measurement(
        code("81827009", "SCT", "Diameter"),
        float(f"{candidate.diameter_mm:.6g}"),
        pixels if unit == "px" else mm,
        method=code("equivalent", _OWN_CODES, f"of {shape}{where and ', '}{where}"),
    )
    return [*made, diameter]


def _place(
    sr: Any,
    candidate: Candidate,
    prediction: Prediction,
    source: _Source,
    seg: Any,
    number: int | None,
) -> dict[str, Any]:
    if number is not None:
        written = (str(seg.SOPClassUID), str(seg.SOPInstanceUID))
        if not source.slices:  # a radiograph, whose frames are its segments in their order
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

    if not source.slices:
        return {"referenced_region": rectangle(0, None)}
    first = min(max(floor(candidate.start_vox[0]), 0), len(source.slices) - 1)
    last = max(ceil(candidate.stop_vox[0]), first + 1)
    return {"referenced_regions": [rectangle(*place) for place in source.slices[first:last]]}


def _words(prediction: Prediction, n_accepted: int) -> str:
    point, check, n = prediction.operating_point, prediction.input, len(prediction.candidates)
    rule = "" if point is None else f" at the operating point {point.name} ({point.score:g})"
    warning = f" Warning: {check.warning}" if check and check.warning else ""
    if not n_accepted:
        return f"No candidate was accepted{rule}; there were {n}.{warning}"
    return f"{n_accepted} of {n} candidates were accepted{rule}.{warning}"
