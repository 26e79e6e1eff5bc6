"""Writing predictions as DICOM: a segmentation (SEG) and a report (SR, TID 1500)."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Candidate, Geometry, Prediction
from lesionseg.errors import (
    ConfigError,
    ContentError,
    GeometryError,
    LesionsegError,
    pip_install,
)
from lesionseg.io.dicom.elements import Header
from lesionseg.io.dicom.headers import LPS_TO_RAS, n_frames, read_header
from lesionseg.io.dicom.radiograph import UNKNOWN, pixel_size, radiograph_file
from lesionseg.io.dicom.series import read_stack, series_headers
from lesionseg.io.files import atomic_path
from lesionseg.ops.components import present_values

# endings of the file names
SEGMENTATION = "_seg.dcm"
REPORT = "_sr.dcm"
RESEARCH_ONLY = "For research use only: not a medical device."
# with more segments viewers become slow, and nobody reads the list of segments
MOST_SEGMENTS = 100
_MAX_LABEL_CHARACTERS = 64  # PS3.5, LO
# CIELab colours that are visible on grey: red, yellow, green, cyan, blue, magenta
_COLOURS = ((60, 70, 45), (85, -5, 75), (75, -60, 55), (80, -45, -15), (55, 10, -60), (60, 80, -45))
# elements that every object of a study must have, possibly with an empty value
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
_LOCATED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
# the UIDs that results must have, with the UID from which a missing one is derived; in this order,
# because the UID of the series may be missing as well
_UID_SOURCES = {
    "SeriesInstanceUID": "SOPInstanceUID",
    "StudyInstanceUID": "SeriesInstanceUID",
    "FrameOfReferenceUID": "SeriesInstanceUID",
}
# the number of a result's series is 100 times the scan's, plus 1 or 2; this keeps it below 2^31
_MAX_SERIES_NUMBER = 10**6
_OWN_CODES = "99LESIONSEG"  # coding scheme of the terms that the standard does not have


@dataclass(frozen=True)
class ResultOrigin:
    """The origin of a prediction.

    Attributes:
        version: The version of lesionseg.
        bundle: The digest of the model.
        key: A text that changes with the scan and the settings.
    """

    version: str
    bundle: str
    key: str


@dataclass(frozen=True)
class Comparison:
    """A comparison with an earlier visit, for the report.

    Attributes:
        since: The state of each candidate's lesion since the earlier visit, such as "new", and its
            volume in ml at that visit, by the candidate's id.
        remark: A sentence that is appended to the comment of the report.
    """

    since: Mapping[int, tuple[str, float | None]] = field(default_factory=dict)
    remark: str = ""


def require_highdicom() -> Any:
    """Import the package highdicom. Raise `ConfigError` if it is not installed."""
    try:
        import highdicom
        import highdicom.sr  # not imported by the package itself
    except ImportError as error:
        raise ConfigError(
            f"dicom_output: DICOM results need the package {error.name}. Run "
            f"{pip_install('dicom')}, or set dicom_output=false."
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
    comparison: Comparison | None = None,
) -> bool:
    """Write a report and, if a path is given, a segmentation of one case.

    The segmentation contains the accepted candidates that have voxels. Each is a segment. Its name
    consists of label and id, such as "lesion 7", and is the same in the report. If there are more
    than 100 candidates, or if labels are regions, each mask value is a segment, named by its label.

    The report has a group of measurements for every accepted candidate: score, probability, volume
    and diameter, as far as they are known. The group refers to the candidate's segment, or to its
    box on every slice. If no candidate is accepted, the report states 0. Patient, study and date
    are copied from the scan. UIDs depend only on the scan and `origin`.

    Args:
        scan: The folder of a series, or a DICOM file.
        prediction: The prediction on this scan.
        origin: The origin of the prediction.
        labels: The names of the candidates' labels.
        report: The path of the report.
        segmentation: The path of the segmentation. None writes no segmentation.
        mask_labels: The names of mask values, if they differ from `labels`.
        comparison: The comparison with an earlier visit. None if there is none.

    Returns:
        True if a segmentation was written. It is not written if it would be empty.

    Raises:
        ConfigError: highdicom is not installed.
        ContentError: The scan's headers do not allow a result. No file is written.
        OutputError: A file cannot be written.
        ReadError: The scan cannot be read.
        GeometryError: The slices do not form an even stack, or the scan has another number of
            slices or pixels than the prediction.
    """
    hd = require_highdicom()
    logging.getLogger("highdicom").setLevel(logging.CRITICAL)  # warnings may quote patient data
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            headers, slices, grid = _read_source(scan)
            _check_shape(scan, headers[0], len(slices), prediction)
            _check_place(scan, grid, prediction)
            results = _Results(
                hd=hd,
                prediction=prediction,
                origin=origin,
                labels=labels,
                headers=headers,
                slices=slices,
            )
            seg = None
            segments = dict[int, int]()
            if segmentation is not None:
                seg, segments = results.make_segmentation(mask_labels or labels)
            compared = comparison or Comparison()
            made = results.make_report(seg, segments, compared.since, compared.remark)
            _save(made, report)
            if seg is not None and segmentation is not None:
                _save(seg, segmentation)
    except (LesionsegError, MemoryError):
        raise
    except Exception as error:  # any error of the libraries; its text may quote the patient
        report.unlink(missing_ok=True)
        raise ContentError(
            f"{scan}: the headers do not allow a DICOM result ({type(error).__name__}). Correct "
            "them, or set dicom_output=false."
        ) from None
    return seg is not None


def _save(dataset: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)


def _read_source(
    path: Path,
) -> tuple[list["Header"], list[tuple[int, int | None]], Geometry | None]:
    """Read a scan's headers and where its slices are: `headers` and `slices` of `_Results`.

    The last value is the grid of the slices, None for a radiograph.
    """
    radiograph = radiograph_file(path)
    if radiograph is not None:
        header = _complete_header(read_header(radiograph))
        if not all(name in header for name in _LOCATED):
            # without a position the frame of reference has no meaning
            header.pop("FrameOfReferenceUID", None)
        return [header], [], None
    header_of_file = series_headers(path)
    stack, geometry = read_stack(path)
    files = list(dict.fromkeys(piece.path for piece in stack))  # an enhanced file has many slices
    index_of_file = {file: index for index, file in enumerate(files)}
    slices = [(index_of_file[piece.path], piece.frame) for piece in stack]
    headers = [_complete_header(header_of_file[file]) for file in files]
    for header in headers[1:]:  # a missing UID was derived for each file; a series has one
        for name in _UID_SOURCES:
            setattr(header, name, headers[0][name].value)
    for header in headers:  # the files may state wrong distances, or none
        header.SpacingBetweenSlices = float(f"{geometry.spacing_mm[0]:.6g}")
        header.SliceThickness = header.get("SliceThickness") or header.SpacingBetweenSlices
        _share_plane(header)
        if "ImageOrientationPatient" in header:  # highdicom requires it to be exactly equal
            header.ImageOrientationPatient = headers[0].ImageOrientationPatient
    return headers, slices, geometry


def _share_plane(header: "Header") -> None:
    """State orientation and pixel size of an enhanced file for all frames.

    highdicom requires it, but a file may state them for each frame. The reader has checked that the
    frames of a stack agree.
    """
    frames = header.get("PerFrameFunctionalGroupsSequence", None)
    shared = header.get("SharedFunctionalGroupsSequence", None)
    if not frames or not shared:
        return
    for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        if name not in shared[0] and name in frames[0]:
            setattr(shared[0], name, getattr(frames[0], name))


def _check_place(path: Path, grid: Geometry | None, prediction: Prediction) -> None:
    """Raise `GeometryError` if the prediction has the shape of the scan, but another place."""
    if grid is None or grid.matches(prediction.geometry, 0.5 * min(grid.spacing_mm)):
        return
    raise GeometryError(
        f"{path}: the prediction has the shape of the scan, but another orientation or place: "
        f"{prediction.geometry.describe_difference(grid)}. Give masks on the grid of the scan."
    )


def _check_shape(path: Path, header: "Header", n_slices: int, prediction: Prediction) -> None:
    """Raise `GeometryError` if the prediction was made on another grid than that of the scan.

    `n_slices` is 0 for a radiograph.
    """
    shape: tuple[int, ...] = (int(header.Rows), int(header.Columns))
    if n_slices:
        shape = (n_slices, *shape)
    predicted = prediction.geometry.shape
    if shape != predicted:
        raise GeometryError(
            f"{path}: the scan has {' × '.join(map(str, shape))} voxels, but the prediction has "
            f"{' × '.join(map(str, predicted))}. Predict the scan again."
        )


def _complete_header(header: "Header") -> "Header":
    """Set the elements that results must have, if they are absent or not valid.

    highdicom copies these elements from the scan and raises if one is missing or malformed.
    """
    from pydicom.valuerep import DA, TM

    for name in _MAY_BE_EMPTY:
        if header.get(name) is None:
            setattr(header, name, "")
    for name, parse in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        try:
            parse(str(header[name].value))
        except ValueError:  # the text is not a date or a time
            setattr(header, name, "")
    if str(header.PatientSex) not in ("M", "F", "O"):
        header.PatientSex = ""
    header.Modality = str(header.get("Modality", None) or "OT")
    for name, source in _UID_SOURCES.items():
        if not header.get(name):
            setattr(header, name, _derive_uid(header[source].value, name))
    return header


def _derive_uid(*parts: object) -> str:
    """Return a UID that depends only on `parts`."""
    from pydicom.uid import generate_uid

    # the text of a list keeps the parts separate: ("a", "b") and ("ab",) give different UIDs
    entropy = repr([str(part) for part in parts])
    return str(generate_uid(entropy_srcs=[entropy]))


def _label_name(labels: Mapping[int, str], value: int) -> str:
    return labels.get(value, f"label {value}")[:_MAX_LABEL_CHARACTERS]


def _remove_times(dataset: Any) -> Any:
    """Remove the times of creation, so that the same run gives the same bytes."""
    for name in ("InstanceCreationDate", "InstanceCreationTime"):
        dataset.pop(name, None)
    for equipment in dataset.get("ContributingEquipmentSequence", ()):
        equipment.pop("ContributionDateTime", None)
    return dataset


@dataclass(frozen=True)
class _Codes:
    """The coded terms of the objects, made by the `CodedConcept` of highdicom."""

    concept: Any

    @property
    def lesion(self) -> Any:
        return self.concept("52988006", "SCT", "Lesion")

    @property
    def category(self) -> Any:
        return self.concept("49755003", "SCT", "Morphologically Abnormal Structure")

    @property
    def no_units(self) -> Any:
        return self.concept("1", "UCUM", "no units")

    def own(self, value: str, meaning: str) -> Any:
        """Return a term that the standard does not have."""
        return self.concept(value, _OWN_CODES, meaning)


@dataclass(frozen=True, eq=False)
class _Results:
    """The DICOM objects of one case.

    Attributes:
        hd: The package highdicom.
        prediction: The prediction.
        origin: The origin of the prediction.
        labels: The names of the candidates' labels.
        headers: The headers of the scan's files.
        slices: For each slice the index of its file in `headers` and, for a file with several
            frames, the frame from 0. Empty for a radiograph.
    """

    hd: Any
    prediction: Prediction
    origin: ResultOrigin
    labels: Mapping[int, str]
    headers: Sequence["Header"]
    slices: Sequence[tuple[int, int | None]]

    @cached_property
    def codes(self) -> _Codes:
        """The coded terms, as objects of highdicom."""
        return _Codes(self.hd.sr.CodedConcept)

    @cached_property
    def accepted(self) -> list[Candidate]:
        return [candidate for candidate in self.prediction.candidates if candidate.accepted]

    @cached_property
    def parameters(self) -> dict[str, str]:
        """The parameters of the algorithm by name, for the readers of the result."""
        parameters = {"bundle": self.origin.bundle}
        point = self.prediction.operating_point
        if point is not None:
            parameters["operating point"] = point.name
            parameters["score"] = f"{point.score:g}"
        parameters["use"] = RESEARCH_ONLY
        return parameters

    def uid(self, *parts: object) -> str:
        """Return a UID that follows from the series and `parts`: the same in every run."""
        return _derive_uid(self.headers[0].SeriesInstanceUID, *parts)

    def tracking_name(self, candidate: Candidate) -> str:
        """Return the name of a candidate in both objects: its label and its id."""
        number = f" {candidate.id}"
        name = _label_name(self.labels, candidate.label)
        return name[: _MAX_LABEL_CHARACTERS - len(number)].rstrip() + number

    def common_elements(self, kind: str, *, last_digit: int) -> dict[str, Any]:
        """Return the arguments that the constructors of SEG and SR share.

        Args:
            kind: "SEG" or "SR", from which the UIDs are derived.
            last_digit: last digit of the series number, 1 for the SEG and 2 for the SR.
        """
        header = self.headers[0]
        key = self.origin.key
        series_number = int(header.get("SeriesNumber", None) or 0)
        series_number = min(max(series_number, 0), _MAX_SERIES_NUMBER)  # some are negative
        return {
            "series_instance_uid": self.uid(f"{kind} series", key),
            # another machine may round differently, and different objects need different UIDs
            "sop_instance_uid": self.uid(kind, key, self.prediction.candidates),
            "series_number": series_number * 100 + last_digit,
            "instance_number": 1,
            "manufacturer": "lesionseg",
            "manufacturer_model_name": "lesionseg",
            "software_versions": self.origin.version,
            "device_serial_number": self.origin.bundle,
            # not today, because the same run must give the same bytes
            "content_date": header.StudyDate or "19700101",
            "content_time": header.StudyTime or "000000",
            "specific_character_set": "ISO_IR 192",
        }

    def make_segmentation(self, mask_labels: Mapping[int, str]) -> tuple[Any, dict[int, int]]:
        """Make a binary SEG, in which each segment is a candidate or a label.

        `_choose_segments` decides between the two.

        Returns:
            The SEG, or None if no accepted candidate has voxels, and the segment number of each
            candidate. The numbers are empty if segments are labels.
        """
        instances = self.prediction.instances
        if instances is None:
            return None, {}
        ids = set(present_values(instances))
        candidates = [candidate for candidate in self.accepted if candidate.id in ids]
        if not candidates:
            return None, {}
        values, name_of_value, are_labels = self._choose_segments(
            instances, candidates, mask_labels
        )
        # look-up table from voxel value to segment number; 0 means background
        number_of_value = np.zeros(int(values.max()) + 1, np.uint8)
        number_of_value[list(name_of_value)] = np.arange(len(name_of_value)) + 1
        number_of_candidate: dict[int, int] = {}
        if not are_labels:
            number_of_candidate = {c.id: n for n, c in enumerate(candidates, start=1)}
        images, pixels = self._arrange_frames(values, number_of_value)
        # the SEG refers to all files of the scan, also to those without a lesion
        used = {id(image) for image in images}
        unused = [header for header in self.headers if id(header) not in used]
        dataset = self.hd.seg.Segmentation(
            source_images=images,
            pixel_array=pixels,
            segmentation_type=self.hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=self._describe_segments(list(name_of_value.values())),
            content_label="LESIONS",
            content_description=RESEARCH_ONLY,
            series_description="lesionseg: lesions (research use only)",
            further_source_images=unused or None,
            **self.common_elements("SEG", last_digit=1),
        )
        uid = self.uid("dimensions", self.origin.key)  # replaces the random UID of the library
        for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
            item.DimensionOrganizationUID = uid
        return _remove_times(dataset), number_of_candidate

    def _choose_segments(
        self,
        instances: NDArray[Any],
        candidates: Sequence[Candidate],
        mask_labels: Mapping[int, str],
    ) -> tuple[NDArray[Any], dict[int, str], bool]:
        """Choose candidates or labels as the segments of the SEG.

        Segments are labels if there are too many candidates. They are also labels if labels are
        regions, because a candidate may then contain several regions.

        Returns:
            The voxel values `[*spatial]`, the name of the segment of each value in the order of the
            segment numbers, and True if segments are labels.
        """
        has_regions = self.prediction.values is not None
        if has_regions or len(candidates) > MOST_SEGMENTS:
            mask = self.prediction.mask()
            labels = sorted(value for value in present_values(mask) if value)
            return mask, {label: _label_name(mask_labels, label) for label in labels}, True
        return instances, {c.id: self.tracking_name(c) for c in candidates}, False

    def _describe_segments(self, names: Sequence[str]) -> list[Any]:
        """Return the description of each segment, numbered from 1."""
        hd = self.hd
        algorithm = hd.AlgorithmIdentificationSequence(
            name="lesionseg",
            family=hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
            version=self.origin.version,
            source="lesionseg",
            parameters=self.parameters,
        )
        descriptions = []
        for n, name in enumerate(names, start=1):
            lightness, a, b = _COLOURS[(n - 1) % len(_COLOURS)]
            description = hd.seg.SegmentDescription(
                segment_number=n,
                segment_label=name,
                segmented_property_type=self.codes.lesion,
                segmented_property_category=self.codes.category,
                algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
                tracking_id=name,
                tracking_uid=self.uid("tracking", self.origin.key, name),
                display_color=hd.color.CIELabColor(lightness, a, b),
            )
            descriptions.append(description)
        return descriptions

    def _arrange_frames(
        self, values: NDArray[Any], number_of_value: NDArray[np.uint8]
    ) -> tuple[Sequence[Any], Any]:
        """Return source images and the segment numbers of their frames.

        Each frame refers to a source image. Slices whose distances differ a little therefore keep
        their own positions. highdicom accepts only one whole enhanced file in this form. If a
        scan consists of several, or of some frames of one, the frames become a volume that states
        its own position.

        Args:
            values: The voxel values `[*spatial]`.
            number_of_value: The segment number of each voxel value.
        """
        is_radiograph = not self.slices
        if is_radiograph:
            return self.headers, number_of_value[values]
        marked = np.flatnonzero(number_of_value[values].any(axis=(1, 2))).tolist()
        are_classic_files = all(frame is None for _, frame in self.slices)
        if are_classic_files:  # slice z is the file z
            return [self.headers[z] for z in marked], number_of_value[values[marked]]
        has_all_frames = len(self.slices) == n_frames(self.headers[0])
        if len(self.headers) == 1 and has_all_frames:  # one enhanced file, in its order of frames
            order = np.argsort([frame or 0 for _, frame in self.slices])
            return self.headers, number_of_value[values[order]]
        first = marked[0]
        last = marked[-1]
        affine = LPS_TO_RAS @ self.prediction.geometry.affine
        affine[:, 3] += affine[:, 0] * first  # the origin moves to the first marked slice
        volume = self.hd.Volume(
            number_of_value[values[first : last + 1]],
            affine,
            "PATIENT",
            frame_of_reference_uid=str(self.headers[0].FrameOfReferenceUID),
        )
        return self.headers[:1], volume

    def make_report(
        self,
        seg: Any,
        segments: Mapping[int, int],
        since: Mapping[int, tuple[str, float | None]],
        remark: str,
    ) -> Any:
        """Make a Measurement Report.

        Args:
            seg: The segmentation, or None.
            segments: The number of a candidate's segment in `seg`. Other candidates get boxes.
            since: See `Comparison`.
            remark: See `Comparison`.
        """
        sr = self.hd.sr
        code = sr.CodedConcept
        groups = []
        for candidate in self.accepted:
            state, volume_before = since.get(candidate.id, ("", None))
            groups.append(
                self._make_group(candidate, seg, segments.get(candidate.id), state, volume_before)
            )
        content = sr.MeasurementReport(
            observation_context=sr.ObservationContext(
                observer_device_context=self._make_observer()
            ),
            procedure_reported=code("363679005", "SCT", "Imaging procedure"),
            imaging_measurements=groups or [self._make_empty_group()],
        )[0]  # highdicom returns a sequence with one item, the root of the report
        comment = sr.TextContentItem(
            code("121106", "DCM", "Comment"),
            self._write_comment(remark),
            sr.RelationshipTypeValues.CONTAINS,
        )
        content.ContentSequence.append(comment)
        own_codes = self.hd.coding_schemes.CodingSchemeIdentificationItem(
            designator=_OWN_CODES, name="lesionseg", version=self.origin.version
        )
        evidence = list(self.headers)
        if seg is not None:
            evidence.append(seg)
        report = sr.Comprehensive3DSR(
            evidence=evidence,
            content=content,
            is_complete=True,
            series_description="lesionseg: measurements (research use only)",
            coding_schemes=[own_codes],
            **self.common_elements("SR", last_digit=2),
        )
        return _remove_times(report)

    def _write_comment(self, remark: str) -> str:
        """Return the comment of the report: counts, operating point and warning."""
        n_candidates = len(self.prediction.candidates)
        summary = f"{len(self.accepted)} of {n_candidates} candidates were accepted"
        point = self.prediction.operating_point
        if point is not None:
            summary += f" at the operating point {point.name} ({point.score:g})"
        check = self.prediction.input
        warning = f" Warning: {check.warning}" if check and check.warning else ""
        return f"{RESEARCH_ONLY} {summary}.{warning} {remark}".strip()

    def _make_observer(self) -> Any:
        """Return the observer of the report: lesionseg as a device."""
        sr = self.hd.sr
        device = sr.DeviceObserverIdentifyingAttributes(
            uid=_derive_uid("device", self.origin.bundle),
            name="lesionseg",
            manufacturer_name="lesionseg",
            model_name="lesionseg",
            serial_number=self.origin.bundle,
        )
        return sr.ObserverContext(sr.CodedConcept("121007", "DCM", "Device"), device)

    def _make_algorithm(self) -> Any:
        parameters = [f"{name}: {value}" for name, value in self.parameters.items()]
        return self.hd.sr.AlgorithmIdentification("lesionseg", self.origin.version, parameters)

    def _make_tracking_identifier(self, name: str) -> Any:
        uid = self.uid("tracking", self.origin.key, name)
        return self.hd.sr.TrackingIdentifier(uid=uid, identifier=name)

    def _make_group(
        self,
        candidate: Candidate,
        seg: Any,
        number: int | None,
        state: str,
        volume_before: float | None,
    ) -> Any:
        """Make the group of an accepted candidate.

        Args:
            candidate: The candidate.
            seg: The segmentation, or None.
            number: The candidate's segment, or None if it gets boxes.
            state: The change since an earlier visit, or "".
            volume_before: The volume at that visit in ml, or None.
        """
        sr = self.hd.sr
        codes = self.codes
        segment = None if number is None else self._refer_to_segment(seg, number)
        regions = self._outline_box(candidate) if number is None else None
        evaluations = None
        if state:
            question = codes.own("change", "Change since the earlier visit")
            finding = codes.own(f"state-{state}", state.capitalize())
            evaluations = [sr.QualitativeEvaluation(question, finding)]
        tracking = self._make_tracking_identifier(self.tracking_name(candidate))
        measurements = self._make_measurements(candidate, volume_before)
        if self.slices:
            return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=tracking,
                referenced_regions=regions,
                referenced_segment=segment,
                finding_type=codes.lesion,
                finding_category=codes.category,
                algorithm_id=self._make_algorithm(),
                measurements=measurements,
                qualitative_evaluations=evaluations,
            )
        return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=tracking,
            referenced_region=regions[0] if regions else None,
            referenced_segment=segment,
            finding_type=codes.lesion,
            finding_category=codes.category,
            algorithm_id=self._make_algorithm(),
            measurements=measurements,
            qualitative_evaluations=evaluations,
        )

    def _make_empty_group(self) -> Any:
        """Make a group that states 0 accepted candidates. A report must have at least one group."""
        sr = self.hd.sr
        name = self.codes.own("n-accepted", "Number of accepted candidates")
        return sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=self._make_tracking_identifier("accepted candidates"),
            finding_type=self.codes.lesion,
            algorithm_id=self._make_algorithm(),
            measurements=[sr.Measurement(name, 0, self.codes.no_units)],
        )

    def _make_measurements(self, candidate: Candidate, volume_before: float | None) -> list[Any]:
        """Return the measurements of a candidate that are known."""
        code = self.hd.sr.CodedConcept
        own = self.codes.own
        no_units = self.codes.no_units
        ml = code("ml", "UCUM", "milliliter")
        unit = self.prediction.geometry.size_unit
        if unit == "px":
            length_unit = code("{pixels}", "UCUM", "pixels")
            place = ""
        else:
            length_unit = code("mm", "UCUM", "millimeter")
            place = unit.removeprefix("mm").strip()  # "at the detector" or ""
            is_assumed = not self.slices and pixel_size(self.headers[0])[1] == UNKNOWN
            if is_assumed:
                place = "with an assumed pixel size"
        shape = "a ball of equal volume" if self.slices else "a disc of equal area"
        method = own("equivalent", f"of {shape}, {place}" if place else f"of {shape}")
        score = candidate.score if self.prediction.has_scores else None
        rows = (  # name, value or None, unit, and method or None
            (own("score", "Score of the model"), score, no_units, None),
            (
                own("probability", "Calibrated probability of a lesion"),
                candidate.probability,
                no_units,
                None,
            ),
            (code("118565006", "SCT", "Volume"), candidate.volume_ml, ml, None),
            (own("volume-before", "Volume at the earlier visit"), volume_before, ml, None),
            (code("81827009", "SCT", "Diameter"), candidate.diameter_mm, length_unit, method),
        )
        measurements = []
        for name, value, value_unit, how in rows:
            if value is not None:
                rounded = float(f"{value:.6g}")  # a decimal string has at most 16 characters
                measurements.append(self.hd.sr.Measurement(name, rounded, value_unit, method=how))
        return measurements

    def _refer_to_segment(self, seg: Any, number: int) -> Any:
        """Return a reference to a segment, or to its frame if the scan is a radiograph."""
        sr = self.hd.sr
        class_uid = str(seg.SOPClassUID)
        instance_uid = str(seg.SOPInstanceUID)
        if self.slices:
            series = sr.SourceSeriesForSegmentation(self.headers[0].SeriesInstanceUID)
            return sr.ReferencedSegment(class_uid, instance_uid, number, source_series=series)
        # the frames of a radiograph's segmentation are its segments in their order
        image = sr.SourceImageForSegmentation.from_source_image(self.headers[0])
        return sr.ReferencedSegmentationFrame(
            class_uid, instance_uid, number, number, source_image=image
        )

    def _outline_box(self, candidate: Candidate) -> list[Any]:
        """Return the outline of a candidate's box on each of its slices."""
        sr = self.hd.sr
        # columns and rows in pixels, counted from the outer corner of the first pixel
        shape = self.prediction.geometry.shape[-2:]
        top, left = np.clip(candidate.start_vox[-2:], 0, shape).tolist()
        bottom, right = np.clip(candidate.stop_vox[-2:], 0, shape).tolist()
        corners = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        slices: Sequence[tuple[int, int | None]] = [(0, None)]  # the only image of a radiograph
        if self.slices:
            # a box may extend beyond the scan, but it must be drawn on one slice at least
            first = min(max(floor(candidate.start_vox[0]), 0), len(self.slices) - 1)
            stop = max(ceil(candidate.stop_vox[0]), first + 1)
            slices = self.slices[first:stop]
        regions = []
        for index, frame in slices:
            frames = None if frame is None else [frame + 1]  # DICOM counts frames from 1
            image = sr.SourceImageForRegion.from_source_image(self.headers[index], frames)
            regions.append(sr.ImageRegion("POLYLINE", np.array(corners), image))
        return regions
