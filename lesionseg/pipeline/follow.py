"""`follow`: what became of each lesion between two visits of a patient."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lesionseg import __version__
from lesionseg.config import FollowConfig, PredictConfig
from lesionseg.core import (
    UNKNOWN_ROLE,
    Aim,
    CaseFiles,
    OperatingPoint,
    Prediction,
    Reference,
    joint_unit,
)
from lesionseg.data.registration import MIN_FOREGROUND_DICE, register_rigid
from lesionseg.errors import (
    SOME_FAILED,
    ConfigError,
    ConflictError,
    ContentError,
    DatasetError,
    GeometryError,
    LesionsegError,
    ReadError,
    count,
)
from lesionseg.evaluation import (
    CaseResult,
    SummarySettings,
    choose,
    find_preset,
    match_case,
    summarise,
)
from lesionseg.evaluation.change import (
    STATES,
    ChangeRule,
    LesionChange,
    VisitPair,
    compare_visits,
    order_visits,
)
from lesionseg.evaluation.result_tables import write_rows, write_scores
from lesionseg.evaluation.scores import SCORES_FILE
from lesionseg.io.cases import read_mask
from lesionseg.io.dicom.elements import text
from lesionseg.io.dicom.headers import read_header
from lesionseg.io.dicom.results import REPORT, require_highdicom
from lesionseg.io.dicom.scans import describe_dicom
from lesionseg.io.files import locks, write_csv
from lesionseg.io.layouts.input_images import find_images
from lesionseg.io.layouts.manifest import read_scan_list
from lesionseg.io.predictions import (
    CANDIDATES,
    PredictionFiles,
    find_masks,
    find_predictions,
    read_prediction,
    read_source,
)
from lesionseg.io.volumes import is_dicom_image, read_volume
from lesionseg.pipeline.log import Advance, align_columns, bar, command_line
from lesionseg.pipeline.outcome import Outcome
from lesionseg.reporting.follow_page import draw_changes, write_change_report, write_follow_page
from lesionseg.reporting.pictures import Card

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VisitFiles:
    """A patient at one time: the prediction, and the scan where one was given."""

    case: str
    prediction: PredictionFiles
    image: Path | None = None
    group: str = ""


FilePair = tuple[VisitFiles, VisitFiles]  # the earlier and the later visit, after which it is named


@dataclass(frozen=True)
class FollowOutcome(Outcome):
    """The changes, as they stand in `output/changes.csv`, and how many pairs there were.

    `n_failed`: visits that could not be predicted, and pairs that could not be compared.
    `has_images`: scans of both visits were given.
    """

    changes: tuple[LesionChange, ...]
    n_pairs: int
    output: Path
    n_failed: int = 0
    has_images: bool = False

    @property
    def exit_status(self) -> int:
        """Return 3 if a visit could not be predicted or a pair not be compared, else 0."""
        return SOME_FAILED if self.n_failed else 0

    def summary(self) -> list[str]:
        """Return the number of lesions in each state, in total and per pair, and the files."""
        everyone = Counter(c.state for c in self.changes)
        accepted = Counter(c.state for c in self.changes if c.accepted)
        rows = [
            (s, str(everyone[s]), str(accepted[s]), f"{accepted[s] / self.n_pairs:.2f}")
            if s != "stable"
            else (s, str(everyone[s]), "–", "–")
            for s in STATES
        ]
        lines = align_columns([("", "lesions", "sure changes", "per pair"), *rows])
        table = f"Wrote:   {self.output / 'changes.csv'} ({count(self.n_pairs, 'pair')})"
        lines += [table, f"Open:    {self.output / 'follow.html'}"]
        if not self.has_scores:
            if not self.has_images:
                lines.append("To add pictures, give before_images= and after_images=.")
            lines.append("To add scores, give reference=, a folder of masks of the new lesions.")
        return lines

    @property
    def has_scores(self) -> bool:
        """True if a reference of change was given."""
        return (self.output / "scores.json").is_file()

    @property
    def next(self) -> str | None:
        """The report on the scores; None if no reference was given."""
        if not self.has_scores:
            return None
        return command_line("report", scores=self.output, output="REPORT")


@locks("output")
def follow(cfg: FollowConfig, *, progress: Advance | None = None) -> FollowOutcome:
    """Compare two visits case by case; writes changes.csv, pairs.csv and follow.html.

    Either two folders, or a table of visits, each compared with the one before; with a `bundle`
    they are predicted first, into `output/predictions`. `progress` is called with case, number done
    and total, in place of a bar. A pair that cannot be compared is named in a warning and in
    pairs.csv, and the others are followed. Raises `ConfigError`, `DatasetError`, `ContentError` for
    visits with different labels, and the error of the only pair if that cannot be compared.
    """
    rule = ChangeRule(cfg.overlap, cfg.confidence)
    folder = Path(cfg.output)
    if cfg.operating_point is not None and cfg.bundle is None:
        raise ConfigError("operating_point= needs bundle=: it decides what is predicted.")
    timelines, n_unpredicted = _timelines(cfg, progress)
    pairs: dict[str, FilePair] = {
        pair[1].case: pair for visits in timelines for pair in pairwise(visits)
    }
    masks = _change_masks(cfg, pairs)
    if cfg.dicom_output and any(a.image and is_dicom_image(a.image) for _, a in pairs.values()):
        require_highdicom()  # before anything is read
    point = None if cfg.stable is None else stable_point(cfg, pairs, rule)
    names = {case: case if cfg.identifiers else f"case {n}" for n, case in enumerate(pairs, 1)}
    followed: dict[str, FollowedPair] = {}
    faults: dict[str, LesionsegError] = {}
    with bar("Following", progress) as advance:
        for done, (case, files) in enumerate(pairs.items(), start=1):
            try:
                found = _follow_pair(cfg, files, point, names[case], masks.get(case))
            except (ReadError, GeometryError, ContentError, DatasetError, ConflictError) as error:
                faults[case] = error
                _log.warning("Not followed, %s: %s", case, error)
            else:
                followed[case] = found
                image = files[1].image
                if cfg.dicom_output and image and is_dicom_image(image):
                    report = folder / f"{case}{REPORT}"
                    write_change_report(report, image, found.pair.after, found.changes)
            advance(case, done, len(pairs))
    if not followed:
        if len(faults) == 1:
            raise next(iter(faults.values()))
        said = "\n  ".join(str(error) for error in faults.values())
        raise DatasetError(f"No pair can be followed:\n  {said}")
    changes = [change for one in followed.values() for change in one.changes]
    _check_labels(changes)
    _write_change_scores(cfg, followed.values(), point)
    rows = [one.row for one in followed.values()]
    write_rows(folder / "changes.csv", changes, LesionChange)
    failed_rows = [{"case": case, "message": str(error)} for case, error in faults.items()]
    write_csv(folder / "pairs.csv", [*rows, *failed_rows], (*rows[0], "message"))
    write_follow_page(
        folder / "follow.html",
        changes,
        {case: names[case] for case in followed},
        [card for one in followed.values() for card in one.cards],
        rule,
        point,
        joint_unit({one.pair.after.geometry.size_unit for one in followed.values()}),
        {case: one.row["registered"] for case, one in followed.items()},
    )
    return FollowOutcome(
        changes=tuple(changes),
        n_pairs=len(followed),
        output=folder,
        n_failed=n_unpredicted + len(faults),
        has_images=all(visit.image is not None for pair in pairs.values() for visit in pair),
    )


@dataclass(frozen=True, eq=False)
class FollowedPair:
    """The comparison of two visits: its changes, row of pairs.csv, pictures and score."""

    pair: VisitPair
    changes: Sequence[LesionChange]
    row: Mapping[str, Any]
    cards: Sequence[tuple[LesionChange, Card]]
    score: CaseResult | None


def _follow_pair(
    cfg: FollowConfig,
    files: FilePair,
    point: OperatingPoint | None,
    name: str,
    mask: Path | None,
) -> FollowedPair:
    """Compare the visits of a pair.

    Args:
        cfg: the settings.
        files: the earlier and the later visit.
        point: the operating point of changes; None accepts all.
        name: the name of the pair on the page.
        mask: a mask of its new lesions, to score against; None for no score.
    """
    if cfg.dicom_output:
        _check_report(files[1], Path(cfg.output))
    rule = ChangeRule(cfg.overlap, cfg.confidence)
    pair, alignment = open_pair(files, rule, cfg.register_)
    least = 0.0 if point is None else point.score
    changes = [
        change if change.score is None else replace(change, accepted=change.score >= least)
        for change in pair.changes
    ]
    scans = [visit.image for visit in files if visit.image is not None]
    cards = draw_changes(pair, changes, name, scans) if len(scans) == 2 else []
    score = None
    if mask is not None:
        score = _score(pair, read_mask(mask), point, files[1].group or files[1].case)
    return FollowedPair(pair, changes, _row(files, changes, alignment), cards, score)


def _timelines(cfg: FollowConfig, progress: Advance | None) -> tuple[list[list[VisitFiles]], int]:
    """Return the visits of each patient in order, and how many could not be predicted."""
    if cfg.before is not None and cfg.after is not None:
        before = Path(cfg.before)
        after = Path(cfg.after)
        return visits_of_folders(before, after, cfg.before_images, cfg.after_images), 0
    # as the settings have it: visits with either a bundle or predictions
    table = Path(str(cfg.visits))
    patients = order_visits(read_scan_list(table), table)
    predictions = Path(cfg.predictions or Path(cfg.output) / "predictions")
    n_failed = 0
    if cfg.bundle is not None:
        from lesionseg.pipeline.predict import predict  # here: masks alone need no network

        predicted = PredictConfig.of(
            bundle=cfg.bundle,
            input=cfg.visits,
            output=predictions,
            operating_point=cfg.operating_point,
        )
        for row in predict(predicted, progress=progress).rows:
            if row.status == "failed":
                n_failed += 1
                _log.warning("Visit %s could not be predicted: %s", row.case, row.message)
    return visits_of_table(patients, predictions), n_failed


def _change_masks(cfg: FollowConfig, pairs: Mapping[str, FilePair]) -> Mapping[str, Path]:
    """Find the masks of new lesions. Warn of pairs without one.

    Raises:
        DatasetError: if no mask has the name of a pair.
    """
    if cfg.reference is None:
        return {}
    masks = find_masks(Path(cfg.reference))
    missing = [case for case in pairs if case not in masks]
    if len(missing) == len(pairs):
        named = f"no reference of change has the name of a pair, such as {missing[0]}"
        raise DatasetError(f"{cfg.reference}: {named}.")
    if missing:
        _log.warning("These have no reference of change: %s", ", ".join(missing))
    return masks


def _check_labels(changes: Sequence[LesionChange]) -> None:
    """Raise `ContentError` if the visits have no label in common."""
    first = {c.label for c in changes if c.lesion_before}
    second = {c.label for c in changes if c.lesion_after}
    if first and second and not first & second:
        raise ContentError(
            f"The visits have different labels: before {sorted(first)}, after {sorted(second)}. "
            "Write both with the same values."
        )


def _write_change_scores(
    cfg: FollowConfig, followed: Iterable[FollowedPair], point: OperatingPoint | None
) -> None:
    """Write the scores of new lesions, and remove those of an earlier run."""
    folder = Path(cfg.output)
    (folder / SCORES_FILE).unlink(missing_ok=True)
    results = [one.score for one in followed if one.score is not None]
    if not results:
        return
    settings = SummarySettings(
        evaluated_on=UNKNOWN_ROLE,
        operating_point=point,
        replicates=cfg.replicates,
        seed=cfg.seed,
        provenance={"lesionseg": __version__, "scored": "new lesions between two visits"},
    )
    write_scores(folder, results, summarise(results, find_preset("lesionseg"), settings))


def _check_report(later: VisitFiles, folder: Path) -> None:
    """Make sure that a report of the later visit belongs to its patient and replaces no other's.

    Raises `DatasetError` if the prediction is of another DICOM series than the scan,
    `ConflictError` if `folder` has predictions of the case, or a report of another study.
    """
    if later.image is None or not is_dicom_image(later.image):
        return
    facts = describe_dicom(later.image)
    candidates = later.prediction.candidates
    source = None if candidates is None else read_source(candidates)
    if source is not None and source.series_uid not in ("", facts.series_uid):
        raise DatasetError(
            f"the prediction is of series {source.series_uid}, but the scan {later.image.name} is "
            f"series {facts.series_uid}. Name the images that were predicted."
        )
    if (folder / f"{later.case}{CANDIDATES}").is_file():
        raise ConflictError(
            f"output={folder} holds predictions of {later.case}, whose report would be replaced. "
            "Name another output, or give dicom_output=false."
        )
    report = folder / f"{later.case}{REPORT}"
    if report.is_file() and text(read_header(report), "StudyInstanceUID") != facts.study_uid:
        raise ConflictError(
            f"output={folder} holds a report of another study under this name, {report.name}. Name "
            "another output."
        )


def stable_point(
    cfg: FollowConfig, pairs: Mapping[str, FilePair], rule: ChangeRule
) -> OperatingPoint:
    """The score that leaves the stated rate of new lesions in pairs known to be stable."""
    stable = {cfg.stable} if isinstance(cfg.stable, str) else {*(cfg.stable or ())}
    if stable - {*pairs} or not stable:
        unknown = ", ".join(sorted(stable - {*pairs}))
        raise ConfigError(f"stable names no pair: {unknown or 'no case'}.")
    opened = (open_pair(pairs[case], rule, cfg.register_)[0] for case in sorted(stable))
    groups = (pairs[case][1].group or case for case in sorted(stable))
    results = [_score(pair, None, None, group) for pair, group in zip(opened, groups, strict=True)]
    point = choose(results, Aim("fp_per_case", cfg.false_new_per_pair), quiet=True)
    scores = [c.score or 0.0 for result in results for c in result.candidates]
    # below all of them, all stay within the rate
    return replace(point, score=0.0) if point.score <= min(scores, default=1.0) else point


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
    for folder, of_visit in zip((before_images, after_images), scans, strict=True):
        without = sorted(first & second - of_visit.keys())
        if folder is not None and without:
            there = ", ".join(list(of_visit)[:3])
            text = "%s has no scan called like these cases (it has %s): %s"
            _log.warning(text, folder, there, ", ".join(without))
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


# --- both visits on one grid ---------------------------------------------------------------------


def open_pair(files: FilePair, rule: ChangeRule, register: str) -> tuple[VisitPair, Any]:
    """Both visits, compared, and the alignment of their scans; None where headers are trusted.

    `register`: see conf/follow.yaml. Raises `GeometryError` for a registration that is poor and
    grids that share no space, `ContentError` for boxes alone.
    """
    earlier, later = files
    before, after = _read(earlier.prediction), _read(later.prediction)
    one_grid = before.geometry.matches(after.geometry)
    alignment = None
    if register == "rigid" or (register == "auto" and not one_grid and earlier.image):
        if earlier.image is None or later.image is None:
            raise DatasetError(
                f"Case {later.case} has no scan to register with. Give before_images= and "
                "after_images=, named by case, or register=headers."
            )
        alignment = register_rigid(read_volume(later.image), read_volume(earlier.image))
        if alignment.foreground_dice < MIN_FOREGROUND_DICE:
            raise GeometryError(
                f"Case {later.case}: the registration is poor (Dice of foregrounds "
                f"{alignment.foreground_dice:.2f}, not {MIN_FOREGROUND_DICE}). Register the scans "
                "with another program and give register=headers."
            )
    elif not one_grid:
        _log.info("%s: the two grids differ; the files' own positions are used.", later.case)
    matrix = None if alignment is None else alignment.matrix
    return compare_visits(later.case, before, after, rule, matrix), alignment


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


def _score(
    pair: VisitPair, reference: Reference | None, point: OperatingPoint | None, group: str
) -> CaseResult:
    """New lesions of the patient `group` against a reference; None: a pair without new ones."""
    new, role = pair.new_lesions(), "unknown" if reference else "stable"
    marked = reference or Reference(new.geometry, np.zeros(new.geometry.shape, dtype=np.uint8))
    preset = find_preset("lesionseg")
    return match_case(marked, new, preset, case=new.case, group=group, role=role).result(point)


def _row(files: FilePair, changes: Sequence[LesionChange], alignment: Any) -> dict[str, Any]:
    states, (earlier, later) = Counter(c.state for c in changes), files
    is_flat = bool(changes) and all(
        c.volume_before_ml is c.volume_after_ml is None for c in changes
    )
    return {
        "case": later.case,
        **{state: states[state] for state in STATES},
        "new_accepted": sum(c.state == "new" and c.accepted for c in changes),
        "volume_before_ml": None if is_flat else sum(c.volume_before_ml or 0.0 for c in changes),
        "volume_after_ml": None if is_flat else sum(c.volume_after_ml or 0.0 for c in changes),
        "registered": "rigid" if alignment else "headers",
        "mutual_information": alignment and alignment.mutual_information,
        "foreground_dice": alignment and alignment.foreground_dice,
        "earlier": earlier.case if earlier.case != later.case else "",
        "group": later.group,
    }
