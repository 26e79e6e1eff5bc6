"""DICOM radiographs (CR, DX, mammograms and similar images), with the grey values of a viewer.

The steps are those of the DICOM standard (PS3.3 C.11): first the modality table or slope, then the
values of interest (VOI), then the presentation. Each step is applied once. Optional elements that
are empty or contain impossible values are ignored with a warning.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.core.arrays import Flags, Numbers
from lesionseg.errors import ReadError
from lesionseg.io.dicom.elements import Header, Remarks, number, numbers, text, value_of
from lesionseg.io.dicom.headers import (
    check_image,
    image_header,
    is_radiograph,
    read_header,
    set_decoder_defaults,
    stored_pixels,
)
from lesionseg.io.limits import check_grid, convert_read_errors

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

    The first image of a folder decides. If it is no radiograph, the remaining files are not opened.

    Raises:
        ReadError: The folder contains further images, or a file that is opened is damaged.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    headers = ((file, image_header(file)) for file in files)
    images = ((file, header) for file, header in headers if header is not None)
    file, header = next(images, (path, None))
    if header is None or not is_radiograph(header):
        return None
    if next(images, None) is not None:
        raise ReadError(
            f"{path}: the folder contains several images, including radiographs. Name one file."
        )
    return file


def read_radiograph(path: Path, pixel_mm: float | None = None) -> Volume:
    """Read a radiograph `[1, y, x]` float32, in which dense tissue is bright.

    Padding pixels get the darkest value of the remaining image and are not `valid`. `pixel_mm` is
    the pixel size of a file that states none. Elements that are ignored are logged as warnings.

    Raises:
        ReadError: The file is damaged, cannot be decoded, or is refused by `radiograph_geometry`.
    """
    header = read_header(path)
    remarks = Remarks()
    geometry = radiograph_geometry(path, header, remarks, pixel_mm=pixel_mm)
    stored = stored_pixels(path)[0]
    with convert_read_errors(path):
        # DX files state the inversion in two elements, but it must be applied only once
        is_inverse = text(header, "PhotometricInterpretation") == "MONOCHROME1"
        is_inverse = is_inverse or text(header, "PresentationLUTShape") == "INVERSE"
        set_decoder_defaults(header)
        grey = rescale(stored, header, remarks)
        grey = _apply_values_of_interest(grey, header, remarks)
        if is_inverse:
            grey = grey.max() + grey.min() - grey
        valid = _find_valid_pixels(stored, header, remarks)
        if valid is not None:
            grey[~valid] = grey[valid].min()
    remarks.log(path)
    return Volume(grey[np.newaxis].astype(np.float32), geometry, valid)


def rescale(
    stored: NDArray[Any], header: "Header", remarks: Remarks, name: str = ""
) -> NDArray[Any]:
    """Apply a file's modality table, or its slope and intercept, to stored pixels.

    Elements that pydicom cannot use are replaced in the header: an empty or impossible slope by 1,
    such an intercept by 0. A table that cannot be used is removed.

    Args:
        stored: Pixels as `stored_pixels` returns them.
        header: The elements of the file or frame.
        remarks: Receives a remark for each value that is replaced or ignored.
        name: The name of the file for remarks, if the image has several.
    """
    from pydicom.pixels.processing import apply_modality_lut

    if "RescaleSlope" in header or "RescaleIntercept" in header:
        slope = number(header, "RescaleSlope")
        intercept = number(header, "RescaleIntercept")
        if not slope:
            stated = "missing or not a number" if slope is None else "0"
            remarks.add(f"RescaleSlope is {stated}; 1 is used", name)
        if intercept is None:
            remarks.add("RescaleIntercept is missing or not a number; 0 is used", name)
        header.RescaleSlope = slope or 1.0
        header.RescaleIntercept = intercept or 0.0
    try:
        return np.asarray(apply_modality_lut(stored, header))
    except Exception:  # a damaged table can cause any error in the library
        remarks.add("the modality table cannot be used and is ignored", name)
        del header.ModalityLUTSequence
        return np.asarray(apply_modality_lut(stored, header))


def _apply_values_of_interest(grey: NDArray[Any], header: "Header", remarks: Remarks) -> Numbers:
    """Apply the table of values of interest (VOI), otherwise the first usable window.

    The values stay unchanged if there is none. Elements that cannot be used become remarks. The
    elements of the window are replaced in the header by those that are applied.
    """
    from pydicom.pixels.processing import apply_voi

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
    header.VOILUTFunction = function
    values = np.asarray(grey, dtype=np.float64)
    centres = numbers(header, "WindowCenter")
    widths = numbers(header, "WindowWidth")
    stated = (value_of(header, "WindowCenter"), value_of(header, "WindowWidth"))
    if stated != (None, None) and not (centres and widths):
        remarks.add("the window does not consist of a centre and a width and is ignored")
    for centre, width in zip(centres, widths, strict=False):
        if width <= 0 or width < _MIN_WIDTHS[function]:
            remarks.add(f"the window of width {width:g} is ignored")
            continue
        shown = _apply_window(values, header, centre, width)
        if _has_greys(shown) or not _has_greys(values):
            return shown
        remarks.add(
            f"the window of centre {centre:g} and width {width:g} shows no grey values and is "
            "ignored"
        )
    return values


def _apply_window(values: Numbers, header: "Header", centre: float, width: float) -> Numbers:
    """Apply one window. It and MONOCHROME2 are set in the header, where pydicom reads them."""
    from pydicom.pixels.processing import apply_windowing

    header.PhotometricInterpretation = "MONOCHROME2"
    header.WindowCenter = centre
    header.WindowWidth = width
    return np.asarray(apply_windowing(values, header), dtype=np.float64)


def _has_greys(values: Numbers) -> bool:
    """Return True if a value is located between the lowest and the highest one."""
    return bool(((values > values.min()) & (values < values.max())).any())


def _find_valid_pixels(stored: NDArray[Any], header: "Header", remarks: Remarks) -> Flags | None:
    """Return the mask of the pixels that are not padding, or None if no pixel is padding.

    A padding that would hide more than 99 % of the pixels is ignored with a remark.
    """
    value = number(header, "PixelPaddingValue")
    if value is None:
        return None
    limit = number(header, "PixelPaddingRangeLimit", value) or 0.0
    if stored.dtype.itemsize == 2:  # some devices write a signed value as unsigned, or the reverse
        value, limit = np.array([value, limit]).astype(np.int64).astype(stored.dtype)
    low, high = sorted((value, limit))
    valid = (stored < low) | (stored > high)
    if valid.mean() < _MIN_VISIBLE:
        remarks.add("the padding is ignored, because it would hide over 99 % of the image")
        return None
    return None if valid.all() else np.asarray(valid)


def pixel_size(header: "Header", remarks: Remarks | None = None) -> tuple[tuple[float, float], str]:
    """Return pixel height and width in millimetres, and the source of these numbers.

    `PixelSpacing` is calibrated if the file states the calibration, or if it differs from the
    spacing of the detector or the film scanner (PS3.3 10.7.1.3). The source is then `calibrated`.
    Otherwise the first of these spacings that the file states is used: of the detector, of the
    scanner, `PixelSpacing`. The source is `at the detector`. If the magnification is known, the
    spacing of the detector is divided by it, and the source says so. Without any spacing, pixels
    have 1 mm and the source is `unknown`. Impossible and unusual numbers are added to `remarks`.
    """
    remarks = remarks or Remarks()
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
                f"PixelSpacing is {ratio:.2g} times the spacing of the detector or film scanner, "
                "so sizes may be wrong"
            )
        return stated, "calibrated"
    mm = device_mm or stated
    if mm is None:
        return (1.0, 1.0), UNKNOWN
    magnification = _read_magnification(header)
    if detector_mm is None or magnification < 1:  # a smaller factor is impossible
        return mm, DETECTOR
    in_patient = (mm[0] / magnification, mm[1] / magnification)
    return in_patient, f"{DETECTOR}, divided by the magnification"


def _read_magnification(header: "Header") -> float:
    """Return the factor by which the detector shows the patient larger, or 0 if it is unknown.

    The factor is stated, or follows from the distances of the X-ray source.
    """
    to_detector = number(header, "DistanceSourceToDetector")
    to_patient = number(header, "DistanceSourceToPatient")
    of_distances = to_detector / to_patient if to_detector and to_patient else 0.0
    return number(header, "EstimatedRadiographicMagnificationFactor") or of_distances


def _read_pair(header: "Header", name: str, remarks: Remarks) -> tuple[float, float] | None:
    """Return the two positive numbers of an element, or None if it does not contain them.

    An element that contains anything else is added to `remarks`.
    """
    values = numbers(header, name)
    if len(values) == 2 and min(values) > 0:
        return values[0], values[1]
    if value_of(header, name) is not None:
        remarks.add(f"{name} does not consist of two positive numbers and is not used")
    return None


def radiograph_columns(path: Path) -> dict[str, str]:
    """Return columns for reports: laterality, view, intent and the source of the pixel size.

    If the file does not state a value, the cell is "", and the source is `unknown`. Raise
    `ReadError` if the file is damaged.
    """
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
    pixel_mm: float | None = None,
) -> Geometry:
    """Return a radiograph's grid of two axes, in mm or `mm at the detector`.

    `pixel_mm` is the pixel size of a file that states none. None means 1 mm. Unusual properties of
    the file are added to `remarks`. Raise `ReadError` if the image cannot be read as a radiograph,
    or if its size is impossible.
    """
    remarks = remarks or Remarks()
    with convert_read_errors(path):
        check_image(path, header)
        if text(header, "PresentationIntentType") == "FOR PROCESSING":
            remarks.add("the radiograph is FOR PROCESSING, so its grey values are raw")
        shape = int(header.Rows), int(header.Columns)
        mm, source = pixel_size(header, remarks)
        if source == UNKNOWN and pixel_mm is not None:
            mm = (pixel_mm, pixel_mm)
        # lengths measured at the detector are larger than in the patient
        unit = f"mm {DETECTOR}" if source == DETECTOR else "mm"
        geometry = Geometry.from_spacing(shape, mm, unit)
        check_grid(path, geometry)
        return geometry
