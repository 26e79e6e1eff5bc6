"""Lesion changes between two visits: new, gone, merged; smallest change; columns of changes.csv.

Sizes are measured on the grid of each visit. Lesions are compared by overlap on one common grid.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import ndtri

from lesionseg.core import Lesions, OperatingPoint, Prediction
from lesionseg.errors import GeometryError
from lesionseg.evaluation import resample_prediction
from lesionseg.io import write_csv
from lesionseg.ops import candidates_of

Flags = NDArray[np.bool_]
Numbers = NDArray[np.float64]
Rows = NDArray[np.int64]

State = Literal["new", "enlarged", "stable", "shrunk", "gone", "merged", "split"]
STATES: tuple[State, ...] = get_args(State)

HALF_SCORE_MM = 10.0  # diameter with score ½, if new lesions are ranked by size


@dataclass(frozen=True)
class ChangeRule:
    """The rule that decides which lesions are the same, and which differences are changes.

    Attributes:
        overlap: Two lesions are the same if their overlap covers at least this share of the
            smaller one.
        confidence: The share of stable lesions that should be called stable. 0.95 gives the 1.96
            standard deviations of Bland and Altman.
    """

    overlap: float = 0.1
    confidence: float = 0.99

    @property
    def n_deviations(self) -> float:
        """The number of standard errors that a change must exceed: 2.58 for confidence 0.99."""
        return float(ndtri((1 + self.confidence) / 2))


DEFAULT_RULE = ChangeRule()


@dataclass(frozen=True, eq=False)
class Visit:
    """The lesions of a visit.

    Attributes:
        lesions: The lesions on the grid of the visit. Accepted ones need voxels.
        placed: The same lesions on the common grid, row by row.
        accepted: True for accepted candidates `[n]`. A candidate that is not accepted only shows
            that a lesion of the other visit was already or is still visible.
        comparable: True for lesions `[n]` within the other visit's field of view.
    """

    lesions: Lesions
    placed: Lesions
    accepted: Flags
    comparable: Flags


@dataclass(frozen=True, kw_only=True)
class LesionChange:
    """One line of changes.csv: one lesion, or several lesions that merged or split.

    Attributes:
        case: Id of the pair of visits.
        label: Label value.
        lesion_before: Ids at the earlier visit, empty for a new lesion.
        lesion_after: Ids at the later visit, empty for a lesion that is gone.
        state: What happened to the lesion.
        accepted: True if the change is larger than the smallest detectable one. A new lesion must
            also reach the operating point. Stable lesions are never accepted; merged and split
            lesions always are.
        score: Score of a new lesion, also if it is within the grid error. None for other states.
        volume_before_ml: Summed volume at the earlier visit. None without a lesion and in 2-D.
        volume_after_ml: Summed volume at the later visit. None without a lesion and in 2-D.
        change_ml: Difference of the volumes. None in 2-D.
        smallest_change_ml: The largest difference that grid errors explain. None in 2-D.
        diameter_before_mm: Equivalent diameter of the summed size at the earlier visit.
        diameter_after_mm: Equivalent diameter of the summed size at the later visit.
        change_percent: Difference relative to the size before. None for new and gone lesions.
        smallest_change_percent: The largest difference that grid errors explain, relative to
            the size before, or for new lesions to the size after.
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

    @property
    def max_diameter_mm(self) -> float:
        """The larger diameter of both visits. A visit without the lesion counts as 0."""
        return max(self.diameter_before_mm or 0.0, self.diameter_after_mm or 0.0)

    @property
    def is_too_thin(self) -> bool:
        """True if a new or gone lesion is too thin to be sure that it is new or gone.

        If the smallest detectable change is 100 % or more, even the complete lesion is within the
        error of measurement.
        """
        return self.state in ("new", "gone") and self.smallest_change_percent >= 100

    def reaches(self, point: OperatingPoint | None) -> bool:
        """Return False only for a new lesion with a score below the operating point.

        Such a lesion is not accepted. Other changes have no score, and always reach the point.
        Without an operating point (None), all new lesions reach it.
        """
        return point is None or self.score is None or self.score >= point.score


def count_states(changes: Iterable[LesionChange]) -> dict[str, int]:
    """Count the changes by state. The result has a key for each of `STATES`, in this order."""
    n_of_state = Counter(change.state for change in changes)
    return {state: n_of_state[state] for state in STATES}


def write_changes(path: Path, changes: Sequence[LesionChange]) -> None:
    """Write changes.csv atomically, with one row per change.

    A merger or split has several lesion ids. Each id has a numbered column, such as lesion_after_1,
    and the number of columns is that of the change with the most ids.
    """
    # number of columns for the ids of each visit, at least 1
    n_columns = {
        name: max([1, *(len(getattr(change, name)) for change in changes)])
        for name in ("lesion_before", "lesion_after")
    }
    # a field with ids becomes numbered columns, any other field one column
    columns: list[str] = []
    for field in fields(LesionChange):
        numbers = range(1, n_columns.get(field.name, 0) + 1)  # empty for a field without ids
        columns += [f"{field.name}_{number}" for number in numbers] or [field.name]
    rows = []
    for change in changes:
        row = {**vars(change), "accepted": str(change.accepted).lower()}
        for name in n_columns:
            ids = row.pop(name)
            row |= {f"{name}_{number}": value for number, value in enumerate(ids, start=1)}
        rows.append(row)
    write_csv(path, rows, columns)


def size_errors(lesions: Lesions) -> Numbers:
    """Compute the standard error of each lesion's size that the finite voxel size causes.

    Such errors bound the smallest change that can be detected. The model assumes that the true
    position of each of the 2·dims sides of a lesion is uniformly distributed within ± half a voxel
    of the drawn position, independent of the other sides. A side of f voxel faces then has a
    standard error of f/√12 voxels. The two opposite sides along an axis have the same f, so the
    lesion has a standard error of √(Σ f²/6) voxels, with the sum over the axes. This is exact for
    boxes.

    Returns:
        Standard errors `[n]` in mm³, in 2-D in mm². A lesion without voxels has 0.
    """
    sums = np.zeros(len(lesions))
    for row in np.flatnonzero(lesions.has_voxels):
        voxels = lesions.voxels_of(int(row))
        # the lesion in its bounding box
        mask = np.zeros(np.ptp(voxels, axis=0) + 1, bool)
        mask[tuple((voxels - voxels.min(axis=0)).T)] = True
        for axis in range(mask.ndim):
            # a voxel of the lesion has a face on this side if the voxel before it differs
            differs = np.diff(mask, axis=axis, prepend=False)
            sums[row] += np.count_nonzero(mask & differs) ** 2  # f² of the docstring
    return lesions.geometry.voxel_size * np.sqrt(sums / 6)


def find_changes(
    case: str, before: Visit, after: Visit, rule: ChangeRule = DEFAULT_RULE
) -> list[LesionChange]:
    """Find the changes of the lesions of a case, sorted by state as in `STATES`, then by ids.

    - Partners: two lesions of one label belong together if their overlap covers at least
      `rule.overlap` of the smaller one. Lesions without a partner are compared again after they are
      grown by one voxel, because the alignment of two visits is not more accurate than that.
    - Merger or split: the numbers of lesions of a group differ between the visits. Pieces do not
      count. A piece is a lesion that is not larger than `rule.n_deviations` standard errors of its
      size, or than `rule.overlap` of the largest lesion.
    - Candidates: only the accepted candidates of a group (lesions that belong together) at a visit
      count, or all candidates if none is accepted. A group without any accepted candidate at the
      two visits is left out.
    - Field of view: a lesion without a partner is left out if it is outside the field of view of
      the other visit.

    The scores of new lesions are not set, because visits have no scores (`compare_visits`).

    Args:
        case: Id of the pair of visits.
        before: The earlier visit.
        after: The later visit.
        rule: Which lesions are the same, and which differences are changes.
    """
    errors_before = size_errors(before.lesions)
    errors_after = size_errors(after.lesions)
    changes = []
    for rows_before, rows_after in _group_lesions(before, after, rule.overlap):
        earlier = _LesionGroup.of(before, rows_before, errors_before)
        later = _LesionGroup.of(after, rows_after, errors_after)
        if earlier.accepted or later.accepted:
            changes.append(_describe_change(case, earlier, later, rule))
    return sorted(changes, key=lambda c: (STATES.index(c.state), c.lesion_before, c.lesion_after))


@dataclass(frozen=True, eq=False)
class VisitPair:
    """Two visits on the grid of the later one, and the changes of their lesions.

    Attributes:
        before: The earlier visit, resampled onto the grid of the later one.
        after: The later visit.
        changes: The changes.
        matrix: Affine from the RAS mm of the earlier visit to those of the later one. None if both
            visits have the same coordinates.
    """

    before: Prediction
    after: Prediction
    changes: list[LesionChange]
    matrix: Numbers | None

    def new_lesions(self) -> Prediction:
        """Return the later visit's prediction with only its new lesions, for a FROC of new lesions.

        The candidates have the scores of their changes, in descending order. New lesions within the
        grid error, and those below the operating point of the prediction, are left out. All
        remaining candidates are accepted, because the caller accepts them by their scores.
        """
        score_of = {
            change.lesion_after[0]: change.score  # a new lesion has one id
            for change in self.changes
            if change.accepted and change.score is not None  # only new lesions have scores
        }
        new = [
            replace(c, score=score_of[c.id], accepted=True)
            for c in self.after.candidates
            if c.id in score_of
        ]
        new.sort(key=lambda c: (-c.score, c.id))
        # objects that were too small to be candidates (`removed`) are no new lesions
        return replace(self.after.keep(new), has_scores=True, removed=())


def compare_visits(
    case: str,
    before: Prediction,
    after: Prediction,
    rule: ChangeRule,
    matrix: Numbers | None = None,
) -> VisitPair:
    """Compare the lesions of two visits on the grid of the later visit.

    A new lesion gets the score of its candidate at the later visit. If the later visit has no
    scores, a new lesion with the diameter d gets the score d / (d + 10 mm). Candidates of the
    earlier visit outside the grid are left out with a warning. Accepted candidates must have masks.

    Args:
        case: Id of the pair of visits.
        before: The earlier visit.
        after: The later visit.
        rule: Which lesions are the same, and which differences are changes.
        matrix: Affine from the RAS mm of the earlier visit to those of the later one. None if both
            visits have the same coordinates.

    Raises:
        GeometryError: If the visits do not overlap in space or have different numbers of axes.
    """
    grid = after.geometry
    grid_before = before.geometry
    # the grid of the earlier visit, in the coordinates (mm) of the later visit
    moved_grid = grid_before if matrix is None else grid_before.move(matrix)
    # the centre of one field of view must be inside the other one
    share_space = grid_before.dims == grid.dims and (
        grid.contains(moved_grid.centre_mm) or moved_grid.contains(grid.centre_mm)
    )
    if not share_space:
        raise GeometryError(
            f"Case {case}: the visits do not overlap in space or have different numbers of axes; "
            f"before {moved_grid.describe()}, after {grid.describe()}. If the numbers of axes are "
            "equal, set register=rigid, before_images= and after_images= to register the scans."
        )
    # resample the earlier visit, unless its grid is that of the later one
    resampled = before
    if not moved_grid.matches(grid):
        resampled = resample_prediction(replace(before, geometry=moved_grid), grid)
        # `resample_prediction` leaves out candidates outside the grid. Leave them out of `before`,
        # too, because rows of `lesions` and `placed` must be the same lesions.
        ids = {candidate.id for candidate in resampled.candidates}
        before = before.keep([c for c in before.candidates if c.id in ids])
    lesions_before = candidates_of(before)
    # from mm of the earlier visit to indices of its grid, and to mm of the later visit
    centres_mm = moved_grid.to_mm(grid_before.to_index(lesions_before.centres_mm))
    earlier = Visit(
        lesions_before,
        placed=candidates_of(resampled),
        accepted=before.accepted,
        comparable=grid.contains(centres_mm),
    )
    lesions_after = candidates_of(after)
    later = Visit(
        lesions_after,
        placed=lesions_after,  # the common grid is that of the later visit
        accepted=after.accepted,
        comparable=moved_grid.contains(lesions_after.centres_mm),
    )
    # the scores of new lesions; without scores, larger lesions have higher ones
    score_of = {
        c.id: c.score if after.has_scores else c.diameter_mm / (c.diameter_mm + HALF_SCORE_MM)
        for c in after.candidates
    }
    changes = []
    for change in find_changes(case, earlier, later, rule):
        if change.state == "new":
            # a new lesion has no partner that could join others to it, so there is one id
            change = replace(change, score=score_of[change.lesion_after[0]])
        changes.append(change)
    return VisitPair(resampled, after, changes, matrix)


@dataclass(frozen=True, eq=False)
class _LesionGroup:
    """The lesions of one group at one visit. A group is a set of lesions that belong together.

    Attributes:
        lesions: All lesions of the visit.
        rows: The rows of `lesions` that are in the group. Empty if the visit has none.
        errors: The standard errors of the sizes of these rows `[n]`.
        accepted: True if these rows are accepted candidates.
    """

    lesions: Lesions
    rows: Rows
    errors: Numbers
    accepted: bool

    @classmethod
    def of(cls, visit: Visit, rows: Rows, errors: Numbers) -> "_LesionGroup":
        """Select the accepted lesions of a group, or all of its lesions if none is accepted.

        Args:
            visit: The visit.
            rows: The rows of the group among the lesions of the visit.
            errors: The standard errors of the sizes of all lesions of the visit.
        """
        accepted = bool(visit.accepted[rows].any())
        if accepted:
            rows = rows[visit.accepted[rows]]
        return cls(visit.lesions, rows, errors[rows], accepted)

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of the lesions of the group."""
        return tuple(self.lesions.ids[self.rows].tolist())

    @property
    def label(self) -> int:
        """The label value that the lesions of the group have in common. 0 without a lesion."""
        return int(self.lesions.labels[self.rows].max(initial=0))

    @property
    def dims(self) -> int:
        """Number of spatial axes."""
        return self.lesions.geometry.dims

    @property
    def sizes(self) -> Numbers:
        """The size of each lesion of the group `[n]` in mm³, in 2-D in mm²."""
        voxel_size = self.lesions.geometry.voxel_size
        return np.asarray(voxel_size * self.lesions.n_voxels[self.rows], float)

    def count_without_pieces(self, rule: ChangeRule) -> int:
        """Count the lesions of the group that are not pieces, to detect a merger or split.

        A piece is within the error of its size, or small compared with the largest lesion (see
        `find_changes`). Return at least 1, because a group of pieces only is one lesion. The group
        must not be empty.
        """
        minimum = np.maximum(rule.n_deviations * self.errors, rule.overlap * self.sizes.max())
        return max(1, int((self.sizes > minimum).sum()))

    @property
    def size(self) -> float:
        """The summed size of the lesions of the group in mm³, in 2-D in mm²."""
        return float(self.sizes.sum())

    @property
    def volume_ml(self) -> float | None:
        """The summed volume of the lesions of the group. None without a lesion and in 2-D."""
        return self.size / 1000 if self.ids and self.dims == 3 else None

    @property
    def diameter_mm(self) -> float | None:
        """The diameter of a sphere (in 2-D, a circle) of the summed size. None without a lesion."""
        if not self.ids:
            return None
        # sizes are proportional to the power `dims` of diameters
        return float((self.lesions.diameters_mm[self.rows] ** self.dims).sum() ** (1 / self.dims))


def _describe_change(
    case: str, before: _LesionGroup, after: _LesionGroup, rule: ChangeRule
) -> LesionChange:
    """Return the change of one group of lesions that belong together, a row of changes.csv.

    The summed size has changed if the difference between the visits exceeds the smallest detectable
    one, `rule.n_deviations` standard errors of this difference. Merged and split lesions are
    accepted whatever their sizes.

    Args:
        case: Id of the pair of visits.
        before: The lesions of the group at the earlier visit.
        after: The lesions of the group at the later visit.
        rule: Which differences are changes.
    """
    # the errors of all lesions are independent, so their squares add up
    error = float(np.sqrt((before.errors**2).sum() + (after.errors**2).sum()))
    smallest = rule.n_deviations * error
    difference = after.size - before.size
    exceeds_error = abs(difference) > smallest
    state = _decide_state(before, after, rule, exceeds_error=exceeds_error)
    is_volume = before.dims == 3
    return LesionChange(
        case=case,
        label=before.label or after.label,
        lesion_before=before.ids,
        lesion_after=after.ids,
        volume_before_ml=before.volume_ml,
        volume_after_ml=after.volume_ml,
        diameter_before_mm=before.diameter_mm,
        diameter_after_mm=after.diameter_mm,
        state=state,
        accepted=state in ("merged", "split") or exceeds_error,
        change_ml=difference / 1000 if is_volume else None,  # from mm³
        smallest_change_ml=smallest / 1000 if is_volume else None,
        # a new or gone lesion has no change in per cent
        change_percent=100 * difference / before.size if before.ids and after.ids else None,
        smallest_change_percent=100 * smallest / (before.size or after.size),
    )


def _decide_state(
    before: _LesionGroup, after: _LesionGroup, rule: ChangeRule, *, exceeds_error: bool
) -> State:
    """Decide what happened to a group of lesions between two visits.

    Different numbers of lesions, without pieces, are a merger or split, also if the summed size did
    not change.

    Args:
        before: The lesions of the group at the earlier visit.
        after: The lesions of the group at the later visit.
        rule: Which lesions are pieces.
        exceeds_error: True if the summed size changed by more than its errors explain.
    """
    if not before.ids:
        return "new"
    if not after.ids:
        return "gone"
    n_before = before.count_without_pieces(rule)
    n_after = after.count_without_pieces(rule)
    if n_after != n_before:
        return "split" if n_after > n_before else "merged"
    if not exceeds_error:
        return "stable"
    return "enlarged" if after.size > before.size else "shrunk"


def _group_lesions(before: Visit, after: Visit, overlap: float) -> Iterator[tuple[Rows, Rows]]:
    """Yield the groups of lesions that belong together: their rows before, and their rows after.

    Lesions that are linked by a pair (`_find_links`), directly or through other lesions, form a
    group. A new lesion has no rows before, and a lesion that is gone has no rows after. A lesion
    without a partner is left out if it is outside the other visit's field of view.
    """
    # a graph whose nodes are the lesions before, then those after, on the common grid (`placed`)
    n_before = len(before.placed)
    n_lesions = n_before + len(after.placed)
    links = _find_links(before.placed, after.placed, overlap)
    nodes_of_links = (links[:, 0], n_before + links[:, 1])
    graph = coo_array((np.ones(len(links)), nodes_of_links), shape=(n_lesions, n_lesions))
    _, group_of_node = connected_components(graph, directed=False)
    comparable = np.concatenate([before.comparable, after.comparable])
    for group in np.unique(group_of_node):
        nodes = np.flatnonzero(group_of_node == group)
        # a single node is a lesion without a partner
        if len(nodes) > 1 or comparable[nodes].all():
            yield nodes[nodes < n_before], nodes[nodes >= n_before] - n_before


def _find_links(before: Lesions, after: Lesions, overlap: float) -> Rows:
    """Find pairs of rows `[pairs, 2]` of lesions that belong together (see `find_changes`).

    Lesions without a partner are compared a second time, once with those before grown by one voxel
    and once with those after. A pair may therefore occur twice. A box without voxels is only
    compared with grown lesions of the other visit.

    Args:
        before: The lesions of the earlier visit on the common grid.
        after: The lesions of the later visit on the common grid.
        overlap: The minimum share of the smaller lesion that two lesions must have in common.
    """
    # first without growing; a lesion is free if it has no partner
    links = _find_overlaps(before, before.has_voxels, after, after.has_voxels, overlap)
    is_free = ~np.isin(np.arange(len(before)), links[:, 0])
    is_other_free = ~np.isin(np.arange(len(after)), links[:, 1])
    grown_before = _find_overlaps(before, is_free, after, is_other_free, overlap, grow=True)
    grown_after = _find_overlaps(after, is_other_free, before, is_free, overlap, grow=True)
    # the columns are before and after; in `grown_after` they are swapped
    return np.concatenate([links, grown_before, grown_after[:, ::-1]])


def _find_overlaps(
    lesions: Lesions,
    is_free: Flags,
    others: Lesions,
    is_other_free: Flags,
    overlap: float,
    *,
    grow: bool = False,
) -> Rows:
    """Find pairs of rows `[pairs, 2]` with the same label whose lesions share enough voxels.

    A row may occur in several pairs. In `others`, a box without voxels fills its box
    (`Lesions.draw`).

    Args:
        lesions: The lesions whose voxels are compared.
        is_free: True for lesions `[n]` to compare, such as those that have no partner yet.
        others: The lesions of the other visit on the same grid.
        is_other_free: True for `others` `[m]` to compare.
        overlap: The minimum share of the smaller lesion that both have in common.
        grow: Grow each of `lesions` by one voxel first.
    """
    id_at_voxel = others.draw()
    highest = int(others.ids.max(initial=0))
    are_linked = np.zeros((len(lesions), len(others)), bool)
    for row in np.flatnonzero(is_free & lesions.has_voxels):
        voxels = lesions.voxels_of(int(row))
        if grow:
            voxels = _grow_by_one_voxel(voxels, lesions.geometry.shape)
        # number of common voxels with each of the other lesions
        n_common = np.bincount(id_at_voxel[tuple(voxels.T)], minlength=highest + 1)[others.ids]
        smaller = np.minimum(lesions.n_voxels[row], others.n_voxels)
        enough = (n_common >= overlap * smaller) & (n_common > 0)
        are_linked[row] = enough & is_other_free & (others.labels == lesions.labels[row])
    return np.argwhere(are_linked)


def _grow_by_one_voxel(voxels: Rows, shape: tuple[int, ...]) -> Rows:
    """Return the voxels of a lesion and all neighbours by face, edge or corner, as array indices.

    Args:
        voxels: The array indices of the lesion `[v, dims]`.
        shape: The shape of the volume. Neighbours outside it are left out.
    """
    dims = len(shape)
    steps = np.array(list(product((-1, 0, 1), repeat=dims)))  # with 0, the voxel itself
    grown = np.unique((voxels[:, None] + steps).reshape(-1, dims), axis=0)
    return grown[((grown >= 0) & (grown < shape)).all(axis=1)]
