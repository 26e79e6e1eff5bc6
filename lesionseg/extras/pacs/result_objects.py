"""Content of DICOM SEG and SR: codes, segments, maximum, comment text, UIDs, copied elements.

Needs highdicom.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
from highdicom import (
    AlgorithmIdentificationSequence,
    PixelMeasuresSequence,
    PlaneOrientationSequence,
    PlanePositionSequence,
    color,
    seg,
    sr,
)
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM

from lesionseg.core import Candidate, Geometry, Prediction
from lesionseg.errors import GeometryError
from lesionseg.extras.pacs.result_origin import Comparison, ResultOrigin
from lesionseg.io.dicom import DicomSlice, read_slices
from lesionseg.ops import present_values

RESEARCH_ONLY = "For research use only: not a medical device."
# with more segments viewers become slow, and nobody reads the list of segments
MAX_SEGMENTS = 100
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
_LESION = codes.SCT.Lesion
_LESION_CATEGORY = codes.SCT.MorphologicallyAbnormalStructure


@dataclass(frozen=True)
class SourceImages:
    """The scan that results refer to.

    Attributes:
        headers: The headers by file, completed, in the order of the slices.
        stack: The slices. A radiograph is its only slice.
        grid: The grid of the scan.
    """

    headers: Mapping[Path, Dataset]
    stack: Sequence[DicomSlice]
    grid: Geometry

    @property
    def first(self) -> Dataset:
        """The header of the first file, from which patient, study and series are copied."""
        return next(iter(self.headers.values()))

    @property
    def is_radiograph(self) -> bool:
        """True for a scan with two axes, which has no slices and perhaps no position in space."""
        return self.grid.dims == 2


def read_source_images(path: Path, prediction: Prediction) -> SourceImages:
    """Read the headers of a scan, and check that the prediction belongs to its grid.

    Elements that results need are added if the headers lack them. Only in memory: the files stay
    unchanged.

    Raises:
        ReadError: If the scan cannot be read.
        GeometryError: If the slices do not form an even stack, or the prediction is on another
            grid. Only the shape of a radiograph's grid counts.
    """
    stack, grid = read_slices(path)
    tolerance_mm = 0.5 * min(grid.spacing_mm)
    predicted = prediction.geometry
    # the pixel size of a radiograph may be that of the settings
    is_same = grid.shape == predicted.shape and grid.dims == 2
    if not is_same and not grid.matches(predicted, tolerance_mm):
        raise GeometryError(
            f"{path}: the prediction is not on the grid of the scan: "
            f"{predicted.describe_difference(grid)}, {predicted.shape} and {grid.shape} voxels. "
            "Give masks on the grid of the scan, or predict it again."
        )
    headers: dict[Path, Dataset] = {}  # an enhanced file has many slices
    for piece in stack:
        headers.setdefault(piece.path, piece.elements)
    source = SourceImages(headers, stack, grid)
    _complete_headers(source)
    if not source.is_radiograph:
        _share_plane(source)
    elif not all(name in source.first for name in _LOCATED):
        # without a position the frame of reference has no meaning
        del source.first.FrameOfReferenceUID
    return source


def _complete_headers(source: SourceImages) -> None:
    """Set the elements that results must have, if they are absent or not valid.

    highdicom copies these elements from the scan and raises if one is missing or malformed. All
    headers get the UIDs of the first one. A missing UID is derived from another.
    """
    for header in source.headers.values():
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
        header.Modality = str(header.get("Modality", None) or "OT")  # other
    for name, origin in _UID_SOURCES.items():
        uid = source.first.get(name) or _derive_uid(source.first[origin].value, name)
        for header in source.headers.values():
            setattr(header, name, uid)


def _share_plane(source: SourceImages) -> None:
    """Set the same orientation, distance and thickness of the slices in all headers.

    highdicom requires them in a place where a file may lack them: an enhanced file may have them
    for each frame, and other files may have wrong distances. The reader has checked that the slices
    agree, so the first slice and the grid give the values for all.
    """
    first = source.stack[0]
    distance = float(f"{source.grid.spacing_mm[0]:.6g}")
    thickness = first.thickness_mm or distance
    orientation = PlaneOrientationSequence("PATIENT", first.directions.ravel().tolist())
    for header in source.headers.values():
        if "PerFrameFunctionalGroupsSequence" in header:  # an enhanced file: all slices in one
            shared = header.setdefault("SharedFunctionalGroupsSequence", Items([Dataset()]))
            shared.value[0].PlaneOrientationSequence = orientation
            shared.value[0].PixelMeasuresSequence = PixelMeasuresSequence(
                first.pixel_mm.tolist(), thickness, distance
            )
        else:
            header.ImageOrientationPatient = orientation[0].ImageOrientationPatient
            header.SpacingBetweenSlices = distance
            header.SliceThickness = thickness


def _derive_uid(*parts: object) -> str:
    """Return a DICOM UID that depends only on the texts of `parts` and on their order.

    Unlike a random UID, it is the same in each run, so that an archive recognises equal results.
    """
    # the text of a list keeps the parts separate: ("a", "b") and ("ab",) give different UIDs
    entropy = repr([str(part) for part in parts])
    return str(generate_uid(entropy_srcs=[entropy]))


def _label_name(labels: Mapping[int, str], value: int) -> str:
    """Return the name of the label `value`, or `label <value>` if it has no name.

    The name is cut to 64 characters, the maximum of a short DICOM text.
    """
    return labels.get(value, f"label {value}")[:_MAX_LABEL_CHARACTERS]


def _own_code(value: str, meaning: str) -> sr.CodedConcept:
    """Return a coded term of lesionseg, for a concept that the standard terminologies lack.

    `value` is its code, and `meaning` the text that viewers show.
    """
    return sr.CodedConcept(value, _OWN_CODES, meaning)


@dataclass(frozen=True, eq=False)
class ResultObjects:
    """The DICOM objects of one case.

    Attributes:
        source: The scan.
        prediction: The prediction on its grid.
        origin: The origin of the prediction.
        labels: The names of the candidates' labels.
    """

    source: SourceImages
    prediction: Prediction
    origin: ResultOrigin
    labels: Mapping[int, str]

    @cached_property
    def accepted(self) -> list[Candidate]:
        """The accepted candidates. Only these are written to the DICOM results."""
        return [candidate for candidate in self.prediction.candidates if candidate.accepted]

    @cached_property
    def parameters(self) -> dict[str, str]:
        """The parameters of the algorithm that both results contain, by name.

        The parameters are the digest of the bundle, the name and score of the operating point if
        there is one, and the intended use.
        """
        parameters = {"bundle": self.origin.bundle}
        point = self.prediction.operating_point
        if point is not None:
            parameters["operating point"] = point.name
            parameters["score"] = f"{point.score:g}"
        parameters["use"] = RESEARCH_ONLY
        return parameters

    def uid(self, kind: str, *parts: object) -> str:
        """Return a UID that depends only on the series, `kind`, the origin's key and `parts`.

        The same run therefore gives the same UIDs. `kind` is the object to identify, such as "SEG".
        """
        return _derive_uid(self.source.first.SeriesInstanceUID, kind, self.origin.key, *parts)

    def tracking_name(self, candidate: Candidate) -> str:
        """Return the name of a candidate in segmentation and report, such as "lesion 7".

        The name consists of label and id. A long label is cut so that the name has at most 64
        characters.
        """
        number = f" {candidate.id}"
        name = _label_name(self.labels, candidate.label)
        return name[: _MAX_LABEL_CHARACTERS - len(number)].rstrip() + number

    def _common_elements(self, kind: str, *, last_digit: int) -> dict[str, Any]:
        """Return the keyword arguments that the constructors of SEG and SR share, by name.

        Args:
            kind: "SEG" or "SR", from which the UIDs are derived.
            last_digit: Last digit of the series number, 1 for the SEG and 2 for the SR.
        """
        header = self.source.first
        series_number = int(header.get("SeriesNumber", None) or 0)
        series_number = min(max(series_number, 0), _MAX_SERIES_NUMBER)  # some are negative
        return {
            "series_instance_uid": self.uid(f"{kind} series"),
            # The UID depends on the candidates, too: on another machine, the same run may give them
            # slightly different numbers, and objects with different content need different UIDs.
            "sop_instance_uid": self.uid(kind, self.prediction.candidates),
            "series_number": series_number * 100 + last_digit,
            "instance_number": 1,
            "manufacturer": "lesionseg",
            "manufacturer_model_name": "lesionseg",
            "software_versions": self.origin.version,
            "device_serial_number": self.origin.bundle,
            # not today, because the same run must give the same bytes
            "content_date": header.StudyDate or "19700101",  # the element must not be empty
            "content_time": header.StudyTime or "000000",
            "specific_character_set": "ISO_IR 192",  # UTF-8
        }

    def make_segmentation(
        self, mask_labels: Mapping[int, str]
    ) -> tuple[seg.Segmentation | None, dict[int, int]]:
        """Make a binary SEG, in which each segment is an accepted candidate or a label.

        Segments are labels if there are more than `MAX_SEGMENTS` accepted candidates with voxels.
        They are also labels if labels are regions, because a candidate may then contain several
        regions.

        Args:
            mask_labels: The names of mask values, for segments that are labels.

        Returns:
            The SEG, or None if no accepted candidate has voxels, and the segment number of each
            accepted candidate with voxels by its id. The numbers are empty if segments are labels.
        """
        voxels: NDArray[Any] | None = self.prediction.instances
        if voxels is None:
            return None, {}
        ids_with_voxels = set(present_values(voxels))
        name_of_value = {
            c.id: self.tracking_name(c) for c in self.accepted if c.id in ids_with_voxels
        }
        if not name_of_value:
            return None, {}
        number_of_candidate = {value: n for n, value in enumerate(name_of_value, start=1)}
        # `values` contains mask values if labels are regions
        if self.prediction.values is not None or len(name_of_value) > MAX_SEGMENTS:
            voxels = self.prediction.mask()
            values = sorted(filter(None, present_values(voxels)))
            name_of_value = {value: _label_name(mask_labels, value) for value in values}
            number_of_candidate = {}
        # look-up table from voxel value to segment number; 0 means background
        number_of_value = np.zeros(int(voxels.max()) + 1, np.uint8)
        number_of_value[list(name_of_value)] = np.arange(len(name_of_value)) + 1
        pixels = number_of_value[voxels]
        positions = None
        if not self.source.is_radiograph:
            # distances may differ a little, so each slice keeps its own position
            marked = np.flatnonzero(pixels.any(axis=(1, 2))).tolist()
            pixels = pixels[marked]
            places = [self.source.stack[z].position.tolist() for z in marked]
            positions = [PlanePositionSequence("PATIENT", place) for place in places]
        headers = list(self.source.headers.values())
        is_enhanced = "PerFrameFunctionalGroupsSequence" in headers[0]
        n_main = 1 if is_enhanced else len(headers)  # highdicom accepts one enhanced file
        dataset = seg.Segmentation(
            source_images=headers[:n_main],
            pixel_array=pixels,
            segmentation_type=seg.SegmentationTypeValues.BINARY,
            segment_descriptions=self._describe_segments(list(name_of_value.values())),
            plane_positions=positions,
            content_label="LESIONS",
            content_description=RESEARCH_ONLY,
            series_description="lesionseg: lesions (research use only)",
            further_source_images=headers[n_main:] or None,
            **self._common_elements("SEG", last_digit=1),
        )
        uid = self.uid("dimensions")  # replaces the random UID of the library
        for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
            item.DimensionOrganizationUID = uid
        return dataset, number_of_candidate

    def _describe_segments(self, names: Sequence[str]) -> list[seg.SegmentDescription]:
        """Return the DICOM description of each segment: number from 1, name, finding and colour."""
        algorithm = AlgorithmIdentificationSequence(
            name="lesionseg",
            family=codes.DCM.ArtificialIntelligence,
            version=self.origin.version,
            source="lesionseg",
            parameters=self.parameters,
        )
        return [
            seg.SegmentDescription(
                segment_number=n,
                segment_label=name,
                segmented_property_type=_LESION,
                segmented_property_category=_LESION_CATEGORY,
                algorithm_type=seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
                tracking_id=name,
                tracking_uid=self.uid("tracking", name),
                display_color=color.CIELabColor(*_COLOURS[(n - 1) % len(_COLOURS)]),
            )
            for n, name in enumerate(names, start=1)
        ]

    def make_report(
        self,
        segmentation: seg.Segmentation | None,
        segments: Mapping[int, int],
        comparison: Comparison,
    ) -> sr.Comprehensive3DSR:
        """Make the report (SR), which contains the measurements of each accepted candidate.

        The report is a Measurement Report of the template TID 1500.

        Args:
            segmentation: The segmentation, or None.
            segments: The number of a candidate's segment in the segmentation, by candidate id.
                Candidates without a segment are marked by boxes.
            comparison: The comparison with an earlier visit, which may be empty.
        """
        groups = []
        for candidate in self.accepted:
            change = comparison.since.get(candidate.id, ("", None))
            number = segments.get(candidate.id)
            groups.append(self._make_group(candidate, segmentation, number, change))
        device = sr.DeviceObserverIdentifyingAttributes(
            uid=_derive_uid("device", self.origin.bundle),
            name="lesionseg",
            manufacturer_name="lesionseg",
            model_name="lesionseg",
            serial_number=self.origin.bundle,
        )
        observer = sr.ObserverContext(codes.DCM.Device, device)
        content = sr.MeasurementReport(
            observation_context=sr.ObservationContext(observer_device_context=observer),
            procedure_reported=codes.SCT.ImagingProcedure,
            imaging_measurements=groups or [self._make_empty_group()],
        )[0]  # highdicom returns a sequence with one item, the root of the report
        comment = sr.TextContentItem(
            codes.DCM.Comment,
            self._make_comment(comparison.remark),
            sr.RelationshipTypeValues.CONTAINS,
        )
        content.ContentSequence.append(comment)
        own_codes = CodingSchemeIdentificationItem(
            designator=_OWN_CODES, name="lesionseg", version=self.origin.version
        )
        images = list(self.source.headers.values())
        return sr.Comprehensive3DSR(
            evidence=images if segmentation is None else [*images, segmentation],
            content=content,
            is_complete=True,
            series_description="lesionseg: measurements (research use only)",
            coding_schemes=[own_codes],
            **self._common_elements("SR", last_digit=2),
        )

    def _make_comment(self, remark: str) -> str:
        """Return the comment of the report, a text for readers.

        The comment contains these sentences, as far as they apply: intended use, number of accepted
        candidates with the operating point, zones in which candidates are accepted, warning about
        the scan, and `remark`.
        """
        n_candidates = len(self.prediction.candidates)
        summary = f"{len(self.accepted)} of {n_candidates} candidates were accepted"
        point = self.prediction.operating_point
        if point is not None:
            summary += f" at the operating point {point.name} ({point.score:g})"
        check = self.prediction.input
        warning = f"Warning: {check.warning}" if check and check.warning else ""
        sentences = (RESEARCH_ONLY, f"{summary}.", self.prediction.outside_note, warning, remark)
        return " ".join(filter(None, sentences))

    def _make_algorithm(self) -> sr.AlgorithmIdentification:
        """Return the identification of lesionseg as the algorithm of a group of measurements."""
        parameters = [f"{name}: {value}" for name, value in self.parameters.items()]
        return sr.AlgorithmIdentification("lesionseg", self.origin.version, parameters)

    def _make_tracking_identifier(self, name: str) -> sr.TrackingIdentifier:
        """Return a name with its UID, by which a viewer links a segment to its measurements."""
        return sr.TrackingIdentifier(uid=self.uid("tracking", name), identifier=name)

    def _make_group(
        self,
        candidate: Candidate,
        segmentation: seg.Segmentation | None,
        number: int | None,
        change: tuple[str, float | None],
    ) -> Any:
        """Make the group of measurements of an accepted candidate for the report.

        Args:
            candidate: The candidate.
            segmentation: The segmentation, or None.
            number: The number of the candidate's segment. If it is None, the candidate's box is
                outlined on each slice.
            change: The state of the lesion since the earlier visit, such as "new", and its volume
                in ml at that visit. The state is "" without an earlier visit.
        """
        make_group: Any = sr.VolumetricROIMeasurementsAndQualitativeEvaluations
        if self.source.is_radiograph:
            make_group = sr.PlanarROIMeasurementsAndQualitativeEvaluations
        segment = None
        regions: Any = None
        if segmentation is not None and number is not None:
            segment = self._refer_to_segment(segmentation, number)
        else:
            regions = self._outline_box(candidate)
        state, volume_before = change
        evaluations = None
        if state:
            question = _own_code("change", "Change since the earlier visit")
            finding = _own_code(f"state-{state}", state.capitalize())
            evaluations = [sr.QualitativeEvaluation(question, finding)]
        return make_group(
            self._make_tracking_identifier(self.tracking_name(candidate)),
            # a radiograph has one region instead of a list
            regions[0] if regions and self.source.is_radiograph else regions,
            referenced_segment=segment,
            finding_type=_LESION,
            finding_category=_LESION_CATEGORY,
            algorithm_id=self._make_algorithm(),
            measurements=self._make_measurements(candidate, volume_before),
            qualitative_evaluations=evaluations,
        )

    def _refer_to_segment(self, segmentation: seg.Segmentation, number: int) -> Any:
        """Return a reference to segment `number`, or to its frame if the scan is a radiograph.

        The reference is built by hand, because the functions `from_segmentation` of highdicom 0.28
        fail if there is only one segment.
        """
        uids = (segmentation.SOPClassUID, segmentation.SOPInstanceUID)
        if self.source.is_radiograph:
            # the frames of a radiograph's segmentation are its segments in their order
            image = sr.SourceImageForSegmentation.from_source_image(self.source.first)
            # the number of the frame, then that of the segment
            return sr.ReferencedSegmentationFrame(*uids, number, number, source_image=image)
        series = sr.SourceSeriesForSegmentation(self.source.first.SeriesInstanceUID)
        return sr.ReferencedSegment(*uids, number, source_series=series)

    def _make_empty_group(self) -> sr.MeasurementsAndQualitativeEvaluations:
        """Make the group of a report without accepted candidates: the number of candidates, 0.

        A report must have at least one group.
        """
        name = _own_code("n-accepted", "Number of accepted candidates")
        return sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=self._make_tracking_identifier("accepted candidates"),
            finding_type=_LESION,
            algorithm_id=self._make_algorithm(),
            measurements=[sr.Measurement(name, 0, codes.UCUM.NoUnits)],
        )

    def _make_measurements(
        self, candidate: Candidate, volume_before: float | None
    ) -> list[sr.Measurement]:
        """Return the measurements of a candidate for the report. Unknown ones are left out.

        Possible measurements are score, probability, volume, volume at the earlier visit and
        diameter. Volumes are in ml, diameters in mm or, without a pixel size, in pixels.
        """
        ml = sr.CodedConcept("ml", "UCUM", "milliliter")
        length_unit = sr.CodedConcept("mm", "UCUM", "millimeter")
        no_units = codes.UCUM.NoUnits
        is_radiograph = self.source.is_radiograph
        unit = self.prediction.geometry.size_unit
        equivalent = "of a disc of equal area" if is_radiograph else "of a ball of equal volume"
        if unit == "px":
            length_unit = sr.CodedConcept("{pixels}", "UCUM", "pixels")
        elif self.source.grid.size_unit == "px":
            equivalent += ", with an assumed pixel size"
        elif unit != "mm":
            equivalent += f", {unit.removeprefix('mm ')}"  # at the detector
        score = candidate.score if self.prediction.has_scores else None
        probability = _own_code("probability", "Calibrated probability of a lesion")
        method = _own_code("equivalent", equivalent)
        rows = (  # name, value or None, unit, and method or None
            (_own_code("score", "Score of the model"), score, no_units, None),
            (probability, candidate.probability, no_units, None),
            (codes.SCT.Volume, candidate.volume_ml, ml, None),
            (_own_code("volume-before", "Volume at the earlier visit"), volume_before, ml, None),
            (codes.SCT.Diameter, candidate.diameter_mm, length_unit, method),
        )
        measurements = []
        for name, value, value_unit, value_method in rows:
            if value is not None:
                rounded = float(f"{value:.6g}")  # a decimal string has at most 16 characters
                measurements.append(sr.Measurement(name, rounded, value_unit, method=value_method))
        return measurements

    def _outline_box(self, candidate: Candidate) -> list[sr.ImageRegion]:
        """Return the outlines of a candidate's box as DICOM regions, one for each slice of the box.

        The box is clipped to the scan. A box beyond the first or last slice is outlined on that
        slice.
        """
        # columns and rows in pixels, counted from the outer corner of the first pixel
        shape = self.source.grid.shape[-2:]
        top, left = np.clip(candidate.start_vox[-2:], 0, shape).tolist()
        bottom, right = np.clip(candidate.stop_vox[-2:], 0, shape).tolist()
        corners = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        stack = self.source.stack
        if not self.source.is_radiograph:
            # a box may extend beyond the scan, but it must be drawn on one slice at least
            first = min(max(floor(candidate.start_vox[0]), 0), len(stack) - 1)
            stack = stack[first : max(ceil(candidate.stop_vox[0]), first + 1)]
        regions = []
        for piece in stack:
            frames = None if piece.frame is None else [piece.frame + 1]  # DICOM counts from 1
            header = self.source.headers[piece.path]
            image = sr.SourceImageForRegion.from_source_image(header, frames)
            regions.append(sr.ImageRegion("POLYLINE", np.array(corners), image))
        return regions
