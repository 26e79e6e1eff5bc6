"""The outline of a mask along its pixels' edges, as closed loops."""

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

Point = tuple[int, int]
Loop = tuple[Point, ...]


def trace_loops(mask: NDArray[np.bool_]) -> tuple[Loop, ...]:
    """Closed loops of corner points (x, y) around the True pixels of a `[h, w]` mask.

    Exact: no corner is cut, so a lesion of one pixel keeps its area. Only points where the
    outline turns are kept; the last joins the first. An empty mask gives no loop. Pixels that
    touch by a corner may share a loop or have two.

    >>> trace_loops(np.array([[True]]))
    (((0, 0), (1, 0), (1, 1), (0, 1)),)
    """
    following = _edges(mask)
    loops = []
    while following:
        start = next(iter(following))
        loop = [start]
        while (point := _take(following, loop[-1])) != start:
            loop.append(point)
        loops.append(_turns(loop))
    return tuple(loops)


def _edges(mask: NDArray[np.bool_]) -> dict[Point, list[Point]]:
    """From each corner to the next one along the outline, inside on the right hand."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    following: dict[Point, list[Point]] = defaultdict(list)
    for neighbour, start, stop in (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),  # above is outside: walk right along the top
        (padded[1:-1, 2:], (1, 0), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (0, 1)),
        (padded[1:-1, :-2], (0, 1), (0, 0)),
    ):
        for y, x in np.argwhere(inside & ~neighbour).tolist():
            following[x + start[0], y + start[1]].append((x + stop[0], y + stop[1]))
    return following


def _take(following: dict[Point, list[Point]], point: Point) -> Point:
    following_point = following[point].pop()
    if not following[point]:
        del following[point]
    return following_point


def _turns(loop: list[Point]) -> Loop:
    around = zip([loop[-1], *loop[:-1]], loop, [*loop[1:], loop[0]], strict=True)
    return tuple(
        b for a, b, c in around if (b[0] - a[0], b[1] - a[1]) != (c[0] - b[0], c[1] - b[1])
    )
