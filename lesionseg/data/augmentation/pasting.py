"""Lesions copied to other places: variety where few lesions teach (TumorCP, Yang et al. 2021).

A copy is put where the tissue is like that around the lesion it was taken from, with the lesion's
difference from its surroundings made weaker or stronger: what a network overfits to are
otherwise the places and the contrasts of the few lesions it has seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, uniform_filter

from lesionseg.data.cache.cached_case import CachedCase
from lesionseg.data.tiling import read_tile

# voxels around a lesion that tell what tissue it lies in
_RIM = 2
# places looked at for a copy; the one most alike is taken
_PLACES = 16
# most that the tissue may differ, root mean square over channels of the normalised image
_UNLIKE = 0.5
# longest side of a lesion that is copied, as a share of the tile's
_LONGEST = 0.5


@dataclass(frozen=True)
class Pasting:
    """Copies for one tile; a few numbers, drawn before anything is read."""

    n: int
    contrast: tuple[float, float]
    flip_axes: tuple[int, ...]
    seed: int


@dataclass(frozen=True, eq=False)
class TileArrays:
    """What a copy goes into, in place: image `[C, *shape]`, masks `[*shape]`.

    No lesion of a label in `unannotated` is put there: of these nothing is taught.
    """

    image: NDArray[np.floating[Any]]
    labels: NDArray[np.uint8]
    instances: NDArray[Any]
    valid: NDArray[np.bool_]
    unannotated: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Copy:
    """A lesion with a rim: its `contrast` `[C, *shape]` to the mean `around` it `[C]`, its masks.

    `mask`: the lesion's voxels `[*shape]`. `rim`: those around it that are tissue.
    """

    contrast: NDArray[np.float32]
    around: NDArray[np.float32]
    mask: NDArray[np.bool_]
    rim: NDArray[np.bool_]
    labels: NDArray[np.uint8]


class Donors:
    """The lesions that may be copied into tiles of `tile_shape`: all that fill half of it at most.

    Every lesion is as likely as another. Without any, nothing is pasted.
    """

    def __init__(self, cases: Sequence[CachedCase], tile_shape: Sequence[int]) -> None:
        self.cases = tuple(cases)
        dims, longest = len(tile_shape), np.array(tile_shape) * _LONGEST
        rows = []
        for number, case in enumerate(self.cases):
            boxes = case.lesions.boxes
            fits = (boxes[:, dims:] - boxes[:, :dims] <= longest).all(axis=1)
            rows += [(number, lesion) for lesion in np.flatnonzero(fits).tolist()]
        self._rows = np.array(rows, dtype=np.int32).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, rng: np.random.Generator, pasting: Pasting) -> Copy | None:
        """A copy of any lesion, flipped and its contrast changed; None without tissue around it."""
        number, row = self._rows[rng.integers(len(self._rows))].tolist()
        case = self.cases[number]
        lesion = case.lesions[row]
        start = [a - _RIM for a in lesion.start]
        shape = [b - a + 2 * _RIM for a, b in zip(lesion.start, lesion.stop, strict=True)]
        instances = read_tile(case.instances, start, shape)
        mask = instances == lesion.id
        inside = read_tile(np.broadcast_to(np.True_, case.shape), start, shape)
        rim = binary_dilation(mask, iterations=_RIM) & (instances == 0) & inside
        flips = tuple(axis for axis in pasting.flip_axes if rng.random() < 0.5)
        factor = rng.uniform(*pasting.contrast)
        if not rim.any():
            return None
        image = read_tile(case.image, start, shape).astype(np.float32)
        around = image[:, rim].mean(axis=1)
        contrast = factor * (image - _column(around, mask.ndim))
        labels = read_tile(case.labels, start, shape) if case.is_mixed else mask * lesion.label
        return Copy(
            np.flip(contrast, tuple(1 + axis for axis in flips)),
            around,
            np.flip(mask, flips),
            np.flip(rim, flips),
            np.flip(labels.astype(np.uint8), flips),
        )


def paste(tile: TileArrays, donors: Donors, pasting: Pasting) -> None:
    """Put up to `pasting.n` copies into the tile, where there is room and the tissue is alike."""
    if not len(donors):
        return
    rng = np.random.default_rng(pasting.seed)
    for _ in range(pasting.n):
        copy = donors.take(rng, pasting)
        place = None if copy is None else _place(tile, copy, rng)
        number = int(tile.instances.max(initial=0)) + 1
        if copy is None or place is None or number > np.iinfo(tile.instances.dtype).max:
            continue
        if np.isin(copy.labels, tile.unannotated).any():
            continue
        _put(tile, copy, place, number)


def _place(tile: TileArrays, copy: Copy, rng: np.random.Generator) -> tuple[slice, ...] | None:
    """The box, of some at random and free of lesions, whose tissue is most like the copy's."""
    shape = copy.mask.shape
    room = np.array(tile.labels.shape) - shape
    if (room < 0).any():
        return None
    best, least = None, _UNLIKE
    for start in rng.integers(0, room + 1, (_PLACES, len(shape))).tolist():
        box = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
        if tile.instances[box].any() or not tile.valid[box].all():
            continue
        around = _around(tile, copy, box)
        unlike = float(np.sqrt(np.mean((around - copy.around) ** 2)))
        if unlike < least:
            best, least = box, unlike
    return best


def _put(tile: TileArrays, copy: Copy, box: tuple[slice, ...], number: int) -> None:
    # half of the way at the lesion's rim, so that no edge is sharper than where it was taken from
    share = np.maximum(uniform_filter(copy.mask.astype(np.float32), 3), copy.mask)
    share *= copy.mask | copy.rim  # neither another lesion beside the donor nor padding
    here = tile.image[(slice(None), *box)]
    around = _column(_around(tile, copy, box), copy.mask.ndim)
    here += (share * (around + copy.contrast - here)).astype(here.dtype)
    tile.labels[box][copy.mask] = copy.labels[copy.mask]
    tile.instances[box][copy.mask] = number


def _around(tile: TileArrays, copy: Copy, box: tuple[slice, ...]) -> NDArray[np.float32]:
    values = tile.image[(slice(None), *box)][:, copy.rim]
    return np.asarray(values.mean(axis=1, dtype=np.float32))


def _column(values: NDArray[np.float32], dims: int) -> NDArray[np.float32]:
    return values.reshape(-1, *(1,) * dims)
