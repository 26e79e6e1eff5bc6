"""Predictions as DICOM segmentation objects (SEG) on the slices of their source images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Candidate, Prediction
from lesionseg.io.dicom.headers import LPS_TO_RAS
from lesionseg.io.dicom.source_images import (
    RESEARCH_ONLY,
    ResultOrigin,
    SourceSeries,
    making,
    require_highdicom,
    save_dicom,
)
from lesionseg.ops.components import present_values

# beyond this many viewers become slow, and a list of segments is no longer read
MOST_SEGMENTS = 100
_LONGEST = 64  # characters of a label, PS3.5 LO
# CIELab, light enough to be seen on grey: red, yellow, green, cyan, blue, magenta
_COLOURS = ((60, 70, 45), (85, -5, 75), (75, -60, 55), (80, -45, -15), (55, 10, -60), (60, 80, -45))


@dataclass(frozen=True, eq=False)
class Segments:
    """Segment numbers, from 1, of voxels and of candidates; and each segment's name.

    A voxel's number is `number_of[values]`, 0 for none. `of_candidate` is empty where segments are
    labels, because candidates are too many.
    """

    values: NDArray[np.integer[Any]]
    number_of: NDArray[np.uint16]
    labels: tuple[str, ...]
    tracking: tuple[str, ...]
    of_candidate: Mapping[int, int]

    def numbers(self, planes: Sequence[int]) -> NDArray[np.uint16]:
        """The numbers of a few slices: those of all would be another volume in memory."""
        return np.stack([self.number_of[self.values[z]] for z in planes])

    def planes(self) -> list[int]:
        """The slices that hold something."""
        return [z for z, values in enumerate(self.values) if self.number_of[values].any()]


@dataclass(frozen=True, eq=False)
class WrittenSegmentation:
    """A segmentation as a report refers to it."""

    dataset: Any
    of_candidate: Mapping[int, int]


def write_segmentation(
    path: Path,
    prediction: Prediction,
    source: SourceSeries,
    origin: ResultOrigin,
    labels: Mapping[int, str],
) -> WrittenSegmentation | None:
    """Write the accepted candidates that have voxels as a binary SEG; None where there is none.

    A candidate is a segment, called by its label; beyond 100 of them, and where labels are regions,
    a label is. `labels`: names of mask values. Patient and study are the source's, so is the date;
    UIDs follow from series and `origin`. Raises `ConfigError` without highdicom, `OutputError`.
    """
    segments = make_segments(prediction, labels)
    if segments is None:
        return None
    hd = require_highdicom()
    with making(path):
        dataset = _segmentation(hd, prediction, segments, source, origin)
        _settle_uids(dataset, source, origin)
        save_dicom(path, dataset)
    return WrittenSegmentation(dataset, segments.of_candidate)


def make_segments(prediction: Prediction, labels: Mapping[int, str]) -> Segments | None:
    """Which voxels become which segment; None when no accepted candidate has any."""
    accepted = _with_voxels(prediction)
    if not accepted or prediction.instances is None:
        return None
    if len(accepted) > MOST_SEGMENTS or prediction.values is not None:
        return _by_label(prediction.mask(), labels)
    number = {c.id: n for n, c in enumerate(accepted, start=1)}
    table = np.zeros(max(c.id for c in prediction.candidates) + 1, np.uint16)
    table[list(number)] = list(number.values())
    return Segments(
        prediction.instances,
        table,
        tuple(_name(labels, c.label) for c in accepted),
        tuple(tracking_name(c, labels) for c in accepted),
        number,
    )


def tracking_name(candidate: Candidate, labels: Mapping[int, str]) -> str:
    """What a candidate is called in segmentation and report alike: label and id."""
    return f"{_name(labels, candidate.label)} {candidate.id}"


def _with_voxels(prediction: Prediction) -> list[Candidate]:
    """Accepted candidates whose id some voxel holds, in the order of the candidates."""
    if prediction.instances is None:
        return []
    present = set(present_values(prediction.instances))
    return [c for c in prediction.candidates if c.accepted and c.id in present]


def _by_label(mask: NDArray[np.uint8], labels: Mapping[int, str]) -> Segments:
    present = sorted(value for value in present_values(mask) if value)
    table = np.zeros(max(present) + 1, np.uint16)
    table[present] = np.arange(1, len(present) + 1)
    names = tuple(_name(labels, value) for value in present)
    return Segments(mask, table, names, names, {})


def _name(labels: Mapping[int, str], value: int) -> str:
    return labels.get(value, f"label {value}")[:_LONGEST]


def _segmentation(
    hd: Any, prediction: Prediction, segments: Segments, source: SourceSeries, origin: ResultOrigin
) -> Any:
    date, time = source.moment
    images, pixels = _on_frames(hd, prediction, segments, source)
    used = {id(image) for image in images}
    others = [header for header in source.headers if id(header) not in used]
    return hd.seg.Segmentation(
        source_images=images,
        pixel_array=pixels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=_descriptions(hd, segments, source, origin),
        series_instance_uid=source.uid("SEG series", origin.key),
        series_number=source.number(1),
        # another machine may round otherwise: what differs must not be called the same
        sop_instance_uid=source.uid("SEG", origin.key, prediction.candidates),
        instance_number=1,
        manufacturer="lesionseg",
        manufacturer_model_name="lesionseg",
        software_versions=origin.version,
        device_serial_number=origin.bundle,
        content_label="LESIONS",
        content_description=RESEARCH_ONLY,
        series_description="lesionseg: lesions (research use only)",
        content_date=date,
        content_time=time,
        further_source_images=others or None,
        specific_character_set="ISO_IR 192",
    )


def _on_frames(
    hd: Any, prediction: Prediction, segments: Segments, source: SourceSeries
) -> tuple[Sequence[Any], Any]:
    """Source images, and segment numbers frame for frame, or as a volume with its own place."""
    if source.is_radiograph:
        return source.headers, segments.number_of[segments.values]
    planes, has_frames = segments.planes(), any(f is not None for _, f in source.slices)
    if source.aligned and not has_frames:
        return [source.headers[z] for z in planes], segments.numbers(planes)
    if source.aligned and len(source.headers) == 1:
        order = np.argsort([frame or 0 for _, frame in source.slices])
        return source.headers, segments.numbers(order.tolist())
    place = str(source.first.FrameOfReferenceUID)
    affine = LPS_TO_RAS @ prediction.geometry.affine
    affine[:, 3] += affine[:, 0] * planes[0]
    numbers = segments.numbers(range(planes[0], planes[-1] + 1))
    volume = hd.Volume(numbers, affine, "PATIENT", frame_of_reference_uid=place)
    return source.headers[:1] if has_frames else source.headers, volume


def _descriptions(
    hd: Any, segments: Segments, source: SourceSeries, origin: ResultOrigin
) -> list[Any]:
    algorithm = hd.AlgorithmIdentificationSequence(
        name="lesionseg",
        family=hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
        version=origin.version,
        source="lesionseg",
        parameters=origin.parameters,
    )
    return [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=category(hd),
            segmented_property_type=lesion(hd),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_id=tracked,
            tracking_uid=source.uid("tracking", origin.key, tracked),
            display_color=hd.color.CIELabColor(*_COLOURS[(number - 1) % len(_COLOURS)]),
        )
        for number, (label, tracked) in enumerate(
            zip(segments.labels, segments.tracking, strict=True), start=1
        )
    ]


def category(hd: Any) -> Any:
    """The code of what a lesion is a kind of."""
    return hd.sr.CodedConcept("49755003", "SCT", "Morphologically Abnormal Structure")


def lesion(hd: Any) -> Any:
    """The code of a lesion."""
    return hd.sr.CodedConcept("52988006", "SCT", "Lesion")


def _settle_uids(dataset: Any, source: SourceSeries, origin: ResultOrigin) -> None:
    """The library draws a random UID for the order of frames; a run must repeat itself."""
    uid = source.uid("dimensions", origin.key)
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
