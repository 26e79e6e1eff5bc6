"""Headline, key figure tiles, warnings, captions and limitations of the report, with conditions.

`templates/sentences.txt.j2` has the words.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from lesionseg.errors import count, format_score
from lesionseg.evaluation.intervals import CI, poisson_interval
from lesionseg.evaluation.operating_points import FEW_PATIENTS
from lesionseg.evaluation.scores import PERCENT_OF_WIDTH, Scores
from lesionseg.evaluation.subgroups import NOT_STATED
from lesionseg.reporting.evaluation_tables import SMALL_MM, EvaluationTables, SizeClass
from lesionseg.reporting.rendering import (
    KeyFigure,
    format_decimals,
    format_rate,
    per_scan,
    percent,
    render_lines,
    render_sentence,
    split_lines,
)

FEW = 5  # fewer patients give no reliable interval
FEW_STEPS = 1000  # fewer training steps are stated in the warning colour
OPTIONAL = ("title", "contact", "remarks")  # questions that are shown only if they are answered


# --- numbers in words ----------------------------------------------------------------------------


def size_text(diameter: float, bounds: Sequence[float] = (SMALL_MM,)) -> str:
    """Return a diameter with one decimal, or with more near a bound of a size class.

    Rounding could otherwise show a diameter of another size class.

    >>> size_text(4.34), size_text(4.96), size_text(5.04), size_text(2.996, (3.0, 5.0))
    ('4.3', '4.96', '5.0', '2.996')
    """
    return format_decimals(diameter, bounds, minimum=1)


def short_unit(unit: str) -> str:
    """Return the unit of sizes without its explanation, for labels with little space.

    >>> short_unit("mm at the detector"), short_unit("% of the image width")
    ('mm', '%')
    """
    return unit.split(",")[0].split(" ")[0]


def size_words(row: Mapping[str, Any], tables: EvaluationTables) -> str:
    """Return the diameter of a lesion or candidate with its unit, for a caption, such as "4.3 mm".

    Args:
        row: Its row of lesions.csv or candidates.csv.
        tables: The tables of the evaluation.
    """
    size = row[tables.size_column]
    # the lower bounds of the size classes, as `size_text` needs them; every class has one
    bounds = [point.at or 0.0 for point in tables.scores.curve("recall_by_size")]
    if tables.has_mm:
        return f"{size_text(size, [SMALL_MM, *bounds])} {short_unit(tables.scores.size_unit)}"
    unit = "% of the width" if tables.scores.size_unit == PERCENT_OF_WIDTH else "px"
    return f"{size_text(size, bounds)} {unit}"


def size_class_words(part: SizeClass, unit: str) -> str:
    """Return the name of a size class, such as "under 3 mm", "3–5 mm" or "≥ 10 mm".

    The name is short enough to show five classes next to each other below a chart.
    """
    short = short_unit(unit)
    if part.below is None:
        return f"≥ {part.minimum:g} {short}"
    if not part.minimum:
        return f"under {part.below:g} {short}"
    return f"{part.minimum:g}–{part.below:g} {short}"


# --- the first screen ----------------------------------------------------------------------------


def tags(tables: EvaluationTables) -> list[tuple[str, str]]:
    """Return the warnings at the top of the page, such as that the scans are training scans.

    Each warning is a pair of its name and a sentence. Without a scored case, there is none.
    """
    if not len(tables.cases):
        return []
    scores = tables.scores
    return split_lines(render_lines("tags", scores=scores, excess=explain_excess(scores)))


def explain_excess(scores: Scores, noun: str = "limit") -> str:
    """Return a warning if these scans have far more false positives than promised, otherwise "".

    The promised rate is the expected rate of the operating point, or the rate that it was chosen
    for if this is higher. Far more means at least twice this rate, with the lower end of the 95 %
    interval above it. Without a known rate, there is no warning.

    Args:
        scores: The scores of the evaluation.
        noun: The word for the operating point.
    """
    # the rate to name in the sentence: the aim of the choice, otherwise the expected rate
    aim = scores.operating_point.aim
    expected = scores.operating_point.expected_false_positives_per_case
    if aim is not None and aim.kind == "fp_per_case":
        wanted: float | None = aim.value
        verb = "is set for"
    else:
        wanted = expected
        verb = "was expected to give"
    n_false = scores.count("n_false_positive")
    observed = scores["false_positives_per_case"].value
    if wanted is None or not n_false or not observed:
        return ""
    allowed = max(wanted, expected or 0.0)
    # of the 95 % interval: that of the count `n_false`, scaled from counts to rates
    lower_end = observed * poisson_interval(n_false)[0] / n_false
    if observed < 2 * allowed or lower_end <= allowed:
        return ""
    return (
        f"the {noun} {verb} {per_scan(wanted)}, but these scans have {format_rate(observed)}. It "
        "does not suit these scans."
    )


def headline(tables: EvaluationTables) -> str:
    """Return the sentence on top of the page: the lesions found, and the false positives.

    If sizes are known in mm, it states lesions of `SMALL_MM` or more and smaller ones separately.
    """
    lesions_found = render_sentence(
        "found_words",
        n_found=int(tables.lesions["detected"].sum()),
        n_lesions=len(tables.lesions),
        bound="",  # no words about sizes
    )
    if tables.has_mm:
        # number found, and number of lesions: first of large ones, then of small ones
        is_found = [tables.lesions_by_size(small=small)["detected"] for small in (False, True)]
        large, small = ((int(flags.sum()), len(flags)) for flags in is_found)
        bound = f"{SMALL_MM:g} {short_unit(tables.scores.size_unit)}"
        lesions_found = render_sentence("found_by_size", large=large, small=small, bound=bound)
    return render_sentence(
        "headline",
        tables=tables,
        n_false=tables.scores.count("n_false_positive"),
        n_with_false=int((tables.cases["n_false_positive"] > 0).sum()),
        found=lesions_found,
    )


def key_figures(tables: EvaluationTables) -> list[KeyFigure]:
    """Return the four key figures of the first screen. Without a scan they are dashes.

    - The first two are lesions found, separately for large and small lesions. If the test is judged
      by boxes, or sizes in mm are unknown, they are lesions found by the rule of the test, and by
      an IoU of at least ½.
    - The third is the rate of false positives per scan.
    - The fourth is the number of patients (or scans) with lesions, and without. It is weak below
      `FEW` patients with lesions.
    """
    if tables.scores.is_judged_by_boxes or not tables.has_mm:
        figures = _figures_by_overlap(tables)
    else:
        figures = _figures_by_size(tables)
    if not len(tables.cases):
        return [*figures, KeyFigure("–", "false positives per scan"), KeyFigure("–", "patients")]
    figures.append(_false_positive_figure(tables))
    # patients; a patient with a lesion in any scan is one with lesions
    n_with = tables.cases[tables.cases["n_lesions"] > 0]["group"].nunique()
    n_without = tables.cases["group"].nunique() - n_with
    who = "patient" if tables.has_patients else "scan"
    words = f"with lesions, {n_without or 'none'} without"
    if n_without and tables.is_partly_annotated:  # other lesions may be unmarked
        words += " a marked lesion"
    is_very_small = n_with < FEW
    if is_very_small:
        words += ": a very small test"
    return [*figures, KeyFigure(count(n_with, who), words, weak=is_very_small)]


def _figures_by_overlap(tables: EvaluationTables) -> list[KeyFigure]:
    """Return two key figures: lesions found by the match rule, and by an IoU of at least ½."""
    noun = "lesion" if len(tables.lesions) == 1 else "lesions"
    by_rule = f"{noun} found"
    by_iou = f"{noun} found with an IoU of ½ or more"
    return [
        _found_figure(
            tables.lesions["detected"],
            by_rule,
            without=KeyFigure("none", "lesions in these scans")
            if len(tables.cases)
            else KeyFigure("–", by_rule),
        ),
        _found_figure(tables.lesions["iou50"], by_iou, without=KeyFigure("–", by_iou)),
    ]


def _figures_by_size(tables: EvaluationTables) -> list[KeyFigure]:
    """Return two key figures: the lesions found of `SMALL_MM` or more, and of smaller diameter."""
    figures: list[KeyFigure] = []
    for small in (False, True):
        of_size = tables.lesions_by_size(small=small)
        noun = "lesion" if len(of_size) == 1 else "lesions"
        unit = tables.scores.size_unit.split(",")[0]  # without its explanation after the comma
        size = f"{noun} {'<' if small else '≥'} {SMALL_MM:g} {unit}"
        without = KeyFigure("–", f"{size} found")
        if len(tables.cases):
            without = KeyFigure("none", f"{size} in these scans")
        figures.append(_found_figure(of_size["detected"], f"{size} found", without))
    return figures


def _found_figure(is_found: "pd.Series[bool]", words: str, without: KeyFigure) -> KeyFigure:
    """Return a key figure with the number of lesions found, such as "8 of 10".

    The figure is weak if less than half were found.

    Args:
        is_found: True for each lesion that was found.
        words: The text below the number. The percentage is added to it.
        without: The key figure to return if there is no lesion.
    """
    if not len(is_found):
        return without
    share = float(is_found.mean())
    value = f"{int(is_found.sum())} of {len(is_found)}"
    return KeyFigure(value, f"{words} ({percent(share)})", weak=share < 0.5)


def _false_positive_figure(tables: EvaluationTables) -> KeyFigure:
    """Return the key figure of false positives per scan, with the interval in its words.

    The value is a dash if no scan has a prediction, and "0 on …" without a false positive. The
    figure is weak (in the warning colour) in these cases:

    - There are more than 2 per scan. This limit is a convention of the report.
    - There are far more than expected (`explain_excess`).
    - There is none on fewer than 20 scans. This may be chance, because up to 3/20 per scan would be
      compatible with it (the rule of three).
    """
    n_false = tables.scores.count("n_false_positive")
    rate = tables.scores["false_positives_per_case"]
    words = render_sentence(
        "false_positives", tables=tables, n_false=n_false, value=rate.value, interval=rate.ci95
    )
    if not tables.n_predicted:
        return KeyFigure("–", words)
    if not n_false:
        value = f"0 on {render_sentence('scans_with_false_positives', tables=tables)}"
        return KeyFigure(value, words, weak=len(tables.cases) < 20)
    is_many = rate.value is not None and rate.value > 2
    return KeyFigure(
        format_rate(rate.value), words, weak=is_many or bool(explain_excess(tables.scores))
    )


def limitations(tables: EvaluationTables, study: Mapping[str, str]) -> str:
    """Return the paragraph on the limitations of the evaluation.

    The paragraph states, for example, that the model was tested without a reader, the number of
    scans that could not be scored, and the questions that study.yaml leaves open.

    Args:
        tables: The tables of the evaluation.
        study: The answers of study.yaml.
    """
    n_warned = int((tables.cases["warning"] != "").sum())
    n_outside = int(tables.cases["n_outside"].sum())
    return render_sentence(
        "limitations", tables=tables, study=study, n_warned=n_warned, n_outside=n_outside
    )


@dataclass(frozen=True)
class Basis:
    """The training, and the choice of the operating point, in words.

    `is_weak` is True if the training had few steps or the choice few patients.
    """

    words: str
    is_weak: bool


def basis(tables: EvaluationTables) -> Basis | None:
    """Describe how long the model was trained, and how its operating point was chosen.

    The result is weak if the training had fewer than `FEW_STEPS` steps per network, or the choice
    fewer than `FEW_PATIENTS` patients. Return None if scores.json states neither, such as for masks
    of another program.
    """
    provenance = tables.scores.provenance
    point = tables.scores.operating_point
    # without the number of cases, scores.json does not state how the score was chosen
    is_chosen = point.n_cases is not None and tables.threshold is not None
    words = render_sentence("basis", made=provenance, point=point if is_chosen else None)
    has_few_steps = (
        0 < (provenance.training_steps or 0) < FEW_STEPS * provenance.folds
    )  # one network per fold
    has_few_patients = is_chosen and (point.n_patients or 0) < FEW_PATIENTS
    if not words:
        return None
    return Basis(f"{words[0].upper()}{words[1:]}.", is_weak=has_few_steps or has_few_patients)


# --- lesions -------------------------------------------------------------------------------------


def why_missed(row: Mapping[str, Any], tables: EvaluationTables) -> str:
    """Return the words that explain why a lesion was missed, for its caption.

    Args:
        row: The row of the lesion in lesions.csv.
        tables: The tables of the evaluation.
    """
    # the score of the nearest candidate, otherwise the threshold at which the lesion is found
    score = _read_number(row["nearest_score"])
    if score is None:
        score = _read_number(row["detected_at"])
    threshold = tables.threshold
    scores = None  # this score and the threshold as text, if the score is below
    if threshold is not None and score is not None and score < threshold:
        scores = _format_distinct(score, threshold)
    # the smallest overlap that the match rule requires; None for an unknown rule
    preset = tables.scores.provenance.preset
    minimum = None if preset is None else preset.criterion.threshold
    candidate = _read_number(row["nearest_candidate"])
    return render_sentence(
        "why_missed",
        why=str(row["why_missed"]),
        has_limit=threshold is not None,
        scores=scores,
        # within 10 % of the threshold
        is_near=scores is not None and (score or 0.0) > 0.9 * (threshold or 0.0),
        minimum=minimum,
        # overlaps explain nothing if the rule requires none
        covered=_read_number(row["covered"]) if minimum else None,
        iou=_read_number(row["nearest_iou"]) if minimum else None,
        share=_find_lesion_share(tables, str(row["case"]), candidate) if minimum else None,
    )


def false_positive_words(row: Mapping[str, Any]) -> str:
    """Return the caption of a false positive: its score, and if it touches a lesion.

    A part that does not apply is left out, so the text may be empty.

    Args:
        row: The row of the false positive in candidates.csv.
    """
    parts = []
    score = _read_number(row["score"])
    share = _read_number(row["in_lesions"])
    if score is not None:
        parts.append(f"rated {format_score(score)}")
    if share:
        parts.append(f"touches a lesion ({percent(share)} of the marking is lesion)")
    return ", ".join(parts)


def _read_number(value: Any) -> float | None:
    """Return the number in a table cell as a float, or None if the cell is empty."""
    return None if pd.isna(value) else float(value)


def _format_distinct(score: float, limit: float) -> tuple[str, str]:
    """Return a score and the limit with enough digits, at most 9, to show that they differ.

    Otherwise a lesion could be missed with the score 0.5 at the limit 0.5.

    >>> _format_distinct(0.3, 0.5), _format_distinct(0.49988, 0.5)
    (('0.3', '0.5'), ('0.4999', '0.5'))
    """
    shown = format_score(score)
    shown_limit = format_score(limit)
    digits = 4  # `format_score` shows three, or more near 1
    while shown == shown_limit and digits <= 9:
        shown = f"{score:.{digits}g}"
        shown_limit = f"{limit:.{digits}g}"
        digits += 1
    return shown, shown_limit


def _find_lesion_share(
    tables: EvaluationTables, case: str, candidate: float | None
) -> float | None:
    """Return the share of a candidate's volume that is inside lesions, from candidates.csv.

    Args:
        tables: The tables of the evaluation.
        case: The case of the candidate.
        candidate: The id of the candidate. None, or an id without a row, returns None.
    """
    rows = tables.candidates
    if candidate is None:
        return None
    row = rows[(rows["case"] == case) & (rows["candidate"] == candidate)]
    return None if row.empty else _read_number(row["in_lesions"].iloc[0])


# --- the annex -----------------------------------------------------------------------------------


def limit_words(tables: EvaluationTables) -> str:
    """Describe the operating point in words: the score, how it was chosen, and its expected rate.

    Return "" if the candidates have no scores or no operating point is stated.
    """
    if tables.threshold is None:
        return ""
    return render_sentence(
        "limit_words", point=tables.scores.operating_point, threshold=tables.threshold
    )


def study_lines(study: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the questions of study.yaml with their answers, or with "not stated", for the annex.

    The title is left out, and so are questions of `OPTIONAL` without an answer. `study` has the
    answers of study.yaml by key.
    """
    lines = []
    for key, question in read_questions().items():
        if key == "title" or (key in OPTIONAL and key not in study):
            continue
        lines.append((question, study.get(key, NOT_STATED)))
    return lines


def read_questions() -> dict[str, str]:
    """Return the questions of study.yaml: their name on the page by key.

    A user answers them in this file, because the program cannot know the answers.
    """
    lines = [line.split(" | ") for line in render_lines("questions")]  # "key | name"
    return {key: name.strip() for key, name in lines}


@dataclass(frozen=True)
class Measure:
    """A number of scores.json with its name, value, interval and meaning."""

    name: str
    value: str
    interval: str
    meaning: str


def measures(tables: EvaluationTables) -> tuple[list[Measure], str]:
    """Return the table of measures for the annex, and a note on missing intervals.

    Numbers that are undefined without a reason are left out. If several numbers have no interval
    for the same reason, their intervals are dashes, and the note states the reason once. Otherwise
    the note is empty.
    """
    outcome = tables.candidates["outcome"]
    lines = render_lines(
        "measures",
        tables=tables,
        n_true=int((outcome == "true_positive").sum()),
        n_false=int((outcome == "false_positive").sum()),
        n_with_lesion=int((tables.cases["n_lesions"] > 0).sum()),
    )
    rows: list[Measure] = []
    reasons: list[str | None] = []  # why each measure has no interval; None if it has one
    for line in lines:
        key, name, meaning = (cell.strip() for cell in line.split("|"))
        estimate = tables.scores[key]
        interval: CI | None = None
        reason = ""
        if key.startswith("n_"):  # a number of cases or lesions has no interval
            value = str(tables.scores.count(key))
        elif estimate.value is not None:
            value = format_score(estimate.value)
            interval = estimate.ci95
            reason = estimate.reason or ""
        elif estimate.reason:
            value = "–"
            reason = estimate.reason
        else:
            continue
        # the interval, or the reason why there is none
        words = " to ".join(map(format_score, interval)) if interval else reason
        rows.append(Measure(name, value, words, meaning))
        reasons.append(None if interval else reason)
    shared_reason = _find_shared_reason(reasons)
    for index, why in enumerate(reasons):
        if why == shared_reason:
            rows[index] = replace(rows[index], interval="–")
    return rows, f"– instead of an interval: {shared_reason}." if shared_reason else ""


def comparison_table(scores: Scores, *, for_page: bool = False) -> list[list[str]]:
    """Return the table that compares two programs as text, first the header. Empty for one program.

    Each row has six cells: name, first program, second program, difference (first minus second), 95
    % interval and p value. The first rows state the operating points of both programs.

    Args:
        scores: The scores, with the comparison.
        for_page: True uses the words of the page, and appends the notes as rows.
    """
    lines = render_lines("comparison", scores=scores, for_page=for_page)
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def comparison_notes(scores: Scores) -> list[str]:
    """Return the notes of a comparison of two programs, one line per note.

    The notes state why differences or intervals are undefined, and the result for the margin of
    non-inferiority.
    """
    return render_lines("comparison_notes", scores=scores, for_page=False)


def _find_shared_reason(reasons: Iterable[str | None]) -> str:
    """Return the most frequent reason if it occurs at least twice, otherwise "".

    `measures` states this reason once below the table instead of in each row.
    """
    counts = Counter(filter(None, reasons))  # without None and ""
    if not counts:
        return ""
    reason, n = counts.most_common(1)[0]
    return reason if n > 1 else ""
