"""Pixels of a picture to grey values or labels: refused palette, opacity, colours, orientation.

The values are those that a viewer shows. They do not depend on format, compression or depth.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ReadError
from lesionseg.io.limits import check_grid, limits

logger = logging.getLogger(__name__)

_LABEL_GREYS = 64  # a palette with only darker greys than this contains labels, not a picture


@dataclass(frozen=True, eq=False)
class Picture:
    """The samples (numbers of the pixels) of a picture, in the order of its file.

    Attributes:
        samples: `[y, x, n]`. n is 1 for grey values (0 is black) and palette indices, 3 for
            colours.
        palette: The colour of each palette index `[k, 3]`, or None if the picture has no palette.
        alpha: The opacity `[y, x]`, or None. An opaque pixel has the largest integer of the type,
            or 1.
        turn: The orientation tag of TIFF and Exif. 1 is upright, 2 to 4 are mirrored along axes, 5
            to 8 have rows and columns swapped. Any other value is ignored.
    """

    samples: NDArray[Any]
    palette: NDArray[np.uint8] | None = None
    alpha: NDArray[Any] | None = None
    turn: int = 1

    def to_volume(self, path: Path, pixel_mm: float | None, *, as_labels: bool) -> Volume:
        """Return the picture as a volume `[1 or 3, y, x]`, upright, with y pointing down.

        Args:
            path: The file, for messages.
            pixel_mm: The pixel size in millimetres. None means 1 mm.
            as_labels: True computes the label values of a mask. False computes the grey values or
                colours of an image.

        Raises:
            ReadError: If the labels are ambiguous, or the grid is outside the limits.
        """
        array = self._compute_labels(path) if as_labels else self._compute_values(path)
        return Volume(array, picture_grid(path, array.shape[1:], pixel_mm))

    def _compute_values(self, path: Path) -> NDArray[Any]:
        """Compute the grey values `[1, y, x]` or colours `[3, y, x]` of an image, turned upright.

        If red, green and blue are equal in all pixels, the image becomes grey. Opacity is ignored,
        with a warning if it differs between pixels.
        """
        if self._has_opacity():
            logger.warning("%s: the picture is partly transparent. Its opacity is ignored.", path)
        colours = self.samples if self.palette is None else self.palette[self.samples[..., 0]]
        return self._turn_upright(_drop_equal_colours(colours))

    def _compute_labels(self, path: Path) -> NDArray[Any]:
        """Compute the label values `[1, y, x]` of a mask, turned upright.

        Raise `ReadError` if the mask is in colour, its pixels differ in opacity, or its palette is
        ambiguous.
        """
        values = _drop_equal_colours(self.samples)
        if self.palette is not None:
            _check_palette(path, np.unique(values), self.palette)
            values = values.astype(np.uint16)
        if values.shape[-1] != 1:
            raise ReadError(
                f"{path}: the mask is in colour. Save it with one label value per pixel."
            )
        if self._has_opacity():
            raise ReadError(
                f"{path}: the opacity of the mask varies, so it may contain labels. Save the mask "
                "without transparency, with one label value per pixel."
            )
        return self._turn_upright(values)

    def _has_opacity(self) -> bool:
        """Return True if the opacity (alpha) differs between pixels."""
        return self.alpha is not None and bool((self.alpha != self.alpha[:1, :1]).any())

    def _turn_upright(self, values: NDArray[Any]) -> NDArray[Any]:
        """Turn values `[y, x, n]` upright by the orientation tag, and return `[n, y, x]`.

        The tag (`turn`) states how the stored rows and columns are mirrored or swapped. The result
        has the native byte order.
        """
        values = np.moveaxis(values, -1, 0)
        # the tag of Exif: 5 to 8 swap rows and columns, the other groups mirror one of the two
        if self.turn in (5, 6, 7, 8):
            values = values.swapaxes(1, 2)
        if self.turn in (3, 4, 7, 8):
            values = values[:, ::-1]
        if self.turn in (2, 3, 6, 7):
            values = values[:, :, ::-1]
        return np.ascontiguousarray(values, values.dtype.newbyteorder("="))


def picture_grid(path: Path, shape: tuple[int, ...], pixel_mm: float | None) -> Geometry:
    """Return the grid of a picture with square pixels at the origin.

    Args:
        path: The file, for messages.
        shape: Rows and columns.
        pixel_mm: The pixel size in millimetres from the settings or a table, because pictures do
            not state a size. None means 1 mm.

    Raises:
        ReadError: If the pixel size or the grid is outside the limits of `FileLimits`.
    """
    mm = 1.0 if pixel_mm is None else float(pixel_mm)
    low, high = limits().spacing_mm
    if not low <= mm <= high:
        raise ReadError(
            f"{path}: the pixel size {mm:g} mm is outside {low:g}–{high:g} mm. Correct pixel_mm in "
            "the settings or the table of the dataset."
        )
    geometry = Geometry.from_spacing(shape, (mm, mm))
    check_grid(path, geometry)
    return geometry


def _drop_equal_colours(values: NDArray[Any]) -> NDArray[Any]:
    """Return a single grey channel `[y, x, 1]` if red, green and blue are equal in every pixel.

    Otherwise return the values `[y, x, n]` unchanged.
    """
    first = values[..., :1]
    is_grey = all(np.array_equal(first[..., 0], values[..., c]) for c in range(values.shape[-1]))
    return first if is_grey else values


def _check_palette(path: Path, used: NDArray[Any], palette: NDArray[np.uint8]) -> None:
    """Raise `ReadError` if the palette indices of a mask may not be its label values.

    The indices are the labels in the masks of segmentation tools. Two signs contradict this:

    - Index 0, the background, is not the darkest of the used colours and of the palette.
    - All colours are darker than 64, and differ from their indices. Such colours are too dark to
      see. They are probably label values (0, 2, 5) that a program has packed into a palette.

    Args:
        path: The file, for the message.
        used: The indices that the mask uses, in ascending order.
        palette: The colour of each index `[k, 3]`.
    """
    brightness = palette.astype(np.int64) @ (299, 587, 114)  # 1000 times that of ITU-R BT.601
    is_darkest = (
        brightness[0] == brightness.min() and (brightness[used[used > 0]] > brightness[0]).all()
    )
    are_labels = palette.max() < _LABEL_GREYS and (palette[used] != used[:, np.newaxis]).any()
    if are_labels or not is_darkest:
        raise ReadError(
            f"{path}: index 0 is not the darkest colour of the mask's palette, or its colours are "
            "label values, so the indices may not be the labels. Save the mask without a palette, "
            "with one label value per pixel (0 is background)."
        )
