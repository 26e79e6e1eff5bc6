"""What `follow` keeps of its pairs, and the tables, the summary and the page it writes of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lesionseg
from lesionseg.core import Lesions, OperatingPoint
from lesionseg.evaluation import CaseResult
from lesionseg.evaluation.change import STATES, ChangeRule, LesionChange
from lesionseg.evaluation.table_row import TableRow, write_table
from lesionseg.io.cases import read_mask
from lesionseg.pipeline.follow.change_report import is_reported, report_changes
from lesionseg.pipeline.follow.new_lesions import apply_point, judge_new, new_lesions
from lesionseg.pipeline.follow.visit_pairs import PairFiles, PairList, VisitPair, scan_on
from lesionseg.report.follow import MAX_PICTURES, draw_change, write_follow_page
from lesionseg.report.images import Scene
from lesionseg.report.pictures import Card


@dataclass(frozen=True, kw_only=True)
class PairRow(TableRow):
    """One line of pairs.csv: how many lesions are in each state, the burden, the registration."""

    case: str
    new: int
    enlarged: int
    stable: int
    shrunk: int
    gone: int
    merged: int
    split: int
    new_accepted: int
    volume_before_ml: float
    volume_after_ml: float
    registered: str
    mutual_information: float | None = None
    foreground_dice: float | None = None
    earlier: str = ""
    group: str = ""


@dataclass
class Gathered:
    """What is kept of the pairs once their arrays are freed; `names` are those on the page.

    `reports`: the folder for DICOM reports; None: none are written.
    """

    names: Mapping[str, str]
    reports: Path | None = None
    changes: list[LesionChange] = field(default_factory=list)
    rows: list[PairRow] = field(default_factory=list)
    judged: list[CaseResult] = field(default_factory=list)
    cards: list[tuple[LesionChange, Card]] = field(default_factory=list)

    def add(
        self,
        files: PairFiles,
        pair: VisitPair,
        changes: Sequence[LesionChange],
        point: OperatingPoint | None,
        reference: Path | None,
    ) -> None:
        """Take a pair's changes at the operating point, judged where there is a reference."""
        new = new_lesions(pair.prediction, changes)
        decided = apply_point(changes, new, point)
        self.changes += decided
        self.rows.append(_pair_row(files, pair, decided))
        self.cards += _cards(files, pair, decided, self.names[pair.case])
        if self.reports is not None and is_reported(files):
            report_changes(self.reports, files, pair, decided)
        if reference is not None:
            self.judged.append(judge_new(new, read_mask(reference), point))

    def write(self, folder: Path, rule: ChangeRule, point: OperatingPoint | None) -> None:
        """Write the two tables and the page."""
        write_table(folder / "changes.csv", self.changes, LesionChange)
        write_table(folder / "pairs.csv", self.rows, PairRow)
        words = _rule_words(rule, point)
        write_follow_page(folder / "follow.html", self.changes, self.names, self.cards, words)


def _cards(
    files: PairFiles, pair: VisitPair, changes: Sequence[LesionChange], name: str
) -> list[tuple[LesionChange, Card]]:
    """A card for each change that counts; none without both scans, and none to draw reads none."""
    shown = [c for c in changes if c.accepted][:MAX_PICTURES]
    if not shown or files.before_image is None or files.after_image is None:
        return []
    grid = pair.prediction.geometry
    masks = pair.moved.mask() > 0, pair.prediction.mask() > 0
    before = Scene(scan_on(files.before_image, pair.placed, grid), grid, *masks)
    after = Scene(scan_on(files.after_image, grid, grid), grid, *masks)
    return [(c, draw_change(c, name, before, after, _box(pair, c))) for c in shown]


def _box(pair: VisitPair, change: LesionChange) -> NDArray[np.float64]:
    """Start and stop `[2, dims]` of the box around a change's lesions of both visits."""
    boxes = np.concatenate(
        [
            _boxes(pair.before.placed, change.lesion_before),
            _boxes(pair.after.placed, change.lesion_after),
        ]
    ).reshape(-1, 2, pair.prediction.geometry.dims)
    return np.stack([boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)])


def _boxes(lesions: Lesions, ids: Sequence[int]) -> NDArray[np.float64]:
    return lesions.boxes[np.isin(lesions.ids, ids)]


def summary_json(lists: PairList, rule: ChangeRule, point: OperatingPoint | None) -> dict[str, Any]:
    """The content of follow.json."""
    return {
        "lesionseg": lesionseg.__version__,
        "n_pairs": len(lists.pairs),
        "before_only": lists.before_only,
        "after_only": lists.after_only,
        "rule": asdict(rule),
        "operating_point": None if point is None else _point_json(point),
    }


def _pair_row(files: PairFiles, pair: VisitPair, changes: Sequence[LesionChange]) -> PairRow:
    states, alignment = Counter(c.state for c in changes), pair.alignment
    return PairRow(
        case=pair.case,
        **{state: states[state] for state in STATES},
        new_accepted=sum(c.state == "new" and c.accepted for c in changes),
        volume_before_ml=sum(c.volume_before_ml or 0.0 for c in changes),
        volume_after_ml=sum(c.volume_after_ml or 0.0 for c in changes),
        registered="headers" if alignment is None else "rigid",
        mutual_information=None if alignment is None else alignment.mutual_information,
        foreground_dice=None if alignment is None else alignment.foreground_dice,
        earlier=files.earlier,
        group=files.group,
    )


def _rule_words(rule: ChangeRule, point: OperatingPoint | None) -> str:
    """How the page says what counts as a change."""
    source = "the grid's own error"
    if rule.repeatability != 1:
        source += f" times {rule.repeatability:.2f}, as measured on test–retest pairs"
    share = f"{rule.confidence:.0%} of stable lesions lie within {source}"
    smallest = f"Smallest detectable change: {share}."
    if point is None:
        return f"{smallest} Every new lesion counts: no stable pairs were given to choose by."
    rate = point.false_positives_per_case
    counted = f"{rate:.2f} false new lesions per stable pair"
    return f"{smallest} New lesions count from a score of {point.score:.2f}: {counted}."


def _point_json(point: OperatingPoint) -> dict[str, Any]:
    """The operating point in the words of follow-up."""
    return {
        "score": point.score,
        "chosen_for": point.name.replace("fp_per_case", "false_new_per_pair"),
        "confidence": point.confidence,
        "false_new_per_pair": point.false_positives_per_case,
        "false_new_per_pair_ci95": point.false_positives_per_case_ci95,
    }
