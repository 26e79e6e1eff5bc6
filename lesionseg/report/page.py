"""The sensitivity report as one self-contained HTML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionseg import __version__
from lesionseg.core import Dataset
from lesionseg.errors import OutputError
from lesionseg.io.atomic import write_text
from lesionseg.report import listing, text
from lesionseg.report.album import Hanging, Progress, draw_walls, trim
from lesionseg.report.charts import make_charts
from lesionseg.report.gallery import Limits, choose_exhibits
from lesionseg.report.pdf import Summary, write_pdf
from lesionseg.report.scores import Scores
from lesionseg.report.tables import Tables, read_tables

MAX_BYTES = 15_000_000
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Banner:
    """A warning that must be read before the figures."""

    title: str
    text: str


def write_report(
    scores_dir: Path,
    output: Path,
    *,
    images: Path | Dataset | None = None,
    reference: Path | None = None,
    prediction: Path | None = None,
    history: Path | None = None,
    title: str | None = None,
    limits: Limits | None = None,
    pdf: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write `output/report.html` from the tables in `scores_dir`, and return its path.

    `images` and `reference` are dataset roots (or one read already) or folders of bare files,
    `prediction` a folder of prediction files: they give the pictures, which are left out without
    `images`; `limits` says how many. `history` is a training's metrics.csv. `progress` is told
    (case, cases drawn, cases to draw). The page needs no network and has at most 15 MB; it is
    written whole or not at all. `pdf` writes `output/report.pdf` beside it: the first screen,
    the charts and the pictures, without the tables.

    Raises `ReadError` and `ContentError` for tables that are missing, unreadable or of different
    evaluations, `OutputError` when the page cannot be kept within its size.
    """
    tables = read_tables(scores_dir)
    walls = choose_exhibits(tables, limits)
    hangings: tuple[Hanging, ...] = ()
    if images is not None:
        # the readers of images are loaded only where there are images to read
        from lesionseg.report.sources import Sources

        load = Sources(images, reference, prediction).load
        hangings = draw_walls(walls, tables, load, progress)
    context = _context(tables, history, title)
    page = _render(context, hangings)
    for fewer in (6, 3, 1, 0):
        if len(page.encode()) <= MAX_BYTES:
            break
        page = _render(context, trim(hangings, walls, fewer))
    if len(page.encode()) > MAX_BYTES:
        raise OutputError("The report is too large.", seen=len(page.encode()), expected=MAX_BYTES)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "report.html", page)
    if pdf:
        write_pdf(
            output / "report.pdf", _on_paper(context), [*context["charts"].values()], hangings
        )
    return output / "report.html"


def banners(scores: Scores) -> tuple[Banner, ...]:
    """Everything that makes the figures look better than they are."""
    found = []
    if scores.simulated:
        found.append(Banner(text.SIMULATED, text.SIMULATED_TEXT))
    if scores.evaluated_on in text.DEVELOPMENT_TEXT:
        found.append(Banner(text.DEVELOPMENT, text.DEVELOPMENT_TEXT[scores.evaluated_on]))
    elif scores.operating_point.optimistic:
        found.append(Banner(text.DEVELOPMENT, text.POINT_OPTIMISTIC))
    if scores.split_is_group_safe is False:
        found.append(Banner(text.NOT_GROUP_SAFE, text.NOT_GROUP_SAFE_TEXT))
    return tuple(found)


def summary(tables: Tables) -> tuple[str, ...]:
    """The first screen's sentences, in order; the first is the headline."""
    scores = tables.scores
    sentences = (
        text.found_sentence(scores),
        text.overall_sentence(scores),
        text.false_mark_sentence(scores),
        text.ignored_sentence(scores),
        text.scans_sentence(scores),
        text.failed_sentence(tables.cases),
        text.operating_point_sentence(scores),
    )
    return tuple(sentence for sentence in sentences if sentence)


def _context(tables: Tables, history: Path | None, title: str | None) -> dict[str, Any]:
    scores, charts = tables.scores, make_charts(tables, history)
    context = {
        "text": text,
        "title": title or text.TITLE,
        "version": __version__,
        "scores": scores,
        "banners": banners(scores),
        "summary": summary(tables),
        "charts": charts,
        "sizes": listing.list_sizes(scores),
        "measures": listing.list_measures(scores),
        "reasons": listing.list_reasons(tables.lesions),
        "rules": listing.list_rules(scores, tables.lesions),
        "labels": listing.list_labels(scores),
        "cases": listing.list_cases(tables.cases, scores.size_unit),
        "lesions": listing.list_lesions(tables.lesions, scores.size_unit),
        "provenance": listing.list_provenance(scores),
        "flat": all(len(lesion.start_vox) == 2 for lesion in tables.lesions),
    }
    return {**context, "sections": _sections(context)}


def _on_paper(context: Mapping[str, Any]) -> Summary:
    return Summary(
        title=context["title"],
        role=text.role_words(context["scores"].evaluated_on),
        banners=[f"{banner.title}. {banner.text}" for banner in context["banners"]],
        sentences=context["summary"],
        sizes=context["sizes"],
    )


def _sections(context: Mapping[str, Any]) -> tuple[str, ...]:
    """The sections the page has, in order."""
    present = {
        "summary": False,  # the first screen needs no link
        "size": "size" in context["charts"],
        "training": "training" in context["charts"],
        "labels": bool(context["labels"].lines),
        "why": bool(context["reasons"].lines),
    }
    return tuple(key for key in text.SECTIONS if present.get(key, True))


def _render(context: dict[str, Any], hangings: Sequence[Hanging]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(**context, hangings=hangings)
