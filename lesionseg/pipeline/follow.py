"""`follow`: find how each lesion changed between two visits of a patient."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lesionseg.config import FollowConfig, PredictConfig
from lesionseg.core import (
    UNKNOWN_ROLE,
    CaseFiles,
    Finding,
    OperatingPoint,
    Prediction,
    Reference,
    joint_unit,
)
from lesionseg.core.finding import LISTED, finding_of
from lesionseg.data.registration import MIN_FOREGROUND_DICE, Alignment, register_rigid
from lesionseg.errors import (
    CASE_ERRORS,
    SOME_FAILED,
    ConfigError,
    ConflictError,
    ContentError,
    DatasetError,
    GeometryError,
    count,
    join_names,
)
from lesionseg.evaluation import (
    Aim,
    CaseRows,
    SummarySettings,
    Tables,
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
    count_states,
    order_visits,
    write_changes,
)
from lesionseg.evaluation.scores import SCORES_FILE, write_scores
from lesionseg.extra import find_extra, has_extra
from lesionseg.io.cases import read_finite
from lesionseg.io.grids import GridPair
from lesionseg.io.layouts.manifest import read_scan_list
from lesionseg.io.masks import read_mask
from lesionseg.io.results.case import PredictionFiles
from lesionseg.io.results.index import find_masks, find_predictions
from lesionseg.io.results.row import CaseRow
from lesionseg.io.scans import find_scans
from lesionseg.io.text import write_csv
from lesionseg.io.volumes import is_dicom_image, read_geometry
from lesionseg.pipeline.log import Advance, align_columns, bar, command_line
from lesionseg.pipeline.outcome import Outcome
from lesionseg.pipeline.output_lock import hold_lock
from lesionseg.reporting.follow_page import (
    draw_changes,
    lowest_score,
    write_change_report,
    write_follow_page,
)
from lesionseg.reporting.pictures import Card
from lesionseg.version import __version__

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VisitFiles:
    """A patient at one visit.

    Attributes:
        case: the case id of the visit.
        prediction: the files of the prediction.
        image: the scan; None if it was not given.
        group: the id of the patient; empty if the patient has the id of the visit.
        visit: its date or number, as the table of visits states it; empty without a table.
    """

    case: str
    prediction: PredictionFiles
    image: Path | None = None
    group: str = ""
    visit: str = ""

    @property
    def patient(self) -> str:
        """The id of the patient."""
        return self.group or self.case


# errors of the files of a pair; errors of settings, packages and the output concern all pairs
_FAULTS_OF_PAIR = (*CASE_ERRORS, ConflictError)
FilePair = tuple[VisitFiles, VisitFiles]  # the earlier and the later visit


@dataclass(frozen=True)
class FollowOutcome(Outcome):
    """The changes of all lesions, as in `output/changes.csv`.

    Attributes:
        changes: one change per lesion, or per group of lesions that merged or split.
        n_pairs: number of compared pairs of visits.
        output: the output folder.
        failed: the visits that could not be predicted and the pairs that could not be compared.
        has_images: scans of both visits were given for every pair.
    """

    changes: tuple[LesionChange, ...]
    n_pairs: int
    output: Path
    failed: tuple[Finding, ...] = ()
    has_images: bool = False

    @property
    def exit_status(self) -> int:
        """3 if a visit could not be predicted or a pair could not be compared, otherwise 0."""
        return SOME_FAILED if self.failed else 0

    def record(self) -> dict[str, Any]:
        """Return folder, page, number of compared pairs, `failed`, and changes per state."""
        return {
            "output": self.output,
            "page": self.output / "follow.html",
            "n_pairs": self.n_pairs,
            "failed": [asdict(finding) for finding in self.failed],
            "states": count_states(self.changes),
        }

    def summary(self) -> list[str]:
        """Return a table of the lesions by state, the files, and advice.

        The table has a row per state: all lesions, and accepted changes in total and per pair. A
        stable lesion is no change.
        """
        total = count_states(self.changes)
        accepted = count_states(c for c in self.changes if c.accepted)
        rows = []
        for state in STATES:
            sure = "–"
            per_pair = "–"
            if state != "stable":  # a stable lesion is no change, so it cannot be a sure one
                sure = str(accepted[state])
                per_pair = f"{accepted[state] / self.n_pairs:.2f}"
            rows.append((state, str(total[state]), sure, per_pair))
        lines = align_columns([("", "lesions", "sure changes", "per pair"), *rows])
        table = f"Wrote:   {self.output / 'changes.csv'} ({count(self.n_pairs, 'pair')})"
        lines += [table, f"Open:    {self.output / 'follow.html'}"]
        if self.failed:
            lines.append(f"Failed:  {len(self.failed)}; pairs.csv has the reasons.")
        if not self.has_scores:
            if not self.has_images:
                lines.append("To add pictures, give before_images= and after_images=.")
            lines.append("To add scores, give reference=, a folder of masks of the new lesions.")
        return lines

    @property
    def has_scores(self) -> bool:
        """True if the output folder has scores of new lesions."""
        return (self.output / SCORES_FILE).is_file()

    @property
    def next(self) -> str | None:
        """The command that writes the report on the scores; None without scores."""
        if not self.has_scores:
            return None
        return command_line("report", {"scores": self.output, "output": "REPORT"})


@hold_lock("output", "follow")
def follow(cfg: FollowConfig, *, progress: Advance | None = None) -> FollowOutcome:
    """Compare the visits of each patient. Write changes.csv, pairs.csv and follow.html.

    The visits are the cases of two folders, or the rows of a table, in which each visit is compared
    with the one before. With a `bundle`, the scans of the table are predicted first, into
    `output/predictions`. A pair that cannot be compared, or a visit that cannot be predicted, is
    listed in a warning and in pairs.csv. With a `reference`, the scores of new lesions are written,
    with `dicom_output` DICOM reports. The scores.json of an earlier run is removed.

    Args:
        cfg: see conf/follow.yaml.
        progress: called with case, number done and total, instead of a bar.

    Returns:
        The changes of all lesions.

    Raises:
        ConfigError: if settings contradict each other, or a package is missing.
        DatasetError: if no pair can be compared, or no mask of `reference` has the name of a pair.
        LesionsegError: if there is only one pair and it cannot be compared.
        BundleError: if the bundle cannot be used.
        OutputError: if the scores of a training would be replaced.
    """
    rule = ChangeRule(cfg.overlap, cfg.confidence)
    if cfg.operating_point is not None and cfg.bundle is None:
        raise ConfigError(
            "operating_point= needs bundle=, because it applies to new predictions. Add bundle=, "
            "or leave operating_point= out."
        )
    timelines, unpredicted = _timelines(cfg, progress)
    # each visit with the one before, by the id of the later one
    pairs = {later.case: (first, later) for t in timelines for first, later in pairwise(t)}
    masks = _change_masks(cfg, pairs)
    images = [later.image for _, later in pairs.values() if later.image is not None]
    if cfg.dicom_output and any(map(is_dicom_image, images)):
        _check_reports(images)  # a missing package is reported before a file is read
    point = None
    if cfg.stable is not None:
        left_out = set(unpredicted)
        if unpredicted:  # a visit may have lost the visit that it would be compared with
            left_out |= {visit.case for visits in timelines for visit in visits} - pairs.keys()
        point = stable_point(cfg, pairs, rule, left_out)
    numbers = enumerate([*pairs, *unpredicted], start=1)
    names = {case: case if cfg.identifiers else f"case {number}" for number, case in numbers}
    followed: dict[str, FollowedPair] = {}
    faults: dict[str, Exception] = {}
    with bar("Following", progress) as advance:
        for done, (case, files) in enumerate(pairs.items(), start=1):
            try:
                followed[case] = _follow_pair(cfg, files, rule, point, names[case], masks.get(case))
            except _FAULTS_OF_PAIR as error:
                faults[case] = error
            advance(case, done, len(pairs))
    if not followed:
        raise _nothing_followed(faults)
    for case, fault in faults.items():
        _log.warning("Not followed, %s: %s", case, fault)
    _write_change_scores(cfg, pairs, followed, point)
    failed = [finding_of(error, case) for case, error in faults.items()]
    for case, why in unpredicted.items():
        message = f"The visit could not be predicted: {why}"
        failed.append(Finding(LISTED, message, case, "error"))
    folder = Path(cfg.output)
    changes = tuple(change for pair in followed.values() for change in pair.changes)
    write_changes(folder / "changes.csv", changes)
    rows = [pair.row for pair in followed.values()]
    failed_rows = [{"case": one.case, "message": one.message} for one in failed]
    write_csv(folder / "pairs.csv", [*rows, *failed_rows], tuple(rows[0]))
    write_follow_page(
        folder / "follow.html",
        changes,
        names=names,
        cards=[card for pair in followed.values() for card in pair.cards],
        rule=rule,
        point=point,
        unit=joint_unit({pair.unit for pair in followed.values()}),
        alignments={case: pair.row["registered"] for case, pair in followed.items()},
    )
    return FollowOutcome(
        changes=changes,
        n_pairs=len(followed),
        output=folder,
        failed=tuple(failed),
        has_images=all(visit.image is not None for files in pairs.values() for visit in files),
    )


@dataclass(frozen=True, eq=False)
class FollowedPair:
    """The comparison of two visits: its changes, row of pairs.csv, pictures and score.

    `unit` is the unit of lesion sizes. The volumes of the visits are not kept, because all pairs
    together may not fit into memory.
    """

    unit: str
    changes: Sequence[LesionChange]
    row: Mapping[str, Any]
    cards: Sequence[tuple[LesionChange, Card]]
    score: CaseRows | None


def _nothing_followed(faults: Mapping[str, Exception]) -> Exception:
    """Return the error if no pair can be compared: the only one, or a `DatasetError` on all."""
    if len(faults) == 1:
        return next(iter(faults.values()))
    messages = "\n  ".join(str(error) for error in faults.values())
    return DatasetError(f"No pair can be followed:\n  {messages}")


def _follow_pair(
    cfg: FollowConfig,
    files: FilePair,
    rule: ChangeRule,
    point: OperatingPoint | None,
    name: str,
    mask: Path | None,
) -> FollowedPair:
    """Compare the visits of a pair. Write its DICOM report if the settings ask for it.

    Changes with a score below that of `point` are not accepted. Without both scans, there are no
    pictures, and without the later one no DICOM report.

    Args:
        cfg: the settings.
        files: the earlier and the later visit.
        rule: the rule by which lesions are compared.
        point: the operating point of changes; None accepts all.
        name: the name of the pair on the page.
        mask: a mask of its new lesions, to score against; None for no score.
    """
    report = _plan_report(files[1], Path(cfg.output)) if cfg.dicom_output else None
    visits, alignment = open_pair(files, rule, cfg)
    lowest = lowest_score(point)
    changes = [
        change
        if change.score is None or change.score >= lowest
        else replace(change, accepted=False)
        for change in visits.changes
    ]
    scans = [visit.image for visit in files if visit.image is not None]
    cards = draw_changes(visits, changes, name, scans) if len(scans) == 2 else []
    score = None
    if mask is not None:
        score = _score(visits, read_mask(mask), point, files[1].patient)
    message = "" if report is None else _write_report(report, visits, changes, point)
    row = _row(files, changes, alignment, message)
    return FollowedPair(visits.after.geometry.size_unit, changes, row, cards, score)


def _check_reports(images: Sequence[Path]) -> None:
    """Raise `ConfigError` if a package that writes reports is missing. Warn without the extra."""
    try:
        find_extra("pacs").ChangeReport.check(images)
    except ConfigError as missing:
        if has_extra("pacs"):
            raise
        _log.warning("Scans in DICOM get no report. %s", missing)


def _plan_report(visit: VisitFiles, folder: Path) -> Any | None:
    """Return the report of a later visit, and remove that of an earlier run from the folder.

    Return None if the visit has no scan, or none in DICOM, or without the extra `pacs`.
    """
    if visit.image is None or not has_extra("pacs"):
        return None
    return find_extra("pacs").ChangeReport.plan(visit.image, visit.prediction, folder)


def _timelines(
    cfg: FollowConfig, progress: Advance | None
) -> tuple[list[list[VisitFiles]], dict[str, str]]:
    """Return the visits of each patient in order, and the reasons of failed predictions by case.

    The visits are those of the folders or of the table in the settings. With a bundle, the scans of
    the table are predicted.
    """
    if cfg.before is not None and cfg.after is not None:
        before = Path(cfg.before)
        after = Path(cfg.after)
        return visits_of_folders(before, after, cfg.before_images, cfg.after_images), {}
    # the settings ensure a table of visits with either a bundle or predictions
    table = Path(str(cfg.visits))
    patients = order_visits(read_scan_list(table), table)
    predictions = Path(cfg.predictions or Path(cfg.output) / "predictions")
    unpredicted: dict[str, str] = {}
    if cfg.bundle is not None:
        unpredicted = _predict_visits(cfg, predictions, progress)
    timelines = visits_of_table(patients, predictions, unpredicted)
    orders = (f"{one[0].patient}: {', '.join(v.visit for v in one)}" for one in timelines if one)
    _log.info("Order of the visits: %s", join_names(orders))
    return timelines, unpredicted


def _predict_visits(cfg: FollowConfig, folder: Path, progress: Advance | None) -> dict[str, str]:
    """Predict the visits of the table into `folder`. Return why visits failed, by case.

    Each of them is named in a warning.
    """
    # imported here, because masks need no network
    from lesionseg.pipeline.predict import predict

    predicted = PredictConfig.of(
        bundle=cfg.bundle,
        input=cfg.visits,
        output=folder,
        inference=cfg.inference,
        device=cfg.device,
        operating_point=cfg.operating_point,
        dicom_output=cfg.dicom_output,
        trust=cfg.trust,
    )
    unpredicted: dict[str, str] = {}
    for row in predict(predicted, progress=progress).rows:
        if row.is_done:
            continue
        why = row.message
        if row.key == CaseRow.CONFLICT:  # its message names a setting that `follow` lacks
            why = f"{folder} contains other results of this name. Name another output."
        unpredicted[row.case] = why
        _log.warning("Visit %s could not be predicted: %s", row.case, why)
    return unpredicted


def _change_masks(cfg: FollowConfig, pairs: Mapping[str, FilePair]) -> Mapping[str, Path]:
    """Find the masks of new lesions by case. Warn of pairs without one.

    Return an empty dictionary if no folder of them is given.

    Raises:
        DatasetError: if no mask has the name of a pair.
    """
    if cfg.reference is None:
        return {}
    masks = find_masks(Path(cfg.reference))
    missing = [case for case in pairs if case not in masks]
    if len(missing) == len(pairs):
        raise DatasetError(
            f"{cfg.reference}: no reference of change has the name of a pair, such as "
            f"{missing[0]}. Name the masks after the later visits."
        )
    if missing:
        _log.warning("These pairs have no reference of change: %s", ", ".join(missing))
    return masks


def _write_change_scores(
    cfg: FollowConfig,
    pairs: Mapping[str, FilePair],
    followed: Mapping[str, FollowedPair],
    point: OperatingPoint | None,
) -> None:
    """Remove scores.json of an earlier run, and write the scores of new lesions if there are any.

    `pairs` are the files of each pair, and `followed` are the comparisons, by case. A warning says
    if patients who are scored have chosen the operating point.
    """
    folder = Path(cfg.output)
    (folder / SCORES_FILE).unlink(missing_ok=True)
    results = [one.score for one in followed.values() if one.score is not None]
    if not results:
        return
    stable_patients = {pairs[case][1].patient for case in followed if case in (cfg.stable or ())}
    tables = Tables.of(results)
    shared = tables.cases["case"][tables.cases["group"].isin(stable_patients)].tolist()
    if point is not None and shared:
        _log.warning(
            "stable= names pairs of patients who are scored (%s), so the operating point is chosen "
            "on them and the scores are too optimistic. Name stable pairs of other patients.",
            join_names(shared),
        )
        point = replace(point, chosen_on=UNKNOWN_ROLE)  # the role of the scored pairs
    settings = SummarySettings(
        evaluated_on=UNKNOWN_ROLE,
        operating_point=point,
        replicates=cfg.replicates,
        seed=cfg.seed,
        provenance={"lesionseg": __version__, "scored": "new lesions between two visits"},
    )
    write_scores(folder, tables, summarise(tables, find_preset("lesionseg"), settings))


def _write_report(
    report: Any,
    visits: VisitPair,
    changes: Sequence[LesionChange],
    point: OperatingPoint | None,
) -> str:
    """Write a DICOM report. Return, and warn, why the scan does not allow one. Otherwise return "".

    `point` is the operating point of changes; None accepts all.

    Raises:
        ResourceError: if the scan has got, lost or changed a file since the report was planned.
        LesionsegError: if the report cannot be written.
    """
    try:
        write_change_report(report, visits.after, changes, point)
    except (ContentError, GeometryError) as error:
        _log.warning("%s has no DICOM report: %s", visits.after.case, error)
        return f"No DICOM report: {error}"
    return ""


def stable_point(
    cfg: FollowConfig,
    pairs: Mapping[str, FilePair],
    rule: ChangeRule,
    left_out: Collection[str],
) -> OperatingPoint:
    """Choose the score with at most `false_new_per_pair` new lesions expected per stable pair.

    `cfg.stable` names pairs without a new lesion, so each new candidate in them is false. If all of
    these candidates are within the rate, the score is 0. Stable pairs that cannot be compared are
    listed in a warning.

    Args:
        cfg: the settings.
        pairs: the files of each pair.
        rule: the rule by which lesions are compared.
        left_out: visits that are not compared, because their prediction or an earlier one failed.

    Raises:
        ConfigError: if `cfg.stable` names no case, or one that is neither a pair nor left out.
        DatasetError: if no stable pair can be compared.
    """
    stable = set(cfg.stable or ())
    unknown = sorted(stable - pairs.keys() - set(left_out))
    if unknown or not stable:
        wrong = f"these are not pairs: {', '.join(unknown)}" if unknown else "no case was given"
        raise ConfigError(f"stable=: {wrong}. Name the later visits of stable pairs.")
    results = []
    missing = DatasetError("it or its earlier visit has no prediction")
    faults: dict[str, Exception] = dict.fromkeys(stable - pairs.keys(), missing)
    for case in sorted(stable & pairs.keys()):
        try:
            visits, _ = open_pair(pairs[case], rule, cfg)
            results.append(_score(visits, None, None, pairs[case][1].patient))
        except _FAULTS_OF_PAIR as error:
            faults[case] = error
    lines = "\n  ".join(f"{case}: {why}" for case, why in sorted(faults.items()))
    if not results:
        raise DatasetError(f"stable=: no stable pair can be compared:\n  {lines}")
    if faults:
        _log.warning("These stable pairs do not choose the operating point:\n  %s", lines)
    tables = Tables.of(results)
    point = choose(tables, Aim("fp_per_case", cfg.false_new_per_pair), quiet=True)
    if point.score <= min(tables.candidates["score"], default=1.0):
        return replace(point, score=0.0)
    return point


# --- which visits belong together ----------------------------------------------------------------


def visits_of_folders(
    before: Path, after: Path, before_images: str | None, after_images: str | None
) -> list[list[VisitFiles]]:
    """Return both visits of each case that both folders contain. Warn of cases with one visit.

    `before_images` and `after_images` are the folders of their scans, or both are None.

    Raises:
        ConfigError: if only one folder of images is given.
        DatasetError: if the folders have no case in common.
    """
    if (before_images is None) != (after_images is None):
        raise ConfigError("Give both before_images= and after_images=, or neither.")
    first = find_predictions(before)
    second = find_predictions(after)
    in_both = sorted(first.keys() & second.keys())
    in_one = sorted(first.keys() ^ second.keys())
    if not in_both:
        raise DatasetError(
            f"{before} (with {', '.join(sorted(first)[:3])}) and {after} (with "
            f"{', '.join(sorted(second)[:3])}) have no case in common. Give the files of a "
            "patient the same name in both."
        )
    if in_one:
        _log.warning("These cases have one visit only: %s", ", ".join(in_one))
    sides = (
        (first, _scans_of_cases(before_images, in_both)),
        (second, _scans_of_cases(after_images, in_both)),
    )
    return [
        [VisitFiles(case, found[case], scans.get(case)) for found, scans in sides]
        for case in in_both
    ]


def _scans_of_cases(folder: str | None, cases: Sequence[str]) -> dict[str, Path]:
    """Return the scans in a folder by case. Warn of `cases` without a scan.

    Return an empty dictionary if no folder is given.
    """
    if folder is None:
        return {}
    scans = {files.case: files.images[0] for files in find_scans(Path(folder), 1).cases()}
    without = [case for case in cases if case not in scans]
    if without:
        _log.warning(
            "%s has no scan with the name of these cases (it has %s): %s",
            folder,
            ", ".join(list(scans)[:3]),
            ", ".join(without),
        )
    return scans


def visits_of_table(
    patients: Sequence[Sequence[CaseFiles]], folder: Path, unpredicted: Mapping[str, str]
) -> list[list[VisitFiles]]:
    """Return the visits of each patient that have predictions in `folder`, in order.

    Visits that could not be predicted are left out, because files in `folder` with their names
    are results of an earlier run. `unpredicted` states the reason for each of them. Visits that
    cannot be compared with another one are listed in a warning.

    Raises:
        DatasetError: if no patient has two such visits.
    """
    found = find_predictions(folder) if len(unpredicted) < sum(map(len, patients)) else {}
    timelines: list[list[VisitFiles]] = []
    missing: list[str] = []
    for visits in patients:
        timeline = [
            VisitFiles(
                files.case,
                found[files.case],
                files.images[0],
                group=files.group,
                visit=files.columns.get("visit", ""),
            )
            for files in visits
            if files.case in found and files.case not in unpredicted
        ]
        timelines.append(timeline)
        followed = {visit.case for visit in timeline} if len(timeline) > 1 else set()
        missing += [files.case for files in visits if files.case not in followed]
    if all(len(timeline) < 2 for timeline in timelines):
        if unpredicted:
            reasons = "\n  ".join(f"{case}: {why}" for case, why in unpredicted.items())
            raise DatasetError(
                f"No pair can be followed, because visits could not be predicted:\n  {reasons}"
            )
        raise DatasetError(
            f"{folder}: no patient has predictions of two visits. Predict the missing visits, or "
            "add bundle= to predict all of them."
        )
    if missing:
        _log.warning(
            "These visits have no prediction, or their patient has no other visit: %s",
            ", ".join(missing),
        )
    return timelines


# --- both visits on one grid ---------------------------------------------------------------------


def open_pair(
    files: FilePair, rule: ChangeRule, cfg: FollowConfig
) -> tuple[VisitPair, Alignment | None]:
    """Read and compare two visits. Return the comparison and the alignment of the scans.

    The alignment is None if the scans are not registered.

    Args:
        files: the earlier and the later visit.
        rule: the rule by which lesions are compared.
        cfg: the settings. `register=rigid` registers the scans, `headers` uses the positions in the
            files. `auto` registers the scans if they are given and the predictions are not on one
            grid. `merge_labels=true` merges all labels into one.

    Raises:
        GeometryError: if the registration is poor, the grids do not overlap, or a header was lost.
        ContentError: if a prediction has boxes without masks, a label has two names, or a gone
            and a new lesion of different labels are at the same place.
        DatasetError: if a scan to register is missing.
        ReadError: if a file is damaged.
    """
    earlier, later = files
    before = _read(earlier, merge_labels=cfg.merge_labels)
    after = _read(later, merge_labels=cfg.merge_labels)
    _check_names(later.case, before, after)
    first = _mask_path(earlier)
    second = _mask_path(later)
    GridPair(first, before.geometry, second, after.geometry).check_headers()
    is_one_grid = before.geometry.matches(after.geometry)
    needs_alignment = cfg.register_ == "rigid"
    if cfg.register_ == "auto":  # scans on one grid count as registered
        needs_alignment = not is_one_grid and earlier.image is not None
    alignment = None
    if needs_alignment:
        if earlier.image is None or later.image is None:
            raise DatasetError(
                f"Case {later.case} has no scan to register with. Give before_images= and "
                "after_images=, named by case, or register=headers."
            )
        alignment = register_rigid(read_finite(later.image), read_finite(earlier.image))
        if alignment.foreground_dice < MIN_FOREGROUND_DICE:
            raise GeometryError(
                f"Case {later.case}: the registration is poor (Dice of foregrounds "
                f"{alignment.foreground_dice:.2f}, not {MIN_FOREGROUND_DICE}). Register the scans "
                "with another program and give register=headers."
            )
    elif not is_one_grid:
        _log.info("%s: the two grids differ; the files' own positions are used.", later.case)
    matrix = None if alignment is None else alignment.matrix
    visits = compare_visits(later.case, before, after, rule, matrix)
    _check_values(visits, rule)
    return visits, alignment


def _read(visit: VisitFiles, *, merge_labels: bool) -> Prediction:
    """Read the prediction of a visit without the rejected candidates that have no mask.

    `merge_labels` merges all labels into one. The masks of radiographs are pictures, so their pixel
    size is that of the scan.

    Raises:
        ContentError: if the prediction or an accepted candidate has no mask.
        GeometryError: if the mask has lost the header of its scan.
    """
    files = visit.prediction
    refusal = ContentError(
        f"{files.candidates or visit.case}: boxes without masks cannot be compared by size. "
        "Give masks; model=retina_unet writes them."
    )
    if files.mask is None and files.instances is None:
        raise refusal  # before `read`, which needs a grid
    geometry = None
    if visit.image is not None:
        own = read_geometry(visit.image)
        geometry = own if own.dims == 2 else None
    prediction = files.read(geometry=geometry, binary=merge_labels)
    if merge_labels:
        prediction = prediction.merge_labels()
    if visit.image is not None:
        grids = GridPair(_mask_path(visit), prediction.geometry, visit.image, own)
        grids.check_header()
        grids.check_spacing()
    lacks_masks = any(c.accepted and not c.has_mask for c in prediction.candidates)
    if lacks_masks or prediction.instances is None:
        raise refusal
    return replace(prediction, candidates=tuple(c for c in prediction.candidates if c.has_mask))


def _mask_path(visit: VisitFiles) -> str:
    """Return the path of a visit's mask, for messages."""
    return str(visit.prediction.mask or visit.prediction.instances)


def _check_names(case: str, before: Prediction, after: Prediction) -> None:
    """Raise `ContentError` if the visits give a label different names.

    Labels are compared by number. Models may number the same labels differently. If both visits
    have a single label, its name does not matter.
    """
    is_single = len(before.labels) == len(after.labels) == 1
    for value in sorted(before.labels.keys() & after.labels.keys()):
        name = before.labels[value]
        other = after.labels[value]
        if other.casefold() != name.casefold() and not is_single:
            raise ContentError(
                f"Case {case}: label {value} is {name!r} in the earlier visit and {other!r} in the "
                "later one. Predict both visits with the same model."
            )


def _check_values(visits: VisitPair, rule: ChangeRule) -> None:
    """Raise `ContentError` if a gone lesion and a new one are the same lesion with another label.

    Masks that number their lesions, or number their labels differently, have such lesions.
    """
    states = {(c.state, *c.lesion_before, *c.lesion_after) for c in visits.changes}
    gone, new = (
        visit.keep([c for c in visit.candidates if (state, c.id) in states])
        for visit, state in ((visits.before, "gone"), (visits.after, "new"))
    )
    pooled = compare_visits(new.case, gone.with_one_label(), new.with_one_label(), rule)
    if any(change.lesion_before and change.lesion_after for change in pooled.changes):
        first, second = (sorted({c.label for c in one.candidates}) for one in (gone, new))
        raise ContentError(
            f"Case {new.case}: lesions at the same place have different labels: before {first}, "
            f"after {second}. They would be gone and new. Write both masks with the same values, "
            "such as 1 for every lesion, or set merge_labels=true to treat all labels as one."
        )


def _score(
    visits: VisitPair, reference: Reference | None, point: OperatingPoint | None, group: str
) -> CaseRows:
    """Match the new lesions of a pair with a reference of true new lesions.

    If `reference` is None, the pair is stable, so all new lesions are false positives. `point`
    accepts candidates; None keeps those that are accepted. `group` is the patient.
    """
    new = visits.new_lesions()
    role = "unknown"
    if reference is None:
        role = "stable"
        reference = Reference(new.geometry, np.zeros(new.geometry.shape, dtype=np.uint8))
    preset = find_preset("lesionseg")
    match = match_case(reference, new, preset, case=new.case, group=group, role=role)
    return match.accept(point).rows()


def _row(
    files: FilePair, changes: Sequence[LesionChange], alignment: Alignment | None, message: str
) -> dict[str, Any]:
    """Return the row of a pair in pairs.csv. `message`: why it has no DICOM report, or ""."""
    earlier, later = files
    before = [c.volume_before_ml for c in changes if c.volume_before_ml is not None]
    after = [c.volume_after_ml for c in changes if c.volume_after_ml is not None]
    has_volumes = bool(before or after or not changes)  # lesions of 2-D images have none
    return {
        "case": later.case,
        **count_states(changes),
        "new_accepted": sum(c.state == "new" and c.accepted for c in changes),
        "volume_before_ml": sum(before, 0.0) if has_volumes else None,
        "volume_after_ml": sum(after, 0.0) if has_volumes else None,
        "registered": "rigid" if alignment else "headers",
        "mutual_information": None if alignment is None else alignment.mutual_information,
        "foreground_dice": None if alignment is None else alignment.foreground_dice,
        "earlier": earlier.case if earlier.case != later.case else "",
        "group": later.group,
        "earlier_visit": earlier.visit,
        "visit": later.visit,
        "message": message,
    }
