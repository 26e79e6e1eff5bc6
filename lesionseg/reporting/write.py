"""The report of an evaluation: what is found, what is missed, and how sure that is."""

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lesionseg.config import ReportSection
from lesionseg.core import Dataset
from lesionseg.errors import ContentError, LesionsegError, count, format_score, require_one_of
from lesionseg.io.files import read_csv, read_yaml, write_csv, write_text
from lesionseg.reporting import charts
from lesionseg.reporting.evaluation_tables import SMALL_MM, Tables, read_tables
from lesionseg.reporting.identity import Identity, read_identity
from lesionseg.reporting.images import Scene, Sources
from lesionseg.reporting.pdf import write_pdf
from lesionseg.reporting.pictures import Card, data_uri, draw_cutout
from lesionseg.reporting.rendering import render
from lesionseg.reporting.words import (
    QUESTIONS,
    false_positive_words,
    headline,
    limits,
    measures,
    role_words,
    rule_words,
    setting_words,
    short_unit,
    size_class_words,
    size_text,
    study_lines,
    tags,
    tiles,
    why_missed,
)

log = logging.getLogger(__name__)
MOST_MISSED, MOST_FALSE, MOST_FOUND, ON_TOP = 60, 30, 12, 3  # pictures
MOST_MOVED = 100_000  # lesions and false positives that the slider moves over
Progress = Callable[[str, int, int], None]
LINES = {  # a mask of a scene: the class of its outline in style.css, and what it shows
    "reference": ("", "lesion as marked"),
    "accepted": ("a", "what the program marked"),
    "below": ("b", "seen, but not marked"),
}
ANSWERS = ("answer", "reader", "comment")  # what a person fills in


def write_report(
    scores_dir: Path,
    output: Path,
    *,
    images: Path | Dataset | None = None,
    reference: Path | None = None,
    prediction: Path | None = None,
    compare: Path | None = None,
    options: ReportSection | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write `output/report.html` from the tables in `scores_dir`; returns its path.

    The page needs no network. Beside it: `adjudicate.csv` with the false positives,
    `pseudonyms.csv` unless names are printed, `report.pdf` where the options say so.

    Args:
        scores_dir: what `evaluate` or `train` wrote. A run directory brings its predictions and
            its training's metrics.csv, an evaluation the second model's.
        output: folder of the page.
        images: a dataset, its root or a folder of images; None for no pictures.
        reference: a dataset's root or a folder of masks, drawn into the pictures.
        prediction: a folder of prediction files, drawn into the pictures.
        compare: another model's evaluation of the same scans.
        options: study file, names, PDF, viewer; None: as in conf/.
        progress: told the case, how many are drawn and how many there are to draw.

    Raises `ReadError`, `ContentError` (tables that are missing, unreadable or do not belong
    together), `ConfigError` (a study file with an unknown key) and `OutputError`.
    """
    options = options or ReportSection.of()
    own = (scores_dir / name for name in ("validation", "predictions"))
    prediction = prediction or next(filter(Path.is_dir, own), None)
    if compare is None and (scores_dir / "compare" / "scores.json").is_file():
        compare = scores_dir / "compare"
    tables = read_tables(scores_dir, identifiers=options.identifiers)
    study = read_study(Path(options.study) if options.study else None)
    models = [("this program", tables)]
    if compare is not None:
        models.append(("the other", read_tables(compare, identifiers=options.identifiers)))
        if set(models[1][1].real_names) != set(tables.real_names):
            raise ContentError(
                f"{compare}: this is an evaluation of other cases. Evaluate both anew."
            )
    pictures, lines = _pictures(tables, images, reference, prediction, output, options, progress)
    role = tables.scores.evaluated_on
    outlines = charts.dice_chart(tables)
    second = charts.froc_chart(models) or outlines  # masks without scores have no FROC
    first = [c for c in (charts.size_chart(tables), second) if c]
    makers = (
        *(charts.curve_chart, charts.subgroup_chart),
        *(charts.reliability_chart, charts.load_chart),
    )
    annex = [outlines] if outlines and outlines is not second else []
    annex += [c for make in makers if (c := make(tables))]
    annex += charts.training_charts(scores_dir / "metrics.csv")
    identity = read_identity(scores_dir, tables.scores.provenance)
    measured, note = measures(tables)
    values: dict[str, Any] = {
        "title": page_title(tables, study, identity),
        "identity": identity,
        "tags": tags(tables),
        "role": f"{role_words(role)} · " if role in ("test", "external") else "",
        "headline": headline(tables),
        "tiles": tiles(tables),
        "charts": first,
        "pictures": pictures,
        "lines": lines,
        "n_missed": int((~tables.lesions["detected"].astype(bool)).sum()),
        "n_false": tables.scores.n_false_positive,
        "limits": limits(tables, study),
        "more": annex,
        "slider": slider(tables),
        "measures": measured,
        "measures_note": note,
        "case_rows": case_rows(tables),
        "about": about(tables, study, identity),
        "comparison": tables.scores.comparison,
    }
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "report.html", render("report.html.j2", **values))
    write_adjudication(output / "adjudicate.csv", tables)
    if tables.names:
        rows = [{"pseudonym": shown, "name": real} for shown, real in tables.names.items()]
        write_csv(output / "pseudonyms.csv", rows, ("pseudonym", "name"))
    if options.pdf:
        write_pdf(output / "report.pdf", values)
    return output / "report.html"


def read_study(path: Path | None) -> dict[str, str]:
    """Read the answers of study.yaml by key; none without a file.

    Raises `ReadError`, and `ConfigError` for a key that there is none of, naming the nearest.
    """
    answers = {} if path is None else read_yaml(path)
    for key in answers:
        require_one_of(f"{path}: the key", key, QUESTIONS)
    return {
        key: "; ".join(map(str, v)) if isinstance(v, list) else str(v).strip()
        for key, v in answers.items()
        if v not in (None, "")
    }


def page_title(tables: Tables, study: Mapping[str, str], identity: Identity) -> str:
    """Return a title of the page's own: the user's, or what was evaluated on which scans."""
    if title := study.get("title"):
        return title
    role = tables.scores.evaluated_on
    scans = f"{role} scans" if role in ("train", "validation", "test", "external") else "scans"
    data = identity.dataset or "unnamed dataset"
    day = f", {identity.evaluated}" if identity.evaluated else ""
    return f"{data}: lesions found and missed in {scans}{day}"


def about(tables: Tables, study: Mapping[str, str], identity: Identity) -> list[tuple[str, str]]:
    """Return the annex: what was tested, how, and by whose word."""
    lesions = "as marked in the reference; it may be incomplete"
    if tables.scores.provenance.simulated:
        lesions = "put in by the program that made the scans"
    missing = len(tables.scores.missing_predictions)
    scans = f"{count(len(tables.cases), 'scan')}, {missing or 'none'} of them without a result: "
    scans += role_words(tables.scores.evaluated_on)
    if tables.n_failed:
        scans += f"; {tables.n_failed} more could not be scored"
    lines = [
        *identity.rows(),
        ("Scans", scans),
        ("Lesions", lesions),
        ("Counts as found", rule_words(tables)),
    ]
    if setting := setting_words(tables):
        lines.append(("Setting", setting))
    return [*lines, *study_lines(tables, study)]


def case_rows(tables: Tables) -> list[dict[str, Any]]:
    """Return a row per scan, those of a patient together."""
    columns = {
        "group": "patient",
        "case": "scan",
        "n_lesions": "lesions",
        "n_detected": "found",
        "n_false_positive": "false positives",
        "dice": "Dice",
        "reference_ml": "marked, ml",
        "predicted_ml": "predicted, ml",
        "warning": "warning",
    }
    known = tables.cases.columns[tables.cases.notna().any()]  # radiographs have no volumes
    kept = {old: new for old, new in columns.items() if old in known}
    if "warning" in kept and (tables.cases["warning"] == "").all():
        kept.pop("warning")
    cases = tables.cases
    if tables.patients_stated:  # a patient's scans together
        order = {group: n for n, group in enumerate(cases["group"].unique())}
        cases = cases.sort_values("group", key=lambda group: group.map(order), kind="stable")
    else:
        kept.pop("group", None)
    rows: list[dict[str, Any]] = (
        cases[list(kept)].rename(columns=kept).astype(object).to_dict("records")
    )
    return rows


def slider(tables: Tables) -> dict[str, Any] | None:
    """Return the data of the threshold slider; None without scores, or if there are too many."""
    n_moved = len(tables.lesions) + len(tables.false_scores)
    if tables.threshold is None or not 0 < n_moved <= MOST_MOVED:
        return None
    sizes = [b for b in tables.scores.recall_by_size if b.n]
    found = tables.lesions[["detected_at", "diameter_mm", "case", "lesion"]].astype(object)
    rows = found.where(found.notna(), None).to_numpy().tolist()
    return {
        "cases": tables.n_scanned,
        "start": tables.threshold,
        "lesions": rows,
        "false": tables.false_scores.tolist(),
        "sizes": [
            [b.from_mm, b.to_mm, size_class_words(b, tables.scores.size_unit)] for b in sizes
        ],
    }


def write_adjudication(path: Path, tables: Tables) -> int:
    """Write one row per false positive, by descending score; rows filled in before are kept.

    However a spreadsheet has written their numbers, and also when they are no false positive now.
    """
    false = tables.candidates[tables.candidates["outcome"] == "false_positive"]
    false = false.sort_values("score", ascending=False, na_position="last").copy()
    false["case"] = false["case"].map(lambda name: tables.names.get(name, name))
    places = [c for c in false if c.endswith(("_vox", "_mm")) and c != "diameter_mm"]
    columns = ["case", "candidate", "label", "score", "diameter_mm", *places, "touches_lesion"]
    table = false[columns].astype(object).where(false[columns].notna(), None)
    rows = [{**row, **dict.fromkeys(ANSWERS, "")} for row in table.to_dict("records")]
    filled: dict[Any, list[Any]] = {}
    try:
        for row in read_csv(path) if path.is_file() else ():
            if any(row[name] for name in ANSWERS):
                filled.setdefault(_place(row), []).append(row)
    except (KeyError, ValueError) as error:
        why = f"this is no table of false positives as the report writes it ({error})"
        raise ContentError(f"{path}: {why}. Move it away, or mend it.") from error
    for row in rows:
        if given := filled.get(_place(row)):
            row.update({name: given[0][name] for name in ANSWERS})
            del given[0]
    rows += [row for more in filled.values() for row in more]
    if rows:
        write_csv(path, rows, [*columns, *ANSWERS])
    return len(false)


def _place(row: Mapping[Any, Any]) -> tuple[Any, ...]:
    ends = (row.get(f"{end}_{axis}_vox") for end in ("start", "stop") for axis in "zyx")
    box = [round(float(value), 2) for value in ends if value not in (None, "")]
    return str(row["case"]), int(float(row["candidate"])), *box


def _pictures(
    tables: Tables,
    images: Path | Dataset | None,
    reference: Path | None,
    prediction: Path | None,
    output: Path,
    options: ReportSection,
    progress: Progress | None,
) -> tuple[dict[str, list[Card]], list[tuple[str, str]]]:
    """Draw cards by kind (top, missed, false, found; none without images). Name the outlines."""
    found: dict[str, list[Card]] = {kind: [] for kind in ("top", "missed", "false", "found")}
    if images is None:
        return found, []
    wanted = list(_wanted(tables))
    sources, scenes, drawn = Sources(images, reference, prediction), {}, {}
    outlined: set[str] = set()
    order = sorted(range(len(wanted)), key=lambda i: wanted[i][1]["case"])
    for done, i in enumerate(order, 1):
        kind, row, words = wanted[i]
        case = str(row["case"])
        if case not in scenes:
            scenes = {case: _scene(sources, tables, case)}  # one scan at a time in memory
            if options.viewer and (shown := scenes[case]) is not None:
                from lesionseg.reporting.viewer import write_viewer

                write_viewer(output / "viewer", case.replace(" ", "-"), case, shown)
        if (scene := scenes[case]) is not None:
            drawn[i] = kind, _card(scene, row, words, kind, tables)
            masks = {name: getattr(scene, name) for name in LINES}
            outlined |= {name for name, mask in masks.items() if mask is not None and mask.any()}
        if progress is not None:
            progress(case, done, len(wanted))
    for i in sorted(drawn):
        found[drawn[i][0]].append(drawn[i][1])
    return found, [words for name, words in LINES.items() if name in outlined]


def _wanted(tables: Tables) -> Iterator[tuple[str, pd.Series, str]]:
    missed = tables.lesions[~tables.lesions["detected"].astype(bool)]
    missed = missed.sort_values(["diameter_mm", "case", "lesion"], ascending=[False, True, True])
    for _, row in missed.head(ON_TOP).iterrows():
        yield "top", row, why_missed(row, tables)
    for _, row in missed.head(MOST_MISSED).iterrows():
        yield "missed", row, why_missed(row, tables)
    false = tables.candidates[tables.candidates["outcome"] == "false_positive"]
    for _, row in false.sort_values("score", ascending=False).head(MOST_FALSE).iterrows():
        yield "false", row, false_positive_words(row)
    hits = tables.lesions[tables.lesions["detected"].astype(bool)].sort_values("diameter_mm")
    step = max(1, len(hits) // MOST_FOUND)
    for _, row in hits.iloc[::step].head(MOST_FOUND).iterrows():
        score = row["detected_at"]
        yield "found", row, "" if pd.isna(score) else f"rated {format_score(score)}"


def _scene(sources: Sources, tables: Tables, case: str) -> Scene | None:
    own = tables.candidates[(tables.candidates["case"] == case) & tables.candidates["accepted"]]
    try:
        return sources.load(tables.names.get(case, case), frozenset(own["candidate"].astype(int)))
    except LesionsegError as error:
        log.warning("The report has no pictures of %s: %s", tables.names.get(case, case), error)
        return None


def _card(scene: Scene, row: Mapping[str, Any], words: str, kind: str, tables: Tables) -> Card:
    axes = "zyx" if scene.geometry.dims == 3 else "yx"
    start, stop = ([float(row[f"{end}_{a}_vox"]) for a in axes] for end in ("start", "stop"))
    focus = scene.mask_of(int(row["candidate"])) if kind == "false" else None
    figure = draw_cutout(scene, start, stop, planes=1 if kind == "top" else 3, focus=focus)
    bounds = [SMALL_MM, *(part.from_mm for part in tables.scores.recall_by_size)]
    size = f"{size_text(row['diameter_mm'], bounds)} {short_unit(tables.scores.size_unit)}"
    return Card(data_uri(figure), str(row["case"]), size, words)
