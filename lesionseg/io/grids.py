"""Grid of a mask against its scan: tolerances, lost or turned header, message if they differ.

`GridPair` compares the grids of two files that belong together.
"""

import logging
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from lesionseg.core import Geometry
from lesionseg.core.geometry import describe_sides
from lesionseg.errors import GeometryError
from lesionseg.io.volumes import is_raster
from lesionseg.io.warn_once import warn_once

logger = logging.getLogger(__name__)

_TOLERANCE_MM = 1e-3
# if two grids differ by less than this, equal indices mean the same place in both
_NEAR_VOXELS = 0.5
_SAME_SPACING = 1e-3  # relative difference
_SIMILAR_MM = 0.1  # difference of two voxels along each axis; more cannot be a rounding
_MIN_OVERLAP = 0.5  # share of the smaller of two grids; with less, they show different places
_BY_INDEX = "data.geometry=image (evaluate: geometry=image)"
_TURNED = "Both headers describe the same region, with axes in other directions."


@dataclass(frozen=True)
class GridPair:
    """The grids of two files that belong together, such as a mask and its scan.

    Attributes:
        path: The file that is checked, or words that describe it.
        seen: The grid of this file.
        other: The file that it is compared with, usually the scan, or words that describe it.
        expected: The grid of the other file.
    """

    path: Path | str
    seen: Geometry
    other: Path | str
    expected: Geometry

    def is_same(self, *, by_image: bool = False) -> bool:
        """Return True if voxels with equal indices have the same position in the patient.

        The shapes must be equal, and the corners of the grids may differ by at most half of the
        shortest side of a voxel. With `by_image` (the setting `data.geometry=image`), headers of
        masks are not trusted: equal shape and spacing are sufficient, and equal shape is sufficient
        if the header of `seen` was lost (`_has_lost_header`).
        """
        if self.seen.shape != self.expected.shape:
            return False
        tolerance = max(_TOLERANCE_MM, _NEAR_VOXELS * min(self.expected.spacing_mm))
        is_near = self.seen.matches(self.expected, tolerance)
        return is_near or (by_image and (self._has_same_spacing() or self._has_lost_header()))

    def overlaps_by_half(self) -> bool:
        """Return True if at least half of the smaller grid is inside the larger grid.

        Otherwise the two files probably show different regions or patients.
        """
        return self.seen.overlap(self.expected) >= _MIN_OVERLAP

    def _headers_differ(self) -> bool:
        """Return True if the shapes are equal, but not the positions of the voxels (`is_same`)."""
        return self.seen.shape == self.expected.shape and not self.is_same()

    def _has_lost_header(self) -> bool:
        """Return True if the file was probably saved without the header of its scan.

        A program that drops the header of a scan writes a default header, such as the identity
        affine of NIfTI. The header counts as lost if all of this is true:

        - The file has three axes, the shape of its scan, and voxels of exactly 1 mm along the
          patient's axes.
        - The first voxel or the centre of the file is at 0 mm, or the first voxel has the same
          position as the first voxel of the scan.
        - The grids are neither the same (`is_same`) nor the same region turned or mirrored
          (`_is_turned`).
        - The axes (direction or spacing) of the grids differ. If only the origins differ, the grids
          overlap by less than half.
        """
        seen = self.seen
        expected = self.expected
        if seen.dims != 3 or not self._headers_differ():
            return False
        axes = seen.affine[:3, :3]
        first = seen.affine[:3, 3]  # position of the first voxel in mm
        distances = np.abs([first, seen.centre_mm, first - expected.affine[:3, 3]]).max(axis=1)
        # 1 mm along the patient's axes: each component of the axes is -1, 0 or 1
        is_default = distances.min() <= _TOLERANCE_MM and np.isin(axes, (-1, 0, 1)).all()
        if not is_default or self._is_turned():
            return False
        has_similar_axes = np.allclose(axes, expected.affine[:3, :3], atol=_SIMILAR_MM)
        return not has_similar_axes or not self.overlaps_by_half()

    def check_header(self, *, can_ignore_headers: bool = False) -> None:
        """Raise `GeometryError` if the file has lost the header of its scan (`_has_lost_header`).

        Positions in the patient cannot be compared then. With `can_ignore_headers`, the message
        names the setting that ignores headers, because the present command has it.
        """
        if self._has_lost_header():
            remedy = f", or use {_BY_INDEX}" if can_ignore_headers else ""
            raise GeometryError(
                f"{self.path}: the header of the scan was lost. The shape is that of "
                f"{self._name_of_other()}, but the header states voxels of 1 mm; "
                f"{self.seen.describe_difference(self.expected)}. Write it again with the position "
                f"of its scan (nibabel: Nifti1Image(mask, scan.affine)){remedy}."
            )

    def check_headers(self, *, can_ignore_headers: bool = False) -> None:
        """Raise `GeometryError` if either of the two files has lost its header.

        For `can_ignore_headers`, see `check_header`. It applies only to `path`, because the setting
        means the headers of masks, and `other` is usually the scan.
        """
        self.check_header(can_ignore_headers=can_ignore_headers)
        swapped = GridPair(path=self.other, seen=self.expected, other=self.path, expected=self.seen)
        swapped.check_header()

    def check_spacing(self) -> None:
        """Raise `GeometryError` if the shapes are equal, but the spacings differ.

        One of the headers is then wrong, and resampling by it would shift the lesions. Grids that
        are the same (`is_same`) or turned (`_is_turned`) are accepted.
        """
        if self._headers_differ() and not self._is_turned() and not self._has_same_spacing():
            # in the order (x, y, z), as programs show it
            mm, other_mm = (grid.spacing_mm[::-1] for grid in (self.seen, self.expected))
            raise GeometryError(
                f"{self.path}: voxels of {describe_sides(mm)} mm, but {describe_sides(other_mm)} mm"
                f" in {self.other}, which has the same shape. Correct the header of the file whose "
                "spacing is wrong (nibabel: Nifti1Image(mask, scan.affine)). If both are right, "
                "resample the voxels with another program."
            )

    def check(self, *, by_image: bool = False) -> None:
        """Raise `GeometryError` if the grids are not the same, see `is_same` for `by_image`.

        1. Grids whose corners differ by at most `_TOLERANCE_MM` are accepted. So is a picture (PNG,
           JPEG, BMP or TIFF) of equal shape, because it states no position.
        2. Grids that differ more, but count as the same (`is_same`), are accepted with a warning.
        3. All other grids are an error. `check_header` and `check_spacing` are called first,
           because their messages say which header is wrong. If neither raises, the error describes
           the difference.
        """
        seen = self.seen
        expected = self.expected
        is_picture = is_raster(Path(self.path)) and seen.shape == expected.shape
        if is_picture or seen.matches(expected, _TOLERANCE_MM):
            return
        other = self._name_of_other()
        difference = seen.describe_difference(expected)
        if self.is_same(by_image=by_image):
            text = "%s: the header states another position than %s (%s). The grid of %s is used."
            if self._is_turned():
                text += f" {_TURNED} Check that lesions do not appear mirrored."
            warn_once(logger, text, self.path, other, difference, other)
            return
        self.check_header(can_ignore_headers=True)
        self.check_spacing()
        advice = "Resample one onto the other."
        if self._is_turned():
            advice = f"{_TURNED} {advice}"
        elif seen.shape == expected.shape and self._has_same_spacing():
            advice = (
                "Resample one onto the other or, if they show the same voxels and only the headers "
                f"differ, use {_BY_INDEX}, as nnU-Net does."
            )
        raise GeometryError(
            f"{self.path} and {other} are not on one grid (shapes {seen.shape} and "
            f"{expected.shape}): {difference}. {advice}"
        )

    def _name_of_other(self) -> str:
        """Return the name of the other file without its folder, for messages.

        If `other` is words instead of a file, return these words.
        """
        return Path(self.other).name

    def _has_same_spacing(self) -> bool:
        """Return True if the spacings of the two grids differ by at most 0.1 % along each axis."""
        spacing_mm = self.expected.spacing_mm
        return bool(np.allclose(self.seen.spacing_mm, spacing_mm, rtol=_SAME_SPACING))

    def _is_turned(self) -> bool:
        """Return True if the grids have equal shape and the same corners in another order.

        The headers are then probably right, and one file stores the same region of the patient
        mirrored or turned, such as from head to feet instead of feet to head. Corners may differ by
        half a voxel.
        """
        if not self._headers_differ():
            return False
        last = np.array(self.seen.shape) - 1
        corners = np.array(list(product((0, 1), repeat=self.seen.dims))) * last
        index = self.expected.to_index(self.seen.to_mm(corners))
        # in voxels, from the nearer end of each axis of the other grid; 0 is at a corner
        distance = np.minimum(np.abs(index), np.abs(index - last))
        return bool((distance < _NEAR_VOXELS).all())
