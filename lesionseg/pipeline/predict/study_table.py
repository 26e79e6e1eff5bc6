"""`study.csv`: how much and where, one row per visit."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict

from lesionseg.core import Candidate, CaseFiles, OperatingPoint
from lesionseg.evaluation.statistics.burden import count_interval, volume_interval
from lesionseg.evaluation.table_row import Named, TableRow, read_table, write_table
from lesionseg.io.remote.mirror import send
from lesionseg.pipeline.predict.predictions_table import PredictionRow

STUDY = "study.csv"


@dataclass(frozen=True, kw_only=True)
class StudyRow(TableRow):
    """One line of study.csv: what was accepted in a case, altogether, by label and by zone.

    `group` and `visit` are what the input's table says of the case. Numbers of a case that failed
    are empty, and so are volumes in 2-D and of bare boxes. `n_lesions_low` and the like: between
    them lie the lesions that a reader would mark, with a chance of 95 %.
    """

    case: str
    group: str = ""
    visit: str = ""
    status: str = ""
    n_lesions: int | None = None
    volume_ml: float | None = None
    n_lesions_low: int | None = None
    n_lesions_high: int | None = None
    volume_ml_low: float | None = None
    volume_ml_high: float | None = None
    count: Named = field(default_factory=dict)
    ml: Named = field(default_factory=dict)
    zone_count: Named = field(default_factory=dict)
    zone_ml: Named = field(default_factory=dict)


class Burden(TypedDict):
    """Number and volume of accepted candidates, as `PredictionRow` names them."""

    count: Mapping[str, float]
    ml: Mapping[str, float]
    zone_count: Mapping[str, float]
    zone_ml: Mapping[str, float]
    n_lesions_low: int | None
    n_lesions_high: int | None
    volume_ml_low: float | None
    volume_ml_high: float | None


def burden(
    candidates: Sequence[Candidate],
    labels: Mapping[int, str],
    zones: Iterable[str] = (),
    point: OperatingPoint | None = None,
) -> Burden:
    """The accepted candidates by label and by zone; what is named and empty has 0.

    Volumes are left out altogether where one of them is not known, and intervals where `point`,
    by which candidates were accepted, knows none.
    """
    accepted = [c for c in candidates if c.accepted]
    by_label = [(labels.get(c.label, str(c.label)), c.volume_ml) for c in accepted]
    by_zone = [(c.zone, c.volume_ml) for c in accepted if c.zone]
    count, ml = _sums(by_label, labels.values())
    zone_count, zone_ml = _sums(by_zone, zones)
    errors = (point.count_error, point.volume_error) if point else (None, None)
    n_low, n_high = (None, None) if errors[0] is None else count_interval(len(accepted), errors[0])
    known = None if errors[1] is None or not ml else volume_interval(sum(ml.values()), errors[1])
    ml_low, ml_high = known or (None, None)
    return {
        "count": count,
        "ml": ml,
        "zone_count": zone_count,
        "zone_ml": zone_ml,
        "n_lesions_low": n_low,
        "n_lesions_high": n_high,
        "volume_ml_low": ml_low,
        "volume_ml_high": ml_high,
    }


def _sums(
    items: Sequence[tuple[str, float | None]], names: Iterable[str]
) -> tuple[dict[str, float], dict[str, float]]:
    count = dict.fromkeys([*names, *(name for name, _ in items)], 0.0)
    ml = dict(count)
    for name, volume in items:
        count[name] += 1
        ml[name] += volume or 0.0
    return count, {} if any(volume is None for _, volume in items) else ml


# what a visit's row says as the prediction's does
_SAME = (
    *("n_lesions_low", "n_lesions_high", "volume_ml_low", "volume_ml_high"),
    *("count", "ml", "zone_count", "zone_ml"),
)


def write_study(
    output: Path, cases: Sequence[CaseFiles], rows: Mapping[str, PredictionRow]
) -> None:
    """Write `study.csv` beside the predictions: these cases, and what it said of others.

    `rows`: by case, those of earlier runs included.
    """
    path = output / STUDY
    known = {case: _row(row, CaseFiles(case, ())) for case, row in rows.items()}
    if path.is_file():
        known |= {row.case: row for row in read_table(path, StudyRow)}
    known |= {files.case: _row(rows[files.case], files) for files in cases if files.case in rows}
    write_table(path, [known[case] for case in sorted(known)], StudyRow)
    send([path])


def _row(row: PredictionRow, files: CaseFiles) -> StudyRow:
    visit = files.columns.get("visit", "")
    study_row = StudyRow(case=row.case, group=files.group, visit=visit, status=row.status)
    if row.status == "failed":
        return study_row
    same = {name: getattr(row, name) for name in _SAME}
    volume = round(sum(row.ml.values()), 6) if row.ml else None
    return replace(study_row, n_lesions=row.n_accepted, volume_ml=volume, **same)
