"""Judge one case: reference and prediction in, every number of the case out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from lesionseg.core import (
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
from lesionseg.evaluation.case.case_numbers import (
    candidate_result,
    case_dice,
    case_score_of,
    counts_by_label,
    lesion_pairs,
    lesion_results,
    overlap_several,
    summed_ml,
    surface_numbers,
)
from lesionseg.evaluation.case.lesion_measures import lesion_contrasts
from lesionseg.evaluation.case.match_case import CaseLinks, link_case
from lesionseg.evaluation.case.region_parts import (
    can_be_divided,
    prediction_of,
    reference_of,
    united,
)
from lesionseg.evaluation.presets import Preset
from lesionseg.evaluation.results import CaseResult, Status

# Grids written by two programs differ by rounding; a twentieth of a voxel changes no result,
# because voxels are compared by index.
_GRID_TOLERANCE = 0.05


@dataclass(frozen=True, eq=False)
class MatchedCase:
    """A case whose candidates were matched with its lesions, once, whoever is accepted.

    It holds no volume, so that the cases of a dataset fit into memory together: `prediction` has
    the candidates alone. `contrasts` and `zones` are the lesions'. `regions`: each region by
    itself. `annotated`: as in `core.Reference`. The rest: see `evaluate_case`.
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
    annotated: Mapping[int, bool]

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
        counts = counts_by_label(judged)
        surface_dice, hd95_mm = surface_numbers(judged, self.preset) if surface else (None, None)
        lesions = judged.lesions
        return CaseResult(
            case=self.case,
            group=self.group or self.case,
            role=self.role,
            status=self.status,
            dims=lesions.geometry.dims,
            lesions=lesion_results(judged, self.status == "missing", self.contrasts, self.zones),
            candidates=tuple(candidate_result(judged, i) for i in range(len(judged.candidates))),
            dice=case_dice(judged, counts),
            surface_dice=surface_dice,
            hd95_mm=hd95_mm,
            reference_ml=summed_ml(lesions, np.ones(len(lesions), dtype=np.bool_)),
            predicted_ml=summed_ml(judged.candidates, judged.drawn),
            case_score=case_score_of(judged) if given.scored else None,
            scored=given.scored,
            splits=int(overlap_several(judged, judged.overlaps.lesion).sum()),
            merges=int(overlap_several(judged, judged.overlaps.candidate).sum()),
            counts=counts,
            sides={name: side.count() for name, side in judged.sides.items()},
            pairs=lesion_pairs(judged),
            operating_point=point or given.operating_point,
            unit=lesions.geometry.size_unit,
            regions={
                name: part.result(operating_point, surface=surface)
                for name, part in self.regions.items()
            },
            within_labels=self._within_labels(operating_point),
            seconds=self.seconds + perf_counter() - begin,
            warning=given.input.warning if given.input else "",
            input_score=given.input.score if given.input else None,
            slice_spacing_mm=_slice_spacing_mm(lesions.geometry),
            annotated=self.annotated,
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

    Candidates of labels that the reference does not annotate are left out.

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
        prediction = prediction.without_labels(reference.unannotated)
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
        annotated=reference.annotated,
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


def _slice_spacing_mm(geometry: Geometry) -> float | None:
    """How far apart the slices are, as nearly as a grid says it; None of a raster."""
    return None if geometry.dims == 2 else round(max(geometry.spacing_mm), 1)


def _contrasts(
    lesions: Lesions, reference: Reference, image: Volume | None
) -> Sequence[float | None]:
    if image is None:
        return [None] * len(lesions)
    return lesion_contrasts(image, lesions, reference.ignore)
