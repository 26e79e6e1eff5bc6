"""Judge one case: reference and prediction in, every number of the case out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import (
    Candidate,
    Geometry,
    LabelRegion,
    Lesions,
    OperatingPoint,
    Prediction,
    Reference,
    Volume,
    Zones,
)
from lesionseg.errors import GeometryError
from lesionseg.evaluation import edge_cases
from lesionseg.evaluation.case.label_regions import (
    can_be_divided,
    prediction_of,
    reference_of,
    united,
)
from lesionseg.evaluation.case.lesion_measures import (
    NEAR_RESOLUTION_VOXELS,
    Extent,
    lesion_contrasts,
    measure_extents,
)
from lesionseg.evaluation.case.match_case import CaseLinks, CaseMatch, link_case
from lesionseg.evaluation.case.matching import NEVER
from lesionseg.evaluation.case.overlap import VoxelCounts, voxel_counts
from lesionseg.evaluation.case.surface import surface_distances
from lesionseg.evaluation.official import score_case
from lesionseg.evaluation.presets import Preset
from lesionseg.evaluation.results import (
    CandidateResult,
    CaseResult,
    LesionResult,
    Status,
    WhyMissed,
)

# Grids written by two programs differ by rounding; a twentieth of a voxel changes no result,
# because voxels are compared by index.
_GRID_TOLERANCE = 0.05
ALL_LABELS = 0


@dataclass(frozen=True, eq=False)
class MatchedCase:
    """A case whose candidates were matched with its lesions, once, whoever is accepted.

    It holds no volume, so that the cases of a dataset fit into memory together: `prediction` has
    the candidates alone. `contrasts` and `zones` are the lesions'. `regions`: each region by
    itself. The rest: see `evaluate_case`.
    """

    prediction: Prediction
    links: CaseLinks
    preset: Preset
    case: str
    group: str
    role: str
    status: Status
    contrasts: Sequence[float | None]
    regions: Mapping[str, "MatchedCase"]
    seconds: float
    zones: Sequence[str]

    @property
    def geometry(self) -> Geometry:
        """The grid of the reference."""
        return self.links.lesions.geometry

    def decide(self, prediction: Prediction) -> "MatchedCase":
        """The same match by the flags, probabilities and operating point of `prediction`.

        It has the candidates that were matched. Nothing is matched again.
        """
        by_id = {c.id: c for c in prediction.candidates}
        before = self.prediction
        decided = replace(
            before,
            candidates=tuple(
                replace(by_id[c.id], label=c.label, zone=c.zone) for c in before.candidates
            ),
            operating_point=prediction.operating_point,
        )
        regions = {name: part.decide(prediction) for name, part in self.regions.items()}
        return replace(self, prediction=decided, regions=regions)

    def result(
        self, operating_point: OperatingPoint | None = None, *, surface: bool = True
    ) -> CaseResult:
        """Every number of the case; see `evaluate_case`.

        Without `surface` the distances between surfaces are left out: they take the longest, and
        nothing is chosen by them.
        """
        begin = perf_counter()
        given = self.prediction
        point = operating_point if given.scored else None  # a score is never invented
        judged = self.links.accept(given, point)
        counts = _counts(judged)
        surface_dice, hd95_mm = _surface(judged, self.preset) if surface else (None, None)
        lesions = judged.lesions
        return CaseResult(
            case=self.case,
            group=self.group or self.case,
            role=self.role,
            status=self.status,
            dims=lesions.geometry.dims,
            lesions=_lesions(judged, self.status == "missing", self.contrasts, self.zones),
            candidates=tuple(_candidate(judged, i) for i in range(len(judged.candidates))),
            dice=_dice(judged, counts),
            surface_dice=surface_dice,
            hd95_mm=hd95_mm,
            reference_ml=_ml(lesions, np.ones(len(lesions), dtype=np.bool_)),
            predicted_ml=_ml(judged.candidates, judged.drawn),
            case_score=_case_score(judged) if given.scored else None,
            scored=given.scored,
            splits=int(_repeated(judged, judged.overlaps.lesion).sum()),
            merges=int(_repeated(judged, judged.overlaps.candidate).sum()),
            counts=counts,
            sides={name: side.count(judged.overlaps) for name, side in judged.sides.items()},
            pairs=judged.pairs.count(judged.overlaps),
            operating_point=point or given.operating_point,
            unit=lesions.geometry.size_unit,
            official=score_case(self.preset.official, judged),
            regions={
                name: part.result(operating_point, surface=surface)
                for name, part in self.regions.items()
            },
            within_labels=self._within_labels(operating_point),
            seconds=self.seconds + perf_counter() - begin,
            warning=given.input.warning if given.input else "",
            input_score=given.input.score if given.input else None,
            slice_spacing_mm=_slice_spacing_mm(lesions.geometry),
        )

    def _within_labels(self, operating_point: OperatingPoint | None) -> CaseResult | None:
        links = self.links.within_labels
        if links is None:
            return None
        return replace(self, links=links, regions={}).result(operating_point, surface=False)


def match_case(
    reference: Reference,
    prediction: Prediction | None,
    preset: Preset,
    *,
    case: str,
    group: str = "",
    role: str = "",
    image: Volume | None = None,
    regions: Sequence[LabelRegion] = (),
    zones: Zones | None = None,
) -> MatchedCase:
    """Match the prediction of one case with its reference; see `evaluate_case`.

    Args:
        reference: the lesions that a reader marked.
        prediction: on the reference's grid; None where there is none: every lesion is missed.
        preset: the match rule.
        case: the case's id.
        group: its patient; the case itself where nothing is known.
        role: `train`, `validation`, `test`, `external` or nothing.
        image: for the lesions' contrast, on the reference's grid; None leaves it out.
        regions: unions of labels that are judged too, each by itself.
        zones: anatomical zones, on any grid; None: lesions and candidates are in none.
    """
    begin = perf_counter()
    if regions and prediction is not None:
        prediction = united(prediction)
    if prediction is not None:
        _check_grids("prediction", case, reference.geometry, prediction.geometry)
    if image is not None:
        _check_grids("image", case, reference.geometry, image.geometry)
    nothing = np.zeros(reference.geometry.shape, dtype=np.int32)
    given = prediction or Prediction(case, reference.geometry, (), nothing)
    links = link_case(reference, given, preset.criterion)
    if zones is not None:
        within = zip(given.candidates, zones.of(links.candidates), strict=True)
        given = replace(given, candidates=tuple(replace(c, zone=zone) for c, zone in within))
    parts = {
        region.name: match_case(
            reference_of(reference, region),
            None if prediction is None else prediction_of(prediction, region),
            preset,
            case=case,
            group=group,
            role=role,
        )
        for region in (regions if can_be_divided(prediction, regions) else ())
    }
    return MatchedCase(
        replace(given, instances=None, values=None),
        links,
        preset,
        case,
        group,
        role,
        status="missing" if prediction is None else "ok",
        contrasts=_contrasts(links.lesions, reference, image),
        regions=parts,
        seconds=perf_counter() - begin,
        zones=zones.of(links.lesions) if zones else [""] * len(links.lesions),
    )


def evaluate_case(
    reference: Reference,
    prediction: Prediction | None,
    preset: Preset,
    *,
    case: str,
    group: str = "",
    role: str = "",
    operating_point: OperatingPoint | None = None,
    image: Volume | None = None,
    regions: Sequence[LabelRegion] = (),
    zones: Zones | None = None,
) -> CaseResult:
    """Judge one case: match candidates with lesions and compute every number of the case.

    All are on one grid, else `GeometryError`.

    Args:
        reference: what a reader drew.
        prediction: the candidates; None stands for a prediction that is missing.
        preset: the match rule and what is measured beside it.
        case: id of the case, for results and messages.
        group: the patient; empty: the case by itself.
        role: `train`, `validation`, `test` or `external`; empty: not stated.
        operating_point: candidates of at least its score are accepted; None: those that the
            prediction itself marks as accepted.
        image: from its first channel comes the lesions' contrast; None: it is not measured.
        regions: then all candidates have the label of the union, and each region is judged by
            itself too.
        zones: anatomical zones, on any grid; None: lesions and candidates are in none.
    """
    matched = match_case(
        reference,
        prediction,
        preset,
        case=case,
        group=group,
        role=role,
        image=image,
        regions=regions,
        zones=zones,
    )
    return matched.result(operating_point)


def _case_score(judged: CaseMatch) -> float:
    """The highest score of a candidate that is judged."""
    rows = zip(judged.prediction.candidates, judged.set_aside.mostly, strict=True)
    return max((candidate.score for candidate, aside in rows if not aside), default=0.0)


def _check_grids(what: str, case: str, reference: Geometry, other: Geometry) -> None:
    if reference.matches(other, _GRID_TOLERANCE * min(reference.spacing_mm)):
        return
    raise GeometryError(
        f"The {what} is not on the grid of its reference.",
        where=f"case {case}",
        seen=f"{what} {describe_grid(other)}, {reference.distance_mm(other):.4g} mm off",
        expected=f"reference {describe_grid(reference)}",
        remedy=f"resample the {what} onto the reference's grid.",
    )


def describe_grid(geometry: Geometry) -> str:
    """Shape, spacing and place of a grid, for messages."""
    origin = tuple(float(x) for x in geometry.affine[:-1, -1].round(3))
    spacing = tuple(round(s, 4) for s in geometry.spacing_mm)
    return f"of shape {geometry.shape}, spacing {spacing} mm, first voxel at {origin} mm"


def _counts(judged: CaseMatch) -> dict[int, VoxelCounts]:
    """Voxels by label, all labels as one under 0; empty where there are no masks to compare."""
    if not judged.has_masks:
        return {}
    found = sorted({*judged.lesions.labels.tolist(), *judged.candidates.labels.tolist()})
    parts = (judged.candidates, judged.lesions, judged.overlaps, judged.accepted)
    return {
        ALL_LABELS: voxel_counts(*parts),
        **{label: voxel_counts(*parts, label=label) for label in found},
    }


def _dice(judged: CaseMatch, counts: dict[int, VoxelCounts]) -> float | None:
    if len(judged.lesions) == 0:
        return edge_cases.CASE_WITHOUT_LESION.value
    if not counts:
        return edge_cases.CASE_WITHOUT_MASKS.value
    # nothing accepted shares no voxel: 0, as edge_cases.CASE_MISSED has it
    return counts[ALL_LABELS].dice


def _slice_spacing_mm(geometry: Geometry) -> float | None:
    """How far apart the slices are, as nearly as a grid says it; None of a raster."""
    return None if geometry.dims == 2 else round(max(geometry.spacing_mm), 1)


def _surface(judged: CaseMatch, preset: Preset) -> tuple[float | None, float | None]:
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


def _ml(instances: Lesions, rows: NDArray[np.bool_]) -> float | None:
    """Summed volume; None in 2-D and where a row has no mask."""
    if instances.geometry.dims == 2 or not instances.masked[rows].all():
        return None
    return int(instances.n_voxels[rows].sum()) * instances.geometry.voxel_size / 1000


def _repeated(judged: CaseMatch, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows overlap several partners, accepted candidates alone."""
    accepted = judged.accepted[judged.overlaps.candidate]
    n = max(len(judged.lesions), len(judged.candidates))
    return np.bincount(rows[judged.comparable & accepted], minlength=n) > 1


def _merged(judged: CaseMatch) -> NDArray[np.bool_]:
    """Which lesions `[n]` share an accepted candidate with another one."""
    pairs, found = judged.overlaps, np.zeros(len(judged.lesions), dtype=np.bool_)
    shared = _repeated(judged, pairs.candidate)[pairs.candidate]
    found[pairs.lesion[shared & judged.comparable]] = True
    return found


def _contrasts(
    lesions: Lesions, reference: Reference, image: Volume | None
) -> Sequence[float | None]:
    if image is None:
        return [None] * len(lesions)
    return lesion_contrasts(image, lesions, reference.ignore)


def _lesions(
    judged: CaseMatch,
    missing: bool,
    contrasts: Sequence[float | None],
    zones: Sequence[str],
) -> tuple[LesionResult, ...]:
    lesions = judged.lesions
    extents = measure_extents(lesions.voxels, lesions.first, lesions.geometry.spacing_mm)
    split, merged = _repeated(judged, judged.overlaps.lesion).tolist(), _merged(judged).tolist()
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


def _candidate(judged: CaseMatch, row: int) -> CandidateResult:
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
