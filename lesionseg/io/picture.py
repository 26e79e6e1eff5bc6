"""The samples of a picture, and the values or labels that they mean.

The values are those that a viewer shows. They do not depend on format, compression or depth.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.core.arrays import Flags
from lesionseg.errors import ReadError
from lesionseg.io.limits import check_grid, limits

logger = logging.getLogger(__name__)

_LABEL_GREYS = 64  # a palette with only darker greys than this contains labels, not a picture


@dataclass(frozen=True, eq=False)
class Picture:
    """The samples of a picture as its file stores them.

    Attributes:
        samples: `[y, x, n]`: 1 grey value (0 is black) or palette index, or 3 colours.
        palette: The colour of each index `[k, 3]`, or None.
        alpha: The opacity `[y, x]`, or None. Opaque is the largest integer of its type, or 1.
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
            pixel_mm: The pixel size in millimetres, None for 1 mm.
            as_labels: True computes the labels of a mask, False the values of an image.

        Raises:
            ReadError: The labels are ambiguous, or the grid is outside the limits.
        """
        array = self._compute_labels(path) if as_labels else self._compute_values(path)
        return Volume(array, picture_grid(path, array.shape[1:], pixel_mm))

    def _compute_values(self, path: Path) -> NDArray[Any]:
        """Compute the grey values `[1, y, x]` or colours `[3, y, x]` of an image, turned upright.

        Colours that are all grey become grey values. Transparency gives a warning.
        """
        if self.alpha is not None and self._is_transparent(self.alpha).any():
            logger.warning("%s: the picture is partly transparent. Its opacity is ignored.", path)
        colours = self.samples if self.palette is None else self.palette[self.samples[..., 0]]
        return self._turn_upright(_drop_equal_colours(colours))

    def _compute_labels(self, path: Path) -> NDArray[Any]:
        """Compute the label values `[1, y, x]` of a mask, turned upright.

        Raise `ReadError` if the mask is in colour, or its palette or opacity is ambiguous.
        """
        values = _drop_equal_colours(self.samples)
        if self.palette is not None:
            values = _palette_labels(path, np.unique(values), self.palette)[values]
        if values.shape[-1] != 1:
            raise ReadError(
                f"{path}: the mask is in colour. Save it with one label value per pixel."
            )
        self._check_opacity(path, values[..., 0])
        return self._turn_upright(values)

    def _is_transparent(self, alpha: NDArray[Any]) -> Flags:
        """Return the pixels `[y, x]` that are not fully opaque."""
        opaque = 1.0 if alpha.dtype.kind == "f" else np.iinfo(alpha.dtype).max
        return np.asarray(alpha != opaque)

    def _check_opacity(self, path: Path, values: NDArray[Any]) -> None:
        """Raise `ReadError` if the opacity of a mask may contain labels."""
        if self.alpha is None:
            return
        advice = "Save the mask without transparency, with one label value per pixel."
        n_hidden = int(np.count_nonzero(values[self._is_transparent(self.alpha)]))
        if n_hidden:
            raise ReadError(
                f"{path}: {n_hidden} labelled pixels of the mask are transparent. {advice}"
            )
        if self.alpha.size and np.ptp(self.alpha) and not values.any():
            raise ReadError(
                f"{path}: all values of the mask are 0, but its opacity varies, so the opacity may "
                f"be the mask. {advice}"
            )

    def _turn_upright(self, values: NDArray[Any]) -> NDArray[Any]:
        """Turn values `[y, x, n]` upright, as viewers do, and return them as `[n, y, x]`."""
        values = np.moveaxis(values, -1, 0)
        if self.turn in (5, 6, 7, 8):
            values = values.swapaxes(1, 2)
        if self.turn in (3, 4, 7, 8):
            values = values[:, ::-1]
        if self.turn in (2, 3, 6, 7):
            values = values[:, :, ::-1]
        return np.ascontiguousarray(values, values.dtype.newbyteorder("="))


def picture_grid(path: Path, shape: tuple[int, ...], pixel_mm: float | None) -> Geometry:
    """Return the grid of a picture. Raise `ReadError` if it is outside the limits.

    `pixel_mm` is the pixel size. None means 1 mm, because pictures do not state it.
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
    """Return one channel `[y, x, 1]` if all colours are equal in every pixel.

    Otherwise return the values `[y, x, n]` unchanged.
    """
    first = values[..., :1]
    is_grey = all(np.array_equal(first[..., 0], values[..., c]) for c in range(values.shape[-1]))
    return first if is_grey else values


def _palette_labels(
    path: Path, used: NDArray[Any], palette: NDArray[np.uint8]
) -> NDArray[np.uint16]:
    """Return the label `[k]` of each palette entry. Raise `ReadError` if it is ambiguous.

    - Colours: the index is the label if index 0 is the darkest colour, as in the palettes of
      segmentation tools (in Pascal VOC, 0 is black).
    - Two greys: the darker one is 0 and the brighter one is 1, in any order of the palette.
    - More greys: the index is the label if the greys ascend with it.
    - Greys that are too dark to see (0, 1, 2, …) are labels themselves. Each must be equal to its
      index or to its rank among the greys.

    Args:
        path: The file.
        used: The indices that the mask uses, in ascending order.
        palette: The colours `[k, 3]`.
    """
    own_indices = np.arange(len(palette), dtype=np.uint16)
    advice = "Save the mask without a palette, with one label value per pixel (0 is background)."
    has_colours = (palette != palette[:, :1]).any()
    if has_colours:
        brightness = palette.astype(np.int64) @ (299, 587, 114)  # 1000 times that of ITU-R BT.601
        is_as_dark = (used > 0) & (brightness[used] <= brightness[0])
        if is_as_dark.any() or brightness.min() < brightness[0]:
            raise ReadError(
                f"{path}: index 0 is not the darkest colour of the mask's palette, so another "
                f"index may be the background. {advice}"
            )
        return own_indices
    greys = palette[:, 0].astype(np.uint16)
    if np.array_equal(greys[used], used):
        return own_indices
    distinct, ranks = np.unique(greys, return_inverse=True)
    is_too_dark_to_see = distinct.max() < _LABEL_GREYS
    if is_too_dark_to_see and np.array_equal(greys[used], ranks[used]):
        return greys
    if not is_too_dark_to_see and len(distinct) == 2:
        return ranks.astype(np.uint16)
    do_greys_ascend = (np.diff(greys[np.union1d(0, used)].astype(int)) > 0).all()
    if not is_too_dark_to_see and do_greys_ascend:
        return own_indices
    raise ReadError(
        f"{path}: the greys of the mask's palette ({', '.join(map(str, greys[used][:8]))}) and its "
        f"indices ({', '.join(map(str, used[:8]))}) do not agree, so either may be the label. "
        f"{advice}"
    )
