"""DICOM radiographs (CR, DX, mammograms and similar images), with the grey values of a viewer.

The steps are those of the DICOM standard (PS3.3 C.11): first the modality table or slope, then the
values of interest (VOI), then the presentation. Each step is applied once. Optional elements that
are empty or contain impossible values are ignored with a warning.
"""

import logging
import math
from collections.abc import Iterator
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
from lesionseg.io.limits import check_grid, convert_read_errors

logger = logging.getLogger(__name__)

UNKNOWN = "unknown"  # the file states no pixel size
DETECTOR = "at the detector"  # in this plane the X-ray shows the body larger than it is
_MIN_VISIBLE = 0.01  # fraction of the pixels: a padding range that leaves fewer is wrong
_SAME_SPACING = 1e-3  # relative difference between two pixel sizes that rounding can explain
# smallest width of a window by its function (PS3.3 C.11.2.1.2 and C.11.2.1.3); it must be positive
_MIN_WIDTHS = {"LINEAR": 1.0, "LINEAR_EXACT": 0.0, "SIGMOID": 0.0}
# PixelSpacing divided by the spacing of the detector: calibration on an object in the image gives
# ratios near 1 / magnification, so a ratio outside this range is probably an error
_USUAL_RATIO = (0.25, 2.0)


def radiograph_file(path: Path) -> Path | None:
    """Return the file if `path` is a radiograph or a folder with only one. Otherwise return None.

    Raises:
        ReadError: The folder contains further images, or a file is damaged.
    """
    images = _iter_images(path)
    first = next(images, None)
    if first is None:
        return None
    file, header = first
    if not is_radiograph(header):  # without opening the remaining files of a series
        return None
    if next(images, None) is not None:
        raise ReadError(
            f"{path}: the folder contains several images, including radiographs. Name one file."
        )
    return file


def _iter_images(path: Path) -> Iterator[tuple[Path, "Header"]]:
    """Yield the DICOM images of a folder, or the file itself, each with its header."""
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        header = image_header(file) if is_dicom(file) else None
        if header is not None:
            yield file, header


def read_radiograph(path: Path, raster_mm: float | None = None) -> Volume:
    """Read a radiograph `[1, y, x]` float32, in which dense tissue is bright.

    Padding pixels get the darkest value of the remaining image and are not `valid`. `raster_mm`:
    see `radiograph_geometry`.

    Raises:
        ReadError: The file is damaged or cannot be decoded.
    """
    header = read_header(path)
    remarks = Remarks(path)
    geometry = radiograph_geometry(path, header, remarks, raster_mm=raster_mm)
    stored = stored_pixels(path)[0]
    with convert_read_errors(path):
        grey = rescale(stored, header, remarks)
        grey = _apply_values_of_interest(grey, header, remarks)
        # DX files state the inversion in two elements, but it must be applied only once
        is_inverse = text(header, "PhotometricInterpretation") == "MONOCHROME1"
        if is_inverse or text(header, "PresentationLUTShape") == "INVERSE":
            grey = grey.max() + grey.min() - grey
        valid = _find_valid_pixels(stored, header, remarks)
        if valid is not None:
            grey[~valid] = grey[valid].min()
    remarks.log()
    return Volume(grey[np.newaxis].astype(np.float32), geometry, valid)


def rescale(
    stored: NDArray[Any], header: "Header", remarks: Remarks, file: Path | None = None
) -> NDArray[Any]:
    """Apply a file's modality table, or its slope and intercept, to stored pixels.

    An empty or impossible slope is replaced by 1, such an intercept by 0.

    Args:
        stored: Pixels as `stored_pixels` returns them.
        header: The elements of the file or frame.
        remarks: Receives a remark for each value that is replaced or ignored.
        file: The file that a remark names, if the image has several.
    """
    from pydicom.pixels.processing import apply_modality_lut

    if value_of(header, "ModalityLUTSequence") is not None:
        try:
            return np.asarray(apply_modality_lut(stored, header))
        except Exception:  # a damaged table can cause any error in the library
            remarks.add("the modality table cannot be used and is ignored", file)
    if "RescaleSlope" not in header and "RescaleIntercept" not in header:
        return stored
    slope = number(header, "RescaleSlope")
    intercept = number(header, "RescaleIntercept")
    if not slope:
        stated = "missing" if slope is None else "0"
        remarks.add(f"RescaleSlope is {stated}; 1 is used", file)
    if intercept is None:
        remarks.add("RescaleIntercept is missing; 0 is used", file)
    return np.asarray(stored.astype(np.float64) * (slope or 1.0) + (intercept or 0.0))


def _apply_values_of_interest(
    grey: NDArray[Any], header: "Header", remarks: Remarks
) -> NDArray[np.float64]:
    """Apply the first usable table or window of values of interest (VOI).

    The values stay unchanged if there is none.
    """
    from pydicom.pixels.processing import apply_voi, apply_windowing

    if value_of(header, "VOILUTSequence") is not None:
        # a table needs integers as indices
        index = grey.astype(np.int64) if grey.dtype.kind == "f" else grey
        try:
            return np.asarray(apply_voi(index, header), dtype=np.float64)
        except Exception:  # a damaged table can cause any error in the library
            remarks.add("the table of values of interest cannot be used and is ignored")
    function = text(header, "VOILUTFunction").upper() or "LINEAR"
    if function not in _MIN_WIDTHS:
        remarks.add(f"VOILUTFunction {function!r} is unknown; LINEAR is used")
        function = "LINEAR"
    values = np.asarray(grey, dtype=np.float64)
    centres = numbers(header, "WindowCenter")
    widths = numbers(header, "WindowWidth")
    if not centres or not widths:
        states_centre = value_of(header, "WindowCenter") is not None
        states_width = value_of(header, "WindowWidth") is not None
        if states_centre or states_width:
            remarks.add("the window does not consist of a centre and a width and is ignored")
        return values
    for centre, width in zip(centres, widths, strict=False):
        if width <= 0 or width < _MIN_WIDTHS[function]:
            remarks.add(f"the window of width {width:g} is ignored")
            continue
        window = _make_window(header, function, centre, width)
        shown = np.asarray(apply_windowing(values, window), dtype=np.float64)
        has_lost_greys = _count_levels(values) > 2 and _count_levels(shown) <= 2
        if has_lost_greys:
            remarks.add(
                f"the window of centre {centre:g} and width {width:g} shows no grey values "
                "and is ignored"
            )
            continue
        return shown
    return values


def _count_levels(values: NDArray[np.float64]) -> int:
    """Count the distinct values of an image, but stop at 3. This is faster than `np.unique`."""
    first = values.flat[0]
    others = values[values != first]
    if not others.size:
        return 1
    return 2 if (others == others.flat[0]).all() else 3


def _make_window(header: "Header", function: str, centre: float, width: float) -> "Header":
    """Make a header with one window and the elements that determine its range of values.

    pydicom takes a window only from a header, and it would choose from all windows of the file.
    """
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


def _find_valid_pixels(
    stored: NDArray[Any], header: "Header", remarks: Remarks
) -> NDArray[np.bool_] | None:
    """Return the mask of the pixels that are not padding, or None if no pixel is padding."""
    value = number(header, "PixelPaddingValue")
    if value is None:
        return None
    limit = number(header, "PixelPaddingRangeLimit", value) or 0.0
    if stored.dtype.itemsize == 2:  # some devices write a signed value as unsigned, or the reverse
        value, limit = np.array([value, limit]).astype(np.int64).astype(stored.dtype)
    low, high = sorted((value, limit))
    valid = (stored < low) | (stored > high)
    if valid.mean() < _MIN_VISIBLE:
        remarks.add("the padding is ignored, because it would hide the whole image")
        return None
    return None if valid.all() else np.asarray(valid)


def pixel_size(header: "Header", remarks: Remarks | None = None) -> tuple[tuple[float, float], str]:
    """Return pixel height and width in millimetres, and the source of these numbers.

    `PixelSpacing` is calibrated if the file states the calibration, or if it differs from the
    spacing of the detector or the film scanner (PS3.3 10.7.1.3). Otherwise the spacing of the
    detector is used, divided by the magnification if it is known. Without any spacing, pixels have
    1 mm and the source is `unknown`.
    """
    remarks = remarks or Remarks(Path())
    stated = _read_pair(header, "PixelSpacing", remarks)
    detector_mm = _read_pair(header, "ImagerPixelSpacing", remarks)
    device_mm = detector_mm or _read_pair(header, "NominalScannedPixelSpacing", remarks)
    if stated and text(header, "PixelSpacingCalibrationType"):
        return stated, "calibrated"
    if stated and device_mm and not np.allclose(stated, device_mm, rtol=_SAME_SPACING, atol=0):
        # the geometric mean of the ratios along both axes
        ratio = math.sqrt(stated[0] * stated[1] / (device_mm[0] * device_mm[1]))
        if not _USUAL_RATIO[0] < ratio < _USUAL_RATIO[1]:
            remarks.add(
                f"PixelSpacing is {ratio:.2g} times the spacing of the detector, so sizes may be "
                "wrong"
            )
        return stated, "calibrated"
    mm = device_mm or stated
    if mm is None:
        return (1.0, 1.0), UNKNOWN
    magnification = _read_magnification(header)
    if detector_mm is not None and magnification is not None:
        in_patient = (mm[0] / magnification, mm[1] / magnification)
        return in_patient, f"{DETECTOR}, divided by the magnification"
    return mm, DETECTOR


def _read_magnification(header: "Header") -> float | None:
    """Return how much larger the detector shows the patient, or None if it is unknown.

    The factor is stated, or follows from the distances of the X-ray source. A factor below 1 is
    impossible and counts as unknown.
    """
    magnification = number(header, "EstimatedRadiographicMagnificationFactor")
    if not magnification:
        to_detector = number(header, "DistanceSourceToDetector")
        to_patient = number(header, "DistanceSourceToPatient")
        if not to_detector or not to_patient:
            return None
        magnification = to_detector / to_patient
    return magnification if magnification >= 1 else None


def _read_pair(header: "Header", name: str, remarks: Remarks) -> tuple[float, float] | None:
    """Return the two positive numbers of an element, or None if it does not contain them."""
    values = numbers(header, name)
    if len(values) == 2 and min(values) > 0:
        return values[0], values[1]
    if value_of(header, name) is not None:
        remarks.add(f"{name} does not consist of two positive numbers and is not used")
    return None


def radiograph_columns(path: Path) -> dict[str, str]:
    """Return columns for reports: laterality, view, intent and the source of the pixel size."""
    header = read_header(path)
    return {
        "laterality": text(header, "ImageLaterality") or text(header, "Laterality"),
        "view": text(header, "ViewPosition"),
        "presentation_intent": text(header, "PresentationIntentType"),
        "pixel_size_source": pixel_size(header)[1],
    }


def radiograph_geometry(
    path: Path,
    header: "Header",
    remarks: Remarks | None = None,
    *,
    raster_mm: float | None = None,
) -> Geometry:
    """Return a radiograph's grid. Unusual properties of the file are added to `remarks`.

    `raster_mm` is the pixel size of a file that states none. None means 1 mm.
    """
    remarks = remarks or Remarks(path)
    with convert_read_errors(path):
        check_scan(path, header)
        if text(header, "PresentationIntentType") == "FOR PROCESSING":
            remarks.add("the radiograph is FOR PROCESSING, so its grey values are raw")
        shape = int(header.Rows), int(header.Columns)
        mm, source = pixel_size(header, remarks)
        if source == UNKNOWN and raster_mm is not None:
            mm = (raster_mm, raster_mm)
        # lengths measured at the detector are larger than in the patient
        unit = f"mm {DETECTOR}" if source == DETECTOR else "mm"
        return check_grid(path, Geometry.from_spacing(shape, mm, unit))
