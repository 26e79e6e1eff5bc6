"""Read scores.json and the three tables that `evaluate` and `train` write."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lesionseg.errors import ContentError, ReadError
from lesionseg.evaluation.result_tables import FAILED, TEXT_COLUMNS, read_table
from lesionseg.evaluation.scores import (
    PERCENT_OF_WIDTH,
    SCORES_FILE,
    Scores,
    SizeClass,
    read_scores,
)

SMALL_MM = 5.0  # the first screen shows lesions below and above this diameter separately


@dataclass(frozen=True, eq=False)
class Tables:
    """One evaluation. `names` maps the pseudonyms of cases and groups to their real names."""

    folder: Path
    scores: Scores
    cases: pd.DataFrame
    lesions: pd.DataFrame
    candidates: pd.DataFrame
    names: Mapping[str, str]

    @property
    def threshold(self) -> float | None:
        """The score from which candidates are accepted; None if a case has no scores."""
        score = self.scores.operating_point.score
        has_no_curve = self.scores.froc.recall is None and len(self.lesions) > 0
        return None if score is None or has_no_curve else score

    @property
    def n_predicted(self) -> int:
        """Number of scans that have a prediction."""
        return int((self.cases["status"] != "missing").sum())

    @property
    def n_failed(self) -> int:
        """Number of scans that could not be scored because file and reference do not fit."""
        return len(self.failed_names)

    @property
    def failed_names(self) -> list[str]:
        """The real names of the scans that could not be scored."""
        return [failed.case for failed in self.scores.failed_cases or ()]

    @property
    def n_scanned(self) -> float:
        """Number of scans by which rates are divided.

        If a reader looked for some labels only, the scan counts by the share of these labels.
        """
        shares = self.cases.get("annotated_share")
        return max(float(len(self.cases) if shares is None else shares.fillna(1.0).sum()), 1e-9)

    @property
    def is_partly_annotated(self) -> bool:
        """True if a reader looked for some labels only in a scan without a marked lesion."""
        shares = self.cases.get("annotated_share")
        if shares is None:
            return False
        return bool(((self.cases["n_lesions"] == 0) & (shares < 1)).any())

    @property
    def real_names(self) -> list[str]:
        """The real names of the cases, in order."""
        return [self.names.get(case, case) for case in self.cases["case"]]

    @property
    def patients_stated(self) -> bool:
        """True if the groups differ from the cases."""
        return bool((self.cases["group"] != self.cases["case"]).any())

    @cached_property
    def false_scores(self) -> NDArray[np.float64]:
        """Scores of all false positives at any threshold, descending."""
        column = "outcome_any" if "outcome_any" in self.candidates else "outcome"
        false = self.candidates[self.candidates[column] == "false_positive"]
        return np.sort(false["score"].fillna(1.0).to_numpy(np.float64))[::-1]

    def count_at(self, threshold: float) -> tuple[int, int]:
        """Count the lesions found and the false positives at a threshold."""
        found = int((self.lesions["detected_at"] >= threshold).sum())
        return found, int((self.false_scores >= threshold).sum())

    @property
    def has_mm(self) -> bool:
        """True if the sizes of lesions are known in millimetres."""
        return self.scores.size_unit.startswith("mm")

    @property
    def size_column(self) -> str:
        """The name of the column with the diameters, which depends on the unit of the scores."""
        in_percent = self.scores.size_unit == PERCENT_OF_WIDTH
        return "diameter_percent" if in_percent else "diameter_mm"

    @property
    def size_classes(self) -> list[SizeClass]:
        """The size classes that have lesions.

        They are empty in an evaluation by version 1.0 of images without a pixel size: its classes
        are those of millimetres, but its diameters are in pixels.
        """
        if self.scores.size_unit == "px":
            return []
        return [part for part in self.scores.recall_by_size if part.n]

    def lesions_by_size(self, *, small: bool) -> pd.DataFrame:
        """Return the lesions under 5 mm if `small`, otherwise those of 5 mm and more."""
        return self.lesions[(self.lesions["diameter_mm"] < SMALL_MM) == small]


def read_tables(folder: Path, *, identifiers: bool = False) -> Tables:
    """Read an evaluation. Cases that could not be scored are left out.

    Args:
        folder: The folder that `evaluate` or `train` wrote.
        identifiers: False replaces the names of cases and groups by `case 1` and `patient 1`.

    Raises:
        ReadError: if a file is missing.
        ContentError: if a file cannot be read, or if the tables do not belong to scores.json.
    """
    scores = read_scores(folder / SCORES_FILE)
    cases = _read(folder / "cases.csv")
    lesions = _read(folder / "lesions.csv")
    candidates = _read(folder / "candidates.csv")
    if len(lesions) != scores.n_lesions:
        raise ContentError(
            f"{folder}: lesions.csv has {len(lesions)} lesions, but scores.json states "
            f"{scores.n_lesions}. Run evaluate again, which writes all tables together."
        )
    cases = cases[cases["status"] != FAILED].reset_index(drop=True)
    cases["group"] = cases["group"].where(cases["group"] != "", cases["case"])
    found = Tables(folder, scores, cases, lesions, candidates, {})
    return found if identifiers else _with_pseudonyms(found)


def _read(path: Path) -> pd.DataFrame:
    """Read one table of the evaluation."""
    if not path.is_file():
        raise ReadError(f"{path}: a table of the evaluation is missing. Run evaluate again.")
    table = read_table(path)
    for name in table.columns.intersection(TEXT_COLUMNS):
        table[name] = table[name].fillna("")
    return table


def _with_pseudonyms(tables: Tables) -> Tables:
    """Replace the names of cases and groups by pseudonyms."""
    cases = {name: f"case {n}" for n, name in enumerate(tables.cases["case"].unique(), 1)}
    groups = {name: f"patient {n}" for n, name in enumerate(tables.cases["group"].unique(), 1)}
    if not tables.patients_stated:
        groups = cases

    def rename(table: pd.DataFrame) -> pd.DataFrame:
        """Replace the names in one table."""
        return table.assign(
            case=table["case"].map(cases).fillna("–"),
            group=table["group"].map(groups).fillna("–"),
        )

    names = {shown: real for one in (groups, cases) for real, shown in one.items()}
    return replace(
        tables,
        cases=rename(tables.cases),
        lesions=rename(tables.lesions),
        candidates=rename(tables.candidates),
        names=names,
    )
