"""What a page could show but does not, and why: nothing is left out in silence."""

from collections.abc import Iterator

from lesionseg.report import text
from lesionseg.report.inputs.result_tables import Tables
from lesionseg.report.sections.table_cells import Listing, list_pairs


def list_absences(tables: Tables, compared: bool) -> Listing:
    """One line for each part that these scores do not allow."""
    return list_pairs(text.HEADINGS_ABSENT, _absent(tables, compared))


def _absent(tables: Tables, compared: bool) -> Iterator[tuple[str, str]]:
    details, raw = tables.details, tables.scores.raw
    there = {
        "size_curve": details.size_curve is not None,
        "recall_by_size_and_contrast": bool(details.cells),
        "subgroups": bool(details.subgroups),
        "calibration": details.reliability is not None,
    }
    for key, present in there.items():
        if not present:
            yield text.ABSENT[key], details.reasons[key]
    if not compared and not details.differences:
        yield text.ABSENT["comparison"], text.NO_COMPARISON
    if not raw.get("adjudication") and tables.scores.n_false_positive:
        yield text.ABSENT["adjudication"], text.NOT_ADJUDICATED
