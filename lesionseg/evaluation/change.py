"""What became of each lesion between two visits, and the smallest change that can be detected.

Sizes are measured on each visit's own grid; which lesions belong together is decided on one grid.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import ndtri

from lesionseg.core import CaseFiles, Geometry, Lesions, Prediction
from lesionseg.core.lesions import equivalent_diameter_mm
from lesionseg.errors import DatasetError, GeometryError
from lesionseg.evaluation.case_results import describe_grid
from lesionseg.evaluation.matching import overlap_table
from lesionseg.evaluation.regrid import onto_grid
from lesionseg.ops.components import candidates_of

State = Literal["new", "enlarged", "stable", "shrunk", "gone", "merged", "split"]
STATES: tuple[State, ...] = ("new", "enlarged", "stable", "shrunk", "gone", "merged", "split")

HALF_SCORE_MM = 10.0  # a lesion of this diameter has score ½ where only its size ranks it

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class ChangeRule:
    """When lesions are the same, and from when a difference in size is a change.

    `overlap`: the least share of the smaller of two lesions that both cover. `confidence`: the
    share of stable lesions that are to be called stable; 0.95 gives Bland and Altman's 1.96
    standard deviations.
    """

    overlap: float = 0.1
    confidence: float = 0.99

    @property
    def n_deviations(self) -> float:
        """The number of standard errors that a change must exceed: 2.58 for confidence 0.99."""
        return float(ndtri((1 + self.confidence) / 2))


@dataclass(frozen=True, eq=False)
class Visit:
    """The lesions of a visit: `lesions` on its own grid, `placed` on the common one, row by row.

    `accepted` `[n]`: which count by themselves; the others only tell that a lesion was there.
    `comparable` `[n]`: which lie within the other visit's field of view.
    """

    lesions: Lesions
    placed: Lesions
    accepted: NDArray[np.bool_]
    comparable: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class LesionChange:
    """One line of changes.csv: one lesion, or those that merged or split.

    `lesion_before` and `lesion_after` are ids; volumes and diameters are of all of them together,
    empty on the side without any. Volumes are None in 2-D. `smallest_change_ml` and
    `smallest_change_percent` (of the size before; of that after for new lesions) are what may come
    from the grid alone. `score` is of a new lesion. `accepted`: stable ones aside, the change
    exceeds the smallest, and a new lesion reaches the operating point.
    """

    case: str
    label: int
    lesion_before: tuple[int, ...]
    lesion_after: tuple[int, ...]
    state: State
    accepted: bool
    score: float | None = None
    volume_before_ml: float | None = None
    volume_after_ml: float | None = None
    change_ml: float | None = None
    smallest_change_ml: float | None = None
    diameter_before_mm: float | None = None
    diameter_after_mm: float | None = None
    change_percent: float | None = None
    smallest_change_percent: float


def size_errors(lesions: Lesions) -> NDArray[np.float64]:
    """Compute the standard error `[n]` in mm³ (mm² in 2-D) of each lesion's size from the grid.

    The model: each of the 2·dims sides of a lesion lies anywhere within ± half a voxel of where it
    is drawn, uniformly, independent of the others. A side of f faces then errs by f/√12 voxels, and
    the lesion by √(Σ f²/6) voxels over the axes, both sides of an axis having the same f. Exact
    for boxes. A bare box without voxels gives 0.
    """
    sums = np.zeros(len(lesions))
    for row in np.flatnonzero(lesions.has_voxels):
        voxels = lesions.voxels_of(int(row))
        mask = np.zeros(np.ptp(voxels, axis=0) + 2, dtype=np.bool_)
        mask[tuple((voxels - voxels.min(axis=0) + 1).T)] = True
        for axis in range(mask.ndim):  # a side's faces: where a run of voxels begins
            sums[row] += np.count_nonzero(mask & ~np.roll(mask, 1, axis)) ** 2
    return np.asarray(lesions.geometry.voxel_size * np.sqrt(sums / 6))


def find_changes(
    case: str, before: Visit, after: Visit, rule: ChangeRule | None = None
) -> list[LesionChange]:
    """Find the changes of a case, sorted by state as in `STATES`, then by ids.

    Lesions of one label belong together when both cover `rule.overlap` of the smaller one. One that
    has no partner so is looked for one voxel around, among others without: alignment is no better.
    Of several lesions on a side those that the grid explains, or under `rule.overlap` of the
    largest, are pieces and make no merger or split. Candidates that are not accepted stand in where
    a side has no other.
    """
    rule = rule or ChangeRule()
    errors = size_errors(before.lesions), size_errors(after.lesions)
    found = []
    for rows in _groups(before, after, rule.overlap):
        sides = [_Side.of(*side) for side in zip((before, after), rows, errors, strict=True)]
        if any(side.accepted for side in sides):
            found.append(_change(case, sides[0], sides[1], rule))
    return sorted(found, key=lambda c: (STATES.index(c.state), c.lesion_before, c.lesion_after))


@dataclass(frozen=True, eq=False)
class VisitPair:
    """Two visits on the grid of the later one, `after`, and what became of each lesion.

    `placed`: the earlier visit's own grid, in the space of the later one.
    """

    before: Prediction
    after: Prediction
    placed: Geometry
    changes: list[LesionChange]

    def new_lesions(self) -> Prediction:
        """Return the later visit's prediction with only the new lesions that have a score."""
        score_of = {c.lesion_after[0]: c.score for c in self.changes if c.score is not None}
        new = [
            replace(c, score=score_of[c.id], accepted=True)
            for c in self.after.candidates
            if c.id in score_of
        ]
        ranked = tuple(sorted(new, key=lambda c: (-c.score, c.id)))
        drawn = self.after.instances
        if drawn is not None:
            drawn = np.where(np.isin(drawn, sorted(score_of)), drawn, 0).astype(np.int32)
        return replace(self.after, candidates=ranked, instances=drawn, scored=True, removed=())


def compare_visits(
    case: str,
    before: Prediction,
    after: Prediction,
    rule: ChangeRule,
    matrix: NDArray[np.float64] | None = None,
) -> VisitPair:
    """Compare two visits. `matrix` moves the earlier visit's RAS mm to the later one's.

    New lesions that exceed the grid's error have the later visit's scores. Masks have none: there
    the diameter d ranks, as d / (d + 10 mm). Raises `GeometryError` for visits that share no space.
    """
    grid, own = after.geometry, before.geometry
    placed = own if matrix is None else Geometry(own.shape, matrix @ own.affine)
    if own.dims != grid.dims or not _share_space(placed, grid):
        raise GeometryError(
            f"Case {case}: the visits share no space; before {describe_grid(placed)}, after "
            f"{describe_grid(grid)}. Give before_images= and after_images= to register."
        )
    moved = before
    if not placed.matches(grid):
        moved = onto_grid(replace(before, geometry=placed), grid)
    first, second = candidates_of(before), candidates_of(after)
    centres = placed.to_mm(own.to_index(first.centres_mm))
    accepted = [np.array([c.accepted for c in p.candidates], bool) for p in (before, after)]
    changes = find_changes(
        case,
        Visit(first, candidates_of(moved), accepted[0], _inside(centres, grid)),
        Visit(second, second, accepted[1], _inside(second.centres_mm, placed)),
        rule,
    )
    score_of = {
        c.id: c.score if after.scored else c.diameter_mm / (c.diameter_mm + HALF_SCORE_MM)
        for c in after.candidates
    }
    changes = [
        replace(c, score=score_of[c.lesion_after[0]]) if c.state == "new" and c.accepted else c
        for c in changes
    ]
    return VisitPair(moved, after, placed, changes)


def order_visits(scans: Iterable[CaseFiles], table: Path) -> list[list[CaseFiles]]:
    """Order the visits of each patient by time. `table` names the file for messages.

    `group` is the patient, the column `visit` a number or a date (2024-05-31 or 20240531). Raises
    `DatasetError` where no patient has two visits, and for visits without an order.
    """
    patients: dict[str, list[CaseFiles]] = {}
    for files in scans:
        patients.setdefault(files.group, []).append(files)
    if all(len(visits) < 2 for visits in patients.values()):
        raise DatasetError(
            f"{table}: no patient has two visits. The column group names the patient of each."
        )
    for group, visits in patients.items():
        texts = {files.case: files.columns.get("visit", "").strip() for files in visits}
        times = {case: _time(text) for case, text in texts.items()}
        kinds = {type(time) for time in times.values()}
        if len(visits) > 1 and (len(kinds) > 1 or len({*times.values(), None}) <= len(visits)):
            raise DatasetError(
                f"{table}: the visits of {group} have no order ({', '.join(texts.values())}). Give "
                "each its own number, or date as 2024-05-31, in the column visit."
            )
        visits.sort(key=lambda files: times[files.case] or 0)
    return list(patients.values())


def _time(text: str) -> Any:
    """Return a date as text and a number as a number; None for anything else."""
    if re.fullmatch(r"\d{4}-\d\d-\d\d.*|\d{8}", text):
        return text.replace("-", "")
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None


def _share_space(one: Geometry, other: Geometry) -> bool:
    return any(
        bool(_inside(a.to_mm([[(n - 1) / 2 for n in a.shape]]), b).any())
        for a, b in ((one, other), (other, one))
    )


def _inside(points_mm: NDArray[np.float64], geometry: Geometry) -> NDArray[np.bool_]:
    index = geometry.to_index(points_mm)
    return np.asarray(((index >= -0.5) & (index <= np.array(geometry.shape) - 0.5)).all(axis=1))


@dataclass(frozen=True, eq=False)
class _Side:
    """The lesions of a group at one visit: ids, and sizes and errors `[n]` in mm³ or mm²."""

    ids: tuple[int, ...]
    sizes: NDArray[np.float64]
    errors: NDArray[np.float64]
    accepted: bool
    label: int
    dims: int

    @classmethod
    def of(cls, visit: Visit, rows: Rows, errors: NDArray[np.float64]) -> "_Side":
        accepted = bool(visit.accepted[rows].any())
        if accepted:
            rows = rows[visit.accepted[rows]]
        lesions, label = visit.lesions, int(visit.lesions.labels[rows[0]]) if len(rows) else 0
        sizes = np.asarray(lesions.n_voxels[rows] * lesions.geometry.voxel_size, dtype=np.float64)
        ids = tuple(lesions.ids[rows].tolist())
        return cls(ids, sizes, errors[rows], accepted, label, lesions.geometry.dims)

    def n_whole(self, rule: ChangeRule) -> int:
        """Count the lesions that are no pieces: all except small ones next to a larger one."""
        least = np.maximum(rule.n_deviations * self.errors, rule.overlap * self.sizes.max())
        return max(1, int((self.sizes > least).sum()))

    def named(self, visit: str) -> dict[str, Any]:
        """Return the fields of `LesionChange` for one visit."""
        size = float(self.sizes.sum())
        diameter = float(equivalent_diameter_mm(size, self.dims)) if self.ids else None
        return {
            f"lesion_{visit}": self.ids,
            f"volume_{visit}_ml": size / 1000 if self.ids and self.dims == 3 else None,
            f"diameter_{visit}_mm": diameter,
        }


def _change(case: str, before: _Side, after: _Side, rule: ChangeRule) -> LesionChange:
    error = float(np.sqrt((before.errors**2).sum() + (after.errors**2).sum()))
    size, later = float(before.sizes.sum()), float(after.sizes.sum())
    smallest, difference, is_volume = rule.n_deviations * error, later - size, before.dims == 3
    state: State
    if not before.ids:
        state = "new"
    elif not after.ids:
        state = "gone"
    elif (n := after.n_whole(rule)) != (n_before := before.n_whole(rule)):
        state = "split" if n > n_before else "merged"
    elif abs(difference) <= smallest:
        state = "stable"
    else:
        state = "enlarged" if difference > 0 else "shrunk"
    return LesionChange(
        case=case,
        label=before.label or after.label,
        **before.named("before"),
        **after.named("after"),
        state=state,
        accepted=state in ("merged", "split") or (state != "stable" and abs(difference) > smallest),
        change_ml=difference / 1000 if is_volume else None,
        smallest_change_ml=smallest / 1000 if is_volume else None,
        change_percent=100 * difference / size if before.ids and after.ids else None,
        smallest_change_percent=100 * smallest / (size or later),
    )


def _groups(before: Visit, after: Visit, overlap: float) -> Iterator[tuple[Rows, Rows]]:
    """Return the rows before and after that belong together and are in view of both visits."""
    n, m = len(before.lesions), len(after.lesions)
    ends = _links(before.placed, after.placed, overlap)
    graph = coo_array((np.ones(len(ends[0])), (ends[0], n + ends[1])), shape=(n + m, n + m))
    n_groups, group = connected_components(graph, directed=False)
    seen = np.concatenate([before.comparable, after.comparable])
    linked = np.zeros(n + m, dtype=np.bool_)
    linked[ends[0]] = linked[n + ends[1]] = True
    for number in range(n_groups):
        rows = np.flatnonzero((group == number) & (seen | linked))
        if len(rows):
            yield rows[rows < n], rows[rows >= n] - n


def _links(before: Lesions, after: Lesions, overlap: float) -> tuple[Rows, Rows]:
    """Return pairs of rows that belong together: by overlap, otherwise by one voxel around."""
    table = overlap_table(before, after)
    least = np.minimum(before.n_voxels[table.candidate], after.n_voxels[table.lesion])
    enough = (table.voxels >= overlap * least) & (table.voxels > 0)
    enough &= before.labels[table.candidate] == after.labels[table.lesion]
    rows, columns = table.candidate[enough], table.lesion[enough]
    alone = ~np.isin(np.arange(len(before)), rows), ~np.isin(np.arange(len(after)), columns)
    near = _near(before, after, alone, overlap)
    far = _near(after, before, alone[::-1], overlap)[::-1]
    return np.concatenate([rows, near[0], far[0]]), np.concatenate([columns, near[1], far[1]])


def _near(
    lesions: Lesions,
    others: Lesions,
    alone: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    overlap: float,
) -> tuple[Rows, Rows]:
    drawn, highest = others.draw(), int(others.ids.max(initial=0))
    pairs: list[tuple[int, int]] = []
    for row in np.flatnonzero(alone[0] & lesions.has_voxels):
        grown = _grown(lesions.voxels_of(int(row)), lesions.geometry.shape)
        covered = np.bincount(drawn[tuple(grown.T)], minlength=highest + 1)[others.ids]
        enough = covered >= overlap * np.minimum(lesions.n_voxels[row], others.n_voxels)
        enough &= (covered > 0) & alone[1] & (others.labels == lesions.labels[row])
        pairs += [(int(row), int(other)) for other in np.flatnonzero(enough)]
    found = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _grown(voxels: Rows, shape: tuple[int, ...]) -> Rows:
    """Return array indices `[v, dims]` with all neighbours that share a face, edge or corner."""
    dims = len(shape)
    steps = np.stack(np.meshgrid(*[(-1, 0, 1)] * dims, indexing="ij"), -1).reshape(1, -1, dims)
    grown = np.unique((voxels[:, None] + steps).reshape(-1, dims), axis=0)
    return np.asarray(grown[((grown >= 0) & (grown < shape)).all(axis=1)])
