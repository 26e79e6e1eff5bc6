"""DICOM radiographs (CR, DX, mammograms): grey values as they are meant to be looked at.

Order of PS3.3 C.11: modality table or slope, then values of interest, then presentation; each is
applied once.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ReadError
from lesionseg.io.dicom.headers import is_xray, read_header, refuse_unfit
from lesionseg.io.dicom.pixels import HIDING, check_pixels, hidden_pixels, stored_pixels
from lesionseg.io.formats.guard import check_grid, reading

if TYPE_CHECKING:
    from pydicom.dataset import Dataset as Header

logger = logging.getLogger(__name__)

CALIBRATED = "calibrated"
MAGNIFIED = "at the detector, divided by the magnification"
DETECTOR = "at the detector"
UNKNOWN = "unknown"
_SIZES = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


@dataclass(frozen=True)
class PixelSize:
    """Pixel height and width in millimetres, and what they are measured on.

    `source` is "calibrated", "at the detector, divided by the magnification", "at the detector"
    (objects in the body appear larger than they are) or "unknown" (a pixel counts as 1 mm).
    """

    mm: tuple[float, float]
    source: str

    @property
    def unit(self) -> str:
        """What lengths are to be called: "mm at the detector" where they are larger than true."""
        return f"mm {DETECTOR}" if self.source == DETECTOR else "mm"


def read_radiograph(path: Path) -> Volume:
    """Read a radiograph `[1, y, x]` float32: bright is dense, whatever the file's photometry.

    Padding and what a shutter or collimator covers take the darkest value of the image proper and
    are not `valid`. Raises `ReadError`.
    """
    header = read_header(path, pixels=True)
    geometry, valid = _checked(path, header), None
    stored = stored_pixels(path, header)
    with reading(path):
        hidden = hidden_pixels(path, header, stored)
        grey = _presented(header, stored)
    if hidden.any():
        valid = ~hidden
        grey[hidden] = grey[valid].min()
    return Volume(grey[np.newaxis].astype(np.float32), geometry, valid)


def read_radiograph_geometry(path: Path) -> Geometry:
    """Read shape and pixel size from the header alone."""
    return _checked(path, read_header(path))


def pixel_size(header: "Header") -> PixelSize:
    """The pixel size and its worth.

    `PixelSpacing` is trusted only when the file says how it was calibrated; else the detector's
    spacing, divided by the magnification where that is known (PS3.3 10.7.1.3).
    """
    claimed, imager = _pair(header, "PixelSpacing"), _pair(header, "ImagerPixelSpacing")
    if claimed and header.get("PixelSpacingCalibrationType"):
        return PixelSize(claimed, CALIBRATED)
    base = imager or _pair(header, "NominalScannedPixelSpacing") or claimed
    if base is None:
        return PixelSize((1.0, 1.0), UNKNOWN)
    factor = _magnification(header) if imager else None
    if factor is None:
        return PixelSize(base, DETECTOR)
    return PixelSize((base[0] / factor, base[1] / factor), MAGNIFIED)


def read_hidden(path: Path) -> NDArray[np.bool_] | None:
    """Pixels of a radiograph that show nothing; None when all show something."""
    header = read_header(path)
    if not any(name in header for name in HIDING):
        return None
    header = read_header(path, pixels=True)
    hidden = hidden_pixels(path, header, stored_pixels(path, header))
    return hidden if hidden.any() else None


def is_radiograph(path: Path) -> bool:
    """Whether a DICOM file is a radiograph, by its header."""
    with reading(path):
        return is_xray(read_header(path))


def radiograph_columns(path: Path) -> dict[str, str]:
    """What a report may group radiographs by: laterality, view, intent and worth of the size."""
    header = read_header(path)
    with reading(path):
        view = str(header.get("ViewPosition", "") or "")
        side = header.get("ImageLaterality") or header.get("Laterality") or ""
        return {
            "laterality": str(side),
            "view": view,
            "presentation_intent": str(header.get("PresentationIntentType", "") or ""),
            "pixel_size_source": pixel_size(header).source,
        }


def _checked(path: Path, header: "Header") -> Geometry:
    """The geometry of what is a radiograph, and not larger than its file."""
    _refuse(path, header)
    check_pixels(path, header)
    with reading(path):
        shape, size = (int(header.Rows), int(header.Columns)), pixel_size(header)
        return check_grid(path, Geometry.from_spacing(shape, size.mm, size.unit))


def _refuse(path: Path, header: "Header") -> None:
    refuse_unfit(path, header)
    if int(header.get("NumberOfFrames", None) or 1) > 1:
        raise ReadError("The radiograph has several frames.", where=path)
    for name in _SIZES:
        if header.get(name) is not None and _pair(header, name) is None:
            logger.warning("%s: its %s is not two positive numbers and is not used.", path, name)
    if str(header.get("PresentationIntentType", "")) == "FOR PROCESSING":
        logger.warning("%s is a radiograph for processing: its grey values are raw.", path)


def _presented(header: "Header", stored: NDArray[Any]) -> NDArray[np.float64]:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    grey = apply_modality_lut(stored, header)
    if header.get("VOILUTSequence") or header.get("WindowCenter") is not None:
        if grey.dtype.kind == "f" and header.get("VOILUTSequence"):
            grey = grey.astype(np.int64)  # a table is indexed by whole numbers
        grey = apply_voi_lut(grey, header, index=0)
    grey = np.asarray(grey, dtype=np.float64)
    return grey.max() + grey.min() - grey if _is_inverted(header) else grey


def _is_inverted(header: "Header") -> bool:
    """Whether low values are to be shown bright; DX states it twice, and it is meant once."""
    photometry = str(header.get("PhotometricInterpretation", ""))
    return photometry == "MONOCHROME1" or str(header.get("PresentationLUTShape", "")) == "INVERSE"


def _pair(header: "Header", name: str) -> tuple[float, float] | None:
    value = header.get(name)
    pair = [float(v) for v in np.ravel(value)] if value is not None else []
    return (pair[0], pair[1]) if len(pair) == 2 and min(pair) > 0 else None


def _magnification(header: "Header") -> float | None:
    """How much larger the detector shows things than they are; None when it is not known."""
    factor = header.get("EstimatedRadiographicMagnificationFactor")
    detector = header.get("DistanceSourceToDetector")
    patient = header.get("DistanceSourceToPatient")
    if not factor and detector and patient:
        factor = float(detector) / float(patient)
    return float(factor) if factor and float(factor) >= 1 else None
