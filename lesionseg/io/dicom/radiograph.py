"""DICOM radiographs (CR, DX, mammograms and their kin): grey values as they are to be looked at.

Order of PS3.3 C.11: modality table or slope, then values of interest, then presentation; each is
applied once. Optional elements that are empty or make no sense are ignored with a warning.
"""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ReadError
from lesionseg.io.dicom.elements import Header, Remarks, number, numbers, text, value_of
from lesionseg.io.dicom.headers import (
    check_scan,
    image_header,
    is_dicom,
    is_radiograph,
    read_header,
    stored_pixels,
)
from lesionseg.io.limits import check_grid, reading

logger = logging.getLogger(__name__)

DETECTOR = "at the detector"  # where objects in the body appear larger than they are
_LEAST_SHOWN = 0.01  # of the pixels: a padding that leaves less is stated wrongly
_SAME_SPACING = 1e-3  # relative difference of two pixel sizes that are the same but for rounding
_FUNCTIONS = {"LINEAR": 1.0, "LINEAR_EXACT": 0.0, "SIGMOID": 0.0}  # least width of a window


def radiograph_file(path: Path) -> Path | None:
    """Return the file if `path` is one radiograph or a folder with only one; None otherwise."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    images = ((f, h) for f in files if is_dicom(f) and (h := image_header(f)) is not None)
    file, header = next(images, (path, None))
    if header is None or not is_radiograph(header):  # a series' other files need not be opened
        return None
    if next(images, None) is not None:
        raise ReadError(f"{path}: the folder has several images, some radiographs. Name one file.")
    return file


def read_radiograph(path: Path) -> Volume:
    """Read a radiograph `[1, y, x]` float32: bright is dense, whatever the file's photometry.

    Padding takes the darkest value of the image proper and is not `valid`. Raises `ReadError`.
    """
    header = read_header(path)
    remarks = Remarks(path)
    geometry = radiograph_geometry(path, header, remarks)
    stored = stored_pixels(path)[0]
    with reading(path):
        grey = rescaled(stored, header, remarks)
        grey = _values_of_interest(grey, header, remarks)
        # DX states it twice, and it is meant once
        is_inverse = text(header, "PhotometricInterpretation") == "MONOCHROME1"
        if is_inverse or text(header, "PresentationLUTShape") == "INVERSE":
            grey = grey.max() + grey.min() - grey
        valid = _without_padding(stored, header, remarks)
        if valid is not None:
            grey[~valid] = grey[valid].min()
    remarks.log()
    return Volume(grey[np.newaxis].astype(np.float32), geometry, valid)


def rescaled(
    stored: NDArray[Any], header: "Header", remarks: Remarks, file: Path | None = None
) -> NDArray[Any]:
    """Apply a file's modality table, or its slope and intercept, to stored pixels.

    An empty or impossible slope counts as 1, an intercept as 0.
    """
    from pydicom.pixels.processing import apply_modality_lut

    if value_of(header, "ModalityLUTSequence") is not None:
        try:
            return np.asarray(apply_modality_lut(stored, header))
        except Exception:  # whatever a damaged table makes of the library
            remarks.add("the modality table cannot be used and is ignored", file)
    if "RescaleSlope" not in header and "RescaleIntercept" not in header:
        return stored
    slope, intercept = number(header, "RescaleSlope"), number(header, "RescaleIntercept")
    if not slope:
        stated = "missing" if slope is None else "0"
        remarks.add(f"RescaleSlope is {stated}; 1 is used", file)
    if intercept is None:
        remarks.add("RescaleIntercept is missing; 0 is used", file)
    return np.asarray(stored.astype(np.float64) * (slope or 1.0) + (intercept or 0.0))


def _values_of_interest(
    grey: NDArray[Any], header: "Header", remarks: Remarks
) -> NDArray[np.float64]:
    """Apply the first table or window of values of interest that makes sense."""
    from pydicom.pixels.processing import apply_voi, apply_windowing

    if value_of(header, "VOILUTSequence") is not None:
        # a table is indexed by whole numbers
        index = grey.astype(np.int64) if grey.dtype.kind == "f" else grey
        try:
            return np.asarray(apply_voi(index, header), dtype=np.float64)
        except Exception:  # whatever a damaged table makes of the library
            remarks.add("the table of values of interest cannot be used and is ignored")
    function = text(header, "VOILUTFunction").upper() or "LINEAR"
    if function not in _FUNCTIONS:
        remarks.add(f"VOILUTFunction {function!r} is unknown; LINEAR is used")
        function = "LINEAR"
    values = np.asarray(grey, dtype=np.float64)
    centres, widths = numbers(header, "WindowCenter"), numbers(header, "WindowWidth")
    if not centres or not widths:
        if any(value_of(header, name) is not None for name in ("WindowCenter", "WindowWidth")):
            remarks.add("the window is not a centre and a width, and is ignored")
        return values
    for centre, width in zip(centres, widths, strict=False):
        if width < _FUNCTIONS[function] or width <= 0:
            remarks.add(f"the window of width {width:g} is ignored")
            continue
        shown = np.asarray(
            apply_windowing(values, _window(header, function, centre, width)), dtype=np.float64
        )
        if _n_levels(shown) <= 2 < _n_levels(values):
            text_ = f"the window of centre {centre:g} and width {width:g} shows no grey values"
            remarks.add(f"{text_} and is ignored")
            continue
        return shown
    return values


def _n_levels(values: NDArray[np.float64]) -> int:
    """Count an image's distinct values, up to 3."""
    first = values.flat[0]
    others = values[values != first]
    if not others.size:
        return 1
    return 2 if (others == others.flat[0]).all() else 3


def _window(header: "Header", function: str, centre: float, width: float) -> "Header":
    """Return a header with one window, and the elements that decide on its range of values."""
    from pydicom.dataset import Dataset

    window = Dataset()
    window.PhotometricInterpretation = "MONOCHROME2"
    window.BitsStored = int(number(header, "BitsStored") or number(header, "BitsAllocated") or 16)
    window.PixelRepresentation = int(number(header, "PixelRepresentation") or 0)
    window.WindowCenter = centre
    window.WindowWidth = width
    window.VOILUTFunction = function
    if "RescaleSlope" in header or "RescaleIntercept" in header:
        window.RescaleSlope = number(header, "RescaleSlope") or 1.0
        window.RescaleIntercept = number(header, "RescaleIntercept") or 0.0
    table = value_of(header, "ModalityLUTSequence")
    if table is not None and len(numbers(table[0], "LUTDescriptor")) == 3:
        window.ModalityLUTSequence = table
    return window


def _without_padding(
    stored: NDArray[Any], header: "Header", remarks: Remarks
) -> NDArray[np.bool_] | None:
    """Return which pixels are no padding; None if all are."""
    value = number(header, "PixelPaddingValue")
    if value is None:
        return None
    low, high = sorted((value, number(header, "PixelPaddingRangeLimit", value) or 0.0))
    shown = (stored < low) | (stored > high)
    if shown.mean() < _LEAST_SHOWN:
        remarks.add("the padding is ignored, because it would hide the whole image")
        return None
    return None if shown.all() else np.asarray(shown)


def pixel_size(header: "Header", remarks: Remarks | None = None) -> tuple[tuple[float, float], str]:
    """Return pixel height and width in millimetres, and what they are measured on.

    `PixelSpacing` is calibrated if the file says how, or if it differs from the spacing of the
    detector or the film scanner (PS3.3 10.7.1.3). Otherwise the spacing of the detector counts,
    divided by the magnification if that is known, or else 1 mm.
    """
    remarks = remarks or Remarks(Path())

    def pair(name: str) -> tuple[float, float] | None:
        values = numbers(header, name)
        if len(values) == 2 and min(values) > 0:
            return values[0], values[1]
        if value_of(header, name) is not None:
            remarks.add(f"{name} is not two positive numbers and is not used")
        return None

    claimed, imager = pair("PixelSpacing"), pair("ImagerPixelSpacing")
    base = imager or pair("NominalScannedPixelSpacing")
    if claimed and text(header, "PixelSpacingCalibrationType"):
        return claimed, "calibrated"
    if claimed and base and not np.allclose(claimed, base, rtol=_SAME_SPACING, atol=0):
        ratio = math.sqrt(claimed[0] * claimed[1] / (base[0] * base[1]))
        if not 0.25 < ratio < 2:
            remarks.add(
                f"PixelSpacing is {ratio:.2g} times the spacing of the detector, so that sizes may "
                "be wrong"
            )
        return claimed, "calibrated"
    base = base or claimed
    if base is None:
        return (1.0, 1.0), "unknown"
    factor = number(header, "EstimatedRadiographicMagnificationFactor")
    detector = number(header, "DistanceSourceToDetector")
    patient = number(header, "DistanceSourceToPatient")
    if not factor and detector and patient:
        factor = detector / patient
    if imager and factor and factor >= 1:
        mm = base[0] / factor, base[1] / factor
        return mm, f"{DETECTOR}, divided by the magnification"
    return base, DETECTOR


def radiograph_columns(path: Path) -> dict[str, str]:
    """Return a radiograph's columns for reports: laterality, view, intent, kind of pixel size."""
    header = read_header(path)
    return {
        "laterality": text(header, "ImageLaterality") or text(header, "Laterality"),
        "view": text(header, "ViewPosition"),
        "presentation_intent": text(header, "PresentationIntentType"),
        "pixel_size_source": pixel_size(header)[1],
    }


def radiograph_geometry(path: Path, header: "Header", remarks: Remarks | None = None) -> Geometry:
    """Return a radiograph's grid; note in `remarks` what is odd about it."""
    remarks = remarks or Remarks(path)
    with reading(path):
        check_scan(path, header)
        if text(header, "PresentationIntentType") == "FOR PROCESSING":
            remarks.add("the radiograph is one for processing: its grey values are raw")
        shape = int(header.Rows), int(header.Columns)
        mm, source = pixel_size(header, remarks)
        # at the detector lengths are larger than true
        unit = f"mm {DETECTOR}" if source == DETECTOR else "mm"
        return check_grid(path, Geometry.from_spacing(shape, mm, unit))
