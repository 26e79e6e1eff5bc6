"""Write docs/tables.schema.json: types from the row types, meanings from docs/tables.md.

python docs/make_tables.py
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lesionseg.evaluation.change import LesionChange
from lesionseg.evaluation.readers.adjudication import AdjudicationRow
from lesionseg.evaluation.readers.reader_agreement import KeyRow, SheetRow
from lesionseg.evaluation.rows import CandidateRow, CaseRow, LesionRow, SuspectRow
from lesionseg.evaluation.table_row import TableRow
from lesionseg.io.atomic import write_json
from lesionseg.pipeline.follow.gathered_pairs import PairRow
from lesionseg.pipeline.predict.predictions_table import PredictionRow
from lesionseg.pipeline.predict.study_table import StudyRow
from lesionseg.report.inputs.origin import PseudonymRow
from lesionseg.training.callbacks.focal_balance import CurveRow, FocalBalanceRow
from lesionseg.training.callbacks.history import HistoryRow

HERE = Path(__file__).resolve().parent
SCHEMA = HERE / "tables.schema.json"
TABLES: Mapping[str, type[TableRow]] = {
    "cases.csv": CaseRow,
    "lesions.csv": LesionRow,
    "candidates.csv": CandidateRow,
    "predictions.csv": PredictionRow,
    "study.csv": StudyRow,
    "changes.csv": LesionChange,
    "pairs.csv": PairRow,
    "adjudicate.csv": AdjudicationRow,
    "reader_A.csv": SheetRow,
    "key.csv": KeyRow,
    "pseudonyms.csv": PseudonymRow,
    "label_audit.csv": SuspectRow,
    "metrics.csv": HistoryRow,
    "focal_balance.csv": FocalBalanceRow,
    "loss_curves.csv": CurveRow,
}


def dictionary() -> dict[str, Any]:
    """The schema of every table, a line of it being an object; `KeyError` for a column without row.

    A column whose name varies stands on the page with angle brackets, in the schema as a pattern.
    """
    page = (HERE / "tables.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\S+\.csv)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tables of lesionseg",
        "$defs": {name: _described(kind, sections[name]) for name, kind in TABLES.items()},
    }


def _described(kind: type[TableRow], section: str) -> dict[str, Any]:
    schema, meanings = kind.json_schema(), dict(_meanings(section))
    for where in ("properties", "patternProperties"):
        for name, column in schema[where].items():
            column["description"] = meanings[re.split(r"[.\[(]", name.strip("^$"))[0]]
    words = section.split("\n|")[0].split()
    return {"description": re.sub(r"\[(.*?)\]\(.*?\)", r"\1", " ".join(words)), **schema}


def _meanings(section: str) -> Iterator[tuple[str, str]]:
    """Column and meaning; of `loss_<term>` the part before the bracket."""
    for names, meaning in re.findall(r"^\| (`.*?) \| (.*) \|$", section, re.M):
        for name in re.findall(r"`([^`]+)`", names):
            yield name.split("<")[0], meaning


if __name__ == "__main__":
    write_json(SCHEMA, dictionary())
