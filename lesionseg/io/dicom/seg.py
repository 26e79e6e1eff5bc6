"""Predictions as DICOM segmentation objects (SEG) on the slices of their source images."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
        chosen = (
            {} if point is None else {"operating point": point.name, "score": f"{point.score:g}"}
        )
        return {"bundle": self.bundle, **chosen, "use": RESEARCH_ONLY}


@dataclass(frozen=True, eq=False)
class SourceSeries:
    """The headers of one image's files, and where each of its slices is stored.

    `slices`: of slice z the index into `headers` and, in a file of many, the frame from 0; none of
    a radiograph.
    """

    headers: tuple["Header", ...]
    slices: tuple[tuple[int, int | None], ...]

    @property
    def is_radiograph(self) -> bool:
        return not self.slices

    def uid(self, *parts: object) -> str:
        """A UID that follows from the series and `parts`: the same in every run."""
        return made_up_uid(self.headers[0].SeriesInstanceUID, *parts)

    def number(self, nth: int) -> int:
        """The number of the nth series made from this one."""
        return min(int(self.headers[0].get("SeriesNumber", None) or 0), 10**6) * 100 + nth


@dataclass(frozen=True, eq=False)
class WrittenSegmentation:
    """A segmentation as a report refers to it; `of_candidate`: the segment of each candidate.

    Empty where segments are labels, because candidates are too many.
    """

    dataset: Any
    of_candidate: Mapping[int, int]


def made_up_uid(*parts: object) -> str:
    """A UID that follows from `parts`."""
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=[repr([str(part) for part in parts])]))


def read_source(path: Path) -> SourceSeries:
    """Read the headers of a series' folder or of one file; raises as `read_dicom` does.

    Elements that results must have and the files lack are added, empty where that is allowed.
    """
    radiograph = radiograph_file(path)
    if radiograph is not None:
        header = read_header(radiograph)
        _complete(header)
        if not all(name in header for name in _LOCATED):
            header.pop("FrameOfReferenceUID", None)  # of what has no place it says nothing
        return SourceSeries((header,), ())
    files = series_headers(path)
    stack, geometry = read_stack(path)
    index: dict[Path, int] = {}
    slices = [(index.setdefault(p.path, len(index)), p.frame) for p in stack]
    headers = tuple(files[file] for file in index)
    for header in headers:  # what the files say of distances is not always so, or not there
        _complete(header)
        header.SpacingBetweenSlices = float(f"{geometry.spacing_mm[0]:.6g}")
        header.SliceThickness = header.get("SliceThickness") or header.SpacingBetweenSlices
    return SourceSeries(headers, tuple(slices))


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
    if prediction.instances is None:
        return None
    present = set(present_values(prediction.instances))
    accepted = [c for c in prediction.candidates if c.accepted and c.id in present]
    if not accepted:
        return None
    by_label = len(accepted) > MOST_SEGMENTS or prediction.values is not None
    values: NDArray[Any] = prediction.mask() if by_label else prediction.instances
    segments = [(c.id, _name(labels, c.label), tracking_name(c, labels)) for c in accepted]
    if by_label:
        shown = sorted(value for value in present_values(values) if value)
        segments = [(value, _name(labels, value), _name(labels, value)) for value in shown]
    number_of = np.zeros(int(values.max()) + 1, np.uint16)  # of a value its segment; 0: in none
    number_of[[value for value, *_ in segments]] = np.arange(len(segments)) + 1
    hd = require_highdicom()
    with making(path):
        algorithm = hd.AlgorithmIdentificationSequence(
            name="lesionseg",
            family=hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
            version=origin.version,
            source="lesionseg",
            parameters=origin.parameters,
        )
        lesion, kind = lesion_codes(hd)
        descriptions = [
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
        ]
        images, pixels = _on_frames(hd, prediction, values, number_of, source)
        used = {id(image) for image in images}
        dataset = hd.seg.Segmentation(
            source_images=images,
            pixel_array=pixels,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=descriptions,
            series_instance_uid=source.uid("SEG series", origin.key),
            series_number=source.number(1),
            # another machine may round otherwise: what differs must not be called the same
            sop_instance_uid=source.uid("SEG", origin.key, prediction.candidates),
            content_label="LESIONS",
            content_description=RESEARCH_ONLY,
            series_description="lesionseg: lesions (research use only)",
            further_source_images=[h for h in source.headers if id(h) not in used] or None,
            **equipment(source, origin),
        )
        uid = source.uid("dimensions", origin.key)  # the library draws a random one
        for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
            item.DimensionOrganizationUID = uid
        save_dicom(path, dataset)
    of_candidate = {} if by_label else {c.id: n for n, c in enumerate(accepted, start=1)}
    return WrittenSegmentation(dataset, of_candidate)


def tracking_name(candidate: Candidate, labels: Mapping[int, str]) -> str:
    """What a candidate is called in segmentation and report alike: label and id."""
    return f"{_name(labels, candidate.label)} {candidate.id}"


def lesion_codes(hd: Any) -> tuple[Any, Any]:
    """The codes of a lesion, and of what it is a kind of."""
    kind = hd.sr.CodedConcept("49755003", "SCT", "Morphologically Abnormal Structure")
    return hd.sr.CodedConcept("52988006", "SCT", "Lesion"), kind


def equipment(source: SourceSeries, origin: ResultOrigin) -> dict[str, Any]:
    """What segmentation and report state alike; their date is the study's: a run repeats itself."""
    header = source.headers[0]
    return {
        "instance_number": 1,
        "manufacturer": "lesionseg",
        "manufacturer_model_name": "lesionseg",
        "software_versions": origin.version,
        "device_serial_number": origin.bundle,
        "content_date": header.StudyDate or "19700101",
        "content_time": header.StudyTime or "000000",
        "specific_character_set": "ISO_IR 192",
    }


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


@contextmanager
def making(path: Path) -> Iterator[None]:
    """Quietly: neither warnings nor errors of the libraries get out, as these quote the patient."""
    logging.getLogger("highdicom").setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except LesionsegError:
        raise
    except Exception as error:  # whatever a library says of headers it does not like
        raise OutputError(
            f"{path}: the scan's headers do not allow a DICOM result ({type(error).__name__}). "
            "Give dicom_output=false for masks alone."
        ) from None


def save_dicom(path: Path, dataset: Any) -> None:
    """Write a DICOM object atomically, without the time at which that was."""
    for name in ("InstanceCreationDate", "InstanceCreationTime"):
        dataset.pop(name, None)
    for equipment in dataset.get("ContributingEquipmentSequence", ()):
        equipment.pop("ContributionDateTime", None)
    with atomic_path(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)


def _on_frames(
    hd: Any,
    prediction: Prediction,
    values: NDArray[Any],
    number_of: NDArray[np.uint16],
    source: SourceSeries,
) -> tuple[Sequence[Any], Any]:
    """Source images, and segment numbers frame for frame, or as a volume with its own place."""
    if source.is_radiograph:
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


def _name(labels: Mapping[int, str], value: int) -> str:
    return labels.get(value, f"label {value}")[:_LONGEST]


def _complete(header: "Header") -> None:
    """Add the elements that a result takes over from its source."""
    from pydicom.valuerep import DA, TM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
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
                setattr(header, name, made_up_uid(header[parent].value, name))
