"""The lesions of a prepared case: a table that stays small, however many cases are open at once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from lesionseg.data.prepared_reference import PreparedReference

MAX_SEEDS = 32
# columns of the table before a lesion's box
_ID, _LABEL, _VOXELS, _FIRST_SEED, _BOX = range(5)


@dataclass(frozen=True)
class CachedLesion:
    """One lesion of a prepared case.

    `id`: its voxel value in the instances. `label`: k for the plan's k-th label. `start`, `stop`:
    half-open box in voxels of the plan's grid. `seeds`: at most 32 of its voxels, spread over it.
    """

    id: int
    label: int
    start: tuple[int, ...]
    stop: tuple[int, ...]
    voxels: int
    seeds: tuple[tuple[int, ...], ...]


class LesionTable(Sequence[CachedLesion]):
    """Lesions in order of id, packed: a few hundred bytes each, made to objects when asked for.

    >>> LesionTable([CachedLesion(1, 1, (0, 0), (1, 2), 2, ((0, 0), (0, 1)))], dims=2)[0].stop
    (1, 2)
    """

    __slots__ = ("_rows", "_seeds")

    def __init__(self, lesions: Iterable[CachedLesion], dims: int) -> None:
        rows: list[tuple[int, ...]] = []
        seeds: list[tuple[int, ...]] = []
        for lesion in lesions:
            head = (lesion.id, lesion.label, lesion.voxels, len(seeds))
            rows.append((*head, *lesion.start, *lesion.stop))
            seeds += lesion.seeds
        self._rows = np.array(rows, dtype=np.int64).reshape(-1, _BOX + 2 * dims)
        table = np.array(seeds, dtype=np.int64).reshape(-1, dims)
        self._seeds = table.astype(np.min_scalar_type(int(table.max(initial=0))))

    @property
    def boxes(self) -> NDArray[np.int64]:
        """Starts, then stops `[n, 2·dims]`."""
        return self._rows[:, _BOX:]

    @property
    def ids(self) -> NDArray[np.int64]:
        """Voxel value of each lesion `[n]`, ascending."""
        return self._rows[:, _ID]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Label of each lesion `[n]`."""
        return self._rows[:, _LABEL]

    def label_table(self) -> NDArray[np.uint8]:
        """The label of the lesion with each id, from id 0 (background, 0) on."""
        table = np.zeros(int(self.ids[-1]) + 1 if len(self) else 1, dtype=np.uint8)
        table[self.ids] = self.labels
        return table

    @property
    def voxels(self) -> NDArray[np.int64]:
        """Voxels of each lesion `[n]`."""
        return self._rows[:, _VOXELS]

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers alone."""
        return self._rows.nbytes + self._seeds.nbytes

    def seeds(self, number: int) -> NDArray[Any]:
        """Seed voxels `[n, dims]` of the lesion at `number` of the table."""
        stops = (*self._rows[number + 1 : number + 2, _FIRST_SEED], len(self._seeds))
        return self._seeds[self._rows[number, _FIRST_SEED] : stops[0]]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> CachedLesion: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[CachedLesion, ...]: ...
    def __getitem__(self, index: int | slice) -> CachedLesion | tuple[CachedLesion, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        number = range(len(self))[index]
        row = self._rows[number].tolist()
        dims = (len(row) - _BOX) // 2
        return CachedLesion(
            id=row[_ID],
            label=row[_LABEL],
            start=tuple(row[_BOX : _BOX + dims]),
            stop=tuple(row[_BOX + dims :]),
            voxels=row[_VOXELS],
            seeds=tuple(tuple(seed) for seed in self.seeds(number).tolist()),
        )

    def __iter__(self) -> Iterator[CachedLesion]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))


def find_lesions(reference: PreparedReference) -> tuple[CachedLesion, ...]:
    """The lesions of a reference in order of id; ids that no voxel holds are left out."""
    instances = reference.instances
    where = np.flatnonzero(instances)
    ids = instances.reshape(-1)[where]
    order = np.argsort(ids, kind="stable")
    distinct, first = np.unique(ids[order], return_index=True)
    groups = np.split(where[order], first[1:])
    return tuple(
        _lesion(int(i), reference.instance_labels[i - 1], flat, instances.shape)
        for i, flat in zip(distinct, groups, strict=False)
    )


def _lesion(
    number: int, label: int, flat: NDArray[np.int64], shape: tuple[int, ...]
) -> CachedLesion:
    voxels = np.stack(np.unravel_index(flat, shape), axis=1)
    rows = np.linspace(0, len(voxels) - 1, min(len(voxels), MAX_SEEDS)).round().astype(int)
    return CachedLesion(
        id=number,
        label=label,
        start=tuple(voxels.min(axis=0).tolist()),
        stop=tuple((voxels.max(axis=0) + 1).tolist()),
        voxels=len(voxels),
        seeds=tuple(tuple(seed) for seed in voxels[rows].tolist()),
    )
