"""DICOM radiographs (CR, DX, mammograms and similar images), with the grey values of a viewer.

The steps are those of the DICOM standard (PS3.3 C.11): first the modality table or slope, then the
values of interest (VOI), then the presentation. Each step is applied once. Optional elements that
are empty or contain impossible values are ignored with a warning.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.core.arrays import Flags, Numbers
from lesionseg.errors import ReadError
from lesionseg.io.dicom.elements import Header, ReaderWarnings, element_value, number, numbers, text
from lesionseg.io.dicom.headers import (
    FLUOROSCOPY,
    check_image,
    image_header,
    is_radiograph,
    read_header,
    set_decoder_defaults,
    stored_pixels,
)
from lesionseg.io.limits import check_grid, convert_read_errors
from lesionseg.ops.components import fill_polygons

UNKNOWN = "unknown"  # the file states no pixel size
DETECTOR = "at the detector"  # in this plane the X-ray shows the body larger than it is
_MIN_VISIBLE = 0.01  # fraction of the pixels: a padding range that leaves fewer is wrong
_SAME_SPACING = 1e-3  # relative difference between two pixel sizes that rounding can explain
_SHUTTERS = {  # the elements of a display shutter by its shape
    "RECTANGULAR": (
        "ShutterUpperHorizontalEdge",
        "ShutterLowerHorizontalEdge",
        "ShutterLeftVerticalEdge",
        "ShutterRightVerticalEdge",
    ),
    "CIRCULAR": ("CenterOfCircularShutter", "RadiusOfCircularShutter"),
    "POLYGONAL": ("VerticesOfThePolygonalShutter",),
}
_TABLES = {
    "ModalityLUTSequence": "modality table",
    "VOILUTSequence": "table of values of interest",
}
_WINDOWS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")  # functions of windows (PS3.3 C.11.2.1.3)
# PixelSpacing divided by the spacing of the detector: calibration on an object in the image gives
# ratios near 1 / magnification, so a ratio outside this range is probably an error
_USUAL_RATIO = (0.25, 2.0)


def radiograph_file(path: Path) -> Path | None:
    """Return the file if `path` is a radiograph or a folder with only one. Otherwise return None.

    The first image of a folder decides. If it is no radiograph, the remaining files are not opened.

    Raises:
        ReadError: If the folder contains further images, or a file that is opened is damaged.
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

    Pixels of the padding and outside the display shutter get the darkest value of the remaining
    image and are not `valid`. `pixel_mm` is the pixel size of a file that states none. Elements
    that are ignored are logged as warnings.

    Raises:
        ReadError: If the file is damaged, cannot be decoded, or is refused by
            `radiograph_geometry`.
    """
    header = read_header(path)
    warnings = ReaderWarnings()
    geometry = radiograph_geometry(path, header, warnings, pixel_mm=pixel_mm)
    stored = stored_pixels(path)[0]
    with convert_read_errors(path):
        # DX files state the inversion in two elements, but it must be applied only once
        is_inverse = text(header, "PhotometricInterpretation") == "MONOCHROME1"
        is_inverse = is_inverse or text(header, "PresentationLUTShape") == "INVERSE"
        set_decoder_defaults(header)
        grey = _apply_values_of_interest(rescale(stored, header, warnings), header, warnings)
        if is_inverse:
            grey = grey.max() + grey.min() - grey
        valid = _find_valid_pixels(stored, header, warnings, geometry)
        if valid is not None:
            grey[~valid] = grey[valid].min()
    warnings.log(path)
    return Volume(grey[np.newaxis].astype(np.float32), geometry, valid)


def rescale(
    stored: NDArray[Any], header: "Header", warnings: ReaderWarnings, name: str = ""
) -> NDArray[Any]:
    """Apply a file's modality table, or its slope and intercept, to stored pixels.

    The table of angiography and fluoroscopy is not applied (PS3.4 N.2.1.2), because it leads back
    to the intensity of the X-rays and is not meant for display. If there is a table, slope and
    intercept do not matter. An empty or impossible slope counts as 1, such an intercept as 0.

    Args:
        stored: Pixels as `stored_pixels` returns them.
        header: The elements of the file or frame.
        warnings: Receives a warning for each value that is replaced or ignored.
        name: The name of the file for warnings, if the image has several.
    """
    if not FLUOROSCOPY.fullmatch(text(header, "SOPClassUID")):
        looked_up = _look_up(stored, header, "ModalityLUTSequence", warnings, name)
        if looked_up is not None:
            return looked_up
    if "RescaleSlope" not in header and "RescaleIntercept" not in header:
        return stored
    slope = number(header, "RescaleSlope")
    intercept = number(header, "RescaleIntercept")
    if not slope:
        given = "missing or not a number" if slope is None else "0"
        warnings.add(f"RescaleSlope is {given}; 1 is used", name)
    if intercept is None:
        warnings.add("RescaleIntercept is missing or not a number; 0 is used", name)
    return stored * (slope or 1.0) + (intercept or 0.0)


def _look_up(
    values: NDArray[Any], header: "Header", name: str, warnings: ReaderWarnings, file: str = ""
) -> Numbers | None:
    """Apply the first table of a sequence (PS3.3 C.11.2.1.1).

    Values below or above the table get its first or last entry. The length of the data decides if
    entries have bytes or words, because devices write entries of 8 bits in both.

    Args:
        values: The values before the table.
        header: The elements of the file or frame.
        name: The name of the sequence.
        warnings: Receives a warning if the table is incomplete.
        file: The name of the file for warnings, if the image has several.

    Returns:
        The entries of the values. None if there is no table, or if it is incomplete.
    """
    tables = element_value(header, name)
    if tables is None:
        return None
    try:
        n_stated, first, _ = numbers(tables[0], "LUTDescriptor")
        n = int(n_stated) % 65536 or 65536  # 65536 is stated as 0; large numbers may be negative
        if first >= 32768 > values.max():
            first -= 65536  # the values are signed, but the element is not
        data = tables[0].get_item("LUTData").value  # bytes as stored, whatever type they have
        is_big_endian = tables[0].original_encoding[1] is False
        words = np.frombuffer(data + bytes(len(data) % 2), ">u2" if is_big_endian else "<u2")
        entries = words.astype("<u2").view("u1" if len(data) <= n + 1 else "<u2")
        index = np.rint(values - first).astype(np.int64)
        # range(n) fails if entries are missing
        return np.take(entries[range(n)], index, mode="clip").astype(float)
    except Exception:  # a damaged table can cause any error
        warnings.add(f"the {_TABLES[name]} cannot be used and is ignored", file)
        return None


def _apply_values_of_interest(
    grey: NDArray[Any], header: "Header", warnings: ReaderWarnings
) -> Numbers:
    """Apply the table of values of interest (VOI), otherwise the first usable window.

    The values stay unchanged if there is none. Elements that cannot be used become warnings. The
    elements of the window are replaced in the header by those that are applied.
    """
    looked_up = _look_up(grey, header, "VOILUTSequence", warnings)
    if looked_up is not None:
        return looked_up
    from pydicom.pixels.processing import apply_windowing

    function = text(header, "VOILUTFunction").upper() or "LINEAR"
    if function not in _WINDOWS:
        warnings.add(f"VOILUTFunction {function!r} is unknown; LINEAR is used")
        function = "LINEAR"
    header.VOILUTFunction = function
    header.PhotometricInterpretation = "MONOCHROME2"
    values = np.asarray(grey, float)
    centres = numbers(header, "WindowCenter")
    widths = numbers(header, "WindowWidth")
    given = (element_value(header, "WindowCenter"), element_value(header, "WindowWidth"))
    if given != (None, None) and not (centres and widths):
        warnings.add("the window does not consist of a centre and a width and is ignored")
    for centre, width in zip(centres, widths, strict=False):
        header.WindowCenter = centre
        header.WindowWidth = width
        with suppress(ValueError):  # the width is not possible
            shown = apply_windowing(values, header)
            if _has_greys(shown) or not _has_greys(values):
                return shown
        warnings.add(
            f"the window of width {width:g} at {centre:g} shows no grey values and is ignored"
        )
    return values


def _has_greys(values: Numbers) -> bool:
    """Return True if a value is located between the lowest and the highest one."""
    return bool(((values > values.min()) & (values < values.max())).any())


def _find_valid_pixels(
    stored: NDArray[Any], header: "Header", warnings: ReaderWarnings, geometry: Geometry
) -> Flags | None:
    """Return the mask of the pixels outside padding and inside the shutter, or None if all are.

    A padding or shutter that would hide more than 99 % of the pixels is ignored with a warning.
    """
    valid = np.ones(stored.shape, bool)
    for name, seen in _visible_parts(stored, header, warnings, geometry):
        if (valid & seen).mean() < _MIN_VISIBLE:
            warnings.add(f"the {name} is ignored, because it would hide over 99 % of the image")
        else:
            valid &= seen
    return None if valid.all() else valid


def _visible_parts(
    stored: NDArray[Any], header: "Header", warnings: ReaderWarnings, geometry: Geometry
) -> Iterator[tuple[str, Flags]]:
    """Yield the pixels that the padding and each shape of the display shutter leave visible.

    Each mask follows the name of what hides the remaining pixels. Rows and columns of a shutter
    count from 1, its edges are visible, and its radius counts columns (PS3.3 C.7.6.11). A shape
    without its numbers is ignored with a warning.
    """
    value = number(header, "PixelPaddingValue")
    if value is not None:
        limit = number(header, "PixelPaddingRangeLimit", value) or 0.0
        if stored.dtype.itemsize == 2:  # some devices write a signed value as unsigned, or reverse
            value, limit = np.array([value, limit]).astype(np.int64).astype(stored.dtype)
        low, high = sorted((value, limit))
        yield "padding", (stored < low) | (stored > high)
    rows, columns = geometry.shape
    y, x = np.ogrid[1 : rows + 1, 1 : columns + 1]
    for shape in np.ravel(element_value(header, "ShutterShape") or []):
        values = [v for name in _SHUTTERS.get(shape, ()) for v in numbers(header, name)]
        try:
            if shape == "RECTANGULAR":
                top, bottom, left, right = values
                seen = (top <= y) & (y <= bottom) & (left <= x) & (x <= right)
            elif shape == "CIRCULAR":
                row, column, radius = values
                height, width = geometry.spacing_mm
                seen = np.hypot((y - row) * height / width, x - column) <= radius
            elif values:
                seen = fill_polygons([np.reshape(values, (-1, 2)) - 1], geometry.shape)
            else:
                raise ValueError(shape)
            yield "shutter", seen
        except ValueError:
            warnings.add(f"the shutter {shape!s:.20} is unknown or incomplete and is ignored")


def pixel_size(
    header: "Header", warnings: ReaderWarnings | None = None
) -> tuple[tuple[float, float], str]:
    """Return pixel height and width in millimetres, and the source of these numbers.

    `PixelSpacing` is calibrated if the file states the calibration, or if it differs from the
    spacing of the detector or the film scanner (PS3.3 10.7.1.3). The source is then `calibrated`.
    Otherwise the first of these spacings that the file states is used: of the detector, of the
    scanner, `PixelSpacing`. The source is `at the detector`. If the magnification is known, the
    spacing of the detector is divided by it, and the source says so. Without any spacing, pixels
    have 1 mm and the source is `unknown`. Impossible and unusual numbers are added to `warnings`.
    """
    warnings = warnings or ReaderWarnings()
    given = _read_pair(header, "PixelSpacing", warnings)
    detector_mm = _read_pair(header, "ImagerPixelSpacing", warnings)
    device_mm = detector_mm or _read_pair(header, "NominalScannedPixelSpacing", warnings)
    if given and text(header, "PixelSpacingCalibrationType"):
        return given, "calibrated"
    if given and device_mm and not np.allclose(given, device_mm, rtol=_SAME_SPACING, atol=0):
        # the geometric mean of the ratios along both axes
        ratio = math.sqrt(math.prod(given) / math.prod(device_mm))
        if not _USUAL_RATIO[0] < ratio < _USUAL_RATIO[1]:
            warnings.add(
                f"PixelSpacing is {ratio:.2g} times the spacing of the detector or film scanner, "
                "so sizes may be wrong"
            )
        return given, "calibrated"
    mm = device_mm or given
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


def _read_pair(header: "Header", name: str, warnings: ReaderWarnings) -> tuple[float, float] | None:
    """Return the two positive numbers of an element, or None if it does not contain them.

    An element that contains anything else is added to `warnings`.
    """
    values = numbers(header, name)
    if len(values) == 2 and min(values) > 0:
        return values[0], values[1]
    if element_value(header, name) is not None:
        warnings.add(f"{name} does not consist of two positive numbers and is not used")
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
    warnings: ReaderWarnings | None = None,
    *,
    pixel_mm: float | None = None,
) -> Geometry:
    """Return a radiograph's grid of two axes, in mm or `mm at the detector`.

    `pixel_mm` is the pixel size of a file that states none. None means 1 mm. Unusual properties of
    the file are added to `warnings`. Raise `ReadError` if the image cannot be read as a radiograph,
    if its size is impossible, or if its pixels are not square and of unknown size.
    """
    warnings = warnings or ReaderWarnings()
    with convert_read_errors(path):
        check_image(path, header)
        if text(header, "PresentationIntentType") == "FOR PROCESSING":
            warnings.add("the radiograph is FOR PROCESSING, so its grey values are raw")
        shape = int(header.Rows), int(header.Columns)
        mm, source = pixel_size(header, warnings)
        if source == UNKNOWN:
            height, width = _read_pair(header, "PixelAspectRatio", warnings) or mm
            if height != width:
                raise ReadError(
                    f"{path}: PixelAspectRatio states pixels that are not square, and the file "
                    "states no pixel size. Save the image with square pixels, or with PixelSpacing."
                )
            mm = (pixel_mm or 1.0, pixel_mm or 1.0)
        # lengths measured at the detector are larger than in the patient
        unit = f"mm {DETECTOR}" if source == DETECTOR else "mm"
        geometry = Geometry.from_spacing(shape, mm, unit)
        check_grid(path, geometry)
        return geometry
