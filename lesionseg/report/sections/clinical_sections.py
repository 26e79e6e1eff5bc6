"""Sections of what a hospital asks first: each patient, each scan's verdict, the lesion load."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from lesionseg.evaluation.local_acceptance import AcceptancePlan, judge
from lesionseg.evaluation.score_sections import Scores
from lesionseg.evaluation.statistics.estimates import Estimate, difference
from lesionseg.report import text
from lesionseg.report.figures import detail_figures as figures
from lesionseg.report.figures.chart_list import Chart
from lesionseg.report.result_tables import Tables
from lesionseg.report.sections.table_cells import Listing, TableCell


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
        text.HEADINGS_VERDICTS,
        tuple(
            (
                TableCell(text.measure_name(one.criterion.number)),
                TableCell(text.limit(one.criterion)),
                TableCell(text.measure(one.found)),
                TableCell(text.VERDICT[one.passed]),
            )
            for one in results
        ),
    )
    samples = Listing(
        text.HEADINGS_SAMPLES,
        tuple(
            (
                TableCell(text.measure_name(one.criterion.number)),
                TableCell(f"{one.criterion.expected:g}"),
                TableCell(text.sample(one.criterion, one.n_needed, one.scans_needed)),
                TableCell(str(one.n_there), one.n_there),
            )
            for one in results
        ),
    )
    passed = all(one.passed for one in results)
    result = text.say("ACCEPTANCE", verdict=text.VERDICT[passed])
    sentences = (result, text.stated_sentence(plan))
    return ClinicalSection("acceptance", sentences, (), (verdicts, samples))


def _elsewhere(here: Scores, there: Scores) -> ClinicalSection:
    """Case mix and performance on these scans and on others, with unpaired differences."""
    both = (here, there)
    mix = (
        (TableCell(text.CASE_MIX[key]), *(TableCell(value(scores)) for scores in both))
        for key, value in CASE_MIX.items()
    )
    pairs = {text.measure_name(key): (here.estimate(key), there.estimate(key)) for key in ELSEWHERE}
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
    table = Listing(text.HEADINGS_ELSEWHERE, rows)
    return ClinicalSection("elsewhere", (text.ELSEWHERE_TEXT,), (), (table,))


def _measure(found: Estimate) -> TableCell:
    return TableCell(text.measure(found))


def _small(scores: Scores) -> str:
    halves = [half for half in scores.recall_by_half if half.from_mm == 0]
    return text.of(sum(half.n for half in halves), scores.n_lesions)


CASE_MIX: Mapping[str, Callable[[Scores], str]] = {
    "role": lambda s: text.role_words(s.evaluated_on),
    "scans": lambda s: str(s.n_cases),
    "free": lambda s: text.of(s.n_lesion_free_cases, s.n_cases),
    "per_scan": lambda s: text.rate(s.n_lesions / s.n_cases) if s.n_cases else text.NONE,
    "small": _small,
}
ELSEWHERE = (
    "lesion_recall",
    "false_positives_per_case",
    "case_sensitivity",
    "case_specificity",
    "dice",
)


def _patients(tables: Tables) -> ClinicalSection | None:
    patients = figures.sum_patients(tables.cases)
    if not any(one.n_lesions for one in patients):
        return None
    draw = partial(figures.draw_patients, patients=patients)
    chart = Chart(draw, 4.2, text.PATIENTS_CAPTION, text.alt_patients(patients))
    return ClinicalSection("patients", (text.patients_sentence(patients),), (chart,))


def _scans(tables: Tables) -> ClinicalSection | None:
    found = tables.scores.raw.get("case_table")
    if not found:
        return None
    rows = found["predictive_values"]
    counts = Listing(
        text.HEADINGS_FOUR,
        (
            (TableCell(text.CALLED), *_count_cells(found, "true_positive", "false_positive")),
            (TableCell(text.NOT_CALLED), *_count_cells(found, "false_negative", "true_negative")),
        ),
    )
    values = Listing(
        text.HEADINGS_VALUES,
        tuple(
            (
                TableCell(text.percent(row["prevalence"])),
                TableCell(text.predictive_value(Estimate.from_json(row, "ppv"))),
                TableCell(text.predictive_value(Estimate.from_json(row, "npv"))),
            )
            for row in rows
        ),
    )
    sure = any(Estimate.from_json(row, "ppv").ci95 is not None for row in rows)
    sentence = text.SCANS_TEXT if sure else text.SCANS_TOO_FEW
    return ClinicalSection("scans", (sentence,), (), (counts, values) if sure else (counts,))


def _count_cells(found: Mapping[str, Any], *keys: str) -> tuple[TableCell, ...]:
    return tuple(TableCell(str(found[key]), found[key]) for key in keys)


def _load(tables: Tables) -> ClinicalSection | None:
    found = tables.scores.raw.get("lesion_load")
    if not found:
        return None
    sure = any(Estimate.from_json(one, "bias").ci95 is not None for one in found.values())
    lines = tuple(
        (
            TableCell(text.LOADS[key]),
            TableCell(str(found[key]["n"]), found[key]["n"]),
            *(
                TableCell(text.measure(Estimate.from_json(found[key], name)))
                for name in ("bias", "lower_limit", "upper_limit", "icc")
            ),
        )
        for key in text.LOADS
        if found[key]["n"]
    )
    charts: tuple[Chart, ...] = ()
    if len(figures.volumes(tables.cases)) > 1:
        numbers = {
            n: Estimate.from_json(found["volume_ml"], n).value if sure else None
            for n in figures.LINES
        }
        draw = partial(figures.draw_load, cases=tables.cases, numbers=numbers)
        charts = (Chart(draw, 3.8, text.LOAD_CAPTION, text.alt_load(numbers)),)
    if not sure:
        return ClinicalSection("load", (text.LOAD_FEW,), charts) if charts else None
    return ClinicalSection("load", (text.LOAD_TEXT,), charts, (Listing(text.HEADINGS_LOAD, lines),))
