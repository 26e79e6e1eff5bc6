"""The columns from which the page's script counts what every other threshold would give."""

import json
from typing import Any

from lesionseg.report import text
from lesionseg.report.inputs.result_tables import Tables
from lesionseg.report.sections.table_cells import size_index


def slider_json(tables: Tables) -> str:
    """The columns as JSON, safe inside a script element; empty where there is nothing to move."""
    sweep, scores = tables.sweep, tables.scores
    if sweep is None:
        return ""
    free = {case.case for case in tables.cases if not case.n_lesions}
    false = [row for row in tables.candidates if row.outcome_any == "false_positive"]
    content: dict[str, Any] = {
        "cases": sweep.n_cases,
        "free_cases": len(free),
        "start": scores.operating_point.score,
        "lesions": [
            [
                row.detected_at,
                size_index(row.diameter_mm, scores.recall_by_size),
                row.case,
                row.lesion,
                round(row.diameter_mm, 1),
            ]
            for row in tables.lesions
        ],
        "false": sweep.false_score.tolist(),
        "free": [row.score for row in false if row.case in free],
        "sizes": [text.size_range(group, scores.size_unit) for group in scores.recall_by_size],
    }
    return json.dumps(content, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
