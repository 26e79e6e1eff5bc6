"""Everything a report leaves on disk: the page, its PDF, pseudonyms, false positives to judge."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lesionseg.core import Dataset
from lesionseg.errors import LesionsegError, ReadError
from lesionseg.evaluation.local_acceptance import read_acceptance
from lesionseg.evaluation.score_sections import Scores
from lesionseg.io.atomic import private_files, write_text
from lesionseg.report import text
from lesionseg.report.figures.pictures import Load
from lesionseg.report.figures.second_model import check_rule, read_pair
from lesionseg.report.inputs.case_images import Scene
from lesionseg.report.inputs.origin import (
    Names,
    make_pseudonyms,
    names_in,
    rename,
    write_pseudonyms,
)
from lesionseg.report.inputs.study_file import read_study
from lesionseg.report.page import Page, make_page, write_page
from lesionseg.report.pdf import write_pdf
from lesionseg.report.rendering import render
from lesionseg.report.result_tables import Tables, read_scores, read_tables
from lesionseg.report.sections.audit_section import (
    AuditSection,
    make_audit_section,
    read_suspects,
)
from lesionseg.report.sections.gallery import (
    ALL,
    GallerySection,
    Limits,
    Progress,
    choose_items,
    draw_gallery,
    draw_items,
    link,
    trim,
)
from lesionseg.report.sections.reader_sheets import (
    write_adjudication,
    write_blinded,
    write_reader_study,
)

_log = logging.getLogger(__name__)
ON_PAPER = 9  # pictures of a kind: as many as fit a sheet
PER_GALLERY_PAGE = 60


@dataclass(frozen=True)
class Options:
    """What a report is: its title, how many pictures, and what goes beside the page.

    `identifiers` True prints the real names of cases and patients. `whole_gallery` writes every
    miss and every false positive into the folder `gallery`. `study` is a study.yaml. `names`: what
    this model or reader and the one it is compared with are called; None: the usual words.
    `acceptance`: a file of limits that these scans must meet. `elsewhere`: the same model's
    evaluation of other scans. `viewer`: a page for every scan, in the folder `viewer`.
    `two_readers`: sheets and pictures for two blinded readers, in the folder `adjudication`.
    `language`: `en` or `de`.
    """

    title: str | None = None
    limits: Limits = field(default_factory=Limits)
    pdf: bool = False
    identifiers: bool = False
    whole_gallery: bool = False
    study: Path | None = None
    names: tuple[str | None, str | None] = (None, None)
    acceptance: Path | None = None
    elsewhere: Path | None = None
    viewer: bool = False
    two_readers: bool = False
    language: str = "en"


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

    The page needs no network and has at most 15 MB; it is written whole or not at all.
    Beside it: `adjudicate.csv`, with `compare` the tables of a reader study, `pseudonyms.csv`
    unless identifiers are printed, `report.pdf` and the folder `gallery` where the options say so.

    Raises `ReadError` and `ContentError` for tables that are missing, unreadable or of different
    evaluations, `ConfigError` for a study file that is wrong, `OutputError` when the page cannot
    be kept within its size.

    Args:
        scores_dir: what `evaluate` or `train` wrote.
        output: folder of the page.
        images: a dataset's root, a dataset or a folder of bare files; None for no pictures.
        reference: a dataset's root or a folder of masks, drawn into the pictures.
        prediction: a folder of prediction files, drawn into the pictures.
        history: a training's metrics.csv.
        compare: another model's or reader's evaluation of the same scans.
        options: what the page shows; None for the defaults.
        progress: told the case, how many are drawn and how many there are to draw.
    """
    options = options or Options()
    with text.speaking(options.language):
        if options.viewer:
            from lesionseg.report.viewer import require_niivue

            require_niivue()
        tables, study = read_tables(scores_dir), read_study(options.study)
        given, usual = options.names, text.NAMES
        one, other = given[0] or usual[0], given[1] or usual[1]
        pair = None if compare is None else read_pair(tables, compare, (one, other))
        names = None if options.identifiers else make_pseudonyms(tables)
        shown = tables if names is None else rename(tables, names)
        page = make_page(
            shown,
            study,
            history=history,
            title=options.title,
            identifiers=options.identifiers,
            pair=pair,
            names=(one, other),
            acceptance=None if options.acceptance is None else read_acceptance(options.acceptance),
            elsewhere=_scores_elsewhere(options.elsewhere, tables),
            audit=_audit(scores_dir, images, reference, tables.scores.size_unit, options),
        )
        gallery: tuple[GallerySection, ...] = ()
        if images is not None:
            selections = choose_items(shown, ALL if options.whole_gallery else options.limits)
            load = _loader(images, reference, prediction, names)
            gallery = draw_gallery(selections, shown, load, progress)
            if options.viewer:
                gallery = link(gallery, _write_viewers(output / "viewer", shown, load))
        output.mkdir(parents=True, exist_ok=True)
        html = write_page(output / "report.html", page, gallery)
        write_adjudication(output / "adjudicate.csv", tables)
        if options.two_readers:
            folder = output / "adjudication"
            items = write_blinded(folder, tables, shown)
            if items and images is not None:
                _write_items(folder, page, draw_items(items, shown, load, progress))
        if pair is not None:
            beside = pair.other if names is None else rename(pair.other, names)
            write_reader_study(output / "reader_study", {one: shown, other: beside})
        if names is not None:
            with private_files():  # who reads it knows the patients
                write_pseudonyms(output / "pseudonyms.csv", tables, names)
            _warn_of(names_in(html, names))
        if options.whole_gallery and gallery:
            _write_gallery(output / "gallery", page, gallery)
        if options.pdf:
            few = trim(gallery, ON_PAPER)
            write_pdf(
                output / "report.pdf", render("report.html.j2", page, gallery=few, paper=True)
            )
        return output / "report.html"


def _scores_elsewhere(folder: Path | None, tables: Tables) -> Scores | None:
    """The scores of other scans; `ContentError` when they count by another match rule."""
    if folder is None:
        return None
    there, here = read_scores(folder / "scores.json"), tables.scores
    check_rule(folder, there, here)
    return there


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


def _write_viewers(folder: Path, tables: Tables, load: Load) -> dict[str, str]:
    """A page for each scan that can be read; where they lie beside the report, by case."""
    from lesionseg.report.viewer import write_viewer  # as above

    pages = {}
    for case in [row.case for row in tables.cases]:
        try:
            scene = load(case, frozenset())
        except LesionsegError as error:
            _log.warning("No page on the scan of %s: %s", case, error)
            continue
        page = write_viewer(folder, case.replace(" ", "-"), case, scene)
        pages[case] = f"{folder.name}/{page.name}"
    return pages


def _write_items(folder: Path, page: Page, section: GallerySection) -> None:
    """What both readers look at: no score, no order."""
    write_text(folder / "pictures.html", render("gallery.html.j2", page, gallery=[section]))


def _write_gallery(folder: Path, page: Page, gallery: Sequence[GallerySection]) -> None:
    """All pictures, a page for every sixty of a kind, and the list of these pages."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = []
    for section in gallery:
        for first in range(0, len(section.cards), PER_GALLERY_PAGE):
            cards = section.cards[first : first + PER_GALLERY_PAGE]
            ends = {"first": first + 1, "last": first + len(cards)}
            title = text.say("GALLERY_PAGE", title=section.title, **ends)
            name = f"{section.kind}-{first // PER_GALLERY_PAGE + 1}.html"
            part = replace(section, title=title, cards=cards, sentence=text.ALL_SHOWN)
            (part,) = link([part], {c.case: f"../{c.link}" for c in cards if c.link})
            write_text(folder / name, render("gallery.html.j2", page, gallery=[part]))
            pages.append((name, title))
    write_text(folder / "index.html", render("index.html.j2", page, pages=pages))
