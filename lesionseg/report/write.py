"""Everything a report leaves on disk: the page, its PDF, pseudonyms, false positives to judge."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lesionseg.core import Dataset
from lesionseg.errors import LesionsegError, ReadError
from lesionseg.evaluation.acceptance import read_acceptance
from lesionseg.io.atomic import write_text
from lesionseg.report import text
from lesionseg.report.figures.chart_list import Chart
from lesionseg.report.figures.pictures import Load, Scene
from lesionseg.report.inputs.pseudonyms import (
    Names,
    make_pseudonyms,
    names_in,
    rename,
    write_pseudonyms,
)
from lesionseg.report.inputs.result_tables import read_tables
from lesionseg.report.inputs.second_model import read_pair
from lesionseg.report.inputs.study_file import read_study
from lesionseg.report.page import Page, make_page, render, write_page
from lesionseg.report.pdf.document import SummaryPage, write_pdf
from lesionseg.report.pdf.paper_tables import Block
from lesionseg.report.sections.adjudication_sheet import write_adjudication
from lesionseg.report.sections.audit_section import (
    AuditSection,
    make_audit_section,
    read_suspects,
)
from lesionseg.report.sections.gallery import GallerySection, Progress, draw_gallery, trim
from lesionseg.report.sections.gallery_choice import ALL, Limits, choose_items
from lesionseg.report.sections.reader_study import write_reader_study
from lesionseg.report.sections.table_cells import list_pairs

_log = logging.getLogger(__name__)
# On paper every picture costs a sixth of a page.
ON_PAPER = 12
PER_GALLERY_PAGE = 60
PAIR_SHARES = (0.26, 0.12, 0.12, 0.32, 0.08, 0.1)
SUBGROUP_SHARES = (0.14, 0.18, 0.08, 0.09, 0.11, 0.08, 0.13, 0.11, 0.08)
GUIDE_SHARES = (0.08, 0.5, 0.15, 0.27)
CASE_SHARES = (0.1, 0.11, 0.08, 0.08, 0.075, 0.08, 0.075, 0.065, 0.08, 0.075, 0.095, 0.085)


@dataclass(frozen=True)
class Options:
    """What a report is: its title, how many pictures, and what goes beside the page.

    `identifiers` True prints the real names of cases and patients. `whole_gallery` writes every
    miss and every false positive into the folder `gallery`. `study` is a study.yaml. `names`: what
    this model or reader and the one it is compared with are called. `acceptance`: a file of limits
    that these scans must meet.
    """

    title: str | None = None
    limits: Limits = field(default_factory=Limits)
    pdf: bool = False
    identifiers: bool = False
    whole_gallery: bool = False
    study: Path | None = None
    names: tuple[str, str] = text.NAMES
    acceptance: Path | None = None


def write_report(
    scores_dir: Path,
    output: Path,
    *,
    images: Path | Dataset | None = None,
    reference: Path | None = None,
    prediction: Path | None = None,
    history: Path | None = None,
    compare: Path | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write `output/report.html` from the tables in `scores_dir`, and return its path.

    `images` and `reference` are dataset roots (or one read already) or folders of bare files,
    `prediction` a folder of prediction files: they give the pictures, which are left out without
    `images`. `history` is a training's metrics.csv. `compare` holds another model's or reader's
    evaluation of the same scans. `progress` is told (case, cases drawn, cases
    to draw). The page needs no network and has at most 15 MB; it is written whole or not at all.
    Beside it: `adjudicate.csv`, with `compare` the tables of a reader study, `pseudonyms.csv`
    unless identifiers are printed, `report.pdf` and the folder `gallery` where the options say so.

    Raises `ReadError` and `ContentError` for tables that are missing, unreadable or of different
    evaluations, `ConfigError` for a study file that is wrong, `OutputError` when the page cannot
    be kept within its size.
    """
    options = options or Options()
    tables, study = read_tables(scores_dir), read_study(options.study)
    pair = None if compare is None else read_pair(tables, compare, options.names)
    names = None if options.identifiers else make_pseudonyms(tables)
    shown = tables if names is None else rename(tables, names)
    page = make_page(
        shown,
        study,
        history=history,
        title=options.title,
        identifiers=options.identifiers,
        pair=pair,
        names=options.names,
        acceptance=None if options.acceptance is None else read_acceptance(options.acceptance),
        audit=_audit(scores_dir, images, reference, tables.scores.size_unit, options),
    )
    gallery: tuple[GallerySection, ...] = ()
    if images is not None:
        selections = choose_items(shown, ALL if options.whole_gallery else options.limits)
        load = _loader(images, reference, prediction, names)
        gallery = draw_gallery(selections, shown, load, progress)
    output.mkdir(parents=True, exist_ok=True)
    html = write_page(output / "report.html", page, gallery)
    write_adjudication(output / "adjudicate.csv", tables)
    if pair is not None:
        other = pair.other if names is None else rename(pair.other, names)
        readings = dict(zip(options.names, (shown, other), strict=True))
        write_reader_study(output / "reader_study", readings)
    if names is not None:
        write_pseudonyms(output / "pseudonyms.csv", tables, names)
        _warn_of(names_in(html, names))
    if options.whole_gallery and gallery:
        _write_gallery(output / "gallery", page, gallery)
    if options.pdf:
        few = trim(gallery, ON_PAPER)
        write_pdf(output / "report.pdf", _on_paper(page), _charts(page), few)
    return output / "report.html"


def _audit(
    folder: Path, images: Path | Dataset | None, reference: Path | None, unit: str, options: Options
) -> AuditSection | None:
    """What a run directory says of the references it was trained on."""
    suspects = read_suspects(folder / "label_audit.csv")
    # the audit has the real names, and no predictions
    load = None if images is None or not suspects else _loader(images, reference, None, None)
    return make_audit_section(suspects, load, unit, identifiers=options.identifiers)


def _loader(
    images: Path | Dataset, reference: Path | None, prediction: Path | None, names: Names | None
) -> Load:
    # the readers of images are loaded only where there are images to read
    from lesionseg.report.inputs.case_images import Sources

    sources = Sources(images, reference, prediction)
    if names is None:
        return sources.load

    def load(case: str, accepted: frozenset[int]) -> Scene:
        try:
            return sources.load(names.real_case(case), accepted)
        except LesionsegError as error:
            _log.warning("%s is %s: %s", case, names.real_case(case), error)
            raise ReadError(text.UNREADABLE) from error

    return load


def _warn_of(found: Sequence[str]) -> None:
    """Names that came in by a title or a study file."""
    if found:
        _log.warning(
            "The page names %s: look at its title, study file and labels before passing it on.",
            ", ".join(found),
        )


def _write_gallery(folder: Path, page: Page, gallery: Sequence[GallerySection]) -> None:
    """All pictures, a page for every sixty of a kind, and the list of these pages."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = []
    for section in gallery:
        for first in range(0, len(section.cards), PER_GALLERY_PAGE):
            cards = section.cards[first : first + PER_GALLERY_PAGE]
            title = text.gallery_page(section.title, first + 1, first + len(cards))
            name = f"{section.kind}-{first // PER_GALLERY_PAGE + 1}.html"
            part = replace(section, title=title, cards=cards, sentence=text.ALL_SHOWN)
            write_text(folder / name, render("gallery.html.j2", page, gallery=[part]))
            pages.append((name, title))
    write_text(folder / "index.html", render("index.html.j2", page, pages=pages))


def _charts(page: Page) -> list[Chart]:
    """In the order of `text.CHART_TITLES`, with their titles."""
    return [
        replace(page.charts[key], title=title)
        for key, title in text.CHART_TITLES.items()
        if key in page.charts
    ]


def _on_paper(page: Page) -> SummaryPage:
    return SummaryPage(
        title=page.title,
        role=text.role_words(page.scores.evaluated_on),
        banners=[f"{banner.title}. {banner.text}" for banner in page.banners],
        sentences=[fact.words for fact in page.facts],
        sizes=page.sizes,
        blocks=_blocks(page),
    )


def _detail_blocks(page: Page) -> list[Block]:
    """The tables of the further numbers, where there are any."""
    titles = text.SECTIONS
    tables = (
        (text.ABSENT["size_curve"], page.size_curve, (0.3, 0.7), ""),
        (text.ABSENT["recall_by_size_and_contrast"], page.contrast, (), ""),
        (titles["comparison"], page.differences, PAIR_SHARES, text.P_VALUE_TEXT),
        (titles["subgroups"], page.subgroups, SUBGROUP_SHARES, text.EXTRAS["subgroups"]),
        (titles["calibration"], page.calibration, (0.6, 0.4), text.EXTRAS["calibration"]),
    )
    return [
        Block(title, listing, shares, words=words)
        for title, listing, shares, words in tables
        if listing
    ]


def _blocks(page: Page) -> tuple[Block, ...]:
    """The tables on paper, in the page's order; lesions and candidates stay on the page."""
    titles, flow = text.SECTIONS, list_pairs(text.HEADINGS_FLOW, page.flow.lines())
    definitions = list_pairs(text.HEADINGS_DEFINITIONS, text.DEFINITIONS.values())
    extras = [
        Block(f"{titles[key]}: {title}", listing)
        for key, extra in page.extras.items()
        for title, listing in extra.tables
    ]
    return (
        Block(titles["froc"], page.measures, (0.4, 0.6), (0, 1)),
        Block(titles["size"], page.rules, (0.5, 0.25, 0.25), words=text.OTHER_RULES),
        *_detail_blocks(page),
        Block(titles["labels"], page.labels),
        Block(titles["why"], page.reasons, (0.7, 0.3)),
        *extras,
        Block(titles["flow"], flow, (0.4, 0.6), words=text.unexplained(page.flow.n_unexplained)),
        Block(
            titles["study"],
            page.study_table,
            (0.4, 0.6),
            words=text.STUDY_TEXT,
        ),
        Block(titles["cases"], page.cases, CASE_SHARES),
        Block(titles["absent"], page.absences, (0.4, 0.6)),
        Block(titles["definitions"], definitions, (0.25, 0.75)),
        Block(titles["provenance"], page.provenance, (0.4, 0.6)),
        *(
            Block(f"{guide.name}: {guide.states}", guide.items, GUIDE_SHARES, words=guide.source)
            for guide in page.guides
        ),
    )
