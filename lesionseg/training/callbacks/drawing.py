"""Pictures of one plane: what the reference marks on the left, what is predicted on the right."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Picture = NDArray[np.uint8]  # [height, width, 3]
Mask = NDArray[np.bool_]
Cut = tuple[int, ...]  # the leading indices of a plane; empty in 2-D

REFERENCE = (86, 180, 233)  # sky blue and orange: told apart by everybody, on grey
PREDICTED = (230, 159, 0)
LEAST_SIDE = 192  # pixels; smaller planes are enlarged


def masks_side_by_side(plane: NDArray[np.floating], reference: Mask, predicted: Mask) -> Picture:
    """The reference's outline; what is predicted filled, with the reference's outline."""
    shown, around = grey(plane), outline(reference)
    left = painted(shown, around, REFERENCE)
    return _pair(left, painted(tinted(shown, predicted), around, REFERENCE))


def boxes_side_by_side(
    plane: NDArray[np.floating], reference: ArrayLike, predicted: ArrayLike
) -> Picture:
    """Frames of boxes `[n, 4]` in the plane: the reference's; the predicted ones under these."""
    shown, ours = grey(plane), _frames(reference, plane.shape)
    right = painted(shown, _frames(predicted, plane.shape), PREDICTED)
    return _pair(painted(shown, ours, REFERENCE), painted(right, ours, REFERENCE))


def stacked(rows: Sequence[Picture]) -> Picture:
    """Rows of whatever width below each other, black where one is narrower."""
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0))) for r in rows])


def fullest(marked: NDArray[np.integer] | Mask) -> Cut:
    """The plane with the largest sum."""
    area = marked.sum(axis=(-2, -1))
    return tuple(int(i) for i in np.unravel_index(int(area.argmax()), area.shape))


def crossing(boxes: ArrayLike, cut: Cut) -> NDArray[np.float64]:
    """Of boxes `[n, 2·dims]` those that meet a plane, as boxes `[m, 4]` in it.

    >>> crossing([[0, 1, 2, 2, 5, 6], [3, 0, 0, 4, 9, 9]], (1,)).tolist()
    [[1.0, 2.0, 5.0, 6.0]]
    """
    n = len(cut)
    flat = np.asarray(boxes, dtype=np.float64).reshape(-1, 2 * (n + 2))
    start, stop = np.split(flat, 2, axis=1)
    meets = ((start[:, :n] < np.add(cut, 1)) & (stop[:, :n] > np.asarray(cut))).all(axis=1)
    return np.concatenate([start[meets, n:], stop[meets, n:]], axis=1)


def grey(plane: NDArray[np.floating]) -> Picture:
    """Between the 0.5th and the 99.5th percentile."""
    low, high = np.percentile(plane, (0.5, 99.5))
    scaled = np.clip((plane - low) / max(float(high - low), 1e-6), 0, 1)
    return np.repeat((255 * scaled).astype(np.uint8)[..., None], 3, axis=-1)


def outline(mask: Mask) -> Mask:
    """Pixels just outside the mask: the lesion itself stays to be seen."""
    padded = np.pad(mask, 1)
    beside = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return np.asarray(beside & ~mask)


def painted(picture: Picture, where: Mask, colour: tuple[int, int, int]) -> Picture:
    """A copy with some pixels in one colour."""
    done = picture.copy()
    done[where] = colour
    return done


def tinted(picture: Picture, where: Mask) -> Picture:
    """Half of what is there, half the colour of predictions."""
    half = (picture // 2 + np.asarray(PREDICTED) // 2).astype(np.uint8)
    return np.where(where[..., None], half, picture)


def _frames(boxes: ArrayLike, shape: tuple[int, ...]) -> Mask:
    """The pixels just outside each box, at the border those just inside."""
    marked = np.zeros(shape, dtype=bool)
    for y0, x0, y1, x1 in np.asarray(boxes, dtype=np.float64).reshape(-1, 4):
        top, left = max(int(np.floor(y0)) - 1, 0), max(int(np.floor(x0)) - 1, 0)
        bottom, right = min(int(np.ceil(y1)), shape[0] - 1), min(int(np.ceil(x1)), shape[1] - 1)
        marked[[top, bottom], left : right + 1] = True
        marked[top : bottom + 1, [left, right]] = True
    return marked


def _pair(left: Picture, right: Picture) -> Picture:
    picture = np.concatenate([left, right], axis=1)
    times = max(1, -(-LEAST_SIDE // min(left.shape[:2])))
    return picture.repeat(times, axis=0).repeat(times, axis=1)
