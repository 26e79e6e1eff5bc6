"""The sensitivity report as one self-contained HTML file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionseg.errors import OutputError
from lesionseg.evaluation.local_acceptance import AcceptancePlan
from lesionseg.evaluation.score_sections import Scores
from lesionseg.io.atomic import write_text
from lesionseg.report import text
from lesionseg.report.figures.balance_charts import balance_charts, balance_warnings
from lesionseg.report.figures.chart_drawing import TOP
from lesionseg.report.figures.chart_list import Chart, comparison_charts, make_charts
from lesionseg.report.figures.dataset_figures import anchor_charts
from lesionseg.report.figures.froc_figure import froc_range
from lesionseg.report.figures.second_model import ModelPair
from lesionseg.report.inputs.origin import origin
from lesionseg.report.inputs.study_file import Flow, Study, make_flow
from lesionseg.report.rendering import render
from lesionseg.report.result_tables import Tables
from lesionseg.report.sections import detail_tables
from lesionseg.report.sections import table_cells as tables_of
from lesionseg.report.sections.audit_section import AuditSection
from lesionseg.report.sections.checklists import CHECKLISTS
from lesionseg.report.sections.clinical_sections import ClinicalSection, make_clinical_sections
from lesionseg.report.sections.first_screen import Banner, Fact, banners, facts, unstated
from lesionseg.report.sections.gallery import GallerySection, trim
from lesionseg.report.sections.optional_sections import KEYS, Extra, make_extras, slider_json
from lesionseg.report.sections.table_cells import Listing

MAX_BYTES = 15_000_000


# Pictures of each kind, tried in turn until the page is small enough.
FEWER = (100, 80, 60, 45, 30, 20, 12, 6, 3, 1, 0)


# sections that are there when their chart is
CLINICAL = ("acceptance", "elsewhere", "patients", "scans", "load")


CHARTED = ("size", "training", "balance", "anchors", "calibration")


@dataclass(frozen=True)
class Guide:
    """A reporting guideline: its items, and how many are in which state."""

    name: str
    source: str
    states: str
    items: Listing


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything that the page and the PDF are filled with, the pictures aside.

    Tables without lines, and None, are left out. `flat`: the scans have two axes. `slider` holds
    the columns that the threshold slider counts, empty without one.
    """

    title: str
    scores: Scores
    flat: bool
    identifiers: bool
    banners: tuple[Banner, ...]
    facts: tuple[Fact, ...]
    charts: Mapping[str, Chart]
    slider: str
    sizes: Listing
    quantiles: Listing
    long_axes: Listing
    size_curve: Listing | None
    contrast: Listing
    quality: Listing
    rules: Listing
    labels: Listing
    regions: Listing
    measures: Listing
    reasons: Listing
    differences: Listing
    non_inferiority: str
    subgroups: Listing
    subgroups_said: str
    calibration: Listing | None
    extras: Mapping[str, Extra]
    clinical: tuple[ClinicalSection, ...]
    flow: Flow
    study: Study
    cases: Listing
    lesions: Listing
    candidates: Listing
    balance_warnings: Sequence[str]
    audit: AuditSection | None
    absences: Listing
    provenance: Listing

    @property
    def sections(self) -> tuple[str, ...]:
        """The sections the page has, in order."""
        present = {
            "summary": False,  # the first screen needs no link
            **{key: key in self.charts for key in CHARTED},
            "audit": self.audit is not None,
            "rest": False,
            "further": bool(self.scores.n_lesions),
            "labels": bool(self.labels.lines),
            "regions": bool(self.regions.lines),
            "why": bool(self.reasons.lines),
            "comparison": bool(self.differences.lines) or "froc_pair" in self.charts,
            "subgroups": bool(self.subgroups.lines),
            "absent": bool(self.absences.lines),
            **{key: key in self.extras for key in KEYS},
            **{key: key in {one.key for one in self.clinical} for key in CLINICAL},
        }
        return tuple(key for key in text.SECTIONS if present.get(key, True))

    @property
    def definitions(self) -> Mapping[str, tuple[str, str]]:
        """Those of what is on the page."""
        named = {fact.definition for fact in self.facts}
        charts = {"size-curve": "size_curve", "reliability": "calibration"}
        return {
            key: meaning
            for key, meaning in text.meanings(self.scores.match_rule).items()
            if (key in named or key not in text.OF_SOME_SCANS)
            and (key not in charts or charts[key] in self.charts)
        }

    @property
    def study_table(self) -> Listing:
        """Every question of a study file with its answer."""
        return tables_of.list_pairs(text.HEADINGS_STUDY, self.study.lines())

    @property
    def guides(self) -> tuple[Guide, ...]:
        """The reporting guidelines, by the sections there are and what was supplied."""
        there = (*(f"#{key}" for key in ("summary", *self.sections)), *self._facts())
        return tuple(
            Guide(
                guide.name,
                guide.source,
                text.say("CHECKLIST", **guide.counts(self.study, there)),
                tables_of.list_items(guide, self.study, there),
            )
            for guide in CHECKLISTS
        )

    def _facts(self) -> Iterator[str]:
        """What guidelines ask for beyond a section that is there."""
        scores = self.scores
        known = {
            "=intervals": scores.estimate("lesion_recall").ci95 is not None,
            "=found": self.flow.n_found is not None,
            "=split": scores.split_is_group_safe is not None,
            f"={scores.evaluated_on}": True,
        }
        yield from (fact for fact, holds in known.items() if holds)

    @property
    def script_words(self) -> dict[str, Any]:
        """What the page's script prints by itself, and the axes of the curve it draws on."""
        return {
            "summary": text.SLIDER_SUMMARY,
            "free": text.SLIDER_FREE,
            "of": text.OF,
            "never": text.SLIDER_NEVER,
            "unit": self.scores.size_unit,
            "froc": froc_range(self.scores),
            "top": TOP,
        }


def make_page(
    tables: Tables,
    study: Study,
    *,
    history: Path | None = None,
    title: str | None = None,
    identifiers: bool = False,
    audit: AuditSection | None = None,
    pair: ModelPair | None = None,
    names: tuple[str, str] | None = None,
    acceptance: AcceptancePlan | None = None,
    elsewhere: Scores | None = None,
) -> Page:
    """The page of an evaluation.

    Args:
        tables: scores and rows, with the names that are to be shown.
        study: what its authors supplied.
        history: a training's metrics.csv.
        title: the page's title; None takes the usual one.
        identifiers: whether real names and paths are printed.
        audit: references worth a second look.
        pair: a second model or reader on the same scans.
        names: what the model and the one it is compared with are called; None: the usual words.
        acceptance: the criteria that these scans must meet.
        elsewhere: the same model's scores on other scans.
    """
    names = names or text.NAMES
    scores, details, unit = tables.scores, tables.details, tables.scores.size_unit
    curve, calibration = details.size_curve, details.calibration
    lines = origin(scores, tables.folder, identifiers=identifiers)
    return Page(
        title=title or text.TITLE,
        scores=scores,
        flat=bool(tables.lesions) and all(len(row.start_vox) == 2 for row in tables.lesions),
        identifiers=identifiers,
        banners=(*banners(scores), *unstated(study)),
        facts=facts(tables, study),
        charts={
            **make_charts(tables, history),
            **comparison_charts(tables, pair, names),
            **balance_charts(tables.folder),
            **anchor_charts(tables.folder),
        },
        slider=slider_json(tables),
        sizes=tables_of.list_sizes(scores),
        quantiles=tables_of.list_quantiles(scores),
        long_axes=tables_of.list_long_axes(scores),
        size_curve=detail_tables.list_curve(curve, unit) if curve else None,
        contrast=detail_tables.list_cells(details.cells, unit),
        quality=detail_tables.list_quality(scores, details.quality),
        rules=tables_of.list_rules(scores, tables.lesions),
        labels=tables_of.list_labels(scores),
        regions=detail_tables.list_regions(details.regions),
        measures=tables_of.list_measures(scores),
        reasons=tables_of.list_reasons(tables.lesions),
        differences=detail_tables.list_differences(details.differences, names),
        non_inferiority=text.margin_sentence(details.differences, names),
        subgroups=detail_tables.list_subgroups(details.subgroups),
        subgroups_said=text.subgroups_sentence(
            [group.by for group in details.subgroups], study.answers.get("subgroups", "")
        ),
        calibration=detail_tables.list_reliability(calibration) if calibration else None,
        extras=make_extras(scores),
        clinical=make_clinical_sections(tables, acceptance, elsewhere),
        flow=make_flow(tables, study),
        study=study,
        cases=tables_of.list_cases(tables.cases, unit),
        lesions=tables_of.list_lesions(tables.lesions, scores.recall_by_size, unit),
        candidates=tables_of.list_candidates(tables.candidates, unit),
        balance_warnings=balance_warnings(tables.folder),
        audit=audit,
        absences=detail_tables.list_absences(tables, pair is not None),
        provenance=tables_of.list_pairs(text.HEADINGS_PROVENANCE, lines),
    )


def write_page(path: Path, page: Page, gallery: Sequence[GallerySection]) -> str:
    """Write the page with as many pictures as fit, whole or not at all; returns its text.

    Raises `OutputError` when it is too large even without pictures.
    """
    html = render("report.html.j2", page, gallery=gallery)
    for fewer in FEWER:
        if len(html.encode()) <= MAX_BYTES:
            break
        html = render("report.html.j2", page, gallery=trim(gallery, fewer))
    if len(html.encode()) > MAX_BYTES:
        raise OutputError("The report is too large.", seen=len(html.encode()), expected=MAX_BYTES)
    write_text(path, html)
    return html
