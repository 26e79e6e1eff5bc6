"""Surface elements of a mask: where its surface runs between voxels, and how much of it.

A surface element (surfel) sits at each corner of the voxel grid whose 2·dims neighbourhood of
2^dims voxels is partly inside the mask. Its area is that of the marching-cubes surface through the
midpoints of the cut cube edges, as in Nikolov et al. 2018 (arXiv 1809.04430, supplement): corners
inside the mask are kept apart on ambiguous faces, and a neighbourhood has the area of its
complement, so that the area does not depend on what is called inside. In 2-D: contour length.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lesionseg.ops.kernels import surface_numba

Point = tuple[float, ...]
Corner = tuple[int, ...]
Simplex = tuple[Point, ...]  # ends of a segment (2-D) or vertices of a triangle (3-D)


@dataclass(frozen=True, eq=False)
class Surfels:
    """Corners `[n, dims]` on the lattice of voxel corners, and area (length) `[n]`."""

    corners: NDArray[np.int64]
    areas: NDArray[np.float64]


def surfels_of(voxels: NDArray[np.int64], spacing_mm: Sequence[float]) -> Surfels:
    """The surface elements of a mask given as its voxels `[v, dims]`, at least one.

    Beyond the image is outside the mask. An element's corner is that before the voxel of the same
    index, so that two masks are half a voxel off alike.
    """
    dims = voxels.shape[1]
    low, high = surface_numba.bounds(voxels)
    shape = (high - low + 2).astype(np.int64)
    codes = np.zeros(int(shape.prod()), dtype=np.uint8)  # pages never touched cost nothing
    steps = np.array(_corners(dims)) @ np.append(np.cumprod(shape[:0:-1])[::-1], 1)
    corners, found = surface_numba.corners_of(voxels, low, shape, steps, codes)
    areas = surfel_areas(tuple(float(s) for s in spacing_mm))
    return Surfels(corners, areas[found])


@lru_cache(maxsize=256)
def surfel_areas(spacing_mm: tuple[float, ...]) -> NDArray[np.float64]:
    """Area in mm² (length in mm) of each neighbourhood `[2^(2^dims)]` at a voxel spacing."""
    dims = len(spacing_mm)
    pieces = _all_pieces(dims)
    sizes = _sizes(pieces.ends * spacing_mm)
    areas = np.zeros(2 ** (2**dims))
    np.add.at(areas, pieces.code, sizes)
    areas.setflags(write=False)
    return areas


@dataclass(frozen=True, eq=False)
class _Pieces:
    """Ends of all segments or triangles `[n, dims, dims]` and the neighbourhood `[n]` of each."""

    ends: NDArray[np.float64]
    code: NDArray[np.int64]


@lru_cache(maxsize=2)
def _all_pieces(dims: int) -> _Pieces:
    surfaces = _surfaces(dims)
    code = np.repeat(np.arange(len(surfaces)), [len(s) for s in surfaces])
    return _Pieces(np.array([piece for s in surfaces for piece in s]), code)


@lru_cache(maxsize=2)
def _surfaces(dims: int) -> tuple[tuple[Simplex, ...], ...]:
    """The pieces of surface in the unit cube of each neighbourhood; bit i is `_corners[i]`."""
    corners = _corners(dims)
    return tuple(
        tuple(_pieces({c for i, c in enumerate(corners) if code >> i & 1}, dims))
        for code in range(2 ** len(corners))
    )


def _corners(dims: int) -> list[Corner]:
    return list(itertools.product((0, 1), repeat=dims))


def _pieces(inside: set[Corner], dims: int) -> Iterator[Simplex]:
    """Segments or triangles of one neighbourhood."""
    corners = set(_corners(dims))
    if len(inside) > len(corners) / 2:
        inside = corners - inside
    if dims == 2:
        yield from _segments(list(_ring(corners)), inside)
        return
    segments = [s for face in _faces() for s in _segments(face, inside)]
    for loop in _loops(segments):
        # a bent loop has several triangulations; the one of the largest area folds it along the
        # fewest edges
        yield from max(_triangulations(loop), key=lambda t: round(_area(t, (1.0,) * 3), 9))


def _ring(corners: set[Corner]) -> Iterator[Corner]:
    yield from ((0, 0), (0, 1), (1, 1), (1, 0))


def _faces() -> Iterator[list[Corner]]:
    """The corners of each face of the cube, in a ring."""
    for axis, side in itertools.product(range(3), (0, 1)):
        ring = [list(c) for c in ((0, 0), (0, 1), (1, 1), (1, 0))]
        for corner in ring:
            corner.insert(axis, side)
        yield [tuple(corner) for corner in ring]


def _segments(ring: list[Corner], inside: set[Corner]) -> list[Simplex]:
    """Where the surface crosses a square: around each run of corners that are inside."""
    here = [c in inside for c in ring]
    starts = [i for i in range(4) if here[i] and not here[i - 1]]
    found: list[Simplex] = []
    for start in starts:
        stop = next(start + n for n in range(1, 4) if not here[(start + n) % 4])
        entered = _middle(ring[start - 1], ring[start])
        found.append((entered, _middle(ring[(stop - 1) % 4], ring[stop % 4])))
    return found


def _middle(a: Corner, b: Corner) -> Point:
    return tuple((x + y) / 2 for x, y in zip(a, b, strict=True))


def _loops(segments: list[Simplex]) -> Iterator[list[Point]]:
    """Join segments end to end; every end is shared by two."""
    left = list(segments)
    while left:
        loop = list(left.pop())
        while True:
            following = next((s for s in left if loop[-1] in s), None)
            if following is None:
                break
            left.remove(following)
            loop.append(following[1] if following[0] == loop[-1] else following[0])
        yield loop[:-1]


def _triangulations(loop: list[Point]) -> Iterator[list[Simplex]]:
    """All ways to cut a loop into triangles between its own vertices."""
    if len(loop) < 3:
        yield []
        return
    for i in range(1, len(loop) - 1):
        for before in _triangulations(loop[: i + 1]):
            for after in _triangulations(loop[i:]):
                yield [(loop[0], loop[i], loop[-1]), *before, *after]


def _area(pieces: Sequence[Simplex], spacing_mm: Sequence[float]) -> float:
    return float(_sizes(np.multiply(pieces, spacing_mm)).sum()) if pieces else 0.0


def _sizes(ends: NDArray[np.float64]) -> NDArray[np.float64]:
    """Length of segments `[n, 2, 2]` or area of triangles `[n, 3, 3]`."""
    sides = ends[:, 1:] - ends[:, :1]
    if sides.shape[1] == 1:
        return np.asarray(np.linalg.norm(sides[:, 0], axis=-1))
    return np.asarray(np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=-1) / 2)
