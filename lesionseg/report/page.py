"""The sensitivity report as one self-contained HTML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionseg import __version__
from lesionseg.errors import OutputError
from lesionseg.io.atomic import write_text
from lesionseg.report import text
from lesionseg.report.figures.anchor_fit import anchor_charts
from lesionseg.report.figures.balance_charts import balance_charts, balance_warnings
from lesionseg.report.figures.chart_drawing import TOP, froc_range
from lesionseg.report.figures.chart_list import comparison_charts, make_charts
from lesionseg.report.inputs.origin import origin
from lesionseg.report.inputs.result_tables import Tables
from lesionseg.report.inputs.scores_file import Scores
from lesionseg.report.inputs.second_model import ModelPair
from lesionseg.report.inputs.study_file import Study, make_flow
from lesionseg.report.inputs.threshold_sweep import make_sweep
from lesionseg.report.sections import detail_tables
from lesionseg.report.sections import table_cells as listing
from lesionseg.report.sections.absences import list_absences
from lesionseg.report.sections.audit_section import Section
from lesionseg.report.sections.checklists import CHECKLISTS, Checklist, State
from lesionseg.report.sections.gallery import Hanging, trim
from lesionseg.report.sections.gallery_choice import Wall
from lesionseg.report.sections.optional_sections import KEYS, make_extras

MAX_BYTES = 15_000_000
# Pictures of each kind, tried in turn until the page is small enough.
FEWER = (100, 80, 60, 45, 30, 20, 12, 6, 3, 1, 0)
TEMPLATES = Path(__file__).parent / "templates"
Context = Mapping[str, Any]


@dataclass(frozen=True)
class Banner:
    """A warning that must be read before the figures."""

    title: str
    text: str


@dataclass(frozen=True)
class Fact:
    """A sentence of the first screen, its definition, and the table its numbers are counted from.

    `terms`: what that table is searched for, to show these rows alone.
    """

    words: str
    definition: str = ""
    rows: str = ""
    terms: str = ""


def make_context(
    tables: Tables,
    study: Study,
    *,
    history: Path | None = None,
    title: str | None = None,
    identifiers: bool = False,
    audit: Section | None = None,
    pair: ModelPair | None = None,
    names: tuple[str, str] = text.NAMES,
) -> Context:
    """Everything that the page is filled with, the pictures aside."""
    scores, sweep = tables.scores, make_sweep(tables)
    charts = {
        **make_charts(tables, history, sweep),
        **comparison_charts(tables, pair, names),
        **balance_charts(tables.folder),
        **anchor_charts(tables.folder),
    }
    flat = bool(tables.lesions) and all(len(lesion.start_vox) == 2 for lesion in tables.lesions)
    flow = make_flow(tables, study)
    context = {
        "text": text,
        "title": title or text.TITLE,
        "version": __version__,
        "scores": scores,
        "banners": banners(scores),
        "facts": facts(tables, study),
        "charts": charts,
        "balance_warnings": balance_warnings(tables.folder),
        "audit": audit,
        "sweep": sweep,
        "sizes": listing.list_sizes(scores.recall_by_size, scores.size_unit, scores.size_said),
        **_detail_listings(tables, pair, names),
        "measures": listing.list_measures(scores),
        "reasons": listing.list_reasons(tables.lesions),
        "rules": listing.list_rules(scores, tables.lesions),
        "labels": listing.list_labels(scores),
        "cases": listing.list_cases(tables.cases, scores.size_unit),
        "lesions": listing.list_lesions(tables.lesions, scores.recall_by_size, scores.size_unit),
        "marks": listing.list_marks(tables.candidates, scores.size_unit),
        "extras": make_extras(scores),
        "flow": flow,
        "unexplained": text.unexplained(flow.n_unexplained),
        "study": listing.list_pairs(text.HEADINGS_STUDY, study.lines()),
        "n_answers": len(study.answers),
        "provenance": listing.list_pairs(
            text.HEADINGS_PROVENANCE, origin(scores, tables.folder, identifiers=identifiers)
        ),
        "flat": flat,
        "identifiers": identifiers,
        "words": _words_of_script(scores),
    }
    sections = _sections(context)
    there = ("summary", *sections)
    guides = [
        (c, listing.list_items(c, study, there), _states(c, study, there)) for c in CHECKLISTS
    ]
    return {**context, "sections": sections, "checklists": guides}


def _detail_listings(tables: Tables, pair: ModelPair | None, names: tuple[str, str]) -> Context:
    """The tables of the further numbers; None where the scores hold none."""
    details, unit = tables.details, tables.scores.size_unit
    curve, reliability = details.size_curve, details.reliability
    return {
        "quantiles": listing.list_quantiles(tables.scores),
        "curve": curve and detail_tables.list_curve(curve, unit),
        "cells": detail_tables.list_cells(details.cells, unit),
        "subgroups": detail_tables.list_subgroups(details.subgroups),
        "regions": detail_tables.list_regions(details.regions),
        "reliability": reliability and detail_tables.list_reliability(reliability),
        "differences": detail_tables.list_differences(details.differences, names),
        "absences": list_absences(tables, pair is not None),
    }


def write_page(
    path: Path, context: Context, hangings: Sequence[Hanging], walls: Sequence[Wall]
) -> str:
    """Write the page with as many pictures as fit, whole or not at all; returns its text.

    Raises `OutputError` when it is too large even without pictures.
    """
    page = render("report.html.j2", context, hangings)
    for fewer in FEWER:
        if len(page.encode()) <= MAX_BYTES:
            break
        page = render("report.html.j2", context, trim(hangings, walls, fewer))
    if len(page.encode()) > MAX_BYTES:
        raise OutputError("The report is too large.", seen=len(page.encode()), expected=MAX_BYTES)
    write_text(path, page)
    return page


def render(template: str, context: Context, hangings: Sequence[Hanging]) -> str:
    """Fill a template; names from tables are escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**context, hangings=hangings)


def banners(scores: Scores) -> tuple[Banner, ...]:
    """Everything that makes the figures look better than they are."""
    found = []
    if scores.simulated:
        found.append(Banner(text.SIMULATED, text.SIMULATED_TEXT))
    if scores.evaluated_on in text.DEVELOPMENT_TEXT:
        found.append(Banner(text.DEVELOPMENT, text.DEVELOPMENT_TEXT[scores.evaluated_on]))
    elif scores.operating_point.optimistic:
        found.append(Banner(text.DEVELOPMENT, text.POINT_OPTIMISTIC))
    if not text.role_is_stated(scores.evaluated_on):
        found.append(Banner(text.ROLE_UNKNOWN, text.ROLE_UNKNOWN_TEXT))
    if scores.split_is_group_safe is False:
        found.append(Banner(text.NOT_GROUP_SAFE, text.NOT_GROUP_SAFE_TEXT))
    return tuple(found)


def facts(tables: Tables, study: Study | None = None) -> tuple[Fact, ...]:
    """The first screen's sentences, in order; the first is the headline."""
    scores, answers = tables.scores, study.answers if study else {}
    false, ignored = (text.OUTCOMES[name] for name in ("false_positive", "ignored"))
    told = (
        Fact(text.headline(tables, answers), "found", "study-table"),
        Fact(text.size_sentence(scores), "size"),
        Fact(text.overall_sentence(scores), "interval", "lesion-table", text.MISSED),
        Fact(text.halving_sentence(tables), "interval"),
        Fact(text.false_mark_sentence(scores), "false-mark", "mark-table", false),
        Fact(text.ignored_sentence(scores), "ignored", "mark-table", ignored),
        Fact(text.scans_sentence(tables), "", "case-table"),
        Fact(text.failed_sentence(tables), "failed", "case-table", text.FAILED),
        Fact(text.operating_point_sentence(scores), "operating-point", "mark-table"),
    )
    return tuple(fact for fact in told if fact.words)


def summary(tables: Tables) -> tuple[str, ...]:
    """The words of the first screen."""
    return tuple(fact.words for fact in facts(tables))


def _words_of_script(scores: Scores) -> dict[str, Any]:
    """What the page's script prints by itself, and the axes of the curve it draws on."""
    return {
        "said": text.SLIDER_SAID,
        "free": text.SLIDER_FREE,
        "of": text.SLIDER_OF,
        "never": text.SLIDER_NEVER,
        "unit": scores.size_unit,
        "froc": froc_range(scores),
        "top": TOP,
    }


def _states(checklist: Checklist, study: Study, there: Sequence[str]) -> str:
    states: tuple[State, ...] = ("automatic", "supplied", "not stated")
    return text.checklist_sentence(*(checklist.n(state, study, there) for state in states))


def _sections(context: Context) -> tuple[str, ...]:
    """The sections the page has, in order."""
    present = {
        "summary": False,  # the first screen needs no link
        "size": "size" in context["charts"],
        "training": "training" in context["charts"],
        "balance": "balance" in context["charts"],
        "anchors": "anchors" in context["charts"],
        "audit": context["audit"] is not None,
        "labels": bool(context["labels"].lines),
        "regions": bool(context["regions"].lines),
        "why": bool(context["reasons"].lines),
        "comparison": bool(context["differences"].lines) or "froc_pair" in context["charts"],
        "subgroups": bool(context["subgroups"].lines),
        "calibration": "calibration" in context["charts"],
        "absent": bool(context["absences"].lines),
        **{key: key in context["extras"] for key in KEYS},
    }
    return tuple(key for key in text.SECTIONS if present.get(key, True))
