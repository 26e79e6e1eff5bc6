"""Masks drawn from boxes: test for rectangle or ellipse, shortest side, tolerance in pixels."""

from typing import NamedTuple

import numpy as np

from lesionseg.core import Lesions, Reference
from lesionseg.core.arrays import Flags

# A lesion with a shorter side could have the outline by chance: of real outlines of 10 to 14
# pixels, 5 % are within a pixel of an ellipse, and of those above 14 pixels, none.
SHORTEST_SIDE = 12
TOLERANCE = 1.0  # in pixels; programs that draw an ellipse differ by less
MAX_OUTLINES_PER_CASE = 64  # evenly spaced lesions that are tested in a case


class OutlineCounts(NamedTuple):
    """The number of lesions that were tested, and of those with the outline of a box."""

    n_tested: int = 0
    n_boxes: int = 0


def count_box_outlines(reference: Reference, lesions: Lesions) -> OutlineCounts:
    """Count the lesions of a 2-D mask that are filled rectangles or ellipses in their box.

    Such masks were drawn from boxes, so a detector may suit the dataset better (`choose_model`).

    Lesions that are too small or reach the border of the image are not tested. Of the remaining
    lesions, at most 64 are tested.

    Args:
        reference: The reference.
        lesions: Its lesions, as returned by `lesions_of`.

    Returns:
        The counts; zeros for a 3-D reference, for one without a mask, and without lesions.
    """
    shape = np.array(reference.geometry.shape)
    if len(shape) != 2 or reference.mask() is None:
        return OutlineCounts()
    start = lesions.boxes[:, :2]  # a box is (start, stop) along both axes
    stop = lesions.boxes[:, 2:]
    is_large = ((stop - start) >= SHORTEST_SIDE).all(axis=1)
    is_inside = ((start > 0) & (stop < shape)).all(axis=1)
    rows = np.flatnonzero(is_large & is_inside & lesions.has_voxels)
    if len(rows) > MAX_OUTLINES_PER_CASE:
        rows = rows[np.linspace(0, len(rows) - 1, MAX_OUTLINES_PER_CASE).astype(int)]
    n_boxes = 0
    for row in rows.tolist():
        voxels = lesions.voxels_of(row)
        corner = voxels.min(axis=0)
        crop = np.zeros(voxels.max(axis=0) + 1 - corner, bool)  # the lesion in its bounding box
        crop[tuple((voxels - corner).T)] = True
        n_boxes += is_box_outline(crop)
    return OutlineCounts(len(rows), n_boxes)


def is_box_outline(crop: Flags) -> bool:
    """Return True if a mask fills its bounding box, or the ellipse that is inscribed in the box.

    Pixels at a distance of up to `TOLERANCE` from the outline may differ.

    Args:
        crop: Mask `[rows, columns]` of one lesion, cut to its bounding box. Both sides have at
            least `SHORTEST_SIDE` pixels, because a smaller mask may fit by chance.

    >>> is_box_outline(np.ones((14, 20), dtype=bool))
    True
    >>> rows, columns = np.ogrid[-9.5:10, -14.5:15]
    >>> is_box_outline((rows / 10) ** 2 + (columns / 15) ** 2 <= 1)
    True
    >>> is_box_outline(np.tri(20, dtype=bool))
    False
    """
    margin = int(TOLERANCE)  # pixels at the outline that a filled box may lack
    if crop[margin:-margin, margin:-margin].all():
        return True
    # the mask must contain the smaller ellipse, and be within the larger ellipse
    is_outside = crop & ~_ellipse(crop.shape, growth=TOLERANCE)
    return not is_outside.any() and not (~crop & _ellipse(crop.shape, growth=-TOLERANCE)).any()


def _ellipse(shape: tuple[int, ...], growth: float) -> Flags:
    """Return the mask of the ellipse that is inscribed in a box, made larger by `growth` pixels.

    Args:
        shape: Number of rows and columns of the box.
        growth: Pixels by which both semi-axes are longer, or shorter if it is negative.
    """
    # squared distances of the pixel centres from the centre, in units of the semi-axis
    rows, columns = (((np.arange(n) + 0.5 - n / 2) / (n / 2 + growth)) ** 2 for n in shape)
    return rows[:, None] + columns <= 1
