"""Sections of what a hospital asks first: each patient, each scan's verdict, the lesion load."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from lesionseg.evaluation.acceptance import AcceptancePlan, judge
from lesionseg.evaluation.score_sections import Scores
from lesionseg.evaluation.statistics.estimates import Estimate, difference
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
    tables: Tables, plan: AcceptancePlan | None = None, elsewhere: Scores | None = None
) -> tuple[ClinicalSection, ...]:
    """Those for which the evaluation has numbers, in the page's order; first those asked for."""
    makers: tuple[Callable[[Tables], ClinicalSection | None], ...] = (_patients, _scans, _load)
    first = () if plan is None else (_acceptance(tables, plan),)
    beside = () if elsewhere is None else (_elsewhere(tables.scores, elsewhere),)
    return (*first, *beside, *(one for make in makers if (one := make(tables)) is not None))


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


def _elsewhere(here: Scores, there: Scores) -> ClinicalSection:
    """Case mix and performance on these scans and on others, with unpaired differences."""
    both = (here, there)
    mix = ((TableCell(name), *(TableCell(said(s)) for s in both)) for name, said in CASE_MIX)
    pairs = {
        text.measure_name(key): (here.estimate(key), there.estimate(key)) for key in words.ELSEWHERE
    }
    others = {half.from_mm: half for half in there.recall_by_half if half.n}
    for half in here.recall_by_half:
        if half.n and half.from_mm in others:
            pairs[text.side_label(half, here)] = half.recall, others[half.from_mm].recall
    lines = (
        (TableCell(name), *map(_measure, pair), TableCell(text.difference(difference(*pair))))
        for name, pair in pairs.items()
        if all(one.value is not None for one in pair)
    )
    rows = (*((*line, TableCell("")) for line in mix), *lines)
    table = Listing(words.HEADINGS_ELSEWHERE, rows)
    return ClinicalSection("elsewhere", (words.ELSEWHERE_TEXT,), (), (table,))


def _measure(found: Estimate) -> TableCell:
    return TableCell(text.measure(found))


def _small(scores: Scores) -> str:
    halves = [half for half in scores.recall_by_half if half.from_mm == 0]
    return text.of(sum(half.n for half in halves), scores.n_lesions)


CASE_MIX: tuple[tuple[str, Callable[[Scores], str]], ...] = (
    (words.ROLE, lambda s: text.role_words(s.evaluated_on)),
    (words.SCANS, lambda s: str(s.n_cases)),
    (words.LESION_FREE, lambda s: text.of(s.n_lesion_free_cases, s.n_cases)),
    (words.PER_SCAN, lambda s: text.rate(s.n_lesions / s.n_cases) if s.n_cases else text.NONE),
    (words.SMALL, _small),
)


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
    sure = any(Estimate.from_json(row, "ppv").ci95 is not None for row in rows)
    said = words.SCANS_TEXT if sure else words.SCANS_TOO_FEW
    return ClinicalSection("scans", (said,), (), (counts, values) if sure else (counts,))


def _count_cells(found: Mapping[str, Any], *keys: str) -> tuple[TableCell, ...]:
    return tuple(TableCell(str(found[key]), found[key]) for key in keys)


def _load(tables: Tables) -> ClinicalSection | None:
    found = tables.scores.raw.get("lesion_load")
    if not found:
        return None
    sure = any(Estimate.from_json(one, "bias").ci95 is not None for one in found.values())
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
        numbers = {
            n: Estimate.from_json(found["volume_ml"], n).value if sure else None
            for n in figures.LINES
        }
        draw = partial(figures.draw_load, cases=tables.cases, numbers=numbers)
        charts = (Chart(draw, 3.8, words.LOAD_CAPTION, words.alt_load(numbers)),)
    if not sure:
        return ClinicalSection("load", (words.LOAD_FEW,), charts) if charts else None
    return ClinicalSection(
        "load", (words.LOAD_TEXT,), charts, (Listing(words.HEADINGS_LOAD, lines),)
    )
