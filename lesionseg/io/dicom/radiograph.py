"""DICOM radiographs (CR, DX, mammograms): grey values as they are meant to be looked at.

Order of PS3.3 C.11: modality table or slope, then values of interest, then presentation; each is
applied once.
"""

import logging
from pathlib import Path

import numpy as np

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ReadError
from lesionseg.io.dicom.headers import (
    Header,
    check_scan,
    image_header,
    is_dicom,
    is_xray,
    read_header,
    stored_pixels,
)
from lesionseg.io.limits import check_grid, reading

logger = logging.getLogger(__name__)

DETECTOR = "at the detector"  # where objects in the body appear larger than they are
_LEAST_SHOWN = 0.01  # of the pixels: a padding that leaves less is stated wrongly


def radiograph_file(path: Path) -> Path | None:
    """The file when `path` is one radiograph or a folder with just that; None for all else."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    images = ((f, h) for f in files if is_dicom(f) and (h := image_header(f)) is not None)
    file, header = next(images, (path, None))
    if header is None or not is_xray(header):  # a series' other files need not be opened
        return None
    if next(images, None) is not None:
        raise ReadError(f"{path}: the folder has several images, some radiographs. Name one file.")
    return file


def read_radiograph(path: Path) -> Volume:
    """Read a radiograph `[1, y, x]` float32: bright is dense, whatever the file's photometry.

    Padding takes the darkest value of the image proper and is not `valid`. Raises `ReadError`.
    """
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    header = read_header(path)
    geometry, stored = radiograph_geometry(path, header), stored_pixels(path)[0]
    with reading(path):
        grey = apply_modality_lut(stored, header)
        if grey.dtype.kind == "f" and header.get("VOILUTSequence"):
            grey = grey.astype(np.int64)  # a table is indexed by whole numbers
        grey = np.asarray(apply_voi_lut(grey, header, index=0), dtype=np.float64)
        photometry = str(header.get("PhotometricInterpretation", ""))
        # DX states it twice, and it is meant once
        if photometry == "MONOCHROME1" or header.get("PresentationLUTShape", "") == "INVERSE":
            grey = grey.max() + grey.min() - grey
        valid = None
        if header.get("PixelPaddingValue") is not None:
            low = int(header.PixelPaddingValue)
            low, high = sorted((low, int(header.get("PixelPaddingRangeLimit", low))))
            shown = (stored < low) | (stored > high)
            if shown.mean() < _LEAST_SHOWN:
                logger.warning("%s: the padding is ignored; it would hide the whole image.", path)
            elif not shown.all():
                valid = shown
                grey[~shown] = grey[shown].min()
    return Volume(grey[np.newaxis].astype(np.float32), geometry, valid)


def pixel_size(header: "Header") -> tuple[tuple[float, float], str]:
    """Pixel height and width in millimetres, and what they are measured on.

    `PixelSpacing` is trusted only when the file says how it was calibrated; else the detector's
    spacing, divided by the magnification where that is known (PS3.3 10.7.1.3), or 1 mm.
    """

    def pair(name: str) -> tuple[float, float] | None:
        value = header.get(name)
        numbers = [float(v) for v in np.ravel(value)] if value is not None else []
        if len(numbers) == 2 and min(numbers) > 0:
            return numbers[0], numbers[1]
        if value is not None:
            logger.warning("A radiograph's %s is not two positive numbers and is not used.", name)
        return None

    claimed, imager = pair("PixelSpacing"), pair("ImagerPixelSpacing")
    if claimed and header.get("PixelSpacingCalibrationType"):
        return claimed, "calibrated"
    base = imager or pair("NominalScannedPixelSpacing") or claimed
    if base is None:
        return (1.0, 1.0), "unknown"
    factor = header.get("EstimatedRadiographicMagnificationFactor")
    detector, patient = (header.get(f"DistanceSourceTo{what}") for what in ("Detector", "Patient"))
    if not factor and detector and patient:
        factor = float(detector) / float(patient)
    if imager and factor and float(factor) >= 1:
        mm = base[0] / float(factor), base[1] / float(factor)
        return mm, f"{DETECTOR}, divided by the magnification"
    return base, DETECTOR


def radiograph_columns(path: Path) -> dict[str, str]:
    """What a report may group radiographs by: laterality, view, intent and worth of the size."""
    header = read_header(path)
    with reading(path):
        return {
            "laterality": str(header.get("ImageLaterality") or header.get("Laterality") or ""),
            "view": str(header.get("ViewPosition") or ""),
            "presentation_intent": str(header.get("PresentationIntentType") or ""),
            "pixel_size_source": pixel_size(header)[1],
        }


def radiograph_geometry(path: Path, header: "Header") -> Geometry:
    with reading(path):
        check_scan(path, header)
        if str(header.get("PresentationIntentType", "")) == "FOR PROCESSING":
            logger.warning("%s is a radiograph for processing: its grey values are raw.", path)
        shape, (mm, source) = (int(header.Rows), int(header.Columns)), pixel_size(header)
        # at the detector lengths are larger than true
        unit = f"mm {DETECTOR}" if source == DETECTOR else "mm"
        return check_grid(path, Geometry.from_spacing(shape, mm, unit))
