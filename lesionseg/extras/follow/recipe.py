"""`follow`: pairs.csv columns, exit status, stable pairs' threshold, scores of new lesions."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lesionseg.core import Finding, OperatingPoint, Reference
from lesionseg.errors import (
    CASE_ERRORS,
    SOME_FAILED,
    ConfigError,
    ConflictError,
    DatasetError,
    count,
    join_names,
)
from lesionseg.evaluation import (
    MatchedCase,
    OperatingPointAim,
    SummarySettings,
    Tables,
    choose,
    match_case,
    summarise,
    write_scores,
)
from lesionseg.extras.follow.changes import (
    STATES,
    ChangeRule,
    LesionChange,
    VisitPair,
    count_states,
    write_changes,
)
from lesionseg.extras.follow.dicom_report import find_reports, plan_report, write_change_report
from lesionseg.extras.follow.page import draw_changes, write_follow_page
from lesionseg.extras.follow.pairs import FollowedPair, PairReader
from lesionseg.extras.follow.registration import Alignment
from lesionseg.extras.follow.settings import FollowConfig
from lesionseg.extras.follow.visits import (
    FilePair,
    VisitFiles,
    order_visits,
    visits_of_folders,
    visits_of_table,
)
from lesionseg.io import find_predictions, read_mask, read_scan_list, write_csv
from lesionseg.pipeline import Outcome, bar, command_line, find_recipe, hold_lock
from lesionseg.version import __version__

_log = logging.getLogger(__name__)

Advance = Callable[[str, float, int], None]  # called with case, number done and total
SCORES_FILE = "scores.json"  # of `write_scores`
UNKNOWN_ROLE = "unknown"  # of the scored pairs
# errors of the files of a pair; errors of settings, packages and the output concern all pairs
_FAULTS_OF_PAIR = (*CASE_ERRORS, ConflictError)


@dataclass(frozen=True)
class FollowOutcome(Outcome):
    """The changes of all lesions, as in `output/changes.csv`.

    Attributes:
        changes: One change per lesion, or per group of lesions that merged or split.
        n_pairs: Number of compared pairs of visits.
        output: The output folder.
        failed: The visits that could not be predicted and the pairs that could not be compared.
        has_images: Scans of both visits were given for every pair.
    """

    changes: tuple[LesionChange, ...]
    n_pairs: int
    output: Path
    failed: tuple[Finding, ...] = ()
    has_images: bool = False

    @property
    def exit_status(self) -> int:
        """3 if a visit could not be predicted or two visits not be compared, otherwise 0."""
        return SOME_FAILED if self.failed else 0

    def record(self) -> dict[str, Any]:
        """Return the outcome as JSON values, for `--json`.

        The keys are the folder (`output`), the `page`, the number of compared pairs (`n_pairs`),
        `failed` with the reasons, and the number of changes per state (`states`).
        """
        return {
            "output": self.output,
            "page": self.output / "follow.html",
            "n_pairs": self.n_pairs,
            "failed": [asdict(finding) for finding in self.failed],
            "states": count_states(self.changes),
        }

    def summary(self) -> list[str]:
        """Return the lines for the terminal: a table of the lesions by state, files, and advice.

        The table has a row per state: the number of all lesions, and the number of accepted changes
        in total and per pair. A stable lesion is no change, so its row has dashes.
        """
        total = count_states(self.changes)
        accepted = count_states(c for c in self.changes if c.accepted)
        lines = [f"{'':8}  lesions  sure changes  per pair"]
        for state in STATES:
            sure = "–"
            per_pair = "–"
            if state != "stable":  # a stable lesion is no change, so it cannot be a sure one
                sure = str(accepted[state])
                per_pair = f"{accepted[state] / self.n_pairs:.2f}"
            lines.append(f"{state:8}  {total[state]:7}  {sure:>12}  {per_pair:>8}")
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

    - The visits are the cases of two folders, or the rows of a table, in which each visit is
      compared with the one before.
    - With a `bundle`, the scans of the table are predicted first, into `output/predictions`.
    - A pair that cannot be compared, or a visit that cannot be predicted, is named in a warning and
      in pairs.csv.
    - With a `reference`, the scores of new lesions are written. The scores.json of an earlier run
      is removed.
    - With `dicom_output`, DICOM reports are written.

    Args:
        cfg: See conf/follow.yaml.
        progress: Called with case, number done and total, instead of a bar.

    Returns:
        The changes of all lesions.

    Raises:
        ConfigError: If settings contradict each other, or a package is missing.
        DatasetError: If no pair can be compared, or no mask of `reference` has the name of a pair.
        LesionsegError: If there is only one pair and it cannot be compared.
        BundleError: If the bundle cannot be used.
        OutputError: If the scores of a training would be replaced.
    """
    folder = Path(cfg.output)
    rule = ChangeRule(cfg.overlap, cfg.confidence)
    reader = PairReader(rule, register=cfg.register_, merge_labels=cfg.merge_labels)
    if cfg.operating_point is not None and cfg.bundle is None:
        raise ConfigError(
            "operating_point= needs bundle=, because it applies to new predictions. Add bundle=, "
            "or leave operating_point= out."
        )
    # find the pairs of visits, their reference masks and reports
    timelines, unpredicted = _find_timelines(cfg, progress)
    # each visit with the one before, by the id of the later one
    pairs = {
        later.case: (earlier, later) for visits in timelines for earlier, later in pairwise(visits)
    }
    masks = {} if cfg.reference is None else _find_change_masks(Path(cfg.reference), pairs)
    reports = find_reports(later for _, later in pairs.values()) if cfg.dicom_output else None
    # choose the operating point of new lesions on pairs that are known to be stable
    point = None
    if cfg.stable is not None:
        left_out = set(unpredicted)
        if unpredicted:  # `pairs` lacks a visit whose earlier visit could not be predicted
            left_out |= {visit.case for visits in timelines for visit in visits} - pairs.keys()
        point = stable_point(cfg.stable, pairs, reader, left_out, cfg.false_new_per_pair)
    # the names of pairs on the page: ids, or pseudonyms
    numbered_cases = enumerate([*pairs, *unpredicted], start=1)
    names = {case: case if cfg.identifiers else f"case {number}" for number, case in numbered_cases}
    # compare the pairs one after the other
    followed: dict[str, FollowedPair] = {}
    errors: dict[str, Exception] = {}
    with bar("Following", progress) as advance:
        for n_done, (case, files) in enumerate(pairs.items(), start=1):
            try:
                report = plan_report(reports, files[1], folder)
                name = names[case]
                followed[case] = _follow_pair(files, reader, point, name, masks.get(case), report)
            except _FAULTS_OF_PAIR as error:
                errors[case] = error
            advance(case, n_done, len(pairs))
    if not followed:
        raise _nothing_followed(errors)
    for case, problem in errors.items():
        _log.warning("Not followed, %s: %s", case, problem)
    # score the new lesions, and write the tables and the page
    stable_patients = {pairs[case][1].patient for case in followed if case in (cfg.stable or ())}
    settings = SummarySettings(
        evaluated_on=UNKNOWN_ROLE,
        operating_point=point,
        replicates=cfg.replicates,
        seed=cfg.seed,
        provenance={"lesionseg": __version__, "scored": "new lesions between two visits"},
    )
    _write_change_scores(folder, followed.values(), stable_patients, settings)
    # visits that could not be predicted were logged, but are rows of pairs.csv, too
    for case, why in unpredicted.items():
        errors[case] = DatasetError(f"The visit could not be predicted: {why}")
    failed = [Finding.of(error, case) for case, error in errors.items()]
    changes = tuple(change for pair in followed.values() for change in pair.changes)
    write_changes(folder / "changes.csv", changes)
    rows = [pair.row for pair in followed.values()]
    failed_rows = [{"case": finding.case, "message": finding.message} for finding in failed]
    write_csv(folder / "pairs.csv", [*rows, *failed_rows], tuple(rows[0]))  # columns of a row
    write_follow_page(folder / "follow.html", followed, names=names, rule=rule, point=point)
    return FollowOutcome(
        changes=changes,
        n_pairs=len(followed),
        output=folder,
        failed=tuple(failed),
        has_images=all(visit.image is not None for files in pairs.values() for visit in files),
    )


def _nothing_followed(errors: Mapping[str, Exception]) -> Exception:
    """Return the error that `follow` raises if no pair could be compared.

    A single error is returned unchanged. Several errors are joined into the message of a
    `DatasetError`.
    """
    if len(errors) == 1:
        return next(iter(errors.values()))
    messages = "\n  ".join(map(str, errors.values()))
    return DatasetError(f"No pair can be followed:\n  {messages}")


def _follow_pair(
    files: FilePair,
    reader: PairReader,
    point: OperatingPoint | None,
    name: str,
    mask: Path | None,
    report: Any | None,
) -> FollowedPair:
    """Compare two visits. Score their new lesions, draw pictures, and write the report.

    New lesions with a score below the operating point are not accepted. Without both scans, there
    are no pictures.

    Args:
        files: The earlier and the later visit.
        reader: Reads and compares the visits.
        point: The operating point of new lesions; None accepts all.
        name: The name of the pair on the page.
        mask: A mask of its new lesions, to score against; None for no score.
        report: The planned DICOM report; None for no report.
    """
    visits, alignment = reader.read(files)
    changes = [
        change if change.reaches(point) else replace(change, accepted=False)
        for change in visits.changes
    ]
    scans = [visit.image for visit in files if visit.image is not None]
    cards = draw_changes(visits, changes, name, scans) if len(scans) == 2 else []
    match = None
    if mask is not None:
        match = _match_new_lesions(visits, read_mask(mask), files[1].patient).accept(point)
    message = ""
    if report is not None:
        message = write_change_report(report, visits.after, changes, point)
    row = _pair_row(files, changes, alignment, message)
    return FollowedPair(visits.after.geometry.size_unit, changes, row, cards, match)


def _find_timelines(
    cfg: FollowConfig, progress: Advance | None
) -> tuple[list[list[VisitFiles]], dict[str, str]]:
    """Return the visits of each patient in order. With a bundle, predict them first.

    The visits are those of the folders `before` and `after`, or those of the table `visits`. A line
    in the log states the order of the visits of a table.

    Returns:
        The visits that have predictions, one list per patient, and the reason of each visit that
        could not be predicted, by case.
    """
    if cfg.before is not None and cfg.after is not None:
        before = Path(cfg.before)
        return visits_of_folders(before, Path(cfg.after), cfg.before_images, cfg.after_images), {}
    # the settings ensure a table of visits with either a bundle or predictions
    table = Path(str(cfg.visits))
    patients = order_visits(read_scan_list(table), table)
    predictions = Path(cfg.predictions or Path(cfg.output) / "predictions")
    unpredicted: dict[str, str] = {}
    if cfg.bundle is not None:
        unpredicted = _predict_visits(cfg, predictions, progress)
    timelines = visits_of_table(patients, predictions, unpredicted)
    orders = (
        f"{visits[0].patient}: {', '.join(visit.visit for visit in visits)}"
        for visits in timelines
        if visits
    )
    _log.info("Order of the visits: %s", join_names(orders))
    return timelines, unpredicted


def _predict_visits(cfg: FollowConfig, folder: Path, progress: Advance | None) -> dict[str, str]:
    """Predict the scans of the table into `folder`, for `follow` with a bundle.

    Returns:
        The reason of each visit that could not be predicted, by case. A warning states each of
        them.
    """
    predict = find_recipe("predict")
    unpredicted: dict[str, str] = {}
    for row in predict(cfg.of_predict(folder), progress=progress).rows:
        if row.is_done:
            continue
        why = row.message
        # other results have this name; the message of `predict` names a setting that `follow` lacks
        if row.key == row.CONFLICT:
            why = f"{folder} contains other results of this name. Name another output."
        unpredicted[row.case] = why
        _log.warning("Visit %s could not be predicted: %s", row.case, why)
    return unpredicted


def _find_change_masks(folder: Path, pairs: Mapping[str, FilePair]) -> Mapping[str, Path]:
    """Find the reference masks of new lesions in a folder.

    Pairs without a mask are named in a warning.

    Args:
        folder: The folder of masks, which are named after the later visits.
        pairs: The files of each pair by the id of its later visit.

    Returns:
        The path of each mask by case id.

    Raises:
        DatasetError: If no mask has the name of a pair.
    """
    files_of_case = find_predictions(folder)  # masks have the form of predictions
    masks = {case: files.mask for case, files in files_of_case.items() if files.mask is not None}
    without_mask = [case for case in pairs if case not in masks]
    if len(without_mask) == len(pairs):
        raise DatasetError(
            f"{folder}: no reference of change has the name of a pair, such as "
            f"{without_mask[0]}. Name the masks after the later visits."
        )
    if without_mask:
        _log.warning("These pairs have no reference of change: %s", ", ".join(without_mask))
    return masks


def _write_change_scores(
    folder: Path,
    followed: Iterable[FollowedPair],
    stable_patients: Collection[str],
    settings: SummarySettings,
) -> None:
    """Write the scores of new lesions into `folder`, if any pair has a reference.

    The scores.json of an earlier run is removed in any case. If the operating point was chosen on
    patients who are also scored, a warning says that the scores are too optimistic.

    Args:
        folder: The output folder.
        followed: The compared pairs.
        stable_patients: The patients on whose pairs the operating point was chosen.
        settings: The settings of the scores, with the operating point.
    """
    (folder / SCORES_FILE).unlink(missing_ok=True)
    matches = [pair.match for pair in followed if pair.match is not None]
    if not matches:
        return
    tables = Tables.of(match.rows() for match in matches)
    is_of_stable = tables.cases["group"].isin(stable_patients)
    cases_of_stable = tables.cases["case"][is_of_stable].tolist()
    point = settings.operating_point
    if point is not None and cases_of_stable:
        _log.warning(
            "stable= names pairs of patients who are scored (%s), so the operating point is chosen "
            "on them and the scores are too optimistic. Name stable pairs of other patients.",
            join_names(cases_of_stable),
        )
        # the role of the scored pairs: the scores then state that the point was chosen on them
        settings = replace(settings, operating_point=replace(point, chosen_on=UNKNOWN_ROLE))
    write_scores(folder, tables, summarise(tables, matches[0].preset, settings))


def stable_point(
    stable: Collection[str],
    pairs: Mapping[str, FilePair],
    reader: PairReader,
    left_out: Collection[str],
    false_new_per_pair: float,
) -> OperatingPoint:
    """Choose the score from which new lesions are accepted, on pairs that are known to be stable.

    Stable pairs have no new lesion, so each new candidate in them is false. The chosen score is
    expected to accept at most `false_new_per_pair` of them per pair. If even all candidates are
    within this rate, the score is 0. Stable pairs that cannot be compared are listed in a warning.

    Args:
        stable: The ids of stable pairs. The id of a pair is the id of its later visit.
        pairs: The files of each pair by its id.
        reader: Reads and compares the visits.
        left_out: Visits that are not compared, because their prediction or an earlier one failed.
        false_new_per_pair: The maximum expected number of false new lesions per stable pair.

    Raises:
        ConfigError: If `stable` is empty, or has an id that is neither a pair nor left out.
        DatasetError: If no stable pair can be compared.
    """
    stable = set(stable)
    # a wrong id is an error, because without a message fewer pairs would choose the point
    unknown = sorted(stable - pairs.keys() - set(left_out))
    if unknown or not stable:
        wrong = f"these are not pairs: {', '.join(unknown)}" if unknown else "no case was given"
        raise ConfigError(f"stable=: {wrong}. Name the later visits of stable pairs.")
    matches = []
    no_prediction = DatasetError("it or its earlier visit has no prediction")
    errors: dict[str, Exception] = dict.fromkeys(stable - pairs.keys(), no_prediction)
    for case in sorted(stable & pairs.keys()):
        try:
            visits, _ = reader.read(pairs[case])
            group = pairs[case][1].patient
            matches.append(_match_new_lesions(visits, reference=None, group=group))
        except _FAULTS_OF_PAIR as error:
            errors[case] = error
    lines = "\n  ".join(f"{case}: {why}" for case, why in sorted(errors.items()))
    if not matches:
        raise DatasetError(f"stable=: no stable pair can be compared:\n  {lines}")
    if errors:
        _log.warning("These stable pairs do not choose the operating point:\n  %s", lines)
    tables = Tables.of(match.rows() for match in matches)
    aim = OperatingPointAim(kind="fp_per_case", value=false_new_per_pair)
    point = choose(tables, aim, quiet=True)
    # If all candidates are within the rate, new pairs need no limit either. Without candidates, it
    # is compared with 1, the highest possible score, so that the result is 0, too.
    if point.score <= min(tables.candidates["score"], default=1.0):
        return replace(point, score=0.0)
    return point


def _match_new_lesions(visits: VisitPair, reference: Reference | None, group: str) -> MatchedCase:
    """Match the new lesions of a later visit with the reference of new lesions.

    The scores of `follow`, and the operating point (`stable_point`), are computed from the matches.

    Args:
        visits: The comparison of the two visits.
        reference: The true new lesions. None for a stable pair of visits: all new lesions are false
            positives.
        group: The id of the patient.
    """
    new = visits.new_lesions()
    role = UNKNOWN_ROLE
    if reference is None:
        role = "stable"
        reference = Reference(new.geometry, np.zeros(new.geometry.shape, np.uint8))  # no lesion
    return match_case(reference, new, case=new.case, group=group, role=role)


def _pair_row(
    files: FilePair, changes: Sequence[LesionChange], alignment: Alignment | None, message: str
) -> dict[str, Any]:
    """Return the row of two visits in pairs.csv: counts, volumes, quality of the registration.

    Volumes are None if only 2-D lesions were compared.

    Args:
        files: The earlier and the later visit.
        changes: The changes of the pair.
        alignment: The registration, or None if the positions in the files were used.
        message: Why the pair has no DICOM report, or "".
    """
    earlier, later = files
    before = [c.volume_before_ml for c in changes if c.volume_before_ml is not None]
    after = [c.volume_after_ml for c in changes if c.volume_after_ml is not None]
    # lesions of 2-D images have none; without lesions, the volumes are 0
    has_volumes = bool(before or after or not changes)
    return {
        "case": later.case,
        **count_states(changes),
        "new_accepted": sum(c.state == "new" and c.accepted for c in changes),
        "volume_before_ml": sum(before, 0.0) if has_volumes else None,
        "volume_after_ml": sum(after, 0.0) if has_volumes else None,
        "registered": "rigid" if alignment else "headers",
        "mutual_information": None if alignment is None else alignment.mutual_information,
        "foreground_dice": None if alignment is None else alignment.foreground_dice,
        # visits of two folders have the same id
        "earlier": earlier.case if earlier.case != later.case else "",
        "group": later.group,
        "earlier_visit": earlier.visit,
        "visit": later.visit,
        "message": message,
    }
