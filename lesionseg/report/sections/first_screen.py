"""The first screen: warnings that must be read before the figures, and the facts in order."""

from dataclasses import dataclass

from lesionseg.evaluation.score_sections import Scores
from lesionseg.report import text
from lesionseg.report.inputs.origin import trained_model
from lesionseg.report.inputs.study_file import Study
from lesionseg.report.result_tables import Tables


@dataclass(frozen=True)
class Banner:
    """A warning that must be read before the figures."""

    title: str
    text: str


@dataclass(frozen=True)
class Fact:
    """A line of the first screen, its definition, and the table its numbers are counted from.

    `label` is what it is about, empty for the headline. `terms`: what that table is searched for,
    to show these rows alone.
    """

    words: str
    label: str = ""
    definition: str = ""
    rows: str = ""
    terms: str = ""


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


def unstated(study: Study) -> tuple[Banner, ...]:
    """A banner that names what nobody said of the use of the model; none when all is said."""
    what = text.unstated_words(study.answers)
    return (Banner(text.NOT_SAID, text.NOT_SAID_TEXT.format(what=what)),) if what else ()


def facts(tables: Tables, study: Study | None = None) -> tuple[Fact, ...]:
    """What the first page says, in order; the first is the headline, the rest have labels."""
    scores, answers = tables.scores, study.answers if study else {}
    false, ignored = (text.OUTCOMES[name] for name in ("false_positive", "ignored"))
    sides = zip((1, 0), reversed(scores.recall_by_half), strict=False)
    labels, lost = text.FACTS, text.STATUS["missing"]
    stated = text.role_is_stated(scores.evaluated_on)
    role = text.role_words(scores.evaluated_on) if stated else text.NOT_STATED
    model = answers.get("model") or trained_model(scores, tables.folder)
    rows = (
        Fact(text.headline(tables)),
        Fact(model or text.NOT_STATED, labels["model"]),
        Fact(text.stated(answers, "intended_use", "users"), labels["use"]),
        Fact(text.stated(answers, "population", "sites"), labels["population"]),
        Fact(text.scans_sentence(tables), labels["scans"], "lesion", "case-table"),
        Fact(role, labels["role"]),
        Fact(text.stated(answers, "reference_readers"), labels["reference"]),
        *(
            Fact(text.side_sentence(scores, at), text.side_label(side, scores), "size")
            for at, side in sides
            if 0 < side.n < scores.n_lesions
        ),
        Fact(text.overall_sentence(scores), labels["all"], "found", "lesion-table", text.MISSED),
        Fact(
            text.false_positive_sentence(scores),
            labels["false"],
            "false-positive",
            "candidate-table",
            false,
        ),
        Fact(text.second_reader_sentence(scores), labels["reader"], "second-reader"),
        Fact(
            text.ignored_sentence(scores), labels["ignored"], "ignored", "candidate-table", ignored
        ),
        Fact(text.failed_sentence(tables), labels["failed"], "failed", "case-table", lost),
        Fact(text.warned_sentence(tables), labels["warned"], "warned", "case-table"),
        Fact(text.interval_sentence(tables), labels["interval"], "interval"),
        Fact(text.rule_words(scores), labels["rule"], "found"),
        Fact(text.operating_point_sentence(scores), labels["point"], "operating-point"),
        Fact(text.size_sentence(scores), labels["size"], "size"),
        Fact(answers.get("not_for") or text.NOT_FOR, labels["not_for"]),
    )
    return tuple(fact for fact in rows if fact.words)
