"""DICOM slices: where each lies, and how its stored values become those of the modality."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.errors import ReadError
from lesionseg.io.dicom.headers import read_header, refuse_unfit
from lesionseg.io.dicom.pixels import check_pixels, stored_pixels
from lesionseg.io.formats.guard import reading

if TYPE_CHECKING:
    from pydicom.dataset import Dataset as Header

# b-values that vendors kept to themselves before the standard had one: Siemens, Philips, GE
_PRIVATE_B_VALUES = ((0x0019, 0x100C), (0x2001, 0x1003), (0x0043, 0x1039))


@dataclass(frozen=True, eq=False)
class DicomSlice:
    """One slice: a classic file, or frame `frame` of an enhanced one.

    `position`: centre of the first pixel, LPS millimetres; `across`, `down`: unit vectors along
    rows and columns; `pixel_mm`: (down, across). Values are `slope · stored + intercept`. `kind`
    holds what must not differ within a volume; `phase` what may tell repeated positions apart.
    """

    path: Path
    frame: int | None
    series: str
    uid: str
    shape: tuple[int, int]
    position: NDArray[np.float64]
    across: NDArray[np.float64]
    down: NDArray[np.float64]
    pixel_mm: tuple[float, float]
    thickness_mm: float | None
    slope: float
    intercept: float
    kind: Mapping[str, str]
    phase: Mapping[str, str]

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector across the slice, right-handed with `across` and `down`."""
        return np.cross(self.across, self.down)

    @property
    def name(self) -> str:
        """File, and frame counted from 1, for messages."""
        return self.path.name if self.frame is None else f"{self.path.name} frame {self.frame + 1}"


def read_slices(path: Path, header: "Header") -> list[DicomSlice]:
    """The slices of a file: one, or one per frame. Raises `ReadError` for what has no place."""
    refuse_unfit(path, header)
    check_pixels(path, header)
    with reading(path):
        if "PerFrameFunctionalGroupsSequence" in header:
            return _enhanced(path, header)
        return [_classic(path, header)]


def read_values(slices: list[DicomSlice]) -> NDArray[np.float32]:
    """Values `[n, y, x]` of slices in their order; each file is opened once."""
    stack = np.empty((len(slices), *slices[0].shape), dtype=np.float32)
    by_path: dict[Path, list[int]] = {}
    for index, piece in enumerate(slices):
        by_path.setdefault(piece.path, []).append(index)
    for path, indices in by_path.items():
        header = read_header(path, pixels=True)
        stored = stored_pixels(path, header)
        for index in indices:
            piece = slices[index]
            several = stored.ndim == 3 and (piece.frame or 0) < len(stored)
            values = stored[piece.frame] if several and piece.frame is not None else stored
            if values.shape != piece.shape:
                raise ReadError(
                    "The DICOM file holds other pixels than its header states.",
                    where=path,
                    seen=values.shape,
                    expected=piece.shape,
                    remedy="Export the series again, or leave the file out.",
                )
            stack[index] = values.astype(np.float64) * piece.slope + piece.intercept
    return stack


def _classic(path: Path, header: "Header") -> DicomSlice:
    if "ModalityLUTSequence" in header:
        raise ReadError("The DICOM file maps its values by a table, which is not read.", where=path)
    return _slice(
        path,
        header,
        None,
        position=_required(path, header, "ImagePositionPatient"),
        orientation=_required(path, header, "ImageOrientationPatient"),
        pixel_mm=_required(path, header, "PixelSpacing"),
        thickness=header.get("SliceThickness"),
        scale=(header.get("RescaleSlope"), header.get("RescaleIntercept")),
        kind={
            "echo": _text(header, "EchoNumbers"),
            "echo time": _text(header, "EchoTime"),
            "b-value": _b_value(header),
            "temporal position": _text(header, "TemporalPositionIdentifier"),
        },
        phase={
            "acquisition": _text(header, "AcquisitionNumber"),
            "trigger time": _text(header, "TriggerTime"),
            "cardiac delay": _text(header, "NominalCardiacTriggerDelayTime"),
            "image type": _text(header, "ImageType"),
        },
    )


def _enhanced(path: Path, header: "Header") -> list[DicomSlice]:
    shared = next(iter(header.get("SharedFunctionalGroupsSequence", None) or ()), None)
    frames = header.PerFrameFunctionalGroupsSequence
    return [_frame(path, header, shared, frame, number) for number, frame in enumerate(frames)]


def _frame(path: Path, header: "Header", shared: Any, frame: Any, number: int) -> DicomSlice:
    """One frame, from the functional groups of its own or, where those are silent, the shared."""

    def group(name: str) -> Any:
        for source in (frame, shared):
            if source is not None and source.get(name):
                return source.get(name)[0]
        return {}

    measures, values = group("PixelMeasuresSequence"), group("PixelValueTransformationSequence")
    content, diffusion = group("FrameContentSequence"), group("MRDiffusionSequence")
    return _slice(
        path,
        header,
        number,
        position=_required(path, group("PlanePositionSequence"), "ImagePositionPatient"),
        orientation=_required(path, group("PlaneOrientationSequence"), "ImageOrientationPatient"),
        pixel_mm=_required(path, measures, "PixelSpacing"),
        thickness=measures.get("SliceThickness"),
        scale=(values.get("RescaleSlope"), values.get("RescaleIntercept")),
        kind={
            "echo time": _text(group("MREchoSequence"), "EffectiveEchoTime"),
            "b-value": _text(diffusion, "DiffusionBValue"),
            "temporal position": _text(content, "TemporalPositionIndex"),
        },
        phase={"image type": _text(header, "ImageType")},
    )


def _slice(
    path: Path,
    header: "Header",
    frame: int | None,
    *,
    position: Any,
    orientation: Any,
    pixel_mm: Any,
    thickness: Any,
    scale: tuple[Any, Any],
    kind: Mapping[str, str],
    phase: Mapping[str, str],
) -> DicomSlice:
    directions = _numbers(path, "ImageOrientationPatient", orientation, 6)
    pixel_size = _numbers(path, "PixelSpacing", pixel_mm, 2)
    if pixel_size.min() <= 0:
        raise ReadError(
            "The DICOM file states a pixel size that is not positive.",
            where=path,
            seen=f"PixelSpacing {pixel_size.tolist()}",
            remedy="Export the series again, or leave the file out.",
        )
    return DicomSlice(
        path=path,
        frame=frame,
        series=str(header.get("SeriesInstanceUID", "")),
        uid=str(header.get("SOPInstanceUID", "")) + ("" if frame is None else f" {frame}"),
        shape=(int(header.Rows), int(header.Columns)),
        position=_numbers(path, "ImagePositionPatient", position, 3),
        across=directions[:3] / np.linalg.norm(directions[:3]),
        down=directions[3:] / np.linalg.norm(directions[3:]),
        pixel_mm=(float(pixel_size[0]), float(pixel_size[1])),
        thickness_mm=None if thickness in (None, "") else float(thickness),
        slope=1.0 if scale[0] in (None, "") else float(scale[0]),
        intercept=0.0 if scale[1] in (None, "") else float(scale[1]),
        kind=kind,
        phase=phase,
    )


def _numbers(path: Path, name: str, value: Any, n: int) -> NDArray[np.float64]:
    values = np.array([float(v) for v in np.ravel(value)])
    if len(values) != n:
        what = "The DICOM file does not say where its pixels lie."
        raise ReadError(what, where=path, seen=f"{name} {values.tolist()}", expected=f"{n} numbers")
    return values


def _required(path: Path, group: Any, name: str) -> Any:
    value = group.get(name)
    if value in (None, "") or np.size(value) == 0:
        raise ReadError(
            "The DICOM file does not say where its pixels lie.",
            where=path,
            expected=f"the element {name}",
            remedy="Export the series again with its geometry, or leave the file out.",
        )
    return value


def _text(group: Any, name: str) -> str:
    value = group.get(name)
    if isinstance(value, float):  # DS, FD: the same number is written in many ways
        return f"{value:g}"
    return "" if value is None else str(value)


def _b_value(header: "Header") -> str:
    for tag in (0x00189087, *_PRIVATE_B_VALUES):
        value = header.get(tag)
        stated = None if value is None else value.value
        if not isinstance(stated, bytes) and stated not in ("", None):
            first: Any = np.ravel(stated)[0]
            return str(int(float(first)) % 100000)  # GE adds 1e9 to say that it means it
    return ""
