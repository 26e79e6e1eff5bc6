"""Sections of what a hospital asks first: each patient, each scan's verdict, the lesion load."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from lesionseg.evaluation.acceptance import AcceptancePlan, judge
from lesionseg.evaluation.statistics.estimates import Estimate
from lesionseg.report import text
from lesionseg.report.figures import detail_figures as figures
from lesionseg.report.figures.chart_list import Chart
from lesionseg.report.inputs.result_tables import Tables
from lesionseg.report.sections.table_cells import Listing, TableCell
from lesionseg.report.text import clinical_words as words


@dataclass(frozen=True)
class ClinicalSection:
    """A section by its key of `text.SECTIONS`: sentences, charts and tables."""

    key: str
    sentences: tuple[str, ...]
    charts: tuple[Chart, ...] = ()
    tables: tuple[Listing, ...] = ()


def make_clinical_sections(
    tables: Tables, plan: AcceptancePlan | None = None
) -> tuple[ClinicalSection, ...]:
    """Those for which the evaluation has numbers, in the page's order; first that of `plan`."""
    makers: tuple[Callable[[Tables], ClinicalSection | None], ...] = (_patients, _scans, _load)
    first = () if plan is None else (_acceptance(tables, plan),)
    return (*first, *(one for make in makers if (one := make(tables)) is not None))


def _acceptance(tables: Tables, plan: AcceptancePlan) -> ClinicalSection:
    results = judge(plan, tables.scores)
    verdicts = Listing(
        words.HEADINGS_VERDICTS,
        tuple(
            (
                TableCell(text.measure_name(one.criterion.number)),
                TableCell(words.limit(one.criterion)),
                TableCell(text.measure(one.found)),
                TableCell(words.verdict(one.passed)),
            )
            for one in results
        ),
    )
    samples = Listing(
        words.HEADINGS_SAMPLES,
        tuple(
            (
                TableCell(text.measure_name(one.criterion.number)),
                TableCell(f"{one.criterion.expected:g}"),
                TableCell(words.sample(one.criterion, one.n_needed, one.scans_needed)),
                TableCell(str(one.n_there), one.n_there),
            )
            for one in results
        ),
    )
    passed = all(one.passed for one in results)
    sentences = (words.acceptance_sentence(passed), words.stated_sentence(plan))
    return ClinicalSection("acceptance", sentences, (), (verdicts, samples))


def _patients(tables: Tables) -> ClinicalSection | None:
    patients = figures.sum_patients(tables.cases)
    if not any(one.n_lesions for one in patients):
        return None
    draw = partial(figures.draw_patients, patients=patients)
    chart = Chart(draw, 4.2, words.PATIENTS_CAPTION, words.alt_patients(patients))
    return ClinicalSection("patients", (words.patients_sentence(patients),), (chart,))


def _scans(tables: Tables) -> ClinicalSection | None:
    found = tables.scores.raw.get("case_table")
    if not found:
        return None
    rows = found["predictive_values"]
    counts = Listing(
        words.HEADINGS_FOUR,
        (
            (TableCell(words.CALLED), *_count_cells(found, "true_positive", "false_positive")),
            (TableCell(words.NOT_CALLED), *_count_cells(found, "false_negative", "true_negative")),
        ),
    )
    values = Listing(
        words.HEADINGS_VALUES,
        tuple(
            (
                TableCell(text.percent(row["prevalence"])),
                TableCell(words.share(Estimate.from_json(row, "ppv"))),
                TableCell(words.share(Estimate.from_json(row, "npv"))),
            )
            for row in rows
        ),
    )
    known = any(Estimate.from_json(row, "ppv").value is not None for row in rows)
    said = words.SCANS_TEXT if known else words.SCANS_ONE_KIND
    return ClinicalSection("scans", (said,), (), (counts, values) if known else (counts,))


def _count_cells(found: Mapping[str, Any], *keys: str) -> tuple[TableCell, ...]:
    return tuple(TableCell(str(found[key]), found[key]) for key in keys)


def _load(tables: Tables) -> ClinicalSection | None:
    found = tables.scores.raw.get("lesion_load")
    if not found:
        return None
    lines = tuple(
        (
            TableCell(words.LOADS[key]),
            TableCell(str(found[key]["n"]), found[key]["n"]),
            *(
                TableCell(text.measure(Estimate.from_json(found[key], name)))
                for name in ("bias", "lower_limit", "upper_limit", "icc")
            ),
        )
        for key in words.LOADS
        if found[key]["n"]
    )
    charts: tuple[Chart, ...] = ()
    if len(figures.volumes(tables.cases)) > 1:
        numbers = {n: Estimate.from_json(found["volume_ml"], n).value for n in figures.LINES}
        draw = partial(figures.draw_load, cases=tables.cases, numbers=numbers)
        charts = (Chart(draw, 3.8, words.LOAD_CAPTION, words.alt_load(numbers)),)
    return ClinicalSection(
        "load", (words.LOAD_TEXT,), charts, (Listing(words.HEADINGS_LOAD, lines),)
    )
