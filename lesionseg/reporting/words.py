"""The sentences of the report, shared by the page and the PDF."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from lesionseg.errors import count, duration, format_score
from lesionseg.evaluation.intervals import CI, poisson_interval
from lesionseg.evaluation.operating_point_choice import FEW_PATIENTS
from lesionseg.evaluation.scores import PERCENT_OF_WIDTH, Scores
from lesionseg.reporting.evaluation_tables import SMALL_MM, Evaluation, SizeClass
from lesionseg.reporting.rendering import Tile, percent, rate

FEW = 5  # fewer patients give no reliable interval
MOST_COUNTED = 50  # up to this number of lesions, a share is stated as "3 of 25"
FEW_STEPS = 1000  # fewer training steps are stated in the warning colour
NOT_STATED = "not stated"


@dataclass(frozen=True)
class Question:
    """A key of study.yaml.

    Attributes:
        words: Its name on the page.
        stard: The item of STARD 2015 that it answers, empty if none.
        claim: The item of CLAIM 2020 that it answers, empty if none.
    """

    words: str
    stard: str = ""
    claim: str = ""

    @property
    def label(self) -> str:
        """The words, followed by the items of the guidelines that they answer."""
        items = []
        if self.stard:
            items.append(f"STARD {self.stard}")
        if self.claim:
            items.append(f"CLAIM {self.claim}")
        return f"{self.words} ({', '.join(items)})" if items else self.words


# the program cannot know these facts, so a user states them in study.yaml
QUESTIONS: Mapping[str, Question] = {
    "title": Question("Title", "1", "1"),
    "intended_use": Question("Intended use", "3", "3"),
    "population": Question("Patients", "20", "34"),
    "inclusion": Question("Included", "6", "8"),
    "exclusions": Question("Excluded", "19", "33"),
    "sites": Question("Sites and scanners", "8", "7"),
    "period": Question("Dates of the scans", "8", "7"),
    "reader": Question("Lesions marked by", "10b", "16"),
    "reference_method": Question("How they were marked", "10b", "14"),
    "model": Question("Program", "10a", "22"),
    "training_data": Question("Training data", "", "20"),
    "funding": Question("Funding", "30", "42"),
    "contact": Question("Contact"),
    "remarks": Question("Remarks"),
}
_OPTIONAL = ("title", "contact", "remarks")  # shown only if they are answered


# --- numbers in words ----------------------------------------------------------------------------


def per_scan(value: float | None, noun: str = "false positive", per: str = "scan") -> str:
    """Return a rate in words, such as "2 false positives per scan".

    >>> per_scan(1.0), per_scan(0.75), per_scan(16.0)
    ('1 false positive per scan', '0.75 false positives per scan', '16 false positives per scan')
    """
    shown = rate(value)
    return f"{shown} {noun}{'' if shown == '1' else 's'} per {per}"


def share_words(hits: int, n: int) -> str:
    """Return a share in words: as counts for up to 50, otherwise as a simple fraction.

    >>> share_words(64, 70), share_words(16, 63), share_words(5, 5), share_words(0, 8)
    ('9 in 10', '1 in 4', 'all 5', 'none of 8')
    >>> share_words(1, 8), share_words(4, 8), share_words(199, 200), share_words(1, 300)
    ('1 of 8', '4 of 8', 'nearly all', 'almost none')
    >>> share_words(1, 1), share_words(0, 1)
    ('the only', '0 of 1')
    """
    if n and hits == n:
        return "the only" if n == 1 else f"all {n}"
    if n == 1:
        return "0 of 1"
    if hits == 0:
        return f"none of {n}"
    if n <= MOST_COUNTED:
        return f"{hits} of {n}"
    share = hits / n
    if share > 0.95:
        return "nearly all"
    if share < 0.05:
        return "almost none"
    options = [Fraction(k, 10) for k in range(1, 10)]
    options += [Fraction(1, 4), Fraction(3, 4), Fraction(1, 3), Fraction(2, 3)]

    def distance(option: Fraction) -> tuple[float, int]:
        """Return the distance to the share. Of equally near fractions, the simpler one is first."""
        return round(abs(float(option) - share), 3), option.denominator

    nearest = min(options, key=distance)
    return f"{nearest.numerator} in {nearest.denominator}"


def size_text(diameter: float, bounds: Iterable[float] = (SMALL_MM,)) -> str:
    """Return a diameter with one decimal, or with more if it is close to a bound of a size class.

    >>> size_text(4.34), size_text(4.96), size_text(5.04), size_text(2.996, (3.0, 5.0))
    ('4.3', '4.96', '5.0', '2.996')
    """
    shown = f"{diameter:.1f}"
    bounds = tuple(bounds)
    for decimals in range(1, 7):
        shown = f"{diameter:.{decimals}f}"
        if all((float(shown) >= bound) == (diameter >= bound) for bound in bounds):
            break
    return shown


def percent_near(share: float, limit: float) -> str:
    """Return a share in per cent, with enough decimals to show on which side of a limit it is.

    >>> percent_near(0.043, 0.1), percent_near(0.0996, 0.1), percent_near(0.25, 0.1)
    ('4 %', '9.96 %', '25 %')
    """
    if round(100 * share) == 0 or round(100 * share) == 100:
        return percent(share)
    return f"{_format_decimals(100 * share, 100 * limit)} %"


def _format_decimals(value: float, limit: float, least: int = 0) -> str:
    """Return a number with enough decimals to show on which side of a limit it is.

    It has at least `least` decimals.
    """
    shown = f"{value:.{least}f}"
    for decimals in range(least, 7):
        shown = f"{value:.{decimals}f}"
        if (float(shown) >= limit) == (value >= limit):
            break
    return shown


def short_unit(unit: str) -> str:
    """Return the unit of sizes in one word.

    >>> short_unit("mm at the detector"), short_unit("% of the image width")
    ('mm', '%')
    """
    return unit.split(",")[0].split(" ")[0]


def size_words(row: Mapping[str, Any], tables: Evaluation) -> str:
    """Return the size of a lesion or candidate with its unit. `row` is its row of a table."""
    size = row[tables.size_column]
    bounds = [point.at or 0.0 for point in tables.scores.curve("recall_by_size")]
    if tables.has_mm:
        return f"{size_text(size, [SMALL_MM, *bounds])} {short_unit(tables.scores.size_unit)}"
    unit = "% of the width" if tables.scores.size_unit == PERCENT_OF_WIDTH else "px"
    return f"{size_text(size, bounds)} {unit}"


def size_class_words(part: SizeClass, unit: str) -> str:
    """Return the name of a size class, short enough to show five next to each other."""
    short = short_unit(unit)
    if part.to_mm is None:
        return f"≥ {part.from_mm:g} {short}"
    if not part.from_mm:
        return f"under {part.to_mm:g} {short}"
    return f"{part.from_mm:g}–{part.to_mm:g} {short}"


# --- the first screen ----------------------------------------------------------------------------


def role_words(role: str) -> str:
    """Return the words for the role of the scans."""
    words = {
        "test": "test scans, not used in training",
        "external": "scans from elsewhere, not used in training",
        "validation": "validation scans",
        "train": "training scans",
    }
    return words.get(role, "scans whose role is not stated")


def tags(tables: Evaluation) -> list[tuple[str, str]]:
    """Return the warnings at the top of the page: the name of each, and a sentence."""
    role = tables.scores.evaluated_on
    found: list[tuple[str, str]] = []
    if not len(tables.cases):
        return found
    if tables.scores.provenance.simulated:
        words = "made by a program: these numbers say nothing about patients"
        found.append(("Simulated scans", words))
    if role in ("train", "validation"):
        words = (
            f"{role_words(role)} were used to make the program: these numbers are too optimistic"
        )
        found.append(("Development data", words))
    elif role not in ("test", "external"):
        found.append(("Role unknown", "the program may have learned from these scans"))
    if tables.scores.is_point_chosen_here:
        found.append(("Limit", "it was chosen on these scans: these numbers are too optimistic"))
    if part := tables.scores.provenance.scored_part:
        found.append(("Follow-up", f"only {part} were scored"))
    if tables.scores.split_is_group_safe is False:
        found.append(
            ("Not independent", "the program learned from other scans of the same patients")
        )
    if words := explain_excess(tables.scores):
        found.append(("False positives", words))
    return found


def explain_excess(scores: Scores, noun: str = "limit") -> str:
    """Return a sentence if these scans have far more false positives than expected.

    This means at least twice as many, and more than chance explains. Otherwise the sentence is
    empty. The rate of the aim is compared if the aim is a rate, otherwise the expected rate.
    `noun` is the word for the operating point.
    """
    aim = scores.operating_point.aim
    expected = scores.operating_point.expected_false_positives_per_case
    if aim is not None and aim.kind == "fp_per_case":
        stated: float | None = aim.value
        verb = "is set for"
    else:
        stated = expected
        verb = "was expected to give"
    n_false = scores.count("n_false_positive")
    observed = scores["false_positives_per_case"].value
    if stated is None or not n_false or not observed:
        return ""
    allowed = max(stated, expected or 0.0)
    lower_end = observed * poisson_interval(n_false)[0] / n_false  # of the 95 % interval
    if observed < 2 * allowed or lower_end <= allowed:
        return ""
    return (
        f"the {noun} {verb} {per_scan(stated)}, but these scans have {rate(observed)}. It does "
        "not suit these scans."
    )


def headline(tables: Evaluation) -> str:
    """Return one sentence about the lesions of two size classes and the false positives."""
    n_cases = len(tables.cases)
    false = tables.scores.count("n_false_positive")
    scans = count(n_cases, "scan")
    if not n_cases:
        return "No scan was evaluated: this page says nothing about the program."
    false_words = f"without a false positive on {count(tables.n_predicted, 'scan')}"
    if false:
        false_words = f"with {per_scan(false / tables.n_scanned)}"
    if not len(tables.lesions):
        n_with = int((tables.cases["n_false_positive"] > 0).sum())
        n_without = tables.n_predicted - n_with
        what = "a marked lesion" if tables.is_partly_annotated else "lesions"
        return f"{scans} without {what}: {n_with} with a false positive, {n_without} without."
    return f"Finds {_found_words(tables)}, {false_words}."


def _found_words(tables: Evaluation) -> str:
    """Return the shares of lesions found in words, by size if it is known in millimetres."""
    if not tables.has_mm:
        n = len(tables.lesions)
        share = share_words(int(tables.lesions["detected"].sum()), n)
        return f"{share} {'lesion' if n == 1 else 'lesions'}"
    short = short_unit(tables.scores.size_unit)
    large = tables.lesions_by_size(small=False)
    small = tables.lesions_by_size(small=True)
    parts: list[str] = []
    if len(large):
        share = share_words(int(large["detected"].sum()), len(large))
        noun = "lesion" if len(large) == 1 else "lesions"
        parts.append(f"{share} {noun} of {SMALL_MM:g} {short} or more")
    if len(small):
        share = share_words(int(small["detected"].sum()), len(small))
        plural = "" if len(small) == 1 else "s"
        if parts:
            parts.append(f"{share} smaller one{plural}")
        else:
            parts.append(f"{share} lesion{plural} under {SMALL_MM:g} {short}")
    return ", ".join(parts)


def tiles(tables: Evaluation) -> list[Tile]:
    """Return the four numbers of the first screen. Without a scan they are dashes.

    The first two are lesions found: by size or, for images of two axes and for boxes, by any
    overlap that the rule accepts and by an IoU of at least ½.
    """
    n = len(tables.cases)
    if tables.scores.has_boxes or not tables.has_mm:
        found = _tiles_by_overlap(tables)
    else:
        found = _tiles_by_size(tables)
    if not n:
        return [*found, Tile("–", "false positives per scan"), Tile("–", "patients")]
    found.append(_false_positive_tile(tables))
    n_with = tables.cases[tables.cases["n_lesions"] > 0]["group"].nunique()
    n_without = tables.cases["group"].nunique() - n_with
    who = "patient" if tables.patients_stated else "scan"
    words = f"with lesions, {n_without or 'none'} without"
    if n_without and tables.is_partly_annotated:
        words += " a marked lesion"
    is_very_small = n_with < FEW
    if is_very_small:
        words += ": a very small test"
    return [*found, Tile(count(n_with, who), words, weak=is_very_small)]


def _tiles_by_overlap(tables: Evaluation) -> list[Tile]:
    """Return the numbers of lesions found by the rule, and with an IoU of at least ½."""
    n = len(tables.lesions)
    noun = "lesion" if n == 1 else "lesions"
    by_rule = f"{noun} found"
    by_iou = f"{noun} found with an IoU of ½ or more"
    if n == 0:
        no_lesions = Tile("none", "lesions in these scans")
        return [no_lesions if len(tables.cases) else Tile("–", by_rule), Tile("–", by_iou)]
    found = []
    for column, words in (("detected", by_rule), ("iou50", by_iou)):
        hits = int(tables.lesions[column].sum())
        found.append(Tile(f"{hits} of {n}", f"{words} ({percent(hits / n)})", weak=hits < n / 2))
    return found


def _tiles_by_size(tables: Evaluation) -> list[Tile]:
    """Return the numbers of lesions found of 5 mm or more, and under 5 mm."""
    found: list[Tile] = []
    n = len(tables.cases)
    for small in (False, True):
        own = tables.lesions_by_size(small=small)
        hits = int(own["detected"].sum())
        sign = "<" if small else "≥"
        noun = "lesion" if len(own) == 1 else "lesions"
        size = f"{noun} {sign} {SMALL_MM:g} {tables.scores.size_unit.split(',')[0]}"
        if len(own):
            share = hits / len(own)
            words = f"{size} found ({percent(share)})"
            found.append(Tile(f"{hits} of {len(own)}", words, weak=share < 0.5))
        elif n:
            found.append(Tile("none", f"{size} in these scans"))
        else:
            found.append(Tile("–", f"{size} found"))
    return found


def _false_positive_tile(tables: Evaluation) -> Tile:
    """Return the tile of the rate of false positives, with its interval."""
    false = tables.scores.count("n_false_positive")
    value = tables.scores["false_positives_per_case"].value
    interval = tables.scores["false_positives_per_case"].ci95
    if not tables.n_predicted:
        return Tile("–", "false positives per scan: no scan has a result")
    scans = count(tables.n_predicted, "scan")
    note = ""
    if tables.n_scanned != tables.n_predicted:
        scans = f"{tables.n_scanned:.3g} scans"
        note = " A partly annotated scan counts by its share."
    if not false:
        words = "false positives. So few patients do not show how high the true rate may be."
        if interval:
            words = f"false positives. The true rate may be up to {rate(interval[1])} per scan."
        words += note
        return Tile(f"0 on {scans}", words, weak=len(tables.cases) < 20)
    # "1.2 false positives per scan" without the number, which is the large text of the tile
    noun = per_scan(value).removeprefix(f"{rate(value)} ")
    words = f"{noun} ({false} on {scans})"
    if interval:
        words += f"; 95 % interval {rate(interval[0])} to {rate(interval[1])}"
    if note:
        words += f".{note}"
    is_many = value is not None and value > 2
    is_excess = bool(explain_excess(tables.scores))
    return Tile(rate(value), words, weak=is_many or is_excess)


def limitations(tables: Evaluation, study: Mapping[str, str]) -> str:
    """Return the limitations of the evaluation in one line."""
    words = (
        f"{found_rule(tables)} An empty result does not exclude a lesion. The program was tested "
        "alone, without a reader."
    )
    is_simulated = tables.scores.provenance.simulated
    if not is_simulated and "reader" not in study:
        words += " The person who marked the lesions is not stated."
    if "population" not in study and not is_simulated:
        words += " The patients are not described."
    warned = int((tables.cases["warning"] != "").sum())
    if warned:
        words += f" The program warned of {count(warned, 'scan')}."
    missing = tables.scores.missing_predictions
    if len(missing) == 1:
        words += " 1 scan has no result: its lesions count as missed."
    elif missing:
        words += f" {len(missing)} scans have no result: their lesions count as missed."
    if tables.n_failed == 1:
        words += " 1 scan could not be scored and is not included."
    elif tables.n_failed:
        words += f" {tables.n_failed} scans could not be scored and are not included."
    return words


@dataclass(frozen=True)
class Basis:
    """The training and the choice of the limit in words. `is_weak`: one of them had few data."""

    words: str
    is_weak: bool


def basis(tables: Evaluation) -> Basis | None:
    """State how long the program was trained, and on how many scans its limit was chosen.

    Return None if the scores state neither, like those of an earlier version.
    """
    made = tables.scores.provenance
    point = tables.scores.operating_point
    parts = []
    is_weak = False
    if made.training_steps:
        words = f"trained {count(made.training_steps, 'step')} in {duration(made.training_minutes)}"
        if made.n_networks > 1:
            words += f", {made.n_networks} networks together"
        parts.append(words)
        is_weak = made.training_steps < FEW_STEPS * made.n_networks
    if point.n_cases is not None and tables.threshold is not None:
        words = f"limit chosen on {count(point.n_cases, 'scan')}"
        if point.n_patients != point.n_cases:
            words += f" of {count(point.n_patients or 0, 'patient')}"
        parts.append(f"{words} ({count(point.n_false_positives or 0, 'false positive')})")
        is_weak |= (point.n_patients or 0) < FEW_PATIENTS
    line = "; ".join(parts)
    return Basis(f"{line[0].upper()}{line[1:]}.", is_weak) if line else None


# --- lesions -------------------------------------------------------------------------------------

_REASON_WORDS = {  # for each value of why_missed in lesions.csv
    "no_response": "not seen at all",
    "below_operating_point": "seen, but rated below the limit",
    "not_accepted": "seen, but the program did not accept the marking",
    "overlap_too_small": "touched, but too little of it is covered",
    "candidate_too_large": "inside a marking that is too large to count",
    "iou_too_small": "touched, but the outlines agree too little",
    "centre_too_far": "touched by a marking whose centre is too far away",
    "merged": "marked together with another lesion",
    "wrong_label": "marked as another kind of lesion",
    "removed_by_size": "seen, but dropped for its size",
    "case_failed": "the scan has no result",
}
_INSIDE_SHARE = 0.95  # a lesion with this share in a marking is described as inside the marking


def why_missed(row: Mapping[str, Any], tables: Evaluation) -> str:
    """Explain in words why a lesion was missed. `row` is its row of lesions.csv."""
    why = str(row.get("why_missed") or "")
    words = _reason_words(why, row, tables)
    score = _read_number(row.get("nearest_score"))
    if score is None:
        score = _read_number(row.get("detected_at"))
    if why in ("no_response", "case_failed", "not_accepted") or score is None:
        return words
    if tables.threshold is None or score >= tables.threshold:
        return words
    near = "just below" if score > 0.9 * tables.threshold else "below"
    shown, limit = _format_distinct(score, tables.threshold)
    if why == "below_operating_point":
        return f"seen, but rated {near} the limit ({shown}; limit {limit})"
    return f"{words}; that marking is also rated {near} the limit ({shown}; limit {limit})"


def _reason_words(why: str, row: Mapping[str, Any], tables: Evaluation) -> str:
    """Return the reason `why` of lesions.csv in words, with the measured numbers."""
    words = _REASON_WORDS.get(why, why.replace("_", " "))
    if why == "no_response" and tables.threshold is None:
        return "no marking touches it"
    least = tables.scores.provenance.rule_threshold
    if least is None:
        return words
    covered = _read_number(row.get("covered"))
    iou = _read_number(row.get("nearest_iou"))
    needed = f"{percent(least)} needed"
    if why == "overlap_too_small" and covered is not None:
        return f"touched, but only {percent_near(covered, least)} of it is covered ({needed})"
    if why == "iou_too_small" and iou is not None:
        return f"{words} (IoU {_format_decimals(iou, least, 2)}; {least:g} needed)"
    if why == "candidate_too_large":
        if covered is not None and covered < _INSIDE_SHARE:
            words = f"{percent(covered)} of it is {words}"
        share = _find_lesion_share(
            tables, str(row["case"]), _read_number(row.get("nearest_candidate"))
        )
        if share is not None:
            words += f": {percent_near(share, least)} of the marking is lesion ({needed})"
    return words


def false_positive_words(row: Mapping[str, Any]) -> str:
    """Return the words below the picture of a false positive, from its row of candidates.csv."""
    parts = []
    score = _read_number(row.get("score"))
    share = _read_number(row.get("in_lesions"))
    if score is not None:
        parts.append(f"rated {format_score(score)}")
    if share:
        parts.append(f"touches a lesion ({percent(share)} of the marking is lesion)")
    elif row.get("touches_lesion"):
        parts.append("touches a lesion")
    return ", ".join(parts)


def _read_number(value: Any) -> float | None:
    """Return the number in a cell. Return None if the cell or its column is missing."""
    is_nan = value != value  # the only value that differs from itself
    return None if value is None or is_nan else float(value)


def _format_distinct(score: float, limit: float) -> tuple[str, str]:
    """Return two scores with enough digits to show that they differ.

    >>> _format_distinct(0.3, 0.5), _format_distinct(0.49988, 0.5)
    (('0.3', '0.5'), ('0.4999', '0.5'))
    """
    shown = format_score(score)
    shown_limit = format_score(limit)
    digits = 4
    while shown == shown_limit and digits <= 9:
        shown = f"{score:.{digits}g}"
        shown_limit = f"{limit:.{digits}g}"
        digits += 1
    return shown, shown_limit


def _find_lesion_share(tables: Evaluation, case: str, candidate: float | None) -> float | None:
    """Return the share of a candidate that is located in lesions; None if it is unknown."""
    rows = tables.candidates
    if candidate is None:
        return None
    own = rows[(rows["case"] == case) & (rows["candidate"] == candidate)]
    return None if own.empty else _read_number(own["in_lesions"].iloc[0])


# --- the annex -----------------------------------------------------------------------------------


def limit_words(tables: Evaluation) -> str:
    """Describe the limit: its choice and its expected rate. Return "" without a limit."""
    point = tables.scores.operating_point
    aim = point.aim
    if tables.threshold is None:
        return ""
    words = f"markings with a rating of {format_score(tables.threshold)} or higher count"
    if aim is not None and aim.kind == "fp_per_case":
        words += f"; the limit is set for {per_scan(aim.value)} on new scans"
        if point.is_default:
            words += ", the default" if aim.value == 1 else ", the default of one per ten lesions"
    elif aim is not None and aim.kind == "best_f1":
        words += "; the limit is set for the highest F1, which weights missed lesions and false "
        words += "positives equally"
    elif aim is not None and aim.kind == "sensitivity":
        words += f"; the limit is set to find {percent(aim.value)} of the lesions"
    elif aim is not None and aim.kind == "score":
        words += "; a user set the limit"
    if point.chosen_on:
        words += f"; chosen on {point.chosen_on.replace('+', ' and ')} scans"
    if point.expected_false_positives_per_case is not None:
        words += f"; {per_scan(point.expected_false_positives_per_case)} expected"
    return words


def found_rule(tables: Evaluation) -> str:
    """Return a sentence that says which lesions count as found."""
    preset = tables.scores.preset
    least = tables.scores.provenance.rule_threshold
    if preset == "lesionseg":
        of_any_label = ", of any label," if len(tables.scores.labels) > 1 else ""
        return f"A lesion counts as found if markings{of_any_label} cover at least 10 % of it."
    if preset.startswith("iou") and least is not None:
        return f"A lesion counts as found if it has an IoU of at least {least:g} with a marking."
    return f"Lesions count as found by the rule {preset}."


def rule_words(tables: Evaluation) -> str:
    """Return sentences that say which lesions count as found, and further parts of the rule."""
    words = found_rule(tables)
    preset = tables.scores.preset
    if preset == "lesionseg":
        words += " A marking is a false positive if less than 10 % of it is in lesions."
        if len(tables.scores.labels) > 1:
            words += " The table label by label compares equal labels only."
    elif preset.startswith("iou"):
        words += f" Each marking finds at most one lesion (rule {preset})."
    return words


def is_one_to_one(tables: Evaluation) -> bool:
    """Return True if the match rule gives each lesion at most one marking, and vice versa."""
    return tables.scores.provenance.rule_assignment == "every_threshold"


def false_positive_rule(tables: Evaluation) -> str:
    """Return a sentence that says which markings are false positives."""
    if tables.scores.provenance.rule_assignment == "jointly":
        return (
            "A false positive is a marking outside all lesions, or with too little of it in "
            "lesions."
        )
    return "A false positive is a marking that matches no lesion by the rule of this test."


def study_lines(tables: Evaluation, study: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the questions of study.yaml with their answers, or with "not stated"."""
    lines = []
    for key, question in QUESTIONS.items():
        if key == "title" or (key in _OPTIONAL and key not in study):
            continue
        answer = study.get(key, NOT_STATED)
        if key == "reader" and key not in study and tables.scores.provenance.simulated:
            answer = "the program that made the scans"
        lines.append((question.label, answer))
    return lines


@dataclass(frozen=True)
class Measure:
    """A number of scores.json with its name, value, interval and meaning."""

    name: str
    value: str
    interval: str
    meaning: str


# name and meaning of each number of scores.json on the page
MEASURES: Mapping[str, tuple[str, str]] = {
    "n_cases": ("scans", ""),
    "n_groups": ("patients", "the intervals take patients as independent"),
    "n_lesion_free_cases": ("scans without a lesion", ""),
    "n_lesions": ("lesions", "as marked in the reference"),
    "n_candidates": ("markings of any rating", "including those below the limit"),
    "n_true_positive": ("lesions found", ""),
    "n_false_positive": (
        "false positives",
        "markings above the limit that match no lesion by the rule",
    ),
    "n_missed": ("lesions missed", ""),
    "dice": (
        "Dice",
        "overlap of predicted and reference lesions, 1 if equal; mean over the scans with a "
        "lesion. A scan without a marking counts as 0.",
    ),
    "surface_dice": (
        "surface Dice",
        "share of both surfaces within {tolerance} of each other",
    ),
    "hd95_mm": (
        "HD95, {unit}",
        "95 % of the area of each surface is at most this far from the other surface; 0 if 95 % "
        "coincide. Other programs measure between border voxels and may state one voxel instead.",
    ),
    "lesion_recall": ("sensitivity", "{found} of {n_lesions} lesions found"),
    "lesion_precision": (
        "precision",
        "{supported} of {counted} lesions. {sharing}",
    ),
    "lesion_f1": ("F1 of lesions", "2·found / (found + lesions + false positives)"),
    "false_positives_per_case": ("false positives per scan", "over all scans"),
    "false_positives_per_lesion_free_case": (
        "false positives per scan without a lesion",
        "over the scans without a lesion",
    ),
    "specificity": ("specificity", "share of scans without a lesion that have no false positive"),
    "cpm": (
        "CPM",
        "mean sensitivity at ⅛, ¼, ½, 1, 2, 4 and 8 false positives per scan (LUNA16)",
    ),
    "average_precision": ("average precision", "precision averaged over all limits"),
    "case_auroc": (
        "AUROC of scans",
        "probability that the highest rating in a scan with a lesion exceeds that in a scan "
        "without one; from {with_lesion} scans with and {lesion_free} without a lesion",
    ),
    "panoptic_quality": (
        "panoptic quality",
        "overlap (IoU) of markings and lesions paired one to one, lowered by each false positive "
        "and each missed lesion; 1 is perfect (Kirillov 2019)",
    ),
    "box_ap_40": (
        "box AP at IoU 0.4",
        "average precision if a marking and a lesion match at an IoU of their boxes of at least "
        "0.4 (VinDr-CXR); mean over the labels",
    ),
    "box_ap_50": ("box AP at IoU 0.5", "the same for IoU 0.5 (AP50 of COCO)"),
    "box_ap_40_75": ("box AP, IoU 0.4 to 0.75", "mean over IoU 0.4, 0.45, … 0.75, as in RSNA"),
    "box_ap_50_95": ("box AP, IoU 0.5 to 0.95", "mean over IoU 0.5, 0.55, … 0.95 (AP of COCO)"),
    "rsna_score": (
        "RSNA score",
        "of each scan, matches / (markings + lesions − matches), averaged over IoU 0.4 to 0.75; "
        "mean over the scans with a marking or a lesion",
    ),
}


OF_BOXES = ("box_ap_40", "box_ap_50", "box_ap_40_75", "box_ap_50_95", "rsna_score")


def measures(tables: Evaluation) -> tuple[list[Measure], str]:
    """Return every number of scores.json, and a note on missing intervals.

    If several numbers have no interval for the same reason, the note states this reason. Otherwise
    it is empty.
    """
    numbers = _count_for_meanings(tables)
    found: list[Measure] = []
    reasons: list[str | None] = []  # why each measure has no interval; None if it has one
    for key, (name, meaning) in MEASURES.items():
        if key in OF_BOXES and not tables.scores.has_boxes:
            continue
        node = tables.scores[key]
        interval: CI | None = None
        reason = ""
        if key.startswith("n_"):  # a number of cases or lesions has no interval
            value = str(tables.scores.count(key))
        elif node.value is not None:
            value = format_score(node.value)
            interval = node.ci95
            reason = node.reason or ""
        elif node.reason:
            value = "–"
            reason = node.reason
        else:
            continue
        words = " to ".join(map(format_score, interval)) if interval else reason
        found.append(Measure(name.format_map(numbers), value, words, meaning.format_map(numbers)))
        reasons.append(None if interval else reason)
    shared = _find_shared(reasons)
    for index, why in enumerate(reasons):
        if why == shared:
            found[index] = replace(found[index], interval="–")
    return found, f"– instead of an interval: {shared}." if shared else ""


def _find_shared(reasons: Iterable[str | None]) -> str:
    """Return the most frequent reason if it occurs at least twice, otherwise ""."""
    counts = Counter(reason for reason in reasons if reason)
    if not counts:
        return ""
    reason, n = counts.most_common(1)[0]
    return reason if n > 1 else ""


def _count_for_meanings(tables: Evaluation) -> dict[str, object]:
    """Return the numbers that the meanings in `MEASURES` mention."""
    scores = tables.scores
    outcome = tables.candidates["outcome"]
    supported = int((outcome == "true_positive").sum())
    counted = supported + int((outcome == "false_positive").sum())
    verb = "marking is in" if counted == 1 else "markings are in"
    if scores.preset != "lesionseg":
        verb = "marking matches" if counted == 1 else "markings match"
    tolerance = scores.provenance.surface_tolerance_mm
    # readers give an image without a pixel size pixels of 1 mm
    tolerance_unit = "mm" if tables.has_mm else "pixel" if tolerance == 1 else "pixels"
    return {
        "tolerance": f"{tolerance:g} {tolerance_unit}",
        "unit": "mm" if tables.has_mm else "pixels",
        "found": scores.count("n_true_positive"),
        "n_lesions": scores.count("n_lesions"),
        "supported": supported,
        "counted": f"{counted} {verb}",
        "sharing": "Each marking finds at most one lesion."
        if is_one_to_one(tables)
        else "One marking may find several lesions, and several markings may find one lesion.",
        "with_lesion": int((tables.cases["n_lesions"] > 0).sum()),
        "lesion_free": scores.count("n_lesion_free_cases"),
    }
