"""`follow`: what became of each lesion between two visits of a patient."""

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lesionseg
from lesionseg.config import FollowConfig, PredictConfig
from lesionseg.core import CaseFiles, Geometry, OperatingPoint, Prediction, Reference
from lesionseg.errors import ConfigError, ContentError, DatasetError, GeometryError, count
from lesionseg.evaluation import CaseResult, choose, find_preset, match_case, summarise
from lesionseg.evaluation.cases import describe_grid
from lesionseg.evaluation.change import STATES, ChangeRule, LesionChange, Visit, find_changes
from lesionseg.evaluation.regrid import onto_grid
from lesionseg.evaluation.tables import write_rows, write_scores
from lesionseg.io.cases import read_mask
from lesionseg.io.dicom.results import (
    REPORT,
    ResultOrigin,
    SinceBefore,
    require_highdicom,
    write_dicom_results,
)
from lesionseg.io.files import locks, write_csv
from lesionseg.io.layouts.input_images import find_images
from lesionseg.io.layouts.manifest import read_scan_list
from lesionseg.io.predictions import (
    PredictionFiles,
    find_masks,
    find_predictions,
    read_prediction,
)
from lesionseg.io.registration import MIN_FOREGROUND_DICE, Alignment, register_rigid
from lesionseg.io.volumes import is_dicom_image, read_volume
from lesionseg.ops.components import candidates_of
from lesionseg.pipeline.log import Advance, aligned, bar
from lesionseg.report.follow import MAX_PICTURES, draw_change, write_follow_page
from lesionseg.report.images import Scene
from lesionseg.report.pictures import Card

_log = logging.getLogger(__name__)

HALF_SCORE_MM = 10.0  # a lesion of this diameter has score ½ where only its size ranks it


@dataclass(frozen=True)
class VisitFiles:
    """A patient at one time: the prediction, and the scan where one was given."""

    case: str
    prediction: PredictionFiles
    image: Path | None = None
    group: str = ""


FilePair = tuple[VisitFiles, VisitFiles]  # the earlier and the later visit, after which it is named


@dataclass(frozen=True, eq=False)
class OpenPair:
    """Both visits in memory, and what became of each lesion.

    `files` are those of both visits. `prediction` is the later one, `moved` the earlier one on its
    grid, `placed` the grid of the earlier visit in the space of the later one. `alignment` is None
    where headers were trusted.
    """

    files: FilePair
    before: Visit
    after: Visit
    prediction: Prediction
    moved: Prediction
    placed: Geometry
    alignment: Alignment | None
    changes: list[LesionChange]


@dataclass(frozen=True)
class FollowOutcome:
    """The changes, as they stand in `output/changes.csv`, and how many pairs there were.

    `n_failed`: visits that could not be predicted.
    """

    changes: tuple[LesionChange, ...]
    n_pairs: int
    output: Path
    n_failed: int = 0

    @property
    def exit_status(self) -> int:
        """1 when a visit could not be predicted, else 0."""
        return int(self.n_failed > 0)

    def summary(self) -> list[str]:
        """How many lesions are in each state, how many of them count, and per pair."""
        everyone = Counter(c.state for c in self.changes)
        accepted = Counter(c.state for c in self.changes if c.accepted)
        rows = [
            (s, str(everyone[s]), str(accepted[s]), f"{accepted[s] / self.n_pairs:.2f}")
            for s in STATES
        ]
        lines = aligned([("", "lesions", "accepted", "per pair"), *rows])
        table = f"Wrote:   {self.output / 'changes.csv'} ({count(self.n_pairs, 'pair')})"
        return [*lines, table, f"Open:    {self.output / 'follow.html'}"]


@locks("output")
def follow(cfg: FollowConfig, *, progress: Advance | None = None) -> FollowOutcome:
    """Compare two visits case by case; writes changes.csv, pairs.csv and follow.html.

    Either two folders, or a table of visits, each compared with the one before; with a `bundle`
    they are predicted first, into `output/predictions`. `progress` is called with case, number done
    and total, in place of a bar. Raises `ConfigError`, `DatasetError`, `ReadError`, `GeometryError`
    or `ContentError`.
    """
    rule, folder, failed = ChangeRule(cfg.overlap, cfg.confidence), Path(cfg.output), list[Any]()
    if cfg.before is not None and cfg.after is not None:
        images = cfg.before_images, cfg.after_images
        timelines = visits_of_folders(Path(cfg.before), Path(cfg.after), *images)
    else:  # as the settings have it: visits with either a bundle or predictions
        table = read_visits(Path(str(cfg.visits)))
        predictions = Path(cfg.predictions or folder / "predictions")
        if cfg.bundle is not None:
            from lesionseg.pipeline.predict import predict  # here: masks alone need no network

            predicted = PredictConfig.of(
                bundle=cfg.bundle,
                input=cfg.visits,
                output=predictions,
                operating_point=cfg.operating_point,
            )
            outcome = predict(predicted, progress=progress)
            failed = [row for row in outcome.rows if row["status"] == "failed"]
            for row in failed:
                _log.warning("Visit %s could not be predicted: %s", row["case"], row["message"])
        timelines = visits_of_table(table, predictions)
    pairs: dict[str, FilePair] = {
        pair[1].case: pair for visits in timelines for pair in pairwise(visits)
    }
    masks: Mapping[str, Path] = {}
    if cfg.reference is not None:
        masks = find_masks(Path(cfg.reference))
        missing = [case for case in pairs if case not in masks]
        if len(missing) == len(pairs):
            raise DatasetError(
                f"{cfg.reference}: no reference of change has the name of a pair, such as "
                f"{missing[0]}."
            )
        if missing:
            _log.warning("These have no reference of change: %s", ", ".join(missing))
    scans = [after.image for _, after in pairs.values() if after.image is not None]
    if cfg.dicom_output and any(map(is_dicom_image, scans)):
        require_highdicom()  # before anything is read
    point = None
    if cfg.stable is not None:
        stable = {cfg.stable} if isinstance(cfg.stable, str) else {*cfg.stable}
        if stable - {*pairs} or not stable:
            unknown = ", ".join(sorted(stable - {*pairs}))
            raise ConfigError(f"stable names no pair: {unknown or 'no case'}.")
        results = [
            _score_new(_new_lesions(open_pair(*pairs[case], rule, cfg.register_)), None)
            for case in sorted(stable)
        ]
        point = choose(results, fp_per_case=cfg.false_new_per_pair, quiet=True)
        scores = [c.score or 0.0 for r in results for c in r.candidates]
        if point.score <= min(scores, default=1.0):  # all stay within the rate
            point = replace(point, score=0.0)

    names = {case: case if cfg.identifiers else f"case {n}" for n, case in enumerate(pairs, 1)}
    changes, rows, scored = list[LesionChange](), list[dict[str, Any]](), list[CaseResult]()
    cards = list[tuple[LesionChange, Card]]()
    with bar("Following") if progress is None else nullcontext(progress) as advance:
        for done, (case, pair) in enumerate(pairs.items(), start=1):
            opened, image = open_pair(*pair, rule, cfg.register_), pair[1].image
            new = _new_lesions(opened)
            least = 0.0 if point is None else point.score
            decided = [
                replace(c, accepted=c.score >= least) if c.score is not None else c
                for c in opened.changes
            ]
            changes += decided
            rows.append(_row(opened, decided))
            cards += _cards(opened, decided, names[case])
            if case in masks:
                scored.append(_score_new(new, read_mask(masks[case]), point))
            if cfg.dicom_output and image and is_dicom_image(image):
                _write_report(folder / f"{case}{REPORT}", image, opened.prediction, decided)
            advance(case, done, len(pairs))
    first = {c.label for c in changes if c.lesion_before}
    second = {c.label for c in changes if c.lesion_after}
    if first and second and not first & second:
        raise ContentError(
            f"The visits have different labels: before {sorted(first)}, after {sorted(second)}. "
            "Write both with the same values."
        )
    if scored:
        found = summarise(
            scored,
            find_preset("lesionseg"),
            evaluated_on="unknown",
            operating_point=point,
            replicates=cfg.replicates,
            seed=cfg.seed,
            provenance={
                "lesionseg": lesionseg.__version__,
                "scored": "new lesions between two visits",
            },
        )
        write_scores(folder, scored, found)
    write_rows(folder / "changes.csv", changes, LesionChange)
    write_csv(folder / "pairs.csv", rows, tuple(rows[0]))
    write_follow_page(folder / "follow.html", changes, names, cards, rule, point)
    return FollowOutcome(tuple(changes), len(pairs), folder, len(failed))


# --- which visits belong together ----------------------------------------------------------------


def visits_of_folders(
    before: Path, after: Path, before_images: str | None, after_images: str | None
) -> list[list[VisitFiles]]:
    """Both visits of the cases that both folders have; a warning names those of one alone."""
    if (before_images is None) != (after_images is None):
        raise ConfigError("Give both before_images= and after_images=, or neither.")
    predictions = [find_predictions(folder) for folder in (before, after)]
    scans: list[Mapping[str, Path]] = [
        {} if folder is None else {f.case: f.images[0] for f in find_images(Path(folder), 1)}
        for folder in (before_images, after_images)
    ]
    first, second = map(set, predictions)
    if not first & second:
        raise DatasetError(
            f"{before} (with {', '.join(sorted(first)[:3])}) and {after} (with "
            f"{', '.join(sorted(second)[:3])}) have no case in common. Name a patient's files "
            "alike."
        )
    if first ^ second:
        _log.warning("These cases have one visit only: %s", ", ".join(sorted(first ^ second)))
    return [
        [VisitFiles(c, p[c], s.get(c)) for p, s in zip(predictions, scans, strict=True)]
        for c in sorted(first & second)
    ]


def visits_of_table(
    patients: Sequence[Sequence[CaseFiles]], folder: Path
) -> list[list[VisitFiles]]:
    """The visits of each patient, in order, of which `folder` has predictions."""
    found = find_predictions(folder)
    timelines = [
        [VisitFiles(f.case, found[f.case], f.images[0], f.group) for f in files if f.case in found]
        for files in patients
    ]
    followed = {visit.case for visits in timelines if len(visits) > 1 for visit in visits}
    if not followed:
        raise DatasetError(f"{folder}: no patient has predictions of two visits.")
    alone = [f.case for files in patients for f in files if f.case not in followed]
    if alone:
        _log.warning("These have no prediction, or no other visit: %s", ", ".join(alone))
    return timelines


def read_visits(table: Path) -> list[list[CaseFiles]]:
    """The visits of each patient by a table `case, image, group, visit`, the earliest first.

    `group` is the patient, `visit` a number or a date (2024-05-31 or 20240531). Raises
    `DatasetError` where no patient has two visits, and for visits without an order.
    """
    patients: dict[str, list[CaseFiles]] = {}
    for files in read_scan_list(table):
        patients.setdefault(files.group, []).append(files)
    if all(len(visits) < 2 for visits in patients.values()):
        raise DatasetError(
            f"{table}: no patient has two visits. The column group names the patient of each."
        )
    for group, visits in patients.items():
        texts = [files.columns.get("visit", "").strip() for files in visits]
        times: dict[str, Any] = {}
        if all(re.fullmatch(r"\d{4}-\d\d-\d\d.*|\d{8}", text) for text in texts):
            times = {text: text.replace("-", "") for text in texts}
        elif all(re.fullmatch(r"\d+(\.\d+)?", text) for text in texts):
            times = {text: float(text) for text in texts}
        if len(visits) > 1 and len(set(times.values())) < len(visits):
            raise DatasetError(
                f"{table}: the visits of {group} have no order ({', '.join(texts)}). Give each its "
                "own number, or date as 2024-05-31, in the column visit."
            )
        visits.sort(key=lambda f: times.get(f.columns.get("visit", "").strip(), 0))
    return list(patients.values())


# --- both visits on one grid ---------------------------------------------------------------------


def open_pair(
    earlier: VisitFiles, later: VisitFiles, rule: ChangeRule, register: str = "auto"
) -> OpenPair:
    """Read both visits, the earlier one also on the grid of the later, and find the changes.

    `register`: see `follow`. Raises `GeometryError` for a registration that is poor and grids that
    share no space; `ContentError` for boxes alone.
    """
    before, after = _read(earlier.prediction), _read(later.prediction)
    one_grid = before.geometry.matches(after.geometry)
    alignment = None
    if register == "rigid" or (register == "auto" and not one_grid and earlier.image):
        alignment = _registered(earlier, later)
    elif not one_grid:
        _log.info("%s: the two grids differ; the files' own positions are used.", later.case)
    matrix = np.eye(before.geometry.dims + 1) if alignment is None else alignment.matrix
    placed = Geometry(before.geometry.shape, matrix @ before.geometry.affine)
    if before.geometry.dims != after.geometry.dims or not _share_space(placed, after.geometry):
        raise GeometryError(
            f"Case {later.case}: the visits share no space; before {describe_grid(placed)}, after "
            f"{describe_grid(after.geometry)}. Give before_images= and after_images= to register."
        )
    moved = before
    if not placed.matches(after.geometry):
        moved = onto_grid(replace(before, geometry=placed), after.geometry)
    lesions = candidates_of(before), candidates_of(after)
    centres = placed.to_mm(before.geometry.to_index(lesions[0].centres_mm))
    accepted = [
        np.array([c.accepted for c in prediction.candidates], dtype=np.bool_)
        for prediction in (before, after)
    ]
    inside = _inside(centres, after.geometry), _inside(lesions[1].centres_mm, placed)
    first = Visit(lesions[0], candidates_of(moved), accepted[0], inside[0])
    second = Visit(lesions[1], lesions[1], accepted[1], inside[1])
    changes = _with_scores(find_changes(later.case, first, second, rule), after)
    return OpenPair((earlier, later), first, second, after, moved, placed, alignment, changes)


def _read(files: PredictionFiles) -> Prediction:
    """A prediction whose accepted candidates all have masks; others without are left out."""
    prediction = read_prediction(files)
    bare = any(c.accepted and not c.has_mask for c in prediction.candidates)
    if bare or prediction.instances is None:
        raise ContentError(
            f"{files.candidates}: boxes alone cannot be followed, they have no size to compare. "
            "Give masks; model=retina_unet writes them."
        )
    return replace(prediction, candidates=tuple(c for c in prediction.candidates if c.has_mask))


def _registered(earlier: VisitFiles, later: VisitFiles) -> Alignment:
    if earlier.image is None or later.image is None:
        raise DatasetError(
            f"Case {later.case} has no scan to register with. Give before_images= and "
            "after_images=, named by case, or register=headers."
        )
    alignment = register_rigid(read_volume(later.image), read_volume(earlier.image))
    if alignment.foreground_dice < MIN_FOREGROUND_DICE:
        raise GeometryError(
            f"Case {later.case}: the registration is poor (Dice of foregrounds "
            f"{alignment.foreground_dice:.2f}, not {MIN_FOREGROUND_DICE}). Register the scans with "
            "another program and give register=headers."
        )
    return alignment


def _share_space(one: Geometry, other: Geometry) -> bool:
    return any(
        bool(_inside(a.to_mm([[(n - 1) / 2 for n in a.shape]]), b).any())
        for a, b in ((one, other), (other, one))
    )


def _inside(points_mm: NDArray[np.float64], geometry: Geometry) -> NDArray[np.bool_]:
    index = geometry.to_index(points_mm)
    return np.asarray(((index >= -0.5) & (index <= np.array(geometry.shape) - 0.5)).all(axis=1))


# --- new lesions as a prediction of their own ----------------------------------------------------


def _with_scores(changes: Sequence[LesionChange], after: Prediction) -> list[LesionChange]:
    """The changes with the scores of new lesions that exceed the grid's error.

    Bare masks have no scores; there the diameter d ranks, as d / (d + 10 mm).
    """
    score_of = {
        c.id: c.score if after.scored else c.diameter_mm / (c.diameter_mm + HALF_SCORE_MM)
        for c in after.candidates
    }
    return [
        replace(c, score=score_of[c.lesion_after[0]]) if c.state == "new" and c.accepted else c
        for c in changes
    ]


def _new_lesions(pair: OpenPair) -> Prediction:
    """The later visit's prediction with nothing but the new lesions that have a score."""
    score_of = {c.lesion_after[0]: c.score for c in pair.changes if c.score is not None}
    candidates = [
        replace(c, score=score_of[c.id], accepted=True)
        for c in pair.prediction.candidates
        if c.id in score_of
    ]
    instances = pair.prediction.instances
    if instances is not None:
        instances = np.where(np.isin(instances, sorted(score_of)), instances, 0).astype(np.int32)
    ranked = tuple(sorted(candidates, key=lambda c: (-c.score, c.id)))
    return replace(pair.prediction, candidates=ranked, instances=instances, scored=True, removed=())


def _score_new(
    new: Prediction, reference: Reference | None, point: OperatingPoint | None = None
) -> CaseResult:
    """New lesions against a reference of change; None: a pair in which nothing is new."""
    role = "unknown" if reference else "stable"
    marked = reference or Reference(new.geometry, np.zeros(new.geometry.shape, dtype=np.uint8))
    preset = find_preset("lesionseg")
    return match_case(marked, new, preset, case=new.case, group=new.case, role=role).result(point)


# --- rows, pictures, report ----------------------------------------------------------------------


def _row(opened: OpenPair, changes: Sequence[LesionChange]) -> dict[str, Any]:
    states, alignment = Counter(c.state for c in changes), opened.alignment
    earlier, later = opened.files
    return {
        "case": later.case,
        **{state: states[state] for state in STATES},
        "new_accepted": sum(c.state == "new" and c.accepted for c in changes),
        "volume_before_ml": sum(c.volume_before_ml or 0.0 for c in changes),
        "volume_after_ml": sum(c.volume_after_ml or 0.0 for c in changes),
        "registered": "rigid" if alignment else "headers",
        "mutual_information": alignment and alignment.mutual_information,
        "foreground_dice": alignment and alignment.foreground_dice,
        "earlier": earlier.case if earlier.case != later.case else "",
        "group": later.group,
    }


def _cards(
    opened: OpenPair, changes: Sequence[LesionChange], name: str
) -> list[tuple[LesionChange, Card]]:
    shown = [c for c in changes if c.accepted][:MAX_PICTURES]
    first, second = (visit.image for visit in opened.files)
    if not shown or first is None or second is None:
        return []
    grid = opened.prediction.geometry
    masks = opened.moved.mask() > 0, opened.prediction.mask() > 0
    scenes = (
        Scene(_scan_on(first, opened.placed, grid), grid, *masks),
        Scene(_scan_on(second, grid, grid), grid, *masks),
    )
    cards = []
    for change in shown:
        sides = (
            (opened.before.placed, change.lesion_before),
            (opened.after.placed, change.lesion_after),
        )
        boxes = np.concatenate([visit.boxes[np.isin(visit.ids, ids)] for visit, ids in sides])
        starts, stops = boxes[:, : grid.dims].min(axis=0), boxes[:, grid.dims :].max(axis=0)
        cards.append((change, draw_change(change, name, *scenes, np.stack([starts, stops]))))
    return cards


def _scan_on(path: Path, own: Geometry, geometry: Geometry) -> NDArray[np.float32]:
    """The first channel of a scan, which lies where `own` says, on the grid `geometry`."""
    import torch

    from lesionseg.ops.resample import resample_linear

    array = np.ascontiguousarray(read_volume(path).array[:1], dtype=np.float32)
    if own.matches(geometry):
        return np.asarray(array[0])
    matrix = np.linalg.inv(own.affine) @ geometry.affine
    moved = resample_linear(torch.from_numpy(array), matrix, geometry.shape)
    return np.asarray(moved[0].numpy(), dtype=np.float32)


def _write_report(
    path: Path, image: Path, prediction: Prediction, changes: Sequence[LesionChange]
) -> None:
    """Write a structured report: the lesions of the later visit, what became of each, what is gone.

    New lesions below the operating point are left out. Raises `OutputError`.
    """
    since = {
        lesion: SinceBefore(c.state, c.volume_before_ml)
        for c in changes
        if c.accepted or c.state != "new"
        for lesion in c.lesion_after
    }
    gone = [f"{c.volume_before_ml or 0:.3g} ml" for c in changes if c.state == "gone"]
    candidates = tuple(replace(c, accepted=c.id in since) for c in prediction.candidates)
    key = blake2b(repr(changes).encode(), digest_size=8).hexdigest()
    write_dicom_results(
        image,
        replace(prediction, candidates=candidates, operating_point=None),
        ResultOrigin(lesionseg.__version__, "follow-up", key),
        {c.label: f"lesion of label {c.label}" for c in candidates},
        report=path,
        since=since,
        remark=f"Compared with an earlier visit. Gone since: {', '.join(gone) or 'nothing'}.",
    )
