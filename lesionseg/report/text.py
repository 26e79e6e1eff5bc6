"""All wording of the report in one place, so that it can be corrected and translated."""

import math
from collections.abc import Iterable, Mapping, Sequence

from lesionseg.report.scores import UNSTATED, Estimate, FrocPoint, Scores, SizeGroup
from lesionseg.report.tables import CandidateRow, CaseRow, LesionRow, Tables

# Words that claim more than a standalone comparison can show; the page is tested for them.
FORBIDDEN = ("safe", "clinically validated", "rules out", "outperforms")

# Under this many lesions a percentage without an interval pretends to a precision it lacks.
MIN_FOR_PERCENT = 10
# Under this many patients there is no interval (docs/metrics.md).
MIN_GROUPS = 5

TITLE = "Which lesions were found, and which were missed"
SUBTITLE = "Sensitivity report"
NONE = "–"
NO_LESION = "no such lesion"
NO_INTERVAL = "none"

SIMULATED = "Simulated scans"
SIMULATED_TEXT = (
    "The scans were made by a program, not recorded from people. "
    "Nothing here says how the model does on patients."
)
DEVELOPMENT = "Development data: optimistic"
DEVELOPMENT_TEXT = {
    "train": "The model was trained on these very scans.",
    "validation": "These scans were not trained on, but choices were made by looking at them "
    "(which training step to keep, from which score a mark counts).",
}
UNTOUCHED = "not used in training"
NOT_GROUP_SAFE = "Same patients on both sides"
NOT_GROUP_SAFE_TEXT = (
    "Scans of one patient were used both for training and here, so the figures flatter."
)
POINT_OPTIMISTIC = (
    "The score from which a mark counts was chosen on these same scans; that flatters the figures."
)

LIMITS_TITLE = "What these figures do not say"
LIMITS = (
    "Standalone performance: the program's marks were compared with a reference. "
    "No reader was studied, with or without the program.",
    "An empty result does not exclude a lesion.",
    "The reference is itself an opinion: a mark that matches none of its lesions may be real, "
    "and the reference may lack lesions that the program missed too.",
    "Predictive values hold only at the share of lesions in these scans.",
    "Research use only. Not a medical device.",
)

SECTIONS: Mapping[str, str] = {
    "summary": "In short",
    "size": "Found, by size of lesion",
    "labels": "Found, by kind of lesion",
    "froc": "Found, by price in false marks",
    "why": "Why lesions were missed",
    "gallery": "Pictures",
    "official": "By the official scorer's own rules",
    "comparison": "Compared with another reader or model",
    "adjudication": "Unconfirmed marks, judged by a person",
    "subgroups": "Found, by finer groups",
    "calibration": "What a score is worth",
    "overlap": "How well outlines agree",
    "flow": "From scans found to scans judged",
    "study": "The study",
    "cases": "All scans",
    "lesions": "All reference lesions",
    "marks": "All marks",
    "definitions": "Definitions",
    "training": "Training",
    "balance": "Who taught the network",
    "audit": "References worth a second look",
    "provenance": "Where the figures come from",
    "checklists": "Reporting guidelines",
}

PSEUDONYM_CASE, PSEUDONYM_PATIENT = "case", "patient"
PSEUDONYMS_TEXT = (
    "Scans and patients have pseudonyms here. Which ones they stand for is in pseudonyms.csv "
    "beside the page: keep that file, do not pass it on."
)
WITHHELD = "withheld; in the files of the evaluation"
UNREADABLE = "The scan or its masks could not be read; the log says why."
BURNED_IN = (
    "These are whole images. Names, dates or numbers may be burned into them: look at each one "
    "before the page is passed on."
)
NOT_STATED = "not stated"

STUDY: Mapping[str, str] = {
    "intended_use": "Intended use",
    "objectives": "Objectives",
    "design": "Prospective or retrospective",
    "registration": "Registration, protocol",
    "ethics": "Ethics",
    "population": "Population",
    "eligibility": "Eligibility",
    "sampling": "Consecutive, random or convenience sample",
    "dates": "Dates",
    "sites": "Sites",
    "scanners": "Scanners",
    "sample_size": "How the number of patients was fixed",
    "deidentification": "Removal of identifiers",
    "exclusions": "Exclusions",
    "reference_readers": "Who read the reference",
    "reference_consensus": "How consensus was found",
    "reference_tools": "Tools of the readers",
    "reference_blinding": "What the readers could see",
    "reference_rationale": "Why this reference",
    "interval": "Time between scan and reference",
    "model": "Model",
    "training_data": "Training data",
    "threshold": "Threshold prespecified or exploratory",
    "indeterminate": "Missing or unclear results",
    "robustness": "Other scanners, sites or settings",
    "explainability": "How results were made understandable",
    "fairness": "Groups of patients compared",
    "limitations": "Limitations",
    "implications": "Implications for practice",
    "availability": "Code, model and data",
    "funding": "Funding",
    "interests": "Interests",
}
STUDY_TEXT = (
    "Supplied by the authors of the evaluation (report.study=study.yaml; docs/study.yaml is a "
    "template). Nothing of it can be checked from the files."
)
FLOW_FOUND, FLOW_EXCLUDED = "Scans found", "Left out before"
FLOW_ENTERED, FLOW_FAILED = "Scans evaluated", "Without a result"
FLOW_RESULT = "Scans with a result"
CHECKLISTS_TEXT = (
    "Which items of two reporting guidelines this page answers: automatically, by what was "
    "supplied, or not at all. The wording is shortened; the guidelines themselves count. STARD-AI "
    "keeps the items of STARD 2015: the numbers are those, its additions are marked AI."
)
STATES: Mapping[str, str] = {
    "automatic": "automatic",
    "supplied": "supplied",
    "not stated": NOT_STATED,
}

SLIDER = "Score from which a mark counts"
SLIDER_TEXT = (
    "Move the score to see what another choice would have given on these same scans. Only the "
    "operating point of the report has an interval; a score picked by looking here would flatter."
)
SLIDER_BACK = "Back to the operating point"
SLIDER_MISSES = "Missed at this score"
SLIDER_NONE = "No slider: the marks have no scores, or no operating point is stated."
HEADINGS_SLIDER_SIZES = ("Size", "Found")
HEADINGS_SLIDER_MISSES = ("Scan", "Lesion", "Size", "Found from score")
# {…} are filled in by the page's script as the slider moves
SLIDER_SAID = (
    "From a score of {score}: found {found} of {lesions} lesions ({share}), {rate} marks a scan "
    "match no reference lesion ({false} on {cases} scans){free}."
)
SLIDER_FREE = "; {rate} on each of the {cases} lesion-free scans"
SLIDER_NEVER = "never"
SLIDER_OF = "{found} of {n}"
GREY_LEVEL, GREY_WIDTH, GREY_BACK = "Level", "Window", "Reset"
SCROLL_SLICES = "Slice"
DEFINITION_LINK, ROWS_LINK = "what this means", "its rows"
ROWS_LINKS: Mapping[str, str] = {"study-table": "the study"}
FOUND, MISSED = "found", "missed"
OUTCOMES: Mapping[str, str] = {
    "true_positive": "found a lesion",
    "false_positive": "matches no lesion",
    "ignored": "second mark on a lesion",
    "not_accepted": "score too low to count",
}

WHY_MISSED: Mapping[str, str] = {
    "no_response": "no response, the model marked nothing there",
    "below_operating_point": "marked, but with a score under the operating point",
    "merged": "merged: its mark counts for a neighbouring lesion",
    "overlap_too_small": "marked, but the mark and the lesion overlap too little",
    "wrong_label": "marked, but as another kind of lesion",
    "removed_by_size": "marked, but the mark was removed for its size",
    "case_failed": "the scan could not be processed",
    "": "not stated",
}

GALLERY_TITLES: Mapping[str, str] = {
    "missed": "Missed lesions",
    "false_alarm": "Marks that match no reference lesion",
    "found": "Found lesions, for comparison",
}
GALLERY_ORDERS: Mapping[str, str] = {
    "missed": "drawn evenly from all sizes, the largest first",
    "false_alarm": "those with the highest scores",
    "found": "drawn at random from all sizes with a fixed seed",
}
NO_PICTURES = (
    "No pictures: the folder of scans was not given. Give the images to the report to see here "
    "what was missed and what was marked wrongly."
)
GALLERY_TEXT = (
    "Slices through the middle of each lesion or mark, cut out around it, along the scan's own "
    "axes; the slider below scrolls to its neighbours. Ticks at the edges point to it. The "
    "patient's right is on the left of a picture, in sagittal slices the front is. Grey values are "
    "stretched to the cut-out."
)
GALLERY_TEXT_2D = (
    "The whole image with the place framed, and a cut-out around it. Ticks point to it."
)
NO_BOX = "Its place in the scan is not stated in the tables."
OUTLINES = "Outlines"
KEY_REFERENCE = "reference (blue, solid)"
KEY_PREDICTION = "program's marks that count (orange, dashed)"

SIZE_TEXT = (
    "Bars: share of the reference lesions that were found, with 95 % interval; hollow where they "
    "are too few for a percentage. Counts below the sizes. Hatched: lesions near the resolution "
    "of the scan (under 8 voxels or on one slice), where size and outline are uncertain themselves."
)
FROC_TEXT = (
    "Lowering the score from which a mark counts finds more lesions and brings more false marks. "
    "The curve shows what each choice would give; the large dot is the one used in this report. "
    "Each division to the right doubles the false marks. Dotted: no further marks to accept."
)
FROC_NONE = "No curve: the marks have no scores, or the curve is not defined."
OVERLAP_TEXT = (
    "Dice coefficient of all lesion voxels of a scan (0: no overlap, 1: identical), for scans with "
    "a reference lesion. A scan whose every lesion was missed counts as 0."
)
OVERLAP_NONE = "No figure: no scan has a Dice coefficient."
TRAINING_TEXT = "The loss during training. A lower loss is no measure of the lesions found."
OTHER_RULES = (
    "Tiny lesions are hard to overlap. The same marks that count, under other rules of what "
    "“found” means:"
)
RULES: Mapping[str, str] = {
    "any_overlap": "mark and lesion share at least one voxel",
    "iou50": "IoU at least 0.5",
    "centre_distance": "centre of a mark within the lesion's radius",
}
CASES_TEXT = (
    "One line per scan. Press a heading to sort. A dash means not defined: Dice and surface "
    "distance need a reference lesion, the distance also a mark."
)
LESIONS_TEXT = "One line per reference lesion. Press a heading to sort."
MARKS_TEXT = "One line per mark, also those whose score is too low to count."
SEARCH = "Search (several words: separate them by ;)"

DEFINITIONS: Mapping[str, tuple[str, str]] = {
    "lesion": (
        "Reference lesion",
        "One connected region (26 neighbours in 3-D, 8 in 2-D) of the reference mask, or one "
        "instance where the reference has instances.",
    ),
    "found": (
        "Found",
        "A mark that counts is matched to the lesion: intersection over union (IoU) of at least "
        "0.1, one mark to one lesion, as many pairs as possible. Other presets have other rules; "
        "the preset used is named at the end.",
    ),
    "false-mark": (
        "Mark that matches no lesion",
        "A mark that counts and has IoU under 0.1 with every reference lesion. Given per scan, "
        "over all scans, and over the lesion-free ones alone.",
    ),
    "failed": (
        "Without a result",
        "A scan for which there is no prediction. Its lesions count as missed and it counts as a "
        "scan without marks; the figures with such scans left out stand beside.",
    ),
    "ignored": (
        "Second mark on a lesion",
        "A mark that overlaps a lesion (IoU at least 0.1) which another mark has found already: "
        "neither a find nor a false mark.",
    ),
    "operating-point": (
        "Operating point",
        "The score from which a mark counts, chosen for a stated rate of false marks or a stated "
        "sensitivity, or given by hand. On which scans it was chosen stands at the top.",
    ),
    "size": (
        "Size",
        "Equivalent diameter: of a ball (in 2-D a disc) with the lesion's volume (area).",
    ),
    "interval": (
        "95 % interval",
        "Range that, over repeated samples of patients, holds the true value 95 times in 100. It "
        "respects that lesions of one patient are alike. Under 5 patients none is given.",
    ),
    "froc": (
        "FROC curve",
        "Share of lesions found against false marks per scan as the score is lowered. CPM is its "
        "mean height at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false marks per scan.",
    ),
    "dice": (
        "Dice",
        "Twice the overlap of two masks over the sum of their volumes. Surface Dice: the share of "
        "both surfaces that lie within a tolerance of each other. HD95: 95th percentile of the "
        "distances between the surfaces.",
    ),
    "precision": (
        "Precision, F1",
        "Precision: share of the marks that count which found a lesion. F1: harmonic mean of "
        "precision and the share of lesions found.",
    ),
}
DEFINITIONS_MORE = "Formula, unit, rule for empty cases and source of each number: docs/metrics.md."

# key of scores.json: words, definition, table whose rows it is counted from
MEASURES: Mapping[str, tuple[str, str, str]] = {
    "lesion_recall": ("Lesions found, of all", "found", "lesion-table"),
    "lesion_recall_mean_per_group": ("Lesions found, mean over patients", "found", "case-table"),
    "lesion_precision": ("Precision", "precision", "mark-table"),
    "lesion_f1": ("F1", "precision", "mark-table"),
    "false_positives_per_case": ("False marks per scan", "false-mark", "mark-table"),
    "false_positives_per_lesion_free_case": (
        "False marks per lesion-free scan",
        "false-mark",
        "case-table",
    ),
    "specificity": ("Lesion-free scans without any mark", "false-mark", "case-table"),
    "cpm": ("CPM", "froc", "lesion-table"),
    "average_precision": ("Average precision", "froc", "mark-table"),
    "case_auroc": (
        "Telling scans with a lesion from those without: AUROC",
        "froc",
        "case-table",
    ),
    "dice": ("Dice, mean over scans with a lesion", "dice", "case-table"),
    "surface_dice": ("Surface Dice, mean over scans with a lesion", "dice", "case-table"),
    "hd95_mm": ("HD95 ({unit}), mean over scans where it is defined", "dice", "case-table"),
}
TABLE_NAMES: Mapping[str, str] = {
    "case-table": "scans",
    "lesion-table": "lesions",
    "mark-table": "marks",
}


HEADINGS_CASES = (
    "Scan",
    "Patient",
    "Result",
    "Lesions",
    "Found",
    "Missed",
    "False marks",
    "Dice",
    "Surface Dice",
    "HD95 ({unit})",
    "Reference (ml)",
    "Marked (ml)",
)
HEADINGS_LESIONS = (
    "Scan",
    "Lesion",
    "Label",
    "Size",
    "Size group",
    "Result",
    "Near resolution",
    "Found at",
    "IoU",
    "If missed: why",
)
HEADINGS_MARKS = ("Scan", "Mark", "Label", "Score", "Chance", "Size", "Result", "Touches a lesion")
HEADINGS_FLOW = ("Step", "Scans")
HEADINGS_DEFINITIONS = ("Word", "Meaning")
HEADINGS_STUDY = ("Question", "Answer")
HEADINGS_CHECKLIST = ("Item", "Asks for", "Here", "Where")
HEADINGS_SIZE = ("Size", "Found", "Share", "95 % interval")
HEADINGS_MEASURES = ("Measure", "Value", "Rows")
HEADINGS_WHY = ("Reason", "Lesions")
HEADINGS_RULES = ("Rule", "Found", "False marks per scan")
HEADINGS_LABELS = ("Kind of lesion", "Found", "Share", "95 % interval", "False marks per scan")
HEADINGS_PROVENANCE = ("What", "Value")
OK, YES, NO, FAILED = "ok", "yes", "no", "missing"
EXTRAS: Mapping[str, str] = {
    "official": "These follow the scorer named, and differ from the figures above in their rules.",
    "comparison": "The same scans and the same reference, judged by the same rules. Pairs are "
    "compared patient by patient.",
    "adjudication": "Marks that match no reference lesion and that a person has judged since. "
    "Lesions that the reference and the model both lack stay unknown, so the judged figures "
    "flatter the model.",
    "subgroups": "Small groups differ by chance alone: look at the intervals, not at the order. "
    "No significance is tested.",
    "calibration": "How often a mark of a given score is a lesion, in these scans. Where lesions "
    "are rarer, a score is worth less.",
}
# words of scores.json that its keys do not say well
EXTRA_WORDS: Mapping[str, str] = {
    "n": "number",
    "ece": "expected calibration error",
    "brier": "Brier score",
    "recall_by_size_quantile": "by size, groups of about equal number",
    "recall_by_size_and_contrast": "by size and contrast",
    "size_curve": "chance of being found along the diameter",
}
ALL_SHOWN = "All of this kind, in parts."
CONTENTS = "Contents"
SCROLL = "Table, scrolls sideways"


def count(n: int, one: str, many: str | None = None) -> str:
    """`n` things, in the singular or plural.

    >>> count(1, "scan"), count(2, "scan")
    ('1 scan', '2 scans')
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}".replace(",", " ")


def number(value: float | None, digits: int = 2) -> str:
    """A number for a table, or a dash."""
    return NONE if value is None else f"{value:.{digits}f}"


def percent(part: float) -> str:
    r"""A share in whole percent; never rounded up to 100 % or down to 0 %.

    >>> percent(0.5), percent(0.999), percent(0.001)
    ('50\xa0%', '99\xa0%', '1\xa0%')
    """
    shown = round(100 * part)
    if (shown == 100 and part < 1) or (shown == 0 and part > 0):
        shown = 99 if shown else 1
    return f"{shown}\N{NO-BREAK SPACE}%"


def rate(value: float) -> str:
    """A rate to two digits, so that a small one is not rounded away.

    >>> rate(0.041), rate(0.84), rate(103.2)
    ('0.041', '0.84', '103')
    """
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def optional_rate(value: float | None) -> str:
    """A rate for a table, or a dash."""
    return NONE if value is None else rate(value)


def size_range(group: SizeGroup, unit: str) -> str:
    """A size group in words.

    >>> size_range(SizeGroup(20, None, 1, 1, Estimate(1.0)), "mm")
    '20 mm and more'
    """
    if group.to_mm is None:
        return f"{group.from_mm:g} {unit} and more"
    if group.from_mm == 0:
        return f"under {group.to_mm:g} {unit}"
    return f"{group.from_mm:g} to {group.to_mm:g} {unit}"


def interval(estimate: Estimate) -> str:
    """The 95 % interval of a share, or why there is none."""
    if estimate.ci95 is None:
        return "no interval" + ("" if estimate.reason == UNSTATED else f": {estimate.reason}")
    return bounds(estimate)


def bounds(estimate: Estimate) -> str:
    """The ends of an interval in percent, rounded outwards; `none` without one."""
    if estimate.ci95 is None:
        return NO_INTERVAL
    low, high = estimate.ci95
    return f"{math.floor(100 * low + 1e-9)} to {math.ceil(100 * high - 1e-9)}\N{NO-BREAK SPACE}%"


def no_intervals(reasons: Iterable[str]) -> str:
    """Why some groups have no interval, each reason once; empty when all have one."""
    said = sorted({reason for reason in reasons if reason != UNSTATED})
    return f"No interval: {'; '.join(said)}." if said else ""


def share(found: int, of: int, estimate: Estimate) -> str:
    """A share in percent; a dash for none, and for few lesions without an interval."""
    if of == 0 or (estimate.ci95 is None and of < MIN_FOR_PERCENT):
        return NONE
    return percent(found / of)


def share_found(found: int, of: int, estimate: Estimate) -> str:
    """A share in percent with its interval; without interval and with few lesions, neither."""
    if of == 0:
        return NO_LESION
    if estimate.ci95 is None and of < MIN_FOR_PERCENT:
        return f"too few for a percentage; {interval(estimate)}"
    if estimate.ci95 is None:
        return f"{percent(found / of)}, {interval(estimate)}"
    return f"{percent(found / of)}, 95 % interval {interval(estimate)}"


def measure(estimate: Estimate) -> str:
    """A number of any kind with its interval, or `not defined` with the reason."""
    if estimate.value is None:
        return f"not defined: {estimate.reason}"
    if estimate.ci95 is None:
        why = "" if estimate.reason == UNSTATED else f" (no interval: {estimate.reason})"
        return f"{estimate.value:.2f}{why}"
    low, high = estimate.ci95
    if low == high:
        return f"{estimate.value:.2f} (no interval: all resampled patients give the same)"
    return f"{estimate.value:.2f} (95 % interval {low:.2f} to {high:.2f})"


def found_sentence(scores: Scores) -> str:
    """How many lesions were found, the large and the small ones apart."""
    cut = 5.0
    large = [g for g in scores.recall_by_size if g.from_mm >= cut]
    small = [g for g in scores.recall_by_size if g.from_mm < cut]
    found = scores.n_lesions - scores.n_missed
    if not scores.n_lesions:
        return "These scans have no reference lesion, so nothing can be said about finding them."
    if not all(any(g.n for g in side) for side in (large, small)):
        return f"Found {found} of {count(scores.n_lesions, 'reference lesion')}."
    return (
        f"Found {_found_of(large)} reference lesions of {cut:g} {scores.size_unit} or more "
        f"and {_found_of(small)} smaller ones."
    )


def overall_sentence(scores: Scores) -> str:
    """The share of all lesions with its interval, and the number missed."""
    if not scores.n_lesions:
        return ""
    found = scores.n_lesions - scores.n_missed
    said = share_found(found, scores.n_lesions, scores.estimate("lesion_recall"))
    return f"Together {found} of {scores.n_lesions} ({said}); {scores.n_missed} missed."


def false_mark_sentence(scores: Scores) -> str:
    """The price: marks that match no reference lesion."""
    per_case = scores.estimate("false_positives_per_case")
    free = scores.estimate("false_positives_per_lesion_free_case")
    kind = "unconfirmed mark" if scores.incomplete_reference else "mark"
    marks = count(scores.n_false_positive, kind)
    price = f"(not defined: {per_case.reason})" if per_case.value is None else rate(per_case.value)
    scans = count(scores.n_cases, "scan")
    touching = f", {scores.n_touching} of them touching a lesion" if scores.n_touching else ""
    said = f"{price} marks a scan match no reference lesion ({marks} on {scans}{touching})"
    if not scores.n_lesion_free_cases:
        return f"{said}; no scan is lesion-free."
    if free.value is None:
        return f"{said}; on lesion-free scans not defined: {free.reason}."
    where = count(scores.n_lesion_free_cases, "lesion-free scan")
    return f"{said}; on the {where} {rate(free.value)} a scan."


def scans_sentence(scores: Scores) -> str:
    """How many scans of how many patients, and in which role."""
    patients = f"of {count(scores.n_groups, 'patient')}"
    if scores.n_groups == scores.n_cases and scores.n_cases > 1:
        patients = "each counted as a patient of its own"
    free = f"{scores.n_lesion_free_cases or 'none'} of them without a reference lesion"
    role = role_words(scores.evaluated_on)
    return f"{count(scores.n_cases, 'scan')}, {patients}, {free}; {role}."


def origin_sentence(answers: Mapping[str, str]) -> str:
    """Where the scans come from and who read the reference, as far as it was supplied.

    >>> origin_sentence({"sites": "Bern"})
    'Scans from: Bern. Reference by: not stated.'
    """
    sites, readers = (
        answers.get(key, NOT_STATED).rstrip(".") for key in ("sites", "reference_readers")
    )
    return f"Scans from: {sites}. Reference by: {readers}."


def role_words(role: str) -> str:
    """What a role means for trust."""
    if role in DEVELOPMENT_TEXT:
        return f"{role} data, used in development"
    return f"{role} data, {UNTOUCHED}" if role in ("test", "external") else f"role: {role}"


def ignored_sentence(scores: Scores) -> str:
    """Marks that count neither way; empty when there are none."""
    if not scores.n_ignored:
        return ""
    marks = count(scores.n_ignored, "further mark")
    verb = "overlaps" if scores.n_ignored == 1 else "overlap"
    return f"{marks} {verb} a lesion that another mark had found; not counted either way."


def failed_sentence(tables: Tables) -> str:
    """Scans without a result, counted as misses and left out; empty when there are none."""
    failed = {case.case for case in tables.cases if case.failed}
    if not failed:
        return ""
    lost = sum(lesion.case in failed for lesion in tables.lesions)
    judged = [lesion for lesion in tables.lesions if lesion.case not in failed]
    found = sum(lesion.detected for lesion in judged)
    scans = len(tables.cases) - len(failed)
    said = f"{count(len(failed), 'scan')} without a prediction: lesions there count as missed"
    if not lost:
        return f"{said}; there are none."
    if not scans:
        return f"{said} ({lost}). No scan has a prediction."
    price = rate(tables.scores.n_false_positive / scans)
    return (
        f"{said} ({lost}). With such scans left out, {found} of {count(len(judged), 'lesion')} "
        f"found, {price} marks a scan that match none."
    )


def halving_sentence(scores: Scores) -> str:
    """How many more patients would halve the interval, or give one at all.

    An interval narrows with the square root of the number of independent patients, so half the
    width takes four times as many in all.
    """
    if scores.n_groups < MIN_GROUPS and scores.n_lesions:
        missing = count(MIN_GROUPS - scores.n_groups, "more patient")
        return f"At least {missing} with lesions would be needed for any interval."
    if scores.estimate("lesion_recall").ci95 is None:
        return ""
    more = f"{3 * scores.n_groups:,}".replace(",", " ")
    return (
        f"To halve the width of that interval, about {more} more patients like these would be "
        "needed: four times as many in all."
    )


def supplied(n: int, of: int) -> str:
    """How much of a study file was filled in."""
    asked = count(of, "question")
    return f"{n} of {asked} answered." if n else f"Nothing was supplied: {asked} {NOT_STATED}."


def unexplained(n: int) -> str:
    """The stated numbers of a flow do not add up; empty when they do."""
    if not n:
        return ""
    what = "unaccounted for" if n > 0 else "more than were found"
    return f"The stated numbers do not add up: {count(abs(n), 'scan')} {what}."


def checklist_sentence(automatic: int, supplied: int, missing: int) -> str:
    """How many items are in which state."""
    return f"{automatic} answered automatically, {supplied} supplied, {missing} {NOT_STATED}."


def shows(slice_mm: float) -> str:
    """How far a slice lies from the middle one.

    >>> shows(0.0), shows(-3.0)
    ('middle', '-3 mm')
    """
    return "middle" if slice_mm == 0 else f"{slice_mm:+.3g} mm"


def operating_point_sentence(scores: Scores) -> str:
    """From which score a mark counts, and on what that was chosen."""
    point = scores.operating_point
    if point.score is None:
        return "No score is stated; the marks the predictions themselves accept were counted."
    chosen = f", chosen on {point.chosen_on} data" if point.chosen_on else ", given by hand"
    return f"A mark counts from a score of {point.score:.3g}{chosen}."


def caption_lesion(lesion: LesionRow, unit: str) -> str:
    """What a picture of a lesion shows."""
    size = f"{lesion.diameter_mm:.1f} {unit}"
    size += f" ({rate(lesion.volume_ml)} ml)" if lesion.volume_ml is not None else ""
    near = ", near the scan's resolution" if lesion.near_resolution else ""
    if not lesion.detected:
        return f"{size}{near} · missed: {why_missed(lesion.why_missed)}"
    score = NONE if lesion.detected_at is None else f"{lesion.detected_at:.2f}"
    overlap = "" if lesion.iou is None else f", overlap (IoU) {lesion.iou:.2f}"
    return f"{size}{near} · found with score {score}{overlap}"


def caption_candidate(candidate: CandidateRow, unit: str) -> str:
    """What a picture of a false mark shows."""
    score = NONE if candidate.score is None else f"{candidate.score:.2f}"
    touch = ", touches a reference lesion" if candidate.touches_lesion else ""
    return f"score {score}, {candidate.diameter_mm:.1f} {unit}{touch}"


def shown_sentence(shown: int, total: int, what: str) -> str:
    """How many of how many are shown, so that nobody takes the choice for the whole."""
    if not total:
        return "There are none."
    rest = f"{total - shown} not shown" if total > shown else "all shown"
    return f"Shown: {shown} of {total}, {what}; {rest}."


def gallery_page(title: str, first: int, last: int) -> str:
    """The title of one page of a whole gallery."""
    return f"{title}, {first} to {last}"


def why_missed(reason: str) -> str:
    """The reason for a miss in words; unknown reasons as they stand."""
    return WHY_MISSED.get(reason.replace(" ", "_"), reason)


def omitted(n: int) -> str:
    """Lines of a table that are only in the file."""
    return f"{count(n, 'further line')} not shown; the CSV file has all."


def no_picture(why: str) -> str:
    """Why a card has no picture."""
    return f"No picture. {why}"


def alt_sizes(scores: Scores) -> str:
    """The chart of recall by size in words."""
    groups = scores.recall_by_size
    return "Share of lesions found by size: " + "; ".join(
        f"{size_range(group, scores.size_unit)}: {group.detected} of {group.n}" for group in groups
    )


def alt_froc(points: Sequence[FrocPoint]) -> str:
    """The ends of the FROC curve in words."""
    first, last = points[0], points[-1]
    return (
        f"FROC curve from {percent(first.recall)} of lesions found at {rate(first.fp_per_case)} "
        f"false marks per scan to {percent(last.recall)} at {rate(last.fp_per_case)}."
    )


def alt_dice(cases: Iterable[CaseRow], median: float | None) -> str:
    """The chart of Dice per case in words."""
    values = [case.dice for case in cases if case.dice is not None]
    middle = "" if median is None else f", median {median:.2f}"
    ends = f"from {min(values):.2f} to {max(values):.2f}{middle}" if values else "none"
    return f"Dice of {count(len(values), 'scan')}: {ends}."


def alt_training(names: Iterable[str]) -> str:
    """The chart of the training in words."""
    return f"Course of {', '.join(names)} during training."


def _found_of(groups: Iterable[SizeGroup]) -> str:
    groups = list(groups)
    return f"{sum(g.detected for g in groups)} of {sum(g.n for g in groups)}"
