"""docs/tables.schema.json is what docs/make_tables.py writes, and the tables are as it says."""

import re
import runpy
from pathlib import Path
from typing import Any

from lesionseg.evaluation import PRESETS, evaluate_case
from lesionseg.evaluation.change import LesionChange
from lesionseg.evaluation.rows import case_rows, lesion_rows
from lesionseg.evaluation.table_row import read_table, write_table
from lesionseg.io.atomic import read_csv, read_json
from tests.evaluation.hand_cases import HAND_CASES, make_prediction, make_reference

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = runpy.run_path(str(DOCS / "make_tables.py"))
SCHEMA = read_json(DOCS / "tables.schema.json")
# tables of other programs, by their own rules
FOREIGN = {"manifest.csv", "TRUTH.csv", "TP.csv", "FP.csv", "imrmc.csv"}
READERS = {"number": float, "integer": int, "string": str, "boolean": bool}


def fits(cell: Any, column: dict[str, Any]) -> bool:
    """Whether a cell is what its column's schema allows; None and empty text are null."""
    if "enum" in column:
        return cell in column["enum"]
    types = column["type"] if isinstance(column["type"], list) else [column["type"]]
    if cell in (None, "") and "string" not in types:
        return "null" in types
    if types[0] == "boolean":
        return cell in ("true", "false")
    READERS[types[0]](cell)
    return True


def check(row: dict[str, Any], table: str) -> None:
    schema = SCHEMA["$defs"][table]
    assert set(schema["required"]) <= set(row)
    for name, cell in row.items():
        near = [c for p, c in schema["patternProperties"].items() if re.search(p, name)]
        column = schema["properties"].get(name) or near[0]
        assert fits(cell, column), (table, name, cell)


def test_the_file_is_what_the_script_writes_of_types_and_page() -> None:
    assert SCRIPT["dictionary"]() == SCHEMA, "run python docs/make_tables.py"


def test_every_table_that_is_written_is_in_it() -> None:
    sources = (DOCS.parent / "lesionseg").rglob("*.py")
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    written = set(re.findall(r'(?:/ |Path\(|TABLE = |STUDY = )"(\w+\.csv)"', text)) - FOREIGN
    assert written == set(SCHEMA["$defs"])


def test_the_tables_of_an_evaluation_fit_it() -> None:
    results = [
        evaluate_case(make_reference(c), make_prediction(c), PRESETS["lesionseg"], case=c.name)
        for c in HAND_CASES
    ]
    for row in case_rows(results):
        check(row, "cases.csv")
    for row in lesion_rows(results, {}):
        check(row, "lesions.csv")


def test_ids_of_merged_lesions_have_a_column_each(tmp_path: Path) -> None:
    change = LesionChange(
        case="=a",
        label=1,
        lesion_before=(3, 5, 8),
        lesion_after=(),
        state="gone",
        accepted=True,
        smallest_change_percent=12.5,
    )
    one = LesionChange(**{**vars(change), "lesion_before": (), "lesion_after": (2,)})
    write_table(tmp_path / "changes.csv", [change, one], LesionChange)
    cells = read_csv(tmp_path / "changes.csv")
    assert [cells[0][f"lesion_before_{i}"] for i in (1, 2, 3)] == ["3", "5", "8"]
    assert read_table(tmp_path / "changes.csv", LesionChange) == (change, one)
    for row in cells:
        check(row, "changes.csv")
