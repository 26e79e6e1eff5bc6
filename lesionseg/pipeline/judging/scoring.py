"""From judged cases to scores.json and the tables beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lesionseg
from lesionseg.core import OperatingPoint
from lesionseg.evaluation import CaseResult, Preset, summarise
from lesionseg.evaluation.rows import (
    CANDIDATE_COLUMNS,
    LESION_COLUMNS,
    candidate_rows,
    case_columns,
    case_rows,
    lesion_rows,
)
from lesionseg.evaluation.statistics.subgroups import Columns
from lesionseg.io.atomic import write_csv, write_json


@dataclass(frozen=True)
class Scoring:
    """How judged cases are summed up; the fields are those of `evaluation.summarise`."""

    preset: Preset
    evaluated_on: str
    operating_point: OperatingPoint | None = None
    labels: Mapping[int, str] = field(default_factory=dict)
    split_is_group_safe: bool | None = None
    replicates: int = 1000
    seed: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    columns: Columns | None = None
    subgroups: Sequence[str] | None = None

    def sum_up(self, results: Sequence[CaseResult]) -> dict[str, Any]:
        """The content of scores.json."""
        return summarise(
            results,
            self.preset,
            evaluated_on=self.evaluated_on,
            operating_point=self.operating_point,
            labels=self.labels,
            split_is_group_safe=self.split_is_group_safe,
            replicates=self.replicates,
            seed=self.seed,
            provenance={"lesionseg": lesionseg.__version__, **self.provenance},
            columns=self.columns,
            subgroups=self.subgroups,
        )

    def write(self, output: Path, results: Sequence[CaseResult], scores: Mapping[str, Any]) -> None:
        """Write the three tables and, last, scores.json; each atomically."""
        output.mkdir(parents=True, exist_ok=True)
        write_csv(output / "cases.csv", case_rows(results), case_columns(results))
        write_csv(output / "lesions.csv", lesion_rows(results, self.labels), LESION_COLUMNS)
        rows = candidate_rows(results, self.labels)
        write_csv(output / "candidates.csv", rows, CANDIDATE_COLUMNS)
        write_json(output / "scores.json", scores)
