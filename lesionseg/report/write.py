"""The report of an evaluation: what is found, what is missed, and how sure that is."""

import logging
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pandas as pd

from lesionseg.config import ReportSection
from lesionseg.core import Dataset
from lesionseg.errors import ContentError, LesionsegError, count, format_score, one_of
from lesionseg.io.files import read_csv, read_yaml, write_csv, write_text
from lesionseg.report import charts
from lesionseg.report.images import Scene, Sources
from lesionseg.report.pdf import write_pdf
from lesionseg.report.pictures import Card, data_uri, draw_cutout
from lesionseg.report.rendering import Tile, percent, rate, render
from lesionseg.report.tables import SMALL_MM, Tables, number, read_tables

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
WHY = {  # a lesion was missed
    "no_response": "not seen at all",
    "below_operating_point": "seen, but rated below the limit",
    "overlap_too_small": "touched, too little covered",
    "merged": "marked together with another lesion",
    "wrong_label": "marked as another kind of lesion",
    "removed_by_size": "seen, but dropped for its size",
    "case_failed": "the scan has no result",
}


# what the page cannot know by itself: the keys of study.yaml
QUESTIONS: Mapping[str, str] = {
    "title": "Title",
    "intended_use": "Intended use",
    "population": "Patients",
    "inclusion": "Included",
    "exclusions": "Excluded",
    "sites": "Sites and scanners",
    "period": "Period",
    "reader": "Lesions marked by",
    "reference_method": "How they were marked",
    "model": "Program",
    "training_data": "It learned from",
    "funding": "Funding",
    "contact": "Contact",
    "remarks": "Remarks",
}


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
    role = str(tables.scores.get("evaluated_on") or "unknown")
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
    title = study.get("title") or "What the program finds, and what it misses"
    values: dict[str, Any] = {
        "title": title,
        "tags": tags(tables),
        "role": f"{role_words(role)} · " if role in ("test", "external") else "",
        "headline": headline(tables),
        "tiles": tiles(tables),
        "charts": first,
        "pictures": pictures,
        "lines": lines,
        "n_missed": int((~tables.lesions["detected"].astype(bool)).sum()),
        "n_false": int(tables.scores.get("n_false_positive") or 0),
        "limits": limits(tables, study),
        "more": annex,
        "slider": slider(tables),
        "measures": measures(tables.scores),
        "case_rows": case_rows(tables),
        "about": about(tables, study),
        "comparison": tables.scores.get("comparison"),
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
    """The answers of study.yaml by key; none without a file.

    Raises `ReadError`, and `ConfigError` for a key that there is none of, naming the nearest.
    """
    answers = {} if path is None else read_yaml(path)
    for key in answers:
        one_of(f"{path}: the key", key, QUESTIONS)
    return {
        key: "; ".join(map(str, v)) if isinstance(v, list) else str(v).strip()
        for key, v in answers.items()
        if v not in (None, "")
    }


def tags(tables: Tables) -> list[tuple[str, str]]:
    """What changes how the page is to be read, with one sentence each."""
    role, found = tables.scores.get("evaluated_on"), list[tuple[str, str]]()
    if not len(tables.cases):  # nothing to be read
        return found
    if tables.simulated:
        words = "made by a program: these figures say nothing about patients"
        found.append(("Simulated scans", words))
    if role in ("train", "validation"):
        words = f"{role_words(role)} helped to make the program: these figures are too good"
        found.append(("Development data", words))
    elif role not in ("test", "external"):
        found.append(("Role unknown", "the program may have learned from these scans"))
    if what := (tables.scores.get("provenance") or {}).get("scored"):
        found.append(("Follow-up", f"only {what} were scored"))
    if tables.scores.get("split_is_group_safe") is False:
        found.append(("Not independent", "the program learned from other scans of this patient"))
    return found


def role_words(role: str) -> str:
    """On which scans the page is."""
    words = {
        "test": "test scans, not used in training",
        "external": "scans from elsewhere, not used in training",
        "validation": "validation scans",
        "train": "training scans",
    }
    return words.get(role, "scans whose role is not stated")


def share_words(hits: int, n: int) -> str:
    """A share as one says it.

    >>> share_words(64, 70), share_words(6, 23), share_words(5, 5), share_words(0, 8)
    ('9 in 10', '1 in 4', 'all 5', 'none of 8')
    >>> share_words(1, 2), share_words(4, 8), share_words(199, 200), share_words(1, 300)
    ('1 of 2', '1 in 2', 'nearly all', 'almost none')
    >>> share_words(1, 1), share_words(0, 1)
    ('the only', '0 of 1')
    """
    if n and hits == n:
        return "the only" if n == 1 else f"all {n}"
    if n == 1:
        return "0 of 1"
    if hits == 0:
        return f"none of {n}"
    if n <= 5:
        return f"{hits} of {n}"
    share = hits / n
    if share > 0.95:
        return "nearly all"
    if share < 0.05:
        return "almost none"
    options = [Fraction(k, 10) for k in range(1, 10)]
    options += [Fraction(1, 4), Fraction(3, 4), Fraction(1, 3), Fraction(2, 3)]
    near = min(options, key=lambda f: (round(abs(float(f) - share), 3), f.denominator))
    return f"{near.numerator} in {near.denominator}"


def headline(tables: Tables) -> str:
    """One plain sentence from the two size classes and the false alarms."""
    n_cases, false = len(tables.cases), int(tables.scores.get("n_false_positive") or 0)
    scans = count(n_cases, "scan")
    if not n_cases:
        return "No scan was evaluated: this page says nothing about the program."
    alarms = f"without a false alarm on {count(tables.n_predicted, 'scan')}"
    if false:
        alarms = f"with {rate(false / tables.n_scanned)} false alarms per scan"
    if not len(tables.lesions):
        called = int((tables.cases["n_false_positive"] > 0).sum())
        calm = tables.n_predicted - called
        return f"{scans} without lesions: {called} with a false alarm, {calm} without."
    short = tables.unit.split(",")[0].split(" ")[0]
    parts: list[str] = []
    for small in (False, True):
        own = tables.size_class(small)
        if len(own):
            size = f"under {SMALL_MM:g}" if small else f"of {SMALL_MM:g}"
            tail = f"{short}" if small else f"{short} or more"
            noun = "lesion" if len(own) == 1 else "lesions"
            if small and parts:
                noun, size, tail = "smaller", noun.replace("lesion", "one"), ""
            share = share_words(int(own["detected"].sum()), len(own))
            parts.append(f"{share} {noun} {size} {tail}".strip())
    return f"Finds {', '.join(parts)}, {alarms}."


def tiles(tables: Tables) -> list[Tile]:
    """The four numbers of the first screen; dashes without a scan."""
    found, n = list[Tile](), len(tables.cases)
    for small in (False, True):
        own = tables.size_class(small)
        hits, sign = int(own["detected"].sum()), "<" if small else "≥"
        size = f"lesions {sign} {SMALL_MM:g} {tables.unit.split(',')[0]}"
        if not len(own):
            found.append(
                Tile("none", f"{size} in these scans") if n else Tile("–", f"{size} found")
            )
            continue
        share = hits / len(own)
        words = f"{size} found ({percent(share)})"
        found.append(Tile(f"{hits} of {len(own)}", words, share < 0.5))
    if not n:
        return [*found, Tile("–", "false alarms per scan"), Tile("–", "patients")]
    false = int(tables.scores.get("n_false_positive") or 0)
    if false:
        value, interval = number(tables.scores, "false_positives_per_case")
        shown = f"false alarms per scan ({false} on {count(tables.n_predicted, 'scan')})"
        if interval:
            shown += f"; 95 % interval {rate(interval[0])} to {rate(interval[1])}"
        found.append(Tile(rate(value), shown, (value or 0) > 2))
    else:
        interval = number(tables.scores, "false_positives_per_case")[1]
        hidden = interval[1] if interval else 3 / tables.cases["group"].nunique()
        could = f"false alarms; up to {rate(hidden)} per scan could be hidden"
        found.append(Tile(f"0 on {count(tables.n_predicted, 'scan')}", could, n < 20))
    ill = tables.cases[tables.cases["n_lesions"] > 0]["group"].nunique()
    well = tables.cases["group"].nunique() - ill
    who = "patient" if tables.patients_stated else "scan"
    words = f"with lesions, {well or 'none'} without" + (
        ": a very small test" if ill < charts.FEW else ""
    )
    found.append(Tile(count(ill, who), words, ill < charts.FEW))
    return found


def limits(tables: Tables, study: Mapping[str, str]) -> str:
    """What the page cannot say, in one line."""
    words = (
        "An empty result does not exclude a lesion. Program alone: no reader was tested with it."
    )
    if not tables.simulated and "reader" not in study:
        words += " Who marked the lesions is not stated."
    if "population" not in study and not tables.simulated:
        words += " Who these patients are is not stated."
    warned = int((tables.cases["warning"] != "").sum()) if "warning" in tables.cases else 0
    if warned:
        words += f" {count(warned, 'scan')} unlike the training scans."
    missing = tables.scores.get("missing_predictions") or ()
    if missing:
        words += f" {count(len(missing), 'scan')} without a result: their lesions count as missed."
    if tables.n_failed:
        words += f" {count(tables.n_failed, 'scan')} could not be scored and count nowhere."
    return words


def about(tables: Tables, study: Mapping[str, str]) -> list[tuple[str, str]]:
    """The annex: what was tested, how, and by whose word."""
    scores, point = tables.scores, tables.scores.get("operating_point") or {}
    made = scores.get("provenance") or {}
    lines = [(QUESTIONS[key], text) for key, text in study.items() if key != "title"]
    by = "put in by the program that made the scans" if tables.simulated else ""
    rule = "markings cover at least 10 % of the lesion; a marking of which less than 10 % lies in "
    rule = f"{rule}lesions is a false alarm"
    if scores.get("preset") != "lesionseg":
        rule = f"by the rule {scores.get('preset')}"
    lines += [
        ("Scans", role_words(str(scores.get("evaluated_on") or "unknown"))),
        ("Lesions", by or "as marked in the reference; it may be incomplete"),
        ("Counts as found", rule),
    ]
    if tables.threshold is not None:
        how = f"markings rated {format_score(tables.threshold)} or higher are shown"
        if point.get("chosen_on"):
            how += f"; chosen on {point['chosen_on']} scans"
        if point.get("expected_false_positives_per_case") is not None:
            how += f", {rate(point['expected_false_positives_per_case'])} false alarms expected"
        lines.append(("Setting", how))
    lines.append(("Made with", f"lesionseg {made.get('lesionseg', '')}"))
    return lines


def measures(scores: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Every number of scores.json with its interval or reason; new ones appear by themselves."""
    found: list[tuple[str, str, str]] = []
    for key, node in scores.items():
        if key == "schema_version" or (
            isinstance(node, Mapping) and not {"value", "mean"} & set(node)
        ):
            continue
        value, interval = number(scores, key)
        reason = node.get("reason") if isinstance(node, Mapping) else None
        if isinstance(value, bool | str | list) or (value is None and reason is None):
            continue
        shown = "–" if value is None else f"{value:.4g}"
        more = f"{interval[0]:.3g} to {interval[1]:.3g}" if interval else (reason or "")
        name = key.removeprefix("n_").replace("_", " ").replace("groups", "patients")
        found.append((f"number of {name}" if key.startswith("n_") else name, shown, more))
    return found


def case_rows(tables: Tables) -> list[dict[str, Any]]:
    """A row per scan, those of a patient together."""
    columns = {
        "group": "patient",
        "case": "scan",
        "n_lesions": "lesions",
        "n_detected": "found",
        "n_false_positive": "false alarms",
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
    """What the threshold slider moves over; None without scores, or where there is too much."""
    n_moved = len(tables.lesions) + len(tables.false_scores)
    if tables.threshold is None or not 0 < n_moved <= MOST_MOVED:
        return None
    sizes = [b for b in tables.scores.get("recall_by_size") or () if b["n"]]
    found = tables.lesions[["detected_at", "diameter_mm", "case", "lesion"]].astype(object)
    rows = found.where(found.notna(), None).to_numpy().tolist()
    return {
        "cases": tables.n_scanned,
        "start": tables.threshold,
        "lesions": rows,
        "false": tables.false_scores.tolist(),
        "sizes": [[b["from_mm"], b["to_mm"], charts.size_words(b, tables.unit)] for b in sizes],
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
    """Cards by kind (top, missed, false, found; empty without images), and the outlines in them."""
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
                from lesionseg.report.viewer import write_viewer

                write_viewer(output / "viewer", case.replace(" ", "-"), case, shown)
        if (scene := scenes[case]) is not None:
            drawn[i] = kind, _card(scene, row, words, kind, tables.unit)
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
    top = missed.drop_duplicates("group").head(ON_TOP)
    top = pd.concat([top, missed.drop(top.index)]).head(ON_TOP)
    for _, row in top.sort_values("diameter_mm", ascending=False).iterrows():
        yield "top", row, why_missed(row, tables)
    for _, row in missed.head(MOST_MISSED).iterrows():
        yield "missed", row, why_missed(row, tables)
    false = tables.candidates[tables.candidates["outcome"] == "false_positive"]
    for _, row in false.sort_values("score", ascending=False).head(MOST_FALSE).iterrows():
        score = "" if pd.isna(row["score"]) else f"rated {format_score(row['score'])}"
        touches = ", touches a lesion" if row.get("touches_lesion") else ""
        yield "false", row, f"{score}{touches}".strip(", ")
    hits = tables.lesions[tables.lesions["detected"].astype(bool)].sort_values("diameter_mm")
    step = max(1, len(hits) // MOST_FOUND)
    for _, row in hits.iloc[::step].head(MOST_FOUND).iterrows():
        score = row["detected_at"]
        yield "found", row, "" if pd.isna(score) else f"rated {format_score(score)}"


def why_missed(row: Mapping[str, Any], tables: Tables) -> str:
    """Why a lesion was missed, in words."""
    why = str(row.get("why_missed") or "")
    score = row.get("detected_at")
    if why == "below_operating_point" and tables.threshold is not None and score is not None:
        near = "just below" if score > 0.9 * tables.threshold else "below"
        limit = format_score(tables.threshold)
        return f"seen, but rated {near} the limit ({format_score(score)}; limit {limit})"
    return WHY.get(why, why.replace("_", " "))


def _scene(sources: Sources, tables: Tables, case: str) -> Scene | None:
    own = tables.candidates[(tables.candidates["case"] == case) & tables.candidates["accepted"]]
    try:
        return sources.load(tables.names.get(case, case), frozenset(own["candidate"].astype(int)))
    except LesionsegError as error:
        log.warning("The report has no pictures of %s: %s", tables.names.get(case, case), error)
        return None


def _card(scene: Scene, row: Mapping[str, Any], words: str, kind: str, unit: str) -> Card:
    axes = "zyx" if scene.geometry.dims == 3 else "yx"
    start, stop = ([float(row[f"{end}_{a}_vox"]) for a in axes] for end in ("start", "stop"))
    figure = draw_cutout(scene, start, stop, planes=1 if kind == "top" else 3)
    size = f"{row['diameter_mm']:.1f} {unit.split(',')[0].split(' ')[0]}"
    return Card(data_uri(figure), str(row["case"]), size, words)
