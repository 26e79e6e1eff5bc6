"""Tables of an evaluation for the report: small lesions (5 mm), size classes, pseudonyms."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lesionseg.errors import ContentError
from lesionseg.evaluation.intervals import CI
from lesionseg.evaluation.scores import SCORES_FILE, Scores, read_scores, size_column
from lesionseg.evaluation.tables import Tables, read_tables
from lesionseg.io.text import write_csv

SMALL_MM = 5.0  # the first screen shows lesions below and above this diameter separately


class SizeClass(NamedTuple):
    """The lesions with a diameter in `[minimum, below)`, in the unit of the scores.

    Attributes:
        minimum: The lower bound.
        below: The upper bound. None for the last class.
        n: Number of lesions, at least 1.
        detected: Number of lesions found.
        ci95: The interval of the recall. None if there is none.
    """

    minimum: float
    below: float | None
    n: int
    detected: int
    ci95: CI | None

    @property
    def recall(self) -> float:
        """The share of lesions found."""
        return self.detected / self.n


@dataclass(frozen=True, eq=False)
class EvaluationTables(Tables):
    """The tables and scores of an evaluation.

    `names` maps the pseudonyms of cases and groups to their real names. It is empty if the tables
    have the real names.
    """

    folder: Path = Path()
    scores: Scores = field(default_factory=Scores)
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def threshold(self) -> float | None:
        """The score from which candidates are accepted: the score of the operating point.

        None if the candidates have no scores, or if scores.json states no operating point. With
        lesions but without an FROC curve in scores.json, the candidates have no scores.
        """
        has_no_curve = len(self.lesions) > 0 and not self.scores.has_froc
        return None if has_no_curve else self.scores.operating_point.score

    @property
    def n_predicted(self) -> int:
        """Number of scans that have a prediction."""
        return int(self.is_predicted.sum())

    @property
    def n_failed(self) -> int:
        """Number of scans that could not be scored, because mask and reference do not fit."""
        return len(self.scores.failed_cases)

    @property
    def n_scanned(self) -> float:
        """Number of scans, the divisor of rates such as false positives per scan.

        A scan in which a reader looked for some labels only counts as the share of these labels.
        Without scans, the number is tiny instead of 0, because it is a divisor.
        """
        return max(self.exposure, 1e-9)

    @property
    def is_partly_annotated(self) -> bool:
        """True if, in a scan without a marked lesion, the reader looked for some labels only.

        Such a scan may contain lesions of the other labels, so the page does not call it
        lesion-free.
        """
        return bool((~self.has_lesion & self.is_predicted & (self.case_share < 1)).any())

    @property
    def found(self) -> pd.DataFrame:
        """The lesions that are found at the operating point, one row per lesion."""
        return self.lesions[self.lesions["detected"]]

    @property
    def missed(self) -> pd.DataFrame:
        """The missed lesions, one row per lesion, largest first, then by case and lesion id."""
        missed = self.lesions[~self.lesions["detected"]]
        order = [self.size_column, "case", "lesion"]
        return missed.sort_values(order, ascending=[False, True, True])

    @property
    def real_names(self) -> list[str]:
        """The real names of the cases, in the order of the table of cases."""
        return [self.names.get(case, case) for case in self.cases["case"]]

    @property
    def has_patients(self) -> bool:
        """True if some group differs from its case, so that the groups are known to be patients."""
        return bool((self.cases["group"] != self.cases["case"]).any())

    @property
    def has_mm(self) -> bool:
        """True if the sizes of lesions are known in millimetres."""
        return self.scores.size_unit.startswith("mm")

    @property
    def size_column(self) -> str:
        """The name of the column with the diameters, which depends on the unit of the scores."""
        return size_column(self.scores.size_unit)

    @property
    def size_classes(self) -> list[SizeClass]:
        """The size classes that have lesions, smallest first, from a curve in scores.json."""
        classes = []
        points = self.scores.curve("recall_by_size")
        # a point states the lower bound of its class; the upper bound is that of the next class
        for point, following in zip(points, [*points[1:], None], strict=True):
            if not point.n:  # a class without lesions
                continue
            size_class = SizeClass(
                minimum=point.at or 0.0,
                below=None if following is None else following.at,
                n=point.n,
                detected=round((point.value or 0.0) * point.n),  # from the recall
                ci95=point.ci95,
            )
            classes.append(size_class)
        return classes

    def lesions_by_size(self, *, small: bool) -> pd.DataFrame:
        """Return the lesions with a diameter under `SMALL_MM` if `small`, otherwise the others."""
        return self.lesions[(self.lesions["diameter_mm"] < SMALL_MM) == small]


def read_evaluation(folder: Path, *, identifiers: bool = False) -> EvaluationTables:
    """Read an evaluation. Cases that could not be scored are left out.

    Args:
        folder: The folder that `evaluate` or `train` wrote.
        identifiers: False replaces the names of cases and groups by `case 1` and `patient 1`.

    Raises:
        ReadError: If a file is missing.
        ContentError: If a file cannot be read, or if the tables do not belong to scores.json.
    """
    scores = read_scores(folder / SCORES_FILE)
    tables = read_tables(folder)
    n_lesions = scores.count("n_lesions")
    if len(tables.lesions) != n_lesions:
        raise ContentError(
            f"{folder}: lesions.csv has {len(tables.lesions)} lesions, but scores.json states "
            f"{n_lesions}. Run evaluate again, which writes all tables together."
        )
    evaluation = EvaluationTables(*tables.frames, folder=folder, scores=scores)
    return evaluation if identifiers else _with_pseudonyms(evaluation)


def write_pseudonyms(folder: Path, names: Mapping[str, str]) -> None:
    """Write pseudonyms.csv into `folder`: one row per pseudonym, with the real name.

    An earlier file is removed, because it may belong to other cases. Without names, none is
    written. `names` has the real names by pseudonym.
    """
    path = folder / "pseudonyms.csv"
    path.unlink(missing_ok=True)  # of an earlier page with other cases
    if names:
        rows = [{"pseudonym": pseudonym, "name": real} for pseudonym, real in names.items()]
        write_csv(path, rows, ("pseudonym", "name"))


def _with_pseudonyms(tables: EvaluationTables) -> EvaluationTables:
    """Replace the names of cases and groups by pseudonyms, for a page that can be shared.

    Cases become "case 1", "case 2" and so on, and groups "patient 1" and so on, by first appearance
    in the table of cases. If no group differs from its case, a group has the pseudonym of its case.
    Names that are not in the table of cases become a dash. `names` of the result has the real
    names by pseudonym.
    """
    cases = {name: f"case {n}" for n, name in enumerate(tables.cases["case"].unique(), 1)}
    groups = {name: f"patient {n}" for n, name in enumerate(tables.cases["group"].unique(), 1)}
    if not tables.has_patients:  # each case is its own group, with the same name
        groups = cases

    def rename(table: pd.DataFrame) -> pd.DataFrame:
        """Return a table with pseudonyms in its columns `case` and `group`."""
        return table.assign(
            case=table["case"].map(cases).fillna("–"),
            group=table["group"].map(groups).fillna("–"),
        )

    return replace(
        tables,
        cases=rename(tables.cases),
        lesions=rename(tables.lesions),
        candidates=rename(tables.candidates),
        names={
            pseudonym: real
            for pseudonyms in (groups, cases)
            for real, pseudonym in pseudonyms.items()
        },
    )
