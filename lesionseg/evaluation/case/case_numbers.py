"""Every number of a case, from what was matched, and a row per lesion and candidate."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Candidate, Lesions
from lesionseg.evaluation import edge_cases
from lesionseg.evaluation.case.lesion_measures import (
    NEAR_RESOLUTION_VOXELS,
    Extent,
    measure_extents,
)
from lesionseg.evaluation.case.match_case import CaseMatch
from lesionseg.evaluation.case.overlap_table import voxel_counts
from lesionseg.evaluation.case.surface import surface_distances
from lesionseg.evaluation.presets import Preset
from lesionseg.evaluation.results import (
    NEVER,
    CandidateResult,
    LesionResult,
    Pairs,
    VoxelCounts,
    WhyMissed,
)

ALL_LABELS = 0


def case_score_of(judged: CaseMatch) -> float:
    """The highest score of a candidate that is judged."""
    rows = zip(judged.prediction.candidates, judged.set_aside.mostly, strict=True)
    return max((candidate.score for candidate, aside in rows if not aside), default=0.0)


def counts_by_label(judged: CaseMatch) -> dict[int, VoxelCounts]:
    """Voxels by label, all labels as one under 0; empty where there are no masks to compare."""
    if not judged.has_masks:
        return {}
    found = sorted({*judged.lesions.labels.tolist(), *judged.candidates.labels.tolist()})
    parts = (judged.candidates, judged.lesions, judged.overlaps, judged.accepted)
    return {
        ALL_LABELS: voxel_counts(*parts),
        **{label: voxel_counts(*parts, label=label) for label in found},
    }


def case_dice(judged: CaseMatch, counts: dict[int, VoxelCounts]) -> float | None:
    """Dice of all labels taken as one; see docs/evaluation.md for what has none."""
    if len(judged.lesions) == 0:
        return edge_cases.CASE_WITHOUT_LESION.value
    if not counts:
        return edge_cases.CASE_WITHOUT_MASKS.value
    # nothing accepted shares no voxel: 0, as edge_cases.CASE_MISSED has it
    return counts[ALL_LABELS].dice


def surface_numbers(judged: CaseMatch, preset: Preset) -> tuple[float | None, float | None]:
    """Surface Dice and HD95, all labels taken as one."""
    if len(judged.lesions) == 0:
        return edge_cases.CASE_WITHOUT_LESION.value, edge_cases.CASE_WITHOUT_LESION.value
    if not judged.has_masks:
        return edge_cases.CASE_WITHOUT_MASKS.value, edge_cases.CASE_WITHOUT_MASKS.value
    distances = surface_distances(
        judged.lesions.voxels,
        judged.candidates.voxels_where(judged.accepted),
        judged.lesions.geometry.spacing_mm,
    )
    if distances is None:
        return edge_cases.CASE_MISSED.value, edge_cases.DISTANCE_WITHOUT_PREDICTION.value
    return distances.surface_dice(preset.surface_tolerance_mm), distances.hd95_mm()


def summed_ml(instances: Lesions, rows: NDArray[np.bool_]) -> float | None:
    """Summed volume; None in 2-D and where a row has no mask."""
    if instances.geometry.dims == 2 or not instances.masked[rows].all():
        return None
    return int(instances.n_voxels[rows].sum()) * instances.geometry.voxel_size / 1000


def overlap_several(judged: CaseMatch, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows overlap several partners, accepted candidates alone."""
    accepted = judged.accepted[judged.overlaps.candidate]
    n = max(len(judged.lesions), len(judged.candidates))
    return np.bincount(rows[judged.comparable & accepted], minlength=n) > 1


def _merged(judged: CaseMatch) -> NDArray[np.bool_]:
    """Which lesions `[n]` share an accepted candidate with another one."""
    pairs, found = judged.overlaps, np.zeros(len(judged.lesions), dtype=np.bool_)
    shared = overlap_several(judged, pairs.candidate)[pairs.candidate]
    found[pairs.lesion[shared & judged.comparable]] = True
    return found


def lesion_pairs(judged: CaseMatch) -> Pairs:
    """Which lesions are found one to one, how well, and which candidates are false, by size."""
    lesions, candidates, match = judged.lesions, judged.candidates, judged.pairs
    found, false = np.flatnonzero(match.found), np.array(match.outcomes) == "false_positive"
    pairs = zip(match.candidate_of[found].tolist(), found.tolist(), strict=True)
    return Pairs(
        tuple(lesions.diameters_mm[found].tolist()),
        tuple(
            _iou(judged, by, row) if lesions.masked[row] and candidates.masked[by] else None
            for by, row in pairs
        ),
        tuple(candidates.diameters_mm[false].tolist()),
    )


def lesion_results(
    judged: CaseMatch,
    missing: bool,
    contrasts: Sequence[float | None],
    zones: Sequence[str],
) -> tuple[LesionResult, ...]:
    """Each lesion, found or missed, with its contrast and zone."""
    lesions = judged.lesions
    extents = measure_extents(lesions.voxels, lesions.first, lesions.geometry.spacing_mm)
    split = overlap_several(judged, judged.overlaps.lesion).tolist()
    merged = _merged(judged).tolist()
    return tuple(
        replace(
            _lesion(judged, row, extent, missing),
            split=split[row],
            merged=merged[row],
            contrast=contrasts[row],
            zone=zones[row],
        )
        for row, extent in enumerate(extents)
    )


def _lesion(judged: CaseMatch, row: int, extent: Extent | None, missing: bool) -> LesionResult:
    lesions, by = judged.lesions, int(judged.at_point.candidate_of[row])
    at = float(judged.detected_at[row])
    sides = {name: bool(verdict.found[row]) for name, verdict in judged.sides.items()}
    return LesionResult(
        lesion=int(lesions.ids[row]),
        label=int(lesions.labels[row]),
        diameter_mm=float(lesions.diameters_mm[row]),
        volume_ml=lesions.volume_ml(row),
        voxels=int(lesions.n_voxels[row]) or None,
        slices=extent.slices if extent else None,
        long_axis_mm=extent.long_axis_mm if extent else None,
        short_axis_mm=extent.short_axis_mm if extent else None,
        near_resolution=_near_resolution(lesions, row, extent),
        start_vox=_start(lesions, row),
        stop_vox=_stop(lesions, row),
        centre_mm=tuple(lesions.centres_mm[row].tolist()),
        detected=by >= 0,
        detected_at=at if judged.prediction.scored and at > NEVER else None,
        candidate=int(judged.candidates.ids[by]) if by >= 0 else None,
        iou=_iou(judged, by, row) if by >= 0 else None,
        any_overlap=sides["any_overlap"],
        iou50=sides["iou50"],
        centre_distance=sides["centre_distance"],
        iou10=sides["iou10"],
        why_missed="" if by >= 0 else "case_failed" if missing else _why_missed(judged, row),
    )


def _near_resolution(lesions: Lesions, row: int, extent: Extent | None) -> bool:
    """By its voxels; a bare box by the voxels of the box."""
    if extent is not None:
        return extent.near_resolution
    start, stop = _start(lesions, row), _stop(lesions, row)
    sides = [b - a for a, b in zip(start, stop, strict=True)]
    return float(np.prod(sides)) < NEAR_RESOLUTION_VOXELS


def _why_missed(judged: CaseMatch, row: int) -> WhyMissed:
    """The first reason that holds, from the nearest miss to the farthest."""
    here = judged.overlaps.lesion == row
    candidate, same = judged.overlaps.candidate[here], judged.comparable[here]
    accepted = judged.accepted[candidate]
    if judged.detected_at[row] > NEVER and not (same & accepted).any():
        return "below_operating_point"
    taken = {judged.at_point.outcomes[c] for c in candidate[same & accepted]}
    if "true_positive" in taken and not judged.is_joint:
        return "merged"
    if (same & accepted).any():
        return "overlap_too_small"
    if (~same & accepted).any():
        return "wrong_label"
    if _was_removed(judged, row):
        return "removed_by_size"
    return "below_operating_point" if same.any() else "no_response"


def _was_removed(judged: CaseMatch, row: int) -> bool:
    """Whether something of its label that was dropped for its size alone lay in the lesion.

    Only what would have been accepted counts.
    """
    lesions, voxels = judged.lesions, judged.lesions.voxels_of(row)
    return any(
        bool(((voxels >= c.start_vox) & (voxels < c.stop_vox)).all(axis=1).any())
        for c in judged.prediction.removed
        if c.label == lesions.labels[row] and c.score >= judged.accepted_from
    )


def candidate_result(judged: CaseMatch, row: int) -> CandidateResult:
    """What became of one candidate."""
    candidates, given = judged.candidates, judged.prediction.candidates[row]
    lesion = _lesion_of(judged, row)
    return CandidateResult(
        candidate=given.id,
        label=given.label,
        score=given.score if judged.prediction.scored else None,
        probability=given.probability,
        diameter_mm=float(candidates.diameters_mm[row]),
        volume_ml=_candidate_ml(candidates, row, given),
        start_vox=_start(candidates, row),
        stop_vox=_stop(candidates, row),
        centre_mm=tuple(candidates.centres_mm[row].tolist()),
        accepted=bool(judged.accepted[row]),
        outcome=judged.at_point.outcomes[row],
        lesion=int(judged.lesions.ids[lesion]) if lesion >= 0 else None,
        iou=_iou(judged, row, lesion) if lesion >= 0 else None,
        touches_lesion=bool((judged.overlaps.candidate == row).any()),
        outcome_any=judged.at_any.outcomes[row],
        zone=given.zone,
    )


def _lesion_of(judged: CaseMatch, row: int) -> int:
    """Row of the lesion that it is matched to, else of the one that it overlaps most, else -1.

    Where candidates find lesions jointly there are no pairs, and the overlap decides.
    """
    matched = np.flatnonzero(judged.at_point.candidate_of == row)
    if len(matched) and not judged.is_joint:
        return int(matched[0])
    pairs = judged.overlaps
    here = np.flatnonzero((pairs.candidate == row) & judged.comparable)
    measure = pairs.voxels if judged.is_joint and pairs.voxels[here].any() else pairs.iou
    return int(pairs.lesion[here[measure[here].argmax()]]) if len(here) else -1


def _iou(judged: CaseMatch, candidate: int, lesion: int) -> float:
    pairs = judged.overlaps
    found = pairs.iou[(pairs.candidate == candidate) & (pairs.lesion == lesion)]
    return float(found[0]) if len(found) else 0.0


def _candidate_ml(candidates: Lesions, row: int, given: Candidate) -> float | None:
    drawn = candidates.volume_ml(row)
    return given.volume_ml if drawn is None and candidates.geometry.dims == 3 else drawn


def _start(instances: Lesions, row: int) -> tuple[float, ...]:
    return tuple(instances.boxes[row, : instances.geometry.dims].tolist())


def _stop(instances: Lesions, row: int) -> tuple[float, ...]:
    return tuple(instances.boxes[row, instances.geometry.dims :].tolist())
