"""DICOM radiographs (CR, DX, mammograms): grey values, window, shutter, pixel size.

The grey values are those of a viewer.

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

# the unit in the plane of the detector, where the X-ray shows the body larger than it is
_AT_DETECTOR = "mm at the detector"
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
    """Return the file of a radiograph, or None if `path` is something else, such as a series.

    `path` is a file, or a folder that contains a single image. The first image of a folder decides:
    if it is not a radiograph, the remaining files are not opened.

    Raises:
        ReadError: If the first image of a folder is a radiograph and the folder contains further
            images, or if a file that is opened is damaged.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    # generators: a header is read only when `next` asks for it
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
    """Read a radiograph as a volume `[1, y, x]` float32 with the grey values of a viewer.

    Dense tissue is bright. Pixels of the padding, and pixels outside the display shutter, get the
    darkest value of the remaining image and are False in `Volume.valid`. Elements that are ignored
    are logged as warnings.

    Args:
        path: The file.
        pixel_mm: The pixel size in millimetres of a file that states none. None means 1 mm.

    Raises:
        ReadError: If the file is damaged, cannot be decoded, or is refused by
            `radiograph_geometry`.
    """
    header = read_header(path)
    warnings = ReaderWarnings()
    geometry = radiograph_geometry(path, header, warnings, pixel_mm=pixel_mm)
    stored = stored_pixels(path)[0]  # the only frame
    with convert_read_errors(path):
        # DX files state the inversion in two elements, but it must be applied only once
        is_inverse = text(header, "PhotometricInterpretation") == "MONOCHROME1"
        is_inverse = is_inverse or text(header, "PresentationLUTShape") == "INVERSE"
        set_decoder_defaults(header)
        grey = _apply_values_of_interest(rescale(stored, header, warnings), header, warnings)
        if is_inverse:
            grey = grey.max() + grey.min() - grey  # within the same range
        valid = _find_valid_pixels(stored, header, warnings, geometry)
        if valid is not None:
            grey[~valid] = grey[valid].min()
    warnings.log(path)
    return Volume(grey[np.newaxis].astype(np.float32), geometry, valid)


def rescale(
    stored: NDArray[Any], header: "Header", warnings: ReaderWarnings, name: str = ""
) -> NDArray[Any]:
    """Convert stored pixels to the values of the modality, such as Hounsfield units.

    - A modality table (ModalityLUTSequence) gives a value for each stored pixel. If there is one,
      slope and intercept are not used.
    - The table of angiography and fluoroscopy is not applied (PS3.4 N.2.1.2), because it converts
      to the intensity of the X-rays and is not meant for display.
    - Otherwise the value is `pixel * RescaleSlope + RescaleIntercept`. A slope that is missing,
      empty or 0 counts as 1. An intercept that is missing or empty counts as 0.

    Args:
        stored: Pixels as `stored_pixels` returns them.
        header: The elements of the file or frame.
        warnings: Receives a warning for each element that is replaced or ignored.
        name: The name of the file for warnings, if the image has several files.
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
        problem = "missing or not a number" if slope is None else "0"
        warnings.add(f"RescaleSlope is {problem}; 1 is used", name)
    if intercept is None:
        warnings.add("RescaleIntercept is missing or not a number; 0 is used", name)
    return stored * (slope or 1.0) + (intercept or 0.0)


def _look_up(
    values: NDArray[Any], header: "Header", name: str, warnings: ReaderWarnings, file: str = ""
) -> Numbers | None:
    """Replace each value by the entry of a lookup table (PS3.3 C.11.2.1.1).

    `LUTDescriptor` states the number of entries, the value of the first entry, and the bits of an
    entry. Values below or above the table get its first or last entry. The length of `LUTData`
    decides if an entry has one byte or two, because devices write entries of 8 bits in both ways.

    Args:
        values: The values before the table.
        header: The elements of the file or frame.
        name: The keyword of the sequence, whose first item is the table.
        warnings: Receives a warning if the table is incomplete.
        file: The name of the file for warnings, if the image has several files.

    Returns:
        The entries. None if there is no table, or if it is incomplete.
    """
    tables = element_value(header, name)
    if tables is None:
        return None
    try:
        n_stated, first, _ = numbers(tables[0], "LUTDescriptor")
        n = int(n_stated) % 65536 or 65536  # 65536 is stated as 0; large numbers may be negative
        if first >= 32768 > values.max():
            first -= 65536  # the values are signed, but the element was read as unsigned
        data = tables[0].get_item("LUTData").value  # bytes as stored, whatever type they have
        is_big_endian = tables[0].original_encoding[1] is False
        # numbers of 16 bits, with a zero byte at the end if the length is odd
        words = np.frombuffer(data + bytes(len(data) % 2), ">u2" if is_big_endian else "<u2")
        # n bytes, and perhaps one to make the length even, are entries of one byte
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
    """Convert values to the grey values that a viewer shows, by the values of interest (VOI).

    The values of interest are a table (VOILUTSequence) or, without one, the first usable window. A
    window consists of the centre and width of the range that is shown as greys. It is not usable if
    it reduces an image with greys to black and white. The values stay unchanged if there is neither
    a table nor a usable window.

    Args:
        grey: The values of the modality.
        header: The elements of the file. Its window and function are changed, because pydicom reads
            them from the header.
        warnings: Receives a warning for each element that cannot be used.
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
    header.PhotometricInterpretation = "MONOCHROME2"  # the caller inverts the image itself
    values = np.asarray(grey, float)
    centres = numbers(header, "WindowCenter")
    widths = numbers(header, "WindowWidth")
    elements = (element_value(header, "WindowCenter"), element_value(header, "WindowWidth"))
    if elements != (None, None) and not (centres and widths):
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
    """Return True if some value is strictly between the lowest and the highest value.

    Otherwise the image is black and white only, which is a sign of a wrong window.
    """
    return bool(((values > values.min()) & (values < values.max())).any())


def _find_valid_pixels(
    stored: NDArray[Any], header: "Header", warnings: ReaderWarnings, geometry: Geometry
) -> Flags | None:
    """Return the mask of the pixels that show the patient, or None if all pixels do.

    These pixels are not padding (a constant around the image) and are inside the display shutter
    (shapes inside which viewers show the image; the remainder is black). A padding or shutter that
    would hide more than 99 % of the pixels is ignored with a warning.
    """
    valid = np.ones(stored.shape, bool)
    for name, visible in _visible_masks(stored, header, warnings, geometry):
        if (valid & visible).mean() < _MIN_VISIBLE:
            warnings.add(f"the {name} is ignored, because it would hide over 99 % of the image")
        else:
            valid &= visible
    return None if valid.all() else valid


def _visible_masks(
    stored: NDArray[Any], header: "Header", warnings: ReaderWarnings, geometry: Geometry
) -> Iterator[tuple[str, Flags]]:
    """Yield a mask of visible pixels for the padding, and for each shape of the display shutter.

    Padding is a value or a range of values. The shapes of a shutter are rectangles, circles and
    polygons. Their rows and columns are numbered from 1, their edges are visible, and the radius is
    in columns (PS3.3 C.7.6.11). A shape with missing numbers is ignored with a warning.

    Args:
        stored: The stored pixels `[y, x]`.
        header: The elements of the file.
        warnings: Receives a warning for each shape that is ignored.
        geometry: The grid of the image, whose pixels may not be square.

    Yields:
        The name for messages, "padding" or "shutter", and the mask `[y, x]`.
    """
    # padding
    value = number(header, "PixelPaddingValue")
    if value is not None:
        limit = number(header, "PixelPaddingRangeLimit", value) or 0.0  # never None
        if stored.dtype.itemsize == 2:  # some devices write a signed value as unsigned, or reverse
            value, limit = np.array([value, limit]).astype(np.int64).astype(stored.dtype)
        low, high = sorted((value, limit))
        yield "padding", (stored < low) | (stored > high)
    # display shutter
    rows, columns = geometry.shape
    y, x = np.ogrid[1 : rows + 1, 1 : columns + 1]  # numbered from 1
    for shape in np.ravel(element_value(header, "ShutterShape") or []):
        values = [v for name in _SHUTTERS.get(shape, ()) for v in numbers(header, name)]
        try:
            if shape == "RECTANGULAR":
                top, bottom, left, right = values
                visible = (top <= y) & (y <= bottom) & (left <= x) & (x <= right)
            elif shape == "CIRCULAR":
                row, column, radius = values
                height, width = geometry.spacing_mm
                visible = np.hypot((y - row) * height / width, x - column) <= radius
            elif values:
                # vertices as pairs (row, column), which `fill_polygons` numbers from 0
                visible = fill_polygons([np.reshape(values, (-1, 2)) - 1], geometry.shape)
            else:
                raise ValueError(shape)
            yield "shutter", visible
        except ValueError:
            warnings.add(f"the shutter {shape!s:.20} is unknown or incomplete and is ignored")


def _pixel_size(
    header: "Header", warnings: ReaderWarnings
) -> tuple[tuple[float, float] | None, str]:
    """Return height and width of a pixel in millimetres, and the unit of sizes in the image.

    X-rays show the patient larger at the detector. A file may state up to three spacings, and the
    first rule that applies is used (PS3.3 10.7.1.3):

    1. `PixelSpacing` is calibrated to the patient if the file states a calibration, or if it
       differs from the spacing of the detector or of the device that scanned the image.
    2. `ImagerPixelSpacing` of the detector is divided by the magnification if that is known.
    3. `ImagerPixelSpacing` without a magnification, `NominalScannedPixelSpacing` of the scanning
       device, or else `PixelSpacing`, has the unit `mm at the detector`.
    4. Without any spacing, the first value is None.

    Args:
        header: The elements of the file.
        warnings: Receives a warning for each impossible or unusual number.
    """
    pixel_mm = _read_pair(header, "PixelSpacing", warnings)
    detector_mm = _read_pair(header, "ImagerPixelSpacing", warnings)
    # the spacing without calibration to the patient: of the detector or the scanning device
    device_mm = detector_mm or _read_pair(header, "NominalScannedPixelSpacing", warnings)
    if pixel_mm and text(header, "PixelSpacingCalibrationType"):
        return pixel_mm, "mm"
    if pixel_mm and device_mm and not np.allclose(pixel_mm, device_mm, rtol=_SAME_SPACING, atol=0):
        # the geometric mean of the ratios along both axes
        ratio = math.sqrt(math.prod(pixel_mm) / math.prod(device_mm))
        if not _USUAL_RATIO[0] < ratio < _USUAL_RATIO[1]:
            warnings.add(
                f"PixelSpacing is {ratio:.2g} times the spacing of the detector or film scanner, "
                "so sizes may be wrong"
            )
        return pixel_mm, "mm"
    magnification = _read_magnification(header)
    if detector_mm is None or magnification < 1:  # 0 if unknown; below 1 is impossible
        return device_mm or pixel_mm, _AT_DETECTOR
    return (detector_mm[0] / magnification, detector_mm[1] / magnification), "mm"


def _read_magnification(header: "Header") -> float:
    """Return the factor by which the detector shows the patient larger, or 0 if it is unknown.

    The factor is an element of the header. Without this element, it is the distance from the X-ray
    source to the detector, divided by the distance from the source to the patient.
    """
    to_detector = number(header, "DistanceSourceToDetector")
    to_patient = number(header, "DistanceSourceToPatient")
    ratio_of_distances = to_detector / to_patient if to_detector and to_patient else 0.0
    return number(header, "EstimatedRadiographicMagnificationFactor") or ratio_of_distances


def _read_pair(header: "Header", name: str, warnings: ReaderWarnings) -> tuple[float, float] | None:
    """Return the two numbers of an element such as `PixelSpacing`: for rows, and for columns.

    Return None if the element does not consist of two positive numbers. If it contains anything
    else, add a warning.
    """
    values = numbers(header, name)
    if len(values) == 2 and min(values) > 0:
        return values[0], values[1]
    if element_value(header, name) is not None:
        warnings.add(f"{name} does not consist of two positive numbers and is not used")
    return None


def radiograph_geometry(
    path: Path,
    header: "Header",
    warnings: ReaderWarnings | None = None,
    *,
    pixel_mm: float | None = None,
) -> Geometry:
    """Return the grid of a radiograph with the axes (y, x).

    The unit of lengths is `mm at the detector` if the pixel size refers to the detector, on which
    the patient appears larger. Otherwise it is `mm`.

    Args:
        path: The file, for messages and its size.
        header: The elements of the file.
        warnings: Receives a warning for each unusual property of the file.
        pixel_mm: The pixel size in millimetres of a file that states none. None means 1 mm.

    Raises:
        ReadError: If the image cannot be read as a radiograph, its size is impossible, or its
            pixels are not square and of unknown size.
    """
    warnings = warnings or ReaderWarnings()
    with convert_read_errors(path):
        check_image(path, header)
        if text(header, "PresentationIntentType") == "FOR PROCESSING":
            warnings.add("the radiograph is FOR PROCESSING, so its grey values are raw")
        shape = int(header.Rows), int(header.Columns)
        mm, unit = _pixel_size(header, warnings)
        if mm is None:
            # the ratio of the sides of a pixel; without it, the pixel is square
            height, width = _read_pair(header, "PixelAspectRatio", warnings) or (1.0, 1.0)
            if height != width:
                raise ReadError(
                    f"{path}: PixelAspectRatio states pixels that are not square, and the file "
                    "states no pixel size. Save the image with square pixels, or with PixelSpacing."
                )
            mm = (pixel_mm or 1.0, pixel_mm or 1.0)
            unit = "mm"
        geometry = Geometry.from_spacing(shape, mm, unit)
        check_grid(path, geometry)
        return geometry
